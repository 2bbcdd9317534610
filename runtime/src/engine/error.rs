//! What the engine itself refuses, and how a request can fail.

use crate::backend::{LogitsError, StepError};
use rustai_kernels_cpu::ExecutorError;
use rustai_kernels_cuda::DeviceError;
use std::sync::Arc;

/// Why the engine cannot be built, refuses a request, or ends one early.
///
/// Cloneable, because one cause may end many requests.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A setting of the builder is out of range.
    #[error("{name} = {value} cannot be used; {remedy}")]
    Setting {
        /// The builder's method.
        name: &'static str,
        /// What it was given.
        value: usize,
        /// What is allowed.
        remedy: &'static str,
    },
    /// The tokenizer and the model disagree about the number of tokens.
    #[error(
        "the vocabulary has {tokenizer} tokens but the model's output has {model}; the file is damaged or was \
         converted with another model's tokenizer: convert or download it again"
    )]
    Vocabulary {
        /// Tokens in the file's vocabulary.
        tokenizer: usize,
        /// Logits per row.
        model: usize,
    },
    /// The system started no thread for the scheduler.
    #[error("the scheduler thread did not start: {0}; raise the limit on threads (ulimit -u) or end other programs")]
    Thread(Arc<std::io::Error>),
    /// The prompt does not fit.
    #[error(
        "the prompt has {tokens} tokens but the context holds {context}; shorten the prompt or build the engine with a \
         larger context"
    )]
    PromptTooLong {
        /// Tokens of the prompt, BOS included.
        tokens: usize,
        /// Tokens that the context holds.
        context: usize,
    },
    /// The prompt has no token.
    #[error("the prompt is empty and the model puts no token in front of it; give at least one character")]
    EmptyPrompt,
    /// A token that the model does not have.
    #[error("token {token} does not exist; the vocabulary has the tokens 0 to {}", vocab.saturating_sub(1))]
    UnknownToken {
        /// The token.
        token: u32,
        /// Tokens in the vocabulary.
        vocab: usize,
    },
    /// A stop string without characters would end every answer before it starts.
    #[error("a stop string is empty; leave it out or give at least one character")]
    EmptyStop,
    /// A conversation for a model that does not say how one is written.
    #[error(
        "the model file has no chat template, so a conversation cannot be written for it; use Request::raw or \
         Request::text with a prompt in the model's own form, or an instruct model"
    )]
    NoChatTemplate,
    /// Too many requests wait.
    #[error("{limit} requests are waiting already, which is the limit; try again later or build with a longer queue")]
    QueueFull {
        /// Most waiting requests.
        limit: usize,
    },
    /// The executable refused a step. Only the requests of that step end; the engine goes on.
    #[error("the model refused a step: {0}; this request has ended, others are not affected")]
    Step(#[source] Arc<StepError>),
    /// The logits of this request are no numbers. Only this request ends; the engine goes on.
    #[error(transparent)]
    Logits(#[from] LogitsError),
    /// A bug: something panicked while computing. The engine ends all requests and takes no more.
    #[error("the engine stopped because of an internal error ({message}); build a new engine, and report this")]
    Panicked {
        /// The panic's message.
        message: Arc<str>,
    },
    /// A GPU failed while it computed. The engine ends all requests and takes no more.
    #[error("the engine stopped because the device failed ({message}); build a new engine, or one on the CPU")]
    Device {
        /// What the driver said.
        message: Arc<str>,
    },
    /// The model has no embedding to give.
    #[error("the model does not end with a normalization and a product, so it has no embedding; use another model")]
    NoEmbedding,
    /// The memory for a request's numbers has another size than they.
    #[error("memory for {found} numbers was given, but there are {width} for one row and {all} for all tokens")]
    OutputSize {
        /// Numbers that the memory holds.
        found: usize,
        /// Numbers of one row.
        width: usize,
        /// Numbers of all rows.
        all: usize,
    },
    /// Another request runs in the session.
    #[error(
        "another request runs in this session; wait for its end, or open a session of its own for each conversation"
    )]
    SessionBusy,
    /// The text of the session does not fit.
    #[error(
        "the session holds {held} tokens of at most {capacity}, and {more} more do not fit; open another session, or one \
         that is larger"
    )]
    SessionFull {
        /// Tokens of its text.
        held: usize,
        /// Tokens that it can hold.
        capacity: usize,
        /// Tokens of the prompt.
        more: usize,
    },
    /// Somebody cancelled the request.
    #[error("the request was cancelled")]
    Cancelled,
    /// The last handle of the engine was dropped while the request ran.
    #[error("the engine was shut down before the request ended; keep a clone of the engine while requests run")]
    Stopped,
}

impl EngineError {
    /// What a failed step means to the engine: after a panic in a kernel or a failure of a device, nothing can run anymore.
    pub(super) fn of_step(error: StepError) -> Self {
        match error {
            StepError::Cpu(ExecutorError::Panicked) => Self::Panicked { message: error.to_string().into() },
            StepError::Device(DeviceError::Driver { .. }) => Self::Device { message: error.to_string().into() },
            StepError::Logits(error) => Self::Logits(error),
            error => Self::Step(Arc::new(error)),
        }
    }
}
