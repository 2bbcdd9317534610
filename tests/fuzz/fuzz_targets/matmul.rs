//! The fast kernels on arbitrary blocks and activations: they must give what the scalar reference gives.
//!
//! `cargo +nightly fuzz run matmul --fuzz-dir tests/fuzz -- -len_control=0` (see README.md). The body is shared with the
//! tests of `kernels-cpu`, which run it on random bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../kernels-cpu/tests/differential/mod.rs"]
mod differential;

fuzz_target!(|bytes: &[u8]| differential::check(bytes));
