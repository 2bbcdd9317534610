//! Brings the weights of a graph to a device: read, repacked on the host's cores, copied while the next ones are repacked.

use super::super::{
    BuildError,
    load::{bytes, needs, total_bytes, vector},
};
use crate::graph::{Graph, WeightSource};
use rustai_abi::DType;
use rustai_kernels_cuda::{Arena, Device, DeviceError, Floats, Packed, Stream, Uploader, Weights, weights};
use std::{sync::mpsc, thread};

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

/// What is on its way from the repacking thread to the device.
enum Part {
    Matrix(Packed),
    Vector(Vec<f32>),
}

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
    let mut uploader = Uploader::new(&stream)?;
    let total = total_bytes(graph);
    let mut done = 0;
    progress(done, total);
    let mut loaded = vec![DeviceWeight::default(); graph.weights().len()];
    thread::scope(|scope| {
        // One weight waits while one is copied and one is repacked: host memory stays at a few tensors.
        let (send, parts) = mpsc::sync_channel::<Result<(usize, Vec<Part>), BuildError>>(1);
        let repack = move || {
            for (index, (weight, needs)) in graph.weights().iter().zip(needs(graph)).enumerate() {
                let part = bytes(weight, source).and_then(|bytes| {
                    let mut parts = Vec::new();
                    if needs.vector {
                        parts.push(Part::Vector(vector(weight, &bytes)?));
                    }
                    if needs.matrix || needs.table {
                        parts.push(Part::Matrix(Packed::new(weight.dtype, weight.dims[1], weight.dims[0], &bytes)?));
                        if weight.inline.is_none() {
                            source.release(&weight.name);
                        }
                    }
                    Ok((index, parts))
                });
                // The receiver hangs up at the first failure.
                if send.send(part).is_err() {
                    break;
                }
            }
        };
        thread::Builder::new().name("repack".into()).spawn_scoped(scope, repack).map_err(BuildError::Thread)?;
        for part in parts {
            let (index, parts) = part?;
            let weight = &graph.weights()[index];
            for part in parts {
                match part {
                    Part::Matrix(packed) => {
                        let matrix = Weights::take(&mut arena, weight.dtype, weight.dims[1], weight.dims[0])?;
                        for (span, plane) in matrix.planes().iter().zip(packed.planes()) {
                            uploader.put(span, plane)?;
                        }
                        loaded[index].matrix = Some(matrix);
                    }
                    Part::Vector(values) => {
                        let vector = Floats::take(&mut arena, 1, values.len())?;
                        uploader.put(vector.span(), bytemuck::cast_slice(&values))?;
                        loaded[index].vector = Some(vector);
                    }
                }
            }
            done += weight.bytes() as u64;
            progress(done, total);
        }
        Ok::<(), BuildError>(())
    })?;
    stream.synchronize()?;
    Ok(loaded)
}

impl From<DeviceError> for BuildError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}
