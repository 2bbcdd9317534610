//! `tokenize`: the tokens of a text, one per line with its id and what it stands for.

use super::model;
use crate::{
    args::TokenizeArgs,
    failure::Failure,
    input,
    ui::{self, Printer},
};
use rustai::text::{Specials, Tokenizer};
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    tokens: Vec<u32>,
    pieces: Vec<String>,
    count: usize,
}

/// Prints the tokens.
pub fn run(args: &TokenizeArgs) -> Result<(), Failure> {
    let text = input::text(&args.text)?;
    let file = model::open(&model::find(&args.model.model)?)?;
    let tokenizer = Tokenizer::from_metadata(file.metadata())?;
    let specials = if args.no_special { Specials::Text } else { Specials::Parse };
    let tokens =
        if args.no_bos { tokenizer.encode(&text, specials)? } else { tokenizer.encode_prompt(&text, specials)? };
    let mut out = Printer::default();
    if args.ids {
        return out.line(tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    }
    let pieces: Vec<String> = tokens.iter().map(|&token| piece(&tokenizer, token)).collect();
    if args.json {
        return ui::json(&Report { count: tokens.len(), tokens, pieces });
    }
    for (token, piece) in tokens.iter().zip(pieces) {
        out.line(format_args!("{token:>7}  {piece:?}"))?;
    }
    Ok(())
}

/// What a token stands for. Bytes that are a part of a character only are shown as U+FFFD.
fn piece(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(&tokenizer.bytes(token, true).unwrap_or_default()).into_owned()
}
