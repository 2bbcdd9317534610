//! Read-only, private mappings of files.

use rustai_kernels_cpu::BytesOwner;
use std::{
    fs::File,
    io,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// A whole file, mapped read-only.
///
/// The file must stay as it is while it is mapped: if another program shortens it, an access behind the new end ends the
/// process with `SIGBUS`. Model files are replaced by renaming, which leaves the mapped file alone.
pub(crate) struct Mapping {
    map: memmap2::Mmap,
    /// Whether the system refused to map pages at once.
    refused: AtomicBool,
}

impl Mapping {
    /// Maps the whole of `file`, which must be a regular, non-empty file.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is private and read-only, so this process cannot change its bytes, and it lives as long as
        // every slice taken from it, because slices borrow `self`. Another process that writes to the file in place
        // could change bytes under a slice; memmap2 leaves that to the caller. All readers here treat the bytes as
        // numbers or copy them before they check them (strings), so no invalid value can arise from such a change.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Self { map, refused: AtomicBool::new(false) })
    }
}

impl BytesOwner for Mapping {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Maps the pages at once: each access to one that is not mapped would cost more, and what a program fetches ahead is
    /// fetched from mapped pages only. Failure (before Linux 5.14, for one) is harmless, so it is not reported.
    fn ready(&self, range: Range<usize>) {
        let Some(pages) = pages_of(range, self.map.len(), rustix::param::page_size()) else { return };
        if self.refused.load(Relaxed) {
            return;
        }
        if let Err(error) = self.map.advise_range(memmap2::Advice::PopulateRead, pages.start, pages.len()) {
            self.refused.store(true, Relaxed);
            tracing::debug!(%error, "madvise(MADV_POPULATE_READ) failed; pages are mapped when they are read");
        }
    }

    /// Drops the physical pages that `range` touches, and all within [`MOST_AROUND`], whoever reads them. Reading them again
    /// brings them back from the file. Failure is harmless, so it is not reported.
    fn release(&self, range: Range<usize>) {
        let Some(pages) = pages_of(range, self.map.len(), MOST_AROUND) else { return };
        // SAFETY: MADV_DONTNEED discards pages, which loses data in anonymous or writable private mappings. This one is
        // a read-only mapping of a file: by madvise(2) the next access repopulates the pages "from the up-to-date
        // contents of the underlying mapped file", the same bytes, so slices that point here stay valid and unchanged.
        // `pages` lies inside the mapping.
        let result =
            unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, pages.start, pages.len()) };
        if let Err(error) = result {
            tracing::debug!(%error, "madvise(MADV_DONTNEED) failed; the pages stay in memory");
        }
    }
}

/// Accessing a page also maps what lies around it in the page cache's folio, which may be as large as this where pages have four
/// kilobytes; a multiple of every page size.
const MOST_AROUND: usize = 2 << 20;

/// The pages, or other units, that `range` touches, cut to `len`; `None` if there is none.
fn pages_of(range: Range<usize>, len: usize, page: usize) -> Option<Range<usize>> {
    let (start, end) = (range.start / page * page, range.end.min(len));
    (range.start < end).then_some(start..end.next_multiple_of(page).min(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn every_page_that_the_range_touches_counts() {
        assert_eq!(pages_of(0..8192, 8192, 4096), Some(0..8192));
        assert_eq!(pages_of(1..8190, 8192, 4096), Some(0..8192));
        assert_eq!(pages_of(5000..5001, 8192, 4096), Some(4096..8192));
        assert_eq!(pages_of(5000..8195, 8200, 4096), Some(4096..8200));
        assert_eq!(pages_of(5000..20000, 12288, 4096), Some(4096..12288));
        assert_eq!(pages_of(100..100, 8192, 4096), None);
        assert_eq!(pages_of(usize::MAX - 1..usize::MAX, 8192, 4096), None);
        assert_eq!(pages_of(Range { start: 9000, end: 100 }, 8192, 4096), None);
    }

    #[test]
    fn released_pages_read_the_same_again() {
        let page = rustix::param::page_size();
        let bytes: Vec<u8> = (0..4 * page).map(|i| (i / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let mapping = Mapping::new(&file).unwrap();
        assert_eq!(mapping.bytes(), bytes);
        mapping.release(1..3 * page + 1);
        mapping.ready(page - 1..3 * page);
        assert_eq!(mapping.bytes(), bytes);
    }
}
