//! Values outside the arena that a run reads or writes in place.
//!
//! They may lie in memory that another process writes at any time. Kernels therefore never take an index or a length from
//! them and never hold a reference to them: values are loaded and stored through pointers, or copied to memory of the
//! executor's own, and whoever changes a value during a run gets an arbitrary result, nothing worse.

use std::{any::Any, fmt, ptr::NonNull, sync::Arc};

/// Floats in place, or bytes, with what keeps their memory mapped. Cloning copies no value.
#[derive(Clone)]
pub struct External<T: Plain = f32> {
    start: NonNull<T>,
    len: usize,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory stays mapped while the owner lives, has no thread affinity, and is accessed through raw pointers only.
unsafe impl<T: Plain> Send for External<T> {}
// SAFETY: as above; `&External` gives out no reference to it.
unsafe impl<T: Plain> Sync for External<T> {}

/// A type that any bits are a value of.
pub trait Plain: Copy + sealed::Sealed {}

impl Plain for f32 {}
impl Plain for u8 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for u8 {}
}

impl<T: Plain> External<T> {
    /// The `len` values at `start`.
    ///
    /// # Safety
    /// While `owner` lives, the memory is mapped, readable and, if a run writes there, writable; nobody holds a Rust
    /// reference into it during a run. Others may read and write it.
    ///
    /// # Panics
    /// If `start` is not aligned for the values.
    pub unsafe fn new(start: NonNull<T>, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        assert!(start.is_aligned(), "values lie at multiples of {} bytes", align_of::<T>());
        Self { start, len, owner }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` values from `first` on; `None` if they are not all there.
    pub fn part(&self, first: usize, len: usize) -> Option<Self> {
        let end = first.checked_add(len)?;
        // SAFETY: the first value of the part lies in the memory, or one past its end for an empty part.
        (end <= self.len).then(|| Self { start: unsafe { self.start.add(first) }, len, owner: self.owner.clone() })
    }

    /// What keeps the memory mapped.
    pub fn owner(&self) -> &(dyn Any + Send + Sync) {
        &*self.owner
    }

    /// A copy of the values.
    pub fn to_vec(&self) -> Vec<T> {
        // SAFETY: the memory is mapped and aligned, and any bits are a value.
        (0..self.len).map(|i| unsafe { self.start.add(i).read_volatile() }).collect()
    }

    /// Copies values into the memory, as many as both have.
    pub fn copy_from(&self, values: &[T]) {
        // SAFETY: at most `len` values are written to mapped memory; a caller of `new` made it writable if it is written.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.as_ptr(), values.len().min(self.len)) };
    }

    /// The first of the values, for those who write there by other means than this crate.
    pub fn as_ptr(&self) -> *mut T {
        self.start.as_ptr()
    }
}

impl External {
    /// Memory of its own, zeroed.
    pub fn zeroed(len: usize) -> Self {
        let values: Box<[Cell]> = (0..len).map(|_| Cell(std::cell::UnsafeCell::new(0.0))).collect();
        let owner = Arc::new(values);
        let start = NonNull::from(&owner[..]).cast();
        Self { start, len, owner }
    }
}

impl<T: Plain> fmt::Debug for External<T> {
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
    /// Input `i` of the program, all rows of the batch. Only calls that read it and write elsewhere may use it: products,
    /// normalizations, and other calls on single rows.
    pub inputs: &'a [Option<External>],
    /// Row `i` of the output. Written by the program's last call, which must be a product.
    pub output: &'a [Option<External>],
    /// Row `i` of what the last product multiplies, normalized, in `f32`: a model's embedding. Written by the call before
    /// the last, which must be a normalization.
    pub normalized: &'a [Option<External>],
}
