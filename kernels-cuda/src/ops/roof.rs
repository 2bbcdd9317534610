//! Ceilings of a device, measured (`cuda/roof.cu`).

use super::small;
use crate::{
    DeviceError, Event, Kernels, Span, Stream,
    driver::{KernelArgs, Launch},
    kernels::Slot,
};

const THREADS: u32 = 256;

/// Blocks for each multiprocessor: as many as can run there at once.
const BLOCKS: u32 = 8;

/// Products or sums that a warp or thread of the peak kernels makes side by side.
const CHAINS: u64 = 8;

/// A run of a peak kernel takes at least so many seconds, so that starting it does not count.
const LONG_ENOUGH: f64 = 1e-3;

#[derive(Clone, Copy)]
#[repr(C)]
struct ReadArgs {
    data: u64,
    out: u64,
    count: u64,
    passes: u32,
}

// SAFETY: fields and order are those of `ReadArgs` in `cuda/roof.cu`.
unsafe impl KernelArgs for ReadArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct PeakArgs {
    out: u64,
    rounds: u32,
}

// SAFETY: fields and order are those of `PeakArgs` in `cuda/roof.cu`.
unsafe impl KernelArgs for PeakArgs {}

/// Arithmetic of which a device's peak can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peak {
    /// 8-bit integers in `mma.sync`.
    MmaInt8,
    /// `fma` in single precision.
    Fma,
}

impl Peak {
    /// The instruction.
    pub const fn instruction(self) -> &'static str {
        match self {
            Self::MmaInt8 => "mma.sync.m16n8k32.s8",
            Self::Fma => "fma.rn.f32",
        }
    }

    const fn kernel(self) -> &'static str {
        match self {
            Self::MmaInt8 => "roof_mma_s8",
            Self::Fma => "roof_fma",
        }
    }

    /// Multiply-adds that a warp does in a round.
    const fn macs(self) -> u64 {
        match self {
            Self::MmaInt8 => CHAINS * 16 * 8 * 32,
            Self::Fma => CHAINS * 32,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    read: Slot,
    mma_s8: Slot,
    fma: Slot,
}

impl Kernels {
    /// Bytes per second that reading `data` reaches, the best of `samples` runs that each read it `passes` times.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if there is nothing to read; [`DeviceError::Driver`].
    pub fn read_bandwidth(
        &self,
        stream: &Stream,
        data: &Span,
        passes: usize,
        samples: usize,
    ) -> Result<f64, DeviceError> {
        let out = Span::new(self.device(), "a result", 4)?;
        let count = (data.bytes() / 16) as u64;
        if count == 0 || passes == 0 {
            return Err(DeviceError::Invalid(format!("{passes} passes over {} bytes", data.bytes())));
        }
        let passes = small("passes", passes)?;
        let args = ReadArgs { data: data.address(), out: out.address(), count, passes };
        let function = self.get(&self.slots.roof.read, || "roof_read".into(), 0)?;
        let shape = Launch { overlap: false, ..Launch::new(self.device().info().multiprocessors * BLOCKS, THREADS) };
        let seconds = best(stream, samples, || {
            // SAFETY: the kernel reads `count` times 16 bytes of `data` and may write 4 bytes of `out`.
            unsafe { stream.launch(function, shape, &args, &[data, &out]) }
        })?;
        Ok((count * 16 * u64::from(passes)) as f64 / seconds)
    }

    /// Multiply-adds per second that an instruction reaches, the best of `samples` runs.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn peak(&self, stream: &Stream, peak: Peak, samples: usize) -> Result<f64, DeviceError> {
        let out = Span::new(self.device(), "a result", 4)?;
        let slot = match peak {
            Peak::MmaInt8 => &self.slots.roof.mma_s8,
            Peak::Fma => &self.slots.roof.fma,
        };
        let function = self.get(slot, || peak.kernel().into(), 0)?;
        let shape = Launch { overlap: false, ..Launch::new(self.device().info().multiprocessors * BLOCKS, THREADS) };
        let seconds = |rounds: u32, samples: usize| {
            let args = PeakArgs { out: out.address(), rounds };
            best(stream, samples, || {
                // SAFETY: the kernel may write 4 bytes of `out`.
                unsafe { stream.launch(function, shape, &args, &[&out]) }
            })
        };
        let mut rounds = 4;
        while rounds < 1 << 24 && seconds(rounds, 1)? < LONG_ENOUGH {
            rounds *= 2;
        }
        let warps = u64::from(shape.grid[0]) * u64::from(THREADS / 32);
        Ok((warps * u64::from(rounds) * peak.macs()) as f64 / seconds(rounds, samples)?)
    }
}

/// Seconds of the fastest run, after one that warms up.
fn best(stream: &Stream, samples: usize, mut run: impl FnMut() -> Result<(), DeviceError>) -> Result<f64, DeviceError> {
    run()?;
    let mut best = f64::INFINITY;
    for _ in 0..samples.max(1) {
        let start = Event::record(stream)?;
        run()?;
        let end = Event::record(stream)?;
        best = best.min(f64::from(end.milliseconds_since(&start)?) / 1e3);
    }
    Ok(best)
}

/// Kernels and the bytes of their parameters as this file has them.
pub(super) const fn parameter_sizes() -> &'static [(&'static str, usize)] {
    &[("roof_read", size_of::<ReadArgs>()), ("roof_fma", size_of::<PeakArgs>())]
}
