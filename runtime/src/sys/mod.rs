//! The system-call layer: the only place of this crate that may use `unsafe`.
//!
//! It owns what the standard library does not offer: memory-mapped files, memory shared with other processes, descriptors
//! sent over sockets, the ioctls of the queue's device, and io_uring. It must never interpret the bytes that it hands out.

#[cfg(target_os = "linux")]
pub(crate) mod device;
#[cfg(target_os = "linux")]
pub(crate) mod memfd;
mod mmap;
#[cfg(target_os = "linux")]
pub(crate) mod reads;
#[cfg(target_os = "linux")]
pub(crate) mod socket;
#[cfg(target_os = "linux")]
pub(crate) mod uring;

pub(crate) use mmap::Mapping;
