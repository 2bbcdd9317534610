//! The written forms of all tokens, with an index from text to id.
use crate::gguf::Strings;
use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use std::hash::BuildHasher;

/// Written forms by id, and ids by written form.
pub(super) struct Pieces {
    tokens: Strings,
    /// Ids of the pieces that text can turn into, hashed by their written form.
    index: HashTable<u32>,
    /// Whether a token is in the index.
    indexed: Vec<bool>,
    longest: usize,
}

impl Pieces {
    /// Stores all of `tokens`; only those that `indexed` accepts can be found by their text. Of equal pieces the first is
    /// found.
    pub(super) fn new(tokens: &Strings, indexed: impl Fn(usize) -> bool) -> Self {
        let mut pieces = Self {
            tokens: tokens.clone(),
            index: HashTable::with_capacity(tokens.len()),
            indexed: vec![false; tokens.len()],
            longest: 0,
        };
        for (id, token) in tokens.iter().enumerate() {
            if indexed(id) && pieces.find(token).is_none() {
                pieces
                    .index
                    .insert_unique(hash(token), id as u32, |&id| hash(tokens.get(id as usize).unwrap_or_default()));
                pieces.indexed[id] = true;
                pieces.longest = pieces.longest.max(token.len());
            }
        }
        pieces
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Written form of a token.
    pub(super) fn get(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize)
    }

    /// The token written exactly so.
    pub(super) fn find(&self, piece: &str) -> Option<u32> {
        self.index.find(hash(piece), |&id| self.get(id) == Some(piece)).copied()
    }

    /// The same for a token that probably is `near` or the one after, which saves the search.
    pub(super) fn find_near(&self, piece: &str, near: u32) -> Option<u32> {
        let is = |&id: &u32| self.indexed.get(id as usize) == Some(&true) && self.get(id) == Some(piece);
        [near, near.saturating_add(1)].into_iter().find(is).or_else(|| self.find(piece))
    }

    /// Bytes of the longest piece that can be found.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }
}

fn hash(piece: &str) -> u64 {
    FxBuildHasher.hash_one(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_found_by_text_and_by_id() {
        let tokens = ["a", "", "bcd", "é", "bcd"].into();
        let pieces = Pieces::new(&tokens, |id| id != 0);
        assert_eq!(pieces.len(), 5);
        assert_eq!(pieces.get(3), Some("é"));
        assert_eq!(pieces.get(1), Some(""));
        assert_eq!(pieces.get(5), None);
        assert_eq!(pieces.find("a"), None, "not indexed");
        assert_eq!(pieces.find("bcd"), Some(2), "the first of equals");
        assert_eq!(pieces.find("zzz"), None);
        assert_eq!(pieces.longest(), 3);
        for near in [0, 1, 2, 3, 4, u32::MAX] {
            for piece in ["a", "bcd", "é", "zzz"] {
                assert_eq!(pieces.find_near(piece, near), pieces.find(piece), "{piece} near {near}");
            }
        }
    }
}
