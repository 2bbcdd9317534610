//! Continuous batching: which tokens of which sequences the next step computes.
//!
//! The scheduler owns the queue, the running sequences and the pages of the key/value cache. It knows batches and
//! pages; it must never learn what a tensor, a text or a thread is. What a sequence's logits mean is the business of
//! its [`Driver`].
//!
//! Policy, in this order for each step:
//! 1. Cancelled sequences leave.
//! 2. Sessions that nobody can use any more give their pages back.
//! 3. Waiting sequences are admitted first come, first served, while the cache can promise all pages that they may need
//!    and a row of logits is left for each. The first one that does not fit waits, and those behind it wait with it, so
//!    that a long prompt is never overtaken forever; before it waits, idle sessions give up their pages, the one that was
//!    used longest ago first. Running sequences do not notice.
//! 4. Each sequence that is decoding gets its one token; what is left of the step's tokens goes to prompts, in the order
//!    of admission. A long prompt is thus computed in chunks between which every other sequence advances.

use super::{EngineError, OutputKind, pages::BlockTable, pages::PagePool, session::Slot};
use crate::backend::{Executable, Limits, Sampling};
use rustai_abi::{Batch, BatchSequence};
use rustai_kernels_cpu::{External, Outside};
use std::{collections::VecDeque, sync::Arc};

/// What becomes of one sequence's logits. A driver leaves the scheduler exactly once, through [`Driver::finish`].
pub(super) trait Driver {
    /// Whether nobody wants the sequence anymore. Asked once per step.
    fn is_cancelled(&self) -> bool;
    /// The sequence has its pages and will be part of the next steps. Its own first token is at position `first`: what lies
    /// before is its session's.
    fn admitted(&mut self, first: usize);
    /// Where the row behind the token at `position` is to be written, if not into the executable's own memory.
    fn place(&self, position: usize) -> Option<Place> {
        let _ = position;
        None
    }
    /// The logits behind the token at `position`; arbitrary if [`place`](Self::place) named a place for logits. Where that
    /// is the last known token, the answer is the token to go on with, or `None` at the end; elsewhere ([`Rows::All`]) the
    /// answer is ignored.
    fn logits(&mut self, position: usize, logits: &[f32]) -> Option<u32>;
    /// Whether [`logits`](Self::logits) would choose the token of the largest logit, of equal ones the first, and looks at nothing
    /// else of the row. Then [`chosen`](Self::chosen) may be called in its place.
    fn is_greedy(&self) -> bool {
        false
    }
    /// How the token behind the one at `position` may be drawn by the executable, if it does that. Then [`chosen`](Self::chosen) is
    /// called in place of [`logits`](Self::logits). The answer is `Some` for every position or for none.
    fn draw(&self, position: usize) -> Option<Sampling> {
        let _ = position;
        None
    }
    /// The token of the largest logit behind the token at `position`, or one that was drawn. The answer is as that of
    /// [`logits`](Self::logits).
    fn chosen(&mut self, position: usize, token: u32) -> Option<u32> {
        let _ = (position, token);
        None
    }
    /// Why the sequence cannot go on, if what [`logits`](Self::logits) or [`chosen`](Self::chosen) got was of no use. Asked
    /// after each step that gave the driver something.
    fn failure(&mut self) -> Option<EngineError> {
        None
    }
    /// The token that the driver took last, but did not go on with.
    fn last(&self) -> Option<u32> {
        None
    }
    /// The sequence has left; its pages are free again.
    fn finish(self, end: End);
}

/// Where one row of a step goes.
pub(super) struct Place {
    pub(super) kind: OutputKind,
    pub(super) row: External,
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
    /// The session that it continues: its tokens come before the prompt.
    pub(super) session: Option<Arc<Slot>>,
    /// Positions that the cache must have for it: those of the session, the prompt and every later token whose logits may be asked for.
    pub(super) positions: usize,
    /// Rows that need logits.
    pub(super) rows: Rows,
    /// Who gets them.
    pub(super) driver: D,
}

impl<D: Driver> Job<D> {
    /// Ends it before it has run.
    fn leave(self, end: End) {
        if let Some(slot) = &self.session {
            slot.free();
        }
        self.driver.finish(end);
    }
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
    /// The session that it continues, and its whole text.
    session: Option<(Arc<Slot>, Vec<u32>)>,
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
    /// Idle sessions that hold pages, the one that was used longest ago first.
    sessions: Vec<Arc<Slot>>,
    shares: Vec<Share>,
    tokens: Vec<u32>,
    outputs: Vec<u32>,
    views: Vec<BatchSequence<'static>>,
    /// Of each row of `outputs`, where its logits and its embedding go.
    logits_at: Vec<Option<External>>,
    embedding_at: Vec<Option<External>>,
    /// Of each row, how its token is drawn, if the executable is to draw it.
    draws: Vec<Option<Sampling>>,
}

/// What a step gives for a row.
enum Row<'a> {
    Logits(&'a [f32]),
    Token(u32),
}

impl<D: Driver> Scheduler<D> {
    pub(super) fn new(limits: Limits) -> Self {
        let most = limits.max_outputs.min(limits.max_tokens);
        Self {
            limits,
            pool: PagePool::new(limits.pages),
            waiting: VecDeque::new(),
            running: Vec::with_capacity(most),
            sessions: Vec::new(),
            shares: Vec::with_capacity(most),
            tokens: Vec::with_capacity(limits.max_tokens),
            outputs: Vec::with_capacity(limits.max_outputs),
            views: Vec::with_capacity(most),
            logits_at: Vec::new(),
            embedding_at: Vec::new(),
            draws: Vec::new(),
        }
    }

    /// Queues a sequence. One that no cache of this size could ever hold leaves at once.
    pub(super) fn submit(&mut self, job: Job<D>) {
        debug_assert!(job.positions >= job.prompt.len());
        if job.prompt.is_empty() {
            return job.leave(End::Failed(EngineError::EmptyPrompt));
        }
        let capacity = self.limits.pages.saturating_mul(rustai_abi::PAGE_TOKENS);
        if job.positions > capacity {
            let error = EngineError::PromptTooLong { tokens: job.positions, context: capacity };
            return job.leave(End::Failed(error));
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
            if let Some((slot, _)) = sequence.session {
                slot.free();
            }
            sequence.driver.finish(End::Failed(error.clone()));
        }
        for job in self.waiting.drain(..) {
            job.leave(End::Failed(error.clone()));
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

        self.find_places();
        let mut views = recycle(std::mem::take(&mut self.views));
        views.extend(self.shares.iter().map(|share| {
            let sequence = &self.running[share.sequence];
            BatchSequence { len: share.len as u32, start: sequence.position as u32, pages: sequence.table.pages() }
        }));
        let batch = Batch { tokens: &self.tokens, sequences: &views, outputs: &self.outputs };
        let greedy = !self.outputs.is_empty()
            && self.shares.iter().all(|share| share.outputs == 0 || self.running[share.sequence].driver.is_greedy());
        let tokens = if greedy { executable.step_greedy(&batch) } else { None };
        if let Some(result) = tokens {
            self.views = recycle(views);
            match result {
                Ok(tokens) => {
                    assert_eq!(tokens.len(), self.outputs.len(), "the executable returned another number of tokens");
                    self.deliver(tokens.iter(), |driver, position, token| driver.chosen(position, *token));
                }
                Err(error) => self.refuse(EngineError::of_step(error))?,
            }
        } else {
            let (output, normalized) = (&self.logits_at[..], &self.embedding_at[..]);
            let outside = Outside { inputs: &[], output, normalized };
            let draws = std::mem::take(&mut self.draws);
            let drawn = draws.iter().any(Option::is_some);
            let drawn = if drawn { executable.step_sampled(&batch, outside, &draws) } else { None };
            let result = match drawn {
                Some(result) => result.map(|(tokens, logits)| (Some(tokens), logits)),
                None => executable.step_with(&batch, outside).map(|logits| (None, logits)),
            };
            self.views = recycle(views);
            match result {
                Ok((tokens, logits)) => {
                    let vocab = self.limits.vocab;
                    let expected = self.outputs.len();
                    assert_eq!(logits.len(), expected * vocab, "the executable returned another number of logits");
                    assert!(tokens.is_none_or(|tokens| tokens.len() == expected), "another number of tokens");
                    let rows = logits.chunks_exact(vocab).enumerate().map(|(row, logits)| match (tokens, draws[row]) {
                        (Some(tokens), Some(_)) => Row::Token(tokens[row]),
                        _ => Row::Logits(logits),
                    });
                    self.deliver(rows, |driver, position, row| match row {
                        Row::Logits(logits) => driver.logits(position, logits),
                        Row::Token(token) => driver.chosen(position, token),
                    });
                }
                Err(error) => self.refuse(EngineError::of_step(error))?,
            }
            self.draws = draws;
        }
        // Callers may give their memory up as soon as they hear of the end.
        self.logits_at.clear();
        self.embedding_at.clear();
        self.collect();
        Ok(())
    }

    /// Takes out what nobody wants anymore.
    fn sweep(&mut self) {
        for slot in self.sessions.extract_if(.., |slot| Arc::strong_count(slot) == 1) {
            if let Some(table) = slot.lock().table.take() {
                self.pool.release(table);
            }
        }
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
                    job.leave(End::Cancelled);
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
            let (positions, session) = (job.positions, job.session.clone());
            let Some(table) = self.find_pages(positions, session.as_ref()) else { break };
            // PANIC: it is the one that was just looked at.
            let Job { prompt, rows, mut driver, .. } = self.waiting.pop_front().expect("looked at");
            let (mut tokens, mut position, mut first) = (prompt, 0, 0);
            let session = session.map(|slot| {
                let state = slot.lock();
                let text = [&state.tokens[..], &tokens[..]].concat();
                (first, position) = (state.tokens.len(), state.cached);
                tokens = text[position..].to_vec();
                drop(state);
                (slot, text)
            });
            driver.admitted(first);
            self.running.push(Sequence { driver, rows, table, tokens, fed: 0, position, session, end: None });
        }
    }

    /// Pages for a sequence: those that its session holds, if they are enough, else new ones. Idle sessions give theirs up
    /// if nothing else helps.
    fn find_pages(&mut self, positions: usize, session: Option<&Arc<Slot>>) -> Option<BlockTable> {
        if let Some(slot) = session {
            self.sessions.retain(|other| !Arc::ptr_eq(other, slot));
            let mut state = slot.lock();
            if let Some(mut table) = state.table.take() {
                if self.pool.extend(&mut table, positions) {
                    return Some(table);
                }
                // There may be room elsewhere, but not beside these pages: the text is computed again.
                self.pool.release(table);
                state.cached = 0;
            }
        }
        loop {
            if let Some(table) = self.pool.promise(positions) {
                return Some(table);
            }
            if self.sessions.is_empty() {
                return None;
            }
            let idle = self.sessions.remove(0);
            let mut state = idle.lock();
            if let Some(table) = state.table.take() {
                self.pool.release(table);
            }
            state.cached = 0;
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

    /// Asks the drivers where the rows of the step go, or how they are drawn.
    fn find_places(&mut self) {
        self.logits_at.clear();
        self.embedding_at.clear();
        self.draws.clear();
        for share in &self.shares {
            let sequence = &self.running[share.sequence];
            let end = sequence.position + share.len;
            for position in end - share.outputs..end {
                let (logits, embedding) = match sequence.driver.place(position) {
                    None => (None, None),
                    Some(Place { kind: OutputKind::Logits, row }) => (Some(row), None),
                    Some(Place { kind: OutputKind::Embedding, row }) => (None, Some(row)),
                };
                self.logits_at.push(logits);
                self.embedding_at.push(embedding);
                self.draws.push(sequence.driver.draw(position));
            }
        }
    }

    /// Hands the rows of a step, logits or tokens, to their drivers.
    fn deliver<R>(&mut self, mut rows: impl Iterator<Item = R>, hand: impl Fn(&mut D, usize, R) -> Option<u32>) {
        for share in &self.shares {
            let sequence = &mut self.running[share.sequence];
            sequence.fed += share.len;
            sequence.position += share.len;
            let mut next = None;
            for (index, row) in rows.by_ref().take(share.outputs).enumerate() {
                next = hand(&mut sequence.driver, sequence.position - share.outputs + index, row);
            }
            if share.outputs > 0
                && let Some(error) = sequence.driver.failure()
            {
                sequence.end = Some(End::Failed(error));
            } else if sequence.pending() == 0 {
                sequence.tokens.clear();
                sequence.fed = 0;
                match next {
                    Some(token) => {
                        sequence.tokens.push(token);
                        if let Some((_, text)) = &mut sequence.session {
                            text.push(token);
                        }
                    }
                    None => sequence.end = Some(End::Done),
                }
            }
        }
    }

    /// Marks the sequences of a step that did not run.
    fn refuse(&mut self, error: EngineError) -> Result<(), EngineError> {
        if matches!(error, EngineError::Panicked { .. } | EngineError::Device { .. }) {
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
            // PANIC: the filter asked for it.
            let end = sequence.end.take().expect("marked");
            match sequence.session {
                // What a failed step left in the pages is not known.
                Some((slot, _)) if matches!(end, End::Failed(_)) => {
                    self.pool.release(sequence.table);
                    slot.lock().cached = 0;
                    slot.free();
                }
                Some((slot, mut text)) => {
                    text.extend(sequence.driver.last());
                    let mut state = slot.lock();
                    (state.tokens, state.cached, state.table) = (text, sequence.position, Some(sequence.table));
                    drop(state);
                    slot.free();
                    self.sessions.push(slot);
                }
                None => self.pool.release(sequence.table),
            }
            sequence.driver.finish(end);
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
