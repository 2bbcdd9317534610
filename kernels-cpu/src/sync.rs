//! What [`team`](crate::team) is built on. `tests/team.rs` compiles the team a second time with a model checker's in its place.

pub(crate) use std::{
    hint::spin_loop,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicPtr, AtomicUsize},
    },
    thread::{Builder, JoinHandle, park, yield_now},
};

/// Rounds of spinning before a waiting worker yields to others (they may need its core).
pub(crate) const SPINS_BEFORE_YIELD: u32 = 4_000;
/// Rounds of spinning between steps before a worker sleeps.
pub(crate) const SPINS_BEFORE_SLEEP: u32 = 20_000;

#[cfg(test)]
mod tests {
    use crate::team::{Poisoned, Team};
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[test]
    fn all_threads_meet_and_share_the_work() {
        for threads in [1, 2, 5] {
            let mut team = Team::new(threads).unwrap();
            for _ in 0..50 {
                let counters = [AtomicUsize::new(0), AtomicUsize::new(0)];
                let sums = [AtomicUsize::new(0), AtomicUsize::new(0)];
                team.run(&|_, lockstep| {
                    while let Some(run) = lockstep.next(&counters[0], 100) {
                        sums[0].fetch_add(run.sum(), Relaxed);
                    }
                    lockstep.barrier();
                    assert_eq!(sums[0].load(Relaxed), 4950);
                    while let Some(run) = lockstep.next(&counters[1], 10) {
                        sums[1].fetch_add(run.sum(), Relaxed);
                    }
                    lockstep.barrier();
                    assert_eq!(sums[1].load(Relaxed), 45);
                })
                .unwrap();
            }
        }
    }

    #[test]
    fn a_panic_poisons_the_team_and_hangs_nobody() {
        for guilty in [0, 1] {
            let mut team = Team::new(3).unwrap();
            let result = team.run(&|thread, lockstep| {
                assert_ne!(thread, guilty, "planted");
                lockstep.barrier();
            });
            assert_eq!(result, Err(Poisoned));
            assert_eq!(team.run(&|_, _| ()), Err(Poisoned));
        }
    }
}
