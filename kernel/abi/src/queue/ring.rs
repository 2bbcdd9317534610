//! Index arithmetic and slot accounting of a completion ring.
//!
//! The queue writes entries at the tail; the client tells with each call how far it has read. A job is admitted only when
//! the slots that it may need are reserved, so posting an entry never fails and nothing is ever dropped:
//!
//! - a job reserves one slot for its final entry, and a streaming one a second for progress;
//! - at most one progress entry of a job is unread: while it is, newer progress is written into it.
//!
//! INVARIANT: `unread - progress entries of live jobs + reserved <= entries`. [`Ring::reserve`] checks the stronger
//! `unread + reserved + wanted <= entries`; posting progress adds to both of the first two; a final entry gives back at
//! least as much as it takes. A live job's progress entry is covered by its own second slot, so `unread <= entries`.

use super::errno::Errno;

/// The indices of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    entries: u32,
    head: u32,
    tail: u32,
    reserved: u32,
}

impl Ring {
    /// A ring without places.
    pub const EMPTY: Self = Self { entries: 0, head: 0, tail: 0, reserved: 0 };

    /// A ring of `entries` places.
    ///
    /// # Errors
    /// `EINVAL` if that is zero or not a power of two, `E2BIG` above [`super::MAX_ENTRIES`].
    pub const fn new(entries: u32) -> Result<Self, Errno> {
        if !entries.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        if entries > super::MAX_ENTRIES {
            return Err(Errno::E2BIG);
        }
        Ok(Self { entries, head: 0, tail: 0, reserved: 0 })
    }

    /// A ring whose indices start at `at`, to test what happens when they wrap.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub const fn starting_at(entries: u32, at: u32) -> Result<Self, Errno> {
        match Self::new(entries) {
            Ok(ring) => Ok(Self { head: at, tail: at, ..ring }),
            Err(errno) => Err(errno),
        }
    }

    /// Places.
    pub const fn entries(&self) -> u32 {
        self.entries
    }

    /// Index of the next entry.
    pub const fn tail(&self) -> u32 {
        self.tail
    }

    /// Index of the first entry that the client has not read, as far as it told.
    pub const fn head(&self) -> u32 {
        self.head
    }

    /// Entries that the client has not read, as far as it told.
    pub const fn unread(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    /// Slots reserved for entries to come.
    pub const fn reserved(&self) -> u32 {
        self.reserved
    }

    /// Whether a job that needs `slots` can be admitted.
    pub const fn has_room(&self, slots: u32) -> bool {
        self.unread() as u64 + self.reserved as u64 + slots as u64 <= self.entries as u64
    }

    /// Takes note that the client has read up to `head`.
    ///
    /// # Errors
    /// `EPROTO` if that is ahead of the tail or behind what it told before.
    pub fn advance(&mut self, head: u32) -> Result<(), Errno> {
        if head.wrapping_sub(self.head) > self.unread() {
            return Err(Errno::EPROTO);
        }
        self.head = head;
        Ok(())
    }

    /// Reserves `slots`.
    ///
    /// # Errors
    /// `EAGAIN` if there is no room.
    pub fn reserve(&mut self, slots: u32) -> Result<(), Errno> {
        if !self.has_room(slots) {
            return Err(Errno::EAGAIN);
        }
        self.reserved += slots;
        Ok(())
    }

    /// The index for a job's final entry; the job's `slots` are given back.
    pub fn post_final(&mut self, slots: u32) -> u32 {
        debug_assert!(slots > 0 && slots <= self.reserved);
        self.reserved = self.reserved.saturating_sub(slots);
        self.post()
    }

    /// The index for progress of a job whose last progress entry was `last`: that one if it is unread, else a new one.
    pub fn post_progress(&mut self, last: Option<u32>) -> u32 {
        match last {
            Some(index) if self.is_unread(index) => index,
            _ => self.post(),
        }
    }

    /// The place of an index: the single point where one is masked.
    pub const fn place(&self, index: u32) -> usize {
        (index & self.entries.wrapping_sub(1)) as usize
    }

    fn is_unread(&self, index: u32) -> bool {
        index.wrapping_sub(self.head) < self.unread()
    }

    fn post(&mut self) -> u32 {
        let index = self.tail;
        self.tail = self.tail.wrapping_add(1);
        debug_assert!(self.unread() <= self.entries);
        index
    }
}
