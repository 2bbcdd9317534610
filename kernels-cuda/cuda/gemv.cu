// Decode: a few tokens times weights, bound by how fast the weights arrive.
//
// A block of threads owns two rows, whose blocks its threads take in turn, so that each load of a warp is one run of memory.
// The next weights are under way while the present ones are multiplied, and the first before the previous kernel has ended.
//
// Results that are queries, keys and values go on to where attention wants them: the two rows are then a pair that is rotated
// together, and keys and values are written to the cache.
#include "attention.cuh"
#include "matmul.cuh"

constexpr u32 MOST_WARPS = 8;
constexpr int SLOTS = 2;

struct GemvArgs {
    MatmulArgs product;
    Append append;
    u32 appends;              // the matrices are those of queries, keys and values, and the cache one of f16
    u32 types[MOST_MATRICES];  // a `TypeNumber` per matrix, for kernels that multiply by several types
};

// Quantized types in the order of their table.
enum TypeNumber : u32 {
#define NUMBER(name, Type) NUMBER_##name,
    QUANTIZED_TYPES(NUMBER)
};

// The matrices, where their results are for attention.
enum Role : u32 { QUERIES, KEYS, VALUES };

// What a token's results need: the angle by which they are rotated, and where the first of them goes in the cache.
struct Target {
    Angle angle;
    u16* place;
};

// Two results of one head for attention.
struct HeadPair {
    u32 head, pair;  // the head, and which of its pairs
    u32 a, b;        // the two, of the head's values
    bool rotated;

    DEVICE HeadPair(const Append& append, u32 role, u32 pair_of_all) {
        const u32 pairs = append.cache.head_dim / 2;
        head = pair_of_all / pairs, pair = pair_of_all % pairs;
        rotated = role != VALUES && pair < append.rotation.pairs;
        a = 2 * pair, b = 2 * pair + 1;
        if (rotated) values_of_pair(append.rotation, pair, a, b);
    }

    DEVICE u32 row_a(const Append& append) const { return head * append.cache.head_dim + a; }
    DEVICE u32 row_b(const Append& append) const { return head * append.cache.head_dim + b; }

    // Positions and pages came with a copy, before the first kernel of the step, so this need not wait for the previous one.
    DEVICE Target look_up(const Append& append, u32 role, u32 token) const {
        const auto& [rotation, cache, places] = append;
        const u32 position = places.positions[token], slot = position % PAGE;
        Target target{};
        if (rotated) target.angle = angle_of_pair(rotation, pair, position);
        if (role != QUERIES) {
            const u32 page = places.pages[places.tables[token] + position / PAGE];
            u8* side = role == KEYS ? keys_of<false>(cache, page, head) : values_of<false>(cache, page, head);
            const u32 at = role == KEYS ? place_of_key(slot, a) : place_of_value(cache.head_dim, slot, a);
            target.place = reinterpret_cast<u16*>(side) + at;
        }
        return target;
    }

    // Rotates the results; true if they went to the cache.
    DEVICE bool put(const Append& append, u32 role, const Target& target, float (&results)[SLOTS]) const {
        if (rotated) rotate(append.rotation, target.angle, results[0], results[1]);
        if (role == QUERIES) return false;
        target.place[0] = ptx::float_to_half(results[0]);
        target.place[role == KEYS ? place_of_key(0, b) - place_of_key(0, a) : 1] = ptx::float_to_half(results[1]);
        return true;
    }
};

// What a block's threads share.
template <int TOKENS>
struct Shared {
    float partial[MOST_WARPS][SLOTS][TOKENS];
    // Not in registers, of which the products need all.
    Target targets[TOKENS];
};

template <class Type, int TOKENS>
DEVICE void gemv(const GemvArgs& all, Shared<TOKENS>& shared) {
    const MatmulArgs& args = all.product;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

    // Two rows of one matrix, or one row of gate and one of up.
    const u32 which = matrix_of_block(args);
    const MatrixArgs& matrix = args.matrices[which];
    const u32 pair = blockIdx.x - matrix.first;
    u32 row[SLOTS] = {args.gated ? pair : pair * 2,
                      args.gated ? pair : (pair * 2 + 1 < matrix.rows ? pair * 2 + 1 : pair * 2)};
    if (all.appends) {
        const HeadPair heads(all.append, which, pair);
        row[0] = heads.row_a(all.append), row[1] = heads.row_b(all.append);
    }
    const Planes planes[SLOTS] = {matrix.planes, args.gated ? args.matrices[1].planes : matrix.planes};

    const u32 blocks = args.blocks;
    Type next[SLOTS];
    u32 block = threadIdx.x;
    if (block < blocks) {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) next[s].load(planes[s], size_t(row[s]) * blocks + block);
    }
    ptx::let_next_kernel_start();
    if (all.appends && threadIdx.x < args.tokens) {
        shared.targets[threadIdx.x] = HeadPair(all.append, which, pair).look_up(all.append, which, threadIdx.x);
    }
    ptx::wait_for_previous_kernel();
    typename Type::Rows x;
    set_rows(x, args);

    float sums[SLOTS][TOKENS];
#pragma unroll
    for (int s = 0; s < SLOTS; s++)
#pragma unroll
        for (int t = 0; t < TOKENS; t++) sums[s][t] = 0.0f;

    while (block < blocks) {
        typename Type::Prepared weights[SLOTS];
#pragma unroll
        for (int s = 0; s < SLOTS; s++) next[s].prepare(size_t(row[s]) * blocks + block, weights[s]);
        const u32 now = block;
        block += blockDim.x;
        if (block < blocks) {
#pragma unroll
            for (int s = 0; s < SLOTS; s++) next[s].load(planes[s], size_t(row[s]) * blocks + block);
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            typename Type::Activations activations;
            activations.load(x, u32(t) < args.tokens ? t : args.tokens - 1, blocks, now);
#pragma unroll
            for (int s = 0; s < SLOTS; s++) sums[s][t] += Type::dot(weights[s], activations);
        }
    }

#pragma unroll
    for (int s = 0; s < SLOTS; s++)
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float sum = warp_sum(sums[s][t]);
            if (lane == 0) shared.partial[warp][s][t] = sum;
        }
    __syncthreads();

    // One thread for each token.
    const u32 token = threadIdx.x;
    if (token >= args.tokens) return;
    float results[SLOTS] = {0.0f, 0.0f};
    for (u32 w = 0; w < blockDim.x / WARP; w++)
#pragma unroll
        for (int s = 0; s < SLOTS; s++) results[s] += shared.partial[w][s][token];
    float* out = matrix.out + size_t(token) * matrix.stride;
    if (args.gated) {
        out[row[0]] = silu(results[0]) * results[1];
        return;
    }
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
        if (matrix.bias) results[s] += matrix.bias[row[s]];
        if (matrix.accumulate) results[s] += out[row[s]];
    }
    if (all.appends) {
        const HeadPair heads(all.append, which, blockIdx.x - matrix.first);
        if (heads.put(all.append, which, shared.targets[token], results)) return;
    }
    out[row[0]] = results[0];
    if (row[1] != row[0]) out[row[1]] = results[1];
}

// Each block of threads multiplies by the type of its own matrix, so that matrices of several types share a launch. What it
// costs is registers: those of the type that needs most.
template <int TOKENS>
DEVICE void gemv_of_type(u32 type, const GemvArgs& args, Shared<TOKENS>& shared) {
    switch (type) {
#define OF_TYPE(name, Type)                                                                                            \
    case NUMBER_##name: return gemv<Type, TOKENS>(args, shared);
        QUANTIZED_TYPES(OF_TYPE)
    }
}

#define GEMV_KERNEL(name, TOKENS, ...)                                                                                 \
    KERNEL(gemv_##name##_##TOKENS, GemvArgs, MOST_WARPS * WARP) {                                                         \
        SHARED(Shared<TOKENS>, shared, 1);                                                                                \
        __VA_ARGS__;                                                                                                      \
    }
#define GEMV_OF_TOKENS(name, Type, TOKENS) GEMV_KERNEL(name, TOKENS, gemv<Type, TOKENS>(args, *shared))
#define GEMV(name, Type)                                                                                               \
    GEMV_OF_TOKENS(name, Type, 1) GEMV_OF_TOKENS(name, Type, 2) GEMV_OF_TOKENS(name, Type, 4) GEMV_OF_TOKENS(name, Type, 8)
ALL_TYPES(GEMV)

#define GEMV_MIXED(TOKENS)                                                                                             \
    GEMV_KERNEL(mixed, TOKENS, gemv_of_type<TOKENS>(args.types[matrix_of_block(args.product)], args, *shared))
GEMV_MIXED(1) GEMV_MIXED(2) GEMV_MIXED(4) GEMV_MIXED(8)
