//! Row-wise kernels of the chosen instruction set, behind one table.

use crate::{
    Isa, KvType,
    attention::{
        self, AttentionTask, Work,
        cache::{KvElement, LayerCache, Place},
    },
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
    /// [`LayerCache::append`].
    pub(crate) append: unsafe fn(&LayerCache, Place, &[f32], &[f32]),
    /// Reads `kv` and no other elements; does parts of tasks if `in_parts` is set.
    pub(crate) attention: unsafe fn(&AttentionTask, Work),
    pub(crate) in_parts: bool,
    /// What the cache holds.
    pub(crate) kv: KvElement,
}

const SCALAR_APPEND: unsafe fn(&LayerCache, Place, &[f32], &[f32]) =
    // SAFETY: the caller's promise is that of the function.
    |cache, place, key, value| unsafe { cache.append(place, key, value) };

impl Ops {
    /// The table for `isa`, which the caller has found to be available, and heads of `head_dim` values that are kept as
    /// `kv_type`.
    pub(crate) fn new(isa: Isa, head_dim: usize, kv_type: KvType) -> Self {
        let mut ops = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => ops!(kv_type, crate::x86_64::rows::avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bw | Isa::Avx512 => ops!(kv_type, crate::x86_64::rows::avx512),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => ops!(kv_type, crate::aarch64::rows::neon),
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
                append: SCALAR_APPEND,
                attention: attention::reference,
                in_parts: false,
                kv: KvElement::of(kv_type, false),
            },
        };
        // Rows of vectors of any instruction set.
        if !head_dim.is_multiple_of(16) {
            ops = Self { append: SCALAR_APPEND, attention: attention::reference, in_parts: false, ..ops };
        }
        ops
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! ops {
    ($kv_type:ident, $($module:tt)+) => {{
        use $($module)+ as kernels;
        Self {
            rms_norm: kernels::rms_norm,
            quantize: kernels::quantize,
            swiglu: kernels::swiglu,
            silu: kernels::silu,
            softmax: kernels::softmax,
            append: kernels::append,
            attention: match $kv_type {
                KvType::F16 => kernels::attention_f16,
                KvType::Q8_0 => kernels::attention_q8_0,
            },
            in_parts: true,
            kv: KvElement::of($kv_type, true),
        }
    }};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use ops;
