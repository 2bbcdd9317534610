//! Values, operations and weights of a graph.

use rustai_abi::DType;
use std::{fmt, sync::Arc};

/// What the rows of a value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// One row per token of the batch.
    Tokens,
    /// One row per output that the batch asks for.
    Outputs,
}

/// Shape of an `f32` value: a symbolic number of rows, each `width` long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// What the rows are.
    pub rows: Rows,
    /// Values per row.
    pub width: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = match self.rows {
            Rows::Tokens => 'T',
            Rows::Outputs => 'O',
        };
        write!(f, "f32[{rows}, {}]", self.width)
    }
}

/// A value of a graph, which is also the node that computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) usize);

impl ValueId {
    /// Position in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0
    }
}

impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// A weight of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub(crate) usize);

impl WeightId {
    /// Position in [`Graph::weights`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// A constant tensor.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Name, under which a [`WeightSource`](super::WeightSource) knows it unless `inline` holds it.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, fastest first: `[cols, rows]` for a matrix, `[len]` for a vector.
    pub dims: Vec<usize>,
    /// The values, for small `F32` tensors that belong to the graph itself.
    pub inline: Option<Arc<[f32]>>,
}

impl Weight {
    /// Values in the tensor.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bytes of the tensor.
    pub fn bytes(&self) -> usize {
        // The builder has checked that the rows are whole blocks and that nothing overflows.
        self.dtype.bytes_for(self.elements()).unwrap_or(0)
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{:?}", self.name, self.dtype, self.dims)
    }
}

/// How RoPE pairs the values of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours `(2i, 2i + 1)`.
    Interleaved,
    /// `(i, i + n/2)`, `n` being the rotated values (GPT-NeoX).
    Neox,
}

/// Rotary position embedding (Su et al., 2021, arXiv 2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// How values are paired.
    pub style: RopeStyle,
    /// Radians per position for each pair; `2 * inv_freq.len()` leading values of each head are rotated.
    pub inv_freq: Arc<[f32]>,
    /// Factor on the rotated values (YaRN's attention factor; 1 without it).
    pub magnitude: f32,
}

/// Parameters of causal attention over the key/value cache of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Layer of the cache; no two nodes may share one.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token sees itself and the `window - 1` positions before it; without a window it sees all earlier ones.
    pub window: Option<u32>,
}

/// An operation. Operands are values of earlier nodes, so that the nodes of a graph are in topological order.
#[derive(Clone, Debug)]
pub enum Op {
    /// Values that the caller gives.
    Input,
    /// Rows of `table` for the batch's tokens, times `scale`.
    Embedding {
        /// `[width, vocabulary]`.
        table: WeightId,
        /// Factor on each value.
        scale: f32,
    },
    /// `x · Wᵀ + bias`.
    MatMul {
        /// Input.
        x: ValueId,
        /// `[inputs, outputs]`.
        weight: WeightId,
        /// `[outputs]`.
        bias: Option<WeightId>,
    },
    /// Root-mean-square normalization with a factor per column (Zhang and Sennrich, 2019, arXiv 1910.07467).
    RmsNorm {
        /// Input.
        x: ValueId,
        /// A factor per column.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
    },
    /// Rotates each head of `head_dim` values by its token's position.
    Rope {
        /// Input.
        x: ValueId,
        /// Values per head.
        head_dim: usize,
        /// The rotation.
        rope: Arc<Rope>,
    },
    /// Appends `k` and `v` to the cache, then attends to it.
    Attention {
        /// Queries, `heads * head_dim` wide.
        q: ValueId,
        /// Keys, `kv_heads * head_dim` wide.
        k: ValueId,
        /// Values, `kv_heads * head_dim` wide.
        v: ValueId,
        /// Heads, scale and window.
        attention: Attention,
    },
    /// Sum, element by element.
    Add {
        /// First operand.
        a: ValueId,
        /// Second operand.
        b: ValueId,
    },
    /// Product, element by element.
    Mul {
        /// First operand.
        a: ValueId,
        /// Second operand.
        b: ValueId,
    },
    /// `x * sigmoid(x)`.
    Silu {
        /// Input.
        x: ValueId,
    },
    /// Softmax over each row.
    Softmax {
        /// Input.
        x: ValueId,
    },
    /// The rows that the batch wants as outputs.
    SelectOutputs {
        /// Input, a row per token.
        x: ValueId,
    },
}

impl Op {
    /// The operation's name in drawings and errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Embedding { .. } => "embedding",
            Self::MatMul { .. } => "matmul",
            Self::RmsNorm { .. } => "rms_norm",
            Self::Rope { .. } => "rope",
            Self::Attention { .. } => "attention",
            Self::Add { .. } => "add",
            Self::Mul { .. } => "mul",
            Self::Silu { .. } => "silu",
            Self::Softmax { .. } => "softmax",
            Self::SelectOutputs { .. } => "select_outputs",
        }
    }

    /// The values that the operation reads, in the order of its operands.
    pub fn inputs(&self) -> Vec<ValueId> {
        match *self {
            Self::Input | Self::Embedding { .. } => Vec::new(),
            Self::MatMul { x, .. }
            | Self::RmsNorm { x, .. }
            | Self::Rope { x, .. }
            | Self::Silu { x }
            | Self::Softmax { x }
            | Self::SelectOutputs { x } => vec![x],
            Self::Attention { q, k, v, .. } => vec![q, k, v],
            Self::Add { a, b } | Self::Mul { a, b } => vec![a, b],
        }
    }

    /// The weights that the operation reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match *self {
            Self::Embedding { table, .. } => vec![table],
            Self::MatMul { weight, bias, .. } => std::iter::once(weight).chain(bias).collect(),
            Self::RmsNorm { weight, .. } => vec![weight],
            _ => Vec::new(),
        }
    }

    /// Whether each row of the result depends on the same row of the operands alone, and not on its position.
    pub fn is_row_wise(&self) -> bool {
        match self {
            Self::MatMul { .. }
            | Self::RmsNorm { .. }
            | Self::Add { .. }
            | Self::Mul { .. }
            | Self::Silu { .. }
            | Self::Softmax { .. } => true,
            Self::Input
            | Self::Embedding { .. }
            | Self::Rope { .. }
            | Self::Attention { .. }
            | Self::SelectOutputs { .. } => false,
        }
    }

    /// The same operation on other values.
    pub(crate) fn map_inputs(&self, mut map: impl FnMut(ValueId) -> ValueId) -> Self {
        let mut op = self.clone();
        match &mut op {
            Self::Input | Self::Embedding { .. } => {}
            Self::MatMul { x, .. }
            | Self::RmsNorm { x, .. }
            | Self::Rope { x, .. }
            | Self::Silu { x }
            | Self::Softmax { x }
            | Self::SelectOutputs { x } => *x = map(*x),
            Self::Attention { q, k, v, .. } => {
                *q = map(*q);
                *k = map(*k);
                *v = map(*v);
            }
            Self::Add { a, b } | Self::Mul { a, b } => {
                *a = map(*a);
                *b = map(*b);
            }
        }
        op
    }
}

/// An operation with its name and the shape of its result.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name for people, such as `blk.0.attn_q`.
    pub name: String,
    /// What is computed.
    pub op: Op,
    /// Shape of the result.
    pub shape: Shape,
}

/// A checked graph with one result.
#[derive(Clone, Debug)]
pub struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) weights: Vec<Weight>,
    pub(super) output: ValueId,
}

impl Graph {
    /// The nodes, operands before users.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The weights.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// The result.
    pub fn output(&self) -> ValueId {
        self.output
    }

    /// The node that computes a value.
    ///
    /// # Panics
    /// If `value` comes from another graph.
    pub fn node(&self, value: ValueId) -> &Node {
        &self.nodes[value.0]
    }

    /// A weight.
    ///
    /// # Panics
    /// If `weight` comes from another graph.
    pub fn weight(&self, weight: WeightId) -> &Weight {
        &self.weights[weight.0]
    }

    /// Identifiers and nodes, operands before users.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = (ValueId, &Node)> {
        self.nodes.iter().enumerate().map(|(index, node)| (ValueId(index), node))
    }

    /// The caller's inputs, in the order in which they were declared.
    pub fn inputs(&self) -> impl Iterator<Item = (ValueId, &Node)> {
        self.values().filter(|(_, node)| matches!(node.op, Op::Input))
    }

    /// For each value, the nodes that read it, in order; a node that reads it twice is listed twice.
    pub(crate) fn users(&self) -> Vec<Vec<ValueId>> {
        let mut users = vec![Vec::new(); self.nodes.len()];
        for (id, node) in self.values() {
            for input in node.op.inputs() {
                users[input.0].push(id);
            }
        }
        users
    }
}
