//! The cache folder: where it is, who may write to it, and how much space it has.

use super::{HubError, OnProgress, Progress, Stage};
use std::{
    env,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// The user's cache folder: `RUSTAI_CACHE`, else `$XDG_CACHE_HOME/rustai`, else `~/.cache/rustai`. It may not exist yet.
///
/// # Errors
/// [`HubError::NoCacheFolder`] if none of the variables is set.
pub fn cache_dir() -> Result<PathBuf, HubError> {
    from_variables(|name| env::var_os(name)).ok_or(HubError::NoCacheFolder)
}

fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("RUSTAI_CACHE") {
        return Some(folder);
    }
    // The XDG base directory specification tells programs to ignore relative paths here.
    let xdg = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    Some(xdg.or_else(|| Some(set("HOME")?.join(".cache")))?.join("rustai"))
}

/// The sole right to fetch one file; given back when dropped, or by the system if the process dies.
pub(super) struct FetchLock {
    _file: Option<File>,
}

/// How often a waiting process looks again, and a download's size is measured.
pub(super) const POLL: Duration = Duration::from_millis(100);

impl FetchLock {
    /// Waits for the lock of `file` in `folder`, which is made if need be.
    pub(super) fn acquire(folder: &Path, file: &str, progress: OnProgress<'_>) -> Result<Self, HubError> {
        fs::create_dir_all(folder).map_err(|source| HubError::writing(file, folder, 0, source))?;
        let path = folder.join(format!(".{file}.lock"));
        let lock = File::create(&path).map_err(|source| HubError::writing(file, &path, 0, source))?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { _file: Some(lock) }),
                Err(TryLockError::WouldBlock) => {
                    progress(Progress { file, stage: Stage::Waiting, done: 0, total: None });
                    std::thread::sleep(POLL);
                }
                // Without locks (some network file systems) two processes may both fetch; renaming keeps that right.
                Err(TryLockError::Error(error)) => {
                    tracing::debug!(%error, path = %path.display(), "no lock; going on without");
                    return Ok(Self { _file: None });
                }
            }
        }
    }
}

/// Where names of unfinished fetches of `file` begin.
pub(super) fn partial_prefix(file: &str) -> String {
    format!(".{file}.partial-")
}

/// Removes what killed processes left of `file`. The caller holds its lock.
pub(super) fn sweep(folder: &Path, file: &str) {
    let prefix = partial_prefix(file);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::debug!(%error, path = %entry.path().display(), "an unfinished fetch cannot be removed");
        }
    }
}

/// Refuses early what the disk has no space for.
pub(super) fn check_space(folder: &Path, file: &str, needed: u64) -> Result<(), HubError> {
    // A file system that cannot tell is tried.
    let Ok(stat) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    match available < needed {
        true => Err(HubError::DiskFull {
            file: file.to_owned(),
            path: folder.to_owned(),
            needed,
            available: Some(available),
        }),
        false => Ok(()),
    }
}

/// Bytes between two reports of progress: a few reports a second.
const REPORT_BYTES: u64 = 4 << 20;

/// Copies at most `limit` bytes and returns their number and SHA-256 digest in hexadecimal. Errors of the sink come as
/// the inner `Err`, so that a full disk is told apart from a damaged source.
pub(super) fn copy_digest(
    mut source: impl Read,
    mut sink: impl Write,
    limit: u64,
    mut progress: impl FnMut(u64),
) -> io::Result<io::Result<(u64, String)>> {
    use sha2::Digest;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let (mut done, mut told) = (0u64, 0u64);
    while done < limit {
        let room = buffer.len().min(usize::try_from(limit - done).unwrap_or(usize::MAX));
        let read = match source.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..read]);
        if let Err(error) = sink.write_all(&buffer[..read]) {
            return Ok(Err(error));
        }
        done += read as u64;
        if done - told >= REPORT_BYTES {
            told = done;
            progress(done);
        }
    }
    progress(done);
    let digest = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(sink.flush().map(|()| (done, digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_follows_the_environment() {
        let with = |pairs: &'static [(&str, &str)]| {
            from_variables(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.into()))
        };
        assert_eq!(with(&[("RUSTAI_CACHE", "here"), ("HOME", "/h")]), Some("here".into()));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), Some("/x/rustai".into()));
        assert_eq!(with(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")]), Some("/h/.cache/rustai".into()));
        assert_eq!(with(&[("RUSTAI_CACHE", ""), ("HOME", "/h")]), Some("/h/.cache/rustai".into()));
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn the_digest_is_that_of_the_standard() {
        // FIPS 180-4's example for "abc".
        let (bytes, digest) = copy_digest(&b"abc"[..], io::sink(), 100, |_| {}).unwrap().unwrap();
        assert_eq!(bytes, 3);
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_copy_stops_at_its_limit_and_at_a_full_disk() {
        assert_eq!(copy_digest(io::repeat(1), io::sink(), 1_000_000, |_| {}).unwrap().unwrap().0, 1_000_000);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = copy_digest(io::repeat(1), full, 1_000_000, |_| {}).unwrap().unwrap_err();
        assert!(matches!(
            HubError::writing("m.gguf", Path::new("/c"), 9, error),
            HubError::DiskFull { needed: 9, available: None, .. }
        ));
    }

    #[test]
    fn one_at_a_time_holds_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let first = FetchLock::acquire(folder.path(), "m", &mut |_| panic!("nobody else has it")).unwrap();
        let mut first = Some(first);
        let mut waited = 0;
        FetchLock::acquire(folder.path(), "m", &mut |progress| {
            assert_eq!(progress.stage, Stage::Waiting);
            waited += 1;
            first.take();
        })
        .unwrap();
        assert_eq!(waited, 1);
    }
}
