//! From a model file to an executable: hyper-parameters, graph, plan, weights.
use crate::{backend::Executable, gguf::GgufFile};
use rustai_kernels_cpu::Isa;

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Worker threads; 0 means one per core that this process may use.
    pub threads: usize,
    /// Longest sequence; 0 means what the file says, but at most 4096.
    pub context: usize,
    /// Sequences that fit into the cache at their longest.
    pub max_sequences: usize,
    /// Most tokens in one step.
    pub max_batch: usize,
    /// Most rows of logits in one step (a perplexity run wants as many as `max_batch`).
    pub max_outputs: usize,
    /// Forces an instruction set; `None` lets `RUSTAI_CPU` or detection choose.
    pub isa: Option<Isa>,
}
impl Default for LoadOptions {
    fn default() -> Self {
        Self { threads: 0, context: 0, max_sequences: 1, max_batch: 512, max_outputs: 8, isa: None }
    }
}
/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {}
/// How far a load has come, in bytes of weights.
#[derive(Clone, Copy, Debug)]
pub struct LoadProgress {
    /// Done.
    pub done: u64,
    /// All.
    pub total: u64,
}
/// Loads the weights of `file` and makes them executable.
pub fn load(file: &GgufFile, options: &LoadOptions, progress: &mut dyn FnMut(LoadProgress)) -> Result<Box<dyn Executable>, LoadError> { todo!() }
