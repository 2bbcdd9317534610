//! Q4_0: 32 values of 4 bits around a middle of 8, one scale. `value = d * (q - 8)`.
//!
//! Bytes: `d` (f16), then 16 bytes whose low nibbles are values 0-15 and whose high nibbles are values 16-31.

use super::{
    Format,
    block::{WriteBlock, read_blocks, read_f16, write_searched},
    parts::put_nibbles,
    simple::{LEN, around_zero},
};
use rustai_abi::DType;

const BYTES: usize = 18;

pub(super) const FORMAT: Format =
    Format::new(DType::Q4_0, dequantize).with_quantize(write_searched::<Writer, BYTES, LEN>);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |&[d0, d1, ref quants @ ..]: &[u8; BYTES], values: &mut [f32; LEN]| {
        let d = read_f16([d0, d1]);
        let (low, high) = values.split_at_mut(LEN / 2);
        for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
            *low = d * f32::from((q & 0x0f) as i8 - 8);
            *high = d * f32::from((q >> 4) as i8 - 8);
        }
    });
}

struct Writer;

impl WriteBlock<BYTES, LEN> for Writer {
    #[inline(always)]
    fn write(values: &[f32; LEN], importance: Option<&[f32; LEN]>, block: &mut [u8; BYTES]) {
        let [d0, d1, quants @ ..] = block;
        let (d, codes) = around_zero(values, importance, 8);
        [*d0, *d1] = d;
        put_nibbles(&codes, quants);
    }
}
