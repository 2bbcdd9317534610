//! The queue of another process, over a unix socket.

use super::{Extra, Fault, RingMap, Transport, in_process};
use crate::{
    queue::{
        QueueError,
        lane::{Lane, Other, Spin},
        message,
    },
    sys::socket,
};
use rustai_abi::queue::{Errno, Setup, op};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A client over a connected `SOCK_SEQPACKET` socket. Requests are answered one after the other.
///
/// While both sides are awake, messages pass through memory that they share; a side that has waited for longer than it takes
/// to sleep and be woken, about 50 microseconds, sleeps on the socket and is woken there.
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
    lane: Option<Lane>,
    /// The server was awake when the last request was sent: its answer may come at once.
    expects: bool,
    spin: Spin,
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
        this.open_lane();
        Ok(this)
    }

    /// A client over a socket that is connected already.
    pub fn over(socket: OwnedFd) -> Self {
        let state = State {
            out: Vec::new(),
            reply: vec![0; 4096 + message::REPLY],
            owed: 0,
            ring: None,
            lane: None,
            expects: false,
            spin: Spin::new(Spin::LIMIT),
        };
        Self { socket, state: Mutex::new(state) }
    }

    /// How long a call spins for its answer before it sleeps; it does so while answers come that soon. Zero always sleeps.
    pub fn spinning(self, limit: Duration) -> Self {
        self.lock().spin = Spin::new(limit);
        self
    }

    /// Gives the server memory for messages. One that does not know such memory gets them all by the socket.
    fn open_lane(&self) {
        let (lane, fd) = match Lane::new() {
            Ok(made) => made,
            Err(error) => return tracing::debug!(%error, "no memory for messages; all go by the socket"),
        };
        let extra = Extra { fd: Some(fd.as_fd()), ..Extra::default() };
        match self.call(message::LANE, &mut message::LANE_STRUCT.clone(), extra) {
            Ok(()) => self.lock().lane = Some(lane),
            Err(fault) => tracing::debug!(?fault, "the server takes no memory for messages; all go by the socket"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, state: &mut State, number: u32, bytes: &[u8], extra: Extra<'_>) -> Result<(), Fault> {
        while state.owed > 0 {
            self.receive(state)?;
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
        let look = message::request(message::LOOK, 0);
        let posted = match &mut state.lane {
            Some(lane) if lane.other() != Other::Sleeps => match extra.fd {
                None => lane.post(&[&head, bytes, &state.out]),
                // Tells one who does not look at the socket to do so.
                Some(_) => lane.post(&[&look]).and(None),
            },
            _ => None,
        };
        state.expects = posted == Some(Other::Looks);
        match posted {
            Some(Other::Looks | Other::Naps) => Ok(()),
            Some(Other::Sleeps) => self.send_parts(&[IoSlice::new(&look)], None),
            None => self.send_parts(&[IoSlice::new(&head), IoSlice::new(bytes), IoSlice::new(&state.out)], extra.fd),
        }
    }

    fn send_parts(&self, parts: &[IoSlice<'_>], fd: Option<BorrowedFd<'_>>) -> Result<(), Fault> {
        socket::send(&self.socket, parts, fd).map_err(|error| match error.raw_os_error() {
            Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => Fault::Gone,
            Some(libc::EBADF) => Fault::Errno(Errno::EBADF),
            Some(libc::EMSGSIZE) => Fault::Errno(Errno::E2BIG),
            _ => Fault::Io(error),
        })
    }

    /// Receives the reply into `state.reply`, by whichever way it comes; its length.
    fn receive(&self, state: &mut State) -> Result<usize, Fault> {
        let began = Instant::now();
        // A server that must be woken first takes so long that sleeping costs no time.
        if state.expects {
            let spin = state.spin;
            let found = spin.until(began, true, |socket_too| self.look(state, socket_too).transpose());
            if let Some(found) = found {
                return found;
            }
        }
        loop {
            if let Some(lane) = &state.lane
                && lane.rest(&state.spin)
            {
                lane.awake();
                state.spin.learn(began.elapsed());
                return self.look(state, false)?.ok_or(Fault::Protocol("an empty lane"));
            }
            let received = self.receive_by_socket(state, true);
            if let Some(lane) = &state.lane {
                lane.awake();
            }
            state.spin.learn(began.elapsed());
            // After a message that only wakes, the reply lies in the lane.
            match received {
                Ok(None) => {}
                Ok(Some(len)) => return Ok(len),
                Err(fault) => return self.look(state, false)?.ok_or(fault),
            }
        }
    }

    /// The reply if it has come: to the lane, or with `socket_too` to the socket.
    fn look(&self, state: &mut State, socket_too: bool) -> Result<Option<usize>, Fault> {
        if let Some(lane) = &mut state.lane
            && let Some(len) = lane.take(&mut state.reply)
        {
            if message::operation(&state.reply[..len]) != Some(message::LOOK) {
                return Ok(Some(len));
            }
            // The reply is on the socket. What wakes those who sleep there may lie in front of it.
            loop {
                if let Some(len) = self.receive_by_socket(state, true)? {
                    return Ok(Some(len));
                }
            }
        }
        if socket_too { self.receive_by_socket(state, false) } else { Ok(None) }
    }

    /// The next message on the socket; `None` if it only wakes, or if there is none and `wait` is not set.
    fn receive_by_socket(&self, state: &mut State, wait: bool) -> Result<Option<usize>, Fault> {
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
                if message::operation(&state.reply[..received.len]) == Some(message::LOOK) {
                    return Ok(None);
                }
                if let Some(lane) = &mut state.lane {
                    lane.skip();
                }
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

/// Turns of a busy wait between two looks at the socket.
const TURNS: u32 = 64;

impl Transport for Socket {
    fn name(&self) -> &'static str {
        "socket"
    }

    fn call(&self, number: u32, bytes: &mut [u8], extra: Extra<'_>) -> Result<(), Fault> {
        let mut state = self.lock();
        self.send(&mut state, number, bytes, extra)?;
        let len = self.receive(&mut state)?;
        Self::finish(&state, number, len, bytes)
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
            turns = turns.wrapping_add(1);
            if let Some(len) = self.look(&mut state, turns.is_multiple_of(TURNS))? {
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
