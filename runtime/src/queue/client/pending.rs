//! A job in flight.

use super::{Flight, Inner, State};
use crate::queue::{QueueError, clock};
use rustai_abi::queue::Completion;
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

/// A job in flight. Wait for it with [`wait`](Self::wait), or `await` it on any executor. Dropping it leaves the job running and
/// its result unread; [`Client::cancel`](super::Client::cancel) ends it.
#[must_use = "a job's result is in its completion"]
pub struct Pending {
    inner: Arc<Inner>,
    seq: u64,
    user_data: u64,
    /// The progress that was told last.
    told: Option<u32>,
    read: bool,
}

/// News of a streaming job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// So much of the output is ready (tokens for GENERATE). Newer news replaces older: counts may jump.
    Progress(u32),
    /// The end.
    Done(Completion),
}

impl Pending {
    pub(super) fn new(inner: Arc<Inner>, seq: u64, user_data: u64) -> Self {
        Self { inner, seq, user_data, told: None, read: false }
    }

    /// The job's number in its client; later jobs may [depend](super::Job::after) on it.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// What the job was given to be known by.
    pub fn user_data(&self) -> u64 {
        self.user_data
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If the transport fails; why the job failed is in the completion.
    pub fn wait(mut self) -> Result<Completion, QueueError> {
        let seq = self.seq;
        self.inner.wait_for(None, |state| flight(state, seq).is_none_or(|flight| flight.done.is_some()))?;
        self.take()?.ok_or(QueueError::Gone)
    }

    /// Waits for the end until an absolute time of `CLOCK_MONOTONIC`, in nanoseconds. The job goes on if the time is over.
    ///
    /// # Errors
    /// [`QueueError::TimedOut`] if the time is over.
    pub fn wait_until(&mut self, deadline_ns: u64) -> Result<Completion, QueueError> {
        let seq = self.seq;
        self.inner
            .wait_for(Some(deadline_ns), |state| flight(state, seq).is_none_or(|flight| flight.done.is_some()))?;
        self.take()?.ok_or(QueueError::Gone)
    }

    /// As [`wait_until`](Self::wait_until), for a time from now.
    ///
    /// # Errors
    /// [`QueueError::TimedOut`] if the time is over.
    pub fn wait_for(&mut self, time: Duration) -> Result<Completion, QueueError> {
        self.wait_until(clock::deadline(time))
    }

    /// The end if it has come; makes no system call.
    ///
    /// # Errors
    /// If the transport fails.
    pub fn try_wait(&mut self) -> Result<Option<Completion>, QueueError> {
        self.inner.reap();
        self.take()
    }

    /// Waits for news: more output than at the last call, or the end.
    ///
    /// # Errors
    /// If the transport fails.
    pub fn update(&mut self) -> Result<Update, QueueError> {
        let (seq, told) = (self.seq, self.told);
        self.inner.wait_for(None, |state| {
            flight(state, seq).is_none_or(|flight| flight.done.is_some() || flight.progress > told)
        })?;
        self.news()?.ok_or(QueueError::Gone)
    }

    /// As [`update`](Self::update), for tasks.
    pub fn poll_update(&mut self, context: &mut Context<'_>) -> Poll<Result<Update, QueueError>> {
        self.inner.start_reactor();
        self.inner.reap();
        match self.news() {
            Ok(Some(update)) => return Poll::Ready(Ok(update)),
            Err(error) => return Poll::Ready(Err(error)),
            Ok(None) => {}
        }
        let mut state = self.inner.lock();
        self.inner.reap_locked(&mut state);
        let Some(flight) = state.jobs.get_mut(&self.seq) else { return Poll::Ready(Err(QueueError::Gone)) };
        if flight.done.is_some() || flight.progress > self.told {
            context.waker().wake_by_ref();
        } else {
            flight.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    fn news(&mut self) -> Result<Option<Update>, QueueError> {
        if let Some(done) = self.take()? {
            return Ok(Some(Update::Done(done)));
        }
        let progress = flight(&self.inner.lock(), self.seq).and_then(|flight| flight.progress);
        Ok(match progress {
            Some(count) if progress > self.told => {
                self.told = progress;
                Some(Update::Progress(count))
            }
            _ => None,
        })
    }

    fn take(&mut self) -> Result<Option<Completion>, QueueError> {
        let mut state = self.inner.lock();
        let Some(flight) = state.jobs.get(&self.seq) else { return Err(QueueError::Gone) };
        let done = flight.done;
        if done.is_some() {
            state.jobs.remove(&self.seq);
            self.read = true;
        }
        Ok(done)
    }
}

fn flight(state: &State, seq: u64) -> Option<&Flight> {
    state.jobs.get(&seq)
}

impl Future for Pending {
    type Output = Result<Completion, QueueError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.poll_update(context) {
                Poll::Ready(Ok(Update::Done(done))) => return Poll::Ready(Ok(done)),
                Poll::Ready(Ok(Update::Progress(_))) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.read {
            return;
        }
        let mut state = self.inner.lock();
        if let Some(flight) = state.jobs.get_mut(&self.seq) {
            if flight.done.is_some() {
                state.jobs.remove(&self.seq);
            } else {
                flight.forgotten = true;
            }
        }
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("seq", &self.seq).field("user_data", &self.user_data).finish_non_exhaustive()
    }
}
