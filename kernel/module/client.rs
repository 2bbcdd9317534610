// SPDX-License-Identifier: GPL-2.0

//! `/dev/rustai`: each open file is one client context.

use crate::abi::{
    check_admission, job_flag, op, op_flag, BufRegister, BufRelease, BufferName, Cancel, ContextId,
    EventFd, Job, Limits, Setup, Stat, Submit, Tensor, UringSubmit, Wait, Wire, MAX_BATCH,
    MAX_TENSORS,
};
use crate::shared::{self, jiffies_until, now_ns, Backing, Bell, Inner, RingMemory, Shared, Side};
use crate::{shim, uring, user, user::error};
use core::ffi::c_int;
use kernel::{
    bindings,
    error::to_result,
    fs::{file::LocalFile, File},
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    mm::virt::VmaNew,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{poll::PollTable, Arc, CondVarTimeoutResult},
};

/// A copy of a job and of its tensors.
fn read_job(jobs: u64, index: usize, tensors: &mut KVec<Tensor>) -> Result<Job> {
    let job: Job = user::element(jobs, index)?;
    check_admission(&job).map_err(error)?;
    tensors.clear();
    for i in 0..job.tensor_count as usize {
        tensors.push(user::element(job.tensors, i)?, GFP_KERNEL)?;
    }
    Ok(job)
}

/// One open file.
pub(crate) struct Client {
    shared: Arc<Shared>,
    id: ContextId,
    bell: Arc<Bell>,
}

impl Client {
    fn index(&self) -> usize {
        self.id.index as usize
    }

    fn setup(&self, arg: usize) -> Result {
        let ask: Setup = user::read_for_answer(arg)?;
        let mut inner = self.shared.inner.lock();
        let answer = inner.core.setup(self.id, &ask).map_err(error)?;
        // The lock is held over the allocation, so that nobody sees a context without its ring.
        match RingMemory::new(answer.ring_bytes as usize, ask.entries) {
            Ok(ring) => inner.outside.clients[self.index()].ring = Some(ring),
            Err(err) => {
                inner.core.undo_setup(self.id);
                return Err(err);
            }
        }
        inner.publish_server();
        drop(inner);
        user::write(arg, &answer)
    }

    /// Refuses a context without a ring, or a broken one.
    fn check_ready(&self) -> Result {
        let inner = self.shared.inner.lock();
        inner.core.check_ready(self.id).map_err(error)
    }

    fn register(&self, arg: usize) -> Result {
        let ask: BufRegister = user::read_for_answer(arg)?;
        if ask.flags & !op_flag::BUF_RW != 0 || ask.reserved0 != 0 || ask.reserved != [0; 3] {
            return Err(EINVAL);
        }
        self.check_ready()?;
        let fd = u32::try_from(ask.fd).map_err(|_| EBADF)?;
        let file = LocalFile::fget(fd)?;
        let writable = ask.flags & op_flag::BUF_RW != 0;
        let mut bytes = 0;
        // SAFETY: `file` is a live file, and `bytes` outlives the call.
        to_result(unsafe { shim::rustai_check_memfd(file.as_ptr(), writable, &mut bytes) })?;
        shared::Queue::check_range(ask.offset, ask.len, bytes).map_err(error)?;
        // SAFETY: No `fdget_pos` is active on this thread during an ioctl of another file, and a
        // memfd has no position that matters here.
        let file = unsafe { LocalFile::assume_no_fdget_pos(file) };
        let mut inner = self.shared.inner.lock();
        let (name, slot) = inner
            .core
            .register(self.id, ask.len, writable)
            .map_err(error)?;
        inner.outside.files[slot] = Some(Backing {
            file,
            offset: ask.offset,
            len: ask.len,
        });
        drop(inner);
        let answer = BufRegister {
            buffer: name.buffer,
            generation: name.generation,
            ..ask
        };
        user::write(arg, &answer).inspect_err(|_| {
            // The client never learned the name.
            let mut inner = self.shared.inner.lock();
            let Inner { core, outside, .. } = &mut *inner;
            let _ = core.release(self.id, name, outside);
        })
    }

    fn release_buffer(&self, arg: usize) -> Result {
        let ask: BufRelease = user::read(arg)?;
        if ask.flags != 0 {
            return Err(EINVAL);
        }
        let mut inner = self.shared.inner.lock();
        let Inner { core, outside, .. } = &mut *inner;
        core.release(
            self.id,
            BufferName {
                buffer: ask.buffer,
                generation: ask.generation,
            },
            outside,
        )
        .map_err(error)
    }

    fn submit(&self, arg: usize) -> Result {
        let ask: Submit = user::read_for_answer(arg)?;
        if ask.flags & !op_flag::DEADLINE != 0 || ask.reserved != 0 {
            return Err(EINVAL);
        }
        if ask.count > MAX_BATCH {
            return Err(E2BIG);
        }
        self.advance(ask.head, ask.wait)?;
        let mut answer = Submit {
            admitted: 0,
            first_seq: 0,
            error: 0,
            ..ask
        };
        let mut tensors = KVec::with_capacity(MAX_TENSORS, GFP_KERNEL)?;
        let mut outcome = Ok(());
        for i in 0..ask.count as usize {
            match self.submit_one(&ask, i, &mut tensors) {
                Ok(seq) if answer.admitted == 0 => (answer.admitted, answer.first_seq) = (1, seq),
                Ok(_) => answer.admitted += 1,
                Err(err) => {
                    outcome = Err(err);
                    break;
                }
            }
        }
        if outcome.is_ok() && ask.wait > 0 {
            outcome = self.wait_for(
                ask.wait,
                ask.flags & op_flag::DEADLINE != 0,
                ask.deadline_ns,
            );
        }
        if let Err(err) = outcome {
            if answer.admitted == 0 {
                return Err(err);
            }
            // Jobs were admitted: the call succeeds, and says why it stopped. An interrupted wait
            // is not restarted, since that would submit again.
            let err = if err == ERESTARTSYS { EINTR } else { err };
            answer.error = err.to_errno().unsigned_abs();
        }
        answer.tail = self
            .shared
            .inner
            .lock()
            .core
            .ring(self.id)
            .map_err(error)?
            .tail();
        user::write(arg, &answer)
    }

    fn submit_one(&self, ask: &Submit, i: usize, tensors: &mut KVec<Tensor>) -> Result<u64> {
        let job = read_job(ask.jobs, i, tensors)?;
        let mut inner = self.shared.inner.lock();
        let Inner { core, outside, .. } = &mut *inner;
        let seq = core
            .submit(self.id, &job, tensors, now_ns(), outside)
            .map_err(error)?;
        if job.flags & job_flag::DEADLINE != 0 {
            self.shared.watch(&mut inner);
        }
        Ok(seq)
    }

    /// SUBMIT as an io_uring command, or the cancelation of one.
    pub(crate) fn uring_cmd(&self, cmd: uring::Issued<'_>) -> Result<Option<c_int>> {
        if cmd.is_cancel() {
            let mut inner = self.shared.inner.lock();
            if let Some(ticket) = cmd.ticket() {
                let Inner { core, outside, .. } = &mut *inner;
                // One that has ended completes without help.
                let _ = core.cancel_direct(ticket, outside);
            }
            return Ok(None);
        }
        match crate::operation(cmd.operation())? {
            op::SUBMIT => {}
            number if op::is_server(number) && number != op::QUERY => return Err(EPERM),
            number if op::is_client(number) => return Err(EOPNOTSUPP),
            _ => return Err(ENOTTY),
        }
        let ask = cmd.ask()?;
        if ask.size as usize != UringSubmit::SIZE || ask.flags != 0 {
            return Err(EINVAL);
        }
        let mut tensors = KVec::with_capacity(MAX_TENSORS, GFP_KERNEL)?;
        let job = read_job(ask.job, 0, &mut tensors)?;
        let cmd = cmd.start();
        let mut inner = self.shared.inner.lock();
        let Inner { core, outside, .. } = &mut *inner;
        match core.submit_direct(self.id, &job, &tensors, now_ns(), outside) {
            Ok(ticket) => {
                outside.commands[ticket.slot as usize] = Some(cmd.wait_for(ticket));
                if job.flags & job_flag::DEADLINE != 0 {
                    self.shared.watch(&mut inner);
                }
            }
            Err(errno) => {
                drop(inner);
                cmd.refuse(error(errno));
            }
        }
        Ok(None)
    }

    fn wait(&self, arg: usize) -> Result {
        let ask: Wait = user::read(arg)?;
        if ask.flags & !op_flag::DEADLINE != 0 || ask.reserved != 0 {
            return Err(EINVAL);
        }
        self.advance(ask.head, ask.wait)?;
        if ask.wait > 0 {
            self.wait_for(
                ask.wait,
                ask.flags & op_flag::DEADLINE != 0,
                ask.deadline_ns,
            )?;
        }
        let tail = self
            .shared
            .inner
            .lock()
            .core
            .ring(self.id)
            .map_err(error)?
            .tail();
        user::write(arg, &Wait { tail, ..ask })
    }

    /// Takes note of how far the client has read; refuses to wait for more than the ring can hold.
    fn advance(&self, head: u32, wanted: u32) -> Result {
        let mut inner = self.shared.inner.lock();
        inner.core.check_ready(self.id).map_err(error)?;
        if wanted > inner.core.ring(self.id).map_err(error)?.entries() {
            return Err(EINVAL);
        }
        inner.core.advance(self.id, head).map_err(error)
    }

    /// Waits until `wanted` completions are unread.
    fn wait_for(&self, wanted: u32, bounded: bool, deadline_ns: u64) -> Result {
        self.sleep_until(bounded, deadline_ns, |inner| {
            Ok(inner.core.ring(self.id).map_err(error)?.unread() >= wanted)
        })
    }

    fn sleep_until(
        &self,
        bounded: bool,
        deadline_ns: u64,
        done: impl Fn(&Inner) -> Result<bool>,
    ) -> Result {
        let mut inner = self.shared.inner.lock();
        loop {
            if done(&inner)? {
                return Ok(());
            }
            if !bounded {
                if self.bell.wait.wait_interruptible(&mut inner) {
                    return Err(ERESTARTSYS);
                }
                continue;
            }
            let left = jiffies_until(deadline_ns).ok_or(ETIME)?;
            if let CondVarTimeoutResult::Signal { .. } =
                self.bell.wait.wait_interruptible_timeout(&mut inner, left)
            {
                return Err(ERESTARTSYS);
            }
        }
    }

    fn cancel(&self, arg: usize) -> Result {
        let ask: Cancel = user::read_for_answer(arg)?;
        let canceled = {
            let mut inner = self.shared.inner.lock();
            let Inner { core, outside, .. } = &mut *inner;
            core.cancel(self.id, &ask, outside).map_err(error)?
        };
        // Written before the wait: a call that is restarted finds nothing more to cancel.
        user::write(arg, &Cancel { canceled, ..ask })?;
        if ask.flags & op_flag::SETTLE != 0 {
            let bounded = ask.flags & op_flag::DEADLINE != 0;
            self.sleep_until(bounded, ask.deadline_ns, |inner| {
                Ok(inner.core.is_settled(self.id))
            })?;
        }
        Ok(())
    }

    fn eventfd(&self, arg: usize) -> Result {
        let ask: EventFd = user::read(arg)?;
        if ask.flags & !op_flag::REMOVE != 0 || ask.reserved != 0 {
            return Err(EINVAL);
        }
        self.check_ready()?;
        let eventfd = match ask.flags & op_flag::REMOVE {
            0 => Some(shared::EventFd::get(ask.fd)?),
            _ => None,
        };
        // The old one goes after the lock.
        let _old = {
            let mut inner = self.shared.inner.lock();
            core::mem::replace(&mut inner.outside.clients[self.index()].eventfd, eventfd)
        };
        Ok(())
    }

    fn limits(&self, arg: usize) -> Result {
        let ask: Limits = user::read_for_answer(arg)?;
        // SAFETY: The function only looks at the current task.
        let may_raise = unsafe { shim::rustai_may_raise() };
        let answer = self
            .shared
            .inner
            .lock()
            .core
            .set_limits(self.id, &ask, may_raise)
            .map_err(error)?;
        user::write(arg, &answer)
    }

    fn stat(&self, arg: usize) -> Result {
        let ask: Stat = user::read(arg)?;
        if ask.flags != 0 {
            return Err(EINVAL);
        }
        let answer = self.shared.inner.lock().core.stat(self.id).map_err(error)?;
        user::write(arg, &answer)
    }

    /// The bits that `poll` reports.
    pub(crate) fn poll(&self, file: &File, table: PollTable<'_>) -> bindings::__poll_t {
        table.register_wait(file, &self.bell.wait);
        let inner = self.shared.inner.lock();
        let mut bits = 0;
        if inner.core.ring(self.id).is_ok_and(|ring| ring.unread() > 0) {
            bits |= bindings::POLLIN | bindings::POLLRDNORM;
        }
        if inner.core.has_room(self.id) {
            bits |= bindings::POLLOUT | bindings::POLLWRNORM;
        }
        if inner.core.is_hung_up(self.id) {
            bits |= bindings::POLLHUP;
        }
        bits as bindings::__poll_t
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _side = {
            let mut inner = self.shared.inner.lock();
            let Inner { core, outside, .. } = &mut *inner;
            core.close(self.id, outside);
            core::mem::take(&mut outside.clients[self.id.index as usize])
        };
    }
}

#[vtable]
impl MiscDevice for Client {
    type Ptr = KBox<Self>;

    fn open(file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        let shared = crate::shared()?;
        let bell = Bell::new()?;
        let uid = file.cred().euid().into_raw().val;
        let mut inner = shared.inner.lock();
        let id = inner.core.open(uid).map_err(error)?;
        inner.outside.clients[id.index as usize] = Side {
            bell: Some(bell.clone()),
            ..Side::default()
        };
        drop(inner);
        // From here on dropping the client closes the context.
        Ok(KBox::new(Self { shared, id, bell }, GFP_KERNEL)?)
    }

    fn mmap(me: &Self, _file: &File, vma: &VmaNew) -> Result {
        let ring = me.shared.inner.lock().outside.clients[me.index()]
            .ring
            .clone()
            .ok_or(ENOENT)?;
        shared::map_ring(&ring, vma)
    }

    fn ioctl(me: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        match crate::operation(cmd)? {
            op::QUERY => crate::query(&me.shared, arg),
            op::SETUP => me.setup(arg),
            op::BUF_REGISTER => me.register(arg),
            op::BUF_RELEASE => me.release_buffer(arg),
            op::SUBMIT => me.submit(arg),
            op::WAIT => me.wait(arg),
            op::CANCEL => me.cancel(arg),
            op::EVENTFD => me.eventfd(arg),
            op::LIMITS => me.limits(arg),
            op::STAT => me.stat(arg),
            number if op::is_server(number) => Err(EPERM),
            _ => Err(ENOTTY),
        }?;
        Ok(0)
    }

    fn show_fdinfo(me: &Self, m: &SeqFile, _file: &File) {
        let Ok(stat) = me.shared.inner.lock().core.stat(me.id) else {
            return;
        };
        seq_print!(m, "rustai-admitted:\t{}\n", stat.admitted);
        seq_print!(m, "rustai-completed:\t{}\n", stat.completed);
        seq_print!(m, "rustai-failed:\t{}\n", stat.failed);
        seq_print!(m, "rustai-waiting:\t{}\n", stat.waiting);
        seq_print!(m, "rustai-queued:\t{}\n", stat.queued);
        seq_print!(m, "rustai-running:\t{}\n", stat.running);
        seq_print!(m, "rustai-buffers:\t{}\n", stat.buffers);
        seq_print!(m, "rustai-bytes:\t{}\n", stat.bytes);
    }
}
