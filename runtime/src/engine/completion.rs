//! What comes out of a request: events while it runs, and the completion at its end.

use std::time::Duration;

/// One item of a [`Stream`](super::Stream). The texts of all events, in order, are the answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token of the answer.
    ///
    /// An event comes as soon as it is certain what its text is. That is at once, but for tokens that end inside a
    /// character and for text that may be the beginning of a stop string; such tokens come together with the one that
    /// decides, which carries the text of all of them.
    Token {
        /// The token.
        id: u32,
        /// Whole characters, possibly none.
        text: String,
        /// Natural logarithm of the token's probability, before any sampling setting; only if asked for.
        logprob: Option<f32>,
    },
    /// The last event.
    Done(Summary),
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// The model ended it: it chose an end token, which is not part of the answer.
    Stop,
    /// This stop string came. It is not part of the answer.
    StopString(String),
    /// `max_tokens` tokens were generated.
    Length,
    /// Prompt and answer fill the context.
    Context,
    /// It was cancelled.
    Cancelled,
}

impl Finish {
    /// A short stable name: `stop`, `stop_string`, `length`, `context` or `cancelled`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopString(_) => "stop_string",
            Self::Length => "length",
            Self::Context => "context",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Tokens that were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, BOS and template included.
    pub prompt_tokens: usize,
    /// Tokens of the answer, those of a stop string included, an end token not.
    pub generated: usize,
}

/// Where the time went.
///
/// Durations are zero for phases that a request never reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From the submission to the admission into a batch.
    pub queued: Duration,
    /// Prefill: from the admission to the logits behind the prompt.
    pub prompt: Duration,
    /// From the submission to the first token of the answer.
    pub first_token: Duration,
    /// Decode: from the first choice of a token to the last.
    pub generation: Duration,
    /// Decode steps in `generation`: one less than the tokens that were chosen (the end token counts here).
    pub steps: usize,
}

/// How an answer ended and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens.
    pub usage: Usage,
    /// Durations.
    pub timing: Timing,
    /// The seed in use, which repeats the answer if given with the same request.
    pub seed: u64,
}

impl Summary {
    /// Prompt tokens per second of prefill; 0 where nothing was measured.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        rate(self.usage.prompt_tokens, self.timing.prompt)
    }

    /// Tokens per second of decode, the first token (which prefill pays for) not counted; 0 where nothing was measured.
    pub fn generated_tokens_per_second(&self) -> f64 {
        rate(self.timing.steps, self.timing.generation)
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Its tokens; an end token is not among them, the tokens of a stop string are.
    pub tokens: Vec<u32>,
    /// One per token if [`Request::logprobs`](super::Request::logprobs) asked for them, otherwise empty.
    pub logprobs: Vec<f32>,
    /// How it ended and what it cost.
    pub summary: Summary,
}

fn rate(count: usize, duration: Duration) -> f64 {
    let seconds = duration.as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_steps_and_survive_zero() {
        let timing = Timing {
            prompt: Duration::from_millis(500),
            generation: Duration::from_secs(2),
            steps: 10,
            ..Timing::default()
        };
        let usage = Usage { prompt_tokens: 100, generated: 11 };
        let mut summary = Summary { finish: Finish::Length, usage, timing, seed: 0 };
        assert_eq!(summary.prompt_tokens_per_second(), 200.0);
        assert_eq!(summary.generated_tokens_per_second(), 5.0);
        summary.timing = Timing::default();
        assert_eq!(summary.generated_tokens_per_second(), 0.0);
    }
}
