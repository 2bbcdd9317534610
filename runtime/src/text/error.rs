//! Everything that can be wrong with a vocabulary, a text or a template.
use crate::gguf::GgufError;

/// Why a tokenizer or template cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A metadata entry cannot be read.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// A metadata entry that a tokenizer needs is absent.
    #[error(
        "the file has no `{0}`, so it carries no usable tokenizer; use a model file converted together with its tokenizer"
    )]
    Missing(&'static str),
    /// The kind of vocabulary is not supported.
    #[error("tokenizer.ggml.model = `{0}` is not supported; use a model whose vocabulary is gpt2, llama or gemma4")]
    UnknownModel(String),
    /// The file names a way of cutting text into words that is not known.
    #[error("tokenizer.ggml.pre = `{name}` is not a known pre-tokenizer; convert the model with one of {known}")]
    UnknownPreTokenizer {
        /// The name in the file.
        name: String,
        /// All known names, separated by commas.
        known: String,
    },
    /// A metadata entry holds a value that cannot be right.
    #[error("`{key}` is not usable: {reason}; convert or download the file again")]
    Invalid {
        /// The metadata key.
        key: &'static str,
        /// What is wrong with which value.
        reason: String,
    },
    /// The vocabulary has no token for a byte of the text, nor an unknown token to stand for it.
    #[error(
        "the vocabulary has neither a token for byte 0x{0:02X} nor an unknown token; remove that character from the text"
    )]
    NoToken(u8),
    /// A text is too long for one call.
    #[error("a text of {0} bytes is too long for one call (the limit is 1 GiB); cut it into parts")]
    TooLong(usize),
    /// The template of the file cannot be parsed, or failed on this conversation.
    #[error(
        "chat template `{name}`: {reason}; write the prompt in the model's own form instead, or change the conversation"
    )]
    Template {
        /// Name of the template; `default` unless one was chosen.
        name: String,
        /// What the template engine or the template itself (`raise_exception`) said, with the line if known.
        reason: String,
    },
    /// A template was asked for by a name that the file does not have.
    #[error("the file has no chat template `{name}`; name one that it has: {known}")]
    UnknownTemplate {
        /// The name asked for.
        name: String,
        /// The names that the file has, separated by commas.
        known: String,
    },
}
