// Matrix products of a warp and the pieces of matrices that they take (PTX ISA, ldmatrix and mma.sync.m16n8).
//
// In all of them lane l holds, of the results c, rows l / 4 and l / 4 + 8 and columns 2 (l % 4) and the next.
#pragma once

#include "common.cuh"

namespace ptx {

// ---- pieces of matrices

// Four 8 x 8 matrices of 16-bit elements: lane l brings the address of row l % 8 of matrix l / 8, and gets elements
// 2 (l % 4) and the next of row l / 4 of each.
DEVICE void load_matrices(u32 (&out)[4], const void* row) {
#ifdef RUSTAI_EMULATOR
    struct Four {
        u32 v[4];
    };
    Four four = emu::collective<const void*, Four>(16, ALL_LANES, row, [](auto& in, auto& out) {
        for (u32 lane = 0; lane < WARP; lane++)
            for (u32 m = 0; m < 4; m++) {
                auto* from = static_cast<const char*>(*in[m * 8 + lane / 4]);
                if (reinterpret_cast<uintptr_t>(from) % 16) emu::fail("ldmatrix from a row that is not aligned");
                memcpy(&out[lane]->v[m], from + lane % 4 * 4, 4);
            }
    });
    memcpy(out, four.v, 16);
#else
    u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
#endif
}

// As `load_matrices`, but of each matrix lane l gets elements 2 (l % 4) and the next of column l / 4.
DEVICE void load_matrices_transposed(u32 (&out)[4], const void* row) {
#ifdef RUSTAI_EMULATOR
    struct Four {
        u32 v[4];
    };
    Four four = emu::collective<const void*, Four>(17, ALL_LANES, row, [](auto& in, auto& out) {
        for (u32 lane = 0; lane < WARP; lane++)
            for (u32 i = 0; i < 8; i++) {
                const u32 m = i / 2, element = lane % 4 * 2 + i % 2;
                auto* from = static_cast<const char*>(*in[m * 8 + element]);
                if (reinterpret_cast<uintptr_t>(from) % 16) emu::fail("ldmatrix from a row that is not aligned");
                memcpy(reinterpret_cast<char*>(&out[lane]->v[m]) + i % 2 * 2, from + lane / 4 * 2, 2);
            }
    });
    memcpy(out, four.v, 16);
#else
    u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
#endif
}

// ---- products of signed bytes

#ifdef RUSTAI_EMULATOR
// c += a b for signed bytes, K columns of 16 rows of a times 8 columns of b. Lane l holds, of c, rows l / 4 and l / 4 + 8 and
// columns 2 (l % 4) and the next; register i of a holds four columns from 4 (l % 4) on, of row l / 4 (+ 8 if i is odd), of
// the i / 2-th 16 columns; register i of b the same rows, of column l / 4.
template <int K>
inline void emu_mma_s8(i32 (&c)[4], const u32* a, const u32* b) {
    struct In {
        i32 c[4];
        u32 a[4], b[2];
    } mine{};
    struct Out {
        i32 c[4];
    };
    memcpy(mine.c, c, 16);
    memcpy(mine.a, a, K / 8 * 4);
    memcpy(mine.b, b, K / 16 * 4);
    Out out = emu::collective<In, Out>(16 + K, ALL_LANES, mine, [](auto& in, auto& out) {
        for (u32 lane = 0; lane < WARP; lane++)
            for (u32 i = 0; i < 4; i++) {
                u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                i32 sum = in[lane]->c[i];
                for (u32 k = 0; k < K; k++) {
                    u32 a = in[row % 8 * 4 + k % 16 / 4]->a[row / 8 + k / 16 * 2];
                    u32 b = in[column * 4 + k % 16 / 4]->b[k / 16];
                    sum += i32(i8(a >> 8 * (k % 4))) * i32(i8(b >> 8 * (k % 4)));
                }
                out[lane]->c[i] = sum;
            }
    });
    memcpy(c, out.c, 16);
}
#endif

DEVICE void mma_s8_k32(i32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef RUSTAI_EMULATOR
    emu_mma_s8<32>(c, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

DEVICE void mma_s8_k16(i32 (&c)[4], const u32 (&a)[2], u32 b) {
#ifdef RUSTAI_EMULATOR
    emu_mma_s8<16>(c, a, &b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
#endif
}

// ---- pairs of 16-bit floats in a word, the first in the low half

// To nearest, ties to even.
DEVICE u32 pack_halves(float first, float second) {
#ifdef RUSTAI_EMULATOR
    return float_to_half(first) | u32(float_to_half(second)) << 16;
#else
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
    return out;
#endif
}

// The upper half of an f32, to nearest, ties to even; a NaN may become another.
DEVICE u32 pack_brains(float first, float second) {
#ifdef RUSTAI_EMULATOR
    auto round = [](float value) {
        u32 bits = __float_as_uint(value);
        return value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fffu;
    };
    return round(first) | round(second) << 16;
#else
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
    return out;
#endif
}

#ifdef RUSTAI_EMULATOR
template <class Operation>
inline u32 emu_halves(u32 a, u32 b, Operation operation) {
    auto one = [&](u32 shift) {
        return u32(float_to_half(operation(half_to_float(u16(a >> shift)), half_to_float(u16(b >> shift))))) << shift;
    };
    return one(0) | one(16);
}
#endif

DEVICE u32 subtract_halves(u32 a, u32 b) {
#ifdef RUSTAI_EMULATOR
    return emu_halves(a, b, [](float a, float b) { return a - b; });
#else
    u32 out;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
#endif
}

// a b + c, rounded once.
DEVICE u32 multiply_add_halves(u32 a, u32 b, u32 c) {
#ifdef RUSTAI_EMULATOR
    auto one = [&](u32 shift) {
        // A product of two f16 and its sum with a third are exact in double precision, but for what f16 never shows.
        const double product = double(half_to_float(u16(a >> shift))) * double(half_to_float(u16(b >> shift)));
        const _Float16 half = static_cast<_Float16>(product + double(half_to_float(u16(c >> shift))));
        u16 bits;
        memcpy(&bits, &half, 2);
        return u32(bits) << shift;
    };
    return one(0) | one(16);
#else
    u32 out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
#endif
}

DEVICE u32 multiply_halves(u32 a, u32 b) {
#ifdef RUSTAI_EMULATOR
    return emu_halves(a, b, [](float a, float b) { return a * b; });
#else
    u32 out;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
#endif
}

// Four signed bytes as f16, the first two in `low`. A byte b + 128 in the lowest bits of the f16 `unit` is unit + b + 128 of its
// last places; `offset` is what is subtracted from it. Both stand twice in their words.
DEVICE void widen_bytes(u32 bytes, u32 unit, u32 offset, u32& low, u32& high) {
    const u32 shifted = bytes ^ 0x80808080;
    low = subtract_halves(permute(shifted, unit, 0x5150), offset);
    high = subtract_halves(permute(shifted, unit, 0x5352), offset);
}
// The bits of 1024, whose last place is 1, and of 1024 + 128; of 8, whose last place is 1/128, and of 8 + 1.
constexpr u32 UNIT_1 = 0x64006400, OFFSET_1 = 0x64806480;
constexpr u32 UNIT_128TH = 0x48004800, OFFSET_128TH = 0x48804880;

// ---- products of 16-bit floats, summed in f32

#ifdef RUSTAI_EMULATOR
// c += a b, 16 columns of 16 rows of a times 8 columns of b. Register i of a holds columns 2 (lane % 4) and the next, of row
// lane / 4 (+ 8 if i is odd), of the i / 2-th 8 columns; register i of b the same rows, of column lane / 4.
template <class ToFloat>
inline void emu_mma_16(float (&c)[4], const u32* a, const u32* b, u32 kind, ToFloat to_float) {
    struct In {
        float c[4];
        u32 a[4], b[2];
    } mine;
    struct Out {
        float c[4];
    };
    memcpy(mine.c, c, 16);
    memcpy(mine.a, a, 16);
    memcpy(mine.b, b, 8);
    Out out = emu::collective<In, Out>(kind, ALL_LANES, mine, [&](auto& in, auto& out) {
        float left[16][16], right[8][16];
        for (u32 k = 0; k < 16; k++) {
            const u32 lane = k % 8 / 2, shift = k % 2 * 16;
            for (u32 row = 0; row < 16; row++)
                left[row][k] = to_float(u16(in[row % 8 * 4 + lane]->a[row / 8 + k / 8 * 2] >> shift));
            for (u32 column = 0; column < 8; column++)
                right[column][k] = to_float(u16(in[column * 4 + lane]->b[k / 8] >> shift));
        }
        for (u32 lane = 0; lane < WARP; lane++)
            for (u32 i = 0; i < 4; i++) {
                const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float sum = in[lane]->c[i];
                for (u32 k = 0; k < 16; k++) sum += left[row][k] * right[column][k];
                out[lane]->c[i] = sum;
            }
    });
    memcpy(c, out.c, 16);
}
#endif

DEVICE void mma_f16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef RUSTAI_EMULATOR
    emu_mma_16(c, a, b, 18, [](u16 bits) { return half_to_float(bits); });
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

DEVICE void mma_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef RUSTAI_EMULATOR
    emu_mma_16(c, a, b, 19, [](u16 bits) { return __uint_as_float(u32(bits) << 16); });
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace ptx
