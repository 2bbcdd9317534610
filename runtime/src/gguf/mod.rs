//! GGUF model files (versions 2 and 3, little endian), memory-mapped.
use rustai_abi::DType;
use rustai_kernels_cpu::SharedBytes;
use std::path::Path;

/// A mapped model file whose header has been checked.
pub struct GgufFile {}
/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {}
/// A tensor's entry in the file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, fastest first (GGUF order): `[cols, rows, ..]`.
    pub dims: Vec<usize>,
    /// Bytes of data.
    pub bytes: usize,
}
/// The key/value pairs of a file.
pub struct Metadata {}
impl Metadata {
    /// Typed lookups return `None` if absent, `Err` if of another type. Integers of any width convert if they fit.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> { todo!() }
    /// See `str`.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> { todo!() }
    /// See `str`. Integers of any width that fit convert.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> { todo!() }
    /// See `str`.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> { todo!() }
    /// See `str`.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> { todo!() }
    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, GgufError> { todo!() }
    /// An array of f32.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, GgufError> { todo!() }
    /// An array of i32 (u32 that fit convert).
    pub fn i32s(&self, key: &str) -> Result<Option<&[i32]>, GgufError> { todo!() }
}
impl GgufFile {
    /// Maps and checks a file.
    pub fn open(path: &Path) -> Result<Self, GgufError> { todo!() }
    /// The metadata.
    pub fn metadata(&self) -> &Metadata { todo!() }
    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] { todo!() }
    /// One tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> { todo!() }
    /// A tensor's bytes, shared with the mapping (no copy).
    pub fn data(&self, tensor: &TensorInfo) -> SharedBytes { todo!() }
    /// Tells the system that a tensor's pages are no longer needed (they were copied). Reading them again is still right.
    pub fn release(&self, tensor: &TensorInfo) { todo!() }
}
