//! The operations of the server, which is in this process.

use super::{Broker, outside::Outside};
use crate::queue::{
    clock,
    engine_side::{EngineSide, Helper, Mapped, Patience},
};
use rustai_abi::queue::{
    Ack, Attach, BufMap, BufferName, ContextId, Errno, Outcome, Progressed, Query, Ticket, op_flag,
};
use std::sync::{Arc, PoisonError};

fn publish_server(core: &super::Queue, outside: &Outside) {
    for ring in outside.sides.iter().filter_map(|side| side.ring.as_ref()) {
        ring.publish_server(core.server());
    }
}

impl EngineSide for Broker {
    fn query(&self) -> Result<Query, Errno> {
        Ok(Broker::query(self))
    }

    fn attach(&self, ask: &Attach) -> Result<Attach, Errno> {
        self.with(false, |core, outside| {
            let answer = core.attach(ask, outside)?;
            publish_server(core, outside);
            Ok(answer)
        })
    }

    fn fetch(&self, out: &mut [u8], max: u32, patience: Patience) -> Result<(u32, usize), Errno> {
        let mut inner = self.lock();
        loop {
            let super::Inner { core, outside, .. } = &mut *inner;
            let (mut count, mut used) = (0, 0);
            while count < max {
                match core.fetch(clock::now_ns(), &mut out[used..], outside) {
                    Ok(Some((_, len))) => (count, used) = (count + 1, used + len),
                    Ok(None) => break,
                    Err(_) if count > 0 => break,
                    Err(errno) => return Err(errno),
                }
            }
            outside.flush();
            if count > 0 || patience == Patience::None {
                return Ok((count, used));
            }
            outside.work = false;
            let left = match patience {
                Patience::Until(at) => Some(clock::until(at).ok_or(Errno::ETIME)?),
                _ => None,
            };
            outside.server_waits += 1;
            inner = match left {
                Some(left) => self.work.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.work.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
            inner.outside.server_waits -= 1;
        }
    }

    fn map(&self, client: ContextId, name: BufferName) -> Result<Mapped, Errno> {
        self.with(false, |core, outside| {
            let mapped = core.map(client, name)?;
            let backing = outside.files[mapped.index].as_ref().ok_or(Errno::ENOENT)?;
            let fd = backing.file.try_clone().map_err(|_| Errno::ENOMEM)?;
            let flags = if mapped.writable { op_flag::MAPPED_RW } else { 0 };
            let answer = BufMap { flags, offset: backing.offset, len: backing.len, ..Default::default() };
            Ok(Mapped { fd, offset: answer.offset, len: answer.len, writable: mapped.writable })
        })
    }

    fn progress(&self, ticket: Ticket, count: u32) -> Result<Progressed, Errno> {
        self.with(false, |core, outside| core.progress(ticket, count, outside))
    }

    fn commit(&self, outcomes: &[Outcome]) -> Result<u32, (u32, Errno)> {
        self.with(false, |core, outside| {
            for (done, outcome) in outcomes.iter().enumerate() {
                core.commit(outcome, outside).map_err(|errno| (done as u32, errno))?;
            }
            Ok(outcomes.len() as u32)
        })
    }

    fn ack(&self, ask: &Ack) -> Result<(), Errno> {
        let id = ContextId { index: ask.context, generation: ask.context_generation };
        let name = BufferName { buffer: ask.buffer, generation: ask.generation };
        self.with(false, |core, outside| core.ack(id, name, outside))
    }

    fn detach(&self) -> Result<(), Errno> {
        self.with(false, |core, outside| {
            core.detach(outside)?;
            publish_server(core, outside);
            Ok(())
        })?;
        self.lock().helper = None;
        // A thread that waits for work learns that it is the server's no more.
        self.work.notify_all();
        Ok(())
    }

    fn set_helper(&self, helper: Arc<dyn Helper>) {
        self.lock().helper = Some(helper);
    }
}
