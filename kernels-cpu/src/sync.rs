//! What [`team`](crate::team) is built on. `tests/team.rs` compiles the team a second time with a model checker's in its place.

use std::ptr;
pub(crate) use std::{
    hint::spin_loop,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, fence},
    },
    thread::{Builder, JoinHandle},
};

/// Rounds of spinning before a thread sleeps where others took the team's cores lately.
pub(crate) const LEAST_ROUNDS: u32 = 100;
/// The same where nobody did: 125 us on Zen 3, more than threads that share a product of few tokens are mostly apart.
pub(crate) const MOST_ROUNDS: u32 = 4_000;

/// A number that threads can sleep on (`futex(2)`).
pub(crate) struct Futex {
    pub(crate) value: AtomicU32,
}

impl Futex {
    pub(crate) fn new(value: u32) -> Self {
        Self { value: AtomicU32::new(value) }
    }

    /// Sleeps if the number is `old`, until it is woken or for no reason earlier.
    pub(crate) fn wait(&self, old: u32) {
        let forever = ptr::null::<libc::timespec>();
        // SAFETY: the address is that of a living number, which the system compares; any outcome is fine, since callers look again.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.value.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                old,
                forever,
            )
        };
    }

    /// Wakes all who sleep.
    pub(crate) fn wake_all(&self) {
        // SAFETY: the address names the sleepers and is not accessed.
        unsafe {
            libc::syscall(libc::SYS_futex, self.value.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX)
        };
    }
}

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
