//! Clients that are slow, stuck or hostile cost only themselves.

use super::rig::{Kind, Rig, sealed};
use rustai::queue::{Client, ClientOptions, Extra, Job, QueueError, Server, ServerOptions, Socket, Transport, now_ns};
use rustai_abi::queue::*;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// A connection without a library on it.
fn bare(rig: &Rig) -> std::os::fd::OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(rig.path()).unwrap()).unwrap();
    socket
}

#[test]
fn messages_that_are_none_end_the_connection_and_nothing_else() {
    let rig = Rig::new(Kind::Socket).unwrap();
    let _server = Server::start(rig.side.clone(), None, ServerOptions::default()).unwrap();
    let good = Client::over(rig.transport(), ClientOptions::default()).unwrap();
    for message in [&b"x"[..], &[0xff; 7], &[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], &[0; 200_000][..150_000]] {
        let socket = bare(&rig);
        send(&socket, message, SendFlags::NOSIGNAL).unwrap();
        let mut reply = [0; 64];
        let until = Instant::now() + Duration::from_secs(10);
        // Either the end of the connection, or an error for a request that could be read.
        match rustix::net::recv(&socket, &mut reply, rustix::net::RecvFlags::empty()) {
            Ok((_, 0)) | Err(_) => {}
            Ok((_, len)) => assert!(len >= 16 && i32::from_ne_bytes(reply[8..12].try_into().unwrap()) < 0),
        }
        assert!(Instant::now() < until);
        assert_eq!(good.run(&Job::nop()).unwrap().result, 0);
    }
    rig.audit();
}

#[test]
fn a_client_that_never_reads_gets_no_more() {
    let rig = Rig::new(Kind::Socket).unwrap();
    let _server = Server::start(rig.side.clone(), None, ServerOptions::default()).unwrap();
    let stuck = rig.ready(policy::HOLD);
    let mut admitted = 0;
    let refused = loop {
        match stuck.submit_all(&[Job0::new(); 4], &[]) {
            Ok(answer) => admitted += answer.admitted,
            Err(errno) => break errno,
        }
    };
    assert_eq!((admitted, refused), (8, Errno::EAGAIN), "as many as its ring has places");
    let good = Client::over(rig.transport(), ClientOptions::default()).unwrap();
    assert_eq!(good.run(&Job::nop()).unwrap().result, 0);
    rig.audit();
}

use rustai_abi::queue::Job as Job0;

#[test]
fn connections_are_limited_and_come_back() {
    let rig = Rig::sized(Kind::Socket, rustai::queue::BrokerOptions { clients: 4, ..Default::default() }).unwrap();
    // The last quarter of the places is for other users.
    let mut held: Vec<Arc<dyn Transport>> = (0..3).map(|_| rig.transport()).collect();
    let refused = Socket::connect(rig.path()).map(drop).unwrap_err();
    assert!(matches!(refused, QueueError::Refused { errno: Errno::EDQUOT, .. }), "{refused}");
    held.pop();
    let until = Instant::now() + Duration::from_secs(10);
    while Socket::connect(rig.path()).is_err() {
        assert!(Instant::now() < until, "the place does not come free");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A connection that has given the server memory for messages, and that memory.
fn with_lane(rig: &Rig) -> (std::os::fd::OwnedFd, std::fs::File) {
    let socket = bare(rig);
    let memory = sealed(LANE);
    let request: Vec<u8> = [0x80u32, 8, 8, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    assert_eq!(ask(&socket, &request, Some(&memory)), 0);
    (socket, memory.into())
}

const LANE: u64 = 192 << 10;

/// Sends a request by the socket; the answer's result.
fn ask(socket: &std::os::fd::OwnedFd, request: &[u8], fd: Option<&std::os::fd::OwnedFd>) -> i32 {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};
    use std::os::fd::AsFd;
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[std::io::IoSlice::new(request)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    let mut reply = [0; 256];
    let (_, len) = rustix::net::recv(socket, &mut reply, rustix::net::RecvFlags::empty()).unwrap();
    assert!(len >= 16, "{len} bytes");
    i32::from_ne_bytes(reply[8..12].try_into().unwrap())
}

#[test]
fn memory_for_messages_is_checked() {
    let rig = Rig::new(Kind::Socket).unwrap();
    let _server = Server::start(rig.side.clone(), None, ServerOptions::default()).unwrap();
    let request = |size: u32, flags: u32| -> Vec<u8> {
        [0x80, 8, size, flags].iter().flat_map(|word| word.to_ne_bytes()).collect()
    };
    let unsealed = rustix::fs::memfd_create("lane", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, LANE).unwrap();
    let socket = bare(&rig);
    for (request, fd, errno) in [
        (request(8, 0), None, Errno::EBADF),
        (request(16, 0), Some(sealed(LANE)), Errno::EINVAL),
        (request(8, 1), Some(sealed(LANE)), Errno::EINVAL),
        (request(8, 0), Some(unsealed), Errno::EPERM),
        (request(8, 0), Some(sealed(LANE - 4096)), Errno::ERANGE),
    ] {
        assert_eq!(ask(&socket, &request, fd.as_ref()), -errno.raw());
    }
    assert_eq!(ask(&socket, &request(8, 0), Some(&sealed(LANE))), 0);
    assert_eq!(ask(&socket, &request(8, 0), Some(&sealed(LANE))), -Errno::EBUSY.raw(), "there is one already");
}

#[test]
fn nonsense_in_memory_for_messages_ends_the_connection_and_nothing_else() {
    use std::os::unix::fs::FileExt;
    let rig = Rig::new(Kind::Socket).unwrap();
    let _server = Server::start(rig.side.clone(), None, ServerOptions::default()).unwrap();
    let good = Client::over(rig.transport(), ClientOptions::default()).unwrap();
    let look: Vec<u8> = [0x81u32, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    for (count, len, message) in [
        // No message, one that is too long, one whose struct is longer than it, and one of an operation that sends descriptors.
        (1u32, 0u32, [0u32; 4]),
        (7, u32::MAX, [0xffff_ffff; 4]),
        (1, 16, [0, u32::MAX, 0, 0]),
        (1, 16, [op::EVENTFD, 8, 8, 0]),
        (1, 16, [0x80, 8, 8, 0]),
    ] {
        let (socket, memory) = with_lane(&rig);
        let write = |at: u64, words: &[u32]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            memory.write_all_at(&bytes, at).unwrap();
        };
        write(128, &message);
        // The server believes that this client sleeps, and answers by the socket.
        write((176 << 10) + 64, &[1]);
        write(4, &[len]);
        write(0, &[count]);
        send(&socket, &look, SendFlags::NOSIGNAL).unwrap();
        let mut reply = [0; 64];
        match rustix::net::recv(&socket, &mut reply, rustix::net::RecvFlags::empty()) {
            Ok((_, 0)) | Err(_) => {}
            Ok((_, len)) => assert!(len >= 16 && i32::from_ne_bytes(reply[8..12].try_into().unwrap()) < 0),
        }
        // Scribbling goes on while the server answers others.
        (0..100).for_each(|count| write(0, &[count, count << 20]));
        assert_eq!(good.run(&Job::nop()).unwrap().result, 0);
        drop(socket);
        rig.audit();
    }
}

#[test]
fn words_about_sleep_are_not_believed() {
    use std::os::unix::fs::FileExt;
    let rig = Rig::new(Kind::Socket).unwrap();
    let _server = Server::start(rig.side.clone(), None, ServerOptions::default()).unwrap();
    let good = Client::over(rig.transport(), ClientOptions::default()).unwrap();
    let (socket, memory) = with_lane(&rig);
    let write = |at: u64, words: &[u32]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        memory.write_all_at(&bytes, at).unwrap();
    };
    let look: Vec<u8> = [0x81u32, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    // A message by the socket is announced that does not come yet; both sides are said to nap, to sleep, and to do neither.
    for (count, says) in (1..).zip([0, 1, 2, 3, u32::MAX]) {
        write(128, &[0x81, 0]);
        write(4, &[8]);
        write(64, &[says]);
        write((176 << 10) + 64, &[says]);
        write(0, &[count]);
        send(&socket, &look, SendFlags::NOSIGNAL).unwrap();
        assert_eq!(good.run(&Job::nop()).unwrap().result, 0);
    }
    // This client harmed itself, and nothing is left of it once it is gone; nor does the server wait for it at its end.
    drop(socket);
    rig.waits_for_clients(1);
    let (_socket, _memory) = with_lane(&rig);
    rig.audit();
    let ends = Instant::now();
    drop((good, rig));
    assert!(ends.elapsed() < Duration::from_secs(4), "the server waits for a client");
}

/// Round trips' times, sorted, in nanoseconds.
fn trips(client: &Client, count: usize) -> Vec<u64> {
    let mut times: Vec<u64> = (0..count)
        .map(|_| {
            let start = now_ns();
            client.call(&Job::nop()).unwrap();
            now_ns() - start
        })
        .collect();
    times.sort_unstable();
    times
}

/// What a hostile client is called, and what it does each time.
type Way = (&'static str, fn(&Rig));

const WAYS: [Way; 7] = [
    ("floods, and never reads", |rig| {
        let raw = rig.ready(policy::HOLD);
        while raw.submit_all(&[super::rig::nop(1); 4], &[]).is_ok() {}
    }),
    ("names what is not there", |rig| {
        let raw = rig.ready(policy::HOLD);
        let name = raw.register(sealed(65536), 0, 65536, true).unwrap();
        let wrong = Tensor { offset: u64::MAX, ..super::rig::tensor(name) };
        let _ = raw.submit_all(&[Job0 { tensor_count: 1, ..super::rig::nop(1) }], &[wrong]);
    }),
    ("closes midway", |rig| {
        let raw = rig.ready(policy::HOLD);
        let slow = Job0 { opcode: opcode::ECHO, params: [1_000_000_000, 0, 0, 0, 0, 0, 0, 0], ..super::rig::nop(1) };
        let _ = raw.submit_all(&[slow], &[]);
    }),
    ("breaks the ring's rules", |rig| {
        let ask = Submit { head: 99, ..Submit::new() };
        let _ = rig.ready(policy::HOLD).call_with(op::SUBMIT, &ask, Extra::default());
    }),
    ("rewrites its buffers while they are read", |rig| {
        let client = Client::over(rig.transport(), ClientOptions::default()).unwrap();
        let (a, b) = (client.buffer(65536).unwrap(), client.buffer(65536).unwrap());
        let (from, to) = (a.tensor::<u8>(0, &[65536]).unwrap(), b.tensor::<u8>(0, &[65536]).unwrap());
        let copy = Job::echo(Duration::from_micros(200), 0, 0).param(3, 1).input(&from).output(&to);
        let mut running = client.submit(&copy).unwrap();
        let mut value = 0u8;
        while running.try_wait().unwrap().is_none() {
            value = value.wrapping_add(1);
            (0..65536).step_by(64).for_each(|at| {
                from.set(at, value);
                to.set(at, value);
            });
        }
    }),
    ("scribbles over its messages", |rig| {
        use std::os::unix::fs::FileExt;
        let (socket, memory) = with_lane(rig);
        for round in 0..50u32 {
            let words = [round, round << 24, op::SUBMIT, 64].map(u32::to_ne_bytes).concat();
            memory.write_all_at(&words, 0).unwrap();
            memory.write_all_at(&words, 128).unwrap();
        }
        let look = [0x81u32, 0].map(u32::to_ne_bytes).concat();
        let _ = send(&socket, &look, SendFlags::NOSIGNAL);
    }),
    ("passes its connection on, and goes", |rig| {
        static HEIRS: std::sync::Mutex<Vec<std::os::fd::OwnedFd>> = std::sync::Mutex::new(Vec::new());
        let mut heirs = HEIRS.lock().unwrap();
        let socket = bare(rig);
        heirs.push(socket.try_clone().unwrap());
        if heirs.len() == 8 {
            heirs.clear();
        }
    }),
];

/// What a client pauses for between two rounds that wants to look harmless.
const PAUSE: Duration = Duration::from_micros(200);

/// Calls `round` again and again until `stop`; how often, and the processor time of this thread for a round.
fn repeat(mut round: impl FnMut(), stop: &AtomicBool) -> (u32, Duration) {
    let began = thread_time();
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        round();
        rounds += 1;
        std::thread::sleep(PAUSE);
    }
    (rounds, (thread_time() - began) / rounds.max(1))
}

/// Processor time of this thread so far.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Keeps a processor busy for so long.
fn work(time: Duration) {
    let began = thread_time();
    while thread_time() - began < time {
        std::hint::spin_loop();
    }
}

/// Round trips beside a thread that repeats `round`.
fn trips_beside(good: &Client, count: usize, round: impl FnMut() + Send) -> (Vec<u64>, u32, Duration) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| repeat(round, &stop));
        let times = trips(good, count);
        stop.store(true, Ordering::Relaxed);
        let (rounds, each) = other.join().unwrap();
        (times, rounds, each)
    })
}

/// A client that spins for its answers loses its processor to any third program now and then, so a hostile client is measured
/// against one that only uses as much processor time as it does, in as long rounds, and never touches the queue.
#[test]
#[ignore = "measures time, so it wants a quiet machine: cargo test --release -- --ignored --nocapture others_wait"]
fn others_wait_no_longer_than_twice_as_long() {
    const TRIPS: usize = 100_000;
    let rig = Rig::new(Kind::Socket).unwrap();
    let _server = Server::start(rig.side.clone(), None, ServerOptions::default()).unwrap();
    let good = Client::over(rig.transport(), ClientOptions::default()).unwrap();
    trips(&good, TRIPS);
    let p99 = |times: &[u64]| times[times.len() * 99 / 100] as f64 / 1e3;
    // A third program costs either 60 us or nothing, and p99 is one or the other by a hair: their mean around it is steady.
    let slow = |times: &[u64]| {
        let slow = &times[times.len() * 99 / 100..times.len() * 999 / 1000];
        slow.iter().sum::<u64>() as f64 / slow.len() as f64 / 1e3
    };
    let mut worst = 0.0f64;
    for (name, way) in WAYS {
        let alone = trips(&good, TRIPS);
        // In turns, so that what else the machine does hits both.
        let (mut hostile, mut busy, mut rounds, mut each) = (Vec::new(), Vec::new(), 0, Duration::ZERO);
        for _ in 0..3 {
            let (times, count, time) = trips_beside(&good, TRIPS, || way(&rig));
            (rounds, each) = (rounds + count, time);
            hostile.push([slow(&times), p99(&times)]);
            let times = trips_beside(&good, TRIPS, || work(time)).0;
            busy.push([slow(&times), p99(&times)]);
        }
        let median = |values: &[[f64; 2]], which: usize| {
            let mut values: Vec<f64> = values.iter().map(|value| value[which]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let ratio = median(&hostile, 0) / median(&busy, 0).max(slow(&alone));
        eprintln!(
            "{name} ({rounds} times, {} us each): p99 {:.1} us alone, {:.1} beside a busy thread, {:.1} beside it; slow ones \
             {:.1}, {:.1}, {:.1}: x {ratio:.2}",
            each.as_micros(),
            p99(&alone),
            median(&busy, 1),
            median(&hostile, 1),
            slow(&alone),
            median(&busy, 0),
            median(&hostile, 0),
        );
        worst = worst.max(ratio);
        rig.audit();
    }
    assert!(worst <= 2.0, "x {worst:.2} beside a hostile client");
}

#[test]
fn a_hostile_client_harms_nobody_else() {
    let rig = Rig::new(Kind::Socket).unwrap();
    let _server = Server::start(rig.side.clone(), None, ServerOptions::default()).unwrap();
    let good = Client::over(rig.transport(), ClientOptions::default()).unwrap();
    for round in 0..10 {
        for (name, way) in WAYS {
            way(&rig);
            assert_eq!(good.run(&Job::echo(Duration::ZERO, round, 0)).unwrap().result, round, "beside one that {name}");
            rig.audit();
        }
    }
}
