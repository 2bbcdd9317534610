//! Launching a kernel: one block of parameters, a grid, and whether it may overlap with the kernel before it.

use super::{Device, DeviceError, Span, Stream, error::check_raw};
use crate::kernels::Modules;
use cudarc::driver::sys::{
    self, CUfunction, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig,
};
use std::sync::Arc;

/// The parameter block of a kernel, passed by value.
///
/// # Safety
/// The type is `repr(C)` with the fields, in their order, of the structure of the same name in `cuda/`.
pub unsafe trait KernelArgs: Copy {}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in each direction.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Start while the kernel before it still runs; the kernel waits for that one's results itself
    /// (`griddepcontrol.wait`). Code for compute capabilities before 9.0 cannot, so its launches never overlap.
    pub overlap: bool,
}

impl Launch {
    /// A launch of `blocks` blocks in one direction.
    pub const fn new(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], threads, shared: 0, overlap: true }
    }
}

/// A kernel that was found in a loaded image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function<'a> {
    pub(crate) handle: CUfunction,
    pub(crate) code: &'a Arc<Modules>,
}

impl Stream {
    /// Puts a kernel behind the stream's work. `spans` are what the arguments point into; a graph that is being captured
    /// keeps them.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and every address in them has the room that the kernel uses for this shape.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub(crate) unsafe fn launch<A: KernelArgs>(
        &self,
        function: Function<'_>,
        shape: Launch,
        args: &A,
        spans: &[&Span],
    ) -> Result<(), DeviceError> {
        self.device().bind()?;
        self.keep(spans, Some(function.code));
        let mut attribute = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let overlaps =
            shape.overlap && function.code.waits() && (!self.is_captured() || records_overlap(self.device()));
        let [x, y, z] = shape.grid;
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: shape.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared,
            hStream: self.raw(),
            attrs: &raw mut attribute,
            numAttrs: u32::from(overlaps),
        };
        let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<std::ffi::c_void>()];
        // SAFETY: the driver copies the one parameter before it returns; the rest is the caller's promise.
        let result = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function.handle, parameters.as_mut_ptr(), std::ptr::null_mut())
        };
        check_raw("cuLaunchKernelEx", result)
    }
}

/// A graph says of an edge that its ends overlap since CUDA 12.3 (CUDA C++ Programming Guide, "Edge Data").
fn records_overlap(device: &Device) -> bool {
    device.info().driver >= 12_030
}
