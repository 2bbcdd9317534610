//! AVX2 tile kernels for integer formats.
//!
//! The shape is that of the AVX-512 kernels, on half-wide registers: a group is two halves of eight rows. Without VNNI a
//! dot product of bytes goes through 16-bit sums, `vpmaddubsw`, which saturates (Intel SDM vol. 2, PMADDUBSW). It never
//! does here, since activations lie in -127 ..= 127 and
//!
//! - quants of 4 bits give at most 15 * 127 * 2 = 3,810 a pair, and all eight steps of a block fit: 30,480;
//! - quants of 6 bits give at most 63 * 127 * 2 = 16,002, and two steps fit: 32,004;
//! - signed bytes are multiplied as |w| * sign(a, w), at most 128 * 127 * 2 = 32,512, and one step fits.
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
/// Bytes of one expanded block of one group: 16 registers of quants, two of scales, two of second scales or minima.
const PANEL_BLOCK_BYTES: usize = 512 + 128;
const _: () = assert!(PANEL_BLOCKS * 2 * PANEL_BLOCK_BYTES <= crate::tile::PANEL_BYTES);

/// Half a group: eight rows.
const HALF: usize = GROUP / 2;

/// How the bytes of a format are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dot {
    /// Unsigned quants; so many steps are added up in 16 bits before they are widened.
    Unsigned(usize),
    /// Signed quants.
    Signed,
}

/// How a packed format yields its values for one half (`h`) of a group.
trait Format {
    const LAYOUT: Layout;
    const DOT: Dot;
    /// Quants are stored as value plus `1 << BIAS_BITS`; no bias if `None`.
    const BIAS_BITS: Option<u32> = Self::LAYOUT.bias_bits();
    /// Rows have a minimum per block.
    const MINS: bool = Self::LAYOUT.has_minima();
    /// Rows have a scale per 16 columns.
    const HALVES: bool = Self::LAYOUT.has_half_scales();
    /// Writes block `b` of one group as a panel block.
    unsafe fn expand(quants: *const u8, scales: *const u8, b: usize, to: *mut u8);
}

struct Q4_0;
struct Q4_1;
struct Q8_0;
struct Q4K;
struct Q6K;

#[inline(always)]
unsafe fn load(at: *const u8) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe { _mm256_loadu_si256(at.cast()) }
}

#[inline(always)]
unsafe fn load_halves(at: *const u8) -> __m256 {
    // SAFETY: see the head of the file.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

#[inline(always)]
unsafe fn nibble(packed: __m256i, high: bool) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe {
        let shifted = if high { _mm256_srli_epi16::<4>(packed) } else { packed };
        _mm256_and_si256(shifted, _mm256_set1_epi8(15))
    }
}

/// Writes 16 registers of quants: half groups of step 0, of step 1, and so on.
#[inline(always)]
unsafe fn put(to: *mut u8, w: impl Fn(usize) -> __m256i) {
    for i in 0..16 {
        // SAFETY: see the head of the file.
        unsafe { _mm256_store_si256(to.add(i * 32).cast(), w(i)) };
    }
}

/// Writes scales, and second scales or minima, of half a group.
#[inline(always)]
unsafe fn put_scales(to: *mut u8, h: usize, scale: __m256, extra: __m256) {
    // SAFETY: see the head of the file.
    unsafe {
        _mm256_store_ps(to.add(512 + h * 32).cast(), scale);
        _mm256_store_ps(to.add(576 + h * 32).cast(), extra);
    }
}

/// Eight bytes as floats.
#[inline(always)]
unsafe fn widen(at: *const u8, signed: bool) -> __m256 {
    // SAFETY: see the head of the file.
    unsafe {
        let bytes = _mm_loadl_epi64(at.cast());
        _mm256_cvtepi32_ps(if signed { _mm256_cvtepi8_epi32(bytes) } else { _mm256_cvtepu8_epi32(bytes) })
    }
}

/// Low nibbles of eight registers, then their high nibbles (a block of Q4_0 or Q4_1).
#[inline(always)]
unsafe fn put_nibbles(quants: *const u8, to: *mut u8) {
    // SAFETY: see the head of the file.
    unsafe { put(to, |i| nibble(load(quants.add(i % 8 * 32)), i >= 8)) }
}

impl Format for Q4_0 {
    const LAYOUT: Layout = Layout::Q4_0;
    const DOT: Dot = Dot::Unsigned(8);

    #[inline(always)]
    unsafe fn expand(quants: *const u8, scales: *const u8, b: usize, to: *mut u8) {
        // SAFETY: see the head of the file.
        unsafe {
            put_nibbles(quants.add(b * 256), to);
            for h in 0..2 {
                let scale = load_halves(scales.add(b * 32 + h * 16));
                put_scales(to, h, scale, scale);
            }
        }
    }
}

impl Format for Q4_1 {
    const LAYOUT: Layout = Layout::Q4_1;
    const DOT: Dot = Dot::Unsigned(8);

    #[inline(always)]
    unsafe fn expand(quants: *const u8, scales: *const u8, b: usize, to: *mut u8) {
        // SAFETY: see the head of the file.
        unsafe {
            put_nibbles(quants.add(b * 256), to);
            for h in 0..2 {
                let at = scales.add(b * 64 + h * 16);
                put_scales(to, h, load_halves(at), load_halves(at.add(32)));
            }
        }
    }
}

impl Format for Q8_0 {
    const LAYOUT: Layout = Layout::Q8_0;
    const DOT: Dot = Dot::Signed;

    #[inline(always)]
    unsafe fn expand(quants: *const u8, scales: *const u8, b: usize, to: *mut u8) {
        // SAFETY: see the head of the file.
        unsafe {
            put(to, |i| load(quants.add(b * 512 + i * 32)));
            for h in 0..2 {
                let scale = load_halves(scales.add(b * 32 + h * 16));
                put_scales(to, h, scale, scale);
            }
        }
    }
}

impl Format for Q4K {
    const LAYOUT: Layout = Layout::Q4K;
    const DOT: Dot = Dot::Unsigned(8);

    #[inline(always)]
    unsafe fn expand(quants: *const u8, scales: *const u8, b: usize, to: *mut u8) {
        // SAFETY: see the head of the file.
        unsafe {
            let (quants, scales) = (quants.add(b / 2 * 512), scales.add(b / 8 * 320));
            if b % 2 == 0 {
                put(to, |i| nibble(load(quants.add(i * 32)), false));
            } else {
                put(to, |i| nibble(load(quants.add(i * 32)), true));
            }
            for h in 0..2 {
                let at = b % 8 * GROUP + h * HALF;
                let scale = _mm256_mul_ps(load_halves(scales.add(h * 16)), widen(scales.add(64 + at), false));
                let min = _mm256_mul_ps(load_halves(scales.add(32 + h * 16)), widen(scales.add(192 + at), false));
                put_scales(to, h, scale, _mm256_sub_ps(_mm256_setzero_ps(), min));
            }
        }
    }
}

impl Format for Q6K {
    const LAYOUT: Layout = Layout::Q6K;
    const DOT: Dot = Dot::Unsigned(2);

    #[inline(always)]
    unsafe fn expand(quants: *const u8, scales: *const u8, b: usize, to: *mut u8) {
        // SAFETY: see the head of the file.
        unsafe {
            let (quants, scales) = (quants.add(b / 4 * 1536), scales.add(b / 8 * 288));
            let low = quants.add(b % 2 * 512);
            let mask = _mm256_set1_epi8(0x30);
            let high = |i: usize| load(quants.add(1024 + i * 32));
            let join = |i: usize, upper: bool, high: __m256i| {
                _mm256_or_si256(nibble(load(low.add(i * 32)), upper), _mm256_and_si256(high, mask))
            };
            // Bits 4 and 5 of the value come from bits 2q and 2q + 1 of the high byte, q = b mod 4.
            match b % 4 {
                0 => put(to, |i| join(i, false, _mm256_slli_epi16::<4>(high(i)))),
                1 => put(to, |i| join(i, false, _mm256_slli_epi16::<2>(high(i)))),
                2 => put(to, |i| join(i, true, high(i))),
                _ => put(to, |i| join(i, true, _mm256_srli_epi16::<2>(high(i)))),
            }
            for h in 0..2 {
                let d = load_halves(scales.add(h * 16));
                let first = scales.add(32 + b % 8 * 2 * GROUP + h * HALF);
                let scale = _mm256_mul_ps(d, widen(first, true));
                put_scales(to, h, scale, _mm256_mul_ps(d, widen(first.add(GROUP), true)));
            }
        }
    }
}

/// What one token contributes to each block of a panel, apart from dot products.
struct Sums {
    /// Per block, or per half block if there are halves: what the bias of the quants adds, negated.
    bias: [i32; 2 * PANEL_BLOCKS],
    /// Per block: its sum in units of the activation, which the minimum multiplies.
    min: [f32; PANEL_BLOCKS],
}

impl Sums {
    const ZERO: Self = Self { bias: [0; 2 * PANEL_BLOCKS], min: [0.0; PANEL_BLOCKS] };

    /// For `count` blocks from `first` on.
    #[inline(always)]
    unsafe fn prepare<F: Format>(&mut self, row: Row, first: usize, count: usize) {
        let bits = F::BIAS_BITS.unwrap_or(0);
        // SAFETY: see the head of the file; whole vectors are used for whole fours of blocks only.
        unsafe {
            let (sums, scales) = (row.sums.add(first * 2), row.scales.add(first));
            let mut b = 0;
            while b + 4 <= count {
                let pairs = _mm256_loadu_si256(sums.add(b * 2).cast());
                if F::HALVES {
                    let bias = _mm256_sll_epi32(
                        _mm256_sub_epi32(_mm256_setzero_si256(), pairs),
                        _mm_cvtsi32_si128(bits as i32),
                    );
                    _mm256_storeu_si256(self.bias.as_mut_ptr().add(b * 2).cast(), bias);
                } else {
                    let low = _mm256_castsi256_si128(pairs);
                    let whole = _mm_hadd_epi32(low, _mm256_extracti128_si256::<1>(pairs));
                    let bias = _mm_sub_epi32(_mm_setzero_si128(), _mm_sll_epi32(whole, _mm_cvtsi32_si128(bits as i32)));
                    _mm_storeu_si128(self.bias.as_mut_ptr().add(b).cast(), bias);
                    let min = _mm_mul_ps(_mm_loadu_ps(scales.add(b)), _mm_cvtepi32_ps(whole));
                    _mm_storeu_ps(self.min.as_mut_ptr().add(b), min);
                }
                b += 4;
            }
            for b in b..count {
                let (low, high) = (*sums.add(b * 2), *sums.add(b * 2 + 1));
                if F::HALVES {
                    self.bias[b * 2] = -(low << bits);
                    self.bias[b * 2 + 1] = -(high << bits);
                } else {
                    self.bias[b] = -((low + high) << bits);
                    self.min[b] = *scales.add(b) * (low + high) as f32;
                }
            }
        }
    }
}

/// `value`, but the compiler cannot tell.
#[inline(always)]
fn opaque(mut value: usize) -> usize {
    // SAFETY: the empty instruction touches nothing.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
    value
}

/// Integer dot products of the columns of steps `from .. to` of a panel block with `T` tokens.
#[inline(always)]
unsafe fn dots<F: Format, const T: usize>(
    rows: &[Row; T],
    b: usize,
    from: usize,
    to: usize,
    panel: *const u8,
) -> [[__m256i; 2]; T] {
    // SAFETY: see the head of the file.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let w = |j: usize| std::array::from_fn(|h| _mm256_load_si256(panel.add(j * 64 + h * 32).cast()));
        let mut dot = [[_mm256_setzero_si256(); 2]; T];
        // With the loops unrolled, the compiler would compute one sum after the other and keep all weights of a block on
        // the stack. With a number of rounds that it does not know, sums stay in registers and weights pass by once.
        let to = opaque(to);
        match F::DOT {
            Dot::Unsigned(8) => {
                let mut pairs = [[_mm256_setzero_si256(); 2]; T];
                let mut j = from;
                while j < to {
                    let w: [__m256i; 2] = w(j);
                    for t in 0..T {
                        let four = _mm256_set1_epi32(rows[t].four(b, j));
                        for h in 0..2 {
                            pairs[t][h] = _mm256_add_epi16(pairs[t][h], _mm256_maddubs_epi16(w[h], four));
                        }
                    }
                    j += 1;
                }
                for t in 0..T {
                    for h in 0..2 {
                        dot[t][h] = _mm256_madd_epi16(pairs[t][h], ones);
                    }
                }
            }
            Dot::Unsigned(_) => {
                let mut j = from;
                while j < to {
                    let w: [[__m256i; 2]; 2] = [w(j), w(j + 1)];
                    for t in 0..T {
                        let four = [_mm256_set1_epi32(rows[t].four(b, j)), _mm256_set1_epi32(rows[t].four(b, j + 1))];
                        for h in 0..2 {
                            let first = _mm256_maddubs_epi16(w[0][h], four[0]);
                            let pairs = _mm256_add_epi16(first, _mm256_maddubs_epi16(w[1][h], four[1]));
                            dot[t][h] = _mm256_add_epi32(dot[t][h], _mm256_madd_epi16(pairs, ones));
                        }
                    }
                    j += 2;
                }
            }
            Dot::Signed => {
                let mut j = from;
                while j < to {
                    let w: [__m256i; 2] = w(j);
                    let size = [_mm256_abs_epi8(w[0]), _mm256_abs_epi8(w[1])];
                    for t in 0..T {
                        let four = _mm256_set1_epi32(rows[t].four(b, j));
                        for h in 0..2 {
                            let pair = _mm256_maddubs_epi16(size[h], _mm256_sign_epi8(four, w[h]));
                            dot[t][h] = _mm256_add_epi32(dot[t][h], _mm256_madd_epi16(pair, ones));
                        }
                    }
                    j += 1;
                }
            }
        }
        dot
    }
}

/// Adds one panel block, which is block `b` of the activations and block `s` of `sums`, to `acc`. The order of operations
/// is the same for any `T`.
#[inline(always)]
unsafe fn block<F: Format, const T: usize>(
    acc: &mut [[__m256; 2]; T],
    rows: &[Row; T],
    sums: &[Sums; T],
    b: usize,
    s: usize,
    panel: *const u8,
) {
    // SAFETY: see the head of the file.
    unsafe {
        let scale = |h: usize, i: usize| _mm256_load_ps(panel.add(512 + i * 64 + h * 32).cast());
        let halves = if F::HALVES { 2 } else { 1 };
        let steps = 8 / halves;
        for half in 0..halves {
            let dot = dots::<F, T>(rows, b, half * steps, (half + 1) * steps, panel);
            for t in 0..T {
                let d = _mm256_set1_ps(*rows[t].scales.add(b));
                for h in 0..2 {
                    let mut dot = dot[t][h];
                    if F::BIAS_BITS.is_some() {
                        dot = _mm256_add_epi32(dot, _mm256_set1_epi32(sums[t].bias[s * halves + half]));
                    }
                    acc[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(scale(h, half), d), acc[t][h]);
                }
            }
        }
        if F::MINS {
            for t in 0..T {
                let min = _mm256_set1_ps(sums[t].min[s]);
                for h in 0..2 {
                    acc[t][h] = _mm256_fmadd_ps(scale(h, 1), min, acc[t][h]);
                }
            }
        }
    }
}

/// How far ahead of its use a weight is fetched, in bytes, so that waiting and arithmetic overlap.
const PREFETCH: usize = 4096;

/// Few tokens: each block is expanded, multiplied and forgotten, so weights are read from memory once.
#[inline(always)]
unsafe fn direct<F: Format, const T: usize>(tile: &Tile) {
    // SAFETY: see the head of the file.
    unsafe {
        let rows: [Row; T] = std::array::from_fn(|t| Row::of(tile, t));
        let (block_bytes, scale_bytes) = (F::LAYOUT.quant_bytes(256) / 8, F::LAYOUT.scale_bytes(256) / 8);
        for g in 0..tile.groups {
            let quants = tile.group.add(g * tile.stride);
            let scales = quants.add(F::LAYOUT.quant_bytes(tile.cols));
            let mut acc = [[_mm256_setzero_ps(); 2]; T];
            let mut sums = [const { Sums::ZERO }; T];
            for b in 0..tile.cols / 32 {
                if b % PANEL_BLOCKS == 0 {
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        sums.prepare::<F>(row, b, PANEL_BLOCKS.min(tile.cols / 32 - b));
                    }
                }
                for line in (0..block_bytes).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(quants.wrapping_add(b * block_bytes + line + PREFETCH).cast());
                }
                _mm_prefetch::<_MM_HINT_T0>(scales.wrapping_add(b * scale_bytes + PREFETCH / 4).cast());
                F::expand(quants, scales, b, tile.panel);
                block::<F, T>(&mut acc, &rows, &sums, b, b % PANEL_BLOCKS, tile.panel);
            }
            for (t, acc) in acc.into_iter().enumerate() {
                for (h, acc) in acc.into_iter().enumerate() {
                    _mm256_store_ps(tile.out.add(t * TILE_ROWS + g * GROUP + h * HALF), acc);
                }
            }
        }
    }
}

/// Many tokens: expands a run of blocks, then multiplies it with all tokens, four at a time.
#[inline(always)]
unsafe fn paneled<F: Format>(tile: &Tile) {
    // SAFETY: see the head of the file.
    unsafe {
        let blocks = tile.cols / 32;
        for g in 0..tile.groups {
            let quants = tile.group.add(g * tile.stride);
            let scales = quants.add(F::LAYOUT.quant_bytes(tile.cols));
            for first in (0..blocks).step_by(PANEL_BLOCKS) {
                let count = PANEL_BLOCKS.min(blocks - first);
                for b in 0..count {
                    F::expand(quants, scales, first + b, tile.panel.add(b * PANEL_BLOCK_BYTES));
                }
                let mut t = 0;
                while t + 4 <= tile.tokens {
                    micro::<F, 4>(tile, g, t, first, count);
                    t += 4;
                }
                match tile.tokens - t {
                    0 => {}
                    1 => micro::<F, 1>(tile, g, t, first, count),
                    2 => micro::<F, 2>(tile, g, t, first, count),
                    _ => micro::<F, 3>(tile, g, t, first, count),
                }
            }
        }
    }
}

/// `T` tokens times the `count` expanded blocks of one group, added to what earlier panels left in `out`.
#[inline(always)]
unsafe fn micro<F: Format, const T: usize>(tile: &Tile, g: usize, token: usize, first: usize, count: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let rows: [Row; T] = std::array::from_fn(|t| Row::of(tile, token + t));
        let out = |t: usize, h: usize| tile.out.add((token + t) * TILE_ROWS + g * GROUP + h * HALF);
        let mut acc: [[__m256; 2]; T] = std::array::from_fn(|t| {
            std::array::from_fn(|h| if first == 0 { _mm256_setzero_ps() } else { _mm256_load_ps(out(t, h)) })
        });
        let mut sums = [const { Sums::ZERO }; T];
        for (sums, row) in sums.iter_mut().zip(rows) {
            sums.prepare::<F>(row, first, count);
        }
        for b in 0..count {
            block::<F, T>(&mut acc, &rows, &sums, first + b, b, tile.panel.add(b * PANEL_BLOCK_BYTES));
        }
        for t in 0..T {
            for h in 0..2 {
                _mm256_store_ps(out(t, h), acc[t][h]);
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<F: Format>(tile: &Tile) {
    // SAFETY: see the head of the file.
    unsafe {
        match tile.tokens {
            1 => direct::<F, 1>(tile),
            2 => direct::<F, 2>(tile),
            3 => direct::<F, 3>(tile),
            _ => paneled::<F>(tile),
        }
    }
}

macro_rules! entries {
    ($($name:ident: $format:ty),+) => {
        $(
            /// # Safety
            /// See [`TileKernel`](crate::tile::TileKernel).
            #[target_feature(enable = "avx2,fma,f16c")]
            pub(super) unsafe fn $name(args: &Tile) {
                // SAFETY: the caller's promise is ours.
                unsafe { tile::<$format>(args) }
            }
        )+
    };
}

entries!(q4_0: Q4_0, q4_1: Q4_1, q8_0: Q8_0, q4_k: Q4K, q6_k: Q6K);
