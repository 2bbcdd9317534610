// Prefill on Hopper: many tokens times quantized weights, in products of f16 that a warpgroup starts and that run beside its
// threads (wgmma, sm_90a).
//
// A block of threads makes 128 rows x 128 tokens of results, in steps of 64 columns. Activations lie in memory as f16
// (rows.cu). One thread, the producer, has their tiles brought into a ring in shared memory (TMA). Two warpgroups, the
// consumers, own 64 rows each: while the products of a step run, they turn the weights of the next one into f16, which are the
// products' left side from registers. Sums are f32 and need no scaling between blocks: a weight is factor * whole + addend,
// rounded to f16.
//
// That rounding and the one of activations are at most an eighth of the rounding of activations to 8 bits, of gemm.cu. To stay
// within the range of f16, weights are taken 256 times, and a sixteenth of activations. A scale that is no number makes every
// product with its block none.
//
// Rows of activations behind the last token, of which a tile may have some, are whatever an earlier step left there, or zeros
// behind the last row there is room for. They make results of their own, which are dropped, and no others.
#include "gemm.cuh"
#include "hopper.cuh"

constexpr u32 TILE_ROWS = 128;
constexpr u32 TILE_TOKENS = 128;
constexpr u32 STEP = 2;  // blocks of columns
constexpr u32 COLUMNS = STEP * BLOCK;
constexpr u32 CONSUMERS = 2;  // warpgroups
constexpr u32 WARPGROUP = 128;
// The producer has a warpgroup, of which the other threads have nothing to do but to give registers back.
constexpr u32 THREADS = (CONSUMERS + 1) * WARPGROUP;
constexpr u32 PRODUCER_REGISTERS = 40;
constexpr u32 CONSUMER_REGISTERS = 232;
static_assert((CONSUMERS * CONSUMER_REGISTERS + PRODUCER_REGISTERS) * WARPGROUP <= 64 << 10, "as many as there are");
constexpr u32 STAGES = 4;
constexpr u32 STAGE_BYTES = TILE_TOKENS * COLUMNS * 2;
constexpr float WEIGHT_UNIT = 256.0f;

struct HopperArgs {
    TensorMap x;  // in tiles of TILE_TOKENS rows x COLUMNS
    MatmulArgs matmul;
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

// What a thread has of a step's weights: two rows, of each block two words of codes. `first` are the rows' first blocks: a
// matrix has no more of them than 32 bits count, which makes addresses cheap.
template <class Type>
struct Weights {
    Steps<typename Type::CodesType> codes[2][STEP];
    typename Type::ScaleType scales[2][STEP];

    DEVICE void load(const Planes (&planes)[2], const u32 (&first)[2], u32 blocks, u32 step) {
#pragma unroll
        for (u32 r = 0; r < 2; r++)
#pragma unroll
            for (u32 b = 0; b < STEP; b++) {
                const u32 block = first[r] + min(step * STEP + b, blocks - 1);
                codes[r][b].load(planes[r], block, threadIdx.x % 4);
                scales[r][b].load(planes[r], block);
            }
    }

    // The left sides of the step's products, of 16 columns each. A block that is not there meets zeros.
    DEVICE void widen(const u32 (&first)[2], u32 blocks, u32 step, u32 (&out)[STEP * 2][4]) const {
        // Whole numbers of f16 are this far apart: the type's offset goes with the byte's.
        constexpr u32 OFFSET = ((ptx::OFFSET_1 & 0xffff) + Type::OFFSET) * 0x10001;
#pragma unroll
        for (u32 r = 0; r < 2; r++)
#pragma unroll
            for (u32 b = 0; b < STEP; b++) {
                u32 words[2], by[Type::HALVES], plus[Type::HALVES];
                codes[r][b].expand(threadIdx.x % 4, words);
                Type::ValueType::map(words);
                const auto factors = scales[r][b].factors(first[r] + min(step * STEP + b, blocks - 1));
#pragma unroll
                for (u32 h = 0; h < Type::HALVES; h++) {
                    const float factor = within_f16(factors.factor[h] * WEIGHT_UNIT);
                    const float addend = within_f16(factors.addend[h] * WEIGHT_UNIT);
                    by[h] = ptx::pack_halves(factor, factor);
                    plus[h] = ptx::pack_halves(addend, addend);
                }
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    const u32 h = half % Type::HALVES;
                    u32 pairs[2];
                    ptx::widen_bytes(words[half], ptx::UNIT_1, OFFSET, pairs[0], pairs[1]);
#pragma unroll
                    for (u32 i = 0; i < 2; i++)
                        out[b * 2 + half][2 * i + r] = Type::ADDS ? ptx::multiply_add_halves(pairs[i], by[h], plus[h])
                                                                  : ptx::multiply_halves(pairs[i], by[h]);
                }
            }
    }
};

template <class Type>
DEVICE void gemm(const TensorMap& x, const MatmulArgs& args) {
    DYNAMIC_SHARED(u8, tiles);
    SHARED(u64, full, STAGES);
    SHARED(u64, empty, STAGES);
    const u32 which = matrix_of_block(args);
    const u32 tile = blockIdx.x - args.matrices[which].first;
    const u32 first_token = blockIdx.y * TILE_TOKENS;
    const u32 blocks = args.blocks, steps = (blocks + STEP - 1) / STEP;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (threadIdx.x == 0) {
        ptx::make_barriers(full, STAGES, 1);
        ptx::make_barriers(empty, STAGES, CONSUMERS * WARPGROUP / WARP);
    }
    __syncthreads();
    ptx::let_next_kernel_start();

    if (threadIdx.x >= CONSUMERS * WARPGROUP) {
        ptx::give_registers_back<PRODUCER_REGISTERS>();
        if (threadIdx.x != CONSUMERS * WARPGROUP) return;
        ptx::fetch_map(x);
        ptx::wait_for_previous_kernel();
        for (u32 step = 0; step < steps; step++) {
            const u32 stage = step % STAGES;
            WAIT_BARRIER(&empty[stage], (step / STAGES + 1) % 2);
            ptx::arrive_expecting(&full[stage], STAGE_BYTES);
            ptx::copy_tile(tiles + stage * STAGE_BYTES, x, step * COLUMNS, first_token, &full[stage]);
        }
        return;
    }

    ptx::take_registers<CONSUMER_REGISTERS>();
    // This thread's two rows of the tile, as a product has them. Rows behind the last are copies of it.
    const u32 local = warp * 16 + lane / 4;
    u32 first[2];
    Planes planes[2];
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const MatrixArgs& matrix = args.matrices[args.gated ? r : which];
        first[r] = min(row_of<TILE_ROWS>(args, tile, local + r * 8), matrix.rows - 1) * blocks;
        planes[r] = matrix.planes;
    }
    float sums[TILE_TOKENS / 2];
#pragma unroll
    for (u32 i = 0; i < TILE_TOKENS / 2; i++) sums[i] = 0.0f;

    // Registers of products under way must not be written, so steps take turns with two left sides; and so they do with weights,
    // of which those of two steps are on their way. Behind the last step, weights are the last ones again and meet nothing.
    u32 left[2][STEP * 2][4];
    Weights<Type> coming[2];
    coming[0].load(planes, first, blocks, 0);
    coming[1].load(planes, first, blocks, 1);
    coming[0].widen(first, blocks, 0, left[0]);
    coming[0].load(planes, first, blocks, 2);
    auto turn = [&](u32 step, const u32(&now)[STEP * 2][4], u32(&after)[STEP * 2][4], Weights<Type>& next) {
        const u32 stage = step % STAGES;
        WAIT_BARRIER(&full[stage], step / STAGES % 2);
        const u64 right = ptx::describe_tile(tiles + stage * STAGE_BYTES);
        ptx::begin_products();
#pragma unroll
        for (u32 k = 0; k < STEP * 2; k++) ptx::multiply_64x128(sums, now[k], ptx::next_columns(right, k * 16));
        ptx::commit_products();
        next.widen(first, blocks, step + 1, after);
        next.load(planes, first, blocks, step + 3);
        AWAIT_PRODUCTS(0);
        if (lane == 0) ptx::arrive(&empty[stage]);
    };
    for (u32 step = 0; step < steps; step += 2) {
        turn(step, left[0], left[1], coming[1]);
        if (step + 1 < steps) turn(step + 1, left[1], left[0], coming[0]);
    }

    // Only results wait for the kernel before, which may have had to do with where they go.
    ptx::wait_for_previous_kernel();
    constexpr float UNIT = 1.0f / (WEIGHT_UNIT * HALVES_UNIT);
#pragma unroll
    for (u32 i = 0; i < TILE_TOKENS / 2; i++) {
        if (args.gated && i / 2 % 2) continue;
        const u32 token = first_token + i / 4 * 8 + lane % 4 * 2 + i % 2;
        store_result<TILE_ROWS>(args, which, tile, token, local + i / 2 % 2 * 8, sums[i] * UNIT, sums[i | 2] * UNIT);
    }
}

#define GEMM(name, Type) KERNEL(gemm_sm90a_##name, HopperArgs, THREADS) { gemm<Type>(args.x, args.matmul); }
QUANTIZED_TYPES(GEMM)
