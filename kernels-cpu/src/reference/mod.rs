//! Plain scalar kernels: slices in, slices out. They are the law that fast kernels are tested against.
//!
//! Every function sums in `f64`, in ascending order, and rounds to `f32` once for each result, so that its own error is far
//! below any ceiling that a test states. `RUSTAI_CPU=reference` and types without a fast kernel run on this module too,
//! so it avoids needless slowness, but it must never use an instruction set, a thread, or an approximation.
//!
//! Slices whose lengths do not fit each other are a fault of the caller, and panic. Values never panic: infinities and
//! NaN spread as arithmetic spreads them.

mod attention;
mod matmul;
mod rms_norm;
mod rope;
mod softmax;
mod swiglu;

pub use attention::attention;
pub(crate) use matmul::dot_at;
pub use matmul::matmul;
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use softmax::softmax;
pub use swiglu::{silu, swiglu};
