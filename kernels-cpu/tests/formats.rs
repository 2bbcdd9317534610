//! Formats against the numpy reference of the `gguf` package, bit for bit; `make_vectors.py` says what the vectors hold.

use rustai_abi::DType;
use rustai_kernels_cpu::formats::{self, Format};
use std::{collections::BTreeSet, fs, path::Path};

/// The stored bytes of a vector, or `None` if there is none for this type.
fn load(dtype: DType, kind: &str) -> Option<Vec<u8>> {
    let name = format!("{}.{kind}", dtype.name().to_lowercase());
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)).ok()
}

/// Elements, blocks and values of a vector; the blocks come first in `dequantize` vectors and last in `quantize` ones.
fn parse(dtype: DType, kind: &str) -> Option<(Vec<u8>, Vec<f32>)> {
    let file = load(dtype, kind)?;
    let (count, rest) = file.split_first_chunk().unwrap();
    let elements = u32::from_le_bytes(*count) as usize;
    let block_bytes = dtype.bytes_for(elements).unwrap();
    assert_eq!(rest.len(), block_bytes + 4 * elements, "{dtype}.{kind} has another length than its header says");
    let (blocks, values) = match kind {
        "dequantize" => rest.split_at(block_bytes),
        _ => {
            let (values, blocks) = rest.split_at(4 * elements);
            (blocks, values)
        }
    };
    let values = values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Some((blocks.to_vec(), values))
}

/// The formats that have a vector of this kind.
fn with_vectors(kind: &str) -> impl Iterator<Item = (&'static Format, Vec<u8>, Vec<f32>)> {
    formats::table().iter().filter_map(move |format| {
        let (blocks, values) = parse(format.dtype, kind)?;
        Some((format, blocks, values))
    })
}

#[test]
fn dequantize_equals_numpy() {
    let mut seen = BTreeSet::new();
    for (format, blocks, expected) in with_vectors("dequantize") {
        let mut values = vec![f32::NAN; expected.len()];
        (format.dequantize)(&blocks, &mut values);
        for (i, (value, expected)) in values.iter().zip(&expected).enumerate() {
            assert_eq!(value.to_bits(), expected.to_bits(), "{} value {i}: {value:e} for {expected:e}", format.dtype);
        }
        seen.insert(format.dtype);
    }
    // Q8_K has no dequantization in the package; its quantization vector covers the layout.
    let all = formats::table().iter().map(|format| format.dtype).filter(|dtype| *dtype != DType::Q8_K).collect();
    assert_eq!(seen, all, "a vector is missing");
}

#[test]
fn quantize_equals_numpy() {
    let mut seen = BTreeSet::new();
    for (format, expected, values) in with_vectors("quantize") {
        let quantize = format.quantize.expect("a type with a vector can be written");
        let mut blocks = vec![0xa5; expected.len()];
        quantize(&values, None, &mut blocks);
        let size = format.dtype.block_bytes();
        for (i, (block, expected)) in blocks.chunks(size).zip(expected.chunks(size)).enumerate() {
            assert_eq!(block, expected, "{} block {i}", format.dtype);
        }
        seen.insert(format.dtype);
    }
    let all = formats::table().iter().filter(|format| format.quantize.is_some() && format.dtype != DType::F32);
    assert_eq!(seen, all.map(|format| format.dtype).collect(), "a vector is missing");
}

/// A round trip is off by at most half a step (a whole one where the asymmetric range of 4 bits cuts the far end).
#[test]
fn round_trips_stay_within_a_step() {
    let values: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
    let ceilings = [
        (DType::F32, 0.0),
        (DType::F16, 0.5 / 2048.0),
        (DType::BF16, 0.5 / 256.0),
        (DType::Q8_0, 0.51 / 127.0),
        (DType::Q8_K, 0.51 / 127.0),
        (DType::Q4_1, 1.02 / 15.0),
        (DType::Q4_0, 1.01 / 8.0),
    ];
    for (dtype, ceiling) in ceilings {
        let format = formats::of(dtype).unwrap();
        let mut blocks = vec![0; dtype.bytes_for(values.len()).unwrap()];
        let mut back = vec![0.0; values.len()];
        format.quantize.unwrap()(&values, None, &mut blocks);
        (format.dequantize)(&blocks, &mut back);
        for (value, back) in values.iter().zip(&back) {
            // The largest magnitude is 0.5, so that ceilings are relative to it.
            assert!((value - back).abs() <= 0.5 * ceiling + f32::EPSILON, "{dtype}: {value} came back as {back}");
        }
    }
}

/// Any bytes are valid blocks; scales that are infinite or NaN show in every value that they meet.
#[test]
fn scales_that_are_not_finite_spread() {
    for format in formats::table() {
        let mut bytes = vec![0xff; format.dtype.block_bytes()];
        let mut values = vec![0.0; format.dtype.block_len()];
        (format.dequantize)(&bytes, &mut values);
        match format.dtype {
            // An exponent of 255 is the largest power of two, not a NaN.
            DType::MXFP4 => assert!(values.iter().all(|value| value.is_infinite())),
            // Every scale is a finite number.
            DType::NVFP4 => assert!(values.iter().all(|value| value.is_finite())),
            // 0xffff is a NaN in f16, bf16 and the upper half of an f32.
            other => assert!(values.iter().all(|value| value.is_nan()), "{other}"),
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = if i % 2 == 0 { 0x00 } else { 0x7c };
        }
        (format.dequantize)(&bytes, &mut values);
        // An infinity in f16, except where the scale is of another kind, or lies in parts.
        let finite = [DType::F32, DType::BF16, DType::Q8_K, DType::MXFP4, DType::NVFP4, DType::IQ1_M];
        let finite = finite.contains(&format.dtype);
        assert!(values.iter().all(|value| value.is_finite() == finite), "{}", format.dtype);
    }
}
