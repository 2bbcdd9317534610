//! The operations of a client, on bytes: the same for every transport that ends in this process.

use super::{Member, outside::RingMemory};
use crate::{
    queue::message::Jobs,
    sys::memfd::{self, BufferFile},
};
use rustai_abi::queue::{
    BufRegister, BufRelease, BufferName, Cancel, Errno, EventFd, Limits, MAX_BATCH, MAX_STRUCT, MAX_TENSORS, Query,
    Ring, Setup, Stat, Submit, Tensor, Wait, Wire, check_admission, job_flag, op, op_flag,
};
use std::os::fd::{BorrowedFd, OwnedFd};

/// What comes back beside the struct.
#[derive(Debug, Default)]
pub(in crate::queue) struct Answer {
    /// The memory of the ring, for the client to map.
    pub(in crate::queue) ring: Option<OwnedFd>,
}

/// What comes with an operation beside its struct.
pub(in crate::queue) struct With<'a> {
    pub(in crate::queue) jobs: Jobs<'a>,
    pub(in crate::queue) fd: Option<BorrowedFd<'a>>,
    /// The client's socket, whose end ends a wait.
    pub(in crate::queue) socket: Option<BorrowedFd<'a>>,
}

/// A struct as the caller passed it.
fn read<T: Wire>(bytes: &[u8]) -> Result<T, Errno> {
    let size = bytes.first_chunk().map_or(0, |size| u32::from_ne_bytes(*size));
    if (size as usize) < T::SIZE {
        return Err(Errno::EINVAL);
    }
    if size > MAX_STRUCT {
        return Err(Errno::E2BIG);
    }
    T::parse(bytes)
}

/// The answer, where the caller passed the struct. A longer struct keeps its size and its tail.
fn write<T: Wire>(bytes: &mut [u8], value: &T) -> Result<(), Errno> {
    if value.write(bytes) { Ok(()) } else { Err(Errno::EINVAL) }
}

impl Member {
    /// Runs one operation on the struct in `bytes`, which takes the answer. A call that fails changes nothing.
    pub(in crate::queue) fn call(&self, number: u32, bytes: &mut [u8], with: With<'_>) -> Result<Answer, Errno> {
        match number {
            op::QUERY => {
                let ask: Query = read(bytes)?;
                if ask.flags != 0 {
                    return Err(Errno::EINVAL);
                }
                write(bytes, &Query { size: ask.size, ..self.broker.query() })?;
            }
            op::SETUP => return self.setup(bytes),
            op::BUF_REGISTER => self.register(bytes, with.fd)?,
            op::BUF_RELEASE => {
                let ask: BufRelease = read(bytes)?;
                if ask.flags != 0 {
                    return Err(Errno::EINVAL);
                }
                let name = BufferName { buffer: ask.buffer, generation: ask.generation };
                self.broker.with(false, |core, outside| core.release(self.id, name, outside))?;
            }
            op::SUBMIT => self.submit(bytes, with)?,
            op::WAIT => {
                let ask: Wait = read(bytes)?;
                if ask.flags & !op_flag::DEADLINE != 0 || ask.reserved != 0 {
                    return Err(Errno::EINVAL);
                }
                self.broker.with(false, |core, _| core.advance(self.id, ask.head))?;
                self.wait_for(ask.wait, ask.flags, ask.deadline_ns, with.socket)?;
                write(bytes, &Wait { tail: self.tail()?, ..ask })?;
            }
            op::CANCEL => self.cancel(bytes, with.socket)?,
            op::EVENTFD => self.eventfd(bytes, with.fd)?,
            op::LIMITS => {
                let ask: Limits = read(bytes)?;
                let may_raise = self.may_raise();
                let answer = self.broker.with(false, |core, _| core.set_limits(self.id, &ask, may_raise))?;
                write(bytes, &answer)?;
            }
            op::STAT => {
                let ask: Stat = read(bytes)?;
                if ask.flags != 0 {
                    return Err(Errno::EINVAL);
                }
                let answer = self.broker.with(false, |core, _| core.stat(self.id))?;
                write(bytes, &Stat { size: ask.size, ..answer })?;
            }
            number if op::is_server(number) => return Err(Errno::EPERM),
            _ => return Err(Errno::ENOTTY),
        }
        Ok(Answer::default())
    }

    fn side(&self) -> usize {
        self.id.index as usize
    }

    fn tail(&self) -> Result<u32, Errno> {
        self.broker.with(false, |core, _| core.ring(self.id)).map(|ring| ring.tail())
    }

    fn setup(&self, bytes: &mut [u8]) -> Result<Answer, Errno> {
        let ask: Setup = read(bytes)?;
        // Memory is made before the lock is taken, so that nobody waits for it.
        let made = match Ring::new(ask.entries) {
            Ok(_) => {
                let ring = RingMemory::new(ask.entries)?;
                let fd = ring.fd.try_clone().map_err(|_| Errno::ENOMEM)?;
                Ok((ring, fd))
            }
            Err(errno) => Err(errno),
        };
        let (answer, fd) = self.broker.with(false, |core, outside| {
            // What else is wrong with the call comes first.
            let answer = core.setup(self.id, &ask)?;
            match made {
                Ok((ring, fd)) => {
                    ring.publish_server(core.server());
                    outside.sides[self.side()].ring = Some(ring);
                    Ok((answer, fd))
                }
                Err(errno) => {
                    core.undo_setup(self.id);
                    Err(errno)
                }
            }
        })?;
        write(bytes, &answer)?;
        Ok(Answer { ring: Some(fd) })
    }

    fn check_ready(&self) -> Result<(), Errno> {
        self.broker.with(false, |core, _| core.check_ready(self.id))
    }

    fn register(&self, bytes: &mut [u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let ask: BufRegister = read(bytes)?;
        if ask.flags & !op_flag::BUF_RW != 0 || ask.reserved0 != 0 || ask.reserved != [0; 3] {
            return Err(Errno::EINVAL);
        }
        self.check_ready()?;
        let fd = fd.ok_or(Errno::EBADF)?;
        let wants_write = ask.flags & op_flag::BUF_RW != 0;
        let file_len = match memfd::inspect(fd).map_err(|_| Errno::EBADF)? {
            BufferFile::NotMemfd => return Err(Errno::EINVAL),
            BufferFile::Unsealed => return Err(Errno::EPERM),
            BufferFile::Sealed { readable, writable, .. } if !readable || wants_write && !writable => {
                return Err(Errno::EACCES);
            }
            BufferFile::Sealed { len, .. } => len,
        };
        super::Queue::check_range(ask.offset, ask.len, file_len)?;
        let file = fd.try_clone_to_owned().map_err(|_| Errno::ENOMEM)?;
        let name = self.broker.with(false, |core, outside| {
            let (name, slot) = core.register(self.id, ask.len, wants_write)?;
            outside.files[slot] = Some(super::outside::Backing { file, offset: ask.offset, len: ask.len });
            Ok::<_, Errno>(name)
        })?;
        write(bytes, &BufRegister { buffer: name.buffer, generation: name.generation, ..ask })
    }

    fn submit(&self, bytes: &mut [u8], mut with: With<'_>) -> Result<(), Errno> {
        let ask: Submit = read(bytes)?;
        if ask.flags & !op_flag::DEADLINE != 0 || ask.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        if ask.count > MAX_BATCH {
            return Err(Errno::E2BIG);
        }
        let mut answer = Submit { admitted: 0, first_seq: 0, error: 0, ..ask };
        let mut deadlines = false;
        let mut outcome = self.broker.with(true, |core, outside| {
            core.advance(self.id, ask.head).map_err(Err)?;
            let now_ns = crate::queue::clock::now_ns();
            let mut room = [Tensor::new(); MAX_TENSORS];
            let mut one = || {
                let (job, tensors) = with.jobs.take(&mut room, check_admission)?;
                deadlines |= job.flags & job_flag::DEADLINE != 0;
                core.submit(self.id, &job, tensors, now_ns, outside)
            };
            for _ in 0..ask.count {
                let seq = one().map_err(Ok)?;
                if answer.admitted == 0 {
                    answer.first_seq = seq;
                }
                answer.admitted += 1;
            }
            Ok(())
        });
        if deadlines {
            self.broker.mind_deadlines();
        }
        if outcome.is_ok() {
            outcome = self.wait_for(ask.wait, ask.flags, ask.deadline_ns, with.socket).map_err(Ok);
        }
        match outcome {
            Ok(()) => {}
            // Jobs were admitted: the call succeeds, and says why it stopped.
            Err(Ok(errno)) if answer.admitted > 0 => answer.error = errno.raw() as u32,
            Err(Ok(errno) | Err(errno)) => return Err(errno),
        }
        answer.tail = self.tail()?;
        write(bytes, &answer)
    }

    /// Waits until `wanted` completions are unread.
    fn wait_for(&self, wanted: u32, flags: u32, deadline_ns: u64, socket: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        if wanted == 0 {
            return Ok(());
        }
        let deadline = (flags & op_flag::DEADLINE != 0).then_some(deadline_ns);
        self.wait_until(deadline, socket, |core| {
            let ring = core.ring(self.id)?;
            if wanted > ring.entries() {
                return Err(Errno::EINVAL);
            }
            Ok((ring.unread() >= wanted).then_some(()))
        })
    }

    fn cancel(&self, bytes: &mut [u8], socket: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let ask: Cancel = read(bytes)?;
        let canceled = self.broker.with(true, |core, outside| core.cancel(self.id, &ask, outside))?;
        write(bytes, &Cancel { canceled, ..ask })?;
        if ask.flags & op_flag::SETTLE != 0 {
            let deadline = (ask.flags & op_flag::DEADLINE != 0).then_some(ask.deadline_ns);
            self.wait_until(deadline, socket, |core| Ok(core.is_settled(self.id).then_some(())))?;
        }
        Ok(())
    }

    fn eventfd(&self, bytes: &mut [u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let ask: EventFd = read(bytes)?;
        if ask.flags & !op_flag::REMOVE != 0 || ask.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        self.check_ready()?;
        let eventfd = if ask.flags & op_flag::REMOVE != 0 {
            None
        } else {
            let fd = fd.ok_or(Errno::EBADF)?;
            if !is_eventfd(fd) {
                return Err(Errno::EINVAL);
            }
            let fd = fd.try_clone_to_owned().map_err(|_| Errno::ENOMEM)?;
            // A client whose counter is full must not stop the queue.
            rustix::io::ioctl_fionbio(&fd, true).map_err(|_| Errno::EINVAL)?;
            Some(fd)
        };
        let _old = self
            .broker
            .with(false, |_, outside| std::mem::replace(&mut outside.sides[self.id.index as usize].eventfd, eventfd));
        Ok(())
    }
}

fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    std::fs::read_link(link).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}
