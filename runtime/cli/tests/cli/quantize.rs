//! `quantize` and `imatrix`.

use super::program::{Rustai, Tiny};
use rustai::{DType, gguf::GgufFile};
use rustai_tests::{TinyLlama, fixtures};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// Rows of 256, so that k-quants fit.
fn tiny() -> Tiny {
    Tiny::of(&TinyLlama { width: 256, feed_forward: 512, ..TinyLlama::of(DType::F16) })
}

fn beside(tiny: &Tiny, name: &str) -> PathBuf {
    tiny.model.with_file_name(name)
}

fn quantize(from: &Path, to: &Path, flags: &str) -> Rustai {
    let run = Rustai::line(&format!("quantize {flags} -t 2")).arg("--").arg(from);
    run.arg(to)
}

/// Type of a tensor of a file.
fn dtype(path: &Path, tensor: &str) -> DType {
    GgufFile::open(path).unwrap().tensor(tensor).unwrap().dtype
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_model_becomes_smaller_and_still_answers() {
    let tiny = tiny();
    let out = beside(&tiny, "out.gguf");
    let report = quantize(&tiny.model, &out, "--json").arg("q4_k_m").json();
    assert_eq!((&report["type"], &report["dry_run"]), (&"Q4_K_M".into(), &false.into()));
    assert!(report["bytes_after"].as_u64().unwrap() * 5 < report["bytes_before"].as_u64().unwrap() * 2, "{report}");
    assert_eq!(report["bits_per_weight_before"].as_f64().unwrap().round(), 16.0);
    assert_eq!(report["fallbacks"], serde_json::json!([]));
    let file = GgufFile::open(&out).unwrap();
    let bytes: u64 = file.tensors().iter().map(|tensor| tensor.bytes as u64).sum();
    assert_eq!(report["bytes_after"], bytes);
    assert_eq!(file.metadata().u32("general.file_type").unwrap(), Some(15));
    assert_eq!(file.metadata().u32("general.quantization_version").unwrap(), Some(2));
    assert_eq!(file.metadata().str("general.name").unwrap(), Some("tiny random llama"));
    assert_eq!(dtype(&out, "blk.0.attn_q.weight"), DType::Q4_K);
    assert_eq!(dtype(&out, "token_embd.weight"), DType::Q6_K);
    assert_eq!(dtype(&out, "blk.0.attn_norm.weight"), DType::F32);
    let answer = Rustai::line("generate --raw --temperature 0 -n 4 --json hello -m").arg(&out).json();
    assert!(!answer["tokens"].as_array().unwrap().is_empty());

    let text = quantize(&tiny.model, &out, "").arg("Q8_0").ok();
    assert!(text.contains("Q8_0") && text.contains("(16.0") && text.contains(" -> 8.5"), "{text}");
    let log = quantize(&tiny.model, &out, "-v").arg("Q4_0").run();
    assert!(log.err.contains("blk.1.ffn_down.weight [512, 256]: F16"), "{}", log.err);
}

#[test]
fn a_dry_run_tells_all_and_writes_nothing() {
    let tiny = Tiny::of(&TinyLlama::of(DType::F16));
    let out = beside(&tiny, "out.gguf");
    let run = quantize(&tiny.model, &out, "--dry-run").arg("Q4_K_S").run();
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.out.contains("blk.1.ffn_down.weight") && run.out.contains("nothing written"), "{}", run.out);
    assert!(run.err.contains("blocks of Q4_K; Q5_0 is used instead"), "{}", run.err);
    let report = quantize(&tiny.model, &out, "--dry-run --json --pure --output-tensor-type q8_0").arg("Q6_K").json();
    let fallback = &report["fallbacks"][0];
    assert_eq!((&fallback["wanted"], &fallback["used"]), (&"Q6_K".into(), &"Q8_0".into()));
    let tensor = &report["tensors"][1];
    assert_eq!((&tensor["from"], &tensor["to"], &tensor["weighted"]), (&"F32".into(), &"F32".into(), &false.into()));
    assert!(!out.exists());
}

#[test]
fn what_must_not_be_done_is_refused() {
    let tiny = tiny();
    let out = beside(&tiny, "out.gguf");
    quantize(&tiny.model, &tiny.model, "").arg("Q4_0").refuses(1, &["is the input itself", "another output"]);
    quantize(&tiny.model, &beside(&tiny, "no/such/folder.gguf"), "").arg("Q4_0").refuses(1, &["folder.gguf"]);
    let unknown = quantize(&tiny.model, &out, "").arg("Q7_K").run();
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.err.contains("Q4_K_M") && !unknown.err.contains("Q3_K,"), "{}", unknown.err);

    quantize(&tiny.model, &out, "").arg("Q5_K_M").ok();
    let again = beside(&tiny, "again.gguf");
    quantize(&out, &again, "").arg("Q4_0").refuses(1, &["Q5_K already", "--allow-requantize"]);
    assert!(!again.exists());
    quantize(&out, &again, "--allow-requantize").arg("Q4_0").ok();
    assert_eq!(dtype(&again, "blk.0.attn_q.weight"), DType::Q4_0);
    quantize(&out, &again, "--allow-requantize").arg("F32").ok();
    assert_eq!(dtype(&again, "blk.0.attn_q.weight"), DType::F32);

    let wrong = tiny.file("wrong.gguf", "nonsense");
    let run = Rustai::line("quantize --imatrix").arg(&wrong).arg(&tiny.model).arg(&out).arg("Q4_0");
    run.refuses(1, &["wrong.gguf", "not an importance matrix"]);
    let run = Rustai::line("quantize --imatrix").arg(&tiny.model).arg(&tiny.model).arg(&out).arg("Q4_0");
    run.refuses(1, &["not an importance matrix"]);
}

#[test]
fn importance_is_gathered_and_used() {
    let tiny = tiny();
    let text = tiny.file("text.txt", "The sea was calm and the night was long. ".repeat(40));
    let (matrix, out) = (beside(&tiny, "imatrix.gguf"), beside(&tiny, "out.gguf"));
    let gather = |from: &str| {
        tiny.run(&format!("imatrix --ctx 64 --json -t 2 {from}")).arg("-f").arg(&text).arg("-o").arg(&matrix)
    };
    let report = gather("--chunks 3").json();
    // Two layers with seven matrices each; the output is left out.
    assert_eq!((&report["matrices"], &report["chunks"], &report["ctx"]), (&14.into(), &3.into(), &64.into()));
    assert!(report["perplexity"].as_f64().unwrap() > 2.0);
    let file = GgufFile::open(&matrix).unwrap();
    let rows = file.tensor("blk.1.ffn_down.weight.counts").unwrap();
    assert_eq!(*file.data(rows), (3.0f32 * 64.0).to_le_bytes());
    assert_eq!(file.tensor("blk.1.ffn_down.weight.in_sum2").unwrap().dims, [512, 1]);

    let with = |flags: &str| Rustai::line(&format!("quantize --json {flags} --imatrix")).arg(&matrix);
    let report = with("").arg(&tiny.model).arg(&out).arg("IQ4_XS").json();
    let weighted = report["tensors"].as_array().unwrap().iter().filter(|tensor| tensor["weighted"] == true).count();
    assert_eq!(weighted, 14);
    let first = fs::read(&out).unwrap();
    quantize(&tiny.model, &out, "").arg("IQ4_XS").ok();
    assert_ne!(fs::read(&out).unwrap(), first, "importance changes the result");

    let other = Tiny::of(&TinyLlama::of(DType::F16));
    let run = with("").arg(&other.model).arg(beside(&other, "out.gguf")).arg("Q4_0");
    run.refuses(1, &["256 values", "64 columns"]);
    let short = tiny.run("imatrix --ctx 64").arg("-f").arg(tiny.file("short.txt", "short")).arg("-o").arg(&matrix);
    short.refuses(1, &["a chunk takes 64"]);
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    // Seconds of work on one thread.
    let mut command = Rustai::line("quantize --allow-requantize -t 1").arg(fixtures::smollm2()).arg(&out).command();
    let mut child = command.arg("IQ4_XS").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while names(folder.path()).is_empty() && started.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(names(folder.path())[0].starts_with(".out.gguf.partial-"), "{:?}", names(folder.path()));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(folder.path()), [""; 0]);
}
