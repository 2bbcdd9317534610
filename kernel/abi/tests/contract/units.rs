//! The parts: wire format, ring, dispatch, state machine, dependencies, progress, buffers.

use crate::support::*;
use rustai_abi::queue::*;

#[test]
fn structs_survive_bytes_and_versions_are_judged() {
    let job = Job { user_data: 1 << 60, opcode: 3, params: [1, 2, 3, 4, 5, 6, 7, u64::MAX], ..Job::new() };
    let mut bytes = [0; 160];
    assert!(job.write(&mut bytes));
    assert!(!job.write(&mut [0; 127]));
    assert_eq!(Job::read(&bytes), Some(job));
    assert_eq!(Job::parse(&bytes[..127]), Err(Errno::EINVAL));
    assert_eq!(Job::parse(&bytes), Ok(job));
    bytes[..4].copy_from_slice(&160u32.to_ne_bytes());
    assert_eq!(Job::parse(&bytes).unwrap().user_data, job.user_data, "a longer struct with a zero tail");
    bytes[159] = 1;
    assert_eq!(Job::parse(&bytes), Err(Errno::E2BIG));
    bytes[..4].copy_from_slice(&161u32.to_ne_bytes());
    assert_eq!(Job::parse(&bytes), Err(Errno::EINVAL), "it says more than there is");
    bytes[..4].copy_from_slice(&127u32.to_ne_bytes());
    assert_eq!(Job::parse(&bytes), Err(Errno::EINVAL));
}

/// Ring arithmetic against a model that keeps the entries themselves, around the point where indices wrap.
#[test]
fn ring_never_overwrites_what_is_unread() {
    let mut rng = Rng(1);
    for start in [0, u32::MAX - 3, u32::MAX / 2] {
        for entries in [1u32, 2, 4, 8] {
            let mut ring = Ring::starting_at(entries, start).unwrap();
            let mut places: Vec<Option<u32>> = vec![None; entries as usize];
            let mut live: Vec<(u32, Option<u32>)> = Vec::new();
            for _ in 0..5000 {
                match rng.below(4) {
                    0 => {
                        let slots = 1 + rng.below(2) as u32;
                        if ring.reserve(slots).is_ok() {
                            live.push((slots, None));
                        }
                    }
                    1 if !live.is_empty() => {
                        let (slots, _) = live.swap_remove(rng.below(live.len()));
                        let at = ring.post_final(slots);
                        assert_eq!(places[ring.place(at)].replace(at), None, "an unread entry was overwritten");
                    }
                    2 if !live.is_empty() => {
                        let job = rng.below(live.len());
                        if live[job].0 == 2 {
                            let at = ring.post_progress(live[job].1);
                            let was = places[ring.place(at)].replace(at);
                            assert!(was.is_none() || was == Some(at) && live[job].1 == Some(at));
                            live[job].1 = Some(at);
                        }
                    }
                    _ => {
                        let n = rng.below(ring.unread() as usize + 1) as u32;
                        let head = ring.head();
                        for i in 0..n {
                            places[ring.place(head.wrapping_add(i))] = None;
                        }
                        ring.advance(head.wrapping_add(n)).unwrap();
                        let mut copy = ring;
                        let ahead = ring.tail().wrapping_add(1);
                        assert_eq!(copy.advance(ahead), Err(Errno::EPROTO));
                    }
                }
                assert!(ring.unread() <= entries);
                assert_eq!(places.iter().flatten().count(), ring.unread() as usize);
            }
        }
    }
}

/// All paths of a job through its states: one completion each, and none after the slot is free.
#[test]
fn a_job_completes_exactly_once_on_every_path() {
    let reissue = |idempotent, reissued| JobEvent::ServerGone(Lost::Reissue { idempotent, reissued });
    let events = [
        JobEvent::DependencyDone,
        JobEvent::DependencyFailed,
        JobEvent::Fetch,
        JobEvent::Unfetch,
        JobEvent::Refuse(Errno::ESTALE),
        JobEvent::Commit,
        JobEvent::Cancel,
        JobEvent::Deadline,
        JobEvent::ClientGone,
        JobEvent::ServerGone(Lost::Fail),
        JobEvent::ServerGone(Lost::Hold),
        reissue(true, 0),
        reissue(true, MAX_REISSUES),
        reissue(false, 0),
    ];
    fn walk(state: JobState, completed: u32, depth: u32, events: &[JobEvent], ends: &mut u32) {
        assert_eq!(completed, u32::from(!state.is_in_flight()), "{state:?}");
        if state == JobState::Free {
            *ends += 1;
            return;
        }
        if depth == 0 {
            return;
        }
        for &event in events {
            if let Ok(step) = state.step(event) {
                walk(step.to, completed + u32::from(step.completes.is_some()), depth - 1, events, ends);
            }
        }
    }
    let mut ends = 0;
    for waits in [false, true] {
        let step = JobState::Free.step(JobEvent::Admit { waits }).unwrap();
        walk(step.to, 0, 7, &events, &mut ends);
    }
    assert!(ends > 1000, "{ends}");
    for &event in &events {
        assert_eq!(JobState::Free.step(event), Err(Illegal), "nothing happens to a free slot: {event:?}");
    }
    for state in [JobState::Waiting, JobState::Queued, JobState::Running, JobState::Abandoned] {
        assert_eq!(state.step(JobEvent::Admit { waits: false }), Err(Illegal), "a slot is used once at a time");
    }
}

#[test]
fn contexts_and_servers_take_legal_steps_only() {
    use ContextState::*;
    assert_eq!(New.set_up(), Ok(Ready));
    for state in [Ready, Broken] {
        assert_eq!(state.set_up(), Err(Errno::EBUSY));
    }
    for state in [Free, Closing] {
        assert_eq!(state.set_up(), Err(Errno::ENOENT));
        assert_eq!(state.breach(), state);
    }
    assert_eq!((Ready.breach(), New.breach()), (Broken, New));
    for state in [New, Ready, Broken, Closing] {
        assert_eq!((state.close(false), state.close(true)), (Closing, Free));
    }
    assert_eq!(Free.close(false), Free);
    let server = ServerState::Absent { epoch: u32::MAX };
    assert_eq!(server.detach(), Err(Errno::ENOTCONN));
    let server = server.attach().unwrap();
    assert_eq!((server.epoch(), server.attach()), (0, Err(Errno::EBUSY)));
}

#[test]
fn shares_follow_weights_and_nobody_starves() {
    let mut core = core(64, 3, 1);
    let mut world = World::default();
    core.attach(&attach(), &mut world).unwrap();
    let ids = [100, 300, 100].map(|weight| {
        let id = core.open(weight).unwrap();
        core.setup(id, &setup(64, policy::HOLD)).unwrap();
        core.set_limits(id, &Limits { flags: op_flag::SET, weight, ..limits(20, 1) }, true).unwrap();
        id
    });
    let mut count = [0; 3];
    let fill = |core: &mut TestCore, world: &mut World, index: usize, class: u8| {
        core.submit(ids[index], &Job { sched_class: class, ..nop(0) }, &[], 0, world).unwrap();
    };
    // Contexts 0 and 1 always have NORMAL jobs, context 2 has BATCH jobs.
    let classes = [class::NORMAL, class::NORMAL, class::BATCH];
    for (index, &class) in classes.iter().enumerate() {
        for _ in 0..2 {
            fill(&mut core, &mut world, index, class);
        }
    }
    for _ in 0..900 {
        let mut out = [0; MAX_RECORD];
        let (fetched, _) = core.fetch(0, &mut out, &mut world).unwrap().unwrap();
        let index = Record::read(&out).unwrap().context as usize;
        let Fetched::Job(ticket) = fetched else { panic!("{fetched:?}") };
        count[index] += 1;
        core.commit(&outcome(ticket, 0), &mut world).unwrap();
        core.advance(ids[index], core.ring(ids[index]).unwrap().tail()).unwrap();
        fill(&mut core, &mut world, index, classes[index]);
    }
    assert_eq!(count[2], 100, "BATCH has one share beside NORMAL's eight: {count:?}");
    assert!((598..=602).contains(&count[1]), "weight 300 beside 100: {count:?}");
}

#[test]
fn dependencies_start_in_order_and_fail_together() {
    let (mut core, mut world, id) = ready(policy::HOLD);
    let after = |user_data, dep_seq| Job { flags: job_flag::DEP, dep_seq, ..nop(user_data) };
    for job in [nop(1), after(2, 1), after(3, 2), after(4, 1)] {
        core.submit(id, &job, &[], 0, &mut world).unwrap();
    }
    let first = fetch(&mut core, &mut world, 0).unwrap();
    assert_eq!(fetch(&mut core, &mut world, 0), None, "the others wait");
    core.commit(&outcome(first, 0), &mut world).unwrap();
    let second = fetch(&mut core, &mut world, 0).unwrap();
    let fourth = fetch(&mut core, &mut world, 0).unwrap();
    assert_eq!(fetch(&mut core, &mut world, 0), None);
    core.commit(&outcome(second, -Errno::EDOM.raw()), &mut world).unwrap();
    let finals = &world.finals[&(id.index as usize, 3)];
    assert_eq!((finals[0].result, finals[0].flags), (-Errno::ECANCELED.raw(), cqe_flag::DEP));
    core.commit(&outcome(fourth, 0), &mut world).unwrap();
    core.advance(id, 4).unwrap();
    // Dependencies that are over already.
    core.submit(id, &after(5, 1), &[], 0, &mut world).unwrap();
    core.submit(id, &after(6, 2), &[], 0, &mut world).unwrap();
    assert_eq!(world.result(id, 6), -Errno::ECANCELED.raw());
    assert!(!world.is_done(id, 5) && fetch(&mut core, &mut world, 0).is_some());
    core.audit().unwrap();
}

#[test]
fn a_chain_of_dependents_falls_when_its_head_is_canceled() {
    let (mut core, mut world, id) = ready(policy::HOLD);
    for n in 1..=8 {
        let job = if n == 1 { nop(1) } else { Job { flags: job_flag::DEP, dep_seq: n - 1, ..nop(n) } };
        core.submit(id, &job, &[], 0, &mut world).unwrap();
    }
    let ask = Cancel { flags: op_flag::BY_USER_DATA, user_data: 1, ..Cancel::new() };
    assert_eq!(core.cancel(id, &ask, &mut world), Ok(1));
    for n in 1..=8 {
        assert_eq!(world.result(id, n), -Errno::ECANCELED.raw());
    }
    core.audit().unwrap();
}

#[test]
fn cancel_chooses_by_one_way() {
    let (mut core, mut world, id) = ready(policy::HOLD);
    let session = |user_data| Job { flags: job_flag::SESSION, session: 4, session_epoch: 1, ..nop(user_data) };
    for job in [nop(1), nop(2), session(3), nop(0)] {
        core.submit(id, &job, &[], 0, &mut world).unwrap();
    }
    for flags in [0, op_flag::ALL | op_flag::BY_SESSION, op_flag::ALL | 1 << 31] {
        let ask = Cancel { flags, ..Cancel::new() };
        assert_eq!(core.cancel(id, &ask, &mut world), Err(Errno::EINVAL));
    }
    let by_session = Cancel { flags: op_flag::BY_SESSION, session: 4, session_epoch: 1, ..Cancel::new() };
    assert_eq!(core.cancel(id, &by_session, &mut world), Ok(1));
    let by_data = Cancel { flags: op_flag::BY_USER_DATA, user_data: 2, ..Cancel::new() };
    assert_eq!(core.cancel(id, &by_data, &mut world), Ok(1));
    assert_eq!(core.cancel(id, &by_data, &mut world), Ok(0), "a job is canceled once");
    let all = Cancel { flags: op_flag::ALL, ..Cancel::new() };
    assert_eq!(core.cancel(id, &all, &mut world), Ok(2));
    core.audit().unwrap();
}

#[test]
fn progress_is_coalesced_while_unread() {
    let (mut core, mut world, id) = ready(policy::HOLD);
    core.submit(id, &Job { opcode: opcode::GENERATE, ..nop(1) }, &[], 0, &mut world).unwrap();
    let ticket = fetch(&mut core, &mut world, 0).unwrap();
    for count in 1..=5 {
        assert_eq!(core.progress(ticket, count, &mut world), Ok(Progressed::Told));
    }
    assert_eq!(core.ring(id).unwrap().unread(), 1);
    assert_eq!((world.rings[&0][&0].count, world.rings[&0][&0].flags), (5, cqe_flag::MORE));
    core.advance(id, 1).unwrap();
    core.progress(ticket, 6, &mut world).unwrap();
    assert_eq!(world.rings[&0][&1].count, 6);
    core.commit(&outcome(ticket, 0), &mut world).unwrap();
    assert_eq!(core.ring(id).unwrap().unread(), 2);
    core.audit().unwrap();

    core.submit(id, &nop(2), &[], 0, &mut world).unwrap();
    let plain = fetch(&mut core, &mut world, 0).unwrap();
    assert_eq!(core.progress(plain, 1, &mut world), Err(Errno::EINVAL), "NOP does not stream");
    core.cancel(id, &Cancel { flags: op_flag::ALL, ..Cancel::new() }, &mut world).unwrap();
    assert_eq!(core.progress(plain, 1, &mut world), Ok(Progressed::Stop));
}

#[test]
fn a_buffer_stays_until_jobs_and_server_are_done_with_it() {
    let (mut core, mut world, id) = ready(policy::HOLD);
    let (name, slot) = core.register(id, PAGE, true).unwrap();
    core.submit(id, &Job { tensor_count: 1, ..nop(1) }, &[tensor(name)], 0, &mut world).unwrap();
    core.release(id, name, &mut world).unwrap();
    assert_eq!(core.release(id, name, &mut world), Err(Errno::ENOENT));
    let late = Job { tensor_count: 1, ..nop(2) };
    core.submit(id, &late, &[tensor(name)], 0, &mut world).unwrap();
    assert_eq!(world.result(id, 2), -Errno::ENOENT.raw(), "no new job names it");
    let ticket = fetch(&mut core, &mut world, 0).unwrap();
    assert_eq!(core.map(id, name), Ok(MappedBuffer { index: slot, writable: true }), "the running job still may");
    assert_eq!(core.ack(id, name, &mut world), Err(Errno::EBUSY), "it was not told yet");
    core.commit(&outcome(ticket, 0), &mut world).unwrap();
    assert!(world.dropped.is_empty(), "the server has it mapped");
    assert_eq!(core.map(id, name), Err(Errno::ESTALE));
    let mut out = [0; MAX_RECORD];
    assert_eq!(core.fetch(0, &mut out, &mut world).unwrap().unwrap().0, Fetched::Gone(slot));
    core.unfetch(Fetched::Gone(slot), &mut world);
    assert_eq!(core.fetch(0, &mut out, &mut world).unwrap().unwrap().0, Fetched::Gone(slot));
    let record = Record::read(&out).unwrap();
    assert_eq!((record.kind, record.buffer, record.buffer_generation), (record::GONE, name.buffer, name.generation));
    core.ack(id, name, &mut world).unwrap();
    assert_eq!(world.dropped, [slot]);
    assert_eq!(core.ack(id, name, &mut world), Err(Errno::ENOENT));
    let (again, _) = core.register(id, PAGE, true).unwrap();
    assert_eq!((again.buffer, again.generation), (name.buffer, name.generation + 1));
    assert_eq!(core.release(id, name, &mut world), Err(Errno::ESTALE), "the old name is stale");
    core.audit().unwrap();
}

#[test]
fn a_context_is_reused_only_when_the_server_let_go() {
    let (mut core, mut world) = (core(4, 1, 2), World::default());
    let id = core.open(0).unwrap();
    core.setup(id, &setup(8, policy::HOLD)).unwrap();
    core.attach(&attach(), &mut world).unwrap();
    let (name, _) = core.register(id, PAGE, true).unwrap();
    core.submit(id, &Job { tensor_count: 1, ..nop(1) }, &[tensor(name)], 0, &mut world).unwrap();
    let ticket = fetch(&mut core, &mut world, 0).unwrap();
    core.map(id, name).unwrap();
    core.close(id, &mut world);
    core.close(id, &mut world);
    assert!(!world.is_done(id, 1), "nobody reads that ring");
    assert_eq!(core.open(0), Err(Errno::ENFILE));
    let mut out = [0; MAX_RECORD];
    assert_eq!(core.fetch(0, &mut out, &mut world).unwrap().unwrap().0, Fetched::Cancel(ticket));
    assert_eq!(core.commit(&outcome(ticket, 0), &mut world), Err(Errno::EALREADY));
    assert!(matches!(core.fetch(0, &mut out, &mut world), Ok(Some((Fetched::Gone(_), _)))));
    assert_eq!(core.open(0), Err(Errno::ENFILE), "not yet");
    core.ack(id, name, &mut world).unwrap();
    let next = core.open(0).unwrap();
    assert_ne!(next, id);
    assert_eq!(core.map(id, name), Err(Errno::ESTALE));
    core.audit().unwrap();
}

#[test]
fn contexts_cannot_name_each_others_buffers() {
    let (mut core, mut world, a) = ready(policy::HOLD);
    let b = core.open(1).unwrap();
    core.setup(b, &setup(8, policy::HOLD)).unwrap();
    let (name, _) = core.register(a, PAGE, true).unwrap();
    for buffer in [name.buffer, name.buffer + 4, name.buffer.wrapping_sub(4)] {
        let foreign = Tensor { buffer, ..tensor(name) };
        core.submit(b, &Job { tensor_count: 1, ..nop(u64::from(buffer)) }, &[foreign], 0, &mut world).unwrap();
        assert_eq!(world.result(b, u64::from(buffer)), -Errno::ENOENT.raw());
    }
    assert_eq!(core.release(b, name, &mut world), Err(Errno::ENOENT));
    core.submit(a, &nop(9), &[], 0, &mut world).unwrap();
    let all = Cancel { flags: op_flag::ALL, ..Cancel::new() };
    assert_eq!(core.cancel(b, &all, &mut world), Ok(0));
    assert!(!world.is_done(a, 9));
}

#[test]
fn a_new_context_learns_nothing_of_the_one_before() {
    let (mut core, mut world) = (core(4, 1, 2), World::default());
    for _ in 0..2 {
        let id = core.open(0).unwrap();
        core.setup(id, &setup(8, policy::HOLD)).unwrap();
        let unknown = BufferName { buffer: 1, generation: 1 };
        assert_eq!(core.release(id, unknown, &mut world), Err(Errno::ENOENT));
        for generation in 1..=3 {
            let (name, _) = core.register(id, PAGE, true).unwrap();
            assert_eq!(name, BufferName { buffer: 0, generation });
            core.release(id, name, &mut world).unwrap();
        }
        core.register(id, PAGE, true).unwrap();
        core.register(id, PAGE, true).unwrap();
        core.close(id, &mut world);
    }
}

#[test]
fn many_contexts_of_a_user_share_what_one_would_get() {
    let mut core = core(64, 8, 1);
    let mut world = World::default();
    core.attach(&attach(), &mut world).unwrap();
    // Five contexts of user 1 and one of user 2, each with ten jobs.
    let ids = [1, 1, 1, 1, 1, 2].map(|uid| {
        let id = core.open(uid).unwrap();
        core.setup(id, &setup(16, policy::HOLD)).unwrap();
        for user_data in 0..10 {
            core.submit(id, &nop(user_data), &[], 0, &mut world).unwrap();
        }
        id
    });
    // From the first job on they take turns, and the five share alike.
    let mut of_context = [0; 6];
    for turn in 0..20 {
        let mut out = [0; MAX_RECORD];
        core.fetch(0, &mut out, &mut world).unwrap().unwrap();
        of_context[Record::read(&out).unwrap().context as usize] += 1;
        assert!((turn / 2..=turn / 2 + 1).contains(&of_context[5]), "{of_context:?}");
    }
    assert_eq!(of_context, [2, 2, 2, 2, 2, 10]);
    assert_eq!(core.usage().contexts as usize, ids.len());
}

#[test]
fn a_direct_job_ends_outside_of_the_ring() {
    let (mut core, mut world, id) = ready(policy::HOLD);
    let (ro, _) = core.register(id, PAGE, false).unwrap();
    let ring = core.ring(id).unwrap();
    let stat = core.stat(id).unwrap();
    // What would complete with an error is refused, and nothing has changed.
    let out = Tensor { flags: tensor_flag::OUT, ..tensor(ro) };
    let job = Job { tensor_count: 1, opcode: opcode::GENERATE, ..nop(1) };
    assert_eq!(core.submit_direct(id, &job, &[out], 0, &mut world), Err(Errno::EACCES));
    assert_eq!(core.stat(id), Ok(stat));
    let mut tickets = Vec::new();
    for user_data in 1..=2 {
        let job = Job { user_data, ..job };
        let ticket = core.submit_direct(id, &job, &[tensor(ro)], 0, &mut world).unwrap();
        world.direct.insert(ticket.slot as usize, (id.index as usize, user_data));
        tickets.push(ticket);
    }
    assert_eq!(fetch(&mut core, &mut world, 0), Some(tickets[0]));
    assert_eq!(core.progress(tickets[0], 1, &mut world), Ok(Progressed::Told));
    core.commit(&outcome(tickets[0], 5), &mut world).unwrap();
    assert_eq!(core.cancel_direct(tickets[0], &mut world), Err(Errno::ESTALE));
    core.cancel_direct(tickets[1], &mut world).unwrap();
    assert_eq!(core.cancel_direct(tickets[1], &mut world), Err(Errno::ESTALE));
    assert_eq!([1, 2].map(|user_data| world.result(id, user_data)), [5, -Errno::ECANCELED.raw()]);
    assert_eq!(core.ring(id), Ok(ring));
    assert!(world.rings.is_empty());
    core.audit().unwrap();
}

#[test]
fn one_user_cannot_have_all_contexts() {
    let mut core = core(4, 8, 1);
    for _ in 0..6 {
        core.open(1).unwrap();
    }
    assert_eq!(core.open(1), Err(Errno::EDQUOT));
    core.open(2).unwrap();
    core.open(2).unwrap();
    assert_eq!(core.open(2), Err(Errno::ENFILE));
    assert_eq!(core.usage(), Usage { contexts: 8, ..Usage::default() });
}

/// A small generator (xorshift64*), so that a failure repeats.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) as usize) % n
    }
}
