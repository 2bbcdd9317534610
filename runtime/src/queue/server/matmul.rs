//! Products of clients' tensors, one after the other on a thread of their own: read and written where they lie.

use super::{Done, Shared, work::Place};
use crate::{CancelHandle, DType, compute_threads};
use rustai_abi::{
    Batch, BatchSequence,
    queue::{Errno, Ticket},
};
use rustai_kernels_cpu::{
    Act, Buf, Call, Executor, ExecutorError, External, Isa, Matrix, MatrixError, Outside, Program, Projection, Rows,
};
use std::sync::{Arc, mpsc};

/// Rows of a product's first input, at most: each needs some memory of the server's.
const MOST_ROWS: usize = 1 << 16;

/// A product to compute.
pub(super) enum Product {
    /// `out = x · wᵀ`.
    Job(Box<Operands>),
    /// The server goes.
    Stop,
}

pub(super) struct Operands {
    ticket: Ticket,
    x: Place,
    w: Place,
    out: Place,
    /// Rows of `x`, its columns, and rows of `w`.
    shape: (usize, usize, usize),
    cancel: CancelHandle,
}

impl Product {
    /// Checks shapes: `x` is `[k, m]`, `w` `[k, n]`, `out` `[n, m]`. One row may be written as one dimension.
    pub(super) fn new(ticket: Ticket, x: &Place, w: &Place, out: &Place) -> Result<Self, Errno> {
        let two = |place: &Place| match place.dims {
            [a, 0, ..] => Ok((a as usize, 1)),
            [a, b, 0, ..] => Ok((a as usize, b as usize)),
            _ => Err(Errno::EINVAL),
        };
        let ((k, m), (also_k, n), result) = (two(x)?, two(w)?, two(out)?);
        if x.dtype != DType::F32 || out.dtype != DType::F32 {
            return Err(Errno::EOPNOTSUPP);
        }
        if k != also_k || result != (n, m) || m > MOST_ROWS {
            return Err(Errno::EMSGSIZE);
        }
        if !x.is_aligned() {
            x.can_be_copied()?;
        }
        let (x, w, out) = (x.clone(), w.clone(), out.clone());
        let cancel = CancelHandle::default();
        Ok(Self::Job(Box::new(Operands { ticket, x, w, out, shape: (m, k, n), cancel })))
    }

    pub(super) fn cancel_handle(&self) -> CancelHandle {
        match self {
            Self::Job(operands) => operands.cancel.clone(),
            Self::Stop => CancelHandle::default(),
        }
    }
}

/// Until the server goes.
pub(super) fn run(shared: &Shared, products: &mpsc::Receiver<Product>) {
    while let Ok(Product::Job(operands)) = products.recv() {
        let result = if operands.cancel.is_cancelled() {
            Err(Errno::ECANCELED)
        } else {
            operands.multiply(compute_threads(shared.options.threads))
        };
        let ticket = operands.ticket;
        // The client's memory is let go of before the job is.
        drop(operands);
        shared.finish(ticket, result);
    }
}

impl Operands {
    fn multiply(&self, threads: usize) -> Result<Done, Errno> {
        let (m, k, n) = self.shape;
        let isa = Isa::select().map_err(|_| Errno::ENOTRECOVERABLE)?.isa;
        let bytes = self.w.map.bytes(self.w.bytes.clone()).ok_or(Errno::ERANGE)?;
        // The weights stay as they are: packing would be a copy.
        let weight = Matrix::outside(isa, self.w.dtype, n, k, bytes).map_err(|error| match error {
            MatrixError::Unsupported(_) => Errno::EOPNOTSUPP,
            _ => Errno::EINVAL,
        })?;
        let x = Buf { offset: 0, width: k, rows: Rows::Tokens };
        // Neither has a place in the arena that anybody touches.
        let out = Buf { offset: Buf::bytes(k, m), width: n, rows: Rows::Tokens };
        let projection = Projection { weight: Arc::new(weight), bias: None, out, accumulate: false };
        let program = Program {
            calls: vec![Call::MatMul { x: Act::F32(x), projections: vec![projection] }],
            arena_bytes: Buf::bytes(k, m).checked_add(Buf::bytes(n, m)).ok_or(Errno::ENOMEM)?,
            max_tokens: m,
            max_outputs: 1,
            kv: None,
            inputs: vec![x],
            output: out,
        };
        let failed = |error: ExecutorError| {
            tracing::warn!(%error, "a product failed");
            match error {
                ExecutorError::OutOfMemory { .. } | ExecutorError::Threads { .. } => Errno::ENOMEM,
                _ => Errno::ENOTRECOVERABLE,
            }
        };
        let mut executor = Executor::new(isa, threads, program).map_err(failed)?;
        let tokens = vec![0; m];
        let sequences = [BatchSequence { len: u32::try_from(m).map_err(|_| Errno::EOVERFLOW)?, start: 0, pages: &[] }];
        let batch = Batch { tokens: &tokens, sequences: &sequences, outputs: &[] };
        let mut copied = 0;
        let inputs = if self.x.is_aligned() {
            [Some(self.x.floats()?)]
        } else {
            // Kernels want aligned rows.
            let values = self.x.floats()?.to_vec();
            executor.write(x, &values).map_err(failed)?;
            copied = self.x.bytes.len() as u64;
            [None]
        };
        let result = self.out.floats()?;
        let rows: Vec<Option<External>> = (0..m).map(|row| result.part(row * n, n)).collect();
        executor.run_with(&batch, Outside { inputs: &inputs, output: &rows, normalized: &[] }).map_err(failed)?;
        Ok(Done { result: 0, count: 0, copied })
    }
}
