//! The engine: a loaded model that answers requests from any number of threads.
//!
//! ```no_run
//! use rustai::{Engine, engine::Request};
//!
//! let engine = Engine::builder("model.gguf").build()?;
//! let answer = engine.generate(Request::ask("Why is the sky blue?").max_tokens(200))?;
//! println!("{}", answer.text);
//! # Ok::<(), rustai::Error>(())
//! ```
//!
//! # Requests and answers
//! A [`Request`] is a prompt with its settings. [`Engine::generate`] waits for the whole [`Completion`];
//! [`Engine::stream`] returns a [`Stream`] of [`Event`]s, which is a blocking iterator and an asynchronous stream in one:
//!
//! ```no_run
//! # use rustai::{Engine, engine::{Event, Request}};
//! # let engine = Engine::builder("model.gguf").build()?;
//! for event in engine.stream(Request::text("Once upon a time").stop("The end"))? {
//!     match event? {
//!         Event::Token { text, .. } => print!("{text}"),
//!         Event::Done(summary) => println!("\n[{:.1} tokens/s]", summary.generated_tokens_per_second()),
//!     }
//! }
//! # Ok::<(), rustai::Error>(())
//! ```
//!
//! In asynchronous code the same value goes wherever a `futures_core::Stream` is wanted; because it has an
//! `Iterator::next` too, write `StreamExt::next(&mut stream).await` where both traits are in scope.
//!
//! # Batching
//! One thread owns the model. In each step it computes one token of every sequence that is decoding and, with what is left
//! of [`EngineBuilder::max_batch`], a chunk of the prompts that have not been computed yet; requests join and leave between
//! steps. They are admitted first come, first served, when the key/value cache can promise all pages that they may need,
//! that is prompt plus [`Request::max_tokens`]: an admitted request never stalls for memory, and a waiting one never
//! stalls another. Pages are taken from the promise only as the sequence grows.
//!
//! # Threads, ends and failures
//! [`Engine`] is a cheap handle: clone it into every thread. [`Stream::cancel`], a [`CancelHandle`] or dropping the stream
//! ends a request between two steps. When the last handle of the engine is dropped, the scheduler stops after its
//! current step, for which the drop waits, and running streams end with [`EngineError::Stopped`]. A step that the model refuses ends the requests
//! in it with [`EngineError::Step`]; a panic while computing ends all requests with [`EngineError::Panicked`], and
//! later ones are refused with the same error. No caller is left waiting, and no lock can be poisoned.
//!
//! This module owns the scheduler and the text side of requests. It must never learn what a tensor is or which device
//! computes; for that it has [`Executable`].

mod builder;
mod chat;
mod completion;
mod error;
mod generation;
mod info;
mod logprob;
mod pages;
mod queue;
mod request;
mod scheduler;
mod scoring;
mod stop;
mod stream;
mod worker;

#[cfg(test)]
mod fake;

pub use builder::{EngineBuilder, ModelSource};
pub use completion::{Completion, Event, Finish, Summary, Timing, Usage};
pub use error::EngineError;
pub use info::{DTypeShare, Info};
pub use request::Request;
pub use stream::{CancelHandle, Stream};

use crate::{
    Error,
    backend::{Executable, Limits},
    sampler::Sampler,
    text::{ChatTemplate, Specials, TextError, Tokenizer},
};
use generation::{Clock, Generation, Output};
use queue::Queue;
use request::Prompt;
use rustai_abi::PAGE_TOKENS;
use scheduler::{Driver, End, Job, Rows};
use scoring::Scoring;
use std::sync::{Arc, mpsc};
use worker::Worker;

/// A loaded model that answers requests; see the [module](self).
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: Tokenizer,
    template: Template,
    info: Info,
    queue: Arc<Queue>,
    worker: Worker<Task>,
}

/// The chat template, if the file has one; or its name and why it is not usable.
type Template = Result<Option<ChatTemplate>, (String, String)>;

/// What the scheduler drives.
enum Task {
    Generation(Box<Generation>),
    Scoring(Scoring),
}

impl Engine {
    /// Begins to set up an engine for a model file: a path, or a [`GgufFile`](crate::gguf::GgufFile) that is open already.
    pub fn builder(model: impl Into<ModelSource>) -> EngineBuilder {
        EngineBuilder::new(model.into())
    }

    /// Starts the scheduler for an executable that was made elsewhere. `info` may have been filled from the file; what
    /// depends on the executable is filled in here.
    fn start(
        executable: Box<dyn Executable>,
        tokenizer: Tokenizer,
        template: Template,
        mut info: Info,
        queue: usize,
    ) -> Result<Self, EngineError> {
        let Limits { max_tokens, max_outputs, pages, context, vocab } = executable.limits();
        if tokenizer.vocab_size() != vocab {
            return Err(EngineError::Vocabulary { tokenizer: tokenizer.vocab_size(), model: vocab });
        }
        info.cache_tokens = pages.saturating_mul(PAGE_TOKENS);
        info.context = context.min(info.cache_tokens);
        info.vocab = vocab;
        info.max_running = max_outputs.min(max_tokens);
        info.executable = executable.describe();
        tracing::info!(model = info.name, context = info.context, executable = info.executable, "engine started");
        let worker = Worker::spawn(executable)?;
        Ok(Self { inner: Arc::new(Inner { tokenizer, template, info, queue: Queue::new(queue), worker }) })
    }

    /// Answers a request and waits for the end.
    ///
    /// # Errors
    /// As [`Engine::stream`], and the error that ended the request early.
    pub fn generate(&self, request: Request) -> Result<Completion, Error> {
        self.stream(request)?.finish()
    }

    /// Submits a request and returns its events. Does not wait for the model: the prompt is only turned into tokens.
    ///
    /// # Errors
    /// [`EngineError::PromptTooLong`], [`EngineError::EmptyPrompt`], [`EngineError::UnknownToken`],
    /// [`EngineError::EmptyStop`], [`EngineError::NoChatTemplate`] and [`EngineError::QueueFull`];
    /// [`Error::Text`] if the chat template fails; [`Error::Sampler`] for a setting out of range;
    /// [`EngineError::Panicked`] if the engine has failed before.
    pub fn stream(&self, request: Request) -> Result<Stream, Error> {
        let clock = Clock::start();
        let inner = &*self.inner;
        if request.stop.iter().any(String::is_empty) {
            return Err(EngineError::EmptyStop.into());
        }
        let mut sampler = Sampler::new(request.sampling.clone(), inner.info.vocab)?;
        let prompt = self.prompt_tokens(&request)?;
        self.check(&prompt)?;
        for &token in &prompt {
            sampler.observe(token);
        }

        let room = inner.info.context - prompt.len();
        let limit = match request.max_tokens {
            Some(tokens) if tokens <= room => (tokens, Finish::Length),
            _ => (room, Finish::Context),
        };
        // The last token of an answer is never computed, so it needs no position.
        let positions = prompt.len() + limit.0.saturating_sub(1);
        let (events, received) = async_channel::unbounded();
        let cancel = CancelHandle::default();
        let generation = Generation {
            sampler,
            tokenizer: inner.tokenizer.clone(),
            detokenizer: inner.tokenizer.detokenizer_after(&prompt, request.show_specials),
            stops: stop::StopMatcher::new(request.stop),
            limit,
            logprobs: request.logprobs,
            ignore_end: request.ignore_end,
            prompt_tokens: prompt.len(),
            events,
            cancel: cancel.clone(),
            ticket: Some(inner.queue.enter()?),
            clock,
            output: Output::default(),
        };
        let driver = Task::Generation(Box::new(generation));
        inner.worker.submit(Job { prompt, positions, rows: Rows::Last, driver })?;
        Ok(Stream::new(received, cancel, inner.worker.failure().clone()))
    }

    /// The natural logarithm of the probability of each token but the first, given those before it: entry `i` is that of
    /// `tokens[i + 1]`. Nothing is put in front. Waits for the result, and shares the model with other requests.
    ///
    /// # Errors
    /// [`EngineError::PromptTooLong`], [`EngineError::EmptyPrompt`], [`EngineError::UnknownToken`] or
    /// [`EngineError::QueueFull`], or what ended the computation early.
    pub fn score(&self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        self.check(tokens)?;
        let (result, received) = mpsc::channel();
        let scoring = Scoring {
            tokens: tokens.into(),
            scores: Vec::with_capacity(tokens.len() - 1),
            result,
            ticket: Some(self.inner.queue.enter()?),
        };
        let (prompt, positions) = (tokens.to_vec(), tokens.len());
        self.inner.worker.submit(Job { prompt, positions, rows: Rows::All, driver: Task::Scoring(scoring) })?;
        let failure = || self.inner.worker.failure().get().cloned().unwrap_or(EngineError::Stopped);
        Ok(received.recv().unwrap_or_else(|_| Err(failure()))?)
    }

    /// The tokens that a request's prompt becomes: what the model will see, BOS and template included.
    ///
    /// # Errors
    /// [`EngineError::NoChatTemplate`], or [`Error::Text`] if the chat template or the tokenizer fails.
    pub fn prompt_tokens(&self, request: &Request) -> Result<Vec<u32>, Error> {
        let tokenizer = &self.inner.tokenizer;
        Ok(match &request.prompt {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(text) => tokenizer.encode_prompt(text, Specials::Text)?,
            Prompt::Raw(text) => tokenizer.encode_prompt(text, Specials::Parse)?,
            Prompt::Chat(messages) => {
                let template = match &self.inner.template {
                    Ok(template) => template.as_ref().ok_or(EngineError::NoChatTemplate)?,
                    Err((name, reason)) => {
                        return Err(TextError::Template { name: name.clone(), reason: reason.clone() }.into());
                    }
                };
                chat::encode(messages, template, tokenizer)?
            }
        })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// The model file's chat template, if it has one that is usable.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.inner.template.as_ref().ok()?.as_ref()
    }

    /// What this engine runs.
    pub fn info(&self) -> &Info {
        &self.inner.info
    }

    /// Requests that wait for their admission now.
    pub fn waiting(&self) -> usize {
        self.inner.queue.waiting()
    }

    /// Refuses what the model cannot compute.
    fn check(&self, prompt: &[u32]) -> Result<(), EngineError> {
        let Info { context, vocab, .. } = self.inner.info;
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if prompt.len() > context {
            return Err(EngineError::PromptTooLong { tokens: prompt.len(), context });
        }
        match prompt.iter().find(|&&token| token as usize >= vocab) {
            Some(&token) => Err(EngineError::UnknownToken { token, vocab }),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("info", &self.inner.info).finish_non_exhaustive()
    }
}

impl Driver for Task {
    fn is_cancelled(&self) -> bool {
        match self {
            Self::Generation(generation) => generation.is_cancelled(),
            Self::Scoring(scoring) => scoring.is_cancelled(),
        }
    }

    fn admitted(&mut self) {
        match self {
            Self::Generation(generation) => generation.admitted(),
            Self::Scoring(scoring) => scoring.admitted(),
        }
    }

    fn logits(&mut self, position: usize, logits: &[f32]) -> Option<u32> {
        match self {
            Self::Generation(generation) => generation.logits(position, logits),
            Self::Scoring(scoring) => scoring.logits(position, logits),
        }
    }

    fn finish(self, end: End) {
        match self {
            Self::Generation(generation) => generation.finish(end),
            Self::Scoring(scoring) => scoring.finish(end),
        }
    }
}

// A service shares one engine among its threads and moves streams between them.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Engine>();
    shared::<CancelHandle>();
    shared::<Stream>();
};
