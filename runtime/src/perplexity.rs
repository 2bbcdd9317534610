//! Perplexity: how well a model predicts a text, after llama-perplexity's method.
//!
//! The text's tokens (BOS in front if the model asks for it) are cut into chunks. Each chunk is computed on an empty cache,
//! its first token replaced by BOS if the model asks for one, and the tokens of its second half are scored.

use crate::backend::{Executable, LogitsError, StepError};
use rustai_abi::{Batch, BatchSequence, PAGE_TOKENS};

/// The sums behind an estimate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    count: usize,
    sum: f64,
    squares: f64,
}

impl Score {
    /// Tokens scored.
    pub fn count(&self) -> usize {
        self.count
    }

    /// `exp` of the mean negative log-likelihood per token.
    pub fn perplexity(&self) -> f64 {
        (self.sum / self.count as f64).exp()
    }

    /// The standard error of the mean, times the perplexity.
    pub fn uncertainty(&self) -> f64 {
        let mean = self.sum / self.count as f64;
        let variance = (self.squares / self.count as f64 - mean * mean).max(0.0);
        if self.count < 2 { 0.0 } else { (variance / (self.count - 1) as f64).sqrt() * self.perplexity() }
    }

    /// Computes `chunk`, `batch` tokens in a step, and scores the tokens of its second half. `check` runs before each step
    /// and may end the work.
    ///
    /// The model needs `max_tokens` and `max_outputs` of at least `batch`, and pages for the chunk; page 0 and those after
    /// it are used.
    ///
    /// # Errors
    /// What `check` returns, or [`StepError`] if the model refuses a step or its logits are not numbers.
    pub fn add_chunk<E: From<StepError>>(
        &mut self,
        model: &mut dyn Executable,
        chunk: &[u32],
        batch: usize,
        mut check: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let vocab = model.limits().vocab;
        let pages: Vec<u32> = (0..chunk.len().div_ceil(PAGE_TOKENS) as u32).collect();
        let first = chunk.len() / 2;
        for start in (0..chunk.len()).step_by(batch) {
            check()?;
            let tokens = &chunk[start..chunk.len().min(start + batch)];
            // Position p predicts token p + 1, so the last position predicts nothing that is known.
            let scored = start.max(first)..(start + tokens.len()).min(chunk.len() - 1);
            let outputs: Vec<u32> = scored.clone().map(|position| (position - start) as u32).collect();
            let sequence = BatchSequence { len: tokens.len() as u32, start: start as u32, pages: &pages };
            let logits = model.step(&Batch { tokens, sequences: &[sequence], outputs: &outputs })?;
            for (row, position) in logits.chunks_exact(vocab).zip(scored) {
                self.add_token(row, chunk[position + 1] as usize);
                // One NaN in a row makes the likelihood NaN, and the sum with it.
                if self.sum.is_nan() {
                    return Err(StepError::from(LogitsError { position }).into());
                }
            }
        }
        Ok(())
    }

    /// Scores one token: `logits` are those of the position before it.
    pub(crate) fn add_token(&mut self, logits: &[f32], token: usize) {
        self.add(negative_log_likelihood(logits, token));
    }

    fn add(&mut self, nll: f64) {
        self.count += 1;
        self.sum += nll;
        self.squares += nll * nll;
    }
}

/// `-ln softmax(logits)[token]`, summed in f64.
fn negative_log_likelihood(logits: &[f32], token: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    sum.ln() + f64::from(largest) - f64::from(logits[token])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Limits;

    /// Always predicts the token after the one it sees, with logit 2 against 0, and checks what it is asked.
    struct Successor {
        logits: Vec<f32>,
        seen: usize,
    }

    const VOCAB: usize = 5;

    impl Executable for Successor {
        fn step(&mut self, batch: &Batch<'_>) -> Result<&[f32], StepError> {
            assert_eq!(batch.sequences[0].start as usize, self.seen);
            self.seen += batch.tokens.len();
            self.logits = vec![0.0; batch.outputs.len() * VOCAB];
            for (row, &output) in batch.outputs.iter().enumerate() {
                self.logits[row * VOCAB + (batch.tokens[output as usize] as usize + 1) % VOCAB] = 2.0;
            }
            Ok(&self.logits)
        }
        fn limits(&self) -> Limits {
            Limits { max_tokens: 8, max_outputs: 8, pages: 8, context: 64, vocab: VOCAB }
        }
        fn describe(&self) -> String {
            String::new()
        }
    }

    #[test]
    fn the_second_half_is_scored_whatever_the_batch() {
        let chunk: Vec<u32> = (0..16).map(|i| i % 5).collect();
        let right = (1.0 + 4.0 * (-2.0f64).exp()).ln();
        for batch in [1, 3, 8, 16] {
            let mut score = Score::default();
            let mut model = Successor { logits: Vec::new(), seen: 0 };
            score.add_chunk::<StepError>(&mut model, &chunk, batch, || Ok(())).unwrap();
            assert_eq!(score.count, 7, "positions 8 to 14 predict tokens 9 to 15");
            assert!((score.sum - 7.0 * right).abs() < 1e-9);
            assert!(score.uncertainty().abs() < 1e-6);
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        struct Broken(Successor);
        impl Executable for Broken {
            fn step(&mut self, batch: &Batch<'_>) -> Result<&[f32], StepError> {
                self.0.step(batch)?;
                self.0.logits.fill(f32::NAN);
                Ok(&self.0.logits)
            }
            fn limits(&self) -> Limits {
                self.0.limits()
            }
            fn describe(&self) -> String {
                String::new()
            }
        }
        let mut model = Broken(Successor { logits: Vec::new(), seen: 0 });
        let error = Score::default().add_chunk::<StepError>(&mut model, &[0, 1, 2, 3], 4, || Ok(())).unwrap_err();
        assert!(matches!(error, StepError::Logits(LogitsError { position: 2 })), "{error}");
    }

    #[test]
    fn likelihood_survives_large_logits() {
        assert!((negative_log_likelihood(&[1e4, 1e4], 1) - 2f64.ln()).abs() < 1e-9);
        assert!((negative_log_likelihood(&[-1e4, 1e4], 0) - 2e4).abs() < 1e-6);
    }

    #[test]
    fn uncertainty_is_the_standard_error_of_the_mean() {
        let mut score = Score::default();
        [1.0, 2.0, 3.0, 4.0].into_iter().for_each(|nll| score.add(nll));
        assert!((score.perplexity() - 2.5f64.exp()).abs() < 1e-12);
        assert!((score.uncertainty() - (1.25f64 / 3.0).sqrt() * 2.5f64.exp()).abs() < 1e-12);
    }
}
