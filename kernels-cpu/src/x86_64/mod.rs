//! Kernels for x86-64.
#![expect(
    clippy::needless_range_loop,
    reason = "arrays here are registers, indexed by row and token as in the formulas"
)]

mod avx2_int;
mod avx512_int;
mod dot;
mod fetch;
mod float;
pub(crate) mod rows;
mod simd;

use crate::{Isa, tile::TileKernel};
use rustai_abi::DType;

/// The tile kernel for a type; `None` if the reference has to do it.
pub(crate) fn tile_kernel(isa: Isa, dtype: DType) -> Option<TileKernel> {
    Some(match (isa, dtype) {
        (Isa::Avx2 | Isa::AvxVnni, DType::F16) => float::avx2_f16,
        (Isa::Avx2 | Isa::AvxVnni, DType::BF16) => float::avx2_bf16,
        (Isa::Avx2 | Isa::AvxVnni, DType::F32) => float::avx2_f32,
        (Isa::Avx2, _) => return avx2_int::pairs::kernel(dtype),
        (Isa::AvxVnni, _) => return avx2_int::vnni::kernel(dtype),
        (Isa::Avx512Bw | Isa::Avx512, DType::F16) => float::avx512_f16,
        (Isa::Avx512Bw | Isa::Avx512, DType::BF16) => float::avx512_bf16,
        (Isa::Avx512Bw | Isa::Avx512, DType::F32) => float::avx512_f32,
        (Isa::Avx512Bw, _) => return avx512_int::pairs::kernel(dtype),
        (Isa::Avx512, _) => return avx512_int::vnni::kernel(dtype),
        _ => return None,
    })
}
