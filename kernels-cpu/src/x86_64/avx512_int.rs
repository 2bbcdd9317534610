//! AVX-512 tile kernels for integer formats, with VNNI and without.
//!
//! All formats come down to one shape: blocks of 32 columns of bytes for sixteen rows (eight registers), a scale per row
//! (two for formats with scales per 16 columns), and perhaps as many minima. They are multiplied with four broadcast bytes
//! of the activations, in one of the ways of [`dot`](super::dot). A block's weights are expanded into eight registers and
//! multiplied with up to [`MOST`] tokens from there; more tokens take turns, and find the packed tile in the second-level
//! cache. What tokens need besides products is prepared once for all groups of a tile: see [`Sums`].
//!
//! SAFETY of the whole file: functions are called through the entry points at the end only, whose contract is that of
//! [`TileKernel`](crate::tile::TileKernel): the features are there and the tile's pointers cover `groups` groups of
//! `cols` columns, `tokens` activation rows and the scratch. Offsets below stay inside by the layouts of
//! [`crate::pack`] and of `q8a`.

use super::{
    dot::{Dot, PAIR, Pairs, Vnni, largest},
    fetch::{fetch_ahead, in_order},
};
use crate::{
    act::Row,
    pack::{BlockPlace, Codes, GROUP, SUPERBLOCK, Scales, Values, integer_types, types},
    tile::{PANEL_BYTES, Tile, TileKernel},
};
use rustai_abi::DType;
use std::arch::x86_64::*;

/// Tokens that are multiplied with a block while its weights are in registers.
const MOST: usize = 16;

/// Blocks of 32 columns that one [`Sums`] stands for.
const CHUNK: usize = 2 * SUPERBLOCK;

/// Columns up to which weights are not fetched ahead for so many rows of activations (see [`fetch`](super::fetch)): what is read again
/// for each group has to leave room in the first-level cache. Measured (PERFORMANCE.md).
const fn unfetched(rows: usize) -> usize {
    match rows {
        1 => 16 << 10,
        2 => 4 << 10,
        _ => 0,
    }
}

/// What the kernels derive from a packed order and the way its bytes are multiplied.
trait Kernel: Dot {
    /// Weights are signed bytes; otherwise they are unsigned codes.
    const SIGNED: bool = !Self::VNNI && !matches!(Self::BLOCKS.values, Values::Offset(_));
    /// Unsigned codes are the value plus `1 << BIAS_BITS`; no bias if `None`.
    const BIAS_BITS: Option<u32> = match Self::BLOCKS.values {
        Values::Offset(0) => None,
        Values::Offset(offset) => Some(offset.ilog2()),
        Values::Signed | Values::Table(_) if Self::SIGNED => None,
        Values::Signed | Values::Table(_) => Some(7),
    };
    const HALVES: bool = Self::BLOCKS.scales.halves();
    const MINS: bool = Self::BLOCKS.scales.has_min();
    /// Scales, or minima, of a row in a block.
    const PER_BLOCK: usize = if Self::HALVES { 2 } else { 1 };
    /// Steps of four columns that share a scale.
    const STEPS: usize = 8 / Self::PER_BLOCK;
    /// Steps that are added up before they are widened to 32 bits: a power of two, at most [`STEPS`](Self::STEPS).
    const UNWIDENED: usize = {
        let largest = match Self::BLOCKS.values {
            Values::Offset(_) => Self::BLOCKS.codes.largest(),
            Values::Signed => 128,
            Values::Table(table) => largest(table),
        };
        let most = (i16::MAX as i32 / (PAIR * largest)) as usize;
        if Self::VNNI || most >= Self::STEPS { Self::STEPS } else { 1 << most.ilog2() }
    };
    /// Bytes of a [`Sums`].
    const SUMS: usize = 4 * CHUNK * (1 + Self::PER_BLOCK + if Self::MINS { Self::PER_BLOCK } else { 0 });
    /// Blocks whose [`Sums`] fit the panel for [`MOST`] tokens.
    const SPAN: usize = PANEL_BYTES / (MOST * Self::SUMS) * CHUNK;
}

impl<F: Dot> Kernel for F {}

/// Scales and minima of sixteen rows in one block, for its first and last 16 columns if they differ.
struct RowScales {
    scale: [__m512; 2],
    /// What is added per unit of activation.
    min: [__m512; 2],
}

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

/// `low` where `mask` has ones, `high` elsewhere.
#[inline(always)]
unsafe fn blend(low: __m512i, high: __m512i, mask: __m512i) -> __m512i {
    // SAFETY: see the head of the file. The truth table of `mask ? low : high`.
    unsafe { _mm512_ternarylogic_epi32::<0xca>(mask, low, high) }
}

/// Step `j` of the low nibbles and high nibbles of four registers, other bits undefined above bit 3.
#[inline(always)]
unsafe fn nibble(packed: &[__m512i], j: usize) -> __m512i {
    // SAFETY: see the head of the file.
    unsafe { if j < 4 { packed[j] } else { _mm512_srli_epi16::<4>(packed[j - 4]) } }
}

/// Bits `2s` and `2s + 1` of register `i`, step `j = 4i + s`, moved to bits 4 and 5 (`up`) or 0 and 1; other bits undefined.
#[inline(always)]
unsafe fn crumb(packed: &[__m512i], j: usize, up: bool) -> __m512i {
    // SAFETY: see the head of the file.
    unsafe {
        let packed = packed[j / 4];
        match (j % 4, up) {
            (0, false) | (2, true) => packed,
            (0, true) => _mm512_slli_epi16::<4>(packed),
            (1, true) => _mm512_slli_epi16::<2>(packed),
            (1, false) | (3, true) => _mm512_srli_epi16::<2>(packed),
            (2, false) => _mm512_srli_epi16::<4>(packed),
            _ => _mm512_srli_epi16::<6>(packed),
        }
    }
}

/// Bit `j` of a register, moved to bit `TO`; other bits undefined.
#[inline(always)]
unsafe fn bit<const TO: usize>(packed: __m512i, j: usize) -> __m512i {
    // SAFETY: see the head of the file.
    unsafe {
        match (j, TO) {
            (0, 4) => _mm512_slli_epi16::<4>(packed),
            (1, 4) => _mm512_slli_epi16::<3>(packed),
            (2, 4) | (0, 2) => _mm512_slli_epi16::<2>(packed),
            (3, 4) | (1, 2) => _mm512_slli_epi16::<1>(packed),
            (4, 4) | (2, 2) => packed,
            (5, 4) | (3, 2) => _mm512_srli_epi16::<1>(packed),
            (6, 4) | (4, 2) => _mm512_srli_epi16::<2>(packed),
            (7, 4) | (5, 2) => _mm512_srli_epi16::<3>(packed),
            (6, 2) => _mm512_srli_epi16::<4>(packed),
            _ => _mm512_srli_epi16::<5>(packed),
        }
    }
}

/// The block whose codes begin at `codes`: register `j` holds columns `4j .. 4j + 4` of each row.
#[inline(always)]
unsafe fn weights<F: Kernel>(codes: *const u8) -> [__m512i; 8] {
    // SAFETY: see the head of the file.
    unsafe {
        // No closures here and below: the compiler is free not to inline them, and keeps registers in memory then.
        let mut packed = [_mm512_setzero_si512(); 8];
        for i in 0..F::BLOCKS.codes.registers() {
            packed[i] = load(codes.add(i * 64));
            if matches!(F::BLOCKS.codes, Codes::Three | Codes::Five | Codes::Six) {
                // Every step needs one of the last registers.
                in_order();
            }
        }
        let mut w = [_mm512_setzero_si512(); 8];
        for j in 0..8 {
            w[j] = match F::BLOCKS.codes {
                Codes::Two => _mm512_and_si512(crumb(&packed, j, false), _mm512_set1_epi8(3)),
                Codes::Three => {
                    let third = _mm512_and_si512(bit::<2>(packed[2], j), _mm512_set1_epi8(4));
                    blend(crumb(&packed, j, false), third, _mm512_set1_epi8(3))
                }
                Codes::Four => _mm512_and_si512(nibble(&packed, j), _mm512_set1_epi8(15)),
                Codes::Five => {
                    let fifth = _mm512_and_si512(bit::<4>(packed[4], j), _mm512_set1_epi8(16));
                    blend(nibble(&packed, j), fifth, _mm512_set1_epi8(15))
                }
                Codes::Six => {
                    let high = _mm512_and_si512(crumb(&packed[4..], j, true), _mm512_set1_epi8(0x30));
                    blend(nibble(&packed, j), high, _mm512_set1_epi8(15))
                }
                Codes::Eight => packed[j],
            };
            w[j] = match F::BLOCKS.values {
                Values::Offset(_) => w[j],
                Values::Signed => bytes::<F>(w[j]),
                Values::Table(table) => {
                    let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
                    _mm512_shuffle_epi8(bytes::<F>(table), w[j])
                }
            };
        }
        w
    }
}

/// Signed bytes as the dot products want them.
#[inline(always)]
unsafe fn bytes<F: Kernel>(w: __m512i) -> __m512i {
    // SAFETY: see the head of the file.
    unsafe { if F::SIGNED { w } else { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) } }
}

/// First-level scale, and negative of the first-level minimum, of the superblock whose scales begin at `scales`, if there are two
/// levels.
#[inline(always)]
unsafe fn first_level<F: Kernel>(scales: *const u8) -> [__m512; 2] {
    // SAFETY: see the head of the file.
    unsafe {
        let zero = _mm512_setzero_ps();
        if !F::BLOCKS.scales.two_level() {
            return [zero; 2];
        }
        [load_halves(scales), if F::MINS { _mm512_sub_ps(zero, load_halves(scales.add(32))) } else { zero }]
    }
}

/// Sixteen signed bytes as floats.
#[inline(always)]
unsafe fn signed(at: *const u8) -> __m512 {
    // SAFETY: see the head of the file.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
}

/// Sixteen bytes as whole numbers.
#[inline(always)]
unsafe fn unsigned(at: *const u8) -> __m512i {
    // SAFETY: see the head of the file.
    unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())) }
}

/// `d * whole`.
#[inline(always)]
unsafe fn times(d: __m512, whole: __m512i) -> __m512 {
    // SAFETY: see the head of the file.
    unsafe { _mm512_mul_ps(d, _mm512_cvtepi32_ps(whole)) }
}

/// Scales and minima of block `index` of the superblock whose scales begin at `scales`; `dmin` is negative already.
#[inline(always)]
unsafe fn row_scales<F: Kernel>([d, dmin]: [__m512; 2], scales: *const u8, index: usize) -> RowScales {
    // SAFETY: see the head of the file.
    unsafe {
        let none = [_mm512_setzero_ps(); 2];
        let (scale, min) = match F::BLOCKS.scales {
            Scales::Half => ([load_halves(scales); 2], none),
            Scales::HalfWithMin => ([load_halves(scales); 2], [load_halves(scales.add(32)); 2]),
            Scales::Exponent => {
                // Half of 2^(e - 127); `vscalefps` makes denormals where they are due.
                let power = _mm512_sub_epi32(unsigned(scales), _mm512_set1_epi32(128));
                ([_mm512_scalef_ps(_mm512_set1_ps(1.0), _mm512_cvtepi32_ps(power)); 2], none)
            }
            Scales::Runs32 => ([_mm512_mul_ps(d, signed(scales.add(32 + index * GROUP))); 2], none),
            Scales::Runs16 => {
                let at = scales.add(32 + index * 2 * GROUP);
                ([_mm512_mul_ps(d, signed(at)), _mm512_mul_ps(d, signed(at.add(GROUP)))], none)
            }
            Scales::Runs32WithMin => {
                let at = scales.add(64 + index * 2 * GROUP);
                ([times(d, unsigned(at)); 2], [times(dmin, unsigned(at.add(GROUP))); 2])
            }
            Scales::Runs16WithMin => {
                let at = scales.add(64 + index * 2 * GROUP);
                let (first, last) = (unsigned(at), unsigned(at.add(GROUP)));
                let mask = _mm512_set1_epi32(15);
                (
                    [times(d, _mm512_and_si512(first, mask)), times(d, _mm512_and_si512(last, mask))],
                    [times(dmin, _mm512_srli_epi32::<4>(first)), times(dmin, _mm512_srli_epi32::<4>(last))],
                )
            }
        };
        RowScales { scale, min }
    }
}

/// What one token contributes to each of [`CHUNK`] blocks apart from dot products, in memory: the scales (f32), then what the
/// bias of the codes adds, negated (i32), then the sums that minima multiply (f32, if there are any). The last two have an
/// entry per half block if there are halves.
#[derive(Clone, Copy)]
struct Sums(*mut u8);

impl Sums {
    /// The one that lies `n` further on.
    #[inline(always)]
    fn next<F: Kernel>(self, n: usize) -> Self {
        Self(self.0.wrapping_add(n * F::SUMS))
    }

    /// The scale of block `i`.
    #[inline(always)]
    unsafe fn scale(self, i: usize) -> f32 {
        // SAFETY: see the head of the file.
        unsafe { *self.0.cast::<f32>().add(i) }
    }

    #[inline(always)]
    unsafe fn bias(self, i: usize) -> i32 {
        // SAFETY: see the head of the file.
        unsafe { *self.0.cast::<i32>().add(CHUNK + i) }
    }

    #[inline(always)]
    unsafe fn min<F: Kernel>(self, i: usize) -> f32 {
        // SAFETY: see the head of the file.
        unsafe { *self.0.cast::<f32>().add(CHUNK * (1 + F::PER_BLOCK) + i) }
    }

    /// Writes what `row` contributes to `count` blocks from `first` on.
    #[inline(always)]
    unsafe fn prepare<F: Kernel>(self, row: Row, first: usize, count: usize) {
        // SAFETY: see the head of the file; masks keep loads inside the row. Whole registers are stored, so no entry that
        // a block can have is left out.
        unsafe {
            // The two parts of a half's sum become one.
            let from = row.sums.add(first).cast::<i32>();
            let ones = _mm512_set1_epi16(1);
            let low = _mm512_madd_epi16(_mm512_maskz_loadu_epi32(lanes(count * 2), from), ones);
            let rest = lanes((count * 2).saturating_sub(16));
            let high = _mm512_madd_epi16(_mm512_maskz_loadu_epi32(rest, from.wrapping_add(16)), ones);
            let scales = _mm512_maskz_loadu_ps(lanes(count), row.scales.add(first));
            _mm512_store_ps(self.0.cast(), scales);
            let bias = self.0.cast::<i32>().add(CHUNK);
            let min = self.0.cast::<f32>().add(CHUNK * (1 + F::PER_BLOCK));
            if F::HALVES {
                _mm512_store_si512(bias.cast(), biased::<F>(low));
                _mm512_store_si512(bias.add(16).cast(), biased::<F>(high));
                if F::MINS {
                    let twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
                    let first = _mm512_permutexvar_ps(twice, scales);
                    let last = _mm512_permutexvar_ps(_mm512_add_epi32(twice, _mm512_set1_epi32(8)), scales);
                    _mm512_store_ps(min, _mm512_mul_ps(first, _mm512_cvtepi32_ps(low)));
                    _mm512_store_ps(min.add(16), _mm512_mul_ps(last, _mm512_cvtepi32_ps(high)));
                }
            } else {
                let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
                let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
                let whole = _mm512_add_epi32(
                    _mm512_permutex2var_epi32(low, even, high),
                    _mm512_permutex2var_epi32(low, odd, high),
                );
                _mm512_store_si512(bias.cast(), biased::<F>(whole));
                if F::MINS {
                    _mm512_store_ps(min, _mm512_mul_ps(scales, _mm512_cvtepi32_ps(whole)));
                }
            }
        }
    }
}

/// A mask of the first `count` lanes of 16.
#[inline(always)]
fn lanes(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as __mmask16
}

/// What the bias of the codes adds to dot products with activations of these sums, negated.
#[inline(always)]
unsafe fn biased<F: Kernel>(sums: __m512i) -> __m512i {
    // SAFETY: see the head of the file.
    unsafe {
        let bits = _mm_cvtsi32_si128(F::BIAS_BITS.unwrap_or(0) as i32);
        _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_sll_epi32(sums, bits))
    }
}

/// The `count` tokens from `token` on: each block of weights goes from memory into registers, is expanded there and multiplied
/// with all of them.
///
/// Sums of `FEW` tokens, if that is not 0, stay in registers. Those of more stay in `out`, which costs a store a block and
/// leaves registers for the rest.
#[inline(always)]
unsafe fn pass<F: Kernel, const FEW: usize>(tile: &Tile, token: usize, count: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let count = if FEW > 0 { FEW } else { count };
        let blocks = tile.cols / 32;
        // The last tokens fetch what they have already.
        let later = if token + count < tile.tokens { count * tile.x_stride } else { 0 };
        // Few tokens have room for whole rows, so that groups are read one after the other.
        let span = const { if FEW > 0 { PANEL_BYTES / (FEW * F::SUMS) * CHUNK } else { F::SPAN } };
        for start in (0..blocks).step_by(span) {
            let end = blocks.min(start + span);
            let mut sums = Sums(tile.panel);
            for first in (start..end).step_by(CHUNK) {
                for t in 0..count {
                    sums.prepare::<F>(Row::of(tile, token + t), first, CHUNK.min(end - first));
                    sums = sums.next::<F>(1);
                }
            }
            for g in 0..tile.groups {
                let group = tile.group.add(g * tile.stride);
                let fetched = match tile.fetched {
                    // Later tokens find weights in the second-level cache.
                    _ if token > 0 => None,
                    Some(fetched) => Some(fetched.wrapping_add(g * tile.stride)),
                    None if tile.cols <= unfetched(FEW) => None,
                    None => Some(group),
                };
                let out = tile.out(token, g);
                if start == 0 {
                    for t in 0..count {
                        _mm512_store_ps(out.add(t * tile.out_stride), _mm512_setzero_ps());
                    }
                }
                let mut few = [_mm512_setzero_ps(); FEW];
                for t in 0..FEW {
                    few[t] = _mm512_load_ps(out.add(t * tile.out_stride));
                }
                for run in (start..end).step_by(SUPERBLOCK) {
                    let level = first_level::<F>(F::BLOCKS.place(group, run).scales);
                    let sums = Sums(tile.panel).next::<F>((run - start) / CHUNK * count);
                    for b in run..end.min(run + SUPERBLOCK) {
                        if let Some(from) = fetched {
                            fetch_ahead::<F>(from, from.wrapping_add(tile.stride), blocks, b);
                        }
                        let BlockPlace { codes, scales, index } = F::BLOCKS.place(group, b);
                        let row_scales = row_scales::<F>(level, scales, index);
                        let w = weights::<F>(codes);
                        let x = tile.x.add(token * tile.x_stride + b * 32);
                        let s = (b - start) % CHUNK;
                        for t in 0..FEW {
                            let x = x.add(t * tile.x_stride);
                            accumulate::<F>(&mut few[t], &w, &row_scales, x, sums.next::<F>(t), s);
                        }
                        if FEW > 0 {
                            continue;
                        }
                        let (mut x, mut sums, mut out) = (x, sums, out);
                        for _ in 0..count {
                            _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(later).cast());
                            let mut acc = _mm512_load_ps(out);
                            accumulate::<F>(&mut acc, &w, &row_scales, x, sums, s);
                            _mm512_store_ps(out, acc);
                            (x, sums) = (x.wrapping_add(tile.x_stride), sums.next::<F>(1));
                            out = out.wrapping_add(tile.out_stride);
                        }
                    }
                }
                for t in 0..FEW {
                    _mm512_store_ps(out.add(t * tile.out_stride), few[t]);
                }
            }
        }
    }
}

/// What a sum of products begins with, on the way to `dot` and more: VNNI goes on with `dot` itself.
#[inline(always)]
unsafe fn begin<F: Kernel>(dot: __m512i) -> __m512i {
    // SAFETY: see the head of the file.
    unsafe { if F::VNNI { dot } else { _mm512_setzero_si512() } }
}

/// Adds the products of weights and four activations to a sum.
#[inline(always)]
unsafe fn multiply<F: Kernel>(sum: __m512i, w: __m512i, four: __m512i) -> __m512i {
    // SAFETY: see the head of the file.
    unsafe {
        if F::VNNI {
            return _mm512_dpbusd_epi32(sum, w, four);
        }
        let pairs = if F::SIGNED {
            let zero = _mm512_setzero_si512();
            _mm512_maddubs_epi16(_mm512_abs_epi8(w), _mm512_mask_sub_epi8(four, _mm512_movepi8_mask(w), zero, four))
        } else {
            _mm512_maddubs_epi16(w, four)
        };
        _mm512_add_epi16(sum, pairs)
    }
}

/// A sum of two sums of products.
#[inline(always)]
unsafe fn add<F: Kernel>(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: see the head of the file.
    unsafe { if F::VNNI { _mm512_add_epi32(a, b) } else { _mm512_add_epi16(a, b) } }
}

/// `dot` and at most `F::UNWIDENED` steps that were added to what it made [`begin`].
#[inline(always)]
unsafe fn end<F: Kernel>(dot: __m512i, sum: __m512i) -> __m512i {
    // SAFETY: see the head of the file.
    unsafe { if F::VNNI { sum } else { _mm512_add_epi32(dot, _mm512_madd_epi16(sum, _mm512_set1_epi16(1))) } }
}

/// Adds a block to `acc`: its weights, 32 activations at `x`, and entry `s` of `sums`.
#[inline(always)]
unsafe fn accumulate<F: Kernel>(
    acc: &mut __m512,
    w: &[__m512i; 8],
    scales: &RowScales,
    x: *const u8,
    sums: Sums,
    s: usize,
) {
    // SAFETY: see the head of the file.
    unsafe {
        let d = _mm512_set1_ps(sums.scale(s));
        let mut halves = _mm512_setzero_ps();
        for half in 0..F::PER_BLOCK {
            let mut dot = _mm512_setzero_si512();
            if F::BIAS_BITS.is_some() {
                dot = _mm512_set1_epi32(sums.bias(s * F::PER_BLOCK + half));
            }
            for first in (half * F::STEPS..(half + 1) * F::STEPS).step_by(F::UNWIDENED) {
                // Two chains hide some of the instructions' latency; integer sums do not depend on the order.
                let mut chains = [begin::<F>(dot), _mm512_setzero_si512()];
                for j in first..first + F::UNWIDENED {
                    let four = x.cast::<i32>().add(j).read_unaligned();
                    chains[j % 2] = multiply::<F>(chains[j % 2], w[j], _mm512_set1_epi32(four));
                }
                dot = end::<F>(dot, add::<F>(chains[0], chains[1]));
            }
            let dot = _mm512_cvtepi32_ps(dot);
            if !F::HALVES {
                // In this order, because powers of two may be so large that their product with the sum is infinite.
                *acc = _mm512_fmadd_ps(dot, _mm512_mul_ps(scales.scale[0], d), *acc);
            } else if half == 0 {
                halves = _mm512_mul_ps(dot, scales.scale[0]);
            } else {
                *acc = _mm512_fmadd_ps(_mm512_fmadd_ps(dot, scales.scale[1], halves), d, *acc);
            }
        }
        if F::MINS {
            for half in 0..F::PER_BLOCK {
                let sum = _mm512_set1_ps(sums.min::<F>(s * F::PER_BLOCK + half));
                *acc = _mm512_fmadd_ps(scales.min[half], sum, *acc);
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<F: Kernel>(tile: &Tile) {
    // SAFETY: see the head of the file.
    unsafe {
        for token in (0..tile.tokens).step_by(MOST) {
            match MOST.min(tile.tokens - token) {
                1 => pass::<F, 1>(tile, token, 1),
                2 => pass::<F, 2>(tile, token, 2),
                3 => pass::<F, 3>(tile, token, 3),
                4 => pass::<F, 4>(tile, token, 4),
                count => pass::<F, 0>(tile, token, count),
            }
        }
    }
}

macro_rules! entries {
    ($dot:ident, $features:literal; $($entry:ident: $name:ident),+) => {
        $(
            /// # Safety
            /// See [`TileKernel`](crate::tile::TileKernel).
            #[target_feature(enable = $features)]
            unsafe fn $entry(args: &Tile) {
                // SAFETY: the caller's promise is ours.
                unsafe { tile::<$dot<types::$name>>(args) }
            }
        )+

        /// The kernel of a type.
        pub(in crate::x86_64) fn kernel(dtype: DType) -> Option<TileKernel> {
            Some(match dtype {
                $(DType::$name => $entry,)+
                _ => return None,
            })
        }
    };
}

pub(super) mod pairs {
    use super::*;

    macro_rules! all {
        ($($types:tt)+) => { entries! { Pairs, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"; $($types)+ } };
    }
    integer_types!(all);
}

pub(super) mod vnni {
    use super::*;

    macro_rules! all {
        ($($types:tt)+) => { entries! { Vnni, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"; $($types)+ } };
    }
    integer_types!(all);
}
