//! The other process of a measurement of the queue, and round trips to it over a plain socket.
//!
//! `benches/queue.rs` takes this file in, too, since a benchmark cannot import from a program. So it uses nothing of the program.

use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Bytes of the tensors that go there and back.
pub const SIZES: [usize; 3] = [4 << 10, 1 << 20, 64 << 20];
/// Jobs of a batch.
pub const BATCH: usize = 256;
/// Microseconds that `rustai serve` spins if nobody says otherwise.
pub const SPIN: u64 = 50;

/// Another process of the program, ended when this is dropped.
pub struct Peer {
    child: Child,
    /// Where it listens.
    pub path: PathBuf,
}

impl Peer {
    /// Sends back what comes by a plain socket.
    pub fn echo(program: &Path, path: PathBuf, spins: bool) -> io::Result<Self> {
        let mut words = vec!["bench".into(), "queue".into(), "--peer".into(), path.clone().into()];
        words.extend(spins.then(|| "--peer-spins".into()));
        Self::spawn(program, &words, path)
    }

    /// A server without a model, whose connections spin for so many microseconds before they sleep.
    pub fn server(program: &Path, path: PathBuf, spin: u64) -> io::Result<Self> {
        let words = ["serve", "--no-model", "--spin", &spin.to_string(), "--queue"].map(OsString::from);
        let mut queue = OsString::from("socket:");
        queue.push(&path);
        Self::spawn(program, &[&words[..], &[queue]].concat(), path)
    }

    fn spawn(program: &Path, words: &[OsString], path: PathBuf) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        // It says a line when it listens.
        let mut line = String::new();
        let stdout = child.stdout.take();
        let read = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut line));
        let peer = Self { child, path };
        match read {
            Some(Ok(1..)) => Ok(peer),
            _ => Err(io::Error::other(
                "the other process ended before it listened: run `rustai serve --queue socket` to see why",
            )),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // One that ended by itself needs no ending.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a message and reads its echo. The message starts with its length.
pub fn ping(socket: &mut UnixStream, message: &mut [u8]) -> io::Result<()> {
    let len = (message.len() as u64).to_ne_bytes();
    message[..len.len()].copy_from_slice(&len);
    send(socket, message)?;
    receive(socket, message, 0)
}

/// As `write_all`, also on a socket that does not block: then it spins.
pub fn send(socket: &mut UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// As `read_exact` from byte `filled` on, likewise.
pub fn receive(socket: &mut UnixStream, into: &mut [u8], mut filled: usize) -> io::Result<()> {
    while filled < into.len() {
        match socket.read(&mut into[filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(received) => filled += received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
