//! Builds graphs, and checks every shape on the way.

use super::{
    Graph, GraphError, Node, Op, Rows, Shape, ValueId, Weight, WeightId,
    ir::{Attention, Rope},
};
use rustai_abi::DType;
use std::{collections::HashMap, sync::Arc};

/// Makes a [`Graph`] node by node. Each method returns the value that the new node computes.
///
/// Every method refuses operands of wrong shape with a [`GraphError`] that names the node, the operation and both
/// shapes, so a graph that was built is sound.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    nodes: Vec<Node>,
    weights: Vec<Weight>,
    by_name: HashMap<String, WeightId>,
}

impl GraphBuilder {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a weight that the source holds under `name`. Declaring it again gives the same identifier.
    ///
    /// # Errors
    /// If the dimensions are empty, zero or absurd, if rows are no whole number of blocks, or if the name was
    /// declared before with another type or shape.
    pub fn weight(&mut self, name: &str, dtype: DType, dims: &[usize]) -> Result<WeightId, GraphError> {
        self.declare(Weight { name: name.to_owned(), dtype, dims: dims.to_vec(), inline: None })
    }

    /// Declares a small `f32` weight with its values; `dims` are fastest first, `values` row-major.
    ///
    /// # Errors
    /// As [`weight`](Self::weight), and if there are not as many values as `dims` says.
    pub fn inline(&mut self, name: &str, dims: &[usize], values: Vec<f32>) -> Result<WeightId, GraphError> {
        let expected = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if expected != Some(values.len()) {
            let reason = format!("{} values were given for dimensions {dims:?}", values.len());
            return Err(GraphError::Weight { weight: name.to_owned(), reason });
        }
        if self.by_name.contains_key(name) {
            let reason = "the name is taken; inline weights need names of their own".to_owned();
            return Err(GraphError::Weight { weight: name.to_owned(), reason });
        }
        self.declare(Weight {
            name: name.to_owned(),
            dtype: DType::F32,
            dims: dims.to_vec(),
            inline: Some(values.into()),
        })
    }

    /// Values that the caller gives before each run.
    ///
    /// # Errors
    /// If `width` is 0.
    pub fn input(&mut self, name: impl Into<String>, rows: Rows, width: usize) -> Result<ValueId, GraphError> {
        let name = name.into();
        if width == 0 {
            return Err(parameter(&name, &Op::Input, "a width of 0".into()));
        }
        Ok(self.push(name, Op::Input, Shape { rows, width }))
    }

    /// Rows of `table` (`[width, vocabulary]`) for the batch's tokens, times `scale`.
    ///
    /// # Errors
    /// If `table` is not a matrix.
    pub fn embedding(&mut self, name: impl Into<String>, table: WeightId, scale: f32) -> Result<ValueId, GraphError> {
        let (name, op) = (name.into(), Op::Embedding { table, scale });
        let weight = self.weight_of(&name, table)?;
        let &[width, _] = &weight.dims[..] else {
            return Err(shape(&name, &op, "token numbers", weight, "the table must be a matrix"));
        };
        Ok(self.push(name, op, Shape { rows: Rows::Tokens, width }))
    }

    /// `x · Wᵀ + bias` with `weight` of `[width of x, outputs]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn matmul(
        &mut self,
        name: impl Into<String>,
        x: ValueId,
        weight: WeightId,
        bias: Option<WeightId>,
    ) -> Result<ValueId, GraphError> {
        let (name, op) = (name.into(), Op::MatMul { x, weight, bias });
        let input = self.shape_of(&name, x)?;
        let matrix = self.weight_of(&name, weight)?;
        let &[cols, rows] = &matrix.dims[..] else {
            return Err(shape(&name, &op, self.value(x), matrix, "the weight must be a matrix"));
        };
        if cols != input.width {
            return Err(shape(&name, &op, self.value(x), matrix, "the weight's first dimension is the input's width"));
        }
        if let Some(bias) = bias {
            let bias = self.weight_of(&name, bias)?;
            if bias.dims[..] != [rows] {
                return Err(shape(&name, &op, matrix, bias, "the bias has one value per output"));
            }
        }
        Ok(self.push(name, op, Shape { width: rows, ..input }))
    }

    /// Root-mean-square normalization with one factor per column.
    ///
    /// # Errors
    /// If `weight` is no vector of `x`'s width, or `eps` is negative or no number.
    pub fn rms_norm(
        &mut self,
        name: impl Into<String>,
        x: ValueId,
        weight: WeightId,
        eps: f32,
    ) -> Result<ValueId, GraphError> {
        let (name, op) = (name.into(), Op::RmsNorm { x, weight, eps });
        let input = self.shape_of(&name, x)?;
        let factors = self.weight_of(&name, weight)?;
        if factors.dims[..] != [input.width] {
            return Err(shape(&name, &op, self.value(x), factors, "the weight has one value per column"));
        }
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(parameter(&name, &op, format!("an epsilon of {eps}")));
        }
        Ok(self.push(name, op, input))
    }

    /// Rotates each head of `head_dim` values by its token's position.
    ///
    /// # Errors
    /// If `x` is no whole number of heads, has no row per token, or the rotation is longer than a head.
    pub fn rope(
        &mut self,
        name: impl Into<String>,
        x: ValueId,
        head_dim: usize,
        rope: Arc<Rope>,
    ) -> Result<ValueId, GraphError> {
        let (name, pairs) = (name.into(), rope.inv_freq.len());
        let op = Op::Rope { x, head_dim, rope };
        let input = self.shape_of(&name, x)?;
        if head_dim == 0 || !input.width.is_multiple_of(head_dim) {
            return Err(parameter(&name, &op, format!("heads of {head_dim} in a row of {}", input.width)));
        }
        if pairs > head_dim / 2 {
            return Err(parameter(&name, &op, format!("{pairs} rotated pairs in heads of {head_dim}")));
        }
        self.needs_tokens(&name, &op, x)?;
        Ok(self.push(name, op, input))
    }

    /// Appends `k` and `v` to the cache of a layer and lets `q` attend to it, causally.
    ///
    /// # Errors
    /// If the widths are not heads times head dimension, heads do not divide into key/value heads, a row is not a
    /// token, or another node has the layer.
    pub fn attention(
        &mut self,
        name: impl Into<String>,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        attention: Attention,
    ) -> Result<ValueId, GraphError> {
        let (name, op) = (name.into(), Op::Attention { q, k, v, attention });
        let Attention { layer, heads, kv_heads, head_dim, scale, window } = attention;
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(parameter(&name, &op, format!("{heads} heads over {kv_heads} key/value heads")));
        }
        if !scale.is_finite() || window == Some(0) {
            return Err(parameter(&name, &op, format!("a scale of {scale} with window {window:?}")));
        }
        for (operand, count) in [(q, heads), (k, kv_heads), (v, kv_heads)] {
            let input = self.shape_of(&name, operand)?;
            if head_dim == 0 || count.checked_mul(head_dim) != Some(input.width) {
                let heads = format!("{count} heads of {head_dim}");
                return Err(shape(&name, &op, self.value(operand), heads, "the width is heads times head dimension"));
            }
            self.needs_tokens(&name, &op, operand)?;
        }
        if let Some(other) = self
            .nodes
            .iter()
            .find(|node| matches!(&node.op, Op::Attention { attention, .. } if attention.layer == layer))
        {
            return Err(parameter(&name, &op, format!("cache layer {layer}, which {} has", other.name)));
        }
        let input = self.shape_of(&name, q)?;
        Ok(self.push(name, op, input))
    }

    /// Sum of two values of one shape.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn add(&mut self, name: impl Into<String>, a: ValueId, b: ValueId) -> Result<ValueId, GraphError> {
        self.binary(name.into(), a, b, Op::Add { a, b })
    }

    /// Product of two values of one shape, element by element.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn mul(&mut self, name: impl Into<String>, a: ValueId, b: ValueId) -> Result<ValueId, GraphError> {
        self.binary(name.into(), a, b, Op::Mul { a, b })
    }

    /// `x * sigmoid(x)`.
    ///
    /// # Errors
    /// If `x` is of another graph.
    pub fn silu(&mut self, name: impl Into<String>, x: ValueId) -> Result<ValueId, GraphError> {
        let name = name.into();
        let input = self.shape_of(&name, x)?;
        Ok(self.push(name, Op::Silu { x }, input))
    }

    /// Softmax over each row.
    ///
    /// # Errors
    /// If `x` is of another graph.
    pub fn softmax(&mut self, name: impl Into<String>, x: ValueId) -> Result<ValueId, GraphError> {
        let name = name.into();
        let input = self.shape_of(&name, x)?;
        Ok(self.push(name, Op::Softmax { x }, input))
    }

    /// The rows of `x` that the batch wants as outputs.
    ///
    /// # Errors
    /// If `x` has no row per token.
    pub fn select_outputs(&mut self, name: impl Into<String>, x: ValueId) -> Result<ValueId, GraphError> {
        let (name, op) = (name.into(), Op::SelectOutputs { x });
        let input = self.shape_of(&name, x)?;
        self.needs_tokens(&name, &op, x)?;
        Ok(self.push(name, op, Shape { rows: Rows::Outputs, ..input }))
    }

    /// Type and shape of a value that was built.
    ///
    /// # Errors
    /// If `value` is of another graph.
    pub fn shape(&self, value: ValueId) -> Result<Shape, GraphError> {
        self.shape_of("shape", value)
    }

    /// The finished graph, whose result is `output`.
    ///
    /// # Errors
    /// If `output` is of another graph.
    pub fn finish(self, output: ValueId) -> Result<Graph, GraphError> {
        self.shape_of("output", output)?;
        Ok(Graph { nodes: self.nodes, weights: self.weights, output })
    }

    fn declare(&mut self, weight: Weight) -> Result<WeightId, GraphError> {
        let fail = |reason: String| Err(GraphError::Weight { weight: weight.name.clone(), reason });
        if weight.dims.is_empty() || weight.dims.contains(&0) {
            return fail(format!("dimensions {:?} hold nothing", weight.dims));
        }
        if !weight.dims[0].is_multiple_of(weight.dtype.block_len()) {
            let block = weight.dtype.block_len();
            return fail(format!(
                "rows of {} are no whole number of {}'s blocks of {block}",
                weight.dims[0], weight.dtype
            ));
        }
        // Kernels count bytes of `f32` copies, so these must fit as well.
        let elements = weight.dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if elements.and_then(|n| n.checked_mul(16)).is_none_or(|bytes| bytes > isize::MAX as usize) {
            return fail(format!("dimensions {:?} are too large", weight.dims));
        }
        if let Some(&id) = self.by_name.get(&weight.name) {
            let known = &self.weights[id.0];
            if (known.dtype, &known.dims) != (weight.dtype, &weight.dims) || known.inline.is_some() {
                return fail(format!("declared as {weight} and before as {known}"));
            }
            return Ok(id);
        }
        let id = WeightId(self.weights.len());
        self.by_name.insert(weight.name.clone(), id);
        self.weights.push(weight);
        Ok(id)
    }

    fn binary(&mut self, name: String, a: ValueId, b: ValueId, op: Op) -> Result<ValueId, GraphError> {
        let (left, right) = (self.shape_of(&name, a)?, self.shape_of(&name, b)?);
        if left != right {
            return Err(shape(&name, &op, self.value(a), self.value(b), "both operands have one shape"));
        }
        Ok(self.push(name, op, left))
    }

    fn push(&mut self, name: String, op: Op, shape: Shape) -> ValueId {
        self.nodes.push(Node { name, op, shape });
        ValueId(self.nodes.len() - 1)
    }

    fn needs_tokens(&self, name: &str, op: &Op, x: ValueId) -> Result<(), GraphError> {
        match self.nodes[x.0].shape.rows {
            Rows::Tokens => Ok(()),
            Rows::Outputs => {
                Err(parameter(name, op, format!("{}, whose rows are outputs and not tokens", self.value(x))))
            }
        }
    }

    fn shape_of(&self, node: &str, value: ValueId) -> Result<Shape, GraphError> {
        let foreign = || GraphError::Foreign { node: node.to_owned(), id: format!("value {value}") };
        self.nodes.get(value.0).map(|node| node.shape).ok_or_else(foreign)
    }

    fn weight_of(&self, node: &str, id: WeightId) -> Result<&Weight, GraphError> {
        let foreign = || GraphError::Foreign { node: node.to_owned(), id: format!("weight number {}", id.0) };
        self.weights.get(id.0).ok_or_else(foreign)
    }

    fn value(&self, value: ValueId) -> String {
        let node = &self.nodes[value.0];
        format!("{} {}", node.name, node.shape)
    }
}

fn shape(node: &str, op: &Op, left: impl ToString, right: impl ToString, rule: &'static str) -> GraphError {
    GraphError::Shape { node: node.to_owned(), op: op.name(), left: left.to_string(), right: right.to_string(), rule }
}

fn parameter(node: &str, op: &Op, what: String) -> GraphError {
    GraphError::Parameter { node: node.to_owned(), op: op.name(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_of_wrong_width_names_node_op_and_both_shapes() {
        let mut b = GraphBuilder::new();
        let x = b.input("x", Rows::Tokens, 8).unwrap();
        let w = b.weight("blk.0.attn_q.weight", DType::F16, &[6, 4]).unwrap();
        let error = b.matmul("blk.0.attn_q", x, w, None).unwrap_err().to_string();
        for part in ["blk.0.attn_q", "matmul", "f32[T, 8]", "blk.0.attn_q.weight F16[6, 4]"] {
            assert!(error.contains(part), "{part} is missing from: {error}");
        }
    }

    #[test]
    fn each_operation_refuses_what_does_not_fit() {
        let mut b = GraphBuilder::new();
        let x = b.input("x", Rows::Tokens, 8).unwrap();
        let y = b.input("y", Rows::Tokens, 4).unwrap();
        let o = b.select_outputs("o", x).unwrap();
        let vector = b.inline("v", &[4], vec![0.0; 4]).unwrap();
        let matrix = b.inline("m", &[8, 2], vec![0.0; 16]).unwrap();
        let attention = Attention { layer: 0, heads: 2, kv_heads: 1, head_dim: 4, scale: 0.5, window: None };
        let rope = Arc::new(Rope { style: RopeStyle::Neox, inv_freq: vec![1.0; 3].into(), magnitude: 1.0 });
        assert!(b.input("z", Rows::Tokens, 0).is_err());
        assert!(b.embedding("e", vector, 1.0).is_err());
        assert!(b.matmul("m", x, vector, None).is_err());
        assert!(b.matmul("m", x, matrix, Some(vector)).is_err());
        assert!(b.rms_norm("n", x, vector, 1e-5).is_err());
        assert!(b.rms_norm("n", y, vector, f32::NAN).is_err());
        assert!(b.rope("r", x, 3, rope.clone()).is_err(), "8 is no multiple of 3");
        assert!(b.rope("r", x, 4, rope.clone()).is_err(), "three pairs are more than a head of four");
        assert!(b.rope("r", o, 8, rope).is_err(), "outputs have no position");
        assert!(b.attention("a", y, y, y, attention).is_err());
        assert!(b.attention("a", o, y, y, attention).is_err());
        assert!(b.attention("a", x, y, y, Attention { window: Some(0), ..attention }).is_err());
        assert!(b.attention("a", x, y, y, attention).is_ok());
        assert!(b.attention("b", x, y, y, attention).is_err(), "the cache layer is taken");
        assert!(b.add("s", x, y).is_err());
        assert!(b.mul("s", x, o).is_err());
        assert!(b.select_outputs("o", o).is_err());
        assert!(b.finish(ValueId(99)).is_err());
    }

    #[test]
    fn weights_are_checked_and_shared_by_name() {
        let mut b = GraphBuilder::new();
        let first = b.weight("w", DType::Q4_0, &[64, 2]).unwrap();
        assert_eq!(b.weight("w", DType::Q4_0, &[64, 2]).unwrap(), first);
        assert!(b.weight("w", DType::Q8_0, &[64, 2]).is_err());
        assert!(b.weight("half", DType::Q4_0, &[48, 2]).is_err());
        assert!(b.weight("none", DType::F32, &[0, 2]).is_err());
        assert!(b.weight("huge", DType::F32, &[usize::MAX / 2, 3]).is_err());
        assert!(b.inline("w", &[1], vec![0.0]).is_err());
        assert!(b.inline("short", &[2], vec![0.0]).is_err());
    }

    use crate::graph::RopeStyle;
}
