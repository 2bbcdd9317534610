//! NEON tile kernels for integer formats, at three levels of dot products.
//!
//! All formats come down to one shape: blocks of 32 columns of signed bytes for sixteen rows, a scale per row (two for
//! formats with scales per 16 columns), and perhaps as many minima. With few tokens the weights go from memory to
//! registers once and straight into the dot products; with more they are first expanded into a panel that stays in the
//! first-level cache.
//!
//! SAFETY of the whole file: functions are called through the entry points at the end only, whose contract is that of
//! [`TileKernel`]: the features are there and the tile's pointers cover `groups` groups of `cols` columns, `tokens`
//! activation rows and the scratch. Offsets below stay inside by the layouts of [`crate::pack`] and of `q8a`.

use super::{
    dot::{Dotprod, I8mm, Level, Neon, Panel, Products},
    expand::{Kernel, PANEL_BLOCKS, quarter, row_scales},
};
use crate::{
    act::Row,
    pack::{BlockPlace, integer_types, types},
    tile::{Tile, TileKernel},
};
use rustai_abi::DType;
use std::arch::aarch64::*;

/// What one token contributes to each block of a panel, apart from dot products: per block, or per half block if there
/// are halves.
struct Sums {
    /// What the bias of the codes adds, negated.
    bias: [i32; 2 * PANEL_BLOCKS],
    /// The sum in units of the activation, which the minimum multiplies.
    min: [f32; 2 * PANEL_BLOCKS],
}

impl Sums {
    const ZERO: Self = Self { bias: [0; 2 * PANEL_BLOCKS], min: [0.0; 2 * PANEL_BLOCKS] };

    /// For `count` blocks from `first` on.
    #[inline(always)]
    unsafe fn prepare<F: Kernel>(&mut self, row: Row, first: usize, count: usize) {
        if F::BIAS_BITS.is_none() && !F::MINS {
            return;
        }
        let bits = F::BIAS_BITS.unwrap_or(0);
        // SAFETY: see the head of the file; a row has two sums and a scale per block.
        let (sums, scales) = unsafe {
            (
                std::slice::from_raw_parts(row.sums.add(first), count),
                std::slice::from_raw_parts(row.scales.add(first), count),
            )
        };
        for b in 0..count.min(PANEL_BLOCKS) {
            let ([[a, b0], [c, d]], scale) = (sums[b], scales[b]);
            let (low, high) = (i32::from(a + b0), i32::from(c + d));
            if F::HALVES {
                self.bias[b * 2] = -(low << bits);
                self.bias[b * 2 + 1] = -(high << bits);
                self.min[b * 2] = scale * low as f32;
                self.min[b * 2 + 1] = scale * high as f32;
            } else {
                self.bias[b] = -((low + high) << bits);
                self.min[b] = scale * (low + high) as f32;
            }
        }
    }

    /// What half `half` of block `b` begins with.
    #[inline(always)]
    fn bias<F: Kernel>(&self, b: usize, half: usize) -> i32 {
        if F::BIAS_BITS.is_some() { self.bias[b * F::PER_BLOCK + half] } else { 0 }
    }
}

/// Few tokens: weights from memory into registers, once.
#[inline(always)]
unsafe fn direct<L: Level, F: Kernel, const T: usize>(tile: &Tile) {
    // SAFETY: see the head of the file.
    unsafe {
        let rows = each!(Row::of(tile, 0); T, t => Row::of(tile, t));
        let blocks = tile.cols / 32;
        for g in 0..tile.groups {
            let group = tile.group.add(g * tile.stride);
            let mut acc = [[vdupq_n_f32(0.0); 4]; T];
            for first in (0..blocks).step_by(PANEL_BLOCKS) {
                let count = PANEL_BLOCKS.min(blocks - first);
                let mut sums = [const { Sums::ZERO }; T];
                for t in 0..T {
                    sums[t].prepare::<F>(rows[t], first, count);
                }
                for s in 0..count {
                    let b = first + s;
                    let mut x = [[vdupq_n_s8(0); 2]; T];
                    let mut bias = [[0; 2]; T];
                    for t in 0..T {
                        let at = rows[t].block(b);
                        x[t] = [vld1q_s8(at), vld1q_s8(at.add(16))];
                        bias[t] = [sums[t].bias::<F>(s, 0), if F::HALVES { sums[t].bias::<F>(s, 1) } else { 0 }];
                    }
                    let BlockPlace { codes, scales, index } = F::BLOCKS.place(group, b);
                    let row_scales = row_scales::<F>(scales, index);
                    unrolled!(q in [0, 1, 2, 3] {
                        let mut products = Products::<L, F, T>::new(x, bias);
                        quarter::<F, _>(codes, q, &mut products);
                        let dots = products.end();
                        for t in 0..T {
                            let (d, [low, high]) = (*rows[t].scales.add(b), dots[t]);
                            let mut sum = acc[t][q];
                            if F::HALVES {
                                sum = vfmaq_f32(sum, vcvtq_f32_s32(low), vmulq_n_f32(row_scales.scale[0][q], d));
                                sum = vfmaq_f32(sum, vcvtq_f32_s32(high), vmulq_n_f32(row_scales.scale[1][q], d));
                            } else {
                                let dot = vcvtq_f32_s32(vaddq_s32(low, high));
                                sum = vfmaq_f32(sum, dot, vmulq_n_f32(row_scales.scale[0][q], d));
                            }
                            if F::MINS {
                                for half in 0..F::PER_BLOCK {
                                    let min = sums[t].min[s * F::PER_BLOCK + half];
                                    sum = vfmaq_n_f32(sum, row_scales.min[half][q], min);
                                }
                            }
                            acc[t][q] = sum;
                        }
                    });
                }
            }
            for t in 0..T {
                for q in 0..4 {
                    vst1q_f32(tile.out(t, g).add(q * 4), acc[t][q]);
                }
            }
        }
    }
}

/// Many tokens: expands a run of blocks, then multiplies it with all tokens, a few at a time.
#[inline(always)]
unsafe fn paneled<L: Level, F: Kernel>(tile: &Tile) {
    const { F::FITS };
    // SAFETY: see the head of the file.
    unsafe {
        let blocks = tile.cols / 32;
        for g in 0..tile.groups {
            let group = tile.group.add(g * tile.stride);
            for first in (0..blocks).step_by(PANEL_BLOCKS) {
                let count = PANEL_BLOCKS.min(blocks - first);
                for b in 0..count {
                    expand::<L, F>(F::BLOCKS.place(group, first + b), tile.panel.add(b * F::PANEL_BLOCK));
                }
                let mut t = 0;
                // Four at a time, if there are registers for their sums.
                while (!L::SHORT || F::STAYS_SHORT) && t + 4 <= tile.tokens {
                    micro::<L, F, 4>(tile, g, t, first, count);
                    t += 4;
                }
                while t + 2 <= tile.tokens {
                    micro::<L, F, 2>(tile, g, t, first, count);
                    t += 2;
                }
                if t < tile.tokens {
                    micro::<L, F, 1>(tile, g, t, first, count);
                }
            }
        }
    }
}

/// Writes a block of one group as a panel block.
#[inline(always)]
unsafe fn expand<L: Level, F: Kernel>(BlockPlace { codes, scales, index }: BlockPlace, to: *mut u8) {
    // SAFETY: see the head of the file.
    unsafe {
        unrolled!(q in [0, 1, 2, 3] {
            quarter::<F, _>(codes, q, &mut Panel::<L>::new(to, q));
        });
        let row_scales = row_scales::<F>(scales, index);
        for half in 0..F::PER_BLOCK {
            for q in 0..4 {
                vst1q_f32(to.add((8 + half) * 64 + q * 16).cast(), row_scales.scale[half][q]);
                if F::MINS {
                    vst1q_f32(to.add((8 + F::PER_BLOCK + half) * 64 + q * 16).cast(), row_scales.min[half][q]);
                }
            }
        }
    }
}

/// `T` tokens times the `count` expanded blocks of one group, added to what earlier panels left in `out`; eight rows at
/// a time, for which there are registers.
#[inline(always)]
unsafe fn micro<L: Level, F: Kernel, const T: usize>(tile: &Tile, g: usize, token: usize, first: usize, count: usize) {
    // SAFETY: see the head of the file.
    unsafe {
        let rows = each!(Row::of(tile, token); T, t => Row::of(tile, token + t));
        let mut sums = [const { Sums::ZERO }; T];
        for t in 0..T {
            sums[t].prepare::<F>(rows[t], first, count);
        }
        for q in [0, 2] {
            let out = |t: usize, i: usize| tile.out(token + t, g).add((q + i) * 4);
            let mut acc = [[vdupq_n_f32(0.0); 2]; T];
            if first > 0 {
                for t in 0..T {
                    acc[t] = [vld1q_f32(out(t, 0)), vld1q_f32(out(t, 1))];
                }
            }
            for b in 0..count {
                let panel = tile.panel.add(b * F::PANEL_BLOCK).cast_const();
                let scales = |n: usize, i: usize| vld1q_f32(panel.add((8 + n) * 64 + (q + i) * 16).cast());
                let x = each!(rows[0].block(0); T, t => rows[t].block(first + b));
                for half in 0..F::PER_BLOCK {
                    let bias = each!(0; T, t => sums[t].bias::<F>(b, half));
                    let dots = L::dots::<F, T>(panel, q, half, x, bias);
                    for t in 0..T {
                        let d = *rows[t].scales.add(first + b);
                        for i in 0..2 {
                            let scale = vmulq_n_f32(scales(half, i), d);
                            acc[t][i] = vfmaq_f32(acc[t][i], vcvtq_f32_s32(dots[t][i]), scale);
                        }
                    }
                }
                if F::MINS {
                    for half in 0..F::PER_BLOCK {
                        for t in 0..T {
                            let sum = sums[t].min[b * F::PER_BLOCK + half];
                            for i in 0..2 {
                                acc[t][i] = vfmaq_n_f32(acc[t][i], scales(F::PER_BLOCK + half, i), sum);
                            }
                        }
                    }
                }
            }
            for t in 0..T {
                for i in 0..2 {
                    vst1q_f32(out(t, i), acc[t][i]);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<L: Level, F: Kernel>(tile: &Tile) {
    // SAFETY: see the head of the file.
    unsafe {
        match tile.tokens {
            1 => direct::<L, F, 1>(tile),
            2 if L::FEW >= 2 => direct::<L, F, 2>(tile),
            3 if L::FEW >= 3 => direct::<L, F, 3>(tile),
            _ => paneled::<L, F>(tile),
        }
    }
}

macro_rules! entries {
    ($level:ident, $features:literal; $($entry:ident: $name:ident),+) => {
        $(
            /// # Safety
            /// See [`TileKernel`].
            #[target_feature(enable = $features)]
            unsafe fn $entry(args: &Tile) {
                // SAFETY: the caller's promise is ours.
                unsafe { tile::<$level, types::$name>(args) }
            }
        )+

        /// The kernel of a type.
        pub(in crate::aarch64) fn kernel(dtype: DType) -> Option<TileKernel> {
            Some(match dtype {
                $(DType::$name => $entry,)+
                _ => return None,
            })
        }
    };
}

pub(super) mod neon {
    use super::*;

    macro_rules! all {
        ($($types:tt)+) => { entries! { Neon, "neon"; $($types)+ } };
    }
    integer_types!(all);
}

pub(super) mod dotprod {
    use super::*;

    macro_rules! all {
        ($($types:tt)+) => { entries! { Dotprod, "neon,dotprod"; $($types)+ } };
    }
    integer_types!(all);
}

pub(super) mod i8mm {
    use super::*;

    macro_rules! all {
        ($($types:tt)+) => { entries! { I8mm, "neon,dotprod,i8mm"; $($types)+ } };
    }
    integer_types!(all);
}
