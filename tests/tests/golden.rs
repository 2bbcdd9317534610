//! The CPU runtime on a real model against llama.cpp and an independent `f32` forward pass.
//!
//! `data/smollm2_golden.json` holds, for SmolLM2-135M-Instruct Q4_1 and six prompts: the token ids, the greedy tokens and the
//! margin between their two best logits that llama.cpp gives (2026 snapshot, AVX-512 build, f16 cache); the best logits of a
//! float32 forward pass in numpy over the dequantized weights (`f32_logits`); and the KL divergence of llama.cpp's first-step
//! distribution from it (`kl_llamacpp`).
//!
//! The file of the model has SHA-256 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53.

use rustai::{
    Batch, BatchSequence, Isa, KvType, PAGE_TOKENS,
    backend::{Executable, StepError},
    gguf::GgufFile,
    model::{self, LoadOptions},
    perplexity::Score,
    quantize::{self, Imatrix, Job, Mix, Options},
    text::{Specials, Tokenizer},
};
use rustai_tests::{divergence::kl, fixtures};
use serde_json::Value;
use std::{ops::ControlFlow, sync::Arc};

struct Case {
    name: String,
    prompt: String,
    tokens: Vec<u32>,
    greedy: Vec<u32>,
    margins: Vec<f64>,
    kl: f64,
    f32_logits: Vec<(usize, f64)>,
}

fn cases() -> Vec<Case> {
    let data: Value = serde_json::from_str(include_str!("../data/smollm2_golden.json")).expect("valid JSON");
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let ids = |value: &Value| list(value).iter().map(|id| id.as_u64().expect("an id") as u32).collect();
    let number = |value: &Value| value.as_f64().expect("a number");
    list(&data)
        .iter()
        .map(|case| Case {
            name: case["name"].as_str().expect("a name").into(),
            prompt: case["prompt"].as_str().expect("a prompt").into(),
            tokens: ids(&case["prompt_tokens"]),
            greedy: ids(&case["greedy_tokens"]),
            margins: list(&case["margins"]).iter().map(number).collect(),
            kl: number(&case["kl_llamacpp"]),
            f32_logits: list(&case["f32_logits"])
                .iter()
                .map(|pair| (pair[0].as_u64().expect("an id") as usize, number(&pair[1])))
                .collect(),
        })
        .collect()
}

fn file() -> GgufFile {
    GgufFile::open(&fixtures::smollm2()).expect("a valid file")
}

fn load(file: &GgufFile, isa: Isa, threads: usize) -> Box<dyn Executable> {
    load_with(file, isa, threads, KvType::F16)
}

fn load_with(file: &GgufFile, isa: Isa, threads: usize, kv_type: KvType) -> Box<dyn Executable> {
    let isa = Some(isa);
    let options = LoadOptions { threads, context: 512, max_outputs: 512, isa, kv_type, ..LoadOptions::default() };
    model::load(file, &options, &mut |_| ()).expect("a supported model")
}

fn fast_isas() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| *isa != Isa::Reference && isa.missing_feature().is_none()).collect()
}

/// Logits after the last of `tokens`, of which the first `start` are in the cache already.
fn logits(model: &mut dyn Executable, start: usize, tokens: &[u32]) -> Vec<f32> {
    let pages: Vec<u32> = (0..512 / PAGE_TOKENS as u32).collect();
    let sequence = BatchSequence { len: tokens.len() as u32, start: start as u32, pages: &pages };
    let outputs = [tokens.len() as u32 - 1];
    model.step(&Batch { tokens, sequences: &[sequence], outputs: &outputs }).expect("a sound batch").to_vec()
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary") as u32
}

#[test]
fn prompts_become_the_same_tokens() {
    let tokenizer = Tokenizer::from_metadata(file().metadata()).expect("a supported vocabulary");
    for case in cases() {
        assert_eq!(tokenizer.encode_prompt(&case.prompt, Specials::Parse).unwrap(), case.tokens, "{}", case.name);
    }
}

#[test]
fn the_reference_is_the_f32_truth_and_fast_kernels_are_as_near_to_it_as_llama_cpp() {
    let file = file();
    let cases = cases();
    let mut reference = load(&file, Isa::Reference, 2);
    let truth: Vec<Vec<f32>> = cases.iter().map(|case| logits(&mut *reference, 0, &case.tokens)).collect();
    for (case, truth) in cases.iter().zip(&truth) {
        for &(id, expected) in &case.f32_logits {
            let error = (f64::from(truth[id]) - expected).abs();
            assert!(error <= 2e-3, "{}: logit {id} is {} for {expected}", case.name, truth[id]);
        }
    }
    let theirs = cases.iter().map(|case| case.kl).sum::<f64>() / cases.len() as f64;
    for isa in fast_isas() {
        let mut model = load(&file, isa, 2);
        let kl: Vec<f64> =
            cases.iter().zip(&truth).map(|(case, truth)| kl(truth, &logits(&mut *model, 0, &case.tokens))).collect();
        let ours = kl.iter().sum::<f64>() / kl.len() as f64;
        println!("{isa:?}: mean KL {ours:.6}, llama.cpp {theirs:.6}; {kl:.6?}");
        assert!(ours <= theirs, "{isa:?}: mean KL {ours}, llama.cpp {theirs}");
        // A single position moves with the order in which kernels add; many of them are held together by the window below.
        for (case, kl) in cases.iter().zip(kl) {
            assert!(kl <= 4.0 * case.kl, "{isa:?} {}: KL {kl}, llama.cpp {}", case.name, case.kl);
        }
    }
}

#[test]
fn greedy_choices_are_llama_cpps_wherever_its_margin_is_clear() {
    let file = file();
    for isa in fast_isas() {
        let mut model = load(&file, isa, 2);
        let mut compared = 0;
        for case in cases() {
            let mut logits_here = logits(&mut *model, 0, &case.tokens);
            // Fed llama.cpp's own tokens, so that positions behind an unclear one can be compared too.
            for (i, (&expected, &margin)) in case.greedy.iter().zip(&case.margins).enumerate() {
                // Below a margin of 0.75 (llama.cpp's own largest logit error) either token may win.
                if margin >= 0.75 {
                    assert_eq!(best(&logits_here), expected, "{isa:?} {} at {i}, margin {margin}", case.name);
                    compared += 1;
                }
                logits_here = logits(&mut *model, case.tokens.len() + i, &[expected]);
            }
        }
        assert_eq!(compared, 294, "of the 374 positions");
    }
}

#[test]
fn logits_do_not_depend_on_the_number_of_threads() {
    let (file, case) = (file(), &cases()[3]);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.missing_feature().is_none()) {
        let run = |threads| -> Vec<u32> {
            let mut model = load(&file, isa, threads);
            let mut bits: Vec<u32> = logits(&mut *model, 0, &case.tokens).iter().map(|x| x.to_bits()).collect();
            bits.extend(logits(&mut *model, case.tokens.len(), &[1]).iter().map(|x| x.to_bits()));
            bits
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3), "{isa:?}");
    }
}

/// The text's tokens, without a BOS in front.
fn text_tokens(file: &GgufFile) -> Vec<u32> {
    let tokenizer = Tokenizer::from_metadata(file.metadata()).expect("a supported vocabulary");
    assert_eq!(tokenizer.prefix(), None, "texts of this model begin without BOS");
    tokenizer.encode(&fixtures::wikitext2_test(), Specials::Text).expect("text")
}

/// Positions of text, from its start on: the mean over many moves far less than single prompts do when kernels add in
/// another order.
const WINDOW: usize = 128;

/// llama.cpp's mean KL divergence from the truth over these positions: `scripts/compare_fidelity.py` with
/// `--window 128 --windows 1` on this file (b11434, built for AVX2).
const LLAMA_CPP: f64 = 0.003301;

/// Logits at all positions of the window.
fn window_logits(model: &mut dyn Executable, tokens: &[u32]) -> Vec<f32> {
    let pages: Vec<u32> = (0..WINDOW.div_ceil(PAGE_TOKENS) as u32).collect();
    let sequence = BatchSequence { len: WINDOW as u32, start: 0, pages: &pages };
    let outputs: Vec<u32> = (0..WINDOW as u32).collect();
    let batch = Batch { tokens: &tokens[..WINDOW], sequences: &[sequence], outputs: &outputs };
    model.step(&batch).expect("a sound batch").to_vec()
}

/// Mean KL divergence of the window's distributions from the truth's.
fn window_kl(truth: &[f32], logits: &[f32]) -> f64 {
    let vocab = truth.len() / WINDOW;
    let sum: f64 = truth.chunks_exact(vocab).zip(logits.chunks_exact(vocab)).map(|(p, q)| kl(p, q)).sum();
    sum / WINDOW as f64
}

#[test]
fn over_a_window_of_text_fast_kernels_are_nearer_to_the_f32_truth_than_llama_cpp() {
    let file = file();
    let tokens = text_tokens(&file);
    let all = |isa| window_logits(&mut *load(&file, isa, 2), &tokens);
    let truth = all(Isa::Reference);
    for isa in fast_isas() {
        let ours = window_kl(&truth, &all(isa));
        println!("{isa:?}: mean KL {ours:.6} of {WINDOW} positions, llama.cpp {LLAMA_CPP}");
        assert!(ours <= 0.5 * LLAMA_CPP, "{isa:?}: mean KL {ours}, llama.cpp {LLAMA_CPP}");
    }
}

#[test]
fn with_an_8_bit_cache_predictions_are_nearer_to_the_truth_than_llama_cpps_with_half_precision() {
    let file = file();
    let tokens = text_tokens(&file);
    let truth = window_logits(&mut *load(&file, Isa::Reference, 2), &tokens);
    for isa in fast_isas() {
        let mut models = [KvType::F16, KvType::Q8_0].map(|kv_type| load_with(&file, isa, 2, kv_type));
        let [half, eight] = models.each_mut().map(|model| window_logits(&mut **model, &tokens));
        let (ours, changed) = (window_kl(&truth, &eight), window_kl(&half, &eight));
        let [half, eight] = models.map(|mut model| {
            let mut score = Score::default();
            for chunk in tokens.chunks_exact(512).take(8) {
                score.add_chunk::<StepError>(&mut *model, chunk, 512, || Ok(())).expect("a sound batch");
            }
            score.perplexity()
        });
        println!(
            "{isa:?}: mean KL {ours:.6}, from f16's {changed:.6}; perplexity of 8 chunks {half:.4} with f16, {eight:.4} with q8_0"
        );
        // Less than what llama.cpp's arithmetic alone changes.
        assert!(changed > 0.0 && changed < LLAMA_CPP, "{isa:?}: mean KL {changed} from half precision");
        assert!(ours <= 0.75 * LLAMA_CPP, "{isa:?}: mean KL {ours}, llama.cpp {LLAMA_CPP}");
        assert!((eight / half - 1.0).abs() < 3e-3, "{isa:?}: perplexity {half} with f16, {eight} with q8_0");
    }
}

#[test]
fn perplexity_of_each_chunk_is_that_of_f32_and_of_llama_cpp() {
    const CHUNK: usize = 512;
    /// Mean negative log-likelihood of the scored tokens of the text's first chunks: in f32 (`RUSTAI_CPU=reference rustai
    /// perplexity --ctx 512 --chunks 5`), and llama.cpp's (`llama-perplexity -c 512 --chunks 5`, b11434 built for AVX2).
    const KNOWN: [(f64, f64); 5] =
        [(2.55288, 2.55401), (3.60022, 3.59866), (3.28278, 3.28011), (3.00234, 3.01210), (3.00092, 3.00069)];
    let file = file();
    let tokens = text_tokens(&file);
    for isa in fast_isas() {
        let mut model = load(&file, isa, 2);
        let (mut from_f32, mut from_llama_cpp) = (0.0, 0.0);
        for (i, (chunk, (f32, llama_cpp))) in tokens.chunks_exact(CHUNK).zip(KNOWN).enumerate() {
            let mut score = Score::default();
            score.add_chunk::<StepError>(&mut *model, chunk, CHUNK, || Ok(())).expect("a sound batch");
            assert_eq!(score.count(), CHUNK / 2 - 1);
            let ours = score.perplexity().ln();
            println!("{isa:?} chunk {i}: {ours:.5}, f32 {:+.5}, llama.cpp {:+.5}", ours - f32, ours - llama_cpp);
            assert!((ours - f32).abs() <= 0.015, "{isa:?} chunk {i}: {ours} for {f32}");
            from_f32 += (ours - f32) / KNOWN.len() as f64;
            from_llama_cpp += (ours - llama_cpp) / KNOWN.len() as f64;
        }
        // Half a percent of the perplexity.
        assert!(from_f32.abs() <= 5e-3 && from_llama_cpp.abs() <= 5e-3, "{isa:?}: {from_f32}, {from_llama_cpp}");
    }
}

/// The file in another mix; its tensors are quantized already.
fn quantized(file: &GgufFile, mix: Mix, imatrix: Option<Arc<Imatrix>>) -> GgufFile {
    let options = Options { allow_requantize: true, imatrix, ..Options::to(mix) };
    let job = Job::plan(file, &options).expect("a sound file");
    let mut bytes = Vec::new();
    job.write(&mut bytes, &mut |_| ControlFlow::Continue(())).expect("memory");
    let made = GgufFile::from_bytes(bytes).expect("a valid file");
    let after: usize = made.tensors().iter().map(|tensor| tensor.bytes).sum();
    assert_eq!(job.bytes_after(), after as u64);
    made
}

/// Perplexity of the first two chunks of wikitext-2 with the file's weights as they are: in `f32`, so that activations are too. With
/// those of 8 bits it depends on the instruction set by as much as what Q8_0 may lose (0.2 %).
fn short_perplexity(file: &GgufFile, tokens: &[u32]) -> f64 {
    let mut model = load(&quantized(file, Mix::F32, None), Isa::best(), 2);
    let mut score = Score::default();
    for chunk in tokens.chunks_exact(512).take(2) {
        score.add_chunk::<StepError>(&mut *model, chunk, 512, || Ok(())).expect("a sound batch");
    }
    score.perplexity()
}

#[test]
fn quantized_models_predict_nearly_as_well_as_what_they_were_made_from() {
    let file = file();
    let tokenizer = Tokenizer::from_metadata(file.metadata()).expect("a supported vocabulary");
    let tokens = tokenizer.encode(&fixtures::wikitext2_test(), Specials::Text).expect("text");
    let floats = quantized(&file, Mix::F16, None);
    let before = short_perplexity(&floats, &tokens);
    // The text after what is scored.
    let text = &tokens[2 * 512..6 * 512];
    let imatrix = quantize::gather(&floats, text, 512, tokenizer.prefix(), 2, &mut |_| ControlFlow::Continue(()));
    let imatrix = Arc::new(imatrix.expect("a sound model"));
    assert_eq!((imatrix.len(), imatrix.chunks), (30 * 7, 4));
    // The weights were Q4_1 before they were halves, so a grid of other steps loses more than it would of a model in
    // full precision, with llama-quantize as much as here (Q5_K_M: 1.08 times over 8 chunks with either).
    for (mix, importance, ceiling) in [
        (Mix::Q8_0, false, 1.0015),
        (Mix::Q6_K, false, 1.003),
        (Mix::Q5_K_M, true, 1.005),
        (Mix::Q4_K_M, false, 1.06),
        (Mix::Q4_K_M, true, 1.01),
        (Mix::Q3_K_M, true, 1.07),
    ] {
        let made = quantized(&floats, mix, importance.then(|| imatrix.clone()));
        let ratio = short_perplexity(&made, &tokens) / before;
        println!("{mix} with importance {importance}: {ratio:.4} of {before:.4}");
        assert!(ratio < ceiling, "{mix} with importance {importance}: {ratio}");
    }
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let file = file();
    let write = |threads| {
        let options = Options { allow_requantize: true, threads, ..Options::to(Mix::Q4_K_M) };
        let mut bytes = Vec::new();
        Job::plan(&file, &options).unwrap().write(&mut bytes, &mut |_| ControlFlow::Continue(())).unwrap();
        bytes
    };
    assert!(write(1) == write(3));
}
