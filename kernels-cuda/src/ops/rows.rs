//! Work on rows of activations (`cuda/rows.cu`).

use super::{Floats, Halves, Quants, small};
use crate::{
    DeviceError, Kernels, Span, Stream,
    driver::{Function, KernelArgs, Launch},
    kernels::{PerType, Slot},
    weights::Weights,
};
use rustai_abi::DType;

/// Threads of a block, as in `cuda/rows.cu`.
const THREADS: u32 = 256;

/// Most blocks of element-wise work; threads take several elements where there are more.
const ELEMENT_BLOCKS: u64 = 4096;

#[derive(Clone, Copy)]
#[repr(C)]
struct EmbedArgs {
    planes: [u64; 4],
    tokens: u64,
    out: u64,
    blocks: u32,
    rows: u32,
    scale: f32,
}

// SAFETY: fields and order are those of `EmbedArgs` in `cuda/rows.cu`.
unsafe impl KernelArgs for EmbedArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct NormArgs {
    x: u64,
    weight: u64,
    out: u64,
    quants: u64,
    scales: u64,
    halves: u64,
    width: u32,
    eps: f32,
}

// SAFETY: fields and order are those of `NormArgs` in `cuda/rows.cu`.
unsafe impl KernelArgs for NormArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct ElementArgs {
    a: u64,
    b: u64,
    out: u64,
    count: u64,
    operation: u32,
}

// SAFETY: fields and order are those of `ElementArgs` in `cuda/rows.cu`.
unsafe impl KernelArgs for ElementArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct SelectArgs {
    x: u64,
    rows: u64,
    out: u64,
    width: u32,
    count: u32,
}

// SAFETY: fields and order are those of `SelectArgs` in `cuda/rows.cu`.
unsafe impl KernelArgs for SelectArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct SoftmaxArgs {
    x: u64,
    out: u64,
    width: u32,
}

// SAFETY: fields and order are those of `SoftmaxArgs` in `cuda/rows.cu`.
unsafe impl KernelArgs for SoftmaxArgs {}

/// An element-wise operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    /// `a + b`
    Add = 0,
    /// `a * b`
    Multiply = 1,
    /// `a * sigmoid(a)`; `b` is not used.
    Silu = 2,
}

/// Where a row goes that is normalized, quantized or rounded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Targets<'a> {
    /// As it is.
    pub floats: Option<&'a Floats>,
    /// Quantized to 8 bits.
    pub quants: Option<&'a Quants>,
    /// Rounded to `f16`.
    pub halves: Option<&'a Halves>,
}

impl Targets<'_> {
    /// Whether there is no place.
    pub fn is_empty(&self) -> bool {
        self.floats.is_none() && self.quants.is_none() && self.halves.is_none()
    }
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    embed: PerType<Slot>,
    norm_rows: Slot,
    elements: Slot,
    select_rows: Slot,
    softmax: Slot,
}

impl Kernels {
    /// Looks up the kernel of [`embed`](Self::embed) for a table of a type, so that no step has to.
    ///
    /// # Errors
    /// [`DeviceError::MissingKernel`] if the images lack it; [`DeviceError::Driver`].
    pub fn ready_embed(&self, dtype: DType) -> Result<(), DeviceError> {
        self.embed_kernel(dtype).map(drop)
    }

    /// As [`ready_embed`](Self::ready_embed), for the other operations on rows.
    ///
    /// # Errors
    /// As [`ready_embed`](Self::ready_embed).
    pub fn ready_rows(&self) -> Result<(), DeviceError> {
        let slots = &self.slots.rows;
        let all = [
            (&slots.norm_rows, "norm_rows"),
            (&slots.elements, "elements"),
            (&slots.select_rows, "select_rows"),
            (&slots.softmax, "softmax"),
        ];
        all.into_iter().try_for_each(|(slot, name)| self.get(slot, || name.into(), 0).map(drop))
    }

    fn embed_kernel(&self, dtype: DType) -> Result<Function<'_>, DeviceError> {
        self.get(&self.slots.rows.embed[dtype], || format!("embed_{}", dtype.name().to_lowercase()), 0)
    }

    /// Rows `tokens` (`u32` on the device) of an embedding table, times `scale`. A token that the table does not have gives
    /// NaN.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the buffers do not fit; [`DeviceError::Driver`].
    pub fn embed(
        &self,
        stream: &Stream,
        table: &Weights,
        tokens: &Span,
        out: &Floats,
        scale: f32,
        count: usize,
    ) -> Result<(), DeviceError> {
        out.check("embedding", count, table.cols())?;
        let tokens_needed = count.saturating_mul(4);
        if tokens.bytes() < tokens_needed || count == 0 {
            return Err(DeviceError::Invalid(format!("{count} tokens in {} bytes", tokens.bytes())));
        }
        let args = EmbedArgs {
            planes: table.planes().each_ref().map(Span::address),
            tokens: tokens.address(),
            out: out.span.address(),
            blocks: small("blocks", table.blocks())?,
            rows: small("rows", table.rows())?,
            scale,
        };
        let mut shape = Launch::new(args.blocks.div_ceil(THREADS), THREADS);
        shape.grid[1] = small("tokens", count)?;
        let function = self.embed_kernel(table.dtype())?;
        let [codes, extra, fine, coarse] = table.planes();
        // SAFETY: tokens and result have room for `count` rows, and the kernel compares each token with the table's rows.
        unsafe { stream.launch(function, shape, &args, &[codes, extra, fine, coarse, tokens, &out.span]) }
    }

    /// `x / sqrt(mean(x²) + eps) * weight` for each row (Zhang and Sennrich, 2019, arXiv 1910.07467), to any of the targets.
    /// Squares are summed in `f32`, so rows must not hold magnitudes above about 1e18.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the buffers do not fit; [`DeviceError::Driver`].
    pub fn rms_norm(
        &self,
        stream: &Stream,
        x: &Floats,
        weight: &Floats,
        eps: f32,
        out: Targets<'_>,
        rows: usize,
    ) -> Result<(), DeviceError> {
        self.norm_rows(stream, x, Some(weight), eps, out, rows)
    }

    /// Quantizes rows to 8 bits, with the bytes that the CPU's `q8a` rule gives, rounds them to `f16`, or copies them: whatever
    /// targets there are.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the buffers do not fit; [`DeviceError::Driver`].
    pub fn convert(&self, stream: &Stream, x: &Floats, out: Targets<'_>, rows: usize) -> Result<(), DeviceError> {
        self.norm_rows(stream, x, None, 0.0, out, rows)
    }

    fn norm_rows(
        &self,
        stream: &Stream,
        x: &Floats,
        weight: Option<&Floats>,
        eps: f32,
        out: Targets<'_>,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let width = x.width();
        x.check("input", rows, width)?;
        let Targets { floats, quants, halves } = out;
        if rows == 0 || !width.is_multiple_of(4) || (floats.is_none() && quants.is_none() && halves.is_none()) {
            return Err(DeviceError::Invalid(format!("nothing to do for {rows} rows of {width} values")));
        }
        let mut spans = vec![&x.span];
        if let Some(weight) = weight {
            weight.check("weight", 1, width)?;
            spans.push(&weight.span);
        }
        if let Some(floats) = floats {
            floats.check("result", rows, width)?;
            spans.push(&floats.span);
        }
        if let Some(quants) = quants {
            quants.check("result", rows, width)?;
            spans.extend([&quants.quants, &quants.scales]);
        }
        if let Some(halves) = halves {
            halves.check("result", rows, width)?;
            spans.push(&halves.span);
        }
        let args = NormArgs {
            x: x.span.address(),
            weight: weight.map_or(0, |weight| weight.span.address()),
            out: floats.map_or(0, |floats| floats.span.address()),
            quants: quants.map_or(0, |quants| quants.quants.address()),
            scales: quants.map_or(0, |quants| quants.scales.address()),
            halves: halves.map_or(0, |halves| halves.span.address()),
            width: small("width", width)?,
            eps,
        };
        let function = self.get(&self.slots.rows.norm_rows, || "norm_rows".into(), 0)?;
        let threads = args.width.div_ceil(4).next_multiple_of(32).min(THREADS);
        // SAFETY: all buffers have room for `rows` rows of `width` values, which are whole blocks if they are quantized or rounded.
        unsafe { stream.launch(function, Launch::new(small("rows", rows)?, threads), &args, &spans) }
    }

    /// An element-wise operation on the first `rows` rows; `out` may be an operand.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the buffers do not fit; [`DeviceError::Driver`].
    pub fn elements(
        &self,
        stream: &Stream,
        operation: Operation,
        a: &Floats,
        b: Option<&Floats>,
        out: &Floats,
        rows: usize,
    ) -> Result<(), DeviceError> {
        a.check("operand", rows, out.width())?;
        out.check("result", rows, out.width())?;
        if b.is_none() != (operation == Operation::Silu) || rows == 0 {
            return Err(DeviceError::Invalid(format!("{operation:?} with a wrong number of operands or rows")));
        }
        let mut spans = vec![&a.span, &out.span];
        if let Some(b) = b {
            b.check("operand", rows, out.width())?;
            spans.push(&b.span);
        }
        let count = (rows * out.width()) as u64;
        let args = ElementArgs {
            a: a.span.address(),
            b: b.map_or(0, |b| b.span.address()),
            out: out.span.address(),
            count,
            operation: operation as u32,
        };
        let blocks = count.div_ceil(u64::from(THREADS)).min(ELEMENT_BLOCKS) as u32;
        let function = self.get(&self.slots.rows.elements, || "elements".into(), 0)?;
        // SAFETY: all buffers have room for `count` values.
        unsafe { stream.launch(function, Launch::new(blocks, THREADS), &args, &spans) }
    }

    /// Runs a kernel that changes nothing, and waits for it: what a driver takes for a process at its first launch is taken then.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no memory, or from the driver.
    pub fn run_one(&self, stream: &Stream) -> Result<(), DeviceError> {
        let value = Floats::with(self.device(), 1, &[0.0])?;
        self.elements(stream, Operation::Silu, &value, None, &value, 1)?;
        stream.synchronize()
    }

    /// Rows of `x` whose numbers are in `rows` (`u32` on the device). A row that `x` does not have gives NaN.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the buffers do not fit; [`DeviceError::Driver`].
    pub fn select_rows(
        &self,
        stream: &Stream,
        x: &Floats,
        rows: &Span,
        out: &Floats,
        count: usize,
    ) -> Result<(), DeviceError> {
        out.check("result", count, x.width())?;
        if rows.bytes() < count.saturating_mul(4) || count == 0 {
            return Err(DeviceError::Invalid(format!("{count} row numbers in {} bytes", rows.bytes())));
        }
        let args = SelectArgs {
            x: x.span.address(),
            rows: rows.address(),
            out: out.span.address(),
            width: small("width", x.width())?,
            count: small("rows", x.rows())?,
        };
        let function = self.get(&self.slots.rows.select_rows, || "select_rows".into(), 0)?;
        let shape = Launch::new(small("rows", count)?, THREADS);
        // SAFETY: numbers and result have room for `count` rows, and the kernel compares each number with the rows of `x`.
        unsafe { stream.launch(function, shape, &args, &[&x.span, rows, &out.span]) }
    }

    /// `exp(x) / sum(exp(x))` over each row; `out` may be `x`. A row with a NaN or an infinity gives NaN.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the buffers do not fit; [`DeviceError::Driver`].
    pub fn softmax(&self, stream: &Stream, x: &Floats, out: &Floats, rows: usize) -> Result<(), DeviceError> {
        x.check("operand", rows, out.width())?;
        out.check("result", rows, out.width())?;
        if rows == 0 || out.width() == 0 {
            return Err(DeviceError::Invalid(format!("a softmax over {rows} rows of {} values", out.width())));
        }
        let args = SoftmaxArgs { x: x.span.address(), out: out.span.address(), width: small("width", out.width())? };
        let function = self.get(&self.slots.rows.softmax, || "softmax".into(), 0)?;
        let shape = Launch::new(small("rows", rows)?, THREADS);
        // SAFETY: both buffers have room for `rows` rows of `width` values.
        unsafe { stream.launch(function, shape, &args, &[&x.span, &out.span]) }
    }
}

/// Kernels and the bytes of their parameters as this file has them.
pub(super) const fn parameter_sizes() -> &'static [(&'static str, usize)] {
    &[
        ("embed_q4_0", size_of::<EmbedArgs>()),
        ("norm_rows", size_of::<NormArgs>()),
        ("elements", size_of::<ElementArgs>()),
        ("softmax", size_of::<SoftmaxArgs>()),
        ("select_rows", size_of::<SelectArgs>()),
    ]
}
