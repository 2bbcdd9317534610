//! Memory that a client shares with the server, and tensors in it.

use super::{Client, Extra, Inner};
use crate::{
    DType,
    queue::QueueError,
    sys::memfd::{self, Shared},
};
use half::{bf16, f16};
use rustai_abi::queue::{BUFFER_ALIGN, BufRegister, BufRelease, MAX_DIMS, Tensor, op, op_flag};
use std::{
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

/// Registered memory: a sealed memfd, mapped here and by the server. When the last clone, tensor and [`Job`](super::Job) of it is
/// dropped it is given up; jobs that were handed over go on.
///
/// The server writes outputs at any time while a job runs, so values are read and written one by one or copied, and never
/// borrowed.
#[derive(Clone)]
pub struct Buffer {
    shared: Arc<Registered>,
}

struct Registered {
    client: Arc<Inner>,
    map: Arc<Shared>,
    fd: OwnedFd,
    buffer: u32,
    generation: u32,
}

/// A type that tensors are made of in Rust.
pub trait Element: bytemuck::Pod {
    /// Its name in the queue.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($ty:ty => $dtype:ident),*) => { $(impl Element for $ty { const DTYPE: DType = DType::$dtype; })* };
}
elements!(f32 => F32, f64 => F64, i8 => I8, u8 => I8, i16 => I16, i32 => I32, u32 => I32, i64 => I64, f16 => F16, bf16 => BF16);

impl Buffer {
    pub(super) fn new(client: &Client, bytes: usize) -> Result<Self, QueueError> {
        let len = (bytes.max(1) as u64).checked_next_multiple_of(BUFFER_ALIGN);
        let len = len.ok_or_else(|| QueueError::Job(format!("a buffer of {bytes} bytes is too large")))?;
        let make = || {
            let fd = memfd::memfd("rustai-buffer", len)?;
            memfd::seal_size(&fd)?;
            let map = Shared::new(&fd, 0, len as usize, true)?;
            std::io::Result::Ok((fd, map))
        };
        let (fd, map) = make().map_err(QueueError::system("memory for a buffer"))?;
        let ask = BufRegister { flags: op_flag::BUF_RW, len, ..BufRegister::default() };
        let extra = Extra { fd: Some(fd.as_fd()), ..Extra::default() };
        let BufRegister { buffer, generation, .. } = client.inner.call(op::BUF_REGISTER, &ask, extra)?;
        let client = client.inner.clone();
        Ok(Self { shared: Arc::new(Registered { client, map: Arc::new(map), fd, buffer, generation }) })
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.shared.map.len()
    }

    /// Whether it has none, which no buffer has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memfd, for another library to map.
    pub fn as_memfd(&self) -> BorrowedFd<'_> {
        self.shared.fd.as_fd()
    }

    /// A tensor of `dims` (the length of a row first) at `offset` bytes.
    ///
    /// # Errors
    /// [`QueueError::Job`] if it does not fit, or the number of dimensions is not 1 to 6.
    pub fn tensor<T: Element>(&self, offset: usize, dims: &[usize]) -> Result<TensorView<T>, QueueError> {
        let tensor = self.raw(T::DTYPE, offset, dims)?;
        Ok(TensorView { buffer: self.clone(), tensor, element: PhantomData })
    }

    /// A tensor of blocks, such as a quantized matrix, as GGUF files hold it. Its elements are the bytes.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor); or if a row is no whole number of blocks.
    pub fn blocks(&self, dtype: DType, offset: usize, dims: &[usize]) -> Result<TensorView<u8>, QueueError> {
        let tensor = self.raw(dtype, offset, dims)?;
        Ok(TensorView { buffer: self.clone(), tensor, element: PhantomData })
    }

    fn raw(&self, dtype: DType, offset: usize, dims: &[usize]) -> Result<Tensor, QueueError> {
        let wrong = |what: String| Err(QueueError::Job(what));
        if dims.is_empty() || dims.len() > MAX_DIMS {
            return wrong(format!("a tensor has 1 to {MAX_DIMS} dimensions, not {}", dims.len()));
        }
        if !dims[0].is_multiple_of(dtype.block_len()) {
            return wrong(format!("a row of {} values is no whole number of blocks of {dtype}", dims[0]));
        }
        let elements = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        let bytes = elements.and_then(|elements| dtype.bytes_for(elements));
        let Some(bytes) = bytes.filter(|&bytes| bytes <= self.len() && offset <= self.len() - bytes) else {
            return wrong(format!("a tensor of {dims:?} at {offset} does not fit into {} bytes", self.len()));
        };
        let mut tensor = Tensor {
            buffer: self.shared.buffer,
            generation: self.shared.generation,
            offset: offset as u64,
            byte_len: bytes as u64,
            dtype: dtype.gguf_id(),
            ndim: dims.len() as u32,
            ..Tensor::default()
        };
        for (place, &dim) in tensor.dims.iter_mut().zip(dims) {
            *place = dim as u64;
        }
        Ok(tensor)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let ask = BufRelease { buffer: self.buffer, generation: self.generation, ..BufRelease::default() };
        // A queue that is gone has given it up, too.
        let _ = self.client.call(op::BUF_RELEASE, &ask, Extra::default());
    }
}

/// A tensor in a [`Buffer`]. Nothing is copied to hand it over.
#[derive(Clone)]
pub struct TensorView<T> {
    buffer: Buffer,
    tensor: Tensor,
    element: PhantomData<T>,
}

impl<T> TensorView<T> {
    /// As the queue describes it.
    pub fn descriptor(&self) -> Tensor {
        self.tensor
    }

    /// The buffer that it lies in.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }
}

impl<T: Element> TensorView<T> {
    fn at(&self, index: usize) -> usize {
        assert!(index < self.len(), "element {index} of {}", self.len());
        self.tensor.offset as usize + index * size_of::<T>()
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.tensor.byte_len as usize / size_of::<T>()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An element.
    ///
    /// # Panics
    /// If there is no such element.
    pub fn get(&self, index: usize) -> T {
        self.buffer.shared.map.get(self.at(index))
    }

    /// Sets an element.
    ///
    /// # Panics
    /// If there is no such element.
    pub fn set(&self, index: usize, value: T) {
        self.buffer.shared.map.set(self.at(index), value);
    }

    /// The elements, read in place one after the other.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Copies values in, from `first` on.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&self, first: usize, values: &[T]) {
        assert!(first <= self.len() && values.len() <= self.len() - first, "{} values at {first}", values.len());
        let at = self.tensor.offset as usize + first * size_of::<T>();
        self.buffer.shared.map.write(at, bytemuck::cast_slice(values));
    }

    /// Copies values out, from `first` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn read(&self, first: usize, out: &mut [T]) {
        assert!(first <= self.len() && out.len() <= self.len() - first, "{} values at {first}", out.len());
        let at = self.tensor.offset as usize + first * size_of::<T>();
        self.buffer.shared.map.read(at, bytemuck::cast_slice_mut(out));
    }

    /// A copy of all values.
    pub fn to_vec(&self) -> Vec<T> {
        self.iter().collect()
    }
}

impl<T> std::fmt::Debug for TensorView<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TensorView({:?})", self.tensor)
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}
