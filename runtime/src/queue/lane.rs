//! Memory beside a socket in which a message each way passes without a system call, as long as both sides are awake.
//!
//! A lane has two halves, one for requests and one for replies. Each has one sender and one receiver:
//!
//! | byte | written by | holds |
//! |---|---|---|
//! | 0 | sender | `u32`: messages so far, stored last (release) |
//! | 4 | sender | `u32`: bytes of the newest message |
//! | 64 | receiver | `u32`: 1 while it sleeps, or is about to |
//! | 128 | sender | the message |
//!
//! A sender posts only after the other side has answered its last message, so a half holds one. A receiver that finds nothing may
//! sleep on the socket: it says so, and looks once more. A sender that finds the other side asleep after it has posted wakes
//! it with a message on the socket. Between its store and its look each side has a sequentially consistent fence, so at least
//! one of them sees the other's store: no message is left lying beside a sleeper.
//!
//! The memory is the client's, sealed in size, and the server believes nothing of it: a length is bounded, and a message is
//! copied out before it is looked at. A client that writes nonsense there harms only itself.
//!
//! This file knows bytes, not what they mean, and makes no system call but to map the memory.

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

    /// Whether the other side sleeps: then a message on the socket is the quicker one.
    pub(super) fn other_sleeps(&self) -> bool {
        self.memory.load(self.out.start + ASLEEP) != 0
    }

    /// Posts a message; whether the other side must be woken for it. `None` if it is too long.
    pub(super) fn post(&mut self, parts: &[&[u8]]) -> Option<bool> {
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
        Some(self.other_sleeps())
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

    /// Says that this side goes to sleep; whether it may, because nothing has come.
    pub(super) fn fall_asleep(&self) -> bool {
        self.memory.store(self.inbox.start + ASLEEP, 1);
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
        assert_eq!(client.post(&[b"ab", b"", b"cde"]), Some(false));
        assert_eq!((server.take(&mut room), &room[..5]), (Some(5), &b"abcde"[..]));
        assert_eq!(server.take(&mut room), None);
        assert_eq!(server.post(&[b"yes"]), Some(false));
        assert_eq!((client.take(&mut room[..2]), &room[..2]), (Some(2), &b"ye"[..]), "as far as there is room");
        assert_eq!(client.post(&[&vec![0; REQUESTS.room() + 1]]), None);
        assert!(client.post(&[&vec![7; REQUESTS.room()]]).is_some());
        assert_eq!(server.take(&mut vec![0; LANE_BYTES]), Some(REQUESTS.room()));
    }

    #[test]
    fn who_sleeps_says_so() {
        let (mut client, mut server) = pair();
        assert!(server.fall_asleep() && client.other_sleeps() && !server.other_sleeps());
        assert_eq!(client.post(&[b"x"]), Some(true), "wake it");
        assert!(!server.fall_asleep(), "a message has come");
        server.awake();
        assert_eq!(server.take(&mut [0; 8]), Some(1));
        assert!(!client.other_sleeps());
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
                return byte[0];
            }
            if lane.fall_asleep() {
                let message = socket.receive();
                lane.awake();
                match message {
                    Socket::LOOK => {}
                    message => return message,
                }
            } else {
                lane.awake();
            }
        }
    }

    fn send(lane: &mut Lane<Words>, socket: &Socket, byte: u8) {
        if lane.other_sleeps() {
            socket.send(byte);
        } else if lane.post(&[&[byte]]) == Some(true) {
            socket.send(Socket::LOOK);
        }
    }

    /// Every order of steps, and every value that the memory model lets a load see: no message is lost beside a sleeper, none
    /// is taken before it is whole.
    fn explore(fences: bool) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let words = Words::new([REQUESTS.start, REPLIES.start]).with_fences(fences);
            let (up, down) = (Socket::new(), Socket::new());
            let theirs = (Lane::over(words.clone(), false), up.clone(), down.clone());
            let server = thread::spawn(move || {
                let (mut lane, up, down) = theirs;
                let byte = receive(&mut lane, &up);
                send(&mut lane, &down, byte + 1);
            });
            let mut lane = Lane::over(words, true);
            send(&mut lane, &up, 7);
            assert_eq!(receive(&mut lane, &down), 8);
            server.join().unwrap();
        });
    }

    #[test]
    fn no_order_of_steps_loses_a_message() {
        explore(true);
    }

    #[test]
    #[ignore = "ends the process; without_the_fences_a_message_is_lost runs it"]
    fn explore_without_the_fences() {
        explore(false);
    }

    /// In a process of its own: the model checker panics again while what it found unwinds.
    #[test]
    fn without_the_fences_a_message_is_lost() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let ended =
            child.args(["--ignored", "--exact", "queue::lane::tests::explore_without_the_fences"]).output().unwrap();
        assert!(!ended.status.success());
        let told = [ended.stdout, ended.stderr].concat();
        assert!(String::from_utf8_lossy(&told).contains("deadlock"));
    }
}
