//! The tokenizer: one vocabulary, ready to use.
use super::bpe::Bpe;
use super::byte_level;
use super::detokenizer::Detokenizer;
use super::merge::Merger;
use super::pieces::Pieces;
use super::pretokenizers;
use super::special::{Fragment, SpecialTokens};
use super::spm::{SPACE, Spm, byte_of};
use super::{TextError, TokenType, Vocabulary};
use crate::gguf::{Metadata, Strings};
use std::fmt;
use std::sync::Arc;

/// Longest text for one call of [`Tokenizer::encode`], in bytes: positions are 32 bits wide and a space may become three
/// bytes.
const LONGEST_TEXT: usize = 1 << 30;

/// Tokens that end an answer wherever they occur: chat formats use them, and many files name only one of theirs as EOS.
const END_NAMES: &[&str] = &[
    "</s>",
    "<eos>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<turn|>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<｜end▁of▁sentence｜>",
];

/// Whether special tokens (`<|im_start|>` ...) written in the text become their tokens or stay text.
///
/// User-defined tokens are not special in this sense: they are pieces of text that are never cut, and always parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// Written special tokens are parsed: for templates and trusted text.
    Parse,
    /// Special tokens are ordinary text: for what users type.
    Text,
}

/// Turns text to tokens and back. Cheap to clone; usable from many threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    pieces: Pieces,
    kinds: Vec<TokenType>,
    special: SpecialTokens,
    algorithm: Algorithm,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    /// SentencePiece: a text, and what follows a special token, begins with a space that was not written.
    space_prefix: bool,
    ends: Vec<u32>,
}

enum Algorithm {
    ByteLevel(Bpe),
    Characters(Bpe),
    SentencePiece(Spm),
}

impl Tokenizer {
    /// From a file's `tokenizer.ggml.*` metadata.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TextError> {
        Self::from_vocabulary(&Vocabulary::from_metadata(metadata)?)
    }

    /// From a vocabulary, wherever it comes from.
    pub fn from_vocabulary(vocabulary: &Vocabulary<'_>) -> Result<Self, TextError> {
        vocabulary.check()?;
        let tokens = vocabulary.tokens;
        let mut kinds: Vec<TokenType> = (0..tokens.len()).map(|id| vocabulary.kind(id)).collect();
        let ends = find_ends(vocabulary, &mut kinds);
        // What text turns into on its own: never a control token, however it is written.
        let from_text = |id: usize| matches!(kinds[id], TokenType::Normal | TokenType::UserDefined | TokenType::Unused);
        let pieces = Pieces::new(tokens, from_text);
        let (algorithm, add_bos) = match vocabulary.model {
            "gpt2" => {
                let name = vocabulary.pre.unwrap_or_else(|| {
                    tracing::warn!(
                        "the file names no pre-tokenizer (tokenizer.ggml.pre); `default` may cut text differently"
                    );
                    "default"
                });
                let row = pretokenizers::find(name).ok_or_else(|| TextError::UnknownPreTokenizer {
                    name: name.to_owned(),
                    known: pretokenizers::names().collect::<Vec<_>>().join(", "),
                })?;
                (Algorithm::ByteLevel(Bpe::byte_level(vocabulary, row, &pieces)?), row.bos)
            }
            "gemma4" => (Algorithm::Characters(Bpe::characters(vocabulary, &pieces)?), true),
            "llama" => (Algorithm::SentencePiece(Spm::new(vocabulary)?), true),
            other => return Err(TextError::UnknownModel(other.to_owned())),
        };
        let strip_right =
            if vocabulary.control_strips_right { stripping(tokens, &kinds, vocabulary) } else { Vec::new() };
        Ok(Self {
            inner: Arc::new(Inner {
                special: SpecialTokens::new(tokens, &kinds, strip_right)?,
                space_prefix: vocabulary.model == "llama" && vocabulary.add_space_prefix.unwrap_or(true),
                bos: vocabulary.bos,
                eos: vocabulary.eos,
                add_bos: vocabulary.add_bos.unwrap_or(add_bos),
                pieces,
                kinds,
                algorithm,
                ends,
            }),
        })
    }

    /// Tokens of `text`, with neither BOS nor EOS added.
    ///
    /// A byte-level vocabulary that lacks a token for a byte leaves that byte out, as its reference tokenizer does.
    ///
    /// # Errors
    /// [`TextError::NoToken`] if a SentencePiece vocabulary cannot write the text, [`TextError::TooLong`] above 1 GiB.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, TextError> {
        if text.len() > LONGEST_TEXT {
            return Err(TextError::TooLong(text.len()));
        }
        let inner = &*self.inner;
        let mut tokens = Vec::with_capacity(text.len() / 3 + 1);
        let mut merger = Merger::default();
        let mut at_start = true;
        inner.special.partition(text, specials, |fragment| {
            match fragment {
                Fragment::Token(token) => tokens.push(token),
                Fragment::Text(text) => match &inner.algorithm {
                    Algorithm::ByteLevel(bpe) | Algorithm::Characters(bpe) => {
                        bpe.encode(text, &inner.pieces, &mut merger, &mut tokens)?;
                    }
                    Algorithm::SentencePiece(spm) => {
                        let prefix = inner.space_prefix && at_start;
                        spm.encode(text, prefix, &inner.pieces, &mut merger, &mut tokens)?;
                    }
                },
            }
            at_start = matches!(fragment, Fragment::Token(_));
            Ok(())
        })?;
        Ok(tokens)
    }

    /// Tokens of a whole prompt: [`prefix`](Self::prefix), then `text`. A prompt that begins with BOS already, as some chat
    /// templates write it, gets no second one.
    pub fn encode_prompt(&self, text: &str, specials: Specials) -> Result<Vec<u32>, TextError> {
        let mut tokens = self.encode(text, specials)?;
        if let Some(bos) = self.prefix().filter(|bos| tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    /// BOS if the file asks for one in front of every text (`tokenizer.ggml.add_bos_token`; a file that does not say means
    /// what its kind of vocabulary usually means).
    pub fn prefix(&self) -> Option<u32> {
        self.inner.bos.filter(|_| self.inner.add_bos)
    }

    /// The BOS token.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// The end-of-sequence token that the file names.
    pub fn eos(&self) -> Option<u32> {
        self.inner.eos
    }

    /// Whether a token ends an answer: EOS, EOT and EOM as the file names them, and the well-known ones by name
    /// (`<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`, ...).
    pub fn is_end(&self, token: u32) -> bool {
        self.inner.ends.contains(&token)
    }

    /// All tokens for which [`is_end`](Self::is_end) holds, ascending.
    pub fn ends(&self) -> &[u32] {
        &self.inner.ends
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.inner.pieces.len()
    }

    /// The bytes that a token stands for; `specials` says whether control tokens yield their written form or nothing.
    /// `None` if there is no such token. One token's bytes need not be whole characters.
    pub fn bytes(&self, token: u32, specials: bool) -> Option<Vec<u8>> {
        let inner = &*self.inner;
        let piece = inner.pieces.get(token)?;
        Some(match inner.kinds[token as usize] {
            TokenType::Control | TokenType::Unknown if !specials => Vec::new(),
            TokenType::Control | TokenType::Unknown | TokenType::UserDefined => piece.into(),
            TokenType::Byte => byte_of(piece).map_or_else(|| piece.into(), |byte| vec![byte]),
            TokenType::Normal | TokenType::Unused => match inner.algorithm {
                Algorithm::ByteLevel(_) => byte_level::decode(piece),
                Algorithm::Characters(_) | Algorithm::SentencePiece(_) => piece.replace(SPACE, " ").into_bytes(),
            },
        })
    }

    /// The token's written form in the vocabulary.
    pub fn piece(&self, token: u32) -> Option<&str> {
        self.inner.pieces.get(token)
    }

    /// The kind of a token.
    pub fn kind(&self, token: u32) -> Option<TokenType> {
        self.inner.kinds.get(token as usize).copied()
    }

    /// Text of all tokens (lossy where bytes are no UTF-8; ids that are no tokens yield nothing). The inverse of
    /// [`encode`](Self::encode): a space that encoding puts in front is taken away.
    pub fn decode(&self, tokens: &[u32], specials: bool) -> String {
        let mut detokenizer = self.detokenizer(specials);
        let mut text: String = tokens.iter().map(|&token| detokenizer.push(token)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// A streaming detokenizer for tokens that begin a text.
    pub fn detokenizer(&self, specials: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), specials, true)
    }

    /// A streaming detokenizer for tokens that continue `context`, such as an answer its prompt. Only SentencePiece
    /// vocabularies care: there a leading space is part of the text if the context ends in text.
    pub fn detokenizer_after(&self, context: &[u32], specials: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), specials, context.last().is_none_or(|&last| self.begins_text(last)))
    }

    /// Whether what follows this token is encoded like the beginning of a text.
    pub(super) fn begins_text(&self, token: u32) -> bool {
        matches!(self.kind(token), Some(TokenType::Control | TokenType::UserDefined))
    }

    /// Whether a text begins with a space that was not written.
    pub(super) fn adds_space(&self) -> bool {
        self.inner.space_prefix
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("tokens", &self.vocab_size()).finish_non_exhaustive()
    }
}

/// The tokens that end an answer, ascending. Those known by name become control tokens, as some conversions forget, so
/// that nobody ends an answer by typing one.
fn find_ends(vocabulary: &Vocabulary<'_>, kinds: &mut [TokenType]) -> Vec<u32> {
    let named: Vec<(usize, &str)> = vocabulary
        .tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| token.starts_with(['<', '[', '_']) && END_NAMES.contains(token))
        .collect();
    let has = |name: &str| named.iter().any(|&(_, token)| token == name);
    // In the Harmony format `<|end|>` ends a message, and an answer has several.
    let harmony = has("<|call|>") && has("<|return|>") || has("<|calls|>") && has("<|flush|>");
    let mut ends: Vec<u32> = [vocabulary.eos, vocabulary.eot, vocabulary.eom].into_iter().flatten().collect();
    for (id, name) in named {
        // The SentencePiece name is ordinary text in some vocabularies that end with something else.
        if name == "</s>" && kinds[id] == TokenType::Normal || name == "<|end|>" && harmony {
            continue;
        }
        kinds[id] = TokenType::Control;
        ends.push(id as u32);
    }
    ends.sort_unstable();
    ends.dedup();
    ends
}

/// Control tokens that take white space after them along: all but those that Phi-3's tokenizer excepts.
fn stripping(tokens: &Strings, kinds: &[TokenType], vocabulary: &Vocabulary<'_>) -> Vec<u32> {
    let excepted = |id: u32| Some(id) == vocabulary.bos || tokens.get(id as usize) == Some("<|endoftext|>");
    (0u32..).zip(kinds).filter(|&(id, &kind)| kind == TokenType::Control && !excepted(id)).map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::samples::{byte_level, sentence_piece};

    fn pieces(tokenizer: &Tokenizer, text: &str, specials: Specials) -> Vec<String> {
        let tokens = tokenizer.encode(text, specials).expect("encodable");
        tokens.iter().map(|&token| tokenizer.piece(token).expect("in the vocabulary").to_owned()).collect()
    }

    #[test]
    fn byte_level_words_merge_by_the_list() {
        let tokenizer = byte_level();
        assert_eq!(pieces(&tokenizer, "hello hello", Specials::Text), ["hello", "Ġ", "hello"]);
        assert_eq!(pieces(&tokenizer, "help é", Specials::Text), ["hel", "p", "Ġ", "Ã", "©"]);
    }

    #[test]
    fn written_special_tokens_are_text_unless_parsed() {
        for tokenizer in [byte_level(), sentence_piece()] {
            let text = "h<|im_end|>h";
            let plain = tokenizer.encode(text, Specials::Text).unwrap();
            assert!(!plain.iter().any(|&token| tokenizer.is_end(token)), "{plain:?}");
            assert_eq!(tokenizer.decode(&plain, false), text);
            let parsed = tokenizer.encode(text, Specials::Parse).unwrap();
            assert!(parsed.iter().any(|&token| tokenizer.is_end(token)), "{parsed:?}");
            assert_eq!(tokenizer.decode(&parsed, false), "hh");
            assert_eq!(tokenizer.decode(&parsed, true), text);
        }
    }

    #[test]
    fn an_end_token_of_the_wrong_kind_is_still_not_text() {
        let tokens = ["<unk>", "<s>", "</s>", "<|im_end|>", "a"];
        let vocabulary = Vocabulary {
            model: "llama",
            tokens: &tokens.into(),
            scores: &[0.0; 5],
            types: vec![
                TokenType::Unknown,
                TokenType::Control,
                TokenType::Control,
                TokenType::Normal,
                TokenType::Normal,
            ],
            unk: Some(0),
            add_space_prefix: Some(false),
            ..Vocabulary::default()
        };
        let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
        assert_eq!(tokenizer.ends(), [2, 3]);
        assert_eq!(tokenizer.encode("a<|im_end|>", Specials::Parse).unwrap(), [4, 3]);
        assert!(!tokenizer.encode("a<|im_end|>", Specials::Text).unwrap().contains(&3));
    }

    #[test]
    fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
        let tokenizer = sentence_piece();
        assert_eq!(pieces(&tokenizer, "hello", Specials::Text), ["▁hello"]);
        assert_eq!(pieces(&tokenizer, "hehe", Specials::Text), ["▁", "he", "he"]);
        assert_eq!(pieces(&tokenizer, "é", Specials::Text), ["▁", "<0xC3>", "<0xA9>"]);
        assert_eq!(pieces(&tokenizer, "h<s>h", Specials::Parse), ["▁", "h", "<s>", "▁", "h"]);
    }

    #[test]
    fn byte_tokens_cannot_be_written() {
        let tokenizer = sentence_piece();
        let tokens = tokenizer.encode("<0xC3>", Specials::Parse).unwrap();
        assert_eq!(tokenizer.decode(&tokens, true), "<0xC3>");
    }

    #[test]
    fn decoding_undoes_encoding() {
        for tokenizer in [byte_level(), sentence_piece()] {
            for text in ["", "hello", " hello ", "  h\n\t", "漢字 🙂 e\u{301}", "\0\u{7f}", "▁"] {
                let tokens = tokenizer.encode(text, Specials::Text).unwrap();
                // SentencePiece writes spaces as U+2581 and cannot tell the two apart.
                let expected = if tokenizer.adds_space() { text.replace('▁', " ") } else { text.to_owned() };
                assert_eq!(tokenizer.decode(&tokens, false), expected);
            }
        }
    }

    #[test]
    fn a_prompt_gets_one_bos() {
        let tokenizer = sentence_piece();
        let bos = tokenizer.bos().unwrap();
        assert_eq!(tokenizer.prefix(), Some(bos));
        let expected = tokenizer.encode("<s>hello", Specials::Parse).unwrap();
        assert_eq!(expected[0], bos);
        assert_eq!(tokenizer.encode_prompt("hello", Specials::Parse).unwrap(), expected);
        assert_eq!(tokenizer.encode_prompt("<s>hello", Specials::Parse).unwrap(), expected);
        assert_eq!(byte_level().prefix(), None);
    }

    #[test]
    fn unknown_kinds_are_refused_by_name() {
        let tokens = ["a"].into();
        let with = |model, pre| Vocabulary { model, pre, tokens: &tokens, ..Vocabulary::default() };
        let error = |vocabulary| Tokenizer::from_vocabulary(&vocabulary).unwrap_err().to_string();
        assert!(error(with("bert", None)).contains("`bert`"));
        let message = error(with("gpt2", Some("klingon")));
        assert!(message.contains("`klingon`") && message.contains("smollm"), "{message}");
        assert!(error(with("gpt2", Some("gpt-2"))).contains("tokenizer.ggml.merges"));
        assert!(error(with("llama", None)).contains("tokenizer.ggml.scores"));
    }

    #[test]
    fn bytes_without_a_token_are_left_out_and_never_become_the_unknown_token() {
        let tokens = ["a", "b", "ab", "<|endoftext|>"];
        let merges = ["a b"];
        let vocabulary = Vocabulary {
            model: "gpt2",
            pre: Some("gpt-2"),
            tokens: &tokens.into(),
            merges: &merges.into(),
            unk: Some(3),
            ..Vocabulary::default()
        };
        let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
        assert_eq!(tokenizer.encode("ab a\u{1F642}", Specials::Text).unwrap(), [2, 0]);
    }

    #[test]
    fn a_sentence_piece_text_that_cannot_be_written_is_an_error() {
        let tokens = ["a"].into();
        let with = |unk| Vocabulary {
            model: "llama",
            tokens: &tokens,
            scores: &[0.0],
            unk,
            add_space_prefix: Some(false),
            ..Vocabulary::default()
        };
        let encode = |unk| Tokenizer::from_vocabulary(&with(unk)).unwrap().encode("aé", Specials::Text);
        assert!(matches!(encode(None), Err(TextError::NoToken(0xC3))));
        assert_eq!(encode(Some(0)).unwrap(), [0, 0]);
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_nothing() {
        let tokenizer = byte_level();
        assert_eq!(tokenizer.piece(u32::MAX), None);
        assert_eq!(tokenizer.bytes(1 << 20, true), None);
        assert_eq!(tokenizer.decode(&[u32::MAX], true), "");
        assert!(!tokenizer.is_end(u32::MAX));
    }
}
