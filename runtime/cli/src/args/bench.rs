//! Flags of `bench`; names and meanings follow llama-bench.

use super::{DeviceArgs, KvTypeArg};
use clap::{Args, Subcommand, ValueEnum};
use rustai::backend::DeviceChoice;
use std::path::PathBuf;

/// Flags of `bench`. Several values, separated by commas, give a row for each combination.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// Measures something else than models.
    #[command(subcommand)]
    pub what: Option<BenchCommand>,
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
    /// How keys and values are kept.
    #[arg(long, value_name = "TYPE", value_enum, value_delimiter = ',', default_value = "f16")]
    pub kv_type: Vec<KvTypeArg>,
    #[command(flatten)]
    pub device: DeviceArgs,
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

/// What else `bench` measures.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Measures matrix kernels beside the limits of this computer, which the same run measures.
    ///
    /// A product multiplies M rows of activations with a matrix of N rows and K columns. Weights come from memory, or stay in a
    /// cache from product to product. The roof of a product is what bandwidth and arithmetic allow; times are medians.
    Kernels(KernelsArgs),
    /// Measures the tensor queue between two processes, beside plain unix sockets in the same run.
    ///
    /// Round trips of empty jobs, jobs in batches, and tensors of three sizes that stay where they are, where a socket copies
    /// them.
    #[cfg(target_os = "linux")]
    Queue(super::BenchQueueArgs),
}

/// Flags of `bench kernels`.
#[derive(Clone, Debug, Args)]
pub struct KernelsArgs {
    /// Types of weights; without it Q4_0, Q4_K, Q6_K, Q8_0 and F16.
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<String>,
    /// Instruction sets; without it the one that other commands would use.
    #[arg(long = "isa", value_name = "ISA", value_delimiter = ',')]
    pub isas: Vec<String>,
    /// Numbers of tokens (M) [default: 1,4,16,64,512].
    #[arg(long = "m", value_name = "M", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub tokens: Vec<u32>,
    /// Models whose matrices are multiplied, each in memory and in a cache if it fits: 135m, 1b, 8b; without it 1b in memory and
    /// 135m in a cache.
    #[arg(long = "model", value_name = "MODEL", value_delimiter = ',')]
    pub models: Vec<String>,
    /// What multiplies: cpu, cuda, or cuda:N with the GPU's number.
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Cpu)]
    pub device: DeviceChoice,
    /// Every instruction set, type, model and shape that runs here. Takes long.
    #[arg(long, conflicts_with_all = ["types", "isas", "models", "quick"])]
    pub all: bool,
    /// Fewer and shorter measurements: a first impression.
    #[arg(long)]
    pub quick: bool,
    /// Threads; 0 means one per core.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Also draws a roofline picture into this file.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}
