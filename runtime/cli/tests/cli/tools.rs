//! The smaller commands, and the shapes of their JSON.

use super::program::{Rustai, Tiny};
use rustai::{DType, Isa};
use rustai_tests::TinyLlama;

#[test]
fn bench_prints_rows_as_llama_bench_does() {
    let tiny = Tiny::new();
    let table = tiny.run("bench -p 16,40 -n 4 -d 0,8 -r 2 -t 1").ok();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| llama F32 ")).collect();
    for (row, name) in rows.iter().zip(["pp16", "pp40", "tg4", "pp16 @ d8", "pp40 @ d8", "tg4 @ d8"]) {
        assert!(row.contains(&format!(" {name} |")) && row.contains(" ± "), "{row}");
    }
    assert_eq!(rows.len(), 6, "{table}");
    assert!(table.starts_with("| model "), "{table}");
}

#[test]
fn bench_speaks_json_and_csv() {
    let tiny = Tiny::new();
    let rows = tiny.run("bench -p 8 -n 2 -r 3 -t 1 --json").env("RUSTAI_CPU", "reference").json();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((&rows[0]["n_prompt"], &rows[0]["n_gen"]), (&8.into(), &0.into()));
    assert_eq!((&rows[1]["n_prompt"], &rows[1]["n_gen"]), (&0.into(), &2.into()));
    for row in rows {
        assert_eq!(row["isa"], "reference");
        assert_eq!(row["n_threads"], 1);
        assert_eq!(row["samples_ns"].as_array().unwrap().len(), 3);
        assert!(row["avg_ts"].as_f64().unwrap() > 0.0);
        assert!(row["model_n_params"].as_u64().unwrap() > 1000);
    }
    let csv = tiny.run("bench -p 8 -n 0 -r 1 -t 1 -o csv").ok();
    assert_eq!(csv.lines().count(), 2);
    assert!(csv.starts_with("build_version,cpu_info,isa,"));
}

#[test]
fn bench_kernels_measures_products_beside_the_roofs() {
    let tiny = Tiny::new();
    let picture = tiny.file("roofline.svg", "");
    let line = "bench kernels --quick --type q8_0 --m 1,2 --model 135m -t 1 --json --svg";
    let report = Rustai::line(line).arg(&picture).json();
    let reads = report["roofs"][0]["reads"].as_array().unwrap();
    assert_eq!(reads.last().unwrap()["level"], "memory");
    assert!(reads.iter().all(|read| read["all_threads"].as_f64().unwrap() > 0.0));
    let points = report["points"].as_array().unwrap();
    let in_memory: Vec<_> = points.iter().filter(|point| point["weights_in"] == "memory").collect();
    assert_eq!(in_memory.iter().map(|point| point["m"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    for point in points {
        assert_eq!((&point["type"], &point["isa"]), (&"Q8_0".into(), &Isa::best().name().into()));
        assert_eq!((&point["n"], &point["k"]), (&576.into(), &1536.into()));
        assert_eq!(point["samples_ns"].as_array().unwrap().len(), 3);
        assert!(point["percent_of_roof"].as_f64().unwrap() > 0.0);
    }
    assert!(std::fs::read_to_string(picture).unwrap().contains("weights in memory"));
}

#[test]
fn perplexity_of_a_random_model_is_about_its_vocabulary() {
    let tiny = Tiny::new();
    let text = tiny.file("text.txt", "The sea was calm and the night was long. ".repeat(40));
    let report = tiny.run("perplexity --ctx 64 --chunks 3 --json").arg("-f").arg(&text).json();
    assert_eq!((&report["chunks"], &report["ctx"]), (&3.into(), &64.into()));
    assert_eq!(report["scored_tokens"], 3 * 31);
    let perplexity = report["perplexity"].as_f64().unwrap();
    assert!(perplexity > 2.0 && perplexity < 1e6, "{perplexity}");

    let printed = tiny.run("perplexity --ctx 64 --chunks 3").arg("-f").arg(&text).ok();
    assert!(printed.starts_with("[1]") && printed.contains(",[3]"), "{printed}");
    assert!(printed.contains(&format!("Final estimate: PPL = {perplexity:.4} +/- ")), "{printed}");
    // Cutting the chunk into several steps changes nothing but rounding.
    let cut = tiny.run("perplexity --ctx 64 --chunks 3 --batch-size 10 --json").arg("-f").arg(&text).json();
    let difference = cut["perplexity"].as_f64().unwrap() / perplexity - 1.0;
    assert!(difference.abs() < 1e-3, "{difference}");
}

#[test]
fn an_8_bit_cache_can_be_chosen_everywhere() {
    let tiny = Tiny::new();
    let model = tiny.file("wide.gguf", TinyLlama { heads: 2, kv_heads: 1, ..TinyLlama::default() }.bytes());
    let run = |command: &str| Rustai::line(command).arg("-m").arg(&model).arg("--kv-type");
    let bench = run("bench -p 40 -n 2 -r 1 --json").arg("f16,q8_0").json();
    let types: Vec<_> = bench.as_array().unwrap().iter().map(|row| (&row["type_k"], &row["test"])).collect();
    assert_eq!(types.len(), 4);
    assert_eq!((types[0].0, types[3].0), (&"f16".into(), &"q8_0".into()));
    assert!(run("bench -p 4 -n 0 -r 1").arg("q8_0").ok().contains("| q8_0 "));

    let text = tiny.file("text.txt", "The sea was calm and the night was long. ".repeat(40));
    let perplexity = |kv_type: &str| {
        let command = run("perplexity --ctx 64 --chunks 3 --json").arg(kv_type);
        let report = command.arg("-f").arg(&text).json();
        assert_eq!(report["kv_type"], kv_type);
        report["perplexity"].as_f64().unwrap()
    };
    let (half, eight) = (perplexity("f16"), perplexity("q8_0"));
    assert!(half != eight && (half / eight - 1.0).abs() < 0.02, "{half} and {eight}");
    let answer = run("generate --raw hello -n 3 --temperature 0 --json").arg("q8_0").json();
    assert_eq!(answer["tokens"].as_array().unwrap().len(), 3);
}

#[test]
fn tokenize_lists_ids_and_pieces() {
    let tiny = Tiny::new();
    let report = tiny.run("tokenize --json").arg("<|im_start|>hello").json();
    let tokens: Vec<u64> = report["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect();
    assert_eq!(tokens[0], 1);
    assert_eq!(report["count"], tokens.len());
    let pieces: String = report["pieces"].as_array().unwrap().iter().map(|piece| piece.as_str().unwrap()).collect();
    assert_eq!(pieces, "<|im_start|>hello");

    let ids = tokens.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(tiny.run("tokenize --ids").arg("<|im_start|>hello").ok(), ids + "\n");
    let lines = tiny.run("tokenize").arg("<|im_start|>hello").ok();
    assert_eq!(lines.lines().next().unwrap(), "      1  \"<|im_start|>\"");
    let plain = tiny.run("tokenize --no-special --json").arg("<|im_start|>hello").json();
    assert!(plain["tokens"].as_array().unwrap().iter().all(|token| token != 1), "{plain}");
}

#[test]
fn tokenize_puts_bos_in_front_if_the_file_asks() {
    let vocab = rustai_tests::vocab::Vocab::SentencePiece;
    let tiny = Tiny::of(&TinyLlama { vocab, ..TinyLlama::default() });
    assert_eq!(tiny.run("tokenize --json").arg("hello").json()["tokens"][0], 1);
    assert_ne!(tiny.run("tokenize --json --no-bos").arg("hello").json()["tokens"][0], 1);
    let written = tiny.run("tokenize --json").arg("<s>hello").json();
    let raw = tiny.run("generate --raw --json -n 1").arg("<s>hello").json();
    assert_eq!(written["tokens"], raw["prompt_tokens"], "one BOS, as generate --raw has it");
}

#[test]
fn inspect_tells_metadata_tensors_and_kernels() {
    let tiny = Tiny::of(&TinyLlama::of(DType::Q8_0));
    let report = tiny.run("inspect --json").json();
    assert_eq!(report["architecture"], "llama");
    assert_eq!(report["name"], "tiny random llama");
    assert_eq!(report["metadata"]["llama.block_count"], 2);
    assert_eq!(report["metadata"]["llama.attention.layer_norm_rms_epsilon"], 1e-5);
    assert_eq!(report["metadata"]["tokenizer.ggml.tokens"]["array_of"], "string");
    let tensors = report["tensors"].as_array().unwrap();
    let bytes: u64 = tensors.iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    assert_eq!(report["bytes"], bytes);
    let q8 = report["types"].as_array().unwrap().iter().find(|row| row["type"] == "Q8_0").unwrap();
    assert_eq!(q8["kernel"], Isa::best().name());

    let text = Rustai::new(["inspect".as_ref(), tiny.model.as_os_str()]).ok();
    for word in ["general.architecture", "blk.1.ffn_down.weight", "Q8_0", "tiny random llama"] {
        assert!(text.contains(word), "{word}");
    }
    assert!(!tiny.run("inspect --no-tensors").ok().contains("blk.1."));
}

#[test]
fn inspect_tells_which_types_run_fast_and_which_do_not() {
    let kernels = |model: TinyLlama| {
        let tiny = Tiny::of(&model);
        let report = tiny.run("inspect --json --no-tensors").json();
        let rows = report["types"].as_array().unwrap().clone();
        let text = tiny.run("inspect --no-tensors").ok();
        rows.into_iter()
            .map(|row| {
                let (name, kernel) =
                    (row["type"].as_str().unwrap().to_owned(), row["kernel"].as_str().map(str::to_owned));
                let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
                assert!(line.ends_with(kernel.as_deref().unwrap_or("none")), "{line}");
                (name, kernel)
            })
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let fast = Some(Isa::best().name().to_owned());
    let reference = Some(Isa::Reference.name().to_owned());
    let found = kernels(TinyLlama { embedding_dtype: Some(DType::IQ1_M), ..TinyLlama::of(DType::Q4_K) });
    assert_eq!((&found["Q4_K"], &found["IQ1_M"]), (&fast, &reference));
    let found = kernels(TinyLlama { embedding_dtype: Some(DType::Q8_1), ..TinyLlama::of(DType::NVFP4) });
    assert_eq!((&found["NVFP4"], &found["Q8_1"], &found["F32"]), (&reference, &None, &fast));
}

#[test]
fn info_tells_what_was_chosen_and_why() {
    let info = Rustai::line("info --json").env("RUSTAI_CACHE", "/a/cache").json();
    assert_eq!(info["isa"], Isa::best().name());
    assert!(!info["isa_reason"].as_str().unwrap().is_empty());
    assert_eq!(info["cache"], "/a/cache");
    // A GPU, or the reason why there is none.
    let (devices, missing) = (info["devices"].as_array().unwrap(), info["devices_missing"].as_str());
    assert_eq!(devices.is_empty(), missing.is_some_and(|reason| reason.contains("use the CPU")), "{info}");
    assert_eq!(info["instruction_sets"].as_array().unwrap().len(), Isa::ALL.len());
    assert!(info["huge_pages_used"].is_boolean() && info["memory_nodes"].is_array(), "{info}");
    let policies = ["one_node", "interleave", "inherited", "refused"];
    assert!(policies.iter().any(|policy| info["memory_policy"] == *policy), "{info}");
    let forced = Rustai::line("info").env("RUSTAI_CPU", "reference").ok();
    assert!(forced.contains("reference: ") && forced.contains("\ndevices "), "{forced}");
}

#[test]
fn fit_says_whether_there_is_room() {
    let tiny = Tiny::new();
    let fits = tiny.run("fit --device cpu --json").json();
    assert_eq!(fits["fits"], true, "{fits}");
    assert!(tiny.run("fit --device cpu").ok().ends_with("\nThere is room for it.\n"));
    // Sizes that no computer has, and that no number of 64 bits holds.
    for line in ["fit --device cpu -s 1000000000", "fit --device cpu -c 18446744073709551615"] {
        let report = tiny.run(line).arg("--json").json();
        let part = &report["parts"][0];
        assert_eq!(report["fits"], false, "{report}");
        let bytes = |name: &str| part[name].as_u64().unwrap();
        assert!(bytes("needed_bytes") > bytes("free_bytes"), "{report}");
        assert!(bytes("needed_bytes") >= bytes("cache_bytes"), "{report}");
        assert_eq!(report["host_needed_bytes"], part["needed_bytes"]);
        let text = tiny.run(line).ok();
        assert!(text.contains("\nIt does not fit: the host needs "), "{text}");
    }
}

#[test]
fn bench_tells_every_configuration_below_its_table() {
    let tiny = Tiny::new();
    let model = tiny.file("wide.gguf", TinyLlama { heads: 2, kv_heads: 1, ..TinyLlama::default() }.bytes());
    let run = |args: &str| Rustai::line(args).arg("--device").arg("cpu").arg("-m").arg(&model).ok();
    let several = run("bench -p 4 -n 0 -r 1 -t 1 --kv-type f16,q8_0");
    let footer = several.split_once("\n\n").unwrap().1;
    assert_eq!(footer.lines().count(), 3, "{several}");
    for kv_type in ["f16", "q8_0"] {
        let line = footer.lines().find(|line| line.ends_with(&format!("cache: {kv_type}")));
        assert!(line.is_some_and(|line| line.contains(", 1 thread, ")), "{footer}");
    }
    let one = run("bench -p 4 -n 0 -r 1 -t 1");
    assert_eq!(one.split_once("\n\n").unwrap().1.lines().count(), 1, "{one}");
}

/// Warnings are for what was asked for and does not happen.
#[test]
fn warnings_are_told_without_being_asked_for_and_ordinary_runs_are_quiet() {
    let tiny = Tiny::new();
    let text = tiny.file("text.txt", "The sea was calm and the night was long. ".repeat(9));
    let perplexity = tiny.run("perplexity --ctx 64").arg("-f").arg(&text);
    let lines = ["generate --raw hello -n 2", "bench -p 4 -n 1 -r 1", "fit", "inspect", "tokenize x", "graph --plan"];
    let runs = lines.map(|line| tiny.run(line)).into_iter().chain([perplexity, Rustai::line("info")]);
    for run in runs {
        let ended = run.run();
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{}", ended.out);
    }
    for line in ["generate --raw hello -n 1 -c 512", "fit -c 512"] {
        let ended = tiny.run(line).run();
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert_eq!(ended.err.matches("longer than the model was made for").count(), 1, "{}", ended.err);
    }
    let quiet = tiny.run("generate --raw hello -n 1 -c 512").env("RUSTAI_LOG", "error").run();
    assert_eq!(quiet.err, "");
}

#[test]
fn graph_prints_text_dot_and_svg() {
    let tiny = Tiny::new();
    assert!(tiny.run("graph").ok().contains("attention"));
    assert!(tiny.run("graph --format dot").ok().starts_with("digraph"));
    let path = tiny.file("graph.svg", "");
    assert_eq!(tiny.run("graph --format svg").arg("-o").arg(&path).ok(), "");
    assert!(std::fs::read_to_string(path).unwrap().contains("<svg"));
    // The plan is the one that runs, made without reading a weight.
    assert!(!tiny.run("graph --plan").ok().is_empty());
    let unsupported = Tiny::of(&TinyLlama::of(DType::Q8_1));
    unsupported.run("graph --plan").refuses(1, &["Q8_1", "token_embd.weight"]);
    assert!(unsupported.run("graph").ok().contains("attention"));
}

#[test]
fn pull_prints_where_the_file_lies() {
    let path = rustai_tests::fixtures::smollm2();
    assert_eq!(Rustai::line("pull").ok(), format!("{}\n", path.display()));
}

#[test]
fn output_into_a_closed_pipe_is_quiet() {
    use std::process::Stdio;
    let tiny = Tiny::new();
    let mut command = tiny.run("inspect").command();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}
