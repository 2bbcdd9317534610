//! Byte pair encoding by a list of merges: `gpt2` vocabularies (symbols are bytes) and `gemma4` (symbols are characters).
use super::byte_level;
use super::merge::{Merge, Merger, NONE};
use super::pieces::Pieces;
use super::pretokenizers::{self, PreTokenizer, Stage};
use super::split::Splitter;
use super::spm::{ByteFallback, escape};
use super::{TextError, Vocabulary};
use crate::gguf::Strings;
use rustc_hash::FxHashMap;

/// The list of merges, by pair of tokens.
pub(super) struct Bpe {
    merges: FxHashMap<(u32, u32), Merge>,
    splitter: Splitter,
    units: Units,
}

/// What a word consists of before anything is merged.
enum Units {
    /// Bytes, each with its token. `whole`: a word that is a token needs no merges.
    ///
    /// Some vocabularies lack tokens for rare bytes. Such bytes are left out, as the reference tokenizers do: the
    /// unknown token that files name often is the end-of-text token, which no text may turn into.
    Bytes { tokens: Box<[u32; 256]>, whole: bool },
    /// Characters, with spaces written `▁`; a character that is no token falls back to byte tokens.
    Characters { fallback: ByteFallback },
}

impl Bpe {
    /// For a `gpt2` vocabulary and its pre-tokenizer.
    pub(super) fn byte_level(
        vocabulary: &Vocabulary<'_>,
        row: &PreTokenizer,
        pieces: &Pieces,
    ) -> Result<Self, TextError> {
        let tokens = Box::new(byte_level::CHARS.map(|c| pieces.find(c.encode_utf8(&mut [0; 4])).unwrap_or(NONE)));
        Self::new(vocabulary, row.stages, Units::Bytes { tokens, whole: row.whole_words }, pieces)
    }

    /// For a `gemma4` vocabulary.
    pub(super) fn characters(vocabulary: &Vocabulary<'_>, pieces: &Pieces) -> Result<Self, TextError> {
        let fallback = ByteFallback::from_vocabulary(vocabulary);
        Self::new(vocabulary, pretokenizers::LINES, Units::Characters { fallback }, pieces)
    }

    fn new(vocabulary: &Vocabulary<'_>, stages: &[Stage], units: Units, pieces: &Pieces) -> Result<Self, TextError> {
        if vocabulary.merges.is_empty() {
            return Err(TextError::Missing("tokenizer.ggml.merges"));
        }
        let splitter = Splitter::new(stages)
            .map_err(|error| TextError::Invalid { key: "tokenizer.ggml.pre", reason: error.to_string() })?;
        Ok(Self { merges: index(vocabulary.merges, pieces)?, splitter, units })
    }

    /// Appends the tokens of a text without special tokens.
    pub(super) fn encode(
        &self,
        text: &str,
        pieces: &Pieces,
        merger: &mut Merger,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let mut written = String::new();
        let escaped;
        let text = match self.units {
            Units::Bytes { .. } => text,
            Units::Characters { .. } => {
                escaped = escape(text, false);
                &escaped
            }
        };
        for range in self.splitter.split(text) {
            let word = &text[range];
            merger.clear();
            match &self.units {
                Units::Bytes { tokens, whole } => {
                    if *whole {
                        written.clear();
                        byte_level::encode_into(word.as_bytes(), &mut written);
                        if let Some(token) = pieces.find(&written) {
                            out.push(token);
                            continue;
                        }
                    }
                    for (at, &byte) in word.as_bytes().iter().enumerate() {
                        let token = tokens[byte as usize];
                        if token != NONE {
                            merger.push(at, at + 1, token);
                        }
                    }
                }
                Units::Characters { .. } => {
                    // Runs of line ends are tokens that no merge makes.
                    if let Some(token) = word.starts_with('\n').then(|| pieces.find(word)).flatten() {
                        out.push(token);
                        continue;
                    }
                    for (at, c) in word.char_indices() {
                        let end = at + c.len_utf8();
                        merger.push(at, end, pieces.find(&word[at..end]).unwrap_or(NONE));
                    }
                }
            }
            for symbol in merger.run(|left, right| self.merges.get(&(left.token, right.token)).copied()) {
                match (symbol.token, &self.units) {
                    (NONE, Units::Characters { fallback }) => {
                        fallback.encode(&word.as_bytes()[symbol.start as usize..symbol.end as usize], out)?;
                    }
                    (token, _) => out.push(token),
                }
            }
        }
        Ok(())
    }
}

/// Turns `left right` lines into pairs of tokens. Lines that name no tokens can never apply, and are left out.
fn index(merges: &Strings, pieces: &Pieces) -> Result<FxHashMap<(u32, u32), Merge>, TextError> {
    let mut map = FxHashMap::default();
    map.reserve(merges.len());
    let mut joined = String::new();
    let (mut unusable, mut last) = (0usize, 0);
    for (rank, line) in (0u32..).zip(merges.iter()) {
        // A left part may itself begin with a space.
        let cut = line.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(at, _)| at);
        let Some((left, right)) = cut.map(|at| (&line[..at], &line[at + 1..])) else {
            return Err(TextError::Invalid {
                key: "tokenizer.ggml.merges",
                reason: format!("entry {rank} is {line:?}, not two pieces with a space between"),
            });
        };
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        // Lists are made in the order of the tokens that they make, so the next is usually found without a search.
        match (pieces.find(left), pieces.find(right), pieces.find_near(&joined, last)) {
            (Some(left), Some(right), Some(token)) => {
                last = token;
                map.entry((left, right)).or_insert(Merge { rank, token });
            }
            _ => unusable += 1,
        }
    }
    if unusable > 0 {
        tracing::warn!(unusable, of = merges.len(), "merges of the vocabulary name pieces that it does not have");
    }
    Ok(map)
}
