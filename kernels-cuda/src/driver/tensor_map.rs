//! Matrices in device memory as Hopper's copy engine knows them, which brings tiles of them to shared memory by itself (the
//! tensor memory accelerator, TMA).

use super::{DeviceError, Span, error::check_raw};
use cudarc::driver::sys::{
    self, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle,
};

/// A matrix of `f16`, and tiles of some rows and [`TILE_COLUMNS`](Self::TILE_COLUMNS) columns, which come with the 128-byte
/// swizzle (PTX ISA, "Swizzling Modes"); what a tile has outside the matrix comes as zeros. Kernels take it as a parameter.
///
/// It names an address: whoever gives it to a kernel keeps the memory, as with other addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct TensorMap([u64; 16]);

impl TensorMap {
    /// Columns of a tile: 128 bytes, which is what the swizzle is about.
    pub const TILE_COLUMNS: usize = 64;

    /// Most rows of a tile.
    pub const MAX_TILE_ROWS: usize = 256;

    /// The matrix of `rows` rows of `columns` values, one row after the other, that lies at the start of `span`, in tiles of
    /// `tile_rows` rows. Only devices from compute capability 9.0 on can use it.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the matrix is not inside the span, or the engine does not take such: rows are a multiple of
    /// 8 values, the span begins at a multiple of 16 bytes, and neither matrix nor tile is empty; [`DeviceError::Driver`].
    pub fn of_f16(span: &Span, rows: usize, columns: usize, tile_rows: usize) -> Result<Self, DeviceError> {
        // The limits are those of the CUDA Driver API, cuTensorMapEncodeTiled.
        let row_bytes = columns.saturating_mul(2);
        let fits = [rows, columns].iter().all(|count| (1..=u32::MAX as usize).contains(count));
        if !fits || !row_bytes.is_multiple_of(16) {
            let reason = format!("{rows} rows of {columns} values are no matrix of which tiles can be brought");
            return Err(DeviceError::Invalid(reason));
        }
        if !(1..=Self::MAX_TILE_ROWS).contains(&tile_rows) {
            let most = Self::MAX_TILE_ROWS;
            return Err(DeviceError::Invalid(format!("a tile of {tile_rows} rows, and not of 1 to {most}")));
        }
        span.fits(rows.saturating_mul(row_bytes))?;
        let address = span.address();
        if !address.is_multiple_of(16) {
            return Err(DeviceError::Invalid(format!("a matrix at {address:#x}, which is no multiple of 16")));
        }
        span.device().bind()?;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let (dims, strides) = ([columns as u64, rows as u64], [row_bytes as u64]);
        let (tile, steps) = ([Self::TILE_COLUMNS as u32, tile_rows as u32], [1, 1]);
        // SAFETY: all lists have an entry for each of the two dimensions, strides for the second; they and the map are locals. The
        // driver only notes the address.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                2,
                address as *mut std::ffi::c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check_raw("cuTensorMapEncodeTiled", result)?;
        Ok(Self(map.opaque))
    }
}
