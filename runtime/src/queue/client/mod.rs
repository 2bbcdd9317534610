//! A client of the queue: buffers, jobs, and their completions.
//!
//! Completions are read from the ring without a system call. One thread at a time sleeps on the completion eventfd for all
//! that wait (the leader); it deals out what came. A task that awaits is served by a thread that takes the lead when nobody
//! else does. [`Uring`] waits on an io_uring instead.

mod buffer;
mod job;
mod pending;
mod ring;
mod uring;

pub use buffer::{Buffer, Element, TensorView};
pub use job::{Class, GenerateParams, Job, Session};
pub use pending::{Pending, Update};
pub use uring::{Ended, Uring};

use super::{
    QueueError, clock,
    transport::{Choice, Extra, Fault, Transport, call, query},
};
use ring::{Entry, RingView};
use rustai_abi::queue::{
    ABI_MAJOR, ABI_MINOR, Cancel, Completion, Errno, EventFd, Limits, Query, Setup, Stat, Submit, Tensor, Wait, Wire,
    cqe_flag, feature, op, op_flag, policy,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
    time::Duration,
};

/// How a client is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Places of the completion ring, a power of two. A job takes one until it is read, a streaming one two.
    pub entries: u32,
    /// What happens to jobs when the server goes away.
    pub policy: Policy,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { entries: 1024, policy: Policy::Hold }
    }
}

/// What happens to a client's jobs when the server goes away. Over a socket the queue goes with it, and all jobs fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Policy {
    /// Queued jobs stay until the server is back or their deadline passes; running ones fail.
    #[default]
    Hold = policy::HOLD,
    /// Queued and running jobs fail.
    Fail = policy::FAIL,
    /// Queued jobs stay; running ones that may run twice are queued again.
    Reissue = policy::REISSUE,
}

/// A client. Cheap to clone; may be used from any thread. When the last clone and the last [`Buffer`] are gone, its jobs are
/// canceled and its buffers given back.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Arc<dyn Transport>,
    ring: RingView,
    eventfd: OwnedFd,
    hangs_up: Option<OwnedFd>,
    /// Held over each call that tells how far the ring was read, so that heads arrive in order. Taken before `state`.
    order: Mutex<()>,
    state: Mutex<State>,
    /// Somebody reaped, or gave up the lead.
    changed: Condvar,
    reactor: OnceLock<()>,
    /// The queue signals the eventfd.
    listens: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Index of the first completion that was not read.
    head: u32,
    /// The head that the queue knows.
    told: u32,
    jobs: HashMap<u64, Flight>,
    /// Somebody sleeps on the eventfd.
    led: bool,
    /// Threads that wait for the one that does. While there is none, waking them is a system call that is spared.
    followers: u32,
    /// The other side is gone, and with it all jobs.
    gone: bool,
    /// Places of progress entries that were read, but whose reading the queue does not know of yet.
    progress: Vec<Entry>,
}

/// What is known of a job.
#[derive(Default)]
struct Flight {
    progress: Option<u32>,
    done: Option<Completion>,
    waker: Option<Waker>,
    user_data: u64,
    /// Nobody wants to know any more.
    forgotten: bool,
}

impl Client {
    /// Opens the queue that `RUSTAI_TRANSPORT` names, else the device if it serves, else the default socket.
    ///
    /// # Errors
    /// [`QueueError::Open`] if there is no queue, [`QueueError::Version`] if it speaks another version.
    pub fn connect() -> Result<Self, QueueError> {
        Self::over(Choice::from_env()?.open()?, ClientOptions::default())
    }

    /// Sets up a client over a transport that is open.
    ///
    /// # Errors
    /// If the queue refuses: `EINVAL` or `E2BIG` for the number of entries, `EBUSY` if it is set up already.
    pub fn over(transport: Arc<dyn Transport>, options: ClientOptions) -> Result<Self, QueueError> {
        let ask = Setup {
            major: ABI_MAJOR,
            minor: ABI_MINOR,
            entries: options.entries,
            features: feature::RING | feature::EVENTFD,
            policy: options.policy as u32,
            ..Setup::new()
        };
        let setup = call(&*transport, op::SETUP, &ask, Extra::default()).map_err(|fault| fault.of(op::SETUP))?;
        let ring = RingView::new(transport.map_ring(&setup).map_err(|fault| fault.of(op::SETUP))?, options.entries)?;
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| QueueError::system("eventfd")(error.into()))?;
        let hangs_up = transport.hangs_up().map_err(QueueError::system("the socket"))?;
        let inner = Inner {
            transport,
            ring,
            eventfd,
            hangs_up,
            order: Mutex::new(()),
            state: Mutex::default(),
            changed: Condvar::new(),
            reactor: OnceLock::new(),
            listens: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The kind of transport: `device`, `socket` or `in-process`.
    pub fn transport(&self) -> &'static str {
        self.inner.transport.name()
    }

    /// A buffer of at least `bytes` bytes, zeroed, for tensors.
    ///
    /// # Errors
    /// `EMFILE` or `EDQUOT` over the client's limits; [`QueueError::System`] if there is no memory.
    pub fn buffer(&self, bytes: usize) -> Result<Buffer, QueueError> {
        Buffer::new(self, bytes)
    }

    /// Hands a job over.
    ///
    /// # Errors
    /// `EAGAIN` if the ring has no room until completions are read, `EDQUOT` over the number of jobs in flight.
    pub fn submit(&self, job: &Job) -> Result<Pending, QueueError> {
        let mut pending = self.submit_all(std::slice::from_ref(job))?;
        pending.pop().ok_or(QueueError::Protocol("SUBMIT admitted nothing"))
    }

    /// Hands several jobs over in one call. May return fewer than were given; the rest was not admitted.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), if not even the first was admitted.
    pub fn submit_all(&self, jobs: &[Job]) -> Result<Vec<Pending>, QueueError> {
        let (jobs, tensors) = job::flatten(jobs)?;
        let order = self.inner.lock_order();
        let head = self.inner.reap_locked(&mut self.inner.lock());
        let ask = Submit { head, count: jobs.len() as u32, ..Submit::new() };
        let extra = Extra { jobs: &jobs, tensors: &tensors, fd: None };
        let answer = self.inner.submit(&ask, extra)?;
        drop(order);
        let mut state = self.inner.lock();
        state.told = head;
        let admitted = (answer.admitted as usize).min(jobs.len());
        Ok((0..admitted as u64)
            .zip(&jobs)
            .map(|(i, job)| self.adopt(&mut state, answer.first_seq + i, job.user_data))
            .collect())
    }

    fn adopt(&self, state: &mut State, seq: u64, user_data: u64) -> Pending {
        let gone = state.gone;
        let flight = state.jobs.entry(seq).or_default();
        flight.user_data = user_data;
        if gone && flight.done.is_none() {
            flight.done = Some(Completion::failure(user_data, seq, Errno::EOWNERDEAD, 0));
        }
        Pending::new(self.inner.clone(), seq, user_data)
    }

    /// Hands a job over and waits for its end. Waits for room, too, if the ring or the quota is full.
    ///
    /// # Errors
    /// [`QueueError::Gone`] if the server went away before the job was admitted; why the job failed is in the completion.
    pub fn run(&self, job: &Job) -> Result<Completion, QueueError> {
        loop {
            match self.submit(job) {
                Ok(pending) => return pending.wait(),
                Err(QueueError::Refused { errno: Errno::EAGAIN | Errno::EDQUOT, .. }) if self.in_flight() > 0 => {
                    self.inner.wait_for(None, |state| state.head != state.told || state.gone)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`run`](Self::run) in one system call, or one message each way: the fastest round trip that sleeps. While it waits, other
    /// threads' calls on this client wait with it.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn call(&self, job: &Job) -> Result<Completion, QueueError> {
        let (jobs, tensors) = job::flatten(std::slice::from_ref(job))?;
        let _order = self.inner.lock_order();
        let head = self.inner.reap_locked(&mut self.inner.lock());
        let ask = Submit { head, count: 1, wait: 1, ..Submit::new() };
        let answer = self.inner.submit(&ask, Extra { jobs: &jobs, tensors: &tensors, fd: None })?;
        loop {
            let mut state = self.inner.lock();
            let head = self.inner.reap_locked(&mut state);
            state.told = ask.head;
            if let Some(done) = state.jobs.get(&answer.first_seq).and_then(|flight| flight.done) {
                state.jobs.remove(&answer.first_seq);
                return Ok(done);
            }
            drop(state);
            let ask = Wait { head, wait: 1, ..Wait::new() };
            self.inner.call(op::WAIT, &ask, Extra::default())?;
            self.inner.lock().told = head;
        }
    }

    /// As [`run`](Self::run), but spins on the ring: the fastest round trip, at the cost of a core while it lasts.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn run_spinning(&self, job: &Job) -> Result<Completion, QueueError> {
        let (jobs, tensors) = job::flatten(std::slice::from_ref(job))?;
        let order = self.inner.lock_order();
        let head = self.inner.reap_locked(&mut self.inner.lock());
        let ask = Submit { head, count: 1, ..Submit::new() };
        let mut bytes = [0; Submit::SIZE];
        let written = ask.write(&mut bytes);
        debug_assert!(written);
        let ring = &self.inner.ring;
        let mut at = head;
        let (mut found, mut looks) = (None, 0u32);
        // The job's number is not known yet, but its completion is the first of a later number than all known ones.
        let newest = self.inner.lock().jobs.keys().copied().max().unwrap_or(0);
        let mut is_done = || {
            while at != ring.tail() {
                let entry = ring.entry(at);
                at = at.wrapping_add(1);
                if entry.flags & cqe_flag::MORE == 0 && entry.user_data == jobs[0].user_data && entry.seq > newest {
                    found = Some(entry);
                }
            }
            looks += 1;
            found.is_some() || looks > SPIN_LIMIT
        };
        let extra = Extra { jobs: &jobs, tensors: &tensors, fd: None };
        let answered = self.inner.transport.submit_spinning(&mut bytes, extra, &mut is_done);
        answered.map_err(|fault| self.inner.fault(fault, op::SUBMIT))?;
        self.inner.lock().told = head;
        drop(order);
        match found {
            Some(entry) => {
                let mut state = self.inner.lock();
                self.inner.reap_locked(&mut state);
                state.jobs.remove(&entry.seq);
                Ok(entry)
            }
            // It takes long: better to sleep.
            None => {
                let user_data = jobs[0].user_data;
                let is_it = move |(seq, flight): (&u64, &Flight)| {
                    (*seq > newest && flight.done.is_some_and(|done| done.user_data == user_data)).then_some(*seq)
                };
                self.inner.wait_for(None, |state| state.gone || state.jobs.iter().any(|job| is_it(job).is_some()))?;
                let mut state = self.inner.lock();
                let seq = state.jobs.iter().find_map(is_it).ok_or(QueueError::Gone)?;
                state.jobs.remove(&seq).and_then(|flight| flight.done).ok_or(QueueError::Gone)
            }
        }
    }

    /// Cancels the jobs with this `user_data`; how many were in flight.
    ///
    /// # Errors
    /// [`QueueError::Gone`] if the server went away.
    pub fn cancel(&self, user_data: u64) -> Result<u32, QueueError> {
        self.cancel_by(&Cancel { flags: op_flag::BY_USER_DATA, user_data, ..Cancel::new() })
    }

    /// Cancels all jobs, and with `settle` waits until the server has let go of their buffers; how many were in flight.
    ///
    /// # Errors
    /// [`QueueError::Gone`] if the server went away.
    pub fn cancel_all(&self, settle: bool) -> Result<u32, QueueError> {
        let settle = if settle { op_flag::SETTLE } else { 0 };
        self.cancel_by(&Cancel { flags: op_flag::ALL | settle, ..Cancel::new() })
    }

    fn cancel_by(&self, ask: &Cancel) -> Result<u32, QueueError> {
        Ok(self.inner.call(op::CANCEL, ask, Extra::default())?.canceled)
    }

    /// What is there: versions, features, limits, whether a server is attached.
    ///
    /// # Errors
    /// [`QueueError::Gone`] if the other side went away.
    pub fn query(&self) -> Result<Query, QueueError> {
        query(&*self.inner.transport)
    }

    /// The client's counters.
    ///
    /// # Errors
    /// [`QueueError::Gone`] if the other side went away.
    pub fn stat(&self) -> Result<Stat, QueueError> {
        self.inner.call(op::STAT, &Stat::new(), Extra::default())
    }

    /// The client's limits.
    ///
    /// # Errors
    /// [`QueueError::Gone`] if the other side went away.
    pub fn limits(&self) -> Result<Limits, QueueError> {
        self.inner.call(op::LIMITS, &Limits::new(), Extra::default())
    }

    /// Lowers the client's own limits.
    ///
    /// # Errors
    /// `EPERM` if one would rise without the right to it, `EINVAL` for values that cannot be.
    pub fn set_limits(&self, limits: Limits) -> Result<Limits, QueueError> {
        self.inner.call(op::LIMITS, &Limits { flags: op_flag::SET, ..limits }, Extra::default())
    }

    /// Jobs whose end nobody has read.
    pub fn in_flight(&self) -> usize {
        self.inner.lock().jobs.values().filter(|flight| flight.done.is_none()).count()
    }

    /// The completion eventfd, for event loops of one's own: once it is readable, read it and then call
    /// [`Pending::try_wait`]. Completions that came before the first call do not signal it.
    ///
    /// # Errors
    /// [`QueueError::Gone`] if the other side went away.
    pub fn completion_fd(&self) -> Result<BorrowedFd<'_>, QueueError> {
        self.inner.listen()?;
        Ok(self.inner.eventfd.as_fd())
    }
}

/// Turns of a busy wait until it sleeps instead: about a tenth of a second.
const SPIN_LIMIT: u32 = 20_000_000;

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, fault: Fault, number: u32) -> QueueError {
        if matches!(fault, Fault::Gone) {
            self.lose(&mut self.lock());
        }
        fault.of(number)
    }

    fn call<T: Wire>(&self, number: u32, ask: &T, extra: Extra<'_>) -> Result<T, QueueError> {
        call(&*self.transport, number, ask, extra).map_err(|fault| self.fault(fault, number))
    }

    fn submit(&self, ask: &Submit, extra: Extra<'_>) -> Result<Submit, QueueError> {
        if self.lock().gone {
            return Err(QueueError::Gone);
        }
        self.call(op::SUBMIT, ask, extra)
    }

    /// Reads what the ring holds; the new head.
    fn reap_locked(&self, state: &mut State) -> u32 {
        let tail = self.ring.tail();
        let mut came = false;
        while state.head != tail {
            let entry = self.ring.entry(state.head);
            came = true;
            let flight = state.jobs.entry(entry.seq).or_default();
            if entry.flags & cqe_flag::MORE != 0 {
                flight.progress = flight.progress.max(Some(entry.count));
                state.progress.push(Entry { index: state.head, seq: entry.seq });
            } else {
                flight.done = Some(entry);
            }
            let waker = flight.waker.take();
            if flight.forgotten && flight.done.is_some() {
                state.jobs.remove(&entry.seq);
            }
            if let Some(waker) = waker {
                waker.wake();
            }
            state.head = state.head.wrapping_add(1);
        }
        if came {
            self.wake(state);
        }
        state.head
    }

    /// Reads what the ring holds. Where progress was among it, the queue is told, so that newer progress gets a place of its
    /// own; what was written over an entry until then is read again.
    fn reap(&self) -> Result<(), QueueError> {
        let mut state = self.lock();
        self.reap_locked(&mut state);
        if state.progress.is_empty() || state.gone {
            return Ok(());
        }
        drop(state);
        let _order = self.lock_order();
        let mut state = self.lock();
        let head = self.reap_locked(&mut state);
        let read = std::mem::take(&mut state.progress);
        drop(state);
        if let Err(error) = self.call(op::WAIT, &Wait { head, ..Wait::new() }, Extra::default()) {
            return if matches!(error, QueueError::Gone) { Ok(()) } else { Err(error) };
        }
        let mut state = self.lock();
        state.told = head;
        for Entry { index, seq } in read {
            let entry = self.ring.entry(index);
            if entry.seq == seq
                && entry.flags & cqe_flag::MORE != 0
                && let Some(flight) = state.jobs.get_mut(&seq)
            {
                flight.progress = flight.progress.max(Some(entry.count));
            }
        }
        Ok(())
    }

    /// The other side is gone: what is in flight will never complete, so it fails here.
    fn lose(&self, state: &mut State) {
        if std::mem::replace(&mut state.gone, true) {
            return;
        }
        self.reap_locked(state);
        for (seq, flight) in &mut state.jobs {
            if flight.done.is_none() {
                flight.done = Some(Completion::failure(flight.user_data, *seq, Errno::EOWNERDEAD, 0));
            }
            if let Some(waker) = flight.waker.take() {
                waker.wake();
            }
        }
        self.wake(state);
    }

    fn wake(&self, state: &State) {
        if state.followers > 0 {
            self.changed.notify_all();
        }
    }

    /// Waits until `done` holds or the time is over.
    fn wait_for(&self, deadline: Option<u64>, done: impl Fn(&State) -> bool) -> Result<(), QueueError> {
        loop {
            self.reap()?;
            let mut state = self.lock();
            if done(&state) {
                return Ok(());
            }
            let left = match deadline {
                Some(at) => Some(clock::until(at).ok_or(QueueError::TimedOut)?),
                None => None,
            };
            if state.led {
                state.followers += 1;
                let mut state = match left {
                    Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                    None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                };
                state.followers -= 1;
                continue;
            }
            if !self.listens.load(Ordering::Acquire) && !state.gone {
                drop(state);
                match self.listen() {
                    // What came until now was not signaled, and what is lost has failed: look again.
                    Ok(()) | Err(QueueError::Gone) => continue,
                    Err(error) => return Err(error),
                }
            }
            state.led = true;
            drop(state);
            let gone = self.sleep(left);
            let mut state = self.lock();
            state.led = false;
            if gone {
                self.lose(&mut state);
            }
            self.wake(&state);
        }
    }

    /// Has the queue signal completions. A client that never sleeps spares the queue that.
    fn listen(&self) -> Result<(), QueueError> {
        if self.listens.load(Ordering::Acquire) {
            return Ok(());
        }
        let extra = Extra { fd: Some(self.eventfd.as_fd()), ..Extra::default() };
        self.call(op::EVENTFD, &EventFd::new(), extra)?;
        self.listens.store(true, Ordering::Release);
        Ok(())
    }

    /// Sleeps until a completion comes, or the time is over; whether the other side is gone.
    fn sleep(&self, left: Option<Duration>) -> bool {
        let mut fds = vec![PollFd::new(&self.eventfd, PollFlags::IN)];
        if let Some(socket) = &self.hangs_up {
            fds.push(PollFd::new(socket, PollFlags::RDHUP));
        }
        let time = left.map(clock::timespec);
        // An interrupted wait is an early return.
        let _ = poll(&mut fds, time.as_ref());
        let gone =
            fds.get(1).is_some_and(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR));
        let _ = rustix::io::read(&self.eventfd, &mut [0u8; 8]);
        gone
    }

    /// Sees to it that tasks that await are woken.
    fn start_reactor(self: &Arc<Self>) {
        self.reactor.get_or_init(|| {
            let inner: Weak<Self> = Arc::downgrade(self);
            let run = move || {
                while let Some(inner) = inner.upgrade() {
                    // Looks up now and then, to end when the client is gone.
                    let until = clock::deadline(Duration::from_millis(200));
                    match inner.wait_for(Some(until), |state| state.gone) {
                        Err(QueueError::TimedOut) => {}
                        _ => return,
                    }
                }
            };
            if let Err(error) = std::thread::Builder::new().name("rustai-completions".into()).spawn(run) {
                tracing::error!(%error, "no thread for completions; tasks wake only when a thread waits, too");
            }
        });
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("transport", &self.transport()).finish_non_exhaustive()
    }
}

/// Tensors of one job, at most.
const _: () = assert!(rustai_abi::queue::MAX_TENSORS == 16 && Tensor::SIZE == 96);
