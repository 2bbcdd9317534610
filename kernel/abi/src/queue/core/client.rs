//! The operations of a client: each succeeds, or says why not and changes nothing.

use core::ops::DerefMut;

use super::*;

/// What becomes of a job that there is room for.
enum Verdict {
    /// It runs, perhaps after the one that it depends on.
    Start {
        /// Whether that one is still in flight.
        waits: bool,
    },
    /// It fails at once.
    Reject(Errno),
    /// The job that it depends on failed.
    DependencyFailed,
}

impl<J, C, B> Core<J, C, B>
where
    J: DerefMut<Target = [JobSlot]>,
    C: DerefMut<Target = [ContextSlot]>,
    B: DerefMut<Target = [BufferSlot]>,
{
    /// A client opened the queue.
    ///
    /// # Errors
    /// `ENFILE` if all contexts are in use, `EDQUOT` if the user has three quarters of them: some stay for others.
    pub fn open(&mut self, uid: u32) -> Result<ContextId, Errno> {
        let index = self.contexts.iter().position(|c| c.state == ContextState::Free).ok_or(Errno::ENFILE)?;
        let of_user = self.contexts.iter().filter(|c| c.state != ContextState::Free && c.uid == uid).count();
        if of_user >= self.contexts.len() - self.contexts.len() / 4 {
            return Err(Errno::EDQUOT);
        }
        let limits = self.limits;
        // Names of buffers are those of a context, so they start anew, and tell nothing of who was here before.
        for buffer in self.buffer_range(index) {
            self.buffers[buffer] = BufferSlot::new();
        }
        // The user's service so far counts for this context, too.
        let same = self.contexts.iter().find(|c| c.state != ContextState::Free && c.uid == uid);
        let mut served = same.map_or([Served::default(); class::COUNT], |c| c.served);
        served.iter_mut().for_each(|served| served.own = 0);
        let c = &mut self.contexts[index];
        let generation = c.generation.wrapping_add(1);
        *c = ContextSlot { state: ContextState::New, generation, uid, served, limits, ..ContextSlot::new() };
        Ok(ContextId { index: index as u32, generation })
    }

    /// The client closed it, or died. Its ring is not written after this.
    pub fn close(&mut self, id: ContextId, sink: &mut impl Sink) {
        let Ok(index) = self.find_context(id) else { return };
        // Admission ends first, so that nothing starts while the rest is taken down.
        self.contexts[index].state = self.contexts[index].state.close(false);
        for slot in 0..self.jobs.len() {
            if self.owns(index, slot) {
                let _ = self.apply(slot, JobEvent::ClientGone, None, sink);
            }
        }
        for buffer in self.buffer_range(index) {
            if self.buffers[buffer].state == BufferState::Live {
                self.give_up(buffer, sink);
            }
        }
        self.settle_context(index);
    }

    /// SETUP.
    ///
    /// # Errors
    /// As the table of error numbers says.
    pub fn setup(&mut self, id: ContextId, ask: &Setup) -> Result<Setup, Errno> {
        let index = self.find_context(id)?;
        if ask.flags != 0 || ask.reserved0 != 0 || ask.reserved != [0; 2] || ask.policy > policy::REISSUE {
            return Err(Errno::EINVAL);
        }
        if ask.major != ABI_MAJOR || ask.features & !self.features != 0 {
            return Err(Errno::EPROTO);
        }
        let state = self.contexts[index].state.set_up()?;
        let ring = Ring::new(ask.entries)?;
        let c = &mut self.contexts[index];
        (c.state, c.ring, c.policy) = (state, ring, ask.policy);
        Ok(Setup {
            major: ABI_MAJOR,
            minor: ABI_MINOR,
            features: self.features,
            ring_bytes: ring_bytes(ask.entries),
            ring_offset: RING_OFFSET,
            ..*ask
        })
    }

    /// Undoes [`Self::setup`] if the ring's memory could not be had.
    pub fn undo_setup(&mut self, id: ContextId) {
        if let Ok(index) = self.find_context(id) {
            let c = &mut self.contexts[index];
            if c.state == ContextState::Ready && c.stat.admitted == 0 {
                (c.state, c.ring) = (ContextState::New, Ring::EMPTY);
            }
        }
    }

    /// Whether SETUP was done.
    ///
    /// # Errors
    /// `ENOENT` if not, `EPROTO` if the context is broken.
    pub fn check_ready(&self, id: ContextId) -> Result<(), Errno> {
        self.contexts[self.find_context(id)?].state.check_ready()
    }

    /// LIMITS. `may_raise`: the caller has `CAP_SYS_RESOURCE`.
    ///
    /// # Errors
    /// `EINVAL` for values that cannot be, `EPERM` if one would rise without the right to it.
    pub fn set_limits(&mut self, id: ContextId, ask: &Limits, may_raise: bool) -> Result<Limits, Errno> {
        let index = self.find_context(id)?;
        if ask.flags & !op_flag::SET != 0 || ask.reserved != [0; 2] {
            return Err(Errno::EINVAL);
        }
        let per_context = self.per_context.get();
        let table = self.jobs.len();
        let now = &mut self.contexts[index].limits;
        if ask.flags & op_flag::SET != 0 {
            if ask.class_cap as usize >= class::COUNT
                || ask.weight == 0
                || ask.weight > MAX_WEIGHT
                || ask.max_buffers as usize > per_context
                || ask.max_jobs as usize > table
            {
                return Err(Errno::EINVAL);
            }
            let raises = ask.max_jobs > now.max_jobs
                || ask.max_buffers > now.max_buffers
                || ask.max_bytes > now.max_bytes
                || ask.class_cap > now.class_cap
                || ask.weight > now.weight;
            if raises && !may_raise {
                return Err(Errno::EPERM);
            }
            *now = Limits { flags: 0, ..*ask };
        }
        Ok(Limits { size: ask.size, ..*now })
    }

    /// Whether a buffer of `len` bytes at `offset` of a file of `file_len` bytes may be one.
    ///
    /// # Errors
    /// As the table of error numbers says.
    pub fn check_range(offset: u64, len: u64, file_len: u64) -> Result<(), Errno> {
        if len == 0 || len % BUFFER_ALIGN != 0 || offset % BUFFER_ALIGN != 0 {
            return Err(Errno::EINVAL);
        }
        let end = offset.checked_add(len).ok_or(Errno::EOVERFLOW)?;
        if end > file_len {
            return Err(Errno::ERANGE);
        }
        Ok(())
    }

    /// BUF_REGISTER, after the file was checked: the buffer's name, and the slot whose file the caller now keeps.
    ///
    /// # Errors
    /// `EMFILE` over the number of buffers, `EDQUOT` over the bytes.
    pub fn register(&mut self, id: ContextId, len: u64, writable: bool) -> Result<(BufferName, usize), Errno> {
        let index = self.find_context(id)?;
        self.contexts[index].state.check_ready()?;
        let c = &self.contexts[index];
        if c.stat.buffers >= c.limits.max_buffers {
            return Err(Errno::EMFILE);
        }
        let over = |had: u64, max: u64| had.checked_add(len).is_none_or(|sum| sum > max);
        let of_user: u64 = self.contexts.iter().filter(|other| self.shares_user(c, other)).map(|o| o.stat.bytes).sum();
        if over(c.stat.bytes, c.limits.max_bytes) || over(of_user, self.user_bytes) {
            return Err(Errno::EDQUOT);
        }
        let range = self.buffer_range(index);
        let start = range.start;
        let slot = { range }.find(|&b| self.buffers[b].state == BufferState::Free).ok_or(Errno::EMFILE)?;
        let buffer = &mut self.buffers[slot];
        let generation = buffer.generation.wrapping_add(1);
        *buffer = BufferSlot { state: BufferState::Live, generation, len, writable, ..BufferSlot::new() };
        let c = &mut self.contexts[index];
        c.stat.buffers += 1;
        c.stat.bytes += len;
        Ok((BufferName { buffer: (slot - start) as u32, generation }, slot))
    }

    /// BUF_RELEASE.
    ///
    /// # Errors
    /// `ENOENT` if there is no such buffer, `ESTALE` if it is of another generation.
    pub fn release(&mut self, id: ContextId, name: BufferName, sink: &mut impl Sink) -> Result<(), Errno> {
        let index = self.find_context(id)?;
        self.contexts[index].state.check_ready()?;
        let slot = self.find_buffer(index, name)?;
        if self.buffers[slot].state != BufferState::Live {
            return Err(Errno::ENOENT);
        }
        self.give_up(slot, sink);
        Ok(())
    }

    /// Takes note of how far the client has read.
    ///
    /// # Errors
    /// `ENOENT` before SETUP; `EPROTO` if the head is not between the last one and the tail, and ever after.
    pub fn advance(&mut self, id: ContextId, head: u32) -> Result<(), Errno> {
        let index = self.find_context(id)?;
        let c = &mut self.contexts[index];
        c.state.check_ready()?;
        c.ring.advance(head).inspect_err(|_| c.state = c.state.breach())
    }

    /// Admits one job: its sequence number. A job that is not [valid](validate) is admitted and completes at once.
    ///
    /// # Errors
    /// Why it was not admitted, as the table of error numbers says; nothing has changed then.
    pub fn submit(
        &mut self,
        id: ContextId,
        job: &Job,
        tensors: &[Tensor],
        now_ns: u64,
        sink: &mut impl Sink,
    ) -> Result<u64, Errno> {
        let (index, verdict) = self.judge(id, job, tensors, slots(job), now_ns)?;
        let (errno, flags) = match verdict {
            Verdict::Start { waits } => {
                // PANIC: `judge` found room.
                let _ = self.contexts[index].ring.reserve(slots(job));
                let slot = self.admit(index, job, tensors, waits, false, sink)?;
                return Ok(self.jobs[slot].seq);
            }
            Verdict::Reject(errno) => (errno, 0),
            Verdict::DependencyFailed => (Errno::ECANCELED, cqe_flag::DEP),
        };
        let seq = self.count_admitted(index);
        // PANIC: `judge` found room for at least one slot.
        let _ = self.contexts[index].ring.reserve(1);
        let entry = Completion::failure(job.user_data, seq, errno, flags);
        self.complete(index, seq, Target::Ring { slots: 1 }, Some(entry), sink);
        Ok(seq)
    }

    /// Admits one job whose end goes to [`Sink::finish`] instead of the ring. Its progress is counted but told to nobody.
    ///
    /// # Errors
    /// Why it was not admitted, also if it is not [valid](validate) or the job that it depends on failed; nothing has
    /// changed then.
    pub fn submit_direct(
        &mut self,
        id: ContextId,
        job: &Job,
        tensors: &[Tensor],
        now_ns: u64,
        sink: &mut impl Sink,
    ) -> Result<Ticket, Errno> {
        let (index, verdict) = self.judge(id, job, tensors, 0, now_ns)?;
        match verdict {
            Verdict::Start { waits } => {
                let slot = self.admit(index, job, tensors, waits, true, sink)?;
                Ok(self.ticket(slot))
            }
            Verdict::Reject(errno) => Err(errno),
            Verdict::DependencyFailed => Err(Errno::ECANCELED),
        }
    }

    /// Cancels one job that came by [`Self::submit_direct`].
    ///
    /// # Errors
    /// `ESTALE` if it has ended.
    pub fn cancel_direct(&mut self, ticket: Ticket, sink: &mut impl Sink) -> Result<(), Errno> {
        let slot = self.find_job(ticket)?;
        let index = self.jobs[slot].context as usize;
        self.apply(slot, JobEvent::Cancel, None, sink).map_err(|_| Errno::ESTALE)?;
        self.settle_dependents(index, sink);
        Ok(())
    }

    /// What becomes of a job that needs `slots` places of the ring. Changes nothing but the count of refusals.
    fn judge(
        &mut self,
        id: ContextId,
        job: &Job,
        tensors: &[Tensor],
        slots: u32,
        now_ns: u64,
    ) -> Result<(usize, Verdict), Errno> {
        let index = self.find_context(id)?;
        self.contexts[index].state.check_ready()?;
        check_admission(job)?;
        if tensors.len() != job.tensor_count as usize {
            return Err(Errno::EINVAL);
        }
        if let Err(errno) = self.check_room(index, slots) {
            self.contexts[index].stat.refused += 1;
            return Err(errno);
        }
        let seq = self.contexts[index].next_seq;
        let rules = JobRules { now_ns, seq, class_cap: self.contexts[index].limits.class_cap as u8 };
        let base = self.buffer_range(index).start;
        let per_context = self.per_context.get();
        let view = |buffer: u32| {
            let slot = self.buffers.get(base + buffer as usize)?;
            let live = (buffer as usize) < per_context && slot.state == BufferState::Live;
            live.then_some(BufferView { generation: slot.generation, len: slot.len, writable: slot.writable })
        };
        let verdict = match validate(job, tensors, &rules, view) {
            Err(errno) => Verdict::Reject(errno),
            Ok(()) if job.flags & job_flag::DEP == 0 => Verdict::Start { waits: false },
            Ok(()) => match self.dependency(index, job.dep_seq) {
                None => Verdict::Start { waits: true },
                Some(true) => Verdict::Start { waits: false },
                Some(false) => Verdict::DependencyFailed,
            },
        };
        Ok((index, verdict))
    }

    /// Counts one more job: its sequence number.
    fn count_admitted(&mut self, index: usize) -> u64 {
        let c = &mut self.contexts[index];
        let seq = c.next_seq;
        c.next_seq += 1;
        c.stat.admitted += 1;
        let (word, mask) = bit(seq);
        c.open[word] |= mask;
        c.failed[word] &= !mask;
        seq
    }

    /// Puts a job that was judged well into a slot.
    fn admit(
        &mut self,
        index: usize,
        job: &Job,
        tensors: &[Tensor],
        waits: bool,
        direct: bool,
        sink: &mut impl Sink,
    ) -> Result<usize, Errno> {
        // PANIC: `check_room` found a free slot.
        let slot = self.free.ok_or(Errno::EAGAIN)? as usize;
        let seq = self.count_admitted(index);
        self.free = self.jobs[slot].link.next;
        let s = &mut self.jobs[slot];
        s.context = index as u32;
        s.link = Link::default();
        s.seq = seq;
        (s.dependency, s.reissued, s.progress, s.progressed, s.notice) = (None, 0, None, false, false);
        s.direct = direct;
        s.job = Job { tensors: 0, ..*job };
        s.tensors[..tensors.len()].copy_from_slice(tensors);
        let base = self.buffer_range(index).start;
        for tensor in tensors {
            self.buffers[base + tensor.buffer as usize].users += 1;
        }
        if job.flags & job_flag::DEADLINE != 0 {
            self.soonest_ns = Some(self.soonest_ns.map_or(job.deadline_ns, |soonest| soonest.min(job.deadline_ns)));
        }
        let _ = self.apply(slot, JobEvent::Admit { waits }, None, sink);
        Ok(slot)
    }

    /// The ring of a context: its indices.
    ///
    /// # Errors
    /// `ENOENT` if there is no such context.
    pub fn ring(&self, id: ContextId) -> Result<Ring, Errno> {
        Ok(self.contexts[self.find_context(id)?].ring)
    }

    /// Whether a job of one slot could be admitted now.
    pub fn has_room(&self, id: ContextId) -> bool {
        match self.find_context(id) {
            Ok(index) => self.contexts[index].state == ContextState::Ready && self.check_room(index, 1).is_ok(),
            Err(_) => false,
        }
    }

    /// Whether the client cannot hope for completions: the server is gone and the policy is FAIL.
    pub fn is_hung_up(&self, id: ContextId) -> bool {
        match self.find_context(id) {
            Ok(index) => {
                let c = &self.contexts[index];
                c.state == ContextState::Ready && c.policy == policy::FAIL && !self.server.is_attached()
            }
            Err(_) => false,
        }
    }

    /// CANCEL: how many jobs it canceled.
    ///
    /// # Errors
    /// `EINVAL` for flags that do not name exactly one way to choose.
    pub fn cancel(&mut self, id: ContextId, ask: &Cancel, sink: &mut impl Sink) -> Result<u32, Errno> {
        let index = self.find_context(id)?;
        self.contexts[index].state.check_ready()?;
        let ways = op_flag::BY_USER_DATA | op_flag::BY_SESSION | op_flag::ALL;
        if (ask.flags & ways).count_ones() != 1
            || ask.flags & !(ways | op_flag::SETTLE | op_flag::DEADLINE) != 0
            || ask.reserved0 != 0
            || ask.reserved != 0
        {
            return Err(Errno::EINVAL);
        }
        let mut canceled = 0;
        for slot in 0..self.jobs.len() {
            let s = &self.jobs[slot];
            if !self.owns(index, slot) || !s.state.is_in_flight() {
                continue;
            }
            let in_session = s.job.flags & job_flag::SESSION != 0
                && (s.job.session, s.job.session_epoch) == (ask.session, ask.session_epoch);
            let chosen = match ask.flags & ways {
                op_flag::BY_USER_DATA => s.job.user_data == ask.user_data,
                op_flag::BY_SESSION => in_session,
                _ => true,
            };
            if chosen && self.apply(slot, JobEvent::Cancel, None, sink).is_ok() {
                canceled += 1;
            }
        }
        self.settle_dependents(index, sink);
        Ok(canceled)
    }

    /// Whether the server has let go of all canceled jobs of the context.
    pub fn is_settled(&self, id: ContextId) -> bool {
        self.find_context(id).map_or(true, |index| self.contexts[index].abandoned == 0)
    }

    /// STAT.
    ///
    /// # Errors
    /// `ENOENT` if there is no such context.
    pub fn stat(&self, id: ContextId) -> Result<Stat, Errno> {
        Ok(self.contexts[self.find_context(id)?].stat)
    }
}
