//! Standard output: text as it comes, lines, and JSON.

use crate::failure::Failure;
use serde::Serialize;
use std::io::{Write, stdout};

/// Writes to standard output and turns a closed pipe into a quiet end.
#[derive(Default)]
pub struct Printer {
    ends_line: Option<bool>,
}

impl Printer {
    /// Writes text and flushes, so that whoever reads sees each piece at once.
    ///
    /// The text goes out untouched: a model may mean the escape codes that `anstream` would drop.
    pub fn piece(&mut self, text: &str) -> Result<(), Failure> {
        let Some(last) = text.bytes().last() else { return Ok(()) };
        self.ends_line = Some(last == b'\n');
        let mut out = stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::output)
    }

    /// Writes one line, with colours if standard output is a terminal.
    pub fn line(&mut self, text: impl std::fmt::Display) -> Result<(), Failure> {
        self.ends_line = Some(true);
        writeln!(anstream::stdout().lock(), "{text}").map_err(Failure::output)
    }

    /// Ends the last line if something was written and its line is still open.
    pub fn end_line(&mut self) -> Result<(), Failure> {
        if self.ends_line == Some(false) { self.piece("\n") } else { Ok(()) }
    }
}

/// Writes one JSON value and a newline to standard output: indented for people, on one line for programs.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    use std::io::IsTerminal;
    let text =
        if stdout().is_terminal() { serde_json::to_string_pretty(value)? } else { serde_json::to_string(value)? };
    let mut printer = Printer::default();
    printer.piece(&text)?;
    printer.end_line()
}
