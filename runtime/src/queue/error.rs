//! Why something about the queue failed.

use rustai_abi::queue::{Errno, op};
use std::{io, path::PathBuf};

/// Why an operation of the queue failed. What a *job* fails with is in its completion.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The queue refused an operation.
    #[error("the queue refused {}: {errno}", op_name(*op))]
    Refused {
        /// Number of the operation.
        op: u32,
        /// Why.
        errno: Errno,
    },
    /// Nothing listens there, or it may not be opened.
    #[error("the queue at {} cannot be opened: {source}; start `rustai serve --queue socket:{}`", path.display(), path.display())]
    Open {
        /// The socket or the device.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("the socket {} cannot be made: {source}; choose a path in a folder that you may write", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Another server owns the socket.
    #[error("another server listens at {}; stop it, or choose another path", .0.display())]
    Taken(PathBuf),
    /// `RUSTAI_TRANSPORT` holds something else than a transport.
    #[error("RUSTAI_TRANSPORT is {0:?}; give device, device:PATH, socket or socket:PATH")]
    Choice(String),
    /// The other side does not speak this version.
    #[error("the queue speaks version {major}.{minor}, and this program 1.0; bring both to the same version")]
    Version {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
    /// The other side is gone, and the queue with it.
    #[error("the server went away; start it again and connect again")]
    Gone,
    /// The other side broke the rules of the transport.
    #[error("the queue's other side sent a message that cannot be: {0}; bring both sides to the same version")]
    Protocol(&'static str),
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// The time that the caller set is over. The job goes on.
    #[error("the time to wait is over; wait again, or cancel the job")]
    TimedOut,
    /// A job was put together wrongly.
    #[error("{0}")]
    Job(String),
}

impl QueueError {
    /// The error number of a refusal.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::TimedOut => Some(Errno::ETIME),
            _ => None,
        }
    }

    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    pub(super) fn refused(op: u32) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Refused { op, errno }
    }
}

/// The name of an operation.
pub(super) fn op_name(number: u32) -> &'static str {
    match number {
        op::QUERY => "QUERY",
        op::SETUP => "SETUP",
        op::BUF_REGISTER => "BUF_REGISTER",
        op::BUF_RELEASE => "BUF_RELEASE",
        op::SUBMIT => "SUBMIT",
        op::WAIT => "WAIT",
        op::CANCEL => "CANCEL",
        op::EVENTFD => "EVENTFD",
        op::LIMITS => "LIMITS",
        op::STAT => "STAT",
        op::ATTACH => "ATTACH",
        op::FETCH => "FETCH",
        op::BUF_MAP => "BUF_MAP",
        op::PROGRESS => "PROGRESS",
        op::COMMIT => "COMMIT",
        op::ACK => "ACK",
        op::DETACH => "DETACH",
        _ => "an unknown operation",
    }
}
