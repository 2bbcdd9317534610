//! AVX-512 VNNI tile kernels for integer formats.
//!
//! All formats come down to one shape: blocks of 32 columns of unsigned bytes for sixteen rows (eight registers), a
//! scale per row (two for formats with scales per 16 columns), and perhaps a minimum per row. `vpdpbusd` multiplies
//! them with four broadcast bytes of the activations and adds exactly, without saturation on the way (Intel SDM vol. 2,
//! VPDPBUSD). With few tokens the weights go from memory to registers once and straight into the dot products; with
//! more they are first expanded into a panel that stays in the first-level cache.
//!
//! SAFETY of the whole file: functions are called through the entry points at the end only, whose contract is that of
//! [`TileKernel`](crate::tile::TileKernel): the features are there and the tile's pointers cover `groups` groups of
//! `cols` columns, `tokens` activation rows and the scratch. Offsets below stay inside by the layouts of
//! [`crate::pack`] and of `q8a`.

use super::act::Row;
use crate::{
    pack::{GROUP, Layout},
    tile::{TILE_ROWS, Tile},
};
use std::arch::x86_64::*;

/// Blocks of 32 columns that are expanded at a time.
const PANEL_BLOCKS: usize = 16;
/// Bytes of one expanded block of one group: eight registers of quants, one of scales, one of second scales or minima.
const PANEL_BLOCK_BYTES: usize = 10 * 64;
const _: () = assert!(PANEL_BLOCKS * 2 * PANEL_BLOCK_BYTES <= crate::tile::PANEL_BYTES);

/// Sixteen rows of 32 columns.
struct Block {
    /// Register `j` holds columns `4j .. 4j + 4` of each row, plus the format's bias.
    w: [__m512i; 8],
    /// Scale of each row (of the first 16 columns, if there are halves).
    scale: __m512,
    /// Scale of the last 16 columns, or what is added per unit of activation.
    extra: __m512,
}

/// How a packed format yields blocks.
trait Format {
    const LAYOUT: Layout;
    /// Quants are stored as value plus `1 << BIAS_BITS`; no bias if `None`.
    const BIAS_BITS: Option<u32> = Self::LAYOUT.bias_bits();
    /// Rows have a minimum per block.
    const MINS: bool = Self::LAYOUT.has_minima();
    /// Rows have a scale per 16 columns.
    const HALVES: bool = Self::LAYOUT.has_half_scales();
    unsafe fn block(quants: *const u8, scales: *const u8, b: usize) -> Block;
}

struct Q4_0;
struct Q4_1;
struct Q8_0;
struct Q4K;
struct Q6K;

#[inline(always)]
unsafe fn load(at: *const u8) -> __m512i {
    // SAFETY: see the head of the file.
    unsafe { _mm512_loadu_si512(at.cast()) }
}

#[inline(always)]
unsafe fn load_halves(at: *const u8) -> __m512 {
    // SAFETY: see the head of the file.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// Low nibbles of four registers, then their high nibbles.
#[inline(always)]
unsafe fn nibbles(quants: *const u8) -> [__m512i; 8] {
    // SAFETY: see the head of the file.
    unsafe {
        let mask = _mm512_set1_epi8(15);
        std::array::from_fn(|j| {
            let packed = load(quants.add(j % 4 * 64));
            let shifted = if j < 4 { packed } else { _mm512_srli_epi16::<4>(packed) };
            _mm512_and_si512(shifted, mask)
        })
    }
}

impl Format for Q4_0 {
    const LAYOUT: Layout = Layout::Q4_0;

    #[inline(always)]
    unsafe fn block(quants: *const u8, scales: *const u8, b: usize) -> Block {
        // SAFETY: see the head of the file.
        unsafe {
            let scale = load_halves(scales.add(b * 32));
            Block { w: nibbles(quants.add(b * 256)), scale, extra: scale }
        }
    }
}

impl Format for Q4_1 {
    const LAYOUT: Layout = Layout::Q4_1;

    #[inline(always)]
    unsafe fn block(quants: *const u8, scales: *const u8, b: usize) -> Block {
        // SAFETY: see the head of the file.
        unsafe {
            Block {
                w: nibbles(quants.add(b * 256)),
                scale: load_halves(scales.add(b * 64)),
                extra: load_halves(scales.add(b * 64 + 32)),
            }
        }
    }
}

impl Format for Q8_0 {
    const LAYOUT: Layout = Layout::Q8_0;
    /// The sign bit is flipped on the way, since `vpdpbusd` wants unsigned weights.
    const BIAS_BITS: Option<u32> = Some(7);

    #[inline(always)]
    unsafe fn block(quants: *const u8, scales: *const u8, b: usize) -> Block {
        // SAFETY: see the head of the file.
        unsafe {
            let flip = _mm512_set1_epi8(-128);
            let scale = load_halves(scales.add(b * 32));
            let w = std::array::from_fn(|j| _mm512_xor_si512(load(quants.add(b * 512 + j * 64)), flip));
            Block { w, scale, extra: scale }
        }
    }
}

impl Format for Q4K {
    const LAYOUT: Layout = Layout::Q4K;

    #[inline(always)]
    unsafe fn block(quants: *const u8, scales: *const u8, b: usize) -> Block {
        // SAFETY: see the head of the file.
        unsafe {
            let (quants, scales) = (quants.add(b / 2 * 512), scales.add(b / 8 * 320));
            let mask = _mm512_set1_epi8(15);
            let w = if b % 2 == 0 {
                std::array::from_fn(|j| _mm512_and_si512(load(quants.add(j * 64)), mask))
            } else {
                std::array::from_fn(|j| _mm512_and_si512(_mm512_srli_epi16::<4>(load(quants.add(j * 64))), mask))
            };
            let widen = |at: *const u8| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())));
            let scale = _mm512_mul_ps(load_halves(scales), widen(scales.add(64 + b % 8 * GROUP)));
            let min = _mm512_mul_ps(load_halves(scales.add(32)), widen(scales.add(192 + b % 8 * GROUP)));
            Block { w, scale, extra: _mm512_sub_ps(_mm512_setzero_ps(), min) }
        }
    }
}

impl Format for Q6K {
    const LAYOUT: Layout = Layout::Q6K;

    #[inline(always)]
    unsafe fn block(quants: *const u8, scales: *const u8, b: usize) -> Block {
        // SAFETY: see the head of the file.
        unsafe {
            let (quants, scales) = (quants.add(b / 4 * 1536), scales.add(b / 8 * 288));
            let low = quants.add(b % 2 * 512);
            let high = quants.add(1024);
            let mask4 = _mm512_set1_epi8(15);
            let mask2 = _mm512_set1_epi8(0x30);
            // Bits 4 and 5 of the value come from bits 2q and 2q + 1 of the high byte, q = b mod 4.
            let w = match b % 4 {
                0 | 1 => {
                    let left = _mm_cvtsi32_si128(if b % 4 == 0 { 4 } else { 2 });
                    std::array::from_fn(|j| {
                        let high = _mm512_and_si512(_mm512_sll_epi16(load(high.add(j * 64)), left), mask2);
                        _mm512_or_si512(_mm512_and_si512(load(low.add(j * 64)), mask4), high)
                    })
                }
                q => {
                    let right = _mm_cvtsi32_si128(if q == 2 { 0 } else { 2 });
                    std::array::from_fn(|j| {
                        let high = _mm512_and_si512(_mm512_srl_epi16(load(high.add(j * 64)), right), mask2);
                        let low = _mm512_and_si512(_mm512_srli_epi16::<4>(load(low.add(j * 64))), mask4);
                        _mm512_or_si512(low, high)
                    })
                }
            };
            let d = load_halves(scales);
            let widen = |at: *const u8| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast())));
            let first = scales.add(32 + b % 8 * 2 * GROUP);
            Block { w, scale: _mm512_mul_ps(d, widen(first)), extra: _mm512_mul_ps(d, widen(first.add(GROUP))) }
        }
    }
}

/// What one token contributes to each block of a panel, apart from dot products.
#[repr(align(64))]
struct Sums {
    /// Per block, or per half block if there are halves: what the bias of the quants adds, negated.
    bias: [i32; 2 * PANEL_BLOCKS],
    /// Per block: the sum that the minimum multiplies.
    min: [f32; PANEL_BLOCKS],
}

impl Sums {
    const ZERO: Self = Self { bias: [0; 2 * PANEL_BLOCKS], min: [0.0; PANEL_BLOCKS] };

    /// For `count` blocks from `first` on.
    #[inline(always)]
    unsafe fn prepare<F: Format>(&mut self, row: Row, first: usize, count: usize) {
        // SAFETY: see the head of the file; masks keep loads inside the row.
        unsafe {
            let lanes = |count: usize| ((1u32 << count.min(16)) - 1) as __mmask16;
            let from = row.sums.add(first * 2);
            let low = _mm512_maskz_loadu_epi32(lanes(count * 2), from);
            let high = _mm512_maskz_loadu_epi32(lanes((count * 2).saturating_sub(16)), from.wrapping_add(16));
            let negated = |sums: __m512i| {
                let bits = _mm_cvtsi32_si128(F::BIAS_BITS.unwrap_or(0) as i32);
                _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_sll_epi32(sums, bits))
            };
            if F::HALVES {
                _mm512_store_si512(self.bias.as_mut_ptr().cast(), negated(low));
                _mm512_store_si512(self.bias.as_mut_ptr().add(16).cast(), negated(high));
            } else {
                let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
                let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
                let whole = _mm512_add_epi32(
                    _mm512_permutex2var_epi32(low, even, high),
                    _mm512_permutex2var_epi32(low, odd, high),
                );
                _mm512_store_si512(self.bias.as_mut_ptr().cast(), negated(whole));
                let scales = _mm512_maskz_loadu_ps(lanes(count), row.scales.add(first));
                _mm512_store_ps(self.min.as_mut_ptr(), _mm512_mul_ps(scales, _mm512_cvtepi32_ps(whole)));
            }
        }
    }
}

/// How far ahead of its use a weight is fetched, in bytes. Without it the arithmetic of a block and the wait for the next
/// one add up instead of overlapping, since a block's instructions fill much of the reorder window.
const PREFETCH: usize = 4096;

/// Few tokens: weights from memory into registers, once.
#[inline(always)]
unsafe fn direct<F: Format, const T: usize>(tile: &Tile) {
    // SAFETY: see the head of the file; prefetching may name any address.
    unsafe {
        let rows: [Row; T] = std::array::from_fn(|t| Row::of(tile, t));
        let blocks = tile.cols / 32;
        let (block_bytes, scale_bytes) = (F::LAYOUT.quant_bytes(256) / 8, F::LAYOUT.scale_bytes(256) / 8);
        for g in 0..tile.groups {
            let quants = tile.group.add(g * tile.stride);
            let scales = quants.add(F::LAYOUT.quant_bytes(tile.cols));
            let mut acc = [_mm512_setzero_ps(); T];
            for first in (0..blocks).step_by(PANEL_BLOCKS) {
                let count = PANEL_BLOCKS.min(blocks - first);
                let mut sums = [const { Sums::ZERO }; T];
                for (sums, row) in sums.iter_mut().zip(rows) {
                    sums.prepare::<F>(row, first, count);
                }
                for b in first..first + count {
                    for line in (0..block_bytes).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(quants.wrapping_add(b * block_bytes + line + PREFETCH).cast());
                    }
                    _mm_prefetch::<_MM_HINT_T0>(scales.wrapping_add(b * scale_bytes + PREFETCH / 4).cast());
                    let block = F::block(quants, scales, b);
                    for t in 0..T {
                        accumulate::<F>(&mut acc[t], &block, rows[t], &sums[t], b, b - first);
                    }
                }
            }
            for (t, acc) in acc.into_iter().enumerate() {
                _mm512_storeu_ps(tile.out.add(t * TILE_ROWS + g * GROUP), acc);
            }
        }
    }
}

/// Adds a block, which is block `b` of the activations and block `s` of `sums`, to `acc`.
#[inline(always)]
unsafe fn accumulate<F: Format>(acc: &mut __m512, block: &Block, row: Row, sums: &Sums, b: usize, s: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let d = _mm512_set1_ps(*row.scales.add(b));
        let bias =
            |i: usize| if F::BIAS_BITS.is_some() { _mm512_set1_epi32(sums.bias[i]) } else { _mm512_setzero_si512() };
        if F::HALVES {
            for (half, scale) in [block.scale, block.extra].into_iter().enumerate() {
                let mut dot = bias(s * 2 + half);
                for j in half * 4..half * 4 + 4 {
                    dot = _mm512_dpbusd_epi32(dot, block.w[j], _mm512_set1_epi32(row.four(b, j)));
                }
                *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scale, d), *acc);
            }
            return;
        }
        // Two chains hide some of the instruction's latency; integer sums do not depend on the order.
        let mut dot = [bias(s), _mm512_setzero_si512()];
        for j in 0..8 {
            dot[j % 2] = _mm512_dpbusd_epi32(dot[j % 2], block.w[j], _mm512_set1_epi32(row.four(b, j)));
        }
        let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dot[0], dot[1]));
        *acc = _mm512_fmadd_ps(dot, _mm512_mul_ps(block.scale, d), *acc);
        if F::MINS {
            *acc = _mm512_fmadd_ps(block.extra, _mm512_set1_ps(sums.min[s]), *acc);
        }
    }
}

/// Many tokens: expands a run of blocks, then multiplies it with all tokens, four at a time.
#[inline(always)]
unsafe fn paneled<F: Format, const G: usize>(tile: &Tile) {
    // SAFETY: see the head of the file.
    unsafe {
        let blocks = tile.cols / 32;
        for first in (0..blocks).step_by(PANEL_BLOCKS) {
            let count = PANEL_BLOCKS.min(blocks - first);
            for g in 0..G {
                let quants = tile.group.add(g * tile.stride);
                let scales = quants.add(F::LAYOUT.quant_bytes(tile.cols));
                for b in 0..count {
                    let block = F::block(quants, scales, first + b);
                    let to = tile.panel.add((b * G + g) * PANEL_BLOCK_BYTES);
                    for (j, w) in block.w.into_iter().enumerate() {
                        _mm512_store_si512(to.add(j * 64).cast(), w);
                    }
                    _mm512_store_ps(to.add(512).cast(), block.scale);
                    _mm512_store_ps(to.add(576).cast(), block.extra);
                }
            }
            let mut t = 0;
            while t + 4 <= tile.tokens {
                micro::<F, G, 4>(tile, t, first, count);
                t += 4;
            }
            match tile.tokens - t {
                0 => {}
                1 => micro::<F, G, 1>(tile, t, first, count),
                2 => micro::<F, G, 2>(tile, t, first, count),
                _ => micro::<F, G, 3>(tile, t, first, count),
            }
        }
    }
}

/// `T` tokens times the `count` expanded blocks of `G` groups, added to what earlier panels left in `out`.
#[inline(always)]
unsafe fn micro<F: Format, const G: usize, const T: usize>(tile: &Tile, token: usize, first: usize, count: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let rows: [Row; T] = std::array::from_fn(|t| Row::of(tile, token + t));
        let mut sums = [const { Sums::ZERO }; T];
        for (sums, row) in sums.iter_mut().zip(rows) {
            sums.prepare::<F>(row, first, count);
        }
        let out = |t: usize, g: usize| tile.out.add((token + t) * TILE_ROWS + g * GROUP);
        let mut acc: [[__m512; G]; T] = std::array::from_fn(|t| {
            std::array::from_fn(|g| if first == 0 { _mm512_setzero_ps() } else { _mm512_load_ps(out(t, g)) })
        });
        for b in 0..count {
            let panel = tile.panel.add(b * G * PANEL_BLOCK_BYTES);
            let d: [__m512; T] = std::array::from_fn(|t| _mm512_set1_ps(*rows[t].scales.add(first + b)));
            let halves = if F::HALVES { 2 } else { 1 };
            for half in 0..halves {
                let mut dot: [[__m512i; G]; T] = std::array::from_fn(|t| {
                    let bias = match F::BIAS_BITS {
                        None => _mm512_setzero_si512(),
                        Some(_) => _mm512_set1_epi32(sums[t].bias[if F::HALVES { b * 2 + half } else { b }]),
                    };
                    [bias; G]
                });
                let steps = 8 / halves;
                for j in half * steps..(half + 1) * steps {
                    let w: [__m512i; G] =
                        std::array::from_fn(|g| _mm512_load_si512(panel.add(g * PANEL_BLOCK_BYTES + j * 64).cast()));
                    for t in 0..T {
                        let four = _mm512_set1_epi32(rows[t].four(first + b, j));
                        for g in 0..G {
                            dot[t][g] = _mm512_dpbusd_epi32(dot[t][g], w[g], four);
                        }
                    }
                }
                for g in 0..G {
                    let scale = _mm512_load_ps(panel.add(g * PANEL_BLOCK_BYTES + 512 + half * 64).cast());
                    for t in 0..T {
                        acc[t][g] =
                            _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][g]), _mm512_mul_ps(scale, d[t]), acc[t][g]);
                    }
                }
            }
            if F::MINS {
                for g in 0..G {
                    let min = _mm512_load_ps(panel.add(g * PANEL_BLOCK_BYTES + 576).cast());
                    for t in 0..T {
                        acc[t][g] = _mm512_fmadd_ps(min, _mm512_set1_ps(sums[t].min[b]), acc[t][g]);
                    }
                }
            }
        }
        for t in 0..T {
            for g in 0..G {
                _mm512_store_ps(out(t, g), acc[t][g]);
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<F: Format>(tile: &Tile) {
    // SAFETY: see the head of the file.
    unsafe {
        match (tile.tokens, tile.groups) {
            (1, _) => direct::<F, 1>(tile),
            (2, _) => direct::<F, 2>(tile),
            (3, _) => direct::<F, 3>(tile),
            (_, 1) => paneled::<F, 1>(tile),
            _ => paneled::<F, 2>(tile),
        }
    }
}

macro_rules! entries {
    ($($name:ident: $format:ty),+) => {
        $(
            /// # Safety
            /// See [`TileKernel`](crate::tile::TileKernel).
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            pub(super) unsafe fn $name(args: &Tile) {
                // SAFETY: the caller's promise is ours.
                unsafe { tile::<$format>(args) }
            }
        )+
    };
}

entries!(q4_0: Q4_0, q4_1: Q4_1, q8_0: Q8_0, q4_k: Q4K, q6_k: Q6K);
