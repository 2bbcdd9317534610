//! The tensor queue, over every way to it.
//!
//! One list of tests (in `refusals`, `lives`) is run over each transport; a transport that this host cannot run is a skip that the
//! output names and counts, and with `RUSTAI_NO_SKIP=1` a failure. `opcodes` asks a model, `deaths` kills processes, `hostile` has a
//! client that harms itself.
#![cfg(target_os = "linux")]

mod deaths;
mod hostile;
mod lives;
mod opcodes;
mod refusals;
mod rig;
mod ring;

use rig::{Kind, Rig};
use std::sync::atomic::{AtomicUsize, Ordering};

static RUN: AtomicUsize = AtomicUsize::new(0);
static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// Runs one test over one transport, or names why it cannot.
fn over(kind: Kind, name: &str, test: fn(&Rig)) {
    match Rig::new(kind) {
        Ok(rig) => {
            test(&rig);
            rig.audit();
            RUN.fetch_add(1, Ordering::Relaxed);
        }
        Err(why) => {
            let skipped = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
            eprintln!("skip {skipped}: {name} over {kind:?}: {why}");
            assert!(std::env::var_os("RUSTAI_NO_SKIP").is_none(), "no skip is allowed here");
        }
    }
}

/// The list, once for each transport.
macro_rules! conformance {
    ($($module:ident: $($test:ident)*;)*) => {
        conformance! { @over in_process InProcess $($($module $test)*)* }
        conformance! { @over socket Socket $($($module $test)*)* }
        conformance! { @over device Device $($($module $test)*)* }
    };
    (@over $name:ident $kind:ident $($module:ident $test:ident)*) => {
        mod $name {
            $(
                #[test]
                fn $test() {
                    super::over(super::Kind::$kind, stringify!($test), super::$module::$test);
                }
            )*
        }
    };
}

conformance! {
    refusals:
        unknown_operations
        structs_of_other_versions
        pointers_that_lead_nowhere
        reserved_fields_and_unknown_flags
        versions_and_features
        operations_before_setup
        sizes_of_the_ring
        descriptors_that_are_no_buffers
        ranges_of_buffers
        quotas
        heads_ahead_of_the_tail
        no_room_and_no_server
        waits_end_in_time
        jobs_that_are_wrong
        outputs_that_overlap
        operations_of_the_server;
    lives:
        a_job_completes_once_with_its_result
        batches_say_how_far_they_got
        deadlines_in_the_queue_and_under_way
        dependencies_run_in_order_or_fail_together
        cancelled_jobs_let_go_of_their_buffers
        progress_is_coalesced
        buffers_go_when_the_last_job_and_the_server_are_done
        names_of_another_client_mean_nothing
        the_servers_death_under_each_policy
        reissues_are_counted
        a_client_that_closes_leaves_nothing
        classes_and_weights_share_the_server
        jobs_go_and_end_by_io_uring
        service_loops_watch_the_ring;
}
