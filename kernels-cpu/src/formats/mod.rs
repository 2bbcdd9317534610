//! Block formats: how each tensor type stores its values, and the scalar code that reads and writes them.
//!
//! This module owns the one table of formats. A type is a file here and a row in [`table`]; everything that depends on
//! the type of a tensor looks it up with [`of`]. The scalar code is the law: faster kernels are tested against it. It
//! must never choose an instruction set, nor know which tensor or file a block came from.
//!
//! Layouts are those of GGUF files (ggml's `ggml-common.h` and `ggml-quants.c`); [`Format::dequantize`] agrees bit for
//! bit with the numpy reference of the `gguf` Python package. All numbers in a block are little endian.
//!
//! [`q8a`] is different: it is the runtime's own activation format, lives in memory only and has no [`DType`].

mod block;
mod codebook;
mod float;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
pub(crate) mod iq4_nl;
pub(crate) mod iq4_xs;
pub(crate) mod k_scales;
pub(crate) mod mxfp4;
mod nvfp4;
mod parts;
mod q1_0;
mod q2_0;
pub(crate) mod q2_k;
pub(crate) mod q3_k;
pub(crate) mod q4_0;
pub(crate) mod q4_1;
pub(crate) mod q4_k;
pub(crate) mod q5_0;
pub(crate) mod q5_1;
pub(crate) mod q5_k;
pub(crate) mod q6_k;
pub(crate) mod q8_0;
mod q8_k;
pub mod q8a;
mod search;
mod simple;
mod superblock;
mod tq1_0;
mod tq2_0;

use rustai_abi::DType;

/// Reads whole blocks: bytes in, one value per element out.
pub type Dequantize = fn(&[u8], &mut [f32]);

/// Writes whole blocks: values in, the importance of each if it is known, bytes out.
pub type Quantize = fn(&[f32], Option<&[f32]>, &mut [u8]);

/// One row of the table: what can be done with tensors of one type.
///
/// Both functions work on any whole number of blocks and panic if the slices disagree about how many there are;
/// [`DType::bytes_for`] gives the byte count that belongs to a number of elements.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The type. Block length and size are [`DType::block_len`] and [`DType::block_bytes`].
    pub dtype: DType,
    /// Scalar conversion of blocks to `f32`. Any byte pattern is valid: a scale that is infinite or NaN gives
    /// infinite or NaN values.
    pub dequantize: Dequantize,
    /// Conversion of `f32` to blocks, where there is one: the same bytes on every processor.
    ///
    /// The second slice says how much the error of each value counts: zero or more, on any scale, usually the mean square
    /// of the activations that the value's column meets. Types that have no choice to make ignore it. Where it is zero
    /// throughout a block, all its values count alike.
    ///
    /// Never panics because of a value or an importance. A block with a NaN or infinity in it reads back with at least
    /// one value that is not finite, so that the fault shows.
    pub quantize: Option<Quantize>,
}

impl Format {
    /// A row with the one column that every type has. Further columns are added with the `with_` functions.
    const fn new(dtype: DType, dequantize: Dequantize) -> Self {
        Self { dtype, dequantize, quantize: None }
    }

    const fn with_quantize(mut self, quantize: Quantize) -> Self {
        self.quantize = Some(quantize);
        self
    }
}

/// The table, in the order of the GGUF identifiers.
static TABLE: [Format; 29] = [
    float::F32,
    float::F16,
    q4_0::FORMAT,
    q4_1::FORMAT,
    q5_0::FORMAT,
    q5_1::FORMAT,
    q8_0::FORMAT,
    q2_k::FORMAT,
    q3_k::FORMAT,
    q4_k::FORMAT,
    q5_k::FORMAT,
    q6_k::FORMAT,
    q8_k::FORMAT,
    iq2_xxs::FORMAT,
    iq2_xs::FORMAT,
    iq3_xxs::FORMAT,
    iq1_s::FORMAT,
    iq4_nl::FORMAT,
    iq3_s::FORMAT,
    iq2_s::FORMAT,
    iq4_xs::FORMAT,
    iq1_m::FORMAT,
    float::BF16,
    tq1_0::FORMAT,
    tq2_0::FORMAT,
    mxfp4::FORMAT,
    nvfp4::FORMAT,
    q1_0::FORMAT,
    q2_0::FORMAT,
];

/// All types that this crate computes with.
pub fn table() -> &'static [Format] {
    &TABLE
}

/// The row of `dtype`; `None` if this crate has no code for it.
pub fn of(dtype: DType) -> Option<&'static Format> {
    TABLE.iter().find(|format| format.dtype == dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_those_of_the_shared_vocabulary() {
        for format in table() {
            for blocks in [0, 1, 3] {
                let len = blocks * format.dtype.block_len();
                let mut bytes = vec![0; format.dtype.bytes_for(len).unwrap()];
                let mut values = vec![1.0; len];
                // Both assert that the two slices hold the same number of blocks.
                (format.dequantize)(&bytes, &mut values);
                if let Some(quantize) = format.quantize {
                    quantize(&values, None, &mut bytes);
                }
                assert!(values.iter().all(|v| *v == 0.0), "{}", format.dtype);
            }
        }
    }

    #[test]
    fn rows_are_unique_and_sorted() {
        assert!(table().is_sorted_by(|a, b| a.dtype < b.dtype));
        for format in table() {
            assert_eq!(of(format.dtype).unwrap().dtype, format.dtype);
        }
        assert!(of(DType::I32).is_none());
    }

    #[test]
    fn values_that_are_not_finite_show_after_a_round_trip() {
        for format in table() {
            let Some(quantize) = format.quantize else { continue };
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 17, 31] {
                    let mut values: Vec<f32> = (0..256).map(|i| i as f32 - 100.0).collect();
                    values[at] = bad;
                    let mut bytes = vec![0; format.dtype.bytes_for(256).unwrap()];
                    quantize(&values, None, &mut bytes);
                    let mut back = vec![0.0; 256];
                    (format.dequantize)(&bytes, &mut back);
                    assert!(back.iter().any(|v| !v.is_finite()), "{} {bad} {at}", format.dtype);
                }
            }
        }
    }
}
