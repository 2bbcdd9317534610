//! Choosing tokens on the device (`cuda/sample.cu`).

use super::{Floats, small};
use crate::{
    Device, DeviceError, Kernels, Span, Stream, UploadBuffer,
    driver::{KernelArgs, Launch},
    kernels::Slot,
};

/// Most candidates that a token is chosen from.
pub const MAX_TOP_K: usize = 1024;

const THREADS: u32 = 1024;

#[derive(Clone, Copy)]
#[repr(C)]
struct SampleArgs {
    logits: u64,
    rows: u64,
    tokens: u64,
    vocabulary: u32,
}

// SAFETY: fields and order are those of `SampleArgs` in `cuda/sample.cu`.
unsafe impl KernelArgs for SampleArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct ArgmaxArgs {
    logits: u64,
    tokens: u64,
    vocabulary: u32,
}

// SAFETY: fields and order are those of `ArgmaxArgs` in `cuda/sample.cu`.
unsafe impl KernelArgs for ArgmaxArgs {}

/// How the token of a row is chosen, by the settings of the host's chain and in its order: top-k, top-p, min-p, temperature. The
/// same logits, seed and draw give the same token on one device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Candidates: the so many largest logits, 1 to [`MAX_TOP_K`]. One takes the largest, as [`Kernels::argmax`] does.
    pub top_k: usize,
    /// Of the candidates, the fewest whose probabilities sum to this are kept; above 0, and 1 keeps all.
    pub top_p: f32,
    /// Of those, the ones that are at least this many times as probable as the best; 0 to 1.
    pub min_p: f32,
    /// Logits of those are divided by this; at least [`MIN_TEMPERATURE`].
    pub temperature: f32,
    /// The seed of the Philox generator (Salmon et al., 2011).
    pub seed: u64,
    /// Which of the seed's random numbers is taken: a token's position serves.
    pub draw: u32,
}

/// The lowest temperature, with which every candidate but the best is as good as impossible.
pub const MIN_TEMPERATURE: f32 = 1e-6;

/// Words of a row's settings.
const ROW: usize = size_of::<SampleRow>() / size_of::<u32>();

/// A row's settings, as `SampleRow` in `cuda/sample.cu` has them.
#[derive(Clone, Copy)]
#[repr(C)]
struct SampleRow {
    seed: u64,
    draw: u32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    temperature: f32,
    unused: u32,
}

impl Sampling {
    /// Takes the largest.
    pub const LARGEST: Self = Self { top_k: 1, top_p: 1.0, min_p: 0.0, temperature: 1.0, seed: 0, draw: 0 };

    fn words(&self) -> Result<[u32; ROW], DeviceError> {
        let Self { top_k, top_p, min_p, temperature, seed, draw } = *self;
        let refuse = |name: &str, value: f64, remedy: &str| {
            Err(DeviceError::Invalid(format!("{name} is {value} for sampling on the device; {remedy}")))
        };
        if !(1..=MAX_TOP_K).contains(&top_k) {
            return refuse("top_k", top_k as f64, "give 1 to 1024 candidates");
        }
        if !(top_p > 0.0 && top_p.is_finite()) {
            return refuse("top_p", f64::from(top_p), "give a number above 0; 1 keeps all");
        }
        if !(0.0..=1.0).contains(&min_p) {
            return refuse("min_p", f64::from(min_p), "give 0 to 1; 0 keeps all");
        }
        if !(temperature >= MIN_TEMPERATURE && temperature.is_finite()) {
            return refuse("temperature", f64::from(temperature), "give at least 0.000001, or take the largest");
        }
        let [top_p, min_p, temperature] = [top_p, min_p, temperature].map(f32::to_bits);
        Ok([seed as u32, (seed >> 32) as u32, draw, top_k as u32, top_p, min_p, temperature, 0])
    }
}

/// The settings of a step's rows, on their way to the kernel.
#[derive(Debug)]
pub struct SampleInputs {
    host: UploadBuffer<u32>,
    device: Span,
    rows: usize,
}

impl SampleInputs {
    /// Room for so many rows.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no room, or from the driver.
    pub fn new(device: &Device, max_rows: usize) -> Result<Self, DeviceError> {
        const WHAT: &str = "settings of samplers";
        let host = UploadBuffer::new(device, WHAT, max_rows.saturating_mul(ROW))?;
        Ok(Self { host, device: Span::new(device, WHAT, Self::room(max_rows))?, rows: 0 })
    }

    /// Bytes of device memory that [`new`](Self::new) takes, and of host memory, but for rounding.
    pub const fn room(max_rows: usize) -> usize {
        max_rows.saturating_mul(size_of::<SampleRow>())
    }

    /// Puts the settings of the first rows behind the stream's work.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if a setting makes no sense or there is no room for so many rows, and nothing has been sent;
    /// [`DeviceError::Driver`].
    pub fn send(&mut self, stream: &Stream, rows: &[Sampling]) -> Result<(), DeviceError> {
        let words = self.host.values()?;
        if rows.len() > words.len() / ROW {
            let room = words.len() / ROW;
            return Err(DeviceError::Invalid(format!("{} rows are sampled, where {room} have room", rows.len())));
        }
        self.rows = 0;
        for (row, words) in rows.iter().zip(words.chunks_exact_mut(ROW)) {
            words.copy_from_slice(&row.words()?);
        }
        self.host.send(stream, &self.device, rows.len() * ROW)?;
        self.rows = rows.len();
        Ok(())
    }
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    argmax: Slot,
    sample: Slot,
}

impl Kernels {
    /// Looks up the kernels that choose tokens, so that no step has to.
    ///
    /// # Errors
    /// [`DeviceError::MissingKernel`] if the images lack one; [`DeviceError::Driver`].
    pub fn ready_sample(&self) -> Result<(), DeviceError> {
        let slots = &self.slots.sample;
        let all = [(&slots.argmax, "argmax"), (&slots.sample, "sample")];
        all.into_iter().try_for_each(|(slot, name)| self.get(slot, || name.into(), 0).map(drop))
    }

    /// The token (`u32`) of the largest logit for each of the first `rows` rows, of equal ones the first. NaN is less than
    /// anything.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if buffers do not fit; [`DeviceError::Driver`].
    pub fn argmax(&self, stream: &Stream, logits: &Floats, tokens: &Span, rows: usize) -> Result<(), DeviceError> {
        logits.check("logits", rows, logits.width())?;
        let room = tokens.bytes() / 4;
        if rows == 0 || rows > room || logits.width() == 0 {
            return Err(DeviceError::Invalid(format!("{rows} rows of {} logits, {room} tokens", logits.width())));
        }
        let args = ArgmaxArgs {
            logits: logits.span.address(),
            tokens: tokens.address(),
            vocabulary: small("vocabulary", logits.width())?,
        };
        let function = self.get(&self.slots.sample.argmax, || "argmax".into(), 0)?;
        // SAFETY: logits and tokens have room for `rows` rows.
        unsafe { stream.launch(function, Launch::new(small("rows", rows)?, THREADS), &args, &[&logits.span, tokens]) }
    }

    /// Chooses a token (`u32`) for each of the first `rows` rows of logits, by the settings that were sent last. Logits that are NaN
    /// or minus infinity are never chosen; if all are, the token is 0.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if buffers do not fit, or fewer rows were sent; [`DeviceError::Driver`].
    pub fn sample(
        &self,
        stream: &Stream,
        logits: &Floats,
        inputs: &SampleInputs,
        tokens: &Span,
        rows: usize,
    ) -> Result<(), DeviceError> {
        logits.check("logits", rows, logits.width())?;
        let room = inputs.rows.min(tokens.bytes() / 4);
        if rows == 0 || rows > room || logits.width() == 0 {
            return Err(DeviceError::Invalid(format!(
                "{rows} rows of {} logits are sampled, where {room} have settings and room for tokens",
                logits.width()
            )));
        }
        let args = SampleArgs {
            logits: logits.span.address(),
            rows: inputs.device.address(),
            tokens: tokens.address(),
            vocabulary: small("vocabulary", logits.width())?,
        };
        let function = self.get(&self.slots.sample.sample, || "sample".into(), 0)?;
        let shape = Launch::new(small("rows", rows)?, THREADS);
        // SAFETY: logits, settings and tokens have room for `rows` rows.
        unsafe { stream.launch(function, shape, &args, &[&logits.span, &inputs.device, tokens]) }
    }
}

/// Kernels and the bytes of their parameters as this file has them.
pub(super) const fn parameter_sizes() -> &'static [(&'static str, usize)] {
    &[("sample", size_of::<SampleArgs>()), ("argmax", size_of::<ArgmaxArgs>())]
}
