//! Flags of `bench`; names and meanings follow llama-bench.

use clap::{Args, ValueEnum};

/// Flags of `bench`. Several values, separated by commas, give a row for each combination.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Models, each a path, `hf:owner/repo/file.gguf` or `default`.
    #[arg(short, long = "model", value_name = "MODEL", value_delimiter = ',', default_value = "default")]
    pub models: Vec<String>,
    /// Prompt lengths in tokens; 0 skips the prompt row.
    #[arg(short = 'p', long, value_name = "N", value_delimiter = ',', default_value = "512")]
    pub n_prompt: Vec<usize>,
    /// Numbers of tokens to generate; 0 skips the generation row.
    #[arg(short = 'n', long, value_name = "N", value_delimiter = ',', default_value = "128")]
    pub n_gen: Vec<usize>,
    /// Sequences that generate together, one token each in every step.
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "1")]
    pub sequences: Vec<usize>,
    /// Tokens that the cache of each sequence already holds when a measurement starts.
    #[arg(short = 'd', long, value_name = "N", value_delimiter = ',', default_value = "0")]
    pub n_depth: Vec<usize>,
    /// Most tokens of a prompt in one step.
    #[arg(short = 'b', long, value_name = "N", value_delimiter = ',', default_value = "512")]
    pub batch_size: Vec<usize>,
    /// Threads; 0 means one per core.
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "0")]
    pub threads: Vec<usize>,
    /// Measurements per row.
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: u32,
    /// Leaves out the run before the measurements.
    #[arg(long)]
    pub no_warmup: bool,
    /// How results are printed.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = BenchFormat::Md)]
    pub output: BenchFormat,
    /// The same as `--output json`.
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
}

/// Formats of `bench`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchFormat {
    /// A Markdown table.
    Md,
    /// An array of objects.
    Json,
    /// Comma-separated values.
    Csv,
}
