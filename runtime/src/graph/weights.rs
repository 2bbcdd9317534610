//! Where the weights of a graph come from.

use rustai_abi::DType;
use rustai_kernels_cpu::SharedBytes;
use std::{fs::File, path::Path, time::SystemTime};

/// Type and shape of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightInfo {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, fastest first: `[cols, rows]` for a matrix, `[len]` for a vector.
    pub dims: Vec<usize>,
}

impl WeightInfo {
    /// The dimensions without ones at the end, which files may write, but for those that make up `rank` dimensions.
    pub(crate) fn dims_of_rank(&self, rank: usize) -> &[usize] {
        let len = self.dims.iter().rposition(|dim| *dim != 1).map_or(1, |last| last + 1).max(rank);
        &self.dims[..len.min(self.dims.len())]
    }
}

/// Where a tensor's bytes lie in a file.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The file, open for reading.
    pub file: &'a File,
    /// Its path.
    pub path: &'a Path,
    /// Where the tensor starts, in bytes from the start of the file.
    pub offset: u64,
    /// Size of the file in bytes and time of its last change, when its header was read.
    pub stamp: (u64, SystemTime),
}

/// Answers for the named weights of a graph: a model file, or anything else that holds tensors.
pub trait WeightSource: Sync {
    /// Type and shape of a tensor; `None` if there is none of that name.
    fn info(&self, name: &str) -> Option<WeightInfo>;

    /// The tensor's bytes, row-major; `None` if there is none of that name.
    fn bytes(&self, name: &str) -> Option<SharedBytes>;

    /// Where the tensor's bytes lie in a file, for those who would rather read than map; `None` if they lie in none.
    fn place(&self, name: &str) -> Option<Place<'_>> {
        let _ = name;
        None
    }

    /// Says that the tensor was copied, so that memory behind its bytes may be dropped. Bytes asked for before or after
    /// stay right.
    fn release(&self, name: &str) {
        let _ = name;
    }
}

/// No weights at all, for graphs whose weights are all inline.
impl WeightSource for () {
    fn info(&self, _name: &str) -> Option<WeightInfo> {
        None
    }

    fn bytes(&self, _name: &str) -> Option<SharedBytes> {
        None
    }
}

/// Reads `count` values of a type that is no more than floats (F32, F16, BF16), little endian; `None` for other types and
/// for a wrong number of bytes.
pub fn read_floats(dtype: DType, bytes: &[u8], count: usize) -> Option<Vec<f32>> {
    if dtype.bytes_for(count)? != bytes.len() {
        return None;
    }
    let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match dtype {
        DType::F32 => Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        DType::F16 => Some(pairs().map(|b| half::f16::from_le_bytes(b).to_f32()).collect()),
        DType::BF16 => Some(pairs().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()),
        _ => None,
    }
}
