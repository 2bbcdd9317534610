//! What an engine runs.

use crate::gguf::{GgufError, GgufFile};
use rustai_abi::DType;

/// Facts about a loaded model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Info {
    /// The architecture that the file names, such as `llama`.
    pub architecture: String,
    /// The model's name, if the file gives one.
    pub name: Option<String>,
    /// Weights: the number of elements in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors in the file.
    pub bytes: u64,
    /// Element types, the one with the most bytes first.
    pub dtypes: Vec<DTypeShare>,
    /// Most tokens of prompt and answer together in this engine.
    pub context: usize,
    /// Most tokens that the model was made for, if the file says so.
    pub trained_context: Option<usize>,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Numbers of an embedding; `None` if the model has none to give.
    pub embedding: Option<usize>,
    /// Sequences that can run at once, if they are short enough for the cache.
    pub max_running: usize,
    /// Tokens that the key/value cache holds, of all sequences together.
    pub cache_tokens: usize,
    /// Device, kernels and threads, in one line.
    pub executable: String,
}

/// How much of a file one element type makes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DTypeShare {
    /// The type.
    pub dtype: DType,
    /// Tensors of this type.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Info {
    /// What the file says; the rest is zero until the model is loaded.
    pub(super) fn of_file(file: &GgufFile) -> Result<Self, GgufError> {
        let metadata = file.metadata();
        let architecture = metadata.str("general.architecture")?.unwrap_or("unknown").to_owned();
        let trained = metadata.u64(&format!("{architecture}.context_length"))?;
        let mut dtypes: Vec<DTypeShare> = Vec::new();
        for tensor in file.tensors() {
            let elements = tensor.dims.iter().map(|&dim| dim as u64).product();
            let bytes = tensor.bytes as u64;
            match dtypes.iter_mut().find(|share| share.dtype == tensor.dtype) {
                Some(share) => {
                    share.tensors += 1;
                    share.elements += elements;
                    share.bytes += bytes;
                }
                None => dtypes.push(DTypeShare { dtype: tensor.dtype, tensors: 1, elements, bytes }),
            }
        }
        dtypes.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        Ok(Self {
            name: metadata.str("general.name")?.map(str::to_owned),
            parameters: dtypes.iter().map(|share| share.elements).sum(),
            bytes: dtypes.iter().map(|share| share.bytes).sum(),
            dtypes,
            trained_context: trained.and_then(|length| usize::try_from(length).ok()),
            architecture,
            context: 0,
            vocab: 0,
            embedding: None,
            max_running: 0,
            cache_tokens: 0,
            executable: String::new(),
        })
    }
}
