//! Sessions: a text that requests continue, with what the model computed of it kept in the cache between them.
//!
//! A session's tokens are its truth. The pages that hold their keys and values are a convenience: where another request
//! needs them, an idle session gives them up, and its next request computes the text again.

use super::{EngineError, pages::BlockTable};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A text that requests continue; see [`Engine::open_session`](super::Engine::open_session). Cheap to clone. When the last clone is
/// gone, its part of the cache is free.
#[derive(Clone, Debug)]
pub struct Session {
    slot: Arc<Slot>,
    /// Most tokens.
    capacity: usize,
}

/// What the scheduler and the requests of a session share.
#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<SlotState>,
}

#[derive(Default)]
pub(super) struct SlotState {
    /// The text.
    pub(super) tokens: Vec<u32>,
    /// Tokens from the first on whose keys and values are in the pages.
    pub(super) cached: usize,
    pub(super) table: Option<BlockTable>,
    busy: bool,
}

impl std::fmt::Debug for SlotState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens, {} of them cached", self.tokens.len(), self.cached)
    }
}

impl Slot {
    pub(super) fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another request may use the session.
    pub(super) fn free(&self) {
        self.lock().busy = false;
    }
}

impl Session {
    pub(super) fn new(capacity: usize) -> Self {
        Self { slot: Arc::default(), capacity }
    }

    /// Tokens of the text.
    pub fn len(&self) -> usize {
        self.slot.lock().tokens.len()
    }

    /// Whether no request has run in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens whose keys and values are in the cache now.
    pub fn cached(&self) -> usize {
        self.slot.lock().cached
    }

    /// Most tokens that it holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// Takes the session for one request; its text.
    pub(super) fn take(&self) -> Result<Vec<u32>, EngineError> {
        let mut state = self.slot.lock();
        if std::mem::replace(&mut state.busy, true) {
            return Err(EngineError::SessionBusy);
        }
        Ok(state.tokens.clone())
    }
}
