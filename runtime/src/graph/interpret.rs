//! A slow, plain interpreter: what a graph means, for tests to compare with.
//!
//! Every operation is a loop over `f32` weights with sums in `f64`. The cache keeps `f32` values. Nothing here is tuned
//! and nothing may be: this is what the executables are checked against.

use super::{Attention, Graph, Op, Rope, RopeStyle, Rows, ValueId, Weight, WeightId, WeightSource};
use rustai_abi::{Batch, DType, PAGE_TOKENS};
use std::collections::HashMap;

/// Why a graph cannot be interpreted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InterpretError {
    /// The source does not hold a weight, or holds it in a form that cannot be read.
    #[error("weight {0} cannot be read as {1} values")]
    Weight(String, usize),
    /// A batch, an input or a token that does not fit.
    #[error("{0}")]
    Batch(String),
}

/// Reads `count` values of a type; `None` if it cannot. [`read_floats`](super::read_floats) will do where no weight is quantized.
pub type Dequantize<'a> = dyn Fn(DType, &[u8], usize) -> Option<Vec<f32>> + 'a;

/// A graph with dequantized weights and an unbounded cache.
pub struct Interpreter<'a> {
    graph: &'a Graph,
    weights: Vec<Vec<f32>>,
    /// Key and value of a layer at a position of a page.
    cache: HashMap<(usize, usize), (Vec<f32>, Vec<f32>)>,
}

impl<'a> Interpreter<'a> {
    /// Reads all weights of `graph` with `dequantize`.
    ///
    /// # Errors
    /// [`InterpretError::Weight`] if one cannot be read.
    pub fn new(
        graph: &'a Graph,
        source: &dyn WeightSource,
        dequantize: &Dequantize<'_>,
    ) -> Result<Self, InterpretError> {
        let read = |weight: &Weight| {
            let values = match &weight.inline {
                Some(values) => Some(values.to_vec()),
                None => {
                    source.bytes(&weight.name).and_then(|bytes| dequantize(weight.dtype, &bytes, weight.elements()))
                }
            };
            values
                .filter(|values| values.len() == weight.elements())
                .ok_or_else(|| InterpretError::Weight(weight.to_string(), weight.elements()))
        };
        let weights = graph.weights().iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { graph, weights, cache: HashMap::new() })
    }

    /// Runs the graph on a batch; `inputs` are row-major, in the order in which the graph declares its inputs.
    ///
    /// # Errors
    /// [`InterpretError::Batch`] if the batch or an input is malformed.
    pub fn run(&mut self, batch: &Batch<'_>, inputs: &[Vec<f32>]) -> Result<Vec<f32>, InterpretError> {
        let graph = self.graph;
        let slots = slots(batch)?;
        let mut values = Vec::<Vec<f32>>::with_capacity(graph.nodes().len());
        let mut given = inputs.iter();
        for (_, node) in graph.values() {
            let width = node.shape.width;
            let of = |id: ValueId| &values[id.0][..];
            let weight = |id: WeightId| &self.weights[id.0][..];
            let value: Vec<f32> = match &node.op {
                Op::Input => {
                    let rows = match node.shape.rows {
                        Rows::Tokens => batch.tokens.len(),
                        Rows::Outputs => batch.outputs.len(),
                    };
                    let fits = |values: &&Vec<f32>| values.len() == rows * width;
                    given.next().filter(fits).cloned().ok_or_else(|| {
                        InterpretError::Batch(format!("input {} needs {rows} rows of {width} values", node.name))
                    })?
                }
                Op::Embedding { table, scale } => {
                    let mut out = Vec::with_capacity(batch.tokens.len() * width);
                    for &token in batch.tokens {
                        let row = weight(*table).chunks_exact(width).nth(token as usize);
                        let row = row.ok_or_else(|| InterpretError::Batch(format!("token {token} does not exist")))?;
                        out.extend(row.iter().map(|value| value * scale));
                    }
                    out
                }
                Op::MatMul { x, weight: matrix, bias } => {
                    let bias = bias.map(weight);
                    matmul(of(*x), weight(*matrix), graph.node(*x).shape.width, bias)
                }
                Op::RmsNorm { x, weight: factors, eps } => rms_norm(of(*x), weight(*factors), *eps),
                Op::Rope { x, head_dim, rope } => {
                    let mut out = of(*x).to_vec();
                    for (row, slot) in out.chunks_exact_mut(width).zip(&slots) {
                        row.chunks_exact_mut(*head_dim).for_each(|head| rotate(head, rope, slot.position));
                    }
                    out
                }
                Op::Attention { q, k, v, attention } => {
                    let cached = attention.kv_heads * attention.head_dim;
                    let rows = of(*k).chunks_exact(cached).zip(of(*v).chunks_exact(cached));
                    for ((key, value), slot) in rows.zip(&slots) {
                        let place = (attention.layer, slot.cell);
                        self.cache.insert(place, (key.to_vec(), value.to_vec()));
                    }
                    let queries = of(*q).chunks_exact(width).zip(&slots);
                    queries.flat_map(|(query, slot)| attend(query, attention, slot, batch, &self.cache)).collect()
                }
                Op::Add { a, b } => of(*a).iter().zip(of(*b)).map(|(a, b)| a + b).collect(),
                Op::Mul { a, b } => of(*a).iter().zip(of(*b)).map(|(a, b)| a * b).collect(),
                Op::Silu { x } => of(*x).iter().map(|&x| (f64::from(x) / (1.0 + f64::from(-x).exp())) as f32).collect(),
                Op::Softmax { x } => of(*x).chunks_exact(width).flat_map(softmax).collect(),
                Op::SelectOutputs { x } => {
                    let rows = batch.outputs.iter().map(|&row| of(*x).chunks_exact(width).nth(row as usize));
                    let rows = rows.collect::<Option<Vec<_>>>();
                    rows.ok_or_else(|| InterpretError::Batch("an output names no token".into()))?.concat()
                }
            };
            values.push(value);
        }
        Ok(values.swap_remove(graph.output().0))
    }
}

/// Where a token of the batch stands.
struct Slot {
    sequence: usize,
    position: usize,
    /// Number of its cell in the cache.
    cell: usize,
}

fn cell(pages: &[u32], position: usize) -> Option<usize> {
    pages.get(position / PAGE_TOKENS).map(|&page| page as usize * PAGE_TOKENS + position % PAGE_TOKENS)
}

fn slots(batch: &Batch<'_>) -> Result<Vec<Slot>, InterpretError> {
    let mut slots = Vec::new();
    for (sequence, part) in batch.sequences.iter().enumerate() {
        for position in part.start as usize..(part.start + part.len) as usize {
            let cell = cell(part.pages, position)
                .ok_or_else(|| InterpretError::Batch(format!("no page holds position {position}")))?;
            slots.push(Slot { sequence, position, cell });
        }
    }
    if slots.len() != batch.tokens.len() {
        let (tokens, sequences) = (batch.tokens.len(), slots.len());
        return Err(InterpretError::Batch(format!("{tokens} tokens in sequences of {sequences}")));
    }
    Ok(slots)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn matmul(x: &[f32], matrix: &[f32], cols: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = Vec::new();
    for row in x.chunks_exact(cols) {
        for (index, weights) in matrix.chunks_exact(cols).enumerate() {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[index]));
            out.push((dot(row, weights) + bias) as f32);
        }
    }
    out
}

fn rms_norm(x: &[f32], factors: &[f32], eps: f32) -> Vec<f32> {
    let rows = x.chunks_exact(factors.len());
    rows.flat_map(|row| {
        let scale = 1.0 / (dot(row, row) / row.len() as f64 + f64::from(eps)).sqrt();
        row.iter().zip(factors).map(move |(x, factor)| (f64::from(*x) * scale * f64::from(*factor)) as f32)
    })
    .collect()
}

fn rotate(head: &mut [f32], rope: &Rope, position: usize) {
    let pairs = rope.inv_freq.len();
    for (pair, frequency) in rope.inv_freq.iter().enumerate() {
        let (first, second) = match rope.style {
            RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
            RopeStyle::Neox => (pair, pair + pairs),
        };
        let (sin, cos) = (position as f64 * f64::from(*frequency)).sin_cos();
        let (a, b) = (f64::from(head[first]), f64::from(head[second]));
        let magnitude = f64::from(rope.magnitude);
        head[first] = ((a * cos - b * sin) * magnitude) as f32;
        head[second] = ((a * sin + b * cos) * magnitude) as f32;
    }
}

fn softmax(row: &[f32]) -> Vec<f32> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = row.iter().map(|x| f64::from(x - max).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| (power / sum) as f32).collect()
}

fn attend(
    query: &[f32],
    attention: &Attention,
    slot: &Slot,
    batch: &Batch<'_>,
    cache: &HashMap<(usize, usize), (Vec<f32>, Vec<f32>)>,
) -> Vec<f32> {
    let &Attention { layer, heads, kv_heads, head_dim, scale, window } = attention;
    let first = window.map_or(0, |window| (slot.position + 1).saturating_sub(window as usize));
    let seen: Vec<_> = (first..=slot.position)
        .filter_map(|position| cell(batch.sequences[slot.sequence].pages, position))
        .filter_map(|cell| cache.get(&(layer, cell)))
        .collect();
    let mut out = Vec::with_capacity(query.len());
    for (index, query) in query.chunks_exact(head_dim).enumerate() {
        let range = index / (heads / kv_heads) * head_dim..(index / (heads / kv_heads) + 1) * head_dim;
        let scores: Vec<f32> =
            seen.iter().map(|(key, _)| (dot(query, &key[range.clone()]) * f64::from(scale)) as f32).collect();
        let weights = softmax(&scores);
        for column in range {
            let sum: f64 = weights
                .iter()
                .zip(&seen)
                .map(|(weight, (_, value))| f64::from(*weight) * f64::from(value[column]))
                .sum();
            out.push(sum as f32);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{GraphBuilder, read_floats, rewrite};
    use rustai_abi::BatchSequence;
    use std::sync::Arc;

    fn tiny() -> Graph {
        let mut b = GraphBuilder::new();
        let mut seed = 1u32;
        let mut values = |n: usize| {
            let next = |_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            (0..n).map(next).collect::<Vec<f32>>()
        };
        let table = b.inline("table", &[8, 11], values(88)).unwrap();
        let norm = b.inline("norm", &[8], values(8)).unwrap();
        let kv = b.inline("kv", &[8, 4], values(32)).unwrap();
        let square = b.inline("square", &[8, 8], values(64)).unwrap();
        let rope = Arc::new(Rope { style: RopeStyle::Interleaved, inv_freq: vec![1.0, 0.1].into(), magnitude: 1.0 });
        let mut x = b.embedding("embd", table, 1.0).unwrap();
        for layer in 0..2 {
            let n = b.rms_norm("norm", x, norm, 1e-5).unwrap();
            let q = b.matmul("q", n, square, None).unwrap();
            let k = b.matmul("k", n, kv, None).unwrap();
            let v = b.matmul("v", n, kv, None).unwrap();
            let q = b.rope("q.rope", q, 4, rope.clone()).unwrap();
            let k = b.rope("k.rope", k, 4, rope.clone()).unwrap();
            let attention = Attention { layer, heads: 2, kv_heads: 1, head_dim: 4, scale: 0.5, window: None };
            let a = b.attention("a", q, k, v, attention).unwrap();
            let o = b.matmul("o", a, square, None).unwrap();
            x = b.add("sum", x, o).unwrap();
        }
        let x = b.select_outputs("sel", x).unwrap();
        let x = b.matmul("out", x, table, None).unwrap();
        b.finish(x).unwrap()
    }

    #[test]
    fn token_by_token_equals_all_at_once_and_hoisting_changes_nothing() {
        let graph = tiny();
        let hoisted = rewrite::hoist_select_outputs(&graph);
        let tokens = [3u32, 1, 4, 1, 5, 9];
        let mut whole = Interpreter::new(&graph, &(), &read_floats).unwrap();
        let mut steps = Interpreter::new(&hoisted, &(), &read_floats).unwrap();
        let sequence = |start, len| BatchSequence { start, len, pages: &[7] };
        let all = Batch { tokens: &tokens, sequences: &[sequence(0, 6)], outputs: &[4, 5] };
        let expected = whole.run(&all, &[]).unwrap();
        let mut last = Vec::new();
        for (index, token) in tokens.iter().enumerate() {
            let batch = Batch { tokens: &[*token], sequences: &[sequence(index as u32, 1)], outputs: &[0] };
            last.push(steps.run(&batch, &[]).unwrap());
        }
        assert_eq!(expected[..11], last[4]);
        assert_eq!(expected[11..], last[5]);
        assert!(expected.iter().any(|logit| logit.abs() > 1e-3));
    }

    #[test]
    fn a_window_of_one_sees_itself_only() {
        let mut b = GraphBuilder::new();
        let x = b.input("x", Rows::Tokens, 2).unwrap();
        let attention = Attention { layer: 0, heads: 1, kv_heads: 1, head_dim: 2, scale: 1.0, window: Some(1) };
        let a = b.attention("a", x, x, x, attention).unwrap();
        let graph = b.finish(a).unwrap();
        let mut interpreter = Interpreter::new(&graph, &(), &read_floats).unwrap();
        let sequences = [BatchSequence { start: 0, len: 3, pages: &[0] }];
        let batch = Batch { tokens: &[0; 3], sequences: &sequences, outputs: &[] };
        let x = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(interpreter.run(&batch, std::slice::from_ref(&x)).unwrap(), x);
        assert!(interpreter.run(&batch, &[]).is_err());
    }
}
