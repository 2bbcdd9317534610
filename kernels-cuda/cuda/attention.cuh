// The key/value cache: what its bytes mean, and how rows are appended to it, for the kernels that write and read it.
//
// A layer is a run of pages of 32 positions. A page holds, for each key/value head, keys and then values:
//
//   f16   keys    [head_dim / 8][32 positions][8]     so that the lanes of a warp, one per position, read one run of memory
//         values  [32 positions][head_dim]
//   q8_0  keys    [head_dim / 16][32 positions][16] bytes, then scales [head_dim / 32][32 positions] in f16
//         values  [32 positions][head_dim] bytes, then scales [32 positions][head_dim / 32] in f16
#pragma once

#include "common.cuh"

constexpr u32 PAGE = 32;

struct Cache {
    u8* start;  // of the layer
    u32 kv_heads;
    u32 head_dim;
};

// Where each row of a batch belongs.
struct Places {
    const u32* positions;  // per token
    const u32* tables;     // per token: where its sequence's pages begin in `pages`
    const u32* pages;
};

// Rotary embedding of a head's first values (Su et al., 2021).
struct Rotation {
    const float* inv_freq;  // radians per position of each pair
    u32 pairs;              // 2 * pairs values are rotated; 0 rotates nothing
    u32 neox;               // pairs are (i, i + pairs) rather than (2i, 2i + 1)
    float magnitude;
};

// What becomes of queries, keys and values.
struct Append {
    Rotation rotation;
    Cache cache;
    Places places;
};

// The two values of pair `i` of a head of queries or keys. Those behind the rotated ones are pairs of neighbours.
DEVICE void values_of_pair(const Rotation& rotation, u32 i, u32& a, u32& b) {
    const bool apart = rotation.neox && i < rotation.pairs;
    a = apart ? i : 2 * i;
    b = apart ? i + rotation.pairs : 2 * i + 1;
}

struct Angle {
    float sine, cosine;
};

DEVICE Angle angle_of_pair(const Rotation& rotation, u32 i, u32 position) {
    // The angle is reduced in double precision: positions are large, and so are their rounding errors.
    double angle = double(position) * double(rotation.inv_freq[i]);
    angle -= 6.283185307179586 * floor(angle * 0.15915494309189535 + 0.5);
    Angle out;
    ptx::sin_cos_fast(float(angle), out.sine, out.cosine);
    return out;
}

DEVICE void rotate(const Rotation& rotation, const Angle& angle, float& x, float& y) {
    const float turned = (x * angle.cosine - y * angle.sine) * rotation.magnitude;
    y = (x * angle.sine + y * angle.cosine) * rotation.magnitude;
    x = turned;
}

// Where in an f16 cache value `i` of a head lies, in its keys or in its values, in halves.
DEVICE u32 place_of_key(u32 slot, u32 i) { return (i / 8 * PAGE + slot) * 8 + i % 8; }
DEVICE u32 place_of_value(u32 head_dim, u32 slot, u32 i) { return slot * head_dim + i; }

// Bytes of one head's keys, or values, in a page.
template <bool EIGHT_BIT>
DEVICE size_t side_bytes(u32 head_dim) {
    return EIGHT_BIT ? PAGE * head_dim + PAGE * head_dim / 32 * 2 : PAGE * head_dim * 2;
}

template <bool EIGHT_BIT>
DEVICE u8* keys_of(const Cache& cache, u32 page, u32 head) {
    return cache.start + (size_t(page) * cache.kv_heads + head) * 2 * side_bytes<EIGHT_BIT>(cache.head_dim);
}

template <bool EIGHT_BIT>
DEVICE u8* values_of(const Cache& cache, u32 page, u32 head) {
    return keys_of<EIGHT_BIT>(cache, page, head) + side_bytes<EIGHT_BIT>(cache.head_dim);
}

DEVICE void unpack_halves(const uint4& raw, float (&out)[8]) {
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = ptx::half_to_float(u16(words[i / 2] >> 16 * (i % 2)));
}

DEVICE void unpack_bytes(const uint2& raw, float scale, float (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = scale * float(i8((i < 4 ? raw.x : raw.y) >> 8 * (i % 4)));
}
