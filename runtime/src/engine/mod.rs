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
//! in it with [`EngineError::Step`], and logits that are not numbers end their own request with [`EngineError::Logits`]; a panic
//! while computing ends all requests with [`EngineError::Panicked`], and later ones are refused with the same error. No caller is left waiting, and no lock can be poisoned.
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
mod outputs;
mod pages;
mod queue;
mod request;
mod scheduler;
mod scoring;
mod session;
mod stop;
mod stream;
mod worker;

#[cfg(test)]
mod fake;

pub use builder::{EngineBuilder, ModelSource};
pub use completion::{Completion, Event, Finish, Summary, Timing, Usage};
pub use error::EngineError;
pub use info::{DTypeShare, Info};
pub use outputs::{OutputKind, Wanted};
pub use request::Request;
pub use session::Session;
pub use stream::{CancelHandle, Stream};

use crate::{
    Error,
    backend::{Executable, Limits, Sampling},
    sampler::Sampler,
    text::{ChatTemplate, Specials, TextError, Tokenizer},
};
use generation::{Clock, Generation, Output};
use outputs::Outputs;
use queue::Queue;
use request::Prompt;
use rustai_abi::PAGE_TOKENS;
pub use rustai_kernels_cpu::External;
use scheduler::{Driver, End, Job, Place, Rows};
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
    /// Most candidates that the executable draws from, if it is to draw.
    candidates: Option<usize>,
    queue: Arc<Queue>,
    worker: Worker<Task>,
}

/// The chat template, if the file has one; or its name and why it is not usable.
type Template = Result<Option<ChatTemplate>, (String, String)>;

/// What the scheduler drives.
enum Task {
    Generation(Box<Generation>),
    Scoring(Scoring),
    Outputs(Outputs),
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
        device_sampling: bool,
    ) -> Result<Self, EngineError> {
        let Limits { max_tokens, max_outputs, pages, context, vocab } = executable.limits();
        if tokenizer.vocab_size() != vocab {
            return Err(EngineError::Vocabulary { tokenizer: tokenizer.vocab_size(), model: vocab });
        }
        info.cache_tokens = pages.saturating_mul(PAGE_TOKENS);
        info.context = context.min(info.cache_tokens);
        info.vocab = vocab;
        info.embedding = executable.embedding_width();
        info.max_running = max_outputs.min(max_tokens);
        info.executable = executable.describe();
        tracing::info!(model = info.name, context = info.context, executable = info.executable, "engine started");
        let candidates = executable.most_candidates().filter(|_| device_sampling);
        if device_sampling && candidates.is_none() {
            tracing::warn!(device = executable.device(), "no tokens are drawn there: the CPU draws them");
        }
        let worker = Worker::spawn(executable)?;
        let queue = Queue::new(queue);
        Ok(Self { inner: Arc::new(Inner { tokenizer, template, info, candidates, queue, worker }) })
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
        let session = request.session;
        let Room { held, tokens: room } = self.room(&prompt, session.as_ref())?;
        for &token in held.tokens.iter().chain(&prompt) {
            sampler.observe(token);
        }

        let limit = match request.max_tokens {
            Some(tokens) if tokens <= room => (tokens, Finish::Length),
            _ => (room, Finish::Context),
        };
        // The last token of an answer is never computed, so it needs no position.
        let positions = held.tokens.len() + prompt.len() + limit.0.saturating_sub(1);
        let (events, received) = async_channel::unbounded();
        let cancel = CancelHandle::default();
        let vocab = inner.info.vocab;
        let generation = Generation {
            drawn: inner.candidates.and_then(|most| generation::drawn(&sampler, vocab, most)),
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
        let session = held.hand_over();
        inner.worker.submit(Job { prompt, session, positions, rows: Rows::Last, driver })?;
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
            failure: None,
        };
        let (prompt, positions) = (tokens.to_vec(), tokens.len());
        self.inner.worker.submit(Job {
            prompt,
            session: None,
            positions,
            rows: Rows::All,
            driver: Task::Scoring(scoring),
        })?;
        let failure = || self.inner.worker.failure().get().cloned().unwrap_or(EngineError::Stopped);
        Ok(received.recv().unwrap_or_else(|_| Err(failure()))?)
    }

    /// The logits behind the last of `tokens`: a number for each token of the vocabulary. Nothing is put in front. Waits for
    /// the result, and shares the model with other requests.
    ///
    /// # Errors
    /// As [`compute`](Self::compute), or what ended the computation early.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        self.numbers(tokens, OutputKind::Logits, self.inner.info.vocab)
    }

    /// The embedding of `tokens`: the normalized hidden state behind the last of them, from which logits are computed.
    /// Nothing is put in front. Waits for the result, and shares the model with other requests.
    ///
    /// # Errors
    /// As [`compute`](Self::compute), or what ended the computation early.
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        self.numbers(tokens, OutputKind::Embedding, self.inner.info.embedding.ok_or(EngineError::NoEmbedding)?)
    }

    fn numbers(&self, tokens: &[u32], kind: OutputKind, width: usize) -> Result<Vec<f32>, Error> {
        let rows = External::zeroed(width);
        let (result, received) = mpsc::channel();
        let done = move |outcome| {
            // A caller that is gone needs no answer.
            let _ = result.send(outcome);
        };
        self.compute(tokens.to_vec(), None, Wanted { kind, rows: rows.clone() }, done)?;
        let failure = || self.inner.worker.failure().get().cloned().unwrap_or(EngineError::Stopped);
        received.recv().unwrap_or_else(|_| Err(failure()))?;
        Ok(rows.to_vec())
    }

    /// Opens a session of at most `tokens` tokens, 0 for the context: requests that [name it](Request::session) continue its
    /// text, and what was computed of it stays in the cache between them.
    pub fn open_session(&self, tokens: usize) -> Session {
        let context = self.inner.info.context;
        Session::new(if tokens == 0 { context } else { tokens.min(context) })
    }

    /// What is left for an answer behind a session's text and a prompt. The session is taken until the request leaves.
    fn room(&self, prompt: &[u32], session: Option<&Session>) -> Result<Room, EngineError> {
        self.check(prompt)?;
        let Some(session) = session else {
            return Ok(Room { held: Held::default(), tokens: self.inner.info.context - prompt.len() });
        };
        let tokens = session.take()?;
        let held = Held { tokens, slot: Some(session.slot().clone()) };
        let (text, capacity) = (held.tokens.len(), session.capacity());
        match capacity.checked_sub(text + prompt.len()) {
            Some(tokens) => Ok(Room { held, tokens }),
            None => Err(EngineError::SessionFull { held: text, capacity, more: prompt.len() }),
        }
    }

    /// Computes `tokens` and has the kernels write what is wanted of them where the caller wants it: nothing is copied.
    /// Does not wait; `done` is called on the scheduler's thread when the rows are written or cannot be, and must be
    /// brief.
    ///
    /// # Errors
    /// [`EngineError::PromptTooLong`], [`EngineError::EmptyPrompt`], [`EngineError::UnknownToken`],
    /// [`EngineError::OutputSize`], [`EngineError::NoEmbedding`] or [`EngineError::QueueFull`]; then `done` is not called.
    pub fn compute(
        &self,
        tokens: Vec<u32>,
        session: Option<&Session>,
        wanted: Wanted,
        done: impl FnOnce(Result<(), EngineError>) + Send + 'static,
    ) -> Result<CancelHandle, Error> {
        self.check(&tokens)?;
        let info = &self.inner.info;
        let width = match wanted.kind {
            OutputKind::Logits => info.vocab,
            OutputKind::Embedding => info.embedding.ok_or(EngineError::NoEmbedding)?,
        };
        let (found, all) = (wanted.rows.len(), width * tokens.len());
        if found != width && found != all {
            return Err(EngineError::OutputSize { found, width, all }.into());
        }
        let all = found == all;
        let held = self.room(&tokens, session)?.held;
        let cancel = CancelHandle::default();
        let ticket = Some(self.inner.queue.enter()?);
        let outputs = Outputs { wanted, width, all, first: 0, cancel: cancel.clone(), ticket, done: Box::new(done) };
        let positions = held.tokens.len() + tokens.len();
        let (session, rows) = (held.hand_over(), if all { Rows::All } else { Rows::Last });
        self.inner.worker.submit(Job { prompt: tokens, session, positions, rows, driver: Task::Outputs(outputs) })?;
        Ok(cancel)
    }

    /// The tokens that a request's prompt becomes: what the model will see, BOS and template included.
    ///
    /// # Errors
    /// [`EngineError::NoChatTemplate`], or [`Error::Text`] if the chat template or the tokenizer fails.
    pub fn prompt_tokens(&self, request: &Request) -> Result<Vec<u32>, Error> {
        let tokenizer = &self.inner.tokenizer;
        let continues = request.session.as_ref().is_some_and(|session| !session.is_empty());
        Ok(match &request.prompt {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(text) if continues => tokenizer.encode(text, Specials::Text)?,
            Prompt::Raw(text) if continues => tokenizer.encode(text, Specials::Parse)?,
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

/// What a request may use.
struct Room {
    held: Held,
    /// Tokens of an answer.
    tokens: usize,
}

/// A session that was taken, with its text; free again if the request does not come about.
#[derive(Default)]
struct Held {
    tokens: Vec<u32>,
    slot: Option<Arc<session::Slot>>,
}

impl Held {
    /// From here on the scheduler frees it.
    fn hand_over(mut self) -> Option<Arc<session::Slot>> {
        self.slot.take()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(slot) = &self.slot {
            slot.free();
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
            Self::Outputs(outputs) => outputs.is_cancelled(),
        }
    }

    fn admitted(&mut self, first: usize) {
        match self {
            Self::Generation(generation) => generation.admitted(first),
            Self::Scoring(scoring) => scoring.admitted(first),
            Self::Outputs(outputs) => outputs.admitted(first),
        }
    }

    fn place(&self, position: usize) -> Option<Place> {
        match self {
            Self::Outputs(outputs) => outputs.place(position),
            Self::Generation(_) | Self::Scoring(_) => None,
        }
    }

    fn logits(&mut self, position: usize, logits: &[f32]) -> Option<u32> {
        match self {
            Self::Generation(generation) => generation.logits(position, logits),
            Self::Scoring(scoring) => scoring.logits(position, logits),
            Self::Outputs(outputs) => outputs.logits(position, logits),
        }
    }

    fn is_greedy(&self) -> bool {
        match self {
            Self::Generation(generation) => generation.is_greedy(),
            Self::Scoring(_) | Self::Outputs(_) => false,
        }
    }

    fn draw(&self, position: usize) -> Option<Sampling> {
        match self {
            Self::Generation(generation) => generation.draw(position),
            Self::Scoring(_) | Self::Outputs(_) => None,
        }
    }

    fn chosen(&mut self, position: usize, token: u32) -> Option<u32> {
        match self {
            Self::Generation(generation) => generation.chosen(position, token),
            Self::Scoring(_) | Self::Outputs(_) => None,
        }
    }

    fn last(&self) -> Option<u32> {
        match self {
            Self::Generation(generation) => generation.last(),
            Self::Scoring(_) | Self::Outputs(_) => None,
        }
    }

    fn failure(&mut self) -> Option<EngineError> {
        match self {
            Self::Generation(generation) => generation.failure(),
            Self::Scoring(scoring) => scoring.failure(),
            Self::Outputs(outputs) => outputs.failure(),
        }
    }

    fn finish(self, end: End) {
        match self {
            Self::Generation(generation) => generation.finish(end),
            Self::Scoring(scoring) => scoring.finish(end),
            Self::Outputs(outputs) => outputs.finish(end),
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
