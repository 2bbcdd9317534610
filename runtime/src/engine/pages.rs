//! Pages of the key/value cache: who holds which, and how many are promised.
//!
//! A sequence is promised all pages that it may ever need before it starts, and takes them one by one as it grows. A
//! promise costs nothing but the count, so memory that a short answer never touches stays untouched; but because the
//! sum of the promises never exceeds the pages there are, a running sequence never waits for a page.

use rustai_abi::PAGE_TOKENS;

/// The free list and the count of pages that nobody has been promised.
pub(super) struct PagePool {
    /// Pages in nobody's table. Used as a stack: the page that was given back last is the likeliest in a CPU cache.
    free: Vec<u32>,
    /// Pages neither held nor promised.
    unpromised: usize,
}

/// One sequence's pages, in the order of its positions.
pub(super) struct BlockTable {
    pages: Vec<u32>,
    promised: usize,
}

impl BlockTable {
    /// Page `pages()[i]` holds positions `i * PAGE_TOKENS ..`.
    pub(super) fn pages(&self) -> &[u32] {
        &self.pages
    }
}

impl PagePool {
    /// A pool of the pages `0..pages`, all free.
    pub(super) fn new(pages: usize) -> Self {
        let count = u32::try_from(pages).unwrap_or(u32::MAX);
        Self { free: (0..count).rev().collect(), unpromised: count as usize }
    }

    /// Promises pages for `positions` positions; `None` if that is more than is left.
    pub(super) fn promise(&mut self, positions: usize) -> Option<BlockTable> {
        let promised = positions.div_ceil(PAGE_TOKENS);
        self.unpromised = self.unpromised.checked_sub(promised)?;
        // The one allocation of a sequence's cache bookkeeping; growing never moves the table.
        Some(BlockTable { pages: Vec::with_capacity(promised), promised })
    }

    /// Raises the promise of `table` to `positions` positions; false, and nothing is changed, if that is more than is left.
    pub(super) fn extend(&mut self, table: &mut BlockTable, positions: usize) -> bool {
        let more = positions.div_ceil(PAGE_TOKENS).saturating_sub(table.promised);
        let Some(left) = self.unpromised.checked_sub(more) else { return false };
        self.unpromised = left;
        table.promised += more;
        true
    }

    /// Takes pages until `table` covers `positions` positions, which must be within its promise.
    pub(super) fn grow(&mut self, table: &mut BlockTable, positions: usize) {
        let wanted = positions.div_ceil(PAGE_TOKENS);
        assert!(wanted <= table.promised, "a sequence of {positions} positions outgrew its {} pages", table.promised);
        while table.pages.len() < wanted {
            // PANIC: held pages are at most promised pages, and those sum to at most all pages.
            table.pages.push(self.free.pop().expect("a promised page is free"));
        }
    }

    /// Gives back what `table` holds and what it was promised.
    pub(super) fn release(&mut self, table: BlockTable) {
        self.unpromised += table.promised;
        self.free.extend_from_slice(&table.pages);
    }

    /// Pages in nobody's table.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_kept_and_returned() {
        let mut pool = PagePool::new(4);
        let mut long = pool.promise(3 * PAGE_TOKENS).unwrap();
        assert!(pool.promise(PAGE_TOKENS + 1).is_none(), "only one page is unpromised");
        let mut short = pool.promise(1).unwrap();
        assert_eq!(pool.free(), 4, "promises take no page");

        pool.grow(&mut long, 1);
        pool.grow(&mut short, 1);
        pool.grow(&mut long, PAGE_TOKENS);
        assert_eq!((long.pages().len(), pool.free()), (1, 2));
        pool.grow(&mut long, 3 * PAGE_TOKENS);
        let mut all = [long.pages(), short.pages()].concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3], "no page is given twice");

        pool.release(long);
        pool.release(short);
        assert_eq!(pool.free(), 4);
        assert!(pool.promise(4 * PAGE_TOKENS).is_some());
    }

    #[test]
    #[should_panic(expected = "outgrew")]
    fn growing_past_the_promise_is_a_bug() {
        let mut pool = PagePool::new(4);
        let mut table = pool.promise(PAGE_TOKENS).unwrap();
        pool.grow(&mut table, PAGE_TOKENS + 1);
    }
}
