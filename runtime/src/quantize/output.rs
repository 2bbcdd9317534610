//! Where a result goes: a file that is whole or as it was before.
//!
//! [`Output`] is made before the work begins, so that a place where nothing can be written is found at once and not after
//! hours. Until the result is whole its file has no name, so that no end of the process leaves a part of it behind; file
//! systems that know no such files get a hidden one, which is removed unless a signal ends the process at once. It must never
//! replace what is no regular file, nor what the result is made from.

use super::QuantizeError;
use crate::gguf::WriteError;
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};
use std::{
    ffi::OsString,
    fs::{self, File, FileType, Metadata, Permissions},
    io::{self, BufWriter, Write},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// Links that may follow one another, as in the kernel.
const MOST_LINKS: usize = 40;

/// Permissions of new files, before the system takes away what the user's mask says.
const USUAL_MODE: u32 = 0o666;

/// A place for a result, and the file that becomes it.
#[derive(Debug)]
pub struct Output {
    /// As the caller named it.
    path: PathBuf,
    /// The same, with symbolic links resolved: a link stays a link.
    target: PathBuf,
    part: Part,
}

/// The file before it is whole.
#[derive(Debug)]
enum Part {
    Nameless(File),
    Hidden(NamedTempFile),
}

impl Output {
    /// Takes the place, without touching what is there. A file that exists keeps its permissions when it is replaced.
    ///
    /// # Errors
    /// [`QuantizeError::SameFile`] if it is one of `inputs`, [`QuantizeError::NotReplaceable`] if it is a folder, a device, a
    /// pipe or a socket, [`QuantizeError::Output`] if nothing can be written there.
    pub fn create(path: &Path, inputs: &[&Path]) -> Result<Self, QuantizeError> {
        let failed = |source| QuantizeError::Output { path: path.to_owned(), source };
        let refused = |kind| QuantizeError::NotReplaceable { path: path.to_owned(), kind };
        // The last component of `folder/` is no file, whether it exists or not.
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(refused("a folder"));
        }
        // The system follows links here, and tells if it refuses to.
        let (target, mode) = match fs::metadata(path) {
            Ok(found) if !found.is_file() => return Err(refused(kind(found.file_type()))),
            Ok(found) => {
                if inputs.iter().any(|input| fs::metadata(input).is_ok_and(|input| is_same(&input, &found))) {
                    return Err(QuantizeError::SameFile { path: path.to_owned() });
                }
                (fs::canonicalize(path).map_err(failed)?, Some(found.mode() & 0o777))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (follow(path).map_err(failed)?, None),
            Err(error) => return Err(failed(error)),
        };
        let part = Part::beside(&target).map_err(failed)?;
        if let Some(mode) = mode {
            part.file().set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
        }
        Ok(Self { path: path.to_owned(), target, part })
    }

    /// The place, as the caller named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has `write` write all, then puts the file in its place.
    pub(super) fn fill(
        self,
        write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), QuantizeError>,
    ) -> Result<(), QuantizeError> {
        let Self { path, target, part } = self;
        let failed = |source| QuantizeError::Output { path: path.clone(), source };
        let mut sink = BufWriter::with_capacity(1 << 20, part.file());
        write(&mut sink).map_err(|error| match error {
            QuantizeError::Write(WriteError::Io(source)) => failed(source),
            error => error,
        })?;
        sink.flush().map_err(failed)?;
        drop(sink);
        part.put(&target).map_err(failed)
    }
}

impl Part {
    /// On the file system of `target`.
    fn beside(target: &Path) -> io::Result<Self> {
        let unnamed = match nameless(folder_of(target)) {
            Ok(file) => file,
            // Paths and permissions are looked at before this is told.
            Err(Errno::OPNOTSUPP) => return Self::hidden(target),
            Err(error) => return Self::hidden(target).map_err(|_| error.into()),
        };
        // Proof that such a file can get a name here, before the work rather than after it.
        let proof = nameless(folder_of(target)).map(|empty| link_beside(&empty, target));
        if matches!(proof, Ok(Ok(_))) { Ok(Self::Nameless(unnamed)) } else { Self::hidden(target) }
    }

    fn hidden(target: &Path) -> io::Result<Self> {
        let usual = Permissions::from_mode(USUAL_MODE);
        let file = tempfile::Builder::new()
            .prefix(&hidden_prefix(target))
            .permissions(usual)
            .tempfile_in(folder_of(target))
            .map_err(without_path)?;
        Ok(Self::Hidden(file))
    }

    fn file(&self) -> &File {
        match self {
            Self::Nameless(file) => file,
            Self::Hidden(file) => file.as_file(),
        }
    }

    /// Gives it its name.
    fn put(self, target: &Path) -> io::Result<()> {
        match self {
            Self::Nameless(file) => match link(&file, target) {
                // No call names a file in the place of another, so that it gets a hidden name for a moment.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    link_beside(&file, target)?.persist(target).map(drop).map_err(|error| error.error)
                }
                done => done,
            },
            Self::Hidden(file) => file.persist(target).map(drop).map_err(|error| error.error),
        }
    }
}

/// An empty file in `folder` that has no name yet.
fn nameless(folder: &Path) -> Result<File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::from_raw_mode(USUAL_MODE))?.into())
}

/// Gives a nameless file a name that nobody has (open(2), `O_TMPFILE`).
fn link(file: &File, name: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, open, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// Gives a nameless file a hidden name, which it loses again unless it is persisted.
fn link_beside(file: &File, target: &Path) -> io::Result<NamedTempFile<()>> {
    let named =
        tempfile::Builder::new().prefix(&hidden_prefix(target)).make_in(folder_of(target), |name| link(file, name));
    named.map_err(without_path)
}

fn hidden_prefix(target: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(target.file_name().unwrap_or_default());
    prefix.push(".partial-");
    prefix
}

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The kind of an error alone: the hidden name, of which the message speaks, means nothing to users.
fn without_path(error: io::Error) -> io::Error {
    error.kind().into()
}

/// Where a path that does not exist leads; it may be a link to such a path.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(next) => path = folder_of(&path).join(next),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many symbolic links follow one another"))
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

fn kind(file: FileType) -> &'static str {
    match file {
        file if file.is_dir() => "a folder",
        file if file.is_fifo() => "a pipe",
        file if file.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn fill(output: Output, text: &str) -> Result<(), QuantizeError> {
        output.fill(|sink| sink.write_all(text.as_bytes()).map_err(|error| WriteError::Io(error).into()))
    }

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_file_appears_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        for text in ["first", "second"] {
            let before = fs::read(&path).ok();
            let output = Output::create(&path, &[]).unwrap();
            output
                .fill(|sink| {
                    sink.write_all(text.as_bytes()).and_then(|()| sink.flush()).unwrap();
                    assert_eq!(fs::read(&path).ok(), before, "it is as it was");
                    Ok(())
                })
                .unwrap();
            assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names(folder.path())), (text, vec!["out".into()]));
        }
        let output = Output::create(&path, &[]).unwrap();
        output.fill(|_| Err(QuantizeError::Cancelled)).unwrap_err();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names(folder.path())), ("second", vec!["out".into()]));
    }

    #[test]
    fn file_systems_without_nameless_files_are_served_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let hidden = || Output { path: path.clone(), target: path.clone(), part: Part::hidden(&path).unwrap() };
        drop(hidden());
        assert_eq!(names(folder.path()), [""; 0]);
        fill(hidden(), "first").unwrap();
        fill(hidden(), "second").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names(folder.path())), ("second", vec!["out".into()]));
    }

    #[test]
    fn links_stay_and_what_they_lead_to_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("far")).unwrap();
        symlink("far/file", at("first")).unwrap();
        symlink("first", at("second")).unwrap();
        for text in ["where nothing was", "where a file was"] {
            fill(Output::create(&at("second"), &[]).unwrap(), text).unwrap();
            assert_eq!(fs::read_to_string(at("far/file")).unwrap(), text);
        }
        assert_eq!(names(folder.path()), ["far", "first", "second"]);
        assert_eq!(names(&at("far")), ["file"]);
        assert!(fs::symlink_metadata(at("first")).unwrap().is_symlink());
        symlink("round", at("round")).unwrap();
        assert!(matches!(Output::create(&at("round"), &[]), Err(QuantizeError::Output { .. })));
    }

    #[test]
    fn permissions_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::write(&old, "").unwrap();
        for kept in [0o600, 0o664, 0o755] {
            fs::set_permissions(&old, Permissions::from_mode(kept)).unwrap();
            fill(Output::create(&old, &[]).unwrap(), "").unwrap();
            assert_eq!(mode(&old), kept);
        }
        fs::write(folder.path().join("usual"), "").unwrap();
        fill(Output::create(&new, &[]).unwrap(), "").unwrap();
        assert_eq!(mode(&new), mode(&folder.path().join("usual")));
    }

    #[test]
    fn what_is_no_file_or_an_input_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        rustix::fs::mkfifoat(CWD, at("pipe"), Mode::from_raw_mode(0o600)).unwrap();
        symlink("pipe", at("to pipe")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, what) in [
            ("pipe", "a pipe"),
            ("to pipe", "a pipe"),
            ("folder", "a folder"),
            ("none/", "a folder"),
            ("..", "a folder"),
            ("socket", "a socket"),
        ] {
            let error = Output::create(&at(name), &[]).unwrap_err();
            assert!(matches!(error, QuantizeError::NotReplaceable { kind, .. } if kind == what), "{name}: {error}");
        }
        assert!(fs::metadata(at("pipe")).unwrap().file_type().is_fifo());
        fs::write(at("input"), "kept").unwrap();
        symlink("input", at("to input")).unwrap();
        for name in ["input", "to input", "folder/../input"] {
            let error = Output::create(&at(name), &[&at("none"), &at("input")]).unwrap_err();
            assert!(matches!(error, QuantizeError::SameFile { .. }), "{name}: {error}");
        }
        assert_eq!(fs::read_to_string(at("input")).unwrap(), "kept");
    }

    #[test]
    fn failures_name_the_output_and_no_hidden_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none/out");
        let error = Output::create(&path, &[]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{} cannot be written: No such file", path.display())), "{error}");
        let path = folder.path().join("out");
        let full = |_: &mut BufWriter<&File>| Err(WriteError::Io(io::ErrorKind::StorageFull.into()).into());
        let error = Output::create(&path, &[]).unwrap().fill(full).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{} cannot be written: no storage space", path.display())), "{error}");
        assert!(!error.contains("partial"), "{error}");
    }
}
