//! How steps run: recorded or launched, in what memory.

use super::{PAGES, error, file, kernels, load, logits, options, standin, tiny, tokens, tolerance};
use rustai::{
    Batch, BatchSequence, DType, KvType,
    backend::{DeviceChoice, StepError},
    model::LoadOptions,
};
use rustai_tests::TinyLlama;

#[test]
fn more_shapes_of_steps_than_are_kept_do_no_harm() {
    let (standin, folder) = (standin(), kernels());
    let shape = TinyLlama { width: 64, feed_forward: 64, heads: 1, kv_heads: 1, layers: 1, ..tiny(DType::F16) };
    let file = file(&shape);
    let options = LoadOptions { context: 1024, max_sequences: 48, ..options(DeviceChoice::Cuda(0), &folder) };
    let mut model = load(&file, &options).unwrap();
    let held = standin.get("allocations");
    for start in [10, 300, 600] {
        for _ in 0..2 {
            for count in 1..=48u32 {
                let pages: Vec<[u32; 32]> =
                    (0..count).map(|i| std::array::from_fn(|page| 32 * i + page as u32)).collect();
                let sequences: Vec<_> = pages.iter().map(|pages| BatchSequence { len: 1, start, pages }).collect();
                let all: Vec<u32> = (0..count).collect();
                model.step(&Batch { tokens: &all, sequences: &sequences, outputs: &all }).unwrap();
            }
        }
    }
    assert_eq!(standin.get("allocations"), held);
    assert!(standin.get("graph_launches") > 0);
}

#[test]
fn a_decoding_step_is_one_recorded_graph_and_takes_no_memory() {
    let (standin, folder) = (standin(), kernels());
    let file = file(&tiny(DType::Q4_0));
    let mut model = load(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap();
    let mut step = |position: u32| {
        let sequences = [BatchSequence { len: 1, start: position, pages: &PAGES }];
        model.step(&Batch { tokens: &[5], sequences: &sequences, outputs: &[0] }).unwrap();
    };
    step(0);
    let before = ["graph_launches", "allocations", "host_allocations"].map(|name| standin.get(name));
    (1..6).for_each(&mut step);
    let after = ["graph_launches", "allocations", "host_allocations"].map(|name| standin.get(name));
    assert_eq!(after, [before[0] + 5, before[1], before[2]]);
}

/// As many tokens as sequences: the engine decodes so, whatever their number.
#[test]
fn a_decoding_step_of_many_sequences_is_recorded_too() {
    let (standin, folder) = (standin(), kernels());
    let shape = TinyLlama { width: 64, feed_forward: 64, heads: 1, kv_heads: 1, layers: 1, ..tiny(DType::Q8_0) };
    let file = file(&shape);
    let run = |device| {
        let options =
            LoadOptions { max_batch: 70, max_outputs: 70, max_sequences: 70, context: 32, ..options(device, &folder) };
        let mut model = load(&file, &options).unwrap();
        let pages: Vec<[u32; 1]> = (0..70).map(|page| [page]).collect();
        let before = standin.get("graph_launches");
        let mut last = Vec::new();
        for start in 0..3 {
            let sequences: Vec<_> = pages.iter().map(|pages| BatchSequence { len: 1, start, pages }).collect();
            let all: Vec<u32> = (0..70).collect();
            last = model.step(&Batch { tokens: &all, sequences: &sequences, outputs: &all }).unwrap().to_vec();
        }
        (last, standin.get("graph_launches") - before)
    };
    let ((expected, _), (got, recorded)) = (run(DeviceChoice::Cpu), run(DeviceChoice::Cuda(0)));
    assert_eq!(recorded, 2);
    assert!(error(&got, &expected) < tolerance(DType::Q8_0), "{:.2e}", error(&got, &expected));
}

#[test]
fn a_step_that_cannot_be_recorded_is_launched() {
    let (standin, folder) = (standin(), kernels());
    let file = file(&tiny(DType::Q4_0));
    let run = |fault: Option<(&str, i32)>| {
        let mut model = load(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap();
        let before = standin.get("graph_launches");
        if let Some((call, result)) = fault {
            standin.fault(call, 1, result);
        }
        let all = logits(&mut *model, &tokens(4), 1);
        (all, standin.get("graph_launches") - before)
    };
    let (expected, recorded) = run(None);
    assert_eq!(recorded, 3);
    for (call, result) in [
        ("cuStreamBeginCapture", 900),
        ("cuStreamEndCapture", 901),
        ("cuGraphInstantiateWithFlags", 2),
        ("cuGraphLaunch", 2),
    ] {
        let (got, recorded) = run(Some((call, result)));
        assert_eq!(standin.get("faults"), 0, "{call} was not called");
        assert_eq!((got == expected, recorded), (true, 0), "{call}");
    }
    // What cannot be launched either says why.
    let mut model = load(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap();
    logits(&mut *model, &tokens(1), 1);
    standin.fault("cuGraphInstantiateWithFlags", 1, 999);
    let sequences = [BatchSequence { len: 1, start: 1, pages: &PAGES }];
    let error = model.step(&Batch { tokens: &[5], sequences: &sequences, outputs: &[0] }).unwrap_err();
    assert!(error.to_string().contains("CUDA_ERROR_UNKNOWN"), "{error}");
}

/// Between two kernels a device waits, so their number is part of what a token costs.
#[test]
fn a_decoding_step_has_as_many_launches_as_are_known() {
    let (standin, folder) = (standin(), kernels());
    let layers = 3;
    // Embedding, the last layer's two choices of rows, normalization and logits; what attention has is quantized after the choice.
    let others = |dtype| if dtype == DType::F16 { 5 } else { 6 };
    for (dtype, value_dtype, kv_type, per_layer) in [
        (DType::Q4_K, None, KvType::F16, 8),
        (DType::Q4_K, Some(DType::Q6_K), KvType::F16, 8),
        (DType::F16, None, KvType::F16, 7),
        // The append to an 8-bit cache is one of its own.
        (DType::Q4_K, Some(DType::Q6_K), KvType::Q8_0, 9),
    ] {
        let file = file(&TinyLlama { layers, value_dtype, ..tiny(dtype) });
        // Long enough for attention in runs.
        let options = LoadOptions { context: 512, kv_type, ..options(DeviceChoice::Cuda(0), &folder) };
        let mut model = load(&file, &options).unwrap();
        let pages: Vec<u32> = (0..16).collect();
        for turn in 0..3 {
            let before = standin.get("launches");
            let sequences = [BatchSequence { len: 1, start: 100 + turn, pages: &pages }];
            model.step(&Batch { tokens: &[5], sequences: &sequences, outputs: &[0] }).unwrap();
            let launches = standin.get("launches") - before;
            assert_eq!(launches, (layers * per_layer + others(dtype)) as i64, "{dtype}, {value_dtype:?}, turn {turn}");
        }
    }
}

/// The design promises a step that takes no lock.
#[test]
fn steps_look_up_no_kernels() {
    let (standin, folder) = (standin(), kernels());
    for (dtype, value_dtype) in [(DType::Q4_K, None), (DType::Q4_K, Some(DType::Q6_K)), (DType::F16, None)] {
        let file = file(&TinyLlama { value_dtype, ..tiny(dtype) });
        let options = LoadOptions { max_batch: 80, ..options(DeviceChoice::Cuda(0), &folder) };
        let mut model = load(&file, &options).unwrap();
        let counts = || ["lookups", "attributes"].map(|name| standin.get(name));
        let before = counts();
        for (len, outputs) in [(70, &[][..]), (20, &[19]), (5, &[4]), (1, &[0]), (1, &[0])] {
            let tokens = tokens(len);
            let sequences = [BatchSequence { len, start: 0, pages: &PAGES }];
            model.step(&Batch { tokens: &tokens, sequences: &sequences, outputs }).unwrap();
        }
        let sequences = [BatchSequence { len: 1, start: 0, pages: &PAGES }];
        let batch = Batch { tokens: &[3], sequences: &sequences, outputs: &[0] };
        model.step_greedy(&batch).unwrap().unwrap();
        assert_eq!(counts(), before, "{dtype}");
    }
}

#[test]
fn a_sequence_beside_a_prompt_is_attended_to_in_runs() {
    let (standin, folder) = (standin(), kernels());
    let layers = 2;
    let file = file(&TinyLlama { layers, ..tiny(DType::F16) });
    let prompt = tokens(40);
    let run = |device, with_other: bool| {
        let options = LoadOptions { context: 512, max_sequences: 2, ..options(device, &folder) };
        let mut model = load(&file, &options).unwrap();
        let pages: Vec<u32> = (0..10).rev().collect();
        for start in (0..280).step_by(40) {
            let before = [BatchSequence { len: 40, start, pages: &pages }];
            model.step(&Batch { tokens: &prompt, sequences: &before, outputs: &[] }).unwrap();
        }
        let launches = standin.get("launches");
        let mut sequences = vec![BatchSequence { len: 40, start: 0, pages: &[10, 11] }];
        if with_other {
            sequences.insert(0, BatchSequence { len: 1, start: 280, pages: &pages });
        }
        let tokens = if with_other { [&[9], &prompt[..]].concat() } else { prompt.clone() };
        let last = tokens.len() as u32 - 1;
        let batch = Batch { tokens: &tokens, sequences: &sequences, outputs: &[0, last] };
        let logits = model.step(&batch).unwrap().to_vec();
        (logits, standin.get("launches") - launches)
    };
    let (expected, _) = run(DeviceChoice::Cpu, true);
    let ((got, both), (_, prompt_only)) = (run(DeviceChoice::Cuda(0), true), run(DeviceChoice::Cuda(0), false));
    assert!(error(&got, &expected) < tolerance(DType::F16), "{:.2e}", error(&got, &expected));
    // Beside the tiles, each layer attends to runs, the last of which merges them.
    assert_eq!(both - prompt_only, layers as i64);
}

#[test]
fn steps_that_make_no_sense_are_refused_and_the_next_one_runs() {
    let (_standin, folder) = (standin(), kernels());
    let file = file(&tiny(DType::F16));
    let mut model = load(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap();
    let vocab = model.limits().vocab as u32;
    for (tokens, start, pages, outputs) in [
        (&[][..], 0, &PAGES[..], &[][..]),
        (&[vocab], 0, &PAGES, &[0]),
        (&[1], 0, &PAGES, &[1]),
        (&[1], 32, &PAGES[..1], &[0]),
        (&[1], 0, &[4], &[0]),
    ] {
        let sequences = [BatchSequence { len: tokens.len() as u32, start, pages }];
        let refused = model.step(&Batch { tokens, sequences: &sequences, outputs }).unwrap_err();
        assert!(matches!(refused, StepError::Cpu(_)), "{refused}");
    }
    assert!(logits(&mut *model, &[1, 2], 2).iter().all(|logit| logit.is_finite()));
}

#[test]
fn steps_are_not_recorded_where_memory_for_it_lacks() {
    let (standin, folder) = (standin(), kernels());
    let file = file(&tiny(DType::Q4_0));
    let mut model = load(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap();
    let mut run = || {
        let before = standin.get("graph_launches");
        let all: Vec<f32> = (0..4).flat_map(|_| logits(&mut *model, &tokens(3), 1)).collect();
        (all, standin.get("graph_launches") - before)
    };
    let memory = standin.get("allocated");
    standin.set("memory", memory + (1 << 20));
    let (expected, recorded) = run();
    assert_eq!(recorded, 0);
    standin.reset();
    let (got, recorded) = run();
    assert!(recorded > 0);
    assert_eq!(got, expected);
}
