//! Device memory: a few large allocations, handed out in spans.

use super::{Device, DeviceError, check, stream::after_capture};
use cudarc::driver::{result, sys::CUresult};
use std::sync::Arc;

/// Alignment of every span in bytes: enough for 16-byte loads, for whole cache lines and for tensor-map addresses.
pub const ALIGN: usize = 256;

/// Values that are plain bytes, so that they can be copied to and from a device.
///
/// # Safety
/// The type has no padding, and any bit pattern is a value of it.
pub unsafe trait Pod: Copy + 'static {}

// SAFETY: no padding, and any bits are a value.
unsafe impl Pod for u8 {}
// SAFETY: as above.
unsafe impl Pod for i8 {}
// SAFETY: as above.
unsafe impl Pod for u16 {}
// SAFETY: as above.
unsafe impl Pod for u32 {}
// SAFETY: as above.
unsafe impl Pod for i32 {}
// SAFETY: as above.
unsafe impl Pod for u64 {}
// SAFETY: as above.
unsafe impl Pod for f32 {}

#[derive(Debug)]
struct Allocation {
    device: Device,
    address: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let (device, address) = (self.device.clone(), self.address);
        after_capture(move || {
            // Work that still uses the memory must be over. Errors have no one to go to; the next call of a stream tells them.
            let _ = device.synchronize();
            // SAFETY: the address came from `cuMemAlloc`, and no span is left that could be used again.
            let _ = unsafe { result::free_sync(address) };
        });
    }
}

/// One allocation that is handed out from the start to the end and freed when the last span is gone.
#[derive(Debug)]
pub struct Arena {
    allocation: Arc<Allocation>,
    bytes: usize,
    used: usize,
}

impl Arena {
    /// Takes `bytes` of device memory, uninitialised, for `what`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] with what is free, or [`DeviceError::Driver`].
    pub fn new(device: &Device, what: &'static str, bytes: usize) -> Result<Self, DeviceError> {
        device.bind()?;
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
        // SAFETY: the context is bound, and the size is not zero.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => {
                Ok(Self { allocation: Arc::new(Allocation { device: device.clone(), address }), bytes, used: 0 })
            }
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(DeviceError::OutOfMemory { what, bytes: bytes as u64, free: device.free_memory()? })
            }
            Err(error) => Err(DeviceError::of("cuMemAlloc", error)),
        }
    }

    /// Bytes that `count` values of a type take in an arena.
    pub const fn room<T: Pod>(count: usize) -> usize {
        count.saturating_mul(size_of::<T>()).div_ceil(ALIGN).saturating_mul(ALIGN)
    }

    /// The next `bytes`, aligned to [`ALIGN`].
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the arena was made too small.
    pub fn take(&mut self, bytes: usize) -> Result<Span, DeviceError> {
        let offset = self.used;
        let end = bytes.checked_next_multiple_of(ALIGN).and_then(|bytes| offset.checked_add(bytes));
        match end {
            Some(end) if end <= self.bytes => {
                self.used = end;
                Ok(Span { allocation: self.allocation.clone(), offset, bytes })
            }
            _ => Err(DeviceError::Invalid(format!(
                "{bytes} bytes were asked of an arena with {} bytes left",
                self.bytes - offset
            ))),
        }
    }
}

/// Some bytes of device memory. Clones are the same bytes, and keep them.
#[derive(Clone, Debug)]
pub struct Span {
    allocation: Arc<Allocation>,
    offset: usize,
    bytes: usize,
}

impl Span {
    /// An allocation of its own.
    ///
    /// # Errors
    /// Those of [`Arena::new`].
    pub fn new(device: &Device, what: &'static str, bytes: usize) -> Result<Self, DeviceError> {
        Arena::new(device, what, bytes)?.take(bytes)
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The address on the device.
    pub fn address(&self) -> u64 {
        self.allocation.address + self.offset as u64
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.allocation.device
    }

    /// A part of the span. Its alignment is that of `offset`.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the part is not inside.
    pub fn part(&self, offset: usize, bytes: usize) -> Result<Self, DeviceError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => {
                Ok(Self { allocation: self.allocation.clone(), offset: self.offset + offset, bytes })
            }
            _ => Err(DeviceError::Invalid(format!("{bytes} bytes at {offset} are not inside {} bytes", self.bytes))),
        }
    }

    /// Waits for the device's work, which may still read the span, and copies `values` to its start.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if they do not fit, or the calling thread captures a stream; [`DeviceError::Driver`].
    pub fn upload<T: Pod>(&self, values: &[T]) -> Result<(), DeviceError> {
        self.fits(size_of_val(values))?;
        if values.is_empty() {
            return Ok(());
        }
        self.device().synchronize()?;
        // SAFETY: the span has room for the values, which the driver has read when the call returns.
        check("cuMemcpyHtoD", unsafe { result::memcpy_htod_sync(self.address(), values) })?;
        // It may return before they are on the device, and our streams do not wait for the stream that it uses (CUDA Driver API,
        // "API synchronization behavior").
        // SAFETY: that stream always exists.
        check("cuStreamSynchronize", unsafe { result::stream::synchronize(std::ptr::null_mut()) })
    }

    /// Waits for the device's work and copies the start of the span to `values`.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the span has less, or the calling thread captures a stream; [`DeviceError::Driver`].
    pub fn download<T: Pod>(&self, values: &mut [T]) -> Result<(), DeviceError> {
        self.fits(size_of_val(values))?;
        self.device().synchronize()?;
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: the span has as many bytes, any bits are values of the type, and the call returns when they are there.
        check("cuMemcpyDtoH", unsafe { result::memcpy_dtoh_sync(values, self.address()) })
    }

    pub(super) fn fits(&self, bytes: usize) -> Result<(), DeviceError> {
        if bytes > self.bytes {
            return Err(DeviceError::Invalid(format!("{bytes} bytes for a span of {}", self.bytes)));
        }
        Ok(())
    }
}
