//! The table of error numbers, row by row.

use super::rig::*;
use rustai::queue::Extra;
use rustai_abi::queue::{Errno::*, *};
use rustix::fs::SealFlags;
use std::os::fd::AsFd;

pub fn unknown_operations(rig: &Rig) {
    let raw = rig.open();
    let mut bytes = [0; 64];
    bytes[0] = 64;
    for op in [0x0a, 0x3f, 0x47, 0xff] {
        assert_eq!(raw.bytes(op, &mut bytes, Extra::default()), Err(ENOTTY), "{op:#x}");
    }
    for op in op::ATTACH..=op::DETACH {
        assert_eq!(raw.bytes(op, &mut bytes, Extra::default()), Err(EPERM), "{op:#x} is the server's");
    }
}

pub fn structs_of_other_versions(rig: &Rig) {
    let raw = rig.ready(policy::HOLD);
    let sized = |size: u32, tail: u8| {
        let mut bytes = vec![0; size as usize];
        assert!(Stat { size, ..Stat::new() }.write(&mut bytes) || (size as usize) < Stat::SIZE);
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        if let Some(last) = bytes.get_mut(Stat::SIZE..).and_then(|tail| tail.last_mut()) {
            *last = tail;
        }
        raw.bytes(op::STAT, &mut bytes, Extra::default())
    };
    assert_eq!(sized(Stat::SIZE as u32, 0), Ok(()));
    assert_eq!(sized(Stat::SIZE as u32 - 1, 0), Err(EINVAL), "shorter than version 1");
    assert_eq!(sized(8, 0), Err(EINVAL));
    assert_eq!(sized(Stat::SIZE as u32 + 40, 0), Ok(()), "longer, and what is unknown is zero");
    assert_eq!(sized(Stat::SIZE as u32 + 40, 1), Err(E2BIG), "longer, and something unknown is wanted");
    assert_eq!(sized(MAX_STRUCT + 8, 0), Err(E2BIG));
}

pub fn pointers_that_lead_nowhere(rig: &Rig) {
    let raw = rig.ready(policy::HOLD);
    // The job says that it has a tensor, and there is none where it leads.
    let job = Job { tensor_count: 1, ..nop(1) };
    assert_eq!(raw.submit_all(&[job], &[]), Err(EFAULT));
    assert_eq!(raw.stat().admitted, 0);
}

pub fn reserved_fields_and_unknown_flags(rig: &Rig) {
    let mut raw = rig.open();
    let flags = 1 << 31;
    let setup = Setup { major: ABI_MAJOR, entries: 8, ..Setup::new() };
    for ask in [
        Setup { flags, ..setup },
        Setup { reserved0: 1, ..setup },
        Setup { reserved: [0, 1], ..setup },
        Setup { policy: 3, ..setup },
    ] {
        assert_eq!(raw.call(op::SETUP, &ask), Err(EINVAL), "{ask:?}");
    }
    raw.setup(8, policy::HOLD).unwrap();
    let fd = sealed(PAGE);
    let extra = || Extra { fd: Some(fd.as_fd()), ..Extra::default() };
    let register = BufRegister { len: PAGE, ..BufRegister::new() };
    for ask in [
        BufRegister { flags, ..register },
        BufRegister { reserved0: 1, ..register },
        BufRegister { reserved: [0, 0, 1], ..register },
    ] {
        assert_eq!(raw.call_with(op::BUF_REGISTER, &ask, extra()), Err(EINVAL), "{ask:?}");
    }
    assert_eq!(raw.call(op::BUF_RELEASE, &BufRelease { flags, ..BufRelease::new() }), Err(EINVAL));
    assert_eq!(raw.call(op::SUBMIT, &Submit { flags, ..Submit::new() }), Err(EINVAL));
    assert_eq!(raw.call(op::SUBMIT, &Submit { reserved: 1, ..Submit::new() }), Err(EINVAL));
    assert_eq!(raw.call(op::WAIT, &Wait { flags, ..Wait::new() }), Err(EINVAL));
    assert_eq!(raw.call(op::WAIT, &Wait { reserved: 1, ..Wait::new() }), Err(EINVAL));
    let cancel = Cancel { flags: op_flag::ALL, ..Cancel::new() };
    for ask in [
        Cancel { flags: op_flag::ALL | flags, ..cancel },
        Cancel { flags: 0, ..cancel },
        Cancel { flags: op_flag::ALL | op_flag::BY_SESSION, ..cancel },
        Cancel { reserved0: 1, ..cancel },
        Cancel { reserved: 1, ..cancel },
    ] {
        assert_eq!(raw.call(op::CANCEL, &ask), Err(EINVAL), "{ask:?}");
    }
    assert_eq!(raw.call_with(op::EVENTFD, &EventFd { flags, ..EventFd::new() }, extra()), Err(EINVAL));
    assert_eq!(raw.call_with(op::EVENTFD, &EventFd { reserved: 1, ..EventFd::new() }, extra()), Err(EINVAL));
    assert_eq!(raw.call(op::LIMITS, &Limits { flags, ..Limits::new() }), Err(EINVAL));
    assert_eq!(raw.call(op::LIMITS, &Limits { reserved: [0, 1], ..Limits::new() }), Err(EINVAL));
    assert_eq!(raw.call(op::STAT, &Stat { flags, ..Stat::new() }), Err(EINVAL));
}

pub fn versions_and_features(rig: &Rig) {
    let raw = rig.open();
    let query = raw.call(op::QUERY, &Query::new()).unwrap();
    assert_eq!((query.major, query.minor, query.server), (ABI_MAJOR, ABI_MINOR, server_state::ABSENT));
    assert_eq!((query.max_entries, query.max_tensors as usize), (MAX_ENTRIES, MAX_TENSORS));
    assert!(query.features & (feature::RING | feature::EVENTFD) == feature::RING | feature::EVENTFD);
    let setup = Setup { major: ABI_MAJOR, entries: 8, ..Setup::new() };
    assert_eq!(raw.call(op::SETUP, &Setup { major: ABI_MAJOR + 1, ..setup }), Err(EPROTO));
    assert_eq!(raw.call(op::SETUP, &Setup { features: 1 << 63, ..setup }), Err(EPROTO));
    assert_eq!(rig.side.attach(&Attach { major: 0, ..attach() }), Err(EPROTO));
    assert_eq!(rig.side.attach(&Attach { features: 1 << 63, ..attach() }), Err(EPROTO));
    assert_eq!(rig.side.attach(&Attach { flags: 1, ..attach() }), Err(EINVAL));
    let epoch = rig.side.attach(&attach()).unwrap().epoch;
    let query = raw.call(op::QUERY, &Query::new()).unwrap();
    assert_eq!((query.server, query.epoch, query.opcodes), (server_state::ATTACHED, epoch, attach().opcodes));
    assert_eq!(rig.side.attach(&attach()), Err(EBUSY), "there is one server");
    rig.side.detach().unwrap();
}

pub fn operations_before_setup(rig: &Rig) {
    let raw = rig.open();
    let fd = sealed(PAGE);
    assert_eq!(raw.register(&fd, 0, PAGE, true), Err(ENOENT));
    assert_eq!(raw.call(op::BUF_RELEASE, &BufRelease::new()), Err(ENOENT));
    assert_eq!(raw.call(op::WAIT, &Wait::new()), Err(ENOENT));
    assert_eq!(raw.call(op::CANCEL, &Cancel { flags: op_flag::ALL, ..Cancel::new() }), Err(ENOENT));
    assert_eq!(
        raw.call_with(op::EVENTFD, &EventFd::new(), Extra { fd: Some(fd.as_fd()), ..Extra::default() }),
        Err(ENOENT)
    );
    assert_eq!(raw.submit_all(&[nop(1)], &[]), Err(ENOENT));
}

pub fn sizes_of_the_ring(rig: &Rig) {
    let mut raw = rig.open();
    for (entries, errno) in [(0, EINVAL), (3, EINVAL), (u32::MAX, EINVAL), (MAX_ENTRIES * 2, E2BIG)] {
        assert_eq!(raw.setup(entries, policy::HOLD), Err(errno), "{entries}");
    }
    let answer = raw.setup(MAX_ENTRIES, policy::HOLD).unwrap();
    assert_eq!(answer.ring_bytes, ring_bytes(MAX_ENTRIES));
    let again = Setup { major: ABI_MAJOR, entries: 8, ..Setup::new() };
    assert_eq!(raw.call(op::SETUP, &again), Err(EBUSY));
}

pub fn descriptors_that_are_no_buffers(rig: &Rig) {
    let raw = rig.ready(policy::HOLD);
    let ask = BufRegister { len: PAGE, ..BufRegister::new() };
    assert_eq!(raw.call(op::BUF_REGISTER, &ask), Err(EBADF), "no descriptor");
    assert_eq!(raw.call(op::EVENTFD, &EventFd::new()), Err(EBADF), "no descriptor");
    let null = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(raw.register(&null, 0, PAGE, false), Err(EINVAL), "no memfd");
    let memory = sealed(PAGE);
    let extra = Extra { fd: Some(memory.as_fd()), ..Extra::default() };
    assert_eq!(raw.call_with(op::EVENTFD, &EventFd::new(), extra), Err(EINVAL), "no eventfd");
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    for missing in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL] {
        assert_eq!(raw.register(memfd(PAGE, all - missing), 0, PAGE, false), Err(EPERM), "{missing:?}");
    }
    let fixed = memfd(PAGE, all | SealFlags::FUTURE_WRITE);
    assert_eq!(raw.register(&fixed, 0, PAGE, true), Err(EACCES), "write-sealed");
    raw.register(&fixed, 0, PAGE, false).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
    let readable = std::fs::File::open(path).unwrap();
    assert_eq!(raw.register(&readable, 0, PAGE, true), Err(EACCES), "opened read-only");
    raw.register(&readable, 0, PAGE, false).unwrap();
    assert_eq!(raw.stat().buffers, 2);
}

pub fn ranges_of_buffers(rig: &Rig) {
    let raw = rig.ready(policy::HOLD);
    let fd = sealed(4 * PAGE);
    for (offset, len, errno) in [
        (0, 0, EINVAL),
        (0, 100, EINVAL),
        (100, PAGE, EINVAL),
        (0, 5 * PAGE, ERANGE),
        (4 * PAGE, PAGE, ERANGE),
        (0u64.wrapping_sub(PAGE), 2 * PAGE, EOVERFLOW),
    ] {
        assert_eq!(raw.register(&fd, offset, len, true), Err(errno), "{len} at {offset}");
    }
    let name = raw.register(&fd, PAGE, 3 * PAGE, true).unwrap();
    raw.release(name).unwrap();
    assert!(matches!(raw.release(name), Err(ENOENT | ESTALE)));
    assert_eq!(raw.release(BufferName { buffer: 63, generation: 1 }), Err(ENOENT));
    assert_eq!(raw.release(BufferName { buffer: u32::MAX, generation: 1 }), Err(ENOENT));
    let again = raw.register(&fd, 0, PAGE, true).unwrap();
    assert_ne!(again, name, "a name is not used twice");
    assert_eq!(raw.release(BufferName { generation: again.generation.wrapping_sub(1), ..again }), Err(ESTALE));
    assert_eq!((raw.stat().buffers, raw.stat().bytes), (1, PAGE));
}

pub fn quotas(rig: &Rig) {
    let raw = rig.ready(policy::HOLD);
    let now = raw.call(op::LIMITS, &Limits::new()).unwrap();
    let lower = Limits { flags: op_flag::SET, max_jobs: 2, max_buffers: 2, max_bytes: 3 * PAGE, class_cap: 1, ..now };
    raw.call(op::LIMITS, &lower).unwrap();
    if !rustix::process::geteuid().is_root() || rig.kind() != Kind::Device {
        assert_eq!(raw.call(op::LIMITS, &Limits { max_jobs: 3, ..lower }), Err(EPERM), "raising needs a right");
    }
    assert_eq!(raw.call(op::LIMITS, &Limits { weight: 0, ..lower }), Err(EINVAL));
    assert_eq!(raw.register(sealed(4 * PAGE), 0, 4 * PAGE, true), Err(EDQUOT));
    raw.buffer(PAGE);
    raw.buffer(PAGE);
    assert_eq!(raw.register(sealed(PAGE), 0, PAGE, true), Err(EMFILE));
    raw.submit(nop(1), &[]).unwrap();
    raw.submit(nop(2), &[]).unwrap();
    assert_eq!(raw.submit_all(&[nop(3)], &[]), Err(EDQUOT));
    assert_eq!((raw.stat().admitted, raw.stat().refused), (2, 1));
}

pub fn heads_ahead_of_the_tail(rig: &Rig) {
    let raw = rig.ready(policy::HOLD);
    assert_eq!(raw.call(op::WAIT, &Wait { head: 1, ..Wait::new() }), Err(EPROTO));
    assert_eq!(raw.call(op::WAIT, &Wait::new()), Err(EPROTO), "the context is broken for good");
    assert_eq!(raw.submit_all(&[nop(1)], &[]), Err(EPROTO));
    let other = rig.ready(policy::HOLD);
    let ask = Submit { head: u32::MAX, ..Submit::new() };
    assert_eq!(other.call(op::SUBMIT, &ask), Err(EPROTO));
    rig.ready(policy::HOLD).tell().unwrap();
}

pub fn no_room_and_no_server(rig: &Rig) {
    let mut raw = rig.open();
    raw.setup(1, policy::HOLD).unwrap();
    raw.submit(nop(1), &[]).unwrap();
    assert_eq!(raw.submit_all(&[nop(2)], &[]), Err(EAGAIN), "no slot for its completion");
    rig.attach();
    rig.serve(0);
    assert_eq!(raw.submit_all(&[nop(2)], &[]), Err(EAGAIN), "the entry is unread");
    raw.next();
    raw.submit(nop(2), &[]).unwrap();
    rig.serve(0);
    rig.side.detach().unwrap();
    let failing = rig.ready(policy::FAIL);
    assert_eq!(failing.submit_all(&[nop(1)], &[]), Err(ENOTCONN));
    let long = Job { size: 136, ..nop(1) };
    assert_eq!(rig.ready(policy::HOLD).submit_all(&[long], &[]), Err(E2BIG));
    let short = Job { size: 127, ..nop(1) };
    assert_eq!(rig.ready(policy::HOLD).submit_all(&[short], &[]), Err(EINVAL));
    let many = Job { tensor_count: 17, ..nop(1) };
    assert_eq!(rig.ready(policy::HOLD).submit_all(&[many], &[Tensor::new(); 17]), Err(E2BIG));
    assert_eq!(rig.ready(policy::HOLD).submit_all(&[nop(1); MAX_BATCH as usize + 1], &[]), Err(E2BIG));
}

pub fn waits_end_in_time(rig: &Rig) {
    let raw = rig.ready(policy::HOLD);
    let until = |ns: u64| Wait { flags: op_flag::DEADLINE, wait: 1, deadline_ns: ns, ..Wait::new() };
    assert_eq!(raw.call(op::WAIT, &until(1)), Err(ETIME), "the time had passed");
    let soon = rustai::queue::now_ns() + 20_000_000;
    assert_eq!(raw.call(op::WAIT, &until(soon)), Err(ETIME));
    assert!(rustai::queue::now_ns() >= soon, "it waited");
    assert_eq!(raw.call(op::WAIT, &Wait { wait: 9, ..Wait::new() }), Err(EINVAL), "more than the ring has places");
    let ask = Submit { flags: op_flag::DEADLINE, count: 1, wait: 1, deadline_ns: 1, ..Submit::new() };
    let answer = raw.call_with(op::SUBMIT, &ask, Extra { jobs: &[nop(1)], ..Extra::default() }).unwrap();
    assert_eq!((answer.admitted, answer.error), (1, ETIME.raw() as u32), "admitted, and says why it stopped");
}

/// The result of one job with the given changes, on a writable buffer 0 and a read-only buffer 1 of one page each.
fn completes(rig: &Rig, change: impl FnOnce(&mut Job, &mut Vec<Tensor>)) -> i32 {
    let mut raw = rig.ready(policy::HOLD);
    let rw = raw.buffer(PAGE);
    let ro = raw.register(sealed(PAGE), 0, PAGE, false).unwrap();
    let mut job = nop(7);
    let mut tensors = vec![tensor(rw), Tensor { offset: 512, ..tensor(ro) }];
    change(&mut job, &mut tensors);
    raw.submit(job, &tensors).unwrap();
    // A job that the queue itself ends is not there to fetch.
    if raw.unread() == 0
        && let Some((record, Some(_))) = rig.try_fetch(std::time::Duration::from_millis(100))
    {
        rig.side.commit(&[outcome(ticket(&record), 5)]).unwrap();
    }
    let entry = raw.next();
    assert_eq!((entry.user_data, entry.flags), (7, 0));
    let stat = raw.stat();
    assert_eq!((stat.admitted, stat.completed), (1, 1));
    entry.result
}

pub fn jobs_that_are_wrong(rig: &Rig) {
    rig.attach();
    let fails = |errno: Errno, change: &dyn Fn(&mut Job, &mut Vec<Tensor>)| {
        assert_eq!(completes(rig, change), -errno.raw(), "{errno}");
    };
    assert_eq!(completes(rig, |_, _| ()), 5, "the job that all rows change is valid");
    fails(EINVAL, &|job, _| job.flags = 1 << 31);
    fails(EINVAL, &|job, _| job.reserved0 = 1);
    fails(EINVAL, &|job, _| job.reserved1 = 1);
    fails(EINVAL, &|job, _| job.deadline_ns = 200);
    fails(EINVAL, &|job, _| job.session = 1);
    fails(EINVAL, &|_, t| t[0].flags = 1 << 31);
    fails(EINVAL, &|_, t| t[0].reserved0 = 1);
    fails(EINVAL, &|_, t| t[0].size = 95);
    fails(EINVAL, &|job, _| job.sched_class = class::COUNT as u8);
    fails(EOPNOTSUPP, &|job, _| job.opcode = opcode::COUNT);
    fails(EOPNOTSUPP, &|job, _| job.opcode = u16::MAX);
    fails(ENOENT, &|_, t| t[0].buffer = 2);
    fails(ENOENT, &|_, t| t[0].buffer = u32::MAX);
    fails(ESTALE, &|_, t| t[0].generation = t[0].generation.wrapping_add(1));
    fails(EACCES, &|_, t| t[1].flags = tensor_flag::OUT);
    fails(EOVERFLOW, &|_, t| t[0].offset = u64::MAX);
    fails(ERANGE, &|_, t| t[0].offset = PAGE - 255);
    fails(EINVAL, &|_, t| t[0].ndim = 0);
    fails(EINVAL, &|_, t| t[0].ndim = 7);
    fails(EINVAL, &|_, t| t[0].dims[1] = 0);
    fails(EINVAL, &|_, t| t[0].dims[1] = MAX_DIM + 1);
    fails(EINVAL, &|_, t| t[0].dims[2] = 1);
    fails(EOVERFLOW, &|_, t| t[0].dims[..2].copy_from_slice(&[MAX_DIM, MAX_DIM]));
    fails(EMSGSIZE, &|_, t| t[0].byte_len = 255);
    fails(EMSGSIZE, &|_, t| t[0].dtype = 1);
    fails(EINVAL, &|_, t| (t[0].dtype, t[0].dims[0]) = (2, 33));
    fails(EOPNOTSUPP, &|_, t| t[0].dtype = 4);
    fails(EOPNOTSUPP, &|_, t| t[0].dtype = 43);
    fails(EOPNOTSUPP, &|_, t| t[0].quant = 1);
    fails(ETIME, &|job, _| (job.flags, job.deadline_ns) = (job_flag::DEADLINE, 1));
    fails(EINVAL, &|job, _| (job.flags, job.dep_seq) = (job_flag::DEP, 1));
    fails(EINVAL, &|job, _| (job.flags, job.dep_seq) = (job_flag::DEP, 0));
    fails(EINVAL, &|job, _| (job.flags, job.dep_seq) = (job_flag::DEP, u64::MAX));
    fails(ESTALE, &|job, _| (job.flags, job.session_epoch) = (job_flag::SESSION, u32::MAX));
    // A class above the client's cap.
    let mut raw = rig.ready(policy::HOLD);
    let now = raw.call(op::LIMITS, &Limits::new()).unwrap();
    raw.call(op::LIMITS, &Limits { flags: op_flag::SET, class_cap: 0, ..now }).unwrap();
    raw.submit(nop(1), &[]).unwrap();
    assert_eq!(raw.next().result, -EPERM.raw());
    rig.side.detach().unwrap();
    // An opcode that this server does not know.
    rig.side.attach(&Attach { opcodes: 1, ..attach() }).unwrap();
    raw = rig.ready(policy::HOLD);
    raw.submit(Job { opcode: opcode::RERANK, ..nop(2) }, &[]).unwrap();
    assert!(rig.try_fetch(std::time::Duration::from_millis(20)).is_none());
    assert_eq!(raw.next().result, -EOPNOTSUPP.raw());
    rig.side.detach().unwrap();
}

pub fn outputs_that_overlap(rig: &Rig) {
    rig.attach();
    let clash = |offset: u64, flags: [u32; 2]| {
        completes(rig, move |_, t| {
            t[1] = Tensor { offset, ..t[0] };
            (t[0].flags, t[1].flags) = (flags[0], flags[1]);
        })
    };
    let (out, in_place) = (tensor_flag::OUT, tensor_flag::OUT | tensor_flag::IN_PLACE);
    assert_eq!(clash(0, [0, 0]), 5, "inputs may overlap");
    assert_eq!(clash(255, [out, 0]), -EINVAL.raw());
    assert_eq!(clash(255, [out, out]), -EINVAL.raw());
    assert_eq!(clash(256, [out, out]), 5);
    assert_eq!(clash(0, [in_place, 0]), 5);
    assert_eq!(clash(0, [in_place, in_place]), -EINVAL.raw(), "two outputs never overlap");
    rig.side.detach().unwrap();
}

pub fn operations_of_the_server(rig: &Rig) {
    let mut out = [0; MAX_RECORD];
    let none = rustai::queue::Patience::None;
    assert_eq!(rig.side.fetch(&mut out, 1, none), Err(ENOTCONN), "before ATTACH");
    assert_eq!(rig.side.detach(), Err(ENOTCONN));
    rig.attach();
    assert_eq!(rig.side.fetch(&mut out, 1, none).unwrap(), (0, 0));
    let passed = rustai::queue::Patience::Until(1);
    assert_eq!(rig.side.fetch(&mut out, 1, passed), Err(ETIME));
    let mut raw = rig.ready(policy::HOLD);
    raw.submit(nop(1), &[]).unwrap();
    assert_eq!(rig.side.fetch(&mut out[..100], 1, none), Err(EMSGSIZE), "no room for one job");
    let (ticket, _) = rig.next_job();
    let wrong = Ticket { generation: ticket.generation.wrapping_add(7), ..ticket };
    assert_eq!(rig.side.commit(&[outcome(wrong, 0)]), Err((0, ESTALE)));
    assert_eq!(rig.side.commit(&[outcome(Ticket { slot: u32::MAX, ..ticket }, 0)]), Err((0, ESTALE)));
    assert_eq!(rig.side.commit(&[outcome(ticket, -4000)]), Err((0, EINVAL)), "no error number of the interface");
    assert_eq!(rig.side.progress(ticket, 1), Err(EINVAL), "a NOP does not stream");
    rig.side.commit(&[outcome(ticket, 9)]).unwrap();
    assert_eq!(rig.side.commit(&[outcome(ticket, 9)]), Err((0, EALREADY)));
    assert_eq!(raw.next().result, 9);
    let client = ContextId { index: 0, generation: 0 };
    let name = BufferName { buffer: 0, generation: 1 };
    assert!(matches!(rig.side.map(client, name).map(drop), Err(ENOENT | ESTALE)));
    rig.side.detach().unwrap();
    assert!(rig.side.commit(&[outcome(ticket, 9)]).is_err(), "no server any more");
}
