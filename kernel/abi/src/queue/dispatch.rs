//! Which context's job runs next: shares by class, and by weight within a class.
//!
//! Contexts of one user share what one of them would get, so that opening many gains nothing.
//!
//! Both levels are stride scheduling: whoever was served least for its share goes first, and one that was idle starts at
//! the present, so that waiting saves nothing up. A class is never starved, it only gets a smaller share.
//!
//! Source: C. Waldspurger and W. Weihl, "Stride Scheduling: Deterministic Proportional-Share Resource Management", 1995.

use super::layout::class;

/// One unit of service at share 1.
const STRIDE: u64 = 1 << 20;
/// Shares of the classes: BATCH, NORMAL, INTERACTIVE.
const CLASS_SHARES: [u64; class::COUNT] = [1, 8, 32];
/// Weight of a context that set none.
pub(super) const DEFAULT_WEIGHT: u32 = 100;
/// The largest weight.
pub(super) const MAX_WEIGHT: u32 = 1000;

/// How much service a set of classes has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    served: [u64; class::COUNT],
    now: [u64; class::COUNT],
    present: u64,
}

impl Shares {
    /// Nobody was served yet.
    pub const NEW: Self = Self { served: [0; class::COUNT], now: [0; class::COUNT], present: 0 };

    /// The class to serve, of those that have work.
    pub fn pick_class(&self, has_work: [bool; class::COUNT]) -> Option<usize> {
        // The higher class wins a tie.
        (0..class::COUNT).rev().filter(|&c| has_work[c]).min_by_key(|&c| self.served[c].max(self.present))
    }

    /// The service that a context of class `c` starts at when it gets its first job: not before the present.
    pub fn start(&self, c: usize, had: u64) -> u64 {
        had.max(self.now[c])
    }

    /// Takes note that one job of class `c` was served for a context that had `had` and weighs `weight`; returns what it
    /// has had then. `contexts` of the same user have jobs of that class: they get together what one would get.
    pub fn serve(&mut self, c: usize, had: u64, weight: u32, contexts: u64) -> u64 {
        let start = self.served[c].max(self.present);
        self.present = start;
        self.served[c] = start.wrapping_add(STRIDE / CLASS_SHARES[c]);
        self.now[c] = had;
        had.wrapping_add(STRIDE / u64::from(weight.clamp(1, MAX_WEIGHT)) * contexts.max(1))
    }
}
