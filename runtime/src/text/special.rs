//! Cuts special tokens out of a text before anything else looks at it.
use super::tokenizer::Specials;
use super::{TextError, TokenType};
use crate::gguf::Strings;
use aho_corasick::{AhoCorasick, MatchKind};

/// Tokens that are found by their written form: control and unknown tokens where the caller allows it, user-defined
/// tokens always.
pub(super) struct SpecialTokens {
    always: Finder,
    all: Finder,
    /// Tokens that take the white space after them along.
    strip_right: Vec<u32>,
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    /// To be tokenized.
    Text(&'t str),
    /// Is this token.
    Token(u32),
}

impl SpecialTokens {
    /// Collects the special ones among `tokens`.
    pub(super) fn new(tokens: &Strings, kinds: &[TokenType], strip_right: Vec<u32>) -> Result<Self, TextError> {
        let with = |wanted: fn(TokenType) -> bool| {
            Finder::new(
                (0u32..)
                    .zip(tokens.iter())
                    .zip(kinds)
                    .filter(|&((_, token), &kind)| wanted(kind) && !token.is_empty())
                    .map(|((id, token), _)| (token, id)),
            )
        };
        Ok(Self {
            always: with(|kind| kind == TokenType::UserDefined)?,
            all: with(|kind| matches!(kind, TokenType::UserDefined | TokenType::Control | TokenType::Unknown))?,
            strip_right,
        })
    }

    /// Calls `visit` with the parts of a text, in order. At one place the longest token is taken, as `tokenizers` does
    /// with added tokens.
    pub(super) fn partition<'t>(
        &self,
        text: &'t str,
        specials: Specials,
        mut visit: impl FnMut(Fragment<'t>) -> Result<(), TextError>,
    ) -> Result<(), TextError> {
        let finder = match specials {
            Specials::Parse => &self.all,
            Specials::Text => &self.always,
        };
        let Some(automaton) = &finder.automaton else {
            return if text.is_empty() { Ok(()) } else { visit(Fragment::Text(text)) };
        };
        let (mut done, mut strip) = (0, false);
        let between =
            |from: usize, to: usize, strip: bool, visit: &mut dyn FnMut(Fragment<'t>) -> Result<(), TextError>| {
                let part = if strip { text[from..to].trim_start() } else { &text[from..to] };
                if part.is_empty() { Ok(()) } else { visit(Fragment::Text(part)) }
            };
        for found in automaton.find_iter(text) {
            between(done, found.start(), strip, &mut visit)?;
            let token = finder.ids[found.pattern().as_usize()];
            visit(Fragment::Token(token))?;
            (done, strip) = (found.end(), self.strip_right.contains(&token));
        }
        between(done, text.len(), strip, &mut visit)
    }
}

struct Finder {
    /// `None` if there is nothing to find.
    automaton: Option<AhoCorasick>,
    /// Token by pattern.
    ids: Vec<u32>,
}

/// Longest special token, and most of all together, in bytes. Known files stay below a tenth of either; an automaton takes
/// up to a kilobyte of memory for each byte.
const LONGEST: usize = 1024;
const LONGEST_TOGETHER: usize = 4 << 20;

impl Finder {
    fn new<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Result<Self, TextError> {
        let (texts, ids): (Vec<&str>, Vec<u32>) = tokens.unzip();
        let invalid = |reason| Err(TextError::Invalid { key: "tokenizer.ggml.tokens", reason });
        if let Some((text, id)) = texts.iter().zip(&ids).find(|(text, _)| text.len() > LONGEST) {
            return invalid(format!("special token {id} has {} bytes, over the limit of {LONGEST}", text.len()));
        }
        let together: usize = texts.iter().map(|text| text.len()).sum();
        if together > LONGEST_TOGETHER {
            return invalid(format!("special tokens have {together} bytes, over the limit of {LONGEST_TOGETHER}"));
        }
        let automaton = (!texts.is_empty())
            .then(|| AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts))
            .transpose()
            .map_err(|error| TextError::Invalid {
                key: "tokenizer.ggml.tokens",
                reason: format!("special tokens: {error}"),
            })?;
        Ok(Self { automaton, ids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition<'t>(text: &'t str, specials: Specials, strip_right: Vec<u32>) -> Vec<Fragment<'t>> {
        let tokens = ["x", "<|end|>", "<|end|>!", "  ", "<unk>"].into();
        let kinds =
            [TokenType::Normal, TokenType::Control, TokenType::Control, TokenType::UserDefined, TokenType::Unknown];
        let special = SpecialTokens::new(&tokens, &kinds, strip_right).expect("a valid table");
        let mut parts = Vec::new();
        special
            .partition(text, specials, |part| {
                parts.push(part);
                Ok(())
            })
            .expect("visit never fails");
        parts
    }

    use Fragment::{Text, Token};

    #[test]
    fn control_tokens_are_text_unless_allowed() {
        assert_eq!(partition("a<|end|>b", Specials::Text, vec![]), [Text("a<|end|>b")]);
        assert_eq!(partition("a<|end|>b", Specials::Parse, vec![]), [Text("a"), Token(1), Text("b")]);
        assert_eq!(partition("<unk>", Specials::Parse, vec![]), [Token(4)]);
    }

    #[test]
    fn user_defined_tokens_are_always_found() {
        assert_eq!(partition("x  x", Specials::Text, vec![]), [Text("x"), Token(3), Text("x")]);
    }

    #[test]
    fn the_longest_token_is_taken() {
        assert_eq!(partition("<|end|>!<|end|>", Specials::Parse, vec![]), [Token(2), Token(1)]);
    }

    #[test]
    fn white_space_after_a_stripping_token_is_part_of_it() {
        assert_eq!(
            partition("<|end|>\n x<unk> y", Specials::Parse, vec![1]),
            [Token(1), Text("x"), Token(4), Text(" y")]
        );
        assert_eq!(partition("<|end|>\n", Specials::Parse, vec![1]), [Token(1)]);
    }

    #[test]
    fn special_tokens_of_absurd_length_are_refused() {
        let error = |tokens: Strings| {
            let kinds = vec![TokenType::Control; tokens.len()];
            SpecialTokens::new(&tokens, &kinds, vec![]).err().expect("too long").to_string()
        };
        assert!(error(["x", &"y".repeat(1025)].into()).contains("special token 1 has 1025 bytes"));
        let many = (0..5000).map(|i| format!("{i:01000}")).collect();
        assert!(error(many).contains("5000000 bytes"));
    }

    #[test]
    fn nothing_has_no_parts() {
        assert!(partition("", Specials::Parse, vec![]).is_empty());
    }
}
