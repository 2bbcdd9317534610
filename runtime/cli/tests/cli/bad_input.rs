//! What is refused: each time with the right exit code, the value that is wrong, and what to do about it.

use super::program::{Rustai, Tiny};
use rustai::DType;
use rustai_tests::TinyLlama;
use tempfile::TempDir;

#[test]
fn a_missing_model_is_named() {
    for command in ["generate x", "chat", "bench", "tokenize x", "inspect", "graph", "perplexity -f Cargo.toml"] {
        Rustai::line(command).arg("-m").arg("no/such.gguf").refuses(1, &["no/such.gguf", "check the path"]);
    }
    Rustai::line("pull no/such.gguf").refuses(1, &["no/such.gguf"]);
}

#[test]
fn a_spec_that_names_no_file_is_a_usage_error() {
    Rustai::line("pull hf:owner").refuses(2, &["hf:owner", "hf:owner/repo/file.gguf"]);
}

#[test]
fn no_network_is_told_with_what_to_do() {
    let cache = TempDir::new().unwrap();
    // Nothing listens on the discard port.
    let run = Rustai::line("generate hello")
        .env("RUSTAI_CACHE", cache.path())
        .env("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        .env("PIP_EXTRA_INDEX_URL", "")
        .env("PIP_FIND_LINKS", "")
        .env("PIP_CONFIG_FILE", "/dev/null");
    run.refuses(1, &["SmolLM2", "network", "connection"]);
}

#[test]
fn no_pip_client_is_told_with_what_to_do() {
    let cache = TempDir::new().unwrap();
    let run = Rustai::line("pull").env("RUSTAI_CACHE", cache.path()).env("RUSTAI_PIP", "no-such-pip");
    run.refuses(1, &["no-such-pip", "install"]);
}

#[test]
fn invalid_utf8_is_placed() {
    let tiny = Tiny::new();
    for command in ["generate", "tokenize", "generate -"] {
        tiny.run(command).input(b"ab\xffc").refuses(1, &["standard input", "0xff", "position 2", "UTF-8"]);
    }
    let file = tiny.file("latin1.txt", b"gr\xfc\xdfe");
    tiny.run("generate").arg("-f").arg(&file).refuses(1, &["latin1.txt", "0xfc", "position 2"]);
}

#[test]
fn an_empty_prompt_is_refused() {
    let tiny = Tiny::new();
    tiny.run("generate").refuses(2, &["the prompt is empty"]);
    tiny.run("generate").input("\n").refuses(2, &["the prompt is empty"]);
    tiny.run("generate --raw").arg("").refuses(2, &["the prompt is empty"]);
}

#[test]
fn a_missing_prompt_file_is_named() {
    Rustai::line("generate -f no/such.txt").refuses(1, &["no/such.txt"]);
}

#[test]
fn sampler_values_out_of_range_are_named_before_the_model_is_loaded() {
    for (flag, value) in [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "1.5"),
        ("--min-p", "-0.1"),
        ("--typical", "0"),
        ("--repeat-penalty", "0"),
        ("--frequency-penalty", "inf"),
    ] {
        Rustai::new(["generate", "x", "-m", "no/such.gguf", flag, value]).refuses(2, &["out of range"]);
    }
    let ended = Rustai::line("generate x --temperature warm").run();
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("'warm'") && ended.err.contains("--temperature"), "{}", ended.err);
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_with_both_lengths() {
    let tiny = Tiny::new();
    let long = "word ".repeat(200);
    tiny.run("generate --raw -c 64").input(long).refuses(1, &["64", "tokens", "--ctx"]);
}

#[test]
fn an_8_bit_cache_is_refused_for_heads_that_do_not_fit_it() {
    let tiny = Tiny::new();
    for command in ["generate --raw hello", "bench -r 1 -p 4 -n 0"] {
        tiny.run(command).arg("--kv-type").arg("q8_0").refuses(1, &["heads of 16", "q8_0", "32", "--kv-type", "f16"]);
    }
    let ended = tiny.run("generate --raw hello --kv-type q4_0").run();
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("'q4_0'") && ended.err.contains("q8_0"), "{}", ended.err);
}

#[test]
fn more_threads_than_cores_are_lowered_with_a_warning() {
    let tiny = Tiny::new();
    let ended = tiny.run("generate --raw hello -n 1 -t 10000").run();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let cores = std::thread::available_parallelism().unwrap().to_string();
    assert!(ended.err.starts_with("warning: 10000 threads"), "{}", ended.err);
    let verb = if cores == "1" { "is" } else { "are" };
    assert!(ended.err.contains(&format!("there {verb} {cores} core")), "{}", ended.err);
}

#[test]
fn what_is_not_gguf_is_refused() {
    let tiny = Tiny::new();
    let text = tiny.file("notes.gguf", "just some text, no model at all");
    for command in ["generate x", "inspect", "bench -r 1"] {
        Rustai::line(command).arg("-m").arg(&text).refuses(1, &["notes.gguf", "not a GGUF file"]);
    }
    let whole = std::fs::read(&tiny.model).unwrap();
    let cut = tiny.file("cut.gguf", &whole[..whole.len() / 2]);
    Rustai::line("generate x").arg("-m").arg(&cut).refuses(1, &["cut.gguf", "truncated"]);
}

#[test]
fn an_unknown_architecture_is_named() {
    let metadata = vec![("general.architecture".to_owned(), "mamba9".into())];
    let tiny = Tiny::of(&TinyLlama { metadata, ..TinyLlama::default() });
    tiny.run("generate x").refuses(1, &["mamba9", "llama"]);
}

#[test]
fn a_type_without_kernels_is_named_with_its_tensor() {
    let tiny = Tiny::of(&TinyLlama::of(DType::Q8_1));
    tiny.run("generate x").refuses(1, &["Q8_1", "token_embd.weight"]);
    assert!(tiny.run("inspect").ok().contains("Q8_1"));
}

#[test]
fn a_cache_that_memory_cannot_hold_is_refused_with_its_size() {
    let tiny = Tiny::new();
    for command in ["generate x -c 1000000000000", "bench -p 1000000000000 -r 1", "bench -d 18446744073709551615 -r 1"]
    {
        tiny.run(command).refuses(1, &["MiB of memory are needed", "key/value cache", "available"]);
    }
}

#[test]
fn a_vocabulary_that_does_not_match_the_embedding_is_refused_with_both_sizes() {
    let tokens = TinyLlama::default().vocab.tokens();
    let (all, fewer) = (tokens.len().to_string(), (tokens.len() - 1).to_string());
    let metadata = vec![("tokenizer.ggml.tokens".to_owned(), tokens[..tokens.len() - 1].to_vec().into())];
    let tiny = Tiny::of(&TinyLlama { metadata, ..TinyLlama::default() });
    tiny.run("generate x").refuses(1, &[&all, &fewer, "tiny-llama"]);
}

#[test]
fn a_part_of_a_split_model_is_refused_by_every_command_that_runs_it() {
    let metadata = vec![("split.count".to_owned(), 2u16.into())];
    let tiny = Tiny::of(&TinyLlama { metadata, ..TinyLlama::default() });
    for command in ["generate x", "graph", "bench -p 1 -n 1", "perplexity -f Cargo.toml"] {
        tiny.run(command).refuses(1, &["part 1 of 2", "tiny-llama", "join the parts"]);
    }
    assert!(tiny.run("inspect").ok().contains("split.count"));
}

#[test]
fn a_wrong_version_and_a_tensor_past_the_end_are_named() {
    let tiny = Tiny::new();
    let whole = std::fs::read(&tiny.model).unwrap();
    let mut versioned = whole.clone();
    versioned[4] = 9;
    let path = tiny.file("version.gguf", &versioned);
    Rustai::line("generate x").arg("-m").arg(&path).refuses(1, &["version.gguf", "version 9", "2 and 3"]);
    let path = tiny.file("short.gguf", &whole[..whole.len() - 64]);
    Rustai::line("generate x").arg("-m").arg(&path).refuses(1, &["short.gguf", "output_norm.weight", "truncated"]);
}

#[test]
fn a_chat_without_a_template_is_refused_at_once() {
    let tiny = Tiny::of(&TinyLlama { without: vec!["tokenizer.chat_template".into()], ..TinyLlama::default() });
    tiny.run("chat").input("Hello\n").refuses(1, &["no chat template", "--raw"]);
    let metadata = vec![("tokenizer.chat_template".to_owned(), "{% if %}".into())];
    let tiny = Tiny::of(&TinyLlama { metadata, ..TinyLlama::default() });
    tiny.run("chat").input("Hello\n").refuses(1, &["chat template `default`"]);
    assert!(!tiny.run("generate --raw x -n 2").ok().is_empty());
}

#[test]
fn an_unknown_instruction_set_is_refused() {
    for command in ["generate x", "bench -p 1 -n 0", "perplexity --ctx 4 -f Cargo.toml", "fit", "graph --plan"] {
        let tiny = Tiny::new();
        tiny.run(command).env("RUSTAI_CPU", "sse9").refuses(1, &["error: RUSTAI_CPU=\"sse9\"", "help: use ", "avx2"]);
    }
}

#[test]
fn a_wrong_variable_is_named_without_the_model_and_with_its_values() {
    let tiny = Tiny::new();
    for command in ["generate x", "fit", "bench -p 1 -n 0"] {
        let run = tiny.run(command).env("RUSTAI_DEVICE", "tpu");
        run.refuses(1, &["error: RUSTAI_DEVICE: \"tpu\" is no device", "help: give auto, cpu, cuda or cuda:N"]);
    }
}

#[test]
fn info_tells_all_it_can_although_a_variable_is_wrong() {
    for (name, value, row) in [
        ("RUSTAI_CPU", "sse9", ["kernels ", " none: RUSTAI_CPU=\"sse9\""]),
        ("RUSTAI_DEVICE", "tpu", ["models run on ", " nowhere: RUSTAI_DEVICE"]),
    ] {
        let ended = Rustai::line("info").env(name, value).run();
        assert_eq!(ended.code, Some(1), "{}", ended.err);
        let told = ended.out.lines().any(|line| line.starts_with(row[0]) && line.contains(row[1]));
        assert!(told && ended.out.contains("\nmemory "), "{}", ended.out);
        assert!(ended.err.starts_with(&format!("error: {name}")) && ended.err.contains(value), "{}", ended.err);
        assert!(ended.err.contains("\nhelp: "), "{}", ended.err);
        let json = Rustai::line("info --json").env(name, value).run();
        let report: serde_json::Value = serde_json::from_str(&json.out).unwrap();
        let field = if name == "RUSTAI_CPU" { "isa" } else { "device_choice" };
        assert!(json.code == Some(1) && report[field].is_null() && report["cores"].is_u64(), "{}", json.out);
    }
}

#[test]
fn an_empty_model_name_is_refused_and_not_the_default_model() {
    for args in [&["inspect", ""][..], &["pull", ""], &["generate", "x", "-m", ""], &["fit", "--model="]] {
        Rustai::new(args).refuses(2, &["the name of the model is empty", "variable"]);
    }
}

#[test]
fn a_path_with_a_semicolon_is_not_torn_apart() {
    let ended = Rustai::line("submit nop --queue").arg("socket:/no; such/q.sock").run();
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.starts_with("error: the queue at /no; such/q.sock cannot be opened: "), "{}", ended.err);
    assert!(ended.err.contains("\nhelp: start `rustai serve --queue socket:/no; such/q.sock`"), "{}", ended.err);
}

#[test]
fn logits_that_are_no_numbers_are_an_error_and_not_an_empty_answer() {
    let tiny = Tiny::new();
    let mut bytes = std::fs::read(&tiny.model).unwrap();
    let last = bytes.len() - 4;
    // A value of the last norm, which all logits depend on.
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    let model = tiny.file("broken.gguf", bytes);
    let text = tiny.file("text.txt", "The sea was calm and the night was long. ".repeat(9));
    for command in ["generate --raw hello --json", "generate --raw hello --temperature 0", "perplexity --ctx 32 --json"]
    {
        let run = Rustai::line(command).arg("-m").arg(&model);
        let run = if command.starts_with("perplexity") { run.arg("-f").arg(&text) } else { run };
        run.refuses(1, &["logits", "not numbers", "help: use another file"]);
    }
}

#[test]
fn a_wrong_log_filter_is_refused() {
    Rustai::line("info").env("RUSTAI_LOG", "a=b=c").refuses(2, &["RUSTAI_LOG", "a=b=c"]);
}

#[test]
fn a_benchmark_of_nothing_is_refused() {
    Rustai::line("bench -p 0 -n 0").refuses(2, &["nothing to measure"]);
    Rustai::line("bench kernels --type Q9_0").refuses(2, &["Q9_0", "Q8_0"]);
    Rustai::line("bench kernels --isa sse9").refuses(2, &["sse9", "avx2"]);
    Rustai::line("bench kernels --model 70b").refuses(2, &["70b", "1b (Llama"]);
    Rustai::line("bench kernels --svg no/such/folder.svg").refuses(2, &["no/such/folder.svg", "--svg"]);
}

#[test]
fn a_text_shorter_than_a_chunk_is_refused() {
    let tiny = Tiny::new();
    let text = tiny.file("short.txt", "A short text.");
    tiny.run("perplexity --ctx 128").arg("-f").arg(text).refuses(1, &["128", "--ctx"]);
}
