// Batches and prefill: many tokens times quantized weights, in 8-bit integer matrix products (mma.sync, sm_80 and later).
//
// A block of threads makes 16, 32, 64 or 128 tokens x 64 rows of results. It goes along the columns in steps of 4 blocks of 32:
// quants of activations come by asynchronous copies, weights through registers, where their codes become signed bytes; both are
// double-buffered, with one barrier per step. Each block of 32 columns is one integer product, whose sums are scaled into
// `f32`, so results have the numbers of the decode kernels in another order.
//
// Where few rows leave multiprocessors idle, the columns are split among blocks of threads (grid z), whose sums meet in memory
// (`join_splits`). A result is the sum of its columns in order, by splits, whatever the tile: at one number of splits, tiles of
// all sizes give the same bits.
#include "fragments.cuh"
#include "gemm.cuh"

constexpr u32 TILE_ROWS = 64;
constexpr u32 STEP = 4;  // blocks of columns
// Bytes of a row in shared memory. The 16 besides put the 8 rows that ldmatrix reads into different banks.
constexpr u32 STRIDE = STEP * BLOCK + 16;

// How the warps of a block share its tile. A warp has at least 16 rows, so that a thread has a result of gate and that of up.
template <u32 TOKENS>
struct Tile {
    static constexpr u32 WARP_TOKENS = TOKENS < 32 ? TOKENS : 32;
    static constexpr u32 WARP_ROWS = TOKENS < 128 ? 16 : 32;
    static constexpr u32 WARPS_ACROSS = TILE_ROWS / WARP_ROWS;
    static constexpr u32 THREADS = TOKENS / WARP_TOKENS * WARPS_ACROSS * WARP;
    // Fragments of 16 tokens and of 8 rows in a warp.
    static constexpr int I = WARP_TOKENS / 16;
    static constexpr int J = WARP_ROWS / 8;
    // What a thread brings in a step: blocks of weights, and scales of blocks of activations.
    static constexpr int WEIGHTS = TILE_ROWS * STEP / THREADS;
    static constexpr int SCALES = (TOKENS * STEP + THREADS - 1) / THREADS;
    // Between the rows of weights of a thread. They are all of gate or all of up.
    static constexpr u32 ROW_STEP = THREADS / STEP;
    static_assert(ROW_STEP % 16 == 0, "a thread brings rows of one matrix");
};

// Added to integer sums before the product, so that their bits are those of the float 1.5 * 2^23 + sum: sums of 32 products of
// bytes are below 2^20. Subtracting the float is cheaper than a conversion.
constexpr i32 MAGIC_BITS = 0x4b400000;
constexpr float MAGIC = 12582912.0f;

template <class Type, u32 TOKENS>
struct Stage {
    static constexpr u32 PARTS = Type::HALVES * (Type::ADDS ? 2 : 1);
    alignas(16) u8 tokens[TOKENS * STRIDE];
    alignas(16) u8 rows[TILE_ROWS * STRIDE];
    BlockScale scales[STEP][TOKENS];
    // Factors, then addends.
    float factors[STEP][PARTS][TILE_ROWS];
};

template <class Type, u32 TOKENS>
DEVICE void gemm(const MatmulArgs& args) {
    using Shape = Tile<TOKENS>;
    using Buffer = Stage<Type, TOKENS>;
    constexpr u32 THREADS = Shape::THREADS;
    constexpr int I = Shape::I, J = Shape::J, WEIGHTS = Shape::WEIGHTS, SCALES = Shape::SCALES;
    DYNAMIC_SHARED(Buffer, stages);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 which = matrix_of_block(args);
    const u32 tile = blockIdx.x - args.matrices[which].first;
    const u32 first_token = blockIdx.y * TOKENS;
    const u32 blocks = args.blocks, steps = (blocks + STEP - 1) / STEP;
    const u32 first_step = steps * blockIdx.z / args.splits, end = steps * (blockIdx.z + 1) / args.splits;

    // In every step a thread brings blocks of weights, of one column and of rows that are ROW_STEP apart, and scales of
    // activations. Rows and tokens behind the last are copies of it, and their results are dropped.
    const u32 my_row = threadIdx.x / STEP, my_block = threadIdx.x % STEP;
    const u32 mine = args.gated ? my_row / 8 % 2 : which;
    const u32 last_row = args.matrices[mine].rows - 1;
    const Planes planes = args.matrices[mine].planes;
    size_t source[WEIGHTS];
#pragma unroll
    for (int w = 0; w < WEIGHTS; w++) {
        source[w] = size_t(min(row_of<TILE_ROWS>(args, tile, my_row + w * Shape::ROW_STEP), last_row)) * blocks;
    }

    Type next[WEIGHTS]{};
    bool next_is_real = false;
    auto fetch_weights = [&](u32 step) {
        const u32 block = step * STEP + my_block;
        next_is_real = block < blocks;
        if (!next_is_real) return;
#pragma unroll
        for (int w = 0; w < WEIGHTS; w++) next[w].load(planes, source[w] + block);
    };
    fetch_weights(first_step);
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    QuantizedRows x;
    set_rows(x, args);

    uint2 next_scales[SCALES];
    auto fetch_tokens = [&](Buffer& stage, u32 step) {
#pragma unroll
        for (u32 i = 0; i < TOKENS * STEP * 2 / THREADS; i++) {
            const u32 piece = threadIdx.x + i * THREADS;
            const u32 token = piece / (STEP * 2), part = piece % (STEP * 2);
            const u32 block = step * STEP + part / 2, half = part % 2;
            const bool real = block < blocks;
            const size_t row = min(first_token + token, args.tokens - 1);
            const i8* from = x.quants + (row * 2 * blocks + half * blocks + (real ? block : 0)) * 16;
            ptx::copy16_async(stage.tokens + token * STRIDE + part * 16, from, real);
        }
        ptx::commit_copies();
#pragma unroll
        for (u32 i = 0; i < SCALES; i++) {
            const u32 item = threadIdx.x + i * THREADS, block = step * STEP + item % STEP;
            const size_t row = min(first_token + item / STEP, args.tokens - 1);
            next_scales[i] = {0, 0};
            if (block < blocks) next_scales[i] = ptx::load8(x.scales + row * blocks + block);
        }
    };
    fetch_tokens(stages[0], first_step);

    float sums[I][J][4];
#pragma unroll
    for (int i = 0; i < I; i++)
#pragma unroll
        for (int j = 0; j < J; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[i][j][e] = 0.0f;
    const u32 warp_token = warp / Shape::WARPS_ACROSS * Shape::WARP_TOKENS;
    const u32 warp_row = warp % Shape::WARPS_ACROSS * Shape::WARP_ROWS;

    for (u32 step = first_step; step < end; step++) {
        Buffer& stage = stages[(step - first_step) % 2];
        // What was fetched into registers.
#pragma unroll
        for (int n = 0; n < WEIGHTS; n++) {
            typename Type::Prepared weights;
#pragma unroll
            for (int j = 0; j < 8; j++) weights.words[j] = 0;
#pragma unroll
            for (int h = 0; h < Type::HALVES; h++) weights.factors.factor[h] = weights.factors.addend[h] = 0.0f;
            if (next_is_real) next[n].prepare(source[n] + step * STEP + my_block, weights);
            const u32 row = my_row + n * Shape::ROW_STEP;
            uint4* place = reinterpret_cast<uint4*>(stage.rows + row * STRIDE + my_block * BLOCK);
            place[0] = {weights.words[0], weights.words[1], weights.words[2], weights.words[3]};
            place[1] = {weights.words[4], weights.words[5], weights.words[6], weights.words[7]};
#pragma unroll
            for (int h = 0; h < Type::HALVES; h++) {
                stage.factors[my_block][h][row] = weights.factors.factor[h];
                if (Type::ADDS) stage.factors[my_block][Buffer::PARTS - Type::HALVES + h][row] = weights.factors.addend[h];
            }
        }
#pragma unroll
        for (u32 i = 0; i < SCALES; i++) {
            const u32 item = threadIdx.x + i * THREADS;
            if (item >= TOKENS * STEP) continue;
            *reinterpret_cast<uint2*>(&stage.scales[item % STEP][item / STEP]) = next_scales[i];
        }
        AWAIT_COPIES(0);
        __syncthreads();
        // The other stage is free: everyone has left the step that read it.
        if (step + 1 < end) {
            fetch_tokens(stages[(step + 1 - first_step) % 2], step + 1);
            fetch_weights(step + 1);
        }

        // Not unrolled: the registers of one block are enough.
#pragma unroll 1
        for (u32 b = 0; b < STEP; b++) {
            u32 tokens[I][4], rows[J / 2][4];
#pragma unroll
            for (int i = 0; i < I; i++) {
                const u32 row = warp_token + i * 16 + lane % 16;
                ptx::load_matrices(tokens[i], stage.tokens + row * STRIDE + b * BLOCK + lane / 16 * 16);
            }
#pragma unroll
            for (int j = 0; j < J / 2; j++) {
                const u32 row = warp_row + j * 16 + lane % 8 + lane / 16 * 8;
                ptx::load_matrices(rows[j], stage.rows + row * STRIDE + b * BLOCK + lane / 8 % 2 * 16);
            }
#pragma unroll
            for (int i = 0; i < I; i++) {
                // Of the two tokens that this thread has in the product.
                float scale[2], parts[2][2];
#pragma unroll
                for (int t = 0; t < 2; t++) {
                    const BlockScale s = stage.scales[b][warp_token + i * 16 + t * 8 + lane / 4];
                    scale[t] = s.scale;
                    parts[t][0] = float(Type::HALVES == 2 ? s.sums[0] : s.sums[0] + s.sums[1]);
                    parts[t][1] = float(s.sums[1]);
                }
#pragma unroll
                for (int j = 0; j < J; j++) {
                    const u32 column = warp_row + j * 8 + lane % 4 * 2;
                    const u32 half_of_pair = j % 2 * 2;
                    i32 products[2][4];
                    if (Type::HALVES == 2) {
#pragma unroll
                        for (int h = 0; h < 2; h++) {
#pragma unroll
                            for (int e = 0; e < 4; e++) products[h][e] = MAGIC_BITS;
                            const u32 a[2] = {tokens[i][2 * h], tokens[i][2 * h + 1]};
                            ptx::mma_s8_k16(products[h], a, rows[j / 2][half_of_pair + h]);
                        }
                    } else {
#pragma unroll
                        for (int e = 0; e < 4; e++) products[0][e] = MAGIC_BITS;
                        const u32 w[2] = {rows[j / 2][half_of_pair], rows[j / 2][half_of_pair + 1]};
                        ptx::mma_s8_k32(products[0], tokens[i], w);
                    }
#pragma unroll
                    for (int h = 0; h < Type::HALVES; h++) {
                        const float2 factor = *reinterpret_cast<const float2*>(&stage.factors[b][h][column]);
                        float2 addend = {0.0f, 0.0f};
                        if (Type::ADDS) {
                            addend = *reinterpret_cast<const float2*>(
                                &stage.factors[b][Buffer::PARTS - Type::HALVES + h][column]);
                        }
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            const int t = e / 2;
                            float whole = __uint_as_float(u32(products[h][e])) - MAGIC;
                            if (Type::OFFSET) whole -= float(Type::OFFSET) * parts[t][h];
                            float value = (e % 2 ? factor.y : factor.x) * whole;
                            if (Type::ADDS) value += (e % 2 ? addend.y : addend.x) * parts[t][h];
                            sums[i][j][e] += value * scale[t];
                        }
                    }
                }
            }
        }
    }

    // Prompts have tiles enough.
    if constexpr (TOKENS < 128) {
        if (args.splits > 1 && !join_splits<THREADS>(args, sums)) return;
    }
    store_results<TILE_ROWS>(args, which, tile, first_token + warp_token, warp_row, sums);
}

#define GEMM(name, Type)                                                                                               \
    KERNEL(gemm_##name##_16, MatmulArgs, Tile<16>::THREADS) { gemm<Type, 16>(args); }                                     \
    KERNEL(gemm_##name##_32, MatmulArgs, Tile<32>::THREADS) { gemm<Type, 32>(args); }                                     \
    KERNEL(gemm_##name##_64, MatmulArgs, Tile<64>::THREADS) { gemm<Type, 64>(args); }                                     \
    KERNEL(gemm_##name##_128, MatmulArgs, Tile<128>::THREADS) { gemm<Type, 128>(args); }
QUANTIZED_TYPES(GEMM)
