//! The one error type that the library's front door returns.

use crate::{
    backend::{BuildError, StepError},
    engine::EngineError,
    gguf::GgufError,
    graph::GraphError,
    hub::HubError,
    model::LoadError,
    quantize::QuantizeError,
    sampler::SamplerError,
    text::TextError,
};
use std::path::{Path, PathBuf};

/// What went wrong, by the part that found it. Each message names the value and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file on disk cannot be used; `source` says why.
    #[error("{}: {source}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, or with loading it.
        source: Box<Error>,
    },
    /// The model file cannot be read or is damaged.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model cannot be found or fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model cannot be made ready.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The vocabulary, the chat template or a text is not usable.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A sampling setting is out of range.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// A request was refused or ended early, or a setting of the engine is out of range.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A model cannot be quantized, or an importance matrix not used.
    #[error(transparent)]
    Quantize(Box<QuantizeError>),
    /// A graph was put together wrongly.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A graph of one's own cannot be made executable.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A step that was run without an engine failed.
    #[error(transparent)]
    Step(#[from] StepError),
}

impl From<QuantizeError> for Error {
    fn from(error: QuantizeError) -> Self {
        Self::Quantize(Box::new(error))
    }
}

impl Error {
    /// Adds the path of the model file, unless the error names it already or is not about it.
    pub(crate) fn in_model(self, path: &Path) -> Self {
        match self {
            Self::Gguf(GgufError::Io { .. } | GgufError::NotAFile { .. }) | Self::Model { .. } => self,
            Self::Load(ref error) if error.is_about_the_host() => self,
            source => Self::Model { path: path.to_owned(), source: Box::new(source) },
        }
    }
}
