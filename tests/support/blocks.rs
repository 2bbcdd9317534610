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

/// A block of random bits, in which the scale and the minimum are set.
fn drawn(dtype: DType, std: f32, rng: &mut Rng, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend((0..dtype.block_bytes()).map(|_| rng.bits() as u8));
    let block = &mut out[start..];
    // Where the scale is and how many times the scale the spread is; where the minimum is and how many times the scale it
    // must be to bring the mean to zero.
    let (scale_at, spread, minimum) = match dtype {
        DType::Q1_0 | DType::Q8_1 => (0, 1.0, None),
        DType::Q2_0 => (0, 1.2, None),
        DType::Q4_1 => (0, 4.6, Some((2, -7.5))),
        DType::Q5_0 => (0, 9.2, None),
        DType::Q5_1 => (0, 9.2, Some((2, -15.5))),
        DType::Q2_K => (80, 14.0, Some((82, 1.5))),
        DType::Q3_K => (108, 44.0, None),
        DType::Q4_K => (0, 258.0, Some((2, 7.5))),
        DType::Q5_K => (0, 525.0, Some((2, 15.5))),
        DType::Q6_K => (208, 1350.0, None),
        DType::IQ1_S => (0, 7.5, None),
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S => (0, 50.0, None),
        DType::IQ3_XXS | DType::IQ3_S => (0, 150.0, None),
        DType::IQ4_NL => (0, 68.0, None),
        DType::IQ4_XS => (0, 1260.0, None),
        DType::TQ1_0 => (52, 0.8, None),
        DType::TQ2_0 => (64, 1.2, None),
        DType::IQ1_M => return in_nibbles(std / 7.5, block),
        // Powers of two; the values' spread is 2.8, and twice that in halves.
        DType::MXFP4 => return block[0] = (127.0 + (std / 2.8).log2()).round().clamp(0.0, 254.0) as u8,
        DType::NVFP4 => return block[..4].fill((7.0 + (std / 2.8).log2()).round().clamp(0.0, 15.0) as u8 * 8),
        _ => panic!("no test model uses {dtype}"),
    };
    let scale = std / spread;
    block[scale_at..scale_at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    if let Some((at, times)) = minimum {
        block[at..at + 2].copy_from_slice(&f16::from_f32(scale * times).to_le_bytes());
    }
}

/// Sets the scale of IQ1_M: four nibbles on top of the last four 16-bit words.
fn in_nibbles(scale: f32, block: &mut [u8]) {
    let bits = f16::from_f32(scale).to_bits();
    for (i, byte) in block[48..].iter_mut().skip(1).step_by(2).enumerate() {
        *byte = *byte & 0x0f | ((bits >> (4 * i)) as u8) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustai_kernels_cpu::formats;

    #[test]
    fn values_of_every_type_have_about_the_asked_spread() {
        let mut rng = Rng::new(11);
        for format in formats::table().iter().filter(|format| format.dtype != DType::Q8_K) {
            let mut values = vec![0.0; 8192];
            let bytes = random_blocks(format.dtype, values.len(), 0.1, &mut rng);
            (format.dequantize)(&bytes, &mut values);
            let spread = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
            assert!((0.06..0.17).contains(&spread), "{}: {spread}", format.dtype);
        }
    }
}
