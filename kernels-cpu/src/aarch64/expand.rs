//! Packed weights of the integer formats as signed bytes, and their scales.
//!
//! A *quarter* is four rows of a group. A register holds four columns of a quarter: one *step* of four columns and
//! sixteen rows is four registers, quarter by quarter.
//!
//! SAFETY of the whole file: every function needs NEON and must be inlined into a caller that has it; pointers are to
//! codes and scales of a group of [`crate::pack`], whose layout keeps the offsets inside.

use crate::{
    pack::{Codes, GROUP, Packed, Scales, Values},
    tile::PANEL_BYTES,
};
use std::arch::aarch64::*;

/// Blocks of 32 columns that are expanded at a time.
pub(super) const PANEL_BLOCKS: usize = 16;

/// What the kernels derive from a packed order.
pub(super) trait Kernel: Packed {
    /// Codes are the value plus `1 << BIAS_BITS`; no bias if `None`.
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
    /// Products of weights and activations, which lie in -127 ..= 127, that a 16-bit sum holds: 8, 4 or 2.
    const SHORT_STEPS: usize = match i16::MAX as i32 / (127 * Self::LARGEST) {
        0 | 1 => panic!("two products do not fit 16 bits"),
        2 | 3 => 2,
        4..8 => 4,
        _ => 8,
    };
    /// Whether 16-bit sums hold what one scale belongs to: four products, or eight.
    const STAYS_SHORT: bool = Self::SHORT_STEPS * Self::PER_BLOCK >= 8;
    const HALVES: bool = Self::BLOCKS.scales.halves();
    const MINS: bool = Self::BLOCKS.scales.has_min();
    /// Scales, or minima, of a row in a block.
    const PER_BLOCK: usize = if Self::HALVES { 2 } else { 1 };
    /// Bytes of one expanded block of one group: eight steps of weights, then scales, then minima.
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

/// Takes the weights of a quarter as they are expanded.
pub(super) trait Sink {
    /// Steps `J` and `J + 1`, for even `J`; each comes once, in no order.
    unsafe fn pair<const J: usize>(&mut self, first: int8x16_t, second: int8x16_t);
}

/// Shifts bytes left by a positive count, right by a negative one.
#[inline(always)]
unsafe fn shift(packed: uint8x16_t, left: i32) -> uint8x16_t {
    // SAFETY: see the head of the file.
    unsafe {
        match left {
            4 => vshlq_n_u8::<4>(packed),
            3 => vshlq_n_u8::<3>(packed),
            2 => vshlq_n_u8::<2>(packed),
            1 => vshlq_n_u8::<1>(packed),
            0 => packed,
            -1 => vshrq_n_u8::<1>(packed),
            -2 => vshrq_n_u8::<2>(packed),
            -3 => vshrq_n_u8::<3>(packed),
            -4 => vshrq_n_u8::<4>(packed),
            -5 => vshrq_n_u8::<5>(packed),
            _ => vshrq_n_u8::<6>(packed),
        }
    }
}

/// Step `j` of a quarter whose registers of codes `register` loads.
#[inline(always)]
unsafe fn weights<F: Kernel>(register: impl Fn(usize) -> uint8x16_t, j: usize) -> int8x16_t {
    // SAFETY: see the head of the file.
    unsafe {
        let and = |bits: uint8x16_t, mask: u8| vandq_u8(bits, vdupq_n_u8(mask));
        let step = j as i32;
        let nibble = || {
            let packed = register(j % 4);
            if j < 4 { and(packed, 15) } else { vshrq_n_u8::<4>(packed) }
        };
        let crumb = |i: usize| match j % 4 {
            3 => vshrq_n_u8::<6>(register(i)),
            s => and(shift(register(i), -2 * s as i32), 3),
        };
        let plain = match F::BLOCKS.codes {
            Codes::Two => crumb(j / 4),
            Codes::Three => vorrq_u8(crumb(j / 4), and(shift(register(2), 2 - step), 4)),
            Codes::Four => nibble(),
            Codes::Five => vorrq_u8(nibble(), and(shift(register(4), 4 - step), 16)),
            Codes::Six => vorrq_u8(nibble(), and(shift(register(4 + j / 4), 4 - 2 * (step % 4)), 0x30)),
            Codes::Eight => register(j),
        };
        match F::BLOCKS.values {
            Values::Offset(_) | Values::Signed => vreinterpretq_s8_u8(plain),
            Values::Table(table) => vqtbl1q_s8(vld1q_s8(table.as_ptr()), plain),
        }
    }
}

/// Gives all steps of quarter `q` of the block whose codes begin at `codes` to `sink`.
#[inline(always)]
pub(super) unsafe fn quarter<F: Kernel, S: Sink>(codes: *const u8, q: usize, sink: &mut S) {
    // SAFETY: see the head of the file.
    unsafe {
        let register = |i: usize| vld1q_u8(codes.add(q * 16 + i * 64));
        // Pairs that come from the same registers follow each other.
        macro_rules! pairs {
            ($($j:literal),+) => {{
                $(sink.pair::<$j>(weights::<F>(register, $j), weights::<F>(register, $j + 1));)+
            }};
        }
        match F::BLOCKS.codes {
            Codes::Two | Codes::Three | Codes::Eight => pairs!(0, 2, 4, 6),
            Codes::Four | Codes::Five | Codes::Six => pairs!(0, 4, 2, 6),
        }
    }
}

/// Scales and minima of sixteen rows in one block, for its first and last 16 columns if they differ.
pub(super) struct RowScales {
    pub(super) scale: [[float32x4_t; 4]; 2],
    /// What is added per unit of activation.
    pub(super) min: [[float32x4_t; 4]; 2],
}

/// Sixteen f16.
#[inline(always)]
unsafe fn halves(at: *const u8) -> [float32x4_t; 4] {
    // SAFETY: see the head of the file.
    unsafe {
        let eight = |i: usize| vreinterpretq_f16_u16(vld1q_u16(at.add(i * 16).cast()));
        let (low, high) = (eight(0), eight(1));
        [
            vcvt_f32_f16(vget_low_f16(low)),
            vcvt_high_f32_f16(low),
            vcvt_f32_f16(vget_low_f16(high)),
            vcvt_high_f32_f16(high),
        ]
    }
}

/// Sixteen unsigned bytes.
#[inline(always)]
unsafe fn wide(bytes: uint8x16_t) -> [uint32x4_t; 4] {
    // SAFETY: see the head of the file.
    unsafe {
        let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
        [vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)]
    }
}

#[inline(always)]
unsafe fn unsigned(bytes: uint8x16_t) -> [float32x4_t; 4] {
    // SAFETY: see the head of the file.
    unsafe {
        let wide = wide(bytes);
        each!(vdupq_n_f32(0.0); 4, q => vcvtq_f32_u32(wide[q]))
    }
}

#[inline(always)]
unsafe fn signed(bytes: uint8x16_t) -> [float32x4_t; 4] {
    // SAFETY: see the head of the file.
    unsafe {
        let bytes = vreinterpretq_s8_u8(bytes);
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
        let wide =
            [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)];
        each!(vdupq_n_f32(0.0); 4, q => vcvtq_f32_s32(wide[q]))
    }
}

#[inline(always)]
unsafe fn times(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: see the head of the file.
    unsafe { each!(vdupq_n_f32(0.0); 4, q => vmulq_f32(a[q], b[q])) }
}

#[inline(always)]
unsafe fn negative(a: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: see the head of the file.
    unsafe { each!(vdupq_n_f32(0.0); 4, q => vnegq_f32(a[q])) }
}

/// Half of 2^(e - 127): an exponent field of e - 1, or one of two denormals.
#[inline(always)]
unsafe fn half_of_power(e: uint32x4_t) -> float32x4_t {
    // SAFETY: see the head of the file.
    unsafe {
        let normal = vshlq_n_u32::<23>(vsubq_u32(e, vdupq_n_u32(1)));
        let denormal = vshlq_u32(vdupq_n_u32(0x0020_0000), vreinterpretq_s32_u32(e));
        vreinterpretq_f32_u32(vbslq_u32(vcltq_u32(e, vdupq_n_u32(2)), denormal, normal))
    }
}

/// Scales and minima of block `index` of the superblock whose scales begin at `scales`.
#[inline(always)]
pub(super) unsafe fn row_scales<F: Kernel>(scales: *const u8, index: usize) -> RowScales {
    // SAFETY: see the head of the file.
    unsafe {
        let zero = [vdupq_n_f32(0.0); 4];
        let bytes = |at: *const u8| vld1q_u8(at);
        let (scale, min) = match F::BLOCKS.scales {
            Scales::Half => ([halves(scales), zero], [zero; 2]),
            Scales::HalfWithMin => ([halves(scales), zero], [halves(scales.add(32)), zero]),
            Scales::Exponent => {
                let e = wide(bytes(scales));
                ([each!(vdupq_n_f32(0.0); 4, q => half_of_power(e[q])), zero], [zero; 2])
            }
            Scales::Runs32 => {
                let at = scales.add(32 + index * GROUP);
                ([times(halves(scales), signed(bytes(at))), zero], [zero; 2])
            }
            Scales::Runs16 => {
                let (d, at) = (halves(scales), scales.add(32 + index * 2 * GROUP));
                ([times(d, signed(bytes(at))), times(d, signed(bytes(at.add(GROUP))))], [zero; 2])
            }
            Scales::Runs32WithMin => {
                let (d, dmin) = (halves(scales), negative(halves(scales.add(32))));
                let at = scales.add(64 + index * 2 * GROUP);
                ([times(d, unsigned(bytes(at))), zero], [times(dmin, unsigned(bytes(at.add(GROUP)))), zero])
            }
            Scales::Runs16WithMin => {
                let (d, dmin) = (halves(scales), negative(halves(scales.add(32))));
                let at = scales.add(64 + index * 2 * GROUP);
                let (first, last) = (bytes(at), bytes(at.add(GROUP)));
                let low = |both| times(d, unsigned(vandq_u8(both, vdupq_n_u8(15))));
                let high = |both| times(dmin, unsigned(vshrq_n_u8::<4>(both)));
                ([low(first), low(last)], [high(first), high(last)])
            }
        };
        RowScales { scale, min }
    }
}
