//! Tokens to text, one at a time, in whole characters.
use super::tokenizer::Tokenizer;

/// Emits whole characters only: bytes of a character that is spread over tokens wait for the rest.
pub struct Detokenizer {
    tokenizer: Tokenizer,
    specials: bool,
    /// The bytes so far of a character that is not whole, at most three.
    pending: Vec<u8>,
    /// Whether the next token begins a text, so that a space that encoding put in front is taken away.
    at_start: bool,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, specials: bool, at_start: bool) -> Self {
        Self { tokenizer, specials, pending: Vec::new(), at_start }
    }

    /// Adds a token; returns the text that is now complete (may be empty). An id that is no token adds nothing.
    pub fn push(&mut self, token: u32) -> String {
        let Some(bytes) = self.tokenizer.bytes(token, self.specials) else { return String::new() };
        let begins = self.tokenizer.begins_text(token);
        let strip = self.at_start && !begins && self.tokenizer.adds_space() && bytes.first() == Some(&b' ');
        self.at_start = begins;
        self.pending.extend_from_slice(&bytes[usize::from(strip)..]);
        self.take_whole()
    }

    /// Whether bytes of a character wait for the rest of it.
    pub fn is_holding(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The rest, with U+FFFD for a character that never became whole.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }

    /// Takes everything but the beginning of a character from `pending`. What can never become a character is U+FFFD.
    fn take_whole(&mut self) -> String {
        let mut text = String::with_capacity(self.pending.len());
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let last = done + chunk.invalid().len() == self.pending.len();
            // At the end these may be the first bytes of a character; the standard library tells by the error's length.
            if last && std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none()) {
                break;
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            done += chunk.invalid().len();
        }
        self.pending.drain(..done);
        text
    }
}

#[cfg(test)]
mod tests {
    use crate::text::Specials;
    use crate::text::samples::{byte_level, sentence_piece};

    #[test]
    fn characters_wait_until_they_are_whole() {
        let tokenizer = byte_level();
        let tokens = tokenizer.encode("é🙂!", Specials::Text).unwrap();
        assert_eq!(tokens.len(), 7, "one token a byte");
        let mut detokenizer = tokenizer.detokenizer(false);
        let parts: Vec<String> = tokens.iter().map(|&token| detokenizer.push(token)).collect();
        assert_eq!(parts, ["", "é", "", "", "", "🙂", "!"]);
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn what_never_becomes_whole_is_replaced_once() {
        let tokenizer = byte_level();
        let bytes = |text: &[u8]| -> Vec<u32> { text.iter().map(|&byte| u32::from(byte)).collect() };
        let mut detokenizer = tokenizer.detokenizer(false);
        let parts: Vec<String> = bytes(b"\xF0\x9Fa\xFFb\xC3").iter().map(|&token| detokenizer.push(token)).collect();
        assert_eq!(parts, ["", "", "\u{FFFD}a", "\u{FFFD}", "b", ""]);
        assert_eq!(detokenizer.finish(), "\u{FFFD}");
        assert_eq!(detokenizer.finish(), "");
        assert_eq!(tokenizer.decode(&bytes(b"\xF0\x9Fa\xFFb\xC3"), false), "\u{FFFD}a\u{FFFD}b\u{FFFD}");
    }

    #[test]
    fn streaming_equals_decoding_lossily_whatever_the_bytes() {
        let tokenizer = byte_level();
        let mut state = 7u32;
        for _ in 0..300 {
            let bytes: Vec<u8> = (0..20)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *b"a\xC3\xA9\xF0\x9F\x99\x82\xE2\x96\x81\xED\xFF".get((state >> 24) as usize % 12).unwrap()
                })
                .collect();
            let tokens: Vec<u32> = bytes.iter().map(|&byte| u32::from(byte)).collect();
            assert_eq!(tokenizer.decode(&tokens, false), String::from_utf8_lossy(&bytes), "{bytes:x?}");
        }
    }

    #[test]
    fn the_space_in_front_of_a_text_is_taken_away_but_not_one_that_was_written() {
        let tokenizer = sentence_piece();
        let prompt = tokenizer.encode("hello", Specials::Text).unwrap();
        let answer = tokenizer.encode("hello", Specials::Text).unwrap();
        assert_eq!(tokenizer.detokenizer(false).push(answer[0]), "hello");
        assert_eq!(tokenizer.detokenizer_after(&prompt, false).push(answer[0]), " hello");
        assert_eq!(tokenizer.detokenizer_after(&[1], false).push(answer[0]), "hello", "after a control token");
        assert_eq!(tokenizer.detokenizer_after(&[], false).push(answer[0]), "hello");
    }

    #[test]
    fn special_tokens_show_on_request() {
        let tokenizer = sentence_piece();
        assert_eq!(tokenizer.detokenizer(false).push(1), "");
        assert_eq!(tokenizer.detokenizer(true).push(1), "<s>");
    }
}
