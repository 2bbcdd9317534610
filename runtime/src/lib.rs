//! rustai: quantized transformer inference on hand-written kernels.

pub mod backend;
pub mod engine;
pub mod gguf;
pub mod graph;
pub mod hub;
pub mod model;
pub mod plan;
pub mod sampler;
mod sys;
pub mod text;

pub use rustai_abi::{Batch, BatchSequence, DType, PAGE_TOKENS};
pub use rustai_kernels_cpu::Isa;
