//! The queue of this process: no system call on the way.

use super::{Extra, Fault, RingMap, Transport};
use crate::{
    queue::{
        broker::{Broker, Member, With},
        message::Jobs,
    },
    sys::memfd::Shared,
};
use rustai_abi::queue::{Errno, Setup};
use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

/// A client in the broker's own process.
pub struct InProcess {
    member: Member,
    ring: Mutex<Option<OwnedFd>>,
}

impl InProcess {
    /// Opens a client.
    ///
    /// # Errors
    /// `ENFILE` if the broker has no place left.
    pub fn open(broker: &Arc<Broker>) -> Result<Self, Errno> {
        let uid = rustix::process::geteuid().as_raw();
        Ok(Self { member: broker.open(uid, 0, false)?, ring: Mutex::new(None) })
    }
}

impl Transport for InProcess {
    fn name(&self) -> &'static str {
        "in-process"
    }

    fn call(&self, op: u32, bytes: &mut [u8], extra: Extra<'_>) -> Result<(), Fault> {
        let Extra { jobs, tensors, fd } = extra;
        let answer = self.member.call(op, bytes, With { jobs: Jobs::Structs { jobs, tensors }, fd, socket: None })?;
        if let Some(ring) = answer.ring {
            *self.ring.lock().unwrap_or_else(PoisonError::into_inner) = Some(ring);
        }
        Ok(())
    }

    fn map_ring(&self, setup: &Setup) -> Result<RingMap, Fault> {
        let fd = self.ring.lock().unwrap_or_else(PoisonError::into_inner).take();
        let fd = fd.ok_or(Fault::Protocol("no ring came with SETUP"))?;
        map(&fd, setup)
    }
}

/// Maps a ring that came as a memfd.
pub(super) fn map(fd: &OwnedFd, setup: &Setup) -> Result<RingMap, Fault> {
    let len = usize::try_from(setup.ring_bytes).map_err(|_| Fault::Protocol("a ring that is too large"))?;
    if rustix::fs::fstat(fd).map_err(|error| Fault::Io(error.into()))?.st_size < setup.ring_bytes as i64 {
        return Err(Fault::Protocol("a ring shorter than it says"));
    }
    Ok(RingMap(Arc::new(Shared::new(fd, setup.ring_offset, len, false).map_err(Fault::Io)?)))
}
