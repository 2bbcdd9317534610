//! A flat list of kernel calls over one arena, run by an [`Executor`](crate::Executor) in lock step.
//!
//! A program is made once, when a model is loaded; every offset is checked then. Running it allocates nothing.

use crate::{Matrix, formats::q8a, memory::align};
use std::sync::Arc;

/// Which rows a buffer has: one for each token of the batch, or one for each wanted output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One row per token of the batch.
    Tokens,
    /// One row per entry of `Batch::outputs`.
    Outputs,
}

/// A row-major `f32` matrix in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buf {
    /// First byte in the arena; a multiple of 64.
    pub offset: usize,
    /// Values per row.
    pub width: usize,
    /// What the rows are.
    pub rows: Rows,
}

impl Buf {
    /// Bytes that the buffer takes for `rows` rows; `usize::MAX` if there are more than can be counted.
    pub fn bytes(width: usize, rows: usize) -> usize {
        align(width.saturating_mul(rows).saturating_mul(4))
    }
}

/// Activations quantized to 8 bits in the arena: blocks of 32 with an `f32` scale each (see `formats::q8a`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QBuf {
    /// First byte in the arena; a multiple of 64.
    pub offset: usize,
    /// Values per row; a multiple of 32.
    pub width: usize,
    /// What the rows are.
    pub rows: Rows,
    /// Quantized rows that stand for a row, 1 or 2: the second is what the first leaves (see [`q8a::planes`]).
    pub planes: usize,
}

impl QBuf {
    /// Bytes that the buffer takes for `rows` rows of `planes` planes; `usize::MAX` if there are more than can be counted.
    pub fn bytes(width: usize, rows: usize, planes: usize) -> usize {
        // A plane takes less than twice its values and 64 bytes more.
        match width.checked_mul(2).and_then(|bytes| bytes.checked_add(64)) {
            Some(_) => q8a::row_bytes(width).saturating_mul(planes).saturating_mul(rows),
            None => usize::MAX,
        }
    }
}

/// Activations in the form that a matrix wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Plain values.
    F32(Buf),
    /// Quantized values.
    Q8(QBuf),
}

/// How the values of a head are paired by RoPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours `(2i, 2i + 1)` are a pair (GGUF files of the llama architecture).
    Interleaved,
    /// `(i, i + n/2)` are a pair (GPT-NeoX).
    Neox,
}

/// Rotary position embedding of query and key heads (Su et al., 2021, arXiv 2104.09864).
#[derive(Clone, Debug)]
pub struct Rope {
    /// How values are paired.
    pub style: RopeStyle,
    /// Radians per position of each pair; `2 * inv_freq.len()` leading values of a head are rotated, the rest are kept.
    pub inv_freq: Arc<[f32]>,
    /// Factor on the rotated values (YaRN's attention factor; 1 without it).
    pub magnitude: f32,
}

/// One matrix of a [`Call::MatMul`].
#[derive(Clone, Debug)]
pub struct Projection {
    /// The weights.
    pub weight: Arc<Matrix>,
    /// Added to each row.
    pub bias: Option<Arc<[f32]>>,
    /// Where the result goes.
    pub out: Buf,
    /// Add to what `out` holds (a residual) instead of replacing it.
    pub accumulate: bool,
}

/// One kernel call.
#[derive(Clone, Debug)]
pub enum Call {
    /// Rows of an embedding table for the batch's tokens.
    Embed {
        /// The table: a row for each token.
        table: Arc<Matrix>,
        /// Result; its width is the table's row length.
        out: Buf,
        /// Factor on each value.
        scale: f32,
    },
    /// Root-mean-square normalization with a weight per column (Zhang and Sennrich, 2019), quantized on the way if `out` is.
    RmsNorm {
        /// Input.
        x: Buf,
        /// A factor per column.
        weight: Arc<[f32]>,
        /// Added to the mean square.
        eps: f32,
        /// Result.
        out: Act,
    },
    /// 8-bit quantization of activations.
    Quantize {
        /// Input.
        x: Buf,
        /// Result.
        out: QBuf,
    },
    /// One input times several matrices (`out = x · Wᵀ + bias`).
    MatMul {
        /// Input, in the form that every weight's [`Matrix::wants`] names.
        x: Act,
        /// The matrices.
        projections: Vec<Projection>,
    },
    /// `out = silu(x · Gateᵀ) * (x · Upᵀ)` (SwiGLU, Shazeer 2020, arXiv 2002.05202).
    GatedMatMul {
        /// Input.
        x: Act,
        /// Weights of the gate.
        gate: Arc<Matrix>,
        /// Weights of the linear branch.
        up: Arc<Matrix>,
        /// Result.
        out: Buf,
    },
    /// Rotates `q` in place, and writes the rotated `k` and plain `v` into the key/value cache of `layer`.
    RopeAppend {
        /// Queries, `heads * head_dim` wide.
        q: Buf,
        /// Keys, `kv_heads * head_dim` wide.
        k: Buf,
        /// Values, `kv_heads * head_dim` wide.
        v: Buf,
        /// Layer of the cache.
        layer: usize,
        /// The rotation; none leaves queries and keys as they are.
        rope: Option<Rope>,
    },
    /// Causal attention of `q` over the cache of `layer`, which must already hold the batch's own keys and values.
    Attention {
        /// Queries, `heads * head_dim` wide.
        q: Buf,
        /// Result, as wide as `q`.
        out: Buf,
        /// Layer of the cache.
        layer: usize,
        /// Factor on the scores, usually `1 / sqrt(head_dim)`.
        scale: f32,
        /// Only the last so many positions are seen (sliding window), if given.
        window: Option<u32>,
    },
    /// `out = a + b`; `out` may be `a` or `b`.
    Add {
        /// First operand.
        a: Buf,
        /// Second operand.
        b: Buf,
        /// Result.
        out: Buf,
    },
    /// `out = a * b`, element by element; `out` may be `a` or `b`.
    Mul {
        /// First operand.
        a: Buf,
        /// Second operand.
        b: Buf,
        /// Result.
        out: Buf,
    },
    /// `out = x * sigmoid(x)`; `out` may be `x`.
    Silu {
        /// Input.
        x: Buf,
        /// Result.
        out: Buf,
    },
    /// Softmax over each row; `out` may be `x`.
    Softmax {
        /// Input.
        x: Buf,
        /// Result.
        out: Buf,
    },
    /// The rows of `x` that `Batch::outputs` names.
    SelectOutputs {
        /// Input, a row per token.
        x: Buf,
        /// Result, a row per output.
        out: Buf,
    },
}

/// How keys and values are kept in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvType {
    /// Half precision. The reference keeps `f32`.
    #[default]
    F16,
    /// 8-bit integers in blocks of 32 values along a head, each block with a half-precision scale: 53 % of the bytes of
    /// half precision. The rule is that of Q8_0 weights; heads must be a multiple of 32 long.
    Q8_0,
}

impl KvType {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F16, Self::Q8_0];

    /// The name that command lines and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Head lengths have to be a multiple of this.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => 32,
        }
    }
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Shape of the key/value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers that keep keys and values.
    pub layers: usize,
    /// Key/value heads per layer.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Pages of `PAGE_TOKENS` positions.
    pub pages: usize,
    /// How entries are kept.
    pub kv_type: KvType,
}

/// Calls and the memory that they need.
#[derive(Clone, Debug)]
pub struct Program {
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Most tokens in a batch.
    pub max_tokens: usize,
    /// Most outputs of a batch.
    pub max_outputs: usize,
    /// The cache, if a call uses one.
    pub kv: Option<KvShape>,
    /// Buffers that a caller fills with [`Executor::write`](crate::Executor::write) before a run.
    pub inputs: Vec<Buf>,
    /// The buffer that holds the result.
    pub output: Buf,
}

impl Program {
    /// Shows `see` where calls have their matrices; those that calls share come more than once.
    pub(crate) fn each_weight(&mut self, mut see: impl FnMut(&mut Arc<Matrix>)) {
        for call in &mut self.calls {
            match call {
                Call::Embed { table, .. } => see(table),
                Call::MatMul { projections, .. } => projections.iter_mut().for_each(|it| see(&mut it.weight)),
                Call::GatedMatMul { gate, up, .. } => [gate, up].into_iter().for_each(&mut see),
                _ => {}
            }
        }
    }
}
