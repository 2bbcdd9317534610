//! The driver of a request for numbers: logits or embeddings, written by the kernels where the caller wants them.

use super::{
    CancelHandle, EngineError,
    queue::Ticket,
    scheduler::{Driver, End, Place},
};
use rustai_kernels_cpu::External;

/// What a request for numbers wants, and where it goes. Rows are as many as the tokens, or one for the last token.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What each row is.
    pub kind: OutputKind,
    /// One row, or a row for each token, one after the other.
    pub rows: External,
}

/// What a row of numbers is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Logits: a number for each token of the vocabulary.
    Logits,
    /// What the model made of the text up to the token: the normalized hidden state that logits are computed from.
    Embedding,
}

/// What is called when the rows are written, or cannot be.
pub(super) type Done = Box<dyn FnOnce(Result<(), EngineError>) + Send>;

/// One request's state on the scheduler thread.
pub(super) struct Outputs {
    pub(super) wanted: Wanted,
    pub(super) width: usize,
    /// A row for each token, rather than for the last.
    pub(super) all: bool,
    /// Position of the first of its own tokens.
    pub(super) first: usize,
    pub(super) cancel: CancelHandle,
    pub(super) ticket: Option<Ticket>,
    pub(super) done: Done,
}

impl Driver for Outputs {
    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn admitted(&mut self, first: usize) {
        self.first = first;
        self.ticket = None;
    }

    fn place(&self, position: usize) -> Option<Place> {
        // Tokens of the session that are computed again have no row.
        let row = if self.all { position.checked_sub(self.first)? } else { 0 };
        let row = self.wanted.rows.part(row.checked_mul(self.width)?, self.width)?;
        Some(Place { kind: self.wanted.kind, row })
    }

    fn logits(&mut self, _position: usize, _logits: &[f32]) -> Option<u32> {
        None
    }

    fn finish(self, end: End) {
        // Whoever hears of the end may give the memory up.
        drop(self.wanted);
        (self.done)(match end {
            End::Done => Ok(()),
            End::Cancelled => Err(EngineError::Cancelled),
            End::Failed(error) => Err(error),
        });
    }
}
