//! The queue of the kernel module.

use super::{Extra, Fault, RingMap, Transport};
use crate::{
    queue::{
        QueueError,
        engine_side::{EngineSide, Mapped, Patience},
    },
    sys::{
        device::{Pointed, operation},
        memfd::Shared,
    },
};
use rustai_abi::queue::{
    Ack, Attach, BufMap, BufferName, Commit, ContextId, Detach, Errno, Fetch, Job, Outcome, Progress, Progressed,
    Query, Setup, Submit, Ticket, Wire, feature, op, op_flag,
};
use rustix::fs::{Mode, OFlags, open};
use std::{
    mem::offset_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

fn open_node(path: &Path) -> Result<OwnedFd, QueueError> {
    let fd = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    fd.map_err(|error| QueueError::Open { path: path.to_owned(), source: error.into() })
}

/// A client of the device.
pub struct CharDev {
    device: OwnedFd,
    /// It takes jobs as io_uring commands.
    has_commands: bool,
}

impl CharDev {
    /// Opens the device at `path`.
    ///
    /// # Errors
    /// [`QueueError::Open`] if there is none or it may not be opened, [`QueueError::Version`] if it speaks another version.
    pub fn open(path: &Path) -> Result<Self, QueueError> {
        let mut this = Self { device: open_node(path)?, has_commands: false };
        this.has_commands = super::query(&this)?.features & feature::URING != 0;
        Ok(this)
    }

    /// The device's descriptor, for `poll` and io_uring.
    pub fn as_device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Transport for CharDev {
    fn command_device(&self) -> Option<BorrowedFd<'_>> {
        self.has_commands.then(|| self.device.as_fd())
    }

    fn name(&self) -> &'static str {
        "device"
    }

    fn call(&self, number: u32, bytes: &mut [u8], extra: Extra<'_>) -> Result<(), Fault> {
        if let Some(place) = bytes.get_mut(8..12)
            && matches!(number, op::BUF_REGISTER | op::EVENTFD)
        {
            place.copy_from_slice(&extra.fd.map_or(-1, |fd| fd.as_raw_fd()).to_ne_bytes());
        }
        if number != op::SUBMIT {
            return Ok(operation(self.device.as_fd(), number, bytes, &mut Pointed::Nothing)?);
        }
        let (mut jobs, mut tensors) = (Vec::with_capacity(extra.jobs.len() * Job::SIZE), extra.tensors);
        for job in extra.jobs {
            // A job that names more tensors than there are leads nowhere, and the device says so.
            let own = tensors.split_off(..job.tensor_count as usize).unwrap_or_default();
            let address = if own.is_empty() { 0 } else { own.as_ptr() as u64 };
            crate::queue::message::push(&mut jobs, &Job { tensors: address, ..*job });
        }
        let (address, count) = (offset_of!(Submit, jobs), offset_of!(Submit, count));
        let mut pointed = Pointed::Read { bytes: &jobs, size: Job::SIZE, address, count };
        Ok(operation(self.device.as_fd(), number, bytes, &mut pointed)?)
    }

    fn map_ring(&self, setup: &Setup) -> Result<RingMap, Fault> {
        let len = usize::try_from(setup.ring_bytes).map_err(|_| Fault::Protocol("a ring that is too large"))?;
        Ok(RingMap(Arc::new(Shared::new(&self.device, setup.ring_offset, len, false).map_err(Fault::Io)?)))
    }
}

/// The server's end of the device.
pub struct EngineDevice {
    device: OwnedFd,
}

impl EngineDevice {
    /// Opens the server's node at `path`.
    ///
    /// # Errors
    /// [`QueueError::Open`] if there is none or it may not be opened.
    pub fn open(path: &Path) -> Result<Self, QueueError> {
        Ok(Self { device: open_node(path)? })
    }

    fn run<T: Wire>(&self, number: u32, ask: &T, pointed: &mut Pointed<'_>) -> Result<T, Errno> {
        let mut bytes = [0; 128];
        let bytes = &mut bytes[..T::SIZE];
        let written = ask.write(bytes);
        debug_assert!(written);
        operation(self.device.as_fd(), number, bytes, pointed)?;
        T::read(bytes).ok_or(Errno::EPROTO)
    }
}

impl EngineSide for EngineDevice {
    fn query(&self) -> Result<Query, Errno> {
        self.run(op::QUERY, &Query::new(), &mut Pointed::Nothing)
    }

    fn attach(&self, ask: &Attach) -> Result<Attach, Errno> {
        self.run(op::ATTACH, ask, &mut Pointed::Nothing)
    }

    fn fetch(&self, out: &mut [u8], max: u32, patience: Patience) -> Result<(u32, usize), Errno> {
        let (flags, deadline_ns) = match patience {
            Patience::None => (op_flag::NO_WAIT, 0),
            Patience::Until(at) => (op_flag::DEADLINE, at),
            Patience::Unbounded => (0, 0),
        };
        let room = out.len();
        let (address, len) = (offset_of!(Fetch, records), offset_of!(Fetch, len));
        let mut pointed = Pointed::Write { bytes: out, address, len };
        let answer = self.run(op::FETCH, &Fetch { flags, deadline_ns, max, ..Fetch::new() }, &mut pointed)?;
        Ok((answer.count, (answer.used as usize).min(room)))
    }

    fn map(&self, client: ContextId, name: BufferName) -> Result<Mapped, Errno> {
        let ask = BufMap {
            context: client.index,
            context_generation: client.generation,
            buffer: name.buffer,
            generation: name.generation,
            ..BufMap::new()
        };
        let answer = self.run(op::BUF_MAP, &ask, &mut Pointed::Nothing)?;
        let fd = crate::sys::device::installed(answer.fd).ok_or(Errno::EBADF)?;
        let writable = answer.flags & op_flag::MAPPED_RW != 0;
        Ok(Mapped { fd, offset: answer.offset, len: answer.len, writable })
    }

    fn progress(&self, ticket: Ticket, count: u32) -> Result<Progressed, Errno> {
        let ask = Progress { slot: ticket.slot, generation: ticket.generation, count, ..Progress::new() };
        match self.run(op::PROGRESS, &ask, &mut Pointed::Nothing) {
            Ok(_) => Ok(Progressed::Told),
            Err(Errno::ECANCELED) => Ok(Progressed::Stop),
            Err(errno) => Err(errno),
        }
    }

    fn commit(&self, outcomes: &[Outcome]) -> Result<u32, (u32, Errno)> {
        let mut bytes = Vec::with_capacity(outcomes.len() * Outcome::SIZE);
        outcomes.iter().for_each(|outcome| crate::queue::message::push(&mut bytes, outcome));
        let (address, count) = (offset_of!(Commit, outcomes), offset_of!(Commit, count));
        let mut pointed = Pointed::Read { bytes: &bytes, size: Outcome::SIZE, address, count };
        let answer = self.run(op::COMMIT, &Commit::new(), &mut pointed).map_err(|errno| (0, errno))?;
        match Errno::from_raw(answer.error as i32) {
            Some(errno) => Err((answer.done, errno)),
            None => Ok(answer.done),
        }
    }

    fn ack(&self, ask: &Ack) -> Result<(), Errno> {
        self.run(op::ACK, ask, &mut Pointed::Nothing).map(drop)
    }

    fn detach(&self) -> Result<(), Errno> {
        self.run(op::DETACH, &Detach::new(), &mut Pointed::Nothing).map(drop)
    }
}
