//! Which context's job runs next: shares by class, by weight within a class, and by weight within a user.
//!
//! Contexts of one user share what one of them would get, so that opening many gains nothing.
//!
//! All levels are stride scheduling: whoever was served least for its share goes first, and one that was idle starts at
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

/// What one job adds to the service of who weighs `weight`.
pub(super) fn step(weight: u32) -> u64 {
    STRIDE / u64::from(weight.clamp(1, MAX_WEIGHT))
}

/// The service of a context in one class: first comes whose user had least, then which of the user's contexts had least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Served {
    /// Of all contexts of the user; the same value in each of them.
    pub user: u64,
    /// Of the context alone.
    pub own: u64,
}

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

    /// The service that a user of class `c` starts at when its first job comes: not before the present.
    pub fn start(&self, c: usize, had: u64) -> u64 {
        had.max(self.now[c])
    }

    /// Takes note that one job of class `c` was served for a user that had `had`, from a context that weighs `weight`;
    /// returns what the user has had then.
    pub fn serve(&mut self, c: usize, had: u64, weight: u32) -> u64 {
        let start = self.served[c].max(self.present);
        self.present = start;
        self.served[c] = start.wrapping_add(STRIDE / CLASS_SHARES[c]);
        self.now[c] = had;
        had.wrapping_add(step(weight))
    }
}
