//! Flags of the smaller subcommands.

use super::{ComputeArgs, DeviceArgs, KvTypeArg, ModelArgs, TextArgs};
use clap::{Args, ValueEnum};
use clap_complete::Shell;
use rustai::model::LoadOptions;
use std::path::PathBuf;

/// Flags of `perplexity`.
#[derive(Clone, Debug, Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Tokens per chunk; the second half of each chunk is scored.
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    pub ctx: usize,
    /// Stops after so many chunks; without it, the whole text.
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// Most tokens in one step.
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    pub batch_size: usize,
    /// How keys and values are kept.
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = KvTypeArg::F16)]
    pub kv_type: KvTypeArg,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Threads; 0 means one per core.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Prints one JSON object at the end.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `fit`.
#[derive(Clone, Debug, Args)]
pub struct FitArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Sequences of full length that the cache holds.
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub sequences: usize,
    /// Most tokens in one step.
    #[arg(short, long, value_name = "N", default_value_t = LoadOptions::default().max_batch)]
    pub batch_size: usize,
    /// Most rows of logits in one step, and so most sequences that run at once; never less than --sequences.
    #[arg(long, value_name = "N", default_value_t = LoadOptions::default().max_outputs)]
    pub outputs: usize,
    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `tokenize`.
#[derive(Clone, Debug, Args)]
pub struct TokenizeArgs {
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Leaves out the BOS token that the file may ask for.
    #[arg(long)]
    pub no_bos: bool,
    /// Takes special tokens written in the text (`<|im_start|>`) as ordinary text.
    #[arg(long)]
    pub no_special: bool,
    /// Prints the ids only, on one line.
    #[arg(long, conflicts_with = "json")]
    pub ids: bool,
    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// A path, `hf:owner/repo/file.gguf` or `default`.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub file: Option<String>,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Leaves out the list of tensors.
    #[arg(long)]
    pub no_tensors: bool,
    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `info`.
#[derive(Clone, Debug, Args)]
pub struct InfoArgs {
    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `pull`.
#[derive(Clone, Debug, Args)]
pub struct PullArgs {
    /// `hf:owner/repo/file.gguf` or `default`.
    #[arg(value_name = "MODEL", default_value = "default")]
    pub model: String,
}

/// Flags of `graph`.
#[derive(Clone, Debug, Args)]
pub struct GraphArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Context that the plan is made for; 0 means what the file says, but at most 4096.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub ctx: usize,
    /// How the graph is printed.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = GraphFormat::Text)]
    pub format: GraphFormat,
    /// Writes to a file instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Shows the planned kernel calls and their memory instead of the graph; as text only.
    #[arg(long)]
    pub plan: bool,
}

/// Formats of `graph`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// One line per operation.
    Text,
    /// Graphviz.
    Dot,
    /// A picture for browsers.
    Svg,
}

/// Flags of `completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: Shell,
}
