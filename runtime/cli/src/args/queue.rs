//! Flags of `serve`, `submit`, `queue` and `bench queue`.

use super::{ComputeArgs, ModelArgs, TextArgs};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Which queue.
#[derive(Clone, Debug, Default, Args)]
pub struct QueueArgs {
    /// The queue: `device`, `device:PATH`, `socket` or `socket:PATH`. Without it what RUSTAI_TRANSPORT says, else the device
    /// if it serves, else the default socket.
    #[arg(long, value_name = "QUEUE", global = true)]
    pub queue: Option<String>,
}

/// Flags of `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Answers the tensor queue: `device` (the kernel module's), `socket:PATH`, or `socket` for the default path. Without a
    /// value the device if it can be opened, else the default socket. A socket passed by systemd is used if there is one.
    #[arg(long, value_name = "device|socket:PATH", num_args = 0..=1, default_missing_value = "", required = true)]
    pub queue: String,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Answers only what needs no model: nop, echo, matmul.
    #[arg(long, conflicts_with = "model")]
    pub no_model: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Sequences of full length that the cache holds.
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub sequences: u32,
    /// Has a GPU draw the tokens of jobs that ask for no more than temperature, top-k of up to 1024, top-p and min-p. Faster; a seed
    /// gives other tokens than on a CPU.
    #[arg(long)]
    pub device_sampling: bool,
    /// Microseconds that a connection's thread spins for the next message before it sleeps, as long as messages come that soon;
    /// 0 always sleeps.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub spin: u64,
}

/// Flags of `submit`.
#[derive(Clone, Debug, Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    pub queue: QueueArgs,
    /// Gives up after so many seconds: the job is cancelled.
    #[arg(long, value_name = "SECONDS", global = true, value_parser = seconds)]
    pub deadline: Option<f64>,
    /// Prints one JSON object.
    #[arg(long, global = true)]
    pub json: bool,
    /// The job.
    #[command(subcommand)]
    pub job: SubmitJob,
}

/// Jobs of `submit`.
#[derive(Clone, Debug, Subcommand)]
pub enum SubmitJob {
    /// Does nothing, and tells how long that took.
    Nop,
    /// Completes as it is told: for tests of a queue.
    Echo(EchoArgs),
    /// Turns a text into tokens.
    Tokenize(TextArgs),
    /// Turns a text into an embedding: the hidden state behind its last token.
    Embed(TextArgs),
    /// Computes the logits behind a text's last token, and shows the likeliest tokens.
    Logits(LogitsArgs),
    /// Answers a prompt, printed as it comes.
    Generate(SubmitGenerateArgs),
    /// Multiplies two random matrices in shared memory, and checks a part of the result.
    Matmul(MatmulArgs),
}

/// Flags of `submit echo`.
#[derive(Clone, Debug, Args)]
pub struct EchoArgs {
    /// Milliseconds until it completes.
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub delay: u64,
    /// The result; a negative error number fails the job.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub result: i32,
    /// The count.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub count: u32,
}

/// Flags of `submit logits`.
#[derive(Clone, Debug, Args)]
pub struct LogitsArgs {
    #[command(flatten)]
    pub text: TextArgs,
    /// How many of the likeliest tokens are shown.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub top: usize,
}

/// Flags of `submit generate`.
#[derive(Clone, Debug, Args)]
pub struct SubmitGenerateArgs {
    #[command(flatten)]
    pub text: TextArgs,
    /// Most tokens.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// Continues the text as it stands; without it the text is a user's message.
    #[arg(long)]
    pub raw: bool,
    /// The temperature; 0 always takes the likeliest token.
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// The seed; the same seed gives the same answer.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// Flags of `submit matmul`.
#[derive(Clone, Copy, Debug, Args)]
pub struct MatmulArgs {
    /// Rows of the first matrix.
    #[arg(long, value_name = "M", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub m: u32,
    /// Rows of the second matrix.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub n: u32,
    /// Columns of both.
    #[arg(long, value_name = "K", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub k: u32,
}

/// Flags of `queue`.
#[derive(Clone, Debug, Args)]
pub struct QueueToolArgs {
    #[command(flatten)]
    pub queue: QueueArgs,
    /// What to show.
    #[command(subcommand)]
    pub what: QueueTool,
}

/// Subcommands of `queue`.
#[derive(Clone, Debug, Subcommand)]
pub enum QueueTool {
    /// Shows the queue, its server and its clients once.
    Stat(StatArgs),
    /// Shows clients, jobs, bytes and waits as they change, until Ctrl-C.
    Top(TopArgs),
}

/// Flags of `queue stat`.
#[derive(Clone, Copy, Debug, Args)]
pub struct StatArgs {
    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `queue top`.
#[derive(Clone, Copy, Debug, Args)]
pub struct TopArgs {
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub interval: f64,
    /// Ends after so many looks; without it, at Ctrl-C.
    #[arg(short = 'n', long, value_name = "N")]
    pub count: Option<u32>,
}

/// Flags of `bench queue`.
#[derive(Clone, Debug, Args)]
pub struct BenchQueueArgs {
    /// A queue whose server runs already; without it, servers are started on sockets of their own.
    #[arg(long, value_name = "QUEUE")]
    pub queue: Option<String>,
    /// Measures only what a token costs that is generated through the queue, beside the model alone.
    #[arg(short, long, value_name = "MODEL", conflicts_with = "queue")]
    pub model: Option<String>,
    /// Threads of the model; 0 means one per core.
    #[arg(short, long, value_name = "N", default_value_t = 0, requires = "model")]
    pub threads: usize,
    /// Fewer and shorter measurements: a first impression.
    #[arg(long)]
    pub quick: bool,
    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Answers the plain-socket side of the measurements at this path.
    #[arg(long, value_name = "PATH", hide = true)]
    pub peer: Option<PathBuf>,
    /// With `--peer`: spins for messages.
    #[arg(long, hide = true)]
    pub peer_spins: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds > 0.0 && seconds < 1e9 => Ok(seconds),
        _ => Err("give a number of seconds above 0".to_owned()),
    }
}
