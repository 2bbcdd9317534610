//! What the queue's slots stand for: rings, files, and those who wait.

use crate::{
    queue::memory,
    sys::memfd::{self, Shared},
};
use rustai_abi::queue::{Completion, ContextId, Errno, RingHeader, ServerState, Sink, Wire, ring_bytes};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{read, write},
};
use std::{
    mem::offset_of,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The memory of a completion ring: written here, read by the client.
pub(super) struct RingMemory {
    map: Shared,
    /// For the client.
    pub(super) fd: OwnedFd,
}

impl RingMemory {
    pub(super) fn new(entries: u32) -> Result<Self, Errno> {
        let len = ring_bytes(entries);
        let make = || {
            let fd = memfd::memfd("rustai-ring", len)?;
            let map = Shared::new(&fd, 0, len as usize, true)?;
            // From here on nobody else can write it, nor change its size.
            memfd::seal_for_readers(&fd)?;
            std::io::Result::Ok(Self { map, fd })
        };
        let ring = make().map_err(|error| {
            tracing::warn!(%error, "no memory for a completion ring");
            Errno::ENOMEM
        })?;
        let mut header = [0; RingHeader::SIZE];
        if !(RingHeader { entries, ..RingHeader::new() }).write(&mut header) {
            return Err(Errno::EINVAL);
        }
        ring.map.write(0, &header);
        Ok(ring)
    }

    pub(super) fn publish_server(&self, server: ServerState) {
        self.map.store(offset_of!(RingHeader, epoch), server.epoch());
        self.map.store(offset_of!(RingHeader, server), server.is_attached().into());
    }
}

/// Wakes the threads that wait for a client.
pub(super) struct Bell {
    condvar: Condvar,
    /// Where waiters also watch a socket.
    pub(super) fd: Option<OwnedFd>,
}

impl Bell {
    pub(super) fn new(by_fd: bool) -> Result<Arc<Self>, Errno> {
        let fd = by_fd.then(|| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)).transpose();
        Ok(Arc::new(Self { condvar: Condvar::new(), fd: fd.map_err(|_| Errno::ENOMEM)? }))
    }

    fn ring(&self) {
        match &self.fd {
            Some(fd) => signal(fd),
            None => self.condvar.notify_all(),
        }
    }

    /// Waits once, without the lock; may return early.
    pub(super) fn wait<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
        guard: MutexGuard<'a, T>,
        left: Option<Duration>,
        hangs_up: Option<BorrowedFd<'_>>,
    ) -> Result<MutexGuard<'a, T>, Errno> {
        let (Some(fd), Some(socket)) = (&self.fd, hangs_up) else {
            return Ok(match left {
                Some(left) => self.condvar.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.condvar.wait(guard).unwrap_or_else(PoisonError::into_inner),
            });
        };
        drop(guard);
        let mut fds = [PollFd::new(fd, PollFlags::IN), PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
        let time = left.map(crate::queue::clock::timespec);
        // An interrupted or failed wait is an early return.
        let _ = poll(&mut fds, time.as_ref());
        let gone = fds[1].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR);
        let _ = read(fd, &mut [0u8; 8]);
        if gone { Err(Errno::ENOTCONN) } else { Ok(mutex.lock().unwrap_or_else(PoisonError::into_inner)) }
    }
}

fn signal(fd: impl AsFd) {
    // A counter that is full wakes as well.
    let _ = write(fd, &1u64.to_ne_bytes());
}

/// What belongs to a context slot.
#[derive(Default)]
pub(super) struct Side {
    pub(super) id: Option<ContextId>,
    pub(super) uid: u32,
    pub(super) pid: i32,
    pub(super) may_raise: bool,
    pub(super) ring: Option<RingMemory>,
    pub(super) eventfd: Option<OwnedFd>,
    pub(super) bell: Option<Arc<Bell>>,
    /// Threads that wait.
    pub(super) waits: u32,
    /// The tail that is not published yet.
    pub(super) tail: Option<u32>,
    /// Somebody should look again.
    pub(super) changed: bool,
}

/// The file behind a buffer.
pub(super) struct Backing {
    pub(super) file: OwnedFd,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What the queue's slots stand for. What the queue tells is noted, and acted on once, by [`Self::flush`].
pub(super) struct Outside {
    pub(super) sides: Vec<Side>,
    pub(super) files: Vec<Option<Backing>>,
    /// There is something to fetch.
    pub(super) work: bool,
    /// Threads of the server that wait.
    pub(super) server_waits: u32,
    touched: Vec<usize>,
}

impl Outside {
    pub(super) fn new(contexts: usize, buffers: usize) -> Self {
        Self {
            sides: (0..contexts).map(|_| Side::default()).collect(),
            files: (0..buffers).map(|_| None).collect(),
            work: false,
            server_waits: 0,
            touched: Vec::with_capacity(contexts),
        }
    }

    fn touch(&mut self, context: usize) -> &mut Side {
        let side = &mut self.sides[context];
        if side.tail.is_none() && !side.changed {
            self.touched.push(context);
        }
        side
    }

    /// Publishes tails and wakes clients: once, however many entries were written.
    pub(super) fn flush(&mut self) {
        for context in self.touched.drain(..) {
            let side = &mut self.sides[context];
            if let Some(tail) = side.tail.take() {
                if let Some(ring) = &side.ring {
                    memory::publish_tail(&ring.map, tail);
                }
                if let Some(fd) = &side.eventfd {
                    signal(fd);
                }
            }
            side.changed = false;
            if side.waits > 0
                && let Some(bell) = &side.bell
            {
                bell.ring();
            }
        }
    }
}

impl Sink for Outside {
    fn post(&mut self, context: usize, place: usize, entry: &Completion, tail: u32) {
        let side = self.touch(context);
        side.tail = Some(tail);
        if let Some(ring) = &side.ring {
            memory::put_entry(&ring.map, place, entry);
        }
    }

    fn wake_client(&mut self, context: usize) {
        self.touch(context).changed = true;
    }

    fn wake_server(&mut self) {
        self.work = true;
    }

    fn drop_buffer(&mut self, index: usize) {
        self.files[index] = None;
    }
}
