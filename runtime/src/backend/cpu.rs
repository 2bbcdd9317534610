//! Runs graphs on the CPU.

use super::{BuildError, Executable, Limits, StepError, load, memory};
use crate::{
    graph::{Graph, Rows, WeightSource, rewrite},
    plan::{Plan, PlanOptions, Resolved},
};
use rustai_abi::{Batch, BatchSequence, PAGE_TOKENS};
use rustai_kernels_cpu::{ActKind, Executor, Isa};
use std::{collections::HashMap, num::NonZero, thread};

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
}

impl Default for CpuOptions {
    /// Sizes for small graphs: 64 rows.
    fn default() -> Self {
        Self { isa: None, threads: 0, max_tokens: 64, max_outputs: 64, pages: 64usize.div_ceil(PAGE_TOKENS) }
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
    let isa = match options.isa {
        Some(isa) => isa,
        None => {
            let selection = Isa::select()?;
            tracing::info!(isa = selection.isa.name(), reason = selection.reason, "instruction set chosen");
            selection.isa
        }
    };
    let threads = match options.threads {
        0 => thread::available_parallelism().map_or(1, NonZero::get),
        threads => threads,
    };
    let sizes = PlanOptions { max_tokens: options.max_tokens, max_outputs: options.max_outputs, pages: options.pages };
    let graph = &rewrite::drop_unused(graph);
    load::check(graph, source)?;

    // What memory it takes is known before any is taken.
    let forms = named(graph, load::forms(graph, isa)?);
    let estimate = Plan::new(graph, sizes, &load::form_of(&forms))?;
    refuse_if_too_large(&estimate, load::total_bytes(graph), memory::available())?;

    let weights = load::load(graph, source, isa, threads, progress)?;
    let wants = |resolved: &Resolved| resolved.matrix.as_ref().map_or(ActKind::F32, |matrix| matrix.wants());
    let forms = named(graph, weights.iter().map(wants));
    let plan = Plan::new(graph, sizes, &load::form_of(&forms))?;
    let mut kernels: Vec<&str> =
        weights.iter().filter_map(|weight| weight.matrix.as_ref()).map(|matrix| matrix.kernel_name()).collect();
    kernels.sort_unstable();
    kernels.dedup();
    let description = format!("CPU ({}), {threads} threads, kernels: {}", isa.name(), kernels.join(", "));

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

fn named(graph: &Graph, forms: impl IntoIterator<Item = ActKind>) -> HashMap<String, ActKind> {
    graph.weights().iter().map(|weight| weight.name.clone()).zip(forms).collect()
}

fn refuse_if_too_large(plan: &Plan, weights: u64, available: Option<u64>) -> Result<(), BuildError> {
    let (cache, activations) = (plan.kv_bytes() as u64, plan.arena_bytes as u64);
    let needed = cache.saturating_add(activations).saturating_add(weights);
    match available {
        Some(available) if needed > available => {
            Err(BuildError::OutOfMemory { needed, cache, activations, weights, available })
        }
        _ => Ok(()),
    }
}

/// A language model on the CPU.
pub struct CpuModel {
    compiled: Compiled,
    context: usize,
}

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
}

impl Executable for CpuModel {
    fn step(&mut self, batch: &Batch<'_>) -> Result<&[f32], StepError> {
        Ok(self.compiled.executor.run(batch)?)
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
}

/// A graph of any kind on the CPU: inputs in, result out.
///
/// ```no_run
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
        let compiled = compile(graph, source, options, &mut |_, _| {})?;
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

    #[test]
    fn a_cache_that_does_not_fit_is_refused_with_its_size() {
        let mut b = GraphBuilder::new();
        let x = b.input("x", Rows::Tokens, 64).unwrap();
        let attention = Attention { layer: 0, heads: 1, kv_heads: 1, head_dim: 64, scale: 1.0, window: None };
        let a = b.attention("a", x, x, x, attention).unwrap();
        let sizes = PlanOptions { max_tokens: 1, max_outputs: 1, pages: 1 << 20 };
        let plan = Plan::new(&b.finish(a).unwrap(), sizes, &|_, _| ActKind::F32).unwrap();
        let error = refuse_if_too_large(&plan, 5, Some(1 << 30)).unwrap_err();
        let BuildError::OutOfMemory { needed, cache, .. } = error else { panic!("{error}") };
        assert_eq!(cache, 2 * 2 * 64 * 32 << 20, "keys and values of two bytes");
        assert_eq!(needed, cache + plan.arena_bytes as u64 + 5);
        assert!(error.to_string().contains("--ctx"), "{error}");
        assert!(refuse_if_too_large(&plan, 5, Some(needed)).is_ok());
        assert!(refuse_if_too_large(&plan, 5, None).is_ok());
    }
}
