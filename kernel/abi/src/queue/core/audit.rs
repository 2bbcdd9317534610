//! The invariants in code and what is in use, for tests and for operators.

use core::ops::DerefMut;

use super::*;

/// Places of the tables that are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Contexts, also those that are closed but not settled.
    pub contexts: u32,
    /// Jobs that owe a completion.
    pub in_flight: u32,
    /// Jobs that are completed but still with the server.
    pub abandoned: u32,
    /// Buffers, also released ones that are still used.
    pub buffers: u32,
    /// Buffers that the server has mapped.
    pub mapped: u32,
}

/// How many `are`. A function pointer keeps the symbol short enough for the kernel's tools.
fn count<T>(items: &[T], are: fn(&T) -> bool) -> usize {
    items.iter().filter(|&item| are(item)).count()
}

impl<J, C, B> Core<J, C, B>
where
    J: DerefMut<Target = [JobSlot]>,
    C: DerefMut<Target = [ContextSlot]>,
    B: DerefMut<Target = [BufferSlot]>,
{
    /// What is in use.
    pub fn usage(&self) -> Usage {
        Usage {
            contexts: count(&self.contexts, |c| c.state != ContextState::Free) as u32,
            in_flight: count(&self.jobs, |s| s.state.is_in_flight()) as u32,
            abandoned: count(&self.jobs, |s| s.state == JobState::Abandoned) as u32,
            buffers: count(&self.buffers, |b| b.state != BufferState::Free) as u32,
            mapped: count(&self.buffers, |b| b.mapped) as u32,
        }
    }

    /// Checks the invariants that this file states.
    ///
    /// # Errors
    /// The one that does not hold.
    pub fn audit(&self) -> Result<(), &'static str> {
        let mut free = 0;
        let mut at = self.free;
        while let Some(slot) = at {
            if self.jobs[slot as usize].state != JobState::Free {
                return Err("a slot of the free list holds a job");
            }
            free += 1;
            if free > self.jobs.len() {
                return Err("the free list has a loop");
            }
            at = self.jobs[slot as usize].link.next;
        }
        if free != count(&self.jobs, |s| s.state == JobState::Free) {
            return Err("a free slot is not in the free list");
        }
        let notices = count(&self.jobs, |s| s.notice) + count(&self.buffers, BufferSlot::wants_notice);
        if notices != self.notices as usize {
            return Err("notices are miscounted");
        }
        for (index, c) in self.contexts.iter().enumerate() {
            if c.state == ContextState::Free && self.sum_of(index, |_| 1) != 0 {
                return Err("a free context has jobs");
            }
            let jobs = self.sum_of(index, |s| u64::from(s.state.is_in_flight()));
            let reserved = self.sum_of(index, |s| if s.state.is_in_flight() { s.slots().into() } else { 0 });
            if c.stat.admitted != c.stat.completed + jobs || jobs != u64::from(c.in_flight()) {
                return Err("admitted is not completed + in flight");
            }
            if reserved != u64::from(c.ring.reserved()) {
                return Err("the ring's reservation is not what its jobs need");
            }
            if c.ring.unread() > c.ring.entries() {
                return Err("more is unread than the ring has places");
            }
            let mut queued = 0;
            for fifo in &c.queues {
                let (mut at, mut prev) = (fifo.first, None);
                while let Some(slot) = at {
                    let s = &self.jobs[slot as usize];
                    if s.state != JobState::Queued || s.context as usize != index || s.link.prev != prev {
                        return Err("a FIFO holds a slot that is not queued there");
                    }
                    queued += 1;
                    if queued > self.jobs.len() {
                        return Err("a FIFO has a loop");
                    }
                    (prev, at) = (at, s.link.next);
                }
                if fifo.last != prev {
                    return Err("a FIFO's end is wrong");
                }
            }
            if queued as u64 != self.sum_of(index, |s| u64::from(s.state == JobState::Queued)) {
                return Err("a queued job is in no FIFO");
            }
            let range = self.buffer_range(index);
            let held = range.clone().filter(|&b| self.buffers[b].state != BufferState::Free);
            if held.clone().count() != c.stat.buffers as usize {
                return Err("buffers are miscounted");
            }
            if held.map(|b| self.buffers[b].len).sum::<u64>() != c.stat.bytes {
                return Err("registered bytes are miscounted");
            }
            for slot in range.clone() {
                let names =
                    |s: &JobSlot| s.tensors().iter().filter(|t| range.start + t.buffer as usize == slot).count() as u64;
                if self.sum_of(index, names) != u64::from(self.buffers[slot].users) {
                    return Err("a buffer's users are miscounted");
                }
            }
        }
        Ok(())
    }

    /// The sum of `value` over the jobs of a context.
    fn sum_of(&self, index: usize, value: impl Fn(&JobSlot) -> u64) -> u64 {
        let mut sum = 0;
        for slot in 0..self.jobs.len() {
            if self.owns(index, slot) {
                sum += value(&self.jobs[slot]);
            }
        }
        sum
    }
}
