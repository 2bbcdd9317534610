//! The CPU executable against the graph interpreter: same graph, same weights, same batches.

use rustai::{
    Batch, BatchSequence, DType, Isa,
    backend::BuildError,
    backend::cpu::{CpuGraph, CpuOptions},
    gguf::{GgufFile, Value},
    graph::{Graph, GraphBuilder, Rows, WeightSource, interpret::Interpreter},
    model::{self, LoadError, LoadOptions},
};
use rustai_kernels_cpu::formats;
use rustai_tests::{Rng, TinyLlama};

/// Dequantization through the table of formats, which is tested against numpy.
fn dequantize(dtype: DType, bytes: &[u8], count: usize) -> Option<Vec<f32>> {
    let format = formats::of(dtype)?;
    let mut values = vec![0.0; count];
    (dtype.bytes_for(count)? == bytes.len()).then(|| (format.dequantize)(bytes, &mut values))?;
    Some(values)
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.missing_feature().is_none())
}

fn compile(graph: &Graph, source: &dyn WeightSource, isa: Isa, threads: usize) -> CpuGraph {
    let options =
        CpuOptions { isa: Some(isa), threads, max_tokens: 48, max_outputs: 48, pages: 8, ..CpuOptions::default() };
    CpuGraph::new(graph, source, &options).unwrap()
}

/// Root mean square of the difference, relative to that of `expected`.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|value| value.is_finite()));
    let square = |value: f64| value * value;
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    let size: f64 = expected.iter().map(|value| square(f64::from(*value))).sum();
    (error / size).sqrt()
}

/// Steps of two sequences: a prefill, a prefill beside a decode, and decodes whose pages are out of order.
struct Script {
    tokens: Vec<u32>,
}

impl Script {
    fn new(vocab: usize) -> Self {
        let mut rng = Rng::new(5);
        Self { tokens: (0..80).map(|_| rng.below(vocab) as u32).collect() }
    }

    fn run(&self, mut step: impl FnMut(&Batch<'_>) -> Vec<f32>) -> Vec<f32> {
        let sequence = |start, len, pages| BatchSequence { start, len, pages };
        let (a, b): (&[u32], &[u32]) = (&[6, 2], &[0, 5]);
        let steps: [(&[BatchSequence<'_>], &[u32]); 4] = [
            (&[sequence(0, 31, a)], &[0, 7, 30]),
            (&[sequence(31, 1, a), sequence(0, 40, b)], &[0, 40]),
            (&[sequence(40, 1, b), sequence(32, 1, a)], &[0, 1]),
            (&[sequence(33, 4, a)], &[3]),
        ];
        let mut logits = Vec::new();
        let mut at = 0;
        for (sequences, outputs) in steps {
            let len: u32 = sequences.iter().map(|sequence| sequence.len).sum();
            let tokens = &self.tokens[at..at + len as usize];
            logits.extend(step(&Batch { tokens, sequences, outputs }));
            at += len as usize;
        }
        logits
    }
}

fn compare(model: &TinyLlama, ceiling: impl Fn(Isa) -> f64) {
    let file = GgufFile::from_bytes(model.bytes()).unwrap();
    let graph = model::graph(&file).unwrap();
    let script = Script::new(graph.vocab);
    let mut interpreter = Interpreter::new(&graph.graph, &file, &dequantize).unwrap();
    let expected = script.run(|batch| interpreter.run(batch, &[]).unwrap());
    for isa in isas() {
        let mut bits = None;
        for threads in [1, 3] {
            let mut cpu = compile(&graph.graph, &file, isa, threads);
            let found = script.run(|batch| cpu.run_batch(batch).unwrap().to_vec());
            let distance = distance(&found, &expected);
            assert!(distance <= ceiling(isa), "{model:?} on {isa:?}: {distance:.2e}\n{}", cpu.plan());
            assert_eq!(*bits.get_or_insert(found.clone()), found, "threads change nothing");
        }
    }
}

#[test]
fn float_models_of_every_make_agree_with_the_interpreter() {
    let ceiling = |isa| if isa == Isa::Reference { 1e-5 } else { 1e-3 };
    let plain = TinyLlama::default();
    compare(&plain, ceiling);
    compare(&TinyLlama { tied: false, biases: true, rope_freqs: true, ..plain.clone() }, ceiling);
    compare(&TinyLlama { heads: 2, kv_heads: 2, layers: 1, dtype: DType::F16, ..plain.clone() }, ceiling);
    let window = vec![("llama.attention.sliding_window".to_owned(), Value::U32(9))];
    compare(&TinyLlama { metadata: window, ..plain.clone() }, ceiling);
    let yarn = vec![
        ("llama.rope.scaling.type".to_owned(), "yarn".into()),
        ("llama.rope.scaling.factor".to_owned(), Value::F32(4.0)),
        ("llama.rope.dimension_count".to_owned(), Value::U32(8)),
    ];
    compare(&TinyLlama { metadata: yarn, ..plain }, ceiling);
}

#[test]
fn quantized_models_agree_with_the_interpreter_to_the_precision_of_8_bit_activations() {
    let ceiling = |isa| if isa == Isa::Reference { 1e-5 } else { 3e-2 };
    let floats = [DType::F32, DType::F16, DType::Q8_K];
    for dtype in formats::table().iter().map(|format| format.dtype).filter(|dtype| !floats.contains(dtype)) {
        compare(&TinyLlama { layers: 1, ..TinyLlama::of(dtype) }, ceiling);
    }
    let model = TinyLlama { embedding_dtype: Some(DType::Q8_0), tied: false, ..TinyLlama::of(DType::Q4_0) };
    compare(&model, ceiling);
}

#[test]
fn a_custom_graph_with_softmax_and_two_inputs_agrees_with_the_interpreter() {
    let mut rng = Rng::new(9);
    let mut b = GraphBuilder::new();
    let x = b.input("x", Rows::Tokens, 24).unwrap();
    let y = b.input("y", Rows::Tokens, 24).unwrap();
    let w = b.inline("w", &[24, 10], (0..240).map(|_| rng.normal()).collect()).unwrap();
    let bias = b.inline("bias", &[10], (0..10).map(|_| rng.normal()).collect()).unwrap();
    let product = b.mul("product", x, y).unwrap();
    let sum = b.add("sum", product, x).unwrap();
    let scores = b.matmul("scores", sum, w, Some(bias)).unwrap();
    let p = b.softmax("p", scores).unwrap();
    let graph = b.finish(p).unwrap();
    let values = |rng: &mut Rng| (0..5 * 24).map(|_| rng.normal()).collect::<Vec<f32>>();
    let inputs = [values(&mut rng), values(&mut rng)];
    let sequences = [BatchSequence { start: 0, len: 5, pages: &[0] }];
    let batch = Batch { tokens: &[0; 5], sequences: &sequences, outputs: &[] };
    let expected = Interpreter::new(&graph, &(), &dequantize).unwrap().run(&batch, &inputs).unwrap();
    for isa in isas() {
        let mut cpu = compile(&graph, &(), isa, 2);
        cpu.set_input("x", &inputs[0]).unwrap();
        cpu.set_input("y", &inputs[1]).unwrap();
        let distance = distance(cpu.run(5).unwrap(), &expected);
        assert!(distance < 1e-5, "{isa:?}: {distance:.2e}");
    }
}

fn load(model: &TinyLlama, options: &LoadOptions) -> (Vec<u64>, Result<String, LoadError>) {
    let file = GgufFile::from_bytes(model.bytes()).unwrap();
    let mut done = Vec::new();
    let result = model::load(&file, options, &mut |progress| done.push(progress.done));
    (done, result.map(|model| model.describe()))
}

#[test]
fn loading_tells_its_progress_and_its_kernels() {
    let options = LoadOptions { isa: Some(Isa::Reference), threads: 2, ..LoadOptions::default() };
    let (done, described) = load(&TinyLlama::default(), &options);
    assert!(described.unwrap().contains("reference"));
    assert!(done[0] == 0 && done.is_sorted() && done.len() > 10);
}

#[test]
fn a_type_without_a_kernel_is_refused_before_anything_is_read() {
    let (done, result) = load(&TinyLlama::of(DType::Q8_1), &LoadOptions::default());
    let error = result.unwrap_err();
    assert!(matches!(error, LoadError::Build(BuildError::UnsupportedType { dtype: DType::Q8_1, .. })), "{error}");
    assert!(error.to_string().contains("token_embd.weight") && done.is_empty(), "{error}");
}

#[test]
fn a_cache_that_no_memory_holds_is_refused_before_anything_is_read() {
    let (done, result) =
        load(&TinyLlama::default(), &LoadOptions { context: 1 << 40, threads: 1, ..LoadOptions::default() });
    let error = result.unwrap_err();
    assert!(matches!(error, LoadError::Build(BuildError::OutOfMemory { .. })), "{error}");
    assert!(error.to_string().contains("--ctx") && done.is_empty(), "{error}");
}
