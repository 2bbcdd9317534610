//! The CUDA backend as it runs, down to logits and answers, on the stand-in for the driver library: the same code that drives a
//! GPU, with the kernels run by the emulator. A program of its own, since a process keeps the library.

use rustai::{
    Batch, BatchSequence, DType, Error, KvType,
    backend::{BuildError, DeviceChoice, Executable, Outside, Sampling, StepError, cuda},
    engine::{Engine, EngineBuilder, EngineError, Request},
    gguf::GgufFile,
    graph::Place,
    model::{self, LoadError, LoadOptions, ModelFile},
    queue::{Broker, BrokerOptions, Client, ClientOptions, InProcess, Job, Server, ServerOptions},
    sampler::{Sampler, SamplerParams},
};
use rustai_cuda_standin::Standin;
use rustai_tests::{
    Elsewhere, TinyLlama,
    divergence::{kl, squares},
    fixtures,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A folder with an image for the stand-in's architecture. What is in it does not matter there. A real device has those of the
/// program.
fn kernels() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.sm_90a.cubin"), b"// the stand-in has all kernels in it\0").unwrap();
    folder
}

fn standin() -> Standin {
    Standin::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A tiny model whose heads have a length that there are kernels for.
fn tiny(dtype: DType) -> TinyLlama {
    TinyLlama { width: 256, feed_forward: 256, heads: 4, kv_heads: 2, layers: 3, dtype, ..TinyLlama::default() }
}

fn file(model: &TinyLlama) -> GgufFile {
    GgufFile::from_bytes(model.bytes()).unwrap()
}

/// The folder, unless the device is a real one.
fn folder_for_standin(folder: &TempDir) -> Option<PathBuf> {
    std::env::var_os("RUSTAI_TEST_DEVICE").is_none().then(|| folder.path().to_owned())
}

fn options(device: DeviceChoice, folder: &TempDir) -> LoadOptions {
    LoadOptions {
        threads: 1,
        context: 128,
        max_batch: 48,
        max_outputs: 48,
        device,
        cuda_kernels: folder_for_standin(folder),
        ..LoadOptions::default()
    }
}

fn load(file: &GgufFile, options: &LoadOptions) -> Result<Box<dyn Executable>, LoadError> {
    model::load(file, options, &mut |_| {})
}

const PAGES: [u32; 4] = [2, 0, 3, 1];

/// Logits of all tokens, computed in chunks of so many.
fn logits(model: &mut dyn Executable, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut all = Vec::new();
    let mut start = 0;
    for tokens in tokens.chunks(chunk) {
        let sequences = [BatchSequence { len: tokens.len() as u32, start, pages: &PAGES }];
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        all.extend_from_slice(model.step(&Batch { tokens, sequences: &sequences, outputs: &outputs }).unwrap());
        start += tokens.len() as u32;
    }
    all
}

/// The relative error of logits.
fn error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let (error, norm) = squares(expected, got);
    (error / norm).sqrt()
}

/// How far logits may be from the CPU's: that keeps twice the bits of activations of these widths.
fn tolerance(dtype: DType) -> f64 {
    if matches!(dtype, DType::F16 | DType::F32) { 2e-3 } else { 0.05 }
}

fn tokens(count: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 7 + 3) % 250).collect()
}

#[test]
fn logits_agree_with_the_cpu_for_every_common_type_and_batch() {
    let (_standin, folder) = (standin(), kernels());
    let device = format!("CUDA device 0 ({}", cuda::devices().unwrap()[0].name);
    for dtype in [DType::Q4_0, DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::F16, DType::F32] {
        let file = file(&TinyLlama { biases: dtype == DType::Q4_0, ..tiny(dtype) });
        let tokens = tokens(40);
        let mut on_cpu = load(&file, &options(DeviceChoice::Cpu, &folder)).unwrap();
        let expected = logits(&mut *on_cpu, &tokens, 40);
        // The emulator is slow: every kind of batch once, and the two kernels of a product for every type.
        let batches: &[_] = match dtype {
            DType::Q4_0 => &[(40, KvType::F16), (7, KvType::F16), (1, KvType::F16), (13, KvType::Q8_0)],
            _ => &[(35, KvType::F16)],
        };
        for &(chunk, kv_type) in batches {
            let options = LoadOptions { kv_type, ..options(DeviceChoice::Cuda(0), &folder) };
            let mut model = load(&file, &options).unwrap();
            assert!(model.describe().contains(&device), "{} is not {device}", model.describe());
            let error = error(&logits(&mut *model, &tokens, chunk), &expected);
            assert!(error < tolerance(dtype), "{dtype} in chunks of {chunk}, cache {kv_type}: {error:.2e}");
        }
    }
}

/// Consumer chips have less than half the shared memory of Hopper, and none of its kernels.
#[test]
fn logits_agree_with_the_cpu_on_consumer_devices() {
    let standin = standin();
    for (capability, image, text) in [
        (89, "sm_89.cubin", &b"// the stand-in has all\0"[..]),
        (120, "sm_120.cubin", b"// the stand-in has all\0"),
        (120, "compute_80.ptx", b"// the stand-in has all"),
    ] {
        standin.reset();
        standin.set("capability", capability);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(format!("all.{image}")), text).unwrap();
        for (dtype, kv_type) in [(DType::Q4_K, KvType::F16), (DType::F32, KvType::Q8_0)] {
            let file = file(&TinyLlama { layers: 2, ..tiny(dtype) });
            let options = |device| LoadOptions { max_batch: 80, max_outputs: 80, kv_type, ..options(device, &folder) };
            let run = |device| {
                let mut model = load(&file, &options(device)).unwrap();
                let mut all = logits(&mut *model, &tokens(70), 70);
                // Two that decode behind the prompt.
                for start in [70, 71] {
                    let sequences = [BatchSequence { len: 1, start, pages: &PAGES }];
                    let batch = Batch { tokens: &[9], sequences: &sequences, outputs: &[0] };
                    all.extend_from_slice(model.step(&batch).unwrap());
                }
                all
            };
            let before = standin.get("overlapping");
            let error = error(&run(DeviceChoice::Cuda(0)), &run(DeviceChoice::Cpu));
            assert!(error < tolerance(dtype), "{dtype}, {image} on {capability}: {error:.2e}");
            // Only code for 9.0 and later waits for the kernel before it.
            assert_eq!(standin.get("overlapping") > before, image == "sm_120.cubin", "{image} on {capability}");
        }
    }
}

/// Steps of more than 64 tokens: attention in tiles, and beside it tokens that come by themselves.
#[test]
fn long_prompts_agree_with_the_cpu_beside_other_sequences() {
    let (_standin, folder) = (standin(), kernels());
    for (dtype, kv_type) in [(DType::F16, KvType::F16), (DType::F32, KvType::F16), (DType::Q4_0, KvType::Q8_0)] {
        let file = file(&tiny(dtype));
        let [prompt, other] = [tokens(70), tokens(5)];
        let options = |device| LoadOptions { max_batch: 80, max_sequences: 2, kv_type, ..options(device, &folder) };
        let run = |device| {
            let mut model = load(&file, &options(device)).unwrap();
            let pages = [&[6, 1, 4][..], &[3]];
            let before = [BatchSequence { len: 4, start: 0, pages: pages[1] }];
            model.step(&Batch { tokens: &other[..4], sequences: &before, outputs: &[] }).unwrap();
            let both = [&other[4..], &prompt[..]].concat();
            let sequences = [
                BatchSequence { len: 1, start: 4, pages: pages[1] },
                BatchSequence { len: 70, start: 0, pages: pages[0] },
            ];
            let outputs: Vec<u32> = (0..48).map(|output| output * 70 / 47).collect();
            model.step(&Batch { tokens: &both, sequences: &sequences, outputs: &outputs }).unwrap().to_vec()
        };
        let error = error(&run(DeviceChoice::Cuda(0)), &run(DeviceChoice::Cpu));
        println!("{dtype}, cache {kv_type}: {error:.2e}");
        assert!(error < tolerance(dtype), "{dtype}, cache {kv_type}: {error:.2e}");
    }
}

#[test]
fn heads_of_other_lengths_agree_with_the_cpu() {
    let (_standin, folder) = (standin(), kernels());
    for (width, heads, kv_heads, kv_type) in
        [(128, 4, 2, KvType::Q8_0), (320, 4, 1, KvType::F16), (192, 2, 2, KvType::Q8_0), (256, 1, 1, KvType::F16)]
    {
        let file = file(&TinyLlama { width, heads, kv_heads, feed_forward: 64, layers: 1, ..tiny(DType::F16) });
        let tokens = tokens(24);
        let run = |device, chunk| {
            let options = LoadOptions { kv_type, ..options(device, &folder) };
            logits(&mut *load(&file, &options).unwrap(), &tokens, chunk)
        };
        let expected = run(DeviceChoice::Cpu, 24);
        for chunk in [24, 5] {
            let error = error(&run(DeviceChoice::Cuda(0), chunk), &expected);
            assert!(error < tolerance(DType::Q8_0), "heads of {} in chunks of {chunk}: {error:.2e}", width / heads);
        }
    }
}

#[test]
fn layers_on_both_devices_compute_what_one_does() {
    let (_standin, folder) = (standin(), kernels());
    let file = file(&TinyLlama { tied: false, ..tiny(DType::Q8_0) });
    let tokens = tokens(20);
    let mut on_cpu = load(&file, &options(DeviceChoice::Cpu, &folder)).unwrap();
    let expected = logits(&mut *on_cpu, &tokens, 20);
    for layers in 0..=4 {
        let options = LoadOptions { gpu_layers: Some(layers), ..options(DeviceChoice::Cuda(0), &folder) };
        let mut model = load(&file, &options).unwrap();
        let words = match layers {
            0 => "CPU",
            1 | 2 => "layers there; before it: CPU",
            _ => "CUDA device 0",
        };
        assert!(model.describe().contains(words), "{layers}: {}", model.describe());
        for chunk in [20, 3] {
            let error = error(&logits(&mut *model, &tokens, chunk), &expected);
            assert!(error < tolerance(DType::Q8_0), "{layers} layers in chunks of {chunk}: {error:.2e}");
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_disturb_each_other() {
    let (_standin, folder) = (standin(), kernels());
    let file = file(&tiny(DType::Q4_0));
    let options = LoadOptions { max_sequences: 2, ..options(DeviceChoice::Cuda(0), &folder) };
    let [first, second] = [tokens(33), tokens(9)];
    let alone = |tokens: &[u32]| {
        let mut model = load(&file, &options).unwrap();
        let all = logits(&mut *model, tokens, tokens.len());
        all[all.len() - model.limits().vocab..].to_vec()
    };
    let expected = [alone(&first), alone(&second)].concat();
    let mut model = load(&file, &options).unwrap();
    let both = [&first[..], &second[..]].concat();
    let sequences =
        [BatchSequence { len: 33, start: 0, pages: &[0, 2] }, BatchSequence { len: 9, start: 0, pages: &[5] }];
    let got = model.step(&Batch { tokens: &both, sequences: &sequences, outputs: &[32, 41] }).unwrap();
    assert!(error(got, &expected) < 1e-3, "{:.2e}", error(got, &expected));
}

/// Sequences that are decoded together, in tiles of 16 and 32 tokens; products of 1024 columns with few rows are split.
#[test]
fn many_sequences_decode_together() {
    let (_standin, folder) = (standin(), kernels());
    let file =
        file(&TinyLlama { width: 1024, feed_forward: 32, heads: 16, kv_heads: 2, layers: 1, ..tiny(DType::Q4_0) });
    for count in [12, 20] {
        let run = |device| {
            let options = LoadOptions { context: 32, max_sequences: 20, ..options(device, &folder) };
            let mut model = load(&file, &options).unwrap();
            let pages: Vec<[u32; 1]> = (0..count).map(|i| [count - 1 - i]).collect();
            let outputs: Vec<u32> = (0..count).collect();
            // The third is a recording.
            (0..3)
                .flat_map(|start| {
                    let tokens: Vec<u32> = (0..count).map(|i| (i * 11 + start * 5) % 250).collect();
                    let sequences: Vec<_> = pages.iter().map(|pages| BatchSequence { len: 1, start, pages }).collect();
                    model.step(&Batch { tokens: &tokens, sequences: &sequences, outputs: &outputs }).unwrap().to_vec()
                })
                .collect::<Vec<_>>()
        };
        let (got, expected) = (run(DeviceChoice::Cuda(0)), run(DeviceChoice::Cpu));
        let off = error(&got, &expected);
        assert!(off < tolerance(DType::Q4_0), "{count} sequences: {off:.2e}");
    }
}

/// Long sequences: attention in runs whose states are merged, reaches that change, recordings that are met again with other
/// pages, and decoding beside a prompt.
#[test]
fn long_sequences_and_changing_batches_agree_with_the_cpu() {
    let (_standin, folder) = (standin(), kernels());
    let shape =
        TinyLlama { width: 64, feed_forward: 64, heads: 1, kv_heads: 1, layers: 1, context: 1024, ..tiny(DType::F16) };
    let file = file(&shape);
    let run = |device| {
        let options = LoadOptions { context: 640, max_sequences: 2, ..options(device, &folder) };
        let mut model = load(&file, &options).unwrap();
        let pages: [Vec<u32>; 2] = [(0..20).map(|i| 39 - 2 * i).collect(), (0..20).map(|i| 2 * i).collect()];
        let text = tokens(600);
        let mut all = Vec::new();
        let mut step = |tokens: &[u32], sequences: &[(u32, u32, usize)], outputs: &[u32]| {
            let sequences: Vec<_> = sequences
                .iter()
                .map(|&(len, start, pages_of)| BatchSequence { len, start, pages: &pages[pages_of] })
                .collect();
            all.extend_from_slice(model.step(&Batch { tokens, sequences: &sequences, outputs }).unwrap());
        };
        for start in (0..576).step_by(48) {
            step(&text[start..start + 48], &[(48, start as u32, 0)], &[]);
        }
        step(&text[..30], &[(30, 0, 1)], &[29]);
        for at in 0..3 {
            step(&text[at..at + 1], &[(1, 576 + at as u32, 0)], &[0]);
            step(&text[at..at + 1], &[(1, 30 + at as u32, 1)], &[0]);
        }
        // One decodes, the other takes a prompt of its own; then both decode, in either order.
        step(&text[..21], &[(1, 579, 0), (20, 33, 1)], &[0, 20]);
        for at in 0..3 {
            let [first, second] = [580, 53].map(|start| start + 2 * at as u32);
            step(&text[at..at + 2], &[(1, first, 0), (1, second, 1)], &[0, 1]);
            step(&text[at..at + 2], &[(1, second + 1, 1), (1, first + 1, 0)], &[0, 1]);
        }
        all
    };
    let (expected, got) = (run(DeviceChoice::Cpu), run(DeviceChoice::Cuda(0)));
    assert!(error(&got, &expected) < tolerance(DType::F16), "{:.2e}", error(&got, &expected));
}

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

/// The design promises a step that takes no lock.
#[test]
fn steps_look_up_no_kernels() {
    let (standin, folder) = (standin(), kernels());
    for dtype in [DType::Q4_K, DType::F16] {
        let file = file(&tiny(dtype));
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
    // Beside the tiles, each layer attends to runs and merges them.
    assert_eq!(both - prompt_only, 2 * layers as i64);
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
fn memory_decides_how_many_layers_run_on_the_gpu() {
    let (standin, folder) = (standin(), kernels());
    let file = file(&TinyLlama { tied: false, ..tiny(DType::F32) });
    let plan = |device, layers| model::fit(&file, &LoadOptions { gpu_layers: layers, ..options(device, &folder) });
    let whole = plan(DeviceChoice::Auto, None).unwrap();
    let (info, part) = whole.gpu.as_ref().expect("the stand-in has a device");
    assert_eq!((part.layers, &info.name[..], whole.cpu), (3, "emulated device", None));
    assert!(whole.reason.contains("fits"), "{}", whole.reason);
    let (all, memory, reserve) = (part.memory.total(), part.memory, part.reserve);
    assert!(memory.cache > 0 && memory.activations > 0 && memory.weights > 0, "{memory:?}");

    // What is foreseen is what is taken, but for rounding.
    let held = standin.get("allocated");
    let loaded = load(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap();
    let taken = (standin.get("allocated") - held) as u64;
    assert!(taken <= all + 4096 && taken + 4096 >= all, "{taken} of {all}");
    drop(loaded);
    assert_eq!(standin.get("allocated"), held);

    standin.set("memory", held + (reserve + all - 1) as i64);
    let most = plan(DeviceChoice::Auto, None).unwrap();
    let part = most.gpu.as_ref().unwrap().1;
    assert!(part.layers < 3 && part.layers > 0 && most.cpu.unwrap().layers == 3 - part.layers, "{most}");
    assert!(most.reason.contains("most layers that fit"), "{}", most.reason);
    let model = load(&file, &options(DeviceChoice::Auto, &folder)).unwrap();
    assert!(model.describe().contains("layers there"), "{}", model.describe());
    drop(model);

    let refused = plan(DeviceChoice::Auto, Some(3));
    let on_cpu = refused.expect("without a GPU asked for by name, the CPU serves");
    assert!(
        on_cpu.gpu.is_none() && on_cpu.reason.contains("device memory are needed for 3 layers"),
        "{}",
        on_cpu.reason
    );
    let error = plan(DeviceChoice::Cuda(0), Some(3)).unwrap_err();
    assert!(matches!(error, LoadError::Build(BuildError::OutOfDeviceMemory { layers: 3, .. })), "{error}");

    standin.set("memory", held + reserve as i64);
    let on_cpu = plan(DeviceChoice::Auto, None).unwrap();
    assert!(on_cpu.gpu.is_none() && on_cpu.cpu.unwrap().layers == 3, "{on_cpu}");
    assert!(plan(DeviceChoice::Cuda(0), None).is_err());
}

#[test]
fn page_locked_memory_is_foreseen() {
    let (standin, folder) = (standin(), kernels());
    let one_layer = TinyLlama { width: 64, feed_forward: 64, heads: 1, kv_heads: 1, layers: 1, ..tiny(DType::F16) };
    // Where steps are small, the staging of weights takes most.
    for (model, max_sequences, max_batch) in [(&one_layer, 1, 48), (&one_layer, 1024, 1024), (&tiny(DType::F32), 1, 48)]
    {
        let file = file(model);
        for gpu_layers in [None, Some(2)] {
            let options =
                LoadOptions { max_sequences, max_batch, gpu_layers, ..options(DeviceChoice::Cuda(0), &folder) };
            let foreseen = model::fit(&file, &options).unwrap().gpu.unwrap().1.page_locked;
            standin.reset();
            let held = standin.get("host_most");
            drop(load(&file, &options).unwrap());
            let taken = (standin.get("host_most") - held) as u64;
            assert!(taken <= foreseen + 4096 && taken + 4096 >= foreseen, "{taken} of {foreseen}");
            assert!((max_sequences > 1) == (foreseen > 16 << 20), "{foreseen}");
        }
    }
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

#[test]
fn what_has_no_kernel_runs_on_the_cpu_unless_the_gpu_was_asked_for() {
    let (_standin, folder) = (standin(), kernels());
    let narrow_heads = TinyLlama { heads: 16, ..TinyLlama::default() };
    let no_kernels = TinyLlama { dtype: DType::IQ2_XXS, embedding_dtype: Some(DType::F16), ..tiny(DType::F16) };
    for (model, reason) in [(narrow_heads, "heads of 4 values"), (no_kernels, "IQ2_XXS")] {
        let file = file(&model);
        let auto = model::fit(&file, &options(DeviceChoice::Auto, &folder)).unwrap();
        assert!(auto.gpu.is_none() && auto.reason.contains(reason), "{}", auto.reason);
        let error = model::fit(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn devices_that_are_not_there_are_named() {
    let (standin, folder) = (standin(), kernels());
    assert_eq!(cuda::devices().unwrap().len(), 1);
    let file = file(&tiny(DType::F16));
    let error = |device| model::fit(&file, &options(device, &folder)).map(|_| ()).unwrap_err().to_string();
    assert!(error(DeviceChoice::Cuda(1)).contains("there is no CUDA device 1; the host has 1"));
    standin.set("init", 802);
    assert!(error(DeviceChoice::Cuda(0)).contains("CUDA_ERROR_SYSTEM_NOT_READY") && cuda::devices().is_err());
    standin.reset();
    standin.set("devices", 2);
    let second = model::fit(&file, &options(DeviceChoice::Cuda(1), &folder)).unwrap();
    assert_eq!(second.gpu.unwrap().0.ordinal, 1);
    assert_eq!(model::fit(&file, &options(DeviceChoice::Auto, &folder)).unwrap().gpu.unwrap().0.ordinal, 0);
    standin.set("devices", 0);
    assert!(error(DeviceChoice::Cuda(0)).contains("finds no device"));
    let auto = model::fit(&file, &options(DeviceChoice::Auto, &folder)).unwrap();
    assert!(auto.gpu.is_none() && auto.reason.contains("finds no device"), "{}", auto.reason);
}

fn on_device(builder: EngineBuilder, folder: &TempDir) -> Engine {
    let builder = builder.device(DeviceChoice::Cuda(0));
    match folder_for_standin(folder) {
        Some(folder) => builder.cuda_kernels(folder),
        None => builder,
    }
    .build()
    .unwrap()
}

fn engine(model: &TinyLlama, folder: &TempDir) -> (Engine, TempDir) {
    let place = tempfile::tempdir().unwrap();
    let path: PathBuf = place.path().join("model.gguf");
    std::fs::write(&path, model.bytes()).unwrap();
    (on_device(Engine::builder(&path).threads(1), folder), place)
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let (_standin, folder) = (standin(), kernels());
    let (engine, _place) = engine(&tiny(DType::Q4_0), &folder);
    let request = || Request::raw("once").temperature(1.0).seed(11).ignore_end(true).max_tokens(12);
    let answer = || engine.generate(request()).unwrap().tokens;
    let first = answer();
    assert!(!first.is_empty());
    assert_eq!(answer(), first);
}

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

fn drawing_engine(model: &TinyLlama, folder: &TempDir, device: DeviceChoice) -> (Engine, TempDir) {
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
            shares[host.sample(&logits) as usize] += 1.0 / f64::from(on_host);
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

#[test]
fn embeddings_and_logits_are_written_where_they_are_wanted() {
    let (_standin, folder) = (standin(), kernels());
    for dtype in [DType::Q8_0, DType::F16] {
        let file = file(&tiny(dtype));
        let mut on_cpu = load(&file, &options(DeviceChoice::Cpu, &folder)).unwrap();
        let mut on_gpu = load(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap();
        let width = on_gpu.embedding_width().unwrap();
        assert_eq!(on_cpu.embedding_width(), Some(width));
        let vocab = on_gpu.limits().vocab;
        let run = |model: &mut dyn Executable| {
            let [logits, embedding] = [vocab, width].map(rustai::engine::External::zeroed);
            let sequences = [BatchSequence { len: 3, start: 0, pages: &PAGES }];
            let batch = Batch { tokens: &[1, 2, 3], sequences: &sequences, outputs: &[1, 2] };
            let (output, normalized) = ([None, Some(logits.clone())], [Some(embedding.clone())]);
            let outside = rustai::backend::Outside { inputs: &[], output: &output, normalized: &normalized };
            let own = model.step_with(&batch, outside).unwrap()[..vocab].to_vec();
            [own, logits.to_vec(), embedding.to_vec()]
        };
        for (got, expected) in run(&mut *on_gpu).iter().zip(run(&mut *on_cpu)) {
            assert!(error(got, &expected) < tolerance(dtype), "{dtype}: {:.2e}", error(got, &expected));
        }
        let wrong = [Some(rustai::engine::External::zeroed(vocab + 1))];
        let sequences = [BatchSequence { len: 1, start: 0, pages: &PAGES }];
        let batch = Batch { tokens: &[1], sequences: &sequences, outputs: &[0] };
        let outside = rustai::backend::Outside { output: &wrong, ..Default::default() };
        assert!(on_gpu.step_with(&batch, outside).is_err());
    }
}

#[test]
fn rows_of_callers_are_awaited_together_and_fetched_once() {
    let (standin, folder) = (standin(), kernels());
    let file = file(&tiny(DType::Q8_0));
    let mut model = load(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap();
    let (vocab, tokens) = (model.limits().vocab, tokens(8));
    let expected = logits(&mut *model, &tokens, 8);
    let sequences = [BatchSequence { len: 8, start: 0, pages: &PAGES }];
    let batch = Batch { tokens: &tokens, sequences: &sequences, outputs: &[0, 1, 2, 3, 4, 5, 6, 7] };
    let rows: Vec<_> = (0..8).map(|_| Some(rustai::engine::External::zeroed(vocab))).collect();
    let counts = || ["waits", "fetched"].map(|name| standin.get(name));
    let before = counts();
    model.step_with(&batch, rustai::backend::Outside { output: &rows, ..Default::default() }).unwrap();
    let after = counts();
    // The last inputs have arrived, the rows have, and nothing is left to do.
    assert!(after[0] - before[0] <= 3, "{}", after[0] - before[0]);
    assert_eq!(after[1] - before[1], (8 * vocab * 4) as i64);
    let got: Vec<f32> = rows.iter().flatten().flat_map(|row| row.to_vec()).collect();
    assert!(error(&got, &expected) < 1e-3, "{:.2e}", error(&got, &expected));
}

/// Logits for a client of the queue: its buffer is page-locked by the first job that is worth it, and as long as it is mapped.
#[test]
fn buffers_of_clients_are_page_locked() {
    let (standin, folder) = (standin(), kernels());
    let small = TinyLlama { width: 64, feed_forward: 64, heads: 1, kv_heads: 1, layers: 1, ..tiny(DType::F16) };
    let builder = Engine::builder(file(&small)).threads(1).max_batch(64).max_outputs(64);
    let engine = on_device(builder, &folder);
    let vocab = engine.info().vocab;
    let prompt = tokens(64);
    let rows = (64usize << 10).div_ceil(vocab * 4);
    assert!(rows <= prompt.len());
    let expected = engine.logits(&prompt[..rows]).unwrap();
    for refused in [0, 1] {
        standin.set("fail_register", refused);
        let broker = Broker::new(BrokerOptions::default()).unwrap();
        let server = Server::start(broker.clone(), Some(engine.clone()), ServerOptions::default()).unwrap();
        let client = Client::over(Arc::new(InProcess::open(&broker).unwrap()), ClientOptions::default()).unwrap();
        let before = ["registered", "registrations", "fetched_locked"].map(|name| standin.get(name));
        let since = || {
            let now = ["registered", "registrations", "fetched_locked"].map(|name| standin.get(name));
            [0, 1, 2].map(|i| now[i] - before[i])
        };
        let run = |rows: usize| {
            let tokens = client.buffer(rows * 4).unwrap().tensor::<u32>(0, &[rows]).unwrap();
            tokens.write(0, &prompt[..rows]);
            let out = client.buffer(vocab * rows * 4).unwrap().tensor::<f32>(0, &[vocab, rows]).unwrap();
            for _ in 0..2 {
                assert_eq!(client.run(&Job::logits(&tokens, &out)).unwrap().result as usize, rows);
            }
            out.to_vec()
        };
        run(1);
        assert_eq!(since(), [0, 0, 0], "a small copy");
        let all = run(rows);
        assert!(error(&all[vocab * (rows - 1)..], &expected) < 1e-3);
        let bytes = (2 * rows * vocab * 4) as i64;
        assert_eq!(since()[1..], if refused == 1 { [0, 0] } else { [1, bytes] });
        drop(client);
        let until = Instant::now() + Duration::from_secs(20);
        while server.stat().mapped > 0 || since()[0] > 0 {
            assert!(Instant::now() < until, "a mapping or a page lock is left behind");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_device_that_fails_ends_the_engine_with_its_reason() {
    let (standin, folder) = (standin(), kernels());
    let (broken, _place) = engine(&tiny(DType::Q4_0), &folder);
    assert!(broken.generate(Request::raw("a").max_tokens(2)).is_ok());
    standin.set("fail_launch", 3);
    let error = broken.generate(Request::raw("a").max_tokens(2)).unwrap_err();
    assert!(matches!(error, Error::Engine(EngineError::Device { .. })), "{error}");
    assert!(error.to_string().contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    let again = broken.generate(Request::raw("a").max_tokens(2)).unwrap_err();
    assert!(matches!(again, Error::Engine(EngineError::Device { .. })), "{again}");
    drop(broken);
    // The process goes on: another engine, on a device that works.
    standin.reset();
    let (next, _place) = engine(&tiny(DType::Q4_0), &folder);
    assert!(next.generate(Request::raw("a").max_tokens(2)).is_ok());
}

#[test]
fn a_lost_device_ends_the_engine_and_the_next_one_runs() {
    let (standin, folder) = (standin(), kernels());
    let held = standin.get("allocations");
    for (call, result, name) in [
        ("cuMemcpyDtoHAsync", 214, "CUDA_ERROR_ECC_UNCORRECTABLE"),
        ("cuMemcpyHtoDAsync", 999, "CUDA_ERROR_UNKNOWN"),
        ("cuGraphLaunch", 700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuEventRecord", 719, "CUDA_ERROR_LAUNCH_FAILED"),
    ] {
        let (broken, _place) = engine(&tiny(DType::Q4_0), &folder);
        assert!(broken.generate(Request::raw("a").max_tokens(2)).is_ok());
        standin.fault(call, 2, result);
        for _ in 0..2 {
            let error = broken.generate(Request::raw("a").max_tokens(4)).unwrap_err();
            assert!(matches!(error, Error::Engine(EngineError::Device { .. })), "{call}: {error}");
            assert!(error.to_string().contains(name), "{call}: {error}");
        }
        drop(broken);
        assert_eq!(standin.get("allocations"), held, "{call}");
    }
    let (next, _place) = engine(&tiny(DType::Q4_0), &folder);
    assert!(next.generate(Request::raw("a").max_tokens(2)).is_ok());
}

#[test]
fn host_memory_that_cannot_be_locked_is_an_error_and_what_was_taken_comes_back() {
    let (standin, folder) = (standin(), kernels());
    let held = standin.get("allocations");
    standin.set("fail_host_memory", 1);
    let file = file(&tiny(DType::Q4_0));
    let error = load(&file, &options(DeviceChoice::Cuda(0), &folder)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("page-locked host memory"), "{error}");
    assert_eq!(standin.get("allocations"), held);
}

/// A layer whose matrices are read in parts, and a token's logits.
fn large_layer(dtype: DType) -> TinyLlama {
    TinyLlama { layers: 1, feed_forward: 3072, ..tiny(dtype) }
}

#[test]
fn weights_are_the_same_from_memory_from_a_mapped_file_and_read_from_a_file() {
    let (_standin, folder) = (standin(), kernels());
    let options = options(DeviceChoice::Cuda(0), &folder);
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::Q4_0, DType::Q6_K] {
        let model = large_layer(dtype);
        let on_disk = GgufFile::open(&model.write(folder.path())).unwrap();
        let run = |file: &dyn ModelFile| {
            let mut states = Vec::new();
            let mut model = model::load(file, &options, &mut |state| states.push(state)).unwrap();
            let total = states[0].total;
            assert!(states.is_sorted_by_key(|state| state.done) && states.iter().all(|state| state.total == total));
            assert_eq!((states[0].done, states.last().unwrap().done), (0, total), "{dtype}");
            logits(&mut *model, &tokens(1), 1).iter().map(|value| value.to_bits()).collect::<Vec<u32>>()
        };
        let expected = run(&file(&model));
        assert!(run(&Elsewhere::mapped(&on_disk)) == expected, "{dtype}, mapped");
        assert!(run(&on_disk) == expected, "{dtype}, read");
    }
}

/// Float weights are read, so what ails their file is an error that names it. Others are mapped.
#[test]
fn reads_that_fail_name_tensor_and_file_and_the_next_load_works() {
    let (standin, folder) = (standin(), kernels());
    let options = options(DeviceChoice::Cuda(0), &folder);
    let load = |file: &dyn ModelFile| model::load(file, &options, &mut |_| {});
    let held = standin.get("allocations");
    let on_disk = GgufFile::open(&large_layer(DType::F16).write(folder.path())).unwrap();
    // The first page of a process is mapped nowhere.
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let found = memory.metadata().unwrap();
    let stamp = (found.len(), found.modified().unwrap());
    let nowhere = Place { file: &memory, path: Path::new("/proc/self/mem"), offset: 0, stamp };
    let fails = |place: &(dyn for<'a> Fn(&str, Place<'a>) -> Option<Place<'a>> + Sync), words: &[&str]| {
        let error = load(&Elsewhere::new(&on_disk, place)).map(|_| ()).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert_eq!(standin.get("allocations"), held);
    };
    let up = "blk.0.ffn_up.weight";
    fails(
        &|name, place| Some(if name == up { Place { offset: u64::from(u32::MAX), ..place } } else { place }),
        &[up, ".gguf", "end of file", "see that the file is whole"],
    );
    fails(
        &|name, place| Some(Place { stamp: (place.stamp.0 + u64::from(name == up), place.stamp.1), ..place }),
        &[".gguf", "has changed", "load it again"],
    );
    let elsewhere = |name: &str, place| Some(if name == up { nowhere } else { place });
    let error = load(&Elsewhere::new(&on_disk, &elsewhere)).map(|_| ()).unwrap_err();
    let LoadError::Build(BuildError::Read { tensor, path, source }) = error else { panic!("{error}") };
    assert_eq!((&tensor[..], path.as_path(), source.raw_os_error()), (up, nowhere.path, Some(5)));
    assert_eq!(standin.get("allocations"), held);
    load(&on_disk).unwrap();
    let quantized = GgufFile::open(&large_layer(DType::Q4_0).write(folder.path())).unwrap();
    load(&Elsewhere::new(&quantized, &elsewhere)).unwrap();
}

#[test]
fn a_file_that_changes_after_it_was_opened_is_not_loaded() {
    let (_standin, folder) = (standin(), kernels());
    let path = large_layer(DType::F16).write(folder.path());
    let open = GgufFile::open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let error = load(&open, &options(DeviceChoice::Cuda(0), &folder)).map(|_| ()).unwrap_err();
    assert!(matches!(&error, LoadError::Build(BuildError::FileChanged { path: named }) if *named == path), "{error}");
}

/// A real model: its first words are those of the CPU, and its distributions are close.
#[test]
fn smollm2_continues_a_text_as_the_cpu_does() {
    let (_standin, folder) = (standin(), kernels());
    let file = GgufFile::open(&fixtures::smollm2()).unwrap();
    // "The capital of France is"
    let prompt = [504, 3575, 282, 4649, 314];
    let run = |device| {
        let options = LoadOptions { max_batch: 8, max_outputs: 1, ..options(device, &folder) };
        let mut model = load(&file, &options).unwrap();
        let (mut text, mut rows, mut start) = (prompt.to_vec(), Vec::new(), 0);
        while rows.len() < 3 {
            let tokens = &text[start..];
            let sequences = [BatchSequence { len: tokens.len() as u32, start: start as u32, pages: &PAGES }];
            let batch = Batch { tokens, sequences: &sequences, outputs: &[tokens.len() as u32 - 1] };
            let row = model.step(&batch).unwrap().to_vec();
            start = text.len();
            text.push((0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32);
            rows.push(row);
        }
        (text, rows)
    };
    let ((text, expected), (same, got)) = (run(DeviceChoice::Cpu), run(DeviceChoice::Cuda(0)));
    assert_eq!(same, text);
    let divergences: Vec<f64> = expected.iter().zip(&got).map(|(p, q)| kl(p, q)).collect();
    println!("KL from the CPU's distributions: {divergences:.5?}");
    assert!(divergences.iter().all(|kl| *kl < 0.01), "{divergences:?}");
}

/// A model of any size, for hosts with a GPU: `RUSTAI_TEST_MODEL` names its file.
#[test]
#[ignore = "needs a model and a GPU"]
fn the_named_model_computes_what_the_cpu_does() {
    let (_standin, folder) = (standin(), kernels());
    let path = std::env::var_os("RUSTAI_TEST_MODEL").expect("RUSTAI_TEST_MODEL names a model's file");
    let file = GgufFile::open(std::path::Path::new(&path)).unwrap();
    let tokens = tokens(96);
    let run = |device| {
        let options = LoadOptions { threads: 0, max_batch: 96, max_outputs: 96, ..options(device, &folder) };
        logits(&mut *load(&file, &options).unwrap(), &tokens, 80)
    };
    let (expected, got) = (run(DeviceChoice::Cpu), run(DeviceChoice::Cuda(0)));
    let vocab = expected.len() / tokens.len();
    let rows = expected.chunks_exact(vocab).zip(got.chunks_exact(vocab));
    let mean = rows.map(|(p, q)| kl(p, q)).sum::<f64>() / tokens.len() as f64;
    println!(
        "relative error of logits {:.2e}, mean KL from the CPU's distributions {mean:.2e}",
        error(&got, &expected)
    );
    assert!(error(&got, &expected) < tolerance(DType::Q4_0) && mean < 0.02, "{mean:.2e}");
}
