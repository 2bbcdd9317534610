//! The driver of a scoring request: the log-probability of each token of a given text.

use super::{
    EngineError,
    logprob::logprob,
    queue::Ticket,
    scheduler::{Driver, End},
};
use crate::backend::LogitsError;
use std::sync::{Arc, mpsc};

/// One scoring request's state on the scheduler thread.
pub(super) struct Scoring {
    /// The text; shared with the prompt that the scheduler consumes.
    pub(super) tokens: Arc<[u32]>,
    /// Entry `i` is the log-probability of token `i + 1`.
    pub(super) scores: Vec<f32>,
    pub(super) result: mpsc::Sender<Result<Vec<f32>, EngineError>>,
    pub(super) ticket: Option<Ticket>,
    pub(super) failure: Option<LogitsError>,
}

impl Driver for Scoring {
    fn is_cancelled(&self) -> bool {
        // The caller blocks until the result is there.
        false
    }

    fn admitted(&mut self, _first: usize) {
        self.ticket = None;
    }

    fn logits(&mut self, position: usize, logits: &[f32]) -> Option<u32> {
        if let Some(&token) = self.tokens.get(position + 1) {
            let score = logprob(logits, token);
            if score.is_nan() {
                self.failure.get_or_insert(LogitsError { position });
            }
            self.scores.push(score);
        }
        None
    }

    fn failure(&mut self) -> Option<EngineError> {
        self.failure.take().map(EngineError::from)
    }

    fn finish(self, end: End) {
        let result = match end {
            End::Failed(error) => Err(error),
            End::Done | End::Cancelled => Ok(self.scores),
        };
        // A caller that is gone needs no answer.
        let _ = self.result.send(result);
    }
}
