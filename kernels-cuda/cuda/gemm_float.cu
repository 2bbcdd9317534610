// Prefill: many tokens times float weights, in products of 16-bit floats summed in f32 (mma.sync, sm_80 and later).
//
// Activations are rounded to the weights' type: to bf16 beside BF16, and to f16 beside F16, a sixteenth of them, so that what
// exceeds the range of f16 still fits. F32 weights and activations are each a sum of two bf16, of whose four products the
// smallest is left out: that keeps 16 bits of both. What is infinite or no number makes results that are not finite, in its row.
//
// A block of threads makes 128 tokens x 128 rows of results, in steps of 32 columns. 16-bit weights come by asynchronous copies,
// everything else through registers; both are double-buffered, with one barrier per step.
#include "fragments.cuh"
#include "gemm.cuh"

constexpr u32 THREADS = 256;
constexpr u32 TILE_TOKENS = 128;
constexpr u32 TILE_ROWS = 128;
constexpr u32 COLUMNS = 8;  // of a block of weights
constexpr u32 STEP = 4;     // blocks
// Bytes of a row in shared memory. The 16 besides put the 8 rows that ldmatrix reads into different banks.
constexpr u32 STRIDE = STEP * COLUMNS * 2 + 16;
constexpr u32 WARPS_ACROSS = 4;  // over rows of weights; 2 over tokens
constexpr u32 WARP_TOKENS = 64;
constexpr u32 WARP_ROWS = 32;
// Blocks of a tile of activations, or weights, that a thread brings in a step.
constexpr u32 ITEMS = TILE_TOKENS * STEP / THREADS;

// How numbers of a type are multiplied: PARTS 16-bit floats for each, and results that are SCALE times too small.
template <class Type>
struct Product;

template <>
struct Product<F16> {
    static constexpr int PARTS = 1;
    static constexpr float SCALE = 16.0f;
    DEVICE static void split(float a, float b, u32 (&parts)[PARTS]) {
        parts[0] = ptx::pack_halves(within_f16(a * (1.0f / SCALE)), within_f16(b * (1.0f / SCALE)));
    }
    DEVICE static void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { ptx::mma_f16(c, a, b); }
};

template <>
struct Product<BF16> {
    static constexpr int PARTS = 1;
    static constexpr float SCALE = 1.0f;
    DEVICE static void split(float a, float b, u32 (&parts)[PARTS]) { parts[0] = ptx::pack_brains(a, b); }
    DEVICE static void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { ptx::mma_bf16(c, a, b); }
};

template <>
struct Product<F32> {
    static constexpr int PARTS = 2;
    static constexpr float SCALE = 1.0f;
    DEVICE static void split(float a, float b, u32 (&parts)[PARTS]) {
        parts[0] = ptx::pack_brains(a, b);
        parts[1] = ptx::pack_brains(a - __uint_as_float(parts[0] << 16), b - __uint_as_float(parts[0] & 0xffff0000));
    }
    DEVICE static void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { ptx::mma_bf16(c, a, b); }
};

template <int PARTS>
struct Stage {
    alignas(16) u8 tokens[PARTS][TILE_TOKENS * STRIDE];
    alignas(16) u8 rows[PARTS][TILE_ROWS * STRIDE];
};

// Eight numbers on their way to shared memory.
struct Eight {
    uint4 first, second;
    template <class Product>
    DEVICE void store(u8 (*to)[TILE_TOKENS * STRIDE], u32 at) const {
        const u32 raw[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
        u32 parts[4][Product::PARTS];
#pragma unroll
        for (int i = 0; i < 4; i++)
            Product::split(__uint_as_float(raw[2 * i]), __uint_as_float(raw[2 * i + 1]), parts[i]);
#pragma unroll
        for (int p = 0; p < Product::PARTS; p++)
            *reinterpret_cast<uint4*>(to[p] + at) = {parts[0][p], parts[1][p], parts[2][p], parts[3][p]};
    }
};

template <class Type>
DEVICE void gemm(const MatmulArgs& args) {
    using Product = ::Product<Type>;
    constexpr int PARTS = Product::PARTS;
    // Weights that need no conversion.
    constexpr bool COPIED = PARTS == 1;
    DYNAMIC_SHARED(Stage<PARTS>, stages);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 which = matrix_of_block(args);
    const u32 tile = blockIdx.x - args.matrices[which].first;
    const u32 first_token = blockIdx.y * TILE_TOKENS;
    const u32 blocks = args.blocks, steps = (blocks + STEP - 1) / STEP;

    // Rows and tokens behind the last are copies of it, and their results are dropped.
    const u8* weights[ITEMS];
    const float* tokens[ITEMS];
    const u32 my_block = threadIdx.x % STEP;
#pragma unroll
    for (u32 i = 0; i < ITEMS; i++) {
        const u32 local = (threadIdx.x + i * THREADS) / STEP;
        const MatrixArgs& matrix = args.matrices[args.gated ? local / 8 % 2 : which];
        const size_t row = min(row_of<TILE_ROWS>(args, tile, local), matrix.rows - 1);
        const size_t token = min(first_token + local, args.tokens - 1);
        weights[i] = matrix.planes.codes + row * blocks * (COLUMNS * (COPIED ? 2 : 4));
        tokens[i] = static_cast<const float*>(args.x) + token * blocks * COLUMNS;
    }

    Eight next_weights[ITEMS], next_tokens[ITEMS];
    auto fetch_weights = [&](Stage<PARTS>& stage, u32 step) {
        const u32 block = step * STEP + my_block;
        const bool real = block < blocks;
#pragma unroll
        for (u32 i = 0; i < ITEMS; i++) {
            const u8* from = weights[i] + size_t(real ? block : 0) * (COLUMNS * (COPIED ? 2 : 4));
            if (COPIED) {
                const u32 local = (threadIdx.x + i * THREADS) / STEP;
                ptx::copy16_async(stage.rows[0] + local * STRIDE + my_block * 16, from, real);
            } else {
                next_weights[i] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
                if (real) next_weights[i] = {ptx::load_weights16(from), ptx::load_weights16(from + 16)};
            }
        }
        if (COPIED) ptx::commit_copies();
    };
    auto fetch_tokens = [&](u32 step) {
        const u32 block = step * STEP + my_block;
#pragma unroll
        for (u32 i = 0; i < ITEMS; i++) {
            const float* from = tokens[i] + block * COLUMNS;
            next_tokens[i] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
            if (block < blocks) next_tokens[i] = {ptx::load16(from), ptx::load16(from + 4)};
        }
    };
    fetch_weights(stages[0], 0);
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    fetch_tokens(0);

    float sums[WARP_TOKENS / 16][WARP_ROWS / 8][4];
#pragma unroll
    for (u32 i = 0; i < WARP_TOKENS / 16; i++)
#pragma unroll
        for (u32 j = 0; j < WARP_ROWS / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) sums[i][j][e] = 0.0f;
    const u32 warp_token = warp / WARPS_ACROSS * WARP_TOKENS, warp_row = warp % WARPS_ACROSS * WARP_ROWS;

    for (u32 step = 0; step < steps; step++) {
        Stage<PARTS>& stage = stages[step % 2];
#pragma unroll
        for (u32 i = 0; i < ITEMS; i++) {
            const u32 at = (threadIdx.x + i * THREADS) / STEP * STRIDE + my_block * 16;
            next_tokens[i].template store<Product>(stage.tokens, at);
            if (!COPIED) next_weights[i].template store<Product>(stage.rows, at);
        }
        if (COPIED) AWAIT_COPIES(0);
        __syncthreads();
        // The other stage is free: everyone has left the step that read it.
        if (step + 1 < steps) {
            fetch_weights(stages[(step + 1) % 2], step + 1);
            fetch_tokens(step + 1);
        }

#pragma unroll
        for (u32 k = 0; k < STEP * COLUMNS / 16; k++) {
            u32 left[PARTS][WARP_TOKENS / 16][4], right[PARTS][WARP_ROWS / 16][4];
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
#pragma unroll
                for (u32 i = 0; i < WARP_TOKENS / 16; i++) {
                    const u32 row = warp_token + i * 16 + lane % 16;
                    ptx::load_matrices(left[p][i], stage.tokens[p] + row * STRIDE + k * 32 + lane / 16 * 16);
                }
#pragma unroll
                for (u32 j = 0; j < WARP_ROWS / 16; j++) {
                    const u32 row = warp_row + j * 16 + lane % 8 + lane / 16 * 8;
                    ptx::load_matrices(right[p][j], stage.rows[p] + row * STRIDE + k * 32 + lane / 8 % 2 * 16);
                }
            }
#pragma unroll
            for (u32 i = 0; i < WARP_TOKENS / 16; i++)
#pragma unroll
                for (u32 j = 0; j < WARP_ROWS / 8; j++) {
                    const u32 at = j % 2 * 2;
                    const u32 first[2] = {right[0][j / 2][at], right[0][j / 2][at + 1]};
                    if (PARTS == 2) {
                        const u32 second[2] = {right[PARTS - 1][j / 2][at], right[PARTS - 1][j / 2][at + 1]};
                        Product::multiply(sums[i][j], left[PARTS - 1][i], first);
                        Product::multiply(sums[i][j], left[0][i], second);
                    }
                    Product::multiply(sums[i][j], left[0][i], first);
                }
        }
    }

    if (Product::SCALE != 1.0f) {
#pragma unroll
        for (u32 i = 0; i < WARP_TOKENS / 16; i++)
#pragma unroll
            for (u32 j = 0; j < WARP_ROWS / 8; j++)
#pragma unroll
                for (u32 e = 0; e < 4; e++) sums[i][j][e] *= Product::SCALE;
    }
    store_results<TILE_ROWS>(args, which, tile, first_token + warp_token, warp_row, sums);
}

#define GEMM(name, Type) KERNEL(gemm_##name, MatmulArgs, THREADS) { gemm<Type>(args); }
FLOAT_TYPES(GEMM)
