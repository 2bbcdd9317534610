//! Answers that come in parts, and jobs that wait: one thread for all of them.
//!
//! The engine's streams wake this thread, which takes what is there, writes it into the clients' tensors, and tells progress
//! once for all of it.

use super::{Done, Shared, outcome_of, run::errno_of, work::Place};
use crate::{Error, Event as Answer, Finish, Stream};
use rustai_abi::queue::{Errno, Outcome, Progressed, Ticket};
use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, mpsc},
    task::{Context, Poll, Wake, Waker},
};

/// What the thread is told.
pub(super) enum Event {
    /// A GENERATE has started.
    Generate(Box<Generating>),
    /// A stream has something new.
    Wake(Ticket),
    /// A job was cancelled.
    Cancel(Ticket),
    /// A job ends so at this time of `CLOCK_MONOTONIC`.
    Later(u64, Outcome),
    /// The server goes.
    Stop,
}

/// A GENERATE that runs.
pub(super) struct Generating {
    ticket: Ticket,
    stream: Stream,
    tokens: Place,
    text: Option<Text>,
    written: usize,
    told: usize,
    copied: u64,
}

/// The text output.
struct Text {
    place: Place,
    written: usize,
    full: bool,
}

impl Generating {
    pub(super) fn new(ticket: Ticket, stream: Stream, tokens: Place, text: Option<Place>, copied: u64) -> Self {
        let text = text.map(|place| Text { place, written: 0, full: false });
        Self { ticket, stream, tokens, text, written: 0, told: 0, copied }
    }

    /// Takes all that has come; the end, if that was among it.
    fn take(&mut self, waker: &Waker) -> Option<Result<Done, Errno>> {
        let mut context = Context::from_waker(waker);
        loop {
            let next = futures_core::Stream::poll_next(Pin::new(&mut self.stream), &mut context);
            let Poll::Ready(next) = next else { return None };
            match next {
                Some(Ok(Answer::Token { id, text, .. })) => {
                    self.tokens.put(self.written, &[id]);
                    self.written += 1;
                    if let Some(out) = &mut self.text {
                        out.push(&text);
                    }
                }
                Some(Ok(Answer::Done(summary))) if summary.finish == Finish::Cancelled => {
                    return Some(Err(Errno::ECANCELED));
                }
                Some(Ok(Answer::Done(_))) => {
                    let result = self.text.as_ref().map_or(0, |text| text.written as i32);
                    return Some(Ok(Done { result, count: self.written as u32, copied: self.copied }));
                }
                Some(Err(Error::Engine(error))) => return Some(Err(errno_of(&error))),
                Some(Err(_)) | None => return Some(Err(Errno::ENOTRECOVERABLE)),
            }
        }
    }
}

impl Text {
    fn push(&mut self, text: &str) {
        let room = self.place.bytes.len() - self.written;
        let fits = text.floor_char_boundary(room.min(text.len()));
        // Once a character did not fit, none that follows may take its place.
        if self.full {
            return;
        }
        self.full = fits < text.len();
        self.place.put(self.written, &text.as_bytes()[..fits]);
        self.written += fits;
    }
}

/// The thread's state.
pub(super) struct Streams {
    shared: Arc<Shared>,
    running: HashMap<Ticket, Box<Generating>>,
    /// By time and a running number.
    later: BTreeMap<(u64, u64), Outcome>,
    next: u64,
}

/// Wakes the thread for one stream.
struct Bell {
    events: mpsc::Sender<Event>,
    ticket: Ticket,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // A thread that is gone needs no waking.
        let _ = self.events.send(Event::Wake(self.ticket));
    }
}

impl Streams {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, running: HashMap::new(), later: BTreeMap::new(), next: 0 }
    }

    /// Until the server goes.
    pub(super) fn run(mut self, events: &mpsc::Receiver<Event>) {
        loop {
            let event = match self.later.first_key_value() {
                None => events.recv().ok(),
                Some(((at, _), _)) => match crate::queue::clock::until(*at) {
                    None => {
                        self.end_late();
                        continue;
                    }
                    Some(left) => match events.recv_timeout(left) {
                        Ok(event) => Some(event),
                        Err(mpsc::RecvTimeoutError::Timeout) => continue,
                        Err(mpsc::RecvTimeoutError::Disconnected) => None,
                    },
                },
            };
            match event {
                Some(Event::Generate(generating)) => {
                    let ticket = generating.ticket;
                    self.running.insert(ticket, generating);
                    self.advance(ticket);
                }
                Some(Event::Wake(ticket)) => self.advance(ticket),
                Some(Event::Cancel(ticket)) => self.cancel(ticket),
                Some(Event::Later(at, outcome)) => {
                    self.later.insert((at, self.next), outcome);
                    self.next += 1;
                }
                // Dropping the streams cancels them.
                Some(Event::Stop) | None => return,
            }
        }
    }

    fn advance(&mut self, ticket: Ticket) {
        // A stream may be woken once more after its end.
        let Some(generating) = self.running.get_mut(&ticket) else { return };
        let waker = Waker::from(Arc::new(Bell { events: self.shared.events.clone(), ticket }));
        if let Some(end) = generating.take(&waker) {
            self.running.remove(&ticket);
            self.shared.finish(ticket, end);
            return;
        }
        if generating.written > generating.told {
            generating.told = generating.written;
            match self.shared.side.progress(ticket, generating.written as u32) {
                Ok(Progressed::Told) => {}
                // The notice of the cancel is on its way; it does no harm to be early.
                Ok(Progressed::Stop) | Err(_) => generating.stream.cancel(),
            }
        }
    }

    /// A delayed job need not wait for its time once nobody waits for it.
    fn cancel(&mut self, ticket: Ticket) {
        let named = |outcome: &Outcome| (outcome.slot, outcome.generation) == (ticket.slot, ticket.generation);
        let found = self.later.iter().find(|(_, outcome)| named(outcome)).map(|(key, _)| *key);
        if let Some(key) = found {
            self.later.remove(&key);
            self.shared.commit(&[outcome_of(ticket, Err(Errno::ECANCELED))]);
        }
    }

    fn end_late(&mut self) {
        let now = crate::queue::clock::now_ns();
        let rest = self.later.split_off(&(now + 1, 0));
        let outcomes: Vec<Outcome> = std::mem::replace(&mut self.later, rest).into_values().collect();
        self.shared.commit(&outcomes);
    }
}
