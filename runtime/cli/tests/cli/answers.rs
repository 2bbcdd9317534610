//! `generate` and `chat`.

use super::program::{Rustai, Tiny};
use rustai_tests::fixtures;
use std::{
    io::{BufReader, Read},
    process::Stdio,
};

/// A question to the default model, answered greedily.
fn ask(flags: &str) -> Rustai {
    Rustai::line(flags).arg("-m").arg(fixtures::smollm2()).arg("--temperature").arg("0")
}

#[test]
fn json_holds_what_the_documentation_says() {
    let answer = ask("generate --raw --json -n 4").arg("The capital of France is").json();
    assert_eq!(answer["text"], " Paris.\n\n");
    assert_eq!(answer["prompt_tokens"], serde_json::json!([504, 3575, 282, 4649, 314]));
    assert_eq!(answer["tokens"], serde_json::json!([7042, 30, 198, 198]));
    assert_eq!(answer["finish"], "length");
    assert!(answer["seed"].is_u64());
    for field in ["load_s", "first_token_s", "prompt_s", "generation_s", "prompt_tokens_per_s", "tokens_per_s"] {
        assert!(answer["timing"][field].as_f64().unwrap() > 0.0, "{field}");
    }
}

#[test]
fn the_files_template_is_applied() {
    let prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    let written = ask("generate --raw --json -n 1").input(prompt).json();
    let applied = ask("generate --json -n 1 Hello").arg("--system").arg("Be brief.").json();
    assert_eq!(applied["prompt_tokens"], written["prompt_tokens"]);
}

#[test]
fn text_is_what_json_says_and_ends_with_its_line() {
    let text = ask("generate -n 12 Hello").ok();
    let json = ask("generate -n 12 --json Hello").json();
    assert_eq!(text.trim_end_matches('\n'), json["text"].as_str().unwrap().trim_end_matches('\n'));
    assert!(text.ends_with('\n'));
}

#[test]
fn argument_file_and_standard_input_are_one_prompt() {
    let tiny = Tiny::new();
    let file = tiny.file("prompt.txt", "the one prompt\n");
    let tokens = |run: Rustai| run.json()["prompt_tokens"].clone();
    let expected = tokens(tiny.run("generate --json -n 1").arg("the one prompt"));
    assert_eq!(tokens(tiny.run("generate --json -n 1").arg("-f").arg(&file)), expected);
    assert_eq!(tokens(tiny.run("generate --json -n 1").input("the one prompt\n")), expected);
    assert_eq!(tokens(tiny.run("generate --json -n 1 -").input("the one prompt")), expected);
}

#[test]
fn raw_takes_the_text_as_it_stands() {
    let tiny = Tiny::new();
    let tokens = |run: Rustai| run.json()["prompt_tokens"].clone();
    let raw = tokens(tiny.run("generate --json --raw -n 1").input("<|im_start|>ab\n"));
    let listed = tiny.run("tokenize --json").input("<|im_start|>ab\n").json();
    assert_eq!(raw, listed["tokens"]);
    assert_eq!(raw[0], 1, "a special token is parsed, and the BPE vocabulary asks for no BOS");
    assert_ne!(tokens(tiny.run("generate --json -n 1").input("<|im_start|>ab\n")), raw, "the template is applied");
}

#[test]
fn the_same_seed_gives_the_same_tokens() {
    let tiny = Tiny::new();
    let tokens = |seed: &str| {
        let run = tiny.run("generate --json --raw -n 16 --temperature 2 hello");
        run.arg("--seed").arg(seed).json()["tokens"].clone()
    };
    assert_eq!(tokens("7"), tokens("7"));
    assert_ne!(tokens("7"), tokens("8"));
}

#[test]
fn stop_strings_end_the_answer_before_they_appear() {
    let whole =
        ask("generate --json -n 24 --raw").arg("The quick brown fox").json()["text"].as_str().unwrap().to_owned();
    let word = whole.split_whitespace().nth(3).expect("a few words").to_owned();
    let cut = ask("generate --json -n 24 --raw").arg("--stop").arg(&word).arg("The quick brown fox").json();
    assert_eq!(cut["finish"], "stop_string");
    assert_eq!(cut["text"].as_str().unwrap(), &whole[..whole.find(&word).unwrap()]);
}

#[test]
fn text_comes_in_pieces() {
    let mut command = ask("generate --raw -n 40").arg("Once upon a time").command();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::with_capacity(1, child.stdout.take().unwrap());
    let mut first = [0];
    out.read_exact(&mut first).unwrap();
    assert!(child.try_wait().unwrap().is_none(), "the first byte came only when all was done");
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(rest.len() > 40, "{rest:?}");
}

#[test]
fn verbose_tells_the_timing_on_standard_error_only() {
    let ended = ask("generate -v -n 4 Hello").run();
    assert_eq!(ended.code, Some(0));
    assert!(ended.err.contains("tokens/s") && ended.err.contains("first token after"), "{}", ended.err);
    assert!(!ended.out.contains("tokens/s"));
    assert_eq!(ask("generate -n 4 Hello").run().err, "", "quiet by default");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut command = ask("generate --raw -n 60").arg("Once upon a time").command();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn chat_remembers_its_turns_and_obeys_commands() {
    let ended =
        ask("chat -n 6").input("My name is Ada.\n/system Be brief.\n/system\n/fly\n/help\nHello\n/exit\nnever\n").run();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.out.contains("Be brief.\n") && ended.out.contains("/clear"), "{}", ended.out);
    assert!(ended.err.contains("there is no command /fly"), "{}", ended.err);
    let end_of_input = ask("chat -n 2").input("Hi\n").run();
    assert_eq!(end_of_input.code, Some(0), "{}", end_of_input.err);
}
