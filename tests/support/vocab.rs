//! Two small vocabularies, as the metadata entries of a model file.

use rustai::gguf::Value;

/// Which tokenizer a test model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocab {
    /// Byte-level BPE, as GPT-2 has it (`tokenizer.ggml.model` = `gpt2`, `pre` = `smollm`). No BOS is added.
    /// Tokens 0, 1, 2 are `<|endoftext|>`, `<|im_start|>`, `<|im_end|>`; 1 is BOS and 2 is EOS.
    Bpe,
    /// SentencePiece with scores and byte fallback (`tokenizer.ggml.model` = `llama`). BOS and a space are added.
    /// Tokens 0, 1, 2 are `<unk>`, `<s>`, `</s>`; 3 to 258 are the bytes.
    SentencePiece,
}

/// The template of both: ChatML.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
     message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Merges of the BPE vocabulary, best first (`Ġ` is a space), each of two tokens that exist.
const MERGES: &[(&str, &str)] = &[
    ("Ġ", "t"),
    ("Ġ", "a"),
    ("h", "e"),
    ("i", "n"),
    ("r", "e"),
    ("o", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("Ġ", "s"),
    ("a", "t"),
    ("Ġ", "w"),
    ("Ġ", "o"),
    ("e", "n"),
    ("Ġ", "c"),
    ("i", "t"),
    ("i", "s"),
    ("a", "n"),
    ("o", "r"),
    ("e", "s"),
    ("Ġ", "b"),
    ("e", "d"),
    ("Ġ", "f"),
    ("in", "g"),
    ("Ġ", "p"),
    ("o", "u"),
    ("Ġa", "n"),
    ("a", "l"),
    ("a", "r"),
    ("Ġt", "o"),
    ("Ġ", "m"),
    ("Ġo", "f"),
    ("Ġ", "in"),
    ("Ġ", "d"),
    ("Ġ", "h"),
    ("Ġan", "d"),
    ("l", "l"),
    ("H", "e"),
    ("He", "ll"),
    ("Hell", "o"),
    ("Ġw", "or"),
    ("Ġwor", "l"),
    ("Ġworl", "d"),
    ("Ã", "¼"),
    ("Ċ", "Ċ"),
];

/// Pieces of the SentencePiece vocabulary beside the bytes and single letters; earlier ones have better scores.
const PIECES: &[&str] = &[
    "▁t", "▁a", "he", "in", "re", "on", "▁the", "er", "▁s", "at", "▁w", "▁o", "en", "▁c", "it", "is", "an", "or", "es",
    "▁b", "ed", "▁f", "ing", "▁p", "ou", "▁an", "al", "ar", "▁to", "▁m", "▁of", "▁in", "▁d", "▁h", "▁and", "ll", "He",
    "Hell", "Hello", "▁Hello", "▁wor", "▁worl", "▁world",
];

impl Vocab {
    /// The token texts, in order.
    pub fn tokens(self) -> Vec<String> {
        let mut tokens: Vec<String>;
        match self {
            Self::Bpe => {
                tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).into();
                tokens.extend((0..=255).map(|byte| byte_char(byte).to_string()));
                tokens.extend(MERGES.iter().map(|(left, right)| format!("{left}{right}")));
            }
            Self::SentencePiece => {
                tokens = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
                tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
                tokens.extend(PIECES.iter().map(|&piece| piece.to_owned()));
                tokens.extend("▁etaoinshrdlucmfwypvbgkqjxzTHEIAS.,!?'0123456789ü".chars().map(String::from));
            }
        }
        tokens
    }

    /// The `tokenizer.*` entries.
    pub fn metadata(self) -> Vec<(&'static str, Value)> {
        const NORMAL: i32 = 1;
        const UNKNOWN: i32 = 2;
        const CONTROL: i32 = 3;
        const BYTE: i32 = 6;
        let tokens = self.tokens();
        let count = tokens.len();
        let kinds = |first: [i32; 3], bytes: i32| -> Vec<i32> {
            let kind = |i| match i {
                0..3 => first[i],
                3..259 => bytes,
                _ => NORMAL,
            };
            (0..count).map(kind).collect()
        };
        let mut entries: Vec<(&'static str, Value)> = match self {
            Self::Bpe => {
                let merges: Vec<String> = MERGES.iter().map(|(left, right)| format!("{left} {right}")).collect();
                vec![
                    ("tokenizer.ggml.model", "gpt2".into()),
                    ("tokenizer.ggml.pre", "smollm".into()),
                    ("tokenizer.ggml.token_type", kinds([CONTROL; 3], NORMAL).into()),
                    ("tokenizer.ggml.merges", merges.into()),
                    ("tokenizer.ggml.unknown_token_id", 0u32.into()),
                    ("tokenizer.ggml.add_bos_token", false.into()),
                    ("tokenizer.ggml.add_space_prefix", false.into()),
                ]
            }
            Self::SentencePiece => {
                let score = |i: usize| if i < 259 { 0.0 } else { 259.0 - i as f32 };
                vec![
                    ("tokenizer.ggml.model", "llama".into()),
                    ("tokenizer.ggml.pre", "default".into()),
                    ("tokenizer.ggml.token_type", kinds([UNKNOWN, CONTROL, CONTROL], BYTE).into()),
                    ("tokenizer.ggml.scores", (0..count).map(score).collect::<Vec<f32>>().into()),
                    ("tokenizer.ggml.unknown_token_id", 0u32.into()),
                    ("tokenizer.ggml.add_bos_token", true.into()),
                    ("tokenizer.ggml.add_space_prefix", true.into()),
                ]
            }
        };
        entries.push(("tokenizer.ggml.tokens", tokens.into()));
        entries.push(("tokenizer.ggml.bos_token_id", 1u32.into()));
        entries.push(("tokenizer.ggml.eos_token_id", 2u32.into()));
        entries.push(("tokenizer.ggml.add_eos_token", false.into()));
        entries.push(("tokenizer.chat_template", CHAT_TEMPLATE.into()));
        entries
    }
}

/// The character that stands for a byte in GPT-2's vocabularies: itself where it is printable and no space, else the next
/// free character from U+0100 on.
fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return byte.into();
    }
    let place = (0..byte).filter(|&lower| !printable(lower)).count() as u32;
    char::from_u32(256 + place).expect("a letter of Latin Extended-A")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn tokens_are_unique_and_merges_are_of_known_tokens() {
        for vocab in [Vocab::Bpe, Vocab::SentencePiece] {
            let tokens = vocab.tokens();
            assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), tokens.len());
        }
        let tokens: HashSet<String> = Vocab::Bpe.tokens().into_iter().collect();
        for (left, right) in MERGES {
            assert!(tokens.contains(*left) && tokens.contains(*right), "{left} {right}");
        }
        assert_eq!([byte_char(b' '), byte_char(b'\n'), byte_char(0xad), byte_char(b'A')], ['Ġ', 'Ċ', 'Ń', 'A']);
    }
}
