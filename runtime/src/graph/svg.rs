//! A graph as an SVG picture, with runs of equal layers folded into one.

use super::{
    Graph, Op, ValueId,
    fold::{Folded, Group, fold},
    layout::{Layout, layout},
    text::parameters,
};
use std::fmt::Write;

const BOX_HEIGHT: f64 = 40.0;
const PITCH: f64 = 66.0;
const MARGIN: f64 = 40.0;
/// Room around the boxes of a folded layer.
const FRAME: f64 = 13.0;

/// Draws a graph. Runs of equal layers are drawn once, framed and labelled with their number.
pub fn svg(graph: &Graph) -> String {
    let folded = fold(graph);
    let labels: Vec<[String; 2]> = folded.nodes.iter().map(|id| label(graph, *id)).collect();
    let widths: Vec<f64> = labels
        .iter()
        // Rough widths of a 12 px bold and an 11 px regular sans-serif character.
        .map(|[name, rest]| (name.chars().count() as f64 * 7.4).max(rest.chars().count() as f64 * 6.1) + 24.0)
        .collect();
    let layout = layout(&widths, &folded.edges, PITCH, MARGIN);
    let (width, height) = (layout.size.0.max(260.0), layout.size.1 + LEGEND_HEIGHT);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" text-anchor=\"middle\">\n\
         <defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
         orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#667\"/></marker></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    // Writing to a string does not fail.
    for group in folded.groups.iter().filter(|group| !group.nodes.is_empty()) {
        let _ = writeln!(out, "{}", frame(group, &folded, &layout, &widths));
    }
    for points in &layout.edges {
        let _ = writeln!(
            out,
            "<path d=\"{}\" fill=\"none\" stroke=\"#667\" stroke-width=\"1.3\" marker-end=\"url(#arrow)\"/>",
            curve(points)
        );
    }
    for (index, ([name, rest], &(x, y))) in labels.iter().zip(&layout.boxes).enumerate() {
        let node = graph.node(folded.nodes[index]);
        let _ = writeln!(
            out,
            "<g><title>{}</title><rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BOX_HEIGHT}\" rx=\"6\" \
             fill=\"{}\" stroke=\"#445\"/><text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"12\" font-weight=\"bold\">{}</text>\
             <text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"11\">{}</text></g>",
            escape(&parameters(node).join(", ")),
            x - widths[index] / 2.0,
            y - BOX_HEIGHT / 2.0,
            widths[index],
            colour(&node.op),
            y - 3.0,
            escape(name),
            y + 13.0,
            escape(rest),
        );
    }
    out.push_str(&legend(height));
    out.push_str("</svg>\n");
    out
}

/// Classes of operations, their colours and names.
const CLASSES: [(&str, &str); 6] = [
    ("#cfe3ff", "matmul"),
    ("#ffd9b3", "attention, rope"),
    ("#d9f2d0", "norm"),
    ("#f3e6ff", "element-wise"),
    ("#fff2b3", "embedding, input"),
    ("#e6e6e6", "selection"),
];
const LEGEND_HEIGHT: f64 = 18.0 * CLASSES.len() as f64 + 20.0;

/// Fill colour of an operation's class.
pub(super) fn colour(op: &Op) -> &'static str {
    let class = match op {
        Op::MatMul { .. } => 0,
        Op::Attention { .. } | Op::Rope { .. } => 1,
        Op::RmsNorm { .. } => 2,
        Op::Add { .. } | Op::Mul { .. } | Op::Silu { .. } | Op::Softmax { .. } => 3,
        Op::Embedding { .. } | Op::Input => 4,
        Op::SelectOutputs { .. } => 5,
    };
    CLASSES[class].0
}

fn label(graph: &Graph, id: ValueId) -> [String; 2] {
    let node = graph.node(id);
    let weights: String = node
        .op
        .weights()
        .iter()
        .map(|&weight| graph.weight(weight))
        .map(|weight| format!(" {}{:?}", weight.dtype, weight.dims))
        .collect();
    [node.name.clone(), format!("{}{weights} \u{2192} {}", node.op.name(), node.shape)]
}

/// The frame around a layer and the words that say how often it comes.
fn frame(group: &Group, folded: &Folded, layout: &Layout, widths: &[f64]) -> String {
    let edges_inside = folded
        .edges
        .iter()
        .zip(&layout.edges)
        .filter(|((from, to), _)| group.nodes.contains(from) && group.nodes.contains(to));
    let lanes = edges_inside.flat_map(|(_, points)| points.iter().map(|point| point.0));
    let sides = group.nodes.iter().flat_map(|&node| {
        let (x, half) = (layout.boxes[node].0, widths[node] / 2.0);
        [x - half, x + half]
    });
    let (left, right) =
        sides.chain(lanes).fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), x| (min.min(x), max.max(x)));
    let rows = group.nodes.iter().map(|&node| layout.boxes[node].1);
    let (top, bottom) = rows.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), y| (min.min(y), max.max(y)));
    let (left, right) = (left - FRAME, right + FRAME);
    let (top, bottom) = (top - BOX_HEIGHT / 2.0 - FRAME, bottom + BOX_HEIGHT / 2.0 + FRAME);
    let words = match group.last - group.first {
        0 => format!("layer {}", group.first),
        more => format!("\u{d7} {} (layers {} to {})", more + 1, group.first, group.last),
    };
    format!(
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"10\" fill=\"#f7f8fb\" \
         stroke=\"#99a\" stroke-dasharray=\"5 4\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"start\" font-size=\"13\" \
         font-weight=\"bold\" fill=\"#556\">{words}</text>",
        right - left,
        bottom - top,
        left + 10.0,
        top + 20.0,
    )
}

/// A smooth line through the middle of the layers between two boxes.
fn curve(points: &[(f64, f64)]) -> String {
    let half = BOX_HEIGHT / 2.0;
    let mut path = String::new();
    for (index, pair) in points.windows(2).enumerate() {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        let (y0, y1) = (y0 + half, y1 - half);
        let middle = (y0 + y1) / 2.0;
        let start = if index == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{start}{x0:.1} {y0:.1}C{x0:.1} {middle:.1} {x1:.1} {middle:.1} {x1:.1} {y1:.1}");
    }
    path
}

fn legend(height: f64) -> String {
    let mut out = String::new();
    for (index, (colour, name)) in CLASSES.iter().enumerate() {
        let y = height - LEGEND_HEIGHT + 18.0 * index as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{MARGIN}\" y=\"{y:.1}\" width=\"14\" height=\"12\" rx=\"2\" fill=\"{colour}\" stroke=\"#445\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\" text-anchor=\"start\">{name}</text>",
            MARGIN + 20.0,
            y + 10.0,
        );
    }
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
