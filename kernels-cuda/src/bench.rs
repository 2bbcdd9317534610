//! What the microbenchmarks measure on a device: matrix products with weights in its L2 cache or in its memory.
//!
//! `cargo bench -p rustai-kernels-cuda` and `rustai bench kernels --device cuda` share this. Nothing else needs it. Shapes and
//! models are those of [`rustai_kernels_cpu::bench`].

use crate::{
    Arena, Device, DeviceError, Event, Floats, Graph, Halves, Input, Kernels, Packed, Partials, Projection, Quants,
    Span, Stream, Weights,
    ops::{Peak, ProductKernel, Targets},
    weights::is_quantized,
};
use rustai_abi::DType;
use rustai_kernels_cpu::bench::{Residence, Shape};
use std::{collections::HashMap, sync::Arc};

/// What a device can do at most.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofs {
    /// Bytes of the buffer that memory was read with.
    pub memory_bytes: usize,
    /// Bytes per second from memory.
    pub memory: f64,
    /// Bytes of the buffer that the cache was read with.
    pub cache_bytes: usize,
    /// Bytes per second from the L2 cache.
    pub cache: f64,
    /// Bytes per second, read and written together, of copying half of the buffer in memory to the other half.
    pub copy: f64,
    /// Seconds from one launch of a graph to the next, of a kernel that does nothing: first when each waits for the end of the one
    /// before it, then when it may start earlier.
    pub launch: [f64; 2],
    /// Multiply-adds per second of the instructions that the device has.
    pub peaks: Vec<(Peak, f64)>,
}

/// Runs of which the best counts.
const SAMPLES: usize = 3;

impl Roofs {
    /// Measures them.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn measure(kernels: &Kernels, stream: &Stream) -> Result<Self, DeviceError> {
        let device = kernels.device();
        let l2 = device.info().l2_cache as usize;
        // So much that the cache keeps next to nothing of it, and so little that it keeps all.
        let (memory_bytes, cache_bytes) = ((16 * l2).max(1 << 20), (l2 / 4).max(1 << 16));
        let buffer = Span::new(device, "a buffer to read", memory_bytes)?;
        let mut peaks = Vec::new();
        for peak in Peak::ALL {
            peaks.extend(kernels.peak(stream, peak, SAMPLES)?.map(|rate| (peak, rate)));
        }
        Ok(Self {
            memory_bytes,
            memory: kernels.read_bandwidth(stream, &buffer, 1, SAMPLES)?,
            cache_bytes,
            cache: kernels.read_bandwidth(stream, &buffer.part(0, cache_bytes)?, 16, SAMPLES)?,
            copy: kernels.copy_bandwidth(stream, &buffer, SAMPLES)?,
            launch: [kernels.launch_seconds(stream, false, SAMPLES)?, kernels.launch_seconds(stream, true, SAMPLES)?],
            peaks,
        })
    }
}

/// Bytes of weights of which the cache keeps nothing that matters until they come again.
pub fn overflow(device: &Device) -> usize {
    3 * device.info().l2_cache as usize
}

/// One matrix product, ready to run with any number of tokens up to a limit.
///
/// A run multiplies the activations with every matrix in turn, as one recorded graph.
pub struct Product {
    recordings: HashMap<usize, Graph>,
    kernels: Arc<Kernels>,
    stream: Stream,
    weights: Vec<Weights>,
    floats: Floats,
    quants: Option<Quants>,
    /// The same in `f16`, and from how many tokens on the device wants it so.
    halves: Option<(Halves, usize)>,
    partials: Option<Partials>,
    out: Floats,
    dtype: DType,
    shape: Shape,
    max_tokens: usize,
    products: usize,
}

impl Product {
    /// Prepares weights of type `dtype`, and activations of up to `max_tokens` tokens.
    ///
    /// # Errors
    /// [`DeviceError`] if the type has no kernel or does not fit the shape, or memory does not suffice.
    pub fn new(
        kernels: &Arc<Kernels>,
        dtype: DType,
        shape: Shape,
        max_tokens: usize,
        residence: Residence,
    ) -> Result<Self, DeviceError> {
        let device = kernels.device();
        let stream = Stream::new(device)?;
        let Shape { rows, cols, .. } = shape;
        let whole = dtype.bytes_for(cols).and_then(|row| row.checked_mul(rows));
        let bytes =
            whole.ok_or_else(|| DeviceError::Invalid(format!("rows of {cols} values are no blocks of {dtype}")))?;
        let (matrices, products) = (residence.matrices(bytes), residence.products(bytes));
        // Any bits are valid quants; 0x2c as the high byte of a scale makes it a small, normal number.
        let blocks: Vec<u8> = (0..bytes).map(|i| if i % 2 == 1 { 0x2c } else { ((i * 37) >> 3) as u8 }).collect();
        let packed = Packed::new(dtype, rows, cols, &blocks)?;
        let weights = (0..matrices).map(|_| packed.upload(device)).collect::<Result<Vec<_>, _>>()?;
        let values: Vec<f32> = (0..max_tokens * cols).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect();
        let floats = Floats::with(device, cols, &values)?;
        let (mut quants, mut halves) = (None, None);
        if is_quantized(dtype) == Some(true) {
            let room = Quants::room(max_tokens, cols).saturating_add(Halves::room(max_tokens, cols));
            let mut arena = Arena::new(device, "activations", room)?;
            quants = Some(Quants::take(&mut arena, max_tokens, cols)?);
            if let Some(from) = kernels.halves_from()? {
                halves = Some((Halves::take(&mut arena, max_tokens, cols)?, from));
            }
            let targets = Targets { floats: None, quants: quants.as_ref(), halves: halves.as_ref().map(|(x, _)| x) };
            kernels.convert(&stream, &floats, targets, max_tokens)?;
        }
        let mut arena = Arena::new(device, "results", Floats::room(max_tokens, rows))?;
        let out = Floats::take(&mut arena, max_tokens, rows)?;
        let partials = if quants.is_some() { Partials::new(device, max_tokens)? } else { None };
        stream.synchronize()?;
        Ok(Self {
            recordings: HashMap::new(),
            kernels: Arc::clone(kernels),
            stream,
            weights,
            floats,
            quants,
            halves,
            partials,
            out,
            dtype,
            shape,
            max_tokens,
            products,
        })
    }

    /// Runs all products with `tokens` tokens once and waits; returns the device's seconds for one product.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] for no token, or more than the limit; [`DeviceError::Driver`].
    pub fn time(&mut self, tokens: usize) -> Result<f64, DeviceError> {
        if tokens == 0 || tokens > self.max_tokens {
            let most = self.max_tokens;
            return Err(DeviceError::Invalid(format!("{tokens} tokens, but the product was prepared for {most}")));
        }
        if !self.recordings.contains_key(&tokens) {
            let recording = self.stream.capture(|stream| self.launch(stream, tokens))?;
            self.recordings.insert(tokens, recording);
        }
        let start = Event::record(&self.stream)?;
        self.recordings[&tokens].launch()?;
        let end = Event::record(&self.stream)?;
        Ok(f64::from(end.milliseconds_since(&start)?) / 1e3 / self.products as f64)
    }

    fn launch(&self, stream: &Stream, tokens: usize) -> Result<(), DeviceError> {
        let input = match (&self.quants, &self.halves) {
            (_, Some((halves, from))) if tokens >= *from => Input::Halves(halves),
            (Some(quants), _) => Input::Quantized(quants),
            (None, _) => Input::Floats(&self.floats),
        };
        for weights in self.weights.iter().cycle().take(self.products) {
            let projection = Projection { weights, bias: None, out: &self.out, accumulate: false };
            self.kernels.matmul(stream, input, &[projection], self.partials.as_ref(), tokens)?;
        }
        Ok(())
    }

    /// The last product's rows.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn result(&self, tokens: usize) -> Result<Vec<f32>, DeviceError> {
        self.out.read(tokens)
    }

    /// Matrix products in a run.
    pub fn products(&self) -> usize {
        self.products
    }

    /// Multiply-adds of one product.
    pub fn macs(&self, tokens: usize) -> u64 {
        (self.shape.rows * self.shape.cols * tokens) as u64
    }

    /// Bytes of one matrix on the device, which is what a product reads.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.first().map_or(0, |weights| weights.bytes() as u64)
    }

    /// Bytes of all matrices of a run.
    pub fn working_set(&self) -> u64 {
        self.weight_bytes() * self.weights.len() as u64
    }

    /// The type of the weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The kernel that serves so many tokens.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn kernel(&self, tokens: usize) -> Result<ProductKernel, DeviceError> {
        self.kernels.product_kernel(self.dtype, tokens)
    }
}
