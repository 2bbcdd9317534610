//! Example 3: build a small graph by hand, look at its plan, run it.
//!
//! ```text
//! cargo run --release -p rustai-examples --example 03_custom_graph
//! ```
//!
//! The graph is a classifier as it may sit on top of any embedding: normalization, a gated layer with a residual
//! connection, and a softmax over three classes. No model file is needed: the weights are given inline. The runtime does with
//! it what it does with a language model: it fuses what pays, lays out memory once, and runs on the kernels of this
//! processor. A slow interpreter, which says what a graph means, checks the result.

use rustai::{
    Batch, BatchSequence,
    backend::cpu::{CpuGraph, CpuOptions},
    graph::{Graph, GraphBuilder, GraphError, Rows, interpret::Interpreter, read_floats, text},
};
use std::error::Error;

const WIDTH: usize = 64;
const HIDDEN: usize = 128;
const CLASSES: usize = 3;

fn classifier() -> Result<Graph, GraphError> {
    let mut b = GraphBuilder::new();
    let x = b.input("x", Rows::Tokens, WIDTH)?;

    // Dimensions are fastest first, as in model files: a matrix from WIDTH to HIDDEN values is [WIDTH, HIDDEN].
    let scale = b.inline("norm.weight", &[WIDTH], vec![1.0; WIDTH])?;
    let gate = b.inline("gate.weight", &[WIDTH, HIDDEN], numbers(1, WIDTH * HIDDEN))?;
    let up = b.inline("up.weight", &[WIDTH, HIDDEN], numbers(2, WIDTH * HIDDEN))?;
    let down = b.inline("down.weight", &[HIDDEN, WIDTH], numbers(3, HIDDEN * WIDTH))?;
    let head = b.inline("head.weight", &[WIDTH, CLASSES], numbers(4, WIDTH * CLASSES))?;
    let bias = b.inline("head.bias", &[CLASSES], vec![0.1, 0.0, -0.1])?;

    let normed = b.rms_norm("norm", x, scale, 1e-5)?;
    let gate = b.matmul("gate", normed, gate, None)?;
    let gate = b.silu("silu", gate)?;
    let up = b.matmul("up", normed, up, None)?;
    let hidden = b.mul("gated", gate, up)?;
    let out = b.matmul("down", hidden, down, None)?;
    let out = b.add("residual", out, x)?;
    let logits = b.matmul("head", out, head, Some(bias))?;
    let classes = b.softmax("classes", logits)?;
    b.finish(classes)
}

/// Repeatable numbers between -0.2 and 0.2, in place of trained weights.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 * 0.4 - 0.2
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let graph = classifier()?;
    println!("The graph, as it was built:\n\n{}", text(&graph));

    // `()` is a source of weights that has none: all are inline here.
    let mut classifier = CpuGraph::new(&graph, &(), &CpuOptions { threads: 2, ..CpuOptions::default() })?;
    println!("The plan, as it runs on {}:\n\n{}", classifier.describe(), classifier.plan());

    let rows = 4;
    let inputs = numbers(5, rows * WIDTH);
    classifier.set_input("x", &inputs)?;
    let result = classifier.run(rows)?.to_vec();
    for (row, classes) in result.chunks_exact(CLASSES).enumerate() {
        println!("row {row}: {classes:.4?}");
    }

    let tokens = vec![0; rows];
    let sequences = [BatchSequence { len: rows as u32, start: 0, pages: &[0] }];
    let batch = Batch { tokens: &tokens, sequences: &sequences, outputs: &[] };
    let expected = Interpreter::new(&graph, &(), &read_floats)?.run(&batch, &[inputs])?;
    let difference = result.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("largest difference from the interpreter: {difference:e}");
    assert!(difference < 1e-3, "kernels and interpreter disagree");
    Ok(())
}
