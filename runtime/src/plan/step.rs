//! Steps of a plan and the buffers that they read and write.

use crate::graph::{Rope, Rows, WeightId};
use std::sync::Arc;

/// A buffer of a plan. Every buffer is written by one step, so a value has one name from birth to death even where
/// several buffers share a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub(super) usize);

impl BufferId {
    /// Position in [`Plan::buffers`](super::Plan::buffers).
    pub fn index(self) -> usize {
        self.0
    }
}

/// How a buffer holds its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Plain `f32`.
    F32,
    /// 8-bit blocks with scales.
    Q8,
    /// The same twice: a second plane holds what the first leaves.
    Q8Pair,
}

/// A matrix in the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Name of the graph's node whose result it holds.
    pub name: String,
    /// How the values are held.
    pub form: Form,
    /// What the rows are.
    pub rows: Rows,
    /// Values per row.
    pub width: usize,
    /// First byte in the arena; a multiple of what the backend's sizes are multiples of.
    pub offset: usize,
    /// Bytes at the plan's most rows.
    pub bytes: usize,
    /// Steps from the first that writes it to the last that reads it. Inputs live from before the first step, and
    /// inputs and the output to the end.
    pub life: (usize, usize),
}

/// One matrix of [`Step::MatMul`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedProjection {
    /// The weights.
    pub weight: WeightId,
    /// Added to each row.
    pub bias: Option<WeightId>,
    /// A buffer that dies here and whose place `out` takes: the product is added to its values.
    pub residual: Option<BufferId>,
    /// Result.
    pub out: BufferId,
}

/// One kernel call, before weights and addresses are filled in. See `rustai_kernels_cpu::Call` for what each computes.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of `Call`, which documents them")]
pub enum Step {
    /// Rows of an embedding table.
    Embed { table: WeightId, scale: f32, out: BufferId },
    /// Normalization; quantizes on the way if `out` is of that form.
    RmsNorm { x: BufferId, weight: WeightId, eps: f32, out: BufferId },
    /// 8-bit quantization of activations.
    Quantize { x: BufferId, out: BufferId },
    /// One input times several matrices.
    MatMul { x: BufferId, projections: Vec<PlannedProjection> },
    /// `silu(x · Gateᵀ) * (x · Upᵀ)`.
    GatedMatMul { x: BufferId, gate: WeightId, up: WeightId, out: BufferId },
    /// Rotates queries in place (`rotated` takes the place of `q`) and appends keys and values to the cache.
    RopeAppend { q: BufferId, k: BufferId, v: BufferId, layer: usize, rope: Option<Arc<Rope>>, rotated: BufferId },
    /// Attention over the cache; quantizes the result if `quants` are given, and `out` is room to work in then.
    Attention { q: BufferId, layer: usize, scale: f32, window: Option<u32>, out: BufferId, quants: Option<BufferId> },
    /// Sum.
    Add { a: BufferId, b: BufferId, out: BufferId },
    /// Product, element by element.
    Mul { a: BufferId, b: BufferId, out: BufferId },
    /// `x * sigmoid(x)`.
    Silu { x: BufferId, out: BufferId },
    /// Softmax over each row.
    Softmax { x: BufferId, out: BufferId },
    /// The rows that the batch wants.
    SelectOutputs { x: BufferId, out: BufferId },
}

impl Step {
    /// The kernel's name in listings.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::RmsNorm { .. } => "rms_norm",
            Self::Quantize { .. } => "quantize",
            Self::MatMul { .. } => "matmul",
            Self::GatedMatMul { .. } => "gated_matmul",
            Self::RopeAppend { .. } => "rope_append",
            Self::Attention { .. } => "attention",
            Self::Add { .. } => "add",
            Self::Mul { .. } => "mul",
            Self::Silu { .. } => "silu",
            Self::Softmax { .. } => "softmax",
            Self::SelectOutputs { .. } => "select_outputs",
        }
    }

    /// Buffers that the step reads, those that it overwrites included.
    pub fn reads(&self) -> Vec<BufferId> {
        match self {
            Self::Embed { .. } => Vec::new(),
            Self::MatMul { x, projections } => {
                std::iter::once(*x).chain(projections.iter().filter_map(|p| p.residual)).collect()
            }
            Self::RmsNorm { x, .. }
            | Self::Quantize { x, .. }
            | Self::GatedMatMul { x, .. }
            | Self::Silu { x, .. }
            | Self::Softmax { x, .. }
            | Self::SelectOutputs { x, .. } => vec![*x],
            Self::RopeAppend { q, k, v, .. } => vec![*q, *k, *v],
            Self::Attention { q, .. } => vec![*q],
            Self::Add { a, b, .. } | Self::Mul { a, b, .. } => vec![*a, *b],
        }
    }

    /// Buffers that the step writes.
    pub fn writes(&self) -> Vec<BufferId> {
        match self {
            Self::MatMul { projections, .. } => projections.iter().map(|p| p.out).collect(),
            Self::Attention { out, quants, .. } => std::iter::once(*out).chain(*quants).collect(),
            Self::Embed { out, .. }
            | Self::RmsNorm { out, .. }
            | Self::Quantize { out, .. }
            | Self::GatedMatMul { out, .. }
            | Self::RopeAppend { rotated: out, .. }
            | Self::Add { out, .. }
            | Self::Mul { out, .. }
            | Self::Silu { out, .. }
            | Self::Softmax { out, .. }
            | Self::SelectOutputs { out, .. } => vec![*out],
        }
    }

    /// Pairs of a buffer that the step overwrites by its nature, and the buffer that takes its place.
    pub(super) fn overwrites(&self) -> Vec<(BufferId, BufferId)> {
        match self {
            Self::MatMul { projections, .. } => {
                projections.iter().filter_map(|p| p.residual.map(|residual| (residual, p.out))).collect()
            }
            Self::RopeAppend { q, rotated, .. } => vec![(*q, *rotated)],
            _ => Vec::new(),
        }
    }

    /// Buffers whose place the result may take if they die here.
    pub(super) fn may_overwrite(&self) -> Vec<BufferId> {
        match self {
            Self::Add { a, b, .. } | Self::Mul { a, b, .. } => vec![*a, *b],
            Self::Silu { x, .. } | Self::Softmax { x, .. } => vec![*x],
            _ => Vec::new(),
        }
    }
}
