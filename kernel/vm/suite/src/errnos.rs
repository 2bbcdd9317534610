//! One test for each row of the table of error numbers; `verdicts` has those for what is wrong with a job.

use crate::{Test, sides::*, sys::*, verdicts::fails};
use rustai_abi::queue::*;
use std::os::fd::{AsRawFd, OwnedFd};

/// A page that cannot be read.
fn nowhere() -> usize {
    Map::with(-1, 0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS)
        .map(|map| {
            let address = map.address();
            std::mem::forget(map);
            address
        })
        .unwrap()
}

/// Registers a part of a file.
fn register(client: &Client, fd: i32, flags: u32, offset: u64, len: u64) -> Sys<()> {
    client.device.call(op::BUF_REGISTER, &mut BufRegister { fd, flags, offset, len, ..BufRegister::new() })
}

/// A client without SETUP.
fn fresh() -> Device {
    Device::client().unwrap()
}

/// An operation with a struct that can be read and not written.
fn unanswered<T: Wire>(device: &Device, op: u32, ask: &T) -> Sys<()> {
    let (map, mut bytes) = (Map::anonymous(4096), vec![0; T::SIZE]);
    assert!(ask.write(&mut bytes));
    map.copy_in(0, &bytes);
    map.protect(PROT_READ).unwrap();
    device.raw(ioctl(op), map.address())
}

/// Runs `f` with a signal every 20 ms.
fn interrupted(f: impl Fn() -> Sys<()>) {
    interrupt_every(20, false);
    assert_eq!(f(), Err(EINTR));
}

/// A job of a server's that the client has canceled and the server still has, so that CANCEL with SETTLE waits.
fn canceled_while_running() -> (Server, Client) {
    let (server, client) = (Server::new(), ready());
    client.admit(&nop(1));
    let (_, job, _) = server.job();
    assert_eq!(job.user_data, 1);
    assert_eq!(client.cancel_all(), 1);
    (server, client)
}

fn settle(client: &Client, flags: u32, deadline_ns: u64) -> Sys<()> {
    let flags = op_flag::ALL | op_flag::SETTLE | flags;
    client.device.call(op::CANCEL, &mut Cancel { flags, deadline_ns, ..Cancel::new() })
}

pub const TESTS: &[Test] = &[
    ("unknown ioctl number: ENOTTY", || {
        for device in [fresh(), Device::engine().unwrap()] {
            for number in [0x0a, 0x3f, 0x47, 0xff].map(ioctl).into_iter().chain([
                0,
                u32::MAX,
                ioctl(op::QUERY) | 1 << 30,
                ioctl(op::STAT) ^ 0x100,
            ]) {
                assert_eq!(device.raw(number, nowhere()), Err(ENOTTY), "{number:#x}");
            }
        }
    }),
    ("struct smaller than version 1: EINVAL", || {
        let device = fresh();
        for size in [0, 7, 8, Query::SIZE as u32 - 1] {
            assert_eq!(device.call(op::QUERY, &mut Query { size, ..Query::new() }), Err(EINVAL));
        }
        let engine = Device::engine().unwrap();
        assert_eq!(engine.call(op::ATTACH, &mut Attach { size: 63, ..attach() }), Err(EINVAL));
    }),
    ("struct longer, tail not zero: E2BIG", || {
        let device = fresh();
        let mut bytes = vec![0u8; 4096 + 8];
        for size in [136usize, 129, 4096] {
            bytes.fill(0);
            bytes[..4].copy_from_slice(&(size as u32).to_ne_bytes());
            assert_eq!(device.bytes(op::QUERY, &mut bytes), Ok(()), "a longer struct that is zero");
            assert_eq!(Query::read(&bytes).unwrap().major, ABI_MAJOR);
            bytes[8..].fill(0);
            bytes[..4].copy_from_slice(&(size as u32).to_ne_bytes());
            bytes[size - 1] = 1;
            assert_eq!(device.bytes(op::QUERY, &mut bytes), Err(E2BIG));
        }
        bytes.fill(0);
        bytes[..4].copy_from_slice(&4097u32.to_ne_bytes());
        assert_eq!(device.bytes(op::QUERY, &mut bytes), Err(E2BIG));
    }),
    ("bad user pointer: EFAULT", || {
        let (server, client) = (Server::new(), ready());
        for op in 0..=op::STAT {
            for address in [0, nowhere(), usize::MAX - 3] {
                assert_eq!(client.device.raw(ioctl(op), address), Err(EFAULT), "operation {op:#x}");
            }
        }
        for op in op::ATTACH..=op::DETACH {
            assert_eq!(server.device.raw(ioctl(op), nowhere()), Err(EFAULT), "operation {op:#x}");
        }
        // A struct whose second half is nowhere.
        let map = Map::anonymous(8192);
        map.copy_in(4096 - 64, &128u32.to_ne_bytes());
        drop(Map::anonymous(0x1000));
        let first = map.address() + 4096 - 64;
        // SAFETY of the addresses: nothing else lies in the mapping.
        protect(map.address() + 4096, PROT_NONE);
        assert_eq!(client.device.raw(ioctl(op::QUERY), first), Err(EFAULT));
        // What cannot be written back fails, too.
        protect(map.address() + 4096, PROT_READ);
        assert_eq!(client.device.raw(ioctl(op::QUERY), first), Err(EFAULT));
        // Pointers inside of structs.
        let at = nowhere() as u64;
        let head = client.head();
        assert_eq!(
            client.device.call(op::SUBMIT, &mut Submit { jobs: at, count: 1, head, ..Submit::new() }),
            Err(EFAULT)
        );
        assert_eq!(client.submit(&[Job { tensors: at, tensor_count: 1, ..nop(1) }]).map(drop), Err(EFAULT));
        assert_eq!(
            server.device.call(op::COMMIT, &mut Commit { outcomes: at, count: 1, ..Commit::new() }),
            Err(EFAULT)
        );
        // A batch stops where it fails, and says so.
        let answer = client.submit(&[nop(1), Job { tensors: at, tensor_count: 1, ..nop(2) }, nop(3)]).unwrap();
        assert_eq!((answer.admitted, answer.error, answer.first_seq), (1, EFAULT as u32, 1));
        // A job that could not be handed over is not lost.
        let mut ask = Fetch { records: at, len: 4096, max: 4, ..Fetch::new() };
        assert_eq!(server.device.call(op::FETCH, &mut ask), Err(EFAULT));
        assert_eq!(client.stat().queued, 1);
        assert_eq!(server.job().1.user_data, 1);
    }),
    ("a struct that cannot be answered: EFAULT, and nothing has changed", || {
        let sealed = Memory::new(PAGE);
        let (engine, fresh) = (Device::engine().unwrap(), fresh());
        assert_eq!(unanswered(&fresh, op::SETUP, &setup(8, 0)), Err(EFAULT));
        assert_eq!(unanswered(&engine, op::ATTACH, &attach()), Err(EFAULT));
        drop(engine);
        let (server, client) = (Server::new(), Client::on(fresh, 8, policy::HOLD));
        let buffer = BufRegister { fd: sealed.fd.as_raw_fd(), len: PAGE, ..BufRegister::new() };
        assert_eq!(unanswered(&client.device, op::BUF_REGISTER, &buffer), Err(EFAULT));
        let limits = Limits { flags: op_flag::SET, weight: 7, ..client.limits() };
        assert_eq!(unanswered(&client.device, op::LIMITS, &limits), Err(EFAULT));
        assert_ne!(client.limits().weight, 7);
        let job = nop(1);
        let submit = Submit { jobs: std::ptr::from_ref(&job) as u64, count: 1, ..Submit::new() };
        assert_eq!(unanswered(&client.device, op::SUBMIT, &submit), Err(EFAULT));
        assert_eq!(client.stat(), Stat::new());
        client.admit(&nop(2));
        let all = Cancel { flags: op_flag::ALL, ..Cancel::new() };
        assert_eq!(unanswered(&client.device, op::CANCEL, &all), Err(EFAULT));
        let mut bytes = [0u8; MAX_RECORD];
        let fetch = Fetch { records: bytes.as_mut_ptr() as u64, len: MAX_RECORD as u32, max: 1, ..Fetch::new() };
        assert_eq!(unanswered(&server.device, op::FETCH, &fetch), Err(EFAULT));
        assert_eq!(client.stat().queued, 1);
        let (record, ..) = server.job();
        let outcome = outcome(&record, 3);
        let commit = Commit { outcomes: std::ptr::from_ref(&outcome) as u64, count: 1, ..Commit::new() };
        assert_eq!(unanswered(&server.device, op::COMMIT, &commit), Err(EFAULT));
        assert_eq!((client.stat().running, client.next()), (1, None));
        server.commit(&record, 4).unwrap();
        assert_eq!(client.result(2), 4);
    }),
    ("reserved field or unknown flag: EINVAL", || {
        let (server, client) = (Server::new(), ready());
        let new = fresh();
        let client = &client.device;
        let bad = 1 << 31;
        assert_eq!(new.call(op::QUERY, &mut Query { flags: 1, ..Query::new() }), Err(EINVAL));
        for ask in [
            Setup { flags: 1, ..setup(8, 0) },
            Setup { reserved0: 1, ..setup(8, 0) },
            Setup { reserved: [0, 1], ..setup(8, 0) },
            setup(8, 3),
        ] {
            assert_eq!(new.call(op::SETUP, &mut { ask }), Err(EINVAL));
        }
        let memory = Memory::new(PAGE);
        let right = BufRegister { fd: memory.fd.as_raw_fd(), len: PAGE, ..BufRegister::new() };
        for ask in [
            BufRegister { flags: bad, ..right },
            BufRegister { reserved0: 1, ..right },
            BufRegister { reserved: [0, 0, 1], ..right },
        ] {
            assert_eq!(client.call(op::BUF_REGISTER, &mut { ask }), Err(EINVAL));
        }
        assert_eq!(client.call(op::BUF_RELEASE, &mut BufRelease { flags: 1, ..BufRelease::new() }), Err(EINVAL));
        for ask in [Submit { flags: bad, ..Submit::new() }, Submit { reserved: 1, ..Submit::new() }] {
            assert_eq!(client.call(op::SUBMIT, &mut { ask }), Err(EINVAL));
        }
        for ask in [Wait { flags: bad, ..Wait::new() }, Wait { reserved: 1, ..Wait::new() }] {
            assert_eq!(client.call(op::WAIT, &mut { ask }), Err(EINVAL));
        }
        for ask in [
            Cancel::new(),
            Cancel { flags: op_flag::ALL | op_flag::BY_SESSION, ..Cancel::new() },
            Cancel { flags: op_flag::ALL | bad, ..Cancel::new() },
            Cancel { flags: op_flag::ALL, reserved0: 1, ..Cancel::new() },
            Cancel { flags: op_flag::ALL, reserved: 1, ..Cancel::new() },
        ] {
            assert_eq!(client.call(op::CANCEL, &mut { ask }), Err(EINVAL));
        }
        for ask in [EventFd { flags: bad, ..EventFd::new() }, EventFd { reserved: 1, ..EventFd::new() }] {
            assert_eq!(client.call(op::EVENTFD, &mut { ask }), Err(EINVAL));
        }
        for ask in [Limits { flags: bad, ..Limits::new() }, Limits { reserved: [0, 1], ..Limits::new() }] {
            assert_eq!(client.call(op::LIMITS, &mut { ask }), Err(EINVAL));
        }
        assert_eq!(client.call(op::STAT, &mut Stat { flags: 1, ..Stat::new() }), Err(EINVAL));
        let engine = Device::engine().unwrap();
        for ask in [Attach { flags: 1, ..attach() }, Attach { reserved: [0, 0, 0, 1], ..attach() }] {
            assert_eq!(engine.call(op::ATTACH, &mut { ask }), Err(EINVAL));
        }
        let server = &server.device;
        for ask in [
            Fetch { flags: bad, max: 1, ..Fetch::new() },
            Fetch { reserved: [0, 0, 1], max: 1, ..Fetch::new() },
            Fetch::new(),
        ] {
            assert_eq!(server.call(op::FETCH, &mut { ask }), Err(EINVAL));
        }
        for ask in [
            BufMap { flags: bad, ..BufMap::new() },
            BufMap { reserved0: 1, ..BufMap::new() },
            BufMap { reserved: [0, 1], ..BufMap::new() },
        ] {
            assert_eq!(server.call(op::BUF_MAP, &mut { ask }), Err(EINVAL));
        }
        for ask in [Progress { flags: 1, ..Progress::new() }, Progress { reserved: 1, ..Progress::new() }] {
            assert_eq!(server.call(op::PROGRESS, &mut { ask }), Err(EINVAL));
        }
        for ask in [Commit { flags: 1, ..Commit::new() }, Commit { reserved: 1, ..Commit::new() }] {
            assert_eq!(server.call(op::COMMIT, &mut { ask }), Err(EINVAL));
        }
        assert_eq!(server.call(op::ACK, &mut Ack { flags: 1, ..Ack::new() }), Err(EINVAL));
        assert_eq!(server.call(op::DETACH, &mut Detach { flags: 1, ..Detach::new() }), Err(EINVAL));
    }),
    ("wanted feature missing or other major version: EPROTO", || {
        let device = fresh();
        assert_eq!(device.call(op::SETUP, &mut Setup { major: 2, ..setup(8, 0) }), Err(EPROTO));
        assert_eq!(device.call(op::SETUP, &mut Setup { features: 1 << 63, ..setup(8, 0) }), Err(EPROTO));
        let all = feature::RING | feature::EVENTFD | feature::REATTACH | feature::URING;
        assert_eq!(device.call(op::SETUP, &mut Setup { features: all, ..setup(8, 0) }), Ok(()));
        let engine = Device::engine().unwrap();
        assert_eq!(engine.call(op::ATTACH, &mut Attach { major: 0, ..attach() }), Err(EPROTO));
        assert_eq!(engine.call(op::ATTACH, &mut Attach { features: 1 << 62, ..attach() }), Err(EPROTO));
    }),
    ("client operation on the server's node, or reverse: EPERM", || {
        let (client, engine) = (fresh(), Device::engine().unwrap());
        for op in op::ATTACH..=op::DETACH {
            assert_eq!(client.raw(ioctl(op), nowhere()), Err(EPERM));
        }
        for op in op::SETUP..=op::STAT {
            assert_eq!(engine.raw(ioctl(op), nowhere()), Err(EPERM));
        }
        assert_eq!(engine.call(op::QUERY, &mut Query::new()), Ok(()));
    }),
    ("operation before SETUP: ENOENT", || {
        let device = fresh();
        let (memory, event) = (Memory::new(PAGE), eventfd());
        let mut buffer = BufRegister { fd: memory.fd.as_raw_fd(), len: PAGE, ..BufRegister::new() };
        assert_eq!(device.call(op::BUF_REGISTER, &mut buffer), Err(ENOENT));
        assert_eq!(device.call(op::BUF_RELEASE, &mut BufRelease::new()), Err(ENOENT));
        assert_eq!(device.call(op::SUBMIT, &mut Submit::new()), Err(ENOENT));
        assert_eq!(device.call(op::WAIT, &mut Wait::new()), Err(ENOENT));
        assert_eq!(device.call(op::CANCEL, &mut Cancel { flags: op_flag::ALL, ..Cancel::new() }), Err(ENOENT));
        assert_eq!(device.call(op::EVENTFD, &mut EventFd { fd: event.as_raw_fd(), ..EventFd::new() }), Err(ENOENT));
        assert_eq!(Map::new(device.fd(), 0, 4096, PROT_READ).map(drop), Err(ENOENT));
        // The server's operations before ATTACH.
        let engine = Device::engine().unwrap();
        assert_eq!(engine.call(op::FETCH, &mut Fetch { max: 1, ..Fetch::new() }), Err(ENOTCONN));
        assert_eq!(engine.call(op::BUF_MAP, &mut BufMap::new()), Err(ENOTCONN));
        assert_eq!(engine.call(op::PROGRESS, &mut Progress::new()), Err(ENOTCONN));
        assert_eq!(engine.call(op::ACK, &mut Ack::new()), Err(ENOTCONN));
        assert_eq!(engine.call(op::DETACH, &mut Detach::new()), Err(ENOTCONN));
        let outcome = Outcome::new();
        let mut commit = Commit { outcomes: std::ptr::from_ref(&outcome) as u64, count: 1, ..Commit::new() };
        assert_eq!(engine.call(op::COMMIT, &mut commit), Err(ENOTCONN));
    }),
    ("entries zero or no power of two: EINVAL", || {
        for entries in [0, 3, 1000, u32::MAX] {
            assert_eq!(fresh().call(op::SETUP, &mut setup(entries, 0)), Err(EINVAL));
        }
    }),
    ("entries above the maximum: E2BIG", || {
        for entries in [2 * MAX_ENTRIES, 1 << 31] {
            assert_eq!(fresh().call(op::SETUP, &mut setup(entries, 0)), Err(E2BIG));
        }
        for entries in [1, MAX_ENTRIES] {
            drop(Client::new(entries, policy::HOLD));
        }
    }),
    ("second SETUP: EBUSY", || {
        let client = ready();
        assert_eq!(client.device.call(op::SETUP, &mut setup(8, 0)), Err(EBUSY));
        client.admit(&nop(1));
    }),
    ("mmap with a wrong offset or length: EINVAL; writable: EPERM", || {
        let client = Client::new(256, policy::HOLD);
        let (fd, len) = (client.device.fd(), client.ring.len());
        assert_eq!(len, 12288);
        for (offset, len) in [(4096, len), (0, len - 4096), (0, len + 4096), (4096, 4096), (1 << 40, len)] {
            assert_eq!(Map::new(fd, offset, len, PROT_READ).map(drop), Err(EINVAL), "{offset} {len}");
        }
        assert_eq!(Map::new(fd, 0, len, PROT_READ | PROT_WRITE).map(drop), Err(EPERM));
        assert_eq!(Map::new(fd, 0, len, PROT_WRITE).map(drop), Err(EPERM));
        assert_eq!(Map::new(fd, 0, len, PROT_READ | PROT_EXEC).map(drop), Err(EPERM));
        assert_eq!(Map::with(fd, 0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE).map(drop), Err(EPERM));
        let engine = Device::engine().unwrap();
        assert_eq!(Map::new(engine.fd(), 0, 4096, PROT_READ).map(drop), Err(ENODEV));
    }),
    ("mremap: refused; mprotect to write: EACCES", || {
        let client = ready();
        let len = client.ring.len();
        // The memory management refuses a longer one by itself, since the mapping must not expand.
        assert_eq!(client.ring.remap(2 * len, MREMAP_MAYMOVE), Err(EFAULT));
        assert_eq!(client.ring.remap(2 * len, 0), Err(EFAULT));
        let place = Map::anonymous(len);
        let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        assert_eq!(remap_to(&client.ring, &place, flags), Err(EINVAL), "moved");
        assert_eq!(client.ring.protect(PROT_READ | PROT_WRITE), Err(EACCES));
        assert_eq!(client.ring.protect(PROT_READ | PROT_EXEC), Err(EACCES));
        client.admit(&nop(1));
        assert_eq!(client.cancel_all(), 1);
        assert_eq!(client.result(1), -ECANCELED);
    }),
    ("descriptor not open: EBADF", || {
        let client = ready();
        for fd in [-1, i32::MIN, 999] {
            assert_eq!(register(&client, fd, 0, 0, PAGE), Err(EBADF));
            assert_eq!(client.device.call(op::EVENTFD, &mut EventFd { fd, ..EventFd::new() }), Err(EBADF));
        }
    }),
    ("descriptor of another kind: EINVAL", || {
        let client = ready();
        let file = std::fs::File::open("/proc/self/status").unwrap();
        for fd in [pipe().0, eventfd(), file.into(), dup(&client.device.0)] {
            let what: OwnedFd = fd;
            assert_eq!(register(&client, what.as_raw_fd(), 0, 0, PAGE), Err(EINVAL));
        }
        for fd in [pipe().0, memfd(PAGE, SEALS), dup(&client.device.0)] {
            let what: OwnedFd = fd;
            assert_eq!(
                client.device.call(op::EVENTFD, &mut EventFd { fd: what.as_raw_fd(), ..EventFd::new() }),
                Err(EINVAL)
            );
        }
    }),
    ("seals missing: EPERM", || {
        let client = ready();
        for seals in
            [0, F_SEAL_SHRINK, F_SEAL_SHRINK | F_SEAL_GROW, F_SEAL_GROW | F_SEAL_SEAL, F_SEAL_SHRINK | F_SEAL_SEAL]
        {
            assert_eq!(register(&client, memfd(PAGE, seals).as_raw_fd(), 0, 0, PAGE), Err(EPERM));
        }
    }),
    ("writable wanted of a read-only descriptor or a write-sealed memfd: EACCES", || {
        let client = ready();
        for seal in [F_SEAL_WRITE, F_SEAL_FUTURE_WRITE] {
            let fd = memfd(PAGE, seal | SEALS);
            assert_eq!(register(&client, fd.as_raw_fd(), op_flag::BUF_RW, 0, PAGE), Err(EACCES));
            assert_eq!(register(&client, fd.as_raw_fd(), 0, 0, PAGE), Ok(()));
        }
        let fd = memfd(PAGE, SEALS);
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let reader = std::fs::File::open(&path).unwrap();
        assert_eq!(register(&client, reader.as_raw_fd(), op_flag::BUF_RW, 0, PAGE), Err(EACCES));
        assert_eq!(register(&client, reader.as_raw_fd(), 0, 0, PAGE), Ok(()));
        let writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(register(&client, writer.as_raw_fd(), 0, 0, PAGE), Err(EACCES));
    }),
    ("range misaligned or zero: EINVAL", || {
        let client = ready();
        let fd = memfd(4 * PAGE, SEALS);
        for (offset, len) in [(0, 0), (0, 1), (1, PAGE), (PAGE - 1, PAGE), (0, PAGE + 1), (u64::MAX, PAGE)] {
            assert_eq!(register(&client, fd.as_raw_fd(), 0, offset, len), Err(EINVAL));
        }
    }),
    ("range past the end: ERANGE; sum overflows: EOVERFLOW", || {
        let client = ready();
        let fd = memfd(4 * PAGE, SEALS);
        for (offset, len) in [(0, 5 * PAGE), (4 * PAGE, PAGE), (1 << 40, PAGE), (0, 1 << 62)] {
            assert_eq!(register(&client, fd.as_raw_fd(), 0, offset, len), Err(ERANGE));
        }
        assert_eq!(register(&client, fd.as_raw_fd(), 0, u64::MAX - PAGE + 1, 2 * PAGE), Err(EOVERFLOW));
        assert_eq!(register(&client, fd.as_raw_fd(), 0, 3 * PAGE, PAGE), Ok(()));
    }),
    ("over the number of buffers: EMFILE", || {
        let client = ready();
        let memory = Memory::new(PAGE);
        let limit = client.limits().max_buffers;
        let names: Vec<_> = (0..limit).map(|_| client.register(&memory, true).unwrap()).collect();
        assert_eq!(client.register(&memory, true), Err(EMFILE));
        client.release(names[3]).unwrap();
        let again = client.register(&memory, true).unwrap();
        assert_eq!((again.buffer, again.generation), (names[3].buffer, names[3].generation + 1));
        assert_eq!(client.register(&memory, true), Err(EMFILE));
        client.set_limits(|limits| limits.max_buffers = 2).unwrap();
        client.release(names[1]).unwrap();
        assert_eq!(client.register(&memory, true), Err(EMFILE));
    }),
    ("over the registered bytes: EDQUOT", || {
        let client = ready();
        let memory = Memory::new(2 * PAGE);
        client.set_limits(|limits| limits.max_bytes = 3 * PAGE).unwrap();
        client.register(&memory, true).unwrap();
        assert_eq!(client.register(&memory, true), Err(EDQUOT));
        assert_eq!(register(&client, memory.fd.as_raw_fd(), 0, PAGE, PAGE), Ok(()));
        assert_eq!(client.stat().bytes, 3 * PAGE);
    }),
    ("no memory: ENOMEM", crate::faults::setup_without_memory),
    ("completion head ahead of the tail: EPROTO, and ever after", || {
        for head in [1, u32::MAX, 1 << 31] {
            let client = ready();
            let memory = Memory::new(PAGE);
            assert_eq!(client.device.call(op::WAIT, &mut Wait { head, ..Wait::new() }), Err(EPROTO));
            assert_eq!(client.device.call(op::WAIT, &mut Wait::new()), Err(EPROTO));
            assert_eq!(client.device.call(op::SUBMIT, &mut Submit::new()), Err(EPROTO));
            assert_eq!(client.register(&memory, false), Err(EPROTO));
        }
        let client = ready();
        assert_eq!(client.device.call(op::SUBMIT, &mut Submit { head: 1, ..Submit::new() }), Err(EPROTO));
        // A head that goes back is no better.
        let client = ready();
        client.admit(&Job { opcode: 99, ..nop(1) });
        assert_eq!(client.result(1), -EOPNOTSUPP);
        assert_eq!(client.wait(0, 0), Ok(()));
        assert_eq!(client.device.call(op::WAIT, &mut Wait { head: 0, ..Wait::new() }), Err(EPROTO));
    }),
    ("no completion slot to reserve: EAGAIN", || {
        let client = Client::new(4, policy::HOLD);
        let all: Vec<_> = (1..=6).map(nop).collect();
        let answer = client.submit(&all).unwrap();
        assert_eq!((answer.admitted, answer.error), (4, EAGAIN as u32));
        assert_eq!(client.submit(&all[4..]).map(drop), Err(EAGAIN));
        assert_eq!(client.device.poll(POLLOUT, 0), 0);
        assert_eq!(client.cancel_all(), 4);
        // The entries are there, but not read.
        assert_eq!(client.submit(&all[4..]).map(drop), Err(EAGAIN));
        while client.next().is_some() {}
        assert_eq!(client.submit(&all[4..]).unwrap().admitted, 2);
        // A streaming job needs two.
        let stream = Job { opcode: opcode::GENERATE, ..nop(7) };
        assert_eq!(client.submit(&[stream, stream]).unwrap().admitted, 1);
    }),
    ("job quota reached: EDQUOT", || {
        let client = Client::new(1024, policy::HOLD);
        let limit = client.limits().max_jobs as usize;
        let all: Vec<_> = (0..limit as u64 + 1).map(nop).collect();
        let answer = client.submit(&all).unwrap();
        assert_eq!((answer.admitted as usize, answer.error), (limit, EDQUOT as u32));
        let other = Client::new(1024, policy::HOLD);
        other.set_limits(|limits| limits.max_jobs = 1).unwrap();
        other.admit(&nop(1));
        assert_eq!(other.submit(&[nop(2)]).map(drop), Err(EDQUOT));
        assert_eq!((other.stat().refused, other.stat().queued), (1, 1));
    }),
    ("job quota of a user reached: EDQUOT", || {
        let clients = [(); 3].map(|()| Client::new(1024, policy::HOLD));
        let all: Vec<_> = (0..256).map(nop).collect();
        let admitted = clients.each_ref().map(|client| client.submit(&all).map(|answer| answer.admitted));
        assert_eq!(admitted, [Ok(256), Ok(256), Err(EDQUOT)]);
    }),
    ("limits: raising needs a right, values must be possible", || {
        let client = ready();
        let limits = client.limits();
        assert_eq!(client.set_limits(|limits| limits.weight = 0), Err(EINVAL));
        assert_eq!(client.set_limits(|limits| limits.weight = 1001), Err(EINVAL));
        assert_eq!(client.set_limits(|limits| limits.class_cap = 3), Err(EINVAL));
        assert_eq!(client.set_limits(|limits| limits.max_buffers = 65), Err(EINVAL));
        assert_eq!(client.set_limits(|limits| limits.max_jobs = 1 << 20), Err(EINVAL));
        client.set_limits(|limits| limits.weight = 1000).unwrap();
        become_user(1000);
        client.set_limits(|limits| (limits.weight, limits.max_bytes) = (10, 4096)).unwrap();
        assert_eq!(client.set_limits(|limits| limits.weight = 11), Err(EPERM));
        assert_eq!(client.set_limits(|limits| limits.max_bytes = 8192), Err(EPERM));
        assert_eq!(client.limits(), Limits { weight: 10, max_bytes: 4096, ..limits });
    }),
    ("server absent and policy FAIL: ENOTCONN", || {
        let client = Client::new(8, policy::FAIL);
        assert_eq!(client.submit(&[nop(1)]).map(drop), Err(ENOTCONN));
        assert_eq!(client.device.poll(POLLIN, 0), POLLHUP);
        let server = Server::new();
        assert_eq!(client.device.poll(POLLIN | POLLOUT, 0), POLLOUT);
        client.admit(&nop(1));
        drop(server);
        assert_eq!(client.result(1), -EOWNERDEAD);
    }),
    ("wait interrupted: EINTR (SUBMIT)", || {
        let client = ready();
        interrupted(|| client.device.call(op::SUBMIT, &mut Submit { wait: 1, ..Submit::new() }));
        // With jobs admitted the call has done something: it succeeds and says why it stopped.
        let job = nop(1);
        let mut ask = Submit { jobs: std::ptr::from_ref(&job) as u64, count: 1, wait: 1, ..Submit::new() };
        client.device.call(op::SUBMIT, &mut ask).unwrap();
        assert_eq!((ask.admitted, ask.error), (1, EINTR as u32));
    }),
    ("wait interrupted: EINTR (WAIT)", || {
        let client = ready();
        interrupted(|| client.device.call(op::WAIT, &mut Wait { wait: 1, ..Wait::new() }));
    }),
    ("wait interrupted: EINTR (FETCH)", || {
        let server = Server::new();
        let mut bytes = [0u8; MAX_RECORD];
        let ask = Fetch { records: bytes.as_mut_ptr() as u64, len: MAX_RECORD as u32, max: 1, ..Fetch::new() };
        interrupted(|| server.device.call(op::FETCH, &mut { ask }));
    }),
    ("wait interrupted: EINTR (CANCEL)", || {
        let (server, client) = canceled_while_running();
        interrupted(|| settle(&client, 0, 0));
        drop(server);
        assert_eq!(settle(&client, 0, 0), Ok(()));
    }),
    ("wait interrupted and restarted: its time stays absolute", || {
        interrupt_every(20, true);
        let client = ready();
        let started = now_ns();
        assert_eq!(client.wait(1, 300), Err(ETIME));
        let took = (now_ns() - started) / 1_000_000;
        assert!((300..5000).contains(&took), "{took} ms");
    }),
    ("wait time passed: ETIME", || {
        let (server, client) = canceled_while_running();
        assert_eq!(settle(&client, op_flag::DEADLINE, in_ms(30)), Err(ETIME));
        assert_eq!(settle(&client, op_flag::DEADLINE, 0), Err(ETIME));
        assert_eq!(client.result(1), -ECANCELED);
        let wait = Wait { flags: op_flag::DEADLINE, head: 1, wait: 1, ..Wait::new() };
        for deadline_ns in [0, 1, in_ms(30)] {
            let started = now_ns();
            assert_eq!(client.device.call(op::WAIT, &mut Wait { deadline_ns, ..wait }), Err(ETIME));
            assert!(now_ns() >= deadline_ns && now_ns() - started < 5_000_000_000);
            let mut submit = Submit { flags: op_flag::DEADLINE, head: 1, wait: 1, deadline_ns, ..Submit::new() };
            assert_eq!(client.device.call(op::SUBMIT, &mut submit), Err(ETIME));
        }
        assert!(matches!(server.fetch(), Taken::Cancel(_)));
        assert_eq!(server.fetch_into(1, MAX_RECORD, 30).map(drop), Err(ETIME));
        // Without a deadline field the wait is unbounded, and NO_WAIT does not wait at all.
        let mut bytes = [0u8; MAX_RECORD];
        let (records, len, flags) = (bytes.as_mut_ptr() as u64, MAX_RECORD as u32, op_flag::NO_WAIT);
        let mut ask = Fetch { records, len, flags, max: 1, ..Fetch::new() };
        assert_eq!(server.device.call(op::FETCH, &mut ask), Ok(()));
        assert_eq!(ask.count, 0);
    }),
    ("a wait for more than the ring can hold: EINVAL, and nothing is admitted", || {
        let client = ready();
        let job = nop(1);
        let mut ask = Submit { jobs: std::ptr::from_ref(&job) as u64, count: 1, wait: 9, ..Submit::new() };
        assert_eq!(client.device.call(op::SUBMIT, &mut ask), Err(EINVAL));
        assert_eq!(client.wait(9, 0), Err(EINVAL));
        assert_eq!(client.stat().admitted, 0);
    }),
    ("unknown opcode: EOPNOTSUPP", || {
        fails(EOPNOTSUPP, |job, _| job.opcode = opcode::COUNT);
        fails(EOPNOTSUPP, |job, _| job.opcode = u16::MAX);
        // One that the interface knows and this server does not answer.
        let device = Device::engine().unwrap();
        device.call(op::ATTACH, &mut Attach { opcodes: 1 << opcode::NOP, ..attach() }).unwrap();
        let server = Server { device, epoch: 0 };
        let client = ready();
        client.admit(&job(1, opcode::MATMUL, &[]));
        assert!(server.is_idle());
        assert_eq!(client.result(1), -EOPNOTSUPP);
    }),
    ("more than 16 descriptors, too many jobs, a longer job: E2BIG", || {
        let client = ready();
        let tensors = [Tensor::new(); 17];
        assert_eq!(client.submit(&[job(1, opcode::MATMUL, &tensors)]).map(drop), Err(E2BIG));
        assert_eq!(client.submit(&[Job { tensor_count: u32::MAX, ..nop(1) }]).map(drop), Err(E2BIG));
        assert_eq!(client.submit(&[Job { size: 129, ..nop(1) }]).map(drop), Err(E2BIG));
        assert_eq!(client.submit(&[Job { size: 127, ..nop(1) }]).map(drop), Err(EINVAL));
        assert_eq!(client.submit(&vec![nop(1); MAX_BATCH as usize + 1]).map(drop), Err(E2BIG));
        let server = Server::new();
        assert_eq!(server.commit_all(&vec![Outcome::new(); MAX_BATCH as usize + 1]).map(drop), Err(E2BIG));
        assert_eq!(client.stat().admitted, 0);
    }),
    ("class above the cap: EPERM", || {
        let client = ready();
        client.set_limits(|limits| limits.class_cap = u32::from(class::NORMAL)).unwrap();
        client.admit(&Job { sched_class: class::INTERACTIVE, ..nop(1) });
        assert_eq!(client.result(1), -EPERM);
        client.admit(&nop(2));
    }),
    ("deadline passes in the queue or running: ETIMEDOUT", || {
        let client = ready();
        let soon = |user_data, ms| Job { flags: job_flag::DEADLINE, deadline_ns: in_ms(ms), ..nop(user_data) };
        client.admit(&soon(1, 100_000));
        let late = soon(2, 50);
        client.admit(&late);
        assert_eq!(client.result(2), -ETIMEDOUT);
        let overdue = (now_ns() - late.deadline_ns) / 1_000_000;
        assert!(now_ns() >= late.deadline_ns && overdue < 2000, "{overdue} ms late");
        let server = Server::new();
        let (first, ..) = server.job();
        client.admit(&soon(3, 50));
        let (second, ..) = server.job();
        assert_eq!(client.result(3), -ETIMEDOUT);
        assert!(matches!(server.fetch(), Taken::Cancel(record) if record.slot == second.slot));
        assert_eq!(server.commit(&second, 0), Err(EALREADY));
        server.commit(&first, 1).unwrap();
        assert_eq!(client.result(1), 1);
        assert_eq!(client.stat().timed_out, 2);
    }),
    ("dependency not below, not own: EINVAL", || {
        let client = ready();
        let on = |user_data, dep_seq| Job { flags: job_flag::DEP, dep_seq, ..nop(user_data) };
        for (i, dep_seq) in [0, 2, 3, u64::MAX].into_iter().enumerate() {
            client.admit(&on(i as u64, dep_seq));
            let entry = client.completion();
            if entry.seq > dep_seq && dep_seq != 0 {
                assert_eq!(entry.result, -ECANCELED, "it depends on one that failed");
            } else {
                assert_eq!(entry.result, -EINVAL);
            }
        }
        client.admit(&Job { dep_seq: 1, ..nop(9) });
        assert_eq!(client.result(9), -EINVAL);
    }),
    ("dependency failed: ECANCELED with the flag DEP", || {
        let (server, client) = (Server::new(), ready());
        let on = |user_data, dep_seq| Job { flags: job_flag::DEP, dep_seq, ..nop(user_data) };
        let first = client.admit(&nop(1));
        let second = client.admit(&on(2, first));
        client.admit(&on(3, second));
        let (record, ..) = server.job();
        assert!(server.is_idle(), "what depends waits");
        assert_eq!(client.stat().waiting, 2);
        server.commit(&record, -EDOM).unwrap();
        assert_eq!(client.result(1), -EDOM);
        for user_data in [2, 3] {
            let entry = client.completion();
            assert_eq!((entry.user_data, entry.result, entry.flags), (user_data, -ECANCELED, cqe_flag::DEP));
        }
        let first = client.admit(&nop(4));
        client.admit(&on(5, first));
        for user_data in [4, 5] {
            let (record, job, _) = server.job();
            assert_eq!(job.user_data, user_data);
            server.commit(&record, 0).unwrap();
            assert_eq!(client.result(user_data), 0);
        }
    }),
    ("what the server finds: EDOM, ENOENT", || {
        let (server, client) = (Server::new(), ready());
        for (user_data, errno) in [(1, EDOM), (2, ENOENT)] {
            client.admit(&nop(user_data));
            server.commit(&server.job().0, -errno).unwrap();
            assert_eq!(client.result(user_data), -errno);
        }
        // No error number of the interface.
        client.admit(&nop(3));
        let (record, ..) = server.job();
        for result in [-1000, i32::MIN, -134] {
            assert_eq!(server.commit(&record, result), Err(EINVAL));
        }
        let flags = Outcome { flags: 1, ..outcome(&record, 0) };
        assert_eq!(server.commit_all(&[flags]).map(drop), Err(EINVAL));
        server.commit(&record, i32::MAX).unwrap();
        assert_eq!(client.result(3), i32::MAX);
    }),
    ("session of an old server: ESTALE", || {
        let client = ready();
        let old = Server::new();
        let in_session =
            |user_data, session_epoch| Job { flags: job_flag::SESSION, session: 1, session_epoch, ..nop(user_data) };
        client.admit(&in_session(1, old.epoch));
        server_answers(&old, &client, 1);
        let epoch = old.epoch;
        drop(old);
        let new = Server::new();
        assert_eq!(new.epoch, epoch + 1);
        client.admit(&in_session(2, epoch));
        assert!(new.is_idle());
        assert_eq!(client.result(2), -ESTALE);
        client.admit(&in_session(3, new.epoch));
        server_answers(&new, &client, 3);
    }),
    ("canceled: ECANCELED", || {
        let (server, client) = (Server::new(), ready());
        for user_data in [1, 2, 2, 3] {
            client.admit(&nop(user_data));
        }
        let (record, ..) = server.job();
        let mut ask = Cancel { flags: op_flag::BY_USER_DATA, user_data: 2, ..Cancel::new() };
        client.device.call(op::CANCEL, &mut ask).unwrap();
        assert_eq!(ask.canceled, 2);
        assert_eq!([client.result(2), client.result(2)], [-ECANCELED; 2]);
        assert_eq!(client.cancel_all(), 2);
        assert_eq!(client.results(&[1, 3]), [-ECANCELED; 2]);
        assert_eq!(client.cancel_all(), 0);
        assert_eq!(server.progress(&record, 1), Err(ECANCELED), "the server is told to stop");
        assert!(matches!(server.fetch(), Taken::Cancel(canceled) if canceled.slot == record.slot));
        assert_eq!(server.commit(&record, 0), Err(EALREADY));
        assert_eq!(settle(&client, 0, 0), Ok(()));
        let mut ask = Cancel { flags: op_flag::BY_SESSION, session: 4, session_epoch: 1, ..Cancel::new() };
        client.admit(&nop(5));
        client.admit(&Job { flags: job_flag::SESSION, session: 4, session_epoch: 1, ..nop(6) });
        client.device.call(op::CANCEL, &mut ask).unwrap();
        assert_eq!((ask.canceled, client.result(6)), (1, -ECANCELED));
        assert_eq!(client.stat().canceled, 5);
    }),
    ("server died: EOWNERDEAD; queued again too often: ENOTRECOVERABLE", || {
        let clients = [policy::HOLD, policy::FAIL, policy::REISSUE].map(|policy| {
            let server = Server::new();
            let client = Client::new(8, policy);
            client.admit(&nop(1));
            let (_, job, _) = server.job();
            assert_eq!(job.user_data, 1);
            client.admit(&nop(2));
            drop(server);
            if policy == policy::HOLD {
                assert_eq!(client.result(1), -EOWNERDEAD);
                assert_eq!(client.next(), None, "HOLD keeps what is queued");
                assert_eq!(client.cancel_all(), 1);
            }
            client
        });
        assert_eq!(clients[1].results(&[1, 2]), [-EOWNERDEAD; 2]);
        let client = &clients[2];
        assert_eq!(client.next(), None, "REISSUE keeps all");
        for _ in 0..u32::from(MAX_REISSUES) {
            let server = Server::new();
            let (_, job, _) = server.job();
            assert_eq!(job.user_data, 1, "what was out comes first");
        }
        assert_eq!(client.stat().reissued, 3);
        assert_eq!(client.result(1), -ENOTRECOVERABLE);
        let server = Server::new();
        server_answers(&server, client, 2);
    }),
    ("second ATTACH: EBUSY", || {
        let server = Server::new();
        assert_eq!(Server::try_new().map(drop), Err(EBUSY));
        assert_eq!(server.device.call(op::ATTACH, &mut attach()), Err(EBUSY));
        server.detach().unwrap();
        assert_eq!(server.detach(), Err(ENOTCONN));
        assert_eq!(Server::new().epoch, server.epoch + 1);
    }),
    ("COMMIT of a stale slot: ESTALE; second time: EALREADY", || {
        let (server, client) = (Server::new(), ready());
        for (slot, generation) in [(0, 99), (1023, 0), (1024, 0), (u32::MAX, u32::MAX)] {
            let ask = Record { slot, generation, ..Record::new() };
            assert_eq!(server.commit(&ask, 0), Err(ESTALE));
            assert_eq!(server.progress(&ask, 0), Err(ESTALE));
        }
        client.admit(&nop(1));
        let (record, ..) = server.job();
        assert_eq!(server.progress(&record, 1), Err(EINVAL), "it does not stream");
        server.commit(&record, 4).unwrap();
        assert_eq!(server.commit(&record, 5), Err(EALREADY));
        assert_eq!(client.result(1), 4);
        assert_eq!(client.next(), None);
        // In a batch the rest is left.
        client.admit(&nop(2));
        let (second, ..) = server.job();
        let answer = server.commit_all(&[outcome(&second, 6), outcome(&record, 7), outcome(&second, 8)]).unwrap();
        assert!(answer.done == 1 && (answer.error == EALREADY as u32 || answer.error == ESTALE as u32));
        assert_eq!(client.result(2), 6);
        // A job of the server before is not this one's.
        client.admit(&nop(3));
        let (old, ..) = server.job();
        drop(server);
        assert_eq!(client.result(3), -EOWNERDEAD);
        let server = Server::new();
        assert!(matches!(server.commit(&old, 9), Err(ESTALE | EALREADY)));
        assert_eq!(client.next(), None);
    }),
    ("fetch buffer too small for one job: EMSGSIZE", || {
        let (server, client) = (Server::new(), ready());
        client.admit(&nop(1));
        for len in [0, 63, 64, 191] {
            assert_eq!(server.fetch_into(1, len, 0).map(drop), Err(EMSGSIZE));
        }
        client.admit(&nop(2));
        assert_eq!(server.fetch_into(9, 192 + 191, 0).map(|all| all.len()), Ok(1));
        assert_eq!(server.job().1.user_data, 2);
    }),
    ("ACK of what is not gone: EBUSY; BUF_MAP of what is not there", || {
        let (server, client) = (Server::new(), ready());
        let memory = Memory::new(PAGE);
        let name = client.register(&memory, true).unwrap();
        client.admit(&job(1, opcode::MATMUL, &[floats(name, 0, 4, 0)]));
        let (record, ..) = server.job();
        let gone = Record { buffer: name.buffer, buffer_generation: name.generation, ..record };
        assert_eq!(server.ack(&gone), Err(EBUSY));
        assert_eq!(server.ack(&Record { buffer: 63, ..gone }), Err(ENOENT));
        assert_eq!(server.ack(&Record { context: 999, ..gone }), Err(ENOENT));
        assert_eq!(server.ack(&Record { context_generation: 0, ..gone }), Err(ESTALE));
        let map = |record: &Record, name| server.map_buffer(record, name).map(|answer| close(answer.fd));
        assert_eq!(map(&record, name), Ok(()));
        assert_eq!(map(&record, BufferName { buffer: 63, ..name }), Err(ENOENT));
        assert_eq!(map(&record, BufferName { generation: 9, ..name }), Err(ESTALE));
        assert_eq!(map(&Record { context: 77, ..record }, name), Err(ESTALE));
        assert_eq!(map(&Record { context: 128, ..record }, name), Err(ENOENT));
        server.commit(&record, 0).unwrap();
    }),
];

fn server_answers(server: &Server, client: &Client, user_data: u64) {
    let (record, job, _) = server.job();
    assert_eq!(job.user_data, user_data);
    server.commit(&record, 3).unwrap();
    assert_eq!(client.result(user_data), 3);
}
