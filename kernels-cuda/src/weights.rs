//! Weights as the kernels read them: planes of codes and scales, each 16-byte aligned.
//!
//! A file keeps a block's scale beside its codes, which makes blocks of 18 or 210 bytes that no wide load can fetch. Here
//! codes and scales are apart, and the block of a row is number `row * blocks + block` in every plane. `cuda/formats.cuh`
//! says what a plane's bytes mean; this file is its other half. Repacking moves bits and changes no number. It costs memory
//! only where 6-bit scales are widened to bytes: 4 bytes per 256 values for Q4_K and Q5_K (3 and 2 %), 4 for Q3_K, 2 for
//! IQ4_XS; MXFP4's exponents take two bytes instead of one.

use crate::{Arena, Device, DeviceError, Span, UploadBuffer, Uploader};
use rayon::prelude::*;
use rustai_abi::DType;
use rustai_kernels_cpu::order::{Codes, Layout, Scales};

/// Columns of a block of a quantized type.
pub const BLOCK: usize = 32;

/// Columns of a block of a float type: 16 bytes of halves.
const FLOAT_BLOCK: usize = 8;

/// Blocks that share what the plane `coarse` keeps.
const SUPER: usize = 8;

/// How a type's planes are shaped.
#[derive(Clone, Copy, Debug)]
struct Shape {
    layout: Layout,
    /// Columns of a block.
    columns: usize,
    /// Bytes of a block in each plane; `coarse` is per [`SUPER`] blocks.
    codes: usize,
    extra: usize,
    fine: usize,
    coarse: usize,
}

impl Shape {
    fn of(dtype: DType) -> Option<Self> {
        let layout = Layout::of(dtype)?;
        Some(match layout {
            Layout::Plain(size) => {
                Self { layout, columns: FLOAT_BLOCK, codes: FLOAT_BLOCK * size, extra: 0, fine: 0, coarse: 0 }
            }
            Layout::Blocks(blocks) => {
                let words = blocks.codes.registers() * 4;
                let codes = words.min(if matches!(blocks.codes, Codes::Two | Codes::Three) { 8 } else { 16 });
                let (fine, coarse) = match blocks.scales {
                    Scales::Half | Scales::Exponent => (2, 0),
                    Scales::HalfWithMin => (4, 0),
                    Scales::Runs32 => (1, 2),
                    Scales::Runs16 => (2, 2),
                    Scales::Runs32WithMin | Scales::Runs16WithMin => (2, 4),
                };
                Self { layout, columns: BLOCK, codes, extra: words - codes, fine, coarse }
            }
        })
    }

    /// Bytes of the four planes of a matrix; `None` if its rows are no whole number of blocks, or it is too large.
    fn of_matrix(&self, dtype: DType, rows: usize, cols: usize) -> Option<[usize; 4]> {
        let whole = cols > 0 && cols.is_multiple_of(self.columns) && dtype.bytes_for(cols).is_some();
        // No plane has more bytes than an f32 per value.
        let fits = rows.checked_mul(cols).and_then(|values| values.checked_mul(4)).is_some();
        (whole && fits && rows > 0).then(|| self.planes(cols / self.columns).map(|bytes| bytes * rows))
    }

    /// Bytes of the four planes for so many blocks.
    fn planes(&self, blocks: usize) -> [usize; 4] {
        [blocks * self.codes, blocks * self.extra, blocks * self.fine, blocks / SUPER * self.coarse]
    }
}

/// How a type is repacked: in units of values that need no others. A matrix is one run of units, in the file and in each plane.
#[derive(Clone, Copy, Debug)]
struct Units {
    dtype: DType,
    shape: Shape,
    /// Bytes of a unit in the file.
    bytes: usize,
    /// Bytes of a unit in each plane.
    planes: [usize; 4],
}

impl Units {
    /// Bytes that one thread repacks at a time.
    const PIECE: usize = 64 << 10;

    fn of(dtype: DType) -> Option<Self> {
        let shape = Shape::of(dtype)?;
        // Both are powers of two, and blocks of types with a plane `coarse` are as long as what shares an entry of it.
        let values = shape.columns.max(dtype.block_len());
        Some(Self { dtype, shape, bytes: dtype.bytes_for(values)?, planes: shape.planes(values / shape.columns) })
    }

    /// Repacks whole units on rayon's threads. The planes have room for as many.
    fn pack(&self, bytes: &[u8], [codes, extra, fine, coarse]: [&mut [u8]; 4]) {
        let units = (Self::PIECE / self.bytes).max(1);
        let count = bytes.len().div_ceil(units * self.bytes);
        let targets = pieces(codes, units * self.planes[0], count)
            .zip(pieces(extra, units * self.planes[1], count))
            .zip(pieces(fine, units * self.planes[2], count))
            .zip(pieces(coarse, units * self.planes[3], count));
        bytes.par_chunks(units * self.bytes).zip(targets).for_each(|(piece, (((codes, extra), fine), coarse))| {
            match self.shape.layout {
                Layout::Plain(_) => codes.copy_from_slice(piece),
                Layout::Blocks(_) => pack_blocks(self.dtype, &self.shape, piece, [codes, extra, fine, coarse]),
            }
        });
    }
}

/// Factors and addends that the values of a block of the type are made with; 0 for floats.
pub(crate) fn factors_per_block(dtype: DType) -> usize {
    match Layout::of(dtype) {
        Some(Layout::Blocks(blocks)) => {
            let halves = if blocks.scales.halves() { 2 } else { 1 };
            halves * if blocks.scales.has_min() { 2 } else { 1 }
        }
        _ => 0,
    }
}

/// Whether kernels multiply weights of the type by 8-bit activations (`true`) or by `f32` (`false`); `None` if there are no
/// kernels for it.
pub fn is_quantized(dtype: DType) -> Option<bool> {
    Shape::of(dtype).map(|shape| matches!(shape.layout, Layout::Blocks(_)))
}

/// Bytes that a matrix takes on a device; `None` if no kernel reads it.
pub fn device_bytes(dtype: DType, rows: usize, cols: usize) -> Option<usize> {
    let planes = Shape::of(dtype)?.of_matrix(dtype, rows, cols)?;
    Some(planes.into_iter().map(Arena::room::<u8>).sum())
}

/// A repacked matrix in host memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    dtype: DType,
    rows: usize,
    cols: usize,
    planes: [Vec<u8>; 4],
}

impl Packed {
    /// Repacks row-major blocks of `dtype` as files hold them, on rayon's threads.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if no kernel reads the type, `cols` is no whole number of blocks (8 columns for floats, 32 or
    /// 256 for quantized types), or `bytes` are not `rows` rows of `cols` values.
    pub fn new(dtype: DType, rows: usize, cols: usize, bytes: &[u8]) -> Result<Self, DeviceError> {
        let units = Units::of(dtype).ok_or_else(|| {
            DeviceError::Invalid(format!("no CUDA kernel reads {dtype}; convert the model to another type"))
        })?;
        let row_bytes = dtype.bytes_for(cols).filter(|_| cols > 0 && cols.is_multiple_of(units.shape.columns));
        let row_bytes = row_bytes.ok_or_else(|| {
            let unit = units.shape.columns.max(dtype.block_len());
            DeviceError::Invalid(format!("rows of {cols} values are no multiple of {unit}, as {dtype} needs here"))
        })?;
        if rows == 0 || rows.checked_mul(row_bytes) != Some(bytes.len()) {
            return Err(DeviceError::Invalid(format!(
                "{} bytes are not {rows} rows of {cols} {dtype} values",
                bytes.len()
            )));
        }
        let mut planes = units.planes.map(|unit| vec![0; bytes.len() / units.bytes * unit]);
        units.pack(bytes, planes.each_mut().map(Vec::as_mut_slice));
        Ok(Self { dtype, rows, cols, planes })
    }

    /// Bytes that the matrix takes on a device.
    pub fn device_bytes(&self) -> usize {
        self.planes.iter().map(|plane| Arena::room::<u8>(plane.len())).sum()
    }

    /// The planes' bytes, in the order in which [`Weights::take`] lays them out.
    pub fn planes(&self) -> [&[u8]; 4] {
        self.planes.each_ref().map(Vec::as_slice)
    }

    /// Copies the matrix to memory of its own on a device.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no room, or from the driver.
    pub fn upload(&self, device: &Device) -> Result<Weights, DeviceError> {
        let mut arena = Arena::new(device, "a matrix of weights", self.device_bytes())?;
        let weights = Weights::take(&mut arena, self.dtype, self.rows, self.cols)?;
        for (span, plane) in weights.planes.iter().zip(&self.planes) {
            span.upload(plane)?;
        }
        Ok(weights)
    }
}

/// A plane cut into `count` pieces of `bytes`, the last one maybe shorter; empty ones if the type does not have the plane.
fn pieces(mut plane: &mut [u8], bytes: usize, count: usize) -> impl IndexedParallelIterator<Item = &mut [u8]> {
    let mut pieces = Vec::with_capacity(count);
    for _ in 0..count {
        let (piece, rest) = plane.split_at_mut(bytes.min(plane.len()));
        pieces.push(piece);
        plane = rest;
    }
    pieces.into_par_iter()
}

/// Repacks blocks of a quantized type that belong to one row or to rows that follow one another.
fn pack_blocks(dtype: DType, shape: &Shape, bytes: &[u8], [codes, extra, fine, coarse]: [&mut [u8]; 4]) {
    let Layout::Blocks(blocks) = shape.layout else { return };
    let (len, block_bytes) = (dtype.block_len(), dtype.block_bytes());
    for (number, block) in bytes.chunks_exact(block_bytes).enumerate() {
        let first = &block[blocks.d_at..];
        let whole = (blocks.whole_of)([block]).map(u32::to_le_bytes);
        let whole = whole.as_flattened();
        for i in 0..len / BLOCK {
            let at = number * len / BLOCK + i;
            let words = (blocks.words_of)([block], i).map(u32::to_le_bytes);
            let words = &words.as_flattened()[..shape.codes + shape.extra];
            codes[at * shape.codes..][..shape.codes].copy_from_slice(&words[..shape.codes]);
            extra[at * shape.extra..][..shape.extra].copy_from_slice(&words[shape.codes..]);
            let fine = &mut fine[at * shape.fine..][..shape.fine];
            match blocks.scales {
                Scales::Half | Scales::HalfWithMin => fine.copy_from_slice(&first[..fine.len()]),
                // The scale as an f32 has no more than its upper half.
                Scales::Exponent => {
                    let bits: u16 = match first[0] {
                        0 => 0x20,
                        1 => 0x40,
                        exponent => (u16::from(exponent) - 1) << 7,
                    };
                    fine.copy_from_slice(&bits.to_le_bytes());
                }
                Scales::Runs32 => fine[0] = whole[i],
                Scales::Runs16 | Scales::Runs16WithMin => fine.copy_from_slice(&whole[2 * i..2 * i + 2]),
                Scales::Runs32WithMin => fine.copy_from_slice(&[whole[i], whole[8 + i]]),
            }
        }
        let coarse = &mut coarse[number * shape.coarse..][..shape.coarse];
        coarse.copy_from_slice(&first[..coarse.len()]);
    }
}

/// A matrix of weights on a device.
#[derive(Clone, Debug)]
pub struct Weights {
    dtype: DType,
    rows: usize,
    cols: usize,
    planes: [Span; 4],
}

impl Weights {
    /// Takes memory for a matrix from an arena. Its values come with the planes of [`Packed`].
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if no kernel reads such a matrix, or the arena is too small.
    pub fn take(arena: &mut Arena, dtype: DType, rows: usize, cols: usize) -> Result<Self, DeviceError> {
        let planes = Shape::of(dtype).and_then(|shape| shape.of_matrix(dtype, rows, cols)).ok_or_else(|| {
            DeviceError::Invalid(format!("no CUDA kernel reads {rows} rows of {cols} {dtype} values"))
        })?;
        let [codes, extra, fine, coarse] = planes.map(|bytes| arena.take(bytes));
        Ok(Self { dtype, rows, cols, planes: [codes?, extra?, fine?, coarse?] })
    }

    /// Bytes of the units that [`put`](Self::put) takes, as a file has them.
    pub fn unit_bytes(&self) -> usize {
        self.units().bytes
    }

    fn units(&self) -> Units {
        // PANIC: `take` refuses types without a shape.
        Units::of(self.dtype).expect("a type with a shape")
    }

    /// Where the matrix lies if it has the bytes of a file: if its values are floats.
    pub fn as_in_a_file(&self) -> Option<&Span> {
        matches!(self.units().shape.layout, Layout::Plain(_)).then_some(&self.planes[0])
    }

    /// Copies a part of a matrix of floats, which begins at byte `at`, from a buffer of the uploader's. It is there after the
    /// stream's work.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the values are no floats, or the part is not inside the matrix or the buffer;
    /// [`DeviceError::Driver`].
    pub fn send(
        &self,
        uploader: &mut Uploader<'_>,
        at: usize,
        buffer: UploadBuffer<u8>,
        len: usize,
    ) -> Result<(), DeviceError> {
        let plane = self.as_in_a_file();
        let plane = plane.ok_or_else(|| DeviceError::Invalid(format!("{} is repacked for a device", self.dtype)))?;
        uploader.send(buffer, &[(&plane.part(at, len)?, 0..len)])
    }

    /// Repacks a part of the matrix, whose blocks of a file begin at byte `at`, on rayon's threads, and copies it to the device.
    /// It is there after the stream's work.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if it is no whole number of [units](Self::unit_bytes), or not inside the matrix;
    /// [`DeviceError::Driver`].
    pub fn put(&self, uploader: &mut Uploader<'_>, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let units = self.units();
        if !at.is_multiple_of(units.bytes) || !bytes.len().is_multiple_of(units.bytes) {
            let reason = format!("{} bytes at {at} are no whole units of {} bytes", bytes.len(), units.bytes);
            return Err(DeviceError::Invalid(reason));
        }
        let most = Uploader::BYTES / units.planes.iter().sum::<usize>();
        let mut first = at / units.bytes;
        for bytes in bytes.chunks(most * units.bytes) {
            let count = bytes.len() / units.bytes;
            let lens = units.planes.map(|unit| unit * count);
            let mut spans = Vec::with_capacity(lens.len());
            for ((plane, unit), len) in self.planes.iter().zip(units.planes).zip(lens) {
                spans.push(plane.part(first * unit, len)?);
            }
            let mut buffer = uploader.take()?;
            let (codes, rest) = buffer.values()?.split_at_mut(lens[0]);
            let (extra, rest) = rest.split_at_mut(lens[1]);
            let (fine, rest) = rest.split_at_mut(lens[2]);
            units.pack(bytes, [codes, extra, fine, &mut rest[..lens[3]]]);
            let mut start = 0;
            let parts = spans.iter().zip(lens).map(|(span, len)| {
                start += len;
                (span, start - len..start)
            });
            uploader.send(buffer, &parts.collect::<Vec<_>>())?;
            first += count;
        }
        Ok(())
    }

    /// The type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows: results of a product with one token.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: values of a token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of all planes: what a product reads.
    pub fn bytes(&self) -> usize {
        self.planes.iter().map(Span::bytes).sum()
    }

    /// Blocks in a row.
    pub(crate) fn blocks(&self) -> usize {
        // PANIC: weights are made by `Packed::new`, which refuses types without a shape.
        self.cols / Shape::of(self.dtype).expect("a type with a shape").columns
    }

    /// The memory of the planes.
    pub fn planes(&self) -> &[Span; 4] {
        &self.planes
    }
}
