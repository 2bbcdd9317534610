//! Products of weights with activations: `cuda/gemv.cu` for a few tokens; for many, `cuda/gemm.cu` for quantized types, or
//! `cuda/gemm_sm90a.cu` on Hopper, and `cuda/gemm_float.cu` for the others.

use super::{Floats, Peak, Quants, SCALE_BYTES, small};
use crate::{
    DeviceError, Kernels, Span, Stream,
    driver::{Function, KernelArgs, Launch},
    kernels::{PerType, Slot},
    weights::{BLOCK, Weights, factors_per_block, is_quantized},
};
use rustai_abi::DType;

/// Up to so many tokens are multiplied by the decode kernels, which read weights as fast as memory gives them and multiply each
/// token by itself.
pub const DECODE_TOKENS: usize = 8;

/// As [`DECODE_TOKENS`], for weights of float types: twice through the decode kernels reads their weights twice, but with all
/// multiprocessors, of which a product of so few tokens in tiles occupies a part. A guess to be measured.
const FLOAT_DECODE_TOKENS: usize = 2 * DECODE_TOKENS;

/// From so many tokens on, devices of compute capability 9.0 multiply quantized weights with their own kernel. With fewer, most of
/// its tile is idle, and the other kernel gives the numbers of decoding. A guess to be measured.
pub const HOPPER_TOKENS: usize = 65;

/// Most matrices of a launch.
pub const MAX_MATRICES: usize = 3;

/// Most warps of a block, as in `cuda/gemv.cu`.
const MAX_WARPS: usize = 8;

/// Blocks of weights that a thread takes, if the row is long enough: one is multiplied while the next is on its way.
const BLOCKS_PER_THREAD: usize = 2;

/// What weights are multiplied by.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// For weights of quantized types.
    Quantized(&'a Quants),
    /// For weights of float types.
    Floats(&'a Floats),
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
    blocks: u32,
    tokens: u32,
    count: u32,
    gated: u32,
}

// SAFETY: fields and order are those of `MatmulArgs` in `cuda/matmul.cuh`.
unsafe impl KernelArgs for MatmulArgs {}

/// Tokens and rows that a block of `cuda/gemm.cu` makes, and its threads; of `cuda/gemm_float.cu` only the rows differ.
const TILE_TOKENS: usize = 128;
const TILE_ROWS: usize = 64;
const FLOAT_TILE_ROWS: usize = 128;
/// The same of `cuda/gemm_sm90a.cu`, which has four tiles of 64 columns of f16 in shared memory.
const HOPPER_TILE_ROWS: usize = 128;
const HOPPER_THREADS: u32 = 384;
pub(super) const HOPPER_SHARED: u32 = 4 * (TILE_TOKENS * 64 * 2) as u32;
const GEMM_THREADS: u32 = 256;

/// Kernels for 1, 2, 4 and 8 tokens, for many, and Hopper's.
#[derive(Debug, Default)]
pub(super) struct Slots {
    gemv: PerType<[Slot; 4]>,
    gemm: PerType<Slot>,
    hopper: PerType<Slot>,
}

impl Kernels {
    /// Looks up the kernels of products with weights of a type, so that no step has to.
    ///
    /// # Errors
    /// [`DeviceError::MissingKernel`] if the images lack one; [`DeviceError::Driver`].
    pub fn ready_matmul(&self, dtype: DType) -> Result<(), DeviceError> {
        for tokens in [1, 2, 4, 8] {
            self.gemv(dtype, tokens)?;
        }
        self.gemm(dtype)?;
        if is_quantized(dtype) == Some(true) {
            self.hopper_gemm(dtype)?;
        }
        Ok(())
    }

    /// `out = x · Wᵀ + bias` for up to three matrices of one type and one input.
    ///
    /// With any number of tokens, a NaN in a row of `x`, or in a row or a scale of the weights, makes results of that row NaN, and an
    /// infinity makes them infinite or NaN. Other rows are as if it were not there.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if buffers and matrices do not fit each other; [`DeviceError::Driver`].
    pub fn matmul(
        &self,
        stream: &Stream,
        x: Input<'_>,
        projections: &[Projection<'_>],
        tokens: usize,
    ) -> Result<(), DeviceError> {
        if projections.is_empty() || projections.len() > MAX_MATRICES {
            return Err(DeviceError::Invalid(format!(
                "{} matrices in a launch for 1 to {MAX_MATRICES}",
                projections.len()
            )));
        }
        self.launch_matmul(stream, x, projections, tokens, false)
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
        tokens: usize,
    ) -> Result<(), DeviceError> {
        if gate.rows() != up.rows() {
            return Err(DeviceError::Invalid(format!("a gate of {} rows beside {}", gate.rows(), up.rows())));
        }
        let projections = [gate, up].map(|weights| Projection { weights, bias: None, out, accumulate: false });
        self.launch_matmul(stream, x, &projections, tokens, true)
    }

    fn launch_matmul(
        &self,
        stream: &Stream,
        x: Input<'_>,
        projections: &[Projection<'_>],
        tokens: usize,
        gated: bool,
    ) -> Result<(), DeviceError> {
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
            ..MatmulArgs::default()
        };
        let mut spans: Vec<&Span> = Vec::with_capacity(8 * MAX_MATRICES);
        match (x, is_quantized(dtype)) {
            (Input::Quantized(x), Some(true)) => {
                x.check("input", tokens, cols)?;
                (args.x, args.scales) = (x.quants.address(), x.scales.address());
                spans.extend([&x.quants, &x.scales]);
            }
            (Input::Floats(x), Some(false)) => {
                x.check("input", tokens, cols)?;
                args.x = x.span.address();
                spans.push(&x.span);
            }
            _ => return Err(DeviceError::Invalid(format!("the input is not of the kind that {dtype} weights take"))),
        }
        let quantized = args.scales != 0;
        let method = self.method(dtype, quantized, tokens)?;
        let tile_rows = match (&method, quantized) {
            (Method::Hopper(_), _) => HOPPER_TILE_ROWS,
            (Method::Tiles, true) => TILE_ROWS,
            (Method::Tiles, false) => FLOAT_TILE_ROWS,
            (Method::Decode, _) => 2,
        };
        // Half of them are of the gate.
        let rows_per_block = if gated { tile_rows / 2 } else { tile_rows };
        let mut grid = 0;
        for (projection, matrix) in projections.iter().zip(&mut args.matrices) {
            let Projection { weights, bias, out, accumulate } = *projection;
            if weights.dtype() != dtype || weights.cols() != cols {
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
            spans.extend(weights.planes());
            spans.push(&out.span);
            // Gate and up are walked by the same blocks.
            grid = if gated { 0 } else { grid } + weights.rows().div_ceil(rows_per_block);
        }
        let grid = small("rows", grid)?;
        let tiled = match method {
            Method::Decode => None,
            Method::Hopper(function) => Some((function, HOPPER_SHARED, HOPPER_THREADS)),
            Method::Tiles => Some((self.gemm(dtype)?, stage_bytes(dtype), GEMM_THREADS)),
        };
        if let Some((function, shared, threads)) = tiled {
            let tiles = small("tokens", tokens.div_ceil(TILE_TOKENS))?;
            let shape = Launch { grid: [grid, tiles, 1], shared, ..Launch::new(grid, threads) };
            // SAFETY: the planes hold `rows` rows of the type, and input, bias and results have been checked against them.
            return unsafe { stream.launch(function, shape, &args, &spans) };
        }
        let warps = first.blocks().div_ceil(32 * BLOCKS_PER_THREAD).clamp(1, MAX_WARPS);
        let shape = Launch::new(grid, 32 * warps as u32);
        // More tokens than a decode kernel takes at a time go by in groups.
        for done in (0..tokens).step_by(DECODE_TOKENS) {
            let count = (tokens - done).min(DECODE_TOKENS);
            let mut part = args;
            part.tokens = count as u32;
            if done > 0 {
                part.x += (done * cols * 4) as u64;
                for matrix in &mut part.matrices {
                    matrix.out += (done * 4) as u64 * u64::from(matrix.stride);
                }
            }
            let function = self.gemv(dtype, count)?;
            // SAFETY: as above; the part's rows are among them.
            unsafe { stream.launch(function, shape, &part, &spans)? };
        }
        Ok(())
    }
}

/// How a product is made.
enum Method<'a> {
    /// `cuda/gemv.cu`, some tokens at a time.
    Decode,
    /// `cuda/gemm.cu` or `cuda/gemm_float.cu`.
    Tiles,
    /// `cuda/gemm_sm90a.cu`.
    Hopper(Function<'a>),
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
    /// The kernel for up to `tokens` tokens, 1 to [`DECODE_TOKENS`].
    fn gemv(&self, dtype: DType, tokens: usize) -> Result<Function<'_>, DeviceError> {
        let most = tokens.next_power_of_two();
        let slot = &self.slots.matmul.gemv[dtype][most.ilog2() as usize];
        self.get(slot, || format!("gemv_{}_{most}", dtype.name().to_lowercase()), 0)
    }

    fn gemm(&self, dtype: DType) -> Result<Function<'_>, DeviceError> {
        let name = || format!("gemm_{}", dtype.name().to_lowercase());
        self.get(&self.slots.matmul.gemm[dtype], name, stage_bytes(dtype))
    }

    /// The kernel for so many tokens and weights of this type.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the type has none; [`DeviceError::Driver`].
    pub fn product_kernel(&self, dtype: DType, tokens: usize) -> Result<ProductKernel, DeviceError> {
        let no_kernel = || DeviceError::Invalid(format!("{dtype} weights have no kernel"));
        let quantized = is_quantized(dtype).ok_or_else(no_kernel)?;
        let name = dtype.name().to_lowercase();
        let of = |name, peak| ProductKernel { name, peak, times: 1 };
        Ok(match (self.method(dtype, quantized, tokens)?, quantized, dtype) {
            (Method::Hopper(_), ..) => of(format!("gemm_sm90a_{name}"), Peak::WgmmaF16),
            (Method::Tiles, true, _) => of(format!("gemm_{name}"), Peak::MmaInt8),
            (Method::Tiles, false, DType::F16) => of(format!("gemm_{name}"), Peak::MmaF16),
            (Method::Tiles, false, DType::BF16) => of(format!("gemm_{name}"), Peak::MmaBf16),
            // A weight is a sum of two in 16 bits, and so is an activation; the product of the lower parts is left out.
            (Method::Tiles, false, _) => ProductKernel { times: 3, ..of(format!("gemm_{name}"), Peak::MmaBf16) },
            (Method::Decode, ..) => {
                let peak = if quantized { Peak::Dp4a } else { Peak::Fma };
                of(format!("gemv_{name}_{}", tokens.min(DECODE_TOKENS).next_power_of_two()), peak)
            }
        })
    }

    fn method(&self, dtype: DType, quantized: bool, tokens: usize) -> Result<Method<'_>, DeviceError> {
        if tokens <= if quantized { DECODE_TOKENS } else { FLOAT_DECODE_TOKENS } {
            return Ok(Method::Decode);
        }
        let hopper = if quantized && tokens >= HOPPER_TOKENS { self.hopper_gemm(dtype)? } else { None };
        Ok(hopper.map_or(Method::Tiles, Method::Hopper))
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

/// Dynamic shared memory of a prefill kernel: two of the `Stage`s of `cuda/gemm.cu` or `cuda/gemm_float.cu`.
pub(super) fn stage_bytes(dtype: DType) -> u32 {
    const STEP: usize = 4;
    let row = |bytes: usize| STEP * bytes + 16;
    let stage = if is_quantized(dtype) == Some(true) {
        let quants = (TILE_TOKENS + TILE_ROWS) * row(BLOCK);
        let scales = STEP * TILE_TOKENS * SCALE_BYTES;
        let factors = STEP * factors_per_block(dtype) * TILE_ROWS * size_of::<f32>();
        quants + scales + factors
    } else {
        // A block of 8 values in 16 bits; F32 is a sum of two such.
        let parts = if dtype == DType::F32 { 2 } else { 1 };
        parts * (TILE_TOKENS + FLOAT_TILE_ROWS) * row(16)
    };
    2 * stage as u32
}

/// Kernels and the bytes of their parameters as this file has them.
pub(super) const fn parameter_sizes() -> &'static [(&'static str, usize)] {
    const SIZE: usize = size_of::<MatmulArgs>();
    &[("gemv_q4_0_1", SIZE), ("gemm_q4_0", SIZE), ("gemm_f16", SIZE), ("gemm_sm90a_q4_0", SIZE)]
}
