//! Two tiny vocabularies for unit tests.
use super::byte_level::CHARS;
use super::{TokenType, Tokenizer, Vocabulary};

/// Byte-level: token 0 to 255 are the bytes, then `he`, `hel`, `lo`, `hello`, then `<|im_start|>` and `<|im_end|>`.
pub(super) fn byte_level() -> Tokenizer {
    let mut tokens: Vec<String> = CHARS.iter().map(char::to_string).collect();
    tokens.extend(["he", "hel", "lo", "hello", "<|im_start|>", "<|im_end|>"].map(String::from));
    let mut types = vec![TokenType::Normal; tokens.len()];
    types[260..].fill(TokenType::Control);
    let merges = ["h e", "he l", "l o", "hel lo"];
    Tokenizer::from_vocabulary(&Vocabulary {
        model: "gpt2",
        pre: Some("smollm"),
        tokens: &tokens.into(),
        types,
        merges: &merges.into(),
        bos: Some(260),
        eos: Some(261),
        add_bos: Some(false),
        ..Vocabulary::default()
    })
    .expect("a valid vocabulary")
}

/// SentencePiece: `<unk>`, `<s>`, `</s>`, the bytes, then pieces of `▁hello`, then `<|im_end|>`.
pub(super) fn sentence_piece() -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    let mut types = vec![TokenType::Unknown, TokenType::Control, TokenType::Control];
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    types.resize(tokens.len(), TokenType::Byte);
    tokens.extend(["he", "lo", "llo", "hello", "▁hello", "▁", "h", "e", "l", "o", "<", ">"].map(String::from));
    types.resize(tokens.len(), TokenType::Normal);
    tokens.push("<|im_end|>".to_owned());
    types.push(TokenType::Control);
    let scores: Vec<f32> = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { -(id as f32) }).collect();
    Tokenizer::from_vocabulary(&Vocabulary {
        model: "llama",
        tokens: &tokens.into(),
        scores: &scores,
        types,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..Vocabulary::default()
    })
    .expect("a valid vocabulary")
}
