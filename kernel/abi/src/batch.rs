//! What one step of a model computes: new tokens of several sequences, at any mix of prefill and decode.

/// Tokens in one page of the key/value cache.
pub const PAGE_TOKENS: usize = 32;

/// The work of one step. Rows of activations are numbered as `tokens` is.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The new tokens of all sequences, one sequence after the other.
    pub tokens: &'a [u32],
    /// The sequences that `tokens` is cut into. Their lengths sum to `tokens.len()`.
    pub sequences: &'a [BatchSequence<'a>],
    /// Rows (indices into `tokens`, ascending) whose logits are wanted.
    pub outputs: &'a [u32],
}

/// One sequence's share of a [`Batch`].
#[derive(Clone, Copy, Debug)]
pub struct BatchSequence<'a> {
    /// How many of the batch's tokens belong to this sequence; at least 1.
    pub len: u32,
    /// Position of the first of them, which is the number of tokens that the cache already holds.
    pub start: u32,
    /// Block table: page `p` of the cache holds positions `i * PAGE_TOKENS ..` where `pages[i] == p`. Covers at least
    /// `start + len` positions.
    pub pages: &'a [u32],
}
