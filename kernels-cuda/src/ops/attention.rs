//! The paged key/value cache, and attention over it: `cuda/attention.cu` for single tokens, `cuda/attention_prefill.cu` for many
//! of one sequence.

use super::{Floats, Targets, small};
use crate::{
    Arena, Device, DeviceError, Kernels, Span, Stream,
    driver::{Function, KernelArgs, Launch},
    kernels::Slot,
    weights::BLOCK,
};
use rustai_abi::{Batch, PAGE_TOKENS};
use rustai_kernels_cpu::{KvType, RopeStyle};

/// Queries that may share a key/value head.
pub const MAX_GROUP: usize = 8;

/// Longest head, as in `cuda/attention.cu`.
pub const MAX_HEAD_DIM: usize = 256;

/// Head lengths whose kernels for single tokens are made for them; others share some.
const OWN_HEAD_DIMS: [usize; 2] = [64, 128];

/// Head lengths with kernels that attend to many tokens in tiles. With others, each token is attended to by itself.
pub const TILED_HEAD_DIMS: [usize; 6] = [32, 64, 80, 96, 128, 256];

/// Longest head of which a block sums all columns, as in `cuda/attention_prefill.cu`; of longer ones two do.
const WHOLE_HEAD_DIM: usize = 128;

/// Whether there are attention kernels for heads of so many values in a cache of such a type: whole eights, or blocks.
pub fn has_attention(kv_type: KvType, head_dim: usize) -> bool {
    let unit = if kv_type == KvType::Q8_0 { BLOCK } else { 8 };
    (1..=MAX_HEAD_DIM).contains(&head_dim) && head_dim.is_multiple_of(unit)
}

/// Threads of a block that writes to the cache, and of one that attends.
const THREADS: u32 = 128;

/// Keys and values of one layer, in pages of [`PAGE_TOKENS`] positions.
#[derive(Clone, Debug)]
pub struct LayerCache {
    span: Span,
    kv_type: KvType,
    kv_heads: usize,
    head_dim: usize,
    pages: usize,
}

impl LayerCache {
    /// Bytes in an arena; they saturate.
    pub fn room(kv_type: KvType, kv_heads: usize, head_dim: usize, pages: usize) -> usize {
        let values = PAGE_TOKENS.saturating_mul(head_dim);
        let side = match kv_type {
            KvType::Q8_0 => values.saturating_add(values / 32 * 2),
            _ => values.saturating_mul(2),
        };
        let bytes = side.saturating_mul(2).saturating_mul(kv_heads).saturating_mul(pages);
        Arena::room::<u8>(bytes)
    }

    /// Takes the cache of a layer from an arena.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if no kernel serves such heads or the arena is too small.
    pub fn take(
        arena: &mut Arena,
        kv_type: KvType,
        kv_heads: usize,
        head_dim: usize,
        pages: usize,
    ) -> Result<Self, DeviceError> {
        if !has_attention(kv_type, head_dim) || kv_heads == 0 || pages == 0 {
            return Err(DeviceError::Invalid(format!(
                "no attention kernel for {kv_heads} heads of {head_dim} values in a cache of {pages} pages of {kv_type}; heads \
                 are multiples of 8, for q8_0 of {BLOCK}, up to {MAX_HEAD_DIM}"
            )));
        }
        let span = arena.take(Self::room(kv_type, kv_heads, head_dim, pages))?;
        Ok(Self { span, kv_type, kv_heads, head_dim, pages })
    }
}

/// So many tokens of one sequence in a batch are attended to in tiles, which read the cache once for 64 queries. A tile does as
/// much for one token as for all it has room for, so that fewer are cheaper one by one. A guess to be measured.
pub const TILED_TOKENS: usize = 16;

/// Rows of a tile, as in `cuda/attention_prefill.cu`.
const TILE_ROWS: usize = 64;

/// Where the rows of a batch belong, on the device: for each token its position and where its sequence's pages are listed, and
/// which tokens are attended to together.
#[derive(Clone, Debug)]
pub struct Places {
    positions: Span,
    tables: Span,
    /// First token and number of each segment, then the tokens that are in none.
    order: Span,
    pages: Span,
    max_tokens: usize,
    max_pages: usize,
    cache_pages: usize,
    listed: Listed,
}

/// What the host knows of the batch whose places were written last.
#[derive(Clone, Debug, Default)]
struct Listed {
    tokens: usize,
    /// Tokens of each segment: of one sequence, at least [`TILED_TOKENS`].
    segments: Vec<usize>,
}

/// Host memory for places, with room for what there is on the device.
pub(super) struct Lists<'a> {
    pub(super) positions: &'a mut [u32],
    pub(super) tables: &'a mut [u32],
    pub(super) order: &'a mut [u32],
    pub(super) pages: &'a mut [u32],
}

impl Places {
    /// Bytes in an arena.
    pub const fn room(max_tokens: usize, max_pages: usize) -> usize {
        3 * Arena::room::<u32>(max_tokens) + Arena::room::<u32>(max_pages)
    }

    /// Room for batches of so many tokens whose sequences list so many pages in all, of caches with `cache_pages` pages. Every
    /// token is at position 0 of page 0 at first.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the arena is too small; [`DeviceError::Driver`].
    pub fn take(
        arena: &mut Arena,
        max_tokens: usize,
        max_pages: usize,
        cache_pages: usize,
    ) -> Result<Self, DeviceError> {
        let mut zeros = |count: usize| {
            let span = arena.take(count.saturating_mul(4))?;
            span.upload(&vec![0u32; count])?;
            Ok::<_, DeviceError>(span)
        };
        let spans = [zeros(max_tokens)?, zeros(max_tokens)?, zeros(max_tokens)?, zeros(max_pages)?];
        Ok(Self::at(spans, cache_pages))
    }

    /// Places in memory that is there: positions, tables, order, pages.
    pub(super) fn at([positions, tables, order, pages]: [Span; 4], cache_pages: usize) -> Self {
        let max_tokens = [&positions, &tables, &order].map(Span::bytes).into_iter().min().unwrap_or(0) / 4;
        let max_pages = pages.bytes() / 4;
        Self { positions, tables, order, pages, max_tokens, max_pages, cache_pages, listed: Listed::default() }
    }

    /// Writes a batch's places, after the device's work.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the batch does not fit, has no page for a position, or names a page that caches do not
    /// have; [`DeviceError::Driver`].
    pub fn write(&mut self, batch: &Batch<'_>) -> Result<(), DeviceError> {
        let [mut positions, mut tables, mut order] = [0; 3].map(|_| vec![0; self.max_tokens]);
        let mut pages = vec![0; self.max_pages];
        let lists = Lists { positions: &mut positions, tables: &mut tables, order: &mut order, pages: &mut pages };
        let used = self.list(batch, lists)?;
        self.positions.device().synchronize()?;
        for (span, list) in [(&self.positions, &positions), (&self.tables, &tables), (&self.order, &order)] {
            span.upload(&list[..batch.tokens.len()])?;
        }
        self.pages.upload(&pages[..used])
    }

    /// Lists a batch's places; returns how many pages are listed.
    pub(super) fn list(&mut self, batch: &Batch<'_>, lists: Lists<'_>) -> Result<usize, DeviceError> {
        let Lists { positions, tables, order, pages } = lists;
        let (positions, tables) = (&mut positions[..self.max_tokens], &mut tables[..self.max_tokens]);
        let pages = &mut pages[..self.max_pages];
        self.listed = Listed::default();
        let (mut token, mut used) = (0, 0);
        for sequence in batch.sequences {
            let end = u64::from(sequence.start) + u64::from(sequence.len);
            let needed = end.div_ceil(PAGE_TOKENS as u64);
            let own = usize::try_from(needed).ok().and_then(|needed| sequence.pages.get(..needed));
            let own = own.filter(|_| end <= u64::from(u32::MAX)).ok_or_else(|| {
                DeviceError::Invalid(format!("{} pages do not hold {end} positions", sequence.pages.len()))
            })?;
            if let Some(page) = own.iter().find(|page| **page as usize >= self.cache_pages) {
                return Err(DeviceError::Invalid(format!("page {page} of a cache of {}", self.cache_pages)));
            }
            let tokens = token..token + sequence.len as usize;
            let room = positions.get_mut(tokens.clone()).zip(tables.get_mut(tokens.clone()));
            let Some(((positions, tables), listed)) = room.zip(pages.get_mut(used..used + own.len())) else {
                return Err(self.too_large(batch));
            };
            positions.iter_mut().zip(sequence.start..).for_each(|(slot, position)| *slot = position);
            tables.fill(used as u32);
            listed.copy_from_slice(own);
            (token, used) = (tokens.end, used + own.len());
        }
        if token != batch.tokens.len() {
            return Err(self.too_large(batch));
        }
        self.listed.tokens = token;
        write_order(batch, order, &mut self.listed.segments);
        Ok(used)
    }

    fn too_large(&self, batch: &Batch<'_>) -> DeviceError {
        let counts =
            |count: fn(&rustai_abi::BatchSequence<'_>) -> usize| batch.sequences.iter().map(count).sum::<usize>();
        DeviceError::Invalid(format!(
            "a batch of {} tokens ({} in sequences) and {} pages, where {} and {} have room",
            batch.tokens.len(),
            counts(|sequence| sequence.len as usize),
            counts(|sequence| sequence.pages.len()),
            self.max_tokens,
            self.max_pages
        ))
    }

    fn addresses(&self) -> PlacesArgs {
        PlacesArgs { positions: self.positions.address(), tables: self.tables.address(), pages: self.pages.address() }
    }

    fn check(&self, tokens: usize, cache: &LayerCache) -> Result<(), DeviceError> {
        if tokens == 0 || tokens > self.max_tokens || self.cache_pages > cache.pages {
            return Err(DeviceError::Invalid(format!(
                "{tokens} tokens where {} have places, {} pages in a cache of {}",
                self.max_tokens, self.cache_pages, cache.pages
            )));
        }
        Ok(())
    }
}

/// Writes which of a batch's tokens are attended to together, as `order` has it on the device, and how many each segment has.
/// The list is no longer than the batch: a segment takes two values for its tokens.
fn write_order(batch: &Batch<'_>, order: &mut [u32], segments: &mut Vec<usize>) {
    let ranges = || {
        batch.sequences.iter().scan(0, |first, sequence| {
            let tokens = *first..*first + sequence.len;
            *first = tokens.end;
            Some(tokens)
        })
    };
    let tiled = || ranges().filter(|tokens| tokens.len() >= TILED_TOKENS);
    let single = ranges().filter(|tokens| tokens.len() < TILED_TOKENS);
    let values = tiled().flat_map(|tokens| [tokens.start, tokens.len() as u32]).chain(single.flatten());
    order.iter_mut().zip(values).for_each(|(slot, value)| *slot = value);
    segments.clear();
    segments.extend(tiled().map(|tokens| tokens.len()));
}

/// A rotary position embedding on the device (Su et al., 2021, arXiv 2104.09864).
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Which values are a pair.
    pub style: RopeStyle,
    /// Radians per position of each pair: one row.
    pub inv_freq: &'a Floats,
    /// Factor on the rotated values.
    pub magnitude: f32,
}

/// Fewest pages of a run: one for each warp of a block.
const MIN_RUN_PAGES: usize = 4;

/// How a sequence's pages are cut into runs that are attended to at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Runs.
    pub runs: usize,
    /// Pages of each run.
    pub run_pages: usize,
}

impl Split {
    /// For sequences of up to `positions`, with `blocks` blocks per run and a device of so many multiprocessors: enough runs to
    /// give each two blocks, none shorter than four pages, which is one for each warp.
    pub fn new(positions: usize, blocks: usize, multiprocessors: usize) -> Self {
        let pages = positions.div_ceil(PAGE_TOKENS).max(1);
        let wanted = (2 * multiprocessors).div_ceil(blocks.max(1));
        let run_pages = pages.div_ceil(wanted).max(MIN_RUN_PAGES);
        Self { runs: pages.div_ceil(run_pages), run_pages }
    }

    /// As many runs as sequences of up to `positions` are ever cut into.
    pub fn at_most(positions: usize, blocks: usize, multiprocessors: usize) -> Self {
        let pages = positions.div_ceil(PAGE_TOKENS).max(1);
        let wanted = (2 * multiprocessors).div_ceil(blocks.max(1));
        Self { runs: wanted.min(pages.div_ceil(MIN_RUN_PAGES)), run_pages: MIN_RUN_PAGES }
    }
}

/// Memory for attention in runs: where their states meet. Launches of one stream share it.
#[derive(Clone, Debug)]
pub struct RunStates {
    states: Span,
    /// Zeros, which every launch leaves as they were.
    counters: Span,
}

impl RunStates {
    /// Bytes of states and of counters for `tokens` tokens that are cut as `split` says, whose `heads` queries share `kv_heads`
    /// keys. None are needed for a single run.
    pub fn bytes(tokens: usize, heads: [usize; 2], head_dim: usize, split: Split) -> [usize; 2] {
        if split.runs <= 1 {
            return [0; 2];
        }
        let [heads, kv_heads] = heads;
        let state = (head_dim + 4) * size_of::<f32>();
        let states = [split.runs, heads, state].into_iter().fold(tokens, usize::saturating_mul);
        [states, tokens.saturating_mul(kv_heads).saturating_mul(size_of::<u32>())]
    }

    /// Bytes in an arena.
    pub const fn room([states, counters]: [usize; 2]) -> usize {
        Arena::room::<u8>(states).saturating_add(Arena::room::<u8>(counters))
    }

    /// Memory of its own with room for [so much](Self::bytes); `None` if that is nothing.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no room, or from the driver.
    pub fn new(device: &Device, bytes: [usize; 2]) -> Result<Option<Self>, DeviceError> {
        if bytes == [0; 2] {
            return Ok(None);
        }
        let mut arena = Arena::new(device, "states of attention", Self::room(bytes))?;
        let this = Self { states: arena.take(bytes[0])?, counters: arena.take(bytes[1])? };
        this.counters.upload(&vec![0u32; bytes[1] / size_of::<u32>()])?;
        Ok(Some(this))
    }

    fn has_room(&self, [states, counters]: [usize; 2]) -> bool {
        states <= self.states.bytes() && counters <= self.counters.bytes()
    }
}

/// Where the rows of a batch go in a layer's cache.
#[derive(Clone, Copy, Debug)]
pub struct Append<'a> {
    /// How queries and keys are rotated before.
    pub rotation: Option<Rotation<'a>>,
    /// The layer's keys and values.
    pub cache: &'a LayerCache,
    /// The batch.
    pub places: &'a Places,
}

impl<'a> Append<'a> {
    /// Whether the product that makes the rows can write them. An 8-bit cache has scales for 32 values, which are not with one
    /// block of threads then.
    pub(super) fn is_part_of_product(&self) -> bool {
        self.cache.kv_type == KvType::F16
    }

    /// What kernels take, for `tokens` rows of queries, keys and values.
    pub(super) fn args(&self, [q, k, v]: [&Floats; 3], tokens: usize) -> Result<AppendTo, DeviceError> {
        let Self { rotation, cache, places } = *self;
        cache.heads_of(q)?;
        let kv_width = cache.kv_heads * cache.head_dim;
        q.check("queries", tokens, q.width())?;
        k.check("keys", tokens, kv_width)?;
        v.check("values", tokens, kv_width)?;
        places.check(tokens, cache)?;
        let mut args = AppendTo {
            rotation: RotationArgs { magnitude: 1.0, ..RotationArgs::default() },
            cache: cache.args(),
            places: places.addresses(),
        };
        if let Some(Rotation { style, inv_freq, magnitude }) = rotation {
            let pairs = inv_freq.width();
            if 2 * pairs > cache.head_dim {
                return Err(DeviceError::Invalid(format!("{pairs} pairs in heads of {}", cache.head_dim)));
            }
            let neox = u32::from(style == RopeStyle::Neox);
            args.rotation = RotationArgs { inv_freq: inv_freq.span.address(), pairs: pairs as u32, neox, magnitude };
        }
        Ok(args)
    }

    /// What [`args`](Self::args) points into.
    pub(super) fn spans(&self) -> impl Iterator<Item = &'a Span> {
        let Self { rotation, cache, places } = *self;
        let fixed = [&cache.span, &places.positions, &places.tables, &places.pages];
        fixed.into_iter().chain(rotation.map(|rotation| &rotation.inv_freq.span))
    }
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RotationArgs {
    inv_freq: u64,
    pairs: u32,
    neox: u32,
    magnitude: f32,
}

/// As `Append` in `cuda/attention.cuh`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct AppendTo {
    rotation: RotationArgs,
    cache: CacheArgs,
    places: PlacesArgs,
}

impl AppendTo {
    /// For the tokens from `first` on.
    pub(super) fn skip(&mut self, first: usize) {
        self.places.positions += 4 * first as u64;
        self.places.tables += 4 * first as u64;
    }
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct CacheArgs {
    start: u64,
    kv_heads: u32,
    head_dim: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct PlacesArgs {
    positions: u64,
    tables: u64,
    pages: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct AppendArgs {
    q: u64,
    k: u64,
    v: u64,
    to: AppendTo,
    heads: u32,
}

// SAFETY: fields and order are those of `AppendArgs` in `cuda/attention.cu`.
unsafe impl KernelArgs for AppendArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct ResultArgs {
    values: u64,
    quants: u64,
    scales: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct AttentionArgs {
    q: u64,
    out: ResultArgs,
    partial: u64,
    counters: u64,
    cache: CacheArgs,
    places: PlacesArgs,
    rows: u64,
    heads: u32,
    runs: u32,
    run_pages: u32,
    window: u32,
    scale: f32,
}

// SAFETY: fields and order are those of `AttentionArgs` in `cuda/attention.cu`.
unsafe impl KernelArgs for AttentionArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct PrefillArgs {
    q: u64,
    out: u64,
    cache: CacheArgs,
    places: PlacesArgs,
    segments: u64,
    count: u32,
    heads: u32,
    window: u32,
    scale: f32,
}

// SAFETY: fields and order are those of `PrefillArgs` in `cuda/attention_prefill.cu`.
unsafe impl KernelArgs for PrefillArgs {}

impl LayerCache {
    fn args(&self) -> CacheArgs {
        CacheArgs { start: self.span.address(), kv_heads: self.kv_heads as u32, head_dim: self.head_dim as u32 }
    }

    fn heads_of(&self, q: &Floats) -> Result<usize, DeviceError> {
        let heads = q.width() / self.head_dim;
        if heads * self.head_dim != q.width() || !heads.is_multiple_of(self.kv_heads) || heads == 0 {
            return Err(DeviceError::Invalid(format!(
                "queries of {} values for {} key/value heads of {}",
                q.width(),
                self.kv_heads,
                self.head_dim
            )));
        }
        Ok(heads)
    }
}

/// Queries per key/value head that there are kernels for; those that share fewer take the next.
const GROUPS: [usize; 3] = [1, 4, MAX_GROUP];

/// The kernels of a cache's type.
#[derive(Debug, Default)]
struct TypeSlots {
    append: Slot,
    /// By head length and queries per head.
    attend: [[Slot; GROUPS.len()]; OWN_HEAD_DIMS.len() + 2],
    prefill: [Slot; TILED_HEAD_DIMS.len()],
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    types: [TypeSlots; KvType::ALL.len()],
}

impl Kernels {
    /// Looks up the kernels that write to a cache and attend over it with queries of so many values, so that no step has to.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if no kernel serves so many queries per head; [`DeviceError::MissingKernel`] if the images lack
    /// one; [`DeviceError::Driver`].
    pub fn ready_attention(&self, cache: &LayerCache, width: usize) -> Result<(), DeviceError> {
        self.append_kernel(cache.kv_type)?;
        self.attend_kernel(cache, width / cache.head_dim / cache.kv_heads)?;
        if TILED_HEAD_DIMS.contains(&cache.head_dim) {
            self.prefill_kernel(cache)?;
        }
        Ok(())
    }

    fn type_slots(&self, kv_type: KvType) -> &TypeSlots {
        // PANIC: `ALL` has every type.
        let index = KvType::ALL.iter().position(|known| *known == kv_type).expect("all are there");
        &self.slots.attention.types[index]
    }

    fn append_kernel(&self, kv_type: KvType) -> Result<Function<'_>, DeviceError> {
        self.get(&self.type_slots(kv_type).append, || format!("append_{kv_type}"), 0)
    }

    /// The kernel for single tokens whose `group` queries share a key/value head.
    fn attend_kernel(&self, cache: &LayerCache, group: usize) -> Result<Function<'_>, DeviceError> {
        let width = GROUPS.iter().position(|width| group <= *width).ok_or_else(|| {
            DeviceError::Invalid(format!("no attention kernel for {group} queries per head; at most {MAX_GROUP}"))
        })?;
        let own = OWN_HEAD_DIMS.iter().position(|own| *own == cache.head_dim);
        let class = own.unwrap_or(OWN_HEAD_DIMS.len() + usize::from(cache.head_dim > 128));
        let name = || {
            let dim = match own {
                Some(_) => cache.head_dim.to_string(),
                None => format!("any_{}", if cache.head_dim > 128 { 256 } else { 128 }),
            };
            format!("attend_{dim}_{}_{}", GROUPS[width], cache.kv_type)
        };
        self.get(&self.type_slots(cache.kv_type).attend[class][width], name, 0)
    }

    /// The kernel for tiles, of a head length of [`TILED_HEAD_DIMS`].
    fn prefill_kernel(&self, cache: &LayerCache) -> Result<Function<'_>, DeviceError> {
        let name = || format!("prefill_{}_{}", cache.head_dim, cache.kv_type);
        let dim = TILED_HEAD_DIMS.iter().position(|dim| *dim == cache.head_dim);
        let dim = dim.ok_or_else(|| DeviceError::MissingKernel(name()))?;
        self.get(&self.type_slots(cache.kv_type).prefill[dim], name, 0)
    }

    /// Rotates queries in place and writes rotated keys and plain values of `tokens` rows to the cache.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the buffers do not fit; [`DeviceError::Driver`].
    pub fn rope_append(
        &self,
        stream: &Stream,
        [q, k, v]: [&Floats; 3],
        append: Append<'_>,
        tokens: usize,
    ) -> Result<(), DeviceError> {
        let to = append.args([q, k, v], tokens)?;
        let cache = append.cache;
        let heads = cache.heads_of(q)?;
        let [q, k, v] = [q, k, v].map(|floats| &floats.span);
        let args = AppendArgs { q: q.address(), k: k.address(), v: v.address(), to, heads: small("heads", heads)? };
        let mut shape = Launch::new(small("heads", heads + 2 * cache.kv_heads)?, THREADS.min(cache.head_dim as u32));
        shape.grid[1] = small("tokens", tokens)?;
        let function = self.append_kernel(cache.kv_type)?;
        let spans: Vec<_> = [q, k, v].into_iter().chain(append.spans()).collect();
        // SAFETY: rows are checked; `Places` holds positions and pages that the cache has.
        unsafe { stream.launch(function, shape, &args, &spans) }
    }

    /// Causal attention of `tokens` rows of queries over the cache, which must hold their own keys and values already.
    ///
    /// Sequences with at least [`TILED_TOKENS`] tokens in the batch are attended to in tiles, if heads are as long as
    /// [`TILED_HEAD_DIMS`] says. Not so while `stream` is captured:
    /// the recording must hold for every batch of as many tokens, so it has the kernel that takes each token by itself.
    ///
    /// `split` is for the tokens that are taken by themselves, and must cover the largest position of them. Where it has more than
    /// one run, `states` is needed, with room for them. Only the last `window` positions are seen, if given.
    ///
    /// The result is in `out`; if there are other targets, it is there, as [`convert`](Self::convert) makes it of floats, and what `out`
    /// holds is undefined. Tokens by themselves with heads of whole blocks of 32 values are quantized by the launch that attends.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the buffers do not fit or no kernel serves so many queries per head;
    /// [`DeviceError::Driver`].
    #[expect(clippy::too_many_arguments, reason = "a kernel's parameters, each once")]
    pub fn attention(
        &self,
        stream: &Stream,
        q: &Floats,
        (out, also): (&Floats, Targets<'_>),
        states: Option<&RunStates>,
        cache: &LayerCache,
        places: &Places,
        (scale, window): (f32, Option<u32>),
        split: Split,
        tokens: usize,
    ) -> Result<(), DeviceError> {
        let heads = cache.heads_of(q)?;
        q.check("queries", tokens, q.width())?;
        out.check("result", tokens, q.width())?;
        if let Some(quants) = also.quants {
            quants.check("result", tokens, q.width())?;
        }
        places.check(tokens, cache)?;
        let group = heads / cache.kv_heads;
        let attend = self.attend_kernel(cache, group)?;
        let mut spans =
            vec![&q.span, &out.span, &cache.span, &places.positions, &places.tables, &places.order, &places.pages];
        let segments = &places.listed.segments;
        let tiled = TILED_HEAD_DIMS.contains(&cache.head_dim) && !stream.is_captured();
        let tiled = tiled && !segments.is_empty() && places.listed.tokens == tokens;
        let single = if tiled { tokens - segments.iter().sum::<usize>() } else { tokens };
        let needed = RunStates::bytes(single, [heads, cache.kv_heads], cache.head_dim, split);
        let states = states.filter(|states| states.has_room(needed));
        match states {
            Some(states) => spans.extend([&states.states, &states.counters]),
            None if needed == [0; 2] => {}
            None => {
                let (runs, [bytes, _]) = (split.runs, needed);
                let reason = format!("{runs} runs need {bytes} bytes for the states of {single} tokens");
                return Err(DeviceError::Invalid(reason));
            }
        }
        // Kernels for tiles write floats, which are converted afterwards, with those of the tokens by themselves.
        let at_once = !tiled && cache.head_dim.is_multiple_of(BLOCK);
        let quants_now = also.quants.filter(|_| at_once);
        let later = Targets { quants: also.quants.filter(|_| !at_once), ..also };
        spans.extend(quants_now.into_iter().flat_map(|quants| [&quants.quants, &quants.scales]));
        let (heads, window) = (small("heads", heads)?, window.unwrap_or(u32::MAX).max(1));
        let mut rows = 0;
        if tiled {
            let args = PrefillArgs {
                q: q.span.address(),
                out: out.span.address(),
                cache: cache.args(),
                places: places.addresses(),
                segments: places.order.address(),
                count: segments.len() as u32,
                heads,
                window,
                scale,
            };
            let tiles = segments.iter().map(|tokens| tokens.div_ceil(TILE_ROWS / group)).sum();
            let mut shape = Launch::new(small("tiles", tiles)?, THREADS);
            shape.grid[1] = cache.kv_heads as u32;
            shape.grid[2] = if cache.head_dim > WHOLE_HEAD_DIM { 2 } else { 1 };
            let function = self.prefill_kernel(cache)?;
            // SAFETY: rows are checked; `Places` holds positions and pages that the cache has, and segments of the batch.
            unsafe { stream.launch(function, shape, &args, &spans)? };
            // Behind the segments are the tokens that are in none.
            rows = args.segments + 8 * segments.len() as u64;
        }
        let args = AttentionArgs {
            q: q.span.address(),
            out: ResultArgs {
                values: out.span.address(),
                quants: quants_now.map_or(0, |quants| quants.quants.address()),
                scales: quants_now.map_or(0, |quants| quants.scales.address()),
            },
            partial: states.map_or(0, |states| states.states.address()),
            counters: states.map_or(0, |states| states.counters.address()),
            cache: cache.args(),
            places: places.addresses(),
            rows,
            heads,
            runs: small("runs", split.runs)?,
            run_pages: small("pages", split.run_pages)?,
            window,
            scale,
        };
        if single > 0 {
            let mut shape = Launch::new(cache.kv_heads as u32, THREADS);
            shape.grid[1] = args.runs;
            shape.grid[2] = small("tokens", single)?;
            // SAFETY: rows are checked, and there is room for the state of every run and a counter for those of a token and a head;
            // `Places` holds positions and pages that the cache has. Quantized heads are whole blocks.
            unsafe { stream.launch(attend, shape, &args, &spans)? };
        }
        if later.is_empty() { Ok(()) } else { self.convert(stream, out, later, tokens) }
    }
}

/// Kernels and the bytes of their parameters as this file has them.
pub(super) const fn parameter_sizes() -> &'static [(&'static str, usize)] {
    &[
        ("append_f16", size_of::<AppendArgs>()),
        ("attend_64_1_f16", size_of::<AttentionArgs>()),
        ("prefill_64_f16", size_of::<PrefillArgs>()),
    ]
}
