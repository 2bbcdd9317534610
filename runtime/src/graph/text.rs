//! A graph as text, one line per node.

use super::{Graph, Node, Op};
use std::fmt::Write;

/// Prints a graph: `%12 blk.0.attn_q = matmul(%11, blk.0.attn_q.weight Q4_1[576, 576]) -> f32[T, 576]`.
///
/// `T` stands for the tokens of a batch and `O` for its outputs; the dimensions of weights are fastest first.
pub fn text(graph: &Graph) -> String {
    let mut out = String::new();
    for (id, node) in graph.values() {
        let mut operands: Vec<String> = node.op.inputs().iter().map(ToString::to_string).collect();
        operands.extend(node.op.weights().iter().map(|&weight| graph.weight(weight).to_string()));
        operands.extend(parameters(node));
        let operands = operands.join(", ");
        // Writing to a string does not fail.
        let _ = writeln!(out, "{id} {} = {}({operands}) -> {}", node.name, node.op.name(), node.shape);
    }
    let _ = writeln!(out, "output {}", graph.output());
    out
}

/// The parameters of an operation that are neither values nor weights, as `name=value`.
pub(super) fn parameters(node: &Node) -> Vec<String> {
    match &node.op {
        Op::Embedding { scale, .. } if *scale != 1.0 => vec![format!("scale={scale}")],
        Op::RmsNorm { eps, .. } => vec![format!("eps={eps:e}")],
        Op::Rope { head_dim, rope, .. } => {
            let mut parameters = vec![format!("head_dim={head_dim}"), format!("{:?}", rope.style).to_lowercase()];
            if rope.inv_freq.len() * 2 != *head_dim {
                parameters.push(format!("rotated={}", rope.inv_freq.len() * 2));
            }
            if rope.magnitude != 1.0 {
                parameters.push(format!("magnitude={}", rope.magnitude));
            }
            parameters
        }
        Op::Attention { attention, .. } => {
            let mut parameters = vec![
                format!("layer={}", attention.layer),
                format!("heads={}/{}", attention.heads, attention.kv_heads),
                format!("head_dim={}", attention.head_dim),
                format!("scale={}", attention.scale),
            ];
            parameters.extend(attention.window.map(|window| format!("window={window}")));
            parameters
        }
        _ => Vec::new(),
    }
}
