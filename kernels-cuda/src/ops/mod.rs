//! What the kernels compute: one method of [`Kernels`](crate::Kernels) per operation.
//!
//! Each method checks that its buffers are large enough, fills the parameter block and launches. Nothing waits: results are
//! there when the stream is synchronized.

mod attention;
mod inputs;
mod matmul;
mod probe;
mod roof;
mod rows;
mod sample;

pub use attention::{
    Append, LayerCache, MAX_GROUP, MAX_HEAD_DIM, Places, Rotation, RunStates, Split, TILED_HEAD_DIMS, TILED_TOKENS,
    has_attention,
};
pub use inputs::BatchInputs;
pub use matmul::{DECODE_TOKENS, HOPPER_TOKENS, Input, Partials, ProductKernel, Projection};
pub use probe::{Probe, TILE_WORDS};
pub use roof::Peak;
pub use rows::{Operation, Targets};
pub use sample::{MAX_TOP_K, MIN_TEMPERATURE, SampleInputs, Sampling};

use crate::{Arena, Device, DeviceError, Span, driver::TensorMap, weights::BLOCK};

/// The kernels of all operations.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    attention: attention::Slots,
    matmul: matmul::Slots,
    probe: probe::Slots,
    roof: roof::Slots,
    rows: rows::Slots,
    sample: sample::Slots,
}

/// Rows of `f32` on a device, row-major.
#[derive(Clone, Debug)]
pub struct Floats {
    pub(crate) span: Span,
    width: usize,
    rows: usize,
}

impl Floats {
    /// Bytes in an arena.
    pub const fn room(rows: usize, width: usize) -> usize {
        Arena::room::<f32>(rows.saturating_mul(width))
    }

    /// Takes uninitialised rows from an arena.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the arena is too small.
    pub fn take(arena: &mut Arena, rows: usize, width: usize) -> Result<Self, DeviceError> {
        Self::at(&arena.take(rows.saturating_mul(width).saturating_mul(4))?, rows, width)
    }

    /// The rows that lie at the start of a span.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the span is too small.
    pub fn at(span: &Span, rows: usize, width: usize) -> Result<Self, DeviceError> {
        Ok(Self { span: span.part(0, rows.saturating_mul(width).saturating_mul(4))?, width, rows })
    }

    /// The memory of the rows.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Rows with these values, in memory of their own.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no room, or from the driver.
    ///
    /// # Panics
    /// If `values` are no whole number of rows.
    pub fn with(device: &Device, width: usize, values: &[f32]) -> Result<Self, DeviceError> {
        assert!(width > 0 && values.len().is_multiple_of(width), "no whole number of rows");
        let rows = values.len() / width;
        let mut arena = Arena::new(device, "rows of values", Self::room(rows, width))?;
        let floats = Self::take(&mut arena, rows, width)?;
        floats.span.upload(values)?;
        Ok(floats)
    }

    /// Values per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The most rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Waits for the device and reads the first rows.
    ///
    /// # Errors
    /// [`DeviceError::Driver`]; [`DeviceError::Invalid`] if there are fewer rows.
    pub fn read(&self, rows: usize) -> Result<Vec<f32>, DeviceError> {
        let mut values = vec![0.0; rows * self.width];
        self.span.download(&mut values)?;
        Ok(values)
    }

    fn check(&self, what: &str, rows: usize, width: usize) -> Result<(), DeviceError> {
        check_rows(what, [rows, width], [self.rows, self.width], "values")
    }
}

/// Rows of 8-bit activations on a device, by the rule of the CPU's `q8a` format: blocks of 32 with a scale and the sums of
/// their halves. The halves of a row's blocks are apart (see `cuda/formats.cuh`).
#[derive(Clone, Debug)]
pub struct Quants {
    pub(crate) quants: Span,
    pub(crate) scales: Span,
    width: usize,
    rows: usize,
}

/// Bytes of a block's scale and sums.
const SCALE_BYTES: usize = 8;

impl Quants {
    /// Bytes in an arena.
    pub const fn room(rows: usize, width: usize) -> usize {
        let values = rows.saturating_mul(width);
        Arena::room::<u8>(values).saturating_add(Arena::room::<u8>((values / BLOCK).saturating_mul(SCALE_BYTES)))
    }

    /// Takes uninitialised rows from an arena.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if `width` is no multiple of 32, or the arena is too small.
    pub fn take(arena: &mut Arena, rows: usize, width: usize) -> Result<Self, DeviceError> {
        Self::at(&arena.take(Self::room(rows, width))?, rows, width)
    }

    /// The rows that lie at the start of a span that is aligned to [`ALIGN`](crate::driver::ALIGN).
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if `width` is no multiple of 32, or the span is too small.
    pub fn at(span: &Span, rows: usize, width: usize) -> Result<Self, DeviceError> {
        check_blocks(width)?;
        let values = rows.saturating_mul(width);
        let quants = span.part(0, values)?;
        let scales = span.part(Arena::room::<u8>(values), (values / BLOCK).saturating_mul(SCALE_BYTES))?;
        Ok(Self { quants, scales, width, rows })
    }

    /// The memory of the quants, and of the blocks' scales and sums.
    pub fn spans(&self) -> [Span; 2] {
        [self.quants.clone(), self.scales.clone()]
    }

    /// Values per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The most rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn check(&self, what: &str, rows: usize, width: usize) -> Result<(), DeviceError> {
        check_rows(what, [rows, width], [self.rows, self.width], "quants")
    }
}

/// Rows of `f16` activations on a device, for products of many rows with quantized weights on Hopper: a sixteenth of each
/// value, in the order of columns that those take (see `cuda/formats.cuh`). What exceeds 16 times the largest `f16` is that
/// much, and an infinity is a NaN.
#[derive(Clone, Debug)]
pub struct Halves {
    pub(crate) span: Span,
    map: TensorMap,
    width: usize,
    rows: usize,
}

impl Halves {
    /// Bytes in an arena.
    pub const fn room(rows: usize, width: usize) -> usize {
        Arena::room::<u16>(rows.saturating_mul(width))
    }

    /// Takes uninitialised rows from an arena.
    ///
    /// # Errors
    /// As [`at`](Self::at), or if the arena is too small.
    pub fn take(arena: &mut Arena, rows: usize, width: usize) -> Result<Self, DeviceError> {
        Self::at(&arena.take(Self::room(rows, width))?, rows, width)
    }

    /// The rows that lie at the start of a span that is aligned to [`ALIGN`](crate::driver::ALIGN), on a device of compute
    /// capability 9.0.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if `width` is no multiple of 32, or the span is too small; [`DeviceError::Driver`].
    pub fn at(span: &Span, rows: usize, width: usize) -> Result<Self, DeviceError> {
        check_blocks(width)?;
        let span = span.part(0, rows.saturating_mul(width).saturating_mul(size_of::<u16>()))?;
        let map = TensorMap::of_f16(&span, rows, width, matmul::TILE_TOKENS)?;
        Ok(Self { span, map, width, rows })
    }

    /// The memory of the rows.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Values per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The most rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn check(&self, what: &str, rows: usize, width: usize) -> Result<(), DeviceError> {
        check_rows(what, [rows, width], [self.rows, self.width], "f16 values")
    }
}

/// A buffer for rows of a width has so many of it.
fn check_rows(what: &str, [rows, width]: [usize; 2], room: [usize; 2], values: &str) -> Result<(), DeviceError> {
    if rows > room[0] || width != room[1] {
        let [most, of] = room;
        let reason = format!("{what}: {rows} rows of {width} {values} in a buffer for {most} of {of}");
        return Err(DeviceError::Invalid(reason));
    }
    Ok(())
}

/// Rows for quantized weights are whole blocks.
fn check_blocks(width: usize) -> Result<(), DeviceError> {
    if !width.is_multiple_of(BLOCK) {
        return Err(DeviceError::Invalid(format!("rows of {width} values are no multiple of {BLOCK}")));
    }
    Ok(())
}

/// A size as the kernels take it.
fn small(what: &str, value: usize) -> Result<u32, DeviceError> {
    // Half the range, so that twice a value still fits.
    u32::try_from(value)
        .ok()
        .filter(|value| *value <= u32::MAX / 2)
        .ok_or_else(|| DeviceError::Invalid(format!("{what}: {value} is more than kernels can count")))
}

/// A kernel of each kind and the bytes of its parameters as this crate lays them out, for the test that compares them with
/// the kernels' own.
#[doc(hidden)]
pub fn parameter_sizes() -> Vec<(&'static str, usize)> {
    [
        attention::parameter_sizes(),
        matmul::parameter_sizes(),
        probe::parameter_sizes(),
        roof::parameter_sizes(),
        rows::parameter_sizes(),
        sample::parameter_sizes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::is_quantized;
    use rustai_kernels_cpu::formats;
    use std::collections::HashMap;

    /// Only these kernels are launched with dynamic shared memory. `check.py` adds what they have by themselves, and compares the
    /// sum with what devices have.
    #[test]
    fn the_record_has_the_dynamic_shared_memory_of_launches() {
        let mut expected = HashMap::new();
        for dtype in formats::table().iter().map(|format| format.dtype) {
            let name = dtype.name().to_lowercase();
            if let Some(quantized) = is_quantized(dtype) {
                if quantized {
                    expected.extend(
                        matmul::TILES.map(|tile| (format!("gemm_{name}_{tile}"), matmul::stage_bytes(dtype, tile))),
                    );
                    expected.insert(format!("gemm_sm90a_{name}"), matmul::HOPPER_SHARED);
                } else {
                    expected.insert(format!("gemm_{name}"), matmul::stage_bytes(dtype, matmul::TILE_TOKENS));
                }
            }
        }
        expected.extend(Peak::ALL.map(|peak| (peak.kernel().to_owned(), peak.shared())));
        expected.extend(Probe::ALL.map(|probe| (probe.kernel().to_owned(), probe.shared())));
        expected.insert(probe::TILE_KERNEL.to_owned(), probe::TILE_BYTES);
        let mut recorded = 0;
        for line in include_str!("../../kernels.json").lines() {
            let Some((name, resources)) = line.split_once(": {") else { continue };
            let name = name.trim().trim_matches('"');
            let dynamic =
                resources.split_once("\"dynamic\": ").map_or("0", |(_, rest)| rest.trim_end_matches(['}', ',']));
            let expected = expected.remove(name).unwrap_or(0);
            assert_eq!(dynamic, expected.to_string(), "{name}: write \"dynamic\": {expected} to kernels.json");
            recorded += 1;
        }
        assert!(recorded > 100 && expected.is_empty(), "not in kernels.json: {expected:?}");
    }
}
