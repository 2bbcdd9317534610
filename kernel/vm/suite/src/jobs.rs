//! Jobs on their way: order, shares, streams, waits, and what tells of them.

use crate::{Test, sides::*, sys::*};
use rustai_abi::queue::*;
use std::os::fd::AsRawFd;

/// User data in the order that a server gets the jobs.
fn order(server: &Server, count: usize) -> Vec<u64> {
    (0..count)
        .map(|_| {
            let (record, job, _) = server.job();
            server.commit(&record, 0).unwrap();
            job.user_data
        })
        .collect()
}

pub const TESTS: &[Test] = &[
    ("a job goes there and back", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let job = Job { model: 3, params: [1, 2, 3, 4, 5, 6, 7, 8], ..nop(u64::MAX) };
        let seq = client.admit(&job);
        assert_eq!(seq, 1);
        let (record, seen, tensors) = server.job();
        assert_eq!((seen, tensors.len()), (job, 0));
        assert_eq!((record.seq, record.uid), (1, 0));
        let outcome = Outcome { count: 9, copied: 100, ..outcome(&record, 8) };
        server.commit_all(&[outcome]).unwrap();
        let entry = client.completion();
        assert_eq!(entry, Completion { user_data: u64::MAX, seq: 1, result: 8, count: 9, ..Completion::new() });
        let stat = client.stat();
        assert_eq!((stat.admitted, stat.completed, stat.failed, stat.server_copied), (1, 1, 0, 100));
    }),
    ("16 tensors, batches of jobs and of commits", || {
        let (server, client) = (Server::new(), Client::new(64, policy::HOLD));
        let memory = Memory::new(PAGE);
        let name = client.register(&memory, true).unwrap();
        let tensors: Vec<_> = (0..16).map(|i| floats(name, 16 * i, 4, 0)).collect();
        let jobs: Vec<_> = (0..50).map(|i| job(i, opcode::MATMUL, &tensors)).collect();
        assert_eq!(client.submit(&jobs).unwrap().admitted, 50);
        let mut outcomes = Vec::new();
        while outcomes.len() < 50 {
            for taken in server.fetch_into(20, 20 * MAX_RECORD, 1000).unwrap() {
                let Taken::Job(record, job, seen) = taken else { panic!("{taken:?}") };
                assert_eq!((job.user_data, seen), (outcomes.len() as u64, tensors.clone()));
                outcomes.push(outcome(&record, job.user_data as i32));
            }
        }
        assert_eq!(server.commit_all(&outcomes).unwrap().done, 50);
        for user_data in 0..50 {
            assert_eq!(client.result(user_data), user_data as i32);
        }
    }),
    ("SUBMIT waits for its own completions", || {
        let client = Client::new(8, policy::HOLD);
        let server = serving();
        let job = Job { params: [5, 0, 0, 0, 0, 0, 0, 0], ..nop(1) };
        let mut ask = Submit { jobs: std::ptr::from_ref(&job) as u64, count: 1, wait: 1, ..Submit::new() };
        client.device.call(op::SUBMIT, &mut ask).unwrap();
        assert_eq!((ask.admitted, ask.error, ask.tail), (1, 0, 1));
        assert_eq!(client.next().unwrap().result, 5);
        server.kill();
    }),
    ("poll tells of completions and of room", || {
        let (server, client) = (Server::new(), Client::new(1, policy::HOLD));
        let all = POLLIN | POLLOUT;
        assert_eq!(client.device.poll(all, 0), POLLOUT);
        assert_eq!(server.device.poll(POLLIN, 0), 0);
        client.admit(&nop(1));
        assert_eq!((client.device.poll(all, 0), server.device.poll(POLLIN, 0)), (0, POLLIN));
        let (record, ..) = server.job();
        assert_eq!(server.device.poll(POLLIN, 0), 0);
        let waiter = Child::run(|| i32::from(client.device.poll(POLLIN, 20_000) != POLLIN));
        sleep_ms(50);
        server.commit(&record, 0).unwrap();
        assert_eq!(waiter.wait(), End::Exit(0));
        assert_eq!(client.device.poll(all, 0), POLLIN);
        client.result(1);
        client.wait(0, 0).unwrap();
        assert_eq!(client.device.poll(all, 0), POLLOUT);
    }),
    ("an eventfd is signaled at each completion, until it is taken away", || {
        let client = Client::new(8, policy::HOLD);
        let event = eventfd();
        let mut ask = EventFd { fd: event.as_raw_fd(), ..EventFd::new() };
        client.device.call(op::EVENTFD, &mut ask).unwrap();
        for i in 0..3 {
            client.admit(&Job { opcode: 99, ..nop(i) });
        }
        assert_eq!(eventfd_read(&event), 3);
        let second = eventfd();
        client.device.call(op::EVENTFD, &mut EventFd { fd: second.as_raw_fd(), ..ask }).unwrap();
        client.admit(&Job { opcode: 99, ..nop(4) });
        assert_eq!((eventfd_read(&event), eventfd_read(&second)), (0, 1));
        client.device.call(op::EVENTFD, &mut EventFd { flags: op_flag::REMOVE, ..EventFd::new() }).unwrap();
        client.admit(&Job { opcode: 99, ..nop(5) });
        assert_eq!((eventfd_read(&event), eventfd_read(&second)), (0, 0));
    }),
    ("a stream: at most one unread entry, and none is lost", || {
        let (server, client) = (Server::new(), Client::new(2, policy::HOLD));
        client.admit(&Job { opcode: opcode::GENERATE, ..nop(1) });
        let (record, ..) = server.job();
        for count in 1..=100 {
            server.progress(&record, count).unwrap();
        }
        let entry = client.next().unwrap();
        assert_eq!((entry.flags, entry.count, entry.result), (cqe_flag::MORE, 100, 0));
        assert_eq!(client.next(), None);
        client.wait(0, 0).unwrap();
        server.progress(&record, 101).unwrap();
        server.commit_all(&[Outcome { count: 102, ..outcome(&record, 0) }]).unwrap();
        let (progress, last) = (client.next().unwrap(), client.next().unwrap());
        assert_eq!((progress.flags, progress.count), (cqe_flag::MORE, 101));
        assert_eq!((last.flags, last.count), (0, 102));
        assert_eq!(server.progress(&record, 103), Err(ESTALE));
    }),
    ("classes get their shares, and the lowest one is not starved", || {
        let (server, client) = (Server::new(), Client::new(512, policy::HOLD));
        for sched_class in [class::BATCH, class::NORMAL, class::INTERACTIVE] {
            let jobs = vec![Job { sched_class, ..nop(sched_class.into()) }; 80];
            assert_eq!(client.submit(&jobs).unwrap().admitted, 80);
        }
        let first = order(&server, 82);
        let count = |class: u8| first.iter().filter(|&&seen| seen == class.into()).count();
        let counts = [class::BATCH, class::NORMAL, class::INTERACTIVE].map(count);
        assert!(counts.iter().zip([2, 16, 64]).all(|(&is, should)| is.abs_diff(should) <= 1), "{counts:?}");
        client.cancel_all();
    }),
    ("clients share by weight, whoever came first and however many jobs they have", || {
        let server = Server::new();
        let clients = [100, 300].map(|weight| {
            let client = Client::new(256, policy::HOLD);
            client.set_limits(|limits| limits.weight = weight).unwrap();
            assert_eq!(client.submit(&vec![nop(weight.into()); 200]).unwrap().admitted, 200);
            client
        });
        let first = order(&server, 100);
        let heavy = first.iter().filter(|&&weight| weight == 300).count();
        assert!((73..=77).contains(&heavy), "{heavy} of 100");
        for client in &clients {
            client.cancel_all();
        }
    }),
    ("HOLD: queued jobs outlive the server", || {
        let client = Client::new(8, policy::HOLD);
        client.admit(&nop(1));
        for _ in 0..3 {
            drop(Server::new());
        }
        client.admit(&nop(2));
        assert_eq!(order(&Server::new(), 2), [1, 2]);
        assert_eq!([client.result(1), client.result(2)], [0, 0]);
    }),
    ("REISSUE: not what has told of progress, not what runs in place, not what is in a session", || {
        let (server, client) = (Server::new(), Client::new(16, policy::REISSUE));
        let memory = Memory::new(PAGE);
        let name = client.register(&memory, true).unwrap();
        let place = [Tensor { flags: tensor_flag::OUT | tensor_flag::IN_PLACE, ..floats(name, 0, 4, 0) }];
        client.admit(&Job { opcode: opcode::GENERATE, ..nop(1) });
        client.admit(&job(2, opcode::MATMUL, &place));
        client.admit(&Job { flags: job_flag::SESSION, session: 1, session_epoch: server.epoch, ..nop(3) });
        client.admit(&Job { opcode: opcode::GENERATE, ..nop(4) });
        let records: Vec<_> = (0..4).map(|_| server.job().0).collect();
        server.progress(&records[0], 1).unwrap();
        drop(server);
        assert_eq!(client.next().unwrap().flags, cqe_flag::MORE);
        assert_eq!(client.results(&[1, 2, 3]), [-EOWNERDEAD; 3]);
        assert_eq!(order(&Server::new(), 1), [4]);
        assert_eq!(client.stat().reissued, 1);
    }),
    ("a deadline ends what waits for another, too", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let first = client.admit(&nop(1));
        let flags = job_flag::DEP | job_flag::DEADLINE;
        client.admit(&Job { flags, dep_seq: first, deadline_ns: in_ms(50), ..nop(2) });
        let (record, ..) = server.job();
        assert_eq!(client.result(2), -ETIMEDOUT);
        server.commit(&record, 0).unwrap();
        assert_eq!(client.result(1), 0);
    }),
    ("deadlines are kept in any order", || {
        let client = Client::new(64, policy::HOLD);
        let deadlines: Vec<_> = (0..20).map(|i| in_ms(1000 + 20 * i)).collect();
        // Later ones first, so that the clock is set again and again.
        for (i, &deadline_ns) in deadlines.iter().enumerate().rev() {
            client.admit(&Job { flags: job_flag::DEADLINE, deadline_ns, ..nop(i as u64) });
        }
        for _ in 0..20 {
            let entry = client.completion();
            assert_eq!(entry.result, -ETIMEDOUT);
            assert!(now_ns() >= deadlines[entry.user_data as usize], "too early");
        }
    }),
    ("DETACH wakes a FETCH of another thread", || {
        let server = Server::new();
        let waiter = Child::run(|| match server.fetch_into(1, MAX_RECORD, 60_000) {
            Err(ENOTCONN) => 0,
            other => panic!("{other:?}"),
        });
        sleep_ms(100);
        let started = now_ns();
        server.detach().unwrap();
        assert_eq!(waiter.wait(), End::Exit(0));
        assert!(now_ns() - started < 10_000_000_000);
    }),
    ("fdinfo tells the counters", || {
        let client = Client::new(8, policy::HOLD);
        let memory = Memory::new(2 * PAGE);
        client.register(&memory, true).unwrap();
        client.admit(&nop(1));
        client.admit(&Job { opcode: 99, ..nop(2) });
        let info = client.device.fdinfo();
        for line in
            ["admitted:\t2", "completed:\t1", "failed:\t1", "queued:\t1", "running:\t0", "buffers:\t1", "bytes:\t8192"]
        {
            assert!(info.contains(&format!("rustai-{line}\n")), "{line} is not in {info}");
        }
    }),
    ("programs in C, of 64 and of 32 bits, with the header alone", || {
        for width in [64, 32] {
            let server = serving();
            let program = format!("/bin/client{width}");
            let output = std::process::Command::new(&program).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains(&format!("ok {width}")), "{program}: {text}");
            server.kill();
            Report::until("empty", Report::is_empty);
        }
    }),
];
