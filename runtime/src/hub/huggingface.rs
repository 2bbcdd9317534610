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
    let mut builder = ApiBuilder::from_cache(Cache::new(staging.clone())).with_token(token()).with_retries(2);
    if let Some(endpoint) = &hub.hf_endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let repo = Repo::with_revision(repo.to_owned(), RepoType::Model, revision);
    let staged = staging.join(repo.folder_name());
    let pointer = builder
        .build()
        .and_then(|api| {
            let repo = api.repo(repo);
            let report = Report { file, size: &mut size, done: 0, progress: &mut *progress };
            repo.download_with_progress(file, report)
        })
        .map_err(|error| {
            let error = explain(error, file, &target, &staged, size);
            if matches!(error, HubError::DiskFull { .. } | HubError::BadPackage { .. }) {
                // Nothing can go on from here, and what is there takes space.
                let _ = fs::remove_dir_all(&staged);
            }
            error
        })?;
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

fn is_of_the_disk(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(kind, StorageFull | QuotaExceeded | PermissionDenied | ReadOnlyFilesystem | NotFound | NotADirectory)
}

fn token() -> Option<String> {
    if let Ok(token) = env::var("HF_TOKEN") {
        return Some(token).filter(|token| !token.is_empty());
    }
    // `hf-hub` insists on a home folder.
    env::var_os("HF_HOME").or_else(|| env::var_os("HOME")).and_then(|_| Cache::from_env().token())
}

fn explain(error: ApiError, file: &str, target: &Path, staged: &Path, size: u64) -> HubError {
    let detail = error.to_string();
    match error {
        // A connection that breaks while the file is read is an I/O error too.
        ApiError::IoError(source) if is_of_the_disk(source.kind()) => HubError::writing(file, staged, size, source),
        ApiError::TooManyRetries(inner) => explain(*inner, file, target, staged, size),
        ApiError::InvalidResume => HubError::BadPackage { file: file.to_owned(), detail },
        _ => HubError::HuggingFace { file: file.to_owned(), path: target.to_owned(), detail },
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

#[cfg(test)]
mod tests {
    use super::{super::ModelSpec, *};
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpListener,
        thread,
    };

    /// Answers like the hub, for one file of one repository, with `body` under the tag `etag`.
    fn serve(body: &'static [u8], etag: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
                let request = lines.next().unwrap_or_default();
                let range = lines.by_ref().take_while(|line| !line.is_empty()).find(|line| line.starts_with("range: "));
                let range = range.unwrap_or("range: bytes=0-".into())["range: bytes=".len()..].to_owned();
                let (from, to) = range.split_once('-').unwrap();
                let from: usize = from.parse().unwrap();
                let to = to.parse().map_or(body.len(), |to: usize| to + 1);
                if !request.starts_with("GET /o/r/resolve/main/d/f.gguf ") {
                    write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
                    continue;
                }
                write!(
                    stream,
                    "HTTP/1.1 206 Partial Content\r\netag: \"{etag}\"\r\nx-repo-commit: c0ffee\r\n\
                     content-range: bytes {from}-{}/{}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    to - 1,
                    body.len(),
                    to - from
                )
                .unwrap();
                stream.write_all(&body[from..to]).unwrap();
            }
        });
        address
    }

    fn fetch_from(endpoint: String, spec: &str) -> (tempfile::TempDir, Result<PathBuf, HubError>) {
        let folder = tempfile::tempdir().unwrap();
        let hub = Hub { hf_endpoint: Some(endpoint), ..Hub::new(folder.path()) };
        let spec: ModelSpec = spec.parse().unwrap();
        let result = hub.resolve(&spec, &mut |_| {});
        (folder, result)
    }

    #[test]
    fn a_file_of_the_hub_is_fetched_and_checked() {
        // The FIPS 180-4 example again.
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        let endpoint = serve(b"abc", digest);
        let (folder, path) = fetch_from(endpoint, "hf:o/r/d/f.gguf");
        let path = path.unwrap();
        assert_eq!(path, folder.path().join("models/hf/o/r/d/f.gguf"));
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        // Once it is there, the hub is not asked.
        let hub = Hub { hf_endpoint: Some("http://127.0.0.1:1".into()), ..Hub::new(folder.path()) };
        assert_eq!(hub.resolve(&"hf:o/r/d/f.gguf".parse().unwrap(), &mut |_| {}).unwrap(), path);
    }

    #[test]
    fn a_file_of_another_digest_is_not_kept() {
        let endpoint = serve(b"abc", "0".repeat(64));
        let (folder, result) = fetch_from(endpoint, "hf:o/r/d/f.gguf");
        assert!(matches!(result, Err(HubError::Digest { bytes: 3, .. })), "{result:?}");
        assert!(!folder.path().join("models/hf/o/r/d/f.gguf").exists());
    }

    #[test]
    fn a_missing_file_and_a_missing_hub_are_told() {
        let (_folder, result) = fetch_from(serve(b"abc", "x".into()), "hf:o/r/other.gguf");
        let error = result.unwrap_err().to_string();
        assert!(error.contains("404") && error.contains("other.gguf"), "{error}");
        let (_folder, result) = fetch_from("http://127.0.0.1:1".into(), "hf:o/r/d/f.gguf");
        assert!(matches!(result, Err(HubError::HuggingFace { .. })), "{result:?}");
    }
}
