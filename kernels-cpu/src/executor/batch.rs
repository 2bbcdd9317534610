//! What a batch may ask for, whatever runs it.

use crate::ExecutorError;
use rustai_abi::{Batch, BatchSequence, PAGE_TOKENS};

/// What batches may ask of an executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most tokens.
    pub max_tokens: usize,
    /// Most outputs.
    pub max_outputs: usize,
    /// Tokens are below this, where they are looked up.
    pub vocabulary: Option<usize>,
    /// Pages of the key/value cache, if there is one.
    pub pages: Option<usize>,
}

impl BatchLimits {
    /// Examines one batch; allocates only to explain a refusal.
    ///
    /// # Errors
    /// [`ExecutorError::Batch`] if it breaks a limit, names a token, page or row that does not exist, has no page for a
    /// position, or writes to one page for two runs of positions.
    pub fn check(&self, batch: &Batch<'_>) -> Result<(), ExecutorError> {
        let refuse = |reason: String| Err(ExecutorError::Batch(reason));
        let tokens = batch.tokens.len();
        if tokens == 0 || tokens > self.max_tokens {
            return refuse(format!("{tokens} tokens; a step takes 1 to {}", self.max_tokens));
        }
        if batch.outputs.len() > self.max_outputs {
            return refuse(format!("{} outputs; a step gives at most {}", batch.outputs.len(), self.max_outputs));
        }
        if let Some(row) = batch.outputs.iter().find(|row| **row as usize >= tokens) {
            return refuse(format!("output row {row} of {tokens}"));
        }
        if let Some(rows) = self.vocabulary
            && let Some(token) = batch.tokens.iter().find(|token| **token as usize >= rows)
        {
            return refuse(format!("token {token} of a vocabulary of {rows}"));
        }
        let mut sum = 0usize;
        for sequence in batch.sequences {
            sum += sequence.len as usize;
            if sequence.len == 0 {
                return refuse("a sequence without tokens".into());
            }
            let Some(end) = sequence.start.checked_add(sequence.len) else {
                return refuse(format!("{} tokens from position {} on", sequence.len, sequence.start));
            };
            let needed = (end as usize).div_ceil(PAGE_TOKENS);
            let Some(pages_of_cache) = self.pages else { continue };
            if needed > pages_of_cache {
                return refuse(format!("{end} positions in a cache for {}", pages_of_cache * PAGE_TOKENS));
            }
            let Some(pages) = sequence.pages.get(..needed) else {
                return refuse(format!("{} pages for {needed} pages of positions", sequence.pages.len()));
            };
            if let Some(page) = pages.iter().find(|page| **page as usize >= pages_of_cache) {
                return refuse(format!("page {page} of {pages_of_cache}"));
            }
        }
        // Positions that share a page they are written to would race; everything before that page may be shared.
        if self.pages.is_some() {
            for (i, a) in batch.sequences.iter().enumerate() {
                let own = written(a);
                let twice = (1..own.len()).any(|i| own[..i].contains(&own[i]));
                if twice || batch.sequences[..i].iter().any(|b| own.iter().any(|page| written(b).contains(page))) {
                    return refuse("one page is written for two runs of positions".into());
                }
            }
        }
        if sum == tokens { Ok(()) } else { refuse(format!("{tokens} tokens in sequences of {sum} together")) }
    }
}

/// Pages that a sequence appends to.
fn written<'a>(sequence: &BatchSequence<'a>) -> &'a [u32] {
    let first = sequence.start as usize / PAGE_TOKENS;
    let end = (sequence.start as usize + sequence.len as usize).div_ceil(PAGE_TOKENS);
    &sequence.pages[first..end]
}
