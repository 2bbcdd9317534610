//! Jobs as io_uring commands.

use crate::{Test, sides::*, sys::*};
use io_uring::{IoUring, opcode::UringCmd16, types::Fd};
use rustai_abi::queue::*;

/// An io_uring with a client's node.
pub struct Uring {
    ring: IoUring,
    fd: i32,
}

/// The command area of a SUBMIT of a job.
fn area(job: &Job) -> [u8; 16] {
    let mut bytes = [0; 16];
    assert!(UringSubmit { job: std::ptr::from_ref(job) as u64, ..UringSubmit::new() }.write(&mut bytes));
    bytes
}

impl Uring {
    /// A new one.
    pub fn new(device: &Device) -> Self {
        Self { ring: IoUring::new(64).unwrap(), fd: device.fd() }
    }

    /// Issues a command; what it points to must live until it is admitted, which is before this returns.
    pub fn push(&mut self, operation: u32, area: [u8; 16], user_data: u64) -> Sys<()> {
        let entry = UringCmd16::new(Fd(self.fd), operation).cmd(area).build().user_data(user_data);
        // SAFETY: The kernel reads the job and its tensors while it admits them, which is during the call of `submit`;
        // callers keep them that long.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| EBUSY)?;
        self.ring.submit().map(drop).map_err(|err| err.raw_os_error().unwrap())
    }

    /// Issues a SUBMIT, which may fail on the way to the module.
    pub fn try_submit(&mut self, job: &Job) -> Sys<()> {
        self.push(ioctl(op::SUBMIT), area(job), job.user_data)
    }

    /// Issues a SUBMIT.
    pub fn submit(&mut self, job: &Job) {
        self.try_submit(job).unwrap();
    }

    /// The next completion, user data and result, if there is one.
    pub fn take(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|entry| (entry.user_data(), entry.result()))
    }

    /// Waits for the next completion.
    pub fn next(&mut self) -> (u64, i32) {
        self.ring.submit_and_wait(1).unwrap();
        self.take().unwrap()
    }

    fn is_empty(&mut self) -> bool {
        self.ring.submit().unwrap();
        self.take().is_none()
    }
}

/// Ends one job of the server's with a result.
fn answer(server: &Server, result: i32) -> Record {
    let (record, ..) = server.job();
    server.commit(&record, result).unwrap();
    record
}

pub const TESTS: &[Test] = &[
    ("a command completes with its job's result, and not in the ring", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let mut uring = Uring::new(&client.device);
        let memory = Memory::new(PAGE);
        memory.put(0, &[4.0]);
        let name = client.register(&memory, true).unwrap();
        let tensors = [floats(name, 0, 1, 0), floats(name, 64, 1, tensor_flag::OUT)];
        uring.submit(&Job { params: [77, 0, 0, 0, 0, 0, 0, 0], ..job(5, opcode::MATMUL, &tensors) });
        assert!(uring.is_empty());
        assert_eq!((client.stat().queued, Report::now().number("commands")), (1, 1));
        assert!(server.serve(20_000));
        assert_eq!(uring.next(), (5, 77));
        assert_eq!(memory.get(64, 1), [8.0]);
        assert_eq!((client.next(), client.stat().completed), (None, 1));
    }),
    ("commands and entries of the ring live side by side", || {
        let (server, client) = (Server::new(), Client::new(4, policy::HOLD));
        let mut uring = Uring::new(&client.device);
        for user_data in 0..20 {
            uring.submit(&nop(user_data));
        }
        for user_data in 20..24 {
            client.admit(&nop(user_data));
        }
        for result in 0..24 {
            answer(&server, result);
        }
        for user_data in 0..20 {
            assert_eq!(uring.next(), (user_data, user_data as i32));
        }
        for user_data in 20..24 {
            assert_eq!(client.result(user_data), user_data as i32);
        }
    }),
    ("a job that is wrong fails its command", || {
        let client = Client::new(8, policy::HOLD);
        let mut uring = Uring::new(&client.device);
        let cases: [(Job, i32); 5] = [
            (Job { opcode: 99, ..nop(1) }, EOPNOTSUPP),
            (Job { flags: 1 << 31, ..nop(2) }, EINVAL),
            (Job { size: 129, ..nop(3) }, E2BIG),
            (Job { tensor_count: 1, ..nop(4) }, EFAULT),
            (Job { flags: job_flag::DEADLINE, deadline_ns: 1, ..nop(5) }, ETIME),
        ];
        for (job, errno) in cases {
            uring.submit(&job);
            assert_eq!(uring.next(), (job.user_data, -errno));
        }
        assert_eq!(client.stat(), Stat::new(), "what is refused leaves no trace");
    }),
    ("a command that is wrong fails", || {
        let client = Client::new(8, policy::HOLD);
        let mut uring = Uring::new(&client.device);
        let job = nop(1);
        let right = area(&job);
        let with = |at: usize, byte: u8| {
            let mut bytes = right;
            bytes[at] = byte;
            bytes
        };
        let cases = [
            (ioctl(op::SUBMIT), with(0, 15), EINVAL),
            (ioctl(op::SUBMIT), with(0, 17), EINVAL),
            (ioctl(op::SUBMIT), with(4, 1), EINVAL),
            (ioctl(op::SUBMIT), with(15, 0xff), EFAULT),
            (ioctl(op::WAIT), right, EOPNOTSUPP),
            (ioctl(op::FETCH), right, EPERM),
            (ioctl(0x20), right, ENOTTY),
            (op::SUBMIT, right, ENOTTY),
        ];
        for (operation, area, errno) in cases {
            uring.push(operation, area, 1).unwrap();
            assert_eq!(uring.next(), (1, -errno));
        }
        let fresh = Device::client().unwrap();
        let mut early = Uring::new(&fresh);
        early.submit(&job);
        assert_eq!(early.next(), (1, -ENOENT), "before SETUP");
        let engine = Device::engine().unwrap();
        let mut other = Uring::new(&engine);
        other.push(ioctl(op::FETCH), right, 1).unwrap();
        assert_eq!(other.next(), (1, -EOPNOTSUPP));
    }),
    ("a command ends by cancelation, deadline and the server's death", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let mut uring = Uring::new(&client.device);
        uring.submit(&nop(1));
        assert_eq!(client.cancel_all(), 1);
        assert_eq!(uring.next(), (1, -ECANCELED));
        uring.submit(&Job { flags: job_flag::DEADLINE, deadline_ns: in_ms(50), ..nop(2) });
        assert_eq!(uring.next(), (2, -ETIMEDOUT));
        uring.submit(&Job { opcode: opcode::GENERATE, ..nop(3) });
        let (record, ..) = server.job();
        server.progress(&record, 1).unwrap();
        assert!(uring.is_empty(), "progress is not told");
        drop(server);
        assert_eq!(uring.next(), (3, -EOWNERDEAD));
        assert_eq!(Report::now().number("commands"), 0);
    }),
    ("a command that waits for another fails with it", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let mut uring = Uring::new(&client.device);
        let first = client.admit(&nop(1));
        uring.submit(&Job { flags: job_flag::DEP, dep_seq: first, ..nop(2) });
        answer(&server, -EDOM);
        assert_eq!((client.result(1), uring.next()), (-EDOM, (2, -ECANCELED)));
        uring.submit(&Job { flags: job_flag::DEP, dep_seq: first, ..nop(3) });
        assert_eq!(uring.next(), (3, -ECANCELED));
    }),
    ("an io_uring that goes takes its commands along", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let mut uring = Uring::new(&client.device);
        for user_data in 0..10 {
            uring.submit(&nop(user_data));
        }
        let (running, ..) = server.job();
        drop(uring);
        Report::until("canceled", |r| r.number("commands") == 0 && r.number("in flight") == 0);
        assert!(matches!(server.fetch(), Taken::Cancel(_)));
        assert_eq!(server.commit(&running, 0), Err(EALREADY));
        assert!(server.is_idle());
        assert_eq!(client.stat().canceled, 10);
    }),
    ("a process that is killed takes its commands along", || {
        let server = Server::new();
        let child = Child::run(|| {
            let client = Client::new(8, policy::HOLD);
            let mut uring = Uring::new(&client.device);
            for user_data in 0..30 {
                uring.submit(&nop(user_data));
            }
            uring.next();
            1
        });
        Report::until("submitted", |r| r.number("commands") == 30);
        let (running, ..) = server.job();
        child.kill();
        Report::until("canceled", |r| r.number("commands") == 0);
        assert!(matches!(server.fetch(), Taken::Cancel(_)));
        assert_eq!(server.commit(&running, 0), Err(EALREADY));
        assert!(server.is_idle());
    }),
    ("commands issued by a kernel thread", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let mut uring = Uring::new(&client.device);
        let jobs: Vec<_> = (0..20).map(nop).collect();
        for job in &jobs {
            let entry = UringCmd16::new(Fd(uring.fd), ioctl(op::SUBMIT)).cmd(area(job)).build();
            let entry = entry.flags(io_uring::squeue::Flags::ASYNC).user_data(job.user_data);
            // SAFETY: `jobs` lives until all commands have completed.
            unsafe { uring.ring.submission().push(&entry) }.unwrap();
        }
        uring.ring.submit().unwrap();
        for _ in 0..20 {
            answer(&server, 3);
        }
        let mut seen: Vec<_> = (0..20).map(|_| uring.next()).collect();
        seen.sort();
        assert!(seen.iter().zip(&jobs).all(|(&is, job)| is == (job.user_data, 3)));
    }),
];
