//! From a model file to an executable: hyper-parameters, graph, plan, weights.
//!
//! Each architecture is one file with one function that turns metadata into a [`Graph`], listed in
//! `ARCHITECTURES`. This module checks what metadata and tensors say against each other and names what does not fit. It
//! must never compute with weights.
#![forbid(unsafe_code)]

mod error;
mod llama;
mod reader;
mod rope;
mod source;

pub use error::LoadError;
pub use source::ModelFile;

use crate::{
    backend::{
        DeviceChoice, Executable,
        cpu::{self, CpuModel, CpuOptions},
        fit::{self, Fit, FitOptions},
    },
    graph::Graph,
    plan::Plan,
};
use reader::Reader;
use rustai_abi::PAGE_TOKENS;
use rustai_kernels_cpu::{Isa, KvType};
use std::path::PathBuf;

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
    /// How the key/value cache keeps its entries.
    pub kv_type: KvType,
    /// What the model runs on.
    pub device: DeviceChoice,
    /// Leaves packing weights for the CPU to [`Executable::catch_up`], as an [`Engine`](crate::Engine) wants it.
    pub pack_later: bool,
    /// Layers that run on a GPU, counted from the last; `None` takes as many as fit into its memory.
    pub gpu_layers: Option<usize>,
    /// A folder of compiled CUDA kernels that goes before those in the program; `None` lets `RUSTAI_CUDA_KERNELS` name one.
    pub cuda_kernels: Option<PathBuf>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            threads: 0,
            context: 0,
            max_sequences: 1,
            max_batch: 512,
            max_outputs: 8,
            isa: None,
            kv_type: KvType::F16,
            device: DeviceChoice::Auto,
            pack_later: false,
            gpu_layers: None,
            cuda_kernels: None,
        }
    }
}

impl LoadOptions {
    fn fit(&self, cpu: CpuOptions) -> FitOptions {
        FitOptions { cpu, device: self.device, gpu_layers: self.gpu_layers, cuda_kernels: self.cuda_kernels.clone() }
    }
}

/// How far a load has come, in bytes of weights.
#[derive(Clone, Copy, Debug)]
pub struct LoadProgress {
    /// Done.
    pub done: u64,
    /// All.
    pub total: u64,
}

/// What a model computes, before any weight is read.
#[derive(Clone, Debug)]
pub struct ModelGraph {
    /// The graph, from tokens to a row of logits per output.
    pub graph: Graph,
    /// Longest sequence that the model was made for, in tokens.
    pub context: usize,
    /// Logits per row.
    pub vocab: usize,
}

/// An architecture and the function that builds its graph.
struct Architecture {
    name: &'static str,
    build: fn(&Reader<'_>) -> Result<ModelGraph, LoadError>,
}

const ARCHITECTURES: &[Architecture] = &[Architecture { name: "llama", build: llama::build }];

/// Context where neither the caller nor the file asks for less.
const DEFAULT_CONTEXT: usize = 4096;

/// Names of the architectures that can be loaded, as `general.architecture` gives them.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|architecture| architecture.name)
}

/// Builds the graph of a model file. No weight is read, except RoPE's frequency factors.
///
/// # Errors
/// [`LoadError`] if the architecture is not supported, or metadata or tensors are missing or do not fit each other.
pub fn graph(file: &dyn ModelFile) -> Result<ModelGraph, LoadError> {
    const KEY: &str = "general.architecture";
    check_whole(file)?;
    let name = file.str(KEY)?.ok_or_else(|| LoadError::MissingMetadata { key: KEY.into() })?;
    let architecture = ARCHITECTURES.iter().find(|architecture| architecture.name == name).ok_or_else(|| {
        LoadError::UnsupportedArchitecture { found: name.into(), supported: architectures().collect() }
    })?;
    let model = (architecture.build)(&Reader::new(file, architecture.name))?;
    check_vocabulary(file, model.vocab)?;
    check_all_used(file, &model.graph)?;
    Ok(model)
}

/// Loads the weights of `file` and makes them executable. `progress` is called from this thread.
///
/// # Errors
/// [`LoadError`]; what can be known without the weights, the lack of memory included, is found before they are read.
pub fn load(
    file: &dyn ModelFile,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Executable>, LoadError> {
    let model = graph(file)?;
    let (cpu, context) = model.sizes(options);
    let fit = fit::fit(&model.graph, &options.fit(cpu))?;
    let mut report = |done, total| progress(LoadProgress { done, total });
    Ok(fit.load(&model.graph, file.weights(), &cpu, context, &mut report)?)
}

/// Decides what of a model would run where, and what memory that takes, without its weights.
///
/// # Errors
/// [`LoadError`] as of [`load`], but for what only the weights tell.
pub fn fit(file: &dyn ModelFile, options: &LoadOptions) -> Result<Fit, LoadError> {
    let model = graph(file)?;
    let (cpu, _) = model.sizes(options);
    Ok(fit::fit(&model.graph, &options.fit(cpu))?)
}

/// [`load`] for any file, to a model on the CPU.
pub(crate) fn load_cpu(
    file: &dyn ModelFile,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<CpuModel, LoadError> {
    let model = graph(file)?;
    let (cpu, context) = model.sizes(options);
    let mut report = |done, total| progress(LoadProgress { done, total });
    Ok(CpuModel::new(&model.graph, file.weights(), &cpu, context, &mut report)?)
}

/// The plan that [`load`] would make of a model with these options on a CPU, without its weights.
///
/// # Errors
/// [`LoadError`] as of [`load`], but for what only the weights or the memory tell.
pub fn plan(file: &dyn ModelFile, options: &LoadOptions) -> Result<Plan, LoadError> {
    let model = graph(file)?;
    Ok(cpu::plan(&model.graph, &model.sizes(options).0)?)
}

impl ModelGraph {
    /// What the options mean for this model, and the longest sequence.
    fn sizes(&self, options: &LoadOptions) -> (CpuOptions, usize) {
        let context = match options.context {
            0 => self.context.min(DEFAULT_CONTEXT),
            context => context,
        };
        if context > self.context {
            tracing::warn!(context, trained = self.context, "the context is longer than the model was made for");
        }
        let pages = options.max_sequences.max(1).saturating_mul(context.div_ceil(PAGE_TOKENS));
        let max_tokens = options.max_batch.min(pages.saturating_mul(PAGE_TOKENS)).max(1);
        let max_outputs = options.max_outputs.clamp(1, max_tokens);
        let LoadOptions { isa, threads, kv_type, pack_later, .. } = *options;
        (CpuOptions { isa, threads, max_tokens, max_outputs, pages, kv_type, pack_later }, context)
    }
}

/// Refuses a file that holds only a part of a model (`split.count` in its metadata): a part lacks tensors, and all but the
/// first lack the tokenizer too.
///
/// # Errors
/// [`LoadError::Split`].
pub fn check_whole(file: &dyn ModelFile) -> Result<(), LoadError> {
    match file.u64("split.count")? {
        Some(parts) if parts > 1 => {
            Err(LoadError::Split { part: file.u64("split.no")?.unwrap_or(0).saturating_add(1), parts })
        }
        _ => Ok(()),
    }
}

/// The tokenizer's tokens and the rows of logits must be as many.
fn check_vocabulary(file: &dyn ModelFile, logits: usize) -> Result<(), LoadError> {
    match file.count("tokenizer.ggml.tokens")? {
        Some(tokens) if tokens != logits => Err(LoadError::Vocabulary { tokens, logits }),
        _ => Ok(()),
    }
}

/// A tensor that the graph does not use means that the model computes something else than the graph.
fn check_all_used(file: &dyn ModelFile, graph: &Graph) -> Result<(), LoadError> {
    let used: std::collections::HashSet<&str> = graph.weights().iter().map(|weight| &weight.name[..]).collect();
    // Frequency factors are read while the graph is built; old files also hold tables of RoPE angles.
    let known = |name: &str| used.contains(name) || name == rope::FACTORS || name.ends_with(".attn_rot_embd.weight");
    match file.tensor_names().into_iter().find(|name| !known(name)) {
        Some(tensor) => Err(LoadError::UnknownTensor { tensor }),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
