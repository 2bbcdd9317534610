//! Runs graphs on the CPU.

use super::{BuildError, Executable, Limits, StepError, fit::Memory, load, memory};
use crate::{
    graph::{Graph, Rows, WeightId, WeightSource, rewrite},
    plan::{Form, Plan, PlanOptions, Resolved, Step, Target},
};
use rustai_abi::{Batch, BatchSequence, PAGE_TOKENS};
use rustai_kernels_cpu::{Act, ActKind, Buf, Call, Executor, Isa, KvShape, KvType, Outside, QBuf, formats::q8a};
use std::collections::HashMap;

/// How a graph is made executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Instruction set; `None` lets `RUSTAI_CPU` or detection choose.
    pub isa: Option<Isa>,
    /// Threads, the caller's included; 0 means one per core that this process may use.
    pub threads: usize,
    /// Most rows of one run, a row being a token.
    pub max_tokens: usize,
    /// Most rows of outputs in one run.
    pub max_outputs: usize,
    /// Pages of the key/value cache, each for `PAGE_TOKENS` positions.
    pub pages: usize,
    /// How the cache keeps keys and values.
    pub kv_type: KvType,
    /// Leaves packing the weights to [`Executable::catch_up`]: loading takes next to no time, and until then each step packs
    /// what it is about to read, for the same results.
    pub pack_later: bool,
}

impl CpuOptions {
    /// The part that planning needs.
    pub(super) fn sizes(&self) -> PlanOptions {
        let Self { max_tokens, max_outputs, pages, kv_type, .. } = *self;
        PlanOptions { max_tokens, max_outputs, pages, kv_type }
    }
}

impl Default for CpuOptions {
    /// Sizes for small graphs: 64 rows.
    fn default() -> Self {
        Self {
            isa: None,
            threads: 0,
            max_tokens: 64,
            max_outputs: 64,
            pages: 64usize.div_ceil(PAGE_TOKENS),
            kv_type: KvType::F16,
            pack_later: false,
        }
    }
}

/// The instruction set that options ask for.
fn chosen_isa(options: &CpuOptions) -> Result<Isa, BuildError> {
    if let Some(isa) = options.isa {
        return Ok(isa);
    }
    let selection = Isa::select()?;
    tracing::info!(isa = selection.isa.name(), reason = selection.reason, "instruction set chosen");
    Ok(selection.isa)
}

/// The plan that a graph will run by, made before any weight is read: for looking at it, and for counting its memory.
///
/// # Errors
/// [`BuildError`] if a tensor's type has no kernel, or no kernels compute the graph.
pub fn plan(graph: &Graph, options: &CpuOptions) -> Result<Plan, BuildError> {
    plan_used(&rewrite::drop_unused(graph), chosen_isa(options)?, options.sizes())
}

/// [`plan`] for a graph without unused parts.
fn plan_used(graph: &Graph, isa: Isa, sizes: PlanOptions) -> Result<Plan, BuildError> {
    Ok(Plan::new(graph, sizes, &Forms::new(graph, load::forms(graph, isa)?))?)
}

/// What planning has to know: the forms that matrices want, by their names, which the graphs of all rewrites share.
struct Forms(HashMap<String, ActKind>);

impl Forms {
    fn new(graph: &Graph, forms: impl IntoIterator<Item = ActKind>) -> Self {
        Self(graph.weights().iter().map(|weight| weight.name.clone()).zip(forms).collect())
    }
}

impl Target for Forms {
    fn wants(&self, graph: &Graph, weight: WeightId) -> Form {
        match self.0.get(&graph.weight(weight).name) {
            Some(ActKind::Q8) => Form::Q8,
            Some(ActKind::F32) | None => Form::F32,
        }
    }

    fn bytes(&self, form: Form, width: usize, rows: usize) -> usize {
        match form {
            Form::F32 => Buf::bytes(width, rows),
            Form::Q8 => QBuf::bytes(width, rows, 1),
            Form::Q8Pair => QBuf::bytes(width, rows, 2),
        }
    }

    fn pairs(&self, width: usize) -> bool {
        q8a::planes(width) == 2
    }
}

/// A graph with its weights packed, its memory taken and its threads started.
struct Compiled {
    executor: Executor,
    plan: Plan,
    /// Device, kernels and threads, for people.
    description: String,
}

fn compile(
    graph: &Graph,
    source: &dyn WeightSource,
    options: &CpuOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Compiled, BuildError> {
    let isa = chosen_isa(options)?;
    let threads = crate::compute_threads(options.threads);
    let graph = &rewrite::drop_unused(graph);
    load::check(graph, source)?;

    // What memory it takes is known before any is taken.
    let estimate = plan_used(graph, isa, options.sizes())?;
    let cache = cache_bytes(isa, &estimate);
    let needed = Memory { cache, activations: estimate.arena_bytes as u64, weights: load::resident_bytes(graph, isa) };
    refuse_if_too_large(needed, 0, memory::available())?;

    let making = if options.pack_later { load::Making::Deferred } else { load::Making::Packed { threads } };
    let weights = load::load(graph, source, isa, making, progress)?;
    let wants = |resolved: &Resolved| resolved.matrix.as_ref().map_or(ActKind::F32, |matrix| matrix.wants());
    let plan = Plan::new(graph, options.sizes(), &Forms::new(graph, weights.iter().map(wants)))?;
    let mut kernels: Vec<&str> =
        weights.iter().filter_map(|weight| weight.matrix.as_ref()).map(|matrix| matrix.kernel_name()).collect();
    kernels.sort_unstable();
    kernels.dedup();
    let plural = if threads == 1 { "" } else { "s" };
    let mut description = format!("CPU ({}), {threads} thread{plural}, kernels: {}", isa.name(), kernels.join(", "));
    if let Some(kv) = plan.kv {
        description += &format!(", cache: {}", kv.kv_type);
    }

    let by_name: HashMap<&str, &Resolved> =
        graph.weights().iter().zip(&weights).map(|(weight, resolved)| (&weight.name[..], resolved)).collect();
    let in_plan: Vec<Resolved> = plan
        .graph
        .weights()
        .iter()
        .map(|weight| by_name.get(&weight.name[..]).map(|resolved| (*resolved).clone()).unwrap_or_default())
        .collect();
    let program = plan.bind(&in_plan).map_err(|tensor| BuildError::Weight {
        tensor,
        expected: "a weight".into(),
        found: "one of another kind".into(),
    })?;
    let executor = Executor::new(isa, threads, program)?;
    Ok(Compiled { executor, plan, description })
}

/// Memory that a graph takes on the CPU, in bytes: cache, activations, weights.
pub(super) fn memory(graph: &Graph, options: &CpuOptions) -> Result<[u64; 3], BuildError> {
    let (isa, graph) = (chosen_isa(options)?, rewrite::drop_unused(graph));
    let plan = plan_used(&graph, isa, options.sizes())?;
    Ok([cache_bytes(isa, &plan), plan.arena_bytes as u64, load::resident_bytes(&graph, isa)])
}

/// Bytes of the key/value cache, which saturate: a caller may ask for any number of pages.
fn cache_bytes(isa: Isa, plan: &Plan) -> u64 {
    let page = plan.kv.map(|kv| Executor::cache_bytes(isa, &KvShape { pages: 1, ..kv }));
    page.unwrap_or(0).saturating_mul(plan.options.pages as u64)
}

/// Refuses what does not fit beside the page-locked memory that a GPU's part takes.
pub(super) fn refuse_if_too_large(parts: Memory, page_locked: u64, available: Option<u64>) -> Result<(), BuildError> {
    let needed = parts.total().saturating_add(page_locked);
    match available {
        Some(available) if needed > available => {
            let Memory { cache, activations, weights } = parts;
            Err(BuildError::OutOfMemory { needed, cache, activations, weights, page_locked, available })
        }
        _ => Ok(()),
    }
}

/// A language model on the CPU.
pub struct CpuModel {
    compiled: Compiled,
    context: usize,
}

/// Is shown the names of the weights that meet an input, the input's width, and its rows.
pub type Observer<'a> = dyn FnMut(&[&str], usize, &[f32]) + 'a;

impl CpuModel {
    /// Loads the weights of a model's graph, whose result are logits with a row per output. `context` is the longest
    /// sequence; `progress` takes the bytes of weights that are done and their total.
    ///
    /// # Errors
    /// [`BuildError`]; too little memory is found before anything is loaded.
    pub fn new(
        graph: &Graph,
        source: &dyn WeightSource,
        options: &CpuOptions,
        context: usize,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, BuildError> {
        if graph.node(graph.output()).shape.rows != Rows::Outputs {
            return Err(BuildError::NotLogits);
        }
        Ok(Self { compiled: compile(graph, source, options, progress)?, context })
    }

    /// The plan that runs.
    pub fn plan(&self) -> &Plan {
        &self.compiled.plan
    }

    /// Computes one step as [`step`](Executable::step) does, and shows the inputs of each product before it runs: the names
    /// of the weights that they meet, their width, and their rows. Inputs that are quantized to 8 bits are not shown;
    /// matrices of floats take none such.
    ///
    /// # Errors
    /// As [`step`](Executable::step).
    pub fn step_observed(&mut self, batch: &Batch<'_>, observe: &mut Observer<'_>) -> Result<&[f32], StepError> {
        let Compiled { executor, plan, .. } = &mut self.compiled;
        let name = |weight| plan.graph.weight(weight).name.as_str();
        // Each step of the plan is one call of the program, since attention quantizes nothing here.
        for (index, step) in plan.steps.iter().enumerate() {
            let names: Vec<&str> = match step {
                Step::MatMul { projections, .. } => projections.iter().map(|p| name(p.weight)).collect(),
                Step::GatedMatMul { gate, up, .. } => vec![name(*gate), name(*up)],
                _ => Vec::new(),
            };
            if let Call::MatMul { x: Act::F32(x), .. } | Call::GatedMatMul { x: Act::F32(x), .. } =
                executor.program().calls[index]
            {
                observe(&names, x.width, executor.values(x, batch)?);
            }
            executor.run_calls(batch, index..index + 1)?;
        }
        Ok(executor.values(executor.program().output, batch)?)
    }
}

impl Executable for CpuModel {
    fn step(&mut self, batch: &Batch<'_>) -> Result<&[f32], StepError> {
        Ok(self.compiled.executor.run(batch)?)
    }

    fn step_with(&mut self, batch: &Batch<'_>, outside: Outside<'_>) -> Result<&[f32], StepError> {
        Ok(self.compiled.executor.run_with(batch, outside)?)
    }

    fn embedding_width(&self) -> Option<usize> {
        match self.compiled.executor.program().calls.as_slice() {
            [.., Call::RmsNorm { x, .. }, Call::MatMul { .. }] => Some(x.width),
            _ => None,
        }
    }

    fn limits(&self) -> Limits {
        let plan = &self.compiled.plan;
        Limits {
            max_tokens: plan.options.max_tokens,
            max_outputs: plan.options.max_outputs,
            pages: plan.options.pages,
            context: self.context,
            vocab: plan.buffer(plan.output).width,
        }
    }

    fn describe(&self) -> String {
        self.compiled.description.clone()
    }

    fn catch_up(&mut self) -> Result<bool, StepError> {
        Ok(self.compiled.executor.pack_next()?)
    }
}

/// A graph of any kind on the CPU: inputs in, result out.
///
/// ```
/// use rustai::{backend::cpu::{CpuGraph, CpuOptions}, graph::{GraphBuilder, Rows}};
///
/// let mut b = GraphBuilder::new();
/// let x = b.input("x", Rows::Tokens, 2)?;
/// let w = b.inline("w", &[2, 3], vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0])?;
/// let y = b.matmul("y", x, w, None)?;
/// let mut graph = CpuGraph::new(&b.finish(y)?, &(), &CpuOptions::default())?;
/// graph.set_input("x", &[3.0, 4.0])?;
/// assert_eq!(graph.run(1)?, [3.0, 4.0, 7.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CpuGraph {
    compiled: Compiled,
    inputs: Vec<String>,
    tokens: Vec<u32>,
    numbers: Vec<u32>,
    selects: bool,
}

impl CpuGraph {
    /// Makes a graph executable; `()` is a source for graphs whose weights are all inline.
    ///
    /// # Errors
    /// [`BuildError`] if a weight is missing, no kernels compute the graph, or memory does not suffice.
    pub fn new(graph: &Graph, source: &dyn WeightSource, options: &CpuOptions) -> Result<Self, BuildError> {
        Self::load(graph, source, options, &mut |_, _| {})
    }

    /// As [`new`](Self::new); `progress` takes the bytes of weights that are done and their total.
    pub(super) fn load(
        graph: &Graph,
        source: &dyn WeightSource,
        options: &CpuOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, BuildError> {
        let compiled = compile(graph, source, options, progress)?;
        let plan = &compiled.plan;
        Ok(Self {
            inputs: plan.inputs.iter().map(|id| plan.buffer(*id).name.clone()).collect(),
            tokens: vec![0; options.max_tokens],
            numbers: (0..u32::try_from(options.max_tokens).unwrap_or(u32::MAX)).collect(),
            selects: plan.buffers.iter().any(|buffer| buffer.rows == Rows::Outputs),
            compiled,
        })
    }

    /// Fills the first rows of an input, row-major. The values stay until they are replaced.
    ///
    /// # Errors
    /// If there is no such input, or the values are no whole number of rows or too many.
    pub fn set_input(&mut self, name: &str, values: &[f32]) -> Result<(), StepError> {
        let index = self
            .inputs
            .iter()
            .position(|input| input == name)
            .ok_or_else(|| StepError::UnknownInput { name: name.to_owned(), known: self.inputs.clone() })?;
        let buf = self.compiled.executor.program().inputs[index];
        Ok(self.compiled.executor.write(buf, values)?)
    }

    /// Runs the graph on `rows` rows that are one sequence from position 0, all of which are outputs, and returns the
    /// result row-major. For a graph with an embedding all tokens are 0; use [`run_batch`](Self::run_batch) there.
    ///
    /// # Errors
    /// If `rows` is 0 or more than the graph was made for.
    pub fn run(&mut self, rows: usize) -> Result<&[f32], StepError> {
        let too_many = || {
            let most = self.tokens.len();
            StepError::Cpu(rustai_kernels_cpu::ExecutorError::Batch(format!(
                "{rows} rows, where 1 to {most} are possible"
            )))
        };
        let len = u32::try_from(rows).ok().filter(|len| *len > 0).ok_or_else(too_many)?;
        let tokens = self.tokens.get(..rows).ok_or_else(too_many)?;
        let sequence = BatchSequence { len, start: 0, pages: &self.numbers[..rows.div_ceil(PAGE_TOKENS)] };
        let outputs = if self.selects { &self.numbers[..rows] } else { &[] };
        Ok(self.compiled.executor.run(&Batch { tokens, sequences: &[sequence], outputs })?)
    }

    /// Runs the graph on a batch of tokens.
    ///
    /// # Errors
    /// If the batch breaks a limit or names a token, page or row that does not exist.
    pub fn run_batch(&mut self, batch: &Batch<'_>) -> Result<&[f32], StepError> {
        Ok(self.compiled.executor.run(batch)?)
    }

    /// The plan that runs.
    pub fn plan(&self) -> &Plan {
        &self.compiled.plan
    }

    /// One line for people: kernels and threads.
    pub fn describe(&self) -> &str {
        &self.compiled.description
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Attention, GraphBuilder};

    fn one_layer() -> Graph {
        let mut b = GraphBuilder::new();
        let x = b.input("x", Rows::Tokens, 64).unwrap();
        let attention = Attention { layer: 0, heads: 1, kv_heads: 1, head_dim: 64, scale: 1.0, window: None };
        let a = b.attention("a", x, x, x, attention).unwrap();
        b.finish(a).unwrap()
    }

    #[test]
    fn memory_that_does_not_suffice_is_named_part_by_part() {
        let parts = |cache, activations, weights| Memory { cache, activations, weights };
        let refused = |page_locked| {
            refuse_if_too_large(parts(6 << 30, 1 << 20, 1 << 30), page_locked, Some(4 << 30)).unwrap_err().to_string()
        };
        let error = refused(0);
        for part in ["7169 MiB", "6144 MiB", "1 MiB", "1024 MiB", "4096 MiB", "--ctx"] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
        assert!(!error.contains("page-locked"), "{error}");
        let error = refused(3 << 20);
        assert!(error.contains("7172 MiB") && error.contains("3 MiB page-locked for the GPU"), "{error}");
        assert!(refuse_if_too_large(parts(3, 2, 1), 0, Some(6)).is_ok());
        assert!(refuse_if_too_large(parts(3, 2, 1), 1, Some(6)).is_err());
        assert!(refuse_if_too_large(parts(u64::MAX, 2, 1), 0, Some(6)).is_err());
        assert!(refuse_if_too_large(parts(3, 2, 1), 0, None).is_ok());
    }

    #[test]
    fn weights_count_as_they_are_packed() {
        let mut b = GraphBuilder::new();
        let x = b.input("x", Rows::Tokens, 256).unwrap();
        let w = b.weight("w", rustai_abi::DType::Q3_K, &[256, 17]).unwrap();
        let y = b.matmul("y", x, w, None).unwrap();
        let graph = b.finish(y).unwrap();
        assert_eq!(load::resident_bytes(&graph, Isa::Reference), 17 * 110);
        let fast = Isa::best();
        if fast != Isa::Reference {
            // Two groups of sixteen rows, with scales of a byte each, made up to a multiple of 64 bytes.
            assert_eq!(load::resident_bytes(&graph, fast), 2 * 1856);
        }
    }

    #[test]
    fn a_cache_of_any_size_is_refused_and_not_tried() {
        for pages in [1 << 40, usize::MAX] {
            let options = CpuOptions { pages, threads: 1, ..CpuOptions::default() };
            let error = CpuGraph::new(&one_layer(), &(), &options).map(|_| ()).unwrap_err();
            assert!(matches!(error, BuildError::OutOfMemory { .. }), "{error}");
        }
    }

    #[test]
    fn weights_that_are_not_what_the_graph_says_are_refused() {
        let mut b = GraphBuilder::new();
        let x = b.input("x", Rows::Tokens, 64).unwrap();
        let w = b.weight("w", rustai_abi::DType::F16, &[64, 2]).unwrap();
        let y = b.matmul("y", x, w, None).unwrap();
        let graph = b.finish(y).unwrap();
        let error = CpuGraph::new(&graph, &(), &CpuOptions::default()).map(|_| ()).unwrap_err();
        assert!(matches!(error, BuildError::Weight { .. }), "{error}");
        let model = CpuModel::new(&graph, &(), &CpuOptions::default(), 1, &mut |_, _| {}).map(|_| ()).unwrap_err();
        assert!(matches!(model, BuildError::NotLogits), "{model}");
    }

    #[test]
    fn inputs_keep_their_values_and_wrong_ones_are_refused() {
        let mut b = GraphBuilder::new();
        let x = b.input("x", Rows::Tokens, 2).unwrap();
        let y = b.silu("silu", x).unwrap();
        let y = b.add("sum", x, y).unwrap();
        let options = CpuOptions { threads: 2, max_tokens: 3, ..CpuOptions::default() };
        let mut graph = CpuGraph::new(&b.finish(y).unwrap(), &(), &options).unwrap();
        graph.set_input("x", &[0.0, 100.0, 1.0, -100.0]).unwrap();
        let silu = 1.0 / (1.0 + (-1f32).exp());
        for _ in 0..2 {
            let out = graph.run(2).unwrap();
            let expected = [0.0, 200.0, 1.0 + silu, -100.0];
            assert!(out.iter().zip(expected).all(|(out, expected)| (out - expected).abs() < 1e-4), "{out:?}");
        }
        assert!(matches!(graph.set_input("z", &[0.0]), Err(StepError::UnknownInput { .. })));
        assert!(graph.set_input("x", &[0.0; 3]).is_err());
        assert!(graph.set_input("x", &[0.0; 8]).is_err());
        assert!(graph.run(0).is_err());
        assert!(graph.run(4).is_err());
    }
}
