//! Making smaller model files: which tensor becomes which type, importance matrices, and the work itself.
//!
//! [`Mix`] names a mix of types, [`Job`] plans what becomes of a file and does it one piece at a time, and [`Imatrix`] says
//! which columns of a matrix matter most, as [`gather`] measured on a text. The rounding of blocks lies in the kernels'
//! table of formats; this module must never know a block's layout.
//!
//! ```no_run
//! use rustai::{gguf::GgufFile, quantize::{Job, Mix, Options}};
//!
//! let model = GgufFile::open("model-f16.gguf".as_ref())?;
//! let job = Job::plan(&model, &Options::to(Mix::Q4_K_M))?;
//! println!("{} -> {} bytes", job.bytes_before(), job.bytes_after());
//! job.write_file("model-q4_k_m.gguf".as_ref(), &mut |_| std::ops::ControlFlow::Continue(()))?;
//! # Ok::<(), rustai::quantize::QuantizeError>(())
//! ```
#![forbid(unsafe_code)]

mod error;
mod gather;
mod imatrix;
mod job;
mod mix;
mod output;

pub use error::QuantizeError;
pub use gather::{GatherProgress, gather};
pub use imatrix::{Entry, Imatrix};
pub use job::{Job, Options, Planned, Progress, writable};
pub use mix::{Choice, Facts, Mix, Wishes, choose};
pub use output::Output;
