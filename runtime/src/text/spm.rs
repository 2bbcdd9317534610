//! SentencePiece's BPE (`llama` vocabularies): any adjacent pair that is itself a token may merge, best score first.
//!
//! Kudo and Richardson 2018, "SentencePiece: A simple and language independent subword tokenizer and detokenizer". What
//! is no token in the end is written as byte tokens `<0x00>` to `<0xFF>`.
use super::merge::{Merge, Merger, NONE};
use super::pieces::Pieces;
use super::{TextError, TokenType, Vocabulary};

/// How a space is written in a vocabulary (U+2581).
pub(super) const SPACE: &str = "▁";

/// Priorities of all tokens.
pub(super) struct Spm {
    /// Rank by token: the higher the score the lower the rank.
    ranks: Vec<u32>,
    fallback: ByteFallback,
    /// Whether no token goes on after a space that follows something else, so that words can be merged one by one.
    words: bool,
}

impl Spm {
    pub(super) fn new(vocabulary: &Vocabulary<'_>) -> Result<Self, TextError> {
        if vocabulary.scores.is_empty() {
            return Err(TextError::Missing("tokenizer.ggml.scores"));
        }
        let ranks = vocabulary.scores.iter().map(|&score| rank(score)).collect();
        let spans_words = |token: &str| token.trim_start_matches(SPACE).contains(SPACE);
        Ok(Self {
            ranks,
            fallback: ByteFallback::from_vocabulary(vocabulary),
            words: !vocabulary.tokens.iter().any(spans_words),
        })
    }

    /// Appends the tokens of a text without special tokens. `prefix`: a space is put in front.
    pub(super) fn encode(
        &self,
        text: &str,
        prefix: bool,
        pieces: &Pieces,
        merger: &mut Merger,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let text = escape(text, prefix);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (word, after) = rest.split_at(if self.words { word_end(rest) } else { rest.len() });
            self.encode_word(word, pieces, merger, out)?;
            rest = after;
        }
        Ok(())
    }

    fn encode_word(
        &self,
        text: &str,
        pieces: &Pieces,
        merger: &mut Merger,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        merger.clear();
        for (at, c) in text.char_indices() {
            let end = at + c.len_utf8();
            merger.push(at, end, pieces.find(&text[at..end]).unwrap_or(NONE));
        }
        let pair = |left: &super::merge::Symbol, right: &super::merge::Symbol| {
            let (start, end) = (left.start as usize, right.end as usize);
            if end - start > pieces.longest() {
                return None;
            }
            let token = pieces.find(&text[start..end])?;
            Some(Merge { rank: self.ranks[token as usize], token })
        };
        for symbol in merger.run(pair) {
            match symbol.token {
                NONE => self.fallback.encode(&text.as_bytes()[symbol.start as usize..symbol.end as usize], out)?,
                token => out.push(token),
            }
        }
        Ok(())
    }
}

/// Where the first word ends: before the first space that follows something else.
fn word_end(text: &str) -> usize {
    let begins = text.len() - text.trim_start_matches(SPACE).len();
    text[begins..].find(SPACE).map_or(text.len(), |at| begins + at)
}

/// Order of merging by score, as an integer: descending, with equal scores equal.
fn rank(score: f32) -> u32 {
    // Adding zero makes -0 the same as 0. Flipping the sign bit, or all bits of a negative number, makes the order of
    // the bit patterns that of the numbers.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits ^ 0x8000_0000 } else { !bits };
    (!ascending).min(NONE - 1)
}

/// Writes spaces as the vocabulary does.
pub(super) fn escape(text: &str, prefix: bool) -> String {
    let mut escaped = String::with_capacity(text.len() + text.len() / 2 + SPACE.len());
    if prefix {
        escaped.push_str(SPACE);
    }
    for (index, part) in text.split(' ').enumerate() {
        if index > 0 {
            escaped.push_str(SPACE);
        }
        escaped.push_str(part);
    }
    escaped
}

/// The byte that a token written `<0x0A>` stands for.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let plain = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The token of each byte.
pub(super) struct ByteFallback {
    tokens: Box<[u32; 256]>,
    /// Stands for bytes that have none.
    unknown: Option<u32>,
}

impl ByteFallback {
    /// The byte tokens of a vocabulary.
    pub(super) fn from_vocabulary(vocabulary: &Vocabulary<'_>) -> Self {
        let mut fallback = Self { tokens: Box::new([NONE; 256]), unknown: vocabulary.unk };
        for (id, token) in vocabulary.tokens.iter().enumerate() {
            if vocabulary.kind(id) == TokenType::Byte
                && let Some(byte) = byte_of(token)
            {
                fallback.tokens[byte as usize] = id as u32;
            }
        }
        fallback
    }

    /// Appends the tokens of the bytes of a character; one unknown token if one of them has none.
    pub(super) fn encode(&self, bytes: &[u8], out: &mut Vec<u32>) -> Result<(), TextError> {
        match bytes.iter().find(|&&byte| self.tokens[byte as usize] == NONE) {
            Some(&byte) => out.push(self.unknown.ok_or(TextError::NoToken(byte))?),
            None => out.extend(bytes.iter().map(|&byte| self.tokens[byte as usize])),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_scores_merge_first() {
        let scores = [f32::INFINITY, 3.0, 0.5, 0.0, -0.25, -7.0, f32::NEG_INFINITY];
        let ranks: Vec<u32> = scores.iter().map(|&score| rank(score)).collect();
        assert!(ranks.is_sorted() && ranks.iter().all(|&rank| rank < NONE), "{ranks:?}");
        assert_eq!(rank(0.0), rank(-0.0));
        assert!(rank(f32::NAN) < NONE && rank(-f32::NAN) < NONE);
    }

    #[test]
    fn spaces_are_written_as_the_vocabulary_does() {
        assert_eq!(escape("a b ", true), "▁a▁b▁");
        assert_eq!(escape("a b", false), "a▁b");
        assert_eq!(escape("", true), "▁");
    }

    #[test]
    fn words_begin_with_their_spaces() {
        assert_eq!(word_end("▁a▁b"), "▁a".len());
        assert_eq!(word_end("▁▁ab"), "▁▁ab".len());
        assert_eq!(word_end("ab▁▁"), "ab".len());
        assert_eq!(word_end("▁"), "▁".len());
    }

    #[test]
    fn byte_tokens_are_two_hexadecimal_digits() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        assert_eq!(byte_of("<0xff>"), Some(255));
        assert_eq!(byte_of("<0x0A"), None);
        assert_eq!(byte_of("<0x+1>"), None);
        assert_eq!(byte_of("<0x100>"), None);
    }
}
