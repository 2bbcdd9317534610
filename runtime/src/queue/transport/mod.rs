//! How a client reaches the queue: the device, a socket, or the same process.

mod device;
mod in_process;
mod socket;

pub use device::{CharDev, EngineDevice};
pub use in_process::InProcess;
pub use socket::Socket;

use super::{QueueError, engine_side::EngineSide, memory};
use crate::sys::memfd::Shared;
use rustai_abi::queue::{ABI_MAJOR, Completion, Errno, Job, Query, Setup, Tensor, Wire, op};
use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where the device is.
pub const DEVICE: &str = "/dev/rustai";
/// Where the device of the server is.
pub const ENGINE_DEVICE: &str = "/dev/rustai-engine";

/// What comes with an operation beside its struct.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra<'a> {
    /// SUBMIT: the jobs.
    pub jobs: &'a [Job],
    /// SUBMIT: the tensors of the jobs, one job's after the other's.
    pub tensors: &'a [Tensor],
    /// BUF_REGISTER, EVENTFD: the descriptor.
    pub fd: Option<BorrowedFd<'a>>,
}

/// Why an operation failed: the queue's word, or the way to it.
#[derive(Debug)]
pub enum Fault {
    /// The queue refused; nothing has changed.
    Errno(Errno),
    /// The other side is gone.
    Gone,
    /// The way to the queue failed otherwise.
    Io(io::Error),
    /// The other side broke the rules of the transport.
    Protocol(&'static str),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl Fault {
    pub(super) fn of(self, number: u32) -> QueueError {
        match self {
            Self::Errno(errno) => QueueError::Refused { op: number, errno },
            Self::Gone => QueueError::Gone,
            Self::Io(source) => QueueError::System { what: super::error::op_name(number), source },
            Self::Protocol(what) => QueueError::Protocol(what),
        }
    }
}

/// One client's way to the queue. Dropping it closes the client: its jobs are canceled and its buffers given back.
pub trait Transport: Send + Sync {
    /// Its kind: `device`, `socket` or `in-process`.
    fn name(&self) -> &'static str;

    /// Runs an operation on the struct in `bytes`, which takes the answer. Addresses and descriptors in the struct are filled
    /// in from `extra`.
    ///
    /// # Errors
    /// [`Fault::Errno`] is the queue's answer; nothing has changed then.
    fn call(&self, op: u32, bytes: &mut [u8], extra: Extra<'_>) -> Result<(), Fault>;

    /// The memory of the completion ring, after SETUP with this answer.
    ///
    /// # Errors
    /// If it cannot be mapped.
    fn map_ring(&self, setup: &Setup) -> Result<RingMap, Fault>;

    /// What tells that the other side is gone, where that can happen.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    fn hangs_up(&self) -> io::Result<Option<OwnedFd>> {
        Ok(None)
    }

    /// The device whose SUBMIT is an io_uring command, too.
    fn command_device(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether a call that waits keeps other calls from being made.
    fn waits_alone(&self) -> bool {
        false
    }

    /// As [`call`](Self::call) for SUBMIT without waiting, but may return before the answer has come if `is_done` says so;
    /// then the answer is `None` and is read by the next call. For callers that spin on the ring.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    fn submit_spinning(
        &self,
        bytes: &mut [u8],
        extra: Extra<'_>,
        is_done: &mut dyn FnMut() -> bool,
    ) -> Result<bool, Fault> {
        self.call(op::SUBMIT, bytes, extra)?;
        while !is_done() {
            std::hint::spin_loop();
        }
        Ok(true)
    }
}

/// A completion ring, mapped read-only.
pub struct RingMap(pub(super) Arc<Shared>);

impl RingMap {
    /// Index of the next entry that will be written; everything before it can be read.
    pub fn tail(&self) -> u32 {
        memory::tail(&*self.0)
    }

    /// The entry of an index, in a ring of `entries` places.
    ///
    /// # Panics
    /// If the ring is shorter.
    pub fn entry(&self, index: u32, entries: u32) -> Completion {
        memory::entry(&*self.0, (index & (entries - 1)) as usize)
    }
}

/// Runs an operation on a struct.
pub(super) fn call<T: Wire>(transport: &dyn Transport, number: u32, ask: &T, extra: Extra<'_>) -> Result<T, Fault> {
    let mut bytes = [0; 128];
    let bytes = &mut bytes[..T::SIZE];
    let written = ask.write(bytes);
    debug_assert!(written);
    transport.call(number, bytes, extra)?;
    T::read(bytes).ok_or(Fault::Protocol("a short struct"))
}

/// Which way to the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The device at this path.
    Device(PathBuf),
    /// The socket at this path.
    Socket(PathBuf),
}

impl Choice {
    /// Reads `device`, `device:PATH`, `socket` or `socket:PATH`.
    ///
    /// # Errors
    /// [`QueueError::Choice`] for anything else.
    pub fn parse(text: &str) -> Result<Self, QueueError> {
        match text.split_once(':') {
            None if text == "device" => Ok(Self::Device(DEVICE.into())),
            None if text == "socket" => Ok(Self::Socket(default_socket())),
            Some(("device", path)) if !path.is_empty() => Ok(Self::Device(path.into())),
            Some(("socket", path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            _ => Err(QueueError::Choice(text.to_owned())),
        }
    }

    /// What `RUSTAI_TRANSPORT` says; else the device, if it opens and speaks this version; else the default socket. Logs the
    /// choice and its reason.
    ///
    /// # Errors
    /// [`QueueError::Choice`] if the variable holds something else.
    pub fn from_env() -> Result<Self, QueueError> {
        let (choice, reason) = match std::env::var("RUSTAI_TRANSPORT") {
            Ok(text) if !text.is_empty() => (Self::parse(&text)?, "RUSTAI_TRANSPORT says so".to_owned()),
            _ => match CharDev::open(Path::new(DEVICE)) {
                Ok(_) => (Self::Device(DEVICE.into()), "the device opens and speaks this version".to_owned()),
                Err(error) => (Self::Socket(default_socket()), format!("the device does not serve: {error}")),
            },
        };
        tracing::info!(transport = %choice, reason, "way to the queue chosen");
        Ok(choice)
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`QueueError::Open`] if nobody is there, [`QueueError::Version`] if it speaks another version.
    pub fn open(&self) -> Result<Arc<dyn Transport>, QueueError> {
        Ok(match self {
            Self::Device(path) => Arc::new(CharDev::open(path)?),
            Self::Socket(path) => Arc::new(Socket::connect(path)?),
        })
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(path) => write!(f, "device:{}", path.display()),
            Self::Socket(path) => write!(f, "socket:{}", path.display()),
        }
    }
}

/// The socket that server and clients use if nobody names one: `rustai/queue.sock` in the user's runtime folder
/// (`XDG_RUNTIME_DIR`), or `/tmp/rustai-UID/queue.sock` where there is none.
pub fn default_socket() -> PathBuf {
    let folder = match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder).join("rustai"),
        None => PathBuf::from(format!("/tmp/rustai-{}", rustix::process::geteuid().as_raw())),
    };
    folder.join("queue.sock")
}

/// Asks what is there, and whether it speaks this version.
pub(super) fn query(transport: &dyn Transport) -> Result<Query, QueueError> {
    let answer = call(transport, op::QUERY, &Query::new(), Extra::default()).map_err(|fault| fault.of(op::QUERY))?;
    if answer.major != ABI_MAJOR {
        return Err(QueueError::Version { major: answer.major, minor: answer.minor });
    }
    Ok(answer)
}

/// The engine's end of the device.
///
/// # Errors
/// [`QueueError::Open`] if there is no device, or it may not be opened.
pub fn open_engine_device(path: &Path) -> Result<Arc<dyn EngineSide>, QueueError> {
    Ok(Arc::new(EngineDevice::open(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written() {
        for text in ["device:/dev/x", "socket:/run/a.sock"] {
            assert_eq!(Choice::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Choice::parse("device").unwrap(), Choice::Device(DEVICE.into()));
        assert_eq!(Choice::parse("socket").unwrap(), Choice::Socket(default_socket()));
        for text in ["", "socket:", "tcp:1", "/dev/rustai"] {
            assert!(matches!(Choice::parse(text), Err(QueueError::Choice(_))), "{text}");
        }
    }
}
