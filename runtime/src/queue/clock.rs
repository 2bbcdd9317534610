//! `CLOCK_MONOTONIC`, in which the queue tells all times.

use std::time::Duration;

/// The present, in nanoseconds.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The clock starts at boot, so it is never negative.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The time in `duration` from now; saturates.
pub fn deadline(duration: Duration) -> u64 {
    now_ns().saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

/// What is left until `deadline_ns`; `None` if it has passed.
pub(super) fn until(deadline_ns: u64) -> Option<Duration> {
    deadline_ns.checked_sub(now_ns()).filter(|&left| left > 0).map(Duration::from_nanos)
}

/// For `poll` and its like, which want a relative time.
pub(super) fn timespec(duration: Duration) -> rustix::time::Timespec {
    rustix::time::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
