//! Page-locking of memory that somebody else allocated, so that a device copies to it without a stop in the driver's own buffers.
//!
//! Such pages cannot be swapped out or moved, so that there is a limit for all of them together. Where it is reached, what was not
//! used for longest gives way. A lock belongs to a mapping and not to its address: it goes before the mapping does, and whatever
//! is mapped there next is other memory.

use super::{Device, DeviceError, error::check_raw, stream::CAPTURES};
use cudarc::driver::sys::{self, CUresult};
use std::{
    ptr::NonNull,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Bytes that are locked at most, in all of a process.
pub const MOST_LOCKED: usize = 1 << 30;

/// What is locked gives way to others when it was not used for so many uses of others. To lock pages takes longer than a few copies
/// through the driver's buffers, so that memory which is used in turn, and more of it than the limit, must not push each other
/// out. A guess to be measured.
pub const IDLE_USES: u64 = 256;

static LOCKS: Mutex<Locks> = Mutex::new(Locks { held: Vec::new(), bytes: 0, uses: 0 });

/// All locks of the process.
#[derive(Debug)]
struct Locks {
    held: Vec<Held>,
    /// Of all of them.
    bytes: usize,
    /// How often locks were used.
    uses: u64,
}

/// The lock of some memory.
#[derive(Debug)]
struct Held {
    /// Of the memory.
    number: u64,
    pages: PageLock,
    /// When it was last used, counted in uses.
    last: u64,
    /// Those who copy now.
    users: usize,
}

impl Locks {
    fn all() -> MutexGuard<'static, Self> {
        LOCKS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&mut self, number: u64) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.number == number)
    }

    /// Adds a user to a lock; false if there is none.
    fn use_again(&mut self, number: u64) -> bool {
        let now = self.uses + 1;
        let Some(held) = self.of(number) else { return false };
        (held.last, held.users) = (now, held.users + 1);
        self.uses = now;
        true
    }

    fn remove(&mut self, number: u64) {
        if let Some(at) = self.held.iter().position(|held| held.number == number) {
            self.bytes -= self.held.swap_remove(at).pages.bytes;
        }
    }

    /// Makes room for so many bytes, if others can give way; otherwise all stay.
    fn make_room(&mut self, bytes: usize) -> bool {
        let Some(most) = MOST_LOCKED.checked_sub(bytes) else { return false };
        let mut left = self.bytes;
        let mut idle: Vec<_> =
            self.held.iter().filter(|held| held.users == 0 && self.uses - held.last >= IDLE_USES).collect();
        idle.sort_unstable_by_key(|held| held.last);
        let mut gone = Vec::new();
        for held in idle {
            if left > most {
                left -= held.pages.bytes;
                gone.push(held.number);
            }
        }
        if left <= most {
            gone.into_iter().for_each(|number| self.remove(number));
        }
        left <= most
    }
}

/// Memory whose pages may be locked while it is mapped.
#[derive(Debug)]
pub struct Lockable {
    /// No other memory ever has it.
    number: u64,
    start: NonNull<u8>,
    bytes: usize,
    /// The driver locks no such memory.
    refused: AtomicBool,
}

// SAFETY: the driver may be given the address from any thread, and the value gives out no access to the memory.
unsafe impl Send for Lockable {}
// SAFETY: as above.
unsafe impl Sync for Lockable {}

impl Lockable {
    /// The memory of `bytes` from `start` on; nothing is locked yet.
    ///
    /// # Safety
    /// It stays mapped until the value is dropped or [released](Self::release). A device copies from or to it only while there is a
    /// [`Locked`] of it, or none was ever asked for.
    pub unsafe fn new(start: NonNull<u8>, bytes: usize) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Self { number, start, bytes, refused: AtomicBool::new(false) }
    }

    /// Has the pages locked while the result lives, and afterwards as long as nobody else needs the room.
    ///
    /// # Errors
    /// [`DeviceError::OutOfHostMemory`] if more than [`MOST_LOCKED`] would be locked and nothing gives way, or the system does not
    /// lock so much; [`DeviceError::Driver`] where the driver locks no such memory. After what the system or the driver says, it is
    /// not asked again. The memory is as it was, and copies work all the same.
    pub fn lock(&self, device: &Device) -> Result<Locked<'_>, DeviceError> {
        let full = || DeviceError::OutOfHostMemory { what: "a caller's buffer", bytes: self.bytes as u64 };
        let mut locks = Locks::all();
        if locks.use_again(self.number) {
            return Ok(Locked { of: self });
        }
        if self.refused.load(Ordering::Relaxed) {
            return Err(full());
        }
        // Also one that finds no room: for the others it is one more use that was not theirs.
        locks.uses += 1;
        if !locks.make_room(self.bytes) {
            return Err(full());
        }
        // SAFETY: the memory is mapped until `release` takes the lock away, and users keep it while they copy.
        let pages = unsafe { PageLock::new(device, self.start, self.bytes) };
        let pages =
            pages.inspect_err(|_| self.refused.store(true, Ordering::Relaxed)).map_err(|error| match error {
                DeviceError::Driver { code, .. } if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32 => full(),
                error => error,
            })?;
        locks.bytes += self.bytes;
        let last = locks.uses;
        locks.held.push(Held { number: self.number, pages, last, users: 1 });
        Ok(Locked { of: self })
    }

    /// Keeps the pages locked, if they are, while the result lives.
    pub fn keep(&self) -> Option<Locked<'_>> {
        // Not made before it is known: it would be dropped, and count.
        Locks::all().use_again(self.number).then(|| Locked { of: self })
    }

    /// Gives the lock up for good, if there is one, so that the memory can be unmapped.
    pub fn release(&mut self) {
        Locks::all().remove(self.number);
    }
}

impl Drop for Lockable {
    fn drop(&mut self) {
        self.release();
    }
}

/// Somebody for whom pages stay locked, as a device copies from or to them.
#[derive(Debug)]
pub struct Locked<'a> {
    of: &'a Lockable,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(held) = Locks::all().of(self.of.number) {
            held.users -= 1;
        }
    }
}

/// Pages that are locked for every device while this value lives.
#[derive(Debug)]
struct PageLock {
    device: Device,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the driver may be given the address from any thread, and the value gives out no access to the memory.
unsafe impl Send for PageLock {}

impl PageLock {
    /// Locks the pages of `bytes` from `start` on.
    ///
    /// # Safety
    /// The memory stays mapped while the value lives, and no device copies from or to it when it goes.
    unsafe fn new(device: &Device, start: NonNull<u8>, bytes: usize) -> Result<Self, DeviceError> {
        device.bind()?;
        let _no_capture = CAPTURES.read().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the context is bound, and the caller promises that the memory is mapped.
        let locked =
            unsafe { sys::cuMemHostRegister_v2(start.as_ptr().cast(), bytes, sys::CU_MEMHOSTREGISTER_PORTABLE) };
        check_raw("cuMemHostRegister", locked)?;
        Ok(Self { device: device.clone(), start, bytes })
    }
}

impl Drop for PageLock {
    fn drop(&mut self) {
        // The call may wait for the device. Errors have no one to go to.
        let _no_capture = CAPTURES.read().unwrap_or_else(PoisonError::into_inner);
        let _ = self.device.bind();
        // SAFETY: the memory was registered and is still mapped, and no copy runs, as the maker of the value promised.
        let _ = unsafe { sys::cuMemHostUnregister(self.start.as_ptr().cast()) };
    }
}
