//! Products of weights with activations: `cuda/gemv.cu` for a few tokens; for batches and prompts, `cuda/gemm.cu` for quantized
//! types, or `cuda/gemm_sm90a.cu` for prompts on Hopper, and `cuda/gemm_float.cu` for the others.
//!
//! | tokens | quantized weights | blocks of threads per multiprocessor at most, where products are split |
//! |---|---|---|
//! | 1 to 8 | decode kernel for 1, 2, 4 or 8 | |
//! | 9 to 16 | tiles of 16 tokens x 64 rows | 4 |
//! | 17 to 32 | tiles of 32 tokens x 64 rows | 4 |
//! | 33 to 64 | tiles of 64 tokens x 64 rows | 3 |
//! | from 65 on | tiles of 128 tokens x 64 rows | not split |
//! | any, of `f16` activations on Hopper | tiles of 128 tokens x 128 rows | not split |
//!
//! Quantized weights take activations of 8 bits, whose rounding is the same in every line, or [`Halves`] on devices that
//! multiply those, from [`HOPPER_TOKENS`] on: which of them is up to whoever makes the activations. Rounding to `f16` is off by
//! an eighth at most of what rounding to 8 bits is, so results with the one differ from those with the other by about as much
//! as the latter are off.
//!
//! With the numbers of tokens of a line and the matrices of a launch, a token's result is the same, bit for bit, whatever else is in
//! its batch, and in whatever order a device runs the blocks. Lines differ in the order of sums, except that the tiles of
//! `cuda/gemm.cu` all add in the order of columns: the two lines with equal splits agree under the emulator, but nothing makes a
//! compiler fuse the same multiplications in two kernels.

use super::{Append, Floats, Halves, Peak, Quants, SCALE_BYTES, attention::AppendTo, small};
use crate::{
    Arena, Device, DeviceError, Kernels, Span, Stream,
    driver::{Function, KernelArgs, Launch, TensorMap},
    kernels::{PerType, Slot},
    weights::{BLOCK, Weights, factors_per_block, is_quantized},
};
use rustai_abi::DType;

/// Up to so many tokens are multiplied by the decode kernels, which read weights as fast as memory gives them and multiply each
/// token by itself. With more, that takes longer than the weights do (see PERFORMANCE.md). A guess to be measured.
pub const DECODE_TOKENS: usize = 8;

/// As [`DECODE_TOKENS`], for weights of float types: twice through the decode kernels reads their weights twice, but with all
/// multiprocessors, of which a product of so few tokens in tiles occupies a part. A guess to be measured.
const FLOAT_DECODE_TOKENS: usize = 2 * DECODE_TOKENS;

/// From so many tokens on, devices of compute capability 9.0 should be given [`Halves`], which they multiply with a kernel of
/// their own. With fewer, most of its tile is idle, and 8 bits give the numbers of decoding. A guess to be measured.
pub const HOPPER_TOKENS: usize = 65;

/// Most matrices of a launch.
const MAX_MATRICES: usize = 3;

/// Quantized types in the order of the table in `cuda/formats.cuh`, by which `cuda/gemv.cu` numbers them.
const QUANTIZED: [DType; 13] = [
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::MXFP4,
];

/// Most warps of a block, as in `cuda/gemv.cu`.
const MAX_WARPS: usize = 8;

/// Tokens of the tiles of `cuda/gemm.cu`.
pub(super) const TILES: [usize; 4] = [16, 32, 64, 128];

/// Up to so many tokens, products are split by columns where they have too few tiles for the device.
const SPLIT_TOKENS: usize = 64;

/// Most blocks of threads per multiprocessor of a product that is split, with tiles of up to 32 tokens and of 64. By their registers
/// four of the former run at a time and two of the latter on Hopper. More blocks would write more sums.
const SPLIT_BLOCKS: [usize; 2] = [4, 3];

/// Fewest steps along the columns of a split: the first has nothing to overlap with. A guess to be measured.
const SPLIT_STEPS: usize = 4;

/// Most splits: a block reads that many tiles of sums. A guess to be measured.
const MAX_SPLITS: usize = 16;

/// Blocks of columns in a step of `cuda/gemm.cu` and `cuda/gemm_float.cu`.
const STEP: usize = 4;

/// How a product of quantized weights with many tokens is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiling {
    /// Tokens of a tile, of [`TILES`].
    tokens: usize,
    /// Parts of the columns.
    splits: usize,
}

impl Tiling {
    /// For more than [`DECODE_TOKENS`] tokens and a matrix, or several together, of so many tiles of rows and `blocks` blocks of
    /// columns. The number of tokens of a line of the table above changes only the size of the tile.
    fn new(tokens: usize, row_tiles: usize, blocks: usize, multiprocessors: usize) -> Self {
        let tile = tile_of(tokens);
        if tokens > SPLIT_TOKENS {
            return Self { tokens: tile, splits: 1 };
        }
        let row_tiles = row_tiles.max(1);
        let room = split_blocks(tile, multiprocessors) / row_tiles;
        let most = (blocks.div_ceil(STEP) / SPLIT_STEPS).min(MAX_SPLITS).min(room).max(1);
        // The multiprocessor that has most blocks ends last, and a block is so much shorter as there are splits. Of equals, the
        // most: more loads are under way.
        let rounds = |splits: usize| (row_tiles * splits).div_ceil(multiprocessors.max(1));
        let splits = (1..=most).rev().min_by(|a, b| (rounds(*a) * b).cmp(&(rounds(*b) * a)));
        Self { tokens: tile, splits: splits.unwrap_or(1) }
    }
}

/// Tokens of a tile for a product with so many.
fn tile_of(tokens: usize) -> usize {
    TILES.into_iter().find(|tile| tokens <= *tile).unwrap_or(TILE_TOKENS)
}

/// Most blocks of threads of a launch that is split, with tiles of so many tokens.
const fn split_blocks(tile: usize, multiprocessors: usize) -> usize {
    SPLIT_BLOCKS[(tile > 32) as usize].saturating_mul(multiprocessors)
}

/// Memory for products that are split by columns: where the parts' sums meet. Launches of one stream share it.
#[derive(Clone, Debug)]
pub struct Partials {
    sums: Span,
    /// Zeros, which every launch leaves as they were.
    counters: Span,
}

impl Partials {
    /// Bytes in an arena for products with up to so many tokens.
    pub fn room(max_tokens: usize, multiprocessors: usize) -> usize {
        let [sums, counters] = Self::bytes(max_tokens, multiprocessors);
        Arena::room::<u8>(sums).saturating_add(Arena::room::<u8>(counters))
    }

    /// Of the sums and of the counters.
    fn bytes(max_tokens: usize, multiprocessors: usize) -> [usize; 2] {
        if max_tokens <= DECODE_TOKENS {
            return [0; 2];
        }
        let tiles = TILES.into_iter().filter(|tile| *tile <= SPLIT_TOKENS && max_tokens > tile / 2);
        tiles.fold([0; 2], |[sums, counters], tile| {
            let blocks = split_blocks(tile, multiprocessors);
            let tile_bytes = tile * TILE_ROWS * size_of::<f32>();
            [sums.max(blocks.saturating_mul(tile_bytes)), counters.max(blocks.saturating_mul(size_of::<u32>()))]
        })
    }

    /// Memory of its own for products with up to so many tokens; `None` if so few are never split.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no room, or from the driver.
    pub fn new(device: &Device, max_tokens: usize) -> Result<Option<Self>, DeviceError> {
        let multiprocessors = device.info().multiprocessors as usize;
        let [sums, counters] = Self::bytes(max_tokens, multiprocessors);
        if sums == 0 {
            return Ok(None);
        }
        let mut arena = Arena::new(device, "sums of split products", Self::room(max_tokens, multiprocessors))?;
        let this = Self { sums: arena.take(sums)?, counters: arena.take(counters)? };
        this.counters.upload(&vec![0u32; counters / size_of::<u32>()])?;
        Ok(Some(this))
    }

    /// Whether a launch of so many blocks of threads with tiles of so many tokens fits.
    fn fits(&self, blocks: usize, tile: usize) -> bool {
        blocks.saturating_mul(tile * TILE_ROWS * size_of::<f32>()) <= self.sums.bytes()
            && blocks.saturating_mul(size_of::<u32>()) <= self.counters.bytes()
    }
}

/// Blocks of weights that a thread takes, if the row is long enough: one is multiplied while the next is on its way.
const BLOCKS_PER_THREAD: usize = 2;

/// What weights are multiplied by.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// For weights of quantized types.
    Quantized(&'a Quants),
    /// For weights of quantized types, on [devices that multiply these](Kernels::halves_from).
    Halves(&'a Halves),
    /// For weights of float types.
    Floats(&'a Floats),
}

impl Input<'_> {
    /// Whether so many tokens are few enough for `cuda/gemv.cu`.
    fn is_decoded(&self, tokens: usize) -> bool {
        match self {
            Self::Quantized(_) => tokens <= DECODE_TOKENS,
            Self::Halves(_) => false,
            Self::Floats(_) => tokens <= FLOAT_DECODE_TOKENS,
        }
    }
}

/// One matrix and where its product goes.
#[derive(Clone, Copy, Debug)]
pub struct Projection<'a> {
    /// The weights, `n × k`.
    pub weights: &'a Weights,
    /// `f32` per row of the weights, added to each result.
    pub bias: Option<&'a Floats>,
    /// The product, `n` wide.
    pub out: &'a Floats,
    /// Add to what `out` holds instead of replacing it.
    pub accumulate: bool,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Planes {
    codes: u64,
    extra: u64,
    fine: u64,
    coarse: u64,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct MatrixArgs {
    planes: Planes,
    out: u64,
    bias: u64,
    rows: u32,
    stride: u32,
    accumulate: u32,
    first: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct MatmulArgs {
    matrices: [MatrixArgs; MAX_MATRICES],
    x: u64,
    scales: u64,
    partials: u64,
    counters: u64,
    blocks: u32,
    tokens: u32,
    count: u32,
    gated: u32,
    splits: u32,
}

// SAFETY: fields and order are those of `MatmulArgs` in `cuda/matmul.cuh`.
unsafe impl KernelArgs for MatmulArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct HopperArgs {
    x: TensorMap,
    matmul: MatmulArgs,
}

// SAFETY: fields and order are those of `HopperArgs` in `cuda/gemm_sm90a.cu`.
unsafe impl KernelArgs for HopperArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct GemvArgs {
    product: MatmulArgs,
    append: AppendTo,
    appends: u32,
    types: [u32; MAX_MATRICES],
}

// SAFETY: fields and order are those of `GemvArgs` in `cuda/gemv.cu`.
unsafe impl KernelArgs for GemvArgs {}

/// Tokens and rows that a block of `cuda/gemm.cu` makes at most, and its threads; of `cuda/gemm_float.cu` only the rows differ.
pub(super) const TILE_TOKENS: usize = 128;
const TILE_ROWS: usize = 64;
const FLOAT_TILE_ROWS: usize = 128;
/// The same of `cuda/gemm_sm90a.cu`, which has four tiles of f16 in shared memory.
const HOPPER_TILE_ROWS: usize = 128;
const HOPPER_THREADS: u32 = 384;
pub(super) const HOPPER_SHARED: u32 = 4 * (TILE_TOKENS * TensorMap::TILE_COLUMNS * 2) as u32;
const GEMM_THREADS: u32 = 256;

/// Kernels for 1, 2, 4 and 8 tokens, for tiles of 16, 32, 64 and 128, of which float types have the last only, and Hopper's.
#[derive(Debug, Default)]
pub(super) struct Slots {
    gemv: PerType<[Slot; 4]>,
    gemv_mixed: [Slot; 4],
    gemm: PerType<[Slot; 4]>,
    hopper: PerType<Slot>,
}

impl Kernels {
    /// Looks up the kernels of products of one input with weights of these types, so that no step has to.
    ///
    /// # Errors
    /// [`DeviceError::MissingKernel`] if the images lack one; [`DeviceError::Driver`].
    pub fn ready_matmul(&self, dtypes: &[DType]) -> Result<(), DeviceError> {
        for &dtype in dtypes {
            let several = dtypes.iter().any(|other| *other != dtype);
            for tokens in [1, 2, 4, 8] {
                self.gemv(Some(dtype), tokens)?;
                if several && is_quantized(dtype) == Some(true) {
                    self.gemv(None, tokens)?;
                }
            }
            if is_quantized(dtype) == Some(true) {
                TILES.into_iter().try_for_each(|tile| self.gemm(dtype, tile).map(drop))?;
                self.hopper_gemm(dtype)?;
            } else {
                self.gemm(dtype, TILE_TOKENS)?;
            }
        }
        Ok(())
    }

    /// From how many tokens on activations for quantized weights should be [`Halves`] here; `None` on devices that do not
    /// multiply them.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn halves_from(&self) -> Result<Option<usize>, DeviceError> {
        // One image has the kernels of all types.
        Ok(self.hopper_gemm(DType::Q8_0)?.map(|_| HOPPER_TOKENS))
    }

    /// `out = x · Wᵀ + bias` for matrices of one input. Three share a launch if they are of one type, or if they are quantized and
    /// there are at most [`DECODE_TOKENS`] tokens. Without `partials`, or where they are too small, no product is split by columns.
    ///
    /// With any number of tokens, a NaN in a row of `x`, or in a row or a scale of the weights, makes results of that row NaN, and an
    /// infinity makes them infinite or NaN. Other rows are as if it were not there.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if buffers and matrices do not fit each other, or the device does not multiply such an input;
    /// [`DeviceError::Driver`].
    pub fn matmul(
        &self,
        stream: &Stream,
        x: Input<'_>,
        projections: &[Projection<'_>],
        partials: Option<&Partials>,
        tokens: usize,
    ) -> Result<(), DeviceError> {
        if projections.is_empty() {
            return Err(DeviceError::Invalid("a product with 0 matrices".into()));
        }
        let dtype = |projection: &Projection<'_>| projection.weights.dtype();
        let launch = |projections: &[Projection<'_>]| {
            let mut chunks = projections.chunks(MAX_MATRICES);
            chunks
                .try_for_each(|projections| self.launch_matmul(stream, x, projections, partials, tokens, After::Store))
        };
        if projections.iter().all(|projection| shares_launch(dtype(projection), dtype(&projections[0]), x, tokens)) {
            return launch(projections);
        }
        for (index, first) in projections.iter().enumerate() {
            let is_of_type = |projection: &&Projection<'_>| dtype(projection) == dtype(first);
            if !projections[..index].iter().any(|before| is_of_type(&before)) {
                launch(&projections[index..].iter().filter(is_of_type).copied().collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    /// Queries, keys and values of one input: [`matmul`](Self::matmul) with the three, and [`rope_append`](Self::rope_append) of what
    /// comes out. With few tokens and a cache of `f16` that is one launch, and what `out` of keys and values holds then is undefined.
    ///
    /// # Errors
    /// As those, and [`DeviceError::Invalid`] if a product is to be added to something.
    pub fn project_append(
        &self,
        stream: &Stream,
        x: Input<'_>,
        projections: [Projection<'_>; 3],
        partials: Option<&Partials>,
        append: Append<'_>,
        tokens: usize,
    ) -> Result<(), DeviceError> {
        if projections.iter().any(|projection| projection.accumulate) {
            return Err(DeviceError::Invalid("queries, keys and values are not added to anything".into()));
        }
        let first = projections[0].weights.dtype();
        let share = projections.iter().all(|projection| shares_launch(projection.weights.dtype(), first, x, tokens));
        if share && x.is_decoded(tokens) && append.is_part_of_product() {
            return self.launch_matmul(stream, x, &projections, partials, tokens, After::Append(append));
        }
        self.matmul(stream, x, &projections, partials, tokens)?;
        self.rope_append(stream, projections.map(|projection| projection.out), append, tokens)
    }

    /// `out = silu(x · Gateᵀ) * (x · Upᵀ)`.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul).
    pub fn gated_matmul(
        &self,
        stream: &Stream,
        x: Input<'_>,
        [gate, up]: [&Weights; 2],
        out: &Floats,
        partials: Option<&Partials>,
        tokens: usize,
    ) -> Result<(), DeviceError> {
        if gate.rows() != up.rows() {
            return Err(DeviceError::Invalid(format!("a gate of {} rows beside {}", gate.rows(), up.rows())));
        }
        let projections = [gate, up].map(|weights| Projection { weights, bias: None, out, accumulate: false });
        self.launch_matmul(stream, x, &projections, partials, tokens, After::Gate)
    }

    fn launch_matmul(
        &self,
        stream: &Stream,
        x: Input<'_>,
        projections: &[Projection<'_>],
        partials: Option<&Partials>,
        tokens: usize,
        after: After<'_>,
    ) -> Result<(), DeviceError> {
        let gated = matches!(after, After::Gate);
        let first = projections[0].weights;
        let (dtype, cols) = (first.dtype(), first.cols());
        if tokens == 0 {
            return Err(DeviceError::Invalid("a product with 0 tokens".into()));
        }
        let mut args = MatmulArgs {
            blocks: small("blocks", first.blocks())?,
            tokens: small("tokens", tokens)?,
            // The second of two gated matrices has no result of its own.
            count: if gated { 1 } else { projections.len() as u32 },
            gated: u32::from(gated),
            splits: 1,
            ..MatmulArgs::default()
        };
        let mut spans: Vec<&Span> = Vec::with_capacity(8 * MAX_MATRICES);
        let is_decoded = x.is_decoded(tokens);
        let method = match (x, is_quantized(dtype)) {
            (Input::Quantized(x), Some(true)) => {
                x.check("input", tokens, cols)?;
                (args.x, args.scales) = (x.quants.address(), x.scales.address());
                spans.extend([&x.quants, &x.scales]);
                if is_decoded { Method::Decode } else { Method::Tiles(TILE_ROWS) }
            }
            (Input::Halves(x), Some(true)) => {
                x.check("input", tokens, cols)?;
                spans.push(&x.span);
                let refused = || format!("this device does not multiply {dtype} weights by f16 activations");
                let function = self.hopper_gemm(dtype)?.ok_or_else(|| DeviceError::Invalid(refused()))?;
                Method::Hopper(function, &x.map)
            }
            (Input::Floats(x), Some(false)) => {
                x.check("input", tokens, cols)?;
                args.x = x.span.address();
                spans.push(&x.span);
                if is_decoded { Method::Decode } else { Method::Tiles(FLOAT_TILE_ROWS) }
            }
            _ => return Err(DeviceError::Invalid(format!("the input is not of the kind that {dtype} weights take"))),
        };
        let tile_rows = match method {
            Method::Hopper(..) => HOPPER_TILE_ROWS,
            Method::Tiles(rows) => rows,
            Method::Decode => 2,
        };
        // Half of them are of the gate.
        let rows_per_block = if gated { tile_rows / 2 } else { tile_rows };
        let mut grid = 0;
        for (projection, matrix) in projections.iter().zip(&mut args.matrices) {
            let Projection { weights, bias, out, accumulate } = *projection;
            if !shares_launch(weights.dtype(), dtype, x, tokens) || weights.cols() != cols {
                return Err(DeviceError::Invalid(format!(
                    "{} x {} {} weights beside {} columns of {dtype}",
                    weights.rows(),
                    weights.cols(),
                    weights.dtype(),
                    cols
                )));
            }
            out.check("result", tokens, weights.rows())?;
            if let Some(bias) = bias {
                bias.check("bias", 1, weights.rows())?;
                spans.push(&bias.span);
            }
            let [codes, extra, fine, coarse] = weights.planes().each_ref().map(Span::address);
            *matrix = MatrixArgs {
                planes: Planes { codes, extra, fine, coarse },
                out: out.span.address(),
                bias: bias.map_or(0, |bias| bias.span.address()),
                rows: small("rows", weights.rows())?,
                stride: small("width", out.width())?,
                accumulate: u32::from(accumulate),
                first: small("rows", grid)?,
            };
            if let Method::Hopper(..) = method {
                small("blocks of a matrix", weights.rows().saturating_mul(weights.blocks()))?;
            }
            spans.extend(weights.planes());
            spans.push(&out.span);
            // Gate and up are walked by the same blocks.
            grid = if gated { 0 } else { grid } + weights.rows().div_ceil(rows_per_block);
        }
        match method {
            Method::Decode => {}
            Method::Hopper(function, map) => {
                let shape = tiles(grid, tokens, Tiling { tokens: TILE_TOKENS, splits: 1 })?;
                let shape = Launch { threads: HOPPER_THREADS, shared: HOPPER_SHARED, ..shape };
                let args = HopperArgs { x: *map, matmul: args };
                // SAFETY: the planes hold `rows` rows of the type, and input, bias and results have been checked against them; the
                // map is the input's.
                return unsafe { stream.launch(function, shape, &args, &spans) };
            }
            Method::Tiles(_) => {
                let mut tiling = Tiling { tokens: TILE_TOKENS, splits: 1 };
                if args.scales != 0 {
                    let multiprocessors = self.device().info().multiprocessors as usize;
                    tiling = Tiling::new(tokens, grid, first.blocks(), multiprocessors);
                }
                if tiling.splits > 1 {
                    match partials {
                        Some(partials) if partials.fits(grid * tiling.splits, tiling.tokens) => {
                            (args.partials, args.counters) = (partials.sums.address(), partials.counters.address());
                            spans.extend([&partials.sums, &partials.counters]);
                        }
                        _ => tiling.splits = 1,
                    }
                }
                args.splits = tiling.splits as u32;
                let shape = tiles(grid, tokens, tiling)?;
                let (threads, shared) = (gemm_threads(tiling.tokens), stage_bytes(dtype, tiling.tokens));
                let function = self.gemm(dtype, tiling.tokens)?;
                // SAFETY: as above; there is room for the sums of every block, and a counter for every tile.
                return unsafe { stream.launch(function, Launch { threads, shared, ..shape }, &args, &spans) };
            }
        }
        let number = |projection: &Projection<'_>| {
            let dtype = projection.weights.dtype();
            QUANTIZED.iter().position(|known| *known == dtype).unwrap_or_default() as u32
        };
        let (mut append, appends) = (AppendTo::default(), matches!(after, After::Append(_)));
        if let (After::Append(to), [q, k, v]) = (&after, projections) {
            append = to.args([q.out, k.out, v.out], tokens)?;
            spans.extend(to.spans());
        }
        let mut types = [0; MAX_MATRICES];
        projections.iter().zip(&mut types).for_each(|(projection, slot)| *slot = number(projection));
        let is_one_type = projections.iter().all(|projection| projection.weights.dtype() == dtype);
        let warps = first.blocks().div_ceil(32 * BLOCKS_PER_THREAD).clamp(1, MAX_WARPS);
        let shape = Launch::new(small("rows", grid)?, 32 * warps as u32);
        // More tokens than a decode kernel takes at a time go by in groups.
        for done in (0..tokens).step_by(DECODE_TOKENS) {
            let count = (tokens - done).min(DECODE_TOKENS);
            let mut part = GemvArgs { product: args, append, appends: u32::from(appends), types };
            part.product.tokens = count as u32;
            if done > 0 {
                part.append.skip(done);
                part.product.x += (done * cols * 4) as u64;
                for matrix in &mut part.product.matrices {
                    matrix.out += (done * 4) as u64 * u64::from(matrix.stride);
                }
            }
            let function = self.gemv(is_one_type.then_some(dtype), count)?;
            // SAFETY: as above; the part's rows are among them, and the types are those of the matrices. Of three that append, rows
            // are those of heads that the cache has, which also has the positions and pages that `Places` holds.
            unsafe { stream.launch(function, shape, &part, &spans)? };
        }
        Ok(())
    }
}

/// What becomes of a product.
enum After<'a> {
    /// Each matrix has a result.
    Store,
    /// The result is that of a gate and of what it gates.
    Gate,
    /// Three results are queries, keys and values, of few tokens.
    Append(Append<'a>),
}

/// Whether matrices of two types can be in one launch with an input of so many tokens.
fn shares_launch(one: DType, other: DType, x: Input<'_>, tokens: usize) -> bool {
    let are_quantized = [one, other].iter().all(|dtype| is_quantized(*dtype) == Some(true));
    one == other || are_quantized && x.is_decoded(tokens)
}

/// How a product is made.
enum Method<'a> {
    /// `cuda/gemv.cu`, some tokens at a time.
    Decode,
    /// `cuda/gemm.cu` or `cuda/gemm_float.cu`, in tiles of so many rows.
    Tiles(usize),
    /// `cuda/gemm_sm90a.cu`, and where it finds the input.
    Hopper(Function<'a>, &'a TensorMap),
}

/// A block of threads for each tile: of `row_tiles` tiles of rows, and so many tokens.
fn tiles(row_tiles: usize, tokens: usize, tiling: Tiling) -> Result<Launch, DeviceError> {
    let row_tiles = small("rows", row_tiles)?;
    let token_tiles = small("tokens", tokens.div_ceil(tiling.tokens))?;
    Ok(Launch { grid: [row_tiles, token_tiles, tiling.splits as u32], ..Launch::new(row_tiles, GEMM_THREADS) })
}

/// The kernel that makes a product, and what it multiplies with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProductKernel {
    /// Its name.
    pub name: String,
    /// The instruction that multiplies.
    pub peak: Peak,
    /// How often it does so for each product.
    pub times: usize,
}

impl Kernels {
    /// The kernel for up to `tokens` tokens, 1 to [`DECODE_TOKENS`], and weights of a type, or of several quantized ones.
    fn gemv(&self, dtype: Option<DType>, tokens: usize) -> Result<Function<'_>, DeviceError> {
        let most = tokens.next_power_of_two();
        let slots = dtype.map_or(&self.slots.matmul.gemv_mixed, |dtype| &self.slots.matmul.gemv[dtype]);
        let name = || dtype.map_or_else(|| "mixed".into(), |dtype| dtype.name().to_lowercase());
        self.get(&slots[most.ilog2() as usize], || format!("gemv_{}_{most}", name()), 0)
    }

    /// The kernel with tiles of so many tokens, one of [`TILES`].
    fn gemm(&self, dtype: DType, tile: usize) -> Result<Function<'_>, DeviceError> {
        let name = || match is_quantized(dtype) {
            Some(true) => format!("gemm_{}_{tile}", dtype.name().to_lowercase()),
            _ => format!("gemm_{}", dtype.name().to_lowercase()),
        };
        // PANIC: the tiles are 16 << 0 to 16 << 3.
        let slot = &self.slots.matmul.gemm[dtype][(tile / TILES[0]).ilog2() as usize];
        self.get(slot, name, stage_bytes(dtype, tile))
    }

    /// The kernel for so many tokens and weights of this type, with [`Halves`] where those [should be](Self::halves_from) the
    /// input.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the type has none; [`DeviceError::Driver`].
    pub fn product_kernel(&self, dtype: DType, tokens: usize) -> Result<ProductKernel, DeviceError> {
        let no_kernel = || DeviceError::Invalid(format!("{dtype} weights have no kernel"));
        let quantized = is_quantized(dtype).ok_or_else(no_kernel)?;
        let name = dtype.name().to_lowercase();
        let of = |name, peak| ProductKernel { name, peak, times: 1 };
        if tokens <= if quantized { DECODE_TOKENS } else { FLOAT_DECODE_TOKENS } {
            let peak = if quantized { Peak::Dp4a } else { Peak::Fma };
            return Ok(of(format!("gemv_{name}_{}", tokens.min(DECODE_TOKENS).next_power_of_two()), peak));
        }
        if quantized && self.halves_from()?.is_some_and(|from| tokens >= from) {
            return Ok(of(format!("gemm_sm90a_{name}"), Peak::WgmmaF16));
        }
        Ok(match dtype {
            _ if quantized => of(format!("gemm_{name}_{}", tile_of(tokens)), Peak::MmaInt8),
            DType::F16 => of(format!("gemm_{name}"), Peak::MmaF16),
            DType::BF16 => of(format!("gemm_{name}"), Peak::MmaBf16),
            // A weight is a sum of two in 16 bits, and so is an activation; the product of the lower parts is left out.
            _ => ProductKernel { times: 3, ..of(format!("gemm_{name}"), Peak::MmaBf16) },
        })
    }

    /// Hopper's kernel for many tokens, if this is such a device. Images that are not for exactly its architecture have none.
    fn hopper_gemm(&self, dtype: DType) -> Result<Option<Function<'_>>, DeviceError> {
        if self.device().info().capability != (9, 0) {
            return Ok(None);
        }
        let name = || format!("gemm_sm90a_{}", dtype.name().to_lowercase());
        self.find(&self.slots.matmul.hopper[dtype], name, HOPPER_SHARED)
    }
}

/// Threads of a block of `cuda/gemm.cu` or `cuda/gemm_float.cu`, by the tokens of its tile.
const fn gemm_threads(tile: usize) -> u32 {
    if tile <= 32 { GEMM_THREADS / 2 } else { GEMM_THREADS }
}

/// Dynamic shared memory of a kernel with tiles: two of the `Stage`s of `cuda/gemm.cu` or `cuda/gemm_float.cu`.
pub(super) fn stage_bytes(dtype: DType, tile: usize) -> u32 {
    let row = |bytes: usize| STEP * bytes + 16;
    let stage = if is_quantized(dtype) == Some(true) {
        let quants = (tile + TILE_ROWS) * row(BLOCK);
        let scales = STEP * tile * SCALE_BYTES;
        let factors = STEP * factors_per_block(dtype) * TILE_ROWS * size_of::<f32>();
        quants + scales + factors
    } else {
        // A block of 8 values in 16 bits; F32 is a sum of two such.
        let parts = if dtype == DType::F32 { 2 } else { 1 };
        parts * (tile + FLOAT_TILE_ROWS) * row(16)
    };
    2 * stage as u32
}

/// Kernels and the bytes of their parameters as this file has them.
pub(super) const fn parameter_sizes() -> &'static [(&'static str, usize)] {
    const SIZE: usize = size_of::<MatmulArgs>();
    &[
        ("gemv_q4_0_1", size_of::<GemvArgs>()),
        ("gemv_mixed_8", size_of::<GemvArgs>()),
        ("gemm_q4_0_16", SIZE),
        ("gemm_q4_0_128", SIZE),
        ("gemm_f16", SIZE),
        ("gemm_sm90a_q4_0", size_of::<HopperArgs>()),
    ]
}

#[cfg(test)]
mod tests {
    use super::{Partials, TILE_ROWS, Tiling, split_blocks};

    const H200: usize = 132;

    fn tiling(tokens: usize, rows: usize, cols: usize, multiprocessors: usize) -> (usize, usize) {
        let Tiling { tokens, splits } = Tiling::new(tokens, rows.div_ceil(TILE_ROWS), cols / 32, multiprocessors);
        (tokens, splits)
    }

    /// Those of an 8B model: attention's output, queries with keys and values, gate with up, down, logits.
    #[test]
    fn tiles_and_splits_fill_a_large_device() {
        for (rows, cols, splits) in [
            (4096, 4096, [8, 8, 6]),
            (6144, 4096, [4, 4, 4]),
            (2 * 14336, 4096, [1, 1, 1]),
            (4096, 14336, [8, 8, 6]),
            (128_256, 4096, [1, 1, 1]),
            // A tile for each multiprocessor, and one more: 133 tiles take two rounds whole, 399 three thirds of one.
            (132 * 64, 4096, [4, 4, 3]),
            (133 * 64, 4096, [3, 3, 2]),
        ] {
            for (tokens, tile, splits) in [
                (9, 16, splits[0]),
                (16, 16, splits[0]),
                (17, 32, splits[1]),
                (32, 32, splits[1]),
                (33, 64, splits[2]),
                (64, 64, splits[2]),
                (65, 128, 1),
                (128, 128, 1),
                (4096, 128, 1),
            ] {
                assert_eq!(tiling(tokens, rows, cols, H200), (tile, splits), "{tokens} tokens of {rows} x {cols}");
            }
        }
    }

    #[test]
    fn splits_are_not_too_short_nor_too_many() {
        // 4 steps each of 4 blocks of 32 columns.
        assert_eq!([512, 896, 1024, 1536, 2048].map(|cols| tiling(16, 64, cols, H200).1), [1, 1, 2, 3, 4]);
        assert_eq!(tiling(16, 64, 1 << 20, H200).1, 16);
        // A small device.
        assert_eq!([16, 64].map(|tokens| tiling(tokens, 256, 1 << 20, 4).1), [4, 3]);
        assert_eq!(tiling(16, 4096, 4096, 4).1, 1);
    }

    #[test]
    fn partials_have_room_for_every_split() {
        for (max_tokens, tile) in [(9, 16), (16, 16), (17, 32), (33, 64), (64, 64), (4096, 64)] {
            let [sums, counters] = Partials::bytes(max_tokens, H200);
            for tokens in 9..=max_tokens.min(64) {
                for row_tiles in 1..600 {
                    let Tiling { tokens: tile, splits } = Tiling::new(tokens, row_tiles, 1 << 16, H200);
                    if splits > 1 {
                        let blocks = row_tiles * splits;
                        assert!(blocks <= split_blocks(tile, H200));
                        assert!(blocks * tile * TILE_ROWS * 4 <= sums && row_tiles * 4 <= counters, "{tokens}");
                    }
                }
            }
            assert_eq!(sums, split_blocks(tile, H200) * tile * TILE_ROWS * 4);
        }
        assert_eq!(Partials::bytes(8, H200), [0; 2]);
        assert_eq!(Partials::room(8, H200), 0);
    }
}
