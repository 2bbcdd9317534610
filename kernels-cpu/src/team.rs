//! A persistent team of worker threads that runs one closure in lock step.
//!
//! Decode has some three hundred kernel calls per token, each a few microseconds long, so a fork and join through a
//! thread pool for each call would cost more than the call. Here the workers enter the closure once per step; inside
//! it they meet at a spinning [`Lockstep::barrier`] and share work through [`Lockstep::next`], neither of which takes a
//! lock or allocates. Between steps they spin briefly, then sleep.

use crate::sync::{
    Arc, AtomicBool, AtomicPtr, AtomicUsize, Builder, JoinHandle, SPINS_BEFORE_SLEEP, SPINS_BEFORE_YIELD, park,
    spin_loop, yield_now,
};
use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering::*,
};

/// A kernel panicked in one thread of the team; the team cannot be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Poisoned;

#[repr(align(128))]
#[derive(Default)]
struct Padded<T>(T);

/// What the threads of a team share.
struct Shared {
    threads: usize,
    /// Counts steps; odd and even tell nothing, a change does.
    epoch: Padded<AtomicUsize>,
    /// The step's closure, valid while `running` is above zero.
    job: AtomicPtr<Job<'static>>,
    /// Workers that have not finished the step.
    running: Padded<AtomicUsize>,
    arrived: Padded<AtomicUsize>,
    phase: Padded<AtomicUsize>,
    poisoned: AtomicBool,
    stop: AtomicBool,
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
        let phase = shared.phase.0.load(Relaxed);
        if shared.arrived.0.fetch_add(1, AcqRel) + 1 == shared.threads {
            shared.arrived.0.store(0, Relaxed);
            shared.phase.0.store(phase.wrapping_add(1), Release);
            return;
        }
        let mut spins = 0;
        while shared.phase.0.load(Acquire) == phase {
            // PANIC: only after another thread's panic; unwinding here frees this thread from a meeting that never comes.
            assert!(!shared.poisoned.load(Relaxed), "another thread of the team panicked");
            spin(&mut spins);
        }
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

fn spin(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(SPINS_BEFORE_YIELD) {
        yield_now();
    } else {
        spin_loop();
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
            epoch: Padded::default(),
            job: AtomicPtr::default(),
            running: Padded::default(),
            arrived: Padded::default(),
            phase: Padded::default(),
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
        shared.running.0.store(shared.threads - 1, Relaxed);
        shared.job.store((&raw mut job).cast(), Release);
        shared.epoch.0.fetch_add(1, Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let ours = catch_unwind(AssertUnwindSafe(|| run(0, &Lockstep { shared })));
        if ours.is_err() {
            shared.poisoned.store(true, Release);
        }
        // `job` lives on this stack: leave only when no worker can still use it.
        let mut spins = 0;
        while shared.running.0.load(Acquire) > 0 {
            spin(&mut spins);
        }
        if shared.poisoned.load(Acquire) { Err(Poisoned) } else { Ok(()) }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker that panicked has already poisoned the team; there is nothing left to report.
            let _ = worker.join();
        }
    }
}

fn work(index: usize, shared: &Shared) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        loop {
            if shared.stop.load(Acquire) {
                return;
            }
            let epoch = shared.epoch.0.load(Acquire);
            if epoch != seen {
                seen = epoch;
                break;
            }
            spins += 1;
            if spins < SPINS_BEFORE_SLEEP {
                spin_loop();
            } else {
                // `run` unparks after it has published the epoch, so no wake-up is lost.
                park();
            }
        }
        let result = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: `Team::run` published the job before the epoch that we just acquired, and keeps it alive until
            // `running` is zero, which needs our decrement below.
            let job = unsafe { &*shared.job.load(Acquire) };
            (job.run)(index, &Lockstep { shared });
        }));
        if result.is_err() {
            shared.poisoned.store(true, Release);
        }
        shared.running.0.fetch_sub(1, Release);
    }
}
