//! The GPU that kernels are measured on.

use super::machine::{Caches, Roofs};
use crate::failure::Failure;
use rustai::{DType, backend::cuda};
use rustai_kernels_cpu::bench::{Residence, Shape};

/// An open GPU.
pub struct Gpu(cuda::Cuda);

impl Gpu {
    /// Opens the GPU of this number.
    pub fn open(ordinal: usize) -> Result<Self, Failure> {
        let opened = cuda::Cuda::open(ordinal, None);
        opened
            .map(Self)
            .map_err(|error| Failure::from(error).or_help("leave out --device; `rustai info` lists the GPUs"))
    }

    /// What people call it.
    pub fn name(&self) -> String {
        let info = self.0.info();
        let (major, minor) = info.capability;
        format!("{} (compute capability {major}.{minor}, {} multiprocessors)", info.name, info.multiprocessors)
    }

    /// Its caches.
    pub fn caches(&self) -> Caches {
        Caches::of_gpu(self.0.info().l2_cache as usize)
    }

    /// Its roofs, measured now.
    pub fn roofs(&self) -> Result<Roofs, Failure> {
        Ok(Roofs::of_gpu(&self.0.roofs()?))
    }

    /// A product that is ready to run.
    pub fn product(
        &self,
        dtype: DType,
        shape: Shape,
        max_tokens: usize,
        residence: Residence,
    ) -> Result<cuda::Product, Failure> {
        let product = self.0.product(dtype, shape, max_tokens, residence);
        product.map_err(|error| Failure::from(error).or_help("measure fewer types, or smaller models"))
    }
}
