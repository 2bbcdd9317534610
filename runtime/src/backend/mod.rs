//! What runs a planned graph: the CPU, an NVIDIA GPU, or both, one after the other.
//!
//! A backend packs the weights of a graph, binds them to its plan and computes steps. It owns the memory and the threads
//! of a model and says before it takes them whether they can be had; [`fit`] decides what runs where. It must never know an
//! architecture.
#![forbid(unsafe_code)]

pub mod cpu;
pub mod cuda;
mod device;
pub mod fit;
mod load;
mod memory;

pub use device::{DeviceChoice, DeviceChoiceError};

use crate::plan::PlanError;
use rustai_abi::{Batch, DType};
use rustai_kernels_cpu::{ExecutorError, IsaError, MatrixError};
use rustai_kernels_cuda::DeviceError;
use std::path::PathBuf;

pub use rustai_kernels_cpu::{External, Outside};
pub use rustai_kernels_cuda::ops::Sampling;

/// Why a step did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The kernels refused the batch.
    #[error(transparent)]
    Cpu(#[from] ExecutorError),
    /// A GPU or its driver failed, or refused the batch.
    #[error(transparent)]
    Device(DeviceError),
    /// The executable computes in its own memory only.
    #[error("this backend writes no results into a caller's memory; copy them from what a step returns")]
    OwnMemoryOnly,
    /// A graph has no input of this name.
    #[error("the graph has no input {name:?}; it has {known:?}")]
    UnknownInput {
        /// The name asked for.
        name: String,
        /// The inputs that the graph uses.
        known: Vec<String>,
    },
    /// The step ran, but what it gave is of no use.
    #[error(transparent)]
    Logits(#[from] LogitsError),
}

/// Logits that give no probabilities: all are NaN or minus infinity, or one that matters is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the logits behind position {position} are not numbers, so the model's weights are damaged or overflow in their type; \
     use another file of the model, or one of another type"
)]
pub struct LogitsError {
    /// Position of the token behind which they are, counted from 0.
    pub position: usize,
}

/// Why a graph cannot be made executable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A tensor's type has no kernel.
    #[error("tensor {tensor} is of type {dtype}, which no kernel computes with yet; convert the model to another type")]
    UnsupportedType {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: DType,
    },
    /// A tensor cannot be used as a matrix.
    #[error("tensor {tensor}: {source}")]
    Matrix {
        /// The tensor.
        tensor: String,
        /// The kernels' word.
        source: MatrixError,
    },
    /// The source of the weights does not hold what the graph says.
    #[error("tensor {tensor}: the graph needs {expected}, and the weights hold {found}")]
    Weight {
        /// The tensor.
        tensor: String,
        /// Type and shape in the graph.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A tensor could not be read from its file.
    #[error(
        "tensor {tensor} could not be read from {path:?}: {source}; see that the file is whole and can be read, and load it again"
    )]
    Read {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// What the system said; [`UnexpectedEof`](std::io::ErrorKind::UnexpectedEof) if the file has become shorter.
        source: std::io::Error,
    },
    /// The system does not say whether a file is still what it was.
    #[error("{path:?}: {source}; see that the file system works, and load the model again")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was written to after it had been opened.
    #[error("{path:?} has changed while the model was loaded; load it again when nothing writes to it")]
    FileChanged {
        /// The file.
        path: PathBuf,
    },
    /// No kernels compute the graph.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The forced instruction set cannot be had.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The executor refused the program or could not get its memory.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// There is no GPU that serves, or it failed.
    #[error(transparent)]
    Device(DeviceError),
    /// The environment asks for a device that there is no word for.
    #[error("RUSTAI_DEVICE: {0}")]
    DeviceChoice(#[from] DeviceChoiceError),
    /// Nowhere between the layers does a single value go from one to the next.
    #[error(
        "the model cannot be cut so that {layers} of its {all} layers run on the GPU; give --gpu-layers {all} or 0"
    )]
    NoCut {
        /// Layers that were to run on the GPU.
        layers: usize,
        /// All layers.
        all: usize,
    },
    /// The device's memory would not suffice. Nothing was loaded.
    #[error(
        "{} of device memory are needed for {layers} layers ({} key/value cache, {} activations, {} weights, {} for the driver), \
         and {} are free; \
         put fewer layers there (--gpu-layers), or use a shorter context (--ctx), an 8-bit cache (--kv-type q8_0), fewer \
         sequences or a smaller batch",
        mib(*.needed), mib(*.cache), mib(*.activations), mib(*.weights), mib(*.reserve), mib(*.free)
    )]
    OutOfDeviceMemory {
        /// Layers that were to run on the device.
        layers: usize,
        /// Sum of the four below, in bytes.
        needed: u64,
        /// Bytes of the key/value cache.
        cache: u64,
        /// Bytes of activations and inputs.
        activations: u64,
        /// Bytes of the weights.
        weights: u64,
        /// Bytes that are left to the driver.
        reserve: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The result of a model's graph has no row per output.
    #[error("the graph's result has a row per token; a model's logits need a row per output (select_outputs)")]
    NotLogits,
    /// No thread could be started to load the weights.
    #[error("no thread could be started to load the weights: {0}")]
    Thread(std::io::Error),
    /// Memory would not suffice. Nothing was loaded.
    #[error(
        "{} of memory are needed ({} key/value cache, {} activations, {} weights{}), and {} are available; use a shorter \
         context (--ctx), an 8-bit cache (--kv-type q8_0), fewer sequences or a smaller batch",
        mib(*.needed), mib(*.cache), mib(*.activations), mib(*.weights),
        if *.page_locked > 0 { format!(", {} page-locked for the GPU", mib(*.page_locked)) } else { String::new() },
        mib(*.available)
    )]
    OutOfMemory {
        /// Sum of the four below, in bytes.
        needed: u64,
        /// Bytes of the key/value cache.
        cache: u64,
        /// Bytes of the arena.
        activations: u64,
        /// Bytes of the weights.
        weights: u64,
        /// Bytes of page-locked memory for what goes to a GPU and comes back.
        page_locked: u64,
        /// Bytes that the system and the control group leave.
        available: u64,
    },
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Limits of an executable model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens in one step.
    pub max_tokens: usize,
    /// Most rows of logits in one step.
    pub max_outputs: usize,
    /// Pages of the key/value cache (each `PAGE_TOKENS` positions).
    pub pages: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Logits per row.
    pub vocab: usize,
}

/// A model that is ready to compute.
pub trait Executable: Send {
    /// Computes one step; returns `batch.outputs.len() * vocab` logits, row-major.
    ///
    /// # Errors
    /// [`StepError`] if the batch breaks a limit; nothing has run then.
    fn step(&mut self, batch: &Batch<'_>) -> Result<&[f32], StepError>;
    /// As [`step`](Self::step), but rows that `outside` names are written there; those logits are arbitrary in what is
    /// returned.
    ///
    /// # Errors
    /// As [`step`](Self::step), and if a row has a wrong width or the executable has no such rows.
    fn step_with(&mut self, batch: &Batch<'_>, outside: Outside<'_>) -> Result<&[f32], StepError> {
        let mut rows = outside.inputs.iter().chain(outside.output).chain(outside.normalized);
        if rows.any(Option::is_some) { Err(StepError::OwnMemoryOnly) } else { self.step(batch) }
    }
    /// As [`step`](Self::step), but of each row only the token of the largest logit is returned, of equal ones the first; NaN is
    /// less than anything. `None`, and nothing has run, if the executable leaves choosing to the caller.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    fn step_greedy(&mut self, batch: &Batch<'_>) -> Option<Result<&[u32], StepError>> {
        let _ = batch;
        None
    }
    /// Most candidates that [`step_sampled`](Self::step_sampled) draws a token from; `None` if the executable leaves drawing to the
    /// caller.
    fn most_candidates(&self) -> Option<usize> {
        None
    }
    /// As [`step_with`](Self::step_with), but for each row of `rows` that says how, a token is drawn where the step is computed.
    /// Returns a token per row, arbitrary where none is drawn, and the logits, arbitrary where one is. `None`, and nothing has run,
    /// if the executable leaves drawing to the caller.
    ///
    /// # Errors
    /// As [`step_with`](Self::step_with), and if a row's settings make no sense.
    #[expect(clippy::type_complexity, reason = "two results of a step, or none, or an error")]
    fn step_sampled(
        &mut self,
        batch: &Batch<'_>,
        outside: Outside<'_>,
        rows: &[Option<Sampling>],
    ) -> Option<Result<(&[u32], &[f32]), StepError>> {
        let _ = (batch, outside, rows);
        None
    }
    /// Values of an embedding: what the last product of the model takes, if there is such a thing.
    fn embedding_width(&self) -> Option<usize> {
        None
    }
    /// The limits.
    fn limits(&self) -> Limits;
    /// Where it computes: `cpu`, a GPU such as `cuda:0`, or both, the first one first.
    fn device(&self) -> String {
        "cpu".to_owned()
    }
    /// One line for people: device, kernels, threads.
    fn describe(&self) -> String;
    /// Does a piece, some hundredths of a second long, of what loading has put off so that the first step can begin at once; whether
    /// more is left. Steps take longer as long as there is.
    ///
    /// # Errors
    /// [`StepError`] if the rest cannot be done. Unless a kernel panicked, steps can go on as before.
    fn catch_up(&mut self) -> Result<bool, StepError> {
        Ok(false)
    }
}
