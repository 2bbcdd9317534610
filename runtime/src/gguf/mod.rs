//! GGUF model files (versions 2 and 3, little endian), memory-mapped.
//!
//! A file is a preamble, key/value metadata, a tensor table and, at an aligned offset, tensor data; the layout is that
//! of the GGUF specification (ggml, `docs/gguf.md`). This module owns the reading, checking and writing of that layout.
//! It must never interpret tensor data, and never trust a number: each count, length, offset and size is checked against
//! the file's real size before memory is taken for it, and what is wrong is named in a [`GgufError`].
//!
//! [`GgufFile`] reads, [`GgufWriter`] writes.

mod cursor;
mod error;
mod file;
mod metadata;
mod preamble;
mod strings;
mod tensor;
mod value;
mod writer;

pub use error::GgufError;
pub use file::GgufFile;
pub use metadata::Metadata;
pub use strings::Strings;
pub use tensor::TensorInfo;
pub use value::{Array, Value, ValueType};
pub use writer::{GgufWriter, TensorWriter, WriteError};

/// Alignment of tensor data where the metadata do not give another (`general.alignment`).
pub const DEFAULT_ALIGNMENT: usize = 32;

/// The metadata key of the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";
