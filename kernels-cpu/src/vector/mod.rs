//! Kernels over `f32` vectors of any width, for all architectures that have them: bodies here, entry points in the
//! architecture's module.
#![expect(
    clippy::needless_range_loop,
    clippy::int_plus_one,
    reason = "arrays here are registers, indexed as in formulas"
)]

pub(crate) mod attention;
pub(crate) mod float;
pub(crate) mod rows;
