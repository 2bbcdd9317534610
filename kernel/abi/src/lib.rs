//! The vocabulary that rustai's parts share.
//!
//! This crate owns the numbers that files, kernels and other processes must agree on: tensor element types, their
//! identifiers and their block layouts, and the tensor queue's interface and rules. It has no dependency, allocates nothing and contains no `unsafe`, so that the
//! same source can be compiled into the runtime, into tests and into a kernel module. It must never learn how a value
//! is computed or where it is stored.
#![no_std]
#![forbid(unsafe_code)]

mod batch;
mod dtype;
pub mod queue;

pub use batch::{Batch, BatchSequence, PAGE_TOKENS};
pub use dtype::{DType, UnknownDType};
