// Decode: a few tokens times weights, bound by how fast the weights arrive.
//
// A block of threads owns two rows, whose blocks its threads take in turn, so that each load of a warp is one run of memory.
// The next weights are under way while the present ones are multiplied, and the first before the previous kernel has ended.
#include "matmul.cuh"

constexpr u32 MOST_WARPS = 8;
constexpr int SLOTS = 2;

struct GemvArgs {
    MatmulArgs product;
    u32 types[MOST_MATRICES];  // a `TypeNumber` per matrix, for kernels that multiply by several types
};

// Quantized types in the order of their table.
enum TypeNumber : u32 {
#define NUMBER(name, Type) NUMBER_##name,
    QUANTIZED_TYPES(NUMBER)
};

// `partial` has a sum of every warp, row and token.
template <class Type, int TOKENS>
DEVICE void gemv(const MatmulArgs& args, float* partial) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

    // Two rows of one matrix, or one row of gate and one of up.
    const MatrixArgs& matrix = args.matrices[matrix_of_block(args)];
    const u32 pair = blockIdx.x - matrix.first;
    const u32 row[SLOTS] = {args.gated ? pair : pair * 2,
                            args.gated ? pair : (pair * 2 + 1 < matrix.rows ? pair * 2 + 1 : pair * 2)};
    const Planes planes[SLOTS] = {matrix.planes, args.gated ? args.matrices[1].planes : matrix.planes};

    const u32 blocks = args.blocks;
    Type next[SLOTS];
    u32 block = threadIdx.x;
    if (block < blocks) {
#pragma unroll
        for (int s = 0; s < SLOTS; s++) next[s].load(planes[s], size_t(row[s]) * blocks + block);
    }
    ptx::let_next_kernel_start();
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
            if (lane == 0) partial[(warp * SLOTS + s) * TOKENS + t] = sum;
        }
    __syncthreads();

    // One thread for each result.
    const u32 slot = threadIdx.x / TOKENS, token = threadIdx.x % TOKENS;
    if (slot >= (args.gated ? 1u : u32(SLOTS)) || token >= args.tokens || (slot == 1 && row[1] == row[0])) return;
    float result[SLOTS] = {0.0f, 0.0f};
    for (u32 w = 0; w < blockDim.x / WARP; w++) {
        result[0] += partial[(w * SLOTS + slot) * TOKENS + token];
        if (args.gated) result[1] += partial[(w * SLOTS + 1) * TOKENS + token];
    }
    const u32 target = slot == 0 ? row[0] : row[1];
    float value = result[0];
    if (args.gated) {
        value = silu(result[0]) * result[1];
    } else if (matrix.bias) {
        value += matrix.bias[target];
    }
    float* out = matrix.out + size_t(token) * matrix.stride + target;
    *out = matrix.accumulate ? *out + value : value;
}

// Each block of threads multiplies by the type of its own matrix, so that matrices of several types share a launch. What it
// costs is registers: those of the type that needs most.
template <int TOKENS>
DEVICE void gemv_of_type(u32 type, const MatmulArgs& args, float* partial) {
    switch (type) {
#define OF_TYPE(name, Type)                                                                                            \
    case NUMBER_##name: return gemv<Type, TOKENS>(args, partial);
        QUANTIZED_TYPES(OF_TYPE)
    }
}

#define GEMV_KERNEL(name, TOKENS, ...)                                                                                 \
    KERNEL(gemv_##name##_##TOKENS, GemvArgs, MOST_WARPS * WARP) {                                                         \
        SHARED(float, partial, MOST_WARPS * SLOTS * TOKENS);                                                              \
        __VA_ARGS__;                                                                                                      \
    }
#define GEMV_OF_TOKENS(name, Type, TOKENS) GEMV_KERNEL(name, TOKENS, gemv<Type, TOKENS>(args.product, partial))
#define GEMV(name, Type)                                                                                               \
    GEMV_OF_TOKENS(name, Type, 1) GEMV_OF_TOKENS(name, Type, 2) GEMV_OF_TOKENS(name, Type, 4) GEMV_OF_TOKENS(name, Type, 8)
ALL_TYPES(GEMV)

#define GEMV_MIXED(TOKENS)                                                                                             \
    GEMV_KERNEL(mixed, TOKENS, gemv_of_type<TOKENS>(args.types[matrix_of_block(args.product)], args.product, partial))
GEMV_MIXED(1) GEMV_MIXED(2) GEMV_MIXED(4) GEMV_MIXED(8)
