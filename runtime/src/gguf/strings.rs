//! Many strings in two allocations.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

/// A list of strings, which its clones share. All of them lie in one text: a vocabulary of a hundred thousand small strings
/// takes little more than what is written in it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings(Arc<List>);

#[derive(Default, PartialEq, Eq)]
struct List {
    text: String,
    /// Where each string ends in `text`; it starts where the one before ends.
    ends: Vec<usize>,
}

static EMPTY: LazyLock<Strings> = LazyLock::new(Strings::default);

impl Strings {
    /// The strings of which one ends at each of `ends` in `bytes`, in order.
    ///
    /// # Errors
    /// The number of the first that is not UTF-8, and where it starts in `bytes`.
    ///
    /// # Panics
    /// If an end lies before the one in front of it, or the last is not the end of `bytes`.
    pub(super) fn from_parts(bytes: Vec<u8>, ends: Vec<usize>) -> Result<Self, (usize, usize)> {
        assert!(ends.is_sorted() && ends.last().copied().unwrap_or(0) == bytes.len(), "ends in order");
        let start = |index: usize| index.checked_sub(1).map_or(0, |before| ends[before]);
        let (text, bad) = match String::from_utf8(bytes) {
            Ok(text) => {
                let bad = ends.iter().position(|&end| !text.is_char_boundary(end));
                (text, bad)
            }
            Err(error) => {
                let bytes = error.as_bytes();
                let is_bad = |index: &usize| str::from_utf8(&bytes[start(*index)..ends[*index]]).is_err();
                (String::new(), (0..ends.len()).find(is_bad))
            }
        };
        if let Some(bad) = bad {
            return Err((bad, start(bad)));
        }
        Ok(Self::of(text, ends))
    }

    fn of(mut text: String, mut ends: Vec<usize>) -> Self {
        text.shrink_to_fit();
        ends.shrink_to_fit();
        Self(Arc::new(List { text, ends }))
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.0.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.ends.is_empty()
    }

    /// The string with this number, if there are so many.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.0.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.0.ends[index - 1] };
        Some(&self.0.text[start..end])
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        // PANIC: the numbers are those of strings.
        (0..self.len()).map(|index| self.get(index).expect("a string of this list"))
    }
}

/// No strings.
impl Default for &Strings {
    fn default() -> Self {
        &EMPTY
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let (mut text, mut ends) = (String::new(), Vec::new());
        for string in strings {
            text.push_str(string.as_ref());
            ends.push(text.len());
        }
        Self::of(text, ends)
    }
}

impl<S: AsRef<str>> From<Vec<S>> for Strings {
    fn from(strings: Vec<S>) -> Self {
        strings.into_iter().collect()
    }
}

impl<S: AsRef<str>, const N: usize> From<[S; N]> for Strings {
    fn from(strings: [S; N]) -> Self {
        strings.into_iter().collect()
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_come_back_by_number_and_in_order() {
        let strings: Strings = ["a", "", "é", "bcd"].into();
        assert_eq!((strings.len(), strings.is_empty()), (4, false));
        assert_eq!([0, 1, 2, 3, 4].map(|i| strings.get(i)), [Some("a"), Some(""), Some("é"), Some("bcd"), None]);
        assert_eq!(strings.iter().collect::<Vec<_>>(), ["a", "", "é", "bcd"]);
        assert_eq!(format!("{strings:?}"), r#"["a", "", "é", "bcd"]"#);
        let none = <&Strings>::default();
        assert_eq!((none.len(), none.is_empty(), none.get(0)), (0, true, None));
    }

    #[test]
    fn each_string_is_checked_for_itself() {
        let parts = |bytes: &[u8], ends: &[usize]| Strings::from_parts(bytes.to_vec(), ends.to_vec());
        assert_eq!(parts("aéb".as_bytes(), &[1, 3, 4, 4]), Ok(["a", "é", "b", ""].into()));
        assert_eq!(parts("aéb".as_bytes(), &[1, 2, 4]), Err((1, 1)), "together they are UTF-8");
        assert_eq!(parts(b"a\xffb", &[1, 2, 3]), Err((1, 1)));
        assert_eq!(parts(b"a\xc3", &[1, 2]), Err((1, 1)));
        assert_eq!(parts(b"b\xc3\xa9\xff", &[1, 2, 3, 4]), Err((1, 1)), "the first");
        assert_eq!(parts(b"", &[]), Ok(Strings::default()));
    }
}
