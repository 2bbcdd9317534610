//! Each fusion on a small graph, and random graphs against a symbolic run of their plans.

use super::*;
use crate::graph::{Attention, GraphBuilder, Op, Rope, RopeStyle, ValueId};
use rustai_kernels_cpu::{Buf, KvType, QBuf};
use std::{collections::HashMap, sync::Arc};

const OPTIONS: PlanOptions = PlanOptions { max_tokens: 7, max_outputs: 2, pages: 3, kv_type: KvType::F16 };

/// Weights whose name starts with `q8` want quantized input; those whose name ends with `alone` are no gates.
struct ByName;

impl Target for ByName {
    fn wants(&self, graph: &Graph, weight: WeightId) -> Form {
        if graph.weight(weight).name.starts_with("q8") { Form::Q8 } else { Form::F32 }
    }

    fn bytes(&self, form: Form, width: usize, rows: usize) -> usize {
        match form {
            Form::F32 => Buf::bytes(width, rows),
            Form::Q8 => QBuf::bytes(width, rows, 1),
            Form::Q8Pair => QBuf::bytes(width, rows, 2),
        }
    }

    fn pairs(&self, width: usize) -> bool {
        width == 32
    }

    fn gates(&self, graph: &Graph, gate: WeightId, _up: WeightId) -> bool {
        !graph.weight(gate).name.ends_with("alone")
    }

    fn quantizes_attention(&self) -> bool {
        true
    }
}

fn plan(b: GraphBuilder, output: ValueId) -> Plan {
    let plan = Plan::new(&b.finish(output).unwrap(), OPTIONS, &ByName).unwrap();
    check(&plan);
    plan
}

fn names(plan: &Plan) -> Vec<&'static str> {
    plan.steps.iter().map(Step::name).collect()
}

fn square(b: &mut GraphBuilder, name: &str) -> WeightId {
    b.inline(name, &[32, 32], vec![0.0; 1024]).unwrap()
}

fn input(b: &mut GraphBuilder) -> ValueId {
    b.input("x", Rows::Tokens, 32).unwrap()
}

fn norm(b: &mut GraphBuilder, x: ValueId) -> ValueId {
    let name = format!("norm of {x}");
    let weight = b.inline(&name, &[32], vec![1.0; 32]).unwrap();
    b.rms_norm(name, x, weight, 1e-5).unwrap()
}

fn one_rope() -> Arc<Rope> {
    Arc::new(Rope { style: RopeStyle::Interleaved, inv_freq: vec![1.0; 8].into(), magnitude: 1.0 })
}

fn attention(layer: usize) -> Attention {
    Attention { layer, heads: 2, kv_heads: 2, head_dim: 16, scale: 0.25, window: None }
}

#[test]
fn projections_of_one_input_are_one_call_and_the_norm_quantizes_for_them() {
    let mut b = GraphBuilder::new();
    let (wq, wk, wv) = (square(&mut b, "q8.q"), square(&mut b, "q8.k"), square(&mut b, "q8.v"));
    let bias = b.inline("bias", &[32], vec![0.0; 32]).unwrap();
    let x = input(&mut b);
    let x = norm(&mut b, x);
    let q = b.matmul("q", x, wq, Some(bias)).unwrap();
    let k = b.matmul("k", x, wk, None).unwrap();
    let v = b.matmul("v", x, wv, None).unwrap();
    let (q, k) = (b.rope("qr", q, 16, one_rope()).unwrap(), b.rope("kr", k, 16, one_rope()).unwrap());
    let a = b.attention("a", q, k, v, attention(0)).unwrap();
    let plan = plan(b, a);
    assert_eq!(names(&plan), ["rms_norm", "matmul", "rope_append", "attention"], "{plan}");
    let Step::MatMul { x, projections } = &plan.steps[1] else { panic!("{plan}") };
    assert_eq!(plan.buffer(*x).form, Form::Q8Pair, "queries and keys are sensitive to rounding");
    assert_eq!(projections.len(), 3);
    assert!(projections[0].bias.is_some());
    assert_eq!(plan.kv, Some(KvShape { layers: 1, kv_heads: 2, head_dim: 16, pages: 3, kv_type: KvType::F16 }));
}

#[test]
fn readers_of_both_forms_get_both() {
    let mut b = GraphBuilder::new();
    let (wq, wk) = (square(&mut b, "q8.q"), square(&mut b, "f32.k"));
    let x = input(&mut b);
    let x = norm(&mut b, x);
    let q = b.matmul("q", x, wq, None).unwrap();
    let k = b.matmul("k", x, wk, None).unwrap();
    let y = b.mul("y", q, k).unwrap();
    let plan = plan(b, y);
    assert_eq!(names(&plan), ["rms_norm", "quantize", "matmul", "matmul", "mul"], "{plan}");
}

#[test]
fn attention_quantizes_where_products_alone_read_it() {
    for (weight, plain_reader, expected) in [
        ("q8.o", false, &["attention", "matmul"][..]),
        ("q8.o", true, &["attention", "quantize", "matmul"]),
        ("f32.o", false, &["attention", "matmul"]),
    ] {
        let mut b = GraphBuilder::new();
        let (w, o) = (square(&mut b, "f32.w"), square(&mut b, weight));
        let x = input(&mut b);
        let q = b.matmul("q", x, w, None).unwrap();
        let a = b.attention("a", q, x, x, attention(0)).unwrap();
        let mut y = b.matmul("o", a, o, None).unwrap();
        if plain_reader {
            y = b.add("y", a, y).unwrap();
        }
        let plan = plan(b, y);
        assert_eq!(&names(&plan)[2..], expected, "{plan}");
        let Step::Attention { out, quants, .. } = plan.steps[2] else { panic!("{plan}") };
        let quantizes = weight == "q8.o" && !plain_reader;
        assert_eq!(quants.is_some(), quantizes, "{plan}");
        if let Some(quants) = quants {
            assert!(plan.buffer(out).life == (2, 2) && plan.buffer(quants).form != Form::F32, "{plan}");
        }
    }
}

#[test]
fn gate_and_up_are_one_call_in_either_order() {
    for swapped in [false, true] {
        let mut b = GraphBuilder::new();
        let (gate, up) = (square(&mut b, "q8.gate"), square(&mut b, "q8.up"));
        let x = input(&mut b);
        let gate = b.matmul("gate", x, gate, None).unwrap();
        let up = b.matmul("up", x, up, None).unwrap();
        let silu = b.silu("silu", gate).unwrap();
        let y = if swapped { b.mul("y", up, silu) } else { b.mul("y", silu, up) }.unwrap();
        let plan = plan(b, y);
        assert_eq!(names(&plan), ["quantize", "gated_matmul"], "{plan}");
    }
}

#[test]
fn inputs_of_gates_and_residuals_are_held_once_and_wide_ones_too() {
    let mut b = GraphBuilder::new();
    let (gate, up, down) = (square(&mut b, "q8.gate"), square(&mut b, "q8.up"), square(&mut b, "q8.down"));
    let (widen, head) =
        (b.inline("q8.widen", &[32, 64], vec![0.0; 2048]).unwrap(), b.inline("q8.head", &[64, 32], vec![0.0; 2048]));
    let (x, head) = (input(&mut b), head.unwrap());
    let x = b.silu("x again", x).unwrap();
    let normed = norm(&mut b, x);
    let gate = b.matmul("gate", normed, gate, None).unwrap();
    let up = b.matmul("up", normed, up, None).unwrap();
    let silu = b.silu("silu", gate).unwrap();
    let gated = b.mul("gated", silu, up).unwrap();
    let down = b.matmul("down", gated, down, None).unwrap();
    let x = b.add("y", x, down).unwrap();
    let wide = b.matmul("wide", x, widen, None).unwrap();
    let output = b.matmul("head", wide, head, None).unwrap();
    let plan = plan(b, output);
    let forms = plan.steps.iter().filter_map(|step| match step {
        Step::GatedMatMul { x, .. } | Step::MatMul { x, .. } => Some(plan.buffer(*x).form),
        _ => None,
    });
    assert_eq!(forms.collect::<Vec<_>>(), [Form::Q8, Form::Q8, Form::Q8Pair, Form::Q8], "{plan}");
}

#[test]
fn a_gate_that_is_read_elsewhere_or_biased_or_that_the_backend_refuses_is_not_fused() {
    for (biased, name) in [(false, "gate"), (true, "gate"), (true, "gate.alone")] {
        let mut b = GraphBuilder::new();
        let (gate, up) = (square(&mut b, name), square(&mut b, "up"));
        let bias = b.inline("bias", &[32], vec![0.0; 32]).unwrap();
        let x = input(&mut b);
        let refused = name.ends_with("alone");
        let gate = b.matmul("gate", x, gate, (biased && !refused).then_some(bias)).unwrap();
        let up = b.matmul("up", x, up, None).unwrap();
        let silu = b.silu("silu", gate).unwrap();
        let mut y = b.mul("y", silu, up).unwrap();
        if !biased {
            y = b.add("z", y, gate).unwrap();
        }
        let plan = plan(b, y);
        assert_eq!(names(&plan)[..3], ["matmul", "silu", "mul"], "{plan}");
    }
}

#[test]
fn a_residual_that_dies_is_added_to_in_place() {
    let mut b = GraphBuilder::new();
    let (w, v) = (square(&mut b, "q8.w"), square(&mut b, "q8.v"));
    let x = input(&mut b);
    let x = b.silu("stream", x).unwrap();
    let n = norm(&mut b, x);
    let m = b.matmul("m", n, w, None).unwrap();
    let x = b.add("sum", x, m).unwrap();
    let n = norm(&mut b, x);
    let m = b.matmul("m2", n, v, None).unwrap();
    let x = b.add("sum2", m, x).unwrap();
    let plan = plan(b, x);
    assert_eq!(names(&plan), ["silu", "rms_norm", "matmul", "rms_norm", "matmul"], "{plan}");
    let Step::MatMul { projections, .. } = &plan.steps[4] else { panic!("{plan}") };
    let residual = projections[0].residual.unwrap();
    assert_eq!(plan.buffer(residual).offset, plan.buffer(projections[0].out).offset);
}

#[test]
fn a_residual_that_is_an_input_or_lives_on_is_kept() {
    let mut b = GraphBuilder::new();
    let w = square(&mut b, "w");
    let x = input(&mut b);
    let m = b.matmul("m", x, w, None).unwrap();
    let y = b.add("sum", x, m).unwrap();
    let kept = plan(b, y);
    assert_eq!(names(&kept), ["matmul", "add"], "inputs keep their values between runs: {kept}");

    let mut b = GraphBuilder::new();
    let (w, v) = (square(&mut b, "w"), square(&mut b, "v"));
    let x = input(&mut b);
    let r = b.matmul("r", x, v, None).unwrap();
    let s = b.silu("s", r).unwrap();
    let m = b.matmul("m", s, w, None).unwrap();
    let y = b.add("sum", r, m).unwrap();
    let y = b.mul("again", y, r).unwrap();
    let kept = plan(b, y);
    assert_eq!(names(&kept), ["matmul", "silu", "matmul", "add", "mul"], "{kept}");
}

#[test]
fn a_product_waits_for_a_residual_that_comes_later() {
    let mut b = GraphBuilder::new();
    let w = square(&mut b, "w");
    let x = input(&mut b);
    let m = b.matmul("m", x, w, None).unwrap();
    let r = b.softmax("r", x).unwrap();
    let y = b.add("sum", r, m).unwrap();
    let plan = plan(b, y);
    assert_eq!(names(&plan), ["softmax", "matmul"], "{plan}");
}

#[test]
fn rotations_that_no_kernel_does_are_refused() {
    let fails = |build: &dyn Fn(&mut GraphBuilder, ValueId) -> ValueId| {
        let mut b = GraphBuilder::new();
        let w = square(&mut b, "w");
        let x = input(&mut b);
        let q = b.matmul("q", x, w, None).unwrap();
        let y = build(&mut b, q);
        let error = Plan::new(&b.finish(y).unwrap(), OPTIONS, &ByName).unwrap_err();
        assert!(matches!(error, PlanError::Rope { .. }), "{error}");
    };
    fails(&|b, q| b.rope("alone", q, 16, one_rope()).unwrap());
    fails(&|b, q| {
        let r = b.rope("r", q, 16, one_rope()).unwrap();
        b.attention("only queries", r, q, q, attention(0)).unwrap()
    });
    fails(&|b, q| {
        let (w, x) = (square(b, "wk"), input(b));
        let k = b.matmul("k", x, w, None).unwrap();
        let (q, k) = (b.rope("qr", q, 32, one_rope()).unwrap(), b.rope("kr", k, 32, one_rope()).unwrap());
        b.attention("heads of 32 for heads of 16", q, k, x, attention(0)).unwrap()
    });
}

#[test]
fn cache_layers_must_be_gapless_and_alike() {
    let mut b = GraphBuilder::new();
    let x = input(&mut b);
    let a = b.attention("a", x, x, x, attention(1)).unwrap();
    let error = Plan::new(&b.finish(a).unwrap(), OPTIONS, &ByName).unwrap_err();
    assert!(matches!(error, PlanError::Cache { layer: 1, .. }), "{error}");
    let mut b = GraphBuilder::new();
    let x = input(&mut b);
    let a = b.attention("a", x, x, x, attention(0)).unwrap();
    let a = b.attention("b", a, a, a, Attention { heads: 1, kv_heads: 1, head_dim: 32, ..attention(1) }).unwrap();
    let error = Plan::new(&b.finish(a).unwrap(), OPTIONS, &ByName).unwrap_err();
    assert!(matches!(error, PlanError::Cache { layer: 1, .. }), "{error}");
}

#[test]
fn absurd_batches_are_refused() {
    let mut b = GraphBuilder::new();
    let x = input(&mut b);
    let y = b.silu("y", x).unwrap();
    let options = PlanOptions { max_tokens: usize::MAX / 64, ..OPTIONS };
    let error = Plan::new(&b.finish(y).unwrap(), options, &ByName).unwrap_err();
    assert!(matches!(error, PlanError::TooLarge { .. }), "{error}");
}

#[test]
fn random_graphs_compute_in_their_arena_what_they_say() {
    let (mut shared, mut unshared, mut folded) = (0, 0, 0);
    for seed in 0..400 {
        let graph = random_graph(seed);
        let plan = Plan::new(&graph, OPTIONS, &ByName).unwrap();
        check(&plan);
        shared += plan.arena_bytes;
        unshared += plan.unshared_bytes;
        folded += plan.steps.iter().flat_map(Step::overwrites).filter(|(old, new)| old != new).count();
    }
    assert!(shared * 2 < unshared, "memory is used again: {shared} of {unshared}");
    assert!(folded > 400, "residuals and queries are changed in place: {folded}");
}

/// Checks places, and that a symbolic run over the arena gives what the graph says.
fn check(plan: &Plan) {
    assert_eq!(overlap(&plan.steps, &plan.buffers), None, "{plan}");
    for buffer in &plan.buffers {
        assert!(buffer.offset.is_multiple_of(64) && buffer.offset + buffer.bytes <= plan.arena_bytes);
    }
    assert_eq!(symbolic_plan(plan), symbolic_graph(&plan.graph), "{plan}\n{}", crate::graph::text(&plan.graph));
}

/// A name for the value of an expression: equal expressions get equal numbers.
fn hash(op: &str, operands: &[u64]) -> u64 {
    let bytes = op.bytes().map(u64::from).chain(operands.iter().copied());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, part| {
        (hash ^ part).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}

fn symmetric(op: &str, a: u64, b: u64) -> u64 {
    hash(op, &[a.min(b), a.max(b)])
}

fn product(x: u64, weight: WeightId, bias: Option<WeightId>) -> u64 {
    hash("matmul", &[x, weight.index() as u64, bias.map_or(u64::MAX, |bias| bias.index() as u64)])
}

fn turned(x: u64, rope: Option<&Arc<Rope>>) -> u64 {
    rope.map_or(x, |rope| hash("rope", &[x, rope.inv_freq.len() as u64]))
}

fn symbolic_graph(graph: &Graph) -> u64 {
    let mut values = Vec::<u64>::new();
    let mut inputs = 0;
    for node in graph.nodes() {
        let of = |id: ValueId| values[id.index()];
        let value = match &node.op {
            Op::Input => {
                inputs += 1;
                hash("input", &[inputs])
            }
            Op::Embedding { table, .. } => hash("embed", &[table.index() as u64]),
            Op::MatMul { x, weight, bias } => product(of(*x), *weight, *bias),
            Op::RmsNorm { x, weight, .. } => hash("norm", &[of(*x), weight.index() as u64]),
            Op::Rope { x, rope, .. } => turned(of(*x), Some(rope)),
            Op::Attention { q, k, v, attention } => {
                hash("attention", &[of(*q), of(*k), of(*v), attention.layer as u64])
            }
            Op::Add { a, b } => symmetric("add", of(*a), of(*b)),
            Op::Mul { a, b } => symmetric("mul", of(*a), of(*b)),
            Op::Silu { x } => hash("silu", &[of(*x)]),
            Op::Softmax { x } => hash("softmax", &[of(*x)]),
            Op::SelectOutputs { x } => hash("select", &[of(*x)]),
        };
        values.push(value);
    }
    values[graph.output().index()]
}

/// The arena in pieces of 64 bytes, each holding the number of the value that it is part of.
struct Arena<'a> {
    plan: &'a Plan,
    pieces: Vec<u64>,
}

impl Arena<'_> {
    fn read(&self, id: BufferId) -> u64 {
        let Buffer { offset, bytes, ref name, .. } = *self.plan.buffer(id);
        let pieces = &self.pieces[offset / 64..(offset + bytes) / 64];
        assert!(pieces.iter().all(|piece| *piece == pieces[0]), "{name} was overwritten in\n{}", self.plan);
        pieces[0]
    }

    fn write(&mut self, id: BufferId, value: u64) {
        let Buffer { offset, bytes, .. } = *self.plan.buffer(id);
        self.pieces[offset / 64..(offset + bytes) / 64].fill(value);
    }
}

fn symbolic_plan(plan: &Plan) -> u64 {
    let mut arena = Arena { plan, pieces: vec![0; plan.arena_bytes / 64] };
    let mut cache = HashMap::new();
    for (number, id) in plan.inputs.iter().enumerate() {
        arena.write(*id, hash("input", &[number as u64 + 1]));
    }
    // Twice, as inputs must survive a run.
    for _ in 0..2 {
        for step in &plan.steps {
            match step {
                Step::Embed { table, out, .. } => arena.write(*out, hash("embed", &[table.index() as u64])),
                Step::RmsNorm { x, weight, out, .. } => {
                    let value = hash("norm", &[arena.read(*x), weight.index() as u64]);
                    arena.write(*out, value);
                }
                Step::Quantize { x, out } => {
                    let value = arena.read(*x);
                    arena.write(*out, value);
                }
                Step::MatMul { x, projections } => {
                    let x = arena.read(*x);
                    for p in projections {
                        let value = product(x, p.weight, p.bias);
                        let value = p.residual.map_or(value, |residual| symmetric("add", arena.read(residual), value));
                        arena.write(p.out, value);
                    }
                }
                Step::GatedMatMul { x, gate, up, out } => {
                    let x = arena.read(*x);
                    let gate = hash("silu", &[product(x, *gate, None)]);
                    arena.write(*out, symmetric("mul", gate, product(x, *up, None)));
                }
                Step::RopeAppend { q, k, v, layer, rope, rotated } => {
                    let (q, k, v) = (arena.read(*q), arena.read(*k), arena.read(*v));
                    cache.insert(*layer, (turned(k, rope.as_ref()), v));
                    arena.write(*rotated, turned(q, rope.as_ref()));
                }
                Step::Attention { q, layer, out, quants, .. } => {
                    let (k, v) = cache[layer];
                    let value = hash("attention", &[arena.read(*q), k, v, *layer as u64]);
                    arena.write(*out, if quants.is_some() { hash("anything", &[]) } else { value });
                    quants.iter().for_each(|quants| arena.write(*quants, value));
                }
                Step::Add { a, b, out } => {
                    let value = symmetric("add", arena.read(*a), arena.read(*b));
                    arena.write(*out, value);
                }
                Step::Mul { a, b, out } => {
                    let value = symmetric("mul", arena.read(*a), arena.read(*b));
                    arena.write(*out, value);
                }
                Step::Silu { x, out } => {
                    let value = hash("silu", &[arena.read(*x)]);
                    arena.write(*out, value);
                }
                Step::Softmax { x, out } => {
                    let value = hash("softmax", &[arena.read(*x)]);
                    arena.write(*out, value);
                }
                Step::SelectOutputs { x, out } => {
                    let value = hash("select", &[arena.read(*x)]);
                    arena.write(*out, value);
                }
            }
        }
    }
    arena.read(plan.output)
}

/// A random graph of width 32 that uses recent values most, as models do.
fn random_graph(seed: u64) -> Graph {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    };
    let mut b = GraphBuilder::new();
    let weights: Vec<WeightId> =
        ["q8.a", "q8.b", "q8.c", "f.a", "f.b"].iter().map(|name| square(&mut b, name)).collect();
    let bias = b.inline("bias", &[32], vec![0.0; 32]).unwrap();
    let factors = b.inline("factors", &[32], vec![0.0; 32]).unwrap();
    let mut values = vec![input(&mut b), b.input("second", Rows::Tokens, 32).unwrap()];
    let mut layers = 0;
    for _ in 0..3 + random(40) {
        let mut recent = |values: &[ValueId]| values[values.len() - 1 - random(values.len().min(5))];
        let (x, y) = (recent(&values), recent(&values));
        let pick = |random: &mut dyn FnMut(usize) -> usize| weights[random(weights.len())];
        let value = match random(9) {
            0 | 1 => {
                let weight = pick(&mut random);
                b.matmul("m", x, weight, (random(3) == 0).then_some(bias))
            }
            2 => b.rms_norm("n", x, factors, 1e-5),
            3 => b.add("add", x, y),
            4 => b.mul("mul", x, y),
            5 => b.silu("silu", x),
            6 => {
                let m = b.matmul("m", x, pick(&mut random), None).unwrap();
                b.add("res", y, m)
            }
            7 => {
                let (gate, up) = (pick(&mut random), pick(&mut random));
                let gate = b.matmul("gate", x, gate, None).unwrap();
                let up = b.matmul("up", x, up, None).unwrap();
                let silu = b.silu("gated", gate).unwrap();
                b.mul("swiglu", silu, up)
            }
            _ => {
                let (q, k) = (pick(&mut random), pick(&mut random));
                let q = b.matmul("q", x, q, None).unwrap();
                let k = b.matmul("k", x, k, None).unwrap();
                let q = b.rope("qr", q, 16, one_rope()).unwrap();
                let k = b.rope("kr", k, 16, one_rope()).unwrap();
                layers += 1;
                let a = b.attention("a", q, k, y, attention(layers - 1));
                if random(2) == 0 { a.and_then(|a| b.matmul("o", a, pick(&mut random), None)) } else { a }
            }
        };
        values.push(value.unwrap());
    }
    // Tie everything to the result, so that no attention is dropped and layers stay gapless.
    let mut sum = values[0];
    for value in &values[1..] {
        sum = b.add("sum", sum, *value).unwrap();
    }
    if random(2) == 0 {
        sum = b.select_outputs("sel", sum).unwrap();
        sum = b.matmul("logits", sum, weights[0], None).unwrap();
    }
    b.finish(sum).unwrap()
}
