//! `kill -9` of clients and servers at random moments.
//!
//! Each round starts a server and some clients as processes of this test program, lets them work, and kills some. What must
//! hold: no completion is lost or comes twice for a client that lives, a server that lives has no job, buffer or client left
//! of the dead, and the next server can take the socket over. `RUSTAI_DEATH_ROUNDS` sets the number of rounds.

use rustai::queue::{
    Broker, BrokerOptions, Client, ClientOptions, Job, Listener, ListenerOptions, QueueError, Server, ServerOptions,
    Snapshot, Socket,
};
use rustai_abi::queue::Errno;
use rustai_tests::Rng;
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

const SOCKET: &str = "RUSTAI_TEST_SOCKET";

/// This program again, as another process that runs one function of this file.
fn spawn(role: &str, socket: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", role, "--ignored", "--nocapture", "--test-threads=1"]).env(SOCKET, socket);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until a process says the word.
fn hears(child: &mut Child, word: &str) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap());
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        if line.contains(word) {
            return;
        }
        line.clear();
    }
    panic!("the process ended before it said {word}");
}

#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn be_a_server() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let broker = Broker::new(BrokerOptions::default()).unwrap();
    let _server = Server::start(broker.clone(), None, ServerOptions::default()).unwrap();
    let _listener = Listener::bind(&broker, Path::new(&socket), ListenerOptions::default()).unwrap();
    println!("\nready");
    std::thread::sleep(Duration::from_secs(600));
}

/// Works until the server is gone: each job must complete exactly once, with its own result.
#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn be_a_client() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let transport = Arc::new(Socket::connect(Path::new(&socket)).unwrap());
    let client = Client::over(transport, ClientOptions { entries: 64, ..ClientOptions::default() }).unwrap();
    println!("\nready");
    let outcome = work(&client, Instant::now() + Duration::from_secs(600));
    assert!(matches!(outcome, Err(QueueError::Gone)), "{outcome:?}");
    println!("\ngone");
}

/// Jobs of all kinds until `until`; how many.
fn work(client: &Client, until: Instant) -> Result<u64, QueueError> {
    let mut jobs = 0;
    while Instant::now() < until {
        let buffer = client.buffer(64 << 10)?;
        let (x, w) = (buffer.tensor::<f32>(0, &[64, 2])?, buffer.tensor::<f32>(4096, &[64, 32])?);
        let y = buffer.tensor::<f32>(32768, &[32, 2])?;
        let mut batch: Vec<Job> =
            (0..8).map(|i| Job::echo(Duration::from_micros(i * 50), i as i32, 0).user_data(i)).collect();
        batch.push(Job::matmul(&x, &w, &y).user_data(8));
        let pending = client.submit_all(&batch)?;
        for job in pending {
            let expected = if job.user_data() < 8 { job.user_data() as i32 } else { 0 };
            let done = job.wait()?;
            if done.result == -Errno::EOWNERDEAD.raw() {
                continue;
            }
            assert_eq!(done.result, expected, "{done:?}");
            jobs += 1;
        }
        assert_eq!(client.in_flight(), 0);
    }
    Ok(jobs)
}

fn kill(mut child: Child) {
    // `kill` sends SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
}

fn rounds(default: u32) -> u32 {
    std::env::var("RUSTAI_DEATH_ROUNDS").map_or(default, |text| text.parse().expect("a number of rounds"))
}

/// Waits until the server knows of `clients` clients only, none of which has a job or a buffer left over.
fn settles(socket: &Path, clients: usize) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let snapshot = Snapshot::ask(socket).unwrap();
        if snapshot.clients.len() == clients {
            return;
        }
        assert!(Instant::now() < until, "clients are left: {snapshot:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `alone`: no other test runs in this process, so that its descriptors can be counted.
fn clients_die(count: u32, alone: bool) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("q");
    let broker = Broker::new(BrokerOptions::default()).unwrap();
    let server = Server::start(broker.clone(), None, ServerOptions::default()).unwrap();
    let listener = Listener::bind(&broker, &socket, ListenerOptions::default()).unwrap();
    let client = Client::over(Arc::new(Socket::connect(&socket).unwrap()), ClientOptions::default()).unwrap();
    // Its first wait has the server keep an eventfd.
    work(&client, Instant::now() + Duration::from_millis(20)).unwrap();
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (mut rng, before) = (Rng::new(7), fds());
    for round in 0..count {
        let mut victims: Vec<Child> = (0..2).map(|_| spawn("deaths::be_a_client", &socket)).collect();
        victims.iter_mut().for_each(|victim| hears(victim, "ready"));
        let jobs = work(&client, Instant::now() + Duration::from_millis(rng.below(20) as u64)).unwrap();
        victims.into_iter().for_each(kill);
        settles(&socket, 1);
        let jobs = jobs + work(&client, Instant::now() + Duration::from_millis(2)).unwrap();
        assert!(jobs > 0, "the client that lives goes on");
        broker.audit().unwrap();
        // The last buffers of the dead are acknowledged by the server's own thread.
        let until = Instant::now() + Duration::from_secs(20);
        while server.stat().mapped > 0 || alone && fds() > before {
            assert!(
                Instant::now() < until,
                "round {round}: {} mapped, {} descriptors of {before}",
                server.stat().mapped,
                fds()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    drop((client, listener, server));
    assert!(broker.is_idle());
}

fn servers_die(count: u32) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("q");
    let mut rng = Rng::new(8);
    for _ in 0..count {
        let mut server = spawn("deaths::be_a_server", &socket);
        hears(&mut server, "ready");
        let mut client = spawn("deaths::be_a_client", &socket);
        hears(&mut client, "ready");
        let own = Client::over(Arc::new(Socket::connect(&socket).unwrap()), ClientOptions::default()).unwrap();
        let killer = std::thread::spawn({
            let after = Duration::from_micros(rng.below(20_000) as u64);
            move || {
                std::thread::sleep(after);
                kill(server);
            }
        });
        let outcome = work(&own, Instant::now() + Duration::from_secs(60));
        assert!(matches!(outcome, Err(QueueError::Gone)), "{outcome:?}");
        assert_eq!(own.in_flight(), 0, "every job has its completion");
        killer.join().unwrap();
        hears(&mut client, "gone");
        assert!(client.wait().unwrap().success());
    }
}

fn both_die(count: u32) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("q");
    let mut rng = Rng::new(9);
    for _ in 0..count {
        let mut server = spawn("deaths::be_a_server", &socket);
        hears(&mut server, "ready");
        let mut client = spawn("deaths::be_a_client", &socket);
        hears(&mut client, "ready");
        std::thread::sleep(Duration::from_micros(rng.below(10_000) as u64));
        let (first, second) = if rng.below(2) == 0 { (server, client) } else { (client, server) };
        kill(first);
        std::thread::sleep(Duration::from_micros(rng.below(300) as u64));
        kill(second);
    }
    // What the dead left does not keep the next one from starting.
    let mut server = spawn("deaths::be_a_server", &socket);
    hears(&mut server, "ready");
    let client = Client::over(Arc::new(Socket::connect(&socket).unwrap()), ClientOptions::default()).unwrap();
    assert_eq!(client.run(&Job::nop()).unwrap().result, 0);
    kill(server);
}

#[test]
fn clients_that_are_killed_leave_nothing() {
    clients_die(rounds(6), false);
}

#[test]
fn servers_that_are_killed_lose_no_completion() {
    servers_die(rounds(6));
}

#[test]
fn both_killed_leave_a_socket_that_can_be_taken_over() {
    both_die(rounds(6));
}

#[test]
#[ignore = "takes minutes: cargo test --release -- --ignored a_thousand_deaths"]
fn a_thousand_deaths() {
    clients_die(rounds(334), true);
    servers_die(rounds(333));
    both_die(rounds(333));
}
