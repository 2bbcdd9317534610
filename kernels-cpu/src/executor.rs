//! Runs a program with a persistent team of worker threads.

use crate::{Buf, Isa, Program};
use rustai_abi::Batch;

/// Why a program cannot be made ready or a batch cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecutorError {
    /// A call of the program is not sound.
    #[error("call {index} of the program: {reason}")]
    Program {
        /// Which call.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// Memory could not be had.
    #[error("{what} needs {bytes} bytes, which the system refuses: {reason}")]
    OutOfMemory {
        /// What the memory is for.
        what: &'static str,
        /// How much.
        bytes: usize,
        /// The system's word.
        reason: String,
    },
    /// A batch does not fit the program.
    #[error("batch refused: {0}")]
    Batch(String),
}

/// A program with its memory, its key/value cache and its threads.
pub struct Executor {}

impl Executor {
    /// Checks `program`, takes its memory and starts `threads - 1` workers (the caller's thread is the first).
    ///
    /// # Errors
    /// [`ExecutorError`] if a call is unsound or memory is refused.
    pub fn new(isa: Isa, threads: usize, program: Program) -> Result<Self, ExecutorError> {
        todo!()
    }

    /// Fills the first `rows` rows of an input buffer.
    pub fn write(&mut self, buf: Buf, values: &[f32]) -> Result<(), ExecutorError> {
        todo!()
    }

    /// Runs the program on `batch` and returns the output buffer's rows.
    ///
    /// # Errors
    /// [`ExecutorError::Batch`] if the batch breaks a limit or names a token, page or row that does not exist; nothing
    /// has run then.
    pub fn run(&mut self, batch: &Batch<'_>) -> Result<&[f32], ExecutorError> {
        todo!()
    }

    /// The program.
    pub fn program(&self) -> &Program {
        todo!()
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        todo!()
    }
}
