//! The system-call layer: the only place of this crate that may use `unsafe`.
//!
//! It owns what the standard library does not offer: memory-mapped files. It must never interpret the bytes that it
//! hands out.

mod mmap;

pub(crate) use mmap::Mapping;
