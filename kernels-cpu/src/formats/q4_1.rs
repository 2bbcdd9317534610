//! Q4_1: 32 values of 4 bits above a minimum. `value = d * q + m`.
//!
//! Bytes: `d` (f16), `m` (f16), then 16 bytes whose low nibbles are values 0-15 and whose high nibbles are values 16-31.

use super::{
    Format,
    block::{WriteBlock, read_blocks, read_f16, write_searched},
    parts::put_nibbles,
    simple::{LEN, above_minimum},
};
use rustai_abi::DType;

const BYTES: usize = 20;

pub(super) const FORMAT: Format =
    Format::new(DType::Q4_1, dequantize).with_quantize(write_searched::<Writer, BYTES, LEN>);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, m0, m1, ref quants @ ..]: &[u8; BYTES], values: &mut [f32; LEN]| {
        let d = read_f16([d0, d1]);
        let m = read_f16([m0, m1]);
        let (low, high) = values.split_at_mut(LEN / 2);
        for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
            *low = d * f32::from(q & 0x0f) + m;
            *high = d * f32::from(q >> 4) + m;
        }
    });
}

struct Writer;

impl WriteBlock<BYTES, LEN> for Writer {
    #[inline(always)]
    fn write(values: &[f32; LEN], importance: Option<&[f32; LEN]>, block: &mut [u8; BYTES]) {
        let [d0, d1, m0, m1, quants @ ..] = block;
        let (d, m, codes) = above_minimum(values, importance, 15);
        ([*d0, *d1], [*m0, *m1]) = (d, m);
        put_nibbles(&codes, quants);
    }
}
