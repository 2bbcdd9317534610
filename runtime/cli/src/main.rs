//! The command-line program `rustai`: a thin door to the [`rustai`] library.
//!
//! It owns the flags ([`args`]), what people see ([`ui`]), how failures leave the process ([`failure`]) and one module
//! per subcommand ([`commands`]). It must never hold logic that another door (a server, a queue) would need: that
//! belongs to the library.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod compute;
mod failure;
mod input;
mod interrupt;
mod logging;
mod ui;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let outcome = logging::start(cli.global.verbose)
        .and_then(|()| interrupt::install())
        .and_then(|()| commands::run(cli.command, cli.global));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
