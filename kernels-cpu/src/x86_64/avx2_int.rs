//! AVX2 tile kernels for integer formats.
//!
//! The shape is that of the AVX-512 kernels, on half-wide registers: a group is two halves of eight rows. Without VNNI a
//! dot product of bytes goes through 16-bit sums, `vpmaddubsw`, which saturates (Intel SDM vol. 2, PMADDUBSW). It never
//! does here: activations lie in -127 ..= 127, so a pair of products is at most `2 * 127` times the largest weight, and
//! [`Kernel::STEPS`] is how many such pairs a 16-bit sum holds. Signed weights are multiplied as |w| * sign(a, w).
//!
//! SAFETY of the whole file: functions are called through the entry points at the end only, whose contract is that of
//! [`TileKernel`](crate::tile::TileKernel): the features are there and the tile's pointers cover `groups` groups of
//! `cols` columns, `tokens` activation rows and the scratch. Offsets below stay inside by the layouts of
//! [`crate::pack`] and of `q8a`.

use crate::{
    act::Row,
    pack::{Codes, GROUP, Packed, Scales, Values, integer_types, types},
    tile::{PANEL_BYTES, TILE_ROWS, Tile, TileKernel},
};
use rustai_abi::DType;
use std::{arch::x86_64::*, mem::MaybeUninit};

/// Blocks of 32 columns that are expanded at a time.
const PANEL_BLOCKS: usize = 16;

/// Blocks that share their first-level scales.
const RUN: usize = 8;

/// Half a group: eight rows.
const HALF: usize = GROUP / 2;

/// What the kernels derive from a packed order.
trait Kernel: Packed {
    /// Weights are signed bytes; otherwise they are unsigned codes.
    const SIGNED: bool = !matches!(Self::BLOCKS.values, Values::Offset(_));
    /// Unsigned codes are the value plus `1 << BIAS_BITS`; no bias if `None`.
    const BIAS_BITS: Option<u32> = match Self::BLOCKS.values {
        Values::Offset(0) | Values::Signed | Values::Table(_) => None,
        Values::Offset(offset) => Some(offset.ilog2()),
    };
    /// The largest magnitude of a weight.
    const LARGEST: i32 = match Self::BLOCKS.values {
        Values::Offset(_) => Self::BLOCKS.codes.largest(),
        Values::Signed => 128,
        Values::Table(table) => largest(table),
    };
    /// Steps of four columns that are added up in 16 bits before they are widened: 8, 4, 2 or 1.
    const STEPS: usize = match (i16::MAX as i32 / (2 * 127 * Self::LARGEST)) as usize {
        0 => panic!("a single pair does not fit 16 bits"),
        1 => 1,
        2 | 3 => 2,
        4..8 => 4,
        _ => 8,
    };
    const HALVES: bool = Self::BLOCKS.scales.halves();
    const MINS: bool = Self::BLOCKS.scales.has_min();
    /// Scales, or minima, of a row in a block.
    const PER_BLOCK: usize = if Self::HALVES { 2 } else { 1 };
    /// Bytes of one expanded block of one group: 16 registers of weights, then pairs of registers of scales, then of minima.
    const PANEL_BLOCK: usize = (8 + Self::PER_BLOCK * if Self::MINS { 2 } else { 1 }) * 64;
    const FITS: () = assert!(PANEL_BLOCKS * Self::PANEL_BLOCK <= PANEL_BYTES);
}

impl<F: Packed> Kernel for F {}

const fn largest(table: &[i8; 16]) -> i32 {
    let (mut largest, mut i) = (0, 0);
    while i < table.len() {
        let size = (table[i] as i32).abs();
        largest = if size > largest { size } else { largest };
        i += 1;
    }
    largest
}

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

/// Shifts 16-bit lanes left by a positive count, right by a negative one.
#[inline(always)]
unsafe fn shift(packed: __m256i, left: i32) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe {
        match left {
            4 => _mm256_slli_epi16::<4>(packed),
            3 => _mm256_slli_epi16::<3>(packed),
            2 => _mm256_slli_epi16::<2>(packed),
            1 => _mm256_slli_epi16::<1>(packed),
            0 => packed,
            -1 => _mm256_srli_epi16::<1>(packed),
            -2 => _mm256_srli_epi16::<2>(packed),
            -3 => _mm256_srli_epi16::<3>(packed),
            -4 => _mm256_srli_epi16::<4>(packed),
            -5 => _mm256_srli_epi16::<5>(packed),
            _ => _mm256_srli_epi16::<6>(packed),
        }
    }
}

/// The bits of `mask` of a register, each 16-bit lane shifted left before, or right if `left` is negative.
#[inline(always)]
unsafe fn bits(at: *const u8, left: i32, mask: i8) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe { _mm256_and_si256(shift(load(at), left), _mm256_set1_epi8(mask)) }
}

/// Step `j` of half `h` of the block whose codes begin at `codes`.
#[inline(always)]
unsafe fn weights<F: Kernel>(codes: *const u8, j: usize, h: usize) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe {
        let half = codes.add(h * 32);
        let step = j as i32;
        let nibble = if j < 4 { 0 } else { -4 };
        let plain = match F::BLOCKS.codes {
            Codes::Two => bits(half.add(j / 4 * 64), -2 * (step % 4), 3),
            Codes::Three => {
                let low = bits(half.add(j / 4 * 64), -2 * (step % 4), 3);
                _mm256_or_si256(low, bits(half.add(2 * 64), 2 - step, 4))
            }
            Codes::Four => bits(half.add(j % 4 * 64), nibble, 15),
            Codes::Five => {
                let low = bits(half.add(j % 4 * 64), nibble, 15);
                _mm256_or_si256(low, bits(half.add(4 * 64), 4 - step, 16))
            }
            Codes::Six => {
                let low = bits(half.add(j % 4 * 64), nibble, 15);
                _mm256_or_si256(low, bits(half.add((4 + j / 4) * 64), 4 - 2 * (step % 4), 0x30))
            }
            Codes::Eight => load(half.add(j * 64)),
        };
        match F::BLOCKS.values {
            Values::Offset(_) | Values::Signed => plain,
            Values::Table(table) => {
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                _mm256_shuffle_epi8(table, plain)
            }
        }
    }
}

/// Scales and minima of half a group in one block, for its first and last 16 columns if they differ.
struct RowScales {
    scale: [__m256; 2],
    /// What is added per unit of activation.
    min: [__m256; 2],
}

/// First-level scale, and negative of the first-level minimum, for half `h`, of the 256 columns that block `b` begins, if there are two levels.
#[inline(always)]
unsafe fn first_level<F: Kernel>(scales: *const u8, b: usize, h: usize) -> [__m256; 2] {
    // SAFETY: see the head of the file.
    unsafe {
        let zero = _mm256_setzero_ps();
        if !F::BLOCKS.scales.two_level() {
            return [zero; 2];
        }
        let at = scales.add(b / RUN * F::BLOCKS.scales.bytes(256) + h * 16);
        [load_halves(at), if F::MINS { _mm256_sub_ps(zero, load_halves(at.add(32))) } else { zero }]
    }
}

/// Eight signed bytes as floats.
#[inline(always)]
unsafe fn signed(at: *const u8) -> __m256 {
    // SAFETY: see the head of the file.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
}

/// Eight bytes as whole numbers.
#[inline(always)]
unsafe fn unsigned(at: *const u8) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())) }
}

/// `d * whole`.
#[inline(always)]
unsafe fn times(d: __m256, whole: __m256i) -> __m256 {
    // SAFETY: see the head of the file.
    unsafe { _mm256_mul_ps(d, _mm256_cvtepi32_ps(whole)) }
}

/// Scales and minima of block `b` for half `h`; `dmin` is negative already.
#[inline(always)]
unsafe fn row_scales<F: Kernel>([d, dmin]: [__m256; 2], scales: *const u8, b: usize, h: usize) -> RowScales {
    // SAFETY: see the head of the file.
    unsafe {
        let none = [_mm256_setzero_ps(); 2];
        // Half a group is eight bytes of whole numbers, or sixteen of f16.
        let long = scales.add(b / RUN * F::BLOCKS.scales.bytes(256) + h * HALF);
        let halves = scales.add(h * 2 * HALF);
        let b = if F::BLOCKS.scales.two_level() { b % RUN } else { b };
        let (scale, min) = match F::BLOCKS.scales {
            Scales::Half => ([load_halves(halves.add(b * 32)); 2], none),
            Scales::HalfWithMin => ([load_halves(halves.add(b * 64)); 2], [load_halves(halves.add(b * 64 + 32)); 2]),
            Scales::Exponent => {
                // Half of 2^(e - 127): an exponent field of e - 1, or one of two denormals.
                let e = unsigned(scales.add(b * 16 + h * HALF));
                let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
                let denormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
                let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
                ([_mm256_castsi256_ps(_mm256_blendv_epi8(normal, denormal, small)); 2], none)
            }
            Scales::Runs32 => ([_mm256_mul_ps(d, signed(long.add(32 + b * GROUP))); 2], none),
            Scales::Runs16 => {
                let at = long.add(32 + b * 2 * GROUP);
                ([_mm256_mul_ps(d, signed(at)), _mm256_mul_ps(d, signed(at.add(GROUP)))], none)
            }
            Scales::Runs32WithMin => {
                let at = long.add(64 + b * 2 * GROUP);
                ([times(d, unsigned(at)); 2], [times(dmin, unsigned(at.add(GROUP))); 2])
            }
            Scales::Runs16WithMin => {
                let at = long.add(64 + b * 2 * GROUP);
                let (first, last) = (unsigned(at), unsigned(at.add(GROUP)));
                let mask = _mm256_set1_epi32(15);
                (
                    [times(d, _mm256_and_si256(first, mask)), times(d, _mm256_and_si256(last, mask))],
                    [times(dmin, _mm256_srli_epi32::<4>(first)), times(dmin, _mm256_srli_epi32::<4>(last))],
                )
            }
        };
        RowScales { scale, min }
    }
}

/// Writes block `b` of one group as a panel block.
#[inline(always)]
unsafe fn expand<F: Kernel>(codes: *const u8, level: &[[__m256; 2]; 2], scales: *const u8, b: usize, to: *mut u8) {
    // SAFETY: see the head of the file.
    unsafe {
        let codes = codes.add(b * F::BLOCKS.codes.registers() * 64);
        for j in 0..8 {
            for h in 0..2 {
                _mm256_store_si256(to.add(j * 64 + h * 32).cast(), weights::<F>(codes, j, h));
            }
        }
        for h in 0..2 {
            let row_scales = row_scales::<F>(level[h], scales, b, h);
            for half in 0..F::PER_BLOCK {
                _mm256_store_ps(to.add((8 + half) * 64 + h * 32).cast(), row_scales.scale[half]);
                if F::MINS {
                    let at = to.add((8 + F::PER_BLOCK + half) * 64 + h * 32);
                    _mm256_store_ps(at.cast(), row_scales.min[half]);
                }
            }
        }
    }
}

/// What one token contributes to each block of a panel, apart from dot products: per block, or per half block if there
/// are halves.
struct Sums {
    /// What the bias of the codes adds, negated.
    bias: [i32; 2 * PANEL_BLOCKS],
    /// The sum in units of the activation, which the minimum multiplies.
    min: [f32; 2 * PANEL_BLOCKS],
}

/// Sums of `T` tokens.
type AllSums<const T: usize> = [MaybeUninit<Sums>; T];

impl Sums {
    /// Sums are written before they are read, so they need not be cleared for each panel.
    const NONE: MaybeUninit<Self> = MaybeUninit::uninit();

    /// # Safety
    /// [`prepare`](Self::prepare) has written the entry.
    #[inline(always)]
    unsafe fn bias(sums: &MaybeUninit<Self>, i: usize) -> i32 {
        // SAFETY: promised by the caller.
        unsafe { *(&raw const (*sums.as_ptr()).bias).cast::<i32>().add(i) }
    }

    /// # Safety
    /// As [`bias`](Self::bias).
    #[inline(always)]
    unsafe fn min(sums: &MaybeUninit<Self>, i: usize) -> f32 {
        // SAFETY: promised by the caller.
        unsafe { *(&raw const (*sums.as_ptr()).min).cast::<f32>().add(i) }
    }

    /// For `count` blocks from `first` on.
    #[inline(always)]
    unsafe fn prepare<F: Kernel>(sums: &mut MaybeUninit<Self>, row: Row, first: usize, count: usize) {
        let bits = F::BIAS_BITS.unwrap_or(0);
        // SAFETY: see the head of the file; whole vectors are used for whole fours of blocks only.
        unsafe {
            let bias = (&raw mut (*sums.as_mut_ptr()).bias).cast::<i32>();
            let min = (&raw mut (*sums.as_mut_ptr()).min).cast::<f32>();
            let (sums, scales) = (row.sums.add(first * 2), row.scales.add(first));
            let shift = _mm_cvtsi32_si128(bits as i32);
            let mut b = 0;
            while b + 4 <= count {
                let pairs = _mm256_loadu_si256(sums.add(b * 2).cast());
                if F::HALVES {
                    let biased = _mm256_sll_epi32(_mm256_sub_epi32(_mm256_setzero_si256(), pairs), shift);
                    _mm256_storeu_si256(bias.add(b * 2).cast(), biased);
                    if F::MINS {
                        let twice = _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0);
                        let scales = _mm256_castps128_ps256(_mm_loadu_ps(scales.add(b)));
                        let scales = _mm256_permutevar8x32_ps(scales, twice);
                        _mm256_storeu_ps(min.add(b * 2), _mm256_mul_ps(scales, _mm256_cvtepi32_ps(pairs)));
                    }
                } else {
                    let low = _mm256_castsi256_si128(pairs);
                    let whole = _mm_hadd_epi32(low, _mm256_extracti128_si256::<1>(pairs));
                    let biased = _mm_sub_epi32(_mm_setzero_si128(), _mm_sll_epi32(whole, shift));
                    _mm_storeu_si128(bias.add(b).cast(), biased);
                    _mm_storeu_ps(min.add(b), _mm_mul_ps(_mm_loadu_ps(scales.add(b)), _mm_cvtepi32_ps(whole)));
                }
                b += 4;
            }
            for b in b..count {
                let (low, high) = (*sums.add(b * 2), *sums.add(b * 2 + 1));
                let scale = *scales.add(b);
                if F::HALVES {
                    for (half, sum) in [low, high].into_iter().enumerate() {
                        *bias.add(b * 2 + half) = -(sum << bits);
                        *min.add(b * 2 + half) = scale * sum as f32;
                    }
                } else {
                    *bias.add(b) = -((low + high) << bits);
                    *min.add(b) = scale * (low + high) as f32;
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

/// Step `j` of a panel block.
#[inline(always)]
unsafe fn both_halves(panel: *const u8, j: usize) -> [__m256i; 2] {
    // SAFETY: see the head of the file.
    unsafe { [_mm256_load_si256(panel.add(j * 64).cast()), _mm256_load_si256(panel.add(j * 64 + 32).cast())] }
}

/// Scales (`i` below `PER_BLOCK`) or minima of half `h` of a panel block.
#[inline(always)]
unsafe fn panel_scale(panel: *const u8, h: usize, i: usize) -> __m256 {
    // SAFETY: see the head of the file.
    unsafe { _mm256_load_ps(panel.add((8 + i) * 64 + h * 32).cast()) }
}

/// Pairs of products of weights and four activations, in 16 bits.
#[inline(always)]
unsafe fn pairs<F: Kernel>(w: __m256i, four: __m256i) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe {
        if F::SIGNED {
            _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(four, w))
        } else {
            _mm256_maddubs_epi16(w, four)
        }
    }
}

/// Integer dot products of the columns of steps `from .. to` of a panel block with `T` tokens.
#[inline(always)]
unsafe fn dots<F: Kernel, const T: usize>(
    rows: &[Row; T],
    b: usize,
    from: usize,
    to: usize,
    panel: *const u8,
) -> [[__m256i; 2]; T] {
    // SAFETY: see the head of the file.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut dot = [[_mm256_setzero_si256(); 2]; T];
        // With the loops unrolled, the compiler would compute one sum after the other and keep all weights of a block on
        // the stack. With a number of rounds that it does not know, sums stay in registers and weights pass by once.
        let to = opaque(to);
        if F::STEPS * F::PER_BLOCK >= 8 {
            // All steps fit 16 bits.
            let mut sums = [[_mm256_setzero_si256(); 2]; T];
            let mut j = from;
            while j < to {
                let w = both_halves(panel, j);
                for t in 0..T {
                    let four = _mm256_set1_epi32(rows[t].four(b, j));
                    for h in 0..2 {
                        sums[t][h] = _mm256_add_epi16(sums[t][h], pairs::<F>(w[h], four));
                    }
                }
                j += 1;
            }
            for t in 0..T {
                for h in 0..2 {
                    dot[t][h] = _mm256_madd_epi16(sums[t][h], ones);
                }
            }
        } else {
            let step = if F::STEPS == 1 { 1 } else { 2 };
            let mut j = from;
            while j < to {
                let w = [both_halves(panel, j), both_halves(panel, j + step - 1)];
                for t in 0..T {
                    let four =
                        [_mm256_set1_epi32(rows[t].four(b, j)), _mm256_set1_epi32(rows[t].four(b, j + step - 1))];
                    for h in 0..2 {
                        let mut sum = pairs::<F>(w[0][h], four[0]);
                        if step == 2 {
                            sum = _mm256_add_epi16(sum, pairs::<F>(w[1][h], four[1]));
                        }
                        dot[t][h] = _mm256_add_epi32(dot[t][h], _mm256_madd_epi16(sum, ones));
                    }
                }
                j += step;
            }
        }
        dot
    }
}

/// Adds one panel block, which is block `b` of the activations and block `s` of `sums`, to `acc`. The order of operations
/// is the same for any `T`.
#[inline(always)]
unsafe fn block<F: Kernel, const T: usize>(
    acc: &mut [[__m256; 2]; T],
    rows: &[Row; T],
    sums: &AllSums<T>,
    b: usize,
    s: usize,
    panel: *const u8,
) {
    // SAFETY: see the head of the file.
    unsafe {
        let steps = 8 / F::PER_BLOCK;
        for half in 0..F::PER_BLOCK {
            let dot = dots::<F, T>(rows, b, half * steps, (half + 1) * steps, panel);
            for t in 0..T {
                let d = _mm256_set1_ps(*rows[t].scales.add(b));
                for h in 0..2 {
                    let mut dot = dot[t][h];
                    if F::BIAS_BITS.is_some() {
                        dot = _mm256_add_epi32(dot, _mm256_set1_epi32(Sums::bias(&sums[t], s * F::PER_BLOCK + half)));
                    }
                    acc[t][h] = _mm256_fmadd_ps(
                        _mm256_cvtepi32_ps(dot),
                        _mm256_mul_ps(panel_scale(panel, h, half), d),
                        acc[t][h],
                    );
                }
            }
        }
        if F::MINS {
            for half in 0..F::PER_BLOCK {
                for t in 0..T {
                    let min = _mm256_set1_ps(Sums::min(&sums[t], s * F::PER_BLOCK + half));
                    for h in 0..2 {
                        acc[t][h] = _mm256_fmadd_ps(panel_scale(panel, h, F::PER_BLOCK + half), min, acc[t][h]);
                    }
                }
            }
        }
    }
}

/// How far ahead of its use a weight is fetched, in bytes, so that waiting and arithmetic overlap.
const PREFETCH: usize = 4096;

/// Fetches the codes and scales that come `PREFETCH` bytes after block `b`.
#[inline(always)]
unsafe fn prefetch<F: Kernel>(codes: *const u8, scales: *const u8, b: usize) {
    // SAFETY: see the head of the file; prefetching may name any address.
    unsafe {
        let ahead = codes.wrapping_add(b * F::BLOCKS.codes.registers() * 64 + PREFETCH);
        for register in 0..F::BLOCKS.codes.registers() {
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(register * 64).cast());
        }
        let scale_bytes = F::BLOCKS.scales.bytes(256) / RUN;
        _mm_prefetch::<_MM_HINT_T0>(scales.wrapping_add(b * scale_bytes + PREFETCH / 4).cast());
    }
}

/// Few tokens: each block is expanded, multiplied and forgotten, so weights are read from memory once.
#[inline(always)]
unsafe fn direct<F: Kernel, const T: usize>(tile: &Tile) {
    // SAFETY: see the head of the file.
    unsafe {
        let rows: [Row; T] = std::array::from_fn(|t| Row::of(tile, t));
        for g in 0..tile.groups {
            let codes = tile.group.add(g * tile.stride);
            let scales = codes.add(F::BLOCKS.code_bytes(tile.cols));
            let mut acc = [[_mm256_setzero_ps(); 2]; T];
            let mut sums = [Sums::NONE; T];
            let blocks = tile.cols / 32;
            for run in (0..blocks).step_by(RUN) {
                if run % PANEL_BLOCKS == 0 {
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        Sums::prepare::<F>(sums, row, run, PANEL_BLOCKS.min(blocks - run));
                    }
                }
                let level = [first_level::<F>(scales, run, 0), first_level::<F>(scales, run, 1)];
                for b in run..blocks.min(run + RUN) {
                    prefetch::<F>(codes, scales, b);
                    expand::<F>(codes, &level, scales, b, tile.panel);
                    block::<F, T>(&mut acc, &rows, &sums, b, b % PANEL_BLOCKS, tile.panel);
                }
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
unsafe fn paneled<F: Kernel>(tile: &Tile) {
    const { F::FITS };
    // SAFETY: see the head of the file.
    unsafe {
        let blocks = tile.cols / 32;
        for g in 0..tile.groups {
            let codes = tile.group.add(g * tile.stride);
            let scales = codes.add(F::BLOCKS.code_bytes(tile.cols));
            for first in (0..blocks).step_by(PANEL_BLOCKS) {
                let count = PANEL_BLOCKS.min(blocks - first);
                for run in (0..count).step_by(RUN) {
                    let level = [first_level::<F>(scales, first + run, 0), first_level::<F>(scales, first + run, 1)];
                    for b in run..count.min(run + RUN) {
                        prefetch::<F>(codes, scales, first + b);
                        expand::<F>(codes, &level, scales, first + b, tile.panel.add(b * F::PANEL_BLOCK));
                    }
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
unsafe fn micro<F: Kernel, const T: usize>(tile: &Tile, g: usize, token: usize, first: usize, count: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let rows: [Row; T] = std::array::from_fn(|t| Row::of(tile, token + t));
        let out = |t: usize, h: usize| tile.out.add((token + t) * TILE_ROWS + g * GROUP + h * HALF);
        let mut acc = [[_mm256_setzero_ps(); 2]; T];
        for t in 0..T {
            for h in 0..2 {
                acc[t][h] = if first == 0 { _mm256_setzero_ps() } else { _mm256_load_ps(out(t, h)) };
            }
        }
        let mut sums = [Sums::NONE; T];
        for (sums, row) in sums.iter_mut().zip(rows) {
            Sums::prepare::<F>(sums, row, first, count);
        }
        for b in 0..count {
            if b % 2 == 0 {
                for row in rows {
                    row.prefetch_later(tile, T, first + b);
                }
            }
            block::<F, T>(&mut acc, &rows, &sums, first + b, b, tile.panel.add(b * F::PANEL_BLOCK));
        }
        for t in 0..T {
            for h in 0..2 {
                _mm256_store_ps(out(t, h), acc[t][h]);
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<F: Kernel>(tile: &Tile) {
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
    ($($entry:ident: $name:ident),+) => {
        $(
            /// # Safety
            /// See [`TileKernel`](crate::tile::TileKernel).
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn $entry(args: &Tile) {
                // SAFETY: the caller's promise is ours.
                unsafe { tile::<types::$name>(args) }
            }
        )+

        /// The kernel of a type.
        pub(super) fn kernel(dtype: DType) -> Option<TileKernel> {
            Some(match dtype {
                $(DType::$name => $entry,)+
                _ => return None,
            })
        }
    };
}

integer_types!(entries);
