//! Page-locked host memory, which a device copies from and to by itself while the host goes on.
//!
//! Nobody may touch such memory while a copy runs. So copies belong to the buffer: it gives its values out only after it has
//! waited for the last copy.

use super::{Device, DeviceError, Pod, Span, Stream, check};
use cudarc::driver::{
    CudaEvent, result,
    sys::{CUevent_flags, CUresult},
};
use std::{collections::VecDeque, ops::Range, ptr::NonNull, slice};

/// Page-locked memory and the end of the last copy that used it.
#[derive(Debug)]
struct Locked<T> {
    device: Device,
    start: NonNull<T>,
    len: usize,
    /// Marks the end of each copy.
    event: CudaEvent,
    busy: bool,
}

// SAFETY: the memory has no thread affinity, and the driver may be called from any thread.
unsafe impl<T: Pod + Send> Send for Locked<T> {}

impl<T: Pod> Locked<T> {
    fn new(device: &Device, what: &'static str, len: usize) -> Result<Self, DeviceError> {
        device.bind()?;
        let bytes = len.max(1).saturating_mul(size_of::<T>());
        let event = device.context().new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING));
        let event = check("cuEventCreate", event)?;
        // SAFETY: the context is bound, and the size is not zero.
        let start = match unsafe { result::malloc_host(bytes, 0) } {
            Ok(start) => start.cast::<T>(),
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(DeviceError::OutOfHostMemory { what, bytes: bytes as u64 });
            }
            Err(error) => return Err(DeviceError::of("cuMemHostAlloc", error)),
        };
        let start = NonNull::new(start).ok_or(DeviceError::OutOfHostMemory { what, bytes: bytes as u64 })?;
        // SAFETY: as many bytes were allocated, page-aligned.
        unsafe { start.as_ptr().cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { device: device.clone(), start, len, event, busy: false })
    }

    /// Waits for the last copy. The calling thread may use the device afterwards.
    fn wait(&mut self) -> Result<(), DeviceError> {
        self.device.bind()?;
        if self.busy {
            check("cuEventSynchronize", self.event.synchronize())?;
            self.busy = false;
        }
        Ok(())
    }

    /// Notes that the stream's last copy uses the memory.
    fn used_by(&mut self, stream: &Stream) -> Result<(), DeviceError> {
        self.busy = true;
        if let Err(error) = check("cuEventRecord", stream.record(&self.event)) {
            // Nothing marks the copy's end, so it is waited for now.
            stream.synchronize()?;
            return Err(error);
        }
        Ok(())
    }

    fn values(&mut self) -> Result<&mut [T], DeviceError> {
        self.wait()?;
        // SAFETY: as many values were allocated, all bits are values, and no copy runs.
        Ok(unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) })
    }

    fn check(&self, span: &Span, range: &Range<usize>) -> Result<(), DeviceError> {
        if range.end > self.len || range.len().saturating_mul(size_of::<T>()) > span.bytes() {
            return Err(DeviceError::Invalid(format!(
                "a copy of values {range:?} between {} values of host memory and {} bytes of device memory",
                self.len,
                span.bytes()
            )));
        }
        Ok(())
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // The copy must be over; errors have no one to go to.
        if self.busy && self.device.bind().is_ok() {
            let _ = self.event.synchronize();
        }
        // SAFETY: the memory came from `cuMemHostAlloc`, and nothing uses it anymore.
        let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
    }
}

/// Host memory on its way to a device.
#[derive(Debug)]
pub struct UploadBuffer<T: Pod>(Locked<T>);

impl<T: Pod> UploadBuffer<T> {
    /// Takes memory for `len` values, zeroed; `what` names it in errors.
    ///
    /// # Errors
    /// [`DeviceError::OutOfHostMemory`] or [`DeviceError::Driver`].
    pub fn new(device: &Device, what: &'static str, len: usize) -> Result<Self, DeviceError> {
        Ok(Self(Locked::new(device, what, len)?))
    }

    /// The values, after the last copy has read them.
    ///
    /// # Errors
    /// [`DeviceError::Driver`], also of work that was begun earlier.
    pub fn values(&mut self) -> Result<&mut [T], DeviceError> {
        self.0.values()
    }

    /// Puts a copy of the first `count` values to the start of `to` behind the stream's work.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if they do not fit; [`DeviceError::Driver`].
    pub fn send(&mut self, stream: &Stream, to: &Span, count: usize) -> Result<(), DeviceError> {
        self.send_parts(stream, &[(to, 0..count)])
    }

    /// Puts copies of ranges of the values, each to the start of its span, behind the stream's work.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if one does not fit, and nothing is copied; [`DeviceError::Driver`].
    pub fn send_parts(&mut self, stream: &Stream, parts: &[(&Span, Range<usize>)]) -> Result<(), DeviceError> {
        for (to, from) in parts {
            self.0.check(to, from)?;
        }
        let values = &*self.0.values()?;
        let mut sent = false;
        for (to, from) in parts.iter().filter(|(_, from)| !from.is_empty()) {
            // SAFETY: the span has room for the values, and they stay as they are until `wait`.
            let copy = unsafe { result::memcpy_htod_async(to.address(), &values[from.clone()], stream.raw()) };
            if let Err(error) = check("cuMemcpyHtoDAsync", copy) {
                // Copies before this one still read the memory.
                stream.synchronize()?;
                return Err(error);
            }
            stream.keep(&[*to], None);
            sent = true;
        }
        if sent { self.0.used_by(stream) } else { Ok(()) }
    }
}

/// Host memory that a device's results come to.
#[derive(Debug)]
pub struct ReadbackBuffer<T: Pod>(Locked<T>);

impl<T: Pod> ReadbackBuffer<T> {
    /// As [`UploadBuffer::new`].
    ///
    /// # Errors
    /// [`DeviceError::OutOfHostMemory`] or [`DeviceError::Driver`].
    pub fn new(device: &Device, what: &'static str, len: usize) -> Result<Self, DeviceError> {
        Ok(Self(Locked::new(device, what, len)?))
    }

    /// Puts a copy of the first `count` values of `from` behind the stream's work.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if they do not fit; [`DeviceError::Driver`].
    pub fn fetch(&mut self, stream: &Stream, from: &Span, count: usize) -> Result<(), DeviceError> {
        self.0.check(from, &(0..count))?;
        if count == 0 {
            return Ok(());
        }
        let values = &mut self.0.values()?[..count];
        // SAFETY: the span has as many values, and nobody looks at them before `wait`.
        let copy = unsafe { result::memcpy_dtoh_async(values, from.address(), stream.raw()) };
        check("cuMemcpyDtoHAsync", copy)?;
        stream.keep(&[from], None);
        self.0.used_by(stream)
    }

    /// The values, after the last copy has written them.
    ///
    /// # Errors
    /// [`DeviceError::Driver`], also of work that was begun earlier.
    pub fn values(&mut self) -> Result<&[T], DeviceError> {
        Ok(self.0.values()?)
    }
}

/// Copies of any size to a device through a few buffers: while some are on their way, others are filled.
#[derive(Debug)]
pub struct Uploader<'a> {
    stream: &'a Stream,
    /// Those that were sent earliest come first.
    buffers: VecDeque<UploadBuffer<u8>>,
}

impl<'a> Uploader<'a> {
    /// Bytes of each buffer: 20 µs of copying over PCIe 5, which hides what a copy costs to begin.
    pub const BYTES: usize = 1 << 20;

    /// Buffers: half of them can be filled by others, such as reads of a file, while half are on their way.
    pub const BUFFERS: usize = 16;

    /// Bytes of page-locked memory that the buffers take.
    pub const ROOM: usize = Self::BUFFERS * Self::BYTES;

    /// Takes the buffers; copies go by `stream`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfHostMemory`] or [`DeviceError::Driver`].
    pub fn new(stream: &'a Stream) -> Result<Self, DeviceError> {
        let buffer = |_| UploadBuffer::new(stream.device(), "the staging of weights", Self::BYTES);
        Ok(Self { stream, buffers: (0..Self::BUFFERS).map(buffer).collect::<Result<_, _>>()? })
    }

    /// Takes a buffer of [`BYTES`](Self::BYTES) to fill, after its last copy.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if all were taken; [`DeviceError::Driver`].
    pub fn take(&mut self) -> Result<UploadBuffer<u8>, DeviceError> {
        let none = || DeviceError::Invalid("all buffers for weights are taken".into());
        let mut buffer = self.buffers.pop_front().ok_or_else(none)?;
        buffer.0.wait()?;
        Ok(buffer)
    }

    /// Puts copies of ranges of a buffer's bytes, each to the start of its span, behind the stream's work, and takes the buffer
    /// back.
    ///
    /// # Errors
    /// As [`UploadBuffer::send_parts`].
    pub fn send(&mut self, mut buffer: UploadBuffer<u8>, parts: &[(&Span, Range<usize>)]) -> Result<(), DeviceError> {
        let sent = buffer.send_parts(self.stream, parts);
        self.buffers.push_back(buffer);
        sent
    }

    /// Copies `bytes` to the start of a span. They are there after the stream's work; `bytes` may go at once.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if they do not fit; [`DeviceError::Driver`].
    pub fn put(&mut self, to: &Span, bytes: &[u8]) -> Result<(), DeviceError> {
        for (index, chunk) in bytes.chunks(Self::BYTES).enumerate() {
            let to = to.part(index * Self::BYTES, chunk.len())?;
            let mut buffer = self.take()?;
            buffer.values()?[..chunk.len()].copy_from_slice(chunk);
            self.send(buffer, &[(&to, 0..chunk.len())])?;
        }
        Ok(())
    }
}
