//! What the kernel module must do, tried from user space inside of an emulated machine.
//!
//! Each test runs in a child process with a watchdog. After each one the module must have nothing in use and its
//! invariants must hold. The last line is `suite: N passed, N failed, N skipped`.
//!
//! Words on the command line choose the tests whose names contain one of them. `layout` prints the layouts instead.

mod death;
mod errnos;
mod faults;
mod fuzz;
mod jobs;
mod layout;
mod memory;
mod node;
mod sides;
mod sys;
mod tenants;
mod uring;
mod verdicts;

use sys::*;

/// A test's name and its function.
pub type Test = (&'static str, fn());

/// Ends the test as one that this machine cannot run.
pub fn skip(why: &str) -> ! {
    println!("     ({why})");
    std::process::exit(SKIPPED);
}

const SKIPPED: i32 = 77;
/// What a test may take.
const SECONDS: u32 = 600;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words == ["layout"] {
        return layout::print_all();
    }
    let is_chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let groups: [(&str, &[Test]); 10] = [
        ("node", node::TESTS),
        ("errno", errnos::TESTS),
        ("verdict", verdicts::TESTS),
        ("memory", memory::TESTS),
        ("job", jobs::TESTS),
        ("tenant", tenants::TESTS),
        ("uring", uring::TESTS),
        ("death", death::TESTS),
        ("fault", faults::TESTS),
        ("fuzz", fuzz::TESTS),
    ];
    node::load();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (group, tests) in groups {
        for (name, test) in tests {
            let name = format!("{group}: {name}");
            if !is_chosen(&name) {
                continue;
            }
            let started = now_ns();
            let child = Child::run(|| {
                watchdog(SECONDS);
                test();
                0
            });
            let end = child.wait();
            let clean = end == End::Exit(SKIPPED) || is_clean();
            let outcome = match end {
                End::Exit(0) if clean => {
                    passed += 1;
                    "ok"
                }
                End::Exit(SKIPPED) => {
                    skipped += 1;
                    "skip"
                }
                _ => {
                    failed += 1;
                    println!("     ended by {end:?}, {}", if clean { "left nothing" } else { "left something" });
                    "FAIL"
                }
            };
            println!("{outcome:4} {name} ({} ms)", (now_ns() - started) / 1_000_000);
        }
    }
    let unloaded = unload_module("rustai");
    if unloaded != Ok(()) {
        println!("FAIL the idle module does not unload at the end: {unloaded:?}");
        failed += 1;
    }
    println!("suite: {passed} passed, {failed} failed, {skipped} skipped");
}

/// Whether a test left nothing in the module.
fn is_clean() -> bool {
    let audit = Child::run(|| {
        sides::Report::until("empty", sides::Report::is_empty);
        0
    });
    audit.wait() == End::Exit(0)
}
