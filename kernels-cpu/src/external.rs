//! Floats outside the arena that a run reads or writes in place.
//!
//! They may lie in memory that another process writes at any time. Kernels therefore never take an index or a length from
//! them and never hold a reference to them: values are loaded and stored through pointers, and whoever changes a value
//! during a run gets an arbitrary result, nothing worse.

use std::{any::Any, fmt, ptr::NonNull, sync::Arc};

/// Floats in place, with what keeps their memory mapped. Cloning copies no value.
#[derive(Clone)]
pub struct External {
    start: NonNull<f32>,
    len: usize,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory stays mapped while the owner lives, has no thread affinity, and is accessed through raw pointers only.
unsafe impl Send for External {}
// SAFETY: as above; `&External` gives out no reference to it.
unsafe impl Sync for External {}

impl External {
    /// The `len` floats at `start`.
    ///
    /// # Safety
    /// While `owner` lives, the memory is mapped, readable and, if a run writes there, writable; nobody holds a Rust
    /// reference into it during a run. Others may read and write it.
    ///
    /// # Panics
    /// If `start` is not aligned for `f32`.
    pub unsafe fn new(start: NonNull<f32>, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        assert!(start.is_aligned(), "floats lie at multiples of 4 bytes");
        Self { start, len, owner }
    }

    /// Memory of its own, zeroed.
    pub fn zeroed(len: usize) -> Self {
        let values: Box<[Cell]> = (0..len).map(|_| Cell(std::cell::UnsafeCell::new(0.0))).collect();
        let owner = Arc::new(values);
        let start = NonNull::from(&owner[..]).cast();
        Self { start, len, owner }
    }

    /// Number of floats.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` floats from `first` on; `None` if they are not all there.
    pub fn part(&self, first: usize, len: usize) -> Option<Self> {
        let end = first.checked_add(len)?;
        // SAFETY: the first float of the part lies in the memory, or one past its end for an empty part.
        (end <= self.len).then(|| Self { start: unsafe { self.start.add(first) }, len, owner: self.owner.clone() })
    }

    /// What keeps the memory mapped.
    pub fn owner(&self) -> &(dyn Any + Send + Sync) {
        &*self.owner
    }

    /// A copy of the values.
    pub fn to_vec(&self) -> Vec<f32> {
        // SAFETY: the memory is mapped and aligned, and any bits are an `f32`.
        (0..self.len).map(|i| unsafe { self.start.add(i).read_volatile() }).collect()
    }

    /// Copies values into the memory, as many as both have.
    pub fn copy_from(&self, values: &[f32]) {
        // SAFETY: at most `len` values are written to mapped memory; a caller of `new` made it writable if it is written.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.as_ptr(), values.len().min(self.len)) };
    }

    /// The first of the floats, for those who write there by other means than this crate.
    pub fn as_ptr(&self) -> *mut f32 {
        self.start.as_ptr()
    }
}

impl fmt::Debug for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "External({} values)", self.len)
    }
}

/// A float that kernels write through a shared owner.
#[repr(transparent)]
struct Cell(std::cell::UnsafeCell<f32>);

// SAFETY: accessed through the raw pointer of an `External` only; see the head of the file.
unsafe impl Sync for Cell {}

/// What of a run lies outside the arena. Rows that are not given stay in the arena.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outside<'a> {
    /// Input `i` of the program, all rows of the batch.
    pub inputs: &'a [Option<External>],
    /// Row `i` of the output. Written by the program's last call, which must be a product.
    pub output: &'a [Option<External>],
    /// Row `i` of what the last product multiplies, normalized, in `f32`: a model's embedding. Written by the call before
    /// the last, which must be a normalization.
    pub normalized: &'a [Option<External>],
}
