//! Memory that processes share: sealed memfds, and mappings of them.
//!
//! Another process may write such memory at any time, so nothing here hands out a Rust reference to it. Words are loaded and
//! stored atomically, bytes are copied in and out, and kernels get [`External`] floats.

use rustai_kernels_cpu::External;
use rustai_kernels_cuda::{Device, Lockable, Locked};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fcntl_getfl, fstat, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
    thread::futex,
};
use std::{
    io,
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// A new memfd of `len` zero bytes, close-on-exec, with sealing allowed.
pub(crate) fn memfd(name: &str, len: u64) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, len)?;
    Ok(fd)
}

/// Makes the size of a memfd final, and its seals with it.
pub(crate) fn seal_size(fd: impl AsFd) -> io::Result<()> {
    Ok(fcntl_add_seals(fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
}

/// As [`seal_size`], and from now on only mappings that exist can write: others read.
pub(crate) fn seal_for_readers(fd: impl AsFd) -> io::Result<()> {
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    Ok(fcntl_add_seals(fd, seals)?)
}

/// What a descriptor that somebody wants to be used as a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BufferFile {
    /// Not a memfd, nor another file that can be sealed.
    NotMemfd,
    /// Its size can still change.
    Unsealed,
    /// It has this many bytes for good.
    Sealed { len: u64, readable: bool, writable: bool },
}

/// Looks at a descriptor.
pub(crate) fn inspect(fd: impl AsFd) -> io::Result<BufferFile> {
    let Ok(seals) = fcntl_get_seals(&fd) else { return Ok(BufferFile::NotMemfd) };
    if !seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL) {
        return Ok(BufferFile::Unsealed);
    }
    let mode = fcntl_getfl(&fd)? & rustix::fs::OFlags::RWMODE;
    let fixed = seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE);
    Ok(BufferFile::Sealed {
        len: u64::try_from(fstat(&fd)?.st_size).unwrap_or(0),
        readable: mode != rustix::fs::OFlags::WRONLY,
        writable: mode == rustix::fs::OFlags::RDWR && !fixed,
    })
}

/// A shared mapping of a part of a memfd.
pub(crate) struct Shared {
    start: NonNull<u8>,
    len: usize,
    writable: bool,
    /// A GPU's hold on the pages, which goes before the memory is unmapped.
    lockable: Lockable,
}

// SAFETY: a mapping has no thread affinity, and is accessed through atomics and raw copies only.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps `len` bytes from `offset` on, a multiple of the page size. The size of the file must be sealed, or be the
    /// caller's to keep: an access behind its end would end the process.
    pub(crate) fn new(fd: impl AsFd, offset: u64, len: usize, writable: bool) -> io::Result<Self> {
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, fd, offset)? };
        // PANIC: `mmap` without a wanted address never returns null.
        let start = NonNull::new(start.cast()).expect("a mapping is not at address zero");
        // SAFETY: the range is this mapping, which is unmapped when the lock was released. GPUs copy from or to it only by way of
        // `External` floats, and whoever has them do so holds the pages by `lock_pages` or `keep_pages`.
        let lockable = unsafe { Lockable::new(start, len) };
        Ok(Self { start, len, writable, lockable })
    }

    /// Locks the pages, so that GPUs copy to them by themselves, and keeps them so while the result lives. Where that fails, copies go
    /// through the driver's buffers.
    pub(crate) fn lock_pages(&self, device: &Device) -> Option<Locked<'_>> {
        let locked = self.lockable.lock(device);
        locked.inspect_err(|error| tracing::debug!(%error, bytes = self.len, "a buffer is not page-locked")).ok()
    }

    /// Keeps the pages as they are, locked or not, while the result lives: for copies that are not worth locking them.
    pub(crate) fn keep_pages(&self) -> Option<Locked<'_>> {
        self.lockable.keep()
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether it may be written.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at < self.len && self.len - at >= 4, "a word at {at} of {} bytes", self.len);
        // SAFETY: the word lies in the mapping, which is page-aligned and lives as long as `self`; all accesses to words
        // are atomic, and every value is a valid `u32`. A read-only mapping is only loaded from (see `store`).
        unsafe { self.start.add(at).cast().as_ref() }
    }

    /// The word at `at`, with what was written before it.
    pub(crate) fn load(&self, at: usize) -> u32 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Publishes a word, and what was written before it.
    pub(crate) fn store(&self, at: usize, value: u32) {
        assert!(self.writable, "the mapping is read-only");
        self.word(at).store(value, Ordering::Release);
    }

    /// Sleeps for `time`, until [`wake`](Self::wake) is called on the word, in whichever process, or until a signal comes; not at all
    /// if the word holds another value than `value`.
    pub(crate) fn wait(&self, at: usize, value: u32, time: Duration) {
        let Ok(time) = time.try_into() else { return };
        // What woke it, or kept it from sleeping, the caller sees for itself.
        let _ = futex::wait(self.word(at), futex::Flags::empty(), value, Some(&time));
    }

    /// Wakes one who sleeps on the word.
    pub(crate) fn wake(&self, at: usize) {
        // This fails only where there is no memory for the page, and then nobody sleeps there.
        let _ = futex::wake(self.word(at), futex::Flags::empty(), 1);
    }

    fn check(&self, at: usize, len: usize) {
        assert!(at <= self.len && len <= self.len - at, "{len} bytes at {at} of {}", self.len);
    }

    /// Copies bytes out.
    pub(crate) fn read(&self, at: usize, out: &mut [u8]) {
        self.check(at, out.len());
        // SAFETY: the range was checked, and `out` is memory of this process that no mapping overlaps. Others may write the
        // source meanwhile, which makes the copied bytes arbitrary; callers treat them so.
        unsafe { std::ptr::copy_nonoverlapping(self.start.add(at).as_ptr(), out.as_mut_ptr(), out.len()) };
    }

    /// Copies bytes in.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        assert!(self.writable, "the mapping is read-only");
        // SAFETY: the range was checked and is writable, and `bytes` is memory of this process that no mapping overlaps.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at).as_ptr(), bytes.len()) };
    }

    /// A value, copied out.
    pub(crate) fn get<T: bytemuck::AnyBitPattern>(&self, at: usize) -> T {
        self.check(at, size_of::<T>());
        // SAFETY: the range was checked, the read needs no alignment, and any bits are a `T`.
        unsafe { self.start.add(at).cast::<T>().read_unaligned() }
    }

    /// Stores a value.
    pub(crate) fn set<T: bytemuck::NoUninit>(&self, at: usize, value: T) {
        self.write(at, bytemuck::bytes_of(&value));
    }

    /// Copies bytes from one mapping, or from another part of this one, which may overlap.
    pub(crate) fn copy(&self, at: usize, from: &Self, from_at: usize, len: usize) {
        self.check(at, len);
        from.check(from_at, len);
        assert!(self.writable, "the mapping is read-only");
        // SAFETY: both ranges were checked; `copy` allows overlap.
        unsafe { std::ptr::copy(from.start.add(from_at).as_ptr(), self.start.add(at).as_ptr(), len) };
    }

    /// The address of a byte, for printing and for alignment.
    pub(crate) fn address(&self, at: usize) -> usize {
        self.start.as_ptr() as usize + at
    }

    /// Floats in place; `None` if they do not lie in the mapping, aligned. Whoever has them written must have checked that
    /// the mapping [may be](Self::is_writable).
    pub(crate) fn floats(self: &Arc<Self>, bytes: Range<usize>) -> Option<External> {
        let aligned = bytes.start.is_multiple_of(4) && bytes.len().is_multiple_of(4);
        if !aligned || bytes.start > bytes.end || bytes.end > self.len {
            return None;
        }
        // SAFETY: the range lies in the mapping, which the owner keeps. Nobody holds references into shared mappings: this
        // file hands out none but to `AtomicU32` words of rings, which are never tensors.
        Some(unsafe { External::new(self.start.add(bytes.start).cast(), bytes.len() / 4, self.clone()) })
    }

    /// Bytes in place, for kernels that take blocks; `None` if they do not lie in the mapping.
    pub(crate) fn bytes(self: &Arc<Self>, bytes: Range<usize>) -> Option<External<u8>> {
        if bytes.start > bytes.end || bytes.end > self.len {
            return None;
        }
        // SAFETY: as for floats.
        Some(unsafe { External::new(self.start.add(bytes.start), bytes.len(), self.clone()) })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.lockable.release();
        // SAFETY: the range is the mapping of this value, and nothing borrowed from it outlives it.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::debug!(%error, "munmap failed; the mapping stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    fn page() -> usize {
        rustix::param::page_size()
    }

    #[test]
    fn a_ring_has_one_writer() {
        let fd = memfd("ring", page() as u64).unwrap();
        let own = Shared::new(&fd, 0, page(), true).unwrap();
        seal_for_readers(&fd).unwrap();
        assert!(Shared::new(&fd, 0, page(), true).is_err(), "no new writable mapping");
        assert_eq!(rustix::io::pwrite(&fd, b"x", 0), Err(Errno::PERM));
        assert_eq!(ftruncate(&fd, 0), Err(Errno::PERM));
        assert_eq!(fcntl_add_seals(&fd, SealFlags::WRITE), Err(Errno::PERM));
        let theirs = Shared::new(&fd, 0, page(), false).unwrap();
        own.write(64, b"hello");
        own.store(12, 7);
        let mut read = [0; 5];
        theirs.read(64, &mut read);
        assert_eq!((&read, theirs.load(12)), (b"hello", 7));
        // SAFETY: the range is that of a mapping, and access to it is only ever narrowed if the call succeeded.
        let widened = unsafe {
            rustix::mm::mprotect(
                theirs.start.as_ptr().cast(),
                page(),
                rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE,
            )
        };
        assert_eq!(widened, Err(Errno::ACCESS));
    }

    #[test]
    fn files_are_told_apart() {
        let plain = tempfile::tempfile().unwrap();
        let inspected = inspect(&plain).unwrap();
        // On tmpfs a plain file can be asked for seals, and has one that forbids others.
        assert!(matches!(inspected, BufferFile::NotMemfd | BufferFile::Unsealed));
        let fd = memfd("buffer", 8192).unwrap();
        assert_eq!(inspect(&fd).unwrap(), BufferFile::Unsealed);
        seal_size(&fd).unwrap();
        assert_eq!(inspect(&fd).unwrap(), BufferFile::Sealed { len: 8192, readable: true, writable: true });
        let fixed = memfd("buffer", 4096).unwrap();
        seal_for_readers(&fixed).unwrap();
        assert_eq!(inspect(&fixed).unwrap(), BufferFile::Sealed { len: 4096, readable: true, writable: false });
    }

    #[test]
    fn floats_lie_in_the_mapping_or_not_at_all() {
        let fd = memfd("floats", page() as u64).unwrap();
        let map = Arc::new(Shared::new(&fd, 0, page(), true).unwrap());
        map.write(8, &1.5f32.to_ne_bytes());
        assert_eq!(map.floats(8..16).unwrap().to_vec(), [1.5, 0.0]);
        assert!(map.floats(6..10).is_none() && map.floats(8..11).is_none());
        assert!(map.floats(page() - 4..page() + 4).is_none());
    }
}
