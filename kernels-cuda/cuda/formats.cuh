// How weights of each type lie in device memory, and how they become numbers: one row per type at the end.
//
// A matrix is repacked when it is loaded (src/weights.rs). Its values come in *blocks* of consecutive columns of one row, 32
// for quantized types and 8 for floats; block b of row r is number r * blocks + b in every plane:
//
//   codes   the codes' low bits, 8 or 16 bytes per block, so that neighbouring lanes load neighbouring pieces
//   extra   what the codes have besides: fifth bits, upper pairs of bits, or the second half of a block
//   fine    scales that belong to a block
//   coarse  scales that belong to 8 blocks (the k-quants' 256 values)
//
// Words of codes are in the order of the dot product: *step* j is columns 4j to 4j + 3, one per byte.
#pragma once

#include "common.cuh"

constexpr u32 BLOCK = 32;

struct Planes {
    const u8* codes;
    const u8* extra;
    const u8* fine;
    const u8* coarse;
};

// Activations, as quantized by rows.cu. A row of 32 n values is n pieces of 16 bytes, the first halves of its blocks, and
// then n with the second halves; scale and sums are apart.
struct alignas(8) BlockScale {
    float scale;
    i16 sums[2];  // of the block's first and last 16 quants
};

struct QuantizedRows {
    const i8* quants;
    const BlockScale* scales;
};

// Activations in f16 for Hopper's products (gemm_sm90a.cu), as rounded by rows.cu: this part of each value, so that what
// exceeds the range of f16 still fits. A row of 16 n values is n pieces of 8 words, of whose columns words t and t + 4 hold 4t
// and the next, 4t + 2 and the next, for t below 4: a thread of a product multiplies what it has in these two words by one word
// of codes.
constexpr float HALVES_UNIT = 1.0f / 16.0f;

// ---- codes: what the planes `codes` and `extra` hold

DEVICE void split_nibbles(const uint4& packed, u32 (&words)[8]) {
    const u32 in[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[i] = in[i] & 0x0f0f0f0f;
        words[i + 4] = in[i] >> 4 & 0x0f0f0f0f;
    }
}

// Adds the pairs of bits of two words, from bit `place` on: bits 2s of word i are step 4i + s.
DEVICE void add_pairs(const uint2& packed, int place, u32 (&words)[8]) {
#pragma unroll
    for (int s = 0; s < 4; s++) {
        words[s] |= (packed.x >> 2 * s & 0x03030303) << place;
        words[s + 4] |= (packed.y >> 2 * s & 0x03030303) << place;
    }
}

// Adds one bit per code: bit j of the word is step j.
DEVICE void add_bits(u32 packed, int place, u32 (&words)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) words[j] |= (packed >> j & 0x01010101) << place;
}

struct Codes2 {
    uint2 pairs;
    DEVICE void load(const Planes& p, size_t block) { pairs = ptx::load_weights8(p.codes + block * 8); }
    DEVICE void expand(u32 (&words)[8]) const {
#pragma unroll
        for (int j = 0; j < 8; j++) words[j] = 0;
        add_pairs(pairs, 0, words);
    }
};

struct Codes3 {
    uint2 pairs;
    u32 bits;
    DEVICE void load(const Planes& p, size_t block) {
        pairs = ptx::load_weights8(p.codes + block * 8);
        bits = ptx::load_weights4(p.extra + block * 4);
    }
    DEVICE void expand(u32 (&words)[8]) const {
#pragma unroll
        for (int j = 0; j < 8; j++) words[j] = 0;
        add_pairs(pairs, 0, words);
        add_bits(bits, 2, words);
    }
};

struct Codes4 {
    uint4 nibbles;
    DEVICE void load(const Planes& p, size_t block) { nibbles = ptx::load_weights16(p.codes + block * 16); }
    DEVICE void expand(u32 (&words)[8]) const { split_nibbles(nibbles, words); }
};

struct Codes5 {
    uint4 nibbles;
    u32 bits;
    DEVICE void load(const Planes& p, size_t block) {
        nibbles = ptx::load_weights16(p.codes + block * 16);
        bits = ptx::load_weights4(p.extra + block * 4);
    }
    DEVICE void expand(u32 (&words)[8]) const {
        split_nibbles(nibbles, words);
        add_bits(bits, 4, words);
    }
};

struct Codes6 {
    uint4 nibbles;
    uint2 pairs;
    DEVICE void load(const Planes& p, size_t block) {
        nibbles = ptx::load_weights16(p.codes + block * 16);
        pairs = ptx::load_weights8(p.extra + block * 8);
    }
    DEVICE void expand(u32 (&words)[8]) const {
        split_nibbles(nibbles, words);
        add_pairs(pairs, 4, words);
    }
};

struct Codes8 {
    uint4 first, second;
    DEVICE void load(const Planes& p, size_t block) {
        first = ptx::load_weights16(p.codes + block * 16);
        second = ptx::load_weights16(p.extra + block * 16);
    }
    DEVICE void expand(u32 (&words)[8]) const {
        words[0] = first.x, words[1] = first.y, words[2] = first.z, words[3] = first.w;
        words[4] = second.x, words[5] = second.y, words[6] = second.z, words[7] = second.w;
    }
};

// ---- values: the whole number that a code stands for is `map(code) - OFFSET`

template <int N>
struct Offset {
    static constexpr int OFFSET = N;
    template <int WORDS>
    DEVICE static void map(u32 (&)[WORDS]) {}
};

// Sixteen signed bytes, four to a word.
template <u32 A, u32 B, u32 C, u32 D>
struct Table {
    static constexpr int OFFSET = 0;
    template <int WORDS>
    DEVICE static void map(u32 (&words)[WORDS]) {
#pragma unroll
        for (int j = 0; j < WORDS; j++) {
            // Four codes to four nibbles.
            u32 code = ptx::permute(words[j] | words[j] >> 4, 0, 0x4420);
            // Both halves of the table, and then the one that bit 3 of each code names.
            u32 low = ptx::permute(A, B, code & 0x7777), high = ptx::permute(C, D, code & 0x7777);
            words[j] = ptx::permute(low, high, 0x3210 | (code & 0x8888) >> 1);
        }
    }
};

// -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
using Iq4Table = Table<0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535>;
// 0, 1, 2, 3, 4, 6, 8, 12 and their negatives: the E2M1 floats, doubled
using Mxfp4Table = Table<0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc>;

// ---- scales: value = factor * whole + addend, one pair for a block or one for each half

template <int HALVES, bool ADDS>
struct Factors {
    float factor[HALVES];
    float addend[HALVES];
};

// f16 per block
struct ScaleHalf {
    static constexpr int HALVES = 1;
    static constexpr bool ADDS = false;
    u32 d;
    DEVICE void load(const Planes& p, size_t block) { d = ptx::load_weights2(p.fine + block * 2); }
    DEVICE Factors<1, false> factors(size_t) const { return {{ptx::half_to_float(u16(d))}, {0.0f}}; }
};

// f16 factor and f16 addend per block
struct ScaleHalfMin {
    static constexpr int HALVES = 1;
    static constexpr bool ADDS = true;
    u32 both;
    DEVICE void load(const Planes& p, size_t block) { both = ptx::load_weights4(p.fine + block * 4); }
    DEVICE Factors<1, true> factors(size_t) const {
        return {{ptx::half_to_float(u16(both))}, {ptx::half_to_float(u16(both >> 16))}};
    }
};

// The upper half of an f32 per block: MXFP4's powers of two are exact so, the two denormal ones included.
struct ScaleBf16 {
    static constexpr int HALVES = 1;
    static constexpr bool ADDS = false;
    u32 d;
    DEVICE void load(const Planes& p, size_t block) { d = ptx::load_weights2(p.fine + block * 2); }
    DEVICE Factors<1, false> factors(size_t) const { return {{__uint_as_float(d << 16)}, {0.0f}}; }
};

// Per 8 blocks f16 d and 8 x i8
struct ScaleRuns32 {
    static constexpr int HALVES = 1;
    static constexpr bool ADDS = false;
    u32 d;
    uint2 scales;
    DEVICE void load(const Planes& p, size_t block) {
        d = ptx::load_weights2(p.coarse + block / 8 * 2);
        scales = ptx::load_weights8(p.fine + block / 8 * 8);
    }
    DEVICE Factors<1, false> factors(size_t block) const {
        u32 four = block & 4 ? scales.y : scales.x;
        return {{__fmul_rn(ptx::half_to_float(u16(d)), float(i8(four >> 8 * (block & 3))))}, {0.0f}};
    }
};

// Per 8 blocks f16 d; per block 2 x i8
struct ScaleRuns16 {
    static constexpr int HALVES = 2;
    static constexpr bool ADDS = false;
    u32 d, scales;
    DEVICE void load(const Planes& p, size_t block) {
        d = ptx::load_weights2(p.coarse + block / 8 * 2);
        scales = ptx::load_weights2(p.fine + block * 2);
    }
    DEVICE Factors<2, false> factors(size_t) const {
        float unit = ptx::half_to_float(u16(d));
        return {{__fmul_rn(unit, float(i8(scales))), __fmul_rn(unit, float(i8(scales >> 8)))}, {0.0f, 0.0f}};
    }
};

// Per 8 blocks f16 d and f16 dmin; per block u8 scale and u8 min, which is subtracted
struct ScaleRuns32Min {
    static constexpr int HALVES = 1;
    static constexpr bool ADDS = true;
    u32 both, pair;
    DEVICE void load(const Planes& p, size_t block) {
        both = ptx::load_weights4(p.coarse + block / 8 * 4);
        pair = ptx::load_weights2(p.fine + block * 2);
    }
    DEVICE Factors<1, true> factors(size_t) const {
        float d = ptx::half_to_float(u16(both)), dmin = ptx::half_to_float(u16(both >> 16));
        return {{__fmul_rn(d, float(pair & 0xff))}, {-__fmul_rn(dmin, float(pair >> 8))}};
    }
};

// Per 8 blocks f16 d and f16 dmin; per half of a block a scale in the low nibble and a min in the high one
struct ScaleRuns16Min {
    static constexpr int HALVES = 2;
    static constexpr bool ADDS = true;
    u32 both, pairs;
    DEVICE void load(const Planes& p, size_t block) {
        both = ptx::load_weights4(p.coarse + block / 8 * 4);
        pairs = ptx::load_weights2(p.fine + block * 2);
    }
    DEVICE Factors<2, true> factors(size_t) const {
        float d = ptx::half_to_float(u16(both)), dmin = ptx::half_to_float(u16(both >> 16));
        return {{__fmul_rn(d, float(pairs & 15)), __fmul_rn(d, float(pairs >> 8 & 15))},
                {-__fmul_rn(dmin, float(pairs >> 4 & 15)), -__fmul_rn(dmin, float(pairs >> 12 & 15))}};
    }
};

// ---- a quantized type

template <class Codes, class Value, class Scale>
struct Quantized {
    static constexpr u32 COLUMNS = BLOCK;
    static constexpr int HALVES = Scale::HALVES;
    static constexpr int OFFSET = Value::OFFSET;
    static constexpr bool ADDS = Scale::ADDS;
    using CodesType = Codes;
    using ValueType = Value;
    using ScaleType = Scale;

    // A block of weights as it is in memory.
    Codes codes;
    Scale scale;

    DEVICE void load(const Planes& p, size_t block) {
        codes.load(p, block);
        scale.load(p, block);
    }

    // The block's codes, mapped, a step per word.
    DEVICE void expand(u32 (&words)[8]) const {
        codes.expand(words);
        Value::map(words);
    }

    DEVICE Factors<HALVES, ADDS> factors(size_t block) const { return scale.factors(block); }

    // Values that kernels prepare once and multiply by several tokens.
    struct Prepared {
        u32 words[8];
        Factors<HALVES, ADDS> factors;
    };

    DEVICE void prepare(size_t block, Prepared& out) const {
        expand(out.words);
        out.factors = factors(block);
    }

    // A block of one token's activations.
    struct Activations {
        u32 words[8];
        BlockScale scale;
        DEVICE void load(const QuantizedRows& rows, size_t token, u32 blocks, u32 block) {
            const i8* row = rows.quants + token * blocks * BLOCK;
            uint4 first = ptx::load16(row + block * 16);
            uint4 second = ptx::load16(row + (size_t(blocks) + block) * 16);
            words[0] = first.x, words[1] = first.y, words[2] = first.z, words[3] = first.w;
            words[4] = second.x, words[5] = second.y, words[6] = second.z, words[7] = second.w;
            uint2 raw = ptx::load8(rows.scales + token * blocks + block);
            scale.scale = __uint_as_float(raw.x);
            scale.sums[0] = i16(raw.y);
            scale.sums[1] = i16(raw.y >> 16);
        }
    };
    using Rows = QuantizedRows;

    DEVICE static float dot(const Prepared& w, const Activations& x) {
        i32 sums[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < 8; j++) sums[j / 4] = ptx::dp4a(w.words[j], x.words[j], sums[j / 4]);
        return combine(w.factors, sums, x.scale);
    }

    // What integer sums of products stand for.
    DEVICE static float combine(const Factors<HALVES, ADDS>& f, const i32 (&sums)[2], const BlockScale& x) {
        float out = 0.0f;
        if (HALVES == 2) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                out += f.factor[h % HALVES] * float(sums[h] - OFFSET * x.sums[h]);
                if (ADDS) out += f.addend[h % HALVES] * float(x.sums[h]);
            }
        } else {
            i32 total = x.sums[0] + x.sums[1];
            out = f.factor[0] * float(sums[0] + sums[1] - OFFSET * total);
            if (ADDS) out += f.addend[0] * float(total);
        }
        return out * x.scale;
    }

    // Value i of a block, rounded as the type's scalar code rounds it.
    DEVICE static float value(const Prepared& w, u32 i) {
        i32 whole = i32(i8(w.words[i / 4] >> 8 * (i % 4))) - OFFSET;
        int half = HALVES == 2 ? int(i / 16) : 0;
        float out = __fmul_rn(w.factors.factor[half], float(whole));
        return ADDS ? __fadd_rn(out, w.factors.addend[half]) : out;
    }
};

// ---- floats: blocks of 8 values, activations in f32

struct FloatRows {
    const float* values;
};

struct FloatActivations {
    float values[8];
    DEVICE void load(const FloatRows& rows, size_t token, u32 blocks, u32 block) {
        const float* at = rows.values + (token * blocks + block) * 8;
        uint4 first = ptx::load16(at), second = ptx::load16(at + 4);
        const u32 raw[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = __uint_as_float(raw[i]);
    }
};

struct FloatPrepared {
    float values[8];
};

template <class Self>
struct Floats {
    static constexpr u32 COLUMNS = 8;
    using Rows = FloatRows;
    using Activations = FloatActivations;
    using Prepared = FloatPrepared;

    DEVICE static float dot(const Prepared& w, const Activations& x) {
        float out = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) out += w.values[i] * x.values[i];
        return out;
    }
    DEVICE static float value(const Prepared& w, u32 i) { return w.values[i]; }
};

struct F32 : Floats<F32> {
    uint4 first, second;
    DEVICE void load(const Planes& p, size_t block) {
        first = ptx::load_weights16(p.codes + block * 32);
        second = ptx::load_weights16(p.codes + block * 32 + 16);
    }
    DEVICE void prepare(size_t, Prepared& out) const {
        const u32 raw[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
        for (int i = 0; i < 8; i++) out.values[i] = __uint_as_float(raw[i]);
    }
};

template <bool BRAIN>
struct Float16 : Floats<Float16<BRAIN>> {
    uint4 raw;
    DEVICE void load(const Planes& p, size_t block) { raw = ptx::load_weights16(p.codes + block * 16); }
    DEVICE void prepare(size_t, FloatPrepared& out) const {
        const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 bits = words[i / 2] >> 16 * (i % 2) & 0xffff;
            out.values[i] = BRAIN ? __uint_as_float(bits << 16) : ptx::half_to_float(u16(bits));
        }
    }
};
using F16 = Float16<false>;
using BF16 = Float16<true>;

// ---- the table of types

using Q4_0 = Quantized<Codes4, Offset<8>, ScaleHalf>;
using Q4_1 = Quantized<Codes4, Offset<0>, ScaleHalfMin>;
using Q5_0 = Quantized<Codes5, Offset<16>, ScaleHalf>;
using Q5_1 = Quantized<Codes5, Offset<0>, ScaleHalfMin>;
using Q8_0 = Quantized<Codes8, Offset<0>, ScaleHalf>;
using Q2_K = Quantized<Codes2, Offset<0>, ScaleRuns16Min>;
using Q3_K = Quantized<Codes3, Offset<4>, ScaleRuns16>;
using Q4_K = Quantized<Codes4, Offset<0>, ScaleRuns32Min>;
using Q5_K = Quantized<Codes5, Offset<0>, ScaleRuns32Min>;
using Q6_K = Quantized<Codes6, Offset<32>, ScaleRuns16>;
using IQ4_NL = Quantized<Codes4, Iq4Table, ScaleHalf>;
using IQ4_XS = Quantized<Codes4, Iq4Table, ScaleRuns32>;
using MXFP4 = Quantized<Codes4, Mxfp4Table, ScaleBf16>;

// Calls a macro with every quantized type, every float type, and every type.
#define QUANTIZED_TYPES(X)                                                                                             \
    X(q4_0, Q4_0) X(q4_1, Q4_1) X(q5_0, Q5_0) X(q5_1, Q5_1) X(q8_0, Q8_0) X(q2_k, Q2_K) X(q3_k, Q3_K) X(q4_k, Q4_K)     \
    X(q5_k, Q5_K) X(q6_k, Q6_K) X(iq4_nl, IQ4_NL) X(iq4_xs, IQ4_XS) X(mxfp4, MXFP4)
#define FLOAT_TYPES(X) X(f16, F16) X(bf16, BF16) X(f32, F32)
#define ALL_TYPES(X) QUANTIZED_TYPES(X) FLOAT_TYPES(X)
