//! Gives every buffer a place in the arena: buffers that never live at the same time share memory.
//!
//! Lifetimes come from the order of the steps. Buffers that take another's place (a residual that is summed up, a value
//! changed in place) form one storage. Storages are placed greedily, the largest first, each in the smallest gap that
//! is free during its whole life (greedy by size, Pisarchyk and Lee, 2020, arXiv 2001.03288).

use super::{Buffer, Step, Target, fuse::Draft};
use crate::graph::Rows;

/// Memory that one buffer or a line of buffers in one place takes.
#[derive(Clone, Copy, Debug)]
struct Storage {
    bytes: usize,
    first: usize,
    last: usize,
    offset: usize,
}

impl Storage {
    fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Fills in sizes, lifetimes and offsets. Returns the bytes of the arena and the bytes without any sharing; `None` on
/// overflow.
pub(super) fn place(draft: &mut Draft, target: &dyn Target, rows: impl Fn(Rows) -> usize) -> Option<(usize, usize)> {
    for buffer in &mut draft.buffers {
        let rows = rows(buffer.rows);
        // Both forms take less than 8 bytes a value, 64 a row and 512 in all more.
        buffer.width.checked_add(64)?.checked_mul(8)?.checked_mul(rows)?.checked_add(512)?;
        buffer.bytes = target.bytes(buffer.form, buffer.width, rows);
    }
    set_lives(draft);
    let storage_of = share_places(draft);
    let mut storages = Vec::<Option<Storage>>::new();
    storages.resize(draft.buffers.len(), None);
    let mut unshared = 0usize;
    for (buffer, &storage) in draft.buffers.iter().zip(&storage_of) {
        let (first, last) = buffer.life;
        unshared = unshared.checked_add(buffer.bytes)?;
        let storage = storages[storage].get_or_insert(Storage { bytes: 0, first, last, offset: 0 });
        storage.bytes = storage.bytes.max(buffer.bytes);
        storage.first = storage.first.min(first);
        storage.last = storage.last.max(last);
    }
    let arena = fit(&mut storages)?;
    for (buffer, storage) in draft.buffers.iter_mut().zip(storage_of) {
        buffer.offset = storages[storage]?.offset;
    }
    Some((arena, unshared))
}

fn set_lives(draft: &mut Draft) {
    let end = draft.steps.len();
    for buffer in &mut draft.buffers {
        buffer.life = (usize::MAX, 0);
    }
    for (at, step) in draft.steps.iter().enumerate() {
        for buffer in step.reads().into_iter().chain(step.writes()) {
            let life = &mut draft.buffers[buffer.0].life;
            *life = (life.0.min(at), life.1.max(at));
        }
    }
    // Callers fill inputs once and may run several times, so inputs keep their place through the whole program.
    for input in &draft.inputs {
        draft.buffers[input.0].life = (0, end);
    }
    draft.buffers[draft.output.0].life.1 = end;
    for buffer in &mut draft.buffers {
        // A buffer that folding left without a step.
        if buffer.life.0 == usize::MAX {
            buffer.life = (0, 0);
            buffer.bytes = 0;
        }
    }
}

/// The storage of each buffer, numbered by the first buffer in it.
fn share_places(draft: &Draft) -> Vec<usize> {
    let mut storage: Vec<usize> = (0..draft.buffers.len()).collect();
    for (at, step) in draft.steps.iter().enumerate() {
        for (old, new) in step.overwrites() {
            storage[new.0] = storage[old.0];
        }
        let [out] = step.writes()[..] else { continue };
        let dies = |buffer: &Buffer| buffer.life.1 == at && buffer.bytes == draft.buffers[out.0].bytes;
        let candidate = step
            .may_overwrite()
            .into_iter()
            .find(|id| *id != out && dies(&draft.buffers[id.0]) && !draft.inputs.contains(id) && draft.output != *id);
        if let Some(old) = candidate {
            storage[out.0] = storage[old.0];
        }
    }
    storage
}

/// Best fit, largest first; returns the arena's bytes.
fn fit(storages: &mut [Option<Storage>]) -> Option<usize> {
    let mut order: Vec<usize> = (0..storages.len()).filter(|&index| storages[index].is_some()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(storages[index].map_or(0, |storage| storage.bytes)));
    let mut placed = Vec::<Storage>::new();
    let mut arena = 0;
    for index in order {
        let Some(storage) = &mut storages[index] else { continue };
        // `placed` is sorted by offset, so gaps show between the end so far and the next start.
        let mut end = 0;
        let mut best: Option<(usize, usize)> = None;
        for other in placed.iter().filter(|other| other.meets(storage)) {
            let gap = other.offset.saturating_sub(end);
            if gap >= storage.bytes && best.is_none_or(|(size, _)| gap < size) {
                best = Some((gap, end));
            }
            end = end.max(other.offset + other.bytes);
        }
        storage.offset = best.map_or(end, |(_, offset)| offset);
        arena = arena.max(storage.offset.checked_add(storage.bytes)?);
        let at = placed.partition_point(|other| other.offset <= storage.offset);
        placed.insert(at, *storage);
    }
    Some(arena)
}

/// Two buffers that live at the same step and share bytes, though neither takes the other's place; `None` in a sound
/// plan. For tests and for checks of plans made by hand.
pub fn overlap(steps: &[Step], buffers: &[Buffer]) -> Option<(usize, usize)> {
    for (index, a) in buffers.iter().enumerate() {
        for (other, b) in buffers.iter().enumerate().skip(index + 1) {
            let in_space = a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes && a.bytes.min(b.bytes) > 0;
            let in_time = a.life.0 <= b.life.1 && b.life.0 <= a.life.1;
            if in_space && in_time && !hands_over(steps, buffers, index, other) {
                return Some((index, other));
            }
        }
    }
    None
}

/// Whether one buffer dies at the very step that writes the other in its place, at the same address.
fn hands_over(steps: &[Step], buffers: &[Buffer], a: usize, b: usize) -> bool {
    let (old, new) = if buffers[a].life.0 <= buffers[b].life.0 { (a, b) } else { (b, a) };
    let at = buffers[new].life.0;
    let Some(step) = steps.get(at) else { return false };
    let by_nature = step.overwrites().iter().any(|(from, to)| (from.0, to.0) == (old, new));
    let in_place = step.may_overwrite().iter().any(|id| id.0 == old) && step.writes().iter().any(|id| id.0 == new);
    (by_nature || in_place) && buffers[old].life.1 == at && buffers[old].offset == buffers[new].offset
}
