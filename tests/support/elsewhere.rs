//! A model file whose tensors are said to lie elsewhere, or nowhere, in files.

use rustai::{
    gguf::GgufFile,
    graph::{Place, WeightInfo, WeightSource},
    model::{LoadError, ModelFile},
};
use rustai_kernels_cpu::SharedBytes;

/// A file with another answer to where its tensors lie.
pub struct Elsewhere<'a> {
    file: &'a GgufFile,
    place: &'a (dyn Fn(&str, Place<'a>) -> Option<Place<'a>> + Sync),
}

impl<'a> Elsewhere<'a> {
    /// `place` takes a tensor's name and where it lies.
    pub fn new(file: &'a GgufFile, place: &'a (dyn Fn(&str, Place<'a>) -> Option<Place<'a>> + Sync)) -> Self {
        Self { file, place }
    }

    /// A file that cannot be read, only mapped.
    pub fn mapped(file: &'a GgufFile) -> Self {
        Self { file, place: &|_, _| None }
    }
}

impl WeightSource for Elsewhere<'_> {
    fn info(&self, name: &str) -> Option<WeightInfo> {
        self.file.info(name)
    }

    fn bytes(&self, name: &str) -> Option<SharedBytes> {
        self.file.bytes(name)
    }

    fn place(&self, name: &str) -> Option<Place<'_>> {
        (self.place)(name, WeightSource::place(self.file, name)?)
    }

    fn release(&self, name: &str) {
        WeightSource::release(self.file, name);
    }
}

impl ModelFile for Elsewhere<'_> {
    fn str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.file.str(key)
    }

    fn u64(&self, key: &str) -> Result<Option<u64>, LoadError> {
        self.file.u64(key)
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        self.file.f32(key)
    }

    fn count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.file.count(key)
    }

    fn tensor_names(&self) -> Vec<String> {
        self.file.tensor_names()
    }

    fn weights(&self) -> &dyn WeightSource {
        self
    }
}
