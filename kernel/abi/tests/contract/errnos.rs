//! Each row of the errno table that the queue itself decides. The transports add those that need descriptors, pointers
//! or system calls.

use crate::support::*;
use rustai_abi::queue::*;

/// The result of one job with the given changes, on a context with a writable buffer 0 and a read-only buffer 1 of one
/// page each.
fn completes(change: impl FnOnce(&mut Job, &mut Vec<Tensor>)) -> i32 {
    let (mut core, mut world, id) = ready(policy::HOLD);
    let (rw, _) = core.register(id, PAGE, true).unwrap();
    let (ro, _) = core.register(id, PAGE, false).unwrap();
    let mut job = nop(7);
    let mut tensors = vec![tensor(rw), Tensor { offset: 512, ..tensor(ro) }];
    change(&mut job, &mut tensors);
    job.tensor_count = tensors.len() as u32;
    core.submit(id, &job, &tensors, 100, &mut world).unwrap();
    core.audit().unwrap();
    if let Some(ticket) = fetch(&mut core, &mut world, 100) {
        core.commit(&outcome(ticket, 5), &mut world).unwrap();
    }
    core.audit().unwrap();
    world.result(id, 7)
}

fn fails(errno: Errno, change: impl FnOnce(&mut Job, &mut Vec<Tensor>)) {
    assert_eq!(completes(change), -errno.raw(), "{errno}");
}

#[test]
fn jobs_that_are_wrong_complete_with_their_errno() {
    use Errno::*;
    assert_eq!(completes(|_, _| ()), 5, "the job that all rows change is valid");
    fails(EINVAL, |job, _| job.flags = 1 << 31);
    fails(EINVAL, |job, _| job.reserved0 = 1);
    fails(EINVAL, |job, _| job.reserved1 = 1);
    fails(EINVAL, |job, _| job.deadline_ns = 200);
    fails(EINVAL, |job, _| job.session = 1);
    fails(EINVAL, |_, t| t[0].flags = 1 << 31);
    fails(EINVAL, |_, t| t[0].flags = tensor_flag::IN_PLACE);
    fails(EINVAL, |_, t| t[0].reserved0 = 1);
    fails(EINVAL, |_, t| t[0].size = 95);
    fails(EOPNOTSUPP, |job, _| job.opcode = opcode::COUNT);
    fails(EOPNOTSUPP, |job, _| job.opcode = u16::MAX);
    fails(EINVAL, |job, _| job.sched_class = class::COUNT as u8);
    fails(ENOENT, |_, t| t[0].buffer = 2);
    fails(ENOENT, |_, t| t[0].buffer = 4);
    fails(ENOENT, |_, t| t[0].buffer = u32::MAX);
    fails(ESTALE, |_, t| t[0].generation += 1);
    fails(EACCES, |_, t| t[1].flags = tensor_flag::OUT);
    fails(EOVERFLOW, |_, t| t[0].offset = u64::MAX);
    fails(ERANGE, |_, t| t[0].offset = PAGE - 255);
    fails(EINVAL, |_, t| t[0].ndim = 0);
    fails(EINVAL, |_, t| t[0].ndim = 7);
    fails(EINVAL, |_, t| t[0].dims[1] = 0);
    fails(EINVAL, |_, t| t[0].dims[1] = MAX_DIM + 1);
    fails(EINVAL, |_, t| t[0].dims[2] = 1);
    fails(EOVERFLOW, |_, t| t[0].dims[..2].copy_from_slice(&[MAX_DIM, MAX_DIM]));
    fails(EOVERFLOW, |_, t| t[0].dims[..2].copy_from_slice(&[MAX_DIM, 1 << 23]));
    fails(EMSGSIZE, |_, t| t[0].byte_len = 255);
    fails(EMSGSIZE, |_, t| t[0].dtype = 1);
    // Q4_0: blocks of 32 elements.
    fails(EINVAL, |_, t| (t[0].dtype, t[0].dims[0]) = (2, 33));
    assert_eq!(completes(|_, t| (t[0].dtype, t[0].byte_len) = (2, 36)), 5);
    // Q4_2 was removed, 43 was never assigned.
    fails(EOPNOTSUPP, |_, t| t[0].dtype = 4);
    fails(EOPNOTSUPP, |_, t| t[0].dtype = 43);
    fails(EOPNOTSUPP, |_, t| t[0].quant = 1);
    fails(ETIME, |job, _| (job.flags, job.deadline_ns) = (job_flag::DEADLINE, 100));
    fails(EINVAL, |job, _| (job.flags, job.dep_seq) = (job_flag::DEP, 1));
    fails(EINVAL, |job, _| (job.flags, job.dep_seq) = (job_flag::DEP, 0));
    fails(EINVAL, |job, _| (job.flags, job.dep_seq) = (job_flag::DEP, u64::MAX));
    fails(ESTALE, |job, _| (job.flags, job.session_epoch) = (job_flag::SESSION, 0));
}

#[test]
fn outputs_that_overlap_are_refused() {
    let clash = |offset: u64, flags: [u32; 2]| {
        completes(move |_, t| {
            t[1] = Tensor { offset, ..t[0] };
            (t[0].flags, t[1].flags) = (flags[0], flags[1]);
        })
    };
    let out = tensor_flag::OUT;
    let in_place = out | tensor_flag::IN_PLACE;
    let einval = -Errno::EINVAL.raw();
    assert_eq!(clash(0, [0, 0]), 5, "inputs may overlap");
    assert_eq!(clash(255, [out, 0]), einval);
    assert_eq!(clash(255, [0, out]), einval);
    assert_eq!(clash(255, [out, out]), einval);
    assert_eq!(clash(256, [out, out]), 5);
    assert_eq!(clash(0, [in_place, 0]), 5);
    assert_eq!(clash(0, [in_place, in_place]), einval, "two outputs never overlap");
}

#[test]
fn submit_refuses_without_changing_anything() {
    let (mut core, mut world, id) = ready(policy::HOLD);
    let before = core.stat(id).unwrap();
    let size = |size| Job { size, ..nop(1) };
    assert_eq!(core.submit(id, &size(127), &[], 0, &mut world), Err(Errno::EINVAL));
    assert_eq!(core.submit(id, &size(136), &[], 0, &mut world), Err(Errno::E2BIG));
    let many = Job { tensor_count: 17, ..nop(1) };
    assert_eq!(core.submit(id, &many, &[Tensor::new(); 17], 0, &mut world), Err(Errno::E2BIG));
    let fewer = Job { tensor_count: 2, ..nop(1) };
    assert_eq!(core.submit(id, &fewer, &[Tensor::new()], 0, &mut world), Err(Errno::EINVAL));
    assert_eq!(core.stat(id).unwrap(), before);

    let other = ContextId { index: 1, generation: 1 };
    assert_eq!(core.submit(other, &nop(1), &[], 0, &mut world), Err(Errno::ENOENT), "no such context");
    let fresh = core.open(1000).unwrap();
    assert_eq!(core.submit(fresh, &nop(1), &[], 0, &mut world), Err(Errno::ENOENT), "before SETUP");
    assert_eq!(core.register(fresh, PAGE, true), Err(Errno::ENOENT), "before SETUP");

    core.setup(fresh, &setup(1, policy::HOLD)).unwrap();
    let streams = Job { opcode: opcode::GENERATE, ..nop(1) };
    assert_eq!(core.submit(fresh, &streams, &[], 0, &mut world), Err(Errno::EINVAL), "it can never fit");
    core.submit(fresh, &nop(1), &[], 0, &mut world).unwrap();
    assert_eq!(core.submit(fresh, &nop(2), &[], 0, &mut world), Err(Errno::EAGAIN), "no completion slot");
    let ticket = fetch(&mut core, &mut world, 0).unwrap();
    core.commit(&outcome(ticket, 0), &mut world).unwrap();
    assert_eq!(core.submit(fresh, &nop(2), &[], 0, &mut world), Err(Errno::EAGAIN), "the entry is unread");
    core.advance(fresh, 1).unwrap();
    core.submit(fresh, &nop(2), &[], 0, &mut world).unwrap();
    core.audit().unwrap();
}

#[test]
fn quotas_of_jobs_buffers_and_bytes() {
    let (mut core, mut world, id) = ready(policy::HOLD);
    let lower = Limits { flags: op_flag::SET, max_jobs: 2, max_buffers: 2, max_bytes: 3 * PAGE, ..limits(0, 0) };
    core.set_limits(id, &lower, false).unwrap();
    core.submit(id, &nop(1), &[], 0, &mut world).unwrap();
    core.submit(id, &nop(2), &[], 0, &mut world).unwrap();
    assert_eq!(core.submit(id, &nop(3), &[], 0, &mut world), Err(Errno::EDQUOT));
    assert_eq!(core.stat(id).unwrap().refused, 1);
    assert_eq!(core.register(id, 4 * PAGE, true), Err(Errno::EDQUOT));
    core.register(id, PAGE, true).unwrap();
    core.register(id, PAGE, true).unwrap();
    assert_eq!(core.register(id, PAGE, true), Err(Errno::EMFILE));

    let raise = Limits { max_jobs: 3, ..lower };
    assert_eq!(core.set_limits(id, &raise, false), Err(Errno::EPERM));
    assert_eq!(core.set_limits(id, &raise, true).unwrap().max_jobs, 3);
    let wrong = |change: fn(&mut Limits)| {
        let mut ask = lower;
        change(&mut ask);
        ask
    };
    for ask in [
        wrong(|l| l.flags = 1 << 31),
        wrong(|l| l.reserved[1] = 1),
        wrong(|l| l.weight = 0),
        wrong(|l| l.weight = 1001),
        wrong(|l| l.class_cap = 3),
        wrong(|l| l.max_jobs = 9),
        wrong(|l| l.max_buffers = 5),
    ] {
        assert_eq!(core.set_limits(id, &ask, true), Err(Errno::EINVAL), "{ask:?}");
    }
    let capped = Limits { max_jobs: 3, class_cap: 0, ..lower };
    core.set_limits(id, &capped, false).unwrap();
    core.submit(id, &nop(4), &[], 0, &mut world).unwrap();
    assert_eq!(world.result(id, 4), -Errno::EPERM.raw(), "class above the cap");
    core.audit().unwrap();
}

#[test]
fn quotas_of_a_user_span_contexts() {
    let mut world = World::default();
    let mut core: TestCore = Core::new(
        vec![JobSlot::new(); 8],
        vec![ContextSlot::new(); 3],
        vec![BufferSlot::new(); 12],
        limits(8, 4),
        3,
        4 * PAGE,
        BASE_FEATURES,
    )
    .unwrap();
    let [a, b, other] = [1, 1, 2].map(|uid| {
        let id = core.open(uid).unwrap();
        core.setup(id, &setup(8, policy::HOLD)).unwrap();
        id
    });
    assert_eq!(core.open(3), Err(Errno::ENFILE));
    core.submit(a, &nop(1), &[], 0, &mut world).unwrap();
    core.submit(b, &nop(2), &[], 0, &mut world).unwrap();
    core.submit(b, &nop(3), &[], 0, &mut world).unwrap();
    assert_eq!(core.submit(a, &nop(4), &[], 0, &mut world), Err(Errno::EDQUOT));
    core.submit(other, &nop(5), &[], 0, &mut world).unwrap();
    core.register(a, 3 * PAGE, true).unwrap();
    assert_eq!(core.register(b, 2 * PAGE, true), Err(Errno::EDQUOT));
    core.register(other, 2 * PAGE, true).unwrap();
}

#[test]
fn setup_and_attach_refuse() {
    let (mut core, mut world) = (core(4, 2, 2), World::default());
    let id = core.open(0).unwrap();
    let base = setup(8, policy::HOLD);
    assert_eq!(core.setup(id, &setup(0, 0)), Err(Errno::EINVAL));
    assert_eq!(core.setup(id, &setup(3, 0)), Err(Errno::EINVAL));
    assert_eq!(core.setup(id, &setup(MAX_ENTRIES * 2, 0)), Err(Errno::E2BIG));
    assert_eq!(core.setup(id, &setup(8, 3)), Err(Errno::EINVAL));
    assert_eq!(core.setup(id, &Setup { flags: 1, ..base }), Err(Errno::EINVAL));
    assert_eq!(core.setup(id, &Setup { reserved0: 1, ..base }), Err(Errno::EINVAL));
    assert_eq!(core.setup(id, &Setup { major: 2, ..base }), Err(Errno::EPROTO));
    assert_eq!(core.setup(id, &Setup { features: 1 << 63, ..base }), Err(Errno::EPROTO));
    assert_eq!(core.setup(id, &base).unwrap().ring_bytes, PAGE);
    assert_eq!(core.setup(id, &base), Err(Errno::EBUSY));

    assert_eq!(core.attach(&Attach { major: 2, ..attach() }, &mut world), Err(Errno::EPROTO));
    assert_eq!(core.attach(&Attach { features: 1 << 63, ..attach() }, &mut world), Err(Errno::EPROTO));
    assert_eq!(core.attach(&Attach { flags: 1, ..attach() }, &mut world), Err(Errno::EINVAL));
    assert_eq!(core.attach(&attach(), &mut world).unwrap().epoch, 1);
    assert_eq!(core.attach(&attach(), &mut world), Err(Errno::EBUSY));
    core.detach(&mut world).unwrap();
    assert_eq!(core.detach(&mut world), Err(Errno::ENOTCONN));
    assert_eq!(core.attach(&attach(), &mut world).unwrap().epoch, 2);
}

#[test]
fn ranges_of_buffers() {
    let check = TestCore::check_range;
    assert_eq!(check(0, PAGE, PAGE), Ok(()));
    assert_eq!(check(0, 0, PAGE), Err(Errno::EINVAL));
    assert_eq!(check(1, PAGE, 2 * PAGE), Err(Errno::EINVAL));
    assert_eq!(check(0, 100, PAGE), Err(Errno::EINVAL));
    assert_eq!(check(PAGE, PAGE, PAGE), Err(Errno::ERANGE));
    assert_eq!(check(u64::MAX - 4095, PAGE, PAGE), Err(Errno::EOVERFLOW));
}

#[test]
fn a_head_that_cannot_be_breaks_the_context() {
    for head in [1, u32::MAX, 1 << 31] {
        let (mut core, mut world, id) = ready(policy::HOLD);
        core.advance(id, 0).unwrap();
        assert_eq!(core.advance(id, head), Err(Errno::EPROTO));
        assert_eq!(core.advance(id, 0), Err(Errno::EPROTO), "and it stays broken");
        assert_eq!(core.submit(id, &nop(1), &[], 0, &mut world), Err(Errno::EPROTO));
    }
}

#[test]
fn commit_of_what_the_server_does_not_have() {
    let (mut core, mut world, id) = ready(policy::HOLD);
    core.submit(id, &nop(1), &[], 0, &mut world).unwrap();
    let queued = Ticket { slot: 0, generation: 0 };
    assert_eq!(core.commit(&outcome(queued, 0), &mut world), Err(Errno::ESTALE), "not fetched");
    let ticket = fetch(&mut core, &mut world, 0).unwrap();
    assert_eq!(core.commit(&Outcome { flags: 1, ..outcome(ticket, 0) }, &mut world), Err(Errno::EINVAL));
    assert_eq!(core.commit(&outcome(ticket, -9999), &mut world), Err(Errno::EINVAL));
    assert_eq!(core.commit(&outcome(ticket, i32::MIN), &mut world), Err(Errno::EINVAL));
    core.commit(&outcome(ticket, -Errno::EDOM.raw()), &mut world).unwrap();
    assert_eq!(world.result(id, 1), -Errno::EDOM.raw());
    assert_eq!(core.commit(&outcome(ticket, 0), &mut world), Err(Errno::EALREADY));
    let old = Ticket { generation: ticket.generation.wrapping_sub(1), ..ticket };
    assert_eq!(core.commit(&outcome(old, 0), &mut world), Err(Errno::ESTALE));
    let beyond = Ticket { slot: 99, generation: 0 };
    assert_eq!(core.commit(&outcome(beyond, 0), &mut world), Err(Errno::ESTALE));
    assert_eq!(core.progress(beyond, 1, &mut world), Err(Errno::ESTALE));
}

#[test]
fn fetch_into_too_little_room_takes_nothing() {
    let (mut core, mut world, id) = ready(policy::HOLD);
    core.submit(id, &nop(1), &[], 0, &mut world).unwrap();
    let before = core.stat(id).unwrap();
    assert_eq!(core.fetch(0, &mut [0; 191], &mut world), Err(Errno::EMSGSIZE));
    assert_eq!(core.stat(id).unwrap(), before);
    assert!(core.fetch(0, &mut [0; 192], &mut world).unwrap().is_some());
}

#[test]
fn deadlines_in_the_queue_and_with_the_server() {
    let (mut core, mut world, id) = ready(policy::HOLD);
    let until = |user_data, deadline_ns| Job { flags: job_flag::DEADLINE, deadline_ns, ..nop(user_data) };
    core.submit(id, &until(1, 10), &[], 0, &mut world).unwrap();
    core.submit(id, &until(2, 20), &[], 0, &mut world).unwrap();
    core.submit(id, &until(3, 30), &[], 0, &mut world).unwrap();
    let running = fetch(&mut core, &mut world, 0).unwrap();
    assert_eq!(core.expire(9, &mut world), Some(10));
    assert_eq!(core.expire(20, &mut world), Some(30));
    let timed_out = -Errno::ETIMEDOUT.raw();
    assert_eq!((world.result(id, 1), world.result(id, 2)), (timed_out, timed_out));
    assert!(!core.is_settled(id), "the server still has the first");
    let mut out = [0; MAX_RECORD];
    let (notice, _) = core.fetch(25, &mut out, &mut world).unwrap().unwrap();
    assert_eq!(notice, Fetched::Cancel(running));
    assert_eq!(core.commit(&outcome(running, 0), &mut world), Err(Errno::EALREADY));
    assert!(core.is_settled(id));
    assert_eq!(fetch(&mut core, &mut world, 30), None, "FETCH does not give out what is late");
    assert_eq!(world.result(id, 3), timed_out);
    assert_eq!(core.expire(31, &mut world), None);
    core.audit().unwrap();
}

#[test]
fn death_of_the_server_by_policy() {
    let dead = -Errno::EOWNERDEAD.raw();
    // (policy, the running job's result, the queued job's result)
    for (policy, running, queued) in
        [(policy::FAIL, Some(dead), Some(dead)), (policy::HOLD, Some(dead), None), (policy::REISSUE, None, None)]
    {
        let (mut core, mut world, id) = ready(policy);
        core.submit(id, &nop(1), &[], 0, &mut world).unwrap();
        core.submit(id, &nop(2), &[], 0, &mut world).unwrap();
        let ticket = fetch(&mut core, &mut world, 0).unwrap();
        core.detach(&mut world).unwrap();
        core.audit().unwrap();
        for (user_data, expected) in [(1, running), (2, queued)] {
            assert_eq!(world.is_done(id, user_data).then(|| world.result(id, user_data)), expected);
        }
        assert_eq!(core.is_hung_up(id), policy == policy::FAIL);
        let next = core.submit(id, &nop(3), &[], 0, &mut world);
        assert_eq!(next, if policy == policy::FAIL { Err(Errno::ENOTCONN) } else { Ok(3) });
        assert_eq!(core.fetch(0, &mut [0; MAX_RECORD], &mut world), Err(Errno::ENOTCONN));
        core.attach(&attach(), &mut world).unwrap();
        assert!(core.commit(&outcome(ticket, 0), &mut world).is_err(), "a ticket of the old server");
        let order: Vec<Ticket> = std::iter::from_fn(|| fetch(&mut core, &mut world, 0)).collect();
        for ticket in &order {
            core.commit(&outcome(*ticket, 0), &mut world).unwrap();
        }
        for user_data in 1..=2 {
            let _ = world.result(id, user_data);
        }
        assert_eq!(core.stat(id).unwrap().reissued, u64::from(policy == policy::REISSUE));
        core.audit().unwrap();
    }
}

#[test]
fn a_job_is_reissued_at_most_three_times() {
    let (mut core, mut world, id) = ready(policy::REISSUE);
    core.submit(id, &nop(1), &[], 0, &mut world).unwrap();
    for death in 0..4 {
        assert!(!world.is_done(id, 1), "after {death} deaths");
        fetch(&mut core, &mut world, 0).unwrap();
        core.detach(&mut world).unwrap();
        core.attach(&attach(), &mut world).unwrap();
    }
    assert_eq!(world.result(id, 1), -Errno::ENOTRECOVERABLE.raw());
}

#[test]
fn what_cannot_run_twice_is_not_reissued() {
    let (mut core, mut world, id) = ready(policy::REISSUE);
    let (rw, _) = core.register(id, PAGE, true).unwrap();
    let session = Job { flags: job_flag::SESSION, session_epoch: 1, ..nop(1) };
    core.submit(id, &session, &[], 0, &mut world).unwrap();
    core.submit(id, &Job { opcode: opcode::SESSION_OPEN, ..nop(2) }, &[], 0, &mut world).unwrap();
    let in_place = Tensor { flags: tensor_flag::OUT | tensor_flag::IN_PLACE, ..tensor(rw) };
    core.submit(id, &Job { tensor_count: 1, ..nop(3) }, &[in_place], 0, &mut world).unwrap();
    core.submit(id, &Job { opcode: opcode::GENERATE, ..nop(4) }, &[], 0, &mut world).unwrap();
    for _ in 0..4 {
        let ticket = fetch(&mut core, &mut world, 0).unwrap();
        let _ = core.progress(ticket, 1, &mut world);
    }
    core.detach(&mut world).unwrap();
    for user_data in 1..=4 {
        assert_eq!(world.result(id, user_data), -Errno::EOWNERDEAD.raw(), "job {user_data}");
    }
}

#[test]
fn opcodes_that_the_server_does_not_answer() {
    let (mut core, mut world) = (core(4, 2, 2), World::default());
    let id = core.open(0).unwrap();
    core.setup(id, &setup(8, policy::HOLD)).unwrap();
    core.attach(&Attach { opcodes: 1 << opcode::NOP, ..attach() }, &mut world).unwrap();
    core.submit(id, &Job { opcode: opcode::EMBED, ..nop(1) }, &[], 0, &mut world).unwrap();
    assert_eq!(fetch(&mut core, &mut world, 0), None);
    assert_eq!(world.result(id, 1), -Errno::EOPNOTSUPP.raw());
}

#[test]
fn every_errno_is_named_and_found_again() {
    for &errno in Errno::ALL {
        assert_eq!(Errno::from_raw(errno.raw()), Some(errno));
        assert!(!errno.meaning().is_empty() && errno.to_string().starts_with(errno.name()));
    }
    assert_eq!(Errno::from_raw(0), None);
}
