//! How many requests may wait.

use super::EngineError;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Counts the requests that have been submitted and not yet admitted.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: AtomicUsize,
    limit: usize,
}

/// A request's place among the waiting; dropped when it is admitted or leaves.
#[derive(Debug)]
pub(super) struct Ticket(Arc<Queue>);

impl Queue {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { waiting: AtomicUsize::new(0), limit })
    }

    pub(super) fn enter(self: &Arc<Self>) -> Result<Ticket, EngineError> {
        let enter = |waiting| (waiting < self.limit).then_some(waiting + 1);
        match self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter) {
            Ok(_) => Ok(Ticket(self.clone())),
            Err(_) => Err(EngineError::QueueFull { limit: self.limit }),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_ticket_is_dropped() {
        let queue = Queue::new(2);
        let first = queue.enter().unwrap();
        let _second = queue.enter().unwrap();
        assert!(matches!(queue.enter(), Err(EngineError::QueueFull { limit: 2 })));
        drop(first);
        assert_eq!(queue.waiting(), 1);
        queue.enter().unwrap();
    }
}
