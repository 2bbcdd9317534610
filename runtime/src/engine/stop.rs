//! Stop strings: text that ends an answer and is never shown, not even in part.

/// Looks for stop strings in a text that arrives in pieces.
///
/// The result does not depend on how the text is cut: the first string that becomes complete wins, and of several that
/// become complete with the same character the longest.
pub(super) struct StopMatcher {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// What came out of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// Text that is certain to belong to the answer.
    pub(super) text: String,
    /// The stop string that was found behind it.
    pub(super) matched: Option<String>,
}

impl StopMatcher {
    /// `stops` must not contain the empty string.
    pub(super) fn new(stops: Vec<String>) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()));
        Self { stops, held: String::new() }
    }

    /// Whether text is held back.
    pub(super) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Adds a piece.
    pub(super) fn push(&mut self, piece: String) -> Passed {
        if self.stops.is_empty() {
            return Passed { text: piece, matched: None };
        }
        self.held.push_str(&piece);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, stop)))
            .min_by_key(|&(end, start, _)| (end, start));
        if let Some((_, start, stop)) = found {
            let matched = Some(stop.clone());
            self.held.truncate(start);
            return Passed { text: std::mem::take(&mut self.held), matched };
        }
        let rest = self.held.split_off(self.certain());
        Passed { text: std::mem::replace(&mut self.held, rest), matched: None }
    }

    /// The text that turned out to be no stop string because nothing follows.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes in front of the longest end of the held text that a stop string begins with.
    fn certain(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let starts = self.held.char_indices().map(|(start, _)| start);
        starts
            .filter(|&start| self.held.len() - start < longest)
            .find(|&start| self.stops.iter().any(|stop| stop.starts_with(&self.held[start..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out of `text` when it is cut into pieces of `size` characters.
    fn run(stops: &[&str], text: &str, size: usize) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| stop.to_string()).collect());
        let characters: Vec<char> = text.chars().collect();
        let mut out = String::new();
        for piece in characters.chunks(size) {
            let passed = matcher.push(piece.iter().collect());
            out.push_str(&passed.text);
            if passed.matched.is_some() {
                return (out, passed.matched);
            }
        }
        out.push_str(&matcher.finish());
        (out, None)
    }

    #[test]
    fn every_cut_gives_the_same_answer() {
        let cases: [(&[&str], &str, &str, Option<&str>); 9] = [
            (&[], "nothing stops", "nothing stops", None),
            (&["END"], "one ENd two EN", "one ENd two EN", None),
            (&["END"], "one EEND two", "one E", Some("END")),
            (&["aab"], "aaab", "a", Some("aab")),
            (&["abcd", "bc"], "xabcd", "xa", Some("bc")),
            (&["bc", "abc"], "xabcd", "x", Some("abc")),
            (&["\n\n"], "line\nline\n\nrest", "line\nline", Some("\n\n")),
            (&["é!"], "caféé!é", "café", Some("é!")),
            (&["long stop string", "p s"], "long stop sunset", "long sto", Some("p s")),
        ];
        for (stops, text, expected, matched) in cases {
            for size in 1..=text.chars().count() {
                let (out, found) = run(stops, text, size);
                assert_eq!((out.as_str(), found.as_deref()), (expected, matched), "{stops:?} {text:?} cut by {size}");
            }
        }
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held() {
        let mut matcher = StopMatcher::new(vec!["</answer>".into()]);
        assert_eq!(matcher.push("done</ans".into()), Passed { text: "done".into(), matched: None });
        assert!(matcher.is_holding());
        assert_eq!(matcher.push("wers".into()), Passed { text: "</answers".into(), matched: None });
        assert!(!matcher.is_holding());
    }
}
