//! `bench queue`: round trips and tensors over the queue, beside plain unix sockets in the same run.
//!
//! Everything is between two processes. The plain sockets' other side is this program, too: it sends back what it receives, with
//! one system call each way if it is short. A tensor's round trip is an ECHO job whose server reads the first and the last
//! byte of its input and writes them to its output, where they are checked: proof that both sides see the memory. The plain
//! socket copies the bytes there and back.
//!
//! Tokens through the queue are measured by [`super::tokens`], if a model is given, instead of all this.

use super::{
    peer::{BATCH, Peer, SIZES, SPIN, ping, receive, send},
    tokens,
};
use crate::{
    args::BenchQueueArgs,
    failure::Failure,
    interrupt::Guard,
    ui::{self, Printer, Table},
};
use rustai::queue::{Choice, Client, ClientOptions, Completion, Job, QueueError, Socket};
use serde::Serialize;
use std::{
    io::{ErrorKind, Read},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// One row: nanoseconds of single round trips.
#[derive(Clone, Debug, Serialize)]
struct Row {
    what: String,
    p50_ns: u64,
    p99_ns: u64,
    samples: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs_per_second: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    transport: String,
    cores: usize,
    rows: Vec<Row>,
    server_copied_bytes: u64,
}

/// Measures.
pub fn run(args: &BenchQueueArgs) -> Result<(), Failure> {
    if let Some(path) = &args.peer {
        return answer(path, args.peer_spins);
    }
    let guard = Guard::new();
    let trips = if args.quick { 1_000 } else { 50_000 };
    let folder = std::env::temp_dir().join(format!("rustai-bench-queue-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let _folder = Folder(folder.clone());
    if let Some(model) = &args.model {
        let tokens = tokens::measure(model, args, &folder, &guard)?;
        return if args.json { ui::json(&tokens) } else { Printer::default().line(tokens) };
    }
    let given =
        args.queue.as_deref().map(Choice::parse).transpose().map_err(|error| Failure::from(error).into_usage())?;

    let mut rows = Vec::new();
    let program = std::env::current_exe()?;
    let serve = |name: &str, spin| Peer::server(&program, folder.join(name), spin);
    let peer = Peer::echo(&program, folder.join("peer"), false)?;
    let mut socket = UnixStream::connect(&peer.path)?;
    rows.push(measure("unix socket, 64 bytes", trips, None, &guard, || Ok(ping(&mut socket, &mut [7; 64])?))?);
    if given.is_none() {
        let server = serve("a", 0)?;
        let socket = Socket::connect(&server.path)?.spinning(Duration::ZERO);
        let client = Client::over(Arc::new(socket), ClientOptions::default())?;
        rows.push(measure("NOP, both sides sleep", trips, None, &guard, || done(client.call(&Job::nop())))?);
    }

    let server = given.is_none().then(|| serve("q", SPIN)).transpose()?;
    let choice = given.clone().or(server.as_ref().map(|server| Choice::Socket(server.path.clone())));
    let client = open(choice.as_ref())?;
    let transport = client.transport().to_owned();
    rows.push(measure("NOP, one call", trips, None, &guard, || done(client.call(&Job::nop())))?);
    rows.push(measure("NOP, submitted and waited for", trips, None, &guard, || done(client.run(&Job::nop())))?);
    let copied = tensors(&client, &mut socket, args.quick, &guard, &mut rows)?;
    drop((client, server));

    let spinning = given.is_none().then(|| serve("s", 1000)).transpose()?;
    let choice = given.or(spinning.as_ref().map(|server| Choice::Socket(server.path.clone())));
    let client = open(choice.as_ref())?;
    let mut number = 0;
    rows.push(measure("NOP, both sides spin", trips, None, &guard, || {
        number += 1;
        done(client.run_spinning(&Job::nop().user_data(number)))
    })?);
    rows.push(batches(&client, trips * 20, &guard)?);
    drop((client, spinning));
    let awake = Peer::echo(&program, folder.join("awake"), true)?;
    let mut socket = UnixStream::connect(&awake.path)?;
    socket.set_nonblocking(true)?;
    rows.push(measure("unix socket, both sides spin", trips, None, &guard, || Ok(ping(&mut socket, &mut [7; 64])?))?);
    drop((socket, awake));
    rows.sort_by_key(|row| row.bytes);

    let report = Report { transport, cores: crate::compute::cores(), rows, server_copied_bytes: copied };
    if args.json { ui::json(&report) } else { print(&report) }
}

fn open(choice: Option<&Choice>) -> Result<Client, Failure> {
    let choice = choice.ok_or_else(|| Failure::new("no queue to measure"))?;
    Ok(Client::over(choice.open()?, ClientOptions::default())?)
}

fn done(completion: Result<Completion, QueueError>) -> Result<(), Failure> {
    match completion? {
        done if done.result >= 0 => Ok(()),
        done => Err(Failure::new(format!("a job failed with error {}", -done.result)).help("see the server's log")),
    }
}

/// Times single calls, after a tenth as many that warm up.
fn measure(
    what: &str,
    samples: usize,
    bytes: Option<usize>,
    guard: &Guard,
    mut call: impl FnMut() -> Result<(), Failure>,
) -> Result<Row, Failure> {
    for _ in 0..samples.div_ceil(10) {
        call()?;
    }
    let mut times = Vec::with_capacity(samples);
    for index in 0..samples {
        if index % 64 == 0 {
            guard.check()?;
        }
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    Ok(Row { what: what.to_owned(), p50_ns: at(50), p99_ns: at(99), samples, bytes, jobs_per_second: None })
}

fn batches(client: &Client, jobs: usize, guard: &Guard) -> Result<Row, Failure> {
    let batch: Vec<Job> = (0..BATCH).map(|_| Job::nop()).collect();
    let mut times = Vec::new();
    let (start, mut completed) = (Instant::now(), 0);
    while completed < jobs {
        guard.check()?;
        let began = Instant::now();
        let pending = client.submit_all(&batch)?;
        completed += pending.len();
        for job in pending {
            done(job.wait())?;
        }
        times.push(began.elapsed().as_nanos() as u64);
    }
    let rate = completed as f64 / start.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let what = format!("NOPs in batches of {BATCH}");
    Ok(Row { what, p50_ns: at(50), p99_ns: at(99), samples: times.len(), bytes: None, jobs_per_second: Some(rate) })
}

fn tensors(
    client: &Client,
    socket: &mut UnixStream,
    quick: bool,
    guard: &Guard,
    rows: &mut Vec<Row>,
) -> Result<u64, Failure> {
    let before = client.stat()?.server_copied;
    for size in SIZES {
        let trips = match size {
            SMALL if quick => 200,
            _ if quick => 20,
            SMALL => 20_000,
            _ => 2_000,
        };
        let (from, to) = (client.buffer(size)?, client.buffer(size)?);
        let (from, to) = (from.tensor::<u8>(0, &[size])?, to.tensor::<u8>(0, &[size])?);
        (0..size).step_by(4096).for_each(|at| from.set(at, 1));
        let job = Job::echo(Duration::ZERO, 0, 0).input(&from).output(&to);
        let mut value = 0u8;
        rows.push(measure("tensor through the queue", trips, Some(size), guard, || {
            value = value.wrapping_add(1);
            from.set(0, value);
            from.set(size - 1, !value);
            done(client.call(&job))?;
            if (to.get(0), to.get(size - 1)) == (value, !value) {
                return Ok(());
            }
            Err(Failure::new("the server did not see the tensor").help("report this"))
        })?);
        let mut message = vec![1; size];
        let trips = if size > (16 << 20) { trips.min(if quick { 3 } else { 20 }) } else { trips };
        rows.push(measure("tensor copied by a socket", trips, Some(size), guard, || Ok(ping(socket, &mut message)?))?);
    }
    Ok(client.stat()?.server_copied - before)
}

const SMALL: usize = SIZES[0];

fn print(report: &Report) -> Result<(), Failure> {
    let mut table = Table::new(&["round trip", ">size", ">p50 us", ">p99 us", ">jobs/s"]);
    for row in &report.rows {
        table.row(vec![
            row.what.clone(),
            row.bytes.map_or(String::new(), |bytes| ui::bytes(bytes as u64)),
            format!("{:.2}", row.p50_ns as f64 / 1e3),
            format!("{:.2}", row.p99_ns as f64 / 1e3),
            row.jobs_per_second.map_or(String::new(), |rate| format!("{rate:.0}")),
        ]);
    }
    let mut printer = Printer::default();
    printer.piece(&table.markdown())?;
    printer.line(format_args!(
        "\nover the {}, {}; payload copied by the server: {}",
        report.transport,
        ui::counted(report.cores, "core"),
        ui::bytes(report.server_copied_bytes)
    ))
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The other side of the plain sockets: sends back what it receives.
fn answer(path: &Path, spins: bool) -> Result<(), Failure> {
    let listener = UnixListener::bind(path)?;
    Printer::default().line("ready")?;
    let (mut socket, _) = listener.accept()?;
    socket.set_nonblocking(spins)?;
    let mut message = vec![0; 64];
    loop {
        // A short message is read and written by one call each.
        message.resize(message.len().max(64), 0);
        let filled = match socket.read(&mut message[..64]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::hint::spin_loop();
                continue;
            }
            Ok(filled @ 8..) => filled,
            // The other process has measured enough.
            _ => return Ok(()),
        };
        let len = message.first_chunk().map_or(0, |len| u64::from_ne_bytes(*len)) as usize;
        message.resize(len.max(64), 0);
        receive(&mut socket, &mut message[..len], filled)?;
        send(&mut socket, &message[..len])?;
    }
}
