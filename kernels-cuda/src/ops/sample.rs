//! Choosing tokens on the device (`cuda/sample.cu`).

use super::{Floats, small};
use crate::{
    DeviceError, Kernels, Span, Stream,
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
    counters: u64,
    tokens: u64,
    seed: u64,
    vocabulary: u32,
    top_k: u32,
    temperature: f32,
    top_p: f32,
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

/// How a token is chosen. The same logits, seed and counter give the same token on one device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Candidates: the so many largest logits, 1 to [`MAX_TOP_K`]. One takes the largest, as [`Kernels::argmax`] does.
    pub top_k: usize,
    /// Logits are divided by this; above 0.
    pub temperature: f32,
    /// Of the candidates, the fewest whose probabilities sum to this are kept; above 0, and 1 keeps all.
    pub top_p: f32,
    /// The seed of the Philox generator (Salmon et al., 2011).
    pub seed: u64,
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

    /// Chooses a token (`u32`) for each of the first `rows` rows of logits. `counters` (`u32`) says for each row which draw of
    /// the seed it takes; a token's position serves.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if buffers or settings do not fit; [`DeviceError::Driver`].
    pub fn sample(
        &self,
        stream: &Stream,
        logits: &Floats,
        counters: &Span,
        tokens: &Span,
        sampling: Sampling,
        rows: usize,
    ) -> Result<(), DeviceError> {
        logits.check("logits", rows, logits.width())?;
        let Sampling { top_k, temperature, top_p, seed } = sampling;
        let sound = (1..=MAX_TOP_K).contains(&top_k) && temperature > 0.0 && top_p > 0.0;
        let room = counters.bytes().min(tokens.bytes()) / 4;
        if !sound || rows == 0 || rows > room || logits.width() == 0 {
            return Err(DeviceError::Invalid(format!("{sampling:?} for {rows} rows, where {room} have room")));
        }
        let args = SampleArgs {
            logits: logits.span.address(),
            counters: counters.address(),
            tokens: tokens.address(),
            seed,
            vocabulary: small("vocabulary", logits.width())?,
            top_k: top_k as u32,
            temperature,
            top_p,
        };
        let function = self.get(&self.slots.sample.sample, || "sample".into(), 0)?;
        let shape = Launch::new(small("rows", rows)?, THREADS);
        // SAFETY: logits, counters and tokens have room for `rows` rows.
        unsafe { stream.launch(function, shape, &args, &[&logits.span, counters, tokens]) }
    }
}

/// Kernels and the bytes of their parameters as this file has them.
pub(super) const fn parameter_sizes() -> &'static [(&'static str, usize)] {
    &[("sample", size_of::<SampleArgs>()), ("argmax", size_of::<ArgmaxArgs>())]
}
