//! Runs graphs on an NVIDIA GPU, or their last layers there and the rest on the CPU.
//!
//! A step sends what the batch says in one copy, launches the plan's kernels, and fetches the logits. Steps of a shape that
//! comes again and again, as in decoding, are recorded once and launched as one graph: positions, pages and tokens are read
//! on the device, so the record holds for every batch of its shape.
//!
//! Where every row is sampled greedily, the tokens are chosen on the device and come back in place of the logits. Other samplers
//! stay with the host, since they promise the same tokens for a seed on every machine, unless the caller wants them here
//! ([`Executable::step_sampled`]): then the device draws with random numbers of its own.

mod load;
mod program;

pub(super) use load::device_bytes;

pub use rustai_kernels_cuda::{
    DeviceError, DeviceInfo,
    bench::{Product, Roofs},
    embedded_target,
    ops::Peak,
};

use super::{BuildError, Executable, Limits, StepError, cpu::CpuGraph};
use crate::{
    graph::{Graph, Rows, WeightSource, rewrite},
    plan::{Plan, PlanOptions},
};
use program::{Kinds, Program, StepShape};
use rustai_abi::{Batch, DType, PAGE_TOKENS};
use rustai_kernels_cpu::{
    BatchLimits, External, Outside,
    bench::{Residence, Shape},
};
use rustai_kernels_cuda::{
    Device, Graph as Recording, KernelSources, Kernels, ReadbackBuffer, Span, Stream, UploadBuffer, Uploader,
    ops::{BatchInputs, MAX_TOP_K, SampleInputs, Sampling, TILED_TOKENS},
    probe, weights,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Most shapes of steps that are remembered, with their recordings. A server meets more; those that were not met for longest go.
const MAX_SHAPES: usize = 128;

/// Steps until a recording that failed is tried again.
const RETRY_STEPS: u64 = 1024;

/// Buffers that a step writes less to are not page-locked: the call takes longer than such a copy through the driver's own
/// buffers. A guess to be measured.
#[cfg(target_os = "linux")]
const LOCKED_BYTES: usize = 64 << 10;

/// Device memory that recordings may take. The driver tells nobody how much one takes before it is made, so none is made while
/// less than half of this is free: such steps are launched kernel by kernel.
const RECORDINGS: u64 = 64 << 20;

/// What a driver rounds allocations up to, and how many a model makes: weights, cache, activations, states, embeddings, inputs,
/// chosen tokens, settings of samplers, tables of RoPE, sums of split products, and the stream's own.
const ALLOCATIONS: u64 = 11 * (2 << 20);

/// Most tokens of a step that a grid of blocks can count (CUDA C++ Programming Guide, "Technical Specifications").
const MAX_TOKENS: usize = 65_535;

/// The shortest reach that steps are told apart by.
const MIN_REACH: usize = 256;

/// The folder of kernels that the environment variable `RUSTAI_CUDA_KERNELS` names.
pub fn kernels_folder() -> Option<PathBuf> {
    std::env::var_os("RUSTAI_CUDA_KERNELS").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// Whether there is a kernel for such a matrix.
pub fn has_kernel(dtype: DType, rows: usize, cols: usize) -> bool {
    weights::device_bytes(dtype, rows, cols).is_some()
}

/// The GPUs of this host.
///
/// # Errors
/// [`DeviceError`] if there is no driver, or none that serves, or no device.
pub fn devices() -> Result<Vec<DeviceInfo>, DeviceError> {
    probe()
}

/// A device with its kernels loaded.
#[derive(Clone, Debug)]
pub struct Cuda {
    device: Device,
    kernels: Arc<Kernels>,
}

impl Cuda {
    /// Opens a device, counted from 0, and loads the kernels for its architecture: from `folder` or the folder that the environment
    /// variable `RUSTAI_CUDA_KERNELS` names, else from the program, else compiled on this host and kept in the cache folder.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no driver, no such device, or no kernels for it.
    pub fn open(ordinal: usize, folder: Option<&Path>) -> Result<Self, DeviceError> {
        let device = Device::open(ordinal)?;
        let folder = folder.map(Path::to_owned).or_else(kernels_folder);
        let cache = crate::hub::cache_dir().ok().map(|folder| folder.join("kernels"));
        let sources = KernelSources { folder, cache };
        let kernels = Arc::new(Kernels::load(&device, &sources)?);
        // What a driver takes for a process is there when the first kernel has run, and not counted as free afterwards.
        kernels.run_one(&Stream::new(&device)?)?;
        Ok(Self { device, kernels })
    }

    /// Bytes of free memory that a model must leave: for the code of kernels, which a driver may load when they are first used
    /// (CUDA C++ Programming Guide, "Lazy Loading"), for recordings, and for the rounding of allocations. Kernels have no
    /// stacks that could grow: `kernels-cuda/check.py` refuses spills.
    pub fn reserve(&self) -> u64 {
        self.kernels.code_bytes() + RECORDINGS + ALLOCATIONS
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    /// Its ceilings, measured now: for benchmarks.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn roofs(&self) -> Result<Roofs, DeviceError> {
        Roofs::measure(&self.kernels, &Stream::new(&self.device)?)
    }

    /// A matrix product that is ready to be timed: for benchmarks.
    ///
    /// # Errors
    /// [`DeviceError`] if no kernel reads the type in this shape, or memory does not suffice.
    pub fn product(
        &self,
        dtype: DType,
        shape: Shape,
        max_tokens: usize,
        residence: Residence,
    ) -> Result<Product, DeviceError> {
        Product::new(&self.kernels, dtype, shape, max_tokens, residence)
    }

    /// Bytes of its memory that are free now.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn free_memory(&self) -> Result<u64, DeviceError> {
        self.device.free_memory()
    }
}

/// The plan of a graph on a device, made before any weight is read.
///
/// # Errors
/// [`BuildError`] if a tensor's type has no kernel, or no kernels compute the graph.
pub fn plan(graph: &Graph, options: PlanOptions, cuda: &Cuda) -> Result<Plan, BuildError> {
    let graph = rewrite::drop_unused(graph);
    device_bytes(&graph)?;
    if options.max_tokens > MAX_TOKENS {
        let (given, most) = (options.max_tokens, MAX_TOKENS);
        let reason =
            format!("a GPU computes at most {most} tokens in a step, and {given} were asked for; use a smaller batch");
        return Err(DeviceError::Invalid(reason).into());
    }
    let plan = Plan::new(&graph, options, &Kinds::of(&cuda.kernels)?)?;
    Program::check(&plan)?;
    Ok(plan)
}

/// What a plan takes beside the weights, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// Of the device.
    pub(super) cache: u64,
    /// Of the device.
    pub(super) activations: u64,
    /// Of the host.
    pub(super) page_locked: u64,
}

pub(super) fn memory(plan: &Plan, info: &DeviceInfo) -> Memory {
    let PlanOptions { max_tokens, max_outputs, .. } = plan.options;
    let (cache, activations) = Program::memory(plan, info.multiprocessors as usize);
    let inputs = BatchInputs::room(max_tokens, max_outputs, most_pages(&plan.options));
    let floats = |rows: usize, width: usize| rows.saturating_mul(width).saturating_mul(size_of::<f32>());
    let logits = floats(max_outputs, plan.buffer(plan.output).width);
    let head = plan.inputs.first().map_or(0, |input| floats(max_tokens, plan.buffer(*input).width));
    // What stages the weights is given back before the rest is taken.
    let chosen = max_outputs.saturating_mul(size_of::<u32>()).saturating_add(SampleInputs::room(max_outputs));
    let page_locked = [logits, head, chosen].into_iter().fold(inputs, usize::saturating_add).max(Uploader::ROOM);
    Memory {
        cache,
        activations: activations.saturating_add(inputs.saturating_add(chosen) as u64),
        page_locked: page_locked as u64,
    }
}

/// Pages that the sequences of a batch can list together: prefixes may be shared, so this is more than the cache has.
fn most_pages(options: &PlanOptions) -> usize {
    options.max_tokens.saturating_mul(options.pages).min(1 << 22).max(options.pages)
}

/// A shape that a step had before.
struct Met {
    /// When it was last met, in steps.
    last: u64,
    /// None after the first time, which shows that all its kernels run, and where recording failed.
    recording: Option<Recording>,
    /// The first step that may be recorded.
    record_from: u64,
}

/// The part of a model that the CPU computes first.
pub(super) struct Head {
    pub(super) graph: CpuGraph,
    /// Its result on the way to the device.
    stream: UploadBuffer<f32>,
}

/// A language model on a device.
pub struct CudaModel {
    // Recordings go before the stream that they were made on.
    shapes: HashMap<StepShape, Met>,
    steps: u64,
    head: Option<Head>,
    program: Program,
    inputs: BatchInputs,
    logits: ReadbackBuffer<f32>,
    /// Tokens that were chosen on the device.
    chosen: Span,
    /// How the tokens of a step are drawn, and room to list it in.
    draws: SampleInputs,
    rows: Vec<Sampling>,
    tokens: ReadbackBuffer<u32>,
    cuda: Cuda,
    stream: Stream,
    limits: Limits,
    batches: BatchLimits,
    /// Device, kernels and layers, for people.
    description: String,
}

impl CudaModel {
    /// Loads the weights of a model's graph, whose result are logits with a row per output. With a head, that one's result is the
    /// graph's only input. `context` is the longest sequence; `progress` takes the bytes of weights that are done and their total.
    ///
    /// # Errors
    /// [`BuildError`].
    pub(super) fn new(
        graph: &Graph,
        head: Option<CpuGraph>,
        source: &dyn WeightSource,
        cuda: &Cuda,
        options: PlanOptions,
        context: usize,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, BuildError> {
        if graph.node(graph.output()).shape.rows != Rows::Outputs {
            return Err(BuildError::NotLogits);
        }
        super::load::check(graph, source)?;
        let plan = plan(graph, options, cuda)?;
        let device = &cuda.device;
        let loaded = load::load(&plan.graph, source, device, progress)?;
        let program = Program::new(&cuda.kernels, &plan, &loaded)?;
        let PlanOptions { max_tokens, max_outputs, pages, .. } = options;
        let vocab = program.output.width();
        let head = match head {
            Some(graph) => {
                let width = program.inputs.first().map_or(0, |input| input.width());
                let values = max_tokens.saturating_mul(width);
                Some(Head { graph, stream: UploadBuffer::new(device, "values between processor and device", values)? })
            }
            None => None,
        };
        let cached = plan.kv.map(|kv| kv.pages);
        Ok(Self {
            shapes: HashMap::with_capacity(MAX_SHAPES + 1),
            steps: 0,
            inputs: BatchInputs::new(device, max_tokens, max_outputs, most_pages(&options), pages)?,
            logits: ReadbackBuffer::new(device, "logits", max_outputs.saturating_mul(vocab))?,
            chosen: Span::new(device, "chosen tokens", max_outputs.saturating_mul(size_of::<u32>()))?,
            tokens: ReadbackBuffer::new(device, "chosen tokens", max_outputs)?,
            draws: SampleInputs::new(device, max_outputs)?,
            rows: Vec::with_capacity(max_outputs),
            stream: Stream::new(device)?,
            limits: Limits { max_tokens, max_outputs, pages, context, vocab },
            batches: BatchLimits { max_tokens, max_outputs, vocabulary: vocabulary(graph), pages: cached },
            description: describe(cuda, &plan, head.as_ref()),
            head,
            program,
            cuda: cuda.clone(),
        })
    }

    /// Puts a step behind the stream's work.
    fn start(&mut self, batch: &Batch<'_>, normalized: bool) -> Result<(), StepError> {
        self.batches.check(batch)?;
        if let Some(head) = &mut self.head {
            let values = head.graph.run_batch(&Batch { outputs: &[], ..*batch })?;
            head.stream.values()?[..values.len()].copy_from_slice(values);
            // A head's values are the program's only input.
            if let Some(input) = self.program.inputs.first() {
                head.stream.send(&self.stream, input.span(), values.len())?;
            }
        }
        self.inputs.send(&self.stream, batch)?;
        let tiles = self.program.has_tiles();
        let single = batch.sequences.iter().filter(|sequence| !tiles || (sequence.len as usize) < TILED_TOKENS);
        let (mut tokens, mut end) = (0, 0);
        for sequence in single {
            tokens += sequence.len as usize;
            end = end.max(sequence.start.saturating_add(sequence.len) as usize);
        }
        // Reaches are few, so that recordings are: powers of two.
        let longest = self.limits.pages.saturating_mul(PAGE_TOKENS);
        let reach = end.next_power_of_two().max(MIN_REACH).min(longest);
        let shape = StepShape { tokens: batch.tokens.len(), outputs: batch.outputs.len(), single: tokens, reach };
        self.steps += 1;
        let Self { program, cuda, stream, inputs, shapes, .. } = self;
        let kernels = &cuda.kernels;
        // Tokens of a prompt are attended to in tiles, which a recording could not know of. Steps that only decode come again
        // and again; others are of many shapes.
        let decodes = shape.tokens == shape.outputs && batch.sequences.iter().all(|sequence| sequence.len == 1);
        if !decodes || normalized {
            return Ok(program.launch(kernels, stream, inputs, shape, normalized)?);
        }
        match shapes.get_mut(&shape) {
            Some(Met { last, recording: Some(recording), .. }) => {
                *last = self.steps;
                Ok(recording.launch()?)
            }
            Some(met) => {
                met.last = self.steps;
                if self.steps >= met.record_from && cuda.free_memory()? >= RECORDINGS / 2 {
                    let recorded = stream.capture(|stream| program.launch(kernels, stream, inputs, shape, false));
                    if let Ok(recording) = recorded.and_then(|recording| recording.launch().map(|()| recording)) {
                        met.recording = Some(recording);
                        return Ok(());
                    }
                    // A step needs no recording. If the device is lost, the launches say so.
                    met.record_from = self.steps + RETRY_STEPS;
                }
                Ok(program.launch(kernels, stream, inputs, shape, false)?)
            }
            None => {
                program.launch(kernels, stream, inputs, shape, false)?;
                shapes.insert(shape, Met { last: self.steps, recording: None, record_from: 0 });
                if shapes.len() > MAX_SHAPES
                    && let Some(oldest) = shapes.iter().min_by_key(|(_, met)| met.last).map(|(shape, _)| *shape)
                {
                    // A recording must not go while it runs.
                    stream.synchronize()?;
                    shapes.remove(&oldest);
                }
                Ok(())
            }
        }
    }

    /// Locks the pages of buffers that other processes share with this one, if that is worth it. They stay locked until they are
    /// unmapped or others need the room, so it is paid for once; while the result lives, nothing changes.
    ///
    /// Only results are copied between such buffers and a device: what a client gives are tokens and texts, which become private
    /// copies before anybody looks at them.
    #[cfg(target_os = "linux")]
    fn lock_pages<'a>(&self, copies: &[(Span, &'a External)]) -> Vec<rustai_kernels_cuda::Locked<'a>> {
        let bytes: usize = copies.iter().map(|(_, row)| row.len() * size_of::<f32>()).sum();
        let shared = copies.iter().filter_map(|(_, row)| row.owner().downcast_ref::<crate::sys::memfd::Shared>());
        let mut shared: Vec<_> = shared.collect();
        // Rows of one buffer follow each other.
        shared.dedup_by(|a, b| std::ptr::eq(*a, *b));
        let worth = bytes >= LOCKED_BYTES;
        let lock = |shared: &'a crate::sys::memfd::Shared| {
            if worth { shared.lock_pages(&self.cuda.device) } else { shared.keep_pages() }
        };
        shared.into_iter().filter_map(lock).collect()
    }

    /// As [`start`](Self::start), for a step of which some rows go elsewhere.
    fn start_with(&mut self, batch: &Batch<'_>, outside: Outside<'_>) -> Result<(), StepError> {
        if given(outside.inputs) {
            return Err(StepError::OwnMemoryOnly);
        }
        let outputs = batch.outputs.len();
        let vocab = self.limits.vocab;
        let fits = |rows: &[Option<External>], width: Option<usize>| {
            !given(rows) || rows.len() <= outputs && rows.iter().flatten().all(|row| Some(row.len()) == width)
        };
        let embedding = self.embedding_width();
        if !fits(outside.output, Some(vocab)) || !fits(outside.normalized, embedding) {
            return Err(StepError::Cpu(rustai_kernels_cpu::ExecutorError::Batch(format!(
                "rows outside this program's memory are not {outputs} rows of {vocab} logits or {embedding:?} numbers"
            ))));
        }
        self.start(batch, given(outside.normalized))
    }

    /// Fetches the rows that go elsewhere, and if `own`, all rows of logits.
    fn finish_with(&mut self, outputs: usize, outside: Outside<'_>, own: bool) -> Result<&[f32], StepError> {
        // Each row goes from the device to where it is wanted, and all of them are awaited together.
        let mut copies = Vec::new();
        let rows =
            [(outside.output, Some(&self.program.output)), (outside.normalized, self.program.normalized.as_ref())];
        for (rows, from) in rows {
            let Some(from) = from else { continue };
            let bytes = from.width() * size_of::<f32>();
            for (index, row) in rows.iter().enumerate() {
                if let Some(row) = row {
                    copies.push((from.span().part(index * bytes, bytes)?, row));
                }
            }
        }
        if !copies.is_empty() {
            #[cfg(target_os = "linux")]
            let _locked = self.lock_pages(&copies);
            self.stream.download(&copies)?;
        }
        self.finish(if own { outputs } else { 0 })?;
        Ok(&self.logits.values()?[..outputs * self.limits.vocab])
    }

    /// Puts a step behind the stream's work, and the drawing of its tokens.
    fn sample(&mut self, batch: &Batch<'_>, outside: Outside<'_>, rows: &[Option<Sampling>]) -> Result<(), StepError> {
        let outputs = batch.outputs.len();
        if rows.len() != outputs {
            let reason = format!("{} rows are sampled in a step of {outputs} rows of logits", rows.len());
            return Err(StepError::Cpu(rustai_kernels_cpu::ExecutorError::Batch(reason)));
        }
        self.rows.clear();
        self.rows.extend(rows.iter().map(|row| row.unwrap_or(Sampling::LARGEST)));
        self.draws.send(&self.stream, &self.rows)?;
        self.start_with(batch, outside)?;
        self.cuda.kernels.sample(&self.stream, &self.program.output, &self.draws, &self.chosen, outputs)?;
        Ok(self.tokens.fetch(&self.stream, &self.chosen, outputs)?)
    }

    /// Fetches the rows of the result.
    fn finish(&mut self, outputs: usize) -> Result<&[f32], StepError> {
        let values = outputs * self.limits.vocab;
        self.logits.fetch(&self.stream, self.program.output.span(), values)?;
        if values == 0 {
            self.stream.synchronize()?;
        }
        Ok(&self.logits.values()?[..values])
    }
}

/// Whether any row goes to memory of the caller.
fn given(rows: &[Option<External>]) -> bool {
    rows.iter().any(Option::is_some)
}

/// Rows of the table that tokens are looked up in.
fn vocabulary(graph: &Graph) -> Option<usize> {
    let table = |node: &crate::graph::Node| match node.op {
        crate::graph::Op::Embedding { table, .. } => Some(graph.weight(table).dims[1]),
        _ => None,
    };
    graph.nodes().iter().filter_map(table).min()
}

fn describe(cuda: &Cuda, plan: &Plan, head: Option<&Head>) -> String {
    let info = cuda.info();
    let (major, minor) = info.capability;
    let mut types: Vec<&str> = plan
        .steps
        .iter()
        .flat_map(|step| match step {
            crate::plan::Step::MatMul { projections, .. } => projections.iter().map(|p| p.weight).collect(),
            crate::plan::Step::GatedMatMul { gate, up, .. } => vec![*gate, *up],
            _ => Vec::new(),
        })
        .map(|weight| plan.graph.weight(weight).dtype.name())
        .collect();
    types.sort_unstable();
    types.dedup();
    let mut text = format!(
        "CUDA device {} ({}, compute capability {major}.{minor}), kernels: {}",
        info.ordinal,
        info.name,
        types.join(", ")
    );
    if let Some(kv) = plan.kv {
        text += &format!(", cache: {}", kv.kv_type);
        if head.is_some() {
            text += &format!(", {} layers there", kv.layers);
        }
    }
    match head {
        Some(head) => format!("{text}; before it: {}", head.graph.describe()),
        None => text,
    }
}

impl Executable for CudaModel {
    fn step(&mut self, batch: &Batch<'_>) -> Result<&[f32], StepError> {
        self.start(batch, false)?;
        self.finish(batch.outputs.len())
    }

    fn step_with(&mut self, batch: &Batch<'_>, outside: Outside<'_>) -> Result<&[f32], StepError> {
        if !given(outside.inputs) && !given(outside.output) && !given(outside.normalized) {
            return self.step(batch);
        }
        self.start_with(batch, outside)?;
        // What a caller has is not fetched again.
        let outputs = batch.outputs.len();
        let placed = outside.output.len() >= outputs && outside.output.iter().all(Option::is_some);
        self.finish_with(outputs, outside, !placed)
    }

    fn most_candidates(&self) -> Option<usize> {
        Some(MAX_TOP_K)
    }

    fn step_sampled(
        &mut self,
        batch: &Batch<'_>,
        outside: Outside<'_>,
        rows: &[Option<Sampling>],
    ) -> Option<Result<(&[u32], &[f32]), StepError>> {
        let outputs = batch.outputs.len();
        if outputs == 0 {
            return None;
        }
        Some(self.sample(batch, outside, rows).and_then(|()| {
            let wanted = (0..outputs).any(|row| {
                let has = |rows: &[Option<External>]| rows.get(row).is_some_and(Option::is_some);
                rows[row].is_none() && !has(outside.output)
            });
            self.finish_with(outputs, outside, wanted)?;
            Ok((&self.tokens.values()?[..outputs], &self.logits.values()?[..outputs * self.limits.vocab]))
        }))
    }

    fn step_greedy(&mut self, batch: &Batch<'_>) -> Option<Result<&[u32], StepError>> {
        let rows = batch.outputs.len();
        if rows == 0 {
            return None;
        }
        let started = self.start(batch, false).and_then(|()| {
            self.cuda.kernels.argmax(&self.stream, &self.program.output, &self.chosen, rows)?;
            Ok(self.tokens.fetch(&self.stream, &self.chosen, rows)?)
        });
        Some(started.and_then(|()| Ok(&self.tokens.values()?[..rows])))
    }

    fn embedding_width(&self) -> Option<usize> {
        self.program.normalized.as_ref().map(|rows| rows.width())
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn device(&self) -> String {
        let own = format!("cuda:{}", self.cuda.info().ordinal);
        if self.head.is_some() { format!("cpu + {own}") } else { own }
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}

impl From<DeviceError> for StepError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}
