//! Logits beside the CPU's.

use super::{PAGES, error, file, kernels, load, logits, options, standin, tiny, tokens, tolerance};
use rustai::{
    Batch, BatchSequence, DType, KvType,
    backend::{DeviceChoice, cuda},
    gguf::GgufFile,
    model::LoadOptions,
};
use rustai_tests::{TinyLlama, divergence::kl, fixtures};

#[test]
fn logits_agree_with_the_cpu_for_every_common_type_and_batch() {
    let (_standin, folder) = (standin(), kernels());
    let device = format!("CUDA device 0 ({}", cuda::devices().unwrap()[0].name);
    for (dtype, value_dtype) in [
        (DType::Q4_0, None),
        (DType::Q4_K, None),
        (DType::Q4_K, Some(DType::Q6_K)),
        (DType::Q6_K, None),
        (DType::Q8_0, None),
        (DType::F16, None),
        (DType::F32, None),
    ] {
        let file = file(&TinyLlama { biases: dtype == DType::Q4_0, value_dtype, ..tiny(dtype) });
        let tokens = tokens(40);
        let mut on_cpu = load(&file, &options(DeviceChoice::Cpu, &folder)).unwrap();
        let expected = logits(&mut *on_cpu, &tokens, 40);
        // The emulator is slow: every kind of batch once, and the two kernels of a product for every type.
        let batches: &[_] = match (dtype, value_dtype) {
            (DType::Q4_0, _) => &[(40, KvType::F16), (7, KvType::F16), (1, KvType::F16), (13, KvType::Q8_0)],
            (_, Some(_)) => &[(35, KvType::F16), (5, KvType::F16)],
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

/// Hopper multiplies quantized weights by activations of 16 bits there. The CPU has 8 bits for gates and residuals, so its own
/// noise is left.
#[test]
fn steps_of_many_tokens_are_more_exact_on_hopper() {
    let (_standin, folder) = (standin(), kernels());
    for dtype in [DType::Q8_0, DType::Q4_K] {
        let file = file(&TinyLlama { layers: 2, ..tiny(dtype) });
        let text = tokens(70);
        let run = |device, chunk| {
            let options = LoadOptions { max_batch: 80, max_outputs: 80, ..options(device, &folder) };
            logits(&mut *load(&file, &options).unwrap(), &text, chunk)
        };
        let expected = run(DeviceChoice::Cpu, 70);
        let [whole, halves] = [70, 35].map(|chunk| error(&run(DeviceChoice::Cuda(0), chunk), &expected));
        assert!(whole < 0.8 * halves && halves < tolerance(dtype), "{dtype}: {whole:.2e}, in 8 bits {halves:.2e}");
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
