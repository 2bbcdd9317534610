// SPDX-License-Identifier: GPL-2.0

//! The interface and its rules: the source of the `rustai-abi` crate, compiled in.

#[path = "../abi/src/dtype.rs"]
pub(crate) mod dtype;
#[path = "../abi/src/queue/mod.rs"]
pub(crate) mod queue;

pub(crate) use self::queue::*;
