//! A model for the scheduler's tests whose answer depends on everything that the scheduler can get wrong.
//!
//! The "cache" stores the token of each position in the page that the block table names. Logits are a hash of all tokens
//! from position 0 on, read back through the block table, so a wrong page, a wrong position, a skipped token or two
//! sequences in one page change the answer. Batches that break a documented rule panic.

use crate::backend::{Executable, Limits, Sampling, StepError};
use rustai_abi::{Batch, PAGE_TOKENS};
use rustai_kernels_cpu::{ExecutorError, Outside};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

pub(super) const VOCAB: usize = 61;
/// The logits behind this token are NaN.
pub(super) const BROKEN: u32 = 57;
/// A kernel panics on a batch that contains this token, and the model is broken.
pub(super) const BREAKS: u32 = 58;
/// The model refuses a batch that contains this token.
pub(super) const REFUSED: u32 = 59;
/// The model panics on a batch that contains this token.
pub(super) const PANICS: u32 = 60;

/// `(start, len)` of each sequence in one step.
pub(super) type Step = Vec<(u32, u32)>;

pub(super) struct FakeModel {
    limits: Limits,
    cache: Vec<u32>,
    logits: Vec<f32>,
    /// What each step was made of; nothing for a piece of what loading has put off.
    pub(super) steps: Arc<Mutex<Vec<Step>>>,
    /// Pieces that loading has put off.
    pub(super) behind: usize,
    /// The model chooses tokens itself where it may; how often it did.
    pub(super) chose: Option<Arc<AtomicUsize>>,
    /// The same of drawing them. Whatever the settings are, it draws the likeliest.
    pub(super) drew: Option<Arc<AtomicUsize>>,
    tokens: Vec<u32>,
}

impl FakeModel {
    pub(super) fn new(max_tokens: usize, max_outputs: usize, pages: usize) -> Self {
        let limits = Limits { max_tokens, max_outputs, pages, context: pages * PAGE_TOKENS, vocab: VOCAB };
        Self {
            limits,
            cache: vec![u32::MAX; pages * PAGE_TOKENS],
            logits: Vec::new(),
            steps: Arc::default(),
            behind: 0,
            chose: None,
            drew: None,
            tokens: Vec::new(),
        }
    }
}

impl Executable for FakeModel {
    fn step(&mut self, batch: &Batch<'_>) -> Result<&[f32], StepError> {
        assert!(!batch.tokens.is_empty() && batch.tokens.len() <= self.limits.max_tokens, "tokens in a step");
        assert!(batch.outputs.len() <= self.limits.max_outputs, "rows of logits in a step");
        assert!(batch.outputs.is_sorted(), "rows ascend");
        assert_eq!(batch.sequences.iter().map(|s| s.len as usize).sum::<usize>(), batch.tokens.len());
        let mut pages: Vec<u32> = batch.sequences.iter().flat_map(|s| s.pages).copied().collect();
        let held = pages.len();
        pages.sort_unstable();
        pages.dedup();
        assert_eq!(pages.len(), held, "a page belongs to one sequence");
        assert!(!batch.tokens.contains(&PANICS), "token {PANICS} panics");
        if batch.tokens.contains(&BREAKS) {
            return Err(StepError::Cpu(ExecutorError::Panicked));
        }
        if batch.tokens.contains(&REFUSED) {
            return Err(StepError::Cpu(ExecutorError::Batch(format!("token {REFUSED}"))));
        }

        self.steps.lock().unwrap().push(batch.sequences.iter().map(|s| (s.start, s.len)).collect());
        self.logits.clear();
        let mut row = 0;
        for sequence in batch.sequences {
            let slot = |position: u32| {
                let page = sequence.pages[position as usize / PAGE_TOKENS] as usize;
                page * PAGE_TOKENS + position as usize % PAGE_TOKENS
            };
            for position in sequence.start..sequence.start + sequence.len {
                self.cache[slot(position)] = batch.tokens[row];
                if batch.outputs.contains(&(row as u32)) {
                    let seen: Vec<u32> = (0..=position).map(|position| self.cache[slot(position)]).collect();
                    self.logits.extend(logits(&seen));
                }
                row += 1;
            }
        }
        Ok(&self.logits)
    }

    fn step_with(&mut self, batch: &Batch<'_>, outside: Outside<'_>) -> Result<&[f32], StepError> {
        self.step(batch)?;
        for (row, place) in self.logits.chunks_exact_mut(VOCAB).zip(outside.output) {
            if let Some(place) = place {
                place.copy_from(row);
                // Whoever reads them in the wrong place finds nothing.
                row.fill(f32::NAN);
            }
        }
        Ok(&self.logits)
    }

    fn step_greedy(&mut self, batch: &Batch<'_>) -> Option<Result<&[u32], StepError>> {
        self.chose.as_ref()?.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.step(batch) {
            return Some(Err(error));
        }
        self.tokens = self.logits.chunks_exact(VOCAB).map(greedy).collect();
        Some(Ok(&self.tokens))
    }

    fn step_sampled(
        &mut self,
        batch: &Batch<'_>,
        outside: Outside<'_>,
        rows: &[Option<Sampling>],
    ) -> Option<Result<(&[u32], &[f32]), StepError>> {
        self.drew.as_ref()?.fetch_add(1, Ordering::Relaxed);
        assert_eq!(rows.len(), batch.outputs.len(), "settings of every row");
        if let Err(error) = self.step_with(batch, outside) {
            return Some(Err(error));
        }
        self.tokens.clear();
        for (logits, row) in self.logits.chunks_exact_mut(VOCAB).zip(rows) {
            // Whoever takes the wrong one of both gets nonsense.
            self.tokens.push(if row.is_some() { greedy(logits) } else { BREAKS });
            if row.is_some() {
                logits.fill(f32::NAN);
            }
        }
        Some(Ok((&self.tokens, &self.logits)))
    }

    fn catch_up(&mut self) -> Result<bool, StepError> {
        if self.behind > 0 {
            self.behind -= 1;
            self.steps.lock().unwrap().push(Step::new());
        }
        Ok(self.behind > 0)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn describe(&self) -> String {
        "a hash".to_owned()
    }
}

/// The logits behind `tokens`. The tokens with a special meaning never win.
pub(super) fn logits(tokens: &[u32]) -> Vec<f32> {
    let mix = |hash: u64, value: u32| (hash ^ u64::from(value)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let state = tokens.iter().fold(7, |hash, &token| mix(hash, token));
    if tokens.last() == Some(&BROKEN) {
        return vec![f32::NAN; VOCAB];
    }
    let logit = |token| if token >= BROKEN { -1.0 } else { (mix(mix(state, token), 1) >> 40) as f32 };
    (0..VOCAB as u32).map(logit).collect()
}

/// The likeliest token.
pub(super) fn greedy(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

/// `count` tokens that a correct scheduler gets for `prompt`.
pub(super) fn expected(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        tokens.push(greedy(&logits(&tokens)));
    }
    tokens.split_off(prompt.len())
}
