//! Why a model cannot be quantized, or an importance matrix not used.

use crate::{
    gguf::{GgufError, WriteError},
    model::LoadError,
};
use rustai_abi::DType;
use std::path::PathBuf;

/// Why a model cannot be quantized, or an importance matrix not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are named in the messages, which say what they are")]
pub enum QuantizeError {
    /// The file or its metadata are damaged.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The file is a part of a model, or its graph cannot be built.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The result cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A file beside the model cannot be read.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// The file that is to hold the result cannot be made.
    #[error(
        "{} cannot be written: {source}; check the path, its permissions and the space on the disk, or name another output",
        path.display()
    )]
    Output { path: PathBuf, source: std::io::Error },
    /// The result would replace something that is no regular file.
    #[error("{} is {kind}, not a regular file, and stays as it is; name another output", path.display())]
    NotReplaceable { path: PathBuf, kind: &'static str },
    /// The result would replace what it is made from.
    #[error("{} is the input itself, which the result would replace; name another output", path.display())]
    SameFile { path: PathBuf },
    /// A tensor is quantized already.
    #[error(
        "tensor {tensor} is {from} already, and quantizing it again to {to} adds the errors of both; start from an F16, \
         BF16 or F32 file, or allow it with --allow-requantize"
    )]
    Requantize { tensor: String, from: DType, to: DType },
    /// No code reads a type.
    #[error("tensor {tensor} is of type {dtype}, which cannot be read as numbers; start from an F16, BF16 or F32 file")]
    Unreadable { tensor: String, dtype: DType },
    /// No code writes a type.
    #[error("tensors cannot be quantized to {dtype}; choose one of {}", .known.join(", "))]
    Unwritable { dtype: DType, known: Vec<&'static str> },
    /// A weight is NaN or infinite.
    #[error("tensor {tensor} holds {value} in row {row}; convert or fetch the model again")]
    NotFinite { tensor: String, row: usize, value: f32 },
    /// A weight is beyond what a type can hold.
    #[error(
        "tensor {tensor} holds {value:e} in row {row}, and {to} cannot hold that row: it would be read back as {read}; \
         choose F32{}, whose range is wider", if *.to == DType::BF16 { "" } else { " or BF16" }
    )]
    OutOfRange { tensor: String, row: usize, value: f32, to: DType, read: f32 },
    /// The importance matrix of another model.
    #[error(
        "the importance matrix knows none of the model's tensors, only others such as {known}; gather it with the model that \
         is to be quantized"
    )]
    ForeignImatrix { known: String },
    /// The importance matrix of a model with other dimensions.
    #[error(
        "the importance matrix has {found} values for {tensor}, which has {expected} columns; gather it with the model \
         that is to be quantized"
    )]
    ImportanceSize { tensor: String, expected: usize, found: usize },
    /// Not an importance matrix.
    #[error("not an importance matrix: {reason}; gather one with `rustai imatrix`")]
    NotAnImatrix { reason: String },
    /// The text has too few tokens.
    #[error("the text has {tokens} tokens, and a chunk takes {chunk}; give a longer text or smaller chunks")]
    TextTooShort { tokens: usize, chunk: usize },
    /// No token of such a chunk is predicted.
    #[error("a chunk of {chunk} tokens predicts nothing; give chunks of at least 2")]
    ChunkTooSmall { chunk: usize },
    /// The model computes NaN or infinities.
    #[error(
        "the model computes {what} that are not finite on this text, so that it or its file is damaged; convert or fetch \
         it again"
    )]
    NotFiniteOnText { what: String },
    /// Worker threads could not be started.
    #[error("{threads} threads could not be started: {reason}; ask for fewer")]
    Threads { threads: usize, reason: String },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}
