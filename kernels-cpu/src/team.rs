//! A persistent team of worker threads that runs one closure in lock step.
//!
//! Decode has some three hundred kernel calls per token, each a few microseconds long, so a fork and join through a
//! thread pool for each call would cost more than the call. Here the workers enter the closure once per step; inside
//! it they meet at a [`Lockstep::barrier`] and share work through [`Lockstep::next`], neither of which takes a
//! lock or allocates.
//!
//! Who waits spins for a while, since mostly the others come soon, then sleeps. That frees its core for a thread of the team whose own
//! core another program has taken. Then that thread will have to wait for this one, and so on in turn, so after such a sleep
//! threads spin less for some time (PERFORMANCE.md, "Beside other programs").

use crate::sync::{
    Arc, AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Builder, Futex, JoinHandle, LEAST_ROUNDS, MOST_ROUNDS, fence,
    spin_loop,
};
use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{self, Ordering::*},
};

/// A kernel panicked in one thread of the team; the team cannot be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Poisoned;

/// A worker spins so many times longer between steps than at the barrier before it sleeps.
const BETWEEN_STEPS: u32 = 5;

#[repr(align(128))]
#[derive(Default)]
struct Padded<T>(T);

/// A number that threads wait for to change.
struct Signal {
    number: Futex,
    /// Threads that sleep until it changes, or are about to.
    sleepers: AtomicU32,
}

impl Signal {
    fn new() -> Padded<Self> {
        Padded(Self { number: Futex::new(0), sleepers: AtomicU32::new(0) })
    }

    fn get(&self) -> u32 {
        self.number.value.load(Acquire)
    }

    /// Adds to the number, and wakes who sleeps. Writes made before by this thread are visible to those who see the change.
    fn add(&self, number: u32) {
        self.number.value.fetch_add(number, AcqRel);
        // With the fence in `wait`: either a thread that goes to sleep sees the change, or this thread sees it.
        fence(SeqCst);
        if self.sleepers.load(Relaxed) > 0 {
            self.number.wake_all();
        }
    }

    /// Waits while the number is `old` and there is `hope` that it changes: spins for some rounds, then sleeps; whether it slept.
    fn wait(&self, old: u32, rounds: u32, hope: impl Fn() -> bool) -> bool {
        for _ in 0..rounds {
            if self.get() != old || !hope() {
                return false;
            }
            spin_loop();
        }
        self.sleepers.fetch_add(1, Relaxed);
        fence(SeqCst);
        while self.get() == old && hope() {
            self.number.wait(old);
        }
        self.sleepers.fetch_sub(1, Relaxed);
        true
    }
}

/// What the threads of a team share.
struct Shared {
    threads: usize,
    /// Counts steps.
    epoch: Padded<Signal>,
    /// The step's closure, valid while `running` is above zero.
    job: AtomicPtr<Job<'static>>,
    /// Workers that have not finished the step.
    running: Padded<Signal>,
    arrived: Padded<AtomicUsize>,
    /// Counts meetings at the barrier, and panics.
    phase: Padded<Signal>,
    /// Rounds of spinning at the barrier before a thread sleeps. Nothing but time depends on it, so the model checker need not know.
    rounds: Padded<atomic::AtomicU32>,
    poisoned: AtomicBool,
    stop: AtomicBool,
}

impl Shared {
    /// Frees the others from waiting for a thread that panicked.
    fn poison(&self) {
        self.poisoned.store(true, Release);
        self.phase.0.add(1);
    }
}

struct Job<'a> {
    run: &'a (dyn Fn(usize, &Lockstep) + Sync),
}

/// What a running closure uses to keep in step with the other threads.
pub(crate) struct Lockstep<'a> {
    shared: &'a Shared,
}

impl Lockstep<'_> {
    /// Waits until all threads have arrived. Writes made before by any thread are visible after it.
    pub(crate) fn barrier(&self) {
        let shared = self.shared;
        if shared.threads == 1 {
            return;
        }
        let phase = shared.phase.0.get();
        if shared.arrived.0.fetch_add(1, AcqRel) + 1 == shared.threads {
            shared.arrived.0.store(0, Relaxed);
            shared.phase.0.add(1);
            return;
        }
        let rounds = shared.rounds.0.load(Relaxed);
        let slept = shared.phase.0.wait(phase, rounds, || !shared.poisoned.load(Relaxed));
        let next = if slept { rounds / 2 } else { rounds + rounds / 16 }.clamp(LEAST_ROUNDS, MOST_ROUNDS);
        if next != rounds {
            shared.rounds.0.store(next, Relaxed);
        }
        // PANIC: only after another thread's panic; unwinding here frees this thread from a meeting that never comes.
        assert!(!shared.poisoned.load(Relaxed), "another thread of the team panicked");
    }

    /// The next unclaimed indices of `counter` below `end`, if there are any.
    ///
    /// Runs are long at first, so that a thread mostly goes on where it was (its prefetches run ahead into its own next
    /// task), and end with single tasks, so that all threads finish together (guided self-scheduling: Polychronopoulos and
    /// Kuck, 1987, doi 10.1109/TC.1987.5009495).
    pub(crate) fn next(&self, counter: &AtomicUsize, end: usize) -> Option<Range<usize>> {
        let mut start = counter.load(Relaxed);
        while start < end {
            let run = ((end - start) / (2 * self.shared.threads)).max(1);
            match counter.compare_exchange_weak(start, start + run, Relaxed, Relaxed) {
                Ok(_) => return Some(start..start + run),
                Err(now) => start = now,
            }
        }
        None
    }
}

/// The workers. Dropping the team ends them.
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Team {
    /// Starts `threads - 1` workers; the caller of [`run`](Self::run) is the team's first thread.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            threads: threads.max(1),
            epoch: Signal::new(),
            job: AtomicPtr::default(),
            running: Signal::new(),
            arrived: Padded::default(),
            phase: Signal::new(),
            rounds: Padded(MOST_ROUNDS.into()),
            poisoned: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut team = Self { shared: Arc::clone(&shared), workers: Vec::new() };
        for index in 1..shared.threads {
            let shared = Arc::clone(&shared);
            let worker = Builder::new().name(format!("rustai-{index}")).spawn(move || work(index, &shared))?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs `run(thread, lockstep)` on every thread of the team and waits for all.
    pub(crate) fn run(&mut self, run: &(dyn Fn(usize, &Lockstep) + Sync)) -> Result<(), Poisoned> {
        let shared = &*self.shared;
        if shared.poisoned.load(Acquire) {
            return Err(Poisoned);
        }
        let mut job = Job { run };
        shared.running.0.add(shared.threads as u32 - 1);
        shared.job.store((&raw mut job).cast(), Release);
        shared.epoch.0.add(1);
        let ours = catch_unwind(AssertUnwindSafe(|| run(0, &Lockstep { shared })));
        if ours.is_err() {
            shared.poison();
        }
        // `job` lives on this stack: leave only when no worker can still use it.
        loop {
            match shared.running.0.get() {
                0 => break,
                running => shared.running.0.wait(running, shared.rounds.0.load(Relaxed), || true),
            };
        }
        if shared.poisoned.load(Acquire) { Err(Poisoned) } else { Ok(()) }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Release);
        self.shared.epoch.0.add(1);
        for worker in self.workers.drain(..) {
            // A worker that panicked has already poisoned the team; there is nothing left to report.
            let _ = worker.join();
        }
    }
}

fn work(index: usize, shared: &Shared) {
    let mut seen = 0;
    loop {
        shared.epoch.0.wait(seen, BETWEEN_STEPS * shared.rounds.0.load(Relaxed), || true);
        seen = shared.epoch.0.get();
        if shared.stop.load(Acquire) {
            return;
        }
        let result = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: `Team::run` published the job before the epoch that we just acquired, and keeps it alive until
            // `running` is zero, which needs our decrement below.
            let job = unsafe { &*shared.job.load(Acquire) };
            (job.run)(index, &Lockstep { shared });
        }));
        if result.is_err() {
            shared.poison();
        }
        shared.running.0.add(u32::MAX);
    }
}
