//! One row's measurements.

use crate::{failure::Failure, interrupt::Guard};
use rustai::{Batch, BatchSequence, PAGE_TOKENS, backend::Executable};
use std::{
    ops::Range,
    time::{Duration, Instant},
};

/// What one row measures: a prompt, or a generation, on a cache that already holds `depth` tokens of each sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Tokens processed in batches.
    pub prompt: usize,
    /// Tokens of each sequence, computed one by one.
    pub generate: usize,
    /// Tokens in the cache before.
    pub depth: usize,
    /// Sequences that take each step together.
    pub sequences: usize,
}

impl Test {
    /// llama-bench's name: `pp512`, `tg128`, `pp512 @ d2048`; several sequences are `tg128 x8`.
    pub fn name(&self) -> String {
        let (kind, tokens) = if self.prompt > 0 { ("pp", self.prompt) } else { ("tg", self.generate) };
        let together = if self.sequences > 1 { format!(" x{}", self.sequences) } else { String::new() };
        match self.depth {
            0 => format!("{kind}{tokens}{together}"),
            depth => format!("{kind}{tokens}{together} @ d{depth}"),
        }
    }

    /// Tokens that the clock runs for, of all sequences.
    pub fn tokens(&self) -> usize {
        (self.prompt + self.generate) * self.sequences
    }

    /// Positions that the cache must hold for each sequence.
    pub fn context(&self) -> usize {
        self.depth.saturating_add(self.prompt + self.generate)
    }
}

/// Times `repetitions` runs of `test`, each on fresh sequences; prompts are cut into steps of at most `batch` tokens.
pub fn measure(
    model: &mut dyn Executable,
    test: Test,
    batch: usize,
    repetitions: u32,
    warm_up: bool,
    guard: &Guard,
) -> Result<Vec<Duration>, Failure> {
    let limits = model.limits();
    let pages = test.context().div_ceil(PAGE_TOKENS) as u32;
    let page_lists = (0..test.sequences as u32).map(|s| (s * pages..(s + 1) * pages).collect()).collect();
    let mut tokens = RandomTokens { state: 0x9E37_79B9_7F4A_7C15, vocab: limits.vocab.max(1) as u64 };
    let batch = batch.min(limits.max_tokens);
    let mut run = Run { model, pages: page_lists, batch, held: 0, buffer: Vec::new(), guard };
    if warm_up {
        run.prompt(test.prompt, &mut tokens)?;
        run.generate(test.generate.min(1), &mut tokens)?;
    }
    let mut samples = Vec::new();
    for _ in 0..repetitions {
        run.held = 0;
        run.prompt(test.depth, &mut tokens)?;
        let started = Instant::now();
        run.prompt(test.prompt, &mut tokens)?;
        run.generate(test.generate, &mut tokens)?;
        samples.push(started.elapsed());
    }
    Ok(samples)
}

/// Sequences that grow together.
struct Run<'a> {
    model: &'a mut dyn Executable,
    /// Pages of each sequence.
    pages: Vec<Vec<u32>>,
    /// Most tokens in a step.
    batch: usize,
    /// Tokens of each sequence in the cache.
    held: usize,
    buffer: Vec<u32>,
    guard: &'a Guard,
}

impl Run<'_> {
    /// `count` more tokens of each sequence, one sequence after the other.
    fn prompt(&mut self, count: usize, tokens: &mut RandomTokens) -> Result<(), Failure> {
        for sequence in 0..self.pages.len() {
            let mut done = 0;
            while done < count {
                let len = (count - done).min(self.batch);
                self.step(sequence..sequence + 1, self.held + done, len, tokens)?;
                done += len;
            }
        }
        self.held += count;
        Ok(())
    }

    /// `count` more tokens of each sequence, all sequences in each step.
    fn generate(&mut self, count: usize, tokens: &mut RandomTokens) -> Result<(), Failure> {
        for _ in 0..count {
            self.step(0..self.pages.len(), self.held, 1, tokens)?;
            self.held += 1;
        }
        Ok(())
    }

    /// Computes `len` tokens from position `start` on of some sequences, and the logits of each one's last.
    fn step(
        &mut self,
        sequences: Range<usize>,
        start: usize,
        len: usize,
        tokens: &mut RandomTokens,
    ) -> Result<(), Failure> {
        self.guard.check()?;
        self.buffer.clear();
        self.buffer.extend(tokens.take(len * sequences.len()));
        let sequence = |pages| BatchSequence { len: len as u32, start: start as u32, pages };
        let sequences: Vec<_> = self.pages[sequences].iter().map(|pages| sequence(pages.as_slice())).collect();
        let outputs: Vec<u32> = (1..=sequences.len()).map(|count| (count * len - 1) as u32).collect();
        self.model.step(&Batch { tokens: &self.buffer, sequences: &sequences, outputs: &outputs })?;
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
            assert_eq!(batch.tokens.len(), sequence.len as usize * batch.sequences.len());
            assert!(batch.tokens.iter().all(|&token| token < 10));
            assert_eq!(batch.outputs.len(), batch.sequences.len());
            assert_eq!(batch.outputs[0], sequence.len - 1);
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
        let samples = measure(&mut recorder, test, 512, 1, warm_up, &Guard::new()).unwrap();
        assert_eq!(samples.len(), 1);
        recorder.steps
    }

    #[test]
    fn prompts_are_cut_into_batches() {
        let test = Test { prompt: 20, generate: 0, depth: 0, sequences: 1 };
        assert_eq!(steps(test, false), [(0, 8, 1), (8, 8, 1), (16, 4, 1)]);
        assert_eq!(steps(test, true).len(), 6);
    }

    #[test]
    fn generation_goes_token_by_token_after_the_depth() {
        let test = Test { prompt: 0, generate: 2, depth: 33, sequences: 1 };
        let expected = [(0, 8, 2), (8, 8, 2), (16, 8, 2), (24, 8, 2), (32, 1, 2), (33, 1, 2), (34, 1, 2)];
        assert_eq!(steps(test, false), expected);
        assert_eq!(test.name(), "tg2 @ d33");
    }

    #[test]
    fn sequences_take_each_step_together_on_pages_of_their_own() {
        struct Together;
        impl Executable for Together {
            fn step(&mut self, batch: &Batch<'_>) -> Result<&[f32], StepError> {
                assert_eq!((batch.tokens.len(), batch.outputs), (3, [0, 1, 2].as_slice()));
                let pages: Vec<&[u32]> = batch.sequences.iter().map(|sequence| sequence.pages).collect();
                assert_eq!(pages, [[0], [1], [2]]);
                Ok(&[])
            }
            fn limits(&self) -> Limits {
                Limits { max_tokens: 8, max_outputs: 3, pages: 3, context: 32, vocab: 10 }
            }
            fn describe(&self) -> String {
                String::new()
            }
        }
        let test = Test { prompt: 0, generate: 4, depth: 0, sequences: 3 };
        measure(&mut Together, test, 512, 1, true, &Guard::new()).unwrap();
        assert_eq!((test.name().as_str(), test.tokens()), ("tg4 x3", 12));
    }
}
