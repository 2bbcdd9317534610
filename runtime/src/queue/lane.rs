//! Memory beside a socket in which a message each way passes without a system call, as long as both sides are awake.
//!
//! A lane has two halves, one for requests and one for replies. Each has one sender and one receiver:
//!
//! | byte | written by | holds |
//! |---|---|---|
//! | 0 | sender | `u32`: messages so far, stored last (release) |
//! | 4 | sender | `u32`: bytes of the newest message |
//! | 64 | receiver | `u32`: 1 while it sleeps on the socket, 2 while it naps on the number of messages, or is about to |
//! | 128 | sender | the message |
//!
//! A sender posts only after the other side has answered its last message, so a half holds one. A receiver that finds nothing
//! sleeps on the socket, which tells of the other side's end, too. One that never spins naps first: it sleeps on the number of
//! messages, as a futex, for a short time. That is the shorter way while processors are free; where they are not, a futex leaves
//! the woken side waiting for its old processor, and a socket hands it the waker's. Before either it says so, and looks once
//! more. A sender that finds the other side napping after it has posted wakes the futex, and one that finds it asleep sends a
//! message on the socket. Between its store and its look each side has a sequentially consistent fence, so at least one of them
//! sees the other's store: no message is left lying beside a sleeper.
//!
//! A napping side does not see the socket. What must go by it, since it carries a descriptor, is announced by a message here.
//!
//! The memory is the client's, sealed in size, and the server believes nothing of it: a length is bounded, a message is
//! copied out before it is looked at, and a nap ends by itself. A client that writes nonsense there harms only itself.
//!
//! This file knows bytes, not what they mean, and makes no system call but to map the memory, to nap and to wake.

use super::memory::Memory;
use crate::sys::memfd::{self, BufferFile, Shared};
use rustai_abi::queue::Errno;
use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

/// Bytes of a lane's memory.
pub(super) const LANE_BYTES: usize = 192 << 10;
const REQUESTS: Half = Half { start: 0, end: 176 << 10 };
const REPLIES: Half = Half { start: REQUESTS.end, end: LANE_BYTES };

const COUNT: usize = 0;
const LEN: usize = 4;
const ASLEEP: usize = 64;
const MESSAGE: usize = 128;

/// How long a side sleeps where it does not see that the other has gone. What sleeps longer wakes once more.
const NAP: Duration = Duration::from_millis(10);

const _: () = assert!(super::message::LONGEST <= REQUESTS.room());

#[derive(Clone, Copy)]
struct Half {
    start: usize,
    end: usize,
}

impl Half {
    const fn room(self) -> usize {
        self.end - self.start - MESSAGE
    }
}

/// How the other side of a lane waits for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Other {
    /// It does not, or it spins.
    Looks,
    /// It sleeps on the number of messages.
    Naps,
    /// It sleeps on the socket.
    Sleeps,
}

const SLEEPS: u32 = 1;
const NAPS: u32 = 2;

/// One side of a lane.
pub(super) struct Lane<M = Shared> {
    memory: M,
    /// What this side sends by.
    out: Half,
    /// What it receives by.
    inbox: Half,
    sent: u32,
    received: u32,
}

impl Lane {
    /// The client's side of a new lane, and the memory for the server.
    pub(super) fn new() -> io::Result<(Self, OwnedFd)> {
        let fd = memfd::memfd("rustai-lane", LANE_BYTES as u64)?;
        memfd::seal_size(&fd)?;
        let memory = Shared::new(&fd, 0, LANE_BYTES, true)?;
        Ok((Self::over(memory, true), fd))
    }

    /// The server's side of the lane in a client's memory.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        match memfd::inspect(fd).map_err(|_| Errno::EBADF)? {
            BufferFile::NotMemfd => Err(Errno::EINVAL),
            BufferFile::Unsealed => Err(Errno::EPERM),
            BufferFile::Sealed { readable: true, writable: true, len } if len >= LANE_BYTES as u64 => {
                let memory = Shared::new(fd, 0, LANE_BYTES, true).map_err(|_| Errno::ENOMEM)?;
                Ok(Self::over(memory, false))
            }
            BufferFile::Sealed { readable: true, writable: true, .. } => Err(Errno::ERANGE),
            BufferFile::Sealed { .. } => Err(Errno::EACCES),
        }
    }
}

impl<M: Memory> Lane<M> {
    fn over(memory: M, is_client: bool) -> Self {
        let (out, inbox) = if is_client { (REQUESTS, REPLIES) } else { (REPLIES, REQUESTS) };
        Self { memory, out, inbox, sent: 0, received: 0 }
    }

    /// What the other side says of itself. If it is [`Other::Sleeps`], a message on the socket is the quicker one.
    pub(super) fn other(&self) -> Other {
        match self.memory.load(self.out.start + ASLEEP) {
            0 => Other::Looks,
            NAPS => Other::Naps,
            _ => Other::Sleeps,
        }
    }

    /// Posts a message, and wakes the other side if it naps. If it is [`Other::Sleeps`], it must be woken by the socket. `None` if the
    /// message is too long.
    pub(super) fn post(&mut self, parts: &[&[u8]]) -> Option<Other> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > self.out.room() {
            return None;
        }
        let mut at = self.out.start + MESSAGE;
        for part in parts {
            self.memory.write(at, part);
            at += part.len();
        }
        self.memory.store(self.out.start + LEN, len as u32);
        self.sent = self.sent.wrapping_add(1);
        self.memory.store(self.out.start + COUNT, self.sent);
        self.memory.fence();
        let other = self.other();
        if other == Other::Naps {
            self.memory.wake(self.out.start + COUNT);
        }
        Some(other)
    }

    /// Takes the message that has come: copies it to `into`, as far as there is room; its bytes.
    pub(super) fn take(&mut self, into: &mut [u8]) -> Option<usize> {
        let count = self.memory.load(self.inbox.start + COUNT);
        if count == self.received {
            return None;
        }
        self.received = count;
        let len = self.memory.load(self.inbox.start + LEN) as usize;
        let len = len.min(self.inbox.room()).min(into.len());
        self.memory.read(self.inbox.start + MESSAGE, &mut into[..len]);
        Some(len)
    }

    /// Passes over what lies here: it announced what has come by the socket.
    pub(super) fn skip(&mut self) {
        self.received = self.memory.load(self.inbox.start + COUNT);
    }

    /// Sleeps until a message comes, at most for a short time; whether one has come.
    fn nap(&self) -> bool {
        if self.says(NAPS) {
            self.memory.wait(self.inbox.start + COUNT, self.received, NAP);
        }
        self.memory.load(self.inbox.start + COUNT) != self.received
    }

    /// What a side does once it has spun: whether a message has come. If not, it has said that it sleeps on the socket.
    pub(super) fn rest(&self, spin: &Spin) -> bool {
        spin.naps() && self.nap() || !self.fall_asleep()
    }

    /// Says that this side goes to sleep on the socket; whether it may, because nothing has come.
    fn fall_asleep(&self) -> bool {
        self.says(SLEEPS)
    }

    /// Says how this side waits; whether nothing has come.
    fn says(&self, how: u32) -> bool {
        self.memory.store(self.inbox.start + ASLEEP, how);
        self.memory.fence();
        self.memory.load(self.inbox.start + COUNT) == self.received
    }

    /// Says that this side looks again.
    pub(super) fn awake(&self) {
        self.memory.store(self.inbox.start + ASLEEP, 0);
    }
}

/// Turns between two looks at the socket and the clock, where the lane is looked at in every turn.
const TURNS: u32 = 256;

/// Whether to spin before sleeping: as long as what is waited for comes soon enough for it. Where it does not, one wait of some
/// spins all the same, since two sides that both sleep wait for each other's waking, and neither would learn that it could end.
#[derive(Clone, Copy)]
pub(super) struct Spin {
    limit: Duration,
    /// Waits until one spins.
    skip: u32,
}

/// Waits that do not spin after one that spun in vain.
const SKIPPED: u32 = 7;

impl Spin {
    /// About what it costs to sleep and be woken, on a virtual machine: spinning that long at most doubles the cost of a wait.
    pub(super) const LIMIT: Duration = Duration::from_micros(50);

    pub(super) fn new(limit: Duration) -> Self {
        // On one processor, spinning keeps the other side from running.
        let alone = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
        let limit = if alone { Duration::ZERO } else { limit };
        Self { limit, skip: 0 }
    }

    /// Whether a side that waits so naps before it sleeps: where it does not spin.
    fn naps(&self) -> bool {
        self.limit.is_zero()
    }

    /// Calls `look` until it finds something; `None` if it is better to sleep. `look` is told when to look at the socket, too,
    /// which with `is_cheap` unset is always.
    pub(super) fn until<R>(
        &self,
        began: Instant,
        is_cheap: bool,
        mut look: impl FnMut(bool) -> Option<R>,
    ) -> Option<R> {
        if self.skip > 0 || self.limit.is_zero() {
            return look(false);
        }
        let mut turn = 0u32;
        loop {
            turn = turn.wrapping_add(1);
            let seldom = !is_cheap || turn.is_multiple_of(TURNS);
            if let Some(found) = look(seldom) {
                return Some(found);
            }
            if seldom && began.elapsed() >= self.limit {
                return None;
            }
            std::hint::spin_loop();
        }
    }

    /// Learns how long a wait was that ended in sleep.
    pub(super) fn learn(&mut self, waited: Duration) {
        self.skip = match self.skip {
            _ if waited <= self.limit => 0,
            0 => SKIPPED,
            left => left - 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::memory::model::{Socket, Words};
    use loom::thread;
    use std::os::fd::AsFd;

    fn pair() -> (Lane, Lane) {
        let (client, fd) = Lane::new().unwrap();
        let server = Lane::of(fd.as_fd()).unwrap();
        (client, server)
    }

    #[test]
    fn messages_go_both_ways_once() {
        let (mut client, mut server) = pair();
        let mut room = [0; 64];
        assert_eq!(server.take(&mut room), None);
        assert_eq!(client.post(&[b"ab", b"", b"cde"]), Some(Other::Looks));
        assert_eq!((server.take(&mut room), &room[..5]), (Some(5), &b"abcde"[..]));
        assert_eq!(server.take(&mut room), None);
        assert_eq!(server.post(&[b"yes"]), Some(Other::Looks));
        assert_eq!((client.take(&mut room[..2]), &room[..2]), (Some(2), &b"ye"[..]), "as far as there is room");
        assert_eq!(client.post(&[&vec![0; REQUESTS.room() + 1]]), None);
        assert!(client.post(&[&vec![7; REQUESTS.room()]]).is_some());
        assert_eq!(server.take(&mut vec![0; LANE_BYTES]), Some(REQUESTS.room()));
    }

    #[test]
    fn who_sleeps_says_so() {
        let (mut client, mut server) = pair();
        assert!(server.fall_asleep());
        assert_eq!((client.other(), server.other()), (Other::Sleeps, Other::Looks));
        assert_eq!(client.post(&[b"x"]), Some(Other::Sleeps), "wake it");
        assert!(!server.fall_asleep(), "a message has come");
        server.awake();
        assert_eq!(server.take(&mut [0; 8]), Some(1));
        assert_eq!(client.other(), Other::Looks);
    }

    #[test]
    fn a_nap_ends_with_a_message_or_by_itself() {
        let (mut client, mut server) = pair();
        let began = Instant::now();
        assert!(!server.nap());
        assert!(began.elapsed() >= NAP, "nobody wakes it");
        assert_eq!(client.other(), Other::Naps);
        let napping = std::thread::spawn(move || {
            // Where the other thread does not get to run for so long, it naps again.
            let naps = (1..1000).find(|_| server.nap());
            (naps, server.take(&mut [0; 8]))
        });
        std::thread::sleep(NAP / 2);
        assert_eq!(client.post(&[b"x"]), Some(Other::Naps));
        let (naps, taken) = napping.join().unwrap();
        assert!(naps.is_some());
        assert_eq!(taken, Some(1));
    }

    #[test]
    fn an_announcement_is_passed_over() {
        let (mut client, mut server) = pair();
        client.post(&[b"on the socket"]);
        server.skip();
        assert_eq!(server.take(&mut [0; 8]), None);
        client.post(&[b"here"]);
        assert_eq!(server.take(&mut [0; 8]), Some(4));
    }

    #[test]
    fn nothing_in_the_memory_is_believed() {
        let (client, mut server) = pair();
        for len in [u32::MAX, REQUESTS.room() as u32 + 1] {
            client.memory.store(REQUESTS.start + LEN, len);
            client.memory.store(REQUESTS.start + COUNT, server.received.wrapping_sub(1));
            assert_eq!(server.take(&mut vec![0; LANE_BYTES]), Some(REQUESTS.room()), "{len}");
        }
    }

    #[test]
    fn only_sealed_memory_of_its_size_is_taken() {
        let make = |len| memfd::memfd("lane", len).unwrap();
        let refused = |fd: &OwnedFd| Lane::of(fd.as_fd()).map(drop).unwrap_err();
        assert!(matches!(refused(&tempfile::tempfile().unwrap().into()), Errno::EINVAL | Errno::EPERM));
        assert_eq!(refused(&make(LANE_BYTES as u64)), Errno::EPERM);
        let (short, fixed) = (make(4096), make(LANE_BYTES as u64));
        memfd::seal_size(&short).unwrap();
        memfd::seal_for_readers(&fixed).unwrap();
        assert_eq!((refused(&short), refused(&fixed)), (Errno::ERANGE, Errno::EACCES));
    }

    /// Waits as the two ends of a connection do; what was taken.
    fn receive(lane: &mut Lane<Words>, socket: &Socket) -> u8 {
        let mut byte = [0];
        loop {
            if lane.take(&mut byte).is_some() {
                if byte[0] != Socket::LOOK {
                    return byte[0];
                }
                loop {
                    match socket.receive() {
                        Socket::LOOK => {}
                        message => return message,
                    }
                }
            }
            if lane.nap() || !lane.fall_asleep() {
                lane.awake();
                continue;
            }
            let message = socket.receive();
            lane.awake();
            if message != Socket::LOOK {
                lane.skip();
                return message;
            }
        }
    }

    fn send(lane: &mut Lane<Words>, socket: &Socket, byte: u8) {
        if lane.other() == Other::Sleeps {
            socket.send(byte);
        } else if lane.post(&[&[byte]]) == Some(Other::Sleeps) {
            socket.send(Socket::LOOK);
        }
    }

    /// As what carries a descriptor is sent.
    fn send_by_socket(lane: &mut Lane<Words>, socket: &Socket, byte: u8) {
        if lane.other() != Other::Sleeps {
            lane.post(&[&[Socket::LOOK]]);
        }
        socket.send(byte);
    }

    type Send = fn(&mut Lane<Words>, &Socket, u8);

    /// Every order of steps, and every value that the memory model lets a load see: no message is lost beside a sleeper, none
    /// is taken before it is whole. `first` sends the first request, others go the usual way.
    fn explore(fences: bool, patient: [bool; 2], first: Send, requests: u8, bound: usize) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(bound);
        model.check(move || {
            let words = Words::new([REQUESTS.start, REPLIES.start]).with_fences(fences);
            let (up, down) = (Socket::new(), Socket::new());
            let theirs = words.clone().with_patience(patient[0]);
            let theirs = (Lane::over(theirs, false), up.clone(), down.clone());
            let server = thread::spawn(move || {
                let (mut lane, up, down) = theirs;
                for _ in 0..requests {
                    let byte = receive(&mut lane, &up);
                    send(&mut lane, &down, byte + 1);
                }
            });
            let mut lane = Lane::over(words.with_patience(patient[1]), true);
            for number in 0..requests {
                let send = if number == 0 { first } else { send };
                send(&mut lane, &up, 7 + number);
                assert_eq!(receive(&mut lane, &down), 8 + number);
            }
            server.join().unwrap();
        });
    }

    #[test]
    fn no_order_of_steps_loses_a_message() {
        for patient in [[false, false], [false, true], [true, false], [true, true]] {
            explore(true, patient, send, 1, 3);
        }
    }

    /// The announcement of a message that came by the socket is not taken for the next.
    #[test]
    fn no_order_of_steps_loses_an_announced_message() {
        for patient in [[false, false], [true, true]] {
            explore(true, patient, send_by_socket, 2, 2);
        }
    }

    #[test]
    #[ignore = "ends the process; without_the_fences_a_message_is_lost runs it"]
    fn explore_without_the_fences() {
        explore(false, [false, false], send, 1, 3);
    }

    #[test]
    #[ignore = "ends the process; without_the_fences_a_message_is_lost runs it"]
    fn explore_naps_without_the_fences() {
        explore(false, [true, true], send, 1, 3);
    }

    /// In processes of their own: the model checker panics again while what it found unwinds.
    #[test]
    fn without_the_fences_a_message_is_lost() {
        for name in ["explore_without_the_fences", "explore_naps_without_the_fences"] {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let ended = child.args(["--ignored", "--exact", &format!("queue::lane::tests::{name}")]).output().unwrap();
            assert!(!ended.status.success(), "{name}");
            let told = [ended.stdout, ended.stderr].concat();
            assert!(String::from_utf8_lossy(&told).contains("deadlock"), "{name}");
        }
    }
}
