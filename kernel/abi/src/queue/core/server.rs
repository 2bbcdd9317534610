//! The operations of the server, and what time does to jobs.

use core::ops::DerefMut;

use super::*;

impl<J, C, B> Core<J, C, B>
where
    J: DerefMut<Target = [JobSlot]>,
    C: DerefMut<Target = [ContextSlot]>,
    B: DerefMut<Target = [BufferSlot]>,
{
    /// ATTACH: the new epoch.
    ///
    /// # Errors
    /// `EPROTO` for another major version or a missing feature, `EBUSY` if a server is attached.
    pub fn attach(&mut self, ask: &Attach, sink: &mut impl Sink) -> Result<Attach, Errno> {
        if ask.flags != 0 || ask.reserved != [0; 4] {
            return Err(Errno::EINVAL);
        }
        if ask.major != ABI_MAJOR || ask.features & !self.features != 0 {
            return Err(Errno::EPROTO);
        }
        self.server = self.server.attach()?;
        self.opcodes = ask.opcodes;
        self.wake_all(sink);
        Ok(Attach { major: ABI_MAJOR, minor: ABI_MINOR, epoch: self.server.epoch(), features: self.features, ..*ask })
    }

    /// DETACH, or the server's death.
    ///
    /// # Errors
    /// `ENOTCONN` if none is attached.
    pub fn detach(&mut self, sink: &mut impl Sink) -> Result<(), Errno> {
        self.server = self.server.detach()?;
        self.opcodes = 0;
        for slot in 0..self.jobs.len() {
            let s = &self.jobs[slot];
            if s.state == JobState::Free {
                continue;
            }
            let lost = match self.contexts[s.context as usize].policy {
                policy::FAIL => Lost::Fail,
                policy::REISSUE => {
                    Lost::Reissue { idempotent: is_idempotent(&s.job, s.tensors(), s.progressed), reissued: s.reissued }
                }
                _ => Lost::Hold,
            };
            let was = s.state;
            if self.apply(slot, JobEvent::ServerGone(lost), None, sink).is_ok()
                && was == JobState::Running
                && self.jobs[slot].state == JobState::Queued
            {
                self.jobs[slot].reissued += 1;
                let context = self.jobs[slot].context as usize;
                self.contexts[context].stat.reissued += 1;
            }
        }
        for buffer in 0..self.buffers.len() {
            // The server's descriptors and mappings went with it.
            self.buffers[buffer].mapped = false;
            self.buffers[buffer].told = false;
            self.settle_buffer(buffer, sink);
        }
        for index in 0..self.contexts.len() {
            self.settle_dependents(index, sink);
            self.settle_context(index);
        }
        self.notices = self.jobs.iter().filter(|s| s.notice).count() as u32;
        self.wake_all(sink);
        Ok(())
    }

    /// FETCH of one thing: writes its record to `out`, and says what it was and how many bytes. `None` if there is
    /// nothing to do.
    ///
    /// # Errors
    /// `ENOTCONN` without a server, `EMSGSIZE` if the record that comes next does not fit.
    pub fn fetch(
        &mut self,
        now_ns: u64,
        out: &mut [u8],
        sink: &mut impl Sink,
    ) -> Result<Option<(Fetched, usize)>, Errno> {
        if !self.server.is_attached() {
            return Err(Errno::ENOTCONN);
        }
        let notice = if self.notices > 0 { self.fetch_notice(out)? } else { None };
        if notice.is_some() {
            return Ok(notice);
        }
        while let Some(slot) = self.next_job() {
            let s = &self.jobs[slot];
            let context = s.context as usize;
            let late = s.job.flags & job_flag::DEADLINE != 0 && s.job.deadline_ns <= now_ns;
            let old = s.job.flags & job_flag::SESSION != 0 && s.job.session_epoch != self.server.epoch();
            let unknown = self.opcodes & (1 << s.job.opcode) == 0;
            let refusal = match (late, unknown, old) {
                (true, _, _) => Some(JobEvent::Deadline),
                (_, true, _) => Some(JobEvent::Refuse(Errno::EOPNOTSUPP)),
                (_, _, true) => Some(JobEvent::Refuse(Errno::ESTALE)),
                _ => None,
            };
            if let Some(event) = refusal {
                let _ = self.apply(slot, event, None, sink);
                self.settle_dependents(context, sink);
                continue;
            }
            let used = self.write_job(slot, out)?;
            let class = usize::from(self.jobs[slot].job.sched_class);
            let _ = self.apply(slot, JobEvent::Fetch, None, sink);
            let c = &mut self.contexts[context];
            let weight = c.limits.weight;
            c.served[class].own = c.served[class].own.wrapping_add(step(weight));
            let (uid, had) = (c.uid, c.served[class].user);
            let has = self.shares.serve(class, had, weight);
            self.set_user_service(uid, class, has);
            return Ok(Some((Fetched::Job(self.ticket(slot)), used)));
        }
        Ok(None)
    }

    /// Puts back what [`Self::fetch`] took but the server did not get.
    pub fn unfetch(&mut self, fetched: Fetched, sink: &mut impl Sink) {
        match fetched {
            Fetched::Job(ticket) => {
                if let Ok(slot) = self.find_job(ticket) {
                    let context = self.jobs[slot].context as usize;
                    let _ = self.apply(slot, JobEvent::Unfetch, None, sink);
                    self.settle_context(context);
                }
            }
            Fetched::Cancel(ticket) => {
                let job = self.find_job(ticket).ok().map(|slot| &mut self.jobs[slot]);
                if let Some(s) = job.filter(|s| s.state == JobState::Abandoned && !s.notice) {
                    s.notice = true;
                    self.notices += 1;
                }
            }
            Fetched::Gone(buffer) => {
                if self.buffers[buffer].told {
                    self.buffers[buffer].told = false;
                    self.notices += 1;
                }
            }
        }
        sink.wake_server();
    }

    /// Whether FETCH would find something.
    pub fn has_work(&self) -> bool {
        self.server.is_attached()
            && (self.notices > 0 || self.contexts.iter().any(|c| c.queues.iter().any(|q| q.first.is_some())))
    }

    /// BUF_MAP: the buffer that a fetched job names. The server has it mapped from now on.
    ///
    /// # Errors
    /// `ENOTCONN` without a server, `ENOENT` if there is no such context or buffer, `ESTALE` for another generation.
    pub fn map(&mut self, id: ContextId, name: BufferName) -> Result<MappedBuffer, Errno> {
        let mapped = self.mappable(id, name)?;
        self.buffers[mapped.index].mapped = true;
        Ok(mapped)
    }

    /// What [`Self::map`] would say.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub fn mappable(&self, id: ContextId, name: BufferName) -> Result<MappedBuffer, Errno> {
        if !self.server.is_attached() {
            return Err(Errno::ENOTCONN);
        }
        let c = self.contexts.get(id.index as usize).ok_or(Errno::ENOENT)?;
        if c.generation != id.generation || c.state == ContextState::Free {
            return Err(Errno::ESTALE);
        }
        let index = self.find_buffer(id.index as usize, name)?;
        let buffer = &self.buffers[index];
        // A released buffer lives on for the jobs that use it, and only for them.
        if buffer.state == BufferState::Released && buffer.users == 0 {
            return Err(Errno::ESTALE);
        }
        Ok(MappedBuffer { index, writable: buffer.writable })
    }

    /// PROGRESS.
    ///
    /// # Errors
    /// `ESTALE` if the server does not have that job, `EINVAL` if its opcode does not stream.
    pub fn progress(&mut self, ticket: Ticket, count: u32, sink: &mut impl Sink) -> Result<Progressed, Errno> {
        let slot = self.find_job(ticket)?;
        let s = &mut self.jobs[slot];
        match s.state {
            JobState::Running => {}
            JobState::Abandoned => return Ok(Progressed::Stop),
            _ => return Err(Errno::ESTALE),
        }
        if slots(&s.job) < 2 {
            return Err(Errno::EINVAL);
        }
        let index = s.context as usize;
        let c = &mut self.contexts[index];
        if s.direct {
            s.progressed = true;
            c.stat.progress += 1;
            return Ok(Progressed::Told);
        }
        let at = c.ring.post_progress(s.progress);
        (s.progress, s.progressed) = (Some(at), true);
        let entry =
            Completion { flags: cqe_flag::MORE, user_data: s.job.user_data, seq: s.seq, count, ..Completion::new() };
        c.stat.progress += 1;
        sink.post(index, c.ring.place(at), &entry, c.ring.tail());
        Ok(Progressed::Told)
    }

    /// COMMIT of one job.
    ///
    /// # Errors
    /// `EINVAL` for reserved bits or a result that is no error number of the interface, `ESTALE` if the server does not
    /// have that job, `EALREADY` if it was completed before (canceled, timed out, or the client is gone): the server has
    /// let go of it now.
    pub fn commit(&mut self, outcome: &Outcome, sink: &mut impl Sink) -> Result<(), Errno> {
        if outcome.size as usize != Outcome::SIZE || outcome.flags != 0 {
            return Err(Errno::EINVAL);
        }
        if outcome.result < 0 && Errno::from_raw(outcome.result.wrapping_neg()).is_none() {
            return Err(Errno::EINVAL);
        }
        let ticket = Ticket { slot: outcome.slot, generation: outcome.generation };
        let slot = match self.find_job(ticket) {
            Ok(slot) => slot,
            // The last job of the slot, which nobody has followed: committed before.
            Err(_) if self.was_last(ticket) => return Err(Errno::EALREADY),
            Err(errno) => return Err(errno),
        };
        let index = self.jobs[slot].context as usize;
        let was = self.jobs[slot].state;
        if !was.is_with_server() {
            return Err(Errno::ESTALE);
        }
        self.contexts[index].stat.server_copied =
            self.contexts[index].stat.server_copied.saturating_add(outcome.copied);
        let _ = self.apply(slot, JobEvent::Commit, Some((outcome.result, outcome.count)), sink);
        self.settle_dependents(index, sink);
        self.settle_context(index);
        if was == JobState::Abandoned {
            sink.wake_client(index);
            return Err(Errno::EALREADY);
        }
        Ok(())
    }

    /// ACK: the server no longer touches a buffer that it was told is gone.
    ///
    /// # Errors
    /// `ENOENT` or `ESTALE` if there is no such buffer, `EBUSY` if it is not gone.
    pub fn ack(&mut self, id: ContextId, name: BufferName, sink: &mut impl Sink) -> Result<(), Errno> {
        if !self.server.is_attached() {
            return Err(Errno::ENOTCONN);
        }
        let c = self.contexts.get(id.index as usize).ok_or(Errno::ENOENT)?;
        if c.generation != id.generation || c.state == ContextState::Free {
            return Err(Errno::ESTALE);
        }
        let slot = self.find_buffer(id.index as usize, name)?;
        if !self.buffers[slot].told {
            return Err(Errno::EBUSY);
        }
        self.buffers[slot].mapped = false;
        self.buffers[slot].told = false;
        self.settle_buffer(slot, sink);
        self.settle_context(id.index as usize);
        Ok(())
    }

    /// Completes the jobs whose deadline has passed; says when the next one will.
    pub fn expire(&mut self, now_ns: u64, sink: &mut impl Sink) -> Option<u64> {
        if self.soonest_ns? > now_ns {
            return self.soonest_ns;
        }
        for slot in 0..self.jobs.len() {
            let s = &self.jobs[slot];
            if s.state.is_in_flight() && s.job.flags & job_flag::DEADLINE != 0 && s.job.deadline_ns <= now_ns {
                let index = s.context as usize;
                let _ = self.apply(slot, JobEvent::Deadline, None, sink);
                self.settle_dependents(index, sink);
            }
        }
        let with_deadline = |s: &&JobSlot| s.state.is_in_flight() && s.job.flags & job_flag::DEADLINE != 0;
        self.soonest_ns = self.jobs.iter().filter(with_deadline).map(|s| s.job.deadline_ns).min();
        self.soonest_ns
    }

    fn fetch_notice(&mut self, out: &mut [u8]) -> Result<Option<(Fetched, usize)>, Errno> {
        let size = Record::SIZE as u32;
        if let Some(slot) = self.jobs.iter().position(|s| s.notice) {
            let ticket = self.ticket(slot);
            let s = &self.jobs[slot];
            let c = &self.contexts[s.context as usize];
            let head = Record {
                size,
                kind: record::CANCEL,
                slot: ticket.slot,
                generation: ticket.generation,
                context: s.context,
                context_generation: c.generation,
                uid: c.uid,
                seq: s.seq,
                ..Record::new()
            };
            if !head.write(out) {
                return Err(Errno::EMSGSIZE);
            }
            self.jobs[slot].notice = false;
            self.notices -= 1;
            return Ok(Some((Fetched::Cancel(ticket), Record::SIZE)));
        }
        if let Some(slot) = self.buffers.iter().position(BufferSlot::wants_notice) {
            let (context, buffer) = (slot / self.per_context, slot % self.per_context);
            let c = &self.contexts[context];
            let head = Record {
                size,
                kind: record::GONE,
                context: context as u32,
                context_generation: c.generation,
                uid: c.uid,
                buffer: buffer as u32,
                buffer_generation: self.buffers[slot].generation,
                ..Record::new()
            };
            if !head.write(out) {
                return Err(Errno::EMSGSIZE);
            }
            self.buffers[slot].told = true;
            self.notices -= 1;
            return Ok(Some((Fetched::Gone(slot), Record::SIZE)));
        }
        Ok(None)
    }

    fn write_job(&self, slot: usize, out: &mut [u8]) -> Result<usize, Errno> {
        let s = &self.jobs[slot];
        let c = &self.contexts[s.context as usize];
        let size = Record::SIZE + Job::SIZE + s.tensors().len() * Tensor::SIZE;
        let out = out.get_mut(..size).ok_or(Errno::EMSGSIZE)?;
        let ticket = self.ticket(slot);
        let head = Record {
            size: size as u32,
            kind: record::JOB,
            slot: ticket.slot,
            generation: ticket.generation,
            context: s.context,
            context_generation: c.generation,
            uid: c.uid,
            seq: s.seq,
            ..Record::new()
        };
        let (first, rest) = out.split_at_mut(Record::SIZE);
        let (second, rest) = rest.split_at_mut(Job::SIZE);
        let mut fits = head.write(first) && s.job.write(second);
        for (tensor, out) in s.tensors().iter().zip(rest.chunks_exact_mut(Tensor::SIZE)) {
            fits &= tensor.write(out);
        }
        debug_assert!(fits);
        Ok(size)
    }
}
