//! A shared, immutable run of bytes: a piece of a mapped file, or of memory.

use std::{fmt, ops::Range, sync::Arc};

/// Who holds [`SharedBytes`].
pub trait BytesOwner: Send + Sync {
    /// All bytes, always the same.
    fn bytes(&self) -> &[u8];

    /// Says that a part is about to be read, so that it may be brought to where reading it is cheap.
    fn ready(&self, part: Range<usize>) {
        let _ = part;
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

    /// Says that a part is about to be read; what lies past the end does not count.
    pub fn ready(&self, part: Range<usize>) {
        let Range { start, end } = self.range;
        let place = |at: usize| start.saturating_add(at).min(end);
        self.owner.ready(place(part.start)..place(part.end));
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
