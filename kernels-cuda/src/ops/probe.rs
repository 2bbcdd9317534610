//! Single instructions of a device, for the test that compares what they do with the manual (`cuda/probe.cu`).

use super::{matmul::TILE_TOKENS, small};
use crate::{
    DeviceError, Kernels, Span, Stream,
    driver::{KernelArgs, Launch, TensorMap},
    kernels::Slot,
};

#[derive(Clone, Copy)]
#[repr(C)]
struct ProbeArgs {
    input: u64,
    out: u64,
}

// SAFETY: fields and order are those of `ProbeArgs` in `cuda/probe.cu` and `cuda/probe_sm90a.cu`.
unsafe impl KernelArgs for ProbeArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct TileProbeArgs {
    map: TensorMap,
    out: u64,
    column: u32,
    row: u32,
}

// SAFETY: fields and order are those of `TileProbeArgs` in `cuda/probe_sm90a.cu`.
unsafe impl KernelArgs for TileProbeArgs {}

/// Words of a tile of 128 rows of 64 `f16`.
pub const TILE_WORDS: usize = TILE_TOKENS * TensorMap::TILE_COLUMNS / 2;

/// The kernel that looks at a copy of a tile, and its dynamic shared memory.
pub(super) const TILE_KERNEL: &str = "probe_tma";
pub(super) const TILE_BYTES: u32 = 4 * TILE_WORDS as u32;
const TILE_THREADS: u32 = 128;

/// An instruction that can be looked at. Threads bring their words one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `ldmatrix.x4`: a row of 4 words in, 4 words out.
    LoadMatrices,
    /// The same with `.trans`.
    LoadMatricesTransposed,
    /// `mma.m16n8k32` of signed bytes: 4 words of a, 2 of b, 4 of c in, 4 out.
    MmaInt8K32,
    /// `mma.m16n8k16` of signed bytes: 2 words of a, 1 of b, 4 of c in, 4 out.
    MmaInt8K16,
    /// `mma.m16n8k16` of `f16`: 4 words of a, 2 of b, 4 of c in, 4 out.
    MmaF16,
    /// The same of `bf16`.
    MmaBf16,
    /// Arithmetic on words: 3 in, 10 out; see `probe_words`.
    Words,
    /// `wgmma.m64n128k16` with the first columns of a tile: [`TILE_WORDS`], then of each thread 4 words of a and 64 of c in; 64
    /// out. Compute capability 9.0 only.
    WgmmaFirst,
    /// The same with the last columns of the tile.
    WgmmaLast,
}

impl Probe {
    pub(super) const ALL: [Self; 9] = [
        Self::LoadMatrices,
        Self::LoadMatricesTransposed,
        Self::MmaInt8K32,
        Self::MmaInt8K16,
        Self::MmaF16,
        Self::MmaBf16,
        Self::Words,
        Self::WgmmaFirst,
        Self::WgmmaLast,
    ];

    pub(super) const fn kernel(self) -> &'static str {
        match self {
            Self::LoadMatrices => "probe_load_matrices",
            Self::LoadMatricesTransposed => "probe_load_matrices_transposed",
            Self::MmaInt8K32 => "probe_mma_s8_k32",
            Self::MmaInt8K16 => "probe_mma_s8_k16",
            Self::MmaF16 => "probe_mma_f16",
            Self::MmaBf16 => "probe_mma_bf16",
            Self::Words => "probe_words",
            Self::WgmmaFirst => "probe_wgmma_0",
            Self::WgmmaLast => "probe_wgmma_48",
        }
    }

    /// Threads, words that all share, words that each brings, and words that each gets.
    const fn words(self) -> [usize; 4] {
        match self {
            Self::LoadMatrices | Self::LoadMatricesTransposed => [32, 0, 4, 4],
            Self::MmaInt8K32 | Self::MmaF16 | Self::MmaBf16 => [32, 0, 10, 4],
            Self::MmaInt8K16 => [32, 0, 7, 4],
            Self::Words => [32, 0, 3, 10],
            Self::WgmmaFirst | Self::WgmmaLast => [128, TILE_WORDS, 68, 64],
        }
    }

    /// Bytes of dynamic shared memory: what all threads share.
    pub(super) const fn shared(self) -> u32 {
        4 * self.words()[1] as u32
    }

    /// Words that go in, of all threads.
    pub const fn input_words(self) -> usize {
        let [threads, shared, each, _] = self.words();
        shared + threads * each
    }
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    words: [Slot; Probe::ALL.len()],
    tile: Slot,
}

impl Kernels {
    /// Runs an instruction once in every thread of a block, and returns what each thread got.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] for another number of words than the probe takes; [`DeviceError::MissingKernel`] if the device does
    /// not have the instruction; [`DeviceError::Driver`].
    pub fn probe(&self, stream: &Stream, probe: Probe, input: &[u32]) -> Result<Vec<u32>, DeviceError> {
        let [threads, _, _, results] = probe.words();
        if input.len() != probe.input_words() {
            return Err(DeviceError::Invalid(format!("{} words for a probe of {}", input.len(), probe.input_words())));
        }
        let from = Span::new(self.device(), "a probe's input", input.len() * 4)?;
        from.upload(input)?;
        let mut got = vec![0u32; threads * results];
        let out = Span::new(self.device(), "a probe's results", got.len() * 4)?;
        let function = self.get(&self.slots.probe.words[probe as usize], || probe.kernel().into(), probe.shared())?;
        let shape = Launch { overlap: false, shared: probe.shared(), ..Launch::new(1, threads as u32) };
        let args = ProbeArgs { input: from.address(), out: out.address() };
        // SAFETY: both buffers have the words that the kernel reads and writes, and what threads share is its tile.
        unsafe { stream.launch(function, shape, &args, &[&from, &out])? };
        stream.synchronize()?;
        out.download(&mut got)?;
        Ok(got)
    }

    /// The [`TILE_WORDS`] words of shared memory to which the copy engine (TMA) brings a tile of a matrix of `f16` with rows of
    /// `width` values, of which `values` are the bits: 128 rows from `row` on, 64 columns from `column` on. Compute capability
    /// 9.0 only.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the engine does not take such a matrix; [`DeviceError::MissingKernel`] if the device has no
    /// such engine; [`DeviceError::Driver`].
    pub fn probe_tile(
        &self,
        stream: &Stream,
        values: &[u16],
        width: usize,
        [column, row]: [usize; 2],
    ) -> Result<Vec<u32>, DeviceError> {
        let function = self.get(&self.slots.probe.tile, || TILE_KERNEL.into(), TILE_BYTES)?;
        let matrix = Span::new(self.device(), "a probe's input", size_of_val(values))?;
        matrix.upload(values)?;
        let out = Span::new(self.device(), "a probe's results", TILE_BYTES as usize)?;
        let args = TileProbeArgs {
            map: TensorMap::of_f16(&matrix, values.len() / width.max(1), width, TILE_TOKENS)?,
            out: out.address(),
            column: small("columns", column)?,
            row: small("rows", row)?,
        };
        let shape = Launch { overlap: false, shared: TILE_BYTES, ..Launch::new(1, TILE_THREADS) };
        // SAFETY: the map is of the matrix, and the results have room for a tile.
        unsafe { stream.launch(function, shape, &args, &[&matrix, &out])? };
        stream.synchronize()?;
        let mut got = vec![0; TILE_WORDS];
        out.download(&mut got)?;
        Ok(got)
    }
}

/// Kernels and the bytes of their parameters as this file has them.
pub(super) const fn parameter_sizes() -> &'static [(&'static str, usize)] {
    &[
        ("probe_words", size_of::<ProbeArgs>()),
        ("probe_wgmma_0", size_of::<ProbeArgs>()),
        (TILE_KERNEL, size_of::<TileProbeArgs>()),
    ]
}
