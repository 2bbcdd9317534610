//! The order in which packed weights lie in memory.
//!
//! Sixteen rows form a *group*. Within a group the rows are interleaved in pieces of four columns, so that one 64-byte
//! register brings the same four columns of all sixteen rows: exactly what one `vpdpbusd` on a 512-bit register consumes,
//! two on 256-bit registers, four `sdot` on 128-bit ones, and no horizontal sum is ever needed. Superblocks follow
//! each other, scales first and then codes, so a kernel reads memory in one stream, which processors fetch ahead by themselves
//! (PERFORMANCE.md). [`layout`] has the details.
//!
//! Packing rearranges bits and changes none of the numbers, so a row can be read back exactly ([`unpack_row`]). A group
//! takes as many bytes as its rows do in the file, but for types whose 6-bit scales are widened to bytes (Q4_K: 148 bytes
//! instead of 144; Q3_K, Q5_K and IQ4_XS likewise).

mod column;
mod layout;
mod words;

#[cfg(target_arch = "x86_64")]
pub(crate) use layout::SUPERBLOCK;
pub(crate) use layout::{BlockPlace, Packed, integer_types, types};
pub use layout::{Blocks, Codes, Layout, Scales, Values};
pub use words::{Whole, Words};

use crate::{
    SharedBytes,
    fetch::fetch,
    formats::{self, mxfp4},
};
use column::{Column, Four};
use half::f16;
use rayon::prelude::*;
use rustai_abi::DType;

/// Rows in a group.
pub(crate) const GROUP: usize = 16;

/// Groups that are packed by one task: enough to be worth a task, few enough to share evenly.
pub(crate) const GROUPS_PER_TASK: usize = 8;

/// Packs row-major blocks of one type and row length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packer {
    layout: Layout,
    /// Bytes of a group in the file and packed.
    group_bytes: usize,
    stride: usize,
    /// Bytes of a packed group that are more than padding.
    used: usize,
    pack_group: PackGroup,
}

impl Packer {
    /// For rows of `cols` values, which are whole blocks.
    pub(crate) fn new(dtype: DType, layout: Layout, cols: usize) -> Self {
        let pack_group = match layout {
            Layout::Plain(2) => interleave::<2>,
            Layout::Plain(_) => interleave::<4>,
            Layout::Blocks(_) => packer_of(dtype),
        };
        let group_bytes = GROUP * dtype.bytes_for(cols).expect("rows are whole blocks");
        Self { layout, group_bytes, stride: layout.group_bytes(cols), used: layout.used_bytes(cols), pack_group }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Bytes from one packed group to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Bytes of a group in the file.
    pub(crate) fn group_bytes(&self) -> usize {
        self.group_bytes
    }

    /// Packs the groups from `first` on, as many as `out` has room for and whatever that holds before. `scratch` has
    /// [`group_bytes`](Self::group_bytes), for a last group that lacks rows.
    pub(crate) fn pack(&self, bytes: &SharedBytes, first: usize, out: &mut [u8], scratch: &mut [u8]) {
        let scratch = &mut scratch[..self.group_bytes];
        let mut start = first * self.group_bytes;
        for out in out.chunks_mut(self.stride * GROUPS_PER_TASK) {
            // As many more are fetched while these are packed, or packed and multiplied, and somewhat more.
            let next = start + out.len() / self.stride * self.group_bytes;
            bytes.ready(next..2 * next - start + self.group_bytes);
            let groups = out.chunks_exact_mut(self.stride).zip(bytes[start..].chunks(self.group_bytes));
            for (group, mut rows) in groups {
                if rows.len() < self.group_bytes {
                    let (present, absent) = scratch.split_at_mut(rows.len());
                    present.copy_from_slice(rows);
                    absent.fill(0);
                    rows = scratch;
                }
                (self.pack_group)(rows, group);
                group[self.used..].fill(0);
            }
            start = next;
        }
    }

    /// Packs all groups, on the threads of the pool that the caller is in.
    pub(crate) fn pack_in_parallel(&self, bytes: &SharedBytes, out: &mut [u8]) {
        let tasks = out.par_chunks_mut(self.stride * GROUPS_PER_TASK).enumerate();
        tasks.for_each_init(
            || vec![0; self.group_bytes],
            |scratch, (task, out)| self.pack(bytes, task * GROUPS_PER_TASK, out, scratch),
        );
    }
}

/// Packs the rows of one group, which follow each other; those of the next group are fetched meanwhile, since rows are read side
/// by side, each too short for the processor to fetch it ahead.
type PackGroup = fn(&[u8], &mut [u8]);

/// The function made for a type of blocks.
fn packer_of(dtype: DType) -> PackGroup {
    macro_rules! fastest {
        ($name:ident) => {{
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the features.
                return |rows, out| unsafe { pack_blocks_with_avx2::<types::$name>(rows, out) };
            }
            pack_blocks::<types::$name>
        }};
    }
    macro_rules! choose {
        ($($entry:ident: $name:ident),+) => {
            match dtype {
                $(DType::$name => fastest!($name),)+
                // PANIC: only types of `integer_types` have a layout of blocks.
                _ => unreachable!("{dtype} has no blocks"),
            }
        };
    }
    integer_types!(choose)
}

/// `out[j][r] = rows[r][j]` for pieces of `SIZE` bytes.
fn interleave<const SIZE: usize>(rows: &[u8], out: &mut [u8]) {
    let count = rows.len() / GROUP / SIZE;
    let rows: [&[[u8; SIZE]]; GROUP] = std::array::from_fn(|r| &rows.as_chunks().0[r * count..(r + 1) * count]);
    let next = rows[GROUP - 1].as_ptr_range().end.cast::<u8>();
    for (j, out) in out.as_chunks_mut::<SIZE>().0.as_chunks_mut::<GROUP>().0[..count].iter_mut().enumerate() {
        fetch(next.wrapping_add(j * GROUP * SIZE), GROUP * SIZE);
        for (out, row) in out.iter_mut().zip(&rows) {
            *out = row[j];
        }
    }
}

/// [`pack_blocks`] in instructions with three operands.
///
/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn pack_blocks_with_avx2<P: Packed>(rows: &[u8], out: &mut [u8]) {
    pack_blocks::<P>(rows, out);
}

#[inline(always)]
fn pack_blocks<P: Packed>(rows: &[u8], out: &mut [u8]) {
    let Blocks { codes, scales, .. } = P::BLOCKS;
    let bytes = P::DTYPE.block_bytes();
    let row_bytes = rows.len() / GROUP;
    for (b, out) in out.chunks_exact_mut(P::BLOCKS.bytes()).take(row_bytes / bytes).enumerate() {
        let (scale_place, code_place) = out.split_at_mut(scales.bytes());
        fetch(rows.as_ptr().wrapping_add(rows.len() + b * GROUP * bytes), GROUP * bytes);
        let mut whole = [[Four::splat(0); 4]; 4];
        for (four, rows) in rows.chunks_exact(4 * row_bytes).enumerate() {
            let block = |row: usize| &rows[row * row_bytes + b * bytes..][..bytes];
            let blocks = [block(0), block(1), block(2), block(3)];
            // Unrolled by hand, so that what depends on `k` is known while compiling.
            macro_rules! put_words {
                ($($k:literal)+) => {
                    $(
                        let registers = &mut code_place[$k * codes.bytes()..][..codes.bytes()];
                        let words = (P::BLOCKS.words_of_four)(blocks, $k);
                        for (register, words) in registers.as_chunks_mut::<64>().0.iter_mut().zip(words) {
                            register[four * 16..][..16].copy_from_slice(&words.to_le_bytes());
                        }
                    )+
                };
            }
            if scales.two_level() {
                put_words!(0 1 2 3 4 5 6 7);
            } else {
                put_words!(0);
            }
            for (r, block) in blocks.iter().enumerate() {
                put_first_level(scales, &block[P::BLOCKS.d_at..], four * 4 + r, scale_place);
            }
            whole[four] = (P::BLOCKS.whole_of_four)(blocks);
        }
        for i in 0..scales.whole() / 4 {
            let bytes = Four::bytes([whole[0][i], whole[1][i], whole[2][i], whole[3][i]]);
            for (j, bytes) in bytes.iter().enumerate() {
                scale_place[scales.place(4 * i + j)..][..GROUP].copy_from_slice(bytes);
            }
        }
    }
}

/// Writes what a block of row `r` has at its [`d_at`](Blocks::d_at).
#[inline(always)]
fn put_first_level(scales: Scales, block: &[u8], r: usize, out: &mut [u8]) {
    if scales == Scales::Exponent {
        out[r] = block[0];
        return;
    }
    out[r * 2..r * 2 + 2].copy_from_slice(&block[..2]);
    if scales.has_min() {
        out[32 + r * 2..34 + r * 2].copy_from_slice(&block[2..4]);
    }
}

/// Bytes of a row's codes in one block of 32 columns, at most.
const ROW_CODES: usize = 32;

/// The code of column `col` of a row's part of a block, the inverse of [`words`].
fn unpack_code(order: Codes, packed: &[u8; ROW_CODES], col: usize) -> u8 {
    let nibble = |bytes: &[u8]| bytes[col % 16] >> (col / 16 * 4) & 0x0f;
    let crumb = |bytes: &[u8]| bytes[col / 16 * 4 + col % 4] >> (col % 16 / 4 * 2) & 3;
    let bit = |bytes: &[u8]| bytes[col % 4] >> (col / 4) & 1;
    match order {
        Codes::Two => crumb(packed),
        Codes::Three => crumb(packed) | bit(&packed[8..]) << 2,
        Codes::Four => nibble(packed),
        Codes::Five => nibble(packed) | bit(&packed[16..]) << 4,
        Codes::Six => nibble(packed) | crumb(&packed[16..]) << 4,
        Codes::Eight => packed[col],
    }
}

/// Scale and addend of row `r` for column `col` of a superblock, with the same operations as the type's `dequantize`.
fn scale_of(scales: Scales, r: usize, col: usize, packed: &[u8]) -> (f32, f32) {
    let half = |at: usize| f16::from_le_bytes([packed[at + r * 2], packed[at + r * 2 + 1]]).to_f32();
    let byte = |at: usize| packed[at + r];
    match scales {
        Scales::Half => (half(0), 0.0),
        Scales::HalfWithMin => (half(0), half(32)),
        Scales::Exponent => (mxfp4::half_scale(byte(0)), 0.0),
        Scales::Runs32 | Scales::Runs16 => {
            let run = if scales == Scales::Runs32 { col / 32 } else { col / 16 };
            (half(0) * f32::from(byte(scales.place(run)) as i8), 0.0)
        }
        Scales::Runs32WithMin => {
            let [scale, min] = [col / 32, 8 + col / 32].map(|i| f32::from(byte(scales.place(i))));
            (half(0) * scale, -(half(32) * min))
        }
        Scales::Runs16WithMin => {
            let both = byte(scales.place(col / 16));
            (half(0) * f32::from(both & 0x0f), -(half(32) * f32::from(both >> 4)))
        }
    }
}

/// The values of row `r` of a packed group: what the type's `dequantize` gives, bit for bit.
pub(crate) fn unpack_row(dtype: DType, layout: Layout, group: &[u8], r: usize, out: &mut [f32]) {
    match layout {
        Layout::Plain(size) => {
            // PANIC: every type with a layout is in the table of formats.
            let format = formats::of(dtype).expect("a format");
            for (k, value) in out.iter_mut().enumerate() {
                (format.dequantize)(&group[(k * GROUP + r) * size..][..size], std::slice::from_mut(value));
            }
        }
        Layout::Blocks(blocks) => {
            let superblocks = group.chunks_exact(blocks.bytes());
            for (out, superblock) in out.chunks_exact_mut(32 * blocks.scales.blocks()).zip(superblocks) {
                let (scales, codes) = superblock.split_at(blocks.scales.bytes());
                let blocks_of_codes = codes.chunks_exact(blocks.codes.bytes());
                for (b, (out, codes)) in out.as_chunks_mut().0.iter_mut().zip(blocks_of_codes).enumerate() {
                    unpack_block(&blocks, codes, scales, (r, b * 32), out);
                }
            }
        }
    }
}

/// The 32 values of row `r` from column `col` of a superblock on.
fn unpack_block(blocks: &Blocks, codes: &[u8], scales: &[u8], (r, col): (usize, usize), out: &mut [f32; 32]) {
    let mut packed = [0; ROW_CODES];
    for (four, register) in packed.as_chunks_mut::<4>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
        four.copy_from_slice(&register[r * 4..r * 4 + 4]);
    }
    let run = if blocks.scales.halves() { 16 } else { 32 };
    for (half, out) in out.chunks_exact_mut(run).enumerate() {
        let (scale, addend) = scale_of(blocks.scales, r, col + half * run, scales);
        for (i, value) in out.iter_mut().enumerate() {
            let code = unpack_code(blocks.codes, &packed, half * run + i);
            let whole = match blocks.values {
                Values::Offset(offset) => code as i8 - offset as i8,
                Values::Signed => code as i8,
                Values::Table(table) => table[usize::from(code)],
            };
            *value = scale * f32::from(whole);
            // Adding zero would turn a negative zero into a positive one.
            if blocks.scales.has_min() {
                *value += addend;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_reads_back_as_its_type_dequantizes_it() {
        for (dtype, layout) in layout::LAYOUTS {
            let (cols, rows) = (3 * dtype.block_len().max(5), 21);
            let row_bytes = dtype.bytes_for(cols).unwrap();
            // Any bits are a block.
            let mut state = 1u64;
            let bytes: Vec<u8> = (0..rows * row_bytes)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                })
                .collect();
            let stride = layout.group_bytes(cols);
            let mut packed = vec![0; rows.div_ceil(GROUP) * stride];
            Packer::new(dtype, layout, cols).pack_in_parallel(&bytes.clone().into(), &mut packed);
            let (mut got, mut expected) = (vec![0.0; cols], vec![0.0; cols]);
            for (r, row) in bytes.chunks_exact(row_bytes).enumerate() {
                (formats::of(dtype).unwrap().dequantize)(row, &mut expected);
                unpack_row(dtype, layout, &packed[r / GROUP * stride..][..stride], r % GROUP, &mut got);
                for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
                    assert!(same, "{dtype} row {r} value {i}: {got:e} for {expected:e}");
                }
            }
        }
    }
}
