//! The n-th allocation, or the n-th copy from or to user space, fails within a call, for every n: the call says so, leaves
//! nothing, and works when it is made again.
//!
//! Needs a kernel that injects faults, as the debug kernel does and the stock kernel does not.

use crate::{Test, node, sides::*, skip, sys::*, uring::Uring};
use rustai_abi::queue::*;
use std::{
    fs::{self, File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::FileExt},
};

/// Faults within the calls of this thread.
struct Faults {
    countdown: File,
}

impl Faults {
    fn new() -> Self {
        for (kind, file, value) in [
            ("failslab", "ignore-gfp-wait", "N"),
            ("failslab", "verbose", "0"),
            ("fail_page_alloc", "ignore-gfp-wait", "N"),
            ("fail_page_alloc", "ignore-gfp-highmem", "N"),
            ("fail_page_alloc", "min-order", "0"),
            ("fail_page_alloc", "verbose", "0"),
            ("fail_usercopy", "verbose", "0"),
        ] {
            if fs::write(format!("/sys/kernel/debug/{kind}/{file}"), value).is_err() {
                skip("the kernel injects no faults");
            }
        }
        let countdown = OpenOptions::new().read(true).write(true).open("/proc/thread-self/fail-nth").unwrap();
        Self { countdown }
    }

    /// Runs `f` with its `nth` fault; also how many more it had needed for that, zero if it came.
    fn within<T>(&self, nth: u32, f: impl FnOnce() -> T) -> (T, u32) {
        self.countdown.write_at(nth.to_string().as_bytes(), 0).unwrap();
        let result = f();
        let mut text = [0; 16];
        // To look copies to user space: the fault may come here.
        let left = match self.countdown.read_at(&mut text, 0) {
            Ok(len) => std::str::from_utf8(&text[..len]).unwrap().trim().parse().unwrap(),
            Err(_) => 1,
        };
        // Or here. It is over then, too.
        if left > 0 && self.countdown.write_at(b"0", 0).is_err() {
            let _ = self.countdown.write_at(b"0", 0);
        }
        (result, left)
    }

    /// Makes a call with its first fault, its second, and so on until it has no more. `after` judges each call that failed.
    /// Answers how many failed for lack of memory.
    fn each<S>(&self, prepare: impl Fn() -> S, call: impl Fn(&mut S) -> Sys<()>, after: impl Fn(S, i32)) -> u32 {
        let (mut no_memory, mut no_copy, mut harmless) = (0, 0, 0);
        for nth in 1.. {
            let mut state = prepare();
            let (result, left) = self.within(nth, || call(&mut state));
            match result {
                Ok(()) if left > 0 => break,
                // An allocation that the kernel can do without.
                Ok(()) => harmless += 1,
                Err(errno) => {
                    assert_eq!(left, 0, "errno {errno} without a fault");
                    match errno {
                        ENOMEM => no_memory += 1,
                        EFAULT => no_copy += 1,
                        _ => panic!("errno {errno} of fault {nth}"),
                    }
                    after(state, errno);
                }
            }
        }
        println!("     ENOMEM {no_memory} times, EFAULT {no_copy} times, {harmless} faults of no consequence");
        assert!(no_memory + no_copy > 0);
        no_memory
    }
}

/// A client with a buffer, and a job that reads and writes it.
struct Working {
    client: Client,
    tensors: [Tensor; 2],
    name: BufferName,
}

impl Working {
    fn new() -> Self {
        let client = ready();
        let memory = Memory::new(PAGE);
        let name = client.register(&memory, true).unwrap();
        Self { client, tensors: [floats(name, 0, 4, 0), floats(name, 64, 4, tensor_flag::OUT)], name }
    }

    fn job(&self) -> Job {
        job(1, opcode::MATMUL, &self.tensors)
    }

    fn submitted() -> Self {
        let working = Self::new();
        working.client.admit(&working.job());
        working
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// SETUP, as the row of ENOMEM in the table of error numbers has it.
pub fn setup_without_memory() {
    let no_memory = Faults::new().each(
        || Device::client().unwrap(),
        |device| device.call(op::SETUP, &mut setup(64, policy::HOLD)),
        |device, errno| {
            let again = device.call(op::SETUP, &mut setup(64, policy::HOLD));
            // Only an answer that could not be written comes after the fact.
            assert!(again == Ok(()) || (errno, again) == (EFAULT, Err(EBUSY)), "{again:?} after {errno}");
        },
    );
    assert!(no_memory > 0);
}

pub const TESTS: &[Test] = &[
    ("open", || {
        let faults = Faults::new();
        faults.each(|| (), |()| Device::client().map(drop), |(), _| drop(Device::client().unwrap()));
        faults.each(|| (), |()| Device::engine().map(drop), |(), _| drop(Device::engine().unwrap()));
    }),
    ("SETUP", setup_without_memory),
    ("mmap of the ring", || {
        let map = |device: &mut Device| Map::new(device.fd(), 0, 8192, PROT_READ).map(drop);
        let prepare = || {
            let device = Device::client().unwrap();
            device.call(op::SETUP, &mut setup(128, policy::HOLD)).unwrap();
            device
        };
        Faults::new().each(prepare, map, |mut device, _| map(&mut device).unwrap());
    }),
    ("BUF_REGISTER", || {
        Faults::new().each(
            || (ready(), Memory::new(PAGE)),
            |(client, memory)| client.register(memory, true).map(drop),
            |(client, memory), _| {
                assert_eq!((client.stat().buffers, client.stat().bytes), (0, 0));
                assert_eq!(Report::now().number("files"), 0);
                client.register(&memory, true).unwrap();
            },
        );
    }),
    ("SUBMIT", || {
        Faults::new().each(
            Working::new,
            |working| working.client.submit(&[working.job()]).map(drop),
            |working, errno| {
                // Only an answer that could not be written comes after the fact.
                let admitted = working.client.stat().admitted;
                assert!(admitted == 0 || (errno, admitted) == (EFAULT, 1));
                working.client.admit(&working.job());
            },
        );
    }),
    ("SUBMIT as an io_uring command", || {
        Faults::new().each(
            || {
                let working = Working::new();
                (Uring::new(&working.client.device), working)
            },
            |(uring, working)| match uring.try_submit(&working.job()) {
                // What io_uring itself says when it has no memory.
                Err(EAGAIN) => Err(ENOMEM),
                Err(errno) => Err(errno),
                Ok(()) => uring.take().map_or(Ok(()), |(_, result)| Err(-result)),
            },
            |(uring, working), _| {
                drop(uring);
                Report::until("gone", |report| report.number("commands") == 0);
                let mut again = Uring::new(&working.client.device);
                again.submit(&working.job());
                assert_eq!(working.client.cancel_all(), 1);
                assert_eq!(again.next(), (1, -ECANCELED));
            },
        );
    }),
    ("a client's other calls", || {
        let faults = Faults::new();
        let event = eventfd();
        type Call<'a> = &'a dyn Fn(&Working) -> Sys<()>;
        let calls: [Call; 7] = [
            &|w| w.client.device.call(op::QUERY, &mut Query::new()),
            &|w| w.client.device.call(op::WAIT, &mut Wait::new()),
            &|w| w.client.device.call(op::CANCEL, &mut Cancel { flags: op_flag::ALL, ..Cancel::new() }),
            &|w| w.client.device.call(op::EVENTFD, &mut EventFd { fd: event.as_raw_fd(), ..EventFd::new() }),
            &|w| w.client.device.call(op::LIMITS, &mut Limits::new()),
            &|w| w.client.device.call(op::STAT, &mut Stat::new()),
            &|w| w.client.release(w.name),
        ];
        for call in calls {
            let again = |working: Working, _| call(&working).unwrap();
            faults.each(Working::submitted, |working| call(working), again);
        }
    }),
    ("ATTACH and DETACH", || {
        let faults = Faults::new();
        let attach = |device: &mut Device| device.call(op::ATTACH, &mut attach());
        faults.each(
            || Device::engine().unwrap(),
            attach,
            |mut device, _| {
                assert_eq!(Report::now().number("server"), 0);
                attach(&mut device).unwrap();
            },
        );
        faults.each(Server::new, |server| server.detach(), |server, _| server.detach().unwrap());
    }),
    ("FETCH", || {
        Faults::new().each(
            || (Server::new(), Working::submitted()),
            |(server, _)| server.fetch_into(1, MAX_RECORD, 20_000).map(drop),
            |(server, working), _| match working.client.stat().running {
                0 => drop(server.job()),
                // The record was written, and the answer could not be.
                running => assert_eq!((running, server.is_idle()), (1, true)),
            },
        );
    }),
    ("BUF_MAP", || {
        let prepare = || {
            let (server, working) = (Server::new(), Working::submitted());
            let (record, ..) = server.job();
            (server, working, record)
        };
        Faults::new().each(
            || (prepare(), open_descriptors()),
            |((server, working, record), _)| server.map_buffer(record, working.name).map(|answer| close(answer.fd)),
            |((server, working, record), before), _| {
                assert_eq!((open_descriptors(), Report::now().number("mapped")), (before, 0));
                close(server.map_buffer(&record, working.name).unwrap().fd);
                assert_eq!(Report::now().number("mapped"), 1);
            },
        );
    }),
    ("PROGRESS and COMMIT", || {
        let faults = Faults::new();
        let prepare = || {
            let (server, working) = (Server::new(), Working::new());
            // One that streams.
            working.client.admit(&Job { opcode: opcode::GENERATE, ..nop(1) });
            let (record, ..) = server.job();
            (server, working, record)
        };
        faults.each(
            prepare,
            |(server, _, record)| server.progress(record, 1),
            |(server, _, record), _| server.progress(&record, 1).unwrap(),
        );
        faults.each(
            prepare,
            |(server, _, record)| server.commit(record, 5),
            |(server, working, record), errno| {
                let again = server.commit(&record, 5);
                assert!(again == Ok(()) || (errno, again) == (EFAULT, Err(EALREADY)), "{again:?} after {errno}");
                assert_eq!(working.client.result(1), 5);
                assert!(working.client.next().is_none(), "it completed twice");
            },
        );
    }),
    ("loading the module", || {
        let faults = Faults::new();
        unload_module("rustai").unwrap();
        let try_load = |nth| {
            let (result, left) = faults.within(nth, node::try_load);
            if result == Ok(()) {
                unload_module("rustai").unwrap();
            }
            (result, left)
        };
        let (result, left) = try_load(1 << 20);
        assert_eq!(result, Ok(()));
        let all = (1 << 20) - left;
        // The module's own come last; those of the kernel's loader are sampled.
        let mut refused = 0;
        for nth in (1..all).filter(|nth| nth + 150 > all || nth % 50 == 0) {
            match try_load(nth).0 {
                Ok(()) => {}
                Err(errno) => {
                    assert!(matches!(errno, ENOMEM | EFAULT), "errno {errno} of fault {nth}");
                    assert!(fs::metadata("/dev/rustai").is_err() && fs::metadata("/sys/kernel/debug/rustai").is_err());
                    refused += 1;
                }
            }
        }
        println!("     {all} places for faults, {refused} of those tried refused");
        node::load();
        assert!(refused > 0);
    }),
];
