//! The vocabulary as the file states it, checked for consistency but not yet indexed.
use super::TextError;
use super::spm::byte_of;
use crate::gguf::{Metadata, Strings};

/// What a token is for (`tokenizer.ggml.token_type`, GGUF specification, section "Tokenizer").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// A piece of text.
    Normal,
    /// Stands for what the vocabulary cannot write.
    Unknown,
    /// Structure that no text contains, such as `<|im_start|>`: parsed only where the caller allows it.
    Control,
    /// A piece of text that is never cut: always parsed, before anything else.
    UserDefined,
    /// Reserved; treated as a piece of text.
    Unused,
    /// One byte, written `<0x0A>`.
    Byte,
}

impl TokenType {
    /// From the number in the file. 0 and unheard-of numbers are treated as text.
    fn from_id(id: i32) -> Self {
        match id {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// A tokenizer's raw material: the `tokenizer.ggml.*` entries of a model file. Token ids are indices into `tokens`.
///
/// It borrows the long lists from the file's metadata.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary<'a> {
    /// `tokenizer.ggml.model`: `gpt2`, `llama` or `gemma4`.
    pub model: &'a str,
    /// `tokenizer.ggml.pre`: name of the pre-tokenizer (byte-level BPE only).
    pub pre: Option<&'a str>,
    /// The written form of every token, by id.
    pub tokens: &'a Strings,
    /// Priority of every token (`llama` only); higher merges first. Empty otherwise.
    pub scores: &'a [f32],
    /// Kind of every token; empty means all are [`TokenType::Normal`].
    pub types: Vec<TokenType>,
    /// `left right`, best first (BPE only). Empty otherwise.
    pub merges: &'a Strings,
    /// Beginning of a text.
    pub bos: Option<u32>,
    /// End of a text.
    pub eos: Option<u32>,
    /// End of a turn.
    pub eot: Option<u32>,
    /// End of a message.
    pub eom: Option<u32>,
    /// Stands for what cannot be written.
    pub unk: Option<u32>,
    /// Whether a text begins with BOS; `None` leaves it to the kind of vocabulary.
    pub add_bos: Option<bool>,
    /// Whether a space goes in front of a text (`llama` only); `None` is the family's default, true.
    pub add_space_prefix: Option<bool>,
    /// Whether white space after a control token belongs to the token. Phi-3's tokenizer does this, and GGUF has no
    /// entry for it, so it is told from `general.architecture`.
    pub control_strips_right: bool,
}

impl<'a> Vocabulary<'a> {
    /// Reads the entries of a file.
    pub fn from_metadata(metadata: &'a Metadata) -> Result<Self, TextError> {
        let model = metadata.str("tokenizer.ggml.model")?.ok_or(TextError::Missing("tokenizer.ggml.model"))?;
        let tokens = metadata.strings("tokenizer.ggml.tokens")?.ok_or(TextError::Missing("tokenizer.ggml.tokens"))?;
        let llama = model == "llama";
        // SentencePiece models that name no ids use that library's defaults.
        let default = |id: u32| (llama && (id as usize) < tokens.len()).then_some(id);
        let types = metadata.i32s("tokenizer.ggml.token_type")?.unwrap_or_default();
        Ok(Self {
            model,
            pre: metadata.str("tokenizer.ggml.pre")?,
            tokens,
            scores: metadata.f32s("tokenizer.ggml.scores")?.unwrap_or_default(),
            types: types.iter().map(|&id| TokenType::from_id(id)).collect(),
            merges: metadata.strings("tokenizer.ggml.merges")?.unwrap_or_default(),
            bos: metadata.u32("tokenizer.ggml.bos_token_id")?.or(default(1)),
            eos: metadata.u32("tokenizer.ggml.eos_token_id")?.or(default(2)),
            eot: metadata.u32("tokenizer.ggml.eot_token_id")?,
            eom: metadata.u32("tokenizer.ggml.eom_token_id")?,
            unk: metadata.u32("tokenizer.ggml.unknown_token_id")?.or(default(0)),
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
            add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
            control_strips_right: llama && metadata.str("general.architecture")? == Some("phi3"),
        })
    }

    /// Refuses lists whose lengths disagree and special ids that are not in the vocabulary.
    pub(super) fn check(&self) -> Result<(), TextError> {
        let count = self.tokens.len();
        if count == 0 || u32::try_from(count).is_err() {
            return Err(invalid("tokenizer.ggml.tokens", format!("it lists {count} tokens")));
        }
        let lists = [("tokenizer.ggml.scores", self.scores.len()), ("tokenizer.ggml.token_type", self.types.len())];
        for (key, length) in lists {
            if length != 0 && length < count {
                return Err(invalid(key, format!("it has {length} entries for {count} tokens")));
            }
        }
        let ids = [
            ("tokenizer.ggml.bos_token_id", self.bos),
            ("tokenizer.ggml.eos_token_id", self.eos),
            ("tokenizer.ggml.eot_token_id", self.eot),
            ("tokenizer.ggml.eom_token_id", self.eom),
            ("tokenizer.ggml.unknown_token_id", self.unk),
        ];
        for (key, id) in ids {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return Err(invalid(key, format!("token {id} is not among the {count} tokens")));
            }
        }
        Ok(())
    }

    /// The kind of a token. Files without types still have byte tokens, told by how they are written.
    pub(super) fn kind(&self, token: usize) -> TokenType {
        match self.types.get(token) {
            Some(&kind) => kind,
            None if self.model != "gpt2" && self.tokens.get(token).and_then(byte_of).is_some() => TokenType::Byte,
            None => TokenType::Normal,
        }
    }
}

fn invalid(key: &'static str, reason: String) -> TextError {
    TextError::Invalid { key, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_are_too_short_are_refused_by_key() {
        let tokens = ["a", "b"].into();
        let vocabulary = Vocabulary { tokens: &tokens, scores: &[0.0], ..Vocabulary::default() };
        let error = vocabulary.check().unwrap_err();
        assert!(error.to_string().contains("tokenizer.ggml.scores"), "{error}");
    }

    #[test]
    fn ids_outside_the_vocabulary_are_refused_by_key_and_value() {
        let vocabulary = Vocabulary { tokens: &["a"].into(), eos: Some(7), ..Vocabulary::default() };
        let error = vocabulary.check().unwrap_err().to_string();
        assert!(error.contains("tokenizer.ggml.eos_token_id") && error.contains('7'), "{error}");
    }

    #[test]
    fn an_empty_vocabulary_is_refused() {
        assert!(Vocabulary::default().check().is_err());
    }
}
