//! Zeroed, 64-byte aligned memory for weights, activations and the key/value cache.
//!
//! Regions come straight from the system, so pages that nobody touches cost nothing, and large ones are offered huge
//! pages (`madvise(2)`, `MADV_HUGEPAGE`), which spares a streaming kernel most address-translation misses. On a machine with
//! several memory nodes [`placement`] has its say.
//!
//! AddressSanitizer knows nothing of such memory. So that it notices accesses after the end all the same, small regions
//! end at a page that nobody may touch if the program is built with `--cfg rustai_guard`, as `scripts/sanitize.sh` does.

use crate::{ExecutorError, placement};
use std::ptr::NonNull;

/// A huge page of x86-64 and of AArch64 with 4 KiB granules. Regions at least this large ask for them.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes that nobody may touch after the end of a region, if there are such: a multiple of every system's page.
const GUARD: usize = 64 << 10;

/// `bytes` rounded up to the 64 that every part of a region is aligned to; `usize::MAX`, which no region has, on overflow.
pub(crate) fn align(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(64).unwrap_or(usize::MAX)
}

/// An anonymous mapping, zeroed, owned, page-aligned; large ones begin on a huge page.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    len: usize,
    /// What was mapped; `start .. start + len` lies in it.
    mapping: (*mut libc::c_void, usize),
}

// SAFETY: a region is plain memory without thread affinity; who may access which bytes is decided by its users.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` hands out shared slices and a raw pointer, nothing else.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` zeroed bytes; `what` names them in the error.
    pub(crate) fn new(what: &'static str, len: usize) -> Result<Self, ExecutorError> {
        if len == 0 {
            let mapping = (std::ptr::null_mut(), 0);
            return Ok(Self { start: NonNull::<Aligned>::dangling().cast(), len, mapping });
        }
        let guard = if cfg!(rustai_guard) && len < HUGE_PAGE { GUARD } else { 0 };
        // Room to move the start to a huge page; what is never touched takes no memory.
        let mapped = match len {
            HUGE_PAGE.. => len.saturating_add(HUGE_PAGE),
            _ if guard > 0 => len.next_multiple_of(GUARD) + guard,
            _ => len,
        };
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            let reason = std::io::Error::last_os_error().to_string();
            return Err(ExecutorError::OutOfMemory { what, bytes: len, reason });
        }
        let mapping = (start, mapped);
        let mut start = start.cast::<u8>();
        if guard > 0 {
            start = start.wrapping_add(mapped - guard - align(len));
            // SAFETY: the range is the end of what was just mapped; if it stays accessible, errors are noticed later only.
            unsafe { libc::mprotect(mapping.0.wrapping_byte_add(mapped - guard), guard, libc::PROT_NONE) };
        } else if mapped > len {
            start = start.wrapping_add(start.align_offset(HUGE_PAGE));
            // SAFETY: the range lies in what was just mapped; the advice changes no contents, and its failure is harmless.
            unsafe { libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE) };
        }
        // PANIC: `mmap` without a wanted address never returns null.
        let start = NonNull::new(start).expect("a mapping is not at address zero");
        Ok(Self { start, len, mapping })
    }

    /// As [`new`](Self::new), for memory that all threads use alike: its pages are dealt out to the machine's memory nodes.
    pub(crate) fn shared(what: &'static str, len: usize) -> Result<Self, ExecutorError> {
        let region = Self::new(what, len)?;
        if len > 0 {
            placement::deal_out(region.mapping.0.cast(), region.mapping.1);
        }
        Ok(region)
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// # Safety
    /// Nobody writes through [`as_ptr`](Self::as_ptr) while the slice lives.
    pub(crate) unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` initialised (zeroed) bytes; the caller speaks for writers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `start` is valid for `len` initialised (zeroed) bytes, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range is the one that `new` mapped, and nobody can hold it any more.
            unsafe { libc::munmap(self.mapping.0, self.mapping.1) };
        }
    }
}

#[repr(align(64))]
struct Aligned;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_zeroed_and_writable_and_an_absurd_one_is_an_error() {
        let mut region = Region::new("test", 5 << 20).unwrap();
        assert!(region.as_mut_slice().iter().all(|&byte| byte == 0));
        region.as_mut_slice()[(5 << 20) - 1] = 1;
        assert_eq!(Region::new("test", 0).unwrap().as_mut_slice(), &[] as &[u8]);
        let error = Region::new("the moon", usize::MAX / 2).unwrap_err();
        assert!(error.to_string().contains("the moon"), "{error}");
    }
}
