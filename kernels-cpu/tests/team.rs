//! The team (`src/team.rs`) under a model checker (loom): every order in which its threads can run, and every value that the
//! memory model lets a load see. What is found does not depend on the processor, so one kind of them does it.
#![cfg(target_arch = "x86_64")]

/// The team, built on what follows.
#[path = "../src/team.rs"]
#[expect(dead_code, reason = "the tests use a part of it")]
mod team;

mod sync {
    use loom::sync::{Condvar, Mutex, atomic::Ordering::Relaxed};
    pub(crate) use loom::{
        hint::spin_loop,
        sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, fence},
        thread::{Builder, JoinHandle},
    };
    pub(crate) use std::sync::Arc;

    pub(crate) const LEAST_ROUNDS: u32 = 1;
    pub(crate) const MOST_ROUNDS: u32 = 1;

    /// What the system promises of a futex: looking at the number and falling asleep are one, before or after a wake-up.
    pub(crate) struct Futex {
        pub(crate) value: AtomicU32,
        sleep: Mutex<()>,
        woken: Condvar,
    }

    impl Futex {
        pub(crate) fn new(value: u32) -> Self {
            Self { value: AtomicU32::new(value), sleep: Mutex::new(()), woken: Condvar::new() }
        }

        pub(crate) fn wait(&self, old: u32) {
            let sleep = self.sleep.lock().unwrap();
            if self.value.load(Relaxed) == old {
                drop(self.woken.wait(sleep).unwrap());
            }
        }

        pub(crate) fn wake_all(&self) {
            drop(self.sleep.lock().unwrap());
            self.woken.notify_all();
        }
    }
}

use loom::cell::UnsafeCell;
use std::sync::atomic::Ordering::Relaxed;
use sync::AtomicUsize;
use team::{Poisoned, Team};

/// A place that one thread at a time may use; the checker fails a test where two could.
struct Place(UnsafeCell<u32>);

// SAFETY: the checker is there to find out.
unsafe impl Sync for Place {}

impl Place {
    fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    fn set(&self, value: u32) {
        // SAFETY: the checker stops at a conflicting access.
        self.0.with_mut(|place| unsafe { *place = value });
    }

    fn get(&self) -> u32 {
        // SAFETY: the checker stops at a conflicting access.
        self.0.with(|place| unsafe { *place })
    }
}

fn explore(bound: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(bound);
    model.check(test);
}

/// What a thread writes before a barrier, the others see after it; and they write it anew after the next.
#[test]
fn writes_are_seen_after_a_barrier() {
    explore(3, || {
        let mut team = Team::new(2).unwrap();
        let places = [Place::new(), Place::new()];
        team.run(&|thread, lockstep| {
            for round in 1..=2 {
                places[thread].set(round);
                lockstep.barrier();
                assert_eq!(places[1 - thread].get(), round);
                lockstep.barrier();
            }
        })
        .unwrap();
    });
}

/// A step finds its workers whether they sleep or not, and is over before its closure goes.
#[test]
fn no_step_is_lost_or_outlives_its_closure() {
    explore(3, || {
        let mut team = Team::new(2).unwrap();
        for round in 1..=2 {
            let places = [Place::new(), Place::new()];
            team.run(&|thread, _| places[thread].set(round)).unwrap();
            assert_eq!(places.each_ref().map(Place::get), [round; 2]);
        }
    });
}

/// Each task goes to one thread.
#[test]
fn each_task_is_done_once() {
    explore(2, || {
        let mut team = Team::new(2).unwrap();
        let tasks: [Place; 5] = std::array::from_fn(|_| Place::new());
        let counter = AtomicUsize::new(0);
        team.run(&|_, lockstep| {
            while let Some(run) = lockstep.next(&counter, tasks.len()) {
                for task in run {
                    tasks[task].set(tasks[task].get() + 1);
                }
            }
        })
        .unwrap();
        assert!(tasks.iter().all(|task| task.get() == 1));
        assert_eq!(counter.load(Relaxed), 5);
    });
}

/// Who waits at the barrier, awake or asleep, is freed by the panic of a thread that will not come.
#[test]
fn a_panic_frees_those_who_wait() {
    explore(3, || {
        let mut team = Team::new(2).unwrap();
        let result = team.run(&|thread, lockstep| {
            assert_eq!(thread, 0, "planted");
            lockstep.barrier();
        });
        assert_eq!(result, Err(Poisoned));
    });
}
