//! A plan on a device: which kernels run on which rows, with weights and addresses filled in.

use super::load::DeviceWeight;
use crate::{
    backend::BuildError,
    graph::{self, Graph, Rows, WeightId},
    plan::{BufferId, Form, Plan, PlannedProjection, Step, Target},
};
use rustai_abi::PAGE_TOKENS;
use rustai_kernels_cpu::{KvShape, RopeStyle};
use rustai_kernels_cuda::{
    Arena, Device, DeviceError, Floats, Halves, Input, Kernels, Partials, Projection, Quants, Span, Stream, Weights,
    ops::{
        Append, BatchInputs, LayerCache, MAX_GROUP, MAX_HEAD_DIM, Operation, Rotation, RunStates, Split,
        TILED_HEAD_DIMS, Targets, has_attention,
    },
    weights,
};
use std::sync::Arc;

/// What planning has to know of the kernels.
pub(super) struct Kinds {
    /// From how many rows on activations for quantized weights are in `f16`; no rows are as many where a device multiplies none.
    halves_from: usize,
}

impl Kinds {
    pub(super) fn of(kernels: &Kernels) -> Result<Self, DeviceError> {
        Ok(Self { halves_from: kernels.halves_from()?.unwrap_or(usize::MAX) })
    }
}

impl Target for Kinds {
    fn wants(&self, graph: &Graph, weight: WeightId) -> Form {
        match weights::is_quantized(graph.weight(weight).dtype) {
            Some(true) => Form::Q8,
            Some(false) | None => Form::F32,
        }
    }

    fn bytes(&self, form: Form, width: usize, rows: usize) -> usize {
        match form {
            Form::F32 => Floats::room(rows, width),
            // Either in the same memory.
            Form::Q8 | Form::Q8Pair if rows >= self.halves_from => {
                Quants::room(rows, width).max(Halves::room(rows, width))
            }
            Form::Q8 | Form::Q8Pair => Quants::room(rows, width),
        }
    }

    fn gates(&self, graph: &Graph, gate: WeightId, up: WeightId) -> bool {
        graph.weight(gate).dtype == graph.weight(up).dtype
    }

    fn quantizes_attention(&self) -> bool {
        true
    }
}

/// Activations of a product.
#[derive(Clone, Debug)]
enum Act {
    Floats(Floats),
    Quantized(Box<Quantized>),
}

impl Act {
    /// With so many rows.
    fn input(&self, rows: usize) -> Input<'_> {
        match self {
            Self::Floats(floats) => Input::Floats(floats),
            Self::Quantized(x) => x.halves(rows).map_or(Input::Quantized(&x.quants), Input::Halves),
        }
    }

    /// With so many rows.
    fn targets(&self, rows: usize) -> Targets<'_> {
        match self {
            Self::Floats(floats) => Targets { floats: Some(floats), ..Targets::default() },
            Self::Quantized(x) => x.targets(rows),
        }
    }
}

/// Activations for quantized weights: in 8 bits or, in a step with many rows on a device that multiplies those, in `f16`, in
/// the same memory. A step writes and reads the same number of rows, so its writer and its readers choose the same.
#[derive(Clone, Debug)]
struct Quantized {
    quants: Quants,
    halves: Option<Halves>,
    halves_from: usize,
}

impl Quantized {
    fn halves(&self, rows: usize) -> Option<&Halves> {
        self.halves.as_ref().filter(|_| rows >= self.halves_from)
    }

    fn targets(&self, rows: usize) -> Targets<'_> {
        match self.halves(rows) {
            Some(halves) => Targets { halves: Some(halves), ..Targets::default() },
            None => Targets { quants: Some(&self.quants), ..Targets::default() },
        }
    }
}

/// A matrix and where its product goes.
#[derive(Clone, Debug)]
struct Product {
    weights: Weights,
    bias: Option<Floats>,
    out: Floats,
    accumulate: bool,
}

impl Product {
    fn projection(&self) -> Projection<'_> {
        let Self { weights, bias, out, accumulate } = self;
        Projection { weights, bias: bias.as_ref(), out, accumulate: *accumulate }
    }
}

/// One launch, or a few of one kind.
#[derive(Clone, Debug)]
enum Call {
    Embed {
        table: Weights,
        scale: f32,
        out: Floats,
    },
    Norm {
        x: Floats,
        weight: Floats,
        eps: f32,
        out: Act,
    },
    Quantize {
        x: Floats,
        out: Quantized,
    },
    /// Products of one input.
    MatMul {
        x: Act,
        products: Vec<Product>,
    },
    /// Products that are queries, keys and values, and their append to the cache.
    ProjectAppend {
        x: Act,
        products: Box<[Product; 3]>,
        layer: usize,
        rope: Option<DeviceRope>,
    },
    GatedMatMul {
        x: Act,
        gate: Weights,
        up: Weights,
        out: Floats,
    },
    RopeAppend {
        q: Floats,
        k: Floats,
        v: Floats,
        layer: usize,
        rope: Option<DeviceRope>,
    },
    Attention {
        q: Floats,
        out: Floats,
        quants: Option<Quantized>,
        layer: usize,
        scale: f32,
        window: Option<u32>,
    },
    Elements {
        operation: Operation,
        a: Floats,
        b: Option<Floats>,
        out: Floats,
    },
    Softmax {
        x: Floats,
        out: Floats,
    },
    Select {
        x: Floats,
        out: Floats,
    },
}

#[derive(Clone, Debug)]
struct DeviceRope {
    style: RopeStyle,
    inv_freq: Floats,
    magnitude: f32,
}

impl DeviceRope {
    fn rotation(&self) -> Rotation<'_> {
        let Self { style, inv_freq, magnitude } = self;
        Rotation { style: *style, inv_freq, magnitude: *magnitude }
    }
}

/// What one step has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StepShape {
    /// Rows of values with a row per token.
    pub(super) tokens: usize,
    /// Rows of values with a row per output.
    pub(super) outputs: usize,
    /// Tokens that are attended to one by one, and not in tiles.
    pub(super) single: usize,
    /// No sequence of such tokens is longer than this after the step.
    pub(super) reach: usize,
}

impl StepShape {
    fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens,
            Rows::Outputs => self.outputs,
        }
    }
}

/// The launches of a step and the memory that they work in.
#[derive(Debug)]
pub(super) struct Program {
    /// Each with the rows of its result.
    calls: Vec<(Call, Rows)>,
    caches: Vec<LayerCache>,
    kv: Option<KvShape>,
    /// States of attention that is cut into runs.
    states: Option<RunStates>,
    /// Sums of products that are split by columns.
    partials: Option<Partials>,
    multiprocessors: usize,
    /// The caller's values.
    pub(super) inputs: Vec<Floats>,
    /// The result.
    pub(super) output: Floats,
    /// Room for the normalized rows before the last product, if the program ends so.
    pub(super) normalized: Option<Floats>,
}

impl Program {
    /// Bytes of cache and activations that a plan takes.
    pub(super) fn memory(plan: &Plan, multiprocessors: usize) -> (u64, u64) {
        let cache = plan.kv.map_or(0, |kv| {
            (LayerCache::room(kv.kv_type, kv.kv_heads, kv.head_dim, kv.pages) as u64).saturating_mul(kv.layers as u64)
        });
        let states = RunStates::room(states_bytes(plan, multiprocessors));
        let states = states.saturating_add(normalized(plan).map_or(0, |(_, bytes)| bytes));
        let partials = Partials::room(split_tokens(plan), multiprocessors);
        (cache, (plan.arena_bytes as u64).saturating_add(states as u64).saturating_add(partials as u64))
    }

    /// Whether there are kernels for a plan's attentions.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] that names what there is no kernel for.
    pub(super) fn check(plan: &Plan) -> Result<(), DeviceError> {
        let Some(kv) = plan.kv else { return Ok(()) };
        let fail = |reason: String| Err(DeviceError::Invalid(reason));
        if !has_attention(kv.kv_type, kv.head_dim) {
            return fail(format!(
                "there is no CUDA kernel for attention with heads of {} values, only of multiples of 8 up to {MAX_HEAD_DIM}; \
                 use --device cpu",
                kv.head_dim
            ));
        }
        for step in &plan.steps {
            let Step::Attention { q, .. } = step else { continue };
            let group = plan.buffer(*q).width / kv.head_dim / kv.kv_heads;
            if group > MAX_GROUP {
                return fail(format!(
                    "there is no CUDA kernel for {group} query heads that share keys, only for up to {MAX_GROUP}; use \
                     --device cpu"
                ));
            }
        }
        Ok(())
    }

    /// Takes the memory of a plan, binds it and looks up its kernels; `loaded` are numbered as the weights of the plan's graph.
    pub(super) fn new(kernels: &Kernels, plan: &Plan, loaded: &[DeviceWeight]) -> Result<Self, BuildError> {
        let device = kernels.device();
        let multiprocessors = device.info().multiprocessors as usize;
        let arena = Span::new(device, "activations", plan.arena_bytes)?;
        let mut caches = Vec::new();
        if let Some(kv) = plan.kv {
            let room = LayerCache::room(kv.kv_type, kv.kv_heads, kv.head_dim, kv.pages);
            let mut memory = Arena::new(device, "the key/value cache", room.saturating_mul(kv.layers))?;
            for _ in 0..kv.layers {
                caches.push(LayerCache::take(&mut memory, kv.kv_type, kv.kv_heads, kv.head_dim, kv.pages)?);
            }
        }
        let binder = Binder { device, plan, loaded, arena, kinds: Kinds::of(kernels)? };
        let mut calls = Vec::with_capacity(plan.steps.len());
        for (at, step) in plan.steps.iter().enumerate() {
            let call = binder.bind(step)?;
            let joined = binder.join(at, &call, calls.last());
            if joined.is_some() {
                calls.pop();
            }
            calls.push(joined.unwrap_or(call));
        }
        for (call, _) in &calls {
            ready(kernels, call, &caches)?;
        }
        kernels.ready_rows()?;
        kernels.ready_sample()?;
        let normalized = match normalized(plan) {
            Some((width, bytes)) => {
                let span = Span::new(device, "embeddings", bytes)?;
                Some(Floats::at(&span, plan.options.max_outputs, width)?)
            }
            None => None,
        };
        Ok(Self {
            calls,
            caches,
            kv: plan.kv,
            states: RunStates::new(device, states_bytes(plan, multiprocessors))?,
            partials: Partials::new(device, split_tokens(plan))?,
            multiprocessors,
            inputs: plan.inputs.iter().map(|id| binder.floats(*id)).collect::<Result<_, _>>()?,
            output: binder.floats(plan.output)?,
            normalized,
        })
    }

    /// Puts the launches of a step behind the stream's work. With `normalized`, the rows that the last product multiplies are
    /// written as floats, too.
    pub(super) fn launch(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        inputs: &BatchInputs,
        shape: StepShape,
        normalized: bool,
    ) -> Result<(), DeviceError> {
        // What is normalized last is what the last product multiplies.
        let last_norm = self.calls.iter().rposition(|(call, _)| matches!(call, Call::Norm { .. }));
        for (index, (call, rows)) in self.calls.iter().enumerate() {
            let rows = shape.rows(*rows);
            if rows == 0 {
                continue;
            }
            match call {
                Call::Embed { table, scale, out } => {
                    kernels.embed(stream, table, inputs.tokens(), out, *scale, rows)?;
                }
                Call::Norm { x, weight, eps, out } => {
                    kernels.rms_norm(stream, x, weight, *eps, out.targets(rows), rows)?;
                    if normalized && Some(index) == last_norm {
                        let floats = self.normalized.as_ref();
                        let targets = Targets { floats, ..Targets::default() };
                        kernels.rms_norm(stream, x, weight, *eps, targets, rows)?;
                    }
                }
                Call::Quantize { x, out } => kernels.convert(stream, x, out.targets(rows), rows)?,
                Call::MatMul { x, products } => {
                    let projections: Vec<_> = products.iter().map(Product::projection).collect();
                    kernels.matmul(stream, x.input(rows), &projections, self.partials.as_ref(), rows)?;
                }
                Call::GatedMatMul { x, gate, up, out } => {
                    kernels.gated_matmul(stream, x.input(rows), [gate, up], out, self.partials.as_ref(), rows)?;
                }
                Call::RopeAppend { q, k, v, layer, rope } => {
                    kernels.rope_append(stream, [q, k, v], self.append(*layer, rope.as_ref(), inputs), rows)?;
                }
                Call::ProjectAppend { x, products, layer, rope } => {
                    let (products, partials) = (products.each_ref().map(Product::projection), self.partials.as_ref());
                    let append = self.append(*layer, rope.as_ref(), inputs);
                    kernels.project_append(stream, x.input(rows), products, partials, append, rows)?;
                }
                Call::Attention { q, out, quants, layer, scale, window } => {
                    let also = quants.as_ref().map_or_else(Targets::default, |quants| quants.targets(rows));
                    let (out, look, split) = ((out, also), (*scale, *window), self.split(shape));
                    let (states, cache) = (self.states.as_ref(), &self.caches[*layer]);
                    kernels.attention(stream, q, out, states, cache, inputs.places(), look, split, rows)?;
                }
                Call::Elements { operation, a, b, out } => {
                    kernels.elements(stream, *operation, a, b.as_ref(), out, rows)?;
                }
                Call::Softmax { x, out } => kernels.softmax(stream, x, out, rows)?,
                Call::Select { x, out } => kernels.select_rows(stream, x, inputs.outputs(), out, rows)?,
            }
        }
        Ok(())
    }

    fn append<'a>(&'a self, layer: usize, rope: Option<&'a DeviceRope>, inputs: &'a BatchInputs) -> Append<'a> {
        let rotation = rope.map(DeviceRope::rotation);
        Append { rotation, cache: &self.caches[layer], places: inputs.places() }
    }

    /// Whether sequences of many tokens are attended to in tiles.
    pub(super) fn has_tiles(&self) -> bool {
        self.kv.is_some_and(|kv| TILED_HEAD_DIMS.contains(&kv.head_dim))
    }

    /// Tokens in tiles are blocks enough by themselves; the others are cut into runs by how many of them there are.
    fn split(&self, shape: StepShape) -> Split {
        let blocks = self.kv.map_or(1, |kv| kv.kv_heads).saturating_mul(shape.single);
        Split::new(shape.reach, blocks, self.multiprocessors)
    }
}

/// Looks up the kernels of a call.
fn ready(kernels: &Kernels, call: &Call, caches: &[LayerCache]) -> Result<(), DeviceError> {
    match call {
        Call::Embed { table, .. } => kernels.ready_embed(table.dtype()),
        Call::MatMul { products, .. } => {
            kernels.ready_matmul(&products.iter().map(|product| product.weights.dtype()).collect::<Vec<_>>())
        }
        Call::ProjectAppend { products, .. } => {
            kernels.ready_matmul(&products.each_ref().map(|product| product.weights.dtype()))
        }
        Call::GatedMatMul { gate, .. } => kernels.ready_matmul(&[gate.dtype()]),
        Call::Attention { q, layer, .. } => kernels.ready_attention(&caches[*layer], q.width()),
        Call::Norm { .. }
        | Call::Quantize { .. }
        | Call::RopeAppend { .. }
        | Call::Elements { .. }
        | Call::Softmax { .. }
        | Call::Select { .. } => Ok(()),
    }
}

/// Bytes for attention in runs, at the worst number of tokens and length of sequences.
fn states_bytes(plan: &Plan, multiprocessors: usize) -> [usize; 2] {
    let Some(kv) = plan.kv else { return [0; 2] };
    let widest = plan.steps.iter().filter_map(|step| match step {
        Step::Attention { q, .. } => Some(plan.buffer(*q).width / kv.head_dim),
        _ => None,
    });
    let heads = widest.max().unwrap_or(0);
    let positions = kv.pages.saturating_mul(PAGE_TOKENS);
    let mut most = [0; 2];
    for tokens in 1..=plan.options.max_tokens {
        let split = Split::at_most(positions, kv.kv_heads.saturating_mul(tokens), multiprocessors);
        if split.runs == 1 {
            break;
        }
        let bytes = RunStates::bytes(tokens, [heads, kv.kv_heads], kv.head_dim, split);
        most = [0, 1].map(|i| most[i].max(bytes[i]));
    }
    most
}

/// The most rows that a step of the plan multiplies with quantized weights.
fn split_tokens(plan: &Plan) -> usize {
    let rows = plan.steps.iter().filter_map(|step| match step {
        Step::MatMul { x, .. } | Step::GatedMatMul { x, .. } => {
            let buffer = plan.buffer(*x);
            let most = match buffer.rows {
                Rows::Tokens => plan.options.max_tokens,
                Rows::Outputs => plan.options.max_outputs,
            };
            (buffer.form != Form::F32).then_some(most)
        }
        _ => None,
    });
    rows.max().unwrap_or(0)
}

/// Width and bytes of the rows before the last product, if a plan ends with a normalization and a product of it.
fn normalized(plan: &Plan) -> Option<(usize, usize)> {
    match plan.steps.as_slice() {
        [.., Step::RmsNorm { x: before, out, .. }, Step::MatMul { x, projections }] if out == x => {
            let width = plan.buffer(*before).width;
            let ends = projections.iter().any(|projection| projection.out == plan.output);
            let per_output = plan.buffer(*out).rows == Rows::Outputs;
            (ends && per_output).then(|| (width, Floats::room(plan.options.max_outputs, width)))
        }
        _ => None,
    }
}

struct Binder<'a> {
    device: &'a Device,
    plan: &'a Plan,
    loaded: &'a [DeviceWeight],
    arena: Span,
    kinds: Kinds,
}

impl Binder<'_> {
    /// The call of a step, and the rows of its result.
    fn bind(&self, step: &Step) -> Result<(Call, Rows), BuildError> {
        let rows = step.writes().first().map_or(Rows::Tokens, |out| self.plan.buffer(*out).rows);
        let call = match *step {
            Step::Embed { table, scale, out } => {
                Call::Embed { table: self.matrix(table)?, scale, out: self.floats(out)? }
            }
            Step::RmsNorm { x, weight, eps, out } => {
                Call::Norm { x: self.floats(x)?, weight: self.vector(weight)?, eps, out: self.act(out)? }
            }
            Step::Quantize { x, out } => Call::Quantize { x: self.floats(x)?, out: self.quantized(out)? },
            Step::MatMul { x, ref projections } => {
                let bind = |projection: &PlannedProjection| -> Result<_, BuildError> {
                    Ok(Product {
                        weights: self.matrix(projection.weight)?,
                        bias: projection.bias.map(|bias| self.vector(bias)).transpose()?,
                        out: self.floats(projection.out)?,
                        accumulate: projection.residual.is_some(),
                    })
                };
                Call::MatMul { x: self.act(x)?, products: projections.iter().map(bind).collect::<Result<_, _>>()? }
            }
            Step::GatedMatMul { x, gate, up, out } => Call::GatedMatMul {
                x: self.act(x)?,
                gate: self.matrix(gate)?,
                up: self.matrix(up)?,
                out: self.floats(out)?,
            },
            Step::RopeAppend { q, k, v, layer, ref rope, .. } => Call::RopeAppend {
                q: self.floats(q)?,
                k: self.floats(k)?,
                v: self.floats(v)?,
                layer,
                rope: rope.as_ref().map(|rope| self.rope(rope)).transpose()?,
            },
            Step::Attention { q, layer, scale, window, out, quants } => {
                let quants = quants.map(|quants| self.quantized(quants)).transpose()?;
                Call::Attention { q: self.floats(q)?, out: self.floats(out)?, quants, layer, scale, window }
            }
            Step::Add { a, b, out } => self.elements(Operation::Add, a, Some(b), out)?,
            Step::Mul { a, b, out } => self.elements(Operation::Multiply, a, Some(b), out)?,
            Step::Silu { x, out } => self.elements(Operation::Silu, x, None, out)?,
            Step::Softmax { x, out } => Call::Softmax { x: self.floats(x)?, out: self.floats(out)? },
            Step::SelectOutputs { x, out } => Call::Select { x: self.floats(x)?, out: self.floats(out)? },
        };
        Ok((call, rows))
    }

    /// A call for step `at` and the one before it, `last`, where the products of that one are queries, keys and values that nobody
    /// else reads.
    fn join(&self, at: usize, call: &(Call, Rows), last: Option<&(Call, Rows)>) -> Option<(Call, Rows)> {
        let steps = &self.plan.steps;
        let (Call::RopeAppend { layer, rope, .. }, _) = call else { return None };
        let (Call::MatMul { x, products }, rows) = last? else { return None };
        let [Step::MatMul { projections, .. }, Step::RopeAppend { q, k, v, .. }] = &steps[at.checked_sub(1)?..=at]
        else {
            return None;
        };
        let fits = projections.iter().map(|projection| projection.out).eq([*q, *k, *v])
            && projections.iter().all(|projection| projection.residual.is_none());
        let reads = |buffer: BufferId| steps.iter().flat_map(Step::reads).filter(|read| *read == buffer).count();
        let only_here = [*k, *v].iter().all(|buffer| reads(*buffer) == 1 && *buffer != self.plan.output);
        let products = Box::new(<[Product; 3]>::try_from(products.clone()).ok()?);
        (fits && only_here)
            .then(|| (Call::ProjectAppend { x: x.clone(), products, layer: *layer, rope: rope.clone() }, *rows))
    }

    fn elements(
        &self,
        operation: Operation,
        a: BufferId,
        b: Option<BufferId>,
        out: BufferId,
    ) -> Result<Call, BuildError> {
        let b = b.map(|b| self.floats(b)).transpose()?;
        Ok(Call::Elements { operation, a: self.floats(a)?, b, out: self.floats(out)? })
    }

    /// The place of a buffer, its most rows and its width.
    fn place(&self, id: BufferId) -> Result<(Span, usize, usize), BuildError> {
        let buffer = self.plan.buffer(id);
        let rows = match buffer.rows {
            Rows::Tokens => self.plan.options.max_tokens,
            Rows::Outputs => self.plan.options.max_outputs,
        };
        Ok((self.arena.part(buffer.offset, buffer.bytes)?, rows, buffer.width))
    }

    fn floats(&self, id: BufferId) -> Result<Floats, BuildError> {
        let (span, rows, width) = self.place(id)?;
        Ok(Floats::at(&span, rows, width)?)
    }

    fn quantized(&self, id: BufferId) -> Result<Quantized, BuildError> {
        let (span, rows, width) = self.place(id)?;
        let halves_from = self.kinds.halves_from;
        let halves = (rows >= halves_from).then(|| Halves::at(&span, rows, width)).transpose()?;
        Ok(Quantized { quants: Quants::at(&span, rows, width)?, halves, halves_from })
    }

    fn act(&self, id: BufferId) -> Result<Act, BuildError> {
        Ok(match self.plan.buffer(id).form {
            Form::F32 => Act::Floats(self.floats(id)?),
            Form::Q8 | Form::Q8Pair => Act::Quantized(Box::new(self.quantized(id)?)),
        })
    }

    fn rope(&self, rope: &Arc<graph::Rope>) -> Result<DeviceRope, BuildError> {
        let style = match rope.style {
            graph::RopeStyle::Interleaved => RopeStyle::Interleaved,
            graph::RopeStyle::Neox => RopeStyle::Neox,
        };
        let inv_freq = Floats::with(self.device, rope.inv_freq.len(), &rope.inv_freq)?;
        Ok(DeviceRope { style, inv_freq, magnitude: rope.magnitude })
    }

    fn matrix(&self, id: WeightId) -> Result<Weights, BuildError> {
        self.loaded.get(id.index()).and_then(|weight| weight.matrix.clone()).ok_or_else(|| self.missing(id))
    }

    fn vector(&self, id: WeightId) -> Result<Floats, BuildError> {
        self.loaded.get(id.index()).and_then(|weight| weight.vector.clone()).ok_or_else(|| self.missing(id))
    }

    fn missing(&self, id: WeightId) -> BuildError {
        BuildError::Weight {
            tensor: self.plan.graph.weight(id).name.clone(),
            expected: "a weight".into(),
            found: "one of another kind".into(),
        }
    }
}
