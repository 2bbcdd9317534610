//! Kernels for AArch64.
#![expect(
    clippy::needless_range_loop,
    reason = "arrays here are registers, indexed by row and token as in the formulas"
)]

/// `[$value for $i in 0 .. $n]` as a plain loop. The closures of `array::from_fn` and `map` are not always inlined, and
/// then all registers pass through memory.
macro_rules! each {
    ($zero:expr; $n:expr, $i:ident => $value:expr) => {{
        let mut out = [$zero; $n];
        for $i in 0..$n {
            out[$i] = $value;
        }
        out
    }};
}

/// A body for each of some numbers, whatever the compiler thinks of unrolling it.
macro_rules! unrolled {
    ($i:ident in [$($n:literal),+] $body:block) => {
        $({
            let $i = $n;
            $body
        })+
    };
}

mod dot;
mod expand;
mod float;
mod int;
pub(crate) mod rows;
mod simd;

use crate::{Isa, tile::TileKernel};
use rustai_abi::DType;

/// The tile kernel for a type; `None` if the reference has to do it.
pub(crate) fn tile_kernel(isa: Isa, dtype: DType) -> Option<TileKernel> {
    let integer = match isa {
        Isa::Neon => int::neon::kernel,
        Isa::NeonDotprod => int::dotprod::kernel,
        Isa::NeonI8mm => int::i8mm::kernel,
        _ => return None,
    };
    Some(match dtype {
        DType::F16 => float::neon_f16,
        DType::BF16 => float::neon_bf16,
        DType::F32 => float::neon_f32,
        _ => return integer(dtype),
    })
}
