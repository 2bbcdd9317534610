//! What the numbered examples share: finding a model. The examples are the files beside this folder.

use rustai::{
    Error,
    hub::{Hub, ModelSpec},
};
use std::path::PathBuf;

/// The model that the first command-line argument names (a path, or what [`ModelSpec`] knows), or else the default
/// model. It is fetched on first use and kept in the cache folder.
///
/// # Errors
/// [`Error::Hub`] if there is no such model or it cannot be fetched.
pub fn model() -> Result<PathBuf, Error> {
    let spec: ModelSpec = match std::env::args().nth(1) {
        Some(name) => name.parse()?,
        None => ModelSpec::Default,
    };
    Ok(Hub::from_env()?.resolve(&spec, &mut |progress| {
        // `done` grows several times a second; the name is enough here.
        if progress.done == 0 {
            eprintln!("{:?} {}", progress.stage, progress.file);
        }
    })?)
}
