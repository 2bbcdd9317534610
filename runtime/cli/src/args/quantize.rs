//! Flags of `quantize` and `imatrix`.

use super::ModelArgs;
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, RangedU64ValueParser},
};
use rustai::{
    DType,
    quantize::{Mix, writable},
};
use std::path::PathBuf;

/// Flags of `quantize`.
#[derive(Clone, Debug, Args)]
pub struct QuantizeArgs {
    /// The model: a path, `hf:owner/repo/file.gguf` or `default`; best in F32, F16 or BF16.
    #[arg(value_name = "IN")]
    pub input: String,
    /// The file to write. It appears when it is complete.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// The mix of types.
    #[arg(value_name = "TYPE", ignore_case = true, value_parser = mixes())]
    pub mix: String,
    /// An importance matrix, from `rustai imatrix` or llama-imatrix.
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Takes a model that is quantized already; the errors of both add up.
    #[arg(long)]
    pub allow_requantize: bool,
    /// Gives every matrix the type of the mix's name, but for rows that do not divide into its blocks.
    #[arg(long)]
    pub pure: bool,
    /// Type of the token embedding.
    #[arg(long, value_name = "TYPE", ignore_case = true, value_parser = types())]
    pub token_embedding_type: Option<String>,
    /// Type of the output matrix, or of the embedding that serves as it.
    #[arg(long, value_name = "TYPE", ignore_case = true, value_parser = types())]
    pub output_tensor_type: Option<String>,
    /// Threads; 0 means one per core.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Shows what would become of each tensor, and writes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `imatrix`.
#[derive(Clone, Debug, Args)]
pub struct ImatrixArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text; `-` is standard input. The more it resembles what the model will be used for, the better.
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// The file to write. Ctrl-C has it hold what the chunks so far gave.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Tokens per chunk.
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = at_least(2))]
    pub ctx: usize,
    /// Stops after so many chunks; without it, the whole text.
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub chunks: Option<usize>,
    /// Threads; 0 means one per core.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
}

fn at_least(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..)
}

fn mixes() -> PossibleValuesParser {
    let short = ["Q3_K", "Q4_K", "Q5_K"].map(|name| PossibleValue::new(name).hide(true));
    Mix::all().map(|mix| PossibleValue::new(mix.name())).chain(short).collect::<Vec<_>>().into()
}

fn types() -> PossibleValuesParser {
    writable().map(|dtype| PossibleValue::new(dtype.name())).collect::<Vec<_>>().into()
}

impl QuantizeArgs {
    /// The types that names on the command line stand for.
    pub fn dtype(name: Option<&String>) -> Option<DType> {
        writable().find(|dtype| name.is_some_and(|name| dtype.name().eq_ignore_ascii_case(name)))
    }
}
