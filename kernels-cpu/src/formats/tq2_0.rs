//! TQ2_0: 256 values of 2 bits, meant for -1, 0 and 1, one scale. `value = d * (q - 1)`.
//!
//! Bytes: 64 bytes of quants, `d` (f16). Each half of the quants (32 bytes) holds 128 values: bits 0-1 of its bytes are the
//! first 32, bits 2-3 the next, and so on.

use super::{
    Format,
    block::{QK_K, read_blocks, read_f16},
};
use rustai_abi::DType;

const BYTES: usize = 66;

pub(super) const FORMAT: Format = Format::new(DType::TQ2_0, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |block: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let [quants @ .., d0, d1] = block;
        let d = read_f16([*d0, *d1]);
        for (i, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (half, shift) = (i / 4, i % 4 * 2);
            for (value, q) in values.iter_mut().zip(&quants[half * 32..][..32]) {
                *value = d * f32::from((q >> shift & 3) as i8 - 1);
            }
        }
    });
}
