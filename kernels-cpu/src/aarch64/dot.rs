//! Dot products of bytes, with what each level of NEON has for them.
//!
//! | level | instruction | one adds, for four rows |
//! |---|---|---|
//! | NEON | `smull`, `smlal` to 16 bits, then `sadalp` to 32 | one column of two rows, and `sadalp` two |
//! | FEAT_DotProd | `sdot` by element | four columns of one token |
//! | FEAT_I8MM | `smmla` | eight columns of two tokens, for two rows |
//!
//! (Arm Architecture Reference Manual, C7.) Integer sums are exact, so all levels give the same. `sdot` and `smmla` are
//! written as assembly, since the compiler's functions for them are not stable.
//!
//! SAFETY of the whole file: every function needs the features of its level and must be inlined into a caller that has
//! them; pointers cover what the comments say.

use super::expand::{Kernel, Sink};
use std::{
    arch::{aarch64::*, asm},
    marker::PhantomData,
};

/// How a level adds up products.
pub(super) trait Level {
    /// Sums for one quarter (four rows) and one token.
    type Sum: Copy;

    /// Tokens, at most, that multiply weights on their way from memory: for so many there are registers.
    const FEW: usize;
    /// Whether products are added up in 16 bits where they fit, so that formats whose products do not take more registers.
    const SHORT: bool;

    /// A sum that begins with `bias`.
    unsafe fn begin(bias: i32) -> Self::Sum;

    /// Adds steps `J` and `J + 1`, times the columns `J % 4 * 4 ..` of the 16 activations `x`.
    unsafe fn pair<F: Kernel, const J: usize>(sum: &mut Self::Sum, first: int8x16_t, second: int8x16_t, x: int8x16_t);

    /// The sums of four rows, when at most one block was added.
    unsafe fn end(sum: Self::Sum) -> int32x4_t;

    /// Writes steps `J` and `J + 1` of quarter `q` into the panel block `to`, in the order that [`dots`](Self::dots) reads.
    #[inline(always)]
    unsafe fn put<const J: usize>(to: *mut u8, q: usize, first: int8x16_t, second: int8x16_t) {
        // SAFETY: see the head of the file.
        unsafe {
            vst1q_s8(to.add(J * 64 + q * 16).cast(), first);
            vst1q_s8(to.add((J + 1) * 64 + q * 16).cast(), second);
        }
    }

    /// Sums for quarters `q` and `q + 1` of a panel block and one block of `T` tokens: over its first or last 16 columns if
    /// the format has halves, else over all.
    #[inline(always)]
    unsafe fn dots<F: Kernel, const T: usize>(
        panel: *const u8,
        q: usize,
        half: usize,
        x: [*const i8; T],
        bias: [i32; T],
    ) -> [[int32x4_t; 2]; T] {
        // SAFETY: see the head of the file.
        unsafe {
            let mut sums = each!([Self::begin(0); 2]; T, t => [Self::begin(bias[t]); 2]);
            macro_rules! add {
                ($half:expr) => {
                    let x = each!(vdupq_n_s8(0); T, t => vld1q_s8(x[t].add($half * 16)));
                    unrolled!(i in [0, 1] {
                        let w = panel.add($half * 256 + (q + i) * 16).cast::<i8>();
                        let w = each!(vdupq_n_s8(0); 4, j => vld1q_s8(w.add(j * 64)));
                        for t in 0..T {
                            Self::pair::<F, 0>(&mut sums[t][i], w[0], w[1], x[t]);
                        }
                        for t in 0..T {
                            Self::pair::<F, 2>(&mut sums[t][i], w[2], w[3], x[t]);
                        }
                    });
                };
            }
            if F::HALVES {
                add!(half);
            } else {
                add!(0);
                add!(1);
            }
            each!([vdupq_n_s32(0); 2]; T, t => [Self::end(sums[t][0]), Self::end(sums[t][1])])
        }
    }
}

/// Writes weights into a panel block as they are expanded.
pub(super) struct Panel<L> {
    to: *mut u8,
    q: usize,
    level: PhantomData<L>,
}

impl<L> Panel<L> {
    /// Quarter `q` of the block `to`.
    #[inline(always)]
    pub(super) fn new(to: *mut u8, q: usize) -> Self {
        Self { to, q, level: PhantomData }
    }
}

impl<L: Level> Sink for Panel<L> {
    #[inline(always)]
    unsafe fn pair<const J: usize>(&mut self, first: int8x16_t, second: int8x16_t) {
        // SAFETY: see the head of the file.
        unsafe { L::put::<J>(self.to, self.q, first, second) };
    }
}

/// Multiplies weights with one block of `T` tokens as they are expanded.
pub(super) struct Products<L: Level, F, const T: usize> {
    x: [[int8x16_t; 2]; T],
    /// For the first and the last 16 columns.
    sums: [[L::Sum; 2]; T],
    format: PhantomData<F>,
}

impl<L: Level, F: Kernel, const T: usize> Products<L, F, T> {
    /// For the blocks `x`; `bias` is per half, or its first element is for both.
    #[inline(always)]
    pub(super) unsafe fn new(x: [[int8x16_t; 2]; T], bias: [[i32; 2]; T]) -> Self {
        // SAFETY: see the head of the file.
        let sums = unsafe { each!([L::begin(0); 2]; T, t => [L::begin(bias[t][0]), L::begin(bias[t][1])]) };
        Self { x, sums, format: PhantomData }
    }

    /// The sums of four rows per token, over the first and the last 16 columns.
    #[inline(always)]
    pub(super) unsafe fn end(self) -> [[int32x4_t; 2]; T] {
        // SAFETY: see the head of the file.
        unsafe { each!([vdupq_n_s32(0); 2]; T, t => [L::end(self.sums[t][0]), L::end(self.sums[t][1])]) }
    }
}

impl<L: Level, F: Kernel, const T: usize> Sink for Products<L, F, T> {
    #[inline(always)]
    unsafe fn pair<const J: usize>(&mut self, first: int8x16_t, second: int8x16_t) {
        for t in 0..T {
            // SAFETY: see the head of the file.
            unsafe { L::pair::<F, J>(&mut self.sums[t][J / 4], first, second, self.x[t][J / 4]) };
        }
    }
}

/// NEON as every processor has it.
pub(super) struct Neon;

/// Sums of products in 16 bits, two columns of two rows apart, and what has been widened to 32 bits.
#[derive(Clone, Copy)]
pub(super) struct NeonSum {
    short: [int16x8_t; 2],
    wide: [int32x4_t; 2],
    bias: i32,
}

impl Level for Neon {
    type Sum = NeonSum;

    const FEW: usize = 1;
    const SHORT: bool = true;

    #[inline(always)]
    unsafe fn begin(bias: i32) -> NeonSum {
        // SAFETY: see the head of the file.
        unsafe { NeonSum { short: [vdupq_n_s16(0); 2], wide: [vdupq_n_s32(0); 2], bias } }
    }

    #[inline(always)]
    unsafe fn pair<F: Kernel, const J: usize>(sum: &mut NeonSum, first: int8x16_t, second: int8x16_t, x: int8x16_t) {
        // SAFETY: see the head of the file.
        unsafe {
            let fours = vreinterpretq_s32_s8(x);
            let (a, b) = if J.is_multiple_of(4) {
                (vdupq_laneq_s32::<0>(fours), vdupq_laneq_s32::<1>(fours))
            } else {
                (vdupq_laneq_s32::<2>(fours), vdupq_laneq_s32::<3>(fours))
            };
            let (a, b) = (vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
            let short = if F::STAYS_SHORT { sum.short } else { [vdupq_n_s16(0); 2] };
            let low = vmlal_s8(short[0], vget_low_s8(first), vget_low_s8(a));
            let high = vmlal_high_s8(short[1], first, a);
            let low = vmlal_s8(low, vget_low_s8(second), vget_low_s8(b));
            let high = vmlal_high_s8(high, second, b);
            if F::STAYS_SHORT {
                sum.short = [low, high];
            } else {
                sum.wide = [vpadalq_s16(sum.wide[0], low), vpadalq_s16(sum.wide[1], high)];
            }
        }
    }

    #[inline(always)]
    unsafe fn end(sum: NeonSum) -> int32x4_t {
        // SAFETY: see the head of the file.
        unsafe {
            let (low, high) = (vpadalq_s16(sum.wide[0], sum.short[0]), vpadalq_s16(sum.wide[1], sum.short[1]));
            vaddq_s32(vpaddq_s32(low, high), vdupq_n_s32(sum.bias))
        }
    }
}

/// NEON with FEAT_DotProd.
pub(super) struct Dotprod;

/// Adds to each row of `sum` the products of its four columns in `w` with element `LANE` of `x`.
#[inline(always)]
unsafe fn sdot<const LANE: i32>(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut out = sum;
    // SAFETY: see the head of the file; the instruction touches no memory.
    unsafe {
        asm!(
            "sdot {out:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            out = inout(vreg) out, w = in(vreg) w, x = in(vreg) x, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    out
}

#[inline(always)]
unsafe fn sdot_pair<const J: usize>(sum: &mut int32x4_t, first: int8x16_t, second: int8x16_t, x: int8x16_t) {
    // SAFETY: see the head of the file.
    unsafe {
        *sum = if J.is_multiple_of(4) {
            sdot::<1>(sdot::<0>(*sum, first, x), second, x)
        } else {
            sdot::<3>(sdot::<2>(*sum, first, x), second, x)
        }
    };
}

impl Level for Dotprod {
    type Sum = int32x4_t;

    const FEW: usize = 3;
    const SHORT: bool = false;

    #[inline(always)]
    unsafe fn begin(bias: i32) -> int32x4_t {
        // SAFETY: see the head of the file.
        unsafe { vdupq_n_s32(bias) }
    }

    #[inline(always)]
    unsafe fn pair<F: Kernel, const J: usize>(sum: &mut int32x4_t, first: int8x16_t, second: int8x16_t, x: int8x16_t) {
        // SAFETY: see the head of the file.
        unsafe { sdot_pair::<J>(sum, first, second, x) };
    }

    #[inline(always)]
    unsafe fn end(sum: int32x4_t) -> int32x4_t {
        sum
    }
}

/// NEON with FEAT_DotProd and FEAT_I8MM.
pub(super) struct I8mm;

/// Adds the product of `w`, two rows of eight columns, and `x`, two tokens of eight columns: row by row the two tokens.
#[inline(always)]
unsafe fn smmla(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut out = sum;
    // SAFETY: see the head of the file; the instruction touches no memory.
    unsafe {
        asm!(
            "smmla {out:v}.4s, {w:v}.16b, {x:v}.16b",
            out = inout(vreg) out, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    out
}

impl Level for I8mm {
    type Sum = int32x4_t;

    const FEW: usize = 3;
    const SHORT: bool = false;

    #[inline(always)]
    unsafe fn begin(bias: i32) -> int32x4_t {
        // SAFETY: see the head of the file.
        unsafe { vdupq_n_s32(bias) }
    }

    /// With weights that are used once, making pairs of rows costs what `smmla` saves.
    #[inline(always)]
    unsafe fn pair<F: Kernel, const J: usize>(sum: &mut int32x4_t, first: int8x16_t, second: int8x16_t, x: int8x16_t) {
        // SAFETY: see the head of the file.
        unsafe { sdot_pair::<J>(sum, first, second, x) };
    }

    #[inline(always)]
    unsafe fn end(sum: int32x4_t) -> int32x4_t {
        sum
    }

    /// Eight columns of the quarter's first two rows, then of its last two.
    #[inline(always)]
    unsafe fn put<const J: usize>(to: *mut u8, q: usize, first: int8x16_t, second: int8x16_t) {
        // SAFETY: see the head of the file.
        unsafe {
            let (first, second) = (vreinterpretq_s32_s8(first), vreinterpretq_s32_s8(second));
            vst1q_s32(to.add(J * 64 + q * 16).cast(), vzip1q_s32(first, second));
            vst1q_s32(to.add((J + 1) * 64 + q * 16).cast(), vzip2q_s32(first, second));
        }
    }

    #[inline(always)]
    unsafe fn dots<F: Kernel, const T: usize>(
        panel: *const u8,
        q: usize,
        half: usize,
        x: [*const i8; T],
        bias: [i32; T],
    ) -> [[int32x4_t; 2]; T] {
        /// Pairs of tokens at most.
        const PAIRS: usize = 2;
        const { assert!(T <= 2 * PAIRS) };
        let pairs = T.div_ceil(2);
        // A single token is computed twice.
        let second = |p: usize| (2 * p + 1).min(T - 1);
        // SAFETY: see the head of the file.
        unsafe {
            // Per pair of tokens, quarter, and first or last two rows.
            let mut sums = [[[vdupq_n_s32(0); 2]; 2]; PAIRS];
            for p in 0..pairs {
                let both = vzip1q_s32(vdupq_n_s32(bias[2 * p]), vdupq_n_s32(bias[second(p)]));
                sums[p] = [[both; 2]; 2];
            }
            macro_rules! add {
                ($half:expr) => {
                    let mut tokens = [[vdupq_n_s64(0); 2]; PAIRS];
                    for p in 0..pairs {
                        let a = vreinterpretq_s64_s8(vld1q_s8(x[2 * p].add($half * 16)));
                        let b = vreinterpretq_s64_s8(vld1q_s8(x[second(p)].add($half * 16)));
                        tokens[p] = [vzip1q_s64(a, b), vzip2q_s64(a, b)];
                    }
                    unrolled!(eight in [0, 1] {
                        unrolled!(i in [0, 1] {
                            unrolled!(two in [0, 1] {
                                let w = panel.add(($half * 4 + eight * 2 + two) * 64 + (q + i) * 16);
                                let w = vld1q_s8(w.cast());
                                for p in 0..pairs {
                                    let x = vreinterpretq_s8_s64(tokens[p][eight]);
                                    sums[p][i][two] = smmla(sums[p][i][two], w, x);
                                }
                            });
                        });
                    });
                };
            }
            if F::HALVES {
                add!(half);
            } else {
                add!(0);
                add!(1);
            }
            // From two tokens of two rows to one token of four rows.
            let mut out = [[vdupq_n_s32(0); 2]; T];
            for t in 0..T {
                let [[a, b], [c, d]] = sums[t / 2];
                out[t] = if t % 2 == 0 {
                    [vuzp1q_s32(a, b), vuzp1q_s32(c, d)]
                } else {
                    [vuzp2q_s32(a, b), vuzp2q_s32(c, d)]
                };
            }
            out
        }
    }
}
