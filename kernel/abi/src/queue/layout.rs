//! The structs, operations and numbers of the interface, version 1.0. `kernel/include/uapi/rustai.h` is the same in C.
//!
//! Operations are `_IO(IOCTL_TYPE, number)`: the size is in the struct, so that a longer struct keeps its number. On the
//! socket transport the number is the message's `op`.

use super::wire::{FieldInfo, Value, Wire, wire};

/// Version: another major is refused, a higher minor only adds.
pub const ABI_MAJOR: u16 = 1;
/// See [`ABI_MAJOR`].
pub const ABI_MINOR: u16 = 0;
/// Type byte of the ioctl numbers.
pub const IOCTL_TYPE: u32 = 0xBA;

/// The ioctl number of an operation.
pub const fn ioctl(op: u32) -> u32 {
    IOCTL_TYPE << 8 | op
}

/// Operations of a client.
pub mod op {
    /// [`Query`](super::Query); also on the server's node.
    pub const QUERY: u32 = 0x00;
    /// [`Setup`](super::Setup).
    pub const SETUP: u32 = 0x01;
    /// [`BufRegister`](super::BufRegister).
    pub const BUF_REGISTER: u32 = 0x02;
    /// [`BufRelease`](super::BufRelease).
    pub const BUF_RELEASE: u32 = 0x03;
    /// [`Submit`](super::Submit).
    pub const SUBMIT: u32 = 0x04;
    /// [`Wait`](super::Wait).
    pub const WAIT: u32 = 0x05;
    /// [`Cancel`](super::Cancel).
    pub const CANCEL: u32 = 0x06;
    /// [`EventFd`](super::EventFd).
    pub const EVENTFD: u32 = 0x07;
    /// [`Limits`](super::Limits).
    pub const LIMITS: u32 = 0x08;
    /// [`Stat`](super::Stat).
    pub const STAT: u32 = 0x09;
    /// [`Attach`](super::Attach). This and the following are the server's.
    pub const ATTACH: u32 = 0x40;
    /// [`Fetch`](super::Fetch).
    pub const FETCH: u32 = 0x41;
    /// [`BufMap`](super::BufMap).
    pub const BUF_MAP: u32 = 0x42;
    /// [`Progress`](super::Progress).
    pub const PROGRESS: u32 = 0x43;
    /// [`Commit`](super::Commit).
    pub const COMMIT: u32 = 0x44;
    /// [`Ack`](super::Ack).
    pub const ACK: u32 = 0x45;
    /// [`Detach`](super::Detach).
    pub const DETACH: u32 = 0x46;

    /// Whether `op` is one of a client's.
    pub const fn is_client(op: u32) -> bool {
        op <= STAT
    }

    /// Whether `op` is one of the server's.
    pub const fn is_server(op: u32) -> bool {
        op == QUERY || (op >= ATTACH && op <= DETACH)
    }
}

/// What a job asks for. An unknown one completes with `EOPNOTSUPP`.
pub mod opcode {
    /// Nothing; completes at once.
    pub const NOP: u16 = 0;
    /// Completes as its parameters say: fault injection.
    pub const ECHO: u16 = 1;
    /// Text to token ids.
    pub const TOKENIZE: u16 = 2;
    /// Token ids to an embedding.
    pub const EMBED: u16 = 3;
    /// Scores of documents for a query.
    pub const RERANK: u16 = 4;
    /// Prefill; returns logits.
    pub const LOGITS: u16 = 5;
    /// Continues a sequence, token by token; streams.
    pub const GENERATE: u16 = 6;
    /// A matrix product.
    pub const MATMUL: u16 = 7;
    /// Opens a session, which keeps the key/value cache between jobs.
    pub const SESSION_OPEN: u16 = 8;
    /// Closes a session.
    pub const SESSION_CLOSE: u16 = 9;
    /// Opcodes of this version are below.
    pub const COUNT: u16 = 10;
}

/// Flags of [`Job`].
pub mod job_flag {
    /// `deadline_ns` counts.
    pub const DEADLINE: u32 = 1 << 0;
    /// `dep_seq` counts: start after that job, fail if it fails.
    pub const DEP: u32 = 1 << 1;
    /// `session` and `session_epoch` count.
    pub const SESSION: u32 = 1 << 2;
    /// All that are known.
    pub const ALL: u32 = DEADLINE | DEP | SESSION;
}

/// Flags of [`Tensor`].
pub mod tensor_flag {
    /// The server writes it.
    pub const OUT: u32 = 1 << 0;
    /// An output that may overlap an input.
    pub const IN_PLACE: u32 = 1 << 1;
    /// Values are indices (token ids, positions): the server copies and checks them before use.
    pub const INDEX: u32 = 1 << 2;
    /// All that are known.
    pub const ALL: u32 = OUT | IN_PLACE | INDEX;
}

/// Flags of [`Completion`].
pub mod cqe_flag {
    /// Progress: the job still runs and its final entry is to come.
    pub const MORE: u32 = 1 << 0;
    /// The job was canceled because the one that it depends on failed.
    pub const DEP: u32 = 1 << 1;
}

/// Flags of the operations' structs.
pub mod op_flag {
    /// [`BufRegister`](super::BufRegister): outputs may be written there.
    pub const BUF_RW: u32 = 1 << 0;
    /// [`Submit`](super::Submit), [`Wait`](super::Wait), [`Cancel`](super::Cancel), [`Fetch`](super::Fetch):
    /// `deadline_ns` bounds the wait. Without it the wait is unbounded.
    pub const DEADLINE: u32 = 1 << 0;
    /// [`Fetch`](super::Fetch): do not wait at all.
    pub const NO_WAIT: u32 = 1 << 1;
    /// [`Cancel`](super::Cancel): the jobs with `user_data`.
    pub const BY_USER_DATA: u32 = 1 << 1;
    /// [`Cancel`](super::Cancel): the jobs of `session`.
    pub const BY_SESSION: u32 = 1 << 2;
    /// [`Cancel`](super::Cancel): all jobs.
    pub const ALL: u32 = 1 << 3;
    /// [`Cancel`](super::Cancel): wait until the server let go of the canceled jobs' buffers.
    pub const SETTLE: u32 = 1 << 4;
    /// [`EventFd`](super::EventFd): take the eventfd away.
    pub const REMOVE: u32 = 1 << 0;
    /// [`Limits`](super::Limits): set; without it they are only told.
    pub const SET: u32 = 1 << 0;
    /// [`BufMap`](super::BufMap), answered: the buffer is writable.
    pub const MAPPED_RW: u32 = 1 << 0;
}

/// What happens to a client's jobs when the server goes away.
pub mod policy {
    /// Queued jobs stay until the server is back or their deadline passes; running ones fail. The default.
    pub const HOLD: u32 = 0;
    /// Queued and running jobs fail.
    pub const FAIL: u32 = 1;
    /// Queued jobs stay; running ones that may run twice are queued again.
    pub const REISSUE: u32 = 2;
}

/// Scheduling classes of jobs; a higher one gets a larger share.
pub mod class {
    /// What has time.
    pub const BATCH: u8 = 0;
    /// The usual one.
    pub const NORMAL: u8 = 1;
    /// Someone waits for each token.
    pub const INTERACTIVE: u8 = 2;
    /// Classes are below.
    pub const COUNT: usize = 3;
}

/// Kinds of [`Record`].
pub mod record {
    /// A job: followed by its [`Job`](super::Job) and its [`Tensor`](super::Tensor)s.
    pub const JOB: u32 = 1;
    /// A running job that was canceled or timed out: stop, then commit it as usual.
    pub const CANCEL: u32 = 2;
    /// A buffer that the client gave up: stop using it, unmap it, then ACK.
    pub const GONE: u32 = 3;
}

/// States of the server in [`Query`].
pub mod server_state {
    /// Nobody is attached.
    pub const ABSENT: u32 = 0;
    /// One is attached.
    pub const ATTACHED: u32 = 1;
}

/// Features.
pub mod feature {
    /// The completion ring can be mapped.
    pub const RING: u64 = 1 << 0;
    /// Completions signal an eventfd.
    pub const EVENTFD: u64 = 1 << 1;
    /// The queue outlives the server.
    pub const REATTACH: u64 = 1 << 2;
    /// SUBMIT as an io_uring command.
    pub const URING: u64 = 1 << 3;
}

/// Tensors of one job, at most.
pub const MAX_TENSORS: usize = 16;
/// Dimensions of a tensor, at most.
pub const MAX_DIMS: usize = 6;
/// Elements along one dimension, at most.
pub const MAX_DIM: u64 = 1 << 40;
/// Entries of a completion ring, at most.
pub const MAX_ENTRIES: u32 = 1 << 15;
/// Jobs of one SUBMIT, at most.
pub const MAX_BATCH: u32 = 1024;
/// Bytes of a caller's struct that are looked at; a larger `size` is refused.
pub const MAX_STRUCT: u32 = 4096;
/// How often a job is queued again after deaths of the server.
pub const MAX_REISSUES: u8 = 3;
/// A job may depend on one of this many jobs before it.
pub const DEP_WINDOW: u64 = 1024;
/// Ranges of buffers start and end at multiples of this.
pub const BUFFER_ALIGN: u64 = 4096;
/// The completion ring is mapped at this offset.
pub const RING_OFFSET: u64 = 0;
/// Entries start this far into the ring's memory.
pub const RING_ENTRIES_OFFSET: usize = 64;
/// The only packing of quantized blocks: as GGUF files hold them.
pub const QUANT_GGUF: u32 = 0;

/// Bytes of a ring's memory: header and entries, in whole pages.
pub const fn ring_bytes(entries: u32) -> u64 {
    (RING_ENTRIES_OFFSET as u64 + entries as u64 * 32).div_ceil(4096) * 4096
}

wire! {
    /// A job. Its tensors are `tensor_count` structs of [`Tensor`] at `tensors`.
    struct Job("rustai_job", 128) {
        /// Bytes of the struct.
        0 size: u32,
        /// [`job_flag`].
        4 flags: u32,
        /// Comes back in the completion.
        8 user_data: u64,
        /// [`opcode`].
        16 opcode: u16,
        /// [`class`].
        18 sched_class: u8,
        /// Zero.
        19 reserved0: u8,
        /// Number of tensors, 0 to [`MAX_TENSORS`].
        20 tensor_count: u32,
        /// Address of the tensors in the caller's memory; 0 in what the server fetches.
        24 tensors: u64,
        /// Absolute time of `CLOCK_MONOTONIC` after which the job is of no use.
        32 deadline_ns: u64,
        /// Sequence number of an earlier job of the same context.
        40 dep_seq: u64,
        /// Number of the model on the server; 0 is its default.
        48 model: u32,
        /// Number of the session.
        52 session: u32,
        /// Epoch of the server that opened the session.
        56 session_epoch: u32,
        /// Zero.
        60 reserved1: u32,
        /// What the opcode needs.
        64 params: [u64; 8],
    }
}

wire! {
    /// A tensor inside a registered buffer. `dims[0]` is the length of a row, as in GGUF; rows follow each other without
    /// gaps.
    struct Tensor("rustai_tensor", 96) {
        /// Bytes of the struct.
        0 size: u32,
        /// [`tensor_flag`].
        4 flags: u32,
        /// The buffer.
        8 buffer: u32,
        /// Its generation.
        12 generation: u32,
        /// Bytes from the start of the buffer.
        16 offset: u64,
        /// Bytes of the tensor: exactly what type and shape need.
        24 byte_len: u64,
        /// Element type: its GGUF identifier.
        32 dtype: u32,
        /// Packing of blocks: [`QUANT_GGUF`].
        36 quant: u32,
        /// Dimensions in use, 1 to [`MAX_DIMS`].
        40 ndim: u32,
        /// Zero.
        44 reserved0: u32,
        /// Elements along each dimension; zero past `ndim`.
        48 dims: [u64; 6],
    }
}

wire! {
    /// An entry of the completion ring.
    struct Completion("rustai_completion", 32) {
        /// Bytes of the struct.
        0 size: u32,
        /// [`cqe_flag`].
        4 flags: u32,
        /// As in the job.
        8 user_data: u64,
        /// Sequence number of the job in its context; the first is 1.
        16 seq: u64,
        /// 0 or more: the opcode's result; negative: an error number.
        24 result: i32,
        /// What is ready in the output, in the opcode's unit (tokens for GENERATE).
        28 count: u32,
    }
}

wire! {
    /// The start of the completion ring's memory. The client maps it read-only; entries start at
    /// [`RING_ENTRIES_OFFSET`]. An entry `i` of the sequence lies at place `i & (entries - 1)`.
    struct RingHeader("rustai_ring", 64) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// Places, a power of two.
        8 entries: u32,
        /// Index of the next entry that will be written; wraps at 2^32. Read it with acquire order.
        12 tail: u32,
        /// The server's epoch, for clients that poll.
        16 epoch: u32,
        /// [`server_state`].
        20 server: u32,
        /// Zero.
        24 reserved: [u64; 5],
    }
}

wire! {
    /// QUERY: what is there.
    struct Query("rustai_query", 128) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// [`ABI_MAJOR`].
        8 major: u16,
        /// [`ABI_MINOR`].
        10 minor: u16,
        /// [`server_state`].
        12 server: u32,
        /// [`feature`]s of the queue.
        16 features: u64,
        /// Bit n: the server answers opcode n.
        24 opcodes: u64,
        /// Counts attachments of servers.
        32 epoch: u32,
        /// Limit of SETUP's `entries`.
        36 max_entries: u32,
        /// Jobs in flight per context.
        40 max_jobs: u32,
        /// Buffers per context.
        44 max_buffers: u32,
        /// Registered bytes per context.
        48 max_bytes: u64,
        /// Jobs in flight per user.
        56 user_jobs: u32,
        /// [`MAX_TENSORS`].
        60 max_tensors: u32,
        /// Registered bytes per user.
        64 user_bytes: u64,
        /// Ranges of buffers are multiples of this.
        72 buffer_align: u64,
        /// Zero.
        80 reserved: [u64; 6],
    }
}

wire! {
    /// SETUP: makes the completion ring.
    struct Setup("rustai_setup", 64) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// The major version that the caller speaks.
        8 major: u16,
        /// The minor version that the caller speaks.
        10 minor: u16,
        /// Places of the completion ring: a power of two.
        12 entries: u32,
        /// Features that the caller cannot do without.
        16 features: u64,
        /// [`policy`].
        24 policy: u32,
        /// Zero.
        28 reserved0: u32,
        /// Answered: bytes to map at `ring_offset`.
        32 ring_bytes: u64,
        /// Answered: see `ring_bytes`.
        40 ring_offset: u64,
        /// Zero.
        48 reserved: [u64; 2],
    }
}

wire! {
    /// BUF_REGISTER: makes a part of a sealed memfd known as a buffer.
    struct BufRegister("rustai_buf_register", 64) {
        /// Bytes of the struct.
        0 size: u32,
        /// [`op_flag::BUF_RW`].
        4 flags: u32,
        /// The memfd, with the seals SHRINK, GROW and SEAL.
        8 fd: i32,
        /// Zero.
        12 reserved0: u32,
        /// Where the buffer starts in the file: a multiple of [`BUFFER_ALIGN`].
        16 offset: u64,
        /// Its bytes: a multiple of [`BUFFER_ALIGN`].
        24 len: u64,
        /// Answered: its name in tensors.
        32 buffer: u32,
        /// Answered: its generation.
        36 generation: u32,
        /// Zero.
        40 reserved: [u64; 3],
    }
}

wire! {
    /// BUF_RELEASE: gives a buffer up. Jobs that use it go on; its memory goes when they and the server are done.
    struct BufRelease("rustai_buf_release", 16) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// The buffer.
        8 buffer: u32,
        /// Its generation.
        12 generation: u32,
    }
}

wire! {
    /// SUBMIT: hands jobs over, then waits for completions if `wait` is not zero.
    struct Submit("rustai_submit", 64) {
        /// Bytes of the struct.
        0 size: u32,
        /// [`op_flag::DEADLINE`].
        4 flags: u32,
        /// Address of the jobs in the caller's memory.
        8 jobs: u64,
        /// How many, at most [`MAX_BATCH`].
        16 count: u32,
        /// Index of the first completion that the caller has not read.
        20 head: u32,
        /// Wait until this many completions are unread.
        24 wait: u32,
        /// Answered: jobs admitted.
        28 admitted: u32,
        /// Bound of the wait: absolute time of `CLOCK_MONOTONIC`.
        32 deadline_ns: u64,
        /// Answered: sequence number of the first admitted job.
        40 first_seq: u64,
        /// Answered, if jobs were admitted: why it stopped before all was done (an error number), or 0.
        48 error: u32,
        /// Answered: the ring's tail.
        52 tail: u32,
        /// Zero.
        56 reserved: u64,
    }
}

wire! {
    /// SUBMIT of one job as an io_uring command: what lies in the submission entry's command area. `cmd_op` is the ioctl
    /// number of SUBMIT; the entry of the io_uring completion queue is the job's completion, and holds its result. The
    /// job takes no place in the completion ring, and its progress is not told.
    struct UringSubmit("rustai_uring_submit", 16) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// Address of the job in the caller's memory.
        8 job: u64,
    }
}

wire! {
    /// WAIT: waits until completions are unread.
    struct Wait("rustai_wait", 32) {
        /// Bytes of the struct.
        0 size: u32,
        /// [`op_flag::DEADLINE`].
        4 flags: u32,
        /// Index of the first completion that the caller has not read.
        8 head: u32,
        /// Wait until this many are unread; 0 only tells `head`.
        12 wait: u32,
        /// Bound of the wait: absolute time of `CLOCK_MONOTONIC`.
        16 deadline_ns: u64,
        /// Answered: the ring's tail.
        24 tail: u32,
        /// Zero.
        28 reserved: u32,
    }
}

wire! {
    /// CANCEL: completes jobs with `ECANCELED`.
    struct Cancel("rustai_cancel", 48) {
        /// Bytes of the struct.
        0 size: u32,
        /// One of [`op_flag::BY_USER_DATA`], [`op_flag::BY_SESSION`], [`op_flag::ALL`]; perhaps [`op_flag::SETTLE`],
        /// [`op_flag::DEADLINE`].
        4 flags: u32,
        /// See `flags`.
        8 user_data: u64,
        /// See `flags`.
        16 session: u32,
        /// The session's epoch.
        20 session_epoch: u32,
        /// Bound of the wait: absolute time of `CLOCK_MONOTONIC`.
        24 deadline_ns: u64,
        /// Answered: jobs that this call canceled.
        32 canceled: u32,
        /// Zero.
        36 reserved0: u32,
        /// Zero.
        40 reserved: u64,
    }
}

wire! {
    /// EVENTFD: signals an eventfd at each completion.
    struct EventFd("rustai_eventfd", 16) {
        /// Bytes of the struct.
        0 size: u32,
        /// [`op_flag::REMOVE`].
        4 flags: u32,
        /// The eventfd.
        8 fd: i32,
        /// Zero.
        12 reserved: u32,
    }
}

wire! {
    /// LIMITS: the context's own limits. Raising one needs `CAP_SYS_RESOURCE`.
    struct Limits("rustai_limits", 48) {
        /// Bytes of the struct.
        0 size: u32,
        /// [`op_flag::SET`].
        4 flags: u32,
        /// Jobs in flight.
        8 max_jobs: u32,
        /// Buffers.
        12 max_buffers: u32,
        /// Registered bytes.
        16 max_bytes: u64,
        /// Highest class of jobs.
        24 class_cap: u32,
        /// Share beside other contexts of the same class, 1 to 1000.
        28 weight: u32,
        /// Zero.
        32 reserved: [u64; 2],
    }
}

wire! {
    /// STAT: the context's counters.
    struct Stat("rustai_stat", 128) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// Jobs admitted.
        8 admitted: u64,
        /// Jobs completed; `admitted - completed` are in flight.
        16 completed: u64,
        /// Completed with an error.
        24 failed: u64,
        /// Completed because they were canceled.
        32 canceled: u64,
        /// Completed because their deadline passed.
        40 timed_out: u64,
        /// Queued again after a death of the server.
        48 reissued: u64,
        /// Progress entries written or brought up to date.
        56 progress: u64,
        /// SUBMITs refused for lack of room or quota.
        64 refused: u64,
        /// Registered bytes.
        72 bytes: u64,
        /// Registered buffers.
        80 buffers: u32,
        /// Jobs that wait for another.
        84 waiting: u32,
        /// Jobs that wait for the server.
        88 queued: u32,
        /// Jobs that the server has.
        92 running: u32,
        /// Payload bytes that the queue copied: it has no code that would, so this stays 0.
        96 queue_copied: u64,
        /// Payload bytes that the server says it copied.
        104 server_copied: u64,
        /// Zero.
        112 reserved: [u64; 2],
    }
}

wire! {
    /// ATTACH: becomes the server.
    struct Attach("rustai_attach", 64) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// The major version that the caller speaks.
        8 major: u16,
        /// The minor version that the caller speaks.
        10 minor: u16,
        /// Answered: the server's epoch.
        12 epoch: u32,
        /// Features that the caller cannot do without.
        16 features: u64,
        /// Bit n: answers opcode n.
        24 opcodes: u64,
        /// Zero.
        32 reserved: [u64; 4],
    }
}

wire! {
    /// FETCH: takes jobs and notices, each a [`Record`].
    struct Fetch("rustai_fetch", 64) {
        /// Bytes of the struct.
        0 size: u32,
        /// [`op_flag::DEADLINE`], [`op_flag::NO_WAIT`].
        4 flags: u32,
        /// Address where records go.
        8 records: u64,
        /// Bytes there.
        16 len: u32,
        /// Records, at most.
        20 max: u32,
        /// Bound of the wait: absolute time of `CLOCK_MONOTONIC`.
        24 deadline_ns: u64,
        /// Answered: records written.
        32 count: u32,
        /// Answered: bytes written.
        36 used: u32,
        /// Zero.
        40 reserved: [u64; 3],
    }
}

wire! {
    /// One fetched thing. `size` covers what follows the record.
    struct Record("rustai_record", 64) {
        /// Bytes of the record with what follows it.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// [`record`].
        8 kind: u32,
        /// JOB, CANCEL: names the job in PROGRESS and COMMIT, with `generation`.
        12 slot: u32,
        /// See `slot`.
        16 generation: u32,
        /// The client, with `context_generation`.
        20 context: u32,
        /// See `context`.
        24 context_generation: u32,
        /// The client's user.
        28 uid: u32,
        /// JOB: its sequence number.
        32 seq: u64,
        /// GONE: the buffer.
        40 buffer: u32,
        /// GONE: its generation.
        44 buffer_generation: u32,
        /// Zero.
        48 reserved: [u64; 2],
    }
}

wire! {
    /// BUF_MAP: asks for a descriptor of a client's buffer.
    struct BufMap("rustai_buf_map", 64) {
        /// Bytes of the struct.
        0 size: u32,
        /// Answered: [`op_flag::MAPPED_RW`].
        4 flags: u32,
        /// The client.
        8 context: u32,
        /// Its generation.
        12 context_generation: u32,
        /// The buffer.
        16 buffer: u32,
        /// Its generation.
        20 generation: u32,
        /// Answered: where the buffer starts in the file.
        24 offset: u64,
        /// Answered: its bytes.
        32 len: u64,
        /// Answered: the descriptor.
        40 fd: i32,
        /// Zero.
        44 reserved0: u32,
        /// Zero.
        48 reserved: [u64; 2],
    }
}

wire! {
    /// PROGRESS: tells the client how much of the output is ready.
    struct Progress("rustai_progress", 24) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// The job.
        8 slot: u32,
        /// Its generation.
        12 generation: u32,
        /// As in [`Completion`].
        16 count: u32,
        /// Zero.
        20 reserved: u32,
    }
}

wire! {
    /// COMMIT: completes jobs.
    struct Commit("rustai_commit", 32) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// Address of `count` structs of [`Outcome`].
        8 outcomes: u64,
        /// How many, at most [`MAX_BATCH`].
        16 count: u32,
        /// Answered: how many were taken.
        20 done: u32,
        /// Answered, if some were taken: why the next was not (an error number), or 0.
        24 error: u32,
        /// Zero.
        28 reserved: u32,
    }
}

wire! {
    /// The result of one job in COMMIT.
    struct Outcome("rustai_outcome", 32) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// The job.
        8 slot: u32,
        /// Its generation.
        12 generation: u32,
        /// As in [`Completion`].
        16 result: i32,
        /// As in [`Completion`].
        20 count: u32,
        /// Payload bytes that the server copied for it.
        24 copied: u64,
    }
}

wire! {
    /// ACK: the server no longer touches a buffer that is GONE.
    struct Ack("rustai_ack", 24) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
        /// The client.
        8 context: u32,
        /// Its generation.
        12 context_generation: u32,
        /// The buffer.
        16 buffer: u32,
        /// Its generation.
        20 generation: u32,
    }
}

wire! {
    /// DETACH: the server goes in an orderly way; policies apply as at its death.
    struct Detach("rustai_detach", 8) {
        /// Bytes of the struct.
        0 size: u32,
        /// Zero.
        4 flags: u32,
    }
}

/// Bytes of the largest record that FETCH writes.
pub const MAX_RECORD: usize = Record::SIZE + Job::SIZE + MAX_TENSORS * Tensor::SIZE;

impl Completion {
    /// The final entry of a job that failed.
    pub fn failure(user_data: u64, seq: u64, why: super::Errno, flags: u32) -> Self {
        Self { user_data, seq, flags, result: -why.raw(), ..Self::new() }
    }
}
