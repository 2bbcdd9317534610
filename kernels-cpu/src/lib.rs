//! CPU kernels of rustai: slices in, slices out.
//!
//! This crate knows block formats and instruction sets. It knows no graphs and no files.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod act;
mod attention;
pub mod bench;
mod bytes;
mod executor;
mod external;
mod fetch;
pub mod formats;
mod isa;
mod matrix;
mod memory;
mod ops;
mod pack;
pub mod placement;
mod program;
pub mod reference;
pub mod roof;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod simd;
mod sync;
mod team;
mod tile;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// What the bits of quantized blocks say, for backends that lay out weights their own way: which parts a block has
/// ([`Layout::of`](order::Layout::of)), its codes in the order of the dot product, and its scales ([`Blocks`](order::Blocks)).
pub mod order {
    pub use crate::pack::{Blocks, Codes, Layout, Scales, Values, Whole, Words};
}

pub use bytes::{BytesOwner, SharedBytes};
pub use executor::{BatchLimits, Executor, ExecutorError};
pub use external::{External, Outside, Plain};
pub use isa::{Isa, IsaError, Selection};
pub use matrix::{ActKind, Matrix, MatrixError};
pub use program::{Act, Buf, Call, KvShape, KvType, Program, Projection, QBuf, Rope, RopeStyle, Rows};
