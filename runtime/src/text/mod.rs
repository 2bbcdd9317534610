//! Text in and out: tokenizer, streaming detokenizer, chat templates.
use crate::gguf::Metadata;

/// Whether special tokens (`<|im_start|>` ...) written in the text become their tokens or stay text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// Written special tokens are parsed: for templates and trusted text.
    Parse,
    /// Special tokens are ordinary text: for what users type.
    Text,
}
/// Why a tokenizer or template cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {}
/// Turns text to tokens and back. Cheap to clone; usable from many threads.
#[derive(Clone)]
pub struct Tokenizer {}
impl Tokenizer {
    /// From a file's `tokenizer.ggml.*` metadata.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TextError> { todo!() }
    /// Tokens of `text`, with neither BOS nor EOS added.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, TextError> { todo!() }
    /// BOS if the file asks for one in front of every text (`tokenizer.ggml.add_bos_token`).
    pub fn prefix(&self) -> Option<u32> { todo!() }
    /// The BOS token.
    pub fn bos(&self) -> Option<u32> { todo!() }
    /// The end-of-sequence token that the file names.
    pub fn eos(&self) -> Option<u32> { todo!() }
    /// Whether a token ends an answer (EOS, EOT, `<|im_end|>`, ...).
    pub fn is_end(&self, token: u32) -> bool { todo!() }
    /// Number of tokens.
    pub fn vocab_size(&self) -> usize { todo!() }
    /// The bytes that a token stands for; `specials` says whether control tokens yield their written form or nothing.
    pub fn bytes(&self, token: u32, specials: bool) -> Option<Vec<u8>> { todo!() }
    /// The token's written form in the vocabulary.
    pub fn piece(&self, token: u32) -> Option<&str> { todo!() }
    /// Text of all tokens (lossy where bytes are no UTF-8).
    pub fn decode(&self, tokens: &[u32], specials: bool) -> String { todo!() }
    /// A streaming detokenizer.
    pub fn detokenizer(&self, specials: bool) -> Detokenizer { todo!() }
}
/// Emits whole characters only.
pub struct Detokenizer {}
impl Detokenizer {
    /// Adds a token; returns the text that is now complete (may be empty).
    pub fn push(&mut self, token: u32) -> String { todo!() }
    /// The rest, with U+FFFD for a character that never became whole.
    pub fn finish(&mut self) -> String { todo!() }
}
/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}
/// A chat template (Jinja, from the file).
pub struct ChatTemplate {}
impl ChatTemplate {
    /// From the file's `tokenizer.chat_template`; `None` if it has none.
    pub fn from_metadata(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<Self>, TextError> { todo!() }
    /// The prompt text of a conversation.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> { todo!() }
}
