//! Operations with any bytes, from several processes at once: the kernel must survive it and the invariants hold.

use crate::{SECONDS, Test, sides::*, sys::*, uring::Uring};
use rustai_abi::queue::*;
use std::os::fd::AsRawFd;

/// A small generator (xorshift64*).
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A value that code likes to get wrong.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(63)).wrapping_sub(self.below(3)),
            4 => PAGE * self.below(9),
            5 => now_ns() + self.below(5_000_000),
            _ => self.below(70),
        }
    }

    /// A struct that is right in size, and elsewhere mostly zero or small.
    fn value_of<T: Wire>(&mut self) -> T {
        let mut bytes = vec![0u8; T::SIZE];
        for field in &T::FIELDS[1..] {
            if self.one_in(3) {
                let value = self.value().to_ne_bytes();
                let size = field.size.min(8);
                bytes[field.offset..field.offset + size].copy_from_slice(&value[..size]);
            }
        }
        let size = if self.one_in(30) { self.value() as u32 } else { T::SIZE as u32 };
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        T::read(&bytes).unwrap()
    }
}

/// A mapping of structs, or nothing at all: what pointers in structs lead to.
struct Ground {
    map: Map,
    memory: Memory,
    event: std::os::fd::OwnedFd,
}

impl Ground {
    fn new() -> Self {
        Self { map: Map::shared(64 << 10), memory: Memory::new(16 * PAGE), event: eventfd() }
    }

    /// An address: of jobs or outcomes that look right, of anything, of nothing.
    fn address(&self, rng: &mut Rng) -> u64 {
        let base = self.map.address() as u64;
        match rng.below(8) {
            0 => rng.value(),
            1 => base + (64 << 10) - rng.below(200),
            2 => base + rng.below(64 << 10),
            _ => base,
        }
    }

    fn fd(&self, rng: &mut Rng) -> i32 {
        match rng.below(4) {
            0 => rng.value() as i32,
            1 => self.event.as_raw_fd(),
            _ => self.memory.fd.as_raw_fd(),
        }
    }

    fn jobs(&self, rng: &mut Rng) {
        let mut bytes = [0; Tensor::SIZE];
        for i in 0..16 {
            let mut tensor: Tensor = rng.value_of();
            if rng.one_in(2) {
                let name = BufferName { buffer: rng.below(3) as u32, generation: 1 + rng.below(3) as u32 };
                tensor = floats(name, 4 * rng.below(2000), 1 + rng.below(100), rng.below(4) as u32);
            }
            assert!(tensor.write(&mut bytes));
            self.map.copy_in((32 << 10) + i * Tensor::SIZE, &bytes);
        }
        let mut bytes = [0; Job::SIZE];
        for i in 0..8 {
            let mut job: Job = rng.value_of();
            if rng.one_in(2) {
                job = Job { opcode: rng.below(11) as u16, ..nop(rng.below(8)) };
                job.tensor_count = rng.below(4) as u32;
            }
            job.tensors = if rng.one_in(8) { self.address(rng) } else { self.map.address() as u64 + (32 << 10) };
            assert!(job.write(&mut bytes));
            self.map.copy_in(i * Job::SIZE, &bytes);
        }
    }
}

/// How often each operation was called, and how often it succeeded; all processes count in the same memory.
struct Tally(Map);

/// Where operations are counted: by number, io_uring commands, and numbers that are none.
const NAMES: [(u32, &str); 19] = [
    (op::QUERY, "QUERY"),
    (op::SETUP, "SETUP"),
    (op::BUF_REGISTER, "BUF_REGISTER"),
    (op::BUF_RELEASE, "BUF_RELEASE"),
    (op::SUBMIT, "SUBMIT"),
    (op::WAIT, "WAIT"),
    (op::CANCEL, "CANCEL"),
    (op::EVENTFD, "EVENTFD"),
    (op::LIMITS, "LIMITS"),
    (op::STAT, "STAT"),
    (op::ATTACH, "ATTACH"),
    (op::FETCH, "FETCH"),
    (op::BUF_MAP, "BUF_MAP"),
    (op::PROGRESS, "PROGRESS"),
    (op::COMMIT, "COMMIT"),
    (op::ACK, "ACK"),
    (op::DETACH, "DETACH"),
    (URING, "io_uring command"),
    (OTHER, "no operation"),
];
const URING: u32 = 0x100;
const OTHER: u32 = 0x101;

impl Tally {
    fn new() -> Self {
        Self(Map::shared(8 * NAMES.len()))
    }

    fn count<T>(&self, op: u32, result: &Sys<T>) {
        let place = NAMES.iter().position(|&(number, _)| number == op).unwrap();
        self.0.add(8 * place, 1);
        self.0.add(8 * place + 4, result.is_ok().into());
    }

    /// Prints all counts, and asserts that nothing was left out.
    fn tell(&self) {
        let counts = NAMES.iter().enumerate().map(|(i, (_, name))| (name, self.0.word(8 * i), self.0.word(8 * i + 4)));
        let calls: u64 = counts.clone().map(|(_, all, _)| u64::from(all)).sum();
        println!("     {calls} calls; succeeded of each:");
        for (name, all, succeeded) in counts {
            println!("     {succeeded} of {all} {name}");
            assert!(all > 0, "{name} was never tried");
        }
    }
}

/// Any calls on one open file, which others may use at the same time.
fn client_calls(rng: &mut Rng, device: &Device, ground: &Ground, tally: &Tally, until_ns: u64) {
    let ring = Map::new(device.fd(), 0, 4096 << rng.below(2), PROT_READ);
    // A head that is right keeps the context from being broken at once.
    let head = |rng: &mut Rng| match &ring {
        Ok(ring) if !rng.one_in(50) => ring.word(12),
        _ => rng.value() as u32,
    };
    let mut uring = None;
    for _ in 0..rng.below(200) {
        if now_ns() > until_ns {
            return;
        }
        let (op, result) = match rng.below(16) {
            0 => (op::QUERY, device.call(op::QUERY, &mut rng.value_of::<Query>())),
            1 => (op::SETUP, device.call(op::SETUP, &mut rng.value_of::<Setup>())),
            2 | 3 => {
                let mut ask = BufRegister { fd: ground.fd(rng), ..rng.value_of() };
                if rng.one_in(2) {
                    ask = BufRegister { flags: rng.below(2) as u32, fd: ask.fd, len: PAGE, ..BufRegister::new() };
                }
                (op::BUF_REGISTER, device.call(op::BUF_REGISTER, &mut ask))
            }
            4 => {
                let (buffer, generation) = (rng.below(3) as u32, 1 + rng.below(3) as u32);
                let mut ask = BufRelease { buffer, generation, ..rng.value_of() };
                (op::BUF_RELEASE, device.call(op::BUF_RELEASE, &mut ask))
            }
            5..=8 => {
                ground.jobs(rng);
                let (jobs, count, wait) = (ground.address(rng), rng.below(9) as u32, rng.below(2) as u32);
                let head = head(rng);
                (op::SUBMIT, device.call(op::SUBMIT, &mut Submit { jobs, count, wait, head, ..rng.value_of() }))
            }
            9 => (op::WAIT, device.call(op::WAIT, &mut Wait { head: head(rng), ..rng.value_of() })),
            10 => (op::CANCEL, device.call(op::CANCEL, &mut rng.value_of::<Cancel>())),
            11 => {
                let mut ask = EventFd { fd: ground.fd(rng), ..rng.value_of() };
                (op::EVENTFD, device.call(op::EVENTFD, &mut ask))
            }
            12 => (op::LIMITS, device.call(op::LIMITS, &mut rng.value_of::<Limits>())),
            13 => (op::STAT, device.call(op::STAT, &mut rng.value_of::<Stat>())),
            14 => {
                ground.jobs(rng);
                let uring = uring.get_or_insert_with(|| Uring::new(device));
                let mut area = [0; 16];
                let ask = UringSubmit { job: ground.address(rng), ..UringSubmit::new() };
                assert!(if rng.one_in(8) { rng.value_of() } else { ask }.write(&mut area));
                let number = if rng.one_in(20) { rng.value() as u32 } else { ioctl(op::SUBMIT) };
                let mut result = uring.push(number, area, 0);
                while let Some((_, ended)) = uring.take() {
                    result = if ended < 0 { Err(-ended) } else { result };
                }
                (URING, result)
            }
            _ => (OTHER, device.raw(rng.value() as u32, rng.value() as usize)),
        };
        tally.count(op, &result);
        if rng.one_in(100) {
            uring = None;
        }
    }
}

fn client(seed: u64, tally: &Tally, until_ns: u64) {
    let mut rng = Rng(seed);
    let ground = Ground::new();
    interrupt_every(15, false);
    while now_ns() < until_ns {
        let Ok(device) = Device::client() else { continue };
        if !rng.one_in(10) {
            let result = device.call(op::SETUP, &mut setup(1 << rng.below(8), rng.below(3) as u32));
            tally.count(op::SETUP, &result);
        }
        // Another process on the same open file, and on the same jobs while the kernel reads them; it is killed at some
        // moment or other.
        let twin = rng.one_in(4).then(|| {
            let mut rng = Rng(rng.next() | 1);
            Child::run(|| {
                while now_ns() < until_ns {
                    client_calls(&mut rng, &device, &ground, tally, until_ns);
                }
                0
            })
        });
        client_calls(&mut rng, &device, &ground, tally, until_ns);
        drop(twin);
    }
}

fn server(seed: u64, tally: &Tally, until_ns: u64) {
    let mut rng = Rng(seed);
    let ground = Ground::new();
    interrupt_every(15, false);
    while now_ns() < until_ns {
        let device = Device::engine().unwrap();
        tally.count(op::ATTACH, &device.call(op::ATTACH, &mut attach()));
        let server = Server { device, epoch: 0 };
        let mut records: Vec<Record> = vec![Record::new()];
        for _ in 0..rng.below(300) {
            let record = records[rng.below(records.len() as u64) as usize];
            let (op, result) = match rng.below(10) {
                0..=2 => {
                    let fetched =
                        server.fetch_into(1 + rng.below(3) as u32, rng.below(3 * MAX_RECORD as u64) as usize, 2);
                    let result = fetched.map(|all| {
                        records.extend(
                            all.into_iter()
                                .map(|(Taken::Job(record, ..) | Taken::Cancel(record) | Taken::Gone(record))| record),
                        );
                    });
                    (op::FETCH, result)
                }
                3 => {
                    let mut ask = Fetch { records: ground.address(&mut rng), len: 8192, max: 3, ..rng.value_of() };
                    (op::FETCH, server.device.call(op::FETCH, &mut ask))
                }
                4 => {
                    let name = BufferName { buffer: rng.below(4) as u32, generation: rng.below(4) as u32 };
                    (op::BUF_MAP, server.map_buffer(&record, name).map(|answer| close(answer.fd)))
                }
                5 => (op::PROGRESS, server.progress(&record, rng.value() as u32)),
                6 | 7 => {
                    let outcomes = [outcome(&record, rng.below(4) as i32 - 2), rng.value_of()];
                    (op::COMMIT, server.commit_all(&outcomes).map(drop))
                }
                8 => (op::ACK, server.ack(&record)),
                _ => match rng.below(5) {
                    0 => (op::DETACH, server.device.call(op::DETACH, &mut rng.value_of::<Detach>())),
                    1 => (op::ATTACH, server.device.call(op::ATTACH, &mut rng.value_of::<Attach>())),
                    2 => (op::BUF_MAP, server.device.call(op::BUF_MAP, &mut rng.value_of::<BufMap>())),
                    3 => (op::COMMIT, server.device.call(op::COMMIT, &mut rng.value_of::<Commit>())),
                    _ => (OTHER, server.device.raw(rng.value() as u32, rng.value() as usize)),
                },
            };
            tally.count(op, &result);
        }
    }
}

pub const TESTS: &[Test] = &[("any bytes from three clients and two servers", || {
    // The kernel passes parameters that it does not know on to the first process.
    let seconds = std::env::var("fuzz_seconds").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    // The machine may be so busy that processes get to run late.
    watchdog(seconds as u32 + SECONDS);
    let until_ns = in_ms(1000 * seconds);
    let seed = now_ns();
    println!("     {seconds} s from seed {seed}");
    let tally = Tally::new();
    let tally = &tally;
    let mut children: Vec<_> = (0..3).map(|i| Child::run(move || (client(seed + i, tally, until_ns), 0).1)).collect();
    children.extend((10..12).map(|i| Child::run(move || (server(seed + i, tally, until_ns), 0).1)));
    while now_ns() < until_ns {
        sleep_ms(500);
        assert_eq!(Report::now().get("audit"), "ok");
    }
    for child in children {
        assert_eq!(child.wait(), End::Exit(0));
    }
    tally.tell();
})];
