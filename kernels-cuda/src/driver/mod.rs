//! What stands between the kernels and the driver library: devices, memory, streams and launches.
//!
//! cudarc opens the library and declares its functions; all use of them is in this folder. Every function of cudarc
//! panics on a host without the library, so a [`Device`] comes from [`probe`]'s checks only, and everything else comes
//! from a device.

mod device;
mod error;
mod launch;
mod memory;
mod page_lock;
mod staging;
mod stream;
mod tensor_map;

pub use device::{Device, DeviceInfo, OLDEST_DRIVER, probe};
pub use error::DeviceError;
pub use launch::{KernelArgs, Launch};
pub use memory::{ALIGN, Arena, Pod, Span};
pub use page_lock::{IDLE_USES, Lockable, Locked, MOST_LOCKED};
pub use staging::{ReadbackBuffer, UploadBuffer, Uploader};
pub use stream::{Event, Graph, Stream};
pub use tensor_map::TensorMap;

pub(crate) use error::check;
pub(crate) use launch::Function;
pub(crate) use stream::after_capture;
