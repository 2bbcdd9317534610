//! Round trips over the queue's socket between two processes, beside plain unix sockets: NOPs while both sides are awake, batches,
//! and tensors of three sizes.
//!
//! `cargo bench -p rustai-cli --bench queue` (two minutes) writes `target/criterion/report/index.html`. `rustai bench queue`
//! measures single calls, with p50 and p99, and more ways to wait.

#[path = "../src/commands/bench/peer.rs"]
mod peer;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use peer::{BATCH, Peer, SIZES, SPIN, ping};
use rustai::queue::{Choice, Client, ClientOptions, Job};
use std::{os::unix::net::UnixStream, path::Path, time::Duration};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_rustai"))
}

/// A process that sends back what a plain socket brings, and the socket.
fn echo(folder: &Path) -> (Peer, UnixStream) {
    let peer = Peer::echo(program(), folder.join("echo"), false).expect("the program starts");
    let socket = UnixStream::connect(&peer.path).expect("it listens");
    (peer, socket)
}

/// A server, and its client.
fn server(folder: &Path) -> (Peer, Client) {
    let peer = Peer::server(program(), folder.join("server"), SPIN).expect("the program starts");
    let transport = Choice::Socket(peer.path.clone()).open().expect("it listens");
    (peer, Client::over(transport, ClientOptions::default()).expect("a client"))
}

fn round_trips(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round trip");
    let folder = tempfile::tempdir().expect("a folder for sockets");
    let (_echo, mut socket) = echo(folder.path());
    group.bench_function("unix socket, 64 bytes", |bencher| {
        bencher.iter(|| ping(&mut socket, &mut [7; 64]).expect("an echo"));
    });
    let (_server, client) = server(folder.path());
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
    let folder = tempfile::tempdir().expect("a folder for sockets");
    let (_echo, mut socket) = echo(folder.path());
    let (_server, client) = server(folder.path());
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
            bencher.iter(|| ping(&mut socket, &mut message).expect("an echo"));
        });
    }
}

criterion_group!(benches, round_trips, tensors);
criterion_main!(benches);
