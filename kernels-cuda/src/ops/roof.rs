//! Ceilings of a device, measured (`cuda/roof.cu`, `cuda/roof_sm90a.cu`).

use super::small;
use crate::{
    DeviceError, Event, Kernels, Span, Stream,
    driver::{ALIGN, KernelArgs, Launch},
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
struct CopyArgs {
    from: u64,
    to: u64,
    count: u64,
}

// SAFETY: fields and order are those of `CopyArgs` in `cuda/roof.cu`.
unsafe impl KernelArgs for CopyArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct PeakArgs {
    out: u64,
    rounds: u32,
}

// SAFETY: fields and order are those of `PeakArgs` in `cuda/roof.cu` and `cuda/roof_sm90a.cu`.
unsafe impl KernelArgs for PeakArgs {}

/// Arithmetic of which a device's peak can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peak {
    /// 8-bit integers in `mma.sync`.
    MmaInt8,
    /// 16-bit floats in `mma.sync`.
    MmaF16,
    /// The same with the exponent of `f32`.
    MmaBf16,
    /// 16-bit floats in `wgmma`, which only devices of compute capability 9.0 have.
    WgmmaF16,
    /// 8-bit integers in dot products of four.
    Dp4a,
    /// `fma` in single precision.
    Fma,
}

impl Peak {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::MmaInt8, Self::MmaF16, Self::MmaBf16, Self::WgmmaF16, Self::Dp4a, Self::Fma];

    /// A short name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MmaInt8 => "mma s8",
            Self::MmaF16 => "mma f16",
            Self::MmaBf16 => "mma bf16",
            Self::WgmmaF16 => "wgmma f16",
            Self::Dp4a => "dp4a",
            Self::Fma => "fma",
        }
    }

    /// The instruction.
    pub const fn instruction(self) -> &'static str {
        match self {
            Self::MmaInt8 => "mma.sync.m16n8k32.s8",
            Self::MmaF16 => "mma.sync.m16n8k16.f16",
            Self::MmaBf16 => "mma.sync.m16n8k16.bf16",
            Self::WgmmaF16 => "wgmma.m64n128k16.f16",
            Self::Dp4a => "dp4a.s32",
            Self::Fma => "fma.rn.f32",
        }
    }

    pub(super) const fn kernel(self) -> &'static str {
        match self {
            Self::MmaInt8 => "roof_mma_s8",
            Self::MmaF16 => "roof_mma_f16",
            Self::MmaBf16 => "roof_mma_bf16",
            Self::WgmmaF16 => "roof_wgmma_f16",
            Self::Dp4a => "roof_dp4a",
            Self::Fma => "roof_fma",
        }
    }

    /// Multiply-adds that a block does in a round.
    const fn macs(self) -> u64 {
        let warps = THREADS as u64 / 32;
        match self {
            Self::MmaInt8 => warps * CHAINS * 16 * 8 * 32,
            Self::MmaF16 | Self::MmaBf16 => warps * CHAINS * 16 * 8 * 16,
            // A tile of 128 rows of 64 columns, times 64 rows of each four warps.
            Self::WgmmaF16 => warps / 4 * 64 * 128 * 64,
            Self::Dp4a => warps * CHAINS * 32 * 4,
            Self::Fma => warps * CHAINS * 32,
        }
    }

    /// Blocks for each multiprocessor. Two with products that run beside their threads keep its tensor cores busy.
    const fn blocks(self) -> u32 {
        if matches!(self, Self::WgmmaF16) { 2 } else { BLOCKS }
    }

    /// Bytes of dynamic shared memory.
    pub(super) const fn shared(self) -> u32 {
        if matches!(self, Self::WgmmaF16) { 128 * 64 * 2 } else { 0 }
    }
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    read: Slot,
    copy: Slot,
    launch: Slot,
    peaks: [Slot; Peak::ALL.len()],
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

    /// Bytes per second, read and written together, that copying from `data`'s first half to its second reaches, the best of
    /// `samples` runs.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if there is nothing to copy; [`DeviceError::Driver`].
    pub fn copy_bandwidth(&self, stream: &Stream, data: &Span, samples: usize) -> Result<f64, DeviceError> {
        let half = data.bytes() / 2 / ALIGN * ALIGN;
        if half == 0 {
            return Err(DeviceError::Invalid(format!("a copy within {} bytes", data.bytes())));
        }
        let args = CopyArgs { from: data.address(), to: data.address() + half as u64, count: (half / 16) as u64 };
        let function = self.get(&self.slots.roof.copy, || "roof_copy".into(), 0)?;
        let shape = Launch { overlap: false, ..Launch::new(self.device().info().multiprocessors * BLOCKS, THREADS) };
        let seconds = best(stream, samples, || {
            // SAFETY: the kernel reads and writes `count` times 16 bytes, and the halves of `data` have as many each.
            unsafe { stream.launch(function, shape, &args, &[data]) }
        })?;
        Ok(2.0 * half as f64 / seconds)
    }

    /// Seconds from the start of one launch to that of the next in a graph of kernels that do nothing, on every multiprocessor;
    /// `overlap` lets each start before the one before it has ended, as the kernels of a step do. The best of `samples` runs.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn launch_seconds(&self, stream: &Stream, overlap: bool, samples: usize) -> Result<f64, DeviceError> {
        const LAUNCHES: u32 = 256;
        let out = Span::new(self.device(), "a result", 4)?;
        let function = self.get(&self.slots.roof.launch, || "roof_launch".into(), 0)?;
        let args = PeakArgs { out: out.address(), rounds: 0 };
        let shape = Launch { overlap, ..Launch::new(self.device().info().multiprocessors, THREADS) };
        let recording = stream.capture(|stream| {
            (0..LAUNCHES).try_for_each(|_| {
                // SAFETY: the kernel may write 4 bytes of `out`.
                unsafe { stream.launch(function, shape, &args, &[&out]) }
            })
        })?;
        Ok(best(stream, samples, || recording.launch())? / f64::from(LAUNCHES))
    }

    /// Multiply-adds per second that an instruction reaches, the best of `samples` runs; `None` if the device does not have it.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn peak(&self, stream: &Stream, peak: Peak, samples: usize) -> Result<Option<f64>, DeviceError> {
        if peak == Peak::WgmmaF16 && self.device().info().capability != (9, 0) {
            return Ok(None);
        }
        let out = Span::new(self.device(), "a result", 4)?;
        let function = match self.get(&self.slots.roof.peaks[peak as usize], || peak.kernel().into(), peak.shared()) {
            // Images that are not for exactly its architecture.
            Err(DeviceError::MissingKernel(_)) if peak == Peak::WgmmaF16 => return Ok(None),
            found => found?,
        };
        let blocks = self.device().info().multiprocessors * peak.blocks();
        let shape = Launch { overlap: false, shared: peak.shared(), ..Launch::new(blocks, THREADS) };
        let seconds = |rounds: u32, samples: usize| {
            let args = PeakArgs { out: out.address(), rounds };
            best(stream, samples, || {
                // SAFETY: the kernel may write 4 bytes of `out`.
                unsafe { stream.launch(function, shape, &args, &[&out]) }
            })
        };
        let mut rounds = 1;
        while rounds < 1 << 24 && seconds(rounds, 1)? < LONG_ENOUGH {
            rounds *= 2;
        }
        let macs = u64::from(blocks) * u64::from(rounds) * peak.macs();
        Ok(Some(macs as f64 / seconds(rounds, samples)?))
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
    const PEAK: usize = size_of::<PeakArgs>();
    &[
        ("roof_read", size_of::<ReadArgs>()),
        ("roof_copy", size_of::<CopyArgs>()),
        ("roof_fma", PEAK),
        ("roof_wgmma_f16", PEAK),
        ("roof_launch", PEAK),
    ]
}
