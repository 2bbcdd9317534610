//! One module per subcommand.

mod bench;
mod chat;
mod completions;
mod fit;
mod generate;
mod graph;
mod imatrix;
mod info;
mod inspect;
mod model;
mod perplexity;
mod pull;
mod quantize;
#[cfg(target_os = "linux")]
mod queue;
#[cfg(target_os = "linux")]
mod serve;
mod session;
#[cfg(target_os = "linux")]
mod submit;
mod tokenize;

use crate::{
    args::{Command, GlobalArgs},
    failure::Failure,
};

/// Runs a subcommand.
pub fn run(command: Command, global: GlobalArgs) -> Result<(), Failure> {
    match command {
        Command::Generate(args) => generate::run(&args, global),
        Command::Chat(args) => chat::run(args, global),
        Command::Bench(args) => bench::run(&args, global),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Quantize(args) => quantize::run(&args, global),
        Command::Imatrix(args) => imatrix::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Fit(args) => fit::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Graph(args) => graph::run(&args),
        #[cfg(target_os = "linux")]
        Command::Serve(args) => serve::run(&args),
        #[cfg(target_os = "linux")]
        Command::Submit(args) => submit::run(&args),
        #[cfg(target_os = "linux")]
        Command::Queue(args) => queue::run(&args),
        Command::Completions(args) => completions::completions(&args),
        Command::Man => completions::manual(),
    }
}
