//! The completion ring under every order of events that two sides can bring about, for small numbers of them.
//!
//! The writer is the queue's own [`Ring`]; the reader does what `rustai::queue::Client` does: it reads entries up to the tail, and
//! those of progress again and again, because the writer writes over an entry of progress that it believes to be unread. With
//! some later call it tells how far it has read, reads those entries a last time after that, and forgets them. Each action is
//! one step, and all interleavings are walked through.

use rustai_abi::queue::{Completion, Ring, cqe_flag};
use std::collections::HashSet;

const ENTRIES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reader {
    /// Looks at what it knows and at the tail.
    Idle,
    /// Reads entries up to the tail that it saw.
    Reading { tail: u32 },
    /// Reads an entry of progress a last time.
    Again,
}

#[derive(Clone, Debug)]
struct World {
    ring: Ring,
    places: [Completion; ENTRIES],
    /// Counts that the writer has told, per job; the last is final.
    told: [u32; 2],
    done: [bool; 2],
    last: [Option<u32>; 2],
    reader: Reader,
    head: u32,
    /// Entries of progress that were read, and not told to be: index and job.
    again: Vec<(u32, u64)>,
    seen: [u32; 2],
    finals: [u32; 2],
}

/// Progress of each job, then its end.
const STEPS: u32 = 3;

impl World {
    fn new(at: u32) -> Self {
        let mut ring = Ring::starting_at(ENTRIES as u32, at).unwrap();
        // Two streaming jobs.
        ring.reserve(2).unwrap();
        ring.reserve(2).unwrap();
        Self {
            ring,
            places: [Completion { seq: 99, ..Completion::default() }; ENTRIES],
            told: [0; 2],
            done: [false; 2],
            last: [None; 2],
            reader: Reader::Idle,
            head: at,
            again: Vec::new(),
            seen: [0; 2],
            finals: [0; 2],
        }
    }

    fn write(&mut self, job: usize) -> bool {
        if self.done[job] {
            return false;
        }
        self.told[job] += 1;
        let count = self.told[job];
        let (at, flags) = if count <= STEPS {
            let at = self.ring.post_progress(self.last[job]);
            self.last[job] = Some(at);
            (at, cqe_flag::MORE)
        } else {
            self.done[job] = true;
            (self.ring.post_final(2), 0)
        };
        self.places[self.ring.place(at)] = Completion { seq: job as u64, count, flags, ..Completion::default() };
        true
    }

    fn take(&mut self, entry: Completion) {
        let job = entry.seq as usize;
        assert!(job < 2, "an entry that nobody wrote");
        self.seen[job] = self.seen[job].max(entry.count);
        self.finals[job] += u32::from(entry.flags == 0);
    }

    fn read(&mut self) -> bool {
        match self.reader {
            Reader::Idle => {
                for at in 0..self.again.len() {
                    let (index, seq) = self.again[at];
                    let entry = self.places[self.ring.place(index)];
                    assert_eq!(
                        (entry.seq, entry.flags),
                        (seq, cqe_flag::MORE),
                        "the place of an unread entry is its own"
                    );
                    if entry.count > self.seen[seq as usize] {
                        self.seen[seq as usize] = entry.count;
                        return true;
                    }
                }
                if self.ring.tail() == self.head {
                    return false;
                }
                self.reader = Reader::Reading { tail: self.ring.tail() };
            }
            Reader::Reading { tail } if self.head == tail => self.reader = Reader::Idle,
            Reader::Reading { .. } => {
                let entry = self.places[self.ring.place(self.head)];
                if entry.flags & cqe_flag::MORE != 0 {
                    self.again.push((self.head, entry.seq));
                }
                self.take(entry);
                self.head = self.head.wrapping_add(1);
            }
            Reader::Again => match self.again.pop() {
                None => self.reader = Reader::Idle,
                Some((index, seq)) => {
                    let entry = self.places[self.ring.place(index)];
                    // Another entry may have the place by now.
                    if entry.seq == seq && entry.flags & cqe_flag::MORE != 0 {
                        self.seen[seq as usize] = self.seen[seq as usize].max(entry.count);
                    }
                }
            },
        }
        true
    }

    /// Tells how far it has read, if it has not.
    fn tell(&mut self) -> bool {
        if self.reader != Reader::Idle || self.ring.head() == self.head {
            return false;
        }
        self.ring.advance(self.head).expect("the head is between the last one and the tail");
        self.reader = Reader::Again;
        true
    }

    fn key(&self) -> impl std::hash::Hash + Eq + use<> {
        let places = self.places.map(|entry| (entry.seq, entry.count, entry.flags));
        let ring = (self.ring.head(), self.ring.tail(), self.ring.reserved());
        (
            places,
            ring,
            self.told,
            self.done,
            self.last,
            self.reader,
            (self.head, self.again.clone(), self.seen, self.finals),
        )
    }
}

fn walk(start: World) -> (usize, usize) {
    let (mut seen, mut ends) = (HashSet::new(), 0);
    let mut open = vec![start];
    while let Some(world) = open.pop() {
        if !seen.insert(world.key()) {
            continue;
        }
        assert!(world.ring.unread() <= ENTRIES as u32);
        let mut next = world.clone();
        let reads = next.read();
        if reads {
            open.push(next);
        } else {
            // Nothing is left to read: the reader knows the newest of everything without another event.
            assert_eq!(world.seen, world.told, "progress is stuck: {world:?}");
            assert_eq!(world.finals, world.done.map(u32::from), "one end for each job that has ended");
        }
        let mut next = world.clone();
        if next.tell() {
            open.push(next);
        }
        let mut wrote = false;
        for job in 0..2 {
            let mut next = world.clone();
            if next.write(job) {
                wrote = true;
                open.push(next);
            }
        }
        ends += usize::from(!reads && !wrote);
    }
    (seen.len(), ends)
}

#[test]
fn no_order_of_events_loses_or_doubles_anything() {
    for at in [0, u32::MAX - 2] {
        let (states, ends) = walk(World::new(at));
        assert!(states > 1000 && ends > 0, "{states} states, {ends} ends");
    }
}
