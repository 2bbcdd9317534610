//! Buffers and rings: what memory is seen by whom, and for how long.

use crate::{Test, sides::*, sys::*};
use rustai_abi::queue::*;
use std::os::fd::AsRawFd;

pub const TESTS: &[Test] = &[
    ("the server computes in the client's pages", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let (input, output) = (Memory::new(4 * PAGE), Memory::new(4 * PAGE));
        input.put(64, &[1.0, 2.5, -3.0]);
        let names = [client.register(&input, false).unwrap(), client.register(&output, true).unwrap()];
        let tensors = [floats(names[0], 64, 3, 0), floats(names[1], 8192, 3, tensor_flag::OUT)];
        client.admit(&Job { params: [42, 0, 0, 0, 0, 0, 0, 0], ..job(1, opcode::MATMUL, &tensors) });
        assert!(server.serve(20_000));
        assert_eq!(client.result(1), 42);
        assert_eq!(output.get(8192, 3), [2.0, 5.0, -6.0]);
        let stat = client.stat();
        assert_eq!((stat.queue_copied, stat.server_copied), (0, 0));
    }),
    ("BUF_MAP gives the same file, with the rights that the client gave", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let memory = Memory::new(4 * PAGE);
        let mut ask = BufRegister { fd: memory.fd.as_raw_fd(), offset: PAGE, len: 2 * PAGE, ..BufRegister::new() };
        client.device.call(op::BUF_REGISTER, &mut ask).unwrap();
        let ro = BufferName { buffer: ask.buffer, generation: ask.generation };
        let rw = client.register(&memory, true).unwrap();
        client.admit(&job(1, opcode::MATMUL, &[floats(ro, 0, 4, 0), floats(rw, 0, 4, tensor_flag::OUT)]));
        let (record, _, tensors) = server.job();
        assert_eq!((tensors[0].buffer, tensors[1].buffer), (ro.buffer, rw.buffer));
        let answer = server.map_buffer(&record, ro).unwrap();
        assert_eq!((answer.offset, answer.len, answer.flags), (PAGE, 2 * PAGE, 0));
        assert_eq!(access_mode(answer.fd), Ok(O_RDONLY));
        let all = PROT_READ | PROT_WRITE;
        assert_eq!(Map::new(answer.fd, 0, 4096, all).map(drop), Err(EACCES));
        let map = Map::new(answer.fd, 0, 4096, PROT_READ).unwrap();
        assert_eq!(map.protect(all), Err(EACCES));
        memory.map.copy_in(0, b"client");
        let mut seen = [0; 6];
        map.copy_out(0, &mut seen);
        assert_eq!(&seen, b"client");
        let answer = server.map_buffer(&record, rw).unwrap();
        assert_eq!((answer.offset, answer.len, answer.flags), (0, 4 * PAGE, op_flag::MAPPED_RW));
        assert_eq!(access_mode(answer.fd), Ok(O_RDWR));
        Map::new(answer.fd, 0, 4096, all).unwrap().copy_in(0, b"server");
        memory.map.copy_out(0, &mut seen);
        assert_eq!(&seen, b"server");
        server.commit(&record, 0).unwrap();
    }),
    ("a failed BUF_MAP leaves no descriptor", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let memory = Memory::new(PAGE);
        let name = client.register(&memory, true).unwrap();
        client.admit(&job(1, opcode::MATMUL, &[floats(name, 0, 4, 0)]));
        let (record, ..) = server.job();
        let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = count();
        assert_eq!(server.map_buffer(&record, BufferName { generation: 77, ..name }).map(drop), Err(ESTALE));
        // The answer cannot be written: the struct lies in a page that is read-only by then.
        let map = Map::anonymous(4096);
        let mut bytes = [0; BufMap::SIZE];
        let ask = BufMap {
            context: record.context,
            context_generation: record.context_generation,
            buffer: name.buffer,
            generation: name.generation,
            ..BufMap::new()
        };
        assert!(ask.write(&mut bytes));
        map.copy_in(0, &bytes);
        map.protect(PROT_READ).unwrap();
        assert_eq!(server.device.raw(ioctl(op::BUF_MAP), map.address()), Err(EFAULT));
        assert_eq!(count(), before);
        assert_eq!(Report::now().number("mapped"), 0, "what the server did not get is not mapped");
        server.commit(&record, 0).unwrap();
    }),
    ("a buffer stays until no job uses it and the server has let go", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let memory = Memory::new(PAGE);
        memory.put(0, &[7.0]);
        let name = client.register(&memory, true).unwrap();
        client.admit(&job(1, opcode::MATMUL, &[floats(name, 0, 1, 0)]));
        client.release(name).unwrap();
        drop(memory);
        let report = |buffers, files| {
            Report::until("as expected", |r| (r.number("buffers"), r.number("files")) == (buffers, files))
        };
        report(1, 1);
        let (record, ..) = server.job();
        let map = server.memory(&record, name).unwrap();
        let mut seen = [0; 4];
        map.copy_out(0, &mut seen);
        assert_eq!(f32::from_ne_bytes(seen), 7.0);
        server.commit(&record, 0).unwrap();
        assert_eq!(client.result(1), 0);
        report(1, 1);
        let Taken::Gone(gone) = server.fetch() else { panic!("no notice") };
        assert_eq!((gone.buffer, gone.buffer_generation), (name.buffer, name.generation));
        assert!(server.is_idle(), "it is told once");
        report(1, 1);
        server.ack(&gone).unwrap();
        report(0, 0);
        assert!(server.ack(&gone).is_err());
    }),
    ("a buffer that the server never saw goes at once", || {
        let (_server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let memory = Memory::new(PAGE);
        let name = client.register(&memory, true).unwrap();
        client.release(name).unwrap();
        assert_eq!((Report::now().number("buffers"), Report::now().number("files")), (0, 0));
    }),
    ("the server's death lets go of buffers", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let memory = Memory::new(PAGE);
        let name = client.register(&memory, true).unwrap();
        client.admit(&job(1, opcode::MATMUL, &[floats(name, 0, 1, 0)]));
        let (record, ..) = server.job();
        let _map = server.memory(&record, name).unwrap();
        client.release(name).unwrap();
        drop(server);
        Report::until("let go of", |r| r.number("files") == 0);
        assert_eq!(client.result(1), -EOWNERDEAD);
    }),
    ("a hole punched by the client harms nobody else", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let (input, output) = (Memory::new(PAGE), Memory::new(PAGE));
        input.put(0, &[1.0; 8]);
        let names = [client.register(&input, false).unwrap(), client.register(&output, true).unwrap()];
        let tensors = [floats(names[0], 0, 8, 0), floats(names[1], 0, 8, tensor_flag::OUT)];
        client.admit(&job(1, opcode::MATMUL, &tensors));
        punch_hole(&input.fd, 0, PAGE);
        assert!(server.serve(20_000));
        assert_eq!(client.result(1), 0);
        assert_eq!(output.get(0, 8), [0.0; 8]);
    }),
    ("a client that rewrites its job while it runs changes nothing", || {
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        let memory = Memory::new(PAGE);
        let name = client.register(&memory, true).unwrap();
        let mut tensors = [floats(name, 0, 1, 0)];
        let mut job = job(1, opcode::MATMUL, &tensors);
        client.admit(&job);
        (job.opcode, tensors[0].offset) = (99, u64::MAX);
        std::hint::black_box((&job, &tensors));
        let (record, seen, copies) = server.job();
        assert_eq!((seen.opcode, copies[0].offset), (opcode::MATMUL, 0));
        server.commit(&record, 0).unwrap();
    }),
    ("a mapping of the ring outlives the context", || {
        let client = Client::new(8, policy::HOLD);
        client.admit(&Job { opcode: 99, ..nop(5) });
        let Client { device, ring, .. } = client;
        drop(device);
        let entry: Completion = ring.read(RING_ENTRIES_OFFSET);
        assert_eq!((entry.user_data, ring.word(12)), (5, 1));
        // The mapping holds the open file, so the context is there until it goes.
        assert_eq!(Report::now().number("contexts"), 1);
        drop(ring);
        Report::until("empty", Report::is_empty);
    }),
    ("a ring is mapped twice and over a fork", || {
        let client = Client::new(8, policy::HOLD);
        let second = Map::new(client.device.fd(), 0, client.ring.len(), PROT_READ).unwrap();
        client.admit(&Job { opcode: 99, ..nop(5) });
        assert_eq!(second.word(12), 1);
        let child = Child::run(|| i32::from(client.ring.word(12) != 1 || second.word(12) != 1));
        assert_eq!(child.wait(), End::Exit(0));
    }),
    ("nobody can write a ring", || {
        let client = Client::new(8, policy::HOLD);
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/proc/self/mem").unwrap();
        use std::os::unix::fs::FileExt;
        let wrote = file.write_at(&[1; 4], client.ring.address() as u64 + 12);
        assert!(wrote.is_err(), "{wrote:?}");
        assert_eq!(client.ring.word(12), 0);
        let address = client.ring.address();
        let child = Child::run(move || {
            write_byte(address);
            0
        });
        assert_eq!(child.wait(), End::Signal(SIGSEGV));
    }),
    ("ring memory holds nothing of others", || {
        let client = Client::new(MAX_ENTRIES, policy::HOLD);
        let mut bytes = vec![0; client.ring.len()];
        client.ring.copy_out(0, &mut bytes);
        assert!(bytes[20..].iter().skip(4).all(|&byte| byte == 0), "memory that was not cleared");
    }),
    ("the ring tells of the server", || {
        let client = Client::new(8, policy::HOLD);
        let header = || -> (u32, u32) {
            let header: RingHeader = client.ring.read(0);
            (header.server, header.epoch)
        };
        let (absent, epoch) = header();
        assert_eq!(absent, server_state::ABSENT);
        let server = Server::new();
        assert_eq!(header(), (server_state::ATTACHED, epoch + 1));
        drop(server);
        assert_eq!(header(), (server_state::ABSENT, epoch + 1));
    }),
    ("entries wrap around the ring", || {
        let client = Client::new(4, policy::HOLD);
        for i in 0..1000u64 {
            client.admit(&Job { opcode: 99, ..nop(i) });
            client.admit(&Job { opcode: 99, ..nop(i + 7) });
            for user_data in [i, i + 7] {
                let entry = client.next().unwrap();
                assert_eq!((entry.user_data, entry.result), (user_data, -EOPNOTSUPP));
            }
        }
    }),
];
