// Prefill on Hopper: many tokens times quantized weights, in products of f16 that a warpgroup starts and that run beside its
// threads (wgmma, sm_90a).
//
// A block of threads makes 128 rows x 128 tokens of results, in steps of 64 columns. One warpgroup, the producer, turns quants of
// activations into f16 in a ring of tiles in shared memory. The two others own 64 rows each: while the products of a step run,
// they turn the weights of the next one into f16, which are the products' left side from registers. Sums are f32 and need no
// scaling between blocks: a weight is factor * whole + addend, rounded to f16, and so is an activation.
//
// That rounding is a sixteenth of the one of activations to 8 bits, but gemm.cu does without. To stay within the range of f16,
// weights are taken 256 times, and a sixteenth of activations. A scale that is no number makes every product with its block none.
#include "gemm.cuh"
#include "hopper.cuh"

constexpr u32 TILE_ROWS = 128;
constexpr u32 TILE_TOKENS = 128;
constexpr u32 STEP = 2;  // blocks of columns
constexpr u32 COLUMNS = STEP * BLOCK;
constexpr u32 CONSUMERS = 2;  // warpgroups
constexpr u32 WARPGROUP = 128;
constexpr u32 THREADS = (CONSUMERS + 1) * WARPGROUP;
constexpr u32 STAGES = 4;
constexpr u32 STAGE_BYTES = TILE_TOKENS * COLUMNS * 2;
constexpr float WEIGHT_UNIT = 256.0f;
constexpr float ACTIVATION_UNIT = 1.0f / 16.0f;

// ---- activations

// A thread brings one token: of each step, its two blocks.
struct Token {
    uint4 quants[STEP][2];
    float scales[STEP];

    DEVICE void load(const QuantizedRows& x, size_t token, u32 blocks, u32 step) {
        const i8* row = x.quants + token * blocks * BLOCK;
#pragma unroll
        for (u32 b = 0; b < STEP; b++) {
            const u32 block = step * STEP + b;
            quants[b][0] = quants[b][1] = {0, 0, 0, 0};
            scales[b] = 0.0f;
            if (block >= blocks) continue;
            quants[b][0] = ptx::load16(row + block * 16);
            quants[b][1] = ptx::load16(row + (size_t(blocks) + block) * 16);
            scales[b] = __uint_as_float(ptx::load8(x.scales + token * blocks + block).x);
        }
    }

    // Writes the token's row of a tile. Of 16 columns, those that a thread of a product has in its words 2t and 2t + 1 are 4t to
    // 4t + 3 here: as a thread of the consumers finds them in a word of codes.
    DEVICE void store(u8* tile, u32 token) const {
        u8* row = tile + token * (COLUMNS * 2);
#pragma unroll
        for (u32 b = 0; b < STEP; b++) {
            // Quants are taken as 128ths, so that small scales are normal numbers.
            const float scale = within_f16(scales[b] * (128.0f * ACTIVATION_UNIT));
            const u32 factor = ptx::pack_halves(scale, scale);
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 words[4] = {quants[b][half].x, quants[b][half].y, quants[b][half].z, quants[b][half].w};
                u32 low[4], high[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    ptx::widen_bytes(words[i], ptx::UNIT_128TH, ptx::OFFSET_128TH, low[i], high[i]);
                    low[i] = ptx::multiply_halves(low[i], factor);
                    high[i] = ptx::multiply_halves(high[i], factor);
                }
                const u32 piece = (b * 2 + half) * 2, place = token % 8;
                *reinterpret_cast<uint4*>(row + (piece ^ place) * 16) = {low[0], low[1], low[2], low[3]};
                *reinterpret_cast<uint4*>(row + ((piece + 1) ^ place) * 16) = {high[0], high[1], high[2], high[3]};
            }
        }
    }
};

// ---- weights: steps t and t + 4 of a block, t below 4 (see formats.cuh)

template <class Codes>
struct Steps;

template <>
struct Steps<Codes2> {
    uint2 pairs;
    DEVICE void load(const Planes& p, size_t block, u32) { pairs = ptx::load_weights8(p.codes + block * 8); }
    DEVICE void expand(u32 t, u32 (&words)[2]) const {
        words[0] = pairs.x >> 2 * t & 0x03030303;
        words[1] = pairs.y >> 2 * t & 0x03030303;
    }
};

// Codes with one more bit, which is kept apart.
template <class Low, u32 PLACE>
struct WithBit {
    Low low;
    u32 bits;
    DEVICE void load(const Planes& p, size_t block, u32 t) {
        low.load(p, block, t);
        bits = ptx::load_weights4(p.extra + block * 4);
    }
    DEVICE void expand(u32 t, u32 (&words)[2]) const {
        low.expand(t, words);
        words[0] |= (bits >> t & 0x01010101) << PLACE;
        words[1] |= (bits >> (t + 4) & 0x01010101) << PLACE;
    }
};

template <>
struct Steps<Codes3> : WithBit<Steps<Codes2>, 2> {};

template <>
struct Steps<Codes4> {
    u32 nibbles;
    DEVICE void load(const Planes& p, size_t block, u32 t) { nibbles = ptx::load_weights4(p.codes + block * 16 + t * 4); }
    DEVICE void expand(u32, u32 (&words)[2]) const {
        words[0] = nibbles & 0x0f0f0f0f;
        words[1] = nibbles >> 4 & 0x0f0f0f0f;
    }
};

template <>
struct Steps<Codes5> : WithBit<Steps<Codes4>, 4> {};

template <>
struct Steps<Codes6> {
    Steps<Codes4> nibbles;
    uint2 pairs;
    DEVICE void load(const Planes& p, size_t block, u32 t) {
        nibbles.load(p, block, t);
        pairs = ptx::load_weights8(p.extra + block * 8);
    }
    DEVICE void expand(u32 t, u32 (&words)[2]) const {
        nibbles.expand(t, words);
        words[0] |= (pairs.x >> 2 * t & 0x03030303) << 4;
        words[1] |= (pairs.y >> 2 * t & 0x03030303) << 4;
    }
};

template <>
struct Steps<Codes8> {
    u32 first, second;
    DEVICE void load(const Planes& p, size_t block, u32 t) {
        first = ptx::load_weights4(p.codes + block * 16 + t * 4);
        second = ptx::load_weights4(p.extra + block * 16 + t * 4);
    }
    DEVICE void expand(u32, u32 (&words)[2]) const { words[0] = first, words[1] = second; }
};

// What a thread has of a step's weights: two rows, of each block two words of codes.
template <class Type>
struct Weights {
    Steps<typename Type::CodesType> codes[2][STEP];
    typename Type::ScaleType scales[2][STEP];

    DEVICE void load(const Planes (&planes)[2], const size_t (&rows)[2], u32 blocks, u32 step) {
#pragma unroll
        for (u32 r = 0; r < 2; r++)
#pragma unroll
            for (u32 b = 0; b < STEP; b++) {
                const size_t block = rows[r] * blocks + min(step * STEP + b, blocks - 1);
                codes[r][b].load(planes[r], block, threadIdx.x % 4);
                scales[r][b].load(planes[r], block);
            }
    }

    // The left sides of the step's products, of 16 columns each. A block that is not there meets zeros.
    DEVICE void widen(const size_t (&rows)[2], u32 blocks, u32 step, u32 (&out)[STEP * 2][4]) const {
        constexpr u32 OFFSET = ptx::OFFSET_1 & 0xffff;
#pragma unroll
        for (u32 r = 0; r < 2; r++)
#pragma unroll
            for (u32 b = 0; b < STEP; b++) {
                u32 words[2];
                codes[r][b].expand(threadIdx.x % 4, words);
                Type::ValueType::map(words);
                const auto factors = scales[r][b].factors(rows[r] * blocks + min(step * STEP + b, blocks - 1));
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    const int h = half % Type::HALVES;
                    const float factor = within_f16(factors.factor[h] * WEIGHT_UNIT);
                    const u32 by = ptx::pack_halves(factor, factor);
                    // Whole numbers of f16 are this far apart: the type's offset goes with the byte's.
                    constexpr u32 offset = (OFFSET + Type::OFFSET) * 0x10001;
                    u32 low, high;
                    ptx::widen_bytes(words[half], ptx::UNIT_1, offset, low, high);
                    if (Type::ADDS) {
                        const float addend = within_f16(factors.addend[h] * WEIGHT_UNIT);
                        const u32 plus = ptx::pack_halves(addend, addend);
                        low = ptx::multiply_add_halves(low, by, plus);
                        high = ptx::multiply_add_halves(high, by, plus);
                    } else {
                        low = ptx::multiply_halves(low, by);
                        high = ptx::multiply_halves(high, by);
                    }
                    out[b * 2 + half][r] = low;
                    out[b * 2 + half][2 + r] = high;
                }
            }
    }
};

template <class Type>
DEVICE void gemm(const MatmulArgs& args) {
    DYNAMIC_SHARED(u8, tiles);
    SHARED(u64, full, STAGES);
    SHARED(u64, empty, STAGES);
    const u32 which = matrix_of_block(args);
    const u32 tile = blockIdx.x - args.matrices[which].first;
    const u32 first_token = blockIdx.y * TILE_TOKENS;
    const u32 blocks = args.blocks, steps = (blocks + STEP - 1) / STEP;
    const u32 warpgroup = threadIdx.x / WARPGROUP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (threadIdx.x == 0) {
        ptx::make_barriers(full, STAGES, WARPGROUP);
        ptx::make_barriers(empty, STAGES, CONSUMERS * WARPGROUP / WARP);
    }
    __syncthreads();
    ptx::let_next_kernel_start();

    if (warpgroup == CONSUMERS) {
        ptx::wait_for_previous_kernel();
        QuantizedRows x;
        set_rows(x, args);
        const u32 local = threadIdx.x % WARPGROUP;
        // Tokens behind the last are copies of it, and their results are dropped.
        const size_t token = min(first_token + local, args.tokens - 1);
        Token next;
        next.load(x, token, blocks, 0);
        for (u32 step = 0; step < steps; step++) {
            const u32 stage = step % STAGES;
            WAIT_BARRIER(&empty[stage], (step / STAGES + 1) % 2);
            next.store(tiles + stage * STAGE_BYTES, local);
            ptx::show_to_products();
            ptx::arrive(&full[stage]);
            if (step + 1 < steps) next.load(x, token, blocks, step + 1);
        }
        return;
    }

    // This thread's two rows of the tile, as a product has them. Rows behind the last are copies of it.
    const u32 local = warp * 16 + lane / 4;
    size_t rows[2];
    Planes planes[2];
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const MatrixArgs& matrix = args.matrices[args.gated ? r : which];
        rows[r] = min(row_of<TILE_ROWS>(args, tile, local + r * 8), matrix.rows - 1);
        planes[r] = matrix.planes;
    }
    Weights<Type> next;
    next.load(planes, rows, blocks, 0);
    float sums[TILE_TOKENS / 2];
#pragma unroll
    for (u32 i = 0; i < TILE_TOKENS / 2; i++) sums[i] = 0.0f;

    // Registers of products under way must not be written, so the next step's weights have registers of their own.
    u32 left[STEP * 2][4], after[STEP * 2][4];
    next.widen(rows, blocks, 0, left);
    for (u32 step = 0; step < steps; step++) {
        if (step + 1 < steps) next.load(planes, rows, blocks, step + 1);
        const u32 stage = step % STAGES;
        WAIT_BARRIER(&full[stage], step / STAGES % 2);
        const u64 right = ptx::describe_tile(tiles + stage * STAGE_BYTES);
        ptx::begin_products();
#pragma unroll
        for (u32 k = 0; k < STEP * 2; k++) ptx::multiply_64x128(sums, left[k], ptx::next_columns(right, k * 16));
        ptx::commit_products();
        if (step + 1 < steps) next.widen(rows, blocks, step + 1, after);
        AWAIT_PRODUCTS(0);
        if (lane == 0) ptx::arrive(&empty[stage]);
#pragma unroll
        for (u32 k = 0; k < STEP * 2; k++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) left[k][i] = ptx::moved(after[k][i]);
    }

    // Only results wait for the kernel before, which may have had to do with where they go.
    ptx::wait_for_previous_kernel();
    constexpr float UNIT = 1.0f / (WEIGHT_UNIT * ACTIVATION_UNIT);
#pragma unroll
    for (u32 i = 0; i < TILE_TOKENS / 2; i++) {
        if (args.gated && i / 2 % 2) continue;
        const u32 token = first_token + i / 4 * 8 + lane % 4 * 2 + i % 2;
        store_result<TILE_ROWS>(args, which, tile, token, local + i / 2 % 2 * 8, sums[i] * UNIT, sums[i | 2] * UNIT);
    }
}

#define GEMM(name, Type) KERNEL(gemm_sm90a_##name, MatmulArgs, THREADS) { gemm<Type>(args); }
QUANTIZED_TYPES(GEMM)
