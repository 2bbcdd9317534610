//! Weight matrices in the order that the kernels read.

use crate::{
    External, Isa, SharedBytes,
    formats::{self, Format},
    memory::Region,
    pack::{self, GROUP, Layout, Packer},
    reference,
    tile::{TILE_ROWS, Tile, TileKernel},
};
use rustai_abi::DType;
use std::ops::Range;

/// The form of activations that a matrix multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActKind {
    /// Plain `f32`.
    F32,
    /// 8-bit blocks.
    Q8,
}

/// Why a matrix cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// No kernel multiplies this type.
    #[error("no kernel multiplies {0} weights yet")]
    Unsupported(DType),
    /// Rows are no whole number of blocks.
    #[error("rows of {cols} values are no multiple of {dtype}'s block of {block}")]
    RowLength {
        /// Values per row.
        cols: usize,
        /// The element type.
        dtype: DType,
        /// Its block length.
        block: usize,
    },
    /// Too few or too many bytes.
    #[error("{found} bytes given for a {rows} x {cols} {dtype} matrix, which takes {expected}")]
    Length {
        /// Rows.
        rows: usize,
        /// Values per row.
        cols: usize,
        /// The element type.
        dtype: DType,
        /// Bytes that the shape takes.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The processor cannot run the kernels that were asked for.
    #[error("{isa} kernels need {missing}, which this processor lacks")]
    Isa {
        /// The instruction set.
        isa: &'static str,
        /// What is missing.
        missing: &'static str,
    },
    /// A matrix without values.
    #[error("a {rows} x {cols} matrix holds nothing")]
    Empty {
        /// Rows.
        rows: usize,
        /// Values per row.
        cols: usize,
    },
    /// Memory for the packed weights could not be had.
    #[error("{bytes} bytes of packed weights: {reason}")]
    OutOfMemory {
        /// How much.
        bytes: usize,
        /// The system's word.
        reason: String,
    },
}

/// A weight matrix (`rows` outputs by `cols` inputs), ready for the kernels of one instruction set.
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    dtype: DType,
    isa: Isa,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    /// Row-major blocks as the file has them, dequantized whenever they are used.
    Rows { bytes: SharedBytes, format: &'static Format },
    /// The same in memory that others may write meanwhile: each row is copied before it is used.
    Outside { bytes: External<u8>, format: &'static Format },
    /// The same, packed group by group into scratch whenever they are used.
    Deferred { bytes: SharedBytes, packer: Packer, kernel: TileKernel },
    /// Groups of rows in the kernels' order.
    Packed { region: Region, layout: Layout, kernel: TileKernel },
}

/// Tiles of a strip for many tokens, at most.
const STRIP: usize = 4;

/// Tiles of a strip for few tokens: enough that the time between strips does not count, in which nothing is read.
const FEW_STRIP: usize = 16;

/// Tiles of a strip for few tokens, times those tokens, at most.
pub(crate) const MOST_FEW: usize = FEW * FEW_STRIP;

/// Bytes of packed weights of a strip for many tokens, at most, but for one tile.
const STRIP_BYTES: usize = 320 << 10;

/// Tokens up to which a product waits for memory rather than for the cores, so that long strips pay.
const FEW: usize = 4;

/// Activations that a matrix multiplies: the first row, and bytes from one row to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ActRows {
    pub(crate) start: *const u8,
    pub(crate) stride: usize,
    pub(crate) rows: usize,
}

/// Scratch of one thread for [`Matrix::multiply`]; all parts are 64-byte aligned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileScratch {
    /// `PANEL_BYTES`.
    pub(crate) panel: *mut u8,
    /// [`Matrix::dequantized_values`] values.
    pub(crate) dequantized: *mut f32,
    /// [`Matrix::deferred_bytes`].
    pub(crate) deferred: *mut u8,
}

impl Matrix {
    /// Prepares row-major blocks for `isa`: packed into the kernels' own order where there is a fast kernel (the bytes
    /// given are then no longer needed), kept as they are where the reference does the work.
    ///
    /// # Errors
    /// [`MatrixError`] if this processor lacks `isa`, the type has no kernel, the bytes do not fit the shape, the shape
    /// is empty, or memory is refused.
    pub fn new(isa: Isa, dtype: DType, rows: usize, cols: usize, bytes: SharedBytes) -> Result<Self, MatrixError> {
        let matrix = Self::deferred(isa, dtype, rows, cols, bytes)?;
        match &matrix.storage {
            Storage::Deferred { bytes, packer, .. } => {
                let mut region = matrix.room()?;
                packer.pack_in_parallel(bytes, region.as_mut_slice());
                // PANIC: it is deferred.
                Ok(matrix.packed_into(region).expect("a deferred matrix"))
            }
            _ => Ok(matrix),
        }
    }

    /// As [`new`](Self::new), but nothing is packed yet: kernels pack what they are about to read, each time anew, until an
    /// [`Executor`](crate::Executor) packs the matrix for good ([`pack_next`](crate::Executor::pack_next)). Results are the same,
    /// bit for bit.
    ///
    /// # Errors
    /// As [`new`](Self::new), but for memory.
    pub fn deferred(isa: Isa, dtype: DType, rows: usize, cols: usize, bytes: SharedBytes) -> Result<Self, MatrixError> {
        let mut matrix = Self::unpacked(isa, dtype, rows, cols, bytes)?;
        if let (Storage::Rows { bytes, .. }, Some(layout), Some(kernel)) =
            (&matrix.storage, Layout::of(dtype), tile_kernel(isa, dtype))
        {
            let packer = Packer::new(dtype, layout, cols);
            matrix.storage = Storage::Deferred { bytes: bytes.clone(), packer, kernel };
        }
        Ok(matrix)
    }

    /// The bytes that a [`deferred`](Self::deferred) matrix is packed from.
    pub(crate) fn deferred_from(&self) -> Option<&SharedBytes> {
        match &self.storage {
            Storage::Deferred { bytes, .. } => Some(bytes),
            _ => None,
        }
    }

    /// Memory for the packed weights of a deferred matrix.
    pub(crate) fn room(&self) -> Result<Region, MatrixError> {
        let bytes = Self::packed_bytes(self.isa, self.dtype, self.rows, self.cols).unwrap_or(0);
        Region::shared("packed weights", bytes)
            .map_err(|error| MatrixError::OutOfMemory { bytes, reason: error.to_string() })
    }

    /// A deferred matrix with all of its groups packed in `region`; `None` if it is not deferred.
    pub(crate) fn packed_into(&self, region: Region) -> Option<Self> {
        let Storage::Deferred { packer, kernel, .. } = &self.storage else { return None };
        let storage = Storage::Packed { region, layout: packer.layout(), kernel: *kernel };
        Some(Self { storage, ..*self })
    }

    /// Packs some groups of a deferred matrix to their place in its room.
    ///
    /// # Safety
    /// The matrix has the groups. `room` is that of [`room`](Self::room), `scratch` has [`deferred_bytes`](Self::deferred_bytes);
    /// nobody else uses the groups' place or the scratch meanwhile.
    pub(crate) unsafe fn pack_groups(&self, groups: Range<usize>, room: *mut u8, scratch: *mut u8) {
        let Storage::Deferred { bytes, packer, .. } = &self.storage else { return };
        // SAFETY: promised by the caller; `room` has all groups.
        unsafe {
            let out = room.add(groups.start * packer.stride());
            pack_groups(packer, bytes, groups, out, scratch);
        }
    }

    /// As [`new`](Self::new), but leaves the blocks as they are: for tables of which single rows are read.
    ///
    /// # Errors
    /// As [`new`](Self::new), but for memory.
    pub fn unpacked(isa: Isa, dtype: DType, rows: usize, cols: usize, bytes: SharedBytes) -> Result<Self, MatrixError> {
        let format = Self::check(isa, dtype, rows, cols, bytes.len())?;
        Ok(Self { rows, cols, dtype, isa, storage: Storage::Rows { bytes, format } })
    }

    /// As [`unpacked`](Self::unpacked), for blocks in memory that another process may write at any time: its products are
    /// then arbitrary, nothing worse.
    ///
    /// # Errors
    /// As [`unpacked`](Self::unpacked).
    pub fn outside(isa: Isa, dtype: DType, rows: usize, cols: usize, bytes: External<u8>) -> Result<Self, MatrixError> {
        let format = Self::check(isa, dtype, rows, cols, bytes.len())?;
        Ok(Self { rows, cols, dtype, isa, storage: Storage::Outside { bytes, format } })
    }

    /// The format of a type, if so many bytes are a matrix of it.
    fn check(isa: Isa, dtype: DType, rows: usize, cols: usize, len: usize) -> Result<&'static Format, MatrixError> {
        if let Some(missing) = isa.missing_feature() {
            return Err(MatrixError::Isa { isa: isa.name(), missing });
        }
        if rows == 0 || cols == 0 {
            return Err(MatrixError::Empty { rows, cols });
        }
        let format = formats::of(dtype).filter(|_| dtype != DType::Q8_K).ok_or(MatrixError::Unsupported(dtype))?;
        let Some(row_bytes) = dtype.bytes_for(cols) else {
            return Err(MatrixError::RowLength { cols, dtype, block: dtype.block_len() });
        };
        let expected = row_bytes.saturating_mul(rows);
        if len != expected {
            return Err(MatrixError::Length { rows, cols, dtype, expected, found: len });
        }
        Ok(format)
    }

    /// Row `index` in `f32`: what the type's [`Format::dequantize`] gives, bit for bit.
    ///
    /// # Panics
    /// If there is no such row or `out` is not [`cols`](Self::cols) long.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.rows && out.len() == self.cols, "row {index} of {} in {} values", self.rows, out.len());
        match &self.storage {
            Storage::Rows { format, .. } | Storage::Outside { format, .. } => {
                (format.dequantize)(self.row_bytes(index, &mut vec![0.0; self.copied_values()]), out);
            }
            Storage::Deferred { bytes, .. } => {
                let len = bytes.len() / self.rows;
                // PANIC: every type that can be packed is in the table of formats.
                let format = formats::of(self.dtype).expect("a format");
                (format.dequantize)(&bytes[index * len..][..len], out);
            }
            Storage::Packed { region, layout, .. } => {
                let stride = layout.group_bytes(self.cols);
                // SAFETY: packed weights are never written again.
                let group = unsafe { &region.as_slice()[index / GROUP * stride..][..stride] };
                pack::unpack_row(self.dtype, *layout, group, index % GROUP, out);
            }
        }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The type that the file stores.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The form in which this matrix wants its input.
    pub fn wants(&self) -> ActKind {
        match self.layout() {
            Some(layout) if layout.is_integer() => ActKind::Q8,
            _ => ActKind::F32,
        }
    }

    /// Whether the bytes given to [`new`](Self::new) were copied, so that the file's pages may be dropped.
    pub fn is_packed(&self) -> bool {
        matches!(self.storage, Storage::Packed { .. })
    }

    /// Name of the kernel in use, such as `avx512`; `reference` where weights are dequantized as they are used.
    pub fn kernel_name(&self) -> &'static str {
        if self.layout().is_some() { self.isa.name() } else { Isa::Reference.name() }
    }

    /// The kernel that `isa` has for a type: the name of an instruction set, `reference`, or `None` if the type cannot be
    /// multiplied at all.
    pub fn kernel_for(isa: Isa, dtype: DType) -> Option<&'static str> {
        formats::of(dtype).filter(|_| dtype != DType::Q8_K)?;
        let fast = tile_kernel(isa, dtype).is_some();
        Some(if fast { isa.name() } else { Isa::Reference.name() })
    }

    /// Bytes of memory that [`new`](Self::new) takes for a matrix: rows are made up to whole groups, and some types' scales
    /// are widened. `None` if it keeps the bytes that it is given.
    pub fn packed_bytes(isa: Isa, dtype: DType, rows: usize, cols: usize) -> Option<usize> {
        tile_kernel(isa, dtype)?;
        Some(Layout::of(dtype)?.group_bytes(cols).saturating_mul(rows.div_ceil(GROUP)))
    }

    /// The order in which kernels read this matrix, if it has one.
    fn layout(&self) -> Option<Layout> {
        match &self.storage {
            Storage::Packed { layout, .. } => Some(*layout),
            Storage::Deferred { packer, .. } => Some(packer.layout()),
            Storage::Rows { .. } | Storage::Outside { .. } => None,
        }
    }

    /// Tiles of `TILE_ROWS` rows.
    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Tiles that are best multiplied with `tokens` activation rows in one call of [`multiply`](Self::multiply). For few tokens,
    /// those of a long stretch of memory; for many, what stays in the second-level cache, if the kernel takes many groups, so
    /// that what it reads and prepares of the activations serves them all.
    pub(crate) fn strip(&self, tokens: usize) -> usize {
        match (&self.storage, self.layout()) {
            (Storage::Packed { .. }, Some(_)) if tokens <= FEW => FEW_STRIP,
            (_, Some(layout)) if tokens > FEW && self.takes_any_groups() => self.longest_strip(layout),
            _ => 1,
        }
    }

    fn longest_strip(&self, layout: Layout) -> usize {
        (STRIP_BYTES / (2 * layout.group_bytes(self.cols))).clamp(1, STRIP)
    }

    /// Bytes of scratch for packed groups of a strip of a deferred matrix, and for packing itself.
    pub(crate) fn deferred_bytes(&self) -> usize {
        match &self.storage {
            Storage::Deferred { packer, .. } => {
                let tiles = if self.takes_any_groups() { self.longest_strip(packer.layout()) } else { 1 };
                tiles * (TILE_ROWS / GROUP) * packer.stride() + packer.group_bytes()
            }
            _ => 0,
        }
    }

    /// Values of scratch that a tile of this matrix needs for dequantized rows, and for a copy of a row that lies outside.
    pub(crate) fn dequantized_values(&self) -> usize {
        match (&self.storage, self.isa) {
            (Storage::Packed { .. } | Storage::Deferred { .. }, _) => 0,
            (_, Isa::Reference) => self.cols + self.copied_values(),
            _ => 2 * TILE_ROWS * self.cols + self.copied_values(),
        }
    }

    /// Values as large as the copy of a row that lies outside; 0 for other matrices, whose rows need none.
    fn copied_values(&self) -> usize {
        match &self.storage {
            Storage::Outside { bytes, .. } => (bytes.len() / self.rows).div_ceil(size_of::<f32>()),
            _ => 0,
        }
    }

    /// Whether the kernel multiplies any number of groups at a time; others take two.
    fn takes_any_groups(&self) -> bool {
        self.layout().is_some_and(Layout::is_integer) && matches!(self.isa, Isa::Avx512 | Isa::Avx512Bw)
    }

    /// Multiplies the rows of some groups with all activation rows; `out` is `[x.rows][groups.len() * GROUP]`, and columns
    /// past the matrix's last row are unspecified.
    ///
    /// # Safety
    /// The matrix has the groups, `x` holds rows of `cols` values in the form that [`wants`](Self::wants) says, and `out` and
    /// `scratch` are valid and this thread's alone.
    pub(crate) unsafe fn multiply(&self, groups: Range<usize>, x: ActRows, out: *mut f32, scratch: TileScratch) {
        let most = match (&self.storage, self.layout()) {
            (Storage::Deferred { .. }, Some(layout)) if self.takes_any_groups() => {
                self.longest_strip(layout) * (TILE_ROWS / GROUP)
            }
            _ if self.takes_any_groups() => groups.len(),
            _ => TILE_ROWS / GROUP,
        };
        for first in groups.clone().step_by(most) {
            let tile = first..groups.end.min(first + most);
            // SAFETY: promised by the caller; the tile has its own columns of `out`.
            unsafe {
                let out = out.add((first - groups.start) * GROUP);
                self.tile(tile, x, out, groups.len() * GROUP, scratch);
            }
        }
    }

    /// The blocks of row `index` of a matrix that is not packed: where they lie, or in `copy` if others may write there.
    fn row_bytes<'a>(&'a self, index: usize, copy: &'a mut [f32]) -> &'a [u8] {
        match &self.storage {
            Storage::Rows { bytes, .. } => {
                let len = bytes.len() / self.rows;
                &bytes[index * len..][..len]
            }
            Storage::Outside { bytes, .. } => {
                let len = bytes.len() / self.rows;
                let row = bytes.part(index * len, len).expect("the matrix has the row");
                assert!(len <= size_of_val(copy), "{} values are too few for a copy of {len} bytes", copy.len());
                let copy = copy.as_mut_ptr().cast::<u8>();
                // SAFETY: both have so many bytes, `copy` is borrowed for the result, and any bits are bytes.
                unsafe {
                    std::ptr::copy_nonoverlapping(row.as_ptr(), copy, len);
                    std::slice::from_raw_parts(copy, len)
                }
            }
            // PANIC: the only caller is the arm for the others.
            Storage::Packed { .. } | Storage::Deferred { .. } => unreachable!("packed rows are no blocks"),
        }
    }

    /// One tile of [`multiply`](Self::multiply), with `out_stride` values from one row of `out` to the next.
    ///
    /// # Safety
    /// As there; two groups at most unless the matrix [`takes_any_groups`](Self::takes_any_groups).
    unsafe fn tile(&self, groups: Range<usize>, x: ActRows, out: *mut f32, out_stride: usize, scratch: TileScratch) {
        let (first, count) = (groups.start * GROUP, self.rows.min(groups.end * GROUP) - groups.start * GROUP);
        let (group, groups) = (groups.start, groups.len());
        let (cols, panel) = (self.cols, scratch.panel);
        let args = |group: *const u8, stride: usize, fetched: Option<*const u8>| Tile {
            group,
            stride,
            groups,
            cols,
            x: x.start,
            x_stride: x.stride,
            tokens: x.rows,
            out,
            out_stride,
            panel,
            fetched,
        };
        match &self.storage {
            Storage::Deferred { bytes, packer, kernel } => {
                let stride = packer.stride();
                assert!(
                    groups * stride + packer.group_bytes() <= self.deferred_bytes(),
                    "{groups} groups are too many"
                );
                // SAFETY: the caller gives `deferred_bytes` of scratch, which hold what is packed and then what packing takes;
                // the rest as below.
                unsafe {
                    let rest = scratch.deferred.add(groups * stride);
                    pack_groups(packer, bytes, group..group + groups, scratch.deferred, rest);
                    let next = bytes.as_ptr().wrapping_add((group + groups) * packer.group_bytes());
                    kernel(&args(scratch.deferred, stride, Some(next)));
                }
            }
            Storage::Packed { region, layout, kernel } => {
                let stride = layout.group_bytes(cols);
                // SAFETY: the region holds all groups of the matrix, and `new` has found the processor to have the kernel's
                // features; the rest is the caller's promise.
                unsafe {
                    kernel(&args(region.as_ptr().add(group * stride), stride, None));
                }
            }
            Storage::Rows { format, .. } | Storage::Outside { format, .. } => {
                // SAFETY: the caller gives `dequantized_values` values of scratch.
                let values = unsafe { std::slice::from_raw_parts_mut(scratch.dequantized, self.dequantized_values()) };
                let Some(kernel) = tile_kernel(self.isa, DType::F32) else {
                    let (values, copy) = values.split_at_mut(cols);
                    for r in 0..count {
                        (format.dequantize)(self.row_bytes(first + r, copy), values);
                        for t in 0..x.rows {
                            // SAFETY: `x` has the row, and `out` has the row's column.
                            unsafe {
                                let x = x.start.add(t * x.stride).cast::<f32>();
                                *out.add(t * out_stride + r) = reference::dot_at(values, x);
                            }
                        }
                    }
                    return;
                };
                // No kernel for the type, but one for `f32`: dequantize the tile, then use that.
                let (plain, rest) = values.split_at_mut(TILE_ROWS * cols);
                let (packed, copy) = rest.split_at_mut(TILE_ROWS * cols);
                for (r, values) in plain.chunks_exact_mut(cols).take(count).enumerate() {
                    (format.dequantize)(self.row_bytes(first + r, copy), values);
                }
                for (g, group) in packed.chunks_exact_mut(GROUP * cols).take(groups).enumerate() {
                    for (k, column) in group.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                        for (r, value) in column.iter_mut().enumerate() {
                            *value = plain[(g * GROUP + r) * cols + k];
                        }
                    }
                }
                // SAFETY: the packed values were just written, and `new` has found the processor to have the kernel's
                // features; the rest is the caller's promise.
                unsafe {
                    let group = packed.as_ptr().cast();
                    kernel(&args(group, Layout::Plain(4).group_bytes(cols), None));
                }
            }
        }
    }
}

/// Packs some groups of a matrix to `out`.
///
/// # Safety
/// `out` is valid for the packed groups and `scratch` for `group_bytes`; nobody else uses either meanwhile.
unsafe fn pack_groups(packer: &Packer, bytes: &SharedBytes, groups: Range<usize>, out: *mut u8, scratch: *mut u8) {
    // SAFETY: promised by the caller; scratch and regions are initialised.
    let (out, scratch) = unsafe {
        (
            std::slice::from_raw_parts_mut(out, groups.len() * packer.stride()),
            std::slice::from_raw_parts_mut(scratch, packer.group_bytes()),
        )
    };
    packer.pack(bytes, groups.start, out, scratch);
}

/// The fast kernel for a type; `None` if the reference has to do it.
#[cfg(target_arch = "x86_64")]
fn tile_kernel(isa: Isa, dtype: DType) -> Option<TileKernel> {
    crate::x86_64::tile_kernel(isa, dtype)
}

/// The fast kernel for a type; `None` if the reference has to do it.
#[cfg(target_arch = "aarch64")]
fn tile_kernel(isa: Isa, dtype: DType) -> Option<TileKernel> {
    crate::aarch64::tile_kernel(isa, dtype)
}

/// The fast kernel for a type; none are written for this processor yet.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn tile_kernel(_: Isa, _: DType) -> Option<TileKernel> {
    None
}
