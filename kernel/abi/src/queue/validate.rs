//! What is wrong with a job, judged from a private copy of it.
//!
//! There are two judgements. [`check_admission`] is about the copy itself: what fails it was never a job, and SUBMIT says
//! so. [`validate`] is about what the job asks for: what fails it is a job that completes with that error.

use super::super::dtype::DType;
use super::errno::Errno;
use super::layout::{
    DEP_WINDOW, Job, MAX_DIM, MAX_DIMS, MAX_TENSORS, QUANT_GGUF, Tensor, class, job_flag, opcode, tensor_flag,
};
use super::wire::Wire;

/// A buffer as a job sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferView {
    /// Its present generation.
    pub generation: u32,
    /// Its bytes.
    pub len: u64,
    /// Whether outputs may be written there.
    pub writable: bool,
}

/// What a job is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobRules {
    /// The present, of `CLOCK_MONOTONIC`.
    pub now_ns: u64,
    /// The sequence number that the job gets.
    pub seq: u64,
    /// The highest class that the context may use.
    pub class_cap: u8,
}

/// Whether the snapshot is a job at all.
///
/// # Errors
/// `EINVAL` if a struct's size is not that of this version, `E2BIG` for too many tensors.
pub fn check_admission(job: &Job) -> Result<(), Errno> {
    if job.size as usize != Job::SIZE {
        return Err(if (job.size as usize) < Job::SIZE { Errno::EINVAL } else { Errno::E2BIG });
    }
    if job.tensor_count as usize > MAX_TENSORS {
        return Err(Errno::E2BIG);
    }
    Ok(())
}

/// Whether the job may be given to a server. `buffer` looks a buffer of the context up.
///
/// # Errors
/// The error that the job completes with; see the table of error numbers in `kernel/README.md`.
pub fn validate(
    job: &Job,
    tensors: &[Tensor],
    rules: &JobRules,
    buffer: impl Fn(u32) -> Option<BufferView>,
) -> Result<(), Errno> {
    if job.flags & !job_flag::ALL != 0 || job.reserved0 != 0 || job.reserved1 != 0 {
        return Err(Errno::EINVAL);
    }
    if tensors.len() != job.tensor_count as usize {
        return Err(Errno::EINVAL);
    }
    if job.opcode >= opcode::COUNT {
        return Err(Errno::EOPNOTSUPP);
    }
    if usize::from(job.sched_class) >= class::COUNT {
        return Err(Errno::EINVAL);
    }
    if job.sched_class > rules.class_cap {
        return Err(Errno::EPERM);
    }
    if job.flags & job_flag::DEADLINE != 0 {
        if job.deadline_ns <= rules.now_ns {
            return Err(Errno::ETIME);
        }
    } else if job.deadline_ns != 0 {
        return Err(Errno::EINVAL);
    }
    if job.flags & job_flag::DEP != 0 {
        // Sequence numbers start at 1, so the difference cannot reach below the first job.
        if job.dep_seq == 0 || job.dep_seq >= rules.seq || rules.seq - job.dep_seq > DEP_WINDOW {
            return Err(Errno::EINVAL);
        }
    } else if job.dep_seq != 0 {
        return Err(Errno::EINVAL);
    }
    if job.flags & job_flag::SESSION == 0 && (job.session != 0 || job.session_epoch != 0) {
        return Err(Errno::EINVAL);
    }
    for tensor in tensors {
        check_shape(tensor)?;
        check_place(tensor, &buffer)?;
    }
    check_overlap(tensors)
}

/// The tensor by itself: header, type, shape and length.
fn check_shape(t: &Tensor) -> Result<(), Errno> {
    if t.size as usize != Tensor::SIZE || t.flags & !tensor_flag::ALL != 0 || t.reserved0 != 0 {
        return Err(Errno::EINVAL);
    }
    if t.flags & tensor_flag::IN_PLACE != 0 && t.flags & tensor_flag::OUT == 0 {
        return Err(Errno::EINVAL);
    }
    let ndim = t.ndim as usize;
    if ndim == 0 || ndim > MAX_DIMS {
        return Err(Errno::EINVAL);
    }
    let (used, unused) = t.dims.split_at(ndim);
    if used.iter().any(|&dim| dim == 0 || dim > MAX_DIM) || unused.iter().any(|&dim| dim != 0) {
        return Err(Errno::EINVAL);
    }
    let dtype = DType::from_gguf_id(t.dtype).map_err(|_| Errno::EOPNOTSUPP)?;
    if t.quant != QUANT_GGUF {
        return Err(Errno::EOPNOTSUPP);
    }
    let mut elements = 1u64;
    for &dim in used {
        elements = elements.checked_mul(dim).ok_or(Errno::EOVERFLOW)?;
    }
    let block_len = dtype.block_len() as u64;
    if used[0].checked_rem(block_len) != Some(0) {
        return Err(Errno::EINVAL);
    }
    let blocks = elements.checked_div(block_len).ok_or(Errno::EINVAL)?;
    let bytes = blocks.checked_mul(dtype.block_bytes() as u64).ok_or(Errno::EOVERFLOW)?;
    if bytes != t.byte_len {
        return Err(Errno::EMSGSIZE);
    }
    Ok(())
}

/// The tensor in its buffer.
fn check_place(t: &Tensor, buffer: &impl Fn(u32) -> Option<BufferView>) -> Result<(), Errno> {
    let view = buffer(t.buffer).ok_or(Errno::ENOENT)?;
    if view.generation != t.generation {
        return Err(Errno::ESTALE);
    }
    if t.flags & tensor_flag::OUT != 0 && !view.writable {
        return Err(Errno::EACCES);
    }
    let end = t.offset.checked_add(t.byte_len).ok_or(Errno::EOVERFLOW)?;
    if end > view.len {
        return Err(Errno::ERANGE);
    }
    Ok(())
}

/// No output shares bytes with another tensor unless it says so.
fn check_overlap(tensors: &[Tensor]) -> Result<(), Errno> {
    for (i, out) in tensors.iter().enumerate() {
        if out.flags & tensor_flag::OUT == 0 {
            continue;
        }
        for (j, other) in tensors.iter().enumerate() {
            let other_writes = other.flags & tensor_flag::OUT != 0;
            let allowed = out.flags & tensor_flag::IN_PLACE != 0 && !other_writes;
            if i == j || out.buffer != other.buffer || allowed {
                continue;
            }
            // Sums were checked before.
            if out.offset < other.offset + other.byte_len && other.offset < out.offset + out.byte_len {
                return Err(Errno::EINVAL);
            }
        }
    }
    Ok(())
}

/// Whether a job may run twice: nothing that it reads is changed by running it, and nobody has seen a part of its answer.
pub(super) fn is_idempotent(job: &Job, tensors: &[Tensor], progressed: bool) -> bool {
    job.flags & job_flag::SESSION == 0
        && !matches!(job.opcode, opcode::SESSION_OPEN | opcode::SESSION_CLOSE)
        && !progressed
        && tensors.iter().all(|t| t.flags & tensor_flag::IN_PLACE == 0)
}

/// Completion slots that a job needs: one for the end, one for progress if it streams.
pub(super) fn slots(job: &Job) -> u32 {
    1 + u32::from(job.opcode == opcode::GENERATE)
}
