//! The emulator finds wrong uses of copies and barriers in whatever order threads run, so that tests of kernels would.

mod support;

use rustai_cuda_standin::{EARLY, SCHEDULES};
use support::standin;

#[test]
fn wrong_uses_of_copies_and_barriers_are_found() {
    let standin = standin();
    if standin.is_real() {
        return;
    }
    for schedule in SCHEDULES {
        standin.set("schedule", i64::from(schedule));
        // A warp, and two tiles of 8 rows.
        let run = |name: &str| standin.run(&format!("misuse_{name}"), 32, 2048);
        assert_eq!(run("none"), "", "order {schedule}");
        for (name, reason) in [
            ("tile_not_aligned", "no multiple of 1024"),
            ("no_room", "no room for it"),
            ("narrow_tile", "rows are not 128 bytes"),
            ("no_map", "no driver made"),
            ("no_barrier", "before it is made"),
            ("too_few_bytes_expected", "more bytes come"),
            ("too_many_bytes_expected", "deadlock"),
            ("more_bytes_than_a_barrier_counts", "more bytes than a barrier can count"),
            ("arrival_too_many", "more arrivals"),
        ] {
            let failure = run(name);
            assert!(failure.contains(reason), "{name}, order {schedule}: {failure:?}");
        }
        // A copy may be over early, and is not always.
        let failure = run("not_awaited");
        match schedule {
            0 | 1 => assert!(failure.contains("not one"), "order {schedule}: {failure:?}"),
            _ if schedule & EARLY != 0 => assert_eq!(failure, "", "order {schedule}"),
            _ => {}
        }
    }
}
