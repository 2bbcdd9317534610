//! What a caller asks for.

use super::Session;
use crate::{sampler::SamplerParams, text::Message};

/// A prompt and how to go on from it.
///
/// ```
/// use rustai::engine::Request;
///
/// let request = Request::text("Once upon a time").max_tokens(64).temperature(0.0).stop("\n\n");
/// # let _ = request;
/// ```
#[derive(Clone, Debug)]
pub struct Request {
    pub(super) prompt: Prompt,
    pub(super) max_tokens: Option<usize>,
    pub(super) sampling: SamplerParams,
    pub(super) stop: Vec<String>,
    pub(super) logprobs: bool,
    pub(super) ignore_end: bool,
    pub(super) show_specials: bool,
    pub(super) session: Option<Session>,
}

#[derive(Clone, Debug)]
pub(super) enum Prompt {
    Text(String),
    Raw(String),
    Chat(Vec<Message>),
    Tokens(Vec<u32>),
}

impl Request {
    /// Goes on from `text`. Special tokens written in it (`<|im_end|>`, `</s>` ...) are ordinary characters, so that text
    /// from strangers cannot leave its place. BOS is put in front if the model file asks for it.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Prompt::Text(text.into()))
    }

    /// Goes on from `text` as [`Request::text`] does, but special tokens written in it are parsed: for prompts that are
    /// written in the model's own form. BOS is put in front if the model file asks for it and the text does not begin
    /// with it.
    pub fn raw(text: impl Into<String>) -> Self {
        Self::new(Prompt::Raw(text.into()))
    }

    /// Answers a conversation, written with the model file's chat template. A file without one is refused with
    /// [`EngineError::NoChatTemplate`](super::EngineError::NoChatTemplate). Control tokens of the template are parsed;
    /// those written inside a message's content are ordinary characters, so no message can speak for somebody else.
    ///
    /// ```
    /// use rustai::{engine::Request, text::Message};
    ///
    /// let messages = vec![
    ///     Message::new("system", "Answer in one word."),
    ///     Message::new("user", "What colour is the sky?"),
    /// ];
    /// let request = Request::chat(messages);
    /// # let _ = request;
    /// ```
    pub fn chat(messages: impl Into<Vec<Message>>) -> Self {
        Self::new(Prompt::Chat(messages.into()))
    }

    /// Answers one message of a user: [`Request::chat`] with a single turn.
    pub fn ask(question: impl Into<String>) -> Self {
        Self::chat([Message::new("user", question)])
    }

    /// Goes on from these tokens as they are; nothing is put in front.
    pub fn tokens(tokens: impl Into<Vec<u32>>) -> Self {
        Self::new(Prompt::Tokens(tokens.into()))
    }

    fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            max_tokens: None,
            sampling: SamplerParams::default(),
            stop: Vec::new(),
            logprobs: false,
            ignore_end: false,
            show_specials: false,
            session: None,
        }
    }

    /// Most tokens to generate; without it, what the context has room for. With 0 only the prompt is computed.
    ///
    /// A request is admitted once the cache can promise all that it may need, so a service that runs several sequences
    /// should set this.
    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// All sampling settings at once.
    pub fn sampling(mut self, params: SamplerParams) -> Self {
        self.sampling = params;
        self
    }

    /// The temperature; 0 always takes the likeliest token.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.sampling.temperature = temperature;
        self
    }

    /// The seed; the same seed gives the same tokens. Without one, the system draws one, and
    /// [`Summary::seed`](super::Summary::seed) tells it.
    pub fn seed(mut self, seed: u64) -> Self {
        self.sampling.seed = Some(seed);
        self
    }

    /// Adds a stop string. The answer ends in front of the first that comes, and no part of it is ever emitted.
    pub fn stop(mut self, stop: impl Into<String>) -> Self {
        self.stop.push(stop.into());
        self
    }

    /// Whether each token comes with the logarithm of its probability. Costs one pass over the logits per token.
    pub fn logprobs(mut self, wanted: bool) -> Self {
        self.logprobs = wanted;
        self
    }

    /// Whether end tokens are ordinary tokens, so that only the other limits end the answer: for benchmarks.
    pub fn ignore_end(mut self, ignore: bool) -> Self {
        self.ignore_end = ignore;
        self
    }

    /// Whether special tokens in the answer are written out (`<|im_start|>`) rather than left out.
    pub fn show_specials(mut self, show: bool) -> Self {
        self.show_specials = show;
        self
    }

    /// Goes on from the text of a session, to which prompt and answer are added. Nothing of that text is computed twice as
    /// long as the cache has room for it. A text's BOS is put in front only where the session is empty.
    pub fn session(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }
}
