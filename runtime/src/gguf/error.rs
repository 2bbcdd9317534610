//! Why a GGUF file is refused.

use super::value::ValueType;
use rustai_abi::{DType, UnknownDType};
use std::path::PathBuf;

/// Why a file is refused, or a metadata value cannot be used. Positions are byte offsets in the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are named in the messages, which say what they are")]
pub enum GgufError {
    /// The file cannot be opened, examined or mapped.
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// The path is a folder, a pipe or a device.
    #[error("{} is not a regular file; name a .gguf file", path.display())]
    NotAFile { path: PathBuf },
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it starts with {found}, not with \"GGUF\"; {remedy}")]
    NotGguf { found: String, remedy: &'static str },
    /// The version number reads right only with its bytes swapped.
    #[error("big-endian GGUF file (version {version}); only little-endian files are read: convert the model again")]
    BigEndian { version: u32 },
    /// A version other than 2 or 3.
    #[error("GGUF version {version} at byte 4 is not supported, only 2 and 3 are; convert the model again")]
    Version { version: u32 },
    /// The file ends inside a field.
    #[error(
        "{field} at byte {at} needs {need} bytes, but the file has only {left} more; \
         it is truncated or damaged: fetch it again"
    )]
    Truncated { field: String, at: u64, need: u64, left: u64 },
    /// A count that the rest of the file cannot hold.
    #[error(
        "{field} at byte {at} announces {count} entries, but the {left} bytes behind it hold at most {most}; \
         the file is truncated or damaged: fetch it again"
    )]
    Count { field: String, at: u64, count: u64, left: u64, most: u64 },
    /// Metadata that would take an absurd amount of memory.
    #[error(
        "{field} at byte {at} takes the header's memory over {limit} bytes; no model needs that, the file is damaged"
    )]
    HeaderTooLarge { field: String, at: u64, limit: usize },
    /// A key or tensor name over the specification's limit.
    #[error("{field} at byte {at} is {len} bytes long, over the limit of {limit}; the file is damaged: fetch it again")]
    NameTooLong { field: String, at: u64, len: u64, limit: u64 },
    /// A value type that the specification does not assign.
    #[error(
        "{field} at byte {at} has value type {id}, which is not known (0 to 12 are); \
         the file may be newer than this program, or damaged"
    )]
    ValueTypeId { field: String, at: u64, id: u32 },
    /// Arrays of arrays of arrays ...
    #[error("{field} at byte {at} nests arrays more than {limit} deep; the file is damaged: fetch it again")]
    NestedTooDeep { field: String, at: u64, limit: usize },
    /// A boolean that is neither 0 nor 1.
    #[error("{field} at byte {at} is the boolean {value}, neither 0 nor 1; the file is damaged: fetch it again")]
    Bool { field: String, at: u64, value: u8 },
    /// A string that is no UTF-8.
    #[error("{field} at byte {at} is not valid UTF-8; the file is damaged, or must be converted again")]
    Utf8 { field: String, at: u64 },
    /// Two metadata entries with one key.
    #[error("the metadata key {key:?} occurs twice; the file is damaged: convert the model again")]
    DuplicateKey { key: String },
    /// Two tensors with one name.
    #[error("the tensor {tensor:?} occurs twice; the file is damaged: convert the model again")]
    DuplicateTensor { tensor: String },
    /// `general.alignment` is no power of two from 8 to 65,536.
    #[error("general.alignment is {value}, not a power of two from 8 to 65536; convert the model again")]
    Alignment { value: u64 },
    /// A tensor with no dimension or more than four.
    #[error("tensor {tensor:?} at byte {at} has {rank} dimensions, not 1 to 4; the file is damaged: fetch it again")]
    Rank { tensor: String, at: u64, rank: u32 },
    /// A dimension of zero.
    #[error("dimension {axis} of tensor {tensor:?} at byte {at} is zero; the file is damaged: fetch it again")]
    ZeroDimension { tensor: String, at: u64, axis: usize },
    /// More elements or bytes than a 64-bit machine can address.
    #[error("tensor {tensor:?} at byte {at} has dimensions {dims:?}, whose product is absurd; the file is damaged")]
    TooManyElements { tensor: String, at: u64, dims: Vec<u64> },
    /// A type identifier that was removed or never assigned.
    #[error("tensor {tensor:?} at byte {at}: {source}")]
    TensorType { tensor: String, at: u64, source: UnknownDType },
    /// Rows that are no whole number of quantized blocks.
    #[error(
        "rows of tensor {tensor:?} have {cols} elements, not a multiple of {dtype}'s block of {block}; \
         the file is damaged: convert the model again"
    )]
    PartialBlock { tensor: String, dtype: DType, cols: usize, block: usize },
    /// An offset that is no multiple of the alignment.
    #[error("tensor {tensor:?} has offset {offset}, not a multiple of the alignment {alignment}; the file is damaged")]
    Misaligned { tensor: String, offset: u64, alignment: usize },
    /// Data past the end of the file.
    #[error(
        "tensor {tensor:?} has {bytes} bytes at offset {offset} of the data section, but that has only {available}; \
         the file is truncated: fetch it again"
    )]
    PastTheEnd { tensor: String, offset: u64, bytes: usize, available: usize },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap at offset {offset} of the data section; the file is damaged")]
    Overlap { first: String, second: String, offset: u64 },
    /// A metadata value of another type than the one asked for.
    #[error("metadata key {key:?} holds {found}, but {wanted} is needed; convert the model again")]
    WrongType { key: String, found: ValueType, wanted: &'static str },
    /// An integer that does not fit the type asked for.
    #[error("metadata key {key:?} is {value}, which does not fit {wanted}; convert the model again")]
    OutOfRange { key: String, value: i128, wanted: &'static str },
}
