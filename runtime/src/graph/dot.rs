//! A graph in Graphviz' DOT language, every layer in full.

use super::{Graph, fold::layer_of};
use std::{collections::BTreeMap, fmt::Write};

/// Prints a graph for `dot -Tsvg`; each layer is a cluster.
pub fn dot(graph: &Graph) -> String {
    let mut layers = BTreeMap::<Option<usize>, String>::new();
    for (id, node) in graph.values() {
        let weights: Vec<String> = node.op.weights().iter().map(|&id| graph.weight(id).to_string()).collect();
        let label = format!("{}\n{} {}\n{}", node.name, node.op.name(), weights.join(", "), node.shape);
        let line =
            format!("n{} [label=\"{}\", fillcolor=\"{}\"];\n", id.0, escape(&label), super::svg::colour(&node.op));
        layers.entry(layer_of(&node.name)).or_default().push_str(&line);
    }
    let mut out = String::from(
        "digraph model {\n  node [shape=box, style=\"rounded,filled\", fontname=\"sans-serif\", fontsize=10];\n",
    );
    // Writing to a string does not fail.
    for (layer, nodes) in &layers {
        let _ = match layer {
            Some(layer) => write!(out, "subgraph cluster_{layer} {{\nlabel=\"layer {layer}\";\n{nodes}}}\n"),
            None => write!(out, "{nodes}"),
        };
    }
    for (id, node) in graph.values() {
        for input in node.op.inputs() {
            let _ = writeln!(out, "n{} -> n{};", input.0, id.0);
        }
    }
    out.push_str("}\n");
    out
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
