//! The queue itself: contexts, buffers and jobs in tables that the caller provides, and every operation on them.
//!
//! The caller owns the lock, the clock, the memory of the rings and the files behind the buffers; what the queue wants
//! done with them it asks of a [`Sink`]. Each operation either succeeds or changes nothing.
//!
//! `client` and `server` hold the operations, `steps` what they share, `audit` the invariants in code.
//!
//! INVARIANT ([`Core::audit`] checks these):
//! - admitted = completed + in flight, for each context;
//! - a buffer's `users` is the number of tensors of held jobs (in flight or abandoned) that name it;
//! - a slot is in exactly one place: the free list, one FIFO of its context, or with nobody (waiting, with the server);
//! - what a ring has reserved is the sum of its in-flight jobs' slots.

mod audit;
mod client;
mod server;
mod steps;

pub use audit::Usage;

use core::num::NonZeroUsize;
use core::ops::DerefMut;

use super::dispatch::{DEFAULT_WEIGHT, MAX_WEIGHT, Served, Shares, step};
use super::errno::Errno;
use super::layout::{
    ABI_MAJOR, ABI_MINOR, Attach, BUFFER_ALIGN, Cancel, Completion, DEP_WINDOW, Job, Limits, MAX_ENTRIES, MAX_TENSORS,
    Outcome, Query, RING_OFFSET, Record, Setup, Stat, Tensor, class, cqe_flag, feature, job_flag, op_flag, policy,
    record, ring_bytes, server_state,
};
use super::ring::Ring;
use super::state::{Cause, ContextState, Illegal, JobEvent, JobState, Lost, ServerState};
use super::validate::{BufferView, JobRules, check_admission, is_idempotent, slots, validate};
use super::wire::Wire;

/// What the queue wants done outside of it, under the caller's lock.
pub trait Sink {
    /// Writes `entry` at `place` of the ring of context `context`, then publishes `tail`, then wakes the client.
    fn post(&mut self, context: usize, place: usize, entry: &Completion, tail: u32);
    /// There is room again, or the server came or went: wakes the client without a completion.
    fn wake_client(&mut self, context: usize);
    /// There is something to fetch.
    fn wake_server(&mut self);
    /// Nobody uses buffer slot `index` any more: its file may go.
    fn drop_buffer(&mut self, index: usize);
    /// The job in `slot`, which came by [`Core::submit_direct`], ended with `entry`.
    fn finish(&mut self, slot: usize, entry: &Completion) {
        let _ = (slot, entry);
    }
}

/// Names a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContextId {
    /// Its slot.
    pub index: u32,
    /// The slot's generation.
    pub generation: u32,
}

/// Names a job that the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Its slot.
    pub slot: u32,
    /// The slot's generation.
    pub generation: u32,
}

/// What FETCH took, so that it can be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// A job.
    Job(Ticket),
    /// The notice that a job was canceled.
    Cancel(Ticket),
    /// The notice that a buffer slot is gone.
    Gone(usize),
}

/// What became of a PROGRESS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progressed {
    /// The client will see it.
    Told,
    /// The job was canceled or timed out: stop.
    Stop,
}

/// What BUF_MAP gives to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedBuffer {
    /// The buffer's slot.
    pub index: usize,
    /// Whether it may be written.
    pub writable: bool,
}

/// A link of a list through the job table.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    prev: Option<u32>,
    next: Option<u32>,
}

/// A list through the job table.
#[derive(Clone, Copy, Debug, Default)]
struct Fifo {
    first: Option<u32>,
    last: Option<u32>,
}

/// One place of the job table.
#[derive(Clone, Copy, Debug)]
pub struct JobSlot {
    state: JobState,
    generation: u32,
    context: u32,
    link: Link,
    seq: u64,
    /// Whether the job that this one waits for is done, and well.
    dependency: Option<bool>,
    reissued: u8,
    progress: Option<u32>,
    progressed: bool,
    /// The server has yet to be told that the job was abandoned.
    notice: bool,
    /// Its end goes to [`Sink::finish`]; it has no place in the ring.
    direct: bool,
    job: Job,
    tensors: [Tensor; MAX_TENSORS],
}

impl JobSlot {
    /// A free slot.
    pub fn new() -> Self {
        Self {
            state: JobState::Free,
            generation: 0,
            context: 0,
            link: Link::default(),
            seq: 0,
            dependency: None,
            reissued: 0,
            progress: None,
            progressed: false,
            notice: false,
            direct: false,
            job: Job::new(),
            tensors: [Tensor::new(); MAX_TENSORS],
        }
    }

    fn tensors(&self) -> &[Tensor] {
        // PANIC: admission refused a job of more tensors than the array holds.
        &self.tensors[..self.job.tensor_count as usize]
    }

    /// Places of the ring that are reserved for it.
    fn slots(&self) -> u32 {
        if self.direct { 0 } else { slots(&self.job) }
    }
}

impl Default for JobSlot {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the end of a job goes.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// To the ring, where it has this many places reserved.
    Ring { slots: u32 },
    /// To [`Sink::finish`], as the end of the job in this slot.
    Direct { slot: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BufferState {
    Free,
    Live,
    /// The client gave it up; jobs or the server still use it.
    Released,
}

/// One place of the buffer table.
#[derive(Clone, Copy, Debug)]
pub struct BufferSlot {
    state: BufferState,
    generation: u32,
    len: u64,
    writable: bool,
    users: u32,
    mapped: bool,
    told: bool,
}

impl BufferSlot {
    /// A free slot.
    pub const fn new() -> Self {
        Self { state: BufferState::Free, generation: 0, len: 0, writable: false, users: 0, mapped: false, told: false }
    }

    fn wants_notice(&self) -> bool {
        self.state == BufferState::Released && self.users == 0 && self.mapped && !self.told
    }
}

impl Default for BufferSlot {
    fn default() -> Self {
        Self::new()
    }
}

const WINDOW_WORDS: usize = DEP_WINDOW as usize / 64;

/// One place of the context table.
#[derive(Clone, Copy, Debug)]
pub struct ContextSlot {
    state: ContextState,
    generation: u32,
    uid: u32,
    policy: u32,
    ring: Ring,
    next_seq: u64,
    queues: [Fifo; class::COUNT],
    served: [Served; class::COUNT],
    limits: Limits,
    stat: Stat,
    abandoned: u32,
    /// Of the last [`DEP_WINDOW`] jobs: which are in flight, and which of the others failed.
    open: [u64; WINDOW_WORDS],
    failed: [u64; WINDOW_WORDS],
}

impl ContextSlot {
    /// A free slot.
    pub fn new() -> Self {
        Self {
            state: ContextState::Free,
            generation: 0,
            uid: 0,
            policy: policy::HOLD,
            ring: Ring::EMPTY,
            next_seq: 1,
            queues: [Fifo::default(); class::COUNT],
            served: [Served::default(); class::COUNT],
            limits: Limits::new(),
            stat: Stat::new(),
            abandoned: 0,
            open: [0; WINDOW_WORDS],
            failed: [0; WINDOW_WORDS],
        }
    }

    fn in_flight(&self) -> u32 {
        self.stat.waiting + self.stat.queued + self.stat.running
    }

    fn count(&mut self, state: JobState) -> Option<&mut u32> {
        match state {
            JobState::Free => None,
            JobState::Waiting => Some(&mut self.stat.waiting),
            JobState::Queued => Some(&mut self.stat.queued),
            JobState::Running => Some(&mut self.stat.running),
            JobState::Abandoned => Some(&mut self.abandoned),
        }
    }
}

impl Default for ContextSlot {
    fn default() -> Self {
        Self::new()
    }
}

fn bit(seq: u64) -> (usize, u64) {
    ((seq / 64) as usize % WINDOW_WORDS, 1 << (seq % 64))
}

/// The queue over tables of jobs, contexts and buffers; the buffer table is divided evenly among the contexts.
#[derive(Clone, Debug)]
pub struct Core<J, C, B> {
    jobs: J,
    contexts: C,
    buffers: B,
    /// Buffers of each context.
    per_context: NonZeroUsize,
    free: Option<u32>,
    server: ServerState,
    opcodes: u64,
    shares: Shares,
    limits: Limits,
    user_jobs: u32,
    user_bytes: u64,
    features: u64,
    /// No deadline is earlier than this.
    soonest_ns: Option<u64>,
    notices: u32,
}

impl<J, C, B> Core<J, C, B>
where
    J: DerefMut<Target = [JobSlot]>,
    C: DerefMut<Target = [ContextSlot]>,
    B: DerefMut<Target = [BufferSlot]>,
{
    /// A queue without contexts and server. `limits` are what a new context gets, `user_jobs` and `user_bytes` what all
    /// contexts of a user may have together.
    ///
    /// # Errors
    /// `EINVAL` if a table is empty, or has fewer than `limits.max_buffers` buffers for each context.
    pub fn new(
        mut jobs: J,
        contexts: C,
        buffers: B,
        limits: Limits,
        user_jobs: u32,
        user_bytes: u64,
        features: u64,
    ) -> Result<Self, Errno> {
        let per_context = buffers.len().checked_div(contexts.len()).and_then(NonZeroUsize::new).ok_or(Errno::EINVAL)?;
        if jobs.is_empty() || per_context.get() < limits.max_buffers as usize {
            return Err(Errno::EINVAL);
        }
        let mut free = None;
        for index in (0..jobs.len()).rev() {
            jobs[index] = JobSlot::new();
            jobs[index].link.next = free;
            free = Some(index as u32);
        }
        let weight = if limits.weight == 0 { DEFAULT_WEIGHT } else { limits.weight };
        Ok(Self {
            jobs,
            contexts,
            buffers,
            per_context,
            free,
            server: ServerState::Absent { epoch: 0 },
            opcodes: 0,
            shares: Shares::NEW,
            limits: Limits { weight, ..limits },
            user_jobs,
            user_bytes,
            features,
            soonest_ns: None,
            notices: 0,
        })
    }

    /// QUERY.
    pub fn query(&self) -> Query {
        Query {
            major: ABI_MAJOR,
            minor: ABI_MINOR,
            server: if self.server.is_attached() { server_state::ATTACHED } else { server_state::ABSENT },
            features: self.features,
            opcodes: self.opcodes,
            epoch: self.server.epoch(),
            max_entries: MAX_ENTRIES,
            max_jobs: self.limits.max_jobs,
            max_buffers: self.limits.max_buffers,
            max_bytes: self.limits.max_bytes,
            user_jobs: self.user_jobs,
            max_tensors: MAX_TENSORS as u32,
            user_bytes: self.user_bytes,
            buffer_align: BUFFER_ALIGN,
            ..Query::new()
        }
    }

    /// The server.
    pub fn server(&self) -> ServerState {
        self.server
    }

    /// Whether nothing is open: the queue may be taken down.
    pub fn is_idle(&self) -> bool {
        !self.server.is_attached() && self.contexts.iter().all(|c| c.state == ContextState::Free)
    }
}

/// Features that every transport has.
pub const BASE_FEATURES: u64 = feature::RING;

/// Names a buffer within its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferName {
    /// Its number.
    pub buffer: u32,
    /// Its generation.
    pub generation: u32,
}
