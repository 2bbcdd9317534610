//! Files of the Hugging Face hub, through `hf-hub`.
//!
//! `hf-hub` downloads into a staging folder of its own layout, where an interrupted download is taken up again. From
//! there a file is renamed into `models/hf/` once its size, and its digest where the hub tells one, were checked.

use super::{
    Hub, HubError, OnProgress, Progress, Stage,
    cache::{FetchLock, copy_digest},
};
use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError},
};
use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

pub(super) fn fetch(
    hub: &Hub,
    repo: &str,
    revision: Option<&str>,
    file: &str,
    progress: OnProgress<'_>,
) -> Result<PathBuf, HubError> {
    let folder = match revision {
        Some(revision) => hub.models_dir().join("hf").join(format!("{repo}@{revision}")),
        None => hub.models_dir().join("hf").join(repo),
    };
    let target = folder.join(file);
    if target.is_file() {
        return Ok(target);
    }
    let _lock = FetchLock::acquire(&folder, &file.replace('/', "+"), progress)?;
    if target.is_file() {
        return Ok(target);
    }
    let staging = hub.cache_dir().join("hf-staging");
    let revision = revision.unwrap_or("main").to_owned();
    let mut size = 0;
    let pointer = ApiBuilder::from_cache(Cache::new(staging.clone()))
        .with_endpoint_from_env()
        .with_token(token())
        .with_retries(2)
        .build()
        .and_then(|api| {
            let repo = api.repo(Repo::with_revision(repo.to_owned(), RepoType::Model, revision));
            let report = Report { file, size: &mut size, done: 0, progress: &mut *progress };
            repo.download_with_progress(file, report)
        })
        .map_err(|error| explain(error, file, &target, &staging, size))?;
    let io = |action| {
        let path = pointer.clone();
        move |source| HubError::Io { action, path, source }
    };
    let blob = fs::canonicalize(&pointer).map_err(io("find"))?;
    check(&blob, file, size, progress)?;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(|source| HubError::writing(file, parent, size, source))?;
    }
    fs::rename(&blob, &target).map_err(io("move"))?;
    // The link in the staging folder now points nowhere.
    let _ = fs::remove_file(&pointer);
    Ok(target)
}

/// Checks a download against its size and, for large files, whose tag is their SHA-256, its digest.
fn check(blob: &Path, file: &str, size: u64, progress: OnProgress<'_>) -> Result<(), HubError> {
    let io = |source| HubError::Io { action: "read", path: blob.to_owned(), source };
    let total = Some(size);
    let (bytes, found) = copy_digest(File::open(blob).map_err(io)?, io::sink(), u64::MAX, |done| {
        progress(Progress { file, stage: Stage::Checking, done, total });
    })
    .map_err(io)?
    .map_err(io)?;
    let tag = blob.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let has_digest = tag.len() == 64 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    if bytes != size || (has_digest && tag != found) {
        let _ = fs::remove_file(blob);
        let expected = format!("{} of {size} bytes", if has_digest { &tag } else { "any" });
        return Err(HubError::Digest { file: file.to_owned(), expected, found, bytes });
    }
    Ok(())
}

fn token() -> Option<String> {
    if let Ok(token) = env::var("HF_TOKEN") {
        return Some(token).filter(|token| !token.is_empty());
    }
    // `hf-hub` insists on a home folder.
    env::var_os("HF_HOME").or_else(|| env::var_os("HOME")).and_then(|_| Cache::from_env().token())
}

trait EndpointFromEnv {
    fn with_endpoint_from_env(self) -> Self;
}

impl EndpointFromEnv for ApiBuilder {
    /// `HF_ENDPOINT` names a mirror.
    fn with_endpoint_from_env(self) -> Self {
        match env::var("HF_ENDPOINT") {
            Ok(endpoint) if !endpoint.is_empty() => self.with_endpoint(endpoint),
            _ => self,
        }
    }
}

fn explain(error: ApiError, file: &str, target: &Path, staging: &Path, size: u64) -> HubError {
    match error {
        ApiError::IoError(source) => HubError::writing(file, staging, size, source),
        ApiError::TooManyRetries(inner) => explain(*inner, file, target, staging, size),
        error => HubError::HuggingFace { file: file.to_owned(), path: target.to_owned(), detail: error.to_string() },
    }
}

struct Report<'a, 'b> {
    file: &'a str,
    size: &'a mut u64,
    done: u64,
    progress: &'a mut (dyn FnMut(Progress<'_>) + 'b),
}

impl hf_hub::api::Progress for Report<'_, '_> {
    fn init(&mut self, size: usize, _: &str) {
        *self.size = size as u64;
        self.done = 0;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        let (file, done) = (self.file, self.done);
        (self.progress)(Progress { file, stage: Stage::Downloading, done, total: Some(*self.size) });
    }

    fn finish(&mut self) {}
}
