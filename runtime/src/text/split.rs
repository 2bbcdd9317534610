//! Cuts text into words by the stages of a [`pretokenizers`](super::pretokenizers) row.
//!
//! Patterns run on a finite automaton: time is linear in the text, whatever the text is. (Backtracking engines have a step
//! limit, and giving up half-way through a text would silently yield other tokens.)
use super::pretokenizers::{Spaces, Stage};
use regex_automata::Input;
use regex_automata::meta::{BuildError, Regex};
use std::ops::Range;

/// The compiled stages.
pub(super) struct Splitter {
    /// Pattern 0 of each is the words, pattern 1, if there is one, white space.
    stages: Vec<Regex>,
}

impl Splitter {
    /// Compiles the stages. The patterns are our own, so a failure is a bug that the unit tests of this file rule out.
    pub(super) fn new(stages: &[Stage]) -> Result<Self, Box<BuildError>> {
        let mut compiled = Vec::with_capacity(stages.len());
        for stage in stages {
            let patterns = [stage.words, r"\s+"];
            let count = if stage.spaces == Spaces::KeepLast { 2 } else { 1 };
            compiled.push(Regex::new_many(&patterns[..count]).map_err(Box::new)?);
        }
        Ok(Self { stages: compiled })
    }

    /// The words of `text`, in order; together they are the whole text.
    pub(super) fn split(&self, text: &str) -> Vec<Range<usize>> {
        let mut words = Vec::with_capacity(text.len() / 4);
        if !text.is_empty() {
            words.push(0..text.len());
        }
        let mut finer = Vec::new();
        for stage in &self.stages {
            finer.clear();
            finer.reserve(text.len() / 4);
            for word in &words {
                split_one(stage, &text[word.clone()], |part| {
                    finer.push(word.start + part.start..word.start + part.end)
                });
            }
            std::mem::swap(&mut words, &mut finer);
        }
        words
    }
}

/// Cuts one word of the stage before.
fn split_one(stage: &Regex, word: &str, mut emit: impl FnMut(Range<usize>)) {
    let mut at = 0;
    while let Some(found) = stage.search(&Input::new(word).range(at..)) {
        let (start, mut end) = (found.start(), found.end());
        // Pattern 1 is white space: its last character goes with the word that follows, if there is one.
        if found.pattern().as_usize() == 1 && end < word.len() {
            let last = word[start..end].char_indices().next_back().map_or(start, |(offset, _)| start + offset);
            if last > start {
                end = last;
            }
        }
        // No pattern of the table matches nothing; were one to, going on would never end.
        if start == end {
            break;
        }
        if at < start {
            emit(at..start);
        }
        emit(start..end);
        at = end;
    }
    if at < word.len() {
        emit(at..word.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::pretokenizers;

    fn words<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        let row = pretokenizers::find(name).expect("a known name");
        let splitter = Splitter::new(row.stages).expect("a valid pattern");
        splitter.split(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn every_row_compiles_and_keeps_the_whole_text() {
        let text = " Hello,\t world's 12345 \n\n  Ünïcödé 漢字かな 한국어 🙂\u{200d}♂️ \u{a0}x\u{3000}\u{300}e\u{301}…  (a|b) `c` $1.50 \r\n  ";
        for name in pretokenizers::names() {
            assert_eq!(words(name, text).concat(), text, "{name}");
            assert!(words(name, "").is_empty(), "{name}");
        }
    }

    #[test]
    fn a_run_of_spaces_leaves_its_last_to_the_word_that_follows() {
        assert_eq!(words("gpt-2", "a   b  "), ["a", "  ", " b", "  "]);
        assert_eq!(words("gpt-2", "a b"), ["a", " b"]);
        assert_eq!(words("gpt-2", "a\n\nb"), ["a", "\n", "\n", "b"]);
        assert_eq!(words("gpt-2", "a \u{3000}!"), ["a", " ", "\u{3000}", "!"]);
    }

    #[test]
    fn digits_stand_alone_or_in_threes() {
        assert_eq!(words("smollm", "in 2024"), ["in", " ", "2", "0", "2", "4"]);
        assert_eq!(words("llama-bpe", "in 2024"), ["in", " ", "202", "4"]);
        assert_eq!(words("qwen2", "20"), ["2", "0"]);
        assert_eq!(words("gpt-2", "in 2024"), ["in", " 2024"]);
    }

    #[test]
    fn line_ends_stay_with_punctuation_where_the_pattern_says_so() {
        assert_eq!(words("llama-bpe", "x;\n\n  y"), ["x", ";\n\n", " ", " y"]);
        assert_eq!(words("llama-bpe", "x \n  y"), ["x", " \n", " ", " y"]);
        assert_eq!(words("gpt-4o", "HelloWorld'LL"), ["Hello", "World'LL"]);
    }

    #[test]
    fn a_long_run_of_spaces_is_one_word_and_quick() {
        let text = format!("a{}b", " ".repeat(1_000_000));
        assert_eq!(words("llama-bpe", &text).len(), 3);
    }
}
