//! A queue with both of its ends in the test's hands.

use rustai::queue::{
    Broker, BrokerOptions, CharDev, DEVICE, ENGINE_DEVICE, EngineSide, Extra, Fault, InProcess, Listener,
    ListenerOptions, Patience, Socket, Transport, now_ns, open_engine_device,
};
use rustai_abi::queue::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

pub const PAGE: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    InProcess,
    Socket,
    Device,
}

/// There is one device, and it has one server.
static DEVICE_IS_MINE: Mutex<()> = Mutex::new(());

pub struct Rig {
    kind: Kind,
    pub side: Arc<dyn EngineSide>,
    broker: Option<Arc<Broker>>,
    listener: Option<Listener>,
    _folder: Option<tempfile::TempDir>,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Rig {
    pub fn new(kind: Kind) -> Result<Self, String> {
        Self::sized(kind, BrokerOptions::default())
    }

    pub fn sized(kind: Kind, options: BrokerOptions) -> Result<Self, String> {
        if kind == Kind::Device {
            if !Path::new(DEVICE).exists() {
                return Err(format!("there is no {DEVICE}: the module is not loaded"));
            }
            let turn = DEVICE_IS_MINE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let side = open_engine_device(Path::new(ENGINE_DEVICE)).map_err(|error| error.to_string())?;
            CharDev::open(Path::new(DEVICE)).map_err(|error| error.to_string())?;
            return Ok(Self { kind, side, broker: None, listener: None, _folder: None, _turn: Some(turn) });
        }
        let broker = Broker::new(options).unwrap();
        let (mut listener, mut folder) = (None, None);
        if kind == Kind::Socket {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("q");
            listener = Some(Listener::bind(&broker, &path, ListenerOptions::default()).unwrap());
            folder = Some(place);
        }
        Ok(Self { kind, side: broker.clone(), broker: Some(broker), listener, _folder: folder, _turn: None })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        self.listener.as_ref().expect("a socket").path()
    }

    /// A client before SETUP.
    pub fn transport(&self) -> Arc<dyn Transport> {
        match (&self.broker, &self.listener) {
            (_, Some(listener)) => Arc::new(Socket::connect(listener.path()).unwrap()),
            (Some(broker), None) => Arc::new(InProcess::open(broker).unwrap()),
            (None, None) => Arc::new(CharDev::open(Path::new(DEVICE)).unwrap()),
        }
    }

    pub fn open(&self) -> Raw {
        Raw { transport: self.transport(), ring: None, head: 0, entries: 0 }
    }

    /// A client with a ring of 8 places.
    pub fn ready(&self, policy: u32) -> Raw {
        let mut raw = self.open();
        raw.setup(8, policy).unwrap();
        raw
    }

    pub fn attach(&self) {
        self.side.attach(&attach()).unwrap();
    }

    /// A server learns of the end of a connection a little later; over the other ways a client is closed at once.
    pub fn waits_for_clients(&self, count: usize) {
        let Some(broker) = &self.broker else { return };
        let until = Instant::now() + Duration::from_secs(10);
        while broker.clients().len() != count {
            assert!(Instant::now() < until, "{} clients instead of {count}", broker.clients().len());
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Checks the queue's invariants, where they can be seen from here.
    pub fn audit(&self) {
        if let Some(broker) = &self.broker {
            broker.audit().unwrap();
        }
    }

    /// Fetches one record, which must come.
    pub fn fetch(&self) -> (Record, Option<Job>) {
        self.try_fetch(Duration::from_secs(10)).expect("something to fetch")
    }

    pub fn try_fetch(&self, patience: Duration) -> Option<(Record, Option<Job>)> {
        let mut out = [0; MAX_RECORD];
        let patience = Patience::Until(now_ns() + patience.as_nanos() as u64);
        match self.side.fetch(&mut out, 1, patience) {
            Ok((1, used)) => {
                let record = Record::read(&out).unwrap();
                assert_eq!(record.size as usize, used);
                Some((record, (record.kind == record::JOB).then(|| Job::read(&out[Record::SIZE..]).unwrap())))
            }
            Ok(other) => panic!("{other:?}"),
            Err(Errno::ETIME) => None,
            Err(errno) => panic!("{errno}"),
        }
    }

    /// Fetches the next job; notices are dealt with on the way.
    pub fn next_job(&self) -> (Ticket, Job) {
        loop {
            match self.fetch() {
                (record, Some(job)) => return (ticket(&record), job),
                (record, None) if record.kind == record::GONE => self.ack(&record),
                (record, None) => {
                    assert_eq!(record.kind, record::CANCEL);
                    let _ = self.side.commit(&[outcome(ticket(&record), -Errno::ECANCELED.raw())]);
                }
            }
        }
    }

    pub fn ack(&self, record: &Record) {
        let ask = Ack {
            context: record.context,
            context_generation: record.context_generation,
            buffer: record.buffer,
            generation: record.buffer_generation,
            ..Ack::new()
        };
        self.side.ack(&ask).unwrap();
    }

    /// Fetches the next job and commits it.
    pub fn serve(&self, result: i32) -> Job {
        let (ticket, job) = self.next_job();
        self.side.commit(&[outcome(ticket, result)]).unwrap();
        job
    }
}

pub fn attach() -> Attach {
    Attach { major: ABI_MAJOR, opcodes: (1 << opcode::COUNT) - 1, ..Attach::new() }
}

pub fn ticket(record: &Record) -> Ticket {
    Ticket { slot: record.slot, generation: record.generation }
}

pub fn outcome(ticket: Ticket, result: i32) -> Outcome {
    Outcome { slot: ticket.slot, generation: ticket.generation, result, ..Outcome::new() }
}

pub fn nop(user_data: u64) -> Job {
    Job { user_data, sched_class: class::NORMAL, ..Job::new() }
}

/// 32 x 2 floats at the start of a buffer.
pub fn tensor(name: BufferName) -> Tensor {
    Tensor {
        buffer: name.buffer,
        generation: name.generation,
        byte_len: 256,
        ndim: 2,
        dims: [32, 2, 0, 0, 0, 0],
        ..Tensor::new()
    }
}

pub fn memfd(len: u64, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, len).unwrap();
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

pub fn sealed(len: u64) -> OwnedFd {
    memfd(len, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
}

/// A client by its operations.
pub struct Raw {
    pub transport: Arc<dyn Transport>,
    ring: Option<rustai::queue::RingMap>,
    head: u32,
    entries: u32,
}

impl Raw {
    pub fn bytes(&self, op: u32, bytes: &mut [u8], extra: Extra<'_>) -> Result<(), Errno> {
        match self.transport.call(op, bytes, extra) {
            Ok(()) => Ok(()),
            Err(Fault::Errno(errno)) => Err(errno),
            Err(other) => panic!("{other:?}"),
        }
    }

    pub fn call<T: Wire>(&self, op: u32, ask: &T) -> Result<T, Errno> {
        self.call_with(op, ask, Extra::default())
    }

    pub fn call_with<T: Wire>(&self, op: u32, ask: &T, extra: Extra<'_>) -> Result<T, Errno> {
        let mut bytes = vec![0; T::SIZE];
        assert!(ask.write(&mut bytes));
        self.bytes(op, &mut bytes, extra)?;
        Ok(T::read(&bytes).unwrap())
    }

    pub fn setup(&mut self, entries: u32, policy: u32) -> Result<Setup, Errno> {
        let ask = Setup { major: ABI_MAJOR, entries, policy, ..Setup::new() };
        let answer = self.call(op::SETUP, &ask)?;
        self.ring = Some(self.transport.map_ring(&answer).unwrap_or_else(|fault| panic!("{fault:?}")));
        self.entries = entries;
        Ok(answer)
    }

    pub fn register(&self, fd: impl AsFd, offset: u64, len: u64, writable: bool) -> Result<BufferName, Errno> {
        let flags = if writable { op_flag::BUF_RW } else { 0 };
        let ask = BufRegister { flags, offset, len, ..BufRegister::new() };
        let extra = Extra { fd: Some(fd.as_fd()), ..Extra::default() };
        let answer = self.call_with(op::BUF_REGISTER, &ask, extra)?;
        Ok(BufferName { buffer: answer.buffer, generation: answer.generation })
    }

    pub fn buffer(&self, len: u64) -> BufferName {
        self.register(sealed(len), 0, len, true).unwrap()
    }

    pub fn release(&self, name: BufferName) -> Result<(), Errno> {
        let ask = BufRelease { buffer: name.buffer, generation: name.generation, ..BufRelease::new() };
        self.call(op::BUF_RELEASE, &ask).map(drop)
    }

    pub fn submit_all(&self, jobs: &[Job], tensors: &[Tensor]) -> Result<Submit, Errno> {
        let ask = Submit { count: jobs.len() as u32, head: self.head, ..Submit::new() };
        self.call_with(op::SUBMIT, &ask, Extra { jobs, tensors, fd: None })
    }

    pub fn submit(&self, job: Job, tensors: &[Tensor]) -> Result<u64, Errno> {
        let job = Job { tensor_count: tensors.len() as u32, ..job };
        let answer = self.submit_all(&[job], tensors)?;
        assert_eq!((answer.admitted, answer.error), (1, 0));
        Ok(answer.first_seq)
    }

    fn ring(&self) -> &rustai::queue::RingMap {
        self.ring.as_ref().expect("SETUP was done")
    }

    /// Entries that were not read yet, without telling that they are.
    pub fn unread(&self) -> u32 {
        self.ring().tail().wrapping_sub(self.head)
    }

    /// The next entry, which must come.
    pub fn next(&mut self) -> Completion {
        let until = Instant::now() + Duration::from_secs(10);
        while self.unread() == 0 {
            assert!(Instant::now() < until, "no completion");
            std::thread::sleep(Duration::from_micros(50));
        }
        let entry = self.ring().entry(self.head, self.entries);
        self.head = self.head.wrapping_add(1);
        entry
    }

    /// Tells how far the ring was read.
    pub fn tell(&self) -> Result<(), Errno> {
        self.call(op::WAIT, &Wait { head: self.head, ..Wait::new() }).map(drop)
    }

    pub fn stat(&self) -> Stat {
        self.call(op::STAT, &Stat::new()).unwrap()
    }

    pub fn cancel(&self, user_data: u64) -> u32 {
        let ask = Cancel { flags: op_flag::BY_USER_DATA, user_data, ..Cancel::new() };
        self.call(op::CANCEL, &ask).unwrap().canceled
    }
}
