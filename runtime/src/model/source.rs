//! What an architecture asks of a model file.

use super::LoadError;
use crate::{
    gguf::{GgufFile, Strings},
    graph::{Place, WeightInfo, WeightSource},
};
use rustai_kernels_cpu::SharedBytes;

/// A file with metadata under GGUF's keys, and tensors.
///
/// Lookups return `None` for a key that is absent, and an error for a value of another type.
pub trait ModelFile: WeightSource {
    /// A string.
    ///
    /// # Errors
    /// If the value is of another type.
    fn str(&self, key: &str) -> Result<Option<&str>, LoadError>;
    /// A whole number of any width that is not negative.
    ///
    /// # Errors
    /// If the value is of another type.
    fn u64(&self, key: &str) -> Result<Option<u64>, LoadError>;
    /// A real number.
    ///
    /// # Errors
    /// If the value is of another type.
    fn f32(&self, key: &str) -> Result<Option<f32>, LoadError>;
    /// Entries of an array of strings.
    ///
    /// # Errors
    /// If the value is of another type.
    fn count(&self, key: &str) -> Result<Option<usize>, LoadError>;
    /// Names of all tensors.
    fn tensor_names(&self) -> Vec<String>;
    /// This file as a source of weights.
    fn weights(&self) -> &dyn WeightSource;
}

impl WeightSource for GgufFile {
    fn info(&self, name: &str) -> Option<WeightInfo> {
        self.tensor(name).map(|tensor| WeightInfo { dtype: tensor.dtype, dims: tensor.dims.clone() })
    }

    fn bytes(&self, name: &str) -> Option<SharedBytes> {
        self.tensor(name).map(|tensor| self.data(tensor))
    }

    fn place(&self, name: &str) -> Option<Place<'_>> {
        let (tensor, (file, stamp)) = (self.tensor(name)?, self.opened()?);
        let offset = self.data_offset().saturating_add(tensor.offset) as u64;
        Some(Place { file, path: self.path()?, offset, stamp })
    }

    fn release(&self, name: &str) {
        if let Some(tensor) = self.tensor(name) {
            GgufFile::release(self, tensor);
        }
    }
}

impl ModelFile for GgufFile {
    fn str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        Ok(self.metadata().str(key)?)
    }

    fn u64(&self, key: &str) -> Result<Option<u64>, LoadError> {
        Ok(self.metadata().u64(key)?)
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        Ok(self.metadata().f32(key)?)
    }

    fn count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        Ok(self.metadata().strings(key)?.map(Strings::len))
    }

    fn tensor_names(&self) -> Vec<String> {
        self.tensors().iter().map(|tensor| tensor.name.clone()).collect()
    }

    fn weights(&self) -> &dyn WeightSource {
        self
    }
}
