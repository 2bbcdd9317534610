//! The order in which packed weights lie in memory.
//!
//! Sixteen rows form a *group*. Within a group the rows are interleaved in pieces of four columns, so that one 64-byte
//! load brings the same four columns of all sixteen rows: exactly what one `vpdpbusd` on a 512-bit register consumes,
//! two on 256-bit registers, and no horizontal sum is ever needed. Quants come first, scales follow in a plane of their
//! own, so quant loads stay 64-byte aligned. Packing copies bits and changes none; a group takes as many bytes as its
//! rows do in the file, except for Q4_K, whose 6-bit scales are widened to bytes (148 bytes instead of 144).
//!
//! | type | quants of a group | scales of a group |
//! |---|---|---|
//! | Q4_0 | per block 4 x 64 bytes; low nibble: columns 0-15, high: 16-31 | per block 16 x f16 d |
//! | Q4_1 | as Q4_0 | per block 16 x f16 d, 16 x f16 m |
//! | Q8_0 | per block 8 x 64 bytes | per block 16 x f16 d |
//! | Q4_K | per 64 columns 8 x 64 bytes; low nibble: first 32 columns, high: last 32 | per 256: 16 x f16 d, 16 x f16 dmin, 8 x 16 bytes scale, 8 x 16 bytes min |
//! | Q6_K | per 128 columns 16 x 64 bytes low bits, 8 x 64 bytes high bits | per 256: 16 x f16 d, 16 x 16 bytes scale |
//! | F16, F32 | per column 16 values | none |

use crate::formats::k_scales;
use rayon::prelude::*;
use rustai_abi::DType;

/// Rows in a group.
pub(crate) const GROUP: usize = 16;

/// Groups that are packed by one task: enough to be worth a task, few enough to share evenly.
const GROUPS_PER_TASK: usize = 8;

/// A packed order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Q4_0,
    Q4_1,
    Q8_0,
    Q4K,
    Q6K,
    F16,
    F32,
}

impl Layout {
    /// The packed order for a type, if there is one.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        Some(match dtype {
            DType::Q4_0 => Self::Q4_0,
            DType::Q4_1 => Self::Q4_1,
            DType::Q8_0 => Self::Q8_0,
            DType::Q4_K => Self::Q4K,
            DType::Q6_K => Self::Q6K,
            DType::F16 => Self::F16,
            DType::F32 => Self::F32,
            _ => return None,
        })
    }

    /// Whether the layout's kernels multiply 8-bit activations.
    pub(crate) const fn is_integer(self) -> bool {
        !matches!(self, Self::F16 | Self::F32)
    }

    /// Unsigned quants are stored as value plus `1 << bits`; `None` if they are signed or the value itself.
    pub(crate) const fn bias_bits(self) -> Option<u32> {
        match self {
            Self::Q4_0 => Some(3),
            Self::Q6K => Some(5),
            _ => None,
        }
    }

    /// Whether a block of 32 columns has a minimum besides its scale.
    pub(crate) const fn has_minima(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q4K)
    }

    /// Whether scales belong to 16 columns rather than to 32.
    pub(crate) const fn has_half_scales(self) -> bool {
        matches!(self, Self::Q6K)
    }

    /// Bytes of one group of rows of `cols` columns, a multiple of 64.
    pub(crate) fn group_bytes(self, cols: usize) -> usize {
        (self.quant_bytes(cols) + self.scale_bytes(cols)).next_multiple_of(64)
    }

    /// Bytes of a group's quants, where its scales begin.
    pub(crate) const fn quant_bytes(self, cols: usize) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 => cols / 32 * 256,
            Self::Q8_0 => cols / 32 * 512,
            Self::Q4K => cols / 256 * 2048,
            Self::Q6K => cols / 256 * 3072,
            Self::F16 => cols * 32,
            Self::F32 => cols * 64,
        }
    }

    /// Bytes of a group's scales.
    pub(crate) const fn scale_bytes(self, cols: usize) -> usize {
        match self {
            Self::Q4_0 | Self::Q8_0 => cols / 32 * 32,
            Self::Q4_1 => cols / 32 * 64,
            Self::Q4K => cols / 256 * 320,
            Self::Q6K => cols / 256 * 288,
            Self::F16 | Self::F32 => 0,
        }
    }

    /// Packs row-major blocks (`rows` times `row_bytes`) into `out`, which is zeroed and holds the rows rounded up to
    /// whole groups.
    pub(crate) fn pack(self, cols: usize, row_bytes: usize, bytes: &[u8], out: &mut [u8]) {
        let stride = self.group_bytes(cols);
        let zeros = vec![0; row_bytes];
        out.par_chunks_mut(stride * GROUPS_PER_TASK).enumerate().for_each(|(task, chunk)| {
            for (i, group) in chunk.chunks_exact_mut(stride).enumerate() {
                let first = (task * GROUPS_PER_TASK + i) * GROUP;
                let rows: [&[u8]; GROUP] = std::array::from_fn(|r| {
                    let start = (first + r) * row_bytes;
                    bytes.get(start..start + row_bytes).unwrap_or(&zeros)
                });
                let (quants, scales) = group.split_at_mut(self.quant_bytes(cols));
                self.pack_group(&rows, cols, quants, scales);
            }
        });
    }

    fn pack_group(self, rows: &[&[u8]; GROUP], cols: usize, quants: &mut [u8], scales: &mut [u8]) {
        match self {
            Self::Q4_0 => {
                for b in 0..cols / 32 {
                    interleave::<4>(rows, b * 18 + 2, 4, &mut quants[b * 256..]);
                    interleave::<2>(rows, b * 18, 1, &mut scales[b * 32..]);
                }
            }
            Self::Q4_1 => {
                for b in 0..cols / 32 {
                    interleave::<4>(rows, b * 20 + 4, 4, &mut quants[b * 256..]);
                    interleave::<2>(rows, b * 20, 2, &mut scales[b * 64..]);
                }
            }
            Self::Q8_0 => {
                for b in 0..cols / 32 {
                    interleave::<4>(rows, b * 34 + 2, 8, &mut quants[b * 512..]);
                    interleave::<2>(rows, b * 34, 1, &mut scales[b * 32..]);
                }
            }
            Self::Q4K => {
                for b in 0..cols / 256 {
                    interleave::<4>(rows, b * 144 + 16, 32, &mut quants[b * 2048..]);
                    let scales = &mut scales[b * 320..(b + 1) * 320];
                    interleave::<2>(rows, b * 144, 2, scales);
                    for (r, row) in rows.iter().enumerate() {
                        let packed = row[b * 144 + 4..].first_chunk().expect("a block has 12 bytes of scales");
                        let (factors, mins) = k_scales::unpack(packed);
                        for i in 0..8 {
                            scales[64 + i * GROUP + r] = factors[i];
                            scales[192 + i * GROUP + r] = mins[i];
                        }
                    }
                }
            }
            Self::Q6K => {
                for b in 0..cols / 256 {
                    for half in 0..2 {
                        let quants = &mut quants[b * 3072 + half * 1536..];
                        interleave::<4>(rows, b * 210 + half * 64, 16, quants);
                        interleave::<4>(rows, b * 210 + 128 + half * 32, 8, &mut quants[1024..]);
                    }
                    interleave::<2>(rows, b * 210 + 208, 1, &mut scales[b * 288..]);
                    interleave::<1>(rows, b * 210 + 192, 16, &mut scales[b * 288 + 32..]);
                }
            }
            Self::F16 => interleave::<2>(rows, 0, cols, quants),
            Self::F32 => interleave::<4>(rows, 0, cols, quants),
        }
    }
}

/// `out[j][r] = rows[r][from + j * SIZE ..][..SIZE]` for `count` pieces of `SIZE` bytes.
fn interleave<const SIZE: usize>(rows: &[&[u8]; GROUP], from: usize, count: usize, out: &mut [u8]) {
    let rows: [&[[u8; SIZE]]; GROUP] = rows.map(|row| row[from..from + count * SIZE].as_chunks().0);
    let out = out[..count * GROUP * SIZE].as_chunks_mut::<SIZE>().0;
    for (j, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        for (out, row) in out.iter_mut().zip(&rows) {
            *out = row[j];
        }
    }
}
