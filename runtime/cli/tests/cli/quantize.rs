//! `quantize` and `imatrix`.

use super::program::{Rustai, Tiny};
use rustai::{DType, gguf::GgufFile, quantize::Imatrix};
use rustai_tests::{TinyLlama, fixtures};
use rustix::{
    fs::{CWD, Mode, mkfifoat},
    process::{Pid, Signal, kill_process},
};
use std::{
    fs::{self, Permissions},
    os::unix::fs::{FileTypeExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Stdio},
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
    quantize(&tiny.model, &tiny.model, "").arg("Q4_0").refuses(2, &["is the input itself", "another output"]);
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

/// Waits until the program has its output open, which has no name yet, or a hidden one where a file system knows no others.
fn wait_for_output(child: &Child, folder: &Path) {
    let files = format!("/proc/{}/fd", child.id());
    let is_output = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        path.starts_with(folder) && (name.ends_with(" (deleted)") || name.contains(".partial-"))
    };
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        // Files are closed while they are listed.
        let mut open = fs::read_dir(&files).into_iter().flatten().flatten().flat_map(|file| fs::read_link(file.path()));
        if open.any(is_output) {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("no output was opened in {}", folder.display());
}

#[test]
fn an_end_by_a_signal_leaves_nothing_behind() {
    for (signals, code) in [
        (&[Signal::INT][..], Some(130)),
        (&[Signal::INT, Signal::INT], Some(130)),
        (&[Signal::TERM], None),
        (&[Signal::KILL], None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.gguf");
        // Seconds of work on one thread.
        let mut command = Rustai::line("quantize --allow-requantize -t 1").arg(fixtures::smollm2()).arg(&out).command();
        let mut child = command.arg("IQ4_XS").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_output(&child, folder.path());
        thread::sleep(Duration::from_millis(50));
        signals.iter().for_each(|signal| kill_process(Pid::from_child(&child), *signal).unwrap());
        assert_eq!(child.wait().unwrap().code(), code, "{signals:?}");
        assert_eq!(names(folder.path()), [""; 0], "{signals:?}");
    }
}

#[test]
fn ctrl_c_keeps_the_importance_of_the_chunks_so_far() {
    let tiny = tiny();
    // Thousands of chunks.
    let text = tiny.file("text.txt", "The sea was calm and the night was long. ".repeat(4000));
    let out = beside(&tiny, "imatrix.gguf");
    let run = tiny.run("imatrix --ctx 64 --json -t 1").arg("-f").arg(&text).arg("-o").arg(&out);
    let child = run.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_output(&child, out.parent().unwrap());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    let chunks = report["chunks"].as_u64().unwrap();
    assert!(report["interrupted"] == true && (1..1000).contains(&chunks), "{report}");
    assert!(said.contains("imatrix.gguf holds what") && said.contains(&format!("{chunks} of ")), "{said}");
    let kept = Imatrix::read(&out).unwrap();
    assert_eq!((kept.len(), u64::from(kept.chunks)), (14, chunks));
}

#[test]
fn only_regular_files_are_replaced_and_no_input_is() {
    let tiny = tiny();
    let at = |name: &str| beside(&tiny, name);
    let (model, text) = (fs::read(&tiny.model).unwrap(), "The sea was calm and the night was long. ".repeat(40));
    tiny.file("text.txt", &text);
    let gather = |out: &Path| tiny.run("imatrix --ctx 64 --chunks 1").arg("-f").arg(at("text.txt")).arg("-o").arg(out);
    gather(&at("imatrix.gguf")).ok();
    mkfifoat(CWD, at("pipe"), Mode::from_raw_mode(0o600)).unwrap();
    symlink("pipe", at("link to pipe")).unwrap();
    symlink(&tiny.model, at("link to model")).unwrap();
    for out in ["pipe", "link to pipe"] {
        quantize(&tiny.model, &at(out), "").arg("Q4_0").refuses(1, &[out, "is a pipe", "another output"]);
        gather(&at(out)).refuses(1, &[out, "is a pipe", "another output"]);
    }
    assert!(fs::metadata(at("pipe")).unwrap().file_type().is_fifo());
    let same = ["is the input itself", "another output"];
    quantize(&tiny.model, &at("link to model"), "").arg("Q4_0").refuses(2, &same);
    let with = Rustai::line("quantize --imatrix").arg(at("imatrix.gguf")).arg(&tiny.model).arg(at("imatrix.gguf"));
    with.arg("Q4_0").refuses(2, &same);
    for out in [&tiny.model, &at("link to model"), &at("text.txt")] {
        gather(out).refuses(2, &same);
    }
    for run in [quantize(&tiny.model, Path::new("-"), "").arg("Q4_0"), gather(Path::new("-"))] {
        run.refuses(2, &["standard output", "name a file"]);
    }
    assert!(fs::read(&tiny.model).unwrap() == model && fs::read_to_string(at("text.txt")).unwrap() == text);
    Imatrix::read(&at("imatrix.gguf")).unwrap();

    tiny.file("old.gguf", "old");
    fs::set_permissions(at("old.gguf"), Permissions::from_mode(0o600)).unwrap();
    symlink("old.gguf", at("link to old")).unwrap();
    quantize(&tiny.model, &at("link to old"), "").arg("Q4_0").ok();
    assert_eq!(dtype(&at("old.gguf"), "blk.0.attn_q.weight"), DType::Q4_0);
    assert_eq!(fs::metadata(at("old.gguf")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::symlink_metadata(at("link to old")).unwrap().is_symlink());
}

#[test]
fn an_output_that_cannot_be_written_is_told_first_and_alone() {
    let tiny = tiny();
    let (text, out) = (tiny.file("text.txt", "short"), beside(&tiny, "none/out.gguf"));
    // The text is too short, which would be told later.
    let gather = tiny.run("imatrix --ctx 64").arg("-f").arg(&text).arg("-o").arg(&out);
    for run in [gather, quantize(&tiny.model, &out, "").arg("Q4_0")] {
        let ended = run.run();
        let told = format!("error: {} cannot be written: No such file or directory", out.display());
        assert!(ended.code == Some(1) && ended.err.starts_with(&told), "{}", ended.err);
        assert!(!ended.err.contains(".partial-"), "{}", ended.err);
    }
    let folder = beside(&tiny, "");
    quantize(&tiny.model, &folder, "").arg("Q4_0").refuses(1, &["is a folder"]);
    let none = beside(&tiny, "none.gguf");
    let ended = quantize(&none, &out, "").arg("Q4_0").run();
    assert!(ended.err.starts_with("error: there is no model at") && !ended.err.contains("name none"), "{}", ended.err);
    let ended = Rustai::line("quantize --imatrix").arg(&none).arg(&tiny.model).arg(&out).arg("Q4_0").run();
    assert!(ended.err.starts_with("error: cannot read "), "the file is named once: {}", ended.err);
}

#[test]
fn chunks_of_no_use_are_a_wrong_command_line() {
    for flags in ["--ctx 1", "--ctx 0", "--chunks 0"] {
        let ended = Rustai::line(&format!("imatrix -f text.txt -o out.gguf {flags}")).run();
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{flags}: {}", ended.err);
    }
}

#[test]
fn a_model_that_computes_nan_gives_no_importance() {
    let tiny = Tiny::of(&TinyLlama { tied: false, ..TinyLlama::of(DType::F16) });
    let sound = fs::read(&tiny.model).unwrap();
    let text = tiny.file("text.txt", "The sea was calm and the night was long. ".repeat(40));
    for (tensor, what) in [
        ("blk.1.attn_norm.weight", "inputs of blk.1.attn_"),
        ("output_norm.weight", "inputs of output.weight"),
        ("output.weight", "logits"),
    ] {
        let file = GgufFile::from_bytes(sound.clone()).unwrap();
        let weights = file.data(file.tensor(tensor).unwrap()).to_vec();
        let at = sound.windows(weights.len()).position(|window| *window == weights[..]).unwrap();
        let mut damaged = sound.clone();
        // NaN in single and in half precision.
        damaged[at..at + 4].fill(0xff);
        let model = tiny.file("nan.gguf", damaged);
        let out = beside(&tiny, "imatrix.gguf");
        let run = Rustai::line("imatrix --ctx 64 -f").arg(&text).arg("-o").arg(&out).arg("-m").arg(model);
        run.refuses(1, &["nan.gguf", what, "not finite on this text", "convert or fetch it again"]);
        assert!(!out.exists());
    }
}

#[test]
fn mixes_that_are_not_what_they_promise_are_warned_of() {
    let tiny = tiny();
    let err = |mix: &str| {
        let ended = quantize(&tiny.model, &beside(&tiny, "out.gguf"), "--dry-run").arg(mix).run();
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        ended.err
    };
    assert!(err("Q2_K_S").contains("warning: Q2_K_S without an importance matrix"));
    assert!(err("MXFP4_MOE").contains("warning: the model has no experts"));
    for mix in ["Q2_K", "MXFP4", "Q4_K_M"] {
        assert_eq!(err(mix), "", "{mix}");
    }
}
