//! TQ1_0: 256 values of -1, 0 or 1, five to a byte, one scale. `value = d * (digit - 1)`.
//!
//! Bytes: 48 with five ternary digits each, 4 with four digits, `d` (f16). The first 32 bytes hold 160 values: the first
//! digits of all, then the second ones, and so on; the next 16 hold 80 likewise, the last four 16. A byte is the fraction
//! `digits / 3^5` in 256ths, rounded up: times three, the carry out of the byte is the next digit.

use super::{
    Format,
    block::{QK_K, read_blocks, read_f16},
};
use rustai_abi::DType;

const BYTES: usize = 54;

/// Powers of three that bring the digits to the top of the byte.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

pub(super) const FORMAT: Format = Format::new(DType::TQ1_0, dequantize);

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    read_blocks(bytes, out, |block: &[u8; BYTES], values: &mut [f32; QK_K]| {
        let [quants @ .., d0, d1] = block;
        let d = read_f16([*d0, *d1]);
        let (first, rest) = quants.split_at(32);
        let (second, last) = rest.split_at(16);
        let (first_values, rest) = values.split_at_mut(160);
        let (second_values, last_values) = rest.split_at_mut(80);
        for (bytes, values) in [(first, first_values), (second, second_values), (last, last_values)] {
            for (power, values) in POWERS.iter().zip(values.chunks_exact_mut(bytes.len())) {
                for (value, byte) in values.iter_mut().zip(bytes) {
                    let digit = (u16::from(byte.wrapping_mul(*power)) * 3) >> 8;
                    *value = d * f32::from(digit as i8 - 1);
                }
            }
        }
    });
}
