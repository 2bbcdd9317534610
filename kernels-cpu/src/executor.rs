//! Runs a program with a persistent team of worker threads.
//!
//! [`check`] proves once, when the executor is made, that no call can leave the arena or write what another thread reads;
//! for each batch it proves that tokens, pages and rows exist. [`run`] relies on that and checks nothing.

mod batch;
mod check;
mod queries;
mod run;

use crate::{
    Buf, Call, Isa, KvShape, KvType, Matrix, MatrixError, Outside, Program, Rope, Rows, SharedBytes,
    attention::{AttentionTask, cache::LayerCache},
    matrix::MOST_FEW,
    memory::{Region, align},
    ops::Ops,
    pack::{GROUP, GROUPS_PER_TASK},
    team::{Lockstep, Poisoned, Team},
    tile::{PANEL_BYTES, TILE_ROWS},
};
pub use batch::BatchLimits;
use queries::Queries;
use rustai_abi::Batch;
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Why a program cannot be made ready or a batch cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecutorError {
    /// A call of the program is not sound.
    #[error("call {index} of the program: {reason}")]
    Program {
        /// Which call.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// Memory could not be had.
    #[error("{what} needs {bytes} bytes, which the system refuses: {reason}")]
    OutOfMemory {
        /// What the memory is for.
        what: &'static str,
        /// How much.
        bytes: usize,
        /// The system's word.
        reason: String,
    },
    /// The processor cannot run what was asked for.
    #[error("{isa} kernels need {missing}, which this processor lacks")]
    Isa {
        /// The instruction set.
        isa: &'static str,
        /// What is missing.
        missing: &'static str,
    },
    /// Worker threads could not be started.
    #[error("cannot start {threads} threads: {reason}; ask for fewer")]
    Threads {
        /// How many were wanted.
        threads: usize,
        /// The system's word.
        reason: String,
    },
    /// A matrix could not be packed.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// A kernel panicked, which is a defect of this program; the executor cannot be used again.
    #[error("a kernel panicked; the model has to be loaded again")]
    Panicked,
    /// A batch does not fit the program.
    #[error("batch refused: {0}")]
    Batch(String),
}

/// A program with its memory, its key/value cache and its threads.
pub struct Executor {
    program: Program,
    limits: BatchLimits,
    ops: Ops,
    team: Team,
    arena: Region,
    cache: Region,
    scratch: Region,
    layout: Scratch,
    ropes: Vec<RopeTable>,
    /// For each `Call::RopeAppend`, which of `ropes` it uses.
    rope_of_call: Vec<Option<usize>>,
    /// One work counter per call, and one for the preparation.
    counters: Vec<AtomicUsize>,
    /// Where each row of the batch belongs.
    rows: Vec<RowPlace>,
    /// How attention is cut into tasks.
    queries: Queries,
    /// What matrices were packed from since the first of [`pack_next`](Self::pack_next).
    packed_from: Vec<SharedBytes>,
}

/// Sines and cosines of one rotation for the rows of a batch.
struct RopeTable {
    rope: Rope,
    /// `[max_tokens][pairs]` of (cosine, sine), times the magnitude.
    values: Region,
}

/// A row of the batch.
#[derive(Clone, Copy, Debug)]
struct RowPlace {
    sequence: u32,
    position: u32,
}

/// Offsets in a thread's scratch.
#[derive(Clone, Copy, Debug)]
struct Scratch {
    /// Two result blocks of a strip, or of a piece of it.
    results: [usize; 2],
    /// Values that each has room for: a tile of two groups with all rows, and strips for few.
    result_values: usize,
    /// Three rows of the widest buffer; the last is for copies of rows that lie outside the arena.
    rows: [usize; 3],
    panel: usize,
    dequantized: usize,
    deferred: usize,
    attention: usize,
    bytes: usize,
}

impl Executor {
    /// Checks `program`, takes its memory and starts `threads - 1` workers (the caller's thread is the first).
    ///
    /// # Errors
    /// [`ExecutorError`] if a call is unsound or memory is refused.
    pub fn new(isa: Isa, threads: usize, program: Program) -> Result<Self, ExecutorError> {
        if let Some(missing) = isa.missing_feature() {
            return Err(ExecutorError::Isa { isa: isa.name(), missing });
        }
        let facts = check::program(&program)?;
        let shape = program.kv;
        let ops = Ops::new(isa, shape.map_or(16, |kv| kv.head_dim), shape.map_or(KvType::F16, |kv| kv.kv_type));
        let threads = threads.max(1);

        // Sizes saturate: no region is so large, so one that overflows is refused below.
        let mut bytes = 0usize;
        let mut take = |values: usize| {
            let at = bytes;
            bytes = bytes.saturating_add(align(values.saturating_mul(4)));
            at
        };
        // Activations may have two planes, and so have their products. Strips for few tokens have up to `MOST_FEW` tiles, times tokens.
        let result = program.max_tokens.max(program.max_outputs).max(MOST_FEW).saturating_mul(2 * TILE_ROWS);
        let head_dim = shape.map_or(0, |kv| kv.head_dim);
        let query_rows = Queries::tile_tokens(facts.max_group).saturating_mul(facts.max_group);
        let layout = Scratch {
            results: [take(result), take(result)],
            result_values: result,
            rows: [take(facts.max_width), take(facts.max_width), take(facts.max_width)],
            panel: take(PANEL_BYTES / 4),
            dequantized: take(facts.dequantized_values),
            deferred: take(facts.deferred_bytes.div_ceil(4)),
            attention: take(AttentionTask::scratch_values(query_rows, head_dim)),
            bytes: 0,
        };
        // Threads' shares lie a page apart at least, so that none disturbs another's cache lines.
        let layout = Scratch { bytes: bytes.checked_next_multiple_of(4096).unwrap_or(usize::MAX), ..layout };

        let cache_bytes = shape
            .map_or(0, |kv| LayerCache::page_bytes(&kv, ops.kv).saturating_mul(kv.pages).saturating_mul(kv.layers));
        let mut ropes: Vec<RopeTable> = Vec::new();
        let mut rope_of_call = Vec::with_capacity(program.calls.len());
        for call in &program.calls {
            let Call::RopeAppend { rope: Some(rope), .. } = call else {
                rope_of_call.push(None);
                continue;
            };
            let same =
                |table: &RopeTable| table.rope.inv_freq == rope.inv_freq && table.rope.magnitude == rope.magnitude;
            let index = match ropes.iter().position(same) {
                Some(index) => index,
                None => {
                    let len = program.max_tokens.saturating_mul(rope.inv_freq.len()).saturating_mul(8);
                    ropes.push(RopeTable { rope: rope.clone(), values: Region::new("rotation tables", len)? });
                    ropes.len() - 1
                }
            };
            rope_of_call.push(Some(index));
        }
        let Program { max_tokens, max_outputs, .. } = program;
        let queries = Queries::new(shape, facts.max_group, max_tokens, max_outputs, threads, ops.in_parts)?;
        let team = Team::new(threads).map_err(|error| ExecutorError::Threads { threads, reason: error.to_string() })?;
        Ok(Self {
            ops,
            team,
            arena: Region::shared("activations", program.arena_bytes)?,
            cache: Region::shared("the key/value cache", cache_bytes)?,
            scratch: Region::new("scratch", layout.bytes.saturating_mul(threads))?,
            layout,
            ropes,
            rope_of_call,
            counters: (0..=program.calls.len()).map(|_| AtomicUsize::new(0)).collect(),
            rows: reserved(program.max_tokens)?,
            queries,
            packed_from: Vec::new(),
            limits: check::limits(&program),
            program,
        })
    }

    /// Packs the largest of the program's [`deferred`](Matrix::deferred) matrices for good, on all threads; `false` if none is left.
    /// The pages of the files that hold them are let go of, so that memory does not hold weights twice.
    ///
    /// # Errors
    /// [`ExecutorError::Matrix`] if memory is refused: the matrix stays as it was, and can still be used.
    /// [`ExecutorError::Panicked`] if a kernel panicked, now or earlier.
    pub fn pack_next(&mut self) -> Result<bool, ExecutorError> {
        let size = |weight: &Arc<Matrix>| weight.deferred_from().map(|bytes| bytes.len());
        let mut largest: Option<Arc<Matrix>> = None;
        self.program.each_weight(|weight| {
            if size(weight) > largest.as_ref().and_then(size) {
                largest = Some(Arc::clone(weight));
            }
        });
        let Some(matrix) = largest else {
            // Reading one page of a file brings its neighbours along, also such as had been let go of.
            self.packed_from.drain(..).for_each(|bytes| bytes.release());
            return Ok(false);
        };
        if self.packed_from.is_empty() {
            // Steps have brought all of them.
            self.program.each_weight(|weight| weight.deferred_from().into_iter().for_each(SharedBytes::release));
        }
        let room = matrix.room()?;
        let groups = matrix.rows().div_ceil(GROUP);
        let counter = &self.counters[0];
        counter.store(0, Relaxed);
        let (layout, scratch, out) = (&self.layout, run::Shared(self.scratch.as_ptr()), run::Shared(room.as_ptr()));
        let pack = |thread: usize, lockstep: &Lockstep<'_>| {
            while let Some(tasks) = lockstep.next(counter, groups.div_ceil(GROUPS_PER_TASK)) {
                let part = tasks.start * GROUPS_PER_TASK..groups.min(tasks.end * GROUPS_PER_TASK);
                // SAFETY: the groups were claimed by this thread, the room is that of the matrix, and `check` has found the share of
                // scratch that a deferred matrix takes.
                unsafe {
                    let scratch = scratch.get().add(thread * layout.bytes + layout.deferred);
                    matrix.pack_groups(part, *out.get(), scratch);
                }
            }
        };
        self.team.run(&pack).map_err(|Poisoned| ExecutorError::Panicked)?;
        // PANIC: it was chosen for being deferred.
        let packed = Arc::new(matrix.packed_into(room).expect("a deferred matrix"));
        self.program.each_weight(|weight| {
            if Arc::ptr_eq(weight, &matrix) {
                *weight = Arc::clone(&packed);
            }
        });
        if let Some(bytes) = matrix.deferred_from() {
            bytes.release();
            self.packed_from.push(bytes.clone());
        }
        Ok(true)
    }

    /// Bytes of key/value cache that `isa` takes for `shape`; they saturate.
    pub fn cache_bytes(isa: Isa, shape: &KvShape) -> u64 {
        let page = LayerCache::page_bytes(shape, Ops::new(isa, shape.head_dim, shape.kv_type).kv);
        (page as u64).saturating_mul(shape.layers as u64).saturating_mul(shape.pages as u64)
    }

    /// Fills the first rows of an input buffer; `values` is row-major.
    ///
    /// # Errors
    /// [`ExecutorError::Batch`] if the buffer is none of the program's inputs or the values are no whole rows that fit.
    pub fn write(&mut self, buf: Buf, values: &[f32]) -> Result<(), ExecutorError> {
        if !self.program.inputs.contains(&buf) {
            return Err(ExecutorError::Batch(format!("{buf:?} is no input of the program")));
        }
        let rows = self.program.max_rows(buf.rows);
        if !values.len().is_multiple_of(buf.width) || values.len() > rows * buf.width {
            return Err(ExecutorError::Batch(format!(
                "{} input values are not at most {rows} rows of {}",
                values.len(),
                buf.width
            )));
        }
        let bytes = &mut self.arena.as_mut_slice()[buf.offset..][..values.len() * 4];
        for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
            *bytes = value.to_ne_bytes();
        }
        Ok(())
    }

    /// Runs the program on `batch` and returns the output buffer's rows.
    ///
    /// # Errors
    /// [`ExecutorError::Batch`] if the batch breaks a limit or names a token, page or row that does not exist; nothing
    /// has run then. [`ExecutorError::Panicked`] if a kernel panicked, now or earlier.
    pub fn run(&mut self, batch: &Batch<'_>) -> Result<&[f32], ExecutorError> {
        self.run_calls(batch, 0..self.program.calls.len())?;
        self.values(self.program.output, batch)
    }

    /// As [`run`](Self::run), with rows outside the arena: what is given there is read and written in place, and the rows of
    /// the result that are given have no values in what is returned.
    ///
    /// # Errors
    /// As [`run`](Self::run); [`ExecutorError::Batch`] if a row has another width than its buffer, or the program does not
    /// end as [`Outside`] says.
    pub fn run_with(&mut self, batch: &Batch<'_>, outside: Outside<'_>) -> Result<&[f32], ExecutorError> {
        check::outside(&self.program, batch, &outside)?;
        self.run_range(batch, 0..self.program.calls.len(), outside)?;
        self.values(self.program.output, batch)
    }

    /// Runs some of the program's calls, so that [`values`](Self::values) may be looked at between them. All calls of a
    /// batch must be run in their order before the next batch; otherwise results are meaningless.
    ///
    /// # Errors
    /// As [`run`](Self::run), and if there are no such calls.
    pub fn run_calls(&mut self, batch: &Batch<'_>, calls: Range<usize>) -> Result<(), ExecutorError> {
        self.run_range(batch, calls, Outside::default())
    }

    /// Runs some calls. `outside` was checked.
    fn run_range(&mut self, batch: &Batch<'_>, calls: Range<usize>, outside: Outside<'_>) -> Result<(), ExecutorError> {
        if calls.start > calls.end || calls.end > self.program.calls.len() {
            return Err(ExecutorError::Batch(format!("calls {calls:?} of {}", self.program.calls.len())));
        }
        self.limits.check(batch)?;
        self.rows.clear();
        self.queries.cut(batch);
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let place = |i| RowPlace { sequence: index as u32, position: sequence.start + i };
            self.rows.extend((0..sequence.len).map(place));
        }
        for counter in &self.counters {
            counter.store(0, Relaxed);
        }
        let Self { program, ops, team, arena, cache, scratch, layout, ropes, rope_of_call, counters, .. } = self;
        let step = run::Step {
            program,
            ops,
            arena: arena.as_ptr(),
            cache: cache.as_ptr(),
            layout,
            ropes,
            rope_of_call,
            counters,
            rows: &self.rows,
            queries: &self.queries,
            batch,
            calls,
            outside,
        };
        let scratch = run::Shared(scratch.as_ptr());
        let step = run::Shared(&step);
        team.run(&|thread, lockstep| {
            // SAFETY: `check` has proven the program's and the batch's offsets; each thread has its own scratch; the
            // region has a share for each thread of the team.
            unsafe { step.get().run(lockstep, scratch.get().add(thread * layout.bytes)) }
        })
        .map_err(|Poisoned| ExecutorError::Panicked)
    }

    /// What a buffer holds for the rows of `batch`, which is the one that ran last.
    ///
    /// # Errors
    /// [`ExecutorError::Batch`] if the buffer does not lie in the arena.
    pub fn values(&self, buf: Buf, batch: &Batch<'_>) -> Result<&[f32], ExecutorError> {
        let rows = match buf.rows {
            Rows::Tokens => batch.tokens.len(),
            Rows::Outputs => batch.outputs.len(),
        };
        let len = rows.saturating_mul(buf.width);
        let end = buf.offset.saturating_add(len.saturating_mul(4));
        if end > self.program.arena_bytes || !buf.offset.is_multiple_of(4) {
            return Err(ExecutorError::Batch(format!("{rows} rows of {buf:?} are not in the arena")));
        }
        // SAFETY: the values lie in the arena, as was just checked; regions are aligned and initialised, any bits are an
        // `f32`, and no other thread runs now.
        Ok(unsafe { std::slice::from_raw_parts(self.arena.as_ptr().add(buf.offset).cast(), len) })
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }
}

/// An empty list with room for `rows` entries, so that steps need not allocate.
fn reserved<T>(rows: usize) -> Result<Vec<T>, ExecutorError> {
    let mut list = Vec::new();
    list.try_reserve_exact(rows).map_err(|error| ExecutorError::OutOfMemory {
        what: "the list of a batch's rows",
        bytes: rows.saturating_mul(size_of::<T>()),
        reason: error.to_string(),
    })?;
    Ok(list)
}
