//! An io_uring: commands to the queue's device, and waiting for descriptors.
//!
//! What a command points to belongs to the ring until the command has ended, so no caller can free or change it while the
//! kernel may read it.

use io_uring::{
    IoUring, opcode, squeue,
    types::{Fd, SubmitArgs, Timespec},
};
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

/// An io_uring and what its commands point to.
pub(crate) struct Ring {
    ring: IoUring,
    /// By the token of the command.
    memory: HashMap<u64, Memory>,
}

/// A struct of a command, and what an address in it leads to. The bytes do not move while a command points to them.
#[expect(dead_code, reason = "the kernel reads it")]
struct Memory {
    bytes: Box<[u8]>,
    pointed: Box<[u8]>,
}

/// A command's parts.
pub(crate) struct Command {
    /// An ioctl number of the device.
    pub(crate) operation: u32,
    /// What lies in the entry's command area; the address of `bytes` goes to `address`.
    pub(crate) area: [u8; 16],
    /// Where in the area.
    pub(crate) address: usize,
    /// The struct that the area leads to.
    pub(crate) bytes: Box<[u8]>,
    /// What an address inside that struct leads to, and where that address goes.
    pub(crate) pointed: (Box<[u8]>, usize),
}

/// Something that has ended.
pub(crate) struct Ended {
    /// The token that it was started with.
    pub(crate) token: u64,
    /// Its result: negative for an error number.
    pub(crate) result: i32,
}

impl Ring {
    /// A ring for `entries` commands at once.
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        Ok(Self { ring: IoUring::new(entries)?, memory: HashMap::new() })
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the two callers vouch for what their entries point to.
        if unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
            // SAFETY: as above.
            unsafe { self.ring.submission().push(entry) }
                .map_err(|_| io::Error::other("the io_uring has no free entry"))?;
        }
        Ok(())
    }

    /// Starts a command of the device. `token` must not be that of a command that runs.
    pub(crate) fn command(&mut self, device: BorrowedFd<'_>, command: Command, token: u64) -> io::Result<()> {
        let Command { operation, mut area, address, mut bytes, pointed: (pointed, at) } = command;
        if self.memory.contains_key(&token) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let put = |into: &mut [u8], at: usize, memory: &[u8]| {
            let address = if memory.is_empty() { 0 } else { memory.as_ptr() as u64 };
            into[at..at + 8].copy_from_slice(&address.to_ne_bytes());
        };
        put(&mut bytes, at, &pointed);
        put(&mut area, address, &bytes);
        // The kernel reads what the addresses lead to, by the counts that `bytes` holds, until the command has ended: `memory`
        // keeps it until then, and `drop` keeps what is left.
        self.memory.insert(token, Memory { bytes, pointed });
        let entry = opcode::UringCmd16::new(Fd(device.as_raw_fd()), operation).cmd(area).build().user_data(token);
        let pushed = self.push(&entry).and_then(|()| self.submit());
        if pushed.is_err() {
            // Whether the kernel has seen it is not known: the memory stays.
            tracing::warn!("an io_uring command could not be submitted");
        }
        pushed
    }

    /// Waits until a descriptor is readable, once.
    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.poll(fd, libc::POLLIN, token)
    }

    /// Waits until a connection hangs up.
    pub(crate) fn watch_end(&mut self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.poll(socket, libc::POLLRDHUP, token)
    }

    fn poll(&mut self, fd: BorrowedFd<'_>, events: libc::c_short, token: u64) -> io::Result<()> {
        // The entry points to no memory.
        self.push(&opcode::PollAdd::new(Fd(fd.as_raw_fd()), events as u32).build().user_data(token))?;
        self.submit()
    }

    fn submit(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }

    /// The next thing that has ended.
    pub(crate) fn next(&mut self) -> Option<Ended> {
        let entry = self.ring.completion().next()?;
        self.memory.remove(&entry.user_data());
        Some(Ended { token: entry.user_data(), result: entry.result() })
    }

    /// Sleeps until something has ended, or the time is over.
    pub(crate) fn wait(&mut self, time: Option<Duration>) -> io::Result<()> {
        let waited = match time {
            None => self.ring.submit_and_wait(1),
            Some(time) => {
                let time = Timespec::from(time);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        match waited {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is that of the ring, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel ends what still runs after the ring is closed, and until then may read what it was given.
        std::mem::forget(std::mem::take(&mut self.memory));
    }
}
