//! The server's end of the queue, whatever the queue is: the broker of this process, or the device.

use rustai_abi::queue::{Ack, Attach, BufferName, ContextId, Errno, Outcome, Progressed, Query, Ticket};
use std::{os::fd::OwnedFd, sync::Arc};

/// How long FETCH waits for something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Not at all.
    None,
    /// Until this time of `CLOCK_MONOTONIC`.
    Until(u64),
    /// As long as it takes.
    Unbounded,
}

/// A client's buffer, for the server to map.
#[derive(Debug)]
pub struct Mapped {
    /// The memfd.
    pub fd: OwnedFd,
    /// Where the buffer starts in it.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// Whether it may be written.
    pub writable: bool,
}

/// Runs what there is to do on the thread that calls, if it is quick.
pub trait Helper: Send + Sync {
    /// Fetches and runs.
    fn help(&self);
}

/// The operations of the server. Each either succeeds or changes nothing.
pub trait EngineSide: Send + Sync {
    /// QUERY.
    ///
    /// # Errors
    /// If the queue cannot be reached.
    fn query(&self) -> Result<Query, Errno>;

    /// ATTACH: becomes the server.
    ///
    /// # Errors
    /// `EBUSY` if another is, `EPROTO` if the versions differ.
    fn attach(&self, ask: &Attach) -> Result<Attach, Errno>;

    /// FETCH: writes at most `max` records to `out`; how many, and how many bytes they take.
    ///
    /// # Errors
    /// `ENOTCONN` if this is not the server (any more), `EMSGSIZE` if not one record fits, `ETIME` if the time passed.
    fn fetch(&self, out: &mut [u8], max: u32, patience: Patience) -> Result<(u32, usize), Errno>;

    /// BUF_MAP: the buffer that a fetched job names.
    ///
    /// # Errors
    /// `ENOENT` or `ESTALE` if it is gone.
    fn map(&self, client: ContextId, name: BufferName) -> Result<Mapped, Errno>;

    /// PROGRESS.
    ///
    /// # Errors
    /// `ESTALE` if the server does not have the job.
    fn progress(&self, ticket: Ticket, count: u32) -> Result<Progressed, Errno>;

    /// COMMIT: completes jobs, in order, up to the first that is refused.
    ///
    /// # Errors
    /// How many were taken, and why the next was not: `EALREADY` if it was canceled or timed out meanwhile.
    fn commit(&self, outcomes: &[Outcome]) -> Result<u32, (u32, Errno)>;

    /// ACK: the server no longer touches a buffer that is GONE.
    ///
    /// # Errors
    /// `EBUSY` if it is not gone.
    fn ack(&self, ask: &Ack) -> Result<(), Errno>;

    /// DETACH: the server goes.
    ///
    /// # Errors
    /// `ENOTCONN` if this is not the server.
    fn detach(&self) -> Result<(), Errno>;

    /// Lets threads that submit run jobs themselves, where the queue is in the same process; else does nothing.
    fn set_helper(&self, helper: Arc<dyn Helper>) {
        drop(helper);
    }
}
