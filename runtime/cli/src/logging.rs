//! Log messages of the library, to standard error: warnings, and more if asked for.

use crate::failure::Failure;
use std::io::IsTerminal;
use tracing_subscriber::{EnvFilter, filter::ParseError};

/// Environment variable with filter directives such as `info` or `rustai::plan=debug`; `-v` raises the level instead.
pub const ENVIRONMENT: &str = "RUSTAI_LOG";

/// Starts logging. The variable wins over `-v`.
pub fn start(verbose: u8) -> Result<(), Failure> {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let directives = std::env::var(ENVIRONMENT).ok().filter(|value| !value.is_empty());
    let filter = EnvFilter::try_new(directives.as_deref().unwrap_or(level)).map_err(|error: ParseError| {
        Failure::usage(format!("{ENVIRONMENT}={:?} is no log filter: {error}", directives.unwrap_or_default())).help(
            format!("use a level (error, warn, info, debug, trace) or `target=level` pairs, or unset {ENVIRONMENT}"),
        )
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(verbose > 1)
        .init();
    Ok(())
}
