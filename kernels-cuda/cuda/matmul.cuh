// The parameters of products of weights and activations.
#pragma once

#include "formats.cuh"

constexpr u32 MOST_MATRICES = 3;

struct MatrixArgs {
    Planes planes;
    float* out;         // token t's result is at out + t * stride
    const float* bias;  // per row, or none
    u32 rows;
    u32 stride;
    u32 accumulate;  // add to what is there
    u32 first;       // the first of the matrix's blocks of threads in the grid
};

struct MatmulArgs {
    MatrixArgs matrices[MOST_MATRICES];
    const void* x;       // quants of a quantized type, f32 of a float type; none for gemm_sm90a.cu
    const void* scales;  // BlockScale, for quantized types
    void* partials;      // sums of splits, if there are more than one
    u32* counters;       // a zero per tile, likewise
    u32 blocks;          // in a row of weights and of x
    u32 tokens;
    u32 count;  // matrices that are results of their own
    u32 gated;  // out = silu(matrix 0 * x) * (matrix 1 * x), and nothing else
    u32 splits;  // parts of the columns, each with blocks of threads of its own
};

DEVICE void set_rows(QuantizedRows& rows, const MatmulArgs& args) {
    rows.quants = static_cast<const i8*>(args.x);
    rows.scales = static_cast<const BlockScale*>(args.scales);
}
DEVICE void set_rows(FloatRows& rows, const MatmulArgs& args) { rows.values = static_cast<const float*>(args.x); }

// Which matrix the block of threads works on.
DEVICE u32 matrix_of_block(const MatmulArgs& args) {
    u32 which = 0;
    while (which + 1 < args.count && blockIdx.x >= args.matrices[which + 1].first) which++;
    return which;
}
