//! What can go wrong between a host and its devices.

use cudarc::driver::{DriverError, sys::CUresult};

/// Why there is no device, or why it did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The driver library is not installed.
    #[error("no NVIDIA driver: the library libcuda.so.1 was not found; install the driver, or use the CPU")]
    NoDriver,
    /// The driver is older than the functions that this crate calls.
    #[error(
        "the NVIDIA driver supports CUDA {}.{}, and {}.{} is needed; install driver 525 or newer, or use the CPU",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    DriverTooOld {
        /// The driver's version, as `1000 * major + 10 * minor`.
        found: i32,
        /// The oldest version that serves.
        needed: i32,
    },
    /// The driver is there and refuses to start.
    #[error(
        "the NVIDIA driver does not start ({0}); after an update of the driver restart the host, on one with NVSwitch start the \
         fabric manager, or use the CPU"
    )]
    DriverDoesNotStart(String),
    /// The driver is there and finds no device.
    #[error("the NVIDIA driver finds no device ({0}); use the CPU")]
    NoDevice(String),
    /// There are devices, but not this one.
    #[error("there is no CUDA device {ordinal}; the host has {count}, counted from 0")]
    UnknownDevice {
        /// The device asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// No image of the kernels runs on the device's architecture.
    #[error("no kernels for {device} (compute capability {}.{}): {reason}", capability.0, capability.1)]
    NoKernels {
        /// The device's name.
        device: String,
        /// Its compute capability, major and minor.
        capability: (u32, u32),
        /// What was tried, and what to do.
        reason: String,
    },
    /// An image was loaded and lacks a kernel: it was built from other sources than this program.
    #[error("the loaded kernels have no {0}; build them again from this program's sources")]
    MissingKernel(String),
    /// Device memory does not suffice.
    #[error(
        "{what} needs {} MiB of device memory, and {} MiB are free; use a smaller model, a shorter context or fewer sequences",
        bytes.div_ceil(1 << 20), free >> 20
    )]
    OutOfMemory {
        /// What the memory is for.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes that were free.
        free: u64,
    },
    /// Host memory that cannot be swapped out does not suffice.
    #[error(
        "{what} needs {} MiB of page-locked host memory, which the system does not give; close other programs, or use \
         fewer sequences or a smaller batch", bytes.div_ceil(1 << 20)
    )]
    OutOfHostMemory {
        /// What the memory is for.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
    },
    /// The driver refused a call. Most of these leave the device's context unusable.
    #[error("{call} failed: {name} ({code})")]
    Driver {
        /// The function of the driver interface.
        call: &'static str,
        /// Its result.
        code: u32,
        /// The result's name.
        name: String,
    },
    /// The caller's request makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl DeviceError {
    /// An error of `call`. Its name is asked for at once: the library is present here, and need not be asked later.
    pub(crate) fn of(call: &'static str, error: DriverError) -> Self {
        let name =
            error.error_name().map_or_else(|_| "unknown error".into(), |name| name.to_string_lossy().into_owned());
        Self::Driver { call, code: error.0 as u32, name }
    }
}

/// Names the call of a failed result.
pub(crate) fn check<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T, DeviceError> {
    result.map_err(|error| DeviceError::of(call, error))
}

/// Names the call of a raw result.
pub(super) fn check_raw(call: &'static str, result: CUresult) -> Result<(), DeviceError> {
    check(call, result.result())
}
