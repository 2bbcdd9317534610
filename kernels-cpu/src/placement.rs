//! Where the system puts memory: huge pages, and the nodes of a machine with several memory controllers (NUMA).
//!
//! Tasks are handed to whichever thread is free, so no thread owns a part of the weights or of the cache, and placing them near
//! the thread that touches them first would put all of them on one node. With more than one node, their pages are dealt out to
//! the nodes in turn (`mbind(2)`, `MPOL_INTERLEAVE`), which gives every thread the bandwidth of all. A memory policy that the
//! process was started with (`numactl`) is kept instead. On one node nothing is done.

use crate::memory::Region;
use std::{fs, sync::OnceLock};

/// When the kernel gives huge pages to anonymous memory (Linux, `admin-guide/mm/transhuge`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// To all memory.
    Always,
    /// To memory that asks for them, as large regions do here.
    Madvise,
    /// To none.
    Never,
}

impl HugePages {
    /// The kernel's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Madvise => "madvise",
            Self::Never => "never",
        }
    }

    /// The mode in brackets, such as `always [madvise] never`.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once('[')?;
        let (word, _) = rest.split_once(']')?;
        [Self::Always, Self::Madvise, Self::Never].into_iter().find(|mode| mode.name() == word)
    }
}

/// What is done about memory nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePolicy {
    /// Nothing: there is one node, or the system does not tell.
    OneNode,
    /// Weights, cache and activations are dealt out to the nodes page by page.
    Interleave,
    /// The policy that the process was started with holds.
    Inherited,
    /// Nothing, because the system refuses `mbind`: pages lie on the node of the thread that touches them first.
    Refused,
}

/// What this system does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The mode of huge pages; `None` if the kernel has none.
    pub huge_pages: Option<HugePages>,
    /// Whether huge pages are switched off for this process (`prctl(2)`, `PR_SET_THP_DISABLE`).
    pub huge_pages_disabled: bool,
    /// Numbers of the nodes that have memory; empty if the system does not tell.
    pub nodes: Vec<usize>,
    /// What is done about them.
    pub policy: NodePolicy,
}

impl Placement {
    /// What this system does; found out once.
    pub fn of_this_system() -> &'static Self {
        static PLACEMENT: OnceLock<Placement> = OnceLock::new();
        PLACEMENT.get_or_init(|| {
            let read = |path: &str| fs::read_to_string(path).ok();
            let nodes = read("/sys/devices/system/node/has_memory")
                .or_else(|| read("/sys/devices/system/node/online"))
                .and_then(|text| parse_list(&text))
                .unwrap_or_default();
            let policy = match nodes.len() {
                0 | 1 => NodePolicy::OneNode,
                _ if has_policy() => NodePolicy::Inherited,
                _ if probe(&nodes) => NodePolicy::Interleave,
                _ => NodePolicy::Refused,
            };
            Self {
                huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled")
                    .and_then(|text| HugePages::parse(&text)),
                // SAFETY: this option of `prctl` reads a flag and takes no pointers.
                huge_pages_disabled: unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) } > 0,
                nodes,
                policy,
            }
        })
    }

    /// Whether large regions can get huge pages.
    pub fn gives_huge_pages(&self) -> bool {
        matches!(self.huge_pages, Some(HugePages::Always | HugePages::Madvise)) && !self.huge_pages_disabled
    }
}

/// Numbers in the kernel's form of lists, such as `0-1,4`.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last < first || last - first >= MOST_NODES {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// More nodes than Linux can be built for (`MAX_NUMNODES`).
const MOST_NODES: usize = 1024;

/// Whether the process has a memory policy other than the default.
fn has_policy() -> bool {
    let mut mode: libc::c_int = 0;
    // SAFETY: `get_mempolicy(2)` without flags and with an empty mask writes the mode only.
    let result = unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, std::ptr::null_mut::<u64>(), 0, 0, 0) };
    result == 0 && mode != libc::MPOL_DEFAULT
}

/// Whether the system lets memory be dealt out.
fn probe(nodes: &[usize]) -> bool {
    Region::new("a probe", 4096).is_ok_and(|region| interleave(region.as_ptr(), 4096, nodes).is_ok())
}

/// Deals out the pages of a mapping that has not been touched yet, if there is more than one node.
pub(crate) fn deal_out(start: *mut u8, len: usize) {
    let placement = Placement::of_this_system();
    if placement.policy == NodePolicy::Interleave {
        // It worked for the probe; where it does not, pages lie where they are touched first.
        let _ = interleave(start, len, &placement.nodes);
    }
}

fn interleave(start: *mut u8, len: usize, nodes: &[usize]) -> std::io::Result<()> {
    let mut mask = [0u64; MOST_NODES / 64];
    for node in nodes.iter().filter(|node| **node < MOST_NODES) {
        mask[node / 64] |= 1 << (node % 64);
    }
    // The kernel takes one bit less than it is told of.
    let bits = MOST_NODES + 1;
    // SAFETY: `mbind(2)` decides where pages of the range will lie and changes no contents; the mask has as many bits.
    let result = unsafe { libc::syscall(libc::SYS_mbind, start, len, libc::MPOL_INTERLEAVE, mask.as_ptr(), bits, 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(HugePages::parse("always [madvise] never\n"), Some(HugePages::Madvise));
        assert_eq!(HugePages::parse("[always] madvise never"), Some(HugePages::Always));
        assert_eq!(HugePages::parse("always madvise [never]"), Some(HugePages::Never));
        assert_eq!(HugePages::parse("always"), None);
        assert_eq!(parse_list("0\n"), Some(vec![0]));
        assert_eq!(parse_list("0-2,5,7-7\n"), Some(vec![0, 1, 2, 5, 7]));
        assert_eq!(parse_list("\n"), Some(vec![]));
        assert_eq!(parse_list("3-1"), None);
        assert_eq!(parse_list("0-99999999"), None);
        assert_eq!(parse_list("a"), None);
    }

    #[test]
    fn this_system_is_consistent() {
        let placement = Placement::of_this_system();
        assert_eq!(placement.policy == NodePolicy::OneNode, placement.nodes.len() <= 1);
        assert!(!placement.gives_huge_pages() || placement.huge_pages.is_some());
    }

    #[test]
    fn dealt_out_memory_is_memory() {
        let mut region = Region::new("test", 4 << 20).unwrap();
        let nodes = &Placement::of_this_system().nodes;
        // A sandbox may forbid the call; one that is allowed must be well-formed.
        if let Err(error) = interleave(region.as_ptr(), 4 << 20, nodes) {
            let allowed = [libc::EPERM, libc::ENOSYS].contains(&error.raw_os_error().unwrap());
            assert!(allowed || nodes.is_empty(), "{error}");
        }
        region.as_mut_slice().fill(1);
        assert!(region.as_mut_slice().iter().all(|byte| *byte == 1));
        // Nodes that no machine has are refused.
        assert!(interleave(region.as_ptr(), 4096, &[MOST_NODES - 1]).is_err());
    }
}
