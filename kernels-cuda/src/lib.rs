//! CUDA kernels of rustai and the layer that launches them.
//!
//! The kernels are CUDA C++ in `cuda/`; this crate knows device memory, streams and launches. It knows no graphs and no
//! files. Nothing here needs a CUDA toolkit to build: the driver library is opened when [`probe`] is called, and a host
//! without one is a [`DeviceError`], never a panic.

pub mod bench;
pub mod driver;
mod images;
mod kernels;
pub mod ops;
pub mod weights;

pub use driver::{
    Arena, Device, DeviceError, DeviceInfo, Event, Graph, Lockable, Locked, ReadbackBuffer, Span, Stream, UploadBuffer,
    Uploader, probe,
};
pub use images::{KernelSources, embedded_target};
pub use kernels::Kernels;
pub use ops::{Floats, Halves, Input, Partials, Projection, Quants};
pub use weights::{Packed, Weights};
