//! Read-only, private mappings of files.

use std::{fs::File, io, ops::Range};

/// A whole file, mapped read-only.
///
/// The file must stay as it is while it is mapped: if another program shortens it, an access behind the new end ends the
/// process with `SIGBUS`. Model files are replaced by renaming, which leaves the mapped file alone.
pub(crate) struct Mapping {
    map: memmap2::Mmap,
}

impl Mapping {
    /// Maps the whole of `file`, which must be a regular, non-empty file.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is private and read-only, so this process cannot change its bytes, and it lives as long as
        // every slice taken from it, because slices borrow `self`. Another process that writes to the file in place
        // could change bytes under a slice; memmap2 leaves that to the caller. All readers here treat the bytes as
        // numbers or copy them before they check them (strings), so no invalid value can arise from such a change.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Self { map })
    }

    /// Drops the physical pages that lie wholly inside `range` (mmap(2) pages, so a few kilobytes at each end stay).
    /// Reading them again brings them back from the file. Failure is harmless, so it is not reported.
    pub(crate) fn release(&self, range: Range<usize>) {
        let Some(pages) = whole_pages(range, self.map.len(), rustix::param::page_size()) else { return };
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

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// The whole pages inside `range`, itself cut to `len`; `None` if there is none.
fn whole_pages(range: Range<usize>, len: usize, page: usize) -> Option<Range<usize>> {
    let start = range.start.checked_next_multiple_of(page)?;
    let end = range.end.min(len) / page * page;
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_pages_inside_the_range_count() {
        assert_eq!(whole_pages(0..8192, 8192, 4096), Some(0..8192));
        assert_eq!(whole_pages(1..8192, 8192, 4096), Some(4096..8192));
        assert_eq!(whole_pages(1..8191, 8192, 4096), None);
        assert_eq!(whole_pages(5000..20000, 12288, 4096), Some(8192..12288));
        assert_eq!(whole_pages(usize::MAX - 1..usize::MAX, 8192, 4096), None);
        assert_eq!(whole_pages(Range { start: 9000, end: 100 }, 8192, 4096), None);
    }

    #[test]
    fn released_pages_read_the_same_again() {
        let page = rustix::param::page_size();
        let bytes: Vec<u8> = (0..4 * page).map(|i| (i / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let mapping = Mapping::new(&file).unwrap();
        assert_eq!(mapping.as_ref(), bytes);
        mapping.release(1..3 * page + 1);
        assert_eq!(mapping.as_ref(), bytes);
    }
}
