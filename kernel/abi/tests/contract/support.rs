//! A queue in plain memory, with a sink that notices every broken promise.

use rustai_abi::queue::*;
use std::collections::HashMap;

pub type TestCore = Core<Vec<JobSlot>, Vec<ContextSlot>, Vec<BufferSlot>>;

pub const PAGE: u64 = 4096;

/// The rings and files of all contexts.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Final entries by (context slot, user data): a test gives each job its own.
    pub finals: HashMap<(usize, u64), Vec<Completion>>,
    pub rings: HashMap<usize, HashMap<usize, Completion>>,
    /// Jobs that came directly, by slot: (context slot, user data).
    pub direct: HashMap<usize, (usize, u64)>,
    pub dropped: Vec<usize>,
    pub server_wakes: u32,
    pub client_wakes: u32,
}

impl Sink for World {
    fn post(&mut self, context: usize, place: usize, entry: &Completion, _tail: u32) {
        self.rings.entry(context).or_default().insert(place, *entry);
        if entry.flags & cqe_flag::MORE == 0 {
            self.finals.entry((context, entry.user_data)).or_default().push(*entry);
        }
    }
    fn wake_client(&mut self, _context: usize) {
        self.client_wakes += 1;
    }
    fn wake_server(&mut self) {
        self.server_wakes += 1;
    }
    fn drop_buffer(&mut self, index: usize) {
        self.dropped.push(index);
    }
    fn finish(&mut self, slot: usize, entry: &Completion) {
        let key = self.direct.remove(&slot).expect("a job that came directly and has not ended");
        assert_eq!(key.1, entry.user_data);
        self.finals.entry(key).or_default().push(*entry);
    }
}

impl World {
    /// The result of the one final entry of a job.
    pub fn result(&self, context: ContextId, user_data: u64) -> i32 {
        let entries = &self.finals[&(context.index as usize, user_data)];
        assert_eq!(entries.len(), 1, "job {user_data} completed {} times", entries.len());
        entries[0].result
    }

    pub fn is_done(&self, context: ContextId, user_data: u64) -> bool {
        self.finals.contains_key(&(context.index as usize, user_data))
    }
}

pub fn limits(max_jobs: u32, max_buffers: u32) -> Limits {
    Limits {
        max_jobs,
        max_buffers,
        max_bytes: 16 * PAGE,
        class_cap: u32::from(class::INTERACTIVE),
        weight: 100,
        ..Limits::new()
    }
}

pub fn core(jobs: usize, contexts: usize, buffers_each: usize) -> TestCore {
    Core::new(
        vec![JobSlot::new(); jobs],
        vec![ContextSlot::new(); contexts],
        vec![BufferSlot::new(); contexts * buffers_each],
        limits(jobs as u32, buffers_each as u32),
        1000,
        1 << 40,
        BASE_FEATURES | feature::REATTACH,
    )
    .unwrap()
}

pub fn setup(entries: u32, policy: u32) -> Setup {
    Setup { major: ABI_MAJOR, entries, policy, ..Setup::new() }
}

pub fn attach() -> Attach {
    Attach { major: ABI_MAJOR, opcodes: (1 << opcode::COUNT) - 1, ..Attach::new() }
}

pub fn nop(user_data: u64) -> Job {
    Job { user_data, sched_class: class::NORMAL, ..Job::new() }
}

/// 32 x 2 floats at the start of a buffer.
pub fn tensor(name: BufferName) -> Tensor {
    Tensor {
        buffer: name.buffer,
        generation: name.generation,
        byte_len: 256,
        ndim: 2,
        dims: [32, 2, 0, 0, 0, 0],
        ..Tensor::new()
    }
}

/// A context that is set up, and a server.
pub fn ready(policy: u32) -> (TestCore, World, ContextId) {
    let (mut core, mut world) = (core(8, 2, 4), World::default());
    let id = core.open(1000).unwrap();
    core.setup(id, &setup(8, policy)).unwrap();
    core.attach(&attach(), &mut world).unwrap();
    (core, world, id)
}

/// Fetches one job.
pub fn fetch(core: &mut TestCore, world: &mut World, now: u64) -> Option<Ticket> {
    let mut out = [0; MAX_RECORD];
    match core.fetch(now, &mut out, world).unwrap()? {
        (Fetched::Job(ticket), used) => {
            let record = Record::read(&out).unwrap();
            assert_eq!((record.kind, record.size as usize), (record::JOB, used));
            Some(ticket)
        }
        other => panic!("a notice instead of a job: {other:?}"),
    }
}

pub fn outcome(ticket: Ticket, result: i32) -> Outcome {
    Outcome { slot: ticket.slot, generation: ticket.generation, result, ..Outcome::new() }
}
