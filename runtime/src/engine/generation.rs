//! The driver of a generating request: chooses tokens, turns them into text, decides when the answer ends.

use super::{
    CancelHandle, EngineError, Event, Finish, Summary, Timing, Usage,
    logprob::logprob,
    queue::Ticket,
    scheduler::{Driver, End},
    stop::StopMatcher,
};
use crate::{
    backend::{LogitsError, Sampling},
    sampler::{Sampler, SamplerParams},
    text::{Detokenizer, Tokenizer},
};
use async_channel::Sender;
use rustai_kernels_cuda::ops::MIN_TEMPERATURE;
use std::time::Instant;

/// One request's state on the scheduler thread.
pub(super) struct Generation {
    pub(super) sampler: Sampler,
    /// How the executable draws the tokens, if it does so in place of the sampler.
    pub(super) drawn: Option<Sampling>,
    pub(super) tokenizer: Tokenizer,
    pub(super) detokenizer: Detokenizer,
    pub(super) stops: StopMatcher,
    /// Most tokens of the answer, and how it ends there: by `max_tokens` or by the context.
    pub(super) limit: (usize, Finish),
    pub(super) logprobs: bool,
    pub(super) ignore_end: bool,
    pub(super) prompt_tokens: usize,
    pub(super) events: Sender<Result<Event, EngineError>>,
    pub(super) cancel: CancelHandle,
    pub(super) ticket: Option<Ticket>,
    pub(super) clock: Clock,
    pub(super) output: Output,
}

/// Moments of a request's life.
pub(super) struct Clock {
    submitted: Instant,
    admitted: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Tokens chosen, an end token included.
    chosen: usize,
}

/// The answer so far.
#[derive(Default)]
pub(super) struct Output {
    generated: usize,
    /// Tokens whose text is not certain yet, and that text.
    undecided: Vec<(u32, Option<f32>)>,
    /// The token of the answer that ended it.
    last: Option<u32>,
    failure: Option<LogitsError>,
    text: String,
    finish: Option<Finish>,
}

impl Driver for Generation {
    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn admitted(&mut self, _first: usize) {
        self.ticket = None;
        self.clock.admitted = Some(Instant::now());
    }

    fn logits(&mut self, position: usize, logits: &[f32]) -> Option<u32> {
        if self.limit.0 == 0 {
            self.clock.stamp();
            self.output.finish = Some(self.limit.1.clone());
            return None;
        }
        let Some(token) = self.sampler.sample(logits) else {
            self.output.failure = Some(LogitsError { position });
            return None;
        };
        self.take(token, self.logprobs.then(|| logprob(logits, token)))
    }

    fn is_greedy(&self) -> bool {
        self.sampler.is_greedy() && !self.logprobs && self.limit.0 > 0
    }

    fn draw(&self, position: usize) -> Option<Sampling> {
        let drawn = self.drawn.filter(|_| !self.logprobs && self.limit.0 > 0)?;
        Some(Sampling { draw: position as u32, ..drawn })
    }

    fn chosen(&mut self, _position: usize, token: u32) -> Option<u32> {
        self.take(token, None)
    }

    fn failure(&mut self) -> Option<EngineError> {
        self.output.failure.take().map(EngineError::from)
    }

    fn last(&self) -> Option<u32> {
        self.output.last
    }

    fn finish(mut self, end: End) {
        let finish = match end {
            End::Failed(error) => return self.send(Err(error)),
            End::Cancelled => Finish::Cancelled,
            // A driver ends only where it has noted why.
            End::Done => self.output.finish.take().unwrap_or(Finish::Stop),
        };
        if !matches!(finish, Finish::StopString(_)) {
            // Nothing follows: what might have become a stop string is text, and half a character is a broken one.
            let rest = self.detokenizer.finish();
            self.output.text.push_str(&self.stops.finish());
            self.output.text.push_str(&rest);
        }
        self.emit();
        let usage = Usage { prompt_tokens: self.prompt_tokens, generated: self.output.generated };
        let summary = Summary { finish, usage, timing: self.clock.timing(), seed: self.sampler.seed() };
        self.send(Ok(Event::Done(summary)));
    }
}

/// The settings of a sampler for an executable that draws from up to `most` candidates of `vocab`; `None` if it has more to do
/// than such draws.
pub(super) fn drawn(sampler: &Sampler, vocab: usize, most: usize) -> Option<Sampling> {
    let &SamplerParams { top_k, top_p, min_p, temperature, .. } = sampler.cuts()?;
    if temperature == 0.0 {
        return Some(Sampling::LARGEST);
    }
    let top_k = if top_k == 0 { vocab } else { top_k.min(vocab) };
    let possible = (1..=most).contains(&top_k) && temperature >= MIN_TEMPERATURE;
    // A nucleus of nothing keeps the best.
    let top_p = top_p.max(f32::MIN_POSITIVE);
    possible.then(|| Sampling { top_k, top_p, min_p, temperature, seed: sampler.seed(), draw: 0 })
}

impl Generation {
    /// Takes the next token; returns it if the answer goes on.
    fn take(&mut self, token: u32, logprob: Option<f32>) -> Option<u32> {
        self.clock.stamp();
        self.clock.chosen += 1;
        if !self.ignore_end && self.tokenizer.is_end(token) {
            self.output.finish = Some(Finish::Stop);
            return None;
        }
        self.output.generated += 1;
        self.output.undecided.push((token, logprob));

        let passed = self.stops.push(self.detokenizer.push(token));
        self.output.text.push_str(&passed.text);
        if let Some(stop) = passed.matched {
            self.output.finish = Some(Finish::StopString(stop));
        } else if self.output.generated == self.limit.0 {
            self.output.finish = Some(self.limit.1.clone());
        } else if !self.detokenizer.is_holding() && !self.stops.is_holding() {
            self.emit();
        }
        if self.output.finish.is_some() {
            self.output.last = Some(token);
            return None;
        }
        Some(token)
    }

    /// Sends the tokens whose text is now certain; the last carries it. A token is undecided as long as a part of its
    /// text is held back, so there is no text without a token to carry it.
    fn emit(&mut self) {
        let mut text = std::mem::take(&mut self.output.text);
        let mut undecided = std::mem::take(&mut self.output.undecided);
        let last = undecided.len().saturating_sub(1);
        for (index, (id, logprob)) in undecided.drain(..).enumerate() {
            let text = if index == last { std::mem::take(&mut text) } else { String::new() };
            self.send(Ok(Event::Token { id, text, logprob }));
        }
        self.output.undecided = undecided;
    }

    fn send(&self, event: Result<Event, EngineError>) {
        if self.events.try_send(event).is_err() {
            // The channel has no bound, so the reader is gone.
            self.cancel.cancel();
        }
    }
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { submitted: Instant::now(), admitted: None, first: None, last: None, chosen: 0 }
    }

    fn stamp(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    fn timing(&self) -> Timing {
        let since = |later: Option<Instant>, earlier: Option<Instant>| match (later, earlier) {
            (Some(later), Some(earlier)) => later - earlier,
            _ => Default::default(),
        };
        Timing {
            queued: since(self.admitted, Some(self.submitted)),
            prompt: since(self.first, self.admitted),
            first_token: if self.chosen > 0 { since(self.first, Some(self.submitted)) } else { Default::default() },
            generation: since(self.last, self.first),
            steps: self.chosen.saturating_sub(1),
        }
    }
}

#[cfg(test)]
mod tests;
