//! One fetched job, and its tensors in the server's memory.

use super::Shared;
use crate::sys::memfd;
use rustai_abi::{
    DType,
    queue::{BufferName, ContextId, Errno, Job, Record, Tensor, Ticket, tensor_flag},
};
use rustai_kernels_cpu::External;
use std::{ops::Range, sync::Arc};

/// A job as it was fetched. The queue has validated it: types are known, shapes fit, ranges lie in their buffers.
pub(super) struct Work<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) head: &'a Record,
    pub(super) ticket: Ticket,
    pub(super) job: &'a Job,
    pub(super) tensors: &'a [Tensor],
}

/// Bytes of a tensor that are copied to private memory at most. A client's tensor may be larger than all memory, since a
/// memfd costs nothing until it is touched.
pub(super) const LARGEST_COPY: usize = 64 << 20;

/// A tensor that is mapped.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) map: Arc<memfd::Shared>,
    pub(super) bytes: Range<usize>,
    pub(super) dtype: DType,
    pub(super) dims: [u64; 6],
}

impl Place {
    /// Elements.
    pub(super) fn len(&self) -> usize {
        self.dims.iter().filter(|&&dim| dim != 0).product::<u64>() as usize
    }

    /// Whether the shape is this one, the length of a row first.
    pub(super) fn is_shape(&self, dims: &[usize]) -> bool {
        let has = self.dims.iter().copied();
        has.eq(dims.iter().map(|&dim| dim as u64).chain(std::iter::repeat(0)).take(6))
    }

    /// The floats in place.
    pub(super) fn floats(&self) -> Result<External, Errno> {
        if self.dtype != DType::F32 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.map.floats(self.bytes.clone()).ok_or(Errno::EINVAL)
    }

    /// Refuses what is too large to be copied.
    pub(super) fn can_be_copied(&self) -> Result<(), Errno> {
        if self.bytes.len() > LARGEST_COPY { Err(Errno::EMSGSIZE) } else { Ok(()) }
    }

    /// A private copy of token ids, each of which is below `below`.
    pub(super) fn indices(&self, below: usize) -> Result<Vec<u32>, Errno> {
        if self.dtype != DType::I32 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.can_be_copied()?;
        let mut tokens = vec![0u32; self.len()];
        self.map.read(self.bytes.start, bytemuck::cast_slice_mut(&mut tokens));
        if tokens.iter().any(|&token| token as usize >= below) { Err(Errno::EDOM) } else { Ok(tokens) }
    }

    /// A private copy of a text.
    pub(super) fn text(&self) -> Result<String, Errno> {
        if self.dtype != DType::I8 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.can_be_copied()?;
        let mut bytes = vec![0; self.bytes.len()];
        self.map.read(self.bytes.start, &mut bytes);
        // A client need not know the length to the byte.
        bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1));
        String::from_utf8(bytes).map_err(|_| Errno::EDOM)
    }

    /// Writes values from element `first` on, as many as fit.
    pub(super) fn put<T: bytemuck::NoUninit>(&self, first: usize, values: &[T]) {
        let at = self.bytes.start + first * size_of::<T>();
        let room = self.bytes.end.saturating_sub(at) / size_of::<T>();
        self.map.write(at, bytemuck::cast_slice(&values[..values.len().min(room)]));
    }
}

impl Work<'_> {
    /// The client.
    pub(super) fn client(&self) -> ContextId {
        ContextId { index: self.head.context, generation: self.head.context_generation }
    }

    /// The tensors: inputs and outputs, each in their order.
    pub(super) fn places(&self) -> Result<(Vec<Place>, Vec<Place>), Errno> {
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for tensor in self.tensors {
            let name = BufferName { buffer: tensor.buffer, generation: tensor.generation };
            let map = self.shared.maps.get(&*self.shared.side, self.client(), name)?;
            // The queue has checked this against the length that the buffer was registered with, which is the mapping's.
            let start = usize::try_from(tensor.offset).map_err(|_| Errno::ERANGE)?;
            let end = usize::try_from(tensor.offset.checked_add(tensor.byte_len).ok_or(Errno::EOVERFLOW)?);
            let end = end.ok().filter(|&end| end <= map.len()).ok_or(Errno::ERANGE)?;
            let dtype = DType::from_gguf_id(tensor.dtype).map_err(|_| Errno::EOPNOTSUPP)?;
            let is_output = tensor.flags & tensor_flag::OUT != 0;
            if is_output && !map.is_writable() {
                return Err(Errno::EACCES);
            }
            let place = Place { map, bytes: start..end, dtype, dims: tensor.dims };
            if is_output { outputs.push(place) } else { inputs.push(place) }
        }
        Ok((inputs, outputs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(bytes: &[u8], dtype: DType, dims: [u64; 6]) -> Place {
        let fd = memfd::memfd("place", 4096).unwrap();
        let map = Arc::new(memfd::Shared::new(&fd, 0, 4096, true).unwrap());
        map.write(64, bytes);
        Place { map, bytes: 64..64 + bytes.len(), dtype, dims }
    }

    #[test]
    fn indices_are_checked_on_a_private_copy() {
        let tokens = place(bytemuck::cast_slice(&[1u32, 2, 99]), DType::I32, [3, 0, 0, 0, 0, 0]);
        assert_eq!(tokens.indices(100), Ok(vec![1, 2, 99]));
        assert_eq!(tokens.indices(99), Err(Errno::EDOM));
        let negative = place(bytemuck::cast_slice(&[-1i32]), DType::I32, [1, 0, 0, 0, 0, 0]);
        assert_eq!(negative.indices(usize::MAX >> 33), Err(Errno::EDOM));
        assert_eq!(place(&[0; 4], DType::F32, [1, 0, 0, 0, 0, 0]).indices(100), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn what_is_too_large_to_be_copied_is_refused_before_it_is_touched() {
        let len = LARGEST_COPY + 4096;
        let fd = memfd::memfd("place", len as u64).unwrap();
        let map = Arc::new(memfd::Shared::new(&fd, 0, len, true).unwrap());
        let of = |dtype, bytes: Range<usize>| {
            let dims = [bytes.len() as u64 / 4, 0, 0, 0, 0, 0];
            Place { map: map.clone(), bytes, dtype, dims }
        };
        assert_eq!(of(DType::I32, 0..LARGEST_COPY + 4).indices(100), Err(Errno::EMSGSIZE));
        assert_eq!(of(DType::I8, 0..LARGEST_COPY + 4).text(), Err(Errno::EMSGSIZE));
        assert_eq!(of(DType::F32, 0..LARGEST_COPY + 4).can_be_copied(), Err(Errno::EMSGSIZE));
        assert_eq!(of(DType::F32, 0..LARGEST_COPY).can_be_copied(), Ok(()));
    }

    #[test]
    fn texts_end_before_their_padding() {
        let dims = [8, 0, 0, 0, 0, 0];
        assert_eq!(place("h\u{e9}llo\0\0".as_bytes(), DType::I8, dims).text().as_deref(), Ok("h\u{e9}llo"));
        assert_eq!(place(b"\xff\xfe\0\0\0\0\0\0", DType::I8, dims).text(), Err(Errno::EDOM));
    }

    #[test]
    fn shapes_compare_in_all_dimensions() {
        let place = place(&[0; 24], DType::F32, [3, 2, 0, 0, 0, 0]);
        assert!(
            place.is_shape(&[3, 2]) && !place.is_shape(&[3]) && !place.is_shape(&[6]) && !place.is_shape(&[3, 2, 1])
        );
        assert_eq!(place.len(), 6);
        place.put(5, &[1.0f32, 2.0]);
        assert_eq!(place.floats().unwrap().to_vec(), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    }
}
