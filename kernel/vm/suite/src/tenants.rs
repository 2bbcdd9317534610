//! Several users: nobody names, sees or starves another.

use crate::{Test, sides::*, sys::*};
use rustai_abi::queue::*;
use std::os::fd::AsRawFd;

/// Lets everybody open the client's node, as a udev rule would let a group.
fn open_to_all() {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions("/dev/rustai", std::fs::Permissions::from_mode(0o666)).unwrap();
}

/// Runs `f` as a user in a child.
fn as_user(uid: u32, f: impl FnOnce()) -> Child {
    Child::run(move || {
        become_user(uid);
        f();
        0
    })
}

pub const TESTS: &[Test] = &[
    ("two users work at once and see only their own", || {
        open_to_all();
        let server = serving();
        let users = [1000u32, 1001].map(|uid| {
            as_user(uid, move || {
                let client = Client::new(64, policy::HOLD);
                let memory = Memory::new(2 * PAGE);
                let name = client.register(&memory, true).unwrap();
                for round in 0..200u64 {
                    memory.put(0, &[uid as f32 + round as f32]);
                    let tensors = [floats(name, 0, 1, 0), floats(name, PAGE, 1, tensor_flag::OUT)];
                    let result = u64::from(uid) + round;
                    client
                        .admit(&Job { params: [result, 0, 0, 0, 0, 0, 0, 0], ..job(round, opcode::MATMUL, &tensors) });
                    assert_eq!(client.result(round), result as i32);
                    assert_eq!(memory.get(PAGE as usize, 1), [2.0 * (uid as f32 + round as f32)]);
                }
                let stat = client.stat();
                assert_eq!((stat.admitted, stat.failed, stat.buffers), (200, 0, 1));
            })
        });
        for user in users {
            assert_eq!(user.wait(), End::Exit(0));
        }
        server.kill();
    }),
    ("no name of one context means anything in another", || {
        let (server, a, b) = (Server::new(), Client::new(8, policy::HOLD), Client::new(8, policy::HOLD));
        let memory = Memory::new(PAGE);
        let name = a.register(&memory, true).unwrap();
        // All numbers that could be an index into a shared table.
        for buffer in (0..256).chain([8191, 8192, u32::MAX]) {
            let foreign = [floats(BufferName { buffer, ..name }, 0, 1, 0)];
            b.admit(&job(u64::from(buffer), opcode::MATMUL, &foreign));
            assert_eq!(b.result(u64::from(buffer)), -ENOENT);
            assert_eq!(b.release(BufferName { buffer, ..name }), Err(ENOENT));
        }
        a.admit(&nop(1));
        let first = b.admit(&nop(1));
        // A dependency on a job of another context is one on the own job of that number.
        assert_eq!(first, 260);
        assert_eq!(b.cancel_all(), 1);
        assert_eq!((a.stat().queued, b.result(1)), (1, -ECANCELED));
        // To the server a name belongs to its context.
        b.admit(&nop(2));
        let records: Vec<_> = (0..2).map(|_| server.job().0).collect();
        let of_b = records.iter().find(|record| record.seq == 261).unwrap();
        assert_eq!(server.map_buffer(of_b, name).map(drop), Err(ENOENT));
    }),
    ("the server learns the user that the kernel knows", || {
        open_to_all();
        let server = Server::new();
        let user = as_user(1234, || {
            let client = Client::new(8, policy::HOLD);
            client.admit(&nop(1));
            assert_eq!(client.result(1), 0);
        });
        let (record, ..) = server.job();
        assert_eq!(record.uid, 1234);
        server.commit(&record, 0).unwrap();
        assert_eq!(user.wait(), End::Exit(0));
    }),
    ("a user cannot become the server", || {
        let user = as_user(1000, || assert_eq!(Device::engine().map(drop), Err(EACCES)));
        assert_eq!(user.wait(), End::Exit(0));
    }),
    ("one user cannot take all contexts, buffers and jobs from another", || {
        open_to_all();
        let server = Server::new();
        let (full, tell) = pipe();
        let greedy = as_user(1000, move || {
            let clients: Vec<_> =
                std::iter::from_fn(|| Device::client().ok()).map(|d| Client::on(d, 1024, 0)).collect();
            assert_eq!(Device::client().map(drop), Err(EDQUOT));
            let memory = Memory::new(PAGE);
            for client in &clients {
                while client.register(&memory, true).is_ok() {}
            }
            // Some for each of the clients, and the rest for the first.
            let few: u32 = clients.iter().map(|c| c.submit(&[nop(1); 5]).unwrap().admitted).sum();
            let rest = clients[0].submit(&[nop(1); 512]).unwrap().admitted;
            assert_eq!(few + rest, 512);
            drop(tell);
            sleep_ms(60_000);
        });
        poll(full.as_raw_fd(), POLLIN, 60_000);
        let modest = as_user(1001, || {
            let client = Client::new(32, policy::HOLD);
            let memory = Memory::new(PAGE);
            let name = client.register(&memory, true).unwrap();
            let tensors = [floats(name, 0, 1, 0)];
            for user_data in 0..20 {
                client.admit(&job(user_data, opcode::MATMUL, &tensors));
            }
            for user_data in 0..20 {
                assert_eq!(client.result(user_data), 6);
            }
        });
        Report::until("submitted", |r| r.number("in flight") == 532);
        // It waits neither behind the 512, nor as one client among all that the other one is.
        let (mut jobs, mut of_modest) = (0, 0);
        while of_modest < 20 {
            let (record, ..) = server.job();
            server.commit(&record, 6).unwrap();
            jobs += 1;
            of_modest += u32::from(record.uid == 1001);
        }
        assert!(jobs <= 42, "20 of the first {jobs}");
        assert_eq!(modest.wait(), End::Exit(0));
        greedy.kill();
    }),
    ("a client that never reads costs only itself", || {
        let server = serving();
        let lazy = Client::new(256, policy::HOLD);
        while lazy.submit(&[nop(1)]).is_ok() {
            sleep_ms(0);
        }
        let client = Client::new(8, policy::HOLD);
        for user_data in 0..100 {
            client.admit(&nop(user_data));
            assert_eq!(client.result(user_data), 0);
        }
        server.kill();
    }),
    ("a context is shared by a fork, and ends with the last who holds it", || {
        let server = serving();
        let client = Client::new(8, policy::HOLD);
        client.admit(&nop(1));
        assert_eq!(client.result(1), 0);
        let child = Child::run(|| {
            client.admit(&nop(2));
            client.result(2)
        });
        assert_eq!(child.wait(), End::Exit(0));
        client.wait(0, 0).unwrap();
        // The child's completion lies in the ring that both read.
        assert_eq!(client.result(2), 0);
        assert_eq!(client.stat().completed, 2);
        server.kill();
    }),
];
