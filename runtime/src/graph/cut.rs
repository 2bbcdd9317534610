//! Cuts a graph in two that run one after the other, on different devices: where a single value goes from what comes before
//! to what comes after.
//!
//! The residual stream of a transformer is such a value between two layers; nothing here knows of either.

use super::{Graph, Node, Op, Rows, ValueId, rewrite};

/// A place where a graph can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The one value that goes from the first part to the second: the last that the first part computes.
    pub value: ValueId,
    /// Attentions in the first part.
    pub attentions: usize,
}

/// All cuts of a graph, in order. Inputs of the caller belong to the first part, so it must be the only one to read them. The
/// value has a row per token, and is neither an input nor the result.
pub fn cuts(graph: &Graph) -> Vec<Cut> {
    let mut last_use: Vec<usize> = (0..graph.nodes.len()).collect();
    for (id, node) in graph.values() {
        node.op.inputs().iter().for_each(|input| last_use[input.0] = id.0);
    }
    last_use[graph.output.0] = graph.nodes.len();
    let (mut cuts, mut attentions) = (Vec::new(), 0);
    // The last use of any value before this one: while it lies ahead, that value goes over the cut too.
    let mut reach = 0;
    for (id, node) in graph.values() {
        attentions += usize::from(matches!(node.op, Op::Attention { .. }));
        let alone = reach <= id.0 && last_use[id.0] > id.0;
        if alone && node.shape.rows == Rows::Tokens && !matches!(node.op, Op::Input) && id != graph.output {
            cuts.push(Cut { value: id, attentions });
        }
        reach = reach.max(last_use[id.0]);
    }
    cuts
}

/// The two parts of a graph. The first gives the cut's value; the second takes it as its only input, under the same name.
/// Each part numbers the layers of its own cache from 0, in the order of the attentions.
///
/// # Panics
/// If `cut` is none of the graph's [`cuts`].
pub fn cut(graph: &Graph, cut: Cut) -> (Graph, Graph) {
    assert!(cuts(graph).contains(&cut), "{cut:?} is no cut of the graph");
    let at = cut.value.0;
    let first = Graph { nodes: graph.nodes[..=at].to_vec(), weights: graph.weights.clone(), output: cut.value };
    let node = graph.node(cut.value);
    let mut nodes = vec![Node { op: Op::Input, ..node.clone() }];
    // The value becomes number 0, and what follows counts on from there.
    nodes.extend(
        graph.nodes[at + 1..]
            .iter()
            .map(|node| Node { op: node.op.map_inputs(|input| ValueId(input.0 - at)), ..node.clone() }),
    );
    let second = Graph { nodes, weights: graph.weights.clone(), output: ValueId(graph.output.0 - at) };
    (part(first), part(second))
}

/// Drops what the part does not need and numbers its layers.
fn part(graph: Graph) -> Graph {
    let mut graph = rewrite::drop_unused(&graph);
    let mut layer = 0;
    for node in &mut graph.nodes {
        if let Op::Attention { attention, .. } = &mut node.op {
            attention.layer = layer;
            layer += 1;
        }
    }
    graph
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Attention, GraphBuilder, interpret::Interpreter, read_floats};
    use rustai_abi::{Batch, BatchSequence};

    /// Two layers around a residual stream, from an embedding to a row per output.
    fn model() -> Graph {
        let mut b = GraphBuilder::new();
        let values = |count: usize, seed: usize| (0..count).map(|i| ((i * 7 + seed) % 11) as f32 / 8.0 - 0.5).collect();
        let table = b.inline("table", &[4, 5], values(20, 1)).unwrap();
        let norm = b.inline("norm", &[4], values(4, 3)).unwrap();
        let mut x = b.embedding("embedding", table, 1.0).unwrap();
        for layer in 0..2 {
            let matrix = b.inline(&format!("m{layer}"), &[4, 4], values(16, layer)).unwrap();
            let n = b.rms_norm(format!("n{layer}"), x, norm, 1e-5).unwrap();
            let q = b.matmul(format!("q{layer}"), n, matrix, None).unwrap();
            let attention = Attention { layer, heads: 1, kv_heads: 1, head_dim: 4, scale: 0.5, window: None };
            let a = b.attention(format!("a{layer}"), q, n, n, attention).unwrap();
            let sum = b.add(format!("s{layer}"), x, a).unwrap();
            let f = b.matmul(format!("f{layer}"), sum, matrix, None).unwrap();
            x = b.add(format!("x{layer}"), sum, f).unwrap();
        }
        let x = b.select_outputs("outputs", x).unwrap();
        let x = b.matmul("logits", x, table, None).unwrap();
        b.finish(x).unwrap()
    }

    #[test]
    fn a_residual_stream_is_cut_between_its_sums() {
        let graph = model();
        let found: Vec<_> =
            cuts(&graph).iter().map(|cut| (graph.node(cut.value).name.clone(), cut.attentions)).collect();
        let expected = [("embedding", 0), ("s0", 1), ("x0", 1), ("s1", 2), ("x1", 2)];
        assert_eq!(found, expected.map(|(name, attentions)| (name.to_owned(), attentions)));
    }

    #[test]
    fn both_parts_together_compute_what_the_whole_does() {
        let graph = model();
        let sequences = [BatchSequence { len: 3, start: 0, pages: &[0] }];
        let batch = Batch { tokens: &[4, 1, 3], sequences: &sequences, outputs: &[0, 2] };
        let run = |graph: &Graph, inputs: &[Vec<f32>]| {
            Interpreter::new(graph, &(), &read_floats).unwrap().run(&batch, inputs).unwrap()
        };
        let whole = run(&graph, &[]);
        for place in cuts(&graph) {
            let (first, second) = cut(&graph, place);
            assert_eq!(second.inputs().count(), 1);
            let stream = run(&first, &[]);
            assert_eq!(stream.len(), 3 * 4);
            assert_eq!(run(&second, &[stream]), whole, "{place:?}");
        }
    }

    #[test]
    fn what_is_read_on_both_sides_is_no_cut() {
        let mut b = GraphBuilder::new();
        let x = b.input("x", Rows::Tokens, 2).unwrap();
        let y = b.silu("y", x).unwrap();
        let z = b.add("z", y, x).unwrap();
        let out = b.silu("out", z).unwrap();
        let graph = b.finish(out).unwrap();
        assert_eq!(cuts(&graph), [Cut { value: z, attentions: 0 }]);
    }
}
