//! Round trips over the queue's socket between two processes, beside plain unix sockets: NOPs while both sides are awake, batches,
//! and tensors of three sizes.
//!
//! `cargo bench -p rustai-cli --bench queue` (two minutes) writes `target/criterion/report/index.html`. `rustai bench queue`
//! measures single calls, with p50 and p99, and more ways to wait.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustai::queue::{Choice, Client, ClientOptions, Job};
use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

const SIZES: [usize; 3] = [4 << 10, 1 << 20, 64 << 20];
const BATCH: usize = 256;

/// The program as another process, until it is dropped.
struct Peer {
    child: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Peer {
    /// Starts the program with `words` and the socket's path; it says a line when it listens.
    fn start(words: &[&str], prefix: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let socket = folder.path().join("socket");
        let mut last = OsStr::new(prefix).to_owned();
        last.push(&socket);
        let mut child = Command::new(env!("CARGO_BIN_EXE_rustai"))
            .args(words)
            .arg(last)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        assert!(!line.is_empty(), "the program ended before it listened");
        Self { child, socket, _folder: folder }
    }

    /// A server without a model that looks for requests `spin` before it sleeps.
    fn server(spin: &str) -> Self {
        Self::start(&["serve", "--no-model", "--spin", spin, "--queue"], "socket:")
    }

    /// A process that sends back what a plain socket brings.
    fn echo() -> Self {
        Self::start(&["bench", "queue", "--peer"], "")
    }

    fn client(&self) -> Client {
        let transport = Choice::Socket(self.socket.clone()).open().expect("the server listens");
        Client::over(transport, ClientOptions::default()).expect("a client")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // One that ended by itself needs no ending.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a message, which starts with its length, and reads its echo.
fn ping(socket: &mut UnixStream, message: &mut [u8]) {
    let len = (message.len() as u64).to_ne_bytes();
    message[..len.len()].copy_from_slice(&len);
    socket.write_all(message).expect("the other side reads");
    socket.read_exact(message).expect("the other side answers");
}

fn round_trips(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round trip");
    let echo = Peer::echo();
    let mut socket = UnixStream::connect(&echo.socket).expect("the peer listens");
    group.bench_function("unix socket, 64 bytes", |bencher| bencher.iter(|| ping(&mut socket, &mut [7; 64])));
    let server = Peer::server("50");
    let client = server.client();
    group.bench_function("NOP, one call", |bencher| bencher.iter(|| client.call(&Job::nop()).expect("a completion")));
    group.bench_function("NOP, submitted and waited for", |bencher| {
        bencher.iter(|| client.run(&Job::nop()).expect("a completion"));
    });
    let batch: Vec<Job> = (0..BATCH).map(|_| Job::nop()).collect();
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(BenchmarkId::new("NOPs in a batch", BATCH), |bencher| {
        bencher.iter(|| {
            for job in client.submit_all(&batch).expect("room") {
                job.wait().expect("a completion");
            }
        });
    });
}

fn tensors(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tensor");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    let (echo, server) = (Peer::echo(), Peer::server("50"));
    let mut socket = UnixStream::connect(&echo.socket).expect("the peer listens");
    let client = server.client();
    for size in SIZES {
        let (from, to) = (client.buffer(size).expect("memory"), client.buffer(size).expect("memory"));
        let from = from.tensor::<u8>(0, &[size]).expect("it fits");
        let to = to.tensor::<u8>(0, &[size]).expect("it fits");
        let job = Job::echo(Duration::ZERO, 0, 0).input(&from).output(&to);
        let mut value = 0u8;
        group.bench_function(BenchmarkId::new("through the queue", size), |bencher| {
            bencher.iter(|| {
                value = value.wrapping_add(1);
                from.set(0, value);
                from.set(size - 1, !value);
                client.call(&job).expect("a completion");
                assert_eq!((to.get(0), to.get(size - 1)), (value, !value), "the server sees the tensor");
            });
        });
        let mut message = vec![1; size];
        group.bench_function(BenchmarkId::new("copied by a socket", size), |bencher| {
            bencher.iter(|| ping(&mut socket, &mut message));
        });
    }
}

criterion_group!(benches, round_trips, tensors);
criterion_main!(benches);
