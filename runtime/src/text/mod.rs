//! Text in and out: tokenizer, streaming detokenizer, chat templates.
//!
//! A file's `tokenizer.*` metadata is read once into a [`Vocabulary`]; everything here is built from that, so nothing
//! below knows files. Two families of vocabulary are understood, both of which merge adjacent symbols by priority:
//!
//! | `tokenizer.ggml.model` | symbols | a merge exists if | order of merges |
//! |---|---|---|---|
//! | `gpt2` (byte-level BPE) | bytes of a word | the file lists it | position in the list |
//! | `gemma4` (BPE on characters) | characters of a line | the file lists it | position in the list |
//! | `llama` (SentencePiece BPE) | characters of the text | the joined text is a token | that token's score |
//!
//! So one engine (`merge`) serves all; `bpe` and `spm` only say what a symbol is and what a pair is worth.
//! The way of a text: `special` cuts out special tokens, `split` cuts byte-level text into words, `merge` does the rest.
//!
//! This module never sees tensors, logits or sequences, and it never panics on a bad file or a bad text: those are
//! [`TextError`]s.

mod bpe;
mod byte_level;
mod detokenizer;
mod error;
mod merge;
mod pieces;
mod pretokenizers;
mod special;
mod split;
mod spm;
mod template;
mod tokenizer;
mod vocabulary;

#[cfg(test)]
mod samples;

pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use pretokenizers::names as pretokenizer_names;
pub use template::{ChatTemplate, Message};
pub use tokenizer::{Specials, Tokenizer};
pub use vocabulary::{TokenType, Vocabulary};
