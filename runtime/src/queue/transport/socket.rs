//! The queue of another process, over a unix socket.

use super::{Extra, Fault, RingMap, Transport, in_process};
use crate::{
    queue::{QueueError, message},
    sys::socket,
};
use rustai_abi::queue::{Errno, Setup, op};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::{
    io::{self, IoSlice},
    os::fd::OwnedFd,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A client over a connected `SOCK_SEQPACKET` socket. Requests are answered one after the other.
pub struct Socket {
    socket: OwnedFd,
    state: Mutex<State>,
}

struct State {
    /// For jobs on their way out.
    out: Vec<u8>,
    /// For replies.
    reply: Vec<u8>,
    /// Operations whose replies nobody has read yet.
    owed: u32,
    ring: Option<OwnedFd>,
}

impl Socket {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// [`QueueError::Open`] if nobody listens there, [`QueueError::Version`] if it speaks another version.
    pub fn connect(path: &Path) -> Result<Self, QueueError> {
        let open = || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            io::Result::Ok(socket)
        };
        let socket = open().map_err(|source| QueueError::Open { path: path.to_owned(), source })?;
        let this = Self::over(socket);
        super::query(&this)?;
        Ok(this)
    }

    /// A client over a socket that is connected already.
    pub fn over(socket: OwnedFd) -> Self {
        let state = State { out: Vec::new(), reply: vec![0; 4096 + message::REPLY], owed: 0, ring: None };
        Self { socket, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, state: &mut State, number: u32, bytes: &[u8], extra: Extra<'_>) -> Result<(), Fault> {
        while state.owed > 0 {
            self.receive(state, true)?;
            state.owed -= 1;
        }
        state.out.clear();
        let mut tensors = extra.tensors;
        for job in extra.jobs {
            message::push(&mut state.out, job);
            // A job that names more tensors than there are is the server's to refuse.
            let own = tensors.split_off(..(job.tensor_count as usize).min(tensors.len())).unwrap_or_default();
            own.iter().for_each(|tensor| message::push(&mut state.out, tensor));
        }
        let head = message::request(number, bytes.len());
        let parts = [IoSlice::new(&head), IoSlice::new(bytes), IoSlice::new(&state.out)];
        match socket::send(&self.socket, &parts, extra.fd) {
            Ok(()) => Ok(()),
            Err(error) => Err(match error.raw_os_error() {
                Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => Fault::Gone,
                Some(libc::EBADF) => Fault::Errno(Errno::EBADF),
                Some(libc::EMSGSIZE) => Fault::Errno(Errno::E2BIG),
                _ => Fault::Io(error),
            }),
        }
    }

    /// Receives a reply into `state.reply`; its length. `None` if there is none and `wait` is not set.
    fn receive(&self, state: &mut State, wait: bool) -> Result<Option<usize>, Fault> {
        let received = match socket::receive(&self.socket, &mut state.reply, wait) {
            Ok(received) => received,
            Err(error) if !wait && error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => return Err(Fault::Gone),
            Err(error) => return Err(Fault::Io(error)),
        };
        match received {
            received if received.truncated => Err(Fault::Protocol("a reply that is too long")),
            received if received.len == 0 => Err(Fault::Gone),
            received => {
                state.ring = received.fd.or(state.ring.take());
                Ok(Some(received.len))
            }
        }
    }

    /// Copies the answer of a reply of `len` bytes.
    fn finish(state: &State, number: u32, len: usize, bytes: &mut [u8]) -> Result<(), Fault> {
        let wrong = || Fault::Protocol("a reply to something else");
        match message::parse_reply(number, &state.reply[..len]).ok_or_else(wrong)? {
            Ok(answer) if answer.len() == bytes.len() => {
                bytes.copy_from_slice(answer);
                Ok(())
            }
            Ok(_) => Err(Fault::Protocol("an answer of another length")),
            Err(number) => {
                Err(Errno::from_raw(number).map_or(Fault::Protocol("an unknown error number"), Fault::Errno))
            }
        }
    }
}

impl Transport for Socket {
    fn name(&self) -> &'static str {
        "socket"
    }

    fn call(&self, number: u32, bytes: &mut [u8], extra: Extra<'_>) -> Result<(), Fault> {
        let mut state = self.lock();
        self.send(&mut state, number, bytes, extra)?;
        match self.receive(&mut state, true)? {
            Some(len) => Self::finish(&state, number, len, bytes),
            None => Err(Fault::Gone),
        }
    }

    fn map_ring(&self, setup: &Setup) -> Result<RingMap, Fault> {
        let fd = self.lock().ring.take().ok_or(Fault::Protocol("no ring came with SETUP"))?;
        in_process::map(&fd, setup)
    }

    fn hangs_up(&self) -> io::Result<Option<OwnedFd>> {
        self.socket.try_clone().map(Some)
    }

    fn waits_alone(&self) -> bool {
        true
    }

    fn submit_spinning(
        &self,
        bytes: &mut [u8],
        extra: Extra<'_>,
        is_done: &mut dyn FnMut() -> bool,
    ) -> Result<bool, Fault> {
        let mut state = self.lock();
        self.send(&mut state, op::SUBMIT, bytes, extra)?;
        let mut turns = 0u32;
        loop {
            if is_done() {
                // The reply is on its way; the next call reads it.
                state.owed += 1;
                return Ok(false);
            }
            turns += 1;
            if turns.is_multiple_of(64)
                && let Some(len) = self.receive(&mut state, false)?
            {
                // The job goes on after the reply, or was refused.
                Self::finish(&state, op::SUBMIT, len, bytes)?;
                while !is_done() {
                    std::hint::spin_loop();
                }
                return Ok(true);
            }
            std::hint::spin_loop();
        }
    }
}
