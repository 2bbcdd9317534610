//! The plan: which kernel calls compute a graph, and where in memory each value lies.
//!
//! Planning fuses what pays: projections that share an input, gate and up with SiLU and product, normalization
//! (and on some backends attention) with the quantization of activations,
//! residual sums with the product before them, RoPE with the append to the cache.
//! Then every value gets a place in one arena by its lifetime. A plan reads no weights, so it can be printed
//! and its memory counted before anything is loaded; [`Plan::bind`] puts weights in and makes a program of it.
//!
//! This module owns these decisions for every architecture. It must never look at names to find a pattern.
#![forbid(unsafe_code)]

mod bind;
mod fuse;
mod memory;
mod precision;
mod print;
mod residual;
mod step;

pub use bind::Resolved;
pub use memory::overlap;
pub use step::{Buffer, BufferId, Form, PlannedProjection, Step};

use crate::graph::{Graph, Rows, WeightId, rewrite};
use rustai_kernels_cpu::{KvShape, KvType};

/// Sizes that a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Most tokens in a batch.
    pub max_tokens: usize,
    /// Most outputs of a batch.
    pub max_outputs: usize,
    /// Pages of the key/value cache.
    pub pages: usize,
    /// How keys and values are kept.
    pub kv_type: KvType,
}

/// What planning has to know of a backend.
pub trait Target {
    /// The form in which a matrix takes its input.
    fn wants(&self, graph: &Graph, weight: WeightId) -> Form;

    /// Bytes that a buffer takes at an offset where the backend may put one; `usize::MAX` if they cannot be counted.
    fn bytes(&self, form: Form, width: usize, rows: usize) -> usize;

    /// Whether activations of so many values a row are held as [`Form::Q8Pair`] where products are sensitive to rounding.
    fn pairs(&self, width: usize) -> bool {
        let _ = width;
        false
    }

    /// Whether one call computes `silu(x · Gateᵀ) * (x · Upᵀ)` with these two matrices, which take `x` in the same form.
    fn gates(&self, graph: &Graph, gate: WeightId, up: WeightId) -> bool {
        let _ = (graph, gate, up);
        true
    }

    /// Whether the call of attention also quantizes its result, where only products with 8-bit activations read it.
    fn quantizes_attention(&self) -> bool {
        false
    }
}

/// Why a graph cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A rotation that does not feed an attention together with its partner.
    #[error(
        "{node}: no kernel rotates values outside an attention; queries and keys must share one rotation of the \
         attention's heads, and queries have no other reader"
    )]
    Rope {
        /// Name of the node.
        node: String,
    },
    /// Attentions that cannot share a cache.
    #[error("{node}: cache layer {layer} with {found}, but {expected}")]
    Cache {
        /// Name of the node.
        node: String,
        /// Its layer.
        layer: usize,
        /// What the node has.
        found: String,
        /// What the others have.
        expected: String,
    },
    /// Heads that a type of cache cannot hold.
    #[error(
        "heads of {head_dim} values do not fit a {kv_type} key/value cache, which takes multiples of {}; use the type f16",
        kv_type.block_len()
    )]
    KvType {
        /// The type asked for.
        kv_type: KvType,
        /// Values per head.
        head_dim: usize,
    },
    /// An operation whose result no kernel can hold.
    #[error("{node}: rows of {width} values are no multiple of 32, as 8-bit activations need")]
    Width {
        /// Name of the node.
        node: String,
        /// Values per row.
        width: usize,
    },
    /// The arena would not fit the address space.
    #[error("activations of {max_tokens} tokens and {max_outputs} outputs overflow memory; use a smaller batch")]
    TooLarge {
        /// Most tokens in a batch.
        max_tokens: usize,
        /// Most outputs of a batch.
        max_outputs: usize,
    },
}

/// Kernel calls over an arena; see the [module](self).
#[derive(Clone, Debug)]
pub struct Plan {
    /// The graph after its rewrites; the plan's weights are this graph's.
    pub graph: Graph,
    /// The calls, in order.
    pub steps: Vec<Step>,
    /// Values of the steps and their places.
    pub buffers: Vec<Buffer>,
    /// Buffers that the caller fills, in the order of the graph's inputs.
    pub inputs: Vec<BufferId>,
    /// The buffer of the result.
    pub output: BufferId,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Bytes that the arena would take if no buffer's memory were used again.
    pub unshared_bytes: usize,
    /// The cache, if a step uses one.
    pub kv: Option<KvShape>,
    /// The sizes that it was made for.
    pub options: PlanOptions,
}

impl Plan {
    /// Plans a graph for a backend.
    ///
    /// # Errors
    /// [`PlanError`] if no kernels compute the graph.
    pub fn new(graph: &Graph, options: PlanOptions, target: &dyn Target) -> Result<Self, PlanError> {
        let graph = rewrite::drop_unused(&rewrite::hoist_select_outputs(graph));
        let kv = cache_shape(&graph, options.pages, options.kv_type)?;
        let mut draft = fuse::lower(&graph, target)?;
        residual::fold(&mut draft);
        precision::choose(&mut draft, target);
        let rows = |rows| match rows {
            Rows::Tokens => options.max_tokens,
            Rows::Outputs => options.max_outputs,
        };
        let too_large = PlanError::TooLarge { max_tokens: options.max_tokens, max_outputs: options.max_outputs };
        let (arena_bytes, unshared_bytes) = memory::place(&mut draft, target, rows).ok_or(too_large)?;
        let fuse::Draft { steps, buffers, inputs, output } = draft;
        Ok(Self { graph, steps, buffers, inputs, output, arena_bytes, unshared_bytes, kv, options })
    }

    /// A buffer.
    ///
    /// # Panics
    /// If `id` comes from another plan.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0]
    }
}

/// The one cache that all attentions of a graph use.
fn cache_shape(graph: &Graph, pages: usize, kv_type: KvType) -> Result<Option<KvShape>, PlanError> {
    let attentions: Vec<_> = graph
        .nodes()
        .iter()
        .filter_map(|node| match &node.op {
            crate::graph::Op::Attention { attention, .. } => Some((node, attention)),
            _ => None,
        })
        .collect();
    let Some((_, first)) = attentions.first() else {
        return Ok(None);
    };
    let layers = attentions.len();
    for (node, attention) in &attentions {
        let fail = |found, expected| {
            Err(PlanError::Cache { node: node.name.clone(), layer: attention.layer, found, expected })
        };
        if attention.layer >= layers {
            return fail(
                "a gap before it".into(),
                format!("{layers} attentions number their layers 0 to {}", layers - 1),
            );
        }
        if (attention.kv_heads, attention.head_dim) != (first.kv_heads, first.head_dim) {
            return fail(
                format!("{} heads of {}", attention.kv_heads, attention.head_dim),
                format!("the first has {} of {}, and all share one cache", first.kv_heads, first.head_dim),
            );
        }
    }
    let (kv_heads, head_dim) = (first.kv_heads, first.head_dim);
    if !head_dim.is_multiple_of(kv_type.block_len()) {
        return Err(PlanError::KvType { kv_type, head_dim });
    }
    Ok(Some(KvShape { layers, kv_heads, head_dim, pages, kv_type }))
}

#[cfg(test)]
mod tests;
