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
    let exact = |dtype: &DType| *dtype != DType::F32 && !SEARCHED.contains(dtype);
    let all = formats::table().iter().filter(|format| format.quantize.is_some()).map(|format| format.dtype);
    assert_eq!(seen, all.filter(exact).collect(), "a vector is missing");
}

/// Types that search for their scales, so that no other program's bytes are expected.
const SEARCHED: [DType; 8] =
    [DType::Q2_K, DType::Q3_K, DType::Q4_K, DType::Q5_K, DType::Q6_K, DType::IQ4_NL, DType::IQ4_XS, DType::MXFP4];

/// A set of rows and the importance of their columns.
struct Samples {
    name: &'static str,
    columns: usize,
    values: Vec<f32>,
    importance: Vec<f32>,
}

/// Names, rows and columns as in `make_vectors.py`.
fn samples() -> Vec<Samples> {
    let file = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/quantize.samples")).unwrap();
    let mut rest = &file[..];
    let mut take = |count: usize| {
        let bytes = rest.split_off(..2 * count).unwrap();
        let mut values = vec![0.0; count];
        (formats::of(DType::F16).unwrap().dequantize)(bytes, &mut values);
        values
    };
    [("gaussian", 16, 512), ("heavy_tails", 16, 512), ("smollm2", 8, 1536)]
        .map(|(name, rows, columns)| Samples { name, columns, values: take(rows * columns), importance: take(columns) })
        .into()
}

/// The relative error of a round trip with or without importance, each column weighted with its own if `weighted`.
fn round_trip_error(format: &Format, samples: &Samples, importance: Option<&[f32]>, weighted: bool) -> f64 {
    let mut blocks = vec![0; format.dtype.bytes_for(samples.columns).unwrap()];
    let mut back = vec![0.0; samples.columns];
    let (mut errors, mut squares) = (0.0, 0.0);
    for row in samples.values.chunks_exact(samples.columns) {
        format.quantize.unwrap()(row, importance, &mut blocks);
        (format.dequantize)(&blocks, &mut back);
        for (i, (value, back)) in row.iter().zip(&back).enumerate() {
            let weight = if weighted { f64::from(samples.importance[i]) } else { 1.0 };
            errors += weight * f64::from(value - back).powi(2);
            squares += weight * f64::from(*value).powi(2);
        }
    }
    f64::sqrt(errors / squares)
}

#[test]
fn quantizing_is_as_good_as_ggmls() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/quantize.errors");
    let (samples, mut compared) = (samples(), BTreeSet::new());
    for line in fs::read_to_string(path).unwrap().lines() {
        let [dtype, name, kind, theirs] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let format = formats::table().iter().find(|format| format.dtype.name() == dtype).unwrap();
        let samples = samples.iter().find(|samples| samples.name == name).unwrap();
        let importance = (kind == "weighted").then_some(&samples.importance[..]);
        let (ours, theirs) =
            (round_trip_error(format, samples, importance, kind == "weighted"), theirs.parse::<f64>().unwrap());
        println!("{dtype:7} {name:12} {kind:9} {ours:.5} ggml {theirs:.5} ratio {:.3}", ours / theirs);
        assert!(ours <= 1.02 * theirs + 1e-7, "{line}, ours {ours}");
        compared.insert(format.dtype);
    }
    assert!(SEARCHED.iter().all(|dtype| compared.contains(dtype)));
}

#[test]
fn importance_moves_the_error_to_where_it_matters_less() {
    for samples in samples().iter().filter(|samples| samples.name == "gaussian") {
        for dtype in SEARCHED.iter().chain(&[DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1]) {
            let format = formats::of(*dtype).unwrap();
            let (plain, weighted) = (
                round_trip_error(format, samples, None, true),
                round_trip_error(format, samples, Some(&samples.importance), true),
            );
            assert!(weighted < plain, "{dtype}: {weighted} {plain}");
        }
    }
}

#[test]
fn strange_importance_and_strange_values_do_no_harm() {
    let values: Vec<f32> = (0..256).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
    let wild = [0.0, 1e-45, 1e-30, 1e30, f32::MAX, f32::INFINITY, f32::NAN, -1.0];
    let importances = [vec![0.0; 256], vec![1e-38; 256], vec![f32::MAX; 256], vec![f32::NAN; 256]];
    let mixed: Vec<f32> = (0..256).map(|i| wild[i % wild.len()]).collect();
    let one: Vec<f32> = (0..256).map(|i| if i == 77 { 1.0 } else { 0.0 }).collect();
    for format in formats::table().iter().filter(|format| format.quantize.is_some()) {
        let quantize = format.quantize.unwrap();
        let mut blocks = vec![0; format.dtype.bytes_for(256).unwrap()];
        let mut back = vec![0.0; 256];
        for importance in importances.iter().chain([&mixed, &one]) {
            quantize(&values, Some(importance), &mut blocks);
            (format.dequantize)(&blocks, &mut back);
            let ordinary = importance.iter().all(|value| value.is_finite() && *value >= 0.0);
            assert!(!ordinary || back.iter().all(|value| value.is_finite()), "{}", format.dtype);
        }
        // The only column that counts is met well.
        quantize(&values, Some(&one), &mut blocks);
        (format.dequantize)(&blocks, &mut back);
        // A scale that is a power of two has little choice.
        let near = (back[77] - values[77]).abs() <= 0.02 * values[77].abs() + 5e-3;
        assert!(near || format.dtype == DType::MXFP4, "{} {} {}", format.dtype, back[77], values[77]);
        for scale in [0.0, 1e-45, 1e-38, 1e-20, 1e-8, 1e4, 1e30, f32::MAX / 0.5] {
            let scaled: Vec<f32> = values.iter().map(|value| value * scale).collect();
            quantize(&scaled, None, &mut blocks);
            (format.dequantize)(&blocks, &mut back);
            // What f16 scales can hold is held.
            if (1e-2..=1e4).contains(&scale) {
                assert!(back.iter().zip(&scaled).all(|(back, value)| (back - value).abs() <= 0.3 * scale));
            }
        }
        for same in [1.0, -1.0] {
            quantize(&[same; 256], None, &mut blocks);
            (format.dequantize)(&blocks, &mut back);
            assert!(back.iter().all(|back| (back - same).abs() < 0.01), "{} {same} {back:?}", format.dtype);
        }
    }
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
