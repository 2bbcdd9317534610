//! One step of a program, as every thread of the team runs it.
//!
//! SAFETY of the whole file: [`Step::run`] is called by [`Executor::run`](super::Executor::run) only, after
//! [`check`](super::check) has proven that
//!
//! - every buffer lies in the arena with room for the largest batch, 64-byte aligned, and what a call writes overlaps
//!   nothing else that it reads or writes, but for element-wise work in place;
//! - tokens, pages and output rows exist, and no cache position is written twice.
//!
//! Threads share the arena through raw pointers. Within a call, each task (a row, a tile of columns, a head of a query
//! tile) is claimed by one thread and writes what no other task touches; between calls there is a barrier. So no byte is
//! accessed by two threads at once unless both read.

use super::{
    RopeTable, RowPlace, Scratch,
    queries::{Piece, Queries},
};
use crate::{
    Act, Buf, Call, External, Matrix, Outside, Program, Projection, QBuf, RopeStyle, Rows,
    attention::{
        AttentionTask, Work,
        cache::{LayerCache, Place},
    },
    formats::q8a,
    matrix::{ActRows, TileScratch},
    ops::Ops,
    pack::GROUP,
    team::Lockstep,
    tile::TILE_ROWS,
};
use rustai_abi::{Batch, PAGE_TOKENS};
use std::{ops::Range, sync::atomic::AtomicUsize};

/// A pointer that the threads of a team share.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(pub(super) T);

// SAFETY: see the head of the file for how threads keep out of each other's way.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn get(&self) -> &T {
        &self.0
    }
}

/// What a step needs.
pub(super) struct Step<'a> {
    pub(super) program: &'a Program,
    pub(super) ops: &'a Ops,
    pub(super) arena: *mut u8,
    pub(super) cache: *mut u8,
    pub(super) layout: &'a Scratch,
    pub(super) ropes: &'a [RopeTable],
    pub(super) rope_of_call: &'a [Option<usize>],
    pub(super) counters: &'a [AtomicUsize],
    pub(super) rows: &'a [RowPlace],
    pub(super) queries: &'a Queries,
    pub(super) batch: &'a Batch<'a>,
    /// The calls that run. What all calls need is prepared with the first.
    pub(super) calls: Range<usize>,
    /// Rows that do not lie in the arena.
    pub(super) outside: Outside<'a>,
}

impl Step<'_> {
    /// One thread's part of all calls; `scratch` is its own.
    ///
    /// # Safety
    /// See the head of the file.
    pub(super) unsafe fn run(&self, lockstep: &Lockstep, scratch: *mut u8) {
        let (first, counters) = self.counters.split_first().expect("there is a counter for the preparation");
        let prepared = if self.calls.start == 0 { self.rows.len() } else { 0 };
        while let Some(rows) = lockstep.next(first, prepared) {
            for row in rows {
                for table in self.ropes {
                    // SAFETY: the table has a row for each row of the batch, and this thread has claimed this one.
                    unsafe { table.fill(row, self.rows[row].position) };
                }
            }
        }
        lockstep.barrier();
        for index in self.calls.clone() {
            let call = &self.program.calls[index];
            let tasks = self.tasks(call);
            while let Some(run) = lockstep.next(&counters[index], tasks) {
                let mut tasks = run;
                while !tasks.is_empty() {
                    // SAFETY: see the head of the file.
                    tasks.start += unsafe { self.task(index, call, tasks.clone(), scratch) };
                }
            }
            lockstep.barrier();
        }
    }

    fn row_count(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.batch.tokens.len(),
            Rows::Outputs => self.batch.outputs.len(),
        }
    }

    /// Into how many independent pieces a call is cut.
    fn tasks(&self, call: &Call) -> usize {
        let rows = |buf: &Buf| self.row_count(buf.rows);
        match call {
            Call::Embed { out, .. } | Call::SelectOutputs { out, .. } => rows(out),
            Call::RmsNorm { x, .. } | Call::Quantize { x, .. } => rows(x),
            Call::MatMul { projections, .. } => {
                let some = projections.first().is_some_and(|projection| rows(&projection.out) > 0);
                if some { projections.iter().map(|projection| projection.weight.tiles()).sum() } else { 0 }
            }
            Call::GatedMatMul { gate, out, .. } => {
                if rows(out) > 0 {
                    gate.tiles()
                } else {
                    0
                }
            }
            Call::RopeAppend { q, .. } => rows(q),
            Call::Attention { .. } => self.queries.tasks(),
            Call::Add { out, .. } | Call::Mul { out, .. } => rows(out),
            Call::Silu { x, .. } | Call::Softmax { x, .. } => rows(x),
        }
    }

    /// Does the first of some tasks, and perhaps more of them with it; returns how many.
    ///
    /// # Safety
    /// See the head of the file; the tasks were claimed by this thread.
    unsafe fn task(&self, index: usize, call: &Call, tasks: Range<usize>, scratch: *mut u8) -> usize {
        let task = tasks.start;
        // SAFETY: see the head of the file. Each arm touches the rows, columns or heads of its own task.
        unsafe {
            match call {
                Call::Embed { table, out, scale } => {
                    let row = self.row_mut(*out, task);
                    table.row(self.batch.tokens[task] as usize, row);
                    if *scale != 1.0 {
                        row.iter_mut().for_each(|x| *x *= scale);
                    }
                }
                Call::RmsNorm { x, weight, eps, out } => match out {
                    _ if let Some(row) = self.normalized(index, task) => {
                        let own = self.scratch_row(scratch, 0, x.width);
                        (self.ops.rms_norm)(self.row(*x, task, scratch), weight, *eps, own);
                        match out {
                            Act::F32(out) => self.row_mut(*out, task).copy_from_slice(own),
                            Act::Q8(out) => self.quantize(own, *out, task, scratch),
                        }
                        row.copy_from_nonoverlapping(own.as_ptr(), own.len());
                    }
                    Act::F32(out) => {
                        self.map(*x, *out, task, scratch, |x, out| (self.ops.rms_norm)(x, weight, *eps, out));
                    }
                    Act::Q8(out) => {
                        let normalized = self.scratch_row(scratch, 0, x.width);
                        (self.ops.rms_norm)(self.row(*x, task, scratch), weight, *eps, normalized);
                        self.quantize(normalized, *out, task, scratch);
                    }
                },
                Call::Quantize { x, out } => self.quantize(self.row(*x, task, scratch), *out, task, scratch),
                Call::MatMul { x, projections } => {
                    let mut tile = task;
                    for projection in projections {
                        if tile < projection.weight.tiles() {
                            let strip = self.strip(&projection.weight, projection.out.rows, tile, tasks.len());
                            self.project(index, *x, projection, &strip, scratch);
                            return strip.tiles;
                        }
                        tile -= projection.weight.tiles();
                    }
                }
                Call::GatedMatMul { x, gate, up, out } => {
                    let (gated, linear) = (self.result(scratch, 0), self.result(scratch, 1));
                    let strip = self.strip(gate, out.rows, task, tasks.len());
                    for rows in self.chunks(&strip, *x, out.rows) {
                        self.tile(gate, &strip, *x, rows.clone(), gated, scratch);
                        self.tile(up, &strip, *x, rows.clone(), linear, scratch);
                        for (i, t) in rows.enumerate() {
                            let at =
                                |from: *mut f32| std::slice::from_raw_parts(from.add(i * strip.width()), strip.count);
                            (self.ops.swiglu)(
                                at(gated),
                                at(linear),
                                self.columns_mut(*out, t, strip.first, strip.count),
                            );
                        }
                    }
                    return strip.tiles;
                }
                Call::RopeAppend { q, k, v, layer, rope } => {
                    let kv = self.program.kv.expect("checked: the program has a cache");
                    let (place, cache) = (self.rows[task], self.layer(*layer));
                    let mut keys = self.row(*k, task, scratch);
                    if let (Some(rope), Some(table)) = (rope, self.rope_of_call[index]) {
                        let turns = self.ropes[table].row(task);
                        let (queries, turned) = (self.row_mut(*q, task), self.scratch_row(scratch, 0, k.width));
                        // Others may read the keys as they are.
                        turned.copy_from_slice(keys);
                        for head in queries.chunks_exact_mut(kv.head_dim).chain(turned.chunks_exact_mut(kv.head_dim)) {
                            rotate(head, rope.style, turns);
                        }
                        keys = turned;
                    }
                    let pages = self.batch.sequences[place.sequence as usize].pages;
                    let position = place.position as usize;
                    let (page, slot) = (pages[position / PAGE_TOKENS], position % PAGE_TOKENS);
                    let values = self.row(*v, task, scratch);
                    let heads = keys.chunks_exact(kv.head_dim).zip(values.chunks_exact(kv.head_dim));
                    for (head, (key, value)) in heads.enumerate() {
                        (self.ops.append)(&cache, Place { page, slot, head }, key, value);
                    }
                }
                Call::Attention { q, out, layer, scale, window } => {
                    let kv = self.program.kv.expect("checked: the program has a cache");
                    let piece = self.queries.piece(task);
                    let Piece { tile, head, .. } = piece;
                    let group = q.width / kv.head_dim / kv.kv_heads;
                    let column = head * group * kv.head_dim;
                    let sequence = &self.batch.sequences[tile.sequence as usize];
                    let task = AttentionTask {
                        q: self.at(*q, tile.first as usize).add(column),
                        out: self.at(*out, tile.first as usize).add(column),
                        stride: q.width,
                        tokens: tile.len as usize,
                        group,
                        head_dim: kv.head_dim,
                        start: self.rows[tile.first as usize].position as usize,
                        scale: *scale,
                        window: window.map_or(usize::MAX, |window| window as usize),
                        cache: self.layer(*layer),
                        head,
                        pages: sequence.pages,
                        scratch: scratch.add(self.layout.attention).cast(),
                    };
                    self.attend(&task, &piece);
                }
                Call::Add { a, b, out } => self.zip(*a, *b, *out, task, |a, b| a + b),
                Call::Mul { a, b, out } => self.zip(*a, *b, *out, task, |a, b| a * b),
                Call::Silu { x, out } => self.map(*x, *out, task, scratch, |x, out| (self.ops.silu)(x, out)),
                Call::Softmax { x, out } => self.map(*x, *out, task, scratch, |x, out| (self.ops.softmax)(x, out)),
                Call::SelectOutputs { x, out } => {
                    let row = self.batch.outputs[task] as usize;
                    self.row_mut(*out, task).copy_from_slice(self.row(*x, row, scratch));
                }
            }
        }
        1
    }

    /// A task of attention, or the part of it that `piece` names.
    ///
    /// # Safety
    /// See the head of the file.
    unsafe fn attend(&self, task: &AttentionTask, piece: &Piece) {
        let attention = self.ops.attention;
        let chunks = task.chunks();
        let state = AttentionTask::state_values(task.tokens * task.group, task.head_dim);
        let states = |chunk: usize| self.queries.states(piece).wrapping_add(chunk * state);
        // SAFETY: see the head of the file. The states of a chunk are written by the task of that chunk alone, and the result
        // by the one that finishes last, when no other reads queries or states any more.
        unsafe {
            match piece.chunk {
                None => attention(task, Work::Whole),
                Some(index) if chunks.contains(&index) => {
                    attention(task, Work::Chunk { index, state: states(index) });
                    if self.queries.finish(piece, chunks.len()) {
                        attention(task, Work::Merge { states: states(chunks.start) });
                    }
                }
                // A window hides the chunk.
                Some(_) => {}
            }
        }
    }

    /// The rows of a matrix from tile `tile` on that are multiplied together, if `most` tiles are there to do.
    fn strip(&self, weight: &Matrix, rows: Rows, tile: usize, most: usize) -> Strip {
        let tiles = weight.strip(self.row_count(rows)).min(most).min(weight.tiles() - tile);
        let first = tile * TILE_ROWS;
        let count = (tiles * TILE_ROWS).min(weight.rows() - first);
        Strip { tiles, first, count }
    }

    /// The rows of `x` in as many pieces as it takes for a strip's results to fit their scratch, which holds all rows of a tile, all
    /// of a strip for few rows, and therefore some of any other strip.
    fn chunks(&self, strip: &Strip, x: Act, rows: Rows) -> impl Iterator<Item = Range<usize>> {
        let (rows, planes) = (self.row_count(rows), planes(x));
        let chunk = self.layout.result_values / (planes * strip.width());
        (0..rows).step_by(chunk).map(move |first| first..rows.min(first + chunk))
    }

    /// A strip of one projection, for all rows.
    ///
    /// # Safety
    /// See the head of the file.
    unsafe fn project(&self, index: usize, x: Act, projection: &Projection, strip: &Strip, scratch: *mut u8) {
        // SAFETY: the columns of the strip are this task's own.
        unsafe {
            let result = self.result(scratch, 0);
            let (first, count) = (strip.first, strip.count);
            let outside = self.output(index, projection.out);
            for rows in self.chunks(strip, x, projection.out.rows) {
                self.tile(&projection.weight, strip, x, rows.clone(), result, scratch);
                for (i, t) in rows.enumerate() {
                    let result = std::slice::from_raw_parts_mut(result.add(i * strip.width()), count);
                    if let Some(bias) = &projection.bias {
                        for (x, bias) in result.iter_mut().zip(&bias[first..]) {
                            *x += bias;
                        }
                    }
                    if let Some(Some(row)) = outside.get(t) {
                        row.as_ptr().add(first).copy_from_nonoverlapping(result.as_ptr(), count);
                        continue;
                    }
                    let out = self.columns_mut(projection.out, t, first, count);
                    if projection.accumulate {
                        for (out, x) in out.iter_mut().zip(result) {
                            *out += *x;
                        }
                    } else {
                        out.copy_from_slice(result);
                    }
                }
            }
        }
    }

    /// Products of a strip of `weight` with some rows of `x`.
    ///
    /// # Safety
    /// See the head of the file; `result` is this thread's own and has room for them.
    unsafe fn tile(
        &self,
        weight: &Matrix,
        strip: &Strip,
        x: Act,
        rows: Range<usize>,
        result: *mut f32,
        scratch: *mut u8,
    ) {
        let planes = planes(x);
        let (start, stride) = match x {
            Act::F32(x) => (self.start(x), x.width * 4),
            Act::Q8(x) => (self.arena.wrapping_add(x.offset), q8a::row_bytes(x.width)),
        };
        // SAFETY: the input was written by an earlier call, before a barrier; scratch is this thread's own.
        unsafe {
            let start = start.add(rows.start * planes * stride);
            let x = ActRows { start, stride, rows: rows.len() * planes };
            let scratch = TileScratch {
                panel: scratch.add(self.layout.panel),
                dequantized: scratch.add(self.layout.dequantized).cast(),
                deferred: scratch.add(self.layout.deferred),
            };
            weight.multiply(strip.groups(), x, result, scratch);
            if planes == 2 {
                // Products of the two planes of each row become one, a group after the other.
                let width = strip.width();
                for t in 0..rows.len() {
                    for i in (0..width).step_by(GROUP) {
                        let group = |row: usize| result.add(row * width + i).cast::<[f32; GROUP]>();
                        let (first, second) = (group(2 * t).read(), group(2 * t + 1).read());
                        group(t).write(std::array::from_fn(|r| first[r] + second[r]));
                    }
                }
            }
        }
    }

    /// # Safety
    /// `scratch` is a thread's share.
    unsafe fn result(&self, scratch: *mut u8, which: usize) -> *mut f32 {
        // SAFETY: the offset lies in the share.
        unsafe { scratch.add(self.layout.results[which]).cast() }
    }

    fn layer(&self, layer: usize) -> LayerCache {
        let kv = self.program.kv.expect("checked: the program has a cache");
        let bytes = LayerCache::page_bytes(&kv, self.ops.kv) * kv.pages;
        LayerCache {
            start: self.cache.wrapping_add(layer * bytes),
            element: self.ops.kv,
            kv_heads: kv.kv_heads,
            head_dim: kv.head_dim,
        }
    }

    /// Where the first row of a buffer lies: in the arena, or outside if it is an input that is given there. Inputs keep
    /// their place through the whole program, so no other buffer is equal to one.
    #[inline(always)]
    fn start(&self, buf: Buf) -> *mut u8 {
        match self.outside_input(buf) {
            Some(outside) => outside.as_ptr().cast(),
            None => self.arena.wrapping_add(buf.offset),
        }
    }

    /// What is given for a buffer outside the arena.
    #[inline(always)]
    fn outside_input(&self, buf: Buf) -> Option<&External> {
        let mut inputs = self.program.inputs.iter().zip(self.outside.inputs);
        inputs.find_map(|(input, outside)| outside.as_ref().filter(|_| *input == buf))
    }

    /// Where rows of a buffer lie outside the arena: those of the output, if call `index` is the last one.
    fn output(&self, index: usize, buf: Buf) -> &[Option<External>] {
        let is_output = index + 1 == self.program.calls.len() && buf == self.program.output;
        if is_output { self.outside.output } else { &[] }
    }

    /// Where row `row` of the last product's input is wanted, if call `index` is the normalization before it.
    fn normalized(&self, index: usize, row: usize) -> Option<*mut f32> {
        let row = self.outside.normalized.get(row).filter(|_| index + 2 == self.program.calls.len())?;
        Some(row.as_ref()?.as_ptr())
    }

    /// # Safety
    /// The buffer has the row.
    unsafe fn at(&self, buf: Buf, row: usize) -> *mut f32 {
        // SAFETY: promised by the caller and `check`.
        unsafe { self.start(buf).cast::<f32>().add(row * buf.width) }
    }

    /// A row to read; one outside the arena, where others may write, is copied to the thread's scratch.
    ///
    /// # Safety
    /// The buffer has the row, and nobody writes it meanwhile if it lies in the arena; `scratch` is the thread's share, and no
    /// other row from outside is in use.
    unsafe fn row(&self, buf: Buf, row: usize, scratch: *mut u8) -> &[f32] {
        // SAFETY: promised by the caller and `check`; the arena is initialised.
        unsafe {
            let at = self.at(buf, row);
            if self.outside_input(buf).is_none() {
                return std::slice::from_raw_parts(at, buf.width);
            }
            let copy = self.scratch_row(scratch, 2, buf.width);
            at.copy_to_nonoverlapping(copy.as_mut_ptr(), buf.width);
            copy
        }
    }

    /// # Safety
    /// The buffer has the row, and nobody else uses it meanwhile.
    #[expect(clippy::mut_from_ref, reason = "the arena is shared through a raw pointer; see the head of the file")]
    unsafe fn row_mut(&self, buf: Buf, row: usize) -> &mut [f32] {
        // SAFETY: promised by the caller and `check`; the arena is initialised.
        unsafe { std::slice::from_raw_parts_mut(self.at(buf, row), buf.width) }
    }

    /// # Safety
    /// The buffer has the row and the columns, and nobody else uses them meanwhile.
    #[expect(clippy::mut_from_ref, reason = "the arena is shared through a raw pointer; see the head of the file")]
    unsafe fn columns_mut(&self, buf: Buf, row: usize, first: usize, count: usize) -> &mut [f32] {
        // SAFETY: promised by the caller and `check`; the arena is initialised.
        unsafe { std::slice::from_raw_parts_mut(self.at(buf, row).add(first), count) }
    }

    /// Quantizes `values` into row `row`, plane by plane; scratch row 1 takes what the first plane leaves.
    ///
    /// # Safety
    /// The buffer has the row, and nobody else uses it meanwhile; `scratch` is the thread's share.
    unsafe fn quantize(&self, values: &[f32], out: QBuf, row: usize, scratch: *mut u8) {
        let bytes = q8a::row_bytes(out.width);
        // SAFETY: promised by the caller and `check`; the arena is initialised.
        unsafe {
            let at = self.arena.add(out.offset + row * out.planes * bytes);
            let first = std::slice::from_raw_parts_mut(at, bytes);
            (self.ops.quantize)(values, first);
            if out.planes == 2 {
                let rest = self.scratch_row(scratch, 1, out.width);
                rest.copy_from_slice(values);
                q8a::subtract(rest, first);
                (self.ops.quantize)(rest, std::slice::from_raw_parts_mut(at.add(bytes), bytes));
            }
        }
    }

    /// # Safety
    /// The buffers have the row; nobody else uses it in `out` meanwhile. `out` may be `a` or `b`.
    unsafe fn zip(&self, a: Buf, b: Buf, out: Buf, row: usize, f: impl Fn(f32, f32) -> f32) {
        // SAFETY: promised by the caller; element by element through pointers, since buffers may be one and the same.
        unsafe {
            let (a, b, to) = (self.at(a, row), self.at(b, row), self.at(out, row));
            for i in 0..out.width {
                *to.add(i) = f(*a.add(i), *b.add(i));
            }
        }
    }

    /// # Safety
    /// The buffers have the row; nobody else uses it in `out` meanwhile. `out` may be `x`.
    unsafe fn map(&self, x: Buf, out: Buf, row: usize, scratch: *mut u8, f: impl Fn(&[f32], &mut [f32])) {
        // SAFETY: promised by the caller; in place, the input is copied first, since slices may not alias.
        unsafe {
            if x == out {
                let copy = self.scratch_row(scratch, 0, x.width);
                copy.copy_from_slice(self.row(x, row, scratch));
                f(copy, self.row_mut(out, row));
            } else {
                f(self.row(x, row, scratch), self.row_mut(out, row));
            }
        }
    }

    /// Row `which` in the thread's scratch.
    ///
    /// # Safety
    /// `scratch` is the thread's share, and no other use of that row is alive.
    #[expect(clippy::mut_from_ref, reason = "the row lies in the thread's own scratch")]
    unsafe fn scratch_row(&self, scratch: *mut u8, which: usize, width: usize) -> &mut [f32] {
        // SAFETY: the share has room for the widest row; the region is initialised.
        unsafe { std::slice::from_raw_parts_mut(scratch.add(self.layout.rows[which]).cast(), width) }
    }
}

/// Rows of a matrix that are multiplied together.
struct Strip {
    tiles: usize,
    first: usize,
    count: usize,
}

impl Strip {
    fn groups(&self) -> Range<usize> {
        self.first / GROUP..(self.first + self.count).div_ceil(GROUP)
    }

    /// Values of the strip's results with one activation row.
    fn width(&self) -> usize {
        self.groups().len() * GROUP
    }
}

/// Activation rows that stand for one row of `x`.
fn planes(x: Act) -> usize {
    match x {
        Act::F32(_) => 1,
        Act::Q8(x) => x.planes,
    }
}

impl RopeTable {
    /// # Safety
    /// The table has the row, and nobody else uses it meanwhile.
    unsafe fn fill(&self, row: usize, position: u32) {
        let pairs = self.rope.inv_freq.len();
        // SAFETY: promised by the caller; the region is initialised and page-aligned.
        let turns =
            unsafe { std::slice::from_raw_parts_mut(self.values.as_ptr().cast::<[f32; 2]>().add(row * pairs), pairs) };
        for (turn, inv_freq) in turns.iter_mut().zip(&*self.rope.inv_freq) {
            let (sin, cos) = (f64::from(position) * f64::from(*inv_freq)).sin_cos();
            let magnitude = f64::from(self.rope.magnitude);
            *turn = [(cos * magnitude) as f32, (sin * magnitude) as f32];
        }
    }

    /// # Safety
    /// The table has the row, and nobody writes it meanwhile.
    unsafe fn row(&self, row: usize) -> &[[f32; 2]] {
        let pairs = self.rope.inv_freq.len();
        // SAFETY: promised by the caller; the region is initialised and page-aligned.
        unsafe { std::slice::from_raw_parts(self.values.as_ptr().cast::<[f32; 2]>().add(row * pairs), pairs) }
    }
}

/// Turns the pairs of a head by (cosine, sine).
fn rotate(head: &mut [f32], style: RopeStyle, turns: &[[f32; 2]]) {
    match style {
        RopeStyle::Interleaved => {
            for (pair, [cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                let [x, y] = *pair;
                *pair = [x * cos - y * sin, x * sin + y * cos];
            }
        }
        RopeStyle::Neox => {
            let (first, second) = head[..2 * turns.len()].split_at_mut(turns.len());
            for ((x, y), [cos, sin]) in first.iter_mut().zip(second).zip(turns) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
    }
}
