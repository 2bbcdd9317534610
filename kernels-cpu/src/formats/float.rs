//! Plain floating-point types: F32, F16 (IEEE 754 binary16) and BF16 (the upper half of an F32).

use super::{
    Format,
    block::{read_blocks, read_f16, write_blocks, write_f16},
};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rustai_abi::DType;

pub(super) const F32: Format = Format::new(DType::F32, f32_from_bytes).with_quantize(f32_to_bytes);
pub(super) const F16: Format = Format::new(DType::F16, f16_from_bytes).with_quantize(f16_to_bytes);
pub(super) const BF16: Format = Format::new(DType::BF16, bf16_from_bytes).with_quantize(bf16_to_bytes);

fn f32_from_bytes(bytes: &[u8], out: &mut [f32]) {
    read_blocks::<4, 1>(bytes, out, |bytes, [value]| *value = f32::from_le_bytes(*bytes));
}

fn f32_to_bytes(values: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    write_blocks::<4, 1>(values, out, |[value], bytes| *bytes = value.to_le_bytes());
}

fn f16_from_bytes(bytes: &[u8], out: &mut [f32]) {
    // `half` converts slices with the processor's instruction where there is one, but single values with a check each.
    const STEP: usize = 64;
    let whole = out.len() / STEP * STEP;
    let (bytes, tail) = bytes.split_at_checked(2 * whole).expect("fewer bytes than values");
    let (out, tail_out) = out.split_at_mut(whole);
    read_blocks::<{ 2 * STEP }, STEP>(bytes, out, |bytes, values| {
        let mut halves = [f16::ZERO; STEP];
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(values);
    });
    read_blocks::<2, 1>(tail, tail_out, |bytes, [value]| *value = read_f16(*bytes));
}

/// Rounds to nearest, ties to even.
fn f16_to_bytes(values: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    const STEP: usize = 64;
    let (values, tail) = values.split_at(values.len() / STEP * STEP);
    let (out, tail_out) = out.split_at_mut_checked(2 * values.len()).expect("fewer bytes than values");
    write_blocks::<{ 2 * STEP }, STEP>(values, out, |values, bytes| {
        let mut halves = [f16::ZERO; STEP];
        halves.convert_from_f32_slice(values);
        for (bytes, half) in bytes.as_chunks_mut().0.iter_mut().zip(halves) {
            *bytes = half.to_le_bytes();
        }
    });
    write_blocks::<2, 1>(tail, tail_out, |[value], bytes| *bytes = write_f16(*value));
}

fn bf16_from_bytes(bytes: &[u8], out: &mut [f32]) {
    read_blocks::<2, 1>(bytes, out, |bytes, [value]| {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    });
}

/// Rounds to nearest, ties to even; NaN stays NaN.
fn bf16_to_bytes(values: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    write_blocks::<2, 1>(values, out, |[value], bytes| *bytes = bf16::from_f32(*value).to_le_bytes());
}
