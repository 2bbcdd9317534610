//! Decides what of a model runs where, before anything is loaded: all of it on one device, or its first layers on the CPU
//! and its last ones on a GPU.
//!
//! A layer is what lies between two attentions; the graph is cut where one value goes from layer to layer. The last layers go
//! to the GPU, since the product that ends a model is the largest and is best there.

use super::{
    BuildError, DeviceChoice, Executable,
    cpu::{self, CpuGraph, CpuModel, CpuOptions},
    cuda::{self, Cuda, CudaModel},
    memory,
};
use crate::graph::{self, Cut, Graph, Op, WeightSource};
use rustai_kernels_cuda::{DeviceError, DeviceInfo};
use std::path::PathBuf;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct FitOptions {
    /// Sizes, and what concerns the CPU.
    pub cpu: CpuOptions,
    /// The device.
    pub device: DeviceChoice,
    /// Layers that shall run on the GPU, counted from the last; `None` takes as many as fit. More than there are means all.
    pub gpu_layers: Option<usize>,
    /// A folder of compiled kernels that goes before those in the program; `None` lets `RUSTAI_CUDA_KERNELS` name one.
    pub cuda_kernels: Option<PathBuf>,
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Key/value cache.
    pub cache: u64,
    /// Activations and inputs of steps.
    pub activations: u64,
    /// Weights.
    pub weights: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.cache.saturating_add(self.activations).saturating_add(self.weights)
    }
}

/// A part of a model and what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Layers in it.
    pub layers: usize,
    /// What it takes.
    pub memory: Memory,
    /// Bytes that are left to a GPU's driver, for what it takes after `free` was measured: code of kernels, recordings of steps,
    /// and the rounding of allocations. 0 on the CPU.
    pub reserve: u64,
    /// Bytes of page-locked host memory that a GPU's part takes, through which values go there and come back. 0 on the CPU.
    pub page_locked: u64,
    /// Bytes that are free there, if the system says. A GPU is asked after its first kernel has run, so that what its driver takes
    /// for a process is not among them.
    pub free: Option<u64>,
}

impl Part {
    /// All bytes that have to be free there, page-locked memory of the host aside.
    pub fn needed(&self) -> u64 {
        self.memory.total().saturating_add(self.reserve)
    }
}

/// What runs where.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Layers of the model.
    pub layers: usize,
    /// What the CPU computes; `None` if the GPU computes all.
    pub cpu: Option<Part>,
    /// What the GPU computes, and which it is; `None` if the CPU computes all.
    pub gpu: Option<(DeviceInfo, Part)>,
    /// Why.
    pub reason: String,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Cpu,
    Cuda { cuda: Cuda, cut: Option<Cut> },
}

/// Decides for a model's graph.
///
/// # Errors
/// [`BuildError`] if what was asked for by name cannot be had, or no device can compute the graph.
pub fn fit(graph: &Graph, options: &FitOptions) -> Result<Fit, BuildError> {
    let layers = graph.nodes().iter().filter(|node| matches!(node.op, Op::Attention { .. })).count();
    let wanted = options.gpu_layers.unwrap_or(layers.max(1));
    let ordinal = match options.device.or_environment()? {
        DeviceChoice::Cpu => return on_cpu(graph, options, layers, "the CPU was asked for".into()),
        _ if wanted == 0 => return on_cpu(graph, options, layers, "no layer was asked for on a GPU".into()),
        DeviceChoice::Cuda(ordinal) => Some(ordinal),
        DeviceChoice::Auto => None,
    };
    let place = |ordinal: usize| {
        let opened = Cuda::open(ordinal, options.cuda_kernels.as_deref());
        opened.map_err(BuildError::Device).and_then(|cuda| on_gpu(graph, options, layers, cuda))
    };
    let placed = match ordinal {
        Some(ordinal) => place(ordinal),
        None => on_any(place),
    };
    match placed {
        Ok(fit) => Ok(fit),
        Err(error) if ordinal.is_none() => {
            // Most hosts have no GPU; only where one is there and does not serve, or was hoped for, is that worth a warning.
            let absent = matches!(error, BuildError::Device(DeviceError::NoDriver | DeviceError::NoDevice(_)));
            if absent && options.gpu_layers.is_none() {
                tracing::debug!(%error, "no GPU");
            } else {
                tracing::warn!(%error, "the GPU is not used");
            }
            on_cpu(graph, options, layers, error.to_string())
        }
        Err(error) => Err(error),
    }
}

/// The GPU on which most layers fit, of equal ones the first; the error of the first if none serves.
fn on_any(place: impl Fn(usize) -> Result<Fit, BuildError>) -> Result<Fit, BuildError> {
    let mut best: Option<Result<Fit, BuildError>> = None;
    let layers = |fit: &Result<Fit, BuildError>| match fit {
        Ok(Fit { gpu: Some((_, part)), .. }) => Some(part.layers),
        _ => None,
    };
    for device in cuda::devices()? {
        let fit = place(device.ordinal);
        let whole = fit.as_ref().is_ok_and(|fit| fit.cpu.is_none());
        if best.as_ref().is_none_or(|best| layers(best) < layers(&fit)) {
            best = Some(fit);
        }
        if whole {
            break;
        }
    }
    best.unwrap_or_else(|| Err(DeviceError::NoDevice("it lists none".into()).into()))
}

fn on_cpu(graph: &Graph, options: &FitOptions, layers: usize, reason: String) -> Result<Fit, BuildError> {
    let part = cpu_part(graph, &options.cpu, layers)?;
    Ok(Fit { layers, cpu: Some(part), gpu: None, reason, place: Place::Cpu })
}

fn cpu_part(graph: &Graph, options: &CpuOptions, layers: usize) -> Result<Part, BuildError> {
    let [cache, activations, weights] = cpu::memory(graph, options)?;
    let memory = Memory { cache, activations, weights };
    Ok(Part { layers, memory, reserve: 0, page_locked: 0, free: memory::available() })
}

fn gpu_part(graph: &Graph, options: &CpuOptions, layers: usize, cuda: &Cuda, free: u64) -> Result<Part, BuildError> {
    let plan = cuda::plan(graph, options.sizes(), cuda)?;
    let cuda::Memory { cache, activations, page_locked } = cuda::memory(&plan, cuda.info());
    let memory = Memory { cache, activations, weights: cuda::device_bytes(&plan.graph)? };
    Ok(Part { layers, memory, reserve: cuda.reserve(), page_locked, free: Some(free) })
}

/// The parts of a graph whose last `layers` layers are apart; the second is the whole graph if that is all of them.
fn parts(graph: &Graph, layers: usize, all: usize) -> Result<(Option<(Cut, Graph)>, Graph), BuildError> {
    if layers >= all {
        return Ok((None, graph.clone()));
    }
    let cuts = graph::cuts(graph);
    let cut = cuts.iter().rfind(|cut| cut.attentions == all - layers).ok_or(BuildError::NoCut { layers, all })?;
    let (first, second) = graph::cut(graph, *cut);
    Ok((Some((*cut, first)), second))
}

fn on_gpu(graph: &Graph, options: &FitOptions, all: usize, cuda: Cuda) -> Result<Fit, BuildError> {
    let free = cuda.free_memory()?;
    let info = cuda.info().clone();
    let try_with = |layers: usize| -> Result<(Option<(Cut, Graph)>, Part), BuildError> {
        let (first, second) = parts(graph, layers, all)?;
        let part = gpu_part(&second, &options.cpu, layers, &cuda, free)?;
        let Part { memory, reserve, .. } = part;
        let needed = part.needed();
        if needed <= free {
            return Ok((first, part));
        }
        let Memory { cache, activations, weights } = memory;
        Err(BuildError::OutOfDeviceMemory { layers, needed, cache, activations, weights, reserve, free })
    };
    let wanted = options.gpu_layers.map_or(all, |layers| layers.min(all));
    let (mut layers, mut found) = (wanted, try_with(wanted));
    let mut reason = match options.gpu_layers {
        Some(_) => format!("{wanted} of {all} layers were asked for on the GPU"),
        None => "the whole model fits into the GPU's memory".to_owned(),
    };
    if let (Err(BuildError::OutOfDeviceMemory { needed, .. }), None) = (&found, options.gpu_layers) {
        reason = format!(
            "the whole model needs {} of the GPU's memory, and {} are free; these are the most layers that fit",
            super::mib(*needed),
            super::mib(free)
        );
        // Memory grows with the layers, so the most that fit are found by halving.
        let (mut fits, mut too_many) = (0, wanted);
        while fits + 1 < too_many {
            let middle = fits.midpoint(too_many);
            match try_with(middle) {
                Ok(with) => (fits, layers, found) = (middle, middle, Ok(with)),
                Err(BuildError::OutOfDeviceMemory { .. } | BuildError::NoCut { .. }) => too_many = middle,
                Err(error) => return Err(error),
            }
        }
    }
    let (first, part) = found?;
    let cpu = match &first {
        Some((_, first)) => Some(cpu_part(first, &options.cpu, all - layers)?),
        None => None,
    };
    let gpu = Some((info, part));
    let cut = first.map(|(cut, _)| cut);
    Ok(Fit { layers: all, cpu, gpu, reason, place: Place::Cuda { cuda, cut } })
}

impl Fit {
    /// Bytes of the host's memory that have to be free: the CPU's part, and what is page-locked for the GPU's.
    pub fn host_needed(&self) -> u64 {
        let own = self.cpu.map_or(0, |part| part.needed());
        own.saturating_add(self.gpu.as_ref().map_or(0, |(_, part)| part.page_locked))
    }

    /// Bytes of the host's memory that are free, if the system says.
    pub fn host_free(&self) -> Option<u64> {
        self.cpu.map_or_else(memory::available, |part| part.free)
    }

    /// Whether [`load`](Self::load) will find room; `None` if the system does not say how much there is.
    pub fn fits(&self) -> Option<bool> {
        let host = self.host_free().map(|free| self.host_needed() <= free);
        let device = self.gpu.as_ref().map_or(Some(true), |(_, part)| part.free.map(|free| part.needed() <= free));
        match (host, device) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (host, device) => Some(host? && device?),
        }
    }

    /// Loads a model's graph as decided. `context` is the longest sequence; `progress` takes the bytes of weights that are done
    /// and their total.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn load(
        &self,
        graph: &Graph,
        source: &dyn WeightSource,
        options: &CpuOptions,
        context: usize,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Box<dyn Executable>, BuildError> {
        tracing::info!(device = %self, reason = self.reason, "device chosen");
        let (cuda, cut) = match &self.place {
            Place::Cpu => return Ok(Box::new(CpuModel::new(graph, source, options, context, progress)?)),
            Place::Cuda { cuda, cut } => (cuda, *cut),
        };
        let own = self.cpu.map_or_else(Memory::default, |part| part.memory);
        let page_locked = self.gpu.as_ref().map_or(0, |(_, part)| part.page_locked);
        cpu::refuse_if_too_large(own, page_locked, memory::available())?;
        let sizes = options.sizes();
        let Some(cut) = cut else {
            return Ok(Box::new(CudaModel::new(graph, None, source, cuda, sizes, context, progress)?));
        };
        let (first, second) = graph::cut(graph, cut);
        let [head_bytes, tail_bytes] = [&first, &second].map(super::load::total_bytes);
        let total = head_bytes.saturating_add(tail_bytes);
        // Weights are on their way to the GPU for longer than packing takes.
        let options = &CpuOptions { pack_later: false, ..*options };
        let head = CpuGraph::load(&first, source, options, &mut |done, _| progress(done, total))?;
        let mut after = |done, _| progress(head_bytes.saturating_add(done), total);
        Ok(Box::new(CudaModel::new(&second, Some(head), source, cuda, sizes, context, &mut after)?))
    }
}

impl std::fmt::Display for Fit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.gpu, &self.cpu) {
            (Some((info, part)), Some(_)) => {
                write!(f, "{} of {} layers on CUDA device {} ({})", part.layers, self.layers, info.ordinal, info.name)
            }
            (Some((info, _)), None) => write!(f, "CUDA device {} ({})", info.ordinal, info.name),
            (None, _) => f.write_str("CPU"),
        }
    }
}
