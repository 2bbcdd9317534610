//! Tokens that are chosen or drawn on the device.

use super::{PAGES, engine::engine, file, kernels, load, options, standin, tiny};
use rustai::{
    Batch, BatchSequence, DType,
    backend::{DeviceChoice, Outside, Sampling},
    engine::{Engine, Request},
    model::LoadOptions,
    sampler::{Sampler, SamplerParams},
};
use rustai_tests::TinyLlama;
use std::path::PathBuf;
use tempfile::TempDir;

#[test]
fn greedy_tokens_are_chosen_on_the_device() {
    let (standin, folder) = (standin(), kernels());
    let (engine, _place) = engine(&tiny(DType::Q4_0), &folder);
    let greedy = || Request::raw("once").temperature(0.0).ignore_end(true).max_tokens(9);
    let answer = |request: Request| {
        let before = standin.get("fetched");
        let tokens = engine.generate(request).unwrap().tokens;
        (tokens, standin.get("fetched") - before)
    };
    let (tokens, fetched) = answer(greedy());
    assert_eq!((tokens.len(), fetched), (9, 9 * 4));
    // Logits come where somebody looks at them, and the tokens are the same.
    let (same, fetched) = answer(greedy().logprobs(true));
    assert_eq!(same, tokens);
    assert!(fetched > 9 * 4 * 100, "{fetched}");
    let mut penalties = SamplerParams::greedy();
    penalties.repetition_penalty = 1.5;
    let (_, fetched) = answer(greedy().sampling(penalties));
    assert!(fetched > 9 * 4 * 100, "{fetched}");
}

pub(super) fn drawing_engine(model: &TinyLlama, folder: &TempDir, device: DeviceChoice) -> (Engine, TempDir) {
    let place = tempfile::tempdir().unwrap();
    let path: PathBuf = place.path().join("model.gguf");
    std::fs::write(&path, model.bytes()).unwrap();
    let builder = Engine::builder(&path).threads(1).device(device).cuda_kernels(folder.path());
    (builder.max_sequences(2).device_sampling(true).build().unwrap(), place)
}

#[test]
fn tokens_are_drawn_on_the_device_where_that_is_asked_for() {
    let (standin, folder) = (standin(), kernels());
    let (engine, _place) = drawing_engine(&tiny(DType::Q4_0), &folder, DeviceChoice::Cuda(0));
    let request = |seed| Request::raw("once").seed(seed).ignore_end(true).max_tokens(9);
    let answer = |request: Request| {
        let before = standin.get("fetched");
        let tokens = engine.generate(request).unwrap().tokens;
        (tokens, standin.get("fetched") - before)
    };
    let (tokens, fetched) = answer(request(11));
    assert_eq!((tokens.len(), fetched), (9, 9 * 4));
    assert_eq!(answer(request(11)), (tokens.clone(), 9 * 4), "the same seed");
    assert_ne!(answer(request(12)).0, tokens);
    assert_eq!(answer(request(11).temperature(0.0)).1, 9 * 4);

    // Whoever looks at the logits gets them, and the host's sampler, as without the option.
    let logits = 9 * 4 * 100;
    let penalties = |penalty| {
        let mut params = SamplerParams::default();
        params.repetition_penalty = penalty;
        params
    };
    let (with_logprobs, fetched) = answer(request(11).logprobs(true));
    assert!(fetched > logits, "{fetched}");
    assert!(answer(request(11).sampling(penalties(1.3)).seed(11)).1 > logits);
    let (plain, _place) = self::engine(&tiny(DType::Q4_0), &folder);
    let before = standin.get("fetched");
    assert_eq!(plain.generate(request(11)).unwrap().tokens, with_logprobs);
    assert!(standin.get("fetched") - before > logits, "drawing is asked for");

    // Beside such a request, a seed gives the same tokens.
    let other = engine.stream(request(5).sampling(penalties(1.2)).max_tokens(20)).unwrap();
    assert_eq!(engine.generate(request(11)).unwrap().tokens, tokens);
    assert_eq!(other.finish().unwrap().tokens.len(), 20);
}

#[test]
fn a_cpu_draws_as_ever() {
    let (_standin, folder) = (standin(), kernels());
    let request = || Request::raw("once").seed(11).ignore_end(true).max_tokens(9);
    let (asked, _place) = drawing_engine(&tiny(DType::Q4_0), &folder, DeviceChoice::Cpu);
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.gguf");
    std::fs::write(&path, tiny(DType::Q4_0).bytes()).unwrap();
    let plain = Engine::builder(&path).threads(1).device(DeviceChoice::Cpu).build().unwrap();
    assert_eq!(asked.generate(request()).unwrap().tokens, plain.generate(request()).unwrap().tokens);
}

/// Pearson's chi-squared test of the device's draws against the shares of the host's, with seeds that are fixed.
#[test]
fn the_device_draws_as_the_host_does() {
    let (_standin, folder) = (standin(), kernels());
    let shape = TinyLlama { width: 64, feed_forward: 64, heads: 1, kv_heads: 1, layers: 1, ..tiny(DType::F16) };
    let file = file(&shape);
    let options = LoadOptions { context: 32, max_sequences: 48, ..options(DeviceChoice::Cuda(0), &folder) };
    let mut model = load(&file, &options).unwrap();
    assert_eq!(model.most_candidates(), Some(1024));
    let (tokens, pages) = ([5; 48], (0..48).map(|page| [page]).collect::<Vec<[u32; 1]>>());
    let sequences: Vec<_> = pages.iter().map(|pages| BatchSequence { len: 1, start: 0, pages }).collect();
    let all: Vec<u32> = (0..48).collect();
    let batch = Batch { tokens: &tokens, sequences: &sequences, outputs: &all };
    let vocab = model.limits().vocab;
    let logits = model.step(&batch).unwrap()[..vocab].to_vec();
    for (top_k, top_p, min_p, temperature) in
        [(12, 1.0, 0.0, 0.7), (40, 0.95, 0.05, 0.8), (30, 0.6, 0.0, 1.5), (0, 1.0, 0.3, 0.3)]
    {
        let mut params = SamplerParams::plain();
        (params.top_k, params.top_p, params.min_p, params.temperature) = (top_k, top_p, min_p, temperature);
        params.seed = Some(1);
        let mut host = Sampler::new(params, vocab).unwrap();
        let (on_host, on_device) = (100_000u32, 48 * 16u32);
        let mut shares = vec![0.0; vocab];
        for _ in 0..on_host {
            shares[host.sample(&logits).unwrap() as usize] += 1.0 / f64::from(on_host);
        }
        let mut counts = vec![0.0; vocab];
        let top_k = if top_k == 0 { vocab } else { top_k };
        for step in 0..on_device / 48 {
            let draw = |row| Some(Sampling { top_k, top_p, min_p, temperature, seed: 2, draw: step * 48 + row });
            let rows: Vec<_> = (0..48u32).map(draw).collect();
            let outside = Outside::default();
            let (drawn, _) = model.step_sampled(&batch, outside, &rows).unwrap().unwrap();
            drawn.iter().for_each(|token| counts[*token as usize] += 1.0);
        }
        let (mut distance, mut kinds, mut rest) = (0.0, 0.0, [0.0, 0.0]);
        for (count, share) in counts.iter().zip(shares) {
            let expected = share * f64::from(on_device);
            // Too few of a kind are counted together.
            if expected < 5.0 {
                rest = [rest[0] + count, rest[1] + expected];
                continue;
            }
            distance += (count - expected) * (count - expected) / expected;
            kinds += 1.0;
        }
        if rest[1] >= 5.0 {
            distance += (rest[0] - rest[1]) * (rest[0] - rest[1]) / rest[1];
            kinds += 1.0;
        } else {
            assert!(rest[0] < 20.0, "{rest:?}: tokens that the host does not draw");
        }
        // Of a chi-squared distribution with n degrees of freedom, mean and variance are n and 2n.
        let freedom: f64 = kinds - 1.0;
        println!("top-k {top_k}, top-p {top_p}, min-p {min_p}, temperature {temperature}: {distance:.1} of {freedom}");
        assert!(freedom >= 2.0 && distance < freedom + 4.0 * (2.0 * freedom).sqrt(), "{distance} of {freedom}");
    }
}

#[test]
fn rows_that_make_no_sense_are_not_drawn() {
    let (_standin, folder) = (standin(), kernels());
    let mut model = load(&file(&tiny(DType::F16)), &options(DeviceChoice::Cuda(0), &folder)).unwrap();
    let sequences = [BatchSequence { len: 2, start: 0, pages: &PAGES }];
    let batch = Batch { tokens: &[1, 2], sequences: &sequences, outputs: &[0, 1] };
    let mut refusal = |rows: &[Option<Sampling>]| {
        model.step_sampled(&batch, Outside::default(), rows).unwrap().map(drop).unwrap_err().to_string()
    };
    assert!(refusal(&[None]).contains("1 rows are sampled in a step of 2"));
    let wrong = Sampling { top_k: 2000, ..Sampling::LARGEST };
    assert!(refusal(&[None, Some(wrong)]).contains("top_k is 2000"), "{}", refusal(&[None, Some(wrong)]));
    // One row is drawn, and of the other one come logits.
    let rows = [None, Some(Sampling::LARGEST)];
    let (tokens, logits) = model.step_sampled(&batch, Outside::default(), &rows).unwrap().unwrap();
    let (token, logits) = (tokens[1], logits.to_vec());
    let expected = model.step(&batch).unwrap();
    let vocab = expected.len() / 2;
    assert_eq!(logits[..vocab], expected[..vocab]);
    let largest = (0..vocab).max_by(|a, b| expected[vocab + a].total_cmp(&expected[vocab + b]));
    assert_eq!(Some(token as usize), largest);
}
