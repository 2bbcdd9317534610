//! Row-wise kernels of the chosen instruction set, behind one table.

use crate::{
    Isa,
    attention::{self, AttentionTask, KvElement},
    formats::q8a,
    reference,
};

/// Functions of one instruction set. All need its features, which is why they are unsafe; slices are checked.
#[derive(Clone, Copy)]
pub(crate) struct Ops {
    /// Input, weight, epsilon, result.
    pub(crate) rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    /// Values, `q8a` row.
    pub(crate) quantize: unsafe fn(&[f32], &mut [u8]),
    /// Gate, up, result.
    pub(crate) swiglu: unsafe fn(&[f32], &[f32], &mut [f32]),
    /// Input, result.
    pub(crate) silu: unsafe fn(&[f32], &mut [f32]),
    /// Input, result.
    pub(crate) softmax: unsafe fn(&[f32], &mut [f32]),
    /// For head lengths that are a multiple of 16, if the instruction set has an own version.
    pub(crate) attention: unsafe fn(&AttentionTask),
    /// What the attention kernel reads.
    pub(crate) kv: KvElement,
}

impl Ops {
    /// The table for `isa`, which the caller has found to be available, and heads of `head_dim` values.
    pub(crate) fn new(isa: Isa, head_dim: usize) -> Self {
        let mut ops = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => ops!(crate::x86_64::rows::avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bw | Isa::Avx512 => ops!(crate::x86_64::rows::avx512),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => ops!(crate::aarch64::rows::neon),
            _ => Self {
                rms_norm: reference::rms_norm,
                quantize: q8a::quantize_row,
                swiglu: reference::swiglu,
                silu: |x, out| {
                    for (out, x) in out.iter_mut().zip(x) {
                        *out = reference::silu(*x);
                    }
                },
                softmax: reference::softmax,
                attention: attention::reference,
                kv: KvElement::F32,
            },
        };
        if !head_dim.is_multiple_of(16) {
            ops.attention = attention::reference;
        }
        ops
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! ops {
    ($($module:tt)+) => {{
        use $($module)+ as kernels;
        Self {
            rms_norm: kernels::rms_norm,
            quantize: kernels::quantize,
            swiglu: kernels::swiglu,
            silu: kernels::silu,
            softmax: kernels::softmax,
            attention: kernels::attention,
            kv: KvElement::F16,
        }
    }};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use ops;
