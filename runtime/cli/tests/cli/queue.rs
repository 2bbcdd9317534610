//! `serve`, `submit`, `queue` and `bench queue`, and the clients in other languages.

use super::program::{Rustai, Tiny};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A server with a tiny model, on a socket of its own.
struct Serving {
    child: Child,
    queue: String,
    _tiny: Tiny,
}

impl Serving {
    fn new() -> Self {
        let tiny = Tiny::new();
        let socket = tiny.file("place", "").with_file_name("q.sock");
        let queue = format!("socket:{}", socket.display());
        let mut command = tiny.run("serve -t 1").arg("--queue").arg(&queue).command();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let why = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
            panic!("the server ended: {why}");
        }
        assert_eq!(line, format!("ready {queue}\n"));
        Self { child, queue, _tiny: tiny }
    }

    fn run(&self, line: &str) -> Rustai {
        Rustai::line(line).arg("--queue").arg(&self.queue)
    }

    /// Ctrl-C; its last words.
    fn stop(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0));
        std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // One that was stopped needs no ending.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn jobs_are_submitted_and_answered() {
    let serving = Serving::new();
    assert!(serving.run("submit nop").ok().contains("over the socket"));
    let echoed = serving.run("submit echo --delay 3 --result 7 --count 9 --json").json();
    assert_eq!((&echoed["result"], &echoed["count"], &echoed["transport"]), (&7.into(), &9.into(), &"socket".into()));
    assert!(echoed["microseconds"].as_f64().unwrap() >= 3000.0, "{echoed}");

    let ids = serving._tiny.run("tokenize --ids").arg("hello").ok();
    assert_eq!(serving.run("submit tokenize hello").ok(), ids, "as the command without a server");
    let report = serving.run("submit tokenize hello --json").json();
    assert_eq!(report["tokens"].as_array().unwrap().len(), ids.split_whitespace().count());

    let embedding = serving.run("submit embed hello --json").json();
    assert_eq!(embedding["embedding"].as_array().unwrap().len(), 64);
    assert_eq!(serving.run("submit embed hello").ok().lines().count(), 64);
    let logits = serving.run("submit logits hello --top 3 --json").json();
    let top = logits["top"].as_array().unwrap();
    assert!(top.len() == 3 && top[0][1].as_f64() >= top[1][1].as_f64(), "{logits}");

    // Greedy answers are those of the command without a server.
    let alone = serving._tiny.run("generate --raw --temperature 0 -n 8 --json hello").json();
    let through = serving.run("submit generate --raw --temperature 0 -n 8 --json hello").json();
    assert_eq!(through["tokens"], alone["tokens"]);
    assert_eq!(through["text"], alone["text"]);
    let printed = serving.run("submit generate --raw --temperature 0 -n 8 hello").ok();
    assert_eq!(printed.trim_end_matches('\n'), through["text"].as_str().unwrap().trim_end_matches('\n'));

    let product = serving.run("submit matmul --m 3 --n 50 --k 96 --json").json();
    assert!(product["largest_error"].as_f64().unwrap() < 1e-4, "{product}");
    assert_eq!(product["server_copied_bytes"], 0);
    let words = serving.stop();
    assert!(words.contains("jobs answered"), "{words}");
}

#[test]
fn what_cannot_be_is_refused_with_a_remedy() {
    Rustai::line("submit nop --queue socket:/nonexistent/q").refuses(1, &["/nonexistent/q", "rustai serve"]);
    Rustai::line("submit nop --queue tcp:1").refuses(2, &["tcp:1", "socket:PATH"]);
    Rustai::line("submit nop").env("RUSTAI_TRANSPORT", "pigeon").refuses(2, &["pigeon", "RUSTAI_TRANSPORT"]);
    Rustai::line("serve --no-model --queue pigeon").refuses(2, &["pigeon"]);
    Rustai::line("queue stat --queue socket:/nonexistent/q").refuses(1, &["/nonexistent/q"]);
    Rustai::line("serve --no-model --queue socket:/proc/x/q").refuses(1, &["/proc/x/q"]);
    if !Path::new("/dev/rustai-engine").exists() {
        Rustai::line("serve --no-model --queue device").refuses(1, &["/dev/rustai-engine", "module"]);
    }
    let serving = Serving::new();
    serving.run("submit echo --result -33").refuses(1, &["EDOM"]);
    serving.run("submit echo --delay 5000 --deadline 0.02").refuses(1, &["ETIMEDOUT", "--deadline"]);
    serving.run("submit tokenize").refuses(2, &["empty"]);
    serving.run("serve --no-model").refuses(1, &["another server listens"]);
    let long = "word ".repeat(2000);
    serving.run("submit embed").arg(long).refuses(1, &["EMSGSIZE", "--ctx"]);
}

#[test]
fn a_queue_is_watched() {
    let serving = Serving::new();
    let mut slow = serving.run("submit echo --delay 60000").command();
    let mut slow = slow.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let report = loop {
        let report = serving.run("queue stat --json").json();
        if report["clients"][0]["running"] == 1 {
            break report;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert_eq!((&report["attached"], &report["queue"]), (&true.into(), &serving.queue.as_str().into()));
    assert_eq!(report["clients"][0]["pid"], slow.id());
    let shown = serving.run("queue top -n 2 --interval 0.05").ok();
    assert_eq!(shown.matches("answers nop, echo, tokenize, embed, logits, generate, matmul").count(), 2, "{shown}");
    assert!(shown.contains(&format!("\n{} ", slow.id())), "{shown}");
    // Ctrl-C cancels the job.
    kill_process(Pid::from_child(&slow), Signal::INT).unwrap();
    assert_eq!(slow.wait().unwrap().code(), Some(130));
    // The server learns of the end of a connection a little later.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !serving.run("queue stat").ok().contains("0 clients") {
        assert!(std::time::Instant::now() < until, "the client is still there");
    }
}

#[test]
fn bench_queue_measures_beside_plain_sockets() {
    let report = Rustai::line("bench queue --quick --json").json();
    let rows = report["rows"].as_array().unwrap();
    let named = |what: &str| rows.iter().filter(|row| row["what"].as_str().unwrap().starts_with(what)).count();
    for (what, count) in [
        ("unix socket, 64 bytes", 1),
        ("unix socket, both sides spin", 1),
        ("NOP, both sides sleep", 1),
        ("NOP, one call", 1),
        ("NOP, submitted and waited for", 1),
        ("NOP, both sides spin", 1),
        ("NOPs in batches", 1),
        ("tensor through the queue", 3),
        ("tensor copied by a socket", 3),
    ] {
        assert_eq!(named(what), count, "{what}: {report}");
    }
    assert!(
        rows.iter().all(|row| row["p99_ns"].as_u64() >= row["p50_ns"].as_u64() && row["p50_ns"].as_u64() > Some(0))
    );
    assert_eq!(report["server_copied_bytes"], 0);
}

/// Does what a service manager does: listens, then runs the server with the socket as descriptor 3.
const MANAGER: &str = "
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.bind(sys.argv[1]); s.listen(8)
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ['LISTEN_PID'], os.environ['LISTEN_FDS'] = str(os.getpid()), '1'
os.execv(sys.argv[2], [sys.argv[2], 'serve', '--no-model', '--queue', 'socket'])
";

#[test]
fn a_service_manager_passes_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q");
    let mut command = Command::new("python3");
    command.args(["-c", MANAGER]).arg(&path).arg(env!("CARGO_BIN_EXE_rustai"));
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("ready"), "{line}");
    let queue = format!("socket:{}", path.display());
    let said = Rustai::line("submit nop --queue").arg(&queue).ok();
    kill_process(Pid::from_child(&server), Signal::INT).unwrap();
    assert_eq!(server.wait().unwrap().code(), Some(0));
    assert!(said.contains("over the socket"), "{said}");
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/queue")
}

/// Runs a client and returns what it says.
fn says(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The queues that this host has: a socket always, the device if its module is loaded and nobody serves it yet.
fn with_queues(test: impl Fn(&str)) {
    let serving = Serving::new();
    test(&serving.queue);
    if !Path::new("/dev/rustai").exists() {
        eprintln!("skip: client over the device: there is no /dev/rustai");
        assert!(std::env::var_os("RUSTAI_NO_SKIP").is_none(), "no skip is allowed here");
        return;
    }
    let mut command = Rustai::line("serve --no-model --queue device").command();
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    test("device:/dev/rustai");
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn the_client_in_c() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("client");
    let include = examples().join("../../kernel/include/uapi");
    let built = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-I"])
        .args([&include, &examples().join("client.c")])
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    with_queues(|queue| {
        let said = says(Command::new(&program).arg(queue));
        assert!(said.starts_with("3 x 4 product, right in every element"), "{said}");
    });
    let refused = Command::new(&program).arg("socket:/nonexistent").output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn the_client_in_python() {
    let client = examples().join("client.py");
    with_queues(|queue| {
        let said = says(Command::new("python3").arg(&client).arg(queue));
        assert!(said.starts_with("3 x 4 product, right in every element"), "{said}");
    });
    let serving = Serving::new();
    let mut command = Command::new("python3");
    command.env("PYTHONIOENCODING", "utf-8").args([client.as_os_str(), serving.queue.as_ref()]);
    let said = says(command.args(["generate", "hello"]));
    let alone = serving._tiny.run("generate --temperature 0 -n 64 hello").run();
    if alone.code == Some(0) {
        assert_eq!(said.trim_end(), alone.out.trim_end());
    }
}
