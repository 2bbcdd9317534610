//! kill -9 of client, of server, of both, at random moments under load.

use crate::{Test, fuzz::Rng, sides::*, sys::*};
use rustai_abi::queue::*;

/// A client that does everything it can until it is killed.
fn restless(seed: u64) -> Child {
    Child::run(move || {
        let mut rng = Rng(seed | 1);
        let client = Client::new(64, [policy::HOLD, policy::FAIL, policy::REISSUE][rng.below(3) as usize]);
        let memory = Memory::new(4 * PAGE);
        let mut name = client.register(&memory, true).unwrap();
        for user_data in 0.. {
            let tensors = [floats(name, 0, 256, 0), floats(name, 2 * PAGE, 256, tensor_flag::OUT)];
            let job = match rng.below(4) {
                0 => nop(user_data),
                1 => Job { flags: job_flag::DEADLINE, deadline_ns: in_ms(1 + rng.below(20)), ..nop(user_data) },
                _ => job(user_data, opcode::MATMUL, &tensors),
            };
            // Refused for lack of room or of a server: it reads and tries again.
            let _ = client.submit(&[job]);
            match rng.below(20) {
                0 => drop(client.cancel_all()),
                1 => {
                    let _ = client.release(name);
                    name = client.register(&memory, true).unwrap_or(name);
                }
                _ => {}
            }
            while client.next().is_some() {}
            if rng.below(3) == 0 {
                let _ = client.wait(1, 5);
            }
        }
        0
    })
}

/// What the witness knows of its jobs: each must complete exactly once.
struct Witness {
    client: Client,
    sent: u64,
    seen: Vec<bool>,
    results: [u32; 3],
}

impl Witness {
    fn new(policy: u32) -> Self {
        Self { client: Client::new(64, policy), sent: 0, seen: Vec::new(), results: [0; 3] }
    }

    fn send(&mut self) {
        while self.client.submit(&[nop(self.sent)]).is_ok() {
            self.sent += 1;
            self.seen.push(false);
        }
    }

    fn read(&mut self) {
        while let Some(entry) = self.client.next() {
            let seen = &mut self.seen[entry.user_data as usize];
            assert!(!*seen, "job {} completed twice", entry.user_data);
            *seen = true;
            self.results[match entry.result {
                0 => 0,
                r if r == -EOWNERDEAD => 1,
                r if r == -ENOTRECOVERABLE => 2,
                other => panic!("job {} ended with {other}", entry.user_data),
            }] += 1;
        }
    }

    /// Waits until all has completed, which a server must be there for.
    fn settle(&mut self) {
        self.read();
        while self.seen.iter().any(|seen| !seen) {
            self.client.wait(1, 20_000).expect("a job was lost");
            self.read();
        }
        let stat = self.client.stat();
        assert_eq!((stat.admitted, stat.completed), (self.sent, self.sent));
    }
}

/// `rounds` of kills; in each, `who` decides by chance whom.
fn rounds(count: u64, seed: u64) {
    let mut rng = Rng(seed);
    let mut witnesses = [policy::HOLD, policy::REISSUE].map(Witness::new);
    let mut server = serving();
    let mut clients: Vec<_> = (0..3).map(|i| restless(seed + i)).collect();
    let mut killed = [0; 2];
    for round in 0..count {
        witnesses.iter_mut().for_each(Witness::send);
        sleep_ms(rng.below(12));
        let whom = rng.below(3);
        let (kills_client, kills_server) = (whom != 1, whom != 0);
        if kills_server {
            server.signal(SIGKILL);
        }
        if kills_client {
            let i = rng.below(clients.len() as u64) as usize;
            clients[i] = restless(seed + 100 * round);
            killed[0] += 1;
        }
        if kills_server {
            server = serving();
            killed[1] += 1;
        }
        witnesses.iter_mut().for_each(Witness::read);
        if round % 10 == 9 {
            assert_eq!(Report::now().get("audit"), "ok");
        }
    }
    drop(clients);
    witnesses.iter_mut().for_each(Witness::settle);
    server.kill();
    let report = Report::until("settled", |r| {
        r.number("contexts") == 2
            && ["in flight", "abandoned", "buffers", "files", "server"].iter().all(|name| r.number(name) == 0)
    });
    assert_eq!(report.number("rings"), 2);
    let results = witnesses.each_ref().map(|w| w.results);
    println!("     {count} rounds, {killed:?} clients and servers killed; done, server died, given up: {results:?}");
    assert!(results.iter().all(|r| r[0] > 0));
    assert!(killed.iter().all(|&n| n > count / 3));
}

pub const TESTS: &[Test] = &[
    ("a client that is killed with jobs everywhere", || {
        let server = Server::new();
        for _ in 0..20 {
            let child = Child::run(|| {
                let client = Client::new(64, policy::HOLD);
                let memory = Memory::new(PAGE);
                let name = client.register(&memory, true).unwrap();
                let tensors = [floats(name, 0, 1, 0)];
                for user_data in 0..8 {
                    client.admit(&job(user_data, opcode::MATMUL, &tensors));
                }
                client.completion().result
            });
            let (record, _, tensors) = server.job();
            let name = BufferName { buffer: tensors[0].buffer, generation: tensors[0].generation };
            let map = server.memory(&record, name).unwrap();
            let (second, ..) = server.job();
            child.kill();
            // Its pages stay as long as the server may touch them.
            map.copy_in(0, &[1; 64]);
            let mut canceled = Vec::new();
            for _ in 0..2 {
                let Taken::Cancel(record) = server.fetch() else { panic!("no notice") };
                canceled.push(record.slot);
            }
            assert!(canceled.contains(&record.slot) && canceled.contains(&second.slot));
            assert_eq!([server.commit(&record, 0), server.commit(&second, 0)], [Err(EALREADY); 2]);
            assert_eq!(Report::now().number("files"), 1);
            let Taken::Gone(gone) = server.fetch() else { panic!("no notice") };
            drop(map);
            server.ack(&gone).unwrap();
            let report = Report::now();
            assert_eq!((report.number("files"), report.number("contexts")), (0, 0));
            assert!(server.is_idle());
        }
    }),
    ("a server that is killed in FETCH leaves the queue to the next", || {
        let client = Client::new(64, policy::HOLD);
        for round in 0..30 {
            let server = serving();
            client.admit(&nop(round));
            assert_eq!(client.result(round), 0);
            server.kill();
        }
    }),
    ("120 rounds of kills", || rounds(120, 7)),
    ("120 more rounds of kills", || rounds(120, 1234)),
];
