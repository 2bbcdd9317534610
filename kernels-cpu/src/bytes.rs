//! A shared, immutable run of bytes: a piece of a mapped file, or of memory.

use std::{fmt, ops::Range, sync::Arc};

/// Who holds [`SharedBytes`].
pub trait BytesOwner: Send + Sync {
    /// All bytes, always the same.
    fn bytes(&self) -> &[u8];

    /// Copies the bytes from `from` on, of which there are so many. An owner that reads them faster than through
    /// [`bytes`](Self::bytes) does so.
    fn copy(&self, from: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.bytes()[from..from + out.len()]);
    }

    /// Says that a part is not needed for now, so that memory behind it may be dropped if it can be had again.
    fn release(&self, part: Range<usize>) {
        let _ = part;
    }
}

impl BytesOwner for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Bytes with a shared owner. Cloning copies no byte.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn BytesOwner>,
    range: Range<usize>,
}

impl SharedBytes {
    /// The part `range` of `owner`; `None` if the owner is shorter.
    pub fn new(owner: Arc<dyn BytesOwner>, range: Range<usize>) -> Option<Self> {
        owner.bytes().get(range.clone())?;
        Some(Self { owner, range })
    }

    /// Copies the bytes from `from` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn copy(&self, from: usize, out: &mut [u8]) {
        let there = self.range.len().checked_sub(from).is_some_and(|rest| out.len() <= rest);
        assert!(there, "{} bytes from {from} on of {}", out.len(), self.range.len());
        self.owner.copy(self.range.start + from, out);
    }

    /// Says that the bytes are not needed for now: pages of a file may leave memory, and come back when they are read.
    pub fn release(&self) {
        self.owner.release(self.range.clone());
    }
}

impl std::ops::Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({} bytes)", self.range.len())
    }
}
