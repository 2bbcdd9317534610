//! The rows of the table of error numbers that a job completes with, for what is wrong with it.

use crate::{Test, sides::*, sys::*};
use rustai_abi::queue::*;
use std::os::fd::AsRawFd;

/// What a job with the given changes completes with, and what SUBMIT says of it. The context has a writable buffer and a
/// read-only one, a page each.
pub fn completes(change: impl FnOnce(&mut Job, &mut Vec<Tensor>)) -> i32 {
    let server = Server::new();
    let client = Client::new(8, policy::HOLD);
    let memory = Memory::new(2 * PAGE);
    let register = |offset, flags| {
        let mut ask = BufRegister { flags, fd: memory.fd.as_raw_fd(), offset, len: PAGE, ..BufRegister::new() };
        client.device.call(op::BUF_REGISTER, &mut ask).unwrap();
        BufferName { buffer: ask.buffer, generation: ask.generation }
    };
    let (rw, ro) = (register(0, op_flag::BUF_RW), register(PAGE, 0));
    let mut job = job(7, opcode::MATMUL, &[]);
    let mut tensors = vec![floats(rw, 0, 64, 0), floats(ro, 512, 64, 0)];
    (tensors[0].ndim, tensors[0].dims[0], tensors[0].dims[1]) = (2, 32, 2);
    change(&mut job, &mut tensors);
    (job.tensors, job.tensor_count) = (tensors.as_ptr() as u64, tensors.len() as u32);
    client.admit(&job);
    if client.next().is_none() {
        if let Ok(taken) = server.fetch_into(1, MAX_RECORD, 0) {
            let Taken::Job(record, ..) = &taken[0] else { panic!("{taken:?}") };
            server.commit(record, 5).unwrap();
        }
        return client.result(7);
    }
    let entry: Completion = client.ring.read(RING_ENTRIES_OFFSET);
    assert_eq!((entry.user_data, entry.seq), (7, 1));
    entry.result
}

/// A job with the given changes completes with this error number.
pub fn fails(errno: i32, change: impl FnOnce(&mut Job, &mut Vec<Tensor>)) {
    assert_eq!(completes(change), -errno);
}

pub const TESTS: &[Test] = &[
    ("reserved field or unknown flag of a job: EINVAL", || {
        assert_eq!(completes(|_, _| ()), 5, "the job that all rows change is right");
        fails(EINVAL, |job, _| job.flags = 1 << 31);
        fails(EINVAL, |job, _| job.reserved0 = 1);
        fails(EINVAL, |job, _| job.reserved1 = 1);
        fails(EINVAL, |job, _| job.session = 1);
        fails(EINVAL, |job, _| job.deadline_ns = 1 << 60);
        fails(EINVAL, |_, t| t[0].flags = 1 << 31);
        fails(EINVAL, |_, t| t[0].reserved0 = 1);
        fails(EINVAL, |_, t| t[0].size = 95);
        fails(EINVAL, |job, _| job.sched_class = class::COUNT as u8);
    }),
    ("buffer unknown: ENOENT; old generation: ESTALE", || {
        fails(ENOENT, |_, t| t[0].buffer = 2);
        fails(ENOENT, |_, t| t[0].buffer = 64);
        fails(ENOENT, |_, t| t[0].buffer = u32::MAX);
        fails(ESTALE, |_, t| t[0].generation += 1);
        fails(ESTALE, |_, t| t[0].generation = 0);
        let client = ready();
        let memory = Memory::new(PAGE);
        let old = client.register(&memory, true).unwrap();
        client.release(old).unwrap();
        assert_eq!(client.release(old), Err(ENOENT));
        let new = client.register(&memory, true).unwrap();
        assert_eq!(client.release(old), Err(ESTALE));
        assert_eq!(client.release(BufferName { buffer: 63, ..new }), Err(ENOENT));
        assert_eq!(client.release(BufferName { buffer: 64, ..new }), Err(ENOENT));
        client.admit(&job(1, opcode::MATMUL, &[floats(old, 0, 4, 0)]));
        assert_eq!(client.result(1), -ESTALE);
    }),
    ("output on a read-only buffer: EACCES", || fails(EACCES, |_, t| t[1].flags = tensor_flag::OUT)),
    ("offset and length overflow: EOVERFLOW; past the buffer: ERANGE", || {
        fails(EOVERFLOW, |_, t| t[0].offset = u64::MAX);
        fails(EOVERFLOW, |_, t| t[0].offset = u64::MAX - 255);
        fails(ERANGE, |_, t| t[0].offset = PAGE - 255);
        fails(ERANGE, |_, t| t[0].offset = PAGE);
        assert_eq!(completes(|_, t| t[0].offset = PAGE - 256), 5);
    }),
    ("number of dimensions and their values: EINVAL", || {
        fails(EINVAL, |_, t| t[0].ndim = 0);
        fails(EINVAL, |_, t| t[0].ndim = 7);
        fails(EINVAL, |_, t| t[0].ndim = u32::MAX);
        fails(EINVAL, |_, t| t[0].dims[1] = 0);
        fails(EINVAL, |_, t| t[0].dims[0] = MAX_DIM + 1);
        fails(EINVAL, |_, t| t[0].dims[5] = 1);
    }),
    ("product of the shape overflows: EOVERFLOW", || {
        fails(EOVERFLOW, |_, t| t[0].dims[..2].copy_from_slice(&[MAX_DIM, MAX_DIM]));
        fails(EOVERFLOW, |_, t| t[0].dims[..2].copy_from_slice(&[MAX_DIM, 1 << 23]));
    }),
    ("length differs from type and shape: EMSGSIZE", || {
        fails(EMSGSIZE, |_, t| t[0].byte_len = 255);
        fails(EMSGSIZE, |_, t| t[0].byte_len = 0);
        fails(EMSGSIZE, |_, t| t[0].dims[1] = 3);
        fails(EMSGSIZE, |_, t| t[0].dtype = 1);
    }),
    ("row is no multiple of the block: EINVAL", || {
        // Q4_K has blocks of 256.
        fails(EINVAL, |_, t| t[0].dtype = 12);
        assert_eq!(completes(|_, t| (t[0].dtype, t[0].dims[0], t[0].byte_len) = (12, 256, 288)), 5);
    }),
    ("unknown or removed type: EOPNOTSUPP", || {
        for dtype in [4, 5, 31, 36, 1000, u32::MAX] {
            fails(EOPNOTSUPP, |_, t| t[0].dtype = dtype);
        }
        fails(EOPNOTSUPP, |_, t| t[0].quant = 1);
    }),
    ("ranges overlap without the in-place flag: EINVAL", || {
        fails(EINVAL, |_, t| {
            let mut other = t[0];
            (other.offset, other.flags) = (252, tensor_flag::OUT);
            t.push(other);
        });
        assert_eq!(completes(|_, t| t.push(Tensor { flags: tensor_flag::OUT | tensor_flag::IN_PLACE, ..t[0] })), 5);
        assert_eq!(completes(|_, t| t.push(Tensor { flags: tensor_flag::OUT, offset: 256, ..t[0] })), 5);
        fails(EINVAL, |_, t| t[0].flags = tensor_flag::IN_PLACE);
    }),
    ("deadline already past: ETIME", || {
        fails(ETIME, |job, _| (job.flags, job.deadline_ns) = (job_flag::DEADLINE, 1));
        fails(ETIME, |job, _| (job.flags, job.deadline_ns) = (job_flag::DEADLINE, 0));
        fails(ETIME, |job, _| (job.flags, job.deadline_ns) = (job_flag::DEADLINE, now_ns()));
    }),
];
