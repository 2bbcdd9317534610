//! Q5_0: 32 values of 5 bits around a middle of 16, one scale. `value = d * (q - 16)`.
//!
//! Bytes: `d` (f16), 32 bits (u32) that hold the fifth bit of value `i` at position `i`, then 16 bytes whose low nibbles
//! are values 0-15 and whose high nibbles are values 16-31.

use super::{
    Format,
    block::{WriteBlock, read_blocks, read_f16, write_searched},
    parts::{bits_of, put_nibbles},
    simple::{LEN, around_zero},
};
use rustai_abi::DType;

const BYTES: usize = 22;

pub(super) const FORMAT: Format =
    Format::new(DType::Q5_0, dequantize).with_quantize(write_searched::<Writer, BYTES, LEN>);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, h0, h1, h2, h3, ref quants @ ..]: &[u8; BYTES], values: &mut [f32; LEN]| {
        let d = read_f16([d0, d1]);
        let fifth = u32::from_le_bytes([h0, h1, h2, h3]);
        let (low, high) = values.split_at_mut(LEN / 2);
        for (i, ((low, high), q)) in low.iter_mut().zip(high).zip(quants).enumerate() {
            let q = u32::from(*q);
            *low = d * ((q & 0x0f | (fifth >> i & 1) << 4) as i32 - 16) as f32;
            *high = d * ((q >> 4 | (fifth >> (i + 16) & 1) << 4) as i32 - 16) as f32;
        }
    });
}

struct Writer;

impl WriteBlock<BYTES, LEN> for Writer {
    #[inline(always)]
    fn write(values: &[f32; LEN], importance: Option<&[f32; LEN]>, block: &mut [u8; BYTES]) {
        let [d0, d1, h0, h1, h2, h3, quants @ ..] = block;
        let (d, codes) = around_zero(values, importance, 16);
        [*d0, *d1] = d;
        [*h0, *h1, *h2, *h3] = bits_of(&codes, 4).to_le_bytes();
        put_nibbles(&codes, quants);
    }
}
