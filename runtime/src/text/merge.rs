//! The merge engine: joins the best adjacent pair until none is left.
//!
//! Byte pair encoding (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units") and
//! SentencePiece's BPE both do this and differ only in what a pair is worth. A heap of candidates with lazy deletion makes it
//! O(n log n), so that a megabyte without a space costs what a megabyte costs.
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No token, no neighbour, no merge.
pub(super) const NONE: u32 = u32::MAX;

/// A run of bytes of the text that is, or may become, a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// First byte.
    pub(super) start: u32,
    /// Byte after the last.
    pub(super) end: u32,
    /// The token, or [`NONE`] if these bytes are none.
    pub(super) token: u32,
    prev: u32,
    next: u32,
    /// Rank of the merge with the next symbol, or [`NONE`].
    rank: u32,
    /// Token that this merge yields.
    merged: u32,
}

/// A merge that is possible: lower ranks are done first, and of equal ranks the leftmost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    /// Below [`NONE`].
    pub(super) rank: u32,
    /// The token that replaces both.
    pub(super) token: u32,
}

/// Working memory, kept between words.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<u64>>,
}

impl Merger {
    /// Forgets the last word.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Appends a symbol. The word must be below 4 GiB, which `Tokenizer::encode` ensures.
    pub(super) fn push(&mut self, start: usize, end: usize, token: u32) {
        let at = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        let prev = at.checked_sub(1).unwrap_or(NONE);
        self.symbols.push(Symbol {
            start: start as u32,
            end: end as u32,
            token,
            prev,
            next: NONE,
            rank: NONE,
            merged: NONE,
        });
    }

    /// Merges until no pair is worth anything, then yields what is left, in order.
    pub(super) fn run(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<Merge>) -> impl Iterator<Item = &Symbol> {
        for at in 0..self.symbols.len() as u32 {
            self.rate(at, &pair);
        }
        while let Some(Reverse(key)) = self.heap.pop() {
            let (rank, at) = ((key >> 32) as u32, key as u32);
            let Symbol { rank: current, merged, next, .. } = self.symbols[at as usize];
            // Stale: the pair was joined or changed since this was queued.
            if current != rank {
                continue;
            }
            let right = self.symbols[next as usize];
            let left = &mut self.symbols[at as usize];
            (left.end, left.token, left.next) = (right.end, merged, right.next);
            let prev = left.prev;
            self.symbols[next as usize].rank = NONE;
            if right.next != NONE {
                self.symbols[right.next as usize].prev = at;
            }
            self.rate(at, &pair);
            if prev != NONE {
                self.rate(prev, &pair);
            }
        }
        let first = (!self.symbols.is_empty()).then(|| &self.symbols[0]);
        std::iter::successors(first, |symbol| self.symbols.get(symbol.next as usize))
    }

    /// Notes what the pair that starts at `at` is worth.
    fn rate(&mut self, at: u32, pair: &impl Fn(&Symbol, &Symbol) -> Option<Merge>) {
        let symbol = self.symbols[at as usize];
        let merge = self.symbols.get(symbol.next as usize).and_then(|next| pair(&symbol, next));
        let slot = &mut self.symbols[at as usize];
        match merge {
            Some(Merge { rank, token }) => {
                (slot.rank, slot.merged) = (rank, token);
                self.heap.push(Reverse(u64::from(rank) << 32 | u64::from(at)));
            }
            None => slot.rank = NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merges the bytes of `word` by a list of (left, right, result), best first.
    fn merge(word: &[u8], merges: &[(u32, u32, u32)]) -> Vec<u32> {
        let mut merger = Merger::default();
        for (at, &byte) in word.iter().enumerate() {
            merger.push(at, at + 1, u32::from(byte));
        }
        merger
            .run(|left, right| {
                let rank = merges.iter().position(|&(l, r, _)| (l, r) == (left.token, right.token))?;
                Some(Merge { rank: rank as u32, token: merges[rank].2 })
            })
            .map(|symbol| symbol.token)
            .collect()
    }

    const A: u32 = b'a' as u32;
    const B: u32 = b'b' as u32;

    #[test]
    fn the_best_pair_goes_first_and_the_leftmost_of_equals() {
        assert_eq!(merge(b"aaa", &[(A, A, 1000)]), [1000, A]);
        assert_eq!(merge(b"aab", &[(A, B, 1001), (A, A, 1000)]), [A, 1001]);
        assert_eq!(merge(b"abab", &[(A, B, 1000), (1000, 1000, 1001)]), [1001]);
    }

    #[test]
    fn nothing_and_one_symbol() {
        assert!(merge(b"", &[(A, A, 1)]).is_empty());
        assert_eq!(merge(b"a", &[(A, A, 1)]), [A]);
    }

    /// The textbook algorithm: scan all pairs, join the best, repeat.
    fn naive(word: &[u8], merges: &[(u32, u32, u32)]) -> Vec<u32> {
        let mut tokens: Vec<u32> = word.iter().map(|&b| u32::from(b)).collect();
        loop {
            let rank = |i: usize| merges.iter().position(|&(l, r, _)| (l, r) == (tokens[i], tokens[i + 1]));
            let best = (0..tokens.len().saturating_sub(1)).filter_map(|i| Some((rank(i)?, i))).min();
            let Some((rank, at)) = best else { return tokens };
            tokens.splice(at..at + 2, [merges[rank].2]);
        }
    }

    #[test]
    fn agrees_with_the_textbook_on_random_words() {
        let mut state = 1u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for _ in 0..500 {
            let mut alphabet: Vec<u32> = vec![A, B, B + 1];
            let mut merges: Vec<(u32, u32, u32)> = Vec::new();
            for new in 1000..1012 {
                let pair = (
                    alphabet[random(alphabet.len() as u32) as usize],
                    alphabet[random(alphabet.len() as u32) as usize],
                );
                if !merges.iter().any(|&(l, r, _)| (l, r) == pair) {
                    merges.push((pair.0, pair.1, new));
                    alphabet.push(new);
                }
            }
            let word: Vec<u8> = (0..random(40)).map(|_| b'a' + random(3) as u8).collect();
            assert_eq!(merge(&word, &merges), naive(&word, &merges), "{word:?} {merges:?}");
        }
    }
}
