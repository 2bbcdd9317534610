//! The queue in a process of its own: what the kernel module is, without a kernel.
//!
//! It owns the [`Core`] behind one lock, the memory of the completion rings, the files behind the buffers, and those who
//! wait. `outside` is what the queue's slots stand for, `calls` are the operations of a client on bytes, as they come from a
//! socket or from this process, and `engine` are those of the server.
//!
//! A broker decides nothing about jobs: that is the queue's, in `rustai_abi::queue`, which the module compiles in, too.
//!
//! Lock order: the broker's lock is the only one here, and nothing waits or calls out while it is held.

mod calls;
mod engine;
mod outside;

use super::{clock, engine_side::Helper};
use outside::{Outside, Side};
use rustai_abi::queue::{
    BASE_FEATURES, BufferSlot, ContextId, ContextSlot, Core, Errno, JobSlot, Limits, Query, Stat, Wire, class, feature,
};
use std::{
    os::fd::BorrowedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
};

pub(super) use calls::{Answer, With};

type Queue = Core<Vec<JobSlot>, Vec<ContextSlot>, Vec<BufferSlot>>;

/// How large a queue is, and what each client may have of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokerOptions {
    /// Jobs in flight, over all clients.
    pub jobs: usize,
    /// Clients that are open at once.
    pub clients: usize,
    /// Jobs in flight of one client.
    pub client_jobs: u32,
    /// Buffers of one client.
    pub client_buffers: u32,
    /// Registered bytes of one client.
    pub client_bytes: u64,
    /// Jobs in flight of all clients of one user.
    pub user_jobs: u32,
    /// Registered bytes of all clients of one user.
    pub user_bytes: u64,
}

impl Default for BrokerOptions {
    /// What the kernel module gives.
    fn default() -> Self {
        Self {
            jobs: 1024,
            clients: 64,
            client_jobs: 256,
            client_buffers: 64,
            client_bytes: 64 << 30,
            user_jobs: 512,
            user_bytes: 128 << 30,
        }
    }
}

/// The queue of this process. Clients reach it through a [`Transport`](super::Transport), one server through
/// [`EngineSide`](super::EngineSide).
pub struct Broker {
    inner: Mutex<Inner>,
    /// Wakes the server.
    work: Condvar,
    /// Wakes the thread that ends late jobs.
    deadlines: Condvar,
    clock: OnceLock<()>,
}

struct Inner {
    core: Queue,
    outside: Outside,
    /// Runs jobs on the thread that submits them, where they are quick.
    helper: Option<Arc<dyn Helper>>,
}

/// A client of the broker.
pub(super) struct Member {
    pub(super) broker: Arc<Broker>,
    pub(super) id: ContextId,
}

/// One client, for those who watch.
#[derive(Clone, Debug)]
pub struct ClientStat {
    /// User.
    pub uid: u32,
    /// Process that opened it; 0 if it is this one.
    pub pid: i32,
    /// Counters.
    pub stat: Stat,
}

impl Broker {
    /// An empty queue.
    ///
    /// # Errors
    /// `EINVAL` if a size is 0.
    pub fn new(options: BrokerOptions) -> Result<Arc<Self>, Errno> {
        let BrokerOptions { jobs, clients, client_jobs, client_buffers, client_bytes, user_jobs, user_bytes } = options;
        let limits = Limits {
            max_jobs: client_jobs.min(u32::try_from(jobs).unwrap_or(u32::MAX)),
            max_buffers: client_buffers,
            max_bytes: client_bytes,
            class_cap: u32::from(class::INTERACTIVE),
            ..Limits::new()
        };
        let buffers = clients.checked_mul(client_buffers as usize).ok_or(Errno::EINVAL)?;
        let core = Core::new(
            vec![JobSlot::new(); jobs],
            vec![ContextSlot::new(); clients],
            vec![BufferSlot::new(); buffers],
            limits,
            user_jobs,
            user_bytes,
            BASE_FEATURES | feature::EVENTFD,
        )?;
        let outside = Outside::new(clients, buffers);
        Ok(Arc::new(Self {
            inner: Mutex::new(Inner { core, outside, helper: None }),
            work: Condvar::new(),
            deadlines: Condvar::new(),
            clock: OnceLock::new(),
        }))
    }

    /// A new client of user `uid`.
    pub(super) fn open(self: &Arc<Self>, uid: u32, pid: i32, wakes_by_fd: bool) -> Result<Member, Errno> {
        let bell = outside::Bell::new(wakes_by_fd)?;
        let mut inner = self.lock();
        let id = inner.core.open(uid)?;
        inner.outside.sides[id.index as usize] = Side { id: Some(id), uid, pid, bell: Some(bell), ..Side::default() };
        Ok(Member { broker: self.clone(), id })
    }

    /// Counters of all clients.
    pub fn clients(&self) -> Vec<ClientStat> {
        let inner = self.lock();
        let stat =
            |side: &Side| Some(ClientStat { uid: side.uid, pid: side.pid, stat: inner.core.stat(side.id?).ok()? });
        inner.outside.sides.iter().filter_map(stat).collect()
    }

    /// QUERY.
    pub fn query(&self) -> Query {
        self.lock().core.query()
    }

    /// Checks the queue's invariants, for tests.
    ///
    /// # Errors
    /// The one that does not hold.
    pub fn audit(&self) -> Result<(), &'static str> {
        let inner = self.lock();
        inner.core.audit()?;
        let files = inner.outside.files.iter().flatten().count();
        let held: u32 =
            inner.outside.sides.iter().filter_map(|side| inner.core.stat(side.id?).ok()).map(|s| s.buffers).sum();
        if files < held as usize { Err("a buffer has no file") } else { Ok(()) }
    }

    /// Whether no client, no buffer and no server is left.
    pub fn is_idle(&self) -> bool {
        let inner = self.lock();
        inner.core.is_idle() && inner.outside.files.iter().all(Option::is_none)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock is held leaves what a panic leaves; the queue checks its own steps.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on the queue, then tells those who wait what came of it. `may_help`: the calling thread may run what there
    /// is to do; then the server's own threads are not woken for it.
    fn with<R>(&self, may_help: bool, f: impl FnOnce(&mut Queue, &mut Outside) -> R) -> R {
        let mut inner = self.lock();
        let Inner { core, outside, helper, .. } = &mut *inner;
        let result = f(core, outside);
        outside.flush();
        let work = std::mem::take(&mut outside.work);
        let helper = if work && may_help { helper.clone() } else { None };
        let waits = outside.server_waits > 0;
        drop(inner);
        match helper {
            Some(helper) => helper.help(),
            None if work && waits => self.work.notify_one(),
            None => {}
        }
        result
    }

    /// Sees to it that late jobs end.
    fn mind_deadlines(self: &Arc<Self>) {
        self.clock.get_or_init(|| {
            let broker = Arc::downgrade(self);
            let tick = move || {
                while let Some(broker) = broker.upgrade() {
                    let mut inner = broker.lock();
                    let Inner { core, outside, .. } = &mut *inner;
                    let next = core.expire(clock::now_ns(), outside);
                    outside.flush();
                    if std::mem::take(&mut outside.work) {
                        broker.work.notify_one();
                    }
                    // Without deadlines, wakes now and then to see whether the broker is still wanted.
                    let idle = std::time::Duration::from_millis(200);
                    let wait = next.map_or(idle, |next| clock::until(next).unwrap_or_default().min(idle));
                    drop(broker.deadlines.wait_timeout(inner, wait));
                }
            };
            if let Err(error) = std::thread::Builder::new().name("rustai-queue-clock".into()).spawn(tick) {
                tracing::error!(%error, "no thread for deadlines; late jobs end when the server fetches them");
            }
        });
        self.deadlines.notify_one();
    }
}

impl Member {
    /// The user behind it may raise its own limits.
    fn may_raise(&self) -> bool {
        self.broker.lock().outside.sides[self.id.index as usize].may_raise
    }

    /// Waits until `done`, which is asked under the lock. `hangs_up` is a socket whose end ends the wait, too.
    fn wait_until<R>(
        &self,
        deadline: Option<u64>,
        hangs_up: Option<BorrowedFd<'_>>,
        done: impl Fn(&Queue) -> Result<Option<R>, Errno>,
    ) -> Result<R, Errno> {
        let index = self.id.index as usize;
        let mut inner = self.broker.lock();
        loop {
            if let Some(result) = done(&inner.core)? {
                return Ok(result);
            }
            let left = match deadline {
                Some(at) => Some(clock::until(at).ok_or(Errno::ETIME)?),
                None => None,
            };
            let bell = inner.outside.sides[index].bell.clone().ok_or(Errno::ENOENT)?;
            inner.outside.sides[index].waits += 1;
            inner = bell.wait(&self.broker.inner, inner, left, hangs_up)?;
            inner.outside.sides[index].waits -= 1;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let side = self.broker.with(false, |core, outside| {
            core.close(self.id, outside);
            std::mem::take(&mut outside.sides[self.id.index as usize])
        });
        drop(side);
    }
}
