// Single instructions, so that a test can see what a device makes of their operands: which lane holds which element, in what order
// halves are packed, how results are rounded. tests/probe.rs says what the PTX ISA manual says; what the emulator does is
// compared with the same.
#include "fragments.cuh"

// Words that each thread of one block brings, thread by thread, and gets back.
struct ProbeArgs {
    const u32* in;
    u32* out;
};

template <u32 COUNT>
DEVICE void bring(u32 (&words)[COUNT], const ProbeArgs& args, u32 at, u32 each) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) words[i] = args.in[threadIdx.x * each + at + i];
}

template <u32 COUNT>
DEVICE void give(const ProbeArgs& args, const u32 (&words)[COUNT]) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) args.out[threadIdx.x * COUNT + i] = words[i];
}

// Four matrices of 8 rows of 16 bytes: lane l brings row l % 8 of matrix l / 8.
template <bool TRANSPOSED>
DEVICE void load_fragments(const ProbeArgs& args) {
    SHARED(u32, rows, WARP * 4);
    u32 row[4], out[4];
    bring(row, args, 0, 4);
#pragma unroll
    for (u32 i = 0; i < 4; i++) rows[threadIdx.x * 4 + i] = row[i];
    __syncthreads();
    if (TRANSPOSED) ptx::load_matrices_transposed(out, rows + threadIdx.x * 4);
    else ptx::load_matrices(out, rows + threadIdx.x * 4);
    give(args, out);
}
KERNEL(probe_load_matrices, ProbeArgs, WARP) { load_fragments<false>(args); }
KERNEL(probe_load_matrices_transposed, ProbeArgs, WARP) { load_fragments<true>(args); }

// Of the products, lane l brings its words of a, of b and of c.
KERNEL(probe_mma_s8_k32, ProbeArgs, WARP) {
    u32 a[4], b[2], c[4];
    bring(a, args, 0, 10), bring(b, args, 4, 10), bring(c, args, 6, 10);
    i32 sums[4] = {i32(c[0]), i32(c[1]), i32(c[2]), i32(c[3])};
    ptx::mma_s8_k32(sums, a, b);
    give(args, {u32(sums[0]), u32(sums[1]), u32(sums[2]), u32(sums[3])});
}
KERNEL(probe_mma_s8_k16, ProbeArgs, WARP) {
    u32 a[2], b[1], c[4];
    bring(a, args, 0, 7), bring(b, args, 2, 7), bring(c, args, 3, 7);
    i32 sums[4] = {i32(c[0]), i32(c[1]), i32(c[2]), i32(c[3])};
    ptx::mma_s8_k16(sums, a, b[0]);
    give(args, {u32(sums[0]), u32(sums[1]), u32(sums[2]), u32(sums[3])});
}

template <bool BRAIN>
DEVICE void multiply_fragments(const ProbeArgs& args) {
    u32 a[4], b[2], c[4];
    bring(a, args, 0, 10), bring(b, args, 4, 10), bring(c, args, 6, 10);
    float sums[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) sums[i] = __uint_as_float(c[i]);
    if (BRAIN) ptx::mma_bf16(sums, a, b);
    else ptx::mma_f16(sums, a, b);
    give(args, {__float_as_uint(sums[0]), __float_as_uint(sums[1]), __float_as_uint(sums[2]), __float_as_uint(sums[3])});
}
KERNEL(probe_mma_f16, ProbeArgs, WARP) { multiply_fragments<false>(args); }
KERNEL(probe_mma_bf16, ProbeArgs, WARP) { multiply_fragments<true>(args); }

// Arithmetic on words: three of them, of which the third also selects bytes.
KERNEL(probe_words, ProbeArgs, WARP) {
    u32 x[3];
    bring(x, args, 0, 3);
    const float first = __uint_as_float(x[0]), second = __uint_as_float(x[1]);
    give(args, {u32(ptx::dp4a(x[0], x[1], i32(x[2]))), ptx::permute(x[0], x[1], x[2] & 0x7777), ptx::pack_halves(first, second),
                ptx::pack_brains(first, second), ptx::subtract_halves(x[0], x[1]), ptx::multiply_halves(x[0], x[1]),
                ptx::multiply_add_halves(x[0], x[1], x[2]), __float_as_uint(ptx::half_to_float(u16(x[0]))),
                u32(ptx::float_to_half(first)), u32(ptx::round_to_int(second))});
}
