//! Where the weights of a graph come from.

use rustai_abi::DType;
use rustai_kernels_cpu::SharedBytes;

/// Type and shape of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightInfo {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, fastest first: `[cols, rows]` for a matrix, `[len]` for a vector.
    pub dims: Vec<usize>,
}

/// Answers for the named weights of a graph: a model file, or anything else that holds tensors.
pub trait WeightSource: Sync {
    /// Type and shape of a tensor; `None` if there is none of that name.
    fn info(&self, name: &str) -> Option<WeightInfo>;

    /// The tensor's bytes, row-major; `None` if there is none of that name.
    fn bytes(&self, name: &str) -> Option<SharedBytes>;

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
