//! Q1_0: 128 values of one bit, one scale. `value = d` where the bit is set, `-d` where it is not.
//!
//! Bytes: `d` (f16), then 16 bytes of bits, the first value lowest.

use super::{
    Format,
    block::{read_blocks, read_f16},
};
use rustai_abi::DType;

const LEN: usize = 128;
const BYTES: usize = 18;

pub(super) const FORMAT: Format = Format::new(DType::Q1_0, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref quants @ ..]: &[u8; BYTES], values: &mut [f32; LEN]| {
        let d = read_f16([d0, d1]);
        for (byte, values) in quants.iter().zip(values.as_chunks_mut::<8>().0) {
            for (i, value) in values.iter_mut().enumerate() {
                *value = if byte >> i & 1 == 0 { -d } else { d };
            }
        }
    });
}
