// Ceilings of a device: what reading, copying, multiplying and matrix instructions reach where nothing else is to be done, and what
// a launch costs.
#include "fragments.cuh"

constexpr u32 ROOF_THREADS = 256;

struct ReadArgs {
    const uint4* data;
    u32* out;
    u64 count;   // of 16 bytes
    u32 passes;  // over all of them
};

// Loads of 16 bytes, four of them on their way in each thread. What is read is folded together, and written where that cannot
// be foreseen, so that no load is left out.
KERNEL(roof_read, ReadArgs, ROOF_THREADS) {
    const u64 stride = u64(gridDim.x) * blockDim.x;
    const u64 first = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    u32 folded = 0;
    for (u32 pass = 0; pass < args.passes; pass++) {
        u64 i = first;
        for (; i + 3 * stride < args.count; i += 4 * stride) {
            uint4 v[4];
#pragma unroll
            for (int k = 0; k < 4; k++) v[k] = ptx::load_weights16(args.data + i + k * stride);
#pragma unroll
            for (int k = 0; k < 4; k++) folded ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
        }
        for (; i < args.count; i += stride) {
            const uint4 v = ptx::load_weights16(args.data + i);
            folded ^= v.x ^ v.y ^ v.z ^ v.w;
        }
        folded = folded * 3 + pass;
    }
    if (folded == 0x9e3779b9) args.out[0] = folded;
}

struct PeakArgs {
    u32* out;
    u32 rounds;
};

constexpr u32 LAST_ROUND = 0xffffffff;

// Independent sums of each thread or warp, enough to hide how long one instruction takes.
constexpr int CHAINS = 8;

// Products of 16 x 8 x 32 in 8-bit integers.
KERNEL(roof_mma_s8, PeakArgs, ROOF_THREADS) {
    u32 a[4], b[2];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = threadIdx.x * 0x01010101u + i;
    b[0] = threadIdx.x, b[1] = ~threadIdx.x;
    i32 c[CHAINS][4];
#pragma unroll
    for (int chain = 0; chain < CHAINS; chain++)
#pragma unroll
        for (int e = 0; e < 4; e++) c[chain][e] = chain;
    for (u32 round = 0; round < args.rounds; round++) {
#pragma unroll
        for (int chain = 0; chain < CHAINS; chain++) ptx::mma_s8_k32(c[chain], a, b);
    }
    i32 folded = 0;
#pragma unroll
    for (int chain = 0; chain < CHAINS; chain++)
#pragma unroll
        for (int e = 0; e < 4; e++) folded ^= c[chain][e];
    if (folded == 0x1e3779b9) args.out[0] = u32(folded);
}

// Fused multiply-adds in single precision.
KERNEL(roof_fma, PeakArgs, ROOF_THREADS) {
    float sums[CHAINS];
    const float factor = 1.0f + float(threadIdx.x) * 1e-6f, addend = float(args.rounds) * 1e-9f;
#pragma unroll
    for (int chain = 0; chain < CHAINS; chain++) sums[chain] = float(chain);
    for (u32 round = 0; round < args.rounds; round++) {
#pragma unroll
        for (int chain = 0; chain < CHAINS; chain++) sums[chain] = sums[chain] * factor + addend;
    }
    float folded = 0.0f;
#pragma unroll
    for (int chain = 0; chain < CHAINS; chain++) folded += sums[chain];
    if (folded == 12345.678f) args.out[0] = __float_as_uint(folded);
}

// Products of 16 x 8 x 16 in 16-bit floats, summed in f32. The numbers are ordinary ones: a device draws less power for zeros,
// and may run faster.
template <bool BRAIN>
DEVICE void multiply_floats(const PeakArgs& args) {
    u32 a[4], b[2];
    const float x = float(threadIdx.x % 61) * 0.03f - 0.9f;
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = BRAIN ? ptx::pack_brains(x, x * 0.7f + float(i)) : ptx::pack_halves(x, x * 0.7f + float(i));
#pragma unroll
    for (int i = 0; i < 2; i++) b[i] = BRAIN ? ptx::pack_brains(-x, x * 0.3f) : ptx::pack_halves(-x, x * 0.3f);
    float c[CHAINS][4];
#pragma unroll
    for (int chain = 0; chain < CHAINS; chain++)
#pragma unroll
        for (int e = 0; e < 4; e++) c[chain][e] = float(chain);
    for (u32 round = 0; round < args.rounds; round++) {
#pragma unroll
        for (int chain = 0; chain < CHAINS; chain++) {
            if (BRAIN) ptx::mma_bf16(c[chain], a, b);
            else ptx::mma_f16(c[chain], a, b);
        }
    }
    float folded = 0.0f;
#pragma unroll
    for (int chain = 0; chain < CHAINS; chain++)
#pragma unroll
        for (int e = 0; e < 4; e++) folded += c[chain][e];
    if (folded == 12345.678f) args.out[0] = __float_as_uint(folded);
}
KERNEL(roof_mma_f16, PeakArgs, ROOF_THREADS) { multiply_floats<false>(args); }
KERNEL(roof_mma_bf16, PeakArgs, ROOF_THREADS) { multiply_floats<true>(args); }

// Dot products of four signed bytes.
KERNEL(roof_dp4a, PeakArgs, ROOF_THREADS) {
    const u32 a = threadIdx.x * 0x01020304u, b = ~threadIdx.x;
    i32 sums[CHAINS];
#pragma unroll
    for (int chain = 0; chain < CHAINS; chain++) sums[chain] = chain;
    for (u32 round = 0; round < args.rounds; round++) {
#pragma unroll
        for (int chain = 0; chain < CHAINS; chain++) sums[chain] = ptx::dp4a(a + chain, b, sums[chain]);
    }
    i32 folded = 0;
#pragma unroll
    for (int chain = 0; chain < CHAINS; chain++) folded ^= sums[chain];
    if (folded == 0x1e3779b9) args.out[0] = u32(folded);
}

struct CopyArgs {
    const uint4* from;
    uint4* to;
    u64 count;  // of 16 bytes
};

// Copies, four loads of 16 bytes on their way in each thread.
KERNEL(roof_copy, CopyArgs, ROOF_THREADS) {
    const u64 stride = u64(gridDim.x) * blockDim.x;
    u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i + 3 * stride < args.count; i += 4 * stride) {
        uint4 v[4];
#pragma unroll
        for (int k = 0; k < 4; k++) v[k] = ptx::load_weights16(args.from + i + k * stride);
#pragma unroll
        for (int k = 0; k < 4; k++) args.to[i + k * stride] = v[k];
    }
    for (; i < args.count; i += stride) args.to[i] = ptx::load_weights16(args.from + i);
}

// Next to nothing, as the other kernels begin: what one launch costs after another.
KERNEL(roof_launch, PeakArgs, ROOF_THREADS) {
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    if (args.rounds == LAST_ROUND) args.out[0] = 1;
}
