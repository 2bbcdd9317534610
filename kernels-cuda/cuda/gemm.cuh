// What the kernels for many tokens share: which rows of weights a tile has, and where its results go.
#pragma once

#include "matmul.cuh"

// Row `local` of a tile of ROWS: rows of one matrix, or 8 rows of gate and 8 of up in turn, so that the thread that has a result
// of the one has that of the other.
template <u32 ROWS>
DEVICE u32 row_of(const MatmulArgs& args, u32 tile, u32 local) {
    return args.gated ? tile * (ROWS / 2) + local / 16 * 8 + local % 8 : tile * ROWS + local;
}

// Writes one result of a tile, of row `local`; `paired` is the product with up, if the matrix is a gate.
template <u32 ROWS>
DEVICE void store_result(const MatmulArgs& args, u32 which, u32 tile, u32 token, u32 local, float value, float paired) {
    const MatrixArgs& matrix = args.matrices[which];
    const u32 row = row_of<ROWS>(args, tile, local);
    if (token >= args.tokens || row >= matrix.rows) return;
    if (args.gated) {
        value = silu(value) * paired;
    } else if (matrix.bias) {
        value += matrix.bias[row];
    }
    float* out = matrix.out + size_t(token) * matrix.stride + row;
    *out = matrix.accumulate ? *out + value : value;
}

// Adds up the sums that `args.splits` blocks of threads (grid z) have of one tile, each over its part of the columns: every block
// leaves its own in memory and counts itself, and the last one, whichever that is, adds all of them in the order of the columns,
// so that the order of blocks changes no bit. True for that block, whose `sums` are whole then. The count is zero again
// afterwards, as the next launch wants it.
template <u32 THREADS, int I, int J>
DEVICE bool join_splits(const MatmulArgs& args, float (&sums)[I][J][4]) {
    // Over what the block multiplied, which nobody reads behind the first barrier.
    DYNAMIC_SHARED(u32, before);
    const u32 tile = blockIdx.y * gridDim.x + blockIdx.x, splits = args.splits;
    // A float4 of each thread after the other, for each fragment, for each split.
    constexpr u32 FRAGMENTS = I * J;
    uint4* partials = static_cast<uint4*>(args.partials) + size_t(tile) * splits * FRAGMENTS * THREADS + threadIdx.x;
#pragma unroll
    for (u32 f = 0; f < FRAGMENTS; f++) {
        const float(&own)[4] = sums[f / J][f % J];
        partials[(blockIdx.z * FRAGMENTS + f) * THREADS] = {__float_as_uint(own[0]), __float_as_uint(own[1]),
                                                            __float_as_uint(own[2]), __float_as_uint(own[3])};
    }
    ptx::publish();
    __syncthreads();
    if (threadIdx.x == 0) *before = ptx::count_around(args.counters + tile, splits - 1);
    __syncthreads();
    if (*before != splits - 1) return false;

    // Those of two splits are under way at a time.
#pragma unroll 2
    for (u32 split = 0; split < splits; split++) {
        uint4 parts[FRAGMENTS];
#pragma unroll
        for (u32 f = 0; f < FRAGMENTS; f++) parts[f] = ptx::load_published16(partials + (split * FRAGMENTS + f) * THREADS);
#pragma unroll
        for (u32 f = 0; f < FRAGMENTS; f++) {
            float(&sum)[4] = sums[f / J][f % J];
            const u32 bits[4] = {parts[f].x, parts[f].y, parts[f].z, parts[f].w};
#pragma unroll
            for (int e = 0; e < 4; e++) sum[e] = split == 0 ? __uint_as_float(bits[e]) : sum[e] + __uint_as_float(bits[e]);
        }
    }
    return true;
}

// Writes a warp's results: fragments of 16 tokens from `token` on times 8 rows of the tile from `local` on.
template <u32 ROWS, int I, int J>
DEVICE void store_results(const MatmulArgs& args, u32 which, u32 tile, u32 token, u32 local, const float (&sums)[I][J][4]) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < I; i++)
#pragma unroll
        for (int j = 0; j < J; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (args.gated && j % 2) continue;
                store_result<ROWS>(args, which, tile, token + i * 16 + e / 2 * 8 + lane / 4,
                                   local + j * 8 + lane % 4 * 2 + e % 2, sums[i][j][e], sums[i][j | 1][e]);
            }
}
