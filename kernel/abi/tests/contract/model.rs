//! The whole queue against its promises: all short sequences of events from several starts, and long random ones.

use crate::{support::*, units::Rng};
use rustai_abi::queue::*;

/// One thing that a client, the server or time does. Small numbers choose among the few contexts and tickets.
#[derive(Clone, Copy, Debug)]
enum Event {
    Submit { context: usize, kind: u8 },
    Read(usize),
    Cancel(usize),
    Release(usize),
    Register(usize),
    Close(usize),
    Open(usize),
    Attach,
    Detach,
    Fetch,
    Unfetch,
    Map,
    Progress,
    Commit,
    CommitAgain,
    Tick,
}

const KINDS: u8 = 6;
/// A streaming job that comes directly.
const DIRECT: u8 = 5;

#[derive(Clone)]
struct Model {
    core: TestCore,
    world: World,
    now: u64,
    contexts: [Option<ContextId>; 2],
    buffers: [Option<BufferName>; 2],
    tickets: Vec<Ticket>,
    last: Option<(Fetched, Record)>,
    next: u64,
    /// Jobs admitted to contexts that are still open, by (context slot, user data).
    admitted: Vec<(usize, u64)>,
    policy: u32,
}

impl Model {
    fn new(policy: u32) -> Self {
        let mut model = Self {
            core: core(3, 2, 1),
            world: World::default(),
            now: 1,
            contexts: [None; 2],
            buffers: [None; 2],
            tickets: Vec::new(),
            last: None,
            next: 1,
            admitted: Vec::new(),
            policy,
        };
        for event in [Event::Attach, Event::Open(0), Event::Open(1), Event::Register(0)] {
            model.apply(event);
        }
        model
    }

    fn apply(&mut self, event: Event) {
        let Self { core, world, .. } = self;
        match event {
            Event::Open(i) => {
                if self.contexts[i].is_none()
                    && let Ok(id) = core.open(i as u32)
                {
                    world.finals.retain(|&(context, _), _| context != id.index as usize);
                    core.setup(id, &setup(4, self.policy)).unwrap();
                    self.contexts[i] = Some(id);
                }
            }
            Event::Close(i) => {
                if let Some(id) = self.contexts[i].take() {
                    core.close(id, world);
                    self.admitted.retain(|&(context, _)| context != id.index as usize);
                    self.buffers[i] = None;
                }
            }
            Event::Register(i) => {
                if let (Some(id), None) = (self.contexts[i], self.buffers[i]) {
                    self.buffers[i] = core.register(id, PAGE, true).ok().map(|(name, _)| name);
                }
            }
            Event::Release(i) => {
                if let (Some(id), Some(name)) = (self.contexts[i], self.buffers[i].take()) {
                    core.release(id, name, world).unwrap();
                }
            }
            Event::Submit { context, kind } => {
                let Some(id) = self.contexts[context] else { return };
                let mut job = nop(self.next);
                let mut tensors = Vec::new();
                match kind {
                    0 => {}
                    1 => job.opcode = opcode::GENERATE,
                    2 => (job.flags, job.deadline_ns) = (job_flag::DEADLINE, self.now + 2),
                    3 => {
                        let last = core.stat(id).unwrap().admitted;
                        (job.flags, job.dep_seq) = (job_flag::DEP, last);
                    }
                    DIRECT => {
                        job.opcode = opcode::GENERATE;
                        tensors.extend(self.buffers[context].map(tensor));
                    }
                    _ => tensors.extend(self.buffers[context].map(tensor)),
                }
                job.tensor_count = tensors.len() as u32;
                let before = core.stat(id).unwrap();
                let submitted = if kind == DIRECT {
                    let ring = core.ring(id).unwrap();
                    core.submit_direct(id, &job, &tensors, self.now, world).map(|ticket| {
                        world.direct.insert(ticket.slot as usize, (id.index as usize, self.next));
                        assert_eq!(core.ring(id).unwrap(), ring, "it takes no place in the ring");
                    })
                } else {
                    core.submit(id, &job, &tensors, self.now, world).map(|seq| assert_eq!(seq, before.admitted + 1))
                };
                match submitted {
                    Ok(()) => {
                        self.admitted.push((id.index as usize, self.next));
                        self.next += 1;
                    }
                    Err(_) => {
                        let after = core.stat(id).unwrap();
                        assert_eq!(Stat { refused: 0, ..before }, Stat { refused: 0, ..after });
                    }
                }
            }
            Event::Read(i) => {
                if let Some(id) = self.contexts[i] {
                    core.advance(id, core.ring(id).unwrap().tail()).unwrap();
                }
            }
            Event::Cancel(i) => {
                if let Some(id) = self.contexts[i] {
                    core.cancel(id, &Cancel { flags: op_flag::ALL, ..Cancel::new() }, world).unwrap();
                }
            }
            Event::Attach => {
                let _ = core.attach(&attach(), world);
            }
            Event::Detach => {
                let _ = core.detach(world);
            }
            Event::Fetch => {
                let mut out = [0; MAX_RECORD];
                if let Ok(Some((fetched, _))) = core.fetch(self.now, &mut out, world) {
                    if let Fetched::Job(ticket) = fetched {
                        self.tickets.push(ticket);
                    }
                    self.last = Some((fetched, Record::read(&out).unwrap()));
                }
            }
            Event::Unfetch => {
                // Only what this server fetched and has not committed can be put back.
                if let Some((Fetched::Job(ticket), _)) = self.last.take()
                    && self.tickets.pop_if(|last| *last == ticket).is_some()
                {
                    core.unfetch(Fetched::Job(ticket), world);
                }
            }
            Event::Map => {
                if let Some((fetched, record)) = self.last {
                    let id = ContextId { index: record.context, generation: record.context_generation };
                    match fetched {
                        Fetched::Gone(_) => {
                            let name = BufferName { buffer: record.buffer, generation: record.buffer_generation };
                            let _ = core.ack(id, name, world);
                        }
                        _ => {
                            let _ = core.map(id, BufferName { buffer: 0, generation: 1 });
                        }
                    }
                }
            }
            Event::Progress => {
                if let Some(&ticket) = self.tickets.last() {
                    let _ = core.progress(ticket, self.now as u32, world);
                }
            }
            Event::Commit => {
                if let Some(ticket) = self.tickets.pop() {
                    let _ = core.commit(&outcome(ticket, (self.now % 2) as i32 - 1), world);
                    assert!(core.commit(&outcome(ticket, 0), world).is_err(), "a second commit");
                }
            }
            Event::CommitAgain => {
                // A ticket that may be of an old server, an old generation, or in order.
                if let Some(&ticket) = self.tickets.first() {
                    let _ = core.commit(&outcome(ticket, 0), world);
                }
            }
            Event::Tick => {
                self.now += 1;
                core.expire(self.now, world);
            }
        }
        self.check(event);
    }

    fn check(&self, event: Event) {
        self.core.audit().unwrap_or_else(|broken| panic!("{broken} after {event:?}"));
        for id in self.contexts.into_iter().flatten() {
            let stat = self.core.stat(id).unwrap();
            let mine = self.admitted.iter().filter(|&&(context, _)| context == id.index as usize);
            let (mut all, mut done) = (0, 0);
            for key in mine {
                let finals = self.world.finals.get(key).map_or(0, Vec::len);
                assert!(finals <= 1, "job {key:?} completed {finals} times after {event:?}");
                all += 1;
                done += finals as u64;
            }
            assert_eq!((all, done), (stat.admitted, stat.completed), "after {event:?}");
        }
    }

    /// Everything comes to an end: the server answers all, clients close, and nothing is left.
    fn drain(mut self) {
        let _ = self.core.attach(&attach(), &mut self.world);
        for event in [Event::Cancel(0), Event::Cancel(1)] {
            self.apply(event);
        }
        for &(context, user_data) in &self.admitted {
            assert_eq!(self.world.finals[&(context, user_data)].len(), 1, "job {user_data}");
        }
        for event in [Event::Close(0), Event::Close(1), Event::Detach] {
            self.apply(event);
        }
        assert!(self.core.is_idle(), "something is left behind");
    }
}

fn events() -> Vec<Event> {
    let mut all: Vec<Event> = (0..KINDS).map(|kind| Event::Submit { context: 0, kind }).collect();
    all.extend([
        Event::Submit { context: 1, kind: 0 },
        Event::Read(0),
        Event::Cancel(0),
        Event::Release(0),
        Event::Register(0),
        Event::Close(0),
        Event::Open(0),
        Event::Attach,
        Event::Detach,
        Event::Fetch,
        Event::Unfetch,
        Event::Map,
        Event::Progress,
        Event::Commit,
        Event::CommitAgain,
        Event::Tick,
    ]);
    all
}

/// All sequences of three events, from starts that put the queue into different corners.
#[test]
fn all_short_sequences_keep_the_invariants() {
    let submit = |kind| Event::Submit { context: 0, kind };
    let starts: [&[Event]; 5] = [
        &[],
        &[submit(4), Event::Fetch, Event::Map],
        &[submit(1), Event::Fetch, Event::Progress, submit(3)],
        &[submit(2), submit(3), Event::Fetch, Event::Tick],
        &[submit(4), Event::Fetch, Event::Map, Event::Release(0), Event::Cancel(0)],
    ];
    let events = events();
    let mut sequences = 0;
    for policy in [policy::HOLD, policy::FAIL, policy::REISSUE] {
        for start in starts {
            let mut model = Model::new(policy);
            start.iter().for_each(|&event| model.apply(event));
            walk(&model, &events, 3, &mut sequences);
        }
    }
    assert_eq!(sequences, 15 * events.len().pow(3));
}

fn walk(model: &Model, events: &[Event], depth: u32, sequences: &mut usize) {
    if depth == 0 {
        *sequences += 1;
        model.clone().drain();
        return;
    }
    for &event in events {
        let mut next = model.clone();
        next.apply(event);
        walk(&next, events, depth - 1, sequences);
    }
}

#[test]
fn long_random_sequences_keep_the_invariants() {
    for seed in 1..=60 {
        let mut rng = Rng(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15));
        let mut model = Model::new((seed % 3) as u32);
        for _ in 0..400 {
            let i = rng.below(2);
            let event = match rng.below(20) {
                0..=5 => Event::Submit { context: i, kind: rng.below(KINDS as usize) as u8 },
                6 => Event::Read(i),
                7 => Event::Cancel(i),
                8 => Event::Release(i),
                9 => Event::Register(i),
                10 if rng.below(4) == 0 => Event::Close(i),
                10 => Event::Open(i),
                11 if rng.below(3) == 0 => Event::Detach,
                11 => Event::Attach,
                12..=14 => Event::Fetch,
                15 => Event::Map,
                16 => Event::Progress,
                17 => Event::Commit,
                18 => [Event::Unfetch, Event::CommitAgain][rng.below(2)],
                _ => Event::Tick,
            };
            model.apply(event);
        }
        model.drain();
    }
}

/// Any bytes as a job with tensors: `validate` and the queue say something and never panic.
#[test]
fn any_bytes_are_judged() {
    let mut rng = Rng(42);
    let (mut core, mut world, id) = ready(policy::HOLD);
    let (name, _) = core.register(id, PAGE, true).unwrap();
    for _ in 0..20_000 {
        let mut bytes = [0u8; Job::SIZE + 2 * Tensor::SIZE];
        bytes.iter_mut().for_each(|byte| *byte = rng.next() as u8);
        let mut job = Job::read(&bytes).unwrap();
        let mut tensors = [128, 224].map(|at| Tensor::read(&bytes[at..]).unwrap());
        // Make a random part of the fields plausible, so that judgement gets past the first check.
        (job.size, job.tensor_count) = (128, 2);
        let keep = rng.next();
        if keep & 1 == 0 {
            (job.flags, job.reserved0, job.reserved1, job.deadline_ns, job.dep_seq) = (0, 0, 0, 0, 0);
            (job.session, job.session_epoch, job.opcode, job.sched_class) =
                (0, 0, job.opcode % 12, job.sched_class % 4);
        }
        for (i, t) in tensors.iter_mut().enumerate() {
            if keep >> (i + 1) & 1 == 0 {
                *t = Tensor { offset: t.offset % 5000, byte_len: t.byte_len, flags: t.flags % 9, ..tensor(name) };
            }
        }
        core.submit(id, &job, &tensors, 0, &mut world).unwrap();
        core.cancel(id, &Cancel { flags: op_flag::ALL, ..Cancel::new() }, &mut world).unwrap();
        core.advance(id, core.ring(id).unwrap().tail()).unwrap();
    }
    core.audit().unwrap();
}
