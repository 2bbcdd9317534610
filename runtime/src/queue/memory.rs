//! Shared memory, as the two sides of a lane or a completion ring use it, and where the parts of a ring lie in it.
//!
//! This file owns the order of the ring's stores and loads: an entry is written before the tail that covers it is published,
//! and read after it. It is generic over the memory, so that a model checker can take the memory's place.

use crate::sys::memfd::Shared;
use rustai_abi::queue::{Completion, RING_ENTRIES_OFFSET, RingHeader, Wire};
use std::{
    mem::offset_of,
    sync::atomic::{Ordering, fence},
    time::Duration,
};

/// Memory that another process may write at any time.
pub(super) trait Memory {
    /// The word at `at`, with what was written before it.
    fn load(&self, at: usize) -> u32;
    /// Publishes a word, and what was written before it.
    fn store(&self, at: usize, value: u32);
    /// Copies bytes out.
    fn read(&self, at: usize, out: &mut [u8]);
    /// Copies bytes in.
    fn write(&self, at: usize, bytes: &[u8]);
    /// Orders stores before it and loads behind it.
    fn fence(&self);
    /// Sleeps until the word is [woken](Self::wake), at most for `time`; not at all if it holds another value than `value`.
    fn wait(&self, at: usize, value: u32, time: Duration);
    /// Wakes who sleeps on the word.
    fn wake(&self, at: usize);
}

impl Memory for Shared {
    fn load(&self, at: usize) -> u32 {
        Shared::load(self, at)
    }

    fn store(&self, at: usize, value: u32) {
        Shared::store(self, at, value);
    }

    fn read(&self, at: usize, out: &mut [u8]) {
        Shared::read(self, at, out);
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        Shared::write(self, at, bytes);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    fn wait(&self, at: usize, value: u32, time: Duration) {
        Shared::wait(self, at, value, time);
    }

    fn wake(&self, at: usize) {
        Shared::wake(self, at);
    }
}

/// Writes an entry of a completion ring. It can be read once the tail is published.
pub(super) fn put_entry(ring: &impl Memory, place: usize, entry: &Completion) {
    let mut bytes = [0; Completion::SIZE];
    if entry.write(&mut bytes) {
        ring.write(RING_ENTRIES_OFFSET + place * Completion::SIZE, &bytes);
    }
}

/// Publishes the tail of a completion ring.
pub(super) fn publish_tail(ring: &impl Memory, tail: u32) {
    ring.store(offset_of!(RingHeader, tail), tail);
}

/// The tail of a completion ring.
pub(super) fn tail(ring: &impl Memory) -> u32 {
    ring.load(offset_of!(RingHeader, tail))
}

/// The entry at a place of a completion ring.
pub(super) fn entry(ring: &impl Memory, place: usize) -> Completion {
    let mut bytes = [0; Completion::SIZE];
    ring.read(RING_ENTRIES_OFFSET + place * Completion::SIZE, &mut bytes);
    // PANIC: the array has the size of the struct.
    Completion::read(&bytes).expect("a whole struct")
}

/// Memory and sockets under a model checker.
#[cfg(test)]
pub(super) mod model {
    use super::Memory;
    use loom::sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering, fence},
    };
    use std::time::Duration;

    /// Words at the few addresses that are used, whose plain copies are relaxed: a copy that nothing orders may see anything
    /// that was ever written.
    #[derive(Clone)]
    pub(in crate::queue) struct Words {
        words: Arc<Vec<(usize, AtomicU32)>>,
        /// Unset to see whether the model finds what is wrong without it.
        fences: bool,
        /// Who waits for a word does so until it is woken; unset, its time is always over at once.
        patient: bool,
        /// Who sleeps, on whichever word: as the kernel, it compares the word under the lock that wakers take.
        sleepers: Arc<(Mutex<()>, Condvar)>,
    }

    impl Words {
        /// The two halves of a lane, with messages of one byte.
        pub(in crate::queue) fn new(halves: [usize; 2]) -> Self {
            Self::at(halves.into_iter().flat_map(|start| [0, 4, 64, 128].map(|at| start + at)))
        }

        pub(in crate::queue) fn with_fences(self, fences: bool) -> Self {
            Self { fences, ..self }
        }

        pub(in crate::queue) fn with_patience(self, patient: bool) -> Self {
            Self { patient, ..self }
        }

        pub(in crate::queue) fn at(places: impl Iterator<Item = usize>) -> Self {
            Self {
                words: Arc::new(places.map(|at| (at, AtomicU32::new(0))).collect()),
                fences: true,
                patient: true,
                sleepers: Arc::new((Mutex::new(()), Condvar::new())),
            }
        }

        fn word(&self, at: usize) -> &AtomicU32 {
            let found = self.words.iter().find(|(place, _)| *place == at);
            &found.unwrap_or_else(|| panic!("nothing is modelled at {at}")).1
        }
    }

    impl Memory for Words {
        fn load(&self, at: usize) -> u32 {
            self.word(at).load(Ordering::Acquire)
        }

        fn store(&self, at: usize, value: u32) {
            self.word(at).store(value, Ordering::Release);
        }

        fn read(&self, at: usize, out: &mut [u8]) {
            for (at, out) in (at..).step_by(4).zip(out.chunks_mut(4)) {
                let word = self.word(at).load(Ordering::Relaxed).to_ne_bytes();
                out.copy_from_slice(&word[..out.len()]);
            }
        }

        fn write(&self, at: usize, bytes: &[u8]) {
            for (at, bytes) in (at..).step_by(4).zip(bytes.chunks(4)) {
                let mut word = [0; 4];
                word[..bytes.len()].copy_from_slice(bytes);
                self.word(at).store(u32::from_ne_bytes(word), Ordering::Relaxed);
            }
        }

        fn fence(&self) {
            if self.fences {
                fence(Ordering::SeqCst);
            }
        }

        fn wait(&self, at: usize, value: u32, _: Duration) {
            let sleepers = self.sleepers.0.lock().unwrap();
            if self.patient && self.load(at) == value {
                drop(self.sleepers.1.wait(sleepers).unwrap());
            }
        }

        fn wake(&self, _: usize) {
            let _sleepers = self.sleepers.0.lock().unwrap();
            self.sleepers.1.notify_all();
        }
    }

    /// One direction of a socket, with messages of a byte.
    #[derive(Clone)]
    pub(in crate::queue) struct Socket(Arc<(Mutex<Vec<u8>>, Condvar)>);

    impl Socket {
        pub(in crate::queue) const LOOK: u8 = 0xff;

        pub(in crate::queue) fn new() -> Self {
            Self(Arc::new((Mutex::new(Vec::new()), Condvar::new())))
        }

        pub(in crate::queue) fn send(&self, byte: u8) {
            self.0.0.lock().unwrap().push(byte);
            self.0.1.notify_one();
        }

        pub(in crate::queue) fn receive(&self) -> u8 {
            let mut messages = self.0.0.lock().unwrap();
            while messages.is_empty() {
                messages = self.0.1.wait(messages).unwrap();
            }
            messages.remove(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{model::Words, *};
    use loom::thread;
    use rustai_abi::queue::{Ring, cqe_flag};
    use std::mem::offset_of;

    /// A streaming job with two steps of progress, and its reader. The writer writes newer progress over the older, because
    /// nobody tells it that this was read; the reader reads entries of progress again each time it looks, as a client does.
    #[test]
    fn no_order_of_steps_loses_progress_or_an_end() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let entries = RING_ENTRIES_OFFSET..RING_ENTRIES_OFFSET + 2 * Completion::SIZE;
            let memory = Words::at(std::iter::once(offset_of!(RingHeader, tail)).chain(entries.step_by(4)));
            let theirs = memory.clone();
            let writer = thread::spawn(move || {
                let mut ring = Ring::new(2).unwrap();
                ring.reserve(2).unwrap();
                let mut last = None;
                for count in 1..=3 {
                    let (at, flags) = match count {
                        3 => (ring.post_final(2), 0),
                        _ => (ring.post_progress(last), cqe_flag::MORE),
                    };
                    last = Some(at);
                    put_entry(&theirs, ring.place(at), &Completion { count, flags, seq: 1, ..Completion::new() });
                    publish_tail(&theirs, ring.tail());
                }
            });
            let (mut head, mut newest, mut ends, mut progress) = (0, 0, 0, Vec::new());
            let mut look = || {
                let to = tail(&memory);
                for at in &progress {
                    newest = newest.max(entry(&memory, *at).count);
                }
                while head != to {
                    let read = entry(&memory, head as usize);
                    assert_eq!(read.seq, 1, "an entry that was not written yet");
                    if read.flags & cqe_flag::MORE == 0 {
                        assert_eq!(read.count, 3);
                        ends += 1;
                    } else {
                        progress.push(head as usize);
                        newest = newest.max(read.count);
                    }
                    head += 1;
                }
                (newest, ends)
            };
            look();
            writer.join().unwrap();
            assert_eq!(look(), (2, 1));
        });
    }
}
