//! `graph`: a model's computation graph or plan, as text, DOT or SVG.

use crate::{args::GraphArgs, failure::Failure};

/// Prints it.
pub fn run(args: &GraphArgs) -> Result<(), Failure> {
    let _ = args;
    Ok(())
}
