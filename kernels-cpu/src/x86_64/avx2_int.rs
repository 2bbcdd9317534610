//! AVX2 tile kernels for integer formats, with VNNI and without.
//!
//! The shape is that of the AVX-512 kernels, on half-wide registers: a group is two halves of eight rows. Bytes are
//! multiplied in one of the ways of [`dot`](super::dot).
//!
//! Without VNNI, pairs of several steps are added up in 16 bits. For codes with an offset the sum begins with what the offset takes
//! away, so that it ends as a sum of products with the small signed weight itself; additions wrap, and only the end counts.
//! [`Kernel::CHUNK`] says after how many steps a sum has to be widened.
//!
//! SAFETY of the whole file: functions are called through the entry points at the end only, whose contract is that of
//! [`TileKernel`](crate::tile::TileKernel): the features are there and the tile's pointers cover `groups` groups of
//! `cols` columns, `tokens` activation rows and the scratch. Offsets below stay inside by the layouts of
//! [`crate::pack`] and of `q8a`.

use super::{
    dot::{Dot, PAIR, Pairs, Vnni, largest},
    fetch::fetch_ahead,
};
use crate::{
    act::Row,
    pack::{BlockPlace, Codes, GROUP, SUPERBLOCK, Scales, Values, integer_types, types},
    tile::{PANEL_BYTES, Tile, TileKernel},
};
use rustai_abi::DType;
use std::{arch::x86_64::*, marker::PhantomData, mem::MaybeUninit};

/// Blocks of 32 columns that are expanded at a time.
const PANEL_BLOCKS: usize = 2 * SUPERBLOCK;

/// Half a group: eight rows.
const HALF: usize = GROUP / 2;

/// What the kernels derive from a packed order and the way its bytes are multiplied.
trait Kernel: Dot {
    /// What is added to a weight to make it an unsigned byte: the offset of the codes, or of the entries of a table if
    /// they are small, or with VNNI of all signed bytes. `None` if weights stay signed, `Some(0)` if they are unsigned.
    const OFFSET: Option<u8> = match Self::BLOCKS.values {
        Values::Offset(offset) => Some(offset),
        Values::Signed | Values::Table(_) if Self::VNNI => Some(128),
        Values::Signed => None,
        Values::Table(table) => {
            let largest = largest(table);
            if PAIR * largest * 8 <= i16::MAX as i32 { Some(largest as u8) } else { None }
        }
    };
    /// Sums begin with what the offset takes away.
    const BIASED: bool = matches!(Self::OFFSET, Some(1..));
    /// The table, with the offset added to its entries.
    const TABLE: [i8; 16] = match (Self::BLOCKS.values, Self::OFFSET) {
        (Values::Table(table), Some(offset)) => add(table, offset as i8),
        (Values::Table(table), None) => *table,
        _ => [0; 16],
    };
    /// The largest magnitude of a byte that is multiplied.
    const LARGEST: i32 = match (Self::BLOCKS.values, Self::OFFSET) {
        (Values::Offset(_), _) => Self::BLOCKS.codes.largest(),
        (Values::Signed, _) => 128,
        (Values::Table(_), _) => largest(&Self::TABLE),
    };
    /// The sum of two products is exact.
    const PAIRS_FIT: () = assert!(Self::VNNI || PAIR * Self::LARGEST <= i16::MAX as i32);
    /// From so many activation rows on it pays to write expanded weights down for all of them; measured for each type (see
    /// PERFORMANCE.md). The more work it is to put a weight together, the fewer.
    const MANY: usize = match Self::DTYPE {
        DType::Q8_0 => 24,
        DType::Q4_0 | DType::Q4_1 => 7,
        DType::Q4_K | DType::IQ4_NL => 5,
        _ => 3,
    };
    /// Each half of a block has a scale, which is a whole number.
    const HALVES: bool = Self::BLOCKS.scales.halves();
    const MINS: bool = Self::BLOCKS.scales.has_min();
    /// Minima, and biases, of a row in a block.
    const PER_BLOCK: usize = if Self::HALVES { 2 } else { 1 };
    /// Steps of four columns that share a scale.
    const STEPS: usize = 8 / Self::PER_BLOCK;
    /// Steps that are added up before they are widened to 32 bits: a power of two, at most [`STEPS`](Self::STEPS).
    const CHUNK: usize = {
        let farthest = match Self::OFFSET {
            // Less the offset, a code is at most so far from zero.
            Some(offset @ 1..) if Self::LARGEST - offset as i32 <= offset as i32 => offset as i32,
            _ => Self::LARGEST,
        };
        let most = (i16::MAX as i32 / (PAIR * farthest)) as usize;
        let chunk = if Self::VNNI || most >= Self::STEPS { Self::STEPS } else { 1 << most.ilog2() };
        // A bias and a whole scale are for all of their steps at once.
        assert!(chunk == Self::STEPS || !Self::BIASED && !Self::HALVES);
        chunk
    };
    /// Registers of one row's scales in a panel: one, and the whole numbers of halves.
    const SCALES: usize = if Self::HALVES { 3 } else { 1 };
    /// Bytes of one expanded block of one group: pairs of registers of weights, of scales, and of minima.
    const PANEL_BLOCK: usize = (8 + Self::SCALES + if Self::MINS { Self::PER_BLOCK } else { 0 }) * 64;
    const FITS: () = assert!(2 * PANEL_BLOCKS * Self::PANEL_BLOCK <= PANEL_BYTES);
}

impl<F: Dot> Kernel for F {}

const fn add(table: &[i8; 16], offset: i8) -> [i8; 16] {
    let (mut sums, mut i) = (*table, 0);
    while i < sums.len() {
        sums[i] = sums[i].wrapping_add(offset);
        i += 1;
    }
    sums
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
            Values::Signed if F::OFFSET.is_some() => _mm256_xor_si256(plain, _mm256_set1_epi8(-128)),
            Values::Offset(_) | Values::Signed => plain,
            Values::Table(_) => {
                let table = const { &F::TABLE };
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                _mm256_shuffle_epi8(table, plain)
            }
        }
    }
}

/// First-level scale, and negative of the first-level minimum, for half `h`, of the superblock whose scales begin at `scales`, if
/// there are two levels.
#[inline(always)]
unsafe fn first_level<F: Kernel>(scales: *const u8, h: usize) -> [__m256; 2] {
    // SAFETY: see the head of the file.
    unsafe {
        let zero = _mm256_setzero_ps();
        if !F::BLOCKS.scales.two_level() {
            return [zero; 2];
        }
        let at = scales.add(h * 2 * HALF);
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

/// Scale of half `h` of the rows in a block; without the whole number if each half of the columns has one. (Half a group is eight
/// bytes of whole numbers, or sixteen of f16.)
#[inline(always)]
unsafe fn scale<F: Kernel>([d, _]: [__m256; 2], BlockPlace { scales, index, .. }: BlockPlace, h: usize) -> __m256 {
    // SAFETY: see the head of the file.
    unsafe {
        let whole = scales.add(h * HALF);
        match F::BLOCKS.scales {
            Scales::Half | Scales::HalfWithMin => load_halves(scales.add(h * 2 * HALF)),
            Scales::Exponent => {
                // Half of 2^(e - 127): an exponent field of e - 1, or one of two denormals.
                let e = unsigned(whole);
                let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
                let denormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
                let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
                _mm256_castsi256_ps(_mm256_blendv_epi8(normal, denormal, small))
            }
            Scales::Runs32 => _mm256_mul_ps(d, signed(whole.add(32 + index * GROUP))),
            Scales::Runs32WithMin => times(d, unsigned(whole.add(64 + index * 2 * GROUP))),
            Scales::Runs16 | Scales::Runs16WithMin => d,
        }
    }
}

/// The whole number in the scale of half `half` of the columns; twice side by side where a row has two sums of 16 bits.
#[inline(always)]
unsafe fn whole<F: Kernel>(BlockPlace { scales, index, .. }: BlockPlace, h: usize, half: usize) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe {
        let at = |first: usize| scales.add(first + (index * 2 + half) * GROUP + h * HALF);
        let whole = match F::BLOCKS.scales {
            Scales::Runs16 => _mm256_cvtepi8_epi32(_mm_loadl_epi64(at(32).cast())),
            _ => _mm256_and_si256(unsigned(at(64)), _mm256_set1_epi32(15)),
        };
        if F::VNNI { whole } else { _mm256_blend_epi16::<0b1010_1010>(whole, _mm256_slli_epi32::<16>(whole)) }
    }
}

/// What is added per unit of activation, for half `half` of the columns if there are two; `dmin` is negative already.
#[inline(always)]
unsafe fn min<F: Kernel>(
    [_, dmin]: [__m256; 2],
    BlockPlace { scales, index, .. }: BlockPlace,
    h: usize,
    half: usize,
) -> __m256 {
    // SAFETY: see the head of the file.
    unsafe {
        let whole = |i: usize| unsigned(scales.add(64 + (index * 2 + i) * GROUP + h * HALF));
        match F::BLOCKS.scales {
            Scales::HalfWithMin => load_halves(scales.add(32 + h * 2 * HALF)),
            Scales::Runs32WithMin => times(dmin, whole(1)),
            Scales::Runs16WithMin => times(dmin, _mm256_srli_epi32::<4>(whole(half))),
            Scales::Half | Scales::Exponent | Scales::Runs32 | Scales::Runs16 => _mm256_setzero_ps(),
        }
    }
}

/// Writes a block of one group as a panel block.
#[inline(always)]
unsafe fn expand<F: Kernel>(level: &[[__m256; 2]; 2], place: BlockPlace, to: *mut u8) {
    // SAFETY: see the head of the file.
    unsafe {
        for j in 0..8 {
            for h in 0..2 {
                _mm256_store_si256(to.add(j * 64 + h * 32).cast(), weights::<F>(place.codes, j, h));
            }
        }
        for h in 0..2 {
            let register = |i: usize| to.add(i * 64 + h * 32);
            _mm256_store_ps(register(8).cast(), scale::<F>(level[h], place, h));
            for half in 0..F::PER_BLOCK {
                if F::HALVES {
                    _mm256_store_si256(register(9 + half).cast(), whole::<F>(place, h, half));
                }
                if F::MINS {
                    let at = register(8 + F::SCALES + half);
                    _mm256_store_ps(at.cast(), min::<F>(level[h], place, h, half));
                }
            }
        }
    }
}

/// What one token contributes to each block of a panel, apart from dot products: per block, or per half block if there
/// are halves.
struct Sums {
    /// What sums begin with to take the offset of the codes away: one of 32 bits, or two of 16 bits side by side.
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
        if !F::MINS && !F::BIASED {
            return;
        }
        // SAFETY: see the head of the file; whole vectors are used for whole fours of blocks only.
        unsafe {
            let bias = (&raw mut (*sums.as_mut_ptr()).bias).cast::<i32>();
            let min = (&raw mut (*sums.as_mut_ptr()).min).cast::<f32>();
            let (sums, scales) = (row.sums.add(first), row.scales.add(first));
            let ones = _mm256_set1_epi16(1);
            let mut b = 0;
            while b + 4 <= count {
                // Two 16-bit sums for each half of four blocks.
                let halves = _mm256_loadu_si256(sums.add(b).cast());
                if F::HALVES {
                    _mm256_storeu_si256(bias.add(b * 2).cast(), biases::<F>(halves));
                    if F::MINS {
                        let twice = _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0);
                        let scales = _mm256_castps128_ps256(_mm_loadu_ps(scales.add(b)));
                        let scales = _mm256_permutevar8x32_ps(scales, twice);
                        let sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(halves, ones));
                        _mm256_storeu_ps(min.add(b * 2), _mm256_mul_ps(scales, sums));
                    }
                } else {
                    let halves = _mm256_castsi256_ps(halves);
                    let (low, high) = (_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
                    let first = _mm_castps_si128(_mm_shuffle_ps::<0b10_00_10_00>(low, high));
                    let last = _mm_castps_si128(_mm_shuffle_ps::<0b11_01_11_01>(low, high));
                    let whole = _mm_add_epi16(first, last);
                    let biases = _mm256_castsi256_si128(biases::<F>(_mm256_castsi128_si256(whole)));
                    _mm_storeu_si128(bias.add(b).cast(), biases);
                    if F::MINS {
                        let sums = _mm_cvtepi32_ps(_mm_madd_epi16(whole, _mm256_castsi256_si128(ones)));
                        _mm_storeu_ps(min.add(b), _mm_mul_ps(_mm_loadu_ps(scales.add(b)), sums));
                    }
                }
                b += 4;
            }
            let offset = -(F::OFFSET.unwrap_or(0) as i16);
            let biased = |[even, odd]: [i16; 2]| {
                if F::VNNI {
                    i32::from(offset) * i32::from(even + odd)
                } else {
                    i32::from((offset * even) as u16) | i32::from(offset * odd) << 16
                }
            };
            for b in b..count {
                let [first, last] = *sums.add(b);
                let scale = *scales.add(b);
                if F::HALVES {
                    for (half, sum) in [first, last].into_iter().enumerate() {
                        *bias.add(b * 2 + half) = biased(sum);
                        *min.add(b * 2 + half) = scale * f32::from(sum[0] + sum[1]);
                    }
                } else {
                    let whole = [first[0] + last[0], first[1] + last[1]];
                    *bias.add(b) = biased(whole);
                    *min.add(b) = scale * f32::from(whole[0] + whole[1]);
                }
            }
        }
    }
}

/// What takes the offset of the codes away from products with activations that have these pairs of sums.
#[inline(always)]
unsafe fn biases<F: Kernel>(pairs: __m256i) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe {
        let offset = _mm256_set1_epi16(-(F::OFFSET.unwrap_or(0) as i16));
        if F::VNNI { _mm256_madd_epi16(pairs, offset) } else { _mm256_mullo_epi16(pairs, offset) }
    }
}

/// Writes the body once for each step.
macro_rules! unrolled {
    ($j:ident => $body:block) => {
        unrolled!(@ $j, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $j:ident, $body:block, $($step:literal)+) => {
        $({ let $j: usize = $step; $body })+
    };
}

/// Keeps the compiler from moving additions to a sum across this point. Without such marks it would compute one sum after
/// the other and keep all weights of a block on the stack.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn pin(sum: &mut __m256i) {
    // SAFETY: the empty instruction touches nothing.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) * sum, options(nomem, nostack, preserves_flags)) };
}

/// Adds the products of weights and four activations to a sum.
#[inline(always)]
unsafe fn multiply<F: Kernel>(sum: __m256i, w: __m256i, four: __m256i) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe {
        if F::VNNI {
            return _mm256_dpbusd_avx_epi32(sum, w, four);
        }
        let pairs = if F::OFFSET.is_none() {
            _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(four, w))
        } else {
            _mm256_maddubs_epi16(w, four)
        };
        _mm256_add_epi16(sum, pairs)
    }
}

/// A sum widened to 32 bits, times the whole number of the scale if each half of a block has one.
#[inline(always)]
unsafe fn widen<F: Kernel>(sum: __m256i, half: usize, h: usize, source: &impl Source) -> __m256i {
    // SAFETY: see the head of the file.
    unsafe {
        match (F::VNNI, F::HALVES) {
            (true, true) => _mm256_mullo_epi32(sum, source.whole(h, half)),
            (true, false) => sum,
            (false, true) => _mm256_madd_epi16(sum, source.whole(h, half)),
            (false, false) => _mm256_madd_epi16(sum, _mm256_set1_epi16(1)),
        }
    }
}

/// Where the expanded weights and scales of a block of some groups come from. (Closures would be called, not inlined.)
trait Source {
    /// Step `j` of half `h` of the groups' rows.
    unsafe fn weights(&self, j: usize, h: usize) -> __m256i;
    /// See [`scale()`].
    unsafe fn scale(&self, h: usize) -> __m256;
    /// See [`whole()`].
    unsafe fn whole(&self, h: usize, half: usize) -> __m256i;
    /// See [`min()`].
    unsafe fn min(&self, h: usize, half: usize) -> __m256;
}

/// Block `b` of packed groups, which is expanded as it is used.
struct Packing<F, const H: usize> {
    /// The first group, and bytes from one group to the next.
    group: *const u8,
    stride: usize,
    level: [[__m256; 2]; H],
    b: usize,
    format: PhantomData<F>,
}

impl<F: Kernel, const H: usize> Packing<F, H> {
    /// Where the block of the group that half `h` belongs to lies.
    #[inline(always)]
    fn place(&self, h: usize) -> BlockPlace {
        F::BLOCKS.place(self.group.wrapping_add(h / 2 * self.stride), self.b)
    }
}

impl<F: Kernel, const H: usize> Source for Packing<F, H> {
    #[inline(always)]
    unsafe fn weights(&self, j: usize, h: usize) -> __m256i {
        // SAFETY: see the head of the file.
        unsafe { weights::<F>(self.place(h).codes, j, h % 2) }
    }

    #[inline(always)]
    unsafe fn scale(&self, h: usize) -> __m256 {
        // SAFETY: see the head of the file.
        unsafe { scale::<F>(self.level[h], self.place(h), h % 2) }
    }

    #[inline(always)]
    unsafe fn whole(&self, h: usize, half: usize) -> __m256i {
        // SAFETY: see the head of the file.
        unsafe { whole::<F>(self.place(h), h % 2, half) }
    }

    #[inline(always)]
    unsafe fn min(&self, h: usize, half: usize) -> __m256 {
        // SAFETY: see the head of the file.
        unsafe { min::<F>(self.level[h], self.place(h), h % 2, half) }
    }
}

/// A block that [`expand`] wrote; that of the next group lies a panel further on.
struct Panel<F> {
    at: *const u8,
    format: PhantomData<F>,
}

impl<F: Kernel> Panel<F> {
    /// Register `i` of half `h`.
    #[inline(always)]
    unsafe fn register(&self, i: usize, h: usize) -> *const u8 {
        // SAFETY: see the head of the file.
        unsafe { self.at.add(h / 2 * PANEL_BLOCKS * F::PANEL_BLOCK + i * 64 + h % 2 * 32) }
    }
}

impl<F: Kernel> Source for Panel<F> {
    #[inline(always)]
    unsafe fn weights(&self, j: usize, h: usize) -> __m256i {
        // SAFETY: see the head of the file.
        unsafe { _mm256_load_si256(self.register(j, h).cast()) }
    }

    #[inline(always)]
    unsafe fn scale(&self, h: usize) -> __m256 {
        // SAFETY: see the head of the file.
        unsafe { _mm256_load_ps(self.register(8, h).cast()) }
    }

    #[inline(always)]
    unsafe fn whole(&self, h: usize, half: usize) -> __m256i {
        // SAFETY: see the head of the file.
        unsafe { _mm256_load_si256(self.register(9 + half, h).cast()) }
    }

    #[inline(always)]
    unsafe fn min(&self, h: usize, half: usize) -> __m256 {
        // SAFETY: see the head of the file.
        unsafe { _mm256_load_ps(self.register(8 + F::SCALES + half, h).cast()) }
    }
}

/// Integer dot products of block `b`, which is block `s` of `sums`, with `T` tokens, for `H` halves of groups; times the
/// whole numbers of the scales if there are such.
#[inline(always)]
unsafe fn dots<F: Kernel, const T: usize, const H: usize>(
    rows: &[Row; T],
    sums: &AllSums<T>,
    (b, s): (usize, usize),
    source: &impl Source,
) -> [[__m256i; H]; T] {
    const { F::PAIRS_FIT };
    // SAFETY: see the head of the file.
    unsafe {
        let zero = _mm256_setzero_si256();
        let mut dot = [[zero; H]; T];
        let mut sum = [[zero; H]; T];
        unrolled!(j => {
            if F::BIASED && j.is_multiple_of(F::STEPS) {
                for t in 0..T {
                    sum[t] = [_mm256_set1_epi32(Sums::bias(&sums[t], s * F::PER_BLOCK + j / F::STEPS)); H];
                }
            }
            let mut four = [zero; T];
            for t in 0..T {
                four[t] = _mm256_set1_epi32(rows[t].four(b, j));
            }
            for h in 0..H {
                let w = source.weights(j, h);
                for t in 0..T {
                    sum[t][h] = multiply::<F>(sum[t][h], w, four[t]);
                    if (j + 1).is_multiple_of(F::CHUNK) {
                        dot[t][h] = _mm256_add_epi32(dot[t][h], widen::<F>(sum[t][h], j / F::STEPS, h, source));
                        sum[t][h] = zero;
                        pin(&mut dot[t][h]);
                    } else {
                        pin(&mut sum[t][h]);
                    }
                }
            }
        });
        dot
    }
}

/// Adds block `b` of the activations, which is block `s` of `sums`, to `acc`. The order of operations is the same for any
/// `T` and `H`.
#[inline(always)]
unsafe fn block<F: Kernel, const T: usize, const H: usize>(
    acc: &mut [[__m256; H]; T],
    rows: &[Row; T],
    sums: &AllSums<T>,
    (b, s): (usize, usize),
    source: &impl Source,
) {
    // SAFETY: see the head of the file.
    unsafe {
        let dot = dots::<F, T, H>(rows, sums, (b, s), source);
        for h in 0..H {
            let scale = source.scale(h);
            for t in 0..T {
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(*rows[t].scales.add(b)));
                acc[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t][h]), scale, acc[t][h]);
            }
        }
        if F::MINS {
            for half in 0..F::PER_BLOCK {
                for h in 0..H {
                    let min = source.min(h, half);
                    for t in 0..T {
                        let sum = _mm256_set1_ps(Sums::min(&sums[t], s * F::PER_BLOCK + half));
                        acc[t][h] = _mm256_fmadd_ps(min, sum, acc[t][h]);
                    }
                }
            }
        }
    }
}

/// The activations of `T` tokens from `token` on.
#[inline(always)]
unsafe fn rows_of<const T: usize>(tile: &Tile, token: usize) -> [Row; T] {
    // SAFETY: see the head of the file.
    unsafe {
        let mut rows = [Row::of(tile, token); T];
        for t in 1..T {
            rows[t] = Row::of(tile, token + t);
        }
        rows
    }
}

/// Where the results of half `h` of the tile's rows with token `t` go.
#[inline(always)]
unsafe fn out(tile: &Tile, t: usize, h: usize) -> *mut f32 {
    // SAFETY: see the head of the file.
    unsafe { tile.out(t, 0).add(h * HALF) }
}

/// Few tokens: weights of all groups (`H` halves) go from memory into registers and are expanded there, for the `T` tokens
/// from `token` on.
#[inline(always)]
unsafe fn direct<F: Kernel, const T: usize, const H: usize>(tile: &Tile, token: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let rows: [Row; T] = rows_of(tile, token);
        let blocks = tile.cols / 32;
        // Groups are read side by side: after each comes the one of the same place in the next tile.
        let after = H / 2 * tile.stride;
        let mut acc = [[_mm256_setzero_ps(); H]; T];
        let mut sums = [Sums::NONE; T];
        for run in (0..blocks).step_by(SUPERBLOCK) {
            if run % PANEL_BLOCKS == 0 {
                for t in 0..T {
                    Sums::prepare::<F>(&mut sums[t], rows[t], run, PANEL_BLOCKS.min(blocks - run));
                }
            }
            let mut level = [[_mm256_setzero_ps(); 2]; H];
            for h in 0..H {
                let group = tile.group.add(h / 2 * tile.stride);
                level[h] = first_level::<F>(F::BLOCKS.place(group, run).scales, h % 2);
            }
            for b in run..blocks.min(run + SUPERBLOCK) {
                for g in 0..H / 2 {
                    let group = tile.group.add(g * tile.stride);
                    fetch_ahead::<F>(group, group.wrapping_add(after), blocks, b);
                }
                let source = Packing::<F, H> { group: tile.group, stride: tile.stride, level, b, format: PhantomData };
                block::<F, T, H>(&mut acc, &rows, &sums, (b, b % PANEL_BLOCKS), &source);
            }
        }
        for t in 0..T {
            for h in 0..H {
                _mm256_store_ps(out(tile, token + t, h), acc[t][h]);
            }
        }
    }
}

/// Many tokens: expands a run of blocks of all groups (`H` halves), then multiplies it with all tokens, two at a time.
#[inline(always)]
unsafe fn paneled<F: Kernel, const H: usize>(tile: &Tile) {
    const { F::FITS };
    // SAFETY: see the head of the file.
    unsafe {
        let blocks = tile.cols / 32;
        // Groups are read side by side: after each comes the one of the same place in the next tile.
        let after = H / 2 * tile.stride;
        for first in (0..blocks).step_by(PANEL_BLOCKS) {
            let count = PANEL_BLOCKS.min(blocks - first);
            for g in 0..H / 2 {
                let group = tile.group.add(g * tile.stride);
                for run in (0..count).step_by(SUPERBLOCK) {
                    let BlockPlace { scales, .. } = F::BLOCKS.place(group, first + run);
                    let level = [first_level::<F>(scales, 0), first_level::<F>(scales, 1)];
                    for b in run..count.min(run + SUPERBLOCK) {
                        fetch_ahead::<F>(group, group.wrapping_add(after), blocks, first + b);
                        let to = tile.panel.add((g * PANEL_BLOCKS + b) * F::PANEL_BLOCK);
                        expand::<F>(&level, F::BLOCKS.place(group, first + b), to);
                    }
                }
            }
            let mut t = 0;
            while t + 2 <= tile.tokens {
                micro::<F, 2, H>(tile, t, first, count);
                t += 2;
            }
            if t < tile.tokens {
                micro::<F, 1, H>(tile, t, first, count);
            }
        }
    }
}

/// `T` tokens times the `count` expanded blocks of all groups, added to what earlier panels left in `out`.
#[inline(always)]
unsafe fn micro<F: Kernel, const T: usize, const H: usize>(tile: &Tile, token: usize, first: usize, count: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let rows: [Row; T] = rows_of(tile, token);
        let mut sums = [Sums::NONE; T];
        for t in 0..T {
            Sums::prepare::<F>(&mut sums[t], rows[t], first, count);
        }
        let mut acc = [[_mm256_setzero_ps(); H]; T];
        if first > 0 {
            for t in 0..T {
                for h in 0..H {
                    acc[t][h] = _mm256_load_ps(out(tile, token + t, h));
                }
            }
        }
        for b in 0..count {
            if b % 2 == 0 {
                for t in 0..T {
                    rows[t].prefetch_later(tile, T, first + b);
                }
            }
            let source = Panel::<F> { at: tile.panel.add(b * F::PANEL_BLOCK), format: PhantomData };
            block::<F, T, H>(&mut acc, &rows, &sums, (first + b, b), &source);
        }
        for t in 0..T {
            for h in 0..H {
                _mm256_store_ps(out(tile, token + t, h), acc[t][h]);
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<F: Kernel, const H: usize>(tile: &Tile) {
    // SAFETY: see the head of the file.
    unsafe {
        if tile.tokens >= F::MANY {
            return paneled::<F, H>(tile);
        }
        let mut t = 0;
        while t + 2 <= tile.tokens {
            direct::<F, 2, H>(tile, t);
            t += 2;
        }
        if t < tile.tokens {
            direct::<F, 1, H>(tile, t);
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
                unsafe {
                    if args.groups == 1 {
                        tile::<$dot<types::$name>, 2>(args)
                    } else {
                        tile::<$dot<types::$name>, 4>(args)
                    }
                }
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
        ($($types:tt)+) => { entries! { Pairs, "avx2,fma,f16c"; $($types)+ } };
    }
    integer_types!(all);
}

pub(super) mod vnni {
    use super::*;

    macro_rules! all {
        ($($types:tt)+) => { entries! { Vnni, "avx2,fma,f16c,avxvnni"; $($types)+ } };
    }
    integer_types!(all);
}
