//! Work on rows of activations, against the scalar references.

mod support;

use half::f16;
use rustai_kernels_cpu::{formats::q8a, reference};
use rustai_kernels_cuda::{
    Arena, Floats, Halves, Quants, Span,
    ops::{Operation, Targets},
};
use support::{Numbers, error, open, standin};

/// Quants, scales and sums of a row, as the CPU's format keeps them.
type Row = (Vec<i8>, Vec<u32>, Vec<[i32; 2]>);

fn row_on_cpu(values: &[f32]) -> Row {
    let mut bytes = vec![0; q8a::row_bytes(values.len())];
    q8a::quantize_row(values, &mut bytes);
    let row = q8a::Row::new(&bytes, values.len());
    let blocks = 0..row.blocks();
    (
        blocks.clone().flat_map(|b| row.quants(b)).collect(),
        blocks.clone().map(|b| row.scale(b).to_bits()).collect(),
        blocks.map(|b| row.sums(b)).collect(),
    )
}

/// The same of a row on the device, put back in the order of the columns.
fn rows_on_device(quants: &Span, scales: &Span, rows: usize, width: usize) -> Vec<Row> {
    let blocks = width / 32;
    let (mut raw, mut heads) = (vec![0i8; rows * width], vec![0u8; rows * blocks * 8]);
    quants.download(&mut raw).unwrap();
    scales.download(&mut heads).unwrap();
    let row = |raw: &[i8], heads: &[u8]| {
        let mut ordered = vec![0; width];
        for (column, value) in ordered.iter_mut().enumerate() {
            let (block, half, within) = (column / 32, column % 32 / 16, column % 16);
            *value = raw[(half * blocks + block) * 16 + within];
        }
        let word = |head: &[u8], at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let heads: Vec<_> = heads.chunks_exact(8).collect();
        let sums = |head: &&[u8]| {
            let word = word(head, 4);
            [i32::from(word as u16 as i16), i32::from((word >> 16) as u16 as i16)]
        };
        (ordered, heads.iter().map(|head| word(head, 0)).collect(), heads.iter().map(sums).collect())
    };
    raw.chunks_exact(width).zip(heads.chunks_exact(blocks * 8)).map(|(raw, heads)| row(raw, heads)).collect()
}

fn quants(device: &rustai_kernels_cuda::Device, rows: usize, width: usize) -> (Quants, [Span; 2]) {
    let mut arena = Arena::new(device, "test", Quants::room(rows, width)).unwrap();
    let quants = Quants::take(&mut arena, rows, width).unwrap();
    let spans = quants.spans();
    (quants, spans)
}

#[test]
fn quantizing_gives_the_very_bytes_of_the_cpu() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    for width in [32, 96, 1024, 1568] {
        let rows = 3;
        let mut values = Numbers::new(width as u64).values(rows * width);
        // Ties, zeros, denormals, and values that are not finite.
        values[..8].copy_from_slice(&[127.0, 0.5, 1.5, -2.5, 126.5, -0.5, 0.0, -127.0]);
        values[width..width + 32].fill(1e-40);
        values[2 * width + 5] = if width == 96 { f32::NAN } else { f32::INFINITY };
        let x = Floats::with(&device, width, &values).unwrap();
        standin.in_every_order(|schedule| {
            let (target, [q, s]) = quants(&device, rows, width);
            kernels.convert(&stream, &x, Targets { quants: Some(&target), ..Targets::default() }, rows).unwrap();
            for (row, values) in rows_on_device(&q, &s, rows, width).into_iter().zip(values.chunks_exact(width)) {
                let expected = row_on_cpu(values);
                assert_eq!((row.0, row.2), (expected.0, expected.2), "width {width}, order {schedule}");
                let same = |a: u32, b: u32| a == b || f32::from_bits(a).is_nan() && f32::from_bits(b).is_nan();
                assert!(row.1.iter().zip(&expected.1).all(|(a, b)| same(*a, *b)), "scales, width {width}");
            }
        });
    }
}

#[test]
fn normalizing_agrees_with_the_reference() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    for width in [32, 576, 2080] {
        let rows = 2;
        let values: Vec<f32> = Numbers::new(5).values(rows * width).iter().map(|x| x * 30.0).collect();
        let weight = Numbers::new(6).values(width);
        let mut expected = vec![0.0; rows * width];
        for (x, out) in values.chunks_exact(width).zip(expected.chunks_exact_mut(width)) {
            reference::rms_norm(x, &weight, 1e-5, out);
        }
        let x = Floats::with(&device, width, &values).unwrap();
        let weight = Floats::with(&device, width, &weight).unwrap();
        standin.in_every_order(|schedule| {
            let out = Floats::with(&device, width, &vec![0.0; rows * width]).unwrap();
            let (target, [q, s]) = quants(&device, rows, width);
            let targets = Targets { floats: Some(&out), quants: Some(&target), halves: None };
            kernels.rms_norm(&stream, &x, &weight, 1e-5, targets, rows).unwrap();
            let got = out.read(rows).unwrap();
            let error = error(&got, &expected);
            assert!(error < 1e-6, "width {width}, order {schedule}: {error:e}");
            // What is quantized is what is written beside it.
            for (row, values) in rows_on_device(&q, &s, rows, width).into_iter().zip(got.chunks_exact(width)) {
                assert_eq!(row, row_on_cpu(values));
            }
        });
    }
}

/// A sixteenth of each value, to nearest; of 16 columns, words t and t + 4 hold 4t and the next, 4t + 2 and the next.
#[test]
fn rows_are_rounded_to_f16_in_the_order_of_hoppers_products() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    if kernels.halves_from().unwrap().is_none() {
        return println!("{} does not multiply f16 activations", device.info().name);
    }
    for width in [32, 96, 2080] {
        let rows = 3;
        let mut values: Vec<f32> = Numbers::new(width as u64).values(rows * width).iter().map(|x| x * 50.0).collect();
        values[..10].copy_from_slice(&[
            1e6,
            2e6,
            -3e38,
            0.0,
            -0.0,
            1e-3,
            1e-7,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ]);
        let weight = Numbers::new(6).values(width);
        let [x, weight] = [&values, &weight].map(|values| Floats::with(&device, width, values).unwrap());
        let span = Span::new(&device, "test", Halves::room(rows, width)).unwrap();
        let halves = Halves::at(&span, rows, width).unwrap();
        let check = |values: &[f32], order: u32| {
            let mut got = vec![0u16; rows * width];
            span.download(&mut got).unwrap();
            for (at, value) in values.iter().enumerate() {
                let (column, quarter) = (at % 16 / 4, at % 4);
                let place = at / 16 * 16 + quarter / 2 * 8 + column * 2 + quarter % 2;
                let scaled = f16::from_f32((value / 16.0).clamp(-65504.0, 65504.0));
                let got = f16::from_bits(got[place]);
                let same = if value.is_finite() { got.to_bits() == scaled.to_bits() } else { got.is_nan() };
                assert!(same, "{got} for {value}, {at} of rows of {width}, order {order}");
            }
        };
        standin.in_every_order(|order| {
            let targets = Targets { halves: Some(&halves), ..Targets::default() };
            span.upload(&vec![0x5555u16; rows * width]).unwrap();
            kernels.convert(&stream, &x, targets, rows).unwrap();
            check(&values, order);
            // What is rounded is what is written beside it.
            let out = Floats::with(&device, width, &vec![0.0; rows * width]).unwrap();
            let targets = Targets { floats: Some(&out), halves: Some(&halves), ..Targets::default() };
            kernels.rms_norm(&stream, &x, &weight, 1e-5, targets, rows).unwrap();
            check(&out.read(rows).unwrap(), order);
        });
    }
}

#[test]
fn a_missing_barrier_of_the_norm_is_noticed() {
    let standin = standin();
    let width = 1024;
    let values = Numbers::new(5).values(width);
    let weight = vec![1.0; width];
    let mut expected = vec![0.0; width];
    reference::rms_norm(&values, &weight, 1e-5, &mut expected);
    standin.expect_every_sync_to_matter(1, || {
        let (device, kernels, stream) = open(&standin);
        let x = Floats::with(&device, width, &values).unwrap();
        let weight = Floats::with(&device, width, &weight).unwrap();
        let out = Floats::with(&device, width, &vec![0.0; width]).unwrap();
        let targets = Targets { floats: Some(&out), ..Targets::default() };
        kernels.rms_norm(&stream, &x, &weight, 1e-5, targets, 1).unwrap();
        out.read(1).is_ok_and(|got| error(&got, &expected) < 1e-6)
    });
}

#[test]
fn elements_agree_with_the_reference() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let (rows, width) = (3, 700);
    let [a, b] =
        [1, 2].map(|seed| -> Vec<f32> { Numbers::new(seed).values(rows * width).iter().map(|x| x * 8.0).collect() });
    let a_on_device = Floats::with(&device, width, &a).unwrap();
    let b_on_device = Floats::with(&device, width, &b).unwrap();
    for operation in [Operation::Add, Operation::Multiply, Operation::Silu] {
        let expected: Vec<f32> = a
            .iter()
            .zip(&b)
            .map(|(a, b)| match operation {
                Operation::Add => a + b,
                Operation::Multiply => a * b,
                Operation::Silu => reference::silu(*a),
            })
            .collect();
        let out = Floats::with(&device, width, &vec![0.0; rows * width]).unwrap();
        let second = (operation != Operation::Silu).then_some(&b_on_device);
        kernels.elements(&stream, operation, &a_on_device, second, &out, rows).unwrap();
        let error = error(&out.read(rows).unwrap(), &expected);
        assert!(error < 1e-6, "{operation:?}: {error:e}");
    }
    // In place.
    kernels.elements(&stream, Operation::Add, &a_on_device, Some(&b_on_device), &a_on_device, rows).unwrap();
    let sums: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(a_on_device.read(rows).unwrap(), sums);
}

#[test]
fn rows_are_selected_and_wrong_numbers_give_nan() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let width = 300;
    let values = Numbers::new(1).values(4 * width);
    let x = Floats::with(&device, width, &values).unwrap();
    let rows = Span::new(&device, "test", 12).unwrap();
    rows.upload(&[3u32, 0, 4]).unwrap();
    let out = Floats::with(&device, width, &vec![0.0; 3 * width]).unwrap();
    kernels.select_rows(&stream, &x, &rows, &out, 3).unwrap();
    let got = out.read(3).unwrap();
    assert_eq!(got[..width], values[3 * width..]);
    assert_eq!(got[width..2 * width], values[..width]);
    assert!(got[2 * width..].iter().all(|x| x.is_nan()));
}

#[test]
fn softmax_agrees_with_the_reference_and_needs_its_barriers() {
    let standin = standin();
    let width = 700;
    let values: Vec<f32> = Numbers::new(9).values(2 * width).iter().map(|x| x * 40.0).collect();
    let mut expected = vec![0.0; values.len()];
    for (x, out) in values.chunks_exact(width).zip(expected.chunks_exact_mut(width)) {
        reference::softmax(x, out);
    }
    standin.expect_every_sync_to_matter(2, || {
        let (device, kernels, stream) = open(&standin);
        let x = Floats::with(&device, width, &values).unwrap();
        kernels.softmax(&stream, &x, &x, 2).unwrap();
        x.read(2).is_ok_and(|got| error(&got, &expected) < 1e-6)
    });
    let (device, kernels, stream) = open(&standin);
    let x = Floats::with(&device, 3, &[0.0, f32::NAN, 1.0, 1.0, f32::INFINITY, 2.0, -1e38, -3e38, -2e38]).unwrap();
    kernels.softmax(&stream, &x, &x, 3).unwrap();
    let got = x.read(3).unwrap();
    assert!(got[..6].iter().all(|x| x.is_nan()), "{got:?}");
    assert_eq!(got[6..], [1.0, 0.0, 0.0]);
}
