//! Finds runs of equal layers, so that a drawing shows one of them and how often it comes.

use super::{Graph, ValueId};
use std::collections::BTreeMap;

/// A graph with repeated layers folded into the first of each run.
pub(super) struct Folded {
    /// The values to draw, operands before users.
    pub nodes: Vec<ValueId>,
    /// From operand to user, as positions in `nodes`.
    pub edges: Vec<(usize, usize)>,
    /// The layers among them.
    pub groups: Vec<Group>,
}

/// A layer that stands for a run of equal ones.
pub(super) struct Group {
    /// First layer of the run, as the names number it.
    pub first: usize,
    /// Last layer of the run.
    pub last: usize,
    /// Positions in [`Folded::nodes`].
    pub nodes: Vec<usize>,
}

/// The layer that a node belongs to: the first number between dots in its name (`blk.12.attn_q`).
pub(super) fn layer_of(name: &str) -> Option<usize> {
    name.split('.').skip(1).find_map(|part| part.parse().ok())
}

pub(super) fn fold(graph: &Graph) -> Folded {
    let mut layers = BTreeMap::<usize, Vec<ValueId>>::new();
    for (id, node) in graph.values() {
        if let Some(layer) = layer_of(&node.name) {
            layers.entry(layer).or_default().push(id);
        }
    }
    // Each folded value is drawn as the value at the same place of its run's first layer.
    let mut stands_for: Vec<ValueId> = graph.values().map(|(id, _)| id).collect();
    let mut runs = Vec::<(usize, usize, &[ValueId])>::new();
    for (&layer, values) in &layers {
        match runs.last_mut() {
            Some((_, last, shown)) if *last + 1 == layer && signature(graph, shown) == signature(graph, values) => {
                *last = layer;
                values.iter().zip(*shown).for_each(|(value, shown)| stands_for[value.0] = *shown);
            }
            _ => runs.push((layer, layer, values)),
        }
    }
    let nodes: Vec<ValueId> = graph.values().map(|(id, _)| id).filter(|id| stands_for[id.0] == *id).collect();
    let mut position = vec![usize::MAX; graph.nodes().len()];
    nodes.iter().enumerate().for_each(|(index, id)| position[id.0] = index);
    let mut edges = Vec::new();
    for (to, id) in nodes.iter().enumerate() {
        for input in graph.node(*id).op.inputs() {
            let edge = (position[stands_for[input.0].0], to);
            if !edges.contains(&edge) {
                edges.push(edge);
            }
        }
    }
    let groups = runs
        .into_iter()
        .map(|(first, last, values)| Group { first, last, nodes: values.iter().map(|id| position[id.0]).collect() })
        .collect();
    Folded { nodes, edges, groups }
}

/// What must be equal for two layers to look equal: operations, result shapes and the wiring inside the layer. Element
/// types may differ, as they do in files of mixed quantization.
fn signature(graph: &Graph, layer: &[ValueId]) -> Vec<(&'static str, super::Shape, Vec<Option<usize>>)> {
    let describe = |id: &ValueId| {
        let node = graph.node(*id);
        let wiring = node.op.inputs().iter().map(|input| layer.iter().position(|other| other == input)).collect();
        (node.op.name(), node.shape, wiring)
    };
    layer.iter().map(describe).collect()
}
