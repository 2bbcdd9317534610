//! Weight matrices in the order that the kernels read.

use crate::{Isa, SharedBytes};
use rustai_abi::DType;

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
}

/// A weight matrix (`rows` outputs by `cols` inputs), ready for the kernels of one instruction set.
#[derive(Debug)]
pub struct Matrix {}

impl Matrix {
    /// Prepares row-major blocks for `isa`: packed into the kernels' own order where there is a fast kernel (the bytes
    /// given are then no longer needed), kept as they are where the reference does the work.
    ///
    /// # Errors
    /// [`MatrixError`] if the type has no kernel or the bytes do not fit the shape.
    pub fn new(isa: Isa, dtype: DType, rows: usize, cols: usize, bytes: SharedBytes) -> Result<Self, MatrixError> {
        todo!()
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        todo!()
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        todo!()
    }

    /// The type that the file stores.
    pub fn dtype(&self) -> DType {
        todo!()
    }

    /// The form in which this matrix wants its input.
    pub fn wants(&self) -> ActKind {
        todo!()
    }

    /// Whether the bytes given to [`new`](Self::new) were copied, so that the file's pages may be dropped.
    pub fn is_packed(&self) -> bool {
        todo!()
    }
    /// Name of the kernel family in use, such as `avx512-vnni` or `reference`.
    pub fn kernel_name(&self) -> &'static str {
        todo!()
    }
}
