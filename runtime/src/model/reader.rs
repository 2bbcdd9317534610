//! Reads hyper-parameters and declares tensors, with errors that name key, tensor and shape.

use super::{LoadError, ModelFile};
use crate::graph::{GraphBuilder, WeightId, WeightInfo};

/// More than any model has, and little enough that products of a few such numbers cannot overflow.
const LARGEST: u64 = 1 << 24;

/// A model file, seen by one architecture.
pub(super) struct Reader<'a> {
    pub file: &'a dyn ModelFile,
    architecture: &'static str,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a dyn ModelFile, architecture: &'static str) -> Self {
        Self { file, architecture }
    }

    /// The whole key of one of the architecture's own values, such as `llama.block_count`.
    pub fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A count that may be absent; larger ones than any model has are refused.
    pub fn size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let key = self.key(key);
        match self.file.u64(&key)? {
            Some(value) if value > LARGEST => {
                let expected = format!("it should be at most {LARGEST}");
                Err(LoadError::InvalidMetadata { key, found: value.to_string(), expected })
            }
            value => Ok(value.map(|value| value as usize)),
        }
    }

    /// A count that must be there and must not be 0.
    pub fn positive(&self, key: &str) -> Result<usize, LoadError> {
        match self.size(key)? {
            None => Err(LoadError::MissingMetadata { key: self.key(key) }),
            Some(0) => Err(self.invalid(key, 0, "it should be at least 1")),
            Some(value) => Ok(value),
        }
    }

    /// A count that must not be 0, or else what it is when absent.
    pub fn positive_or(&self, key: &str, absent: usize) -> Result<usize, LoadError> {
        match self.size(key)? {
            None => Ok(absent),
            Some(_) => self.positive(key),
        }
    }

    /// A finite real number that may be absent.
    pub fn real(&self, key: &str) -> Result<Option<f32>, LoadError> {
        match self.file.f32(&self.key(key))? {
            Some(value) if !value.is_finite() => Err(self.invalid(key, value, "it should be finite")),
            value => Ok(value),
        }
    }

    /// An error for a value of the architecture that makes no sense.
    pub fn invalid(&self, key: &str, found: impl ToString, expected: impl Into<String>) -> LoadError {
        LoadError::InvalidMetadata { key: self.key(key), found: found.to_string(), expected: expected.into() }
    }

    /// An error for a value of the architecture that asks for what is not written yet.
    pub fn unsupported(&self, key: &str, found: impl ToString, what: &'static str) -> LoadError {
        LoadError::Unsupported { key: self.key(key), found: found.to_string(), what }
    }

    /// A tensor that must be there; 0 in `dims` fits any length.
    pub fn info(&self, tensor: &str, dims: &[usize]) -> Result<WeightInfo, LoadError> {
        let missing = || LoadError::MissingTensor { tensor: tensor.to_owned(), expected: dims.to_vec() };
        let info = self.file.info(tensor).ok_or_else(missing)?;
        let found = info.dims_of_rank(dims.len());
        let fits = found.len() == dims.len()
            && found.iter().zip(dims).all(|(found, expected)| *expected == 0 || found == expected);
        match fits {
            true => Ok(WeightInfo { dims: found.to_vec(), ..info }),
            false => {
                Err(LoadError::TensorShape { tensor: tensor.to_owned(), expected: dims.to_vec(), found: info.dims })
            }
        }
    }

    /// Declares a tensor that must be there.
    pub fn weight(&self, b: &mut GraphBuilder, tensor: &str, dims: &[usize]) -> Result<WeightId, LoadError> {
        let info = self.info(tensor, dims)?;
        Ok(b.weight(tensor, info.dtype, &info.dims)?)
    }

    /// Declares a tensor if the file holds it.
    pub fn optional(&self, b: &mut GraphBuilder, tensor: &str, dims: &[usize]) -> Result<Option<WeightId>, LoadError> {
        self.file.info(tensor).map(|_| self.weight(b, tensor, dims)).transpose()
    }
}
