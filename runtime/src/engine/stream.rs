//! The caller's end of a running request.

use super::{Completion, EngineError, Event};
use crate::Error;
use async_channel::Receiver;
use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

/// Events of one running request.
///
/// Read it either as a blocking [`Iterator`] or as an asynchronous [`futures_core::Stream`] on any executor. Events that
/// nobody has read yet wait in memory (at most one per token of the context), and the model does not wait for a slow
/// reader. After [`Event::Done`] or an error there are no more items.
///
/// Dropping the stream cancels the request.
pub struct Stream {
    // Boxed, because the receiver must not move once it was polled, and `Stream` should be movable.
    events: Pin<Box<Receiver<Result<Event, EngineError>>>>,
    cancel: CancelHandle,
    failure: Arc<OnceLock<EngineError>>,
    ended: bool,
}

/// Cancels one request, from any thread. Cheap to clone; outliving the request is harmless.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// Cancels the request, running or waiting. The stream ends with [`Finish::Cancelled`](super::Finish::Cancelled)
    /// after the step that is being computed; a request that has ended stays as it is.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Stream {
    /// `failure` says why the channel closed without a last event.
    pub(super) fn new(
        events: Receiver<Result<Event, EngineError>>,
        cancel: CancelHandle,
        failure: Arc<OnceLock<EngineError>>,
    ) -> Self {
        Self { events: Box::pin(events), cancel, failure, ended: false }
    }

    /// Cancels the request; see [`CancelHandle::cancel`].
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// A handle with which another thread can cancel the request.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Waits for the end of the answer and returns all that has not been read yet.
    ///
    /// # Errors
    /// The error that ended the request.
    pub fn finish(mut self) -> Result<Completion, Error> {
        let (mut text, mut tokens, mut logprobs) = (String::new(), Vec::new(), Vec::new());
        loop {
            match self.next() {
                Some(Ok(Event::Token { id, text: piece, logprob })) => {
                    text.push_str(&piece);
                    tokens.push(id);
                    logprobs.extend(logprob);
                }
                Some(Ok(Event::Done(summary))) => return Ok(Completion { text, tokens, logprobs, summary }),
                Some(Err(error)) => return Err(error),
                None => return Err(EngineError::Stopped.into()),
            }
        }
    }

    /// What an item of the channel, or its end, means to the caller.
    fn item(&mut self, received: Option<Result<Event, EngineError>>) -> Result<Event, Error> {
        let item = received.unwrap_or_else(|| Err(self.failure.get().cloned().unwrap_or(EngineError::Stopped)));
        self.ended = !matches!(item, Ok(Event::Token { .. }));
        item.map_err(Error::from)
    }
}

impl Iterator for Stream {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let received = self.events.recv_blocking().ok();
        Some(self.item(received))
    }
}

impl futures_core::Stream for Stream {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = futures_core::Stream::poll_next(self.events.as_mut(), context);
        polled.map(|received| Some(self.item(received)))
    }
}

impl futures_core::stream::FusedStream for Stream {
    fn is_terminated(&self) -> bool {
        self.ended
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("cancelled", &self.cancel.is_cancelled()).field("ended", &self.ended).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Finish, Summary, Timing, Usage};
    use super::*;
    use std::{
        sync::atomic::AtomicUsize,
        task::{Wake, Waker},
        time::Duration,
    };

    type Sender = async_channel::Sender<Result<Event, EngineError>>;

    fn channel() -> (Sender, Stream) {
        let (sender, events) = async_channel::unbounded();
        (sender, Stream::new(events, CancelHandle::default(), Arc::default()))
    }

    fn token(id: u32, text: &str) -> Event {
        Event::Token { id, text: text.into(), logprob: Some(-1.0) }
    }

    fn done() -> Event {
        let usage = Usage { prompt_tokens: 1, generated: 2 };
        Event::Done(Summary { finish: Finish::Stop, usage, timing: Timing::default(), seed: 3 })
    }

    #[test]
    fn a_blocking_reader_wakes_for_each_event_and_stops_after_the_last() {
        let (sender, mut stream) = channel();
        let writer = std::thread::spawn(move || {
            for event in [token(1, "a"), token(2, "b"), done()] {
                std::thread::sleep(Duration::from_millis(5));
                sender.try_send(Ok(event)).unwrap();
            }
            sender
        });
        let events: Vec<Event> = stream.by_ref().map(Result::unwrap).collect();
        assert_eq!(events, [token(1, "a"), token(2, "b"), done()]);
        assert!(stream.next().is_none());
        writer.join().unwrap();
    }

    #[test]
    fn the_rest_of_a_stream_is_collected() {
        let (sender, mut stream) = channel();
        for event in [token(1, "a"), token(2, "b"), token(3, "c"), done()] {
            sender.try_send(Ok(event)).unwrap();
        }
        stream.next().unwrap().unwrap();
        let completion = stream.finish().unwrap();
        assert_eq!(
            (completion.text.as_str(), completion.tokens, completion.logprobs),
            ("bc", vec![2, 3], vec![-1.0; 2])
        );
    }

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn an_asynchronous_reader_is_woken_by_the_next_event() {
        let (sender, mut stream) = channel();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        let mut poll = |stream: &mut Stream| futures_core::Stream::poll_next(Pin::new(stream), &mut context);
        assert!(poll(&mut stream).is_pending());
        sender.try_send(Ok(token(1, "a"))).unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(matches!(poll(&mut stream), Poll::Ready(Some(Ok(Event::Token { id: 1, .. })))));
        assert!(poll(&mut stream).is_pending());
        sender.try_send(Ok(done())).unwrap();
        assert!(matches!(poll(&mut stream), Poll::Ready(Some(Ok(Event::Done(_))))));
        assert!(matches!(poll(&mut stream), Poll::Ready(None)));
    }

    #[test]
    fn a_channel_that_closes_early_tells_why_once() {
        let (sender, mut stream) = channel();
        drop(sender);
        assert!(matches!(stream.next(), Some(Err(Error::Engine(EngineError::Stopped)))));
        assert!(stream.next().is_none());

        let (sender, mut stream) = channel();
        stream.failure.set(EngineError::Panicked { message: "boom".into() }).unwrap();
        drop(sender);
        assert!(matches!(stream.next(), Some(Err(Error::Engine(EngineError::Panicked { .. })))));
    }

    #[test]
    fn dropping_or_cancelling_reaches_the_other_side() {
        let (_sender, stream) = channel();
        let handle = stream.cancel_handle();
        assert!(!handle.is_cancelled());
        drop(stream);
        assert!(handle.is_cancelled());
    }
}
