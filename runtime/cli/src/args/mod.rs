//! The command line. Each flag is defined once, here; help texts, completions and the manual page come from it.

mod bench;
mod generate;
mod quantize;
#[cfg(target_os = "linux")]
mod queue;
mod shared;
mod tools;

pub use bench::{BenchArgs, BenchCommand, BenchFormat, KernelsArgs};
pub use generate::{ChatArgs, GenerateArgs};
pub use quantize::{ImatrixArgs, QuantizeArgs};
#[cfg(target_os = "linux")]
pub use queue::{
    BenchQueueArgs, LogitsArgs, MatmulArgs, QueueArgs, QueueTool, QueueToolArgs, ServeArgs, StatArgs, SubmitArgs,
    SubmitGenerateArgs, SubmitJob, TopArgs,
};
pub use shared::{ComputeArgs, DeviceArgs, KvTypeArg, ModelArgs, TextArgs};
pub use tools::{
    CompletionsArgs, FitArgs, GraphArgs, GraphFormat, InfoArgs, InspectArgs, PerplexityArgs, PullArgs, TokenizeArgs,
};

use crate::ui::style;
use clap::{ArgAction, Args, Parser, Subcommand};

/// Runs quantized language models on this computer's processor or GPU.
#[derive(Debug, Parser)]
#[command(name = "rustai", version, styles = style::CLAP, propagate_version = true, after_help = AFTER)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Flags of every subcommand.
    #[command(flatten)]
    pub global: GlobalArgs,
}

/// Lines are short enough for terminals of 80 columns.
const AFTER: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong command line, 130 interrupted.

Environment:
  RUSTAI_CPU           kernels: reference, avx2, avx-vnni, avx512bw, avx512,
                       neon, neon-dotprod, neon-i8mm
  RUSTAI_DEVICE        where models run: auto, cpu, cuda or cuda:N
  RUSTAI_CUDA_KERNELS  folder of compiled kernels
  RUSTAI_CACHE         folder for models and kernels, else XDG_CACHE_HOME/rustai
  RUSTAI_PIP           the pip client that fetches the default model
  RUSTAI_TRANSPORT     device, device:PATH, socket or socket:PATH
  RUSTAI_LOG           log filter such as info or rustai::plan=debug
  HF_TOKEN             token for closed Hugging Face repositories
  HF_ENDPOINT          address of a mirror of the Hugging Face hub
  XDG_STATE_HOME       folder of chat's history
  NO_COLOR             no colours";

/// Flags of every subcommand.
#[derive(Clone, Copy, Debug, Args)]
pub struct GlobalArgs {
    /// Says more on standard error: -v timing and progress, -vv details, -vvv everything.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answers a prompt.
    Generate(GenerateArgs),
    /// Talks with a model, turn by turn.
    Chat(ChatArgs),
    /// Measures tokens per second, after llama-bench's conventions.
    Bench(BenchArgs),
    /// Measures how well a model predicts a text, after llama-perplexity's method.
    Perplexity(PerplexityArgs),
    /// Makes a smaller model file.
    Quantize(QuantizeArgs),
    /// Gathers an importance matrix for `quantize` on a text.
    Imatrix(ImatrixArgs),
    /// Shows the tokens of a text.
    Tokenize(TokenizeArgs),
    /// Shows a model file's metadata and tensors.
    Inspect(InspectArgs),
    /// Shows the processor, the kernels chosen and why, memory and folders.
    Info(InfoArgs),
    /// Shows what of a model would run on which device, and the memory that takes, without loading it.
    Fit(FitArgs),
    /// Fetches a model into the cache.
    Pull(PullArgs),
    /// Prints a model's computation graph.
    Graph(GraphArgs),
    /// Loads a model once and answers other processes' jobs, which hand tensors over without copying them.
    #[cfg(target_os = "linux")]
    Serve(ServeArgs),
    /// Hands one job to a server and prints its answer.
    #[cfg(target_os = "linux")]
    Submit(SubmitArgs),
    /// Shows who uses a server's queue, once or as it changes.
    #[cfg(target_os = "linux")]
    Queue(QueueToolArgs),
    /// Prints a completion script for a shell.
    Completions(CompletionsArgs),
    /// Prints the manual page (roff).
    #[command(hide = true)]
    Man,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_of_a_benchmark_are_lists() {
        let cli = Cli::try_parse_from(["rustai", "bench", "-p", "64,512", "-n", "0", "-t", "1,2", "-r", "3"]).unwrap();
        let Command::Bench(args) = cli.command else { panic!("not bench") };
        assert_eq!((args.n_prompt, args.n_gen, args.threads), (vec![64, 512], vec![0], vec![1, 2]));
        assert_eq!(args.repetitions, 3);
    }

    #[test]
    fn a_benchmark_of_kernels_has_flags_of_its_own() {
        let cli = Cli::try_parse_from(["rustai", "bench", "kernels", "--type", "Q4_0,F16", "--m", "1,16"]).unwrap();
        let Command::Bench(BenchArgs { what: Some(BenchCommand::Kernels(args)), .. }) = cli.command else {
            panic!("not bench kernels")
        };
        assert_eq!((args.types, args.tokens), (vec!["Q4_0".to_owned(), "F16".to_owned()], vec![1, 16]));
    }

    #[test]
    fn wrong_values_are_refused() {
        for line in [
            &["rustai", "generate", "--temperature", "warm", "x"][..],
            &["rustai", "generate", "--file", "a", "x"],
            &["rustai", "generate", "--raw", "--system", "a", "x"],
            &["rustai", "bench", "-o", "xml"],
            &["rustai", "bench", "-p", "64", "kernels"],
            &["rustai", "bench", "kernels", "--m", "0"],
            &["rustai", "bench", "kernels", "--all", "--quick"],
            &["rustai", "serve"],
            &["rustai", "submit"],
            &["rustai", "submit", "matmul", "--m", "0"],
            &["rustai", "submit", "nop", "--deadline", "-1"],
            &["rustai", "queue", "top", "--interval", "0"],
            &["rustai", "generate", "--device", "gpu", "x"],
            &["rustai", "generate", "--gpu-layers", "some", "x"],
            &["rustai", "fit", "--gpu-layers", "-1"],
            &["rustai", "fly"],
        ] {
            assert_eq!(Cli::try_parse_from(line).unwrap_err().exit_code(), 2, "{line:?}");
        }
    }
}
