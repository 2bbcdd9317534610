//! The tensor queue: the binary interface of `/dev/rustai` and the rules by which jobs pass through it.
//!
//! Everything here is arithmetic on values: no system call, no allocation, no `unsafe`. The kernel module compiles this
//! folder in, the socket transport and the in-process transport link it, so all three decide alike.
//!
//! | file | holds |
//! |---|---|
//! | `errno` | the error numbers of the interface |
//! | `layout` | operations, structs with size and offset of each field, constants, limits |
//! | `wire` | how a struct becomes bytes and is checked when it comes back |
//! | `validate` | what is wrong with a job, judged from a private copy of it |
//! | `state` | the states of a job, a context and the server, and the legal steps between them |
//! | `ring` | index arithmetic and slot accounting of the completion ring |
//! | `dispatch` | which context's job runs next |
//! | `core` | the queue itself, over storage that the caller provides |
//!
//! The source stays within Rust 1.85 and edition 2021, the kernel's own limits.

#![allow(unknown_lints, clippy::manual_is_multiple_of, reason = "the kernel's Rust has no `is_multiple_of`")]

mod core;
mod dispatch;
mod errno;
mod layout;
mod ring;
mod state;
mod validate;
mod wire;

pub use self::core::{
    BASE_FEATURES, BufferName, BufferSlot, ContextId, ContextSlot, Core, Fetched, JobSlot, MappedBuffer, Progressed,
    Sink, Ticket, Usage,
};
pub use self::dispatch::Shares;
pub use self::errno::Errno;
pub use self::layout::*;
pub use self::ring::Ring;
pub use self::state::{Cause, ContextState, Illegal, JobEvent, JobState, Lost, ServerState, Step};
pub use self::validate::{BufferView, JobRules, check_admission, validate};
pub use self::wire::{FieldInfo, Value, Wire};
