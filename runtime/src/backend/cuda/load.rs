//! Brings the weights of a graph to a device, in the order of the file.
//!
//! Weights whose form on the device is the file's, floats, are read from the file straight into page-locked memory, by
//! io_uring, several parts at once. Others are repacked from the mapped file into page-locked memory. Either way parts are on
//! their way to the device meanwhile. `kernels-cuda/PERFORMANCE.md` has the figures that decide which goes which way.

use super::super::{
    BuildError,
    load::{bytes, needs, total_bytes, vector},
};
use crate::{
    graph::{Graph, Place, WeightSource},
    sys::reads::Reads,
};
use rustai_abi::DType;
use rustai_kernels_cuda::{Arena, Device, DeviceError, Floats, Stream, UploadBuffer, Uploader, Weights, weights};

/// A weight on a device, in the forms that its readers want.
#[derive(Clone, Debug, Default)]
pub(super) struct DeviceWeight {
    /// For products and embeddings.
    pub(super) matrix: Option<Weights>,
    /// For norms and biases.
    pub(super) vector: Option<Floats>,
}

/// Bytes of device memory that a graph's weights take.
///
/// # Errors
/// [`BuildError::UnsupportedType`] for a tensor that no kernel reads.
pub(in super::super) fn device_bytes(graph: &Graph) -> Result<u64, BuildError> {
    let mut sum = 0u64;
    for (weight, needs) in graph.weights().iter().zip(needs(graph)) {
        let unsupported = || BuildError::UnsupportedType { tensor: weight.name.clone(), dtype: weight.dtype };
        if needs.vector {
            if !matches!(weight.dtype, DType::F32 | DType::F16 | DType::BF16) {
                return Err(unsupported());
            }
            sum = sum.saturating_add(Floats::room(1, weight.elements()) as u64);
        }
        if needs.matrix || needs.table {
            let bytes = weights::device_bytes(weight.dtype, weight.dims[1], weight.dims[0]).ok_or_else(unsupported)?;
            sum = sum.saturating_add(bytes as u64);
        }
    }
    Ok(sum)
}

/// Reads of a file that run at once: of the uploader's buffers half are read into while half are on their way.
const READS: u32 = Uploader::BUFFERS as u32 / 2;

/// Loads all weights; `progress` takes the bytes of the source that are done and their total.
pub(super) fn load(
    graph: &Graph,
    source: &dyn WeightSource,
    device: &Device,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<DeviceWeight>, BuildError> {
    let room = usize::try_from(device_bytes(graph)?).unwrap_or(usize::MAX);
    let mut arena = Arena::new(device, "the model's weights", room)?;
    let stream = Stream::new(device)?;
    let mut loaded = Vec::with_capacity(graph.weights().len());
    for (weight, needs) in graph.weights().iter().zip(needs(graph)) {
        let mut on_device = DeviceWeight::default();
        if needs.vector {
            on_device.vector = Some(Floats::take(&mut arena, 1, weight.elements())?);
        }
        if needs.matrix || needs.table {
            on_device.matrix = Some(Weights::take(&mut arena, weight.dtype, weight.dims[1], weight.dims[0])?);
        }
        loaded.push(on_device);
    }
    let total = total_bytes(graph);
    progress(0, total);
    let uploader = Uploader::new(&stream)?;
    Load { graph, source, loaded: &loaded, uploader, done: 0, total, progress }.run()?;
    stream.synchronize()?;
    Ok(loaded)
}

/// A part of a matrix that is read at once.
struct Part<'a> {
    weight: usize,
    matrix: &'a Weights,
    place: Place<'a>,
    /// Where it starts in the matrix, in bytes.
    at: usize,
    len: usize,
}

/// Weights on their way.
struct Load<'a> {
    graph: &'a Graph,
    source: &'a dyn WeightSource,
    /// Where they go.
    loaded: &'a [DeviceWeight],
    uploader: Uploader<'a>,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<'a> Load<'a> {
    fn run(&mut self) -> Result<(), BuildError> {
        let weights = self.graph.weights();
        let place = |index: usize| match weights[index].inline {
            Some(_) => None,
            None => self.source.place(&weights[index].name),
        };
        let places: Vec<Option<Place<'a>>> = (0..weights.len()).map(place).collect();
        places.iter().flatten().try_for_each(unchanged)?;
        // A disk reads ahead.
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by_key(|&index| places[index].map(|place| place.offset));
        let reads = |index: &usize| {
            let DeviceWeight { matrix, vector } = &self.loaded[*index];
            let matrix = matrix.as_ref().filter(|matrix| vector.is_none() && matrix.as_in_a_file().is_some())?;
            Some((*index, matrix, places[*index]?))
        };
        let read: Vec<_> = order.iter().filter_map(reads).collect();
        let ring = if read.is_empty() { None } else { ring() };
        if let Some(ring) = ring {
            order.retain(|index| !read.iter().any(|(read, ..)| read == index));
            let parts = read.into_iter().flat_map(|(weight, matrix, place)| {
                let bytes = weights[weight].bytes();
                (0..bytes).step_by(Uploader::BYTES).map(move |at| {
                    let len = Uploader::BYTES.min(bytes - at);
                    Part { weight, matrix, place, at, len }
                })
            });
            self.read(ring, parts)?;
        }
        for index in order {
            self.copy(index)?;
        }
        places.iter().flatten().try_for_each(unchanged)
    }

    /// Reads parts of matrices from files into page-locked memory, as many at once as the ring takes.
    fn read(&mut self, mut ring: Ring<'a>, parts: impl Iterator<Item = Part<'a>>) -> Result<(), BuildError> {
        let weights = self.graph.weights();
        let failed = |weight: usize, place: Place<'_>, source| BuildError::Read {
            tensor: weights[weight].name.clone(),
            path: place.path.to_owned(),
            source,
        };
        let mut parts = parts.peekable();
        let Some(mut last) = parts.peek().map(|part| (part.weight, part.place)) else { return Ok(()) };
        loop {
            while ring.has_room()
                && let Some(part) = parts.next()
            {
                let (buffer, place, len) = (self.uploader.take()?, part.place, part.len);
                last = (part.weight, place);
                let offset = place.offset.saturating_add(part.at as u64);
                ring.start(place.file, offset, buffer, len, part).map_err(|error| failed(last.0, last.1, error))?;
            }
            let ended = ring.next().map_err(|error| failed(last.0, last.1, error))?;
            let Some(ended) = ended else { return Ok(()) };
            let Part { weight, matrix, place, at, len } = ended.about;
            ended.result.map_err(|error| failed(weight, place, error))?;
            matrix.send(&mut self.uploader, at, ended.buffer, len)?;
            self.advance(len);
        }
    }

    /// Copies a weight from the source's memory, which brings in what of it is on a disk only.
    fn copy(&mut self, index: usize) -> Result<(), BuildError> {
        let weight = &self.graph.weights()[index];
        let DeviceWeight { matrix, vector: floats } = &self.loaded[index];
        let bytes = bytes(weight, self.source)?;
        if let Some(floats) = floats {
            self.uploader.put(floats.span(), bytemuck::cast_slice(&vector(weight, &bytes)?))?;
        }
        let Some(matrix) = matrix else {
            self.advance(bytes.len());
            return Ok(());
        };
        let step = Uploader::BYTES / matrix.unit_bytes() * matrix.unit_bytes();
        for (number, part) in bytes.chunks(step).enumerate() {
            matrix.put(&mut self.uploader, number * step, part)?;
            self.advance(part.len());
        }
        if weight.inline.is_none() {
            self.source.release(&weight.name);
        }
        Ok(())
    }

    fn advance(&mut self, bytes: usize) {
        self.done += bytes as u64;
        (self.progress)(self.done, self.total);
    }
}

type Ring<'a> = Reads<'a, UploadBuffer<u8>, Part<'a>>;

/// A ring of reads; `None` where the kernel has none for us, and files are mapped.
fn ring<'a>() -> Option<Ring<'a>> {
    let ring = Reads::new(READS);
    ring.inspect_err(|error| tracing::debug!(%error, "no io_uring to read weights with; the file is mapped")).ok()
}

/// Checks that a file is as it was when its header was read.
fn unchanged(place: &Place<'_>) -> Result<(), BuildError> {
    let now = place.file.metadata().and_then(|found| Ok((found.len(), found.modified()?)));
    match now {
        Ok(now) if now == place.stamp => Ok(()),
        Ok(_) => Err(BuildError::FileChanged { path: place.path.to_owned() }),
        Err(source) => Err(BuildError::File { path: place.path.to_owned(), source }),
    }
}

impl From<DeviceError> for BuildError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}
