//! Llama graphs from metadata and tensors held in memory.

use super::*;
use crate::graph::{Op, Rows, WeightInfo, WeightSource, interpret::Interpreter, read_floats, rewrite, text};
use rustai_abi::{Batch, BatchSequence, DType};
use rustai_kernels_cpu::SharedBytes;
use std::collections::BTreeMap;

/// A model file in memory.
#[derive(Clone, Default)]
pub(crate) struct FakeFile {
    pub strings: BTreeMap<String, String>,
    pub numbers: BTreeMap<String, f64>,
    pub tokens: Option<usize>,
    pub tensors: BTreeMap<String, (WeightInfo, Vec<u8>)>,
}

impl WeightSource for FakeFile {
    fn info(&self, name: &str) -> Option<WeightInfo> {
        self.tensors.get(name).map(|tensor| tensor.0.clone())
    }

    fn bytes(&self, name: &str) -> Option<SharedBytes> {
        self.tensors.get(name).map(|tensor| tensor.1.clone().into())
    }
}

impl ModelFile for FakeFile {
    fn str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        Ok(self.strings.get(key).map(|value| &value[..]))
    }

    fn u64(&self, key: &str) -> Result<Option<u64>, LoadError> {
        Ok(self.numbers.get(key).map(|value| *value as u64))
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        Ok(self.numbers.get(key).map(|value| *value as f32))
    }

    fn count(&self, _key: &str) -> Result<Option<usize>, LoadError> {
        Ok(self.tokens)
    }

    fn tensor_names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn weights(&self) -> &dyn WeightSource {
        self
    }
}

impl FakeFile {
    fn set(&mut self, key: &str, value: f64) -> &mut Self {
        self.numbers.insert(format!("llama.{key}"), value);
        self
    }

    fn remove(&mut self, key: &str) -> &mut Self {
        self.numbers.remove(&format!("llama.{key}"));
        self
    }

    fn tensor(&mut self, name: &str, dims: &[usize]) -> &mut Self {
        let count: usize = dims.iter().product();
        // Values that differ from tensor to tensor and place to place, of a usual size.
        let seed = name.bytes().fold(7u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(u32::from(byte)));
        let value = |index: usize| ((index as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32;
        let bytes = (0..count).flat_map(|i| (value(i) / (1 << 24) as f32 - 0.5).to_le_bytes()).collect();
        self.tensors.insert(name.into(), (WeightInfo { dtype: DType::F32, dims: dims.to_vec() }, bytes));
        self
    }
}

/// Two layers, width 16, four heads over two, 24 tokens, tied output.
fn tiny() -> FakeFile {
    let mut file = FakeFile { tokens: Some(24), ..FakeFile::default() };
    file.strings.insert("general.architecture".into(), "llama".into());
    file.set("context_length", 64.0).set("block_count", 2.0).set("embedding_length", 16.0);
    file.set("feed_forward_length", 40.0).set("attention.head_count", 4.0).set("attention.head_count_kv", 2.0);
    file.set("attention.layer_norm_rms_epsilon", 1e-5);
    file.tensor("token_embd.weight", &[16, 24]).tensor("output_norm.weight", &[16]);
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        for (part, dims) in [
            ("attn_norm", &[16][..]),
            ("attn_q", &[16, 16]),
            ("attn_k", &[16, 8]),
            ("attn_v", &[16, 8]),
            ("attn_output", &[16, 16]),
            ("ffn_norm", &[16]),
            ("ffn_gate", &[16, 40]),
            ("ffn_up", &[16, 40]),
            ("ffn_down", &[40, 16]),
        ] {
            file.tensor(&name(part), dims);
        }
    }
    file
}

/// Ends a closure that changes a file.
fn nothing<T>(_: T) {}

fn error(change: impl FnOnce(&mut FakeFile)) -> LoadError {
    let mut file = tiny();
    change(&mut file);
    graph(&file).map(|model| text(&model.graph)).unwrap_err()
}

fn ops(model: &ModelGraph) -> BTreeMap<&'static str, usize> {
    let mut count = BTreeMap::new();
    model.graph.nodes().iter().for_each(|node| *count.entry(node.op.name()).or_default() += 1);
    count
}

#[test]
fn a_tied_model_becomes_the_graph_of_a_llama() {
    let model = graph(&tiny()).unwrap();
    assert_eq!((model.vocab, model.context), (24, 64));
    let ops = ops(&model);
    assert_eq!((ops["matmul"], ops["rms_norm"], ops["rope"], ops["attention"]), (15, 5, 4, 2));
    let printed = text(&model.graph);
    assert!(
        printed.contains("%2 blk.0.attn_q = matmul(%1, blk.0.attn_q.weight F32[16, 16]) -> f32[T, 16]"),
        "{printed}"
    );
    assert!(printed.contains(", token_embd.weight F32[16, 24]) -> f32[O, 24]"), "{printed}");
    assert_eq!(model.graph.node(model.graph.output()).shape.rows, Rows::Outputs);
}

#[test]
fn separate_output_biases_and_a_window_are_used_where_the_file_has_them() {
    let mut file = tiny();
    file.tensor("output.weight", &[16, 24]).tensor("output.bias", &[24]).tensor("blk.1.attn_q.bias", &[16]);
    file.set("attention.sliding_window", 8.0);
    let model = graph(&file).unwrap();
    let printed = text(&model.graph);
    for part in ["output.weight F32[16, 24], output.bias F32[24]", "blk.1.attn_q.bias F32[16]", "window=8"] {
        assert!(printed.contains(part), "{part} is missing in\n{printed}");
    }
}

#[test]
fn metadata_that_is_missing_or_senseless_is_named() {
    for key in ["context_length", "block_count", "embedding_length", "attention.layer_norm_rms_epsilon"] {
        let error = error(|file| nothing(file.remove(key)));
        assert!(
            matches!(&error, LoadError::MissingMetadata { key: named } if *named == format!("llama.{key}")),
            "{error}"
        );
    }
    for (key, value) in [
        ("attention.head_count_kv", 3.0),
        ("attention.head_count", 5.0),
        ("attention.head_count", 0.0),
        ("block_count", 1e12),
        ("rope.dimension_count", 3.0),
        ("rope.dimension_count", 6.0),
        ("rope.freq_base", 0.0),
        ("attention.layer_norm_rms_epsilon", -1.0),
        ("attention.key_length", 1e6),
    ] {
        let error = error(|file| nothing(file.set(key, value)));
        assert!(matches!(error, LoadError::InvalidMetadata { .. }), "{key} = {value}: {error}");
    }
}

#[test]
fn tensors_that_are_missing_misshapen_or_left_over_are_named() {
    let missing = error(|file| nothing(file.tensors.remove("blk.1.ffn_up.weight"))).to_string();
    assert!(missing.contains("blk.1.ffn_up.weight") && missing.contains("[16, 40]"), "{missing}");
    let misshapen = error(|file| nothing(file.tensor("blk.0.attn_k.weight", &[16, 16]))).to_string();
    for part in ["blk.0.attn_k.weight", "[16, 16]", "[16, 8]"] {
        assert!(misshapen.contains(part), "{misshapen}");
    }
    let left_over = error(|file| nothing(file.tensor("blk.0.attn_q_norm.weight", &[4])));
    assert!(matches!(left_over, LoadError::UnknownTensor { .. }), "{left_over}");
    let output = error(|file| nothing(file.tensor("output.weight", &[16, 25])));
    assert!(matches!(output, LoadError::TensorShape { .. }), "{output}");
}

#[test]
fn dimensions_of_one_at_the_end_change_nothing() {
    let mut file = tiny();
    for (info, _) in file.tensors.values_mut() {
        info.dims.push(1);
    }
    let model = graph(&file).unwrap();
    assert_eq!(text(&model.graph), text(&graph(&tiny()).unwrap().graph));
    let options = CpuOptions { threads: 1, ..CpuOptions::default() };
    CpuModel::new(&model.graph, &file, &options, 64, &mut |_, _| {}).unwrap();
}

#[test]
fn a_vocabulary_that_does_not_match_the_embedding_is_refused() {
    let error = error(|file| file.tokens = Some(25));
    assert!(matches!(error, LoadError::Vocabulary { tokens: 25, logits: 24 }), "{error}");
}

#[test]
fn other_architectures_experts_and_scalings_are_refused() {
    let other = error(|file| nothing(file.strings.insert("general.architecture".into(), "mamba".into()))).to_string();
    assert!(other.contains("mamba") && other.contains("llama"), "{other}");
    let experts = error(|file| nothing(file.set("expert_count", 8.0)));
    assert!(matches!(experts, LoadError::Unsupported { .. }), "{experts}");
    let scaling = error(|file| nothing(file.strings.insert("llama.rope.scaling.type".into(), "longrope".into())));
    assert!(matches!(scaling, LoadError::Unsupported { .. }), "{scaling}");
}

fn frequencies(file: &FakeFile) -> (Vec<f32>, f32) {
    let model = graph(file).unwrap();
    let rope = model.graph.nodes().iter().find_map(|node| match &node.op {
        Op::Rope { rope, .. } => Some(rope.clone()),
        _ => None,
    });
    let rope = rope.unwrap();
    (rope.inv_freq.to_vec(), rope.magnitude)
}

#[test]
fn rope_frequencies_follow_base_factors_and_scaling() {
    let mut file = tiny();
    assert_eq!(frequencies(&file), (vec![1.0, 0.01], 1.0));
    file.set("rope.freq_base", 400.0);
    assert_eq!(frequencies(&file), (vec![1.0, 0.05], 1.0));
    file.set("rope.scaling.factor", 4.0);
    assert_eq!(frequencies(&file), (vec![0.25, 0.0125], 1.0), "a factor alone is linear");
    file.strings.insert("llama.rope.scaling.type".into(), "none".into());
    assert_eq!(frequencies(&file).0, vec![1.0, 0.05]);
    let divisors = WeightInfo { dtype: DType::F32, dims: vec![2] };
    let bytes = [1.0f32, 8.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    file.tensors.insert(rope::FACTORS.into(), (divisors, bytes));
    assert_eq!(frequencies(&file).0, vec![1.0, 0.00625]);
}

#[test]
fn yarn_keeps_high_frequencies_and_stretches_low_ones() {
    let mut file = tiny();
    file.set("attention.key_length", 64.0);
    for layer in 0..2 {
        file.tensor(&format!("blk.{layer}.attn_q.weight"), &[16, 256]);
        file.tensor(&format!("blk.{layer}.attn_output.weight"), &[256, 16]);
        file.tensor(&format!("blk.{layer}.attn_k.weight"), &[16, 128]);
        file.tensor(&format!("blk.{layer}.attn_v.weight"), &[16, 128]);
    }
    let plain = frequencies(&file).0;
    file.strings.insert("llama.rope.scaling.type".into(), "yarn".into());
    file.set("rope.scaling.factor", 4.0).set("rope.scaling.original_context_length", 4096.0);
    let (scaled, magnitude) = frequencies(&file);
    assert!((f64::from(magnitude) - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-6);
    // Correction range for 64 values, base 10000, 4096 positions: floor(10.46) to ceil(22.51).
    for pair in 0..32 {
        let kept = 1.0 - ((pair as f32 - 10.0) / 13.0).clamp(0.0, 1.0);
        let expected = plain[pair] * (kept + (1.0 - kept) / 4.0);
        assert!((scaled[pair] - expected).abs() <= expected * 1e-5, "{pair}: {} for {expected}", scaled[pair]);
    }
}

#[test]
fn the_graph_computes_what_a_direct_forward_pass_does() {
    let file = tiny();
    let model = graph(&file).unwrap();
    let hoisted = rewrite::hoist_select_outputs(&model.graph);
    let mut interpreter = Interpreter::new(&hoisted, &file, &read_floats).unwrap();
    let tokens = [3, 17, 0, 23, 9];
    let sequences = [BatchSequence { start: 0, len: 5, pages: &[0] }];
    let logits = interpreter.run(&Batch { tokens: &tokens, sequences: &sequences, outputs: &[1, 4] }, &[]).unwrap();
    let direct = forward(&file, &tokens);
    for (got, expected) in logits.iter().zip(direct[1].iter().chain(&direct[4])) {
        assert!((f64::from(*got) - expected).abs() < 1e-4, "{got} for {expected}");
    }
}

/// The tiny model written out by hand in `f64`, with no graph: logits of every token.
fn forward(file: &FakeFile, tokens: &[u32]) -> Vec<Vec<f64>> {
    let read = |name: &str| -> Vec<f64> {
        let (info, bytes) = &file.tensors[name];
        read_floats(info.dtype, bytes, bytes.len() / 4).unwrap().into_iter().map(f64::from).collect()
    };
    let times = |x: &[f64], name: &str| -> Vec<f64> {
        read(name).chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    };
    let norm = |x: &[f64], name: &str| -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(read(name)).map(|(x, w)| x / (mean + 1e-5).sqrt() * w).collect()
    };
    let turn = |x: &mut [f64], position: usize| {
        for head in x.chunks_mut(4) {
            for pair in 0..2 {
                let angle = position as f64 * [1.0, 0.01][pair];
                let (a, b) = (head[2 * pair], head[2 * pair + 1]);
                head[2 * pair] = a * angle.cos() - b * angle.sin();
                head[2 * pair + 1] = a * angle.sin() + b * angle.cos();
            }
        }
    };
    let table = read("token_embd.weight");
    let mut stream: Vec<Vec<f64>> = tokens.iter().map(|token| table[*token as usize * 16..][..16].to_vec()).collect();
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in stream.iter_mut().enumerate() {
            let n = norm(x, &name("attn_norm"));
            let (mut q, mut k) = (times(&n, &name("attn_q")), times(&n, &name("attn_k")));
            turn(&mut q, position);
            turn(&mut k, position);
            keys.push(k);
            values.push(times(&n, &name("attn_v")));
            let mut mixed = vec![0.0; 16];
            for head in 0..4 {
                let (from, cached) = (head * 4, head / 2 * 4);
                let score = |k: &Vec<f64>| ((0..4).map(|i| q[from + i] * k[cached + i]).sum::<f64>() / 2.0).exp();
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let sum: f64 = scores.iter().sum();
                for (score, value) in scores.iter().zip(&values) {
                    (0..4).for_each(|i| mixed[from + i] += score / sum * value[cached + i]);
                }
            }
            let o = times(&mixed, &name("attn_output"));
            x.iter_mut().zip(o).for_each(|(x, o)| *x += o);
            let n = norm(x, &name("ffn_norm"));
            let (gate, up) = (times(&n, &name("ffn_gate")), times(&n, &name("ffn_up")));
            let hidden: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let down = times(&hidden, &name("ffn_down"));
            x.iter_mut().zip(down).for_each(|(x, down)| *x += down);
        }
    }
    stream.iter().map(|x| times(&norm(x, "output_norm.weight"), "token_embd.weight")).collect()
}

#[test]
fn drawings_fold_equal_layers_and_show_every_node() {
    let model = graph(&tiny()).unwrap();
    let svg = crate::graph::svg(&model.graph);
    assert!(svg.contains("\u{d7} 2 (layers 0 to 1)"), "{svg}");
    assert!(svg.contains(">blk.0.attn_q<") && !svg.contains(">blk.1.attn_q<"));
    let dot = crate::graph::dot(&model.graph);
    assert!(dot.contains("cluster_1") && dot.contains("blk.1.ffn_down"));
    assert_eq!(
        dot.matches(" -> ").count(),
        model.graph.nodes().iter().map(|node| node.op.inputs().len()).sum::<usize>()
    );
}
