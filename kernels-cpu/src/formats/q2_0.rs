//! Q2_0: 64 values of 2 bits, one scale. `value = d * (q - 1)`.
//!
//! Bytes: `d` (f16), then 16 bytes of four values each, the first lowest.

use super::{
    Format,
    block::{read_blocks, read_f16},
};
use rustai_abi::DType;

const LEN: usize = 64;
const BYTES: usize = 18;

pub(super) const FORMAT: Format = Format::new(DType::Q2_0, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref quants @ ..]: &[u8; BYTES], values: &mut [f32; LEN]| {
        let d = read_f16([d0, d1]);
        for (byte, values) in quants.iter().zip(values.as_chunks_mut::<4>().0) {
            for (i, value) in values.iter_mut().enumerate() {
                *value = d * f32::from((byte >> (2 * i) & 3) as i8 - 1);
            }
        }
    });
}
