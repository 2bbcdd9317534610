//! Why a model cannot be loaded.

use crate::{backend::BuildError, gguf::GgufError, graph::GraphError};

/// Why a model cannot be loaded. Each variant names the metadata key or tensor that is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file's metadata cannot be read.
    #[error(transparent)]
    File(#[from] GgufError),
    /// The file is one of several parts of a model.
    #[error(
        "the file is part {part} of {parts} of a model, and models in parts cannot be loaded; join the parts into one \
         file (`llama-gguf-split --merge FIRST_PART OUTPUT`)"
    )]
    Split {
        /// Which part it is, from 1.
        part: u64,
        /// How many there are.
        parts: u64,
    },
    /// The graph of this architecture is not known.
    #[error("architecture {found:?} is not supported; use a model of one of these: {}", .supported.join(", "))]
    UnsupportedArchitecture {
        /// What the file names.
        found: String,
        /// What can be loaded.
        supported: Vec<&'static str>,
    },
    /// A value without which the model is not defined.
    #[error("the file's metadata lacks {key}; the file is incomplete, so convert or download it again")]
    MissingMetadata {
        /// The key.
        key: String,
    },
    /// A value that makes no sense, alone or with others.
    #[error("metadata {key} is {found}, but {expected}; convert or download the file again")]
    InvalidMetadata {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A model that needs something that is not written yet.
    #[error("metadata {key} is {found}: {what} not supported yet; use another model")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What it asks for, with its verb.
        what: &'static str,
    },
    /// A tensor of the architecture that the file does not hold.
    #[error(
        "tensor {tensor} of shape {expected:?} is missing; the file is incomplete, so convert or download it again"
    )]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// The shape that the metadata gives it, fastest dimension first; 0 where any would do.
        expected: Vec<usize>,
    },
    /// A tensor whose shape is not what the metadata says.
    #[error(
        "tensor {tensor} has shape {found:?}, but the metadata says {expected:?}; convert or download the file again"
    )]
    TensorShape {
        /// The tensor.
        tensor: String,
        /// The shape that the metadata gives it, fastest dimension first; 0 where any would do.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor that is not part of the architecture.
    #[error(
        "tensor {tensor} is not part of this architecture, so the model would compute something wrong without it; use \
         another model"
    )]
    UnknownTensor {
        /// The tensor.
        tensor: String,
    },
    /// The tokenizer and the embedding table have different sizes.
    #[error(
        "the vocabulary has {tokens} tokens (tokenizer.ggml.tokens), but the embedding has {logits} rows; the file is \
         damaged or was converted with another model's tokenizer: convert or download it again"
    )]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the embedding.
        logits: usize,
    },
    /// The graph is not sound.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The graph cannot be made executable: a type without a kernel, too little memory, and the like.
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl LoadError {
    /// Whether the file has nothing to do with it: an environment variable is wrong, or the host lacks a device or a thread.
    pub fn is_about_the_host(&self) -> bool {
        use BuildError::{Device, DeviceChoice, Isa, Thread};
        matches!(self, Self::Build(Device(_) | DeviceChoice(_) | Isa(_) | Thread(_)))
    }
}
