//! Round trips of a tensor between two processes through ways that are not rustai's, for `scripts/compare_queue.py`.
//!
//!     queue-peers PEER BYTES TRIPS
//!
//! starts itself once more as the other side, sends a tensor of BYTES bytes and gets one of the same size back, TRIPS times
//! after a tenth as many that warm up, and prints `{"p50_ns", "p99_ns", "samples"}`. The other side reads the first and the last
//! byte of what it got and answers with them, which is checked: what `rustai bench queue` does. Both sides keep their tensors
//! between trips, and ways that copy are spared any copy that their interface does not ask for.
//!
//! | PEER | is |
//! |---|---|
//! | `http` | reqwest and axum, HTTP/1.1 over TCP, the tensor as the body |
//! | `grpc` | tonic, a unary call over TCP with one field of bytes, windows as large as the tensor |
//! | `iceoryx2` | two publish-subscribe services, both sides spin |
//! | `iceoryx2-events` | the same, both sides sleep on iceoryx2's events |

mod grpc;
mod http;
mod iceoryx;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    time::Instant,
};

pub type Failure = Box<dyn std::error::Error>;

/// Puts the mark of a trip at both ends of a tensor.
pub fn mark(tensor: &mut [u8], mark: u8) {
    if let [first, .., last] = tensor {
        (*first, *last) = (mark, !mark);
    }
}

/// Whether a tensor has the mark.
pub fn is_marked(tensor: &[u8], bytes: usize, mark: u8) -> Result<(), Failure> {
    if tensor.len() == bytes && tensor.first() == Some(&mark) && tensor.last() == Some(&!mark) {
        return Ok(());
    }
    Err("the tensor that came back is another".into())
}

/// Times trips; each is told its number.
pub fn measure(trips: usize, mut trip: impl FnMut(u8) -> Result<(), Failure>) -> Result<(), Failure> {
    for number in 0..trips.div_ceil(10) {
        trip(number as u8)?;
    }
    let mut times = Vec::with_capacity(trips);
    for number in 0..trips {
        let start = Instant::now();
        trip(number as u8)?;
        times.push(start.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!("{}", serde_json::json!({ "p50_ns": at(50), "p99_ns": at(99), "samples": trips }));
    Ok(())
}

/// The other side, as a process of its own that ends with this value.
struct Other {
    child: Child,
    /// What it said when it was ready.
    address: String,
}

impl Other {
    fn start(peer: &str, bytes: usize) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", peer, &bytes.to_string(), &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        let read = child.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut address));
        let other = Self { child, address: address.trim().to_owned() };
        match read {
            Some(Ok(1..)) => Ok(other),
            _ => Err("the other side did not start".into()),
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tells the other process that this one is ready.
pub fn ready(address: impl std::fmt::Display) -> Result<(), Failure> {
    println!("{address}");
    Ok(std::io::stdout().flush()?)
}

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", "http", ..] => http::serve(),
        ["serve", "grpc", bytes, _] => grpc::serve(bytes.parse()?),
        ["serve", peer, bytes, name] => iceoryx::serve(peer == "iceoryx2-events", bytes.parse()?, name),
        [peer @ ("http" | "grpc" | "iceoryx2" | "iceoryx2-events"), bytes, trips] => {
            let (bytes, trips) = (bytes.parse()?, trips.parse()?);
            let other = Other::start(peer, bytes)?;
            match peer {
                "http" => http::measure(&other.address, bytes, trips),
                "grpc" => grpc::measure(&other.address, bytes, trips),
                _ => iceoryx::measure(peer == "iceoryx2-events", bytes, trips),
            }
        }
        _ => Err("give a peer (http, grpc, iceoryx2 or iceoryx2-events), bytes and trips".into()),
    }
}
