//! Kernels for x86-64.
#![expect(
    clippy::needless_range_loop,
    clippy::manual_is_multiple_of,
    reason = "arrays here are registers, indexed by row and token as in the formulas"
)]

mod act;
mod avx2_int;
mod avx512_int;
mod float;
pub(crate) mod rows;
mod simd;

use crate::{Isa, pack::Layout, tile::TileKernel};

/// The tile kernel for a layout; `None` if the reference has to do it.
pub(crate) fn tile_kernel(isa: Isa, layout: Layout) -> Option<TileKernel> {
    Some(match (isa, layout) {
        (Isa::Reference | Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm, _) => return None,
        (Isa::Avx2, Layout::Q4_0) => avx2_int::q4_0,
        (Isa::Avx2, Layout::Q4_1) => avx2_int::q4_1,
        (Isa::Avx2, Layout::Q8_0) => avx2_int::q8_0,
        (Isa::Avx2, Layout::Q4K) => avx2_int::q4_k,
        (Isa::Avx2, Layout::Q6K) => avx2_int::q6_k,
        (Isa::Avx2, Layout::F16) => float::avx2_f16,
        (Isa::Avx2, Layout::F32) => float::avx2_f32,
        (Isa::Avx512, Layout::Q4_0) => avx512_int::q4_0,
        (Isa::Avx512, Layout::Q4_1) => avx512_int::q4_1,
        (Isa::Avx512, Layout::Q8_0) => avx512_int::q8_0,
        (Isa::Avx512, Layout::Q4K) => avx512_int::q4_k,
        (Isa::Avx512, Layout::Q6K) => avx512_int::q6_k,
        (Isa::Avx512, Layout::F16) => float::avx512_f16,
        (Isa::Avx512, Layout::F32) => float::avx512_f32,
    })
}
