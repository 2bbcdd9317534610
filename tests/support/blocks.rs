//! Random tensor data of every type that a test model may have.
//!
//! F32, F16, BF16, Q8_0 and Q4_0 hold quantized random numbers. The other types hold blocks drawn at random, with scales
//! that give about the asked spread: the tests need valid weights of a known size, not those of a trained model.

use crate::Rng;
use half::{bf16, f16};
use rustai_abi::DType;

/// `elements` random numbers with standard deviation about `std`, in the layout of `dtype`. `elements` must be a whole
/// number of blocks.
///
/// # Panics
/// For a type that no test model uses.
pub fn random_blocks(dtype: DType, elements: usize, std: f32, rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::with_capacity(dtype.bytes_for(elements).expect("a whole number of blocks"));
    for _ in 0..elements / dtype.block_len() {
        let values: Vec<f32> = (0..dtype.block_len()).map(|_| rng.normal() * std).collect();
        match dtype {
            DType::F32 => out.extend(values[0].to_le_bytes()),
            DType::F16 => out.extend(f16::from_f32(values[0]).to_le_bytes()),
            DType::BF16 => out.extend(bf16::from_f32(values[0]).to_le_bytes()),
            DType::Q8_0 => q8_0(&values, &mut out),
            DType::Q4_0 => q4_0(&values, &mut out),
            _ => drawn(dtype, std, rng, &mut out),
        }
    }
    out
}

/// Scale, then 32 signed bytes.
fn q8_0(values: &[f32], out: &mut Vec<u8>) {
    let most = values.iter().fold(0f32, |most, value| most.max(value.abs()));
    let scale = f16::from_f32(most / 127.0);
    out.extend(scale.to_le_bytes());
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    out.extend(values.iter().map(|value| (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
}

/// Scale, then 32 numbers of four bits with an offset of 8: the first half in the low bits.
fn q4_0(values: &[f32], out: &mut Vec<u8>) {
    let most = values.iter().fold(0f32, |most, value| if value.abs() > most.abs() { *value } else { most });
    let scale = f16::from_f32(most / -8.0);
    out.extend(scale.to_le_bytes());
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    let quant = |value: f32| (value * inverse + 8.0).round().clamp(0.0, 15.0) as u8;
    let (low, high) = values.split_at(16);
    out.extend(low.iter().zip(high).map(|(&low, &high)| quant(low) | quant(high) << 4));
}

/// A block of random bits, in which the f16 scale and the f16 minimum are set.
fn drawn(dtype: DType, std: f32, rng: &mut Rng, out: &mut Vec<u8>) {
    // Where the scale is and how many times the scale the spread is; where the minimum is and how many times the scale it
    // must be to bring the mean to zero.
    let (scale_at, spread, minimum) = match dtype {
        DType::Q4_1 => (0, 4.6, Some((2, -7.5))),
        DType::Q5_0 => (0, 9.2, None),
        DType::Q5_1 => (0, 9.2, Some((2, -15.5))),
        DType::Q2_K => (80, 14.0, Some((82, 1.5))),
        DType::Q3_K => (108, 44.0, None),
        DType::Q4_K => (0, 258.0, Some((2, 7.5))),
        DType::Q5_K => (0, 525.0, Some((2, 15.5))),
        DType::Q6_K => (208, 1350.0, None),
        DType::IQ4_NL => (0, 68.0, None),
        _ => panic!("no test model uses {dtype}"),
    };
    let start = out.len();
    out.extend((0..dtype.block_bytes()).map(|_| rng.bits() as u8));
    let block = &mut out[start..];
    let scale = std / spread;
    block[scale_at..scale_at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    if let Some((at, times)) = minimum {
        block[at..at + 2].copy_from_slice(&f16::from_f32(scale * times).to_le_bytes());
    }
}
