//! A client and a server, as thin as can be: every call of the interface is visible in the tests.

use crate::sys::*;
use rustai_abi::queue::*;
use std::{cell::Cell, os::fd::AsRawFd};

/// Bytes of a buffer's smallest range.
pub const PAGE: u64 = BUFFER_ALIGN;

/// A client that is set up, with its ring mapped.
pub struct Client {
    /// Its node.
    pub device: Device,
    /// Its completion ring.
    pub ring: Map,
    entries: u32,
    head: Cell<u32>,
}

/// A SETUP that is right.
pub fn setup(entries: u32, policy: u32) -> Setup {
    Setup { major: ABI_MAJOR, entries, policy, ..Setup::new() }
}

impl Client {
    /// Opens, sets up and maps.
    pub fn new(entries: u32, policy: u32) -> Self {
        Self::on(Device::client().unwrap(), entries, policy)
    }

    /// Sets up and maps.
    pub fn on(device: Device, entries: u32, policy: u32) -> Self {
        let mut ask = setup(entries, policy);
        device.call(op::SETUP, &mut ask).unwrap();
        let ring = Map::new(device.fd(), ask.ring_offset, ask.ring_bytes as usize, libc::PROT_READ).unwrap();
        let header: RingHeader = ring.read(0);
        assert_eq!((header.size, header.entries), (64, entries));
        Self { device, ring, entries, head: Cell::new(0) }
    }

    /// The first entry that was not read.
    pub fn head(&self) -> u32 {
        self.head.get()
    }

    /// Registers the whole of a memory.
    pub fn register(&self, memory: &Memory, writable: bool) -> Sys<BufferName> {
        let flags = if writable { op_flag::BUF_RW } else { 0 };
        let len = memory.map.len() as u64;
        let mut ask = BufRegister { flags, fd: memory.fd.as_raw_fd(), len, ..BufRegister::new() };
        self.device.call(op::BUF_REGISTER, &mut ask)?;
        Ok(BufferName { buffer: ask.buffer, generation: ask.generation })
    }

    /// Releases a buffer.
    pub fn release(&self, name: BufferName) -> Sys<()> {
        let mut ask = BufRelease { buffer: name.buffer, generation: name.generation, ..BufRelease::new() };
        self.device.call(op::BUF_RELEASE, &mut ask)
    }

    /// SUBMIT, without waiting.
    pub fn submit(&self, jobs: &[Job]) -> Sys<Submit> {
        let mut ask =
            Submit { jobs: jobs.as_ptr() as u64, count: jobs.len() as u32, head: self.head.get(), ..Submit::new() };
        self.device.call(op::SUBMIT, &mut ask)?;
        Ok(ask)
    }

    /// SUBMIT of one job that must be admitted: its sequence number.
    pub fn admit(&self, job: &Job) -> u64 {
        let answer = self.submit(std::slice::from_ref(job)).unwrap();
        assert_eq!((answer.admitted, answer.error), (1, 0));
        answer.first_seq
    }

    /// WAIT for `count` completions, for some milliseconds.
    pub fn wait(&self, count: u32, ms: u64) -> Sys<()> {
        let flags = op_flag::DEADLINE;
        let mut ask = Wait { flags, head: self.head.get(), wait: count, deadline_ns: in_ms(ms), ..Wait::new() };
        self.device.call(op::WAIT, &mut ask)
    }

    /// The next completion that lies in the ring, without a system call.
    pub fn next(&self) -> Option<Completion> {
        let (head, tail) = (self.head.get(), self.ring.word(12));
        if head == tail {
            return None;
        }
        assert!(tail.wrapping_sub(head) <= self.entries, "more is unread than there are places");
        let entry: Completion = self.ring.read(RING_ENTRIES_OFFSET + 32 * (head & (self.entries - 1)) as usize);
        assert_eq!(entry.size, 32);
        self.head.set(head.wrapping_add(1));
        Some(entry)
    }

    /// Waits for the next completion.
    pub fn completion(&self) -> Completion {
        if self.ring.word(12) == self.head.get() {
            self.wait(1, 20_000).expect("a completion within 20 s");
        }
        self.next().unwrap()
    }

    /// The result of the next completion, which must be that of `user_data`.
    pub fn result(&self, user_data: u64) -> i32 {
        let entry = self.completion();
        assert_eq!(entry.user_data, user_data);
        entry.result
    }

    /// The results of the next completions, which must be those of these jobs, in any order.
    pub fn results(&self, user_data: &[u64]) -> Vec<i32> {
        let mut all: Vec<_> = user_data.iter().map(|_| self.completion()).collect();
        all.sort_by_key(|entry| entry.user_data);
        assert!(all.iter().map(|entry| &entry.user_data).eq(user_data));
        all.iter().map(|entry| entry.result).collect()
    }

    /// CANCEL of all jobs: how many.
    pub fn cancel_all(&self) -> u32 {
        let mut ask = Cancel { flags: op_flag::ALL, ..Cancel::new() };
        self.device.call(op::CANCEL, &mut ask).unwrap();
        ask.canceled
    }

    /// STAT.
    pub fn stat(&self) -> Stat {
        let mut stat = Stat::new();
        self.device.call(op::STAT, &mut stat).unwrap();
        assert_eq!(stat.admitted, stat.completed + u64::from(stat.waiting + stat.queued + stat.running));
        stat
    }

    /// LIMITS that are told.
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::new();
        self.device.call(op::LIMITS, &mut limits).unwrap();
        limits
    }

    /// LIMITS that are set.
    pub fn set_limits(&self, change: impl FnOnce(&mut Limits)) -> Sys<()> {
        let mut limits = Limits { flags: op_flag::SET, ..self.limits() };
        change(&mut limits);
        self.device.call(op::LIMITS, &mut limits)
    }
}

/// A client with a small ring and the usual policy.
pub fn ready() -> Client {
    Client::new(8, policy::HOLD)
}

/// A job that does nothing.
pub fn nop(user_data: u64) -> Job {
    Job { user_data, sched_class: class::NORMAL, ..Job::new() }
}

/// A job with tensors; they must outlive the call that submits it.
pub fn job(user_data: u64, opcode: u16, tensors: &[Tensor]) -> Job {
    Job { opcode, tensor_count: tensors.len() as u32, tensors: tensors.as_ptr() as u64, ..nop(user_data) }
}

/// `count` floats at `offset` of a buffer.
pub fn floats(name: BufferName, offset: u64, count: u64, flags: u32) -> Tensor {
    let (buffer, generation, byte_len) = (name.buffer, name.generation, 4 * count);
    Tensor { buffer, generation, flags, offset, byte_len, ndim: 1, dims: [count, 0, 0, 0, 0, 0], ..Tensor::new() }
}

/// What a server fetched.
#[derive(Clone, Debug)]
pub enum Taken {
    /// A job.
    Job(Record, Job, Vec<Tensor>),
    /// A job was canceled.
    Cancel(Record),
    /// A buffer is gone.
    Gone(Record),
}

/// The server.
pub struct Server {
    /// Its node.
    pub device: Device,
    /// Its epoch.
    pub epoch: u32,
}

/// An ATTACH that is right.
pub fn attach() -> Attach {
    Attach { major: ABI_MAJOR, opcodes: (1 << opcode::COUNT) - 1, ..Attach::new() }
}

impl Server {
    /// Opens and attaches.
    pub fn new() -> Self {
        Self::try_new().unwrap()
    }

    /// Opens and attaches, unless someone else is attached.
    pub fn try_new() -> Sys<Self> {
        let device = Device::engine()?;
        let mut ask = attach();
        device.call(op::ATTACH, &mut ask)?;
        Ok(Self { device, epoch: ask.epoch })
    }

    /// FETCH of up to `max` records into `len` bytes, within some milliseconds.
    pub fn fetch_into(&self, max: u32, len: usize, ms: u64) -> Sys<Vec<Taken>> {
        let mut bytes = vec![0u8; len];
        let mut ask = Fetch {
            flags: op_flag::DEADLINE,
            records: bytes.as_mut_ptr() as u64,
            len: len as u32,
            max,
            deadline_ns: in_ms(ms),
            ..Fetch::new()
        };
        self.device.call(op::FETCH, &mut ask)?;
        let (mut taken, mut at) = (Vec::new(), 0);
        for _ in 0..ask.count {
            let record = Record::read(&bytes[at..]).unwrap();
            taken.push(match record.kind {
                record::JOB => {
                    let job = Job::read(&bytes[at + Record::SIZE..]).unwrap();
                    assert_eq!(job.tensors, 0, "an address of the client's is nobody's business");
                    let tensors = bytes[at + Record::SIZE + Job::SIZE..at + record.size as usize]
                        .chunks_exact(Tensor::SIZE)
                        .map(|bytes| Tensor::read(bytes).unwrap())
                        .collect();
                    Taken::Job(record, job, tensors)
                }
                record::CANCEL => Taken::Cancel(record),
                record::GONE => Taken::Gone(record),
                other => panic!("a record of kind {other}"),
            });
            at += record.size as usize;
        }
        assert_eq!(at, ask.used as usize);
        Ok(taken)
    }

    /// FETCH of one record.
    pub fn fetch(&self) -> Taken {
        self.fetch_into(1, MAX_RECORD, 20_000).expect("a record within 20 s").remove(0)
    }

    /// FETCH of one job.
    pub fn job(&self) -> (Record, Job, Vec<Tensor>) {
        match self.fetch() {
            Taken::Job(record, job, tensors) => (record, job, tensors),
            other => panic!("{other:?} instead of a job"),
        }
    }

    /// Whether nothing is there to fetch.
    pub fn is_idle(&self) -> bool {
        match self.fetch_into(1, MAX_RECORD, 0) {
            Err(libc::ETIME) => true,
            Err(errno) => panic!("errno {errno}"),
            Ok(_) => false,
        }
    }

    /// COMMIT of one job.
    pub fn commit(&self, record: &Record, result: i32) -> Sys<()> {
        self.commit_all(&[outcome(record, result)]).map(|answer| assert_eq!((answer.done, answer.error), (1, 0)))
    }

    /// COMMIT of several.
    pub fn commit_all(&self, outcomes: &[Outcome]) -> Sys<Commit> {
        let mut ask = Commit { outcomes: outcomes.as_ptr() as u64, count: outcomes.len() as u32, ..Commit::new() };
        self.device.call(op::COMMIT, &mut ask)?;
        Ok(ask)
    }

    /// PROGRESS.
    pub fn progress(&self, record: &Record, count: u32) -> Sys<()> {
        let mut ask = Progress { slot: record.slot, generation: record.generation, count, ..Progress::new() };
        self.device.call(op::PROGRESS, &mut ask)
    }

    /// BUF_MAP.
    pub fn map_buffer(&self, record: &Record, name: BufferName) -> Sys<BufMap> {
        let mut ask = BufMap {
            context: record.context,
            context_generation: record.context_generation,
            buffer: name.buffer,
            generation: name.generation,
            ..BufMap::new()
        };
        self.device.call(op::BUF_MAP, &mut ask)?;
        Ok(ask)
    }

    /// BUF_MAP and a mapping of the buffer.
    pub fn memory(&self, record: &Record, name: BufferName) -> Sys<Map> {
        let answer = self.map_buffer(record, name)?;
        let writable = answer.flags & op_flag::MAPPED_RW != 0;
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        let map = Map::new(answer.fd, answer.offset, answer.len as usize, protection);
        close(answer.fd);
        map
    }

    /// ACK of a buffer that is gone.
    pub fn ack(&self, record: &Record) -> Sys<()> {
        let mut ask = Ack {
            context: record.context,
            context_generation: record.context_generation,
            buffer: record.buffer,
            generation: record.buffer_generation,
            ..Ack::new()
        };
        self.device.call(op::ACK, &mut ask)
    }

    /// DETACH.
    pub fn detach(&self) -> Sys<()> {
        self.device.call(op::DETACH, &mut Detach::new())
    }

    /// Answers what comes within some milliseconds: the second tensor of a job becomes twice the first, and the result
    /// is the job's first parameter. False if nothing came.
    pub fn serve(&self, ms: u64) -> bool {
        let Ok(all) = self.fetch_into(32, 32 * MAX_RECORD, ms) else { return false };
        for taken in all {
            match taken {
                Taken::Job(record, job, tensors) => {
                    let result = match &tensors[..] {
                        [from, to] => {
                            self.double(&record, from, to).map_or_else(|errno| -errno, |()| job.params[0] as i32)
                        }
                        _ => job.params[0] as i32,
                    };
                    // A job may have been canceled meanwhile.
                    let _ = self.commit(&record, result);
                }
                Taken::Cancel(record) => {
                    // Its job came before, so it was committed: the ticket is stale.
                    assert!(self.commit(&record, 0).is_err());
                }
                Taken::Gone(record) => self.ack(&record).unwrap(),
            }
        }
        true
    }

    fn double(&self, record: &Record, from: &Tensor, to: &Tensor) -> Sys<()> {
        let name = |t: &Tensor| BufferName { buffer: t.buffer, generation: t.generation };
        // The client may have gone, and its buffers with it.
        let (input, output) = (self.memory(record, name(from))?, self.memory(record, name(to))?);
        let mut bytes = vec![0; from.byte_len as usize];
        input.copy_out(from.offset as usize, &mut bytes);
        for value in bytes.chunks_exact_mut(4) {
            let double = 2.0 * f32::from_ne_bytes(value.try_into().unwrap());
            value.copy_from_slice(&double.to_ne_bytes());
        }
        output.copy_in(to.offset as usize, &bytes);
        Ok(())
    }
}

/// The outcome of a fetched job.
pub fn outcome(record: &Record, result: i32) -> Outcome {
    Outcome { slot: record.slot, generation: record.generation, result, ..Outcome::new() }
}

/// A server in a child process that answers until it is killed, once it is attached.
pub fn serving() -> Child {
    let (ready, tell) = pipe();
    let child = Child::run(move || {
        let server = loop {
            match Server::try_new() {
                Ok(server) => break server,
                // The last one has been killed and is not quite gone.
                Err(libc::EBUSY) => sleep_ms(1),
                Err(errno) => panic!("errno {errno}"),
            }
        };
        drop(tell);
        loop {
            server.serve(1000);
        }
    });
    // The writing end of this process went with the closure.
    poll(ready.as_raw_fd(), libc::POLLIN, 20_000);
    child
}

/// What the module says of itself, in `debugfs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report(String);

impl Report {
    /// At this moment.
    pub fn now() -> Self {
        Self(std::fs::read_to_string("/sys/kernel/debug/rustai/queue").unwrap())
    }

    /// A line's value.
    pub fn get(&self, name: &str) -> &str {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    /// A line's number.
    pub fn number(&self, name: &str) -> u32 {
        self.get(name).parse().unwrap()
    }

    /// Whether nothing is in use and the invariants hold.
    pub fn is_empty(&self) -> bool {
        let used = ["server", "contexts", "in flight", "abandoned", "buffers", "mapped", "files", "rings", "commands"];
        used.iter().all(|name| self.number(name) == 0) && self.get("audit") == "ok"
    }

    /// Waits until `is` holds: what a dead process leaves goes a little later.
    pub fn until(what: &str, is: impl Fn(&Self) -> bool) -> Self {
        let end = in_ms(10_000);
        loop {
            let report = Self::now();
            assert_eq!(report.get("audit"), "ok");
            if is(&report) {
                return report;
            }
            assert!(now_ns() < end, "not {what} after 10 s:\n{}", report.0);
            sleep_ms(5);
        }
    }
}
