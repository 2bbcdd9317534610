//! The ioctls of `/dev/rustai` and `/dev/rustai-engine`.

use rustai_abi::queue::{Errno, ioctl};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// Runs one operation of the queue on a struct of its interface. `bytes` starts with its size, which is at most its length.
/// Addresses inside the struct must be 0 or lead to what the operation reads or writes there: see [`Pointed`].
///
/// Is restarted if a signal interrupts it, as the interface allows: its deadlines are absolute times.
pub(crate) fn operation(
    device: BorrowedFd<'_>,
    op: u32,
    bytes: &mut [u8],
    pointed: &mut Pointed<'_>,
) -> Result<(), Errno> {
    let size = bytes.first_chunk().map_or(0, |size| u32::from_ne_bytes(*size));
    if size as usize > bytes.len() {
        return Err(Errno::EINVAL);
    }
    pointed.enter(bytes);
    loop {
        // SAFETY: by the interface, the device reads `size` bytes at the address, writes at most as many back, and follows
        // the address that `enter` has put there, behind which `pointed` has the memory that the count beside it says.
        // `bytes` and `pointed` are borrowed for the call.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), ioctl(op) as _, bytes.as_mut_ptr()) };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error().and_then(Errno::from_raw) {
            Some(Errno::EINTR) => {}
            Some(errno) => return Err(errno),
            // The device reports no other errors; one that does is of another kind.
            None => return Err(Errno::ENOTTY),
        }
    }
}

/// What the address inside an operation's struct leads to.
pub(crate) enum Pointed<'a> {
    /// There is none.
    Nothing,
    /// Bytes that the device reads: structs of `size` bytes each, `count` of them as a word of the struct says.
    Read {
        /// They.
        bytes: &'a [u8],
        /// Bytes of one.
        size: usize,
        /// Where in the struct the address goes.
        address: usize,
        /// Where in the struct the number is; it is brought down to what `bytes` holds.
        count: usize,
    },
    /// Room that the device writes.
    Write {
        /// It.
        bytes: &'a mut [u8],
        /// Where in the struct the address goes.
        address: usize,
        /// Where in the struct the length in bytes goes.
        len: usize,
    },
}

impl Pointed<'_> {
    fn enter(&mut self, into: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = into.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        match self {
            Self::Nothing => {}
            Self::Read { bytes, size, address, count } => {
                let number = u32::try_from(bytes.len() / *size).unwrap_or(0);
                put(*count, &number.to_ne_bytes());
                put(*address, &(bytes.as_ptr() as u64).to_ne_bytes());
            }
            Self::Write { bytes, address, len } => {
                put(*len, &u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_ne_bytes());
                put(*address, &(bytes.as_mut_ptr() as u64).to_ne_bytes());
            }
        }
    }
}

/// The descriptor that BUF_MAP has installed in this process, whose number its answer holds.
pub(crate) fn installed(number: i32) -> Option<OwnedFd> {
    // SAFETY: the device installs a new descriptor for each BUF_MAP that succeeds and tells its number to the caller
    // alone, which is the only one to call this, once for each answer.
    (number >= 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}
