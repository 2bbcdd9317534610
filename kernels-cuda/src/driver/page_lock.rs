//! Page-locking of memory that somebody else allocated, so that a device copies to it without a stop in the driver's own buffers.
//!
//! Such pages cannot be swapped out or moved, so that there is a limit for all of them together. A lock must go before its memory
//! is unmapped, and no copy may run then.

use super::{Device, DeviceError, error::check_raw, stream::CAPTURES};
use cudarc::driver::sys::{self, CUresult};
use std::{
    ptr::NonNull,
    sync::{
        PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Bytes that are locked at most, by all locks of a process.
pub const MOST_LOCKED: usize = 1 << 30;

static LOCKED: AtomicUsize = AtomicUsize::new(0);

/// Pages that are locked for every device while this value lives.
#[derive(Debug)]
pub struct PageLock {
    device: Device,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the driver may be given the address from any thread, and the value gives out no access to the memory.
unsafe impl Send for PageLock {}
// SAFETY: as above.
unsafe impl Sync for PageLock {}

impl PageLock {
    /// Locks the pages of `bytes` from `start` on.
    ///
    /// # Safety
    /// The memory stays mapped while the value lives, and no device copies from or to it when it goes.
    ///
    /// # Errors
    /// [`DeviceError::OutOfHostMemory`] if more than [`MOST_LOCKED`] would be locked, or the system does not lock so much;
    /// [`DeviceError::Driver`] where the driver locks no such memory. The memory is as it was, and copies work all the same.
    pub unsafe fn new(device: &Device, start: NonNull<u8>, bytes: usize) -> Result<Self, DeviceError> {
        let full = || DeviceError::OutOfHostMemory { what: "a caller's buffer", bytes: bytes as u64 };
        device.bind()?;
        let _no_capture = CAPTURES.read().unwrap_or_else(PoisonError::into_inner);
        let more = |locked: usize| locked.checked_add(bytes).filter(|all| *all <= MOST_LOCKED);
        LOCKED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map_err(|_| full())?;
        // SAFETY: the context is bound, and the caller promises that the memory is mapped.
        let locked =
            unsafe { sys::cuMemHostRegister_v2(start.as_ptr().cast(), bytes, sys::CU_MEMHOSTREGISTER_PORTABLE) };
        if locked != CUresult::CUDA_SUCCESS {
            LOCKED.fetch_sub(bytes, Ordering::Relaxed);
        }
        match locked {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(full()),
            result => {
                check_raw("cuMemHostRegister", result)?;
                Ok(Self { device: device.clone(), start, bytes })
            }
        }
    }
}

impl Drop for PageLock {
    fn drop(&mut self) {
        // The call may wait for the device. Errors have no one to go to.
        let _no_capture = CAPTURES.read().unwrap_or_else(PoisonError::into_inner);
        let _ = self.device.bind();
        // SAFETY: the memory was registered and is still mapped, and no copy runs, as the maker of the value promised.
        let _ = unsafe { sys::cuMemHostUnregister(self.start.as_ptr().cast()) };
        LOCKED.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
