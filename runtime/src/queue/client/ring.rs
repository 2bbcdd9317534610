//! The completion ring as its reader sees it.

use crate::queue::{QueueError, transport::RingMap};
use rustai_abi::queue::{Completion, RingHeader, ring_bytes};
use std::mem::offset_of;

/// A mapped ring.
pub(super) struct RingView {
    map: RingMap,
    entries: u32,
}

/// A progress entry that was read.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) index: u32,
    pub(super) seq: u64,
}

impl RingView {
    pub(super) fn new(map: RingMap, entries: u32) -> Result<Self, QueueError> {
        if (map.0.len() as u64) < ring_bytes(entries) || map.0.load(offset_of!(RingHeader, entries)) != entries {
            return Err(QueueError::Protocol("a ring of another size"));
        }
        Ok(Self { map, entries })
    }

    /// Index of the next entry that will be written.
    pub(super) fn tail(&self) -> u32 {
        self.map.tail()
    }

    /// The entry of an index in front of the tail.
    pub(super) fn entry(&self, index: u32) -> Completion {
        self.map.entry(index, self.entries)
    }
}
