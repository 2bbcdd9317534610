//! How many threads.

use crate::ui;
use std::{num::NonZero, thread};

/// Cores that this process may use: what affinity masks and control groups leave of the machine.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Turns the number on the command line into one that makes sense here: 0 is one per core, and more threads than cores
/// only get in each other's way, so the number is lowered, with a warning.
pub fn threads(asked: usize) -> usize {
    let (threads, too_many) = clamp(asked, cores());
    if too_many {
        let verb = if threads == 1 { "is" } else { "are" };
        let cores = ui::counted(threads, "core");
        ui::warn(format_args!("{asked} threads were asked for, but there {verb} {cores}; {threads} will run"));
    }
    threads
}

fn clamp(asked: usize, cores: usize) -> (usize, bool) {
    match asked {
        0 => (cores, false),
        n => (n.min(cores), n > cores),
    }
}

#[cfg(test)]
mod tests {
    use super::clamp;

    #[test]
    fn threads_stay_within_the_cores() {
        assert_eq!(clamp(0, 4), (4, false));
        assert_eq!(clamp(4, 4), (4, false));
        assert_eq!(clamp(5, 4), (4, true));
        assert_eq!(clamp(usize::MAX, 1), (1, true));
    }
}
