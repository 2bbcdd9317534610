//! The text that a command works on: an argument, a file or standard input.

use crate::{args::TextArgs, failure::Failure};
use std::{
    fs,
    io::{IsTerminal, Read, stdin},
    path::Path,
};

/// The text that the command line names.
pub fn text(args: &TextArgs) -> Result<String, Failure> {
    let text = match (args.text.as_deref(), args.file.as_deref()) {
        (Some("-"), _) => standard_input()?,
        (Some(text), _) => text.to_owned(),
        (None, Some(path)) => file(path)?,
        (None, None) if stdin().is_terminal() => {
            return Err(Failure::usage("no prompt was given")
                .help("give it as an argument, with --file, or through standard input"));
        }
        (None, None) => standard_input()?,
    };
    if text.is_empty() {
        return Err(empty());
    }
    Ok(text)
}

/// What is told where a prompt has no character.
pub fn empty() -> Failure {
    Failure::usage("the prompt is empty").help("give at least one character")
}

/// A file's text; `-` is standard input.
pub fn file(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        return standard_input();
    }
    let bytes = fs::read(path).map_err(|error| {
        Failure::new(format!("the file {} cannot be read: {error}", path.display())).help("check the path")
    })?;
    utf8(bytes, &path.display().to_string())
}

fn standard_input() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    stdin().read_to_end(&mut bytes).map_err(|error| Failure::new(format!("standard input cannot be read: {error}")))?;
    utf8(bytes, "standard input")
}

/// Text must be UTF-8: guessing another encoding would give the model other words than the user wrote.
fn utf8(bytes: Vec<u8>, from: &str) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes()[at];
        Failure::new(format!("{from} is not valid UTF-8: byte {byte:#04x} at position {at}"))
            .help("convert the text first, for example with `iconv -t UTF-8`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_utf8_is_placed() {
        let Err(Failure::Told { message, .. }) = utf8(b"ab\xc3\xa4\xff".to_vec(), "x") else { panic!("accepted") };
        assert_eq!(message, "x is not valid UTF-8: byte 0xff at position 4");
        // A character cut off at the end of the text is refused too.
        let Err(Failure::Told { message, .. }) = utf8(b"ab\xc3".to_vec(), "x") else { panic!("accepted") };
        assert_eq!(message, "x is not valid UTF-8: byte 0xc3 at position 2");
    }
}
