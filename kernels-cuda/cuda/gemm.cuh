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
