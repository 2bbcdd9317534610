// SPDX-License-Identifier: GPL-2.0

//! `/dev/rustai-engine`: the file that is attached is the server.

use crate::abi::{
    op, op_flag, Ack, Attach, BufMap, BufferName, Commit, ContextId, Detach, Errno, Fetch, Fetched,
    Outcome, Progress, Progressed, Sink, Ticket, MAX_BATCH, MAX_RECORD,
};
use crate::shared::{jiffies_until, now_ns, Bell, Inner, Shared};
use crate::{shim, user, user::error};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_err_ptr,
    fs::{file::FileDescriptorReservation, File},
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    prelude::*,
    sync::{aref::ARef, poll::PollTable, Arc, CondVarTimeoutResult},
    uaccess::{UserPtr, UserSlice},
};

/// A client's buffer, each of the two by number and generation.
fn named(client: (u32, u32), buffer: (u32, u32)) -> (ContextId, BufferName) {
    let id = ContextId {
        index: client.0,
        generation: client.1,
    };
    let name = BufferName {
        buffer: buffer.0,
        generation: buffer.1,
    };
    (id, name)
}

/// One open file.
pub(crate) struct Server {
    shared: Arc<Shared>,
    bell: Arc<Bell>,
    /// Tells this open file from others.
    number: u64,
}

impl Server {
    /// Runs `f` if this file is the server.
    fn attached<R>(&self, f: impl FnOnce(&mut Inner) -> Result<R>) -> Result<R> {
        let mut inner = self.shared.inner.lock();
        if inner.owner != Some(self.number) {
            return Err(ENOTCONN);
        }
        f(&mut inner)
    }

    fn attach(&self, arg: usize) -> Result {
        let ask: Attach = user::read_for_answer(arg)?;
        let answer = {
            let mut inner = self.shared.inner.lock();
            let Inner {
                core,
                outside,
                owner,
                ..
            } = &mut *inner;
            let answer = core.attach(&ask, outside).map_err(error)?;
            *owner = Some(self.number);
            inner.publish_server();
            answer
        };
        user::write(arg, &answer).inspect_err(|_| self.detach())
    }

    fn detach(&self) {
        let _ = self.attached(|inner| {
            inner.owner = None;
            let Inner { core, outside, .. } = &mut *inner;
            let _ = core.detach(outside);
            // Other threads of the server may be waiting in FETCH.
            outside.wake_server();
            inner.publish_server();
            Ok(())
        });
    }

    fn fetch(&self, arg: usize) -> Result {
        let ask: Fetch = user::read_for_answer(arg)?;
        if ask.flags & !(op_flag::DEADLINE | op_flag::NO_WAIT) != 0
            || ask.reserved != [0; 3]
            || ask.max == 0
        {
            return Err(EINVAL);
        }
        let records = usize::try_from(ask.records).map_err(|_| EFAULT)?;
        let mut staging = KVec::from_elem(0u8, MAX_RECORD, GFP_KERNEL)?;
        let (mut count, mut used) = (0, 0usize);
        while count < ask.max {
            let room = (ask.len as usize - used).min(MAX_RECORD);
            let (fetched, len) = match self.next(&ask, &mut staging[..room], count == 0) {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(_) if count > 0 => break,
                Err(err) => return Err(err),
            };
            let at = UserPtr::from_addr(records).wrapping_byte_add(used);
            if let Err(err) = UserSlice::new(at, len)
                .writer()
                .write_slice(&staging[..len])
            {
                let mut inner = self.shared.inner.lock();
                let Inner { core, outside, .. } = &mut *inner;
                core.unfetch(fetched, outside);
                if count == 0 {
                    return Err(err);
                }
                break;
            }
            count += 1;
            used += len;
        }
        user::write(
            arg,
            &Fetch {
                count,
                used: used as u32,
                ..ask
            },
        )
    }

    /// The next record, in `out`; waits for one if `may_wait`.
    fn next(
        &self,
        ask: &Fetch,
        out: &mut [u8],
        may_wait: bool,
    ) -> Result<Option<(Fetched, usize)>> {
        let mut inner = self.shared.inner.lock();
        loop {
            if inner.owner != Some(self.number) {
                return Err(ENOTCONN);
            }
            let Inner { core, outside, .. } = &mut *inner;
            let next = core.fetch(now_ns(), out, outside).map_err(error)?;
            if next.is_some() || !may_wait || ask.flags & op_flag::NO_WAIT != 0 {
                return Ok(next);
            }
            if ask.flags & op_flag::DEADLINE == 0 {
                if self.bell.wait.wait_interruptible(&mut inner) {
                    return Err(ERESTARTSYS);
                }
                continue;
            }
            let left = jiffies_until(ask.deadline_ns).ok_or(ETIME)?;
            if let CondVarTimeoutResult::Signal { .. } =
                self.bell.wait.wait_interruptible_timeout(&mut inner, left)
            {
                return Err(ERESTARTSYS);
            }
        }
    }

    fn map(&self, arg: usize) -> Result {
        let ask: BufMap = user::read_for_answer(arg)?;
        if ask.flags != 0 || ask.reserved0 != 0 || ask.reserved != [0; 2] {
            return Err(EINVAL);
        }
        let (id, name) = named(
            (ask.context, ask.context_generation),
            (ask.buffer, ask.generation),
        );
        // The descriptor is reserved first and installed last: nothing can fail between.
        let fd = FileDescriptorReservation::get_unused_fd_flags(bindings::O_CLOEXEC)?;
        let (client, offset, len, writable) = self.attached(|inner| {
            let mapped = inner.core.mappable(id, name).map_err(error)?;
            // The queue keeps a buffer's slot as long as its file.
            let backing = inner.outside.files[mapped.index].as_ref().ok_or(ENOENT)?;
            Ok((
                backing.file.clone(),
                backing.offset,
                backing.len,
                mapped.writable,
            ))
        })?;
        // SAFETY: `client` is a live file, and `rustai_reopen` returns a new reference or an error
        // pointer.
        let file = unsafe { from_err_ptr(shim::rustai_reopen(client.as_ptr(), writable)) }?;
        // SAFETY: The reference is ours to give away, and nobody else knows this open file.
        let file = unsafe { ARef::from_raw(NonNull::new(file).ok_or(ENOMEM)?.cast::<File>()) };
        let flags = if writable { op_flag::MAPPED_RW } else { 0 };
        let number = fd.reserved_fd() as i32;
        user::write(
            arg,
            &BufMap {
                flags,
                offset,
                len,
                fd: number,
                ..ask
            },
        )?;
        // The lock was not held meanwhile: the buffer may have gone.
        self.attached(|inner| inner.core.map(id, name).map_err(error))?;
        fd.fd_install(file);
        Ok(())
    }

    fn progress(&self, arg: usize) -> Result {
        let ask: Progress = user::read(arg)?;
        if ask.flags != 0 || ask.reserved != 0 {
            return Err(EINVAL);
        }
        let ticket = Ticket {
            slot: ask.slot,
            generation: ask.generation,
        };
        self.attached(|inner| {
            let Inner { core, outside, .. } = inner;
            match core.progress(ticket, ask.count, outside).map_err(error)? {
                Progressed::Told => Ok(()),
                Progressed::Stop => Err(error(Errno::ECANCELED)),
            }
        })
    }

    fn commit(&self, arg: usize) -> Result {
        let ask: Commit = user::read_for_answer(arg)?;
        if ask.flags != 0 || ask.reserved != 0 {
            return Err(EINVAL);
        }
        if ask.count > MAX_BATCH {
            return Err(E2BIG);
        }
        let mut answer = Commit {
            done: 0,
            error: 0,
            ..ask
        };
        for i in 0..ask.count as usize {
            let result = user::element(ask.outcomes, i).and_then(|outcome: Outcome| {
                self.attached(|inner| {
                    let Inner { core, outside, .. } = inner;
                    core.commit(&outcome, outside).map_err(error)
                })
            });
            match result {
                Ok(()) => answer.done += 1,
                Err(err) if answer.done == 0 => return Err(err),
                Err(err) => {
                    answer.error = err.to_errno().unsigned_abs();
                    break;
                }
            }
        }
        user::write(arg, &answer)
    }

    fn ack(&self, arg: usize) -> Result {
        let ask: Ack = user::read(arg)?;
        if ask.flags != 0 {
            return Err(EINVAL);
        }
        let (id, name) = named(
            (ask.context, ask.context_generation),
            (ask.buffer, ask.generation),
        );
        self.attached(|inner| {
            let Inner { core, outside, .. } = inner;
            core.ack(id, name, outside).map_err(error)
        })
    }

    /// The bits that `poll` reports.
    pub(crate) fn poll(&self, file: &File, table: PollTable<'_>) -> bindings::__poll_t {
        table.register_wait(file, &self.bell.wait);
        let inner = self.shared.inner.lock();
        let ready = inner.owner == Some(self.number) && inner.core.has_work();
        let bits = if ready {
            bindings::POLLIN | bindings::POLLRDNORM
        } else {
            0
        };
        bits as bindings::__poll_t
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.detach();
    }
}

#[vtable]
impl MiscDevice for Server {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        let shared = crate::shared()?;
        let (bell, number) = {
            let mut inner = shared.inner.lock();
            inner.next_open += 1;
            (inner.outside.server.clone(), inner.next_open)
        };
        Ok(KBox::new(
            Self {
                shared,
                bell,
                number,
            },
            GFP_KERNEL,
        )?)
    }

    fn ioctl(me: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        match crate::operation(cmd)? {
            op::QUERY => crate::query(&me.shared, arg),
            op::ATTACH => me.attach(arg),
            op::FETCH => me.fetch(arg),
            op::BUF_MAP => me.map(arg),
            op::PROGRESS => me.progress(arg),
            op::COMMIT => me.commit(arg),
            op::ACK => me.ack(arg),
            op::DETACH => {
                let ask: Detach = user::read(arg)?;
                if ask.flags != 0 {
                    return Err(EINVAL);
                }
                me.attached(|_| Ok(()))?;
                me.detach();
                Ok(())
            }
            number if op::is_client(number) => Err(EPERM),
            _ => Err(ENOTTY),
        }?;
        Ok(0)
    }
}
