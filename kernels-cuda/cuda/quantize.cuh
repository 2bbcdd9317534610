// Quantization of activations to 8 bits, for the kernels whose results products with quantized weights take.
#pragma once

#include "formats.cuh"

// Below this magnitude a block counts as zero: 2^-119, as the CPU's q8a format has it.
constexpr u32 ZERO_BELOW = (127 - 119) << 23;

// Quantizes four values of a block of 32 whose others are with the 7 other lanes of the same group of 8. All lanes of the warp
// come here.
DEVICE void quantize(const float (&v)[4], u32 column, bool real, i8* quants, BlockScale* scales, u32 blocks) {
    // Without their signs, bit patterns order as the numbers do, infinity and then NaN on top.
    u32 top = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 bits = __float_as_uint(v[i]) & 0x7fffffff;
        top = bits > top ? bits : top;
    }
#pragma unroll
    for (u32 by = 4; by > 0; by /= 2) {
        u32 other = __shfl_xor_sync(ALL_LANES, top, by);
        top = other > top ? other : top;
    }
    const float amax = __uint_as_float(top);
    const bool finite = top < 0x7f800000, zero = top < ZERO_BELOW;
    const float factor = finite && !zero ? __fdiv_rn(127.0f, amax) : 0.0f;
    u32 packed = 0;
    i32 sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        i32 q = factor == 0.0f ? 0 : ptx::round_to_int(__fmul_rn(v[i], factor));
        packed |= u32(q & 0xff) << 8 * i;
        sum += q;
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    const i32 other = __shfl_xor_sync(ALL_LANES, sum, 4);
    if (!real) return;
    const u32 block = column / BLOCK, within = column % BLOCK;
    *reinterpret_cast<u32*>(quants + (size_t(within / 16) * blocks + block) * 16 + within % 16) = packed;
    if (within == 0) {
        BlockScale scale;
        scale.scale = !finite ? __uint_as_float(0x7fffffff) : zero ? 0.0f : __fdiv_rn(amax, 127.0f);
        scale.sums[0] = i16(sum);
        scale.sums[1] = i16(other);
        scales[block] = scale;
    }
}
