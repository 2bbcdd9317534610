//! The tokenizer and the chat template of a real model against independent implementations.
//!
//! `data/smollm2_text.json` holds what Hugging Face `tokenizers` and `jinja2` give; `data/smollm2_text.py` makes it.

use rustai::gguf::GgufFile;
use rustai::text::{ChatTemplate, Message, Specials, Tokenizer};
use rustai_tests::fixtures;
use serde_json::Value;

fn model() -> GgufFile {
    GgufFile::open(&fixtures::smollm2()).expect("a valid file")
}

fn expected() -> Value {
    serde_json::from_str(include_str!("../data/smollm2_text.json")).expect("valid JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list of ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn tokens_equal_the_reference_tokenizers() {
    let tokenizer = Tokenizer::from_metadata(model().metadata()).expect("a supported vocabulary");
    let expected = expected();
    let cases = expected["texts"].as_array().expect("a list");
    assert!(cases.len() > 50);
    for case in cases {
        let text = case["text"].as_str().expect("a text");
        let plain = ids(&case["plain"]);
        let parsed = case.get("parsed").map_or_else(|| plain.clone(), ids);
        assert_eq!(tokenizer.encode(text, Specials::Text).unwrap(), plain, "{text:?} as text");
        assert_eq!(tokenizer.encode(text, Specials::Parse).unwrap(), parsed, "{text:?} parsed");
        assert_eq!(tokenizer.encode_prompt(text, Specials::Parse).unwrap(), parsed, "the file asks for no BOS");
    }
}

#[test]
fn tokens_become_the_text_again_at_once_and_in_a_stream() {
    let tokenizer = Tokenizer::from_metadata(model().metadata()).expect("a supported vocabulary");
    let expected = expected();
    let mut lossless = 0;
    for case in expected["texts"].as_array().expect("a list") {
        let text = case["text"].as_str().expect("a text");
        let tokens = tokenizer.encode(text, Specials::Parse).unwrap();
        let decoded = tokenizer.decode(&tokens, true);
        let mut detokenizer = tokenizer.detokenizer(true);
        let mut streamed: String = tokens.iter().map(|&token| detokenizer.push(token)).collect();
        streamed.push_str(&detokenizer.finish());
        assert_eq!(streamed, decoded);
        // The vocabulary has no tokens for some bytes that only rare characters have.
        if !text.contains(|c| ('\u{80000}'..).contains(&c)) {
            assert_eq!(decoded, text);
            lossless += 1;
        }
    }
    assert!(lossless > 50);
}

#[test]
fn special_tokens_are_the_files() {
    let tokenizer = Tokenizer::from_metadata(model().metadata()).expect("a supported vocabulary");
    assert_eq!(tokenizer.vocab_size(), 49_152);
    assert_eq!(tokenizer.piece(tokenizer.bos().expect("a BOS")), Some("<|im_start|>"));
    assert_eq!(tokenizer.piece(tokenizer.eos().expect("an EOS")), Some("<|im_end|>"));
    assert_eq!(tokenizer.prefix(), None, "add_bos_token is false");
    let ends: Vec<_> = tokenizer.ends().iter().filter_map(|&end| tokenizer.piece(end)).collect();
    assert_eq!(ends, ["<|endoftext|>", "<|im_end|>"]);
    let im_end = tokenizer.eos().expect("an EOS");
    assert_eq!(tokenizer.bytes(im_end, true).as_deref(), Some(&b"<|im_end|>"[..]));
    assert_eq!(tokenizer.bytes(im_end, false).as_deref(), Some(&b""[..]));
}

#[test]
fn prompts_equal_the_reference_renderers() {
    let file = model();
    let tokenizer = Tokenizer::from_metadata(file.metadata()).expect("a supported vocabulary");
    let template = ChatTemplate::from_metadata(file.metadata(), &tokenizer)
        .expect("a valid template")
        .expect("the file has a template");
    for case in expected()["prompts"].as_array().expect("a list") {
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .expect("a conversation")
            .iter()
            .map(|turn| Message {
                role: turn[0].as_str().expect("a role").into(),
                content: turn[1].as_str().expect("a text").into(),
            })
            .collect();
        let generation = case["generation"].as_bool().expect("a bool");
        let prompt = template.render(&messages, generation).expect("a prompt");
        assert_eq!(prompt, case["prompt"].as_str().expect("a prompt"));
    }
}

#[test]
fn a_template_that_the_file_does_not_have_is_an_error_that_names_those_it_has() {
    let file = model();
    let tokenizer = Tokenizer::from_metadata(file.metadata()).expect("a supported vocabulary");
    assert!(ChatTemplate::named(file.metadata(), &tokenizer, "default").is_ok());
    let error = ChatTemplate::named(file.metadata(), &tokenizer, "tool_use").expect_err("no such template").to_string();
    assert!(error.contains("tool_use") && error.contains("default"), "{error}");
}
