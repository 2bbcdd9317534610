//! Attention over the paged key/value cache: what a task is, and the scalar version of it.
//!
//! The cache of a layer is a run of pages. Each page holds, for every key/value head, keys transposed as
//! `[head_dim][PAGE_TOKENS]` and values as `[PAGE_TOKENS][head_dim]`; all keys of a page come before its values.

use crate::KvShape;
use half::f16;
use rustai_abi::PAGE_TOKENS;

/// How cache entries are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvElement {
    F16,
    /// The reference keeps full precision.
    F32,
}

impl KvElement {
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Where the pages of one layer lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerCache {
    /// First byte of the layer.
    pub(crate) start: *mut u8,
    pub(crate) element: KvElement,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl LayerCache {
    /// Elements of one head's keys (or values) in a page.
    const fn head_elements(&self) -> usize {
        PAGE_TOKENS * self.head_dim
    }

    /// Bytes of a page of one layer; they saturate.
    pub(crate) fn page_bytes(shape: &KvShape, element: KvElement) -> usize {
        let values = shape.kv_heads.saturating_mul(shape.head_dim).saturating_mul(PAGE_TOKENS);
        values.saturating_mul(2 * element.bytes())
    }

    /// First byte of the keys and of the values of head `head` in page `page`.
    ///
    /// # Safety
    /// The layer has the page and the head.
    pub(crate) unsafe fn head(&self, page: u32, head: usize) -> (*mut u8, *mut u8) {
        let (bytes, per_head) = (self.element.bytes(), self.head_elements());
        // SAFETY: the caller says that the page and the head exist.
        unsafe {
            let page = self.start.add(page as usize * 2 * self.kv_heads * per_head * bytes);
            (page.add(head * per_head * bytes), page.add((self.kv_heads + head) * per_head * bytes))
        }
    }

    /// Writes one position's key and value of one head.
    ///
    /// # Safety
    /// The layer has the page and the head; nobody else accesses that position's entries; `slot < PAGE_TOKENS`.
    pub(crate) unsafe fn append(&self, page: u32, slot: usize, head: usize, key: &[f32], value: &[f32]) {
        // SAFETY: the offsets stay inside the head's share of the page, which the caller vouches for.
        unsafe {
            let (keys, values) = self.head(page, head);
            match self.element {
                KvElement::F16 => {
                    for (d, key) in key.iter().enumerate() {
                        keys.cast::<f16>().add(d * PAGE_TOKENS + slot).write(f16::from_f32(*key));
                    }
                    for (d, value) in value.iter().enumerate() {
                        values.cast::<f16>().add(slot * self.head_dim + d).write(f16::from_f32(*value));
                    }
                }
                KvElement::F32 => {
                    for (d, key) in key.iter().enumerate() {
                        keys.cast::<f32>().add(d * PAGE_TOKENS + slot).write(*key);
                    }
                    for (d, value) in value.iter().enumerate() {
                        values.cast::<f32>().add(slot * self.head_dim + d).write(*value);
                    }
                }
            }
        }
    }
}

/// Some consecutive tokens of one sequence against one key/value head and the query heads that share it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionTask<'a> {
    /// First token's queries of the first query head of the group.
    pub(crate) q: *const f32,
    /// Where the result goes, laid out as `q`.
    pub(crate) out: *mut f32,
    /// Values from one token to the next in `q` and `out`.
    pub(crate) stride: usize,
    /// Tokens.
    pub(crate) tokens: usize,
    /// Query heads that share the key/value head.
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    /// Position of the first token.
    pub(crate) start: usize,
    pub(crate) scale: f32,
    /// Last so many positions are seen.
    pub(crate) window: usize,
    pub(crate) cache: LayerCache,
    /// The key/value head.
    pub(crate) head: usize,
    /// Block table of the sequence.
    pub(crate) pages: &'a [u32],
    /// [`AttentionTask::scratch_values`] values for this task alone.
    pub(crate) scratch: *mut f32,
}

impl AttentionTask<'_> {
    /// Scratch for `rows` = tokens times group; it saturates.
    pub(crate) const fn scratch_values(rows: usize, head_dim: usize) -> usize {
        head_dim.saturating_mul(2).saturating_add(PAGE_TOKENS + 2).saturating_mul(rows)
    }

    /// First position that token `token` of the task sees.
    pub(crate) const fn first_seen(&self, token: usize) -> usize {
        (self.start + token + 1).saturating_sub(self.window)
    }

    /// Keys and values of page `index` of the block table, for an `f16` cache.
    ///
    /// # Safety
    /// The block table has the entry and the cache has the page.
    pub(crate) unsafe fn page(&self, index: usize) -> (*const u16, *const u16) {
        // SAFETY: promised by the caller.
        let (keys, values) = unsafe { self.cache.head(self.pages[index], self.head) };
        (keys.cast(), values.cast())
    }
}

/// The scalar version, for either element: gathers what each token sees and applies [`crate::reference::attention`].
///
/// # Safety
/// All pointers of the task are valid for what its fields say; nobody else writes them meanwhile.
pub(crate) unsafe fn reference(task: &AttentionTask) {
    // SAFETY: offsets follow the layouts described in the module, inside what the caller vouches for.
    unsafe {
        match task.cache.element {
            KvElement::F16 => gather::<f16>(task),
            KvElement::F32 => gather::<f32>(task),
        }
    }
}

/// # Safety
/// As [`reference()`], with a cache of `T`.
unsafe fn gather<T: Copy + Into<f64>>(task: &AttentionTask) {
    let dim = task.head_dim;
    for token in 0..task.tokens {
        let seen = task.first_seen(token)..task.start + token + 1;
        let (mut keys, mut values) = (Vec::with_capacity(seen.len() * dim), Vec::with_capacity(seen.len() * dim));
        for position in seen {
            let slot = position % PAGE_TOKENS;
            // SAFETY: the block table covers all positions up to the token's own.
            unsafe {
                let (k, v) = task.cache.head(task.pages[position / PAGE_TOKENS], task.head);
                keys.extend((0..dim).map(|d| *k.cast::<T>().add(d * PAGE_TOKENS + slot)));
                values.extend((0..dim).map(|d| *v.cast::<T>().add(slot * dim + d)));
            }
        }
        let keys: Vec<&[T]> = keys.chunks_exact(dim).collect();
        let values: Vec<&[T]> = values.chunks_exact(dim).collect();
        for head in 0..task.group {
            let at = token * task.stride + head * dim;
            // SAFETY: the task's queries and results are `dim` values per head; this task alone uses them.
            let (q, out) = unsafe {
                (
                    std::slice::from_raw_parts(task.q.add(at), dim).to_vec(),
                    std::slice::from_raw_parts_mut(task.out.add(at), dim),
                )
            };
            crate::reference::attention(&q, &keys, &values, task.scale, out);
        }
    }
}
