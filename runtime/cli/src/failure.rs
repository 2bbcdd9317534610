//! How a command fails: what is printed, and the exit code.
//!
//! | code | meaning |
//! |------|---------|
//! | 0    | done; also if whoever reads the output closed it early |
//! | 1    | the command failed |
//! | 2    | the command line, or a value on it, is wrong |
//! | 130  | interrupted with Ctrl-C |

use crate::ui::{self, style};
use std::{error::Error, ffi::OsString, fmt::Write as _, io, process::ExitCode};

/// Exit code for a wrong command line; clap uses the same.
const USAGE: u8 = 2;
/// Exit code after an interrupt: 128 plus the number of `SIGINT`, as shells report it.
pub const INTERRUPTED: u8 = 130;

/// Why a command ends early.
#[derive(Debug)]
pub enum Failure {
    /// Something is wrong that the user should read about.
    Told {
        /// What is wrong, with the value.
        message: String,
        /// What to do about it.
        help: Option<String>,
        /// Exit code.
        code: u8,
    },
    /// Ctrl-C.
    Interrupted,
    /// Nobody reads standard output any more (`rustai inspect m.gguf | head`). That is no error.
    OutputClosed,
}

impl Failure {
    /// The command failed (exit code 1).
    pub fn new(message: impl Into<String>) -> Self {
        Self::Told { message: message.into(), help: None, code: 1 }
    }

    /// A value on the command line is wrong (exit code 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Told { message: message.into(), help: None, code: USAGE }
    }

    /// Adds what to do about it.
    pub fn help(mut self, remedy: impl Into<String>) -> Self {
        if let Self::Told { help, .. } = &mut self {
            *help = Some(remedy.into());
        }
        self
    }

    /// Adds what to do about it if nothing was said yet.
    pub fn or_help(self, remedy: &str) -> Self {
        match self {
            Self::Told { help: None, .. } => self.help(remedy),
            _ => self,
        }
    }

    /// Makes it a wrong command line (exit code 2).
    pub fn into_usage(mut self) -> Self {
        if let Self::Told { code, .. } = &mut self {
            *code = USAGE;
        }
        self
    }

    /// Says what the failure is about: a path, a variable.
    pub fn within(mut self, what: impl std::fmt::Display) -> Self {
        if let Self::Told { message, .. } = &mut self {
            *message = format!("{what}: {message}");
        }
        self
    }

    /// Makes a failed output a quiet end if the reader went away.
    pub fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::OutputClosed;
        }
        Self::new(format!("standard output cannot be written: {error}"))
    }

    /// Prints the failure to standard error and returns the exit code.
    pub fn report(self) -> ExitCode {
        match self {
            Self::Told { message, help, code } => {
                let (error, remedy) = (style::ERROR, style::HELP);
                anstream::eprintln!("{error}error:{error:#} {}", ui::plain(&message));
                if let Some(help) = help {
                    anstream::eprintln!("{remedy}help:{remedy:#} {}", ui::plain(&help));
                }
                ExitCode::from(code)
            }
            Self::Interrupted => ExitCode::from(INTERRUPTED),
            Self::OutputClosed => ExitCode::SUCCESS,
        }
    }
}

/// The message of an error with those of its causes, leaving out a cause that the message already quotes.
pub fn chain(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.contains(&text) {
            // Writing to a string cannot fail.
            let _ = write!(message, ": {text}");
        }
        cause = inner.source();
    }
    message
}

/// The library's messages have the form `what is wrong; what to do`.
impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let message = chain(&error);
        match cut(&message, &given()) {
            Some((wrong, remedy)) => Self::new(wrong).help(remedy),
            None => Self::new(message),
        }
    }
}

const SEPARATOR: &str = "; ";

/// Cuts a message at the last separator that is none of a text that the user gave, such as a path.
fn cut<'a>(message: &'a str, given: &[String]) -> Option<(&'a str, &'a str)> {
    let quoted = |at: usize| {
        let mut places = given.iter().flat_map(|text| message.match_indices(text.as_str()));
        places.any(|(start, text)| (start..start + text.len()).contains(&at))
    };
    let (at, _) = message.rmatch_indices(SEPARATOR).find(|(at, _)| !quoted(*at))?;
    Some((&message[..at], &message[at + SEPARATOR.len()..]))
}

/// What the user gave that has a separator in it: parts of arguments, of variables that name folders, and of the working
/// folder. Parts, because messages may tell a path in another form than it was given in.
fn given() -> Vec<String> {
    let named = |name: &OsString| {
        let name = name.to_string_lossy();
        name == "HOME" || ["RUSTAI_", "XDG_", "HF_"].iter().any(|start| name.starts_with(start))
    };
    let variables = std::env::vars_os().filter(|(name, _)| named(name)).map(|(_, value)| value);
    let folder = std::env::current_dir().ok().map(OsString::from);
    let texts = std::env::args_os().skip(1).chain(variables).chain(folder);
    texts.flat_map(|text| parts(&text.to_string_lossy())).collect()
}

/// The parts of a path, or of an argument such as `--model=PATH`, that have a separator in them.
fn parts(text: &str) -> Vec<String> {
    text.split(['/', '=']).filter(|part| part.contains(SEPARATOR)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(io::Error, bool);
    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            match self.1 {
                true => write!(f, "cannot read x: {}", self.0),
                false => f.write_str("cannot read x"),
            }
        }
    }
    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn causes_are_told_once() {
        for quoted in [true, false] {
            let error = Outer(io::Error::other("it is on fire"), quoted);
            assert_eq!(chain(&error), "cannot read x: it is on fire");
        }
    }

    #[test]
    fn a_message_is_cut_before_its_remedy_and_not_inside_a_path() {
        let given = parts("--model=/srv/a; b/c; d.gguf");
        assert_eq!(given, ["a; b", "c; d.gguf"]);
        let message = "cannot read /srv/a; b/c; d.gguf: it is on fire";
        assert_eq!(cut(message, &given), None);
        let told = format!("{message}; put it out");
        assert_eq!(cut(&told, &given), Some((message, "put it out")));
        let told = format!("{message}; move a; b away");
        assert_eq!(cut(&told, &given), Some((message, "move a; b away")));
        assert_eq!(cut("one; two; three", &[]), Some(("one; two", "three")));
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let closed = Failure::output(io::ErrorKind::BrokenPipe.into());
        assert!(matches!(closed, Failure::OutputClosed));
        let full = Failure::output(io::ErrorKind::StorageFull.into());
        assert!(matches!(full, Failure::Told { code: 1, .. }));
    }
}
