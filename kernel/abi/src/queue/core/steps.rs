//! What the operations share: the one way that a job changes, and the lists and counts that follow it.

use core::ops::DerefMut;

use super::*;

impl<J, C, B> Core<J, C, B>
where
    J: DerefMut<Target = [JobSlot]>,
    C: DerefMut<Target = [ContextSlot]>,
    B: DerefMut<Target = [BufferSlot]>,
{
    pub(super) fn apply(
        &mut self,
        slot: usize,
        event: JobEvent,
        result: Option<(i32, u32)>,
        sink: &mut impl Sink,
    ) -> Result<(), Illegal> {
        let from = self.jobs[slot].state;
        let step = from.step(event)?;
        let index = self.jobs[slot].context as usize;
        if from == JobState::Queued && step.to != JobState::Queued {
            self.unlink(index, slot);
        }
        if step.to != from {
            self.jobs[slot].state = step.to;
            let c = &mut self.contexts[index];
            if let Some(count) = c.count(from) {
                *count -= 1;
            }
            if let Some(count) = c.count(step.to) {
                *count += 1;
            }
        }
        if step.to == JobState::Queued && from != JobState::Queued {
            // What was out with a server goes back to the front.
            self.link(index, slot, from == JobState::Running);
            sink.wake_server();
        }
        if let Some(cause) = step.completes {
            let s = &self.jobs[slot];
            let (user_data, seq) = (s.job.user_data, s.seq);
            let target = if s.direct { Target::Direct { slot } } else { Target::Ring { slots: slots(&s.job) } };
            let entry = match cause {
                Cause::Result => {
                    let (result, count) = result.unwrap_or((0, 0));
                    Some(Completion { user_data, seq, result, count, ..Completion::new() })
                }
                Cause::Error(errno) => Some(Completion::failure(user_data, seq, errno, 0)),
                Cause::Dependency => Some(Completion::failure(user_data, seq, Errno::ECANCELED, cqe_flag::DEP)),
                Cause::Unseen if s.direct => Some(Completion::failure(user_data, seq, Errno::ECANCELED, 0)),
                Cause::Unseen => None,
            };
            self.complete(index, seq, target, entry, sink);
        }
        match step.to {
            JobState::Abandoned if from != JobState::Abandoned => {
                self.jobs[slot].notice = true;
                self.notices += 1;
                sink.wake_server();
            }
            JobState::Free => self.free_slot(index, slot, sink),
            _ => {}
        }
        Ok(())
    }

    /// The bookkeeping of a completion: exactly once per admitted job.
    pub(super) fn complete(
        &mut self,
        index: usize,
        seq: u64,
        target: Target,
        entry: Option<Completion>,
        sink: &mut impl Sink,
    ) {
        let c = &mut self.contexts[index];
        c.stat.completed += 1;
        let at = match target {
            Target::Ring { slots } => Some(c.ring.post_final(slots)),
            Target::Direct { .. } => None,
        };
        let result = entry.map_or(-Errno::ECANCELED.raw(), |entry| entry.result);
        if result < 0 {
            c.stat.failed += 1;
        }
        c.stat.canceled += u64::from(result == -Errno::ECANCELED.raw());
        c.stat.timed_out += u64::from(result == -Errno::ETIMEDOUT.raw());
        if c.next_seq - seq <= DEP_WINDOW {
            let (word, mask) = bit(seq);
            c.open[word] &= !mask;
            if result < 0 {
                c.failed[word] |= mask;
            }
        }
        if c.stat.waiting > 0 {
            for s in self.jobs.iter_mut() {
                if s.state == JobState::Waiting && s.context as usize == index && s.job.dep_seq == seq {
                    s.dependency = Some(result >= 0);
                }
            }
        }
        match (entry, at, target) {
            (Some(entry), Some(at), _) => {
                let ring = &self.contexts[index].ring;
                sink.post(index, ring.place(at), &entry, ring.tail());
            }
            (Some(entry), _, Target::Direct { slot }) => {
                sink.finish(slot, &entry);
                // There is room again.
                sink.wake_client(index);
            }
            _ => {}
        }
    }

    /// Moves the jobs on whose dependency is done, and those that depend on them.
    pub(super) fn settle_dependents(&mut self, index: usize, sink: &mut impl Sink) {
        while self.contexts[index].stat.waiting > 0 {
            let settled = |s: &JobSlot| s.state == JobState::Waiting && s.dependency.is_some();
            let Some(slot) = (0..self.jobs.len()).find(|&i| self.owns(index, i) && settled(&self.jobs[i])) else {
                return;
            };
            let event = match self.jobs[slot].dependency {
                Some(true) => JobEvent::DependencyDone,
                _ => JobEvent::DependencyFailed,
            };
            if self.apply(slot, event, None, sink).is_err() {
                return;
            }
        }
    }

    pub(super) fn free_slot(&mut self, index: usize, slot: usize, sink: &mut impl Sink) {
        let base = self.buffer_range(index).start;
        for i in 0..self.jobs[slot].tensors().len() {
            let buffer = base + self.jobs[slot].tensors[i].buffer as usize;
            self.buffers[buffer].users -= 1;
            self.settle_buffer(buffer, sink);
        }
        let s = &mut self.jobs[slot];
        if s.notice {
            s.notice = false;
            self.notices -= 1;
        }
        s.generation = s.generation.wrapping_add(1);
        s.link = Link { prev: None, next: self.free };
        self.free = Some(slot as u32);
    }

    pub(super) fn give_up(&mut self, slot: usize, sink: &mut impl Sink) {
        self.buffers[slot].state = BufferState::Released;
        self.settle_buffer(slot, sink);
    }

    /// A released buffer that no job uses: told to the server if it has it mapped, else gone.
    pub(super) fn settle_buffer(&mut self, slot: usize, sink: &mut impl Sink) {
        let buffer = &mut self.buffers[slot];
        if buffer.state != BufferState::Released || buffer.users != 0 {
            return;
        }
        if buffer.mapped {
            if buffer.wants_notice() {
                self.notices += 1;
                sink.wake_server();
            }
            return;
        }
        buffer.state = BufferState::Free;
        let len = buffer.len;
        let context = slot / self.per_context;
        let c = &mut self.contexts[context];
        c.stat.buffers -= 1;
        c.stat.bytes -= len;
        sink.drop_buffer(slot);
    }

    pub(super) fn find_buffer(&self, index: usize, name: BufferName) -> Result<usize, Errno> {
        let range = self.buffer_range(index);
        if name.buffer as usize >= range.len() {
            return Err(Errno::ENOENT);
        }
        let slot = range.start + name.buffer as usize;
        let buffer = &self.buffers[slot];
        match buffer.state {
            BufferState::Free if buffer.generation == 0 => Err(Errno::ENOENT),
            _ if buffer.generation != name.generation => Err(Errno::ESTALE),
            BufferState::Free => Err(Errno::ENOENT),
            BufferState::Live | BufferState::Released => Ok(slot),
        }
    }

    pub(super) fn buffer_range(&self, index: usize) -> core::ops::Range<usize> {
        let per_context = self.per_context.get();
        index * per_context..(index + 1) * per_context
    }

    pub(super) fn find_context(&self, id: ContextId) -> Result<usize, Errno> {
        let c = self.contexts.get(id.index as usize).ok_or(Errno::ENOENT)?;
        let open = matches!(c.state, ContextState::New | ContextState::Ready | ContextState::Broken);
        if open && c.generation == id.generation { Ok(id.index as usize) } else { Err(Errno::ENOENT) }
    }

    pub(super) fn settle_context(&mut self, index: usize) {
        let c = &mut self.contexts[index];
        if c.state == ContextState::Closing && c.in_flight() == 0 && c.abandoned == 0 && c.stat.buffers == 0 {
            c.state = c.state.close(true);
        }
    }

    pub(super) fn shares_user(&self, a: &ContextSlot, b: &ContextSlot) -> bool {
        b.state != ContextState::Free && a.uid == b.uid
    }

    pub(super) fn check_room(&self, index: usize, slots: u32) -> Result<(), Errno> {
        let c = &self.contexts[index];
        if c.policy == policy::FAIL && !self.server.is_attached() {
            return Err(Errno::ENOTCONN);
        }
        if slots > c.ring.entries() {
            return Err(Errno::EINVAL);
        }
        let held = |c: &ContextSlot| c.in_flight() + c.abandoned;
        let of_user: u32 = self.contexts.iter().filter(|other| self.shares_user(c, other)).map(held).sum();
        if held(c) >= c.limits.max_jobs || of_user >= self.user_jobs {
            return Err(Errno::EDQUOT);
        }
        if !c.ring.has_room(slots) || self.free.is_none() {
            return Err(Errno::EAGAIN);
        }
        Ok(())
    }

    /// Whether the job `seq` of the context is done, and well; `None` while it is in flight.
    pub(super) fn dependency(&self, index: usize, seq: u64) -> Option<bool> {
        let c = &self.contexts[index];
        let (word, mask) = bit(seq);
        if c.open[word] & mask != 0 { None } else { Some(c.failed[word] & mask == 0) }
    }

    pub(super) fn wake_all(&self, sink: &mut impl Sink) {
        for (index, c) in self.contexts.iter().enumerate() {
            if c.state == ContextState::Ready {
                sink.wake_client(index);
            }
        }
    }

    pub(super) fn owns(&self, index: usize, slot: usize) -> bool {
        self.jobs[slot].state != JobState::Free && self.jobs[slot].context as usize == index
    }

    pub(super) fn ticket(&self, slot: usize) -> Ticket {
        Ticket { slot: slot as u32, generation: self.jobs[slot].generation }
    }

    pub(super) fn find_job(&self, ticket: Ticket) -> Result<usize, Errno> {
        match self.jobs.get(ticket.slot as usize) {
            Some(s) if s.generation == ticket.generation && s.state != JobState::Free => Ok(ticket.slot as usize),
            _ => Err(Errno::ESTALE),
        }
    }

    pub(super) fn was_last(&self, ticket: Ticket) -> bool {
        self.jobs.get(ticket.slot as usize).is_some_and(|s| s.generation == ticket.generation.wrapping_add(1))
    }

    pub(super) fn next_job(&self) -> Option<usize> {
        let has_work = |class: usize| self.contexts.iter().any(|c| c.queues[class].first.is_some());
        let mut work = [false; class::COUNT];
        for (class, work) in work.iter_mut().enumerate() {
            *work = has_work(class);
        }
        let class = self.shares.pick_class(work)?;
        let ready = self.contexts.iter().filter(|c| c.queues[class].first.is_some());
        let next = ready.min_by_key(|c| c.served[class])?;
        next.queues[class].first.map(|slot| slot as usize)
    }

    pub(super) fn link(&mut self, index: usize, slot: usize, front: bool) {
        let class = usize::from(self.jobs[slot].job.sched_class);
        if self.contexts[index].queues[class].first.is_none() {
            self.start_service(index, class);
        }
        let fifo = &mut self.contexts[index].queues[class];
        let at = Some(slot as u32);
        if front {
            self.jobs[slot].link = Link { prev: None, next: fifo.first };
            match fifo.first.replace(slot as u32) {
                Some(old) => self.jobs[old as usize].link.prev = at,
                None => fifo.last = at,
            }
        } else {
            self.jobs[slot].link = Link { prev: fifo.last, next: None };
            match fifo.last.replace(slot as u32) {
                Some(old) => self.jobs[old as usize].link.next = at,
                None => fifo.first = at,
            }
        }
    }

    /// A context that had no job of a class gets one: being idle has saved nothing up, for it and for its user.
    fn start_service(&mut self, index: usize, class: usize) {
        let (uid, served) = (self.contexts[index].uid, self.contexts[index].served[class]);
        let rivals = self.contexts.iter().filter(|c| c.uid == uid && c.queues[class].first.is_some());
        match rivals.map(|c| c.served[class].own).min() {
            Some(least) => self.contexts[index].served[class].own = served.own.max(least),
            None => {
                let start = self.shares.start(class, served.user);
                self.set_user_service(uid, class, start);
            }
        }
    }

    pub(super) fn set_user_service(&mut self, uid: u32, class: usize, service: u64) {
        for c in self.contexts.iter_mut() {
            if c.state != ContextState::Free && c.uid == uid {
                c.served[class].user = service;
            }
        }
    }

    pub(super) fn unlink(&mut self, index: usize, slot: usize) {
        let class = usize::from(self.jobs[slot].job.sched_class);
        let Link { prev, next } = core::mem::take(&mut self.jobs[slot].link);
        let fifo = &mut self.contexts[index].queues[class];
        match prev {
            Some(prev) => self.jobs[prev as usize].link.next = next,
            None => fifo.first = next,
        }
        match next {
            Some(next) => self.jobs[next as usize].link.prev = prev,
            None => fifo.last = prev,
        }
    }
}
