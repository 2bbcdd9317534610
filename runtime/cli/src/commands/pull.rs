//! `pull`: fetches a model into the cache. The other subcommands do the same on first use.

use crate::{
    args::PullArgs,
    failure::Failure,
    ui::{Printer, Progress},
};
use rustai::hub::{Hub, ModelSpec, Stage};
use std::path::PathBuf;

/// Fetches a model and prints where it lies.
pub fn run(args: &PullArgs) -> Result<(), Failure> {
    let path = fetch(&args.model)?;
    Printer::default().line(path.display())
}

/// Where a model's file lies, after fetching it if need be, with a progress bar.
pub fn fetch(spec: &str) -> Result<PathBuf, Failure> {
    if spec.is_empty() {
        return Err(Failure::usage("the name of the model is empty")
            .help("give a path, hf:owner/repo/file.gguf or `default`; a variable on the command line may not be set"));
    }
    let spec: ModelSpec = spec.parse().map_err(|error| Failure::from(error).into_usage())?;
    // A path needs no cache folder, so it works where there is none.
    let hub = match spec {
        ModelSpec::Path(_) => Hub::new(""),
        _ => Hub::from_env()?,
    };
    let bar = Progress::bytes("fetching");
    let path = hub.resolve(&spec, &mut |progress| {
        let verb = match progress.stage {
            Stage::Waiting => "waiting for another process to fetch",
            Stage::Downloading => "fetching",
            Stage::Checking => "checking",
            _ => "preparing",
        };
        bar.say(format!("{verb} {}", progress.file));
        bar.set(progress.done, progress.total);
    })?;
    Ok(path)
}
