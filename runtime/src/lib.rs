//! Quantized transformer inference on hand-written kernels.
//!
//! rustai loads a quantized model file (GGUF), turns it into a graph, plans the graph once, and runs it with kernels that
//! are chosen for the processor at run time. A service links this crate, opens an [`Engine`] and asks it from any thread.
//!
//! # Quick start
//! ```no_run
//! use rustai::{Engine, Event, Request};
//!
//! # fn main() -> Result<(), rustai::Error> {
//! let engine = Engine::builder("SmolLM2-135M-Instruct.Q4_1.gguf").context(2048).build()?;
//! println!("{} on {}", engine.info().architecture, engine.info().executable);
//!
//! // The whole answer at once:
//! let answer = engine.generate(Request::ask("Why is the sky blue?").max_tokens(200))?;
//! println!("{}", answer.text);
//!
//! // Or as it comes:
//! for event in engine.stream(Request::ask("And at sunset?").max_tokens(200))? {
//!     match event? {
//!         Event::Token { text, .. } => print!("{text}"),
//!         Event::Done(summary) => println!("\n{:.1} tokens/s", summary.generated_tokens_per_second()),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What there is
//! | Module | For |
//! |---|---|
//! | [`engine`] | answering requests: batching of many sequences, streaming, cancellation, stop strings, log-probabilities |
//! | [`hub`] | getting a model file: the default model, other repositories, the cache folder |
//! | [`gguf`] | reading model files, checked against damage and malice |
//! | [`text`] | tokens, streaming text, chat templates |
//! | [`sampler`] | choosing tokens: one documented chain |
//! | [`graph`], [`plan`] | building a graph by hand, and seeing what a model's graph becomes |
//! | [`perplexity`] | how well a model predicts a text |
//! | [`queue`] | handing tensors between processes without copying them: clients, servers, the kernel module |
//! | [`quantize`] | making smaller files, and measuring which weights matter |
//! | [`model`], [`backend`] | architectures, and running a planned graph without the engine |
//!
//! A request is a plain value that says what is asked for; a service makes one from whatever its clients send:
//!
//! ```
//! use rustai::{Request, sampler::SamplerParams};
//!
//! let mut sampling = SamplerParams::default();
//! sampling.top_k = 20;
//! sampling.seed = Some(42);
//! let story = Request::text("Once upon a time").sampling(sampling).max_tokens(100).stop("The end");
//! let exact = Request::raw("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n").temperature(0.0);
//! # let _ = (story, exact);
//! ```
//!
//! # Threads
//! [`Engine`] is a handle: `Clone + Send + Sync`, cheap to clone. One thread inside it owns the model and batches whatever
//! is running; the [`engine`] module describes the policy. A [`Stream`] is read by one thread or task at a time, and can
//! be cancelled from any through its [`CancelHandle`].
//!
//! # Errors
//! The engine returns [`Error`], an enum with one variant per part of the library and the typed cause inside; each part's
//! own error converts into it. Messages
//! name the value that was wrong and what to do about it. A wrong request costs only itself:
//!
//! ```
//! use rustai::{Engine, Error};
//!
//! let error = Engine::builder("model.gguf").max_batch(0).build().unwrap_err();
//! assert!(matches!(error, Error::Engine(_)));
//! assert_eq!(error.to_string(), "max_batch = 0 cannot be used; give at least 1");
//! ```
//!
//! # What runs where
//! The best instruction set is detected when a model is loaded; the environment variable `RUSTAI_CPU` (`reference`, `avx2`,
//! `avx-vnni`, `avx512bw`, `avx512`) forces a lower one, and [`Info::executable`](engine::Info::executable) says what was chosen.

pub mod backend;
pub mod engine;
mod error;
pub mod gguf;
pub mod graph;
pub mod hub;
pub mod model;
pub mod perplexity;
pub mod plan;
pub mod quantize;
#[cfg(target_os = "linux")]
pub mod queue;
pub mod sampler;
mod sys;
pub mod text;

/// Threads for computing: `asked`, or one per core that this process may use for 0.
pub(crate) fn compute_threads(asked: usize) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        asked => asked,
    }
}

pub use engine::{CancelHandle, Completion, Engine, EngineError, Event, Finish, Request, Stream};
pub use error::Error;
pub use rustai_abi::{Batch, BatchSequence, DType, PAGE_TOKENS};
pub use rustai_kernels_cpu::{Isa, KvType};
