//! Starts the program in an environment of its own and collects what it says.

use rustai_tests::TinyLlama;
use std::{
    ffi::OsStr,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

/// One run of the program.
pub struct Rustai {
    command: Command,
    input: Vec<u8>,
}

/// What a run left behind.
pub struct Ended {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Rustai {
    /// With these arguments. Variables that change the program's behaviour are removed, but not the cache folder, which
    /// all tests share.
    pub fn new<I: IntoIterator<Item: AsRef<OsStr>>>(args: I) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rustai"));
        command.args(args);
        for variable in [
            "RUSTAI_CPU",
            "RUSTAI_CUDA_KERNELS",
            "RUSTAI_DEVICE",
            "RUSTAI_LOG",
            "RUSTAI_PIP",
            "RUSTAI_TRANSPORT",
            "CLICOLOR_FORCE",
        ] {
            command.env_remove(variable);
        }
        Self { command, input: Vec::new() }
    }

    /// With these arguments, separated by blanks.
    pub fn line(args: &str) -> Self {
        Self::new(args.split_whitespace())
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds a variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives it this standard input; otherwise it is empty.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// The command, for tests that need to hold the process.
    pub fn command(self) -> Command {
        self.command
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Ended {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("the built program");
        let mut stdin = child.stdin.take().expect("a pipe");
        // A program that does not read its input may have ended already.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&self.input)));
        let output = child.wait_with_output().expect("an end");
        writer.join().expect("a writer that cannot panic");
        Ended::from(output)
    }

    /// Runs it and expects success; returns standard output.
    pub fn ok(self) -> String {
        let ended = self.run();
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        ended.out
    }

    /// Runs it and expects success; returns the JSON on standard output.
    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).expect("one JSON value")
    }

    /// Runs it and expects this exit code, nothing on standard output, and both lines on standard error, which hold the
    /// given words.
    #[track_caller]
    pub fn refuses(self, code: i32, words: &[&str]) {
        let ended = self.run();
        assert_eq!((ended.code, ended.out.as_str()), (Some(code), ""), "{}", ended.err);
        assert!(ended.err.starts_with("error: ") || ended.err.contains("\nerror: "), "{}", ended.err);
        assert!(ended.err.contains("\nhelp: "), "no remedy: {}", ended.err);
        assert!(!ended.err.contains("panicked"), "{}", ended.err);
        for word in words {
            assert!(ended.err.contains(word), "no {word:?} in: {}", ended.err);
        }
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A small random model in a folder that lives as long as this.
pub struct Tiny {
    folder: TempDir,
    /// The file.
    pub model: PathBuf,
}

impl Tiny {
    /// Writes the default one.
    pub fn new() -> Self {
        Self::of(&TinyLlama::default())
    }

    /// Writes this one.
    pub fn of(model: &TinyLlama) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let model = model.write(folder.path());
        Self { folder, model }
    }

    /// Writes a file beside the model and returns its path.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).expect("space for a small file");
        path
    }

    /// A run of `command` on this model.
    pub fn run(&self, command: &str) -> Rustai {
        Rustai::line(command).arg("-m").arg(&self.model)
    }
}
