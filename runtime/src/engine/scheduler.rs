//! Continuous batching: which tokens of which sequences the next step computes.
//!
//! The scheduler owns the queue, the running sequences and the pages of the key/value cache. It knows batches and
//! pages; it must never learn what a tensor, a text or a thread is. What a sequence's logits mean is the business of
//! its [`Driver`].
//!
//! Policy, in this order for each step:
//! 1. Cancelled sequences leave.
//! 2. Waiting sequences are admitted first come, first served, while the cache can promise all pages that they may need
//!    and a row of logits is left for each. The first one that does not fit waits, and those behind it wait with it, so
//!    that a long prompt is never overtaken forever. Running sequences do not notice.
//! 3. Each sequence that is decoding gets its one token; what is left of the step's tokens goes to prompts, in the order
//!    of admission. A long prompt is thus computed in chunks between which every other sequence advances.

use super::{EngineError, pages::BlockTable, pages::PagePool};
use crate::backend::{Executable, Limits};
use rustai_abi::{Batch, BatchSequence};
use std::collections::VecDeque;

/// What becomes of one sequence's logits. A driver leaves the scheduler exactly once, through [`Driver::finish`].
pub(super) trait Driver {
    /// Whether nobody wants the sequence anymore. Asked once per step.
    fn is_cancelled(&self) -> bool;
    /// The sequence has its pages and will be part of the next steps.
    fn admitted(&mut self);
    /// The logits behind the token at `position`. Where that is the last known token, the answer is the token to go on
    /// with, or `None` at the end; elsewhere ([`Rows::All`]) the answer is ignored.
    fn logits(&mut self, position: usize, logits: &[f32]) -> Option<u32>;
    /// The sequence has left; its pages are free again.
    fn finish(self, end: End);
}

/// Why a sequence leaves.
#[derive(Debug)]
pub(super) enum End {
    /// The driver asked for no further token.
    Done,
    /// The driver said that nobody wants the sequence anymore.
    Cancelled,
    /// It cannot go on.
    Failed(EngineError),
}

/// Which rows of a prompt need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// The last, to go on from it.
    Last,
    /// All, to score the prompt.
    All,
}

/// A sequence that wants to run.
pub(super) struct Job<D> {
    /// At least one token.
    pub(super) prompt: Vec<u32>,
    /// Positions that the cache must have for it: the prompt and every later token whose logits may be asked for.
    pub(super) positions: usize,
    /// Rows that need logits.
    pub(super) rows: Rows,
    /// Who gets them.
    pub(super) driver: D,
}

struct Sequence<D> {
    driver: D,
    rows: Rows,
    table: BlockTable,
    /// Known tokens that no step has computed yet start at `fed`. After the prompt this holds one token at a time.
    tokens: Vec<u32>,
    fed: usize,
    /// Positions that the cache holds.
    position: usize,
    end: Option<End>,
}

impl<D> Sequence<D> {
    fn pending(&self) -> usize {
        self.tokens.len() - self.fed
    }
}

/// One sequence's part of the step that is being made.
struct Share {
    /// Index in `running`.
    sequence: usize,
    len: usize,
    /// The last `outputs` of the `len` tokens want logits.
    outputs: usize,
}

/// The state between steps. All buffers are reused, so that a step allocates only where a queue or a batch is larger
/// than ever before.
pub(super) struct Scheduler<D> {
    limits: Limits,
    pool: PagePool,
    waiting: VecDeque<Job<D>>,
    /// In the order of admission.
    running: Vec<Sequence<D>>,
    shares: Vec<Share>,
    tokens: Vec<u32>,
    outputs: Vec<u32>,
    views: Vec<BatchSequence<'static>>,
}

impl<D: Driver> Scheduler<D> {
    pub(super) fn new(limits: Limits) -> Self {
        let most = limits.max_outputs.min(limits.max_tokens);
        Self {
            limits,
            pool: PagePool::new(limits.pages),
            waiting: VecDeque::new(),
            running: Vec::with_capacity(most),
            shares: Vec::with_capacity(most),
            tokens: Vec::with_capacity(limits.max_tokens),
            outputs: Vec::with_capacity(limits.max_outputs),
            views: Vec::with_capacity(most),
        }
    }

    /// Queues a sequence. One that no cache of this size could ever hold leaves at once.
    pub(super) fn submit(&mut self, job: Job<D>) {
        debug_assert!(job.positions >= job.prompt.len());
        if job.prompt.is_empty() {
            return job.driver.finish(End::Failed(EngineError::EmptyPrompt));
        }
        let capacity = self.limits.pages.saturating_mul(rustai_abi::PAGE_TOKENS);
        if job.positions > capacity {
            let error = EngineError::PromptTooLong { tokens: job.positions, context: capacity };
            return job.driver.finish(End::Failed(error));
        }
        self.waiting.push_back(job);
    }

    /// Whether a step would have nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Ends all sequences, running and waiting.
    pub(super) fn abort(&mut self, error: &EngineError) {
        for sequence in self.running.drain(..) {
            self.pool.release(sequence.table);
            sequence.driver.finish(End::Failed(error.clone()));
        }
        for job in self.waiting.drain(..) {
            job.driver.finish(End::Failed(error.clone()));
        }
    }

    /// Makes one step and hands out its logits. A step that `executable` refuses ends the sequences that were part of
    /// it; the others go on.
    ///
    /// # Errors
    /// If the executable cannot be used again. Nobody has been told yet: that is for [`Self::abort`].
    pub(super) fn step(&mut self, executable: &mut dyn Executable) -> Result<(), EngineError> {
        self.sweep();
        self.admit();
        self.plan();
        if self.shares.is_empty() {
            return Ok(());
        }
        for share in &self.shares {
            let sequence = &mut self.running[share.sequence];
            self.pool.grow(&mut sequence.table, sequence.position + share.len);
        }

        let mut views = recycle(std::mem::take(&mut self.views));
        views.extend(self.shares.iter().map(|share| {
            let sequence = &self.running[share.sequence];
            BatchSequence { len: share.len as u32, start: sequence.position as u32, pages: sequence.table.pages() }
        }));
        let batch = Batch { tokens: &self.tokens, sequences: &views, outputs: &self.outputs };
        let result = executable.step(&batch);
        self.views = recycle(views);

        match result {
            Ok(logits) => self.deliver(logits),
            Err(error) => self.refuse(EngineError::of_step(error))?,
        }
        self.collect();
        Ok(())
    }

    /// Takes out what nobody wants anymore.
    fn sweep(&mut self) {
        for sequence in &mut self.running {
            if sequence.driver.is_cancelled() {
                sequence.end = Some(End::Cancelled);
            }
        }
        self.collect();
        if self.waiting.iter().any(|job| job.driver.is_cancelled()) {
            for _ in 0..self.waiting.len() {
                // PANIC: the loop runs once per element.
                let job = self.waiting.pop_front().expect("counted");
                if job.driver.is_cancelled() {
                    job.driver.finish(End::Cancelled);
                } else {
                    self.waiting.push_back(job);
                }
            }
        }
    }

    /// Starts waiting sequences while there is room.
    fn admit(&mut self) {
        // Each sequence must be able to decode in each step: one token and one row of logits.
        let most = self.limits.max_outputs.min(self.limits.max_tokens);
        while self.running.len() < most {
            let Some(job) = self.waiting.front() else { break };
            let Some(table) = self.pool.promise(job.positions) else { break };
            // PANIC: it is the one that was just looked at.
            let Job { prompt, rows, mut driver, .. } = self.waiting.pop_front().expect("looked at");
            driver.admitted();
            self.running.push(Sequence { driver, rows, table, tokens: prompt, fed: 0, position: 0, end: None });
        }
    }

    /// Chooses the tokens of the step.
    fn plan(&mut self) {
        self.shares.clear();
        self.tokens.clear();
        self.outputs.clear();
        for decoding in [true, false] {
            for index in 0..self.running.len() {
                let sequence = &self.running[index];
                let pending = sequence.pending();
                if (pending == 1) != decoding {
                    continue;
                }
                let outputs_left = self.limits.max_outputs - self.outputs.len();
                let mut len = pending.min(self.limits.max_tokens - self.tokens.len());
                let outputs = match sequence.rows {
                    Rows::All => {
                        len = len.min(outputs_left);
                        len
                    }
                    Rows::Last if len < pending => 0,
                    Rows::Last if outputs_left == 0 => {
                        // No row of logits is left for the last token: it goes into the next step.
                        len -= 1;
                        0
                    }
                    Rows::Last => 1,
                };
                if len == 0 {
                    continue;
                }
                let first = self.tokens.len();
                self.tokens.extend_from_slice(&sequence.tokens[sequence.fed..sequence.fed + len]);
                self.outputs.extend((first + len - outputs..first + len).map(|row| row as u32));
                self.shares.push(Share { sequence: index, len, outputs });
            }
        }
    }

    /// Hands the rows of logits to their drivers.
    fn deliver(&mut self, logits: &[f32]) {
        let vocab = self.limits.vocab;
        assert_eq!(logits.len(), self.outputs.len() * vocab, "the executable returned another number of logits");
        let mut rows = logits.chunks_exact(vocab);
        for share in &self.shares {
            let sequence = &mut self.running[share.sequence];
            sequence.fed += share.len;
            sequence.position += share.len;
            let mut next = None;
            for row in rows.by_ref().take(share.outputs).enumerate() {
                next = sequence.driver.logits(sequence.position - share.outputs + row.0, row.1);
            }
            if sequence.pending() == 0 {
                sequence.tokens.clear();
                sequence.fed = 0;
                match next {
                    Some(token) => sequence.tokens.push(token),
                    None => sequence.end = Some(End::Done),
                }
            }
        }
    }

    /// Marks the sequences of a step that did not run.
    fn refuse(&mut self, error: EngineError) -> Result<(), EngineError> {
        if matches!(error, EngineError::Panicked { .. }) {
            return Err(error);
        }
        for share in &self.shares {
            self.running[share.sequence].end = Some(End::Failed(error.clone()));
        }
        Ok(())
    }

    /// Lets the marked sequences leave.
    fn collect(&mut self) {
        for mut sequence in self.running.extract_if(.., |sequence| sequence.end.is_some()) {
            self.pool.release(sequence.table);
            // PANIC: the filter asked for it.
            sequence.driver.finish(sequence.end.take().expect("marked"));
        }
    }
}

/// The memory of `views` under another lifetime: an emptied vector that is collected in place keeps its allocation.
fn recycle<'a>(mut views: Vec<BatchSequence<'_>>) -> Vec<BatchSequence<'a>> {
    views.clear();
    views.into_iter().map(|_| unreachable!("the vector is empty")).collect()
}

#[cfg(test)]
mod tests;
