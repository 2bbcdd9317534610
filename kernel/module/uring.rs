// SPDX-License-Identifier: GPL-2.0

//! io_uring commands: a job whose completion is the command's.
//!
//! A command is issued once ([`Issued`]) and, if its job was admitted, waits in the table of the
//! job's slot ([`Waiting`]) until the job ends. When its ring or its task goes, io_uring issues it
//! again to have it canceled.

use crate::abi::{Ticket, UringSubmit, Wire};
use crate::shim;
use core::{
    ffi::{c_int, c_uint},
    marker::PhantomData,
};
use kernel::{bindings, prelude::*};

/// A command in the hands of io_uring: just issued, or to be canceled.
///
/// # Invariants
///
/// `cmd` is a command that has not completed and does not while this lives.
pub(crate) struct Issued<'a> {
    cmd: *mut bindings::io_uring_cmd,
    flags: c_uint,
    _call: PhantomData<&'a ()>,
}

impl Issued<'_> {
    /// # Safety
    ///
    /// `cmd` must be valid, and `flags` be what io_uring passed with it, during the call of
    /// `uring_cmd` that `'a` is.
    pub(crate) unsafe fn new(cmd: *mut bindings::io_uring_cmd, flags: c_uint) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            cmd,
            flags,
            _call: PhantomData,
        }
    }

    /// Its operation, an ioctl number.
    pub(crate) fn operation(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { shim::rustai_uring_op(self.cmd) }
    }

    /// Whether it was issued before and is to be canceled.
    pub(crate) fn is_cancel(&self) -> bool {
        // SAFETY: The function looks at the flags alone.
        unsafe { shim::rustai_uring_is_cancel(self.flags) }
    }

    /// The struct in its command area, copied once: user space may change the original.
    pub(crate) fn ask(&self) -> Result<UringSubmit> {
        let mut bytes = [0u8; UringSubmit::SIZE];
        // SAFETY: By the type invariant; the function writes the bytes of the command area, which
        // are as many.
        unsafe { shim::rustai_uring_read(self.cmd, bytes.as_mut_ptr()) };
        UringSubmit::read(&bytes).ok_or(EINVAL)
    }

    /// The job that it waits for; `None` if it was not given one yet. The lock of the queue is
    /// held.
    pub(crate) fn ticket(&self) -> Option<Ticket> {
        let (mut slot, mut generation) = (0, 0);
        // SAFETY: By the type invariant, and both pointers are valid for writes.
        let named = unsafe { shim::rustai_uring_named(self.cmd, &mut slot, &mut generation) };
        named.then_some(Ticket { slot, generation })
    }

    /// From now on io_uring asks for its cancelation when its ring or task goes.
    pub(crate) fn start(self) -> Started {
        // SAFETY: By the type invariant; this is the call that issued it.
        unsafe { shim::rustai_uring_start(self.cmd, self.flags) };
        Started {
            cmd: self.cmd,
            flags: self.flags,
        }
    }
}

/// A command that may be canceled, and will be given a job or refused.
///
/// # Invariants
///
/// `cmd` is a command that has not completed, and nobody else completes it.
#[must_use = "a command that is neither given a job nor refused never completes"]
pub(crate) struct Started {
    cmd: *mut bindings::io_uring_cmd,
    flags: c_uint,
}

impl Started {
    /// Completes it without a job.
    pub(crate) fn refuse(self, err: Error) {
        // SAFETY: By the type invariant; the flags are those of the call that goes on.
        unsafe { shim::rustai_uring_refuse(self.cmd, err.to_errno(), self.flags) };
    }

    /// Lets it wait for a job. The lock of the queue is held.
    pub(crate) fn wait_for(self, ticket: Ticket) -> Waiting {
        // SAFETY: By the type invariant.
        unsafe { shim::rustai_uring_name(self.cmd, ticket.slot, ticket.generation) };
        // INVARIANT: As for `self`, which is consumed.
        Waiting { cmd: self.cmd }
    }
}

/// A command that waits for its job.
///
/// # Invariants
///
/// `cmd` is a command that has not completed, and nobody else completes it.
pub(crate) struct Waiting {
    cmd: *mut bindings::io_uring_cmd,
}

// SAFETY: A waiting command may be completed from any thread.
unsafe impl Send for Waiting {}

impl Waiting {
    /// Completes it, as the work of the task that submitted it.
    pub(crate) fn complete(self, result: c_int) {
        // SAFETY: By the type invariant; `self` is consumed, so this happens once.
        unsafe { shim::rustai_uring_complete(self.cmd, result) };
    }
}
