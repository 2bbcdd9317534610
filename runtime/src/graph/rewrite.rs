//! Rewrites of graphs that pay on every backend: same result, less work.

use super::{Graph, Node, Op, Rows, Shape, ValueId, Weight, WeightId};
use std::collections::HashMap;

/// Drops the nodes and weights that the result does not need. Inputs stay, so that callers find them.
pub fn drop_unused(graph: &Graph) -> Graph {
    let mut needed = vec![false; graph.nodes.len()];
    needed[graph.output.0] = true;
    for (id, node) in graph.values().rev() {
        if needed[id.0] {
            node.op.inputs().iter().for_each(|input| needed[input.0] = true);
        }
    }
    let mut weights = Vec::<Weight>::new();
    let mut weight_ids = HashMap::new();
    let mut nodes = Vec::<Node>::new();
    let mut ids = vec![ValueId(usize::MAX); graph.nodes.len()];
    for (id, node) in graph.values() {
        if !needed[id.0] && !matches!(node.op, Op::Input) {
            continue;
        }
        let mut op = node.op.map_inputs(|input| ids[input.0]);
        let mut keep = |id: &mut WeightId| {
            *id = *weight_ids.entry(*id).or_insert_with(|| {
                weights.push(graph.weight(*id).clone());
                WeightId(weights.len() - 1)
            });
        };
        match &mut op {
            Op::Embedding { table, .. } => keep(table),
            Op::MatMul { weight, bias, .. } => {
                keep(weight);
                bias.iter_mut().for_each(keep);
            }
            Op::RmsNorm { weight, .. } => keep(weight),
            _ => {}
        }
        ids[id.0] = ValueId(nodes.len());
        nodes.push(Node { op, ..node.clone() });
    }
    Graph { nodes, weights, output: ids[graph.output.0] }
}

/// Moves each [`Op::SelectOutputs`] up through row-wise operations to where the tokens' rows are last needed, so that
/// what follows the last attention is computed for the wanted rows only.
///
/// During the prefill of a prompt that is one row out of hundreds.
pub fn hoist_select_outputs(graph: &Graph) -> Graph {
    let mut hoist = Hoist {
        graph,
        full: rows_needed_in_full(graph),
        nodes: Vec::with_capacity(graph.nodes.len() + 2),
        kept: vec![None; graph.nodes.len()],
        selected: vec![None; graph.nodes.len()],
    };
    for (id, node) in graph.values() {
        match node.op {
            // A chain of selections through narrowed nodes ends at the nodes that had to stay whole.
            Op::SelectOutputs { x } => hoist.kept[id.0] = Some(hoist.select(x)),
            _ if hoist.is_narrowed(id) => {
                hoist.select(id);
            }
            _ => {
                let op = node.op.map_inputs(|input| hoist.kept[input.0].unwrap_or(input));
                hoist.kept[id.0] = Some(hoist.push(Node { op, ..node.clone() }));
            }
        }
    }
    let output = hoist.kept[graph.output.0].unwrap_or(graph.output);
    drop_unused(&Graph { nodes: hoist.nodes, weights: graph.weights.clone(), output })
}

struct Hoist<'a> {
    graph: &'a Graph,
    /// Values of which a reader needs the row of every token.
    full: Vec<bool>,
    nodes: Vec<Node>,
    /// The new node with the rows that the old one had.
    kept: Vec<Option<ValueId>>,
    /// The new node with the wanted rows of a value that had a row per token.
    selected: Vec<Option<ValueId>>,
}

impl Hoist<'_> {
    fn is_narrowed(&self, id: ValueId) -> bool {
        let node = self.graph.node(id);
        node.shape.rows == Rows::Tokens && node.op.is_row_wise() && !self.full[id.0]
    }

    /// The wanted rows of `id`. Operands of narrowed nodes were met before, so this looks back one node at most.
    fn select(&mut self, id: ValueId) -> ValueId {
        if let Some(done) = self.selected[id.0] {
            return done;
        }
        let node = self.graph.node(id).clone();
        let shape = Shape { rows: Rows::Outputs, ..node.shape };
        let new = if self.is_narrowed(id) {
            let op = node.op.map_inputs(|input| self.select(input));
            Node { op, shape, name: node.name }
        } else {
            let x = self.kept[id.0].unwrap_or(id);
            Node { op: Op::SelectOutputs { x }, shape, name: format!("{}.outputs", node.name) }
        };
        let new = self.push(new);
        self.selected[id.0] = Some(new);
        new
    }

    fn push(&mut self, node: Node) -> ValueId {
        self.nodes.push(node);
        ValueId(self.nodes.len() - 1)
    }
}

/// Whether some reader of a value needs the rows of all tokens.
fn rows_needed_in_full(graph: &Graph) -> Vec<bool> {
    let mut full = vec![false; graph.nodes.len()];
    full[graph.output.0] = true;
    for (id, node) in graph.values().rev() {
        let whole = match node.op {
            Op::SelectOutputs { .. } => false,
            _ if node.op.is_row_wise() => full[id.0],
            // Keys and values of every token enter the cache.
            _ => true,
        };
        if whole {
            node.op.inputs().iter().for_each(|input| full[input.0] = true);
        }
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Attention, GraphBuilder, text};

    /// Two blocks of attention and a residual feed-forward, then normalization, selection and output.
    fn two_layers() -> Graph {
        let mut b = GraphBuilder::new();
        let matrix = b.inline("m", &[4, 4], vec![0.5; 16]).unwrap();
        let norm = b.inline("n", &[4], vec![1.0; 4]).unwrap();
        let mut x = b.input("x", Rows::Tokens, 4).unwrap();
        for layer in 0..2 {
            let q = b.matmul(format!("q{layer}"), x, matrix, None).unwrap();
            let attention = Attention { layer, heads: 1, kv_heads: 1, head_dim: 4, scale: 0.5, window: None };
            let a = b.attention(format!("a{layer}"), q, x, x, attention).unwrap();
            let o = b.matmul(format!("o{layer}"), a, matrix, None).unwrap();
            let sum = b.add(format!("s{layer}"), x, o).unwrap();
            let f = b.matmul(format!("f{layer}"), sum, matrix, None).unwrap();
            x = b.add(format!("x{layer}"), sum, f).unwrap();
        }
        let x = b.rms_norm("norm", x, norm, 1e-5).unwrap();
        let x = b.select_outputs("sel", x).unwrap();
        let x = b.matmul("out", x, matrix, None).unwrap();
        b.finish(x).unwrap()
    }

    #[test]
    fn selection_moves_to_the_last_attention() {
        let hoisted = hoist_select_outputs(&two_layers());
        let printed = text(&hoisted);
        let rows = |name: &str| hoisted.nodes.iter().find(|node| node.name == name).unwrap().shape.rows;
        for name in ["q0", "a0", "o0", "s0", "f0", "x0", "q1", "a1"] {
            assert_eq!(rows(name), Rows::Tokens, "{name} in\n{printed}");
        }
        for name in ["a1.outputs", "x0.outputs", "o1", "s1", "f1", "x1", "norm", "out"] {
            assert_eq!(rows(name), Rows::Outputs, "{name} in\n{printed}");
        }
        let selections = hoisted.nodes.iter().filter(|node| matches!(node.op, Op::SelectOutputs { .. })).count();
        assert_eq!(selections, 2, "{printed}");
    }

    #[test]
    fn a_value_that_is_also_needed_whole_stays_whole() {
        let mut b = GraphBuilder::new();
        let x = b.input("x", Rows::Tokens, 4).unwrap();
        let y = b.silu("y", x).unwrap();
        let o = b.select_outputs("o", y).unwrap();
        let attention = Attention { layer: 0, heads: 1, kv_heads: 1, head_dim: 4, scale: 0.5, window: None };
        let a = b.attention("a", y, y, y, attention).unwrap();
        let a = b.select_outputs("ao", a).unwrap();
        let sum = b.add("sum", o, a).unwrap();
        let hoisted = hoist_select_outputs(&b.finish(sum).unwrap());
        let y = hoisted.nodes.iter().filter(|node| node.name == "y").count();
        assert_eq!(y, 1, "{}", text(&hoisted));
    }

    #[test]
    fn what_nobody_reads_goes_and_inputs_stay() {
        let mut b = GraphBuilder::new();
        let x = b.input("x", Rows::Tokens, 2).unwrap();
        let unused = b.input("unused", Rows::Tokens, 2).unwrap();
        let w = b.inline("w", &[2, 2], vec![0.0; 4]).unwrap();
        b.matmul("dead", unused, w, None).unwrap();
        let y = b.silu("y", x).unwrap();
        let graph = drop_unused(&b.finish(y).unwrap());
        assert_eq!(graph.nodes.iter().map(|node| &node.name[..]).collect::<Vec<_>>(), ["x", "unused", "y"]);
        assert!(graph.weights.is_empty());
    }
}
