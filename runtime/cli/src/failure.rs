//! How a command fails: what is printed, and the exit code.
//!
//! | code | meaning |
//! |------|---------|
//! | 0    | done; also if whoever reads the output closed it early |
//! | 1    | the command failed |
//! | 2    | the command line, or a value on it, is wrong |
//! | 130  | interrupted with Ctrl-C |

use crate::ui::{self, style};
use std::{error::Error, fmt::Write as _, io, process::ExitCode};

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
        match message.rsplit_once("; ") {
            Some((wrong, remedy)) => Self::new(wrong).help(remedy),
            None => Self::new(message),
        }
    }
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
    fn a_closed_pipe_is_no_error() {
        let closed = Failure::output(io::ErrorKind::BrokenPipe.into());
        assert!(matches!(closed, Failure::OutputClosed));
        let full = Failure::output(io::ErrorKind::StorageFull.into());
        assert!(matches!(full, Failure::Told { code: 1, .. }));
    }
}
