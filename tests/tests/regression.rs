//! One test for each bug that was fixed, named for it.

use rustai::{
    Batch, BatchSequence, Isa,
    backend::cpu::{CpuGraph, CpuOptions},
    graph::{Attention, Graph, GraphBuilder, Rope, RopeStyle, Rows, ValueId, interpret::Interpreter, read_floats},
};
use rustai_tests::Rng;
use std::sync::Arc;

const ROWS: usize = 5;

fn rope() -> Arc<Rope> {
    Arc::new(Rope { style: RopeStyle::Neox, inv_freq: (1..=8).map(|i| i as f32 / 8.0).collect(), magnitude: 1.0 })
}

fn attention(layer: usize) -> Attention {
    Attention { layer, heads: 2, kv_heads: 2, head_dim: 16, scale: 0.25, window: None }
}

/// A graph of the input `x`, 32 wide, on every instruction set, run twice, against the interpreter.
fn agrees(build: impl FnOnce(&mut GraphBuilder, ValueId) -> ValueId) {
    let mut b = GraphBuilder::new();
    let x = b.input("x", Rows::Tokens, 32).unwrap();
    let y = build(&mut b, x);
    let graph: Graph = b.finish(y).unwrap();
    let mut rng = Rng::new(3);
    let x: Vec<f32> = (0..ROWS * 32).map(|_| rng.normal()).collect();
    let sequences = [BatchSequence { start: 0, len: ROWS as u32, pages: &[0] }];
    let batch = Batch { tokens: &[0; ROWS], sequences: &sequences, outputs: &[] };
    let mut interpreter = Interpreter::new(&graph, &(), &read_floats).unwrap();
    let expected = interpreter.run(&batch, std::slice::from_ref(&x)).unwrap();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.missing_feature().is_none()) {
        let options = CpuOptions { isa: Some(isa), threads: 2, ..CpuOptions::default() };
        let mut cpu = CpuGraph::new(&graph, &(), &options).unwrap();
        cpu.set_input("x", &x).unwrap();
        for run in 0..2 {
            for (got, expected) in cpu.run(ROWS).unwrap().iter().zip(&expected) {
                assert!((got - expected).abs() < 0.01, "{isa:?}, run {run}: {got} for {expected}");
            }
        }
    }
}

fn matrix(b: &mut GraphBuilder, name: &str, x: ValueId) -> ValueId {
    let mut rng = Rng::new(name.bytes().map(u64::from).sum());
    let weight =
        b.inline(&format!("{name}.weight"), &[32, 32], (0..1024).map(|_| 0.2 * rng.normal()).collect()).unwrap();
    b.matmul(name, x, weight, None).unwrap()
}

#[test]
fn keys_that_others_read_stay_unrotated() {
    agrees(|b, x| {
        let (q, k) = (matrix(b, "q", x), matrix(b, "k", x));
        let (q, turned) = (b.rope("qr", q, 16, rope()).unwrap(), b.rope("kr", k, 16, rope()).unwrap());
        let a = b.attention("a", q, turned, x, attention(0)).unwrap();
        b.add("sum", a, k).unwrap()
    });
}

#[test]
fn an_input_that_is_the_keys_stays_unrotated() {
    agrees(|b, x| {
        let (q, v) = (matrix(b, "q", x), matrix(b, "v", x));
        let (q, turned) = (b.rope("qr", q, 16, rope()).unwrap(), b.rope("kr", x, 16, rope()).unwrap());
        b.attention("a", q, turned, v, attention(0)).unwrap()
    });
}

#[test]
fn keys_that_two_attentions_share_are_rotated_once() {
    agrees(|b, x| {
        let k = matrix(b, "k", x);
        let turned = b.rope("kr", k, 16, rope()).unwrap();
        let mut sum = x;
        for layer in 0..2 {
            let q = matrix(b, &format!("q{layer}"), x);
            let q = b.rope(format!("qr{layer}"), q, 16, rope()).unwrap();
            let a = b.attention(format!("a{layer}"), q, turned, x, attention(layer)).unwrap();
            sum = b.add(format!("sum{layer}"), sum, a).unwrap();
        }
        sum
    });
}

#[test]
fn keys_may_be_the_values_and_the_queries() {
    agrees(|b, x| b.attention("a", x, x, x, attention(0)).unwrap());
    agrees(|b, x| {
        let (q, k) = (matrix(b, "q", x), matrix(b, "k", x));
        let (q, turned) = (b.rope("qr", q, 16, rope()).unwrap(), b.rope("kr", k, 16, rope()).unwrap());
        b.attention("a", q, turned, k, attention(0)).unwrap()
    });
}
