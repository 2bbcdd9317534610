// What every kernel includes: short names of types, how a kernel is declared, and the instructions that C++ has no word for.
//
// Each of those is one function in `ptx`, whose body is the instruction on a device and its exact meaning, as the PTX ISA
// manual gives it, under the emulator of the tests. Nothing here includes a header of the CUDA toolkit, so the run-time
// compiler needs none.
#pragma once

#ifdef RUSTAI_EMULATOR
#include "emulator.h"
#endif

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
// The lowest number there is: as a first maximum, no value is below it.
constexpr float LOWEST = -3.402823466e38f;

// KERNEL(name, Args, threads) { ... } declares a kernel with the parameter block `args` for blocks of at most so many threads.
// SHARED(T, name, n) declares an array in shared memory, DYNAMIC_SHARED(T, name) the one whose size the launch gives.
#ifdef RUSTAI_EMULATOR
#define KERNEL(name, Args, threads)                                                                                    \
    static void name(const Args& args);                                                                                \
    static emu::Register register_##name(                                                                              \
        #name, [](const void* args) { name(*static_cast<const Args*>(args)); }, sizeof(Args), threads);                \
    static void name([[maybe_unused]] const Args& args)
#define SHARED(T, name, n)                                                                                             \
    static const char key_of_##name = 0;                                                                               \
    T* name = static_cast<T*>(emu::shared(&key_of_##name, sizeof(T) * (n)))
#define DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(emu::dynamic_shared())
#else
#define KERNEL(name, Args, threads)                                                                                    \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Args args)
#define SHARED(T, name, n) __shared__ __align__(16) T name[n]
extern __shared__ __align__(1024) u8 dynamic_shared[];
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(dynamic_shared)
#endif

#define DEVICE __device__ __forceinline__

namespace ptx {

// Orders a warp's accesses to shared memory where its lanes have met already, in a shuffle, which alone promises no such
// order. The emulator runs lanes in an order anyway and has nothing to do.
DEVICE void order_warp_memory() {
#ifndef RUSTAI_EMULATOR
    __syncwarp();
#endif
}

// ---- loads from global memory

// Weights: read once, so they stay out of L1. They are never written while a kernel runs.
DEVICE uint4 load_weights16(const void* p) {
    uint4 v;
#ifdef RUSTAI_EMULATOR
    memcpy(&v, __builtin_assume_aligned(p, 16), 16);
    if (reinterpret_cast<uintptr_t>(p) % 16) emu::fail("a 16-byte load from an address that is no multiple of 16");
#else
    asm("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
#endif
    return v;
}

DEVICE uint2 load_weights8(const void* p) {
    uint2 v;
#ifdef RUSTAI_EMULATOR
    if (reinterpret_cast<uintptr_t>(p) % 8) emu::fail("an 8-byte load from an address that is no multiple of 8");
    memcpy(&v, p, 8);
#else
    asm("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
#endif
    return v;
}

DEVICE u32 load_weights4(const void* p) {
    u32 v;
#ifdef RUSTAI_EMULATOR
    if (reinterpret_cast<uintptr_t>(p) % 4) emu::fail("a 4-byte load from an address that is no multiple of 4");
    memcpy(&v, p, 4);
#else
    asm("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(v) : "l"(p));
#endif
    return v;
}

DEVICE u32 load_weights2(const void* p) {
#ifdef RUSTAI_EMULATOR
    u16 v;
    if (reinterpret_cast<uintptr_t>(p) % 2) emu::fail("a 2-byte load from an odd address");
    memcpy(&v, p, 2);
    return v;
#else
    u16 v;
    asm("ld.global.nc.L1::no_allocate.L2::128B.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
#endif
}

// Activations: another kernel may have written them while this one was being launched, so these loads are ordinary ones and
// stay behind `wait_for_previous_kernel`.
DEVICE uint4 load16(const void* p) {
    uint4 v;
#ifdef RUSTAI_EMULATOR
    if (reinterpret_cast<uintptr_t>(p) % 16) emu::fail("a 16-byte load from an address that is no multiple of 16");
    memcpy(&v, p, 16);
#else
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
#endif
    return v;
}

DEVICE uint2 load8(const void* p) {
    uint2 v;
#ifdef RUSTAI_EMULATOR
    if (reinterpret_cast<uintptr_t>(p) % 8) emu::fail("an 8-byte load from an address that is no multiple of 8");
    memcpy(&v, p, 8);
#else
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
#endif
    return v;
}

// ---- programmatic dependent launch (PTX ISA, griddepcontrol; compute capability 9.0)

// Everything that the kernel before this one wrote is there afterwards.
DEVICE void wait_for_previous_kernel() {
#if !defined(RUSTAI_EMULATOR) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The kernel after this one may be launched; it waits for this one's end before it reads what this one writes.
DEVICE void let_next_kernel_start() {
#if !defined(RUSTAI_EMULATOR) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// ---- what blocks of one launch tell each other (PTX ISA, memory consistency model)

// What this thread wrote to global memory is seen by whoever sees a count that the block makes after its next barrier. Every
// thread of the block calls it.
DEVICE void publish() {
#ifdef RUSTAI_EMULATOR
    emu::block->published++;
    __atomic_thread_fence(__ATOMIC_ACQ_REL);
#else
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// Adds one to a count that goes back to zero after `last`, and returns what it was.
DEVICE u32 count_around(u32* count, u32 last) {
#ifdef RUSTAI_EMULATOR
    // Hardly anything else would notice.
    if (emu::block->published < emu::block->size.x) emu::fail("a block counts itself before all its threads have published");
    emu::block->published = 0;
    u32 old = __atomic_load_n(count, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(count, &old, old >= last ? 0 : old + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
    }
    return old;
#else
    u32 old;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(old) : "l"(count), "r"(last) : "memory");
    return old;
#endif
}

// What another block has published, past this multiprocessor's own cache.
DEVICE uint4 load_published16(const void* p) {
    uint4 v;
#ifdef RUSTAI_EMULATOR
    if (reinterpret_cast<uintptr_t>(p) % 16) emu::fail("a 16-byte load from an address that is no multiple of 16");
    memcpy(&v, p, 16);
#else
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
#endif
    return v;
}

// ---- arithmetic

// sum + a0 b0 + a1 b1 + a2 b2 + a3 b3, of signed bytes.
DEVICE i32 dp4a(u32 a, u32 b, i32 sum) {
#ifdef RUSTAI_EMULATOR
    for (int i = 0; i < 4; i++) sum += i32(i8(a >> 8 * i)) * i32(i8(b >> 8 * i));
    return sum;
#else
    i32 out;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
    return out;
#endif
}

// Bytes of the pair (b, a) that the low four nibbles of `selector` name; no nibble may exceed 7.
DEVICE u32 permute(u32 a, u32 b, u32 selector) {
#ifdef RUSTAI_EMULATOR
    u64 pair = u64(b) << 32 | a;
    u32 out = 0;
    for (int i = 0; i < 4; i++) {
        u32 byte = selector >> 4 * i & 15;
        if (byte > 7) emu::fail("a selector of permute exceeds 7");
        out |= u32(pair >> 8 * byte & 0xff) << 8 * i;
    }
    return out;
#else
    u32 out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(selector));
    return out;
#endif
}

DEVICE float half_to_float(u16 bits) {
#ifdef RUSTAI_EMULATOR
    _Float16 half;
    memcpy(&half, &bits, 2);
    return half;
#else
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
    return out;
#endif
}

// To nearest, ties to even.
DEVICE u16 float_to_half(float value) {
#ifdef RUSTAI_EMULATOR
    _Float16 half = static_cast<_Float16>(value);
    u16 bits;
    memcpy(&bits, &half, 2);
    return bits;
#else
    u16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(value));
    return out;
#endif
}

// To the nearest whole number, ties to even.
DEVICE i32 round_to_int(float value) {
#ifdef RUSTAI_EMULATOR
    return static_cast<i32>(nearbyintf(value));
#else
    i32 out;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(out) : "f"(value));
    return out;
#endif
}

// 2^x with an error of about 2^-22. What is below the normal numbers becomes zero.
DEVICE float exp2_fast(float x) {
#ifdef RUSTAI_EMULATOR
    return exp2f(x);
#else
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
#endif
}

// Sine and cosine of an angle within [-pi, pi], with an error of about 2^-21.
DEVICE void sin_cos_fast(float x, float& sine, float& cosine) {
#ifdef RUSTAI_EMULATOR
    sine = sinf(x);
    cosine = cosf(x);
#else
    asm("sin.approx.f32 %0, %1;" : "=f"(sine) : "f"(x));
    asm("cos.approx.f32 %0, %1;" : "=f"(cosine) : "f"(x));
#endif
}

// ---- asynchronous copies to shared memory (PTX ISA, cp.async)

// Copies 16 bytes, or writes 16 zeros if `real` is false; then `from` is not read.
DEVICE void copy16_async(void* to, const void* from, bool real) {
#ifdef RUSTAI_EMULATOR
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16) emu::fail("cp.async is not aligned");
    auto& me = *emu::block->current;
    emu::put_off(me.copies, me.ungrouped, [=] {
        if (real) memcpy(to, from, 16);
        else memset(to, 0, 16);
    });
#else
    u32 at = static_cast<u32>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(real ? 16 : 0) : "memory");
#endif
}

DEVICE void commit_copies() {
#ifdef RUSTAI_EMULATOR
    auto& me = *emu::block->current;
    me.groups.push_back(me.ungrouped);
    me.ungrouped = 0;
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most N of the committed groups are under way.
#ifdef RUSTAI_EMULATOR
inline void emu_await_copies(size_t left, unsigned line) {
    if (emu::drops(3, line)) {
        emu::block->current->copies.clear();
        emu::block->current->groups.clear();
        return;
    }
    emu::finish_groups(emu::block->current->copies, emu::block->current->groups, left);
}
#define AWAIT_COPIES(n) ptx::emu_await_copies(n, __LINE__)
#else
template <int N>
DEVICE void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#define AWAIT_COPIES(n) ptx::await_copies<n>()
#endif

}  // namespace ptx

// ---- what many kernels need

// What is beyond the range of f16 becomes its largest number. Infinities and NaN become NaN, so that a fault shows: a zero
// times one.
DEVICE float within_f16(float value) {
    constexpr float MOST = 65504.0f;
    return value * 0.0f + fminf(fmaxf(value, -MOST), MOST);
}

DEVICE float warp_sum(float value) {
#pragma unroll
    for (u32 by = WARP / 2; by > 0; by /= 2) value += __shfl_xor_sync(ALL_LANES, value, by);
    return value;
}

DEVICE float warp_max(float value) {
#pragma unroll
    for (u32 by = WARP / 2; by > 0; by /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, by));
    return value;
}

// The sum over all threads of the block, in every thread. `scratch` has room for a float per warp, and is used up: another
// sum needs another.
DEVICE float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    float sum = 0.0f;
    for (u32 w = 0; w < blockDim.x / WARP; w++) sum += scratch[w];
    return sum;
}

// The largest of all threads' values, for all of them; `scratch` has room for a value per warp.
DEVICE float block_max(float value, float* scratch) {
    value = warp_max(value);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    float top = scratch[0];
    for (u32 w = 1; w < blockDim.x / WARP; w++) top = fmaxf(top, scratch[w]);
    return top;
}

DEVICE float silu(float x) { return x / (1.0f + ptx::exp2_fast(-1.44269504f * x)); }
