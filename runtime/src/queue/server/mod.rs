//! The server: takes jobs from the queue and answers them with an [`Engine`].
//!
//! | file | holds |
//! |---|---|
//! | `work` | one fetched job: its tensors, found and checked |
//! | `run` | what each opcode does |
//! | `matmul` | products, on a thread of their own |
//! | `stream` | answers that come in parts, and jobs that wait |
//! | `maps` | clients' buffers, mapped once |
//! | `sessions` | what jobs leave for later ones |
//!
//! Quick jobs run on the thread that fetched them, which over a socket is the one that received them; the others run on the
//! engine's thread or one of this module's, and commit themselves. Values that decide an address or a length (tokens) are
//! copied and checked before use; all other tensors are read and written in place.
//!
//! Lock order: none of this module's locks is held while another is taken, or while the queue is called.

mod maps;
mod matmul;
mod run;
mod sessions;
mod stream;
mod work;

use super::{
    QueueError,
    engine_side::{EngineSide, Helper, Patience},
};
use crate::{CancelHandle, Engine};
use maps::Maps;
use matmul::Product;
use rustai_abi::queue::{
    ABI_MAJOR, ABI_MINOR, Ack, Attach, Errno, Job, MAX_RECORD, MAX_TENSORS, Outcome, Record, Tensor, Ticket, Wire, op,
    opcode, record,
};
use sessions::Sessions;
use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use stream::Event;
use work::Work;

/// How a server works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// Threads of a MATMUL; 0 means one per core.
    pub threads: usize,
    /// Lets ECHO end this process, for tests.
    pub allow_crash: bool,
    /// Lets threads that submit run quick jobs themselves, where the queue is in this process. Off, each job waits for the
    /// server's own thread.
    pub help: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { threads: 0, allow_crash: false, help: true }
    }
}

/// A running server. Dropping it detaches from the queue: by each client's policy, jobs fail or wait for the next server.
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Counters of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStat {
    /// Jobs that it took.
    pub jobs: u64,
    /// Payload bytes that it copied.
    pub copied: u64,
    /// Buffers that it has mapped.
    pub mapped: usize,
    /// Sessions that are open.
    pub sessions: usize,
}

/// What the server's threads share.
struct Shared {
    side: Arc<dyn EngineSide>,
    engine: Option<Engine>,
    options: ServerOptions,
    epoch: u32,
    maps: Maps,
    sessions: Sessions,
    running: Mutex<Running>,
    events: mpsc::Sender<Event>,
    products: mpsc::Sender<Product>,
    stopping: AtomicBool,
    jobs: AtomicU64,
    copied: AtomicU64,
}

/// Jobs that run on other threads, so that they can be cancelled.
#[derive(Default)]
struct Running {
    cancels: HashMap<Ticket, CancelHandle>,
    /// Cancels that overtook their jobs, the latest last.
    early: VecDeque<Ticket>,
}

/// How many cancels that nobody has asked for are kept.
const EARLY_CANCELS: usize = 256;
/// Bytes that one FETCH takes at most.
const FETCH_BYTES: usize = 64 << 10;
const _: () = assert!(FETCH_BYTES >= MAX_RECORD);
/// How long a server that goes waits for the engine to end a step.
const LONGEST_STEP: Duration = Duration::from_secs(10);
/// Records that one FETCH takes at most.
const FETCH_RECORDS: u32 = 256;

/// Opcodes that need no model.
const WITHOUT_MODEL: u64 = 1 << opcode::NOP | 1 << opcode::ECHO | 1 << opcode::MATMUL;
/// Opcodes that need one. RERANK is not among them: it needs a model that scores pairs of texts, which no architecture that
/// can be loaded is.
const WITH_MODEL: u64 = 1 << opcode::TOKENIZE
    | 1 << opcode::EMBED
    | 1 << opcode::LOGITS
    | 1 << opcode::GENERATE
    | 1 << opcode::SESSION_OPEN
    | 1 << opcode::SESSION_CLOSE;

impl Server {
    /// Becomes the server of a queue. Without an engine it answers NOP, ECHO and MATMUL only.
    ///
    /// # Errors
    /// `EBUSY` if the queue has a server, `EPROTO` if the versions differ; [`QueueError::System`] if no thread starts.
    pub fn start(
        side: Arc<dyn EngineSide>,
        engine: Option<Engine>,
        options: ServerOptions,
    ) -> Result<Self, QueueError> {
        let opcodes = WITHOUT_MODEL | if engine.is_some() { WITH_MODEL } else { 0 };
        let ask = Attach { major: ABI_MAJOR, minor: ABI_MINOR, opcodes, ..Attach::new() };
        let attached = side.attach(&ask).map_err(QueueError::refused(op::ATTACH))?;
        tracing::info!(epoch = attached.epoch, model = engine.is_some(), "attached to the queue as its server");
        let (events, received) = mpsc::channel();
        let (products, ordered) = mpsc::channel();
        let shared = Arc::new(Shared {
            side,
            engine,
            options,
            epoch: attached.epoch,
            maps: Maps::default(),
            sessions: Sessions::default(),
            running: Mutex::default(),
            events,
            products,
            stopping: AtomicBool::new(false),
            jobs: AtomicU64::new(0),
            copied: AtomicU64::new(0),
        });
        let mut this = Self { shared: shared.clone(), threads: Vec::new() };
        let streams = stream::Streams::new(shared.clone());
        this.spawn("rustai-queue-stream", move || streams.run(&received))?;
        let products = shared.clone();
        this.spawn("rustai-queue-matmul", move || matmul::run(&products, &ordered))?;
        let fetcher = shared.clone();
        this.spawn("rustai-queue-fetch", move || fetcher.fetch_until_gone())?;
        if options.help {
            shared.side.set_helper(Arc::new(Weakly(Arc::downgrade(&shared))));
        }
        Ok(this)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), QueueError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        self.threads.push(thread.map_err(QueueError::system("a thread of the server"))?);
        Ok(())
    }

    /// Counters.
    pub fn stat(&self) -> ServerStat {
        let shared = &self.shared;
        ServerStat {
            jobs: shared.jobs.load(Ordering::Relaxed),
            copied: shared.copied.load(Ordering::Relaxed),
            mapped: shared.maps.len(),
            sessions: shared.sessions.len(),
        }
    }

    /// Whether it still is the queue's server.
    pub fn is_attached(&self) -> bool {
        !self.shared.stopping.load(Ordering::Acquire)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // From here on nothing is committed: what becomes of the jobs is the clients' policy.
        self.shared.stopping.store(true, Ordering::Release);
        // No kernel may touch the clients' memory once they are told that the server is gone.
        let until = Instant::now() + LONGEST_STEP;
        loop {
            let running = self.shared.running();
            if running.cancels.is_empty() || Instant::now() > until {
                break;
            }
            running.cancels.values().for_each(CancelHandle::cancel);
            drop(running);
            std::thread::sleep(Duration::from_millis(1));
        }
        // Ends a FETCH that waits, too.
        let _ = self.shared.side.detach();
        let _ = self.shared.events.send(Event::Stop);
        let _ = self.shared.products.send(Product::Stop);
        for thread in self.threads.drain(..) {
            // The threads do not panic; there is nothing to learn.
            let _ = thread.join();
        }
    }
}

/// The helper does not keep the server alive.
struct Weakly(std::sync::Weak<Shared>);

impl Helper for Weakly {
    fn help(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.fetch_all();
        }
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's own thread.
    fn fetch_until_gone(self: &Arc<Self>) {
        let mut records = vec![0; FETCH_BYTES];
        while !self.stopping.load(Ordering::Acquire) {
            // Looks up now and then: a device does not wake those that wait when they detach.
            let patience = Patience::Until(super::clock::deadline(Duration::from_millis(500)));
            match self.side.fetch(&mut records, FETCH_RECORDS, patience) {
                Ok((_, used)) => self.handle(&records[..used]),
                Err(Errno::ETIME | Errno::EINTR) => {}
                Err(errno) => {
                    if !self.stopping.swap(true, Ordering::AcqRel) {
                        tracing::error!(%errno, "the queue gives no more work; the server stops");
                    }
                    return;
                }
            }
        }
    }

    /// All that there is to do now, on the calling thread.
    fn fetch_all(self: &Arc<Self>) {
        thread_local! {
            static RECORDS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        RECORDS.with_borrow_mut(|records| {
            records.resize(FETCH_BYTES, 0);
            while let Ok((count, used)) = self.side.fetch(records, FETCH_RECORDS, Patience::None) {
                if count == 0 {
                    return;
                }
                self.handle(&records[..used]);
            }
        });
    }

    /// Runs what was fetched. Results of quick jobs are committed together.
    fn handle(self: &Arc<Self>, mut records: &[u8]) {
        let mut outcomes = Vec::new();
        while let Some(head) = Record::read(records) {
            let size = (head.size as usize).clamp(Record::SIZE, records.len());
            let body = &records[Record::SIZE..size];
            records = &records[size..];
            match head.kind {
                record::JOB => outcomes.extend(self.take(&head, body)),
                record::CANCEL => self.cancel(Ticket { slot: head.slot, generation: head.generation }),
                record::GONE => self.let_go(&head),
                kind => tracing::error!(kind, "the queue gave a record of an unknown kind"),
            }
        }
        self.commit(&outcomes);
    }

    /// Starts a job; its outcome, if it is done already.
    fn take(self: &Arc<Self>, head: &Record, body: &[u8]) -> Option<Outcome> {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket { slot: head.slot, generation: head.generation };
        let job = Job::read(body)?;
        let tensors = body[Job::SIZE..].chunks_exact(Tensor::SIZE).take(MAX_TENSORS).filter_map(Tensor::read);
        let tensors: Vec<Tensor> = tensors.collect();
        let work = Work { shared: self, head, ticket, job: &job, tensors: &tensors };
        match work.run() {
            Ok(outcome) => outcome,
            Err(errno) => Some(outcome_of(ticket, Err(errno))),
        }
    }

    /// A job was canceled or timed out. Whoever runs it commits it as usual.
    fn cancel(&self, ticket: Ticket) {
        let mut running = self.running();
        match running.cancels.get(&ticket) {
            Some(cancel) => cancel.cancel(),
            None => {
                running.early.truncate(EARLY_CANCELS);
                running.early.push_front(ticket);
            }
        }
        drop(running);
        let _ = self.events.send(Event::Cancel(ticket));
    }

    /// Notes that a job runs elsewhere under this handle, which may be cancelled already.
    fn started(&self, ticket: Ticket, cancel: CancelHandle) {
        let mut running = self.running();
        if let Some(at) = running.early.iter().position(|early| *early == ticket) {
            running.early.remove(at);
            cancel.cancel();
        }
        running.cancels.insert(ticket, cancel);
    }

    /// The end of a job that ran elsewhere.
    fn finish(&self, ticket: Ticket, result: Result<Done, Errno>) {
        self.running().cancels.remove(&ticket);
        self.commit(&[outcome_of(ticket, result)]);
    }

    /// A client gave a buffer up, and no job uses it.
    fn let_go(&self, head: &Record) {
        self.maps.remove(head);
        let ask = Ack {
            context: head.context,
            context_generation: head.context_generation,
            buffer: head.buffer,
            generation: head.buffer_generation,
            ..Ack::new()
        };
        if let Err(errno) = self.side.ack(&ask) {
            tracing::debug!(%errno, "a buffer could not be acknowledged");
        }
    }

    /// Completes jobs. One that was completed meanwhile (canceled, timed out) does not hold up those behind it.
    fn commit(&self, mut outcomes: &[Outcome]) {
        if self.stopping.load(Ordering::Acquire) {
            return;
        }
        let copied: u64 = outcomes.iter().map(|outcome| outcome.copied).sum();
        self.copied.fetch_add(copied, Ordering::Relaxed);
        while !outcomes.is_empty() {
            // COMMIT takes a limited number at once.
            let some = &outcomes[..outcomes.len().min(FETCH_RECORDS as usize)];
            match self.side.commit(some) {
                Ok(_) => outcomes = &outcomes[some.len()..],
                Err((done, errno)) => {
                    if !matches!(errno, Errno::EALREADY | Errno::ENOTCONN) {
                        tracing::warn!(%errno, "a result was refused");
                    }
                    outcomes = &outcomes[(done as usize + 1).min(outcomes.len())..];
                }
            }
        }
    }
}

/// What a job that succeeded leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Done {
    result: i32,
    count: u32,
    copied: u64,
}

fn outcome_of(ticket: Ticket, result: Result<Done, Errno>) -> Outcome {
    let named = Outcome { slot: ticket.slot, generation: ticket.generation, ..Outcome::new() };
    match result {
        Ok(Done { result, count, copied }) => Outcome { result, count, copied, ..named },
        Err(errno) => Outcome { result: -errno.raw(), ..named },
    }
}
