//! The invariants, each with a test that tries to break it.

use super::rig::*;
use rustai::queue::Extra;
use rustai_abi::queue::*;
use std::time::Duration;

const SOON: Duration = Duration::from_millis(30);

pub fn a_job_completes_once_with_its_result(rig: &Rig) {
    rig.attach();
    let mut raw = rig.ready(policy::HOLD);
    for round in 0..40u64 {
        let seq = raw.submit(nop(round), &[]).unwrap();
        assert_eq!(seq, round + 1, "numbers start at 1 and have no gap");
        assert_eq!(raw.unread(), 0);
        assert_eq!(rig.serve(round as i32).user_data, round);
        let entry = raw.next();
        assert_eq!((entry.user_data, entry.seq, entry.result, entry.flags), (round, seq, round as i32, 0));
        assert_eq!(raw.unread(), 0, "one completion, not two");
        let stat = raw.stat();
        assert_eq!((stat.admitted, stat.completed, stat.queue_copied), (round + 1, round + 1, 0));
    }
    rig.side.detach().unwrap();
}

pub fn batches_say_how_far_they_got(rig: &Rig) {
    rig.attach();
    let mut raw = rig.ready(policy::HOLD);
    let jobs: Vec<Job> = (0..10).map(nop).collect();
    let answer = raw.submit_all(&jobs, &[]).unwrap();
    assert_eq!((answer.admitted, answer.error, answer.first_seq), (8, Errno::EAGAIN.raw() as u32, 1));
    for _ in 0..8 {
        rig.serve(0);
    }
    let seen: Vec<u64> = (0..8).map(|_| raw.next().user_data).collect();
    assert_eq!(seen, (0..8).collect::<Vec<_>>());
    // The third is no job: the two before it are in.
    let mut jobs = vec![nop(20), nop(21), nop(22)];
    jobs[2].size = 4;
    let answer = raw.submit_all(&jobs, &[]).unwrap();
    assert_eq!((answer.admitted, answer.error), (2, Errno::EINVAL.raw() as u32));
    rig.side.detach().unwrap();
}

pub fn deadlines_in_the_queue_and_under_way(rig: &Rig) {
    rig.attach();
    let mut raw = rig.ready(policy::HOLD);
    let late = |user_data| Job {
        flags: job_flag::DEADLINE,
        deadline_ns: rustai::queue::now_ns() + SOON.as_nanos() as u64,
        ..nop(user_data)
    };
    raw.submit(late(1), &[]).unwrap();
    let entry = raw.next();
    assert_eq!((entry.user_data, entry.result), (1, -Errno::ETIMEDOUT.raw()), "in the queue");
    raw.submit(late(2), &[]).unwrap();
    let (ticket, _) = rig.next_job();
    let entry = raw.next();
    assert_eq!((entry.user_data, entry.result), (2, -Errno::ETIMEDOUT.raw()), "under way");
    let (notice, _) = rig.fetch();
    assert_eq!((notice.kind, super::rig::ticket(&notice)), (record::CANCEL, ticket));
    assert_eq!(rig.side.commit(&[outcome(ticket, 0)]), Err((0, Errno::EALREADY)));
    assert_eq!((raw.unread(), raw.stat().timed_out), (0, 2));
    rig.side.detach().unwrap();
}

pub fn dependencies_run_in_order_or_fail_together(rig: &Rig) {
    rig.attach();
    let mut raw = rig.ready(policy::HOLD);
    let after = |seq, user_data| Job { flags: job_flag::DEP, dep_seq: seq, ..nop(user_data) };
    let first = raw.submit(nop(1), &[]).unwrap();
    raw.submit(after(first, 2), &[]).unwrap();
    assert_eq!(raw.stat().waiting, 1);
    assert_eq!(rig.serve(0).user_data, 1);
    assert_eq!(rig.serve(0).user_data, 2);
    assert_eq!([raw.next().user_data, raw.next().user_data], [1, 2]);
    let first = raw.submit(nop(3), &[]).unwrap();
    let second = raw.submit(after(first, 4), &[]).unwrap();
    raw.submit(after(second, 5), &[]).unwrap();
    rig.serve(-Errno::EDOM.raw());
    assert_eq!(raw.next().result, -Errno::EDOM.raw());
    for user_data in [4, 5] {
        let entry = raw.next();
        assert_eq!((entry.user_data, entry.result, entry.flags), (user_data, -Errno::ECANCELED.raw(), cqe_flag::DEP));
    }
    rig.side.detach().unwrap();
}

pub fn cancelled_jobs_let_go_of_their_buffers(rig: &Rig) {
    rig.attach();
    let mut raw = rig.ready(policy::HOLD);
    let name = raw.buffer(PAGE);
    raw.submit(nop(1), &[tensor(name)]).unwrap();
    raw.submit(nop(2), &[tensor(name)]).unwrap();
    let (running, _) = rig.next_job();
    assert_eq!(raw.cancel(2), 1, "queued");
    assert_eq!(raw.cancel(1), 1, "running");
    assert_eq!(raw.cancel(1), 0, "there is nothing more to cancel");
    for user_data in [2, 1] {
        let entry = raw.next();
        assert_eq!((entry.user_data, entry.result), (user_data, -Errno::ECANCELED.raw()));
    }
    raw.release(name).unwrap();
    assert_eq!(raw.stat().buffers, 1, "the server still has a job that uses it");
    let soon = rustai::queue::now_ns() + SOON.as_nanos() as u64;
    let settle =
        Cancel { flags: op_flag::ALL | op_flag::SETTLE | op_flag::DEADLINE, deadline_ns: soon, ..Cancel::new() };
    assert_eq!(raw.call(op::CANCEL, &settle), Err(Errno::ETIME), "the server has not let go");
    let (notice, _) = rig.fetch();
    assert_eq!((notice.kind, ticket(&notice)), (record::CANCEL, running));
    assert_eq!(rig.side.commit(&[outcome(running, 0)]), Err((0, Errno::EALREADY)));
    let settle = Cancel { flags: op_flag::ALL | op_flag::SETTLE, ..Cancel::new() };
    assert_eq!(raw.call(op::CANCEL, &settle).unwrap().canceled, 0);
    assert_eq!(raw.stat().buffers, 0);
    assert_eq!(raw.unread(), 0);
    rig.side.detach().unwrap();
}

pub fn progress_is_coalesced(rig: &Rig) {
    rig.attach();
    let mut raw = rig.ready(policy::HOLD);
    raw.submit(Job { opcode: opcode::GENERATE, ..nop(1) }, &[]).unwrap();
    let (ticket, _) = rig.next_job();
    for count in 1..=100 {
        rig.side.progress(ticket, count).unwrap();
    }
    assert_eq!(raw.unread(), 1, "one unread entry, however much progress there was");
    let entry = raw.next();
    assert_eq!((entry.flags, entry.count), (cqe_flag::MORE, 100));
    raw.tell().unwrap();
    rig.side.progress(ticket, 101).unwrap();
    assert_eq!(raw.unread(), 1, "the first was read, so there is a second");
    rig.side.commit(&[Outcome { count: 102, ..outcome(ticket, 0) }]).unwrap();
    assert_eq!((raw.next().count, raw.next().count), (101, 102));
    rig.side.detach().unwrap();
}

pub fn buffers_go_when_the_last_job_and_the_server_are_done(rig: &Rig) {
    rig.attach();
    let mut raw = rig.ready(policy::HOLD);
    let name = raw.buffer(PAGE);
    raw.submit(nop(1), &[tensor(name)]).unwrap();
    let (record, _) = rig.fetch();
    let client = ContextId { index: record.context, generation: record.context_generation };
    let mapped = rig.side.map(client, name).unwrap();
    assert_eq!((mapped.offset, mapped.len, mapped.writable), (0, PAGE, true));
    raw.release(name).unwrap();
    assert_eq!(raw.submit(nop(2), &[tensor(name)]).map(|_| raw.next().result), Ok(-Errno::ENOENT.raw()));
    rig.side.commit(&[outcome(ticket(&record), 0)]).unwrap();
    assert_eq!(raw.next().user_data, 1);
    assert_eq!(raw.stat().buffers, 1, "the server has it mapped");
    let (gone, _) = rig.fetch();
    assert_eq!((gone.kind, gone.buffer, gone.buffer_generation), (record::GONE, name.buffer, name.generation));
    rig.ack(&gone);
    assert_eq!((raw.stat().buffers, raw.stat().bytes), (0, 0));
    assert!(matches!(rig.side.map(client, name).map(drop), Err(Errno::ESTALE | Errno::ENOENT)));
    rig.side.detach().unwrap();
}

pub fn names_of_another_client_mean_nothing(rig: &Rig) {
    rig.attach();
    let (one, mut other) = (rig.ready(policy::HOLD), rig.ready(policy::HOLD));
    let name = one.buffer(PAGE);
    other.submit(nop(1), &[tensor(name)]).unwrap();
    assert_eq!(other.next().result, -Errno::ENOENT.raw());
    assert_eq!(other.release(name), Err(Errno::ENOENT));
    one.submit(nop(5), &[]).unwrap();
    assert_eq!(other.cancel(5), 0);
    assert_eq!(other.stat().buffers, 0);
    rig.side.detach().unwrap();
}

pub fn the_servers_death_under_each_policy(rig: &Rig) {
    rig.attach();
    let (mut hold, mut fail, mut reissue) =
        (rig.ready(policy::HOLD), rig.ready(policy::FAIL), rig.ready(policy::REISSUE));
    let submit = |user_data| {
        for raw in [&hold, &fail, &reissue] {
            raw.submit(nop(user_data), &[]).unwrap();
        }
    };
    submit(1);
    for _ in 0..3 {
        rig.next_job();
    }
    submit(2);
    rig.side.detach().unwrap();
    let dead = -Errno::EOWNERDEAD.raw();
    assert_eq!((hold.next().result, hold.unread()), (dead, 0), "the running one fails, the queued one stays");
    assert_eq!([fail.next().result, fail.next().result], [dead, dead], "all fail");
    assert_eq!(reissue.unread(), 0, "all stay");
    rig.attach();
    let mut again: Vec<u64> = (0..3).map(|_| rig.serve(1).user_data).collect();
    again.sort_unstable();
    assert_eq!(again, [1, 2, 2]);
    assert_eq!((hold.next().result, reissue.next().result, reissue.next().result), (1, 1, 1));
    assert_eq!(reissue.stat().reissued, 1);
    rig.side.detach().unwrap();
}

pub fn reissues_are_counted(rig: &Rig) {
    let mut raw = rig.ready(policy::REISSUE);
    raw.submit(nop(1), &[]).unwrap();
    for _ in 0..=MAX_REISSUES {
        rig.attach();
        rig.next_job();
        rig.side.detach().unwrap();
    }
    assert_eq!(raw.next().result, -Errno::ENOTRECOVERABLE.raw());
    assert_eq!(raw.stat().reissued, u64::from(MAX_REISSUES));
}

pub fn a_client_that_closes_leaves_nothing(rig: &Rig) {
    rig.attach();
    let raw = rig.ready(policy::HOLD);
    let name = raw.buffer(PAGE);
    raw.submit(nop(1), &[tensor(name)]).unwrap();
    raw.submit(nop(2), &[]).unwrap();
    let (record, _) = rig.fetch();
    let client = ContextId { index: record.context, generation: record.context_generation };
    let mapped = rig.side.map(client, name).unwrap();
    drop(raw);
    rig.waits_for_clients(0);
    let (notice, _) = rig.fetch();
    assert_eq!(notice.kind, record::CANCEL);
    assert!(rig.try_fetch(SOON).is_none(), "the queued job went with its client, the buffer is in use");
    assert_eq!(rig.side.commit(&[outcome(ticket(&record), 0)]), Err((0, Errno::EALREADY)));
    let (gone, _) = rig.fetch();
    assert_eq!(gone.kind, record::GONE);
    drop(mapped);
    rig.ack(&gone);
    let again = rig.ready(policy::HOLD);
    assert_eq!(again.stat().admitted, 0);
    assert_eq!(rig.side.map(client, name).map(drop), Err(Errno::ESTALE));
    rig.side.detach().unwrap();
}

pub fn classes_and_weights_share_the_server(rig: &Rig) {
    rig.attach();
    let mut clients: Vec<Raw> = (0..2).map(|_| rig.open()).collect();
    for raw in &mut clients {
        raw.setup(64, policy::HOLD).unwrap();
    }
    // Raising a weight needs a right, so the one that is to get less lowers its own.
    let limits = clients[1].call(op::LIMITS, &Limits::new()).unwrap();
    let less = Limits { flags: op_flag::SET, weight: limits.weight / 4, ..limits };
    clients[1].call(op::LIMITS, &less).unwrap();
    for (index, raw) in clients.iter().enumerate() {
        let jobs = [nop(index as u64); 40];
        let ask = Submit { count: 40, ..Submit::new() };
        raw.call_with(op::SUBMIT, &ask, Extra { jobs: &jobs, ..Extra::default() }).unwrap();
    }
    let first: Vec<u64> = (0..40).map(|_| rig.serve(0).user_data).collect();
    let of_second = first.iter().filter(|&&index| index == 1).count();
    assert!((6..=10).contains(&of_second), "a quarter of the weight got {of_second} of 40");
    for _ in 0..40 {
        rig.serve(0);
    }
    // A higher class goes first, but the lower one is not starved.
    let jobs: Vec<Job> = (0..60)
        .map(|i| Job { sched_class: if i < 20 { class::NORMAL } else { class::INTERACTIVE }, ..nop(i) })
        .collect();
    let mut raw = rig.open();
    raw.setup(64, policy::HOLD).unwrap();
    raw.submit_all(&jobs, &[]).unwrap();
    let order: Vec<u64> = (0..30).map(|_| rig.serve(0).user_data).collect();
    let normal = order.iter().filter(|&&i| i < 20).count();
    assert!((4..=8).contains(&normal), "8 of 40 shares got {normal} of 30");
    drop(clients);
    rig.side.detach().unwrap();
}

pub fn jobs_go_and_end_by_io_uring(rig: &Rig) {
    use rustai::queue::{Client, ClientOptions, Ended, Job as Ask, QueueError, Uring};
    rig.attach();
    let client = Client::over(rig.transport(), ClientOptions::default()).unwrap();
    let mut ring = Uring::new(&client, 32).unwrap();
    assert_eq!(ring.has_commands(), rig.kind() == Kind::Device);
    assert!(matches!(ring.wait(), Err(QueueError::Job(_))), "there is nothing to wait for");

    let buffer = client.buffer(PAGE as usize).unwrap();
    let (from, to) = (buffer.tensor::<f32>(0, &[4]).unwrap(), buffer.tensor::<f32>(64, &[4]).unwrap());
    let mut before = client.stat().unwrap().completed;
    for round in 0..20u64 {
        for user_data in 3 * round..3 * round + 3 {
            ring.submit(&Ask::echo(Duration::ZERO, 0, 0).input(&from).output(&to).user_data(user_data)).unwrap();
        }
        assert_eq!((ring.in_flight(), ring.try_wait().unwrap()), (3, None));
        // The first is canceled while it waits.
        assert_eq!(client.cancel(3 * round).unwrap(), 1);
        for result in 1..3 {
            assert_eq!(rig.serve(result).user_data, 3 * round + result as u64);
        }
        let mut ends: Vec<Ended> = (0..3).map(|_| ring.wait().unwrap()).collect();
        ends.sort_by_key(|ended| ended.user_data);
        let expected = [-Errno::ECANCELED.raw(), 1, 2];
        assert!(
            ends.iter()
                .zip(expected)
                .zip(3 * round..)
                .all(|((end, result), user_data)| { *end == Ended { user_data, result } })
        );
        before += 3;
        assert_eq!((ring.in_flight(), client.stat().unwrap().completed), (0, before));
    }
    let late = rustai::queue::deadline(SOON);
    ring.submit(&Ask::nop().user_data(99)).unwrap();
    assert!(matches!(ring.wait_until(late), Err(QueueError::TimedOut)));
    // A job that is wrong: the end tells of it.
    ring.submit(&Ask::new(opcode::RERANK + 99).user_data(100)).unwrap();
    assert_eq!(ring.wait().unwrap(), Ended { user_data: 100, result: -Errno::EOPNOTSUPP.raw() });
    // What is in flight goes with ring and client.
    drop((ring, from, to, buffer, client));
    rig.waits_for_clients(0);
    rig.side.detach().unwrap();
}

pub fn service_loops_watch_the_ring(rig: &Rig) {
    use rustai::queue::{Client, ClientOptions, Job as Ask, Uring};
    use rustix::event::{PollFd, PollFlags, poll};
    rig.attach();
    let client = Client::over(rig.transport(), ClientOptions::default()).unwrap();
    let mut ring = Uring::new(&client, 8).unwrap();
    ring.submit(&Ask::nop().user_data(5)).unwrap();
    ring.watch().unwrap();
    assert_eq!(ring.try_wait().unwrap(), None);
    let ready = |ring: &Uring, ms: i64| {
        let time = rustix::time::Timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
        poll(&mut [PollFd::new(ring, PollFlags::IN)], Some(&time)).unwrap()
    };
    assert_eq!(ready(&ring, 20), 0);
    rig.serve(7);
    while ready(&ring, 900) == 0 {}
    let ended = ring.try_wait().unwrap().expect("what made the descriptor readable");
    assert_eq!((ended.user_data, ended.result), (5, 7));
    rig.side.detach().unwrap();
}
