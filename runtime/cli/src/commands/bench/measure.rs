//! One row's measurements.

use crate::{failure::Failure, interrupt::Guard};
use rustai::{Batch, BatchSequence, PAGE_TOKENS, backend::Executable};
use std::time::{Duration, Instant};

/// What one row measures: a prompt, or a generation, on a cache that already holds `depth` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Tokens processed in batches.
    pub prompt: usize,
    /// Tokens computed one by one.
    pub generate: usize,
    /// Tokens in the cache before.
    pub depth: usize,
}

impl Test {
    /// llama-bench's name: `pp512`, `tg128`, `pp512 @ d2048`.
    pub fn name(&self) -> String {
        let (kind, tokens) = if self.prompt > 0 { ("pp", self.prompt) } else { ("tg", self.generate) };
        match self.depth {
            0 => format!("{kind}{tokens}"),
            depth => format!("{kind}{tokens} @ d{depth}"),
        }
    }

    /// Tokens that the clock runs for.
    pub fn tokens(&self) -> usize {
        self.prompt + self.generate
    }

    /// Positions that the cache must hold.
    pub fn context(&self) -> usize {
        self.depth.saturating_add(self.tokens())
    }
}

/// Times `repetitions` runs of `test`, each on a fresh sequence.
pub fn measure(
    model: &mut dyn Executable,
    test: Test,
    repetitions: u32,
    warm_up: bool,
    guard: &Guard,
) -> Result<Vec<Duration>, Failure> {
    let limits = model.limits();
    let pages: Vec<u32> = (0..test.context().div_ceil(PAGE_TOKENS) as u32).collect();
    let mut tokens = RandomTokens { state: 0x9E37_79B9_7F4A_7C15, vocab: limits.vocab.max(1) as u64 };
    let mut sequence = Sequence { model, pages: &pages, batch: limits.max_tokens, held: 0, buffer: Vec::new(), guard };
    if warm_up {
        sequence.prompt(test.prompt, &mut tokens)?;
        sequence.generate(test.generate.min(1), &mut tokens)?;
    }
    let mut samples = Vec::new();
    for _ in 0..repetitions {
        sequence.held = 0;
        sequence.prompt(test.depth, &mut tokens)?;
        let started = Instant::now();
        sequence.prompt(test.prompt, &mut tokens)?;
        sequence.generate(test.generate, &mut tokens)?;
        samples.push(started.elapsed());
    }
    Ok(samples)
}

/// The one sequence that grows.
struct Sequence<'a> {
    model: &'a mut dyn Executable,
    pages: &'a [u32],
    /// Most tokens in a step.
    batch: usize,
    /// Tokens in the cache.
    held: usize,
    buffer: Vec<u32>,
    guard: &'a Guard,
}

impl Sequence<'_> {
    fn prompt(&mut self, count: usize, tokens: &mut RandomTokens) -> Result<(), Failure> {
        let mut left = count;
        while left > 0 {
            let len = left.min(self.batch);
            self.step(len, tokens)?;
            left -= len;
        }
        Ok(())
    }

    fn generate(&mut self, count: usize, tokens: &mut RandomTokens) -> Result<(), Failure> {
        for _ in 0..count {
            self.step(1, tokens)?;
        }
        Ok(())
    }

    /// Computes `len` more tokens and the logits of the last.
    fn step(&mut self, len: usize, tokens: &mut RandomTokens) -> Result<(), Failure> {
        self.guard.check()?;
        self.buffer.clear();
        self.buffer.extend(tokens.take(len));
        let sequence = BatchSequence { len: len as u32, start: self.held as u32, pages: self.pages };
        let outputs = [len as u32 - 1];
        self.model.step(&Batch { tokens: &self.buffer, sequences: &[sequence], outputs: &outputs })?;
        self.held += len;
        Ok(())
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): the tokens' values do not matter for speed, only that they vary.
struct RandomTokens {
    state: u64,
    vocab: u64,
}

impl RandomTokens {
    fn take(&mut self, count: usize) -> impl Iterator<Item = u32> {
        (0..count).map(|_| {
            self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) % self.vocab) as u32
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustai::backend::{Limits, StepError};

    /// Records the steps it is asked for.
    struct Recorder {
        steps: Vec<(u32, u32, usize)>,
    }

    impl Executable for Recorder {
        fn step(&mut self, batch: &Batch<'_>) -> Result<&[f32], StepError> {
            let sequence = &batch.sequences[0];
            assert_eq!(batch.tokens.len(), sequence.len as usize);
            assert!(batch.tokens.iter().all(|&token| token < 10));
            assert_eq!(batch.outputs, [sequence.len - 1]);
            self.steps.push((sequence.start, sequence.len, sequence.pages.len()));
            Ok(&[])
        }
        fn limits(&self) -> Limits {
            Limits { max_tokens: 8, max_outputs: 1, pages: 2, context: 64, vocab: 10 }
        }
        fn describe(&self) -> String {
            String::new()
        }
    }

    fn steps(test: Test, warm_up: bool) -> Vec<(u32, u32, usize)> {
        let mut recorder = Recorder { steps: Vec::new() };
        let samples = measure(&mut recorder, test, 1, warm_up, &Guard::new()).unwrap();
        assert_eq!(samples.len(), 1);
        recorder.steps
    }

    #[test]
    fn prompts_are_cut_into_batches() {
        let test = Test { prompt: 20, generate: 0, depth: 0 };
        assert_eq!(steps(test, false), [(0, 8, 1), (8, 8, 1), (16, 4, 1)]);
        assert_eq!(steps(test, true).len(), 6);
    }

    #[test]
    fn generation_goes_token_by_token_after_the_depth() {
        let test = Test { prompt: 0, generate: 2, depth: 33 };
        let expected = [(0, 8, 2), (8, 8, 2), (16, 8, 2), (24, 8, 2), (32, 1, 2), (33, 1, 2), (34, 1, 2)];
        assert_eq!(steps(test, false), expected);
        assert_eq!(test.name(), "tg2 @ d33");
    }
}
