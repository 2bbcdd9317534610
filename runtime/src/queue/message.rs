//! Messages of the socket transport: how they are made and taken apart. What they look like is told in [`super`].

use rustai_abi::queue::{Errno, Job, MAX_TENSORS, Tensor, Wire};

/// Bytes in front of a request.
pub(super) const REQUEST: usize = 8;
/// Bytes in front of a reply.
pub(super) const REPLY: usize = 16;
/// The operation that gives the server the memory of a lane.
pub(super) const LANE: u32 = 0x80;
/// Its struct: a size and flags, of which there are none.
pub(super) const LANE_STRUCT: [u8; 8] = {
    let size = 8u32.to_ne_bytes();
    [size[0], size[1], size[2], size[3], 0, 0, 0, 0]
};
/// In place of an operation: there is a message in the lane. It has no answer.
pub(super) const LOOK: u32 = 0x81;
/// The longest message. Linux lets a message be as long as the socket's send buffer, 208 KiB if nobody changed it.
pub(super) const LONGEST: usize = 160 << 10;

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The head of a request.
pub(super) fn request(op: u32, len: usize) -> [u8; REQUEST] {
    let mut head = [0; REQUEST];
    head[..4].copy_from_slice(&op.to_ne_bytes());
    head[4..].copy_from_slice(&(len as u32).to_ne_bytes());
    head
}

/// The operation of a message, which starts requests and replies alike.
pub(super) fn operation(message: &[u8]) -> Option<u32> {
    word(message, 0)
}

/// A request cut into operation, struct, and what follows; `None` if it is shorter than it says.
pub(super) fn parse_request(message: &mut [u8]) -> Option<(u32, &mut [u8], &[u8])> {
    let (op, len) = (word(message, 0)?, word(message, 4)?);
    let body = &mut message[REQUEST..];
    if len as usize > body.len() {
        return None;
    }
    let (bytes, rest) = body.split_at_mut(len as usize);
    Some((op, bytes, rest))
}

/// The head of a reply.
pub(super) fn reply(op: u32, outcome: Result<usize, Errno>) -> [u8; REPLY] {
    let (len, result) = match outcome {
        Ok(len) => (len as u32, 0),
        Err(errno) => (0, -errno.raw()),
    };
    let mut head = [0; REPLY];
    for (place, word) in head.chunks_exact_mut(4).zip([op, len, result as u32, 0]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    head
}

/// A reply to `op` cut into its result and its struct; `None` if it is none.
pub(super) fn parse_reply(op: u32, message: &[u8]) -> Option<Result<&[u8], i32>> {
    let (of, len, result) = (word(message, 0)?, word(message, 4)?, word(message, 8)? as i32);
    let body = message.get(REPLY..)?;
    match result {
        _ if of != op => None,
        0 => Some(Ok(body.get(..len as usize)?)),
        _ => Some(Err(-result)),
    }
}

/// Jobs of one SUBMIT, wherever they lie.
pub(super) enum Jobs<'a> {
    /// As bytes: each job followed by its tensors.
    Bytes(&'a [u8]),
    /// As structs: each job takes its tensors from the front of the rest.
    Structs {
        /// Jobs that were not taken yet.
        jobs: &'a [Job],
        /// Tensors that were not taken yet.
        tensors: &'a [Tensor],
    },
}

impl Jobs<'_> {
    /// Takes the next job; its tensors go to the front of `into`.
    ///
    /// # Errors
    /// `EFAULT` if they are not there; what `check` finds wrong with the job, before its tensors are looked at.
    pub(super) fn take<'t>(
        &mut self,
        into: &'t mut [Tensor; MAX_TENSORS],
        check: impl Fn(&Job) -> Result<(), Errno>,
    ) -> Result<(Job, &'t [Tensor]), Errno> {
        let job = match self {
            Self::Bytes(bytes) => {
                let job = Job::read(bytes).ok_or(Errno::EFAULT)?;
                *bytes = &bytes[Job::SIZE..];
                job
            }
            Self::Structs { jobs, .. } => *jobs.split_off_first().ok_or(Errno::EFAULT)?,
        };
        check(&job)?;
        let places = into.get_mut(..job.tensor_count as usize).ok_or(Errno::E2BIG)?;
        match self {
            Self::Bytes(bytes) => {
                for place in &mut *places {
                    *place = Tensor::read(bytes).ok_or(Errno::EFAULT)?;
                    *bytes = &bytes[Tensor::SIZE..];
                }
            }
            Self::Structs { tensors, .. } => {
                places.copy_from_slice(tensors.split_off(..places.len()).ok_or(Errno::EFAULT)?);
            }
        }
        Ok((job, places))
    }
}

/// Writes a struct behind what `out` holds.
pub(super) fn push(out: &mut Vec<u8>, value: &impl Wire) {
    fn size<T: Wire>(_: &T) -> usize {
        T::SIZE
    }
    let at = out.len();
    out.resize(at + size(value), 0);
    let written = value.write(&mut out[at..]);
    debug_assert!(written);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_are_cut_where_they_say() {
        let mut message = request(4, 3).to_vec();
        message.extend(b"abcdef");
        assert_eq!(parse_request(&mut message), Some((4, &mut b"abc".to_vec()[..], &b"def"[..])));
        assert_eq!(parse_request(&mut request(4, 1)), None);
        assert_eq!(parse_request(&mut [0; 7]), None);

        let mut answer = reply(4, Ok(2)).to_vec();
        answer.extend(b"xy");
        assert_eq!(parse_reply(4, &answer), Some(Ok(&b"xy"[..])));
        assert_eq!(parse_reply(5, &answer), None);
        assert_eq!(parse_reply(4, &answer[..17]), None);
        assert_eq!(parse_reply(4, &reply(4, Err(Errno::EINVAL))), Some(Err(22)));
    }

    #[test]
    fn jobs_come_with_their_tensors_from_both_forms() {
        let jobs = [Job { tensor_count: 2, user_data: 1, ..Job::new() }, Job { user_data: 2, ..Job::new() }];
        let tensors = [Tensor { buffer: 7, ..Tensor::new() }, Tensor { buffer: 8, ..Tensor::new() }];
        let mut bytes = Vec::new();
        push(&mut bytes, &jobs[0]);
        tensors.iter().for_each(|tensor| push(&mut bytes, tensor));
        push(&mut bytes, &jobs[1]);
        for mut source in [Jobs::Bytes(&bytes), Jobs::Structs { jobs: &jobs, tensors: &tensors }] {
            let mut room = [Tensor::new(); MAX_TENSORS];
            assert_eq!(source.take(&mut room, |_| Ok(())), Ok((jobs[0], &tensors[..])));
            assert_eq!(source.take(&mut room, |_| Ok(())), Ok((jobs[1], &[][..])));
            assert_eq!(source.take(&mut room, |_| Ok(())), Err(Errno::EFAULT));
        }
        let mut short = Jobs::Bytes(&bytes[..Job::SIZE + Tensor::SIZE]);
        assert_eq!(short.take(&mut [Tensor::new(); MAX_TENSORS], |_| Ok(())), Err(Errno::EFAULT));
    }
}
