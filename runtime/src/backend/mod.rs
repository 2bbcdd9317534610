//! What runs a planned graph: the CPU now, GPUs later.
use rustai_abi::Batch;

/// Why a step did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The kernels refused the batch.
    #[error(transparent)]
    Cpu(#[from] rustai_kernels_cpu::ExecutorError),
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
    /// The limits.
    fn limits(&self) -> Limits;
    /// One line for people: device, kernels, threads.
    fn describe(&self) -> String;
}
