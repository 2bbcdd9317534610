//! Products of weights with activations, against the scalar reference.

mod support;

use rustai_abi::DType;
use rustai_cuda_standin::EARLY;
use rustai_kernels_cpu::bench::{Residence, Shape};
use rustai_kernels_cpu::{formats, reference};
use rustai_kernels_cuda::{
    Arena, Device, DeviceError, Floats, Input, Kernels, Packed, Partials, Projection, Stream, Uploader, Weights,
    bench::{Product, Roofs},
    ops::Peak,
    weights::{device_bytes, is_quantized},
};
use support::{
    Numbers, Standin, error, open,
    products::{Activations, CEILING, SPLIT_CEILING, TYPES, agrees, expected, upload, weights, zeros},
    standin,
};

#[test]
fn every_type_agrees_with_the_reference_in_every_order() {
    let standin = standin();
    let opened = open(&standin);
    for (n, dtype) in TYPES.into_iter().enumerate() {
        // An odd number of rows; rows that leave threads without work, and rows that go round more than once.
        for shape in [(5, 256, 1), (3, 2304, 2), (2, 512, 3), (7, 768, 8)] {
            agrees(&opened, dtype, shape, n as u64, |work| standin.in_every_order(work));
        }
    }
}

#[test]
fn many_tokens_agree_with_the_reference_in_several_orders() {
    let standin = standin();
    // Without Hopper's own kernels, unless this is one.
    if !standin.is_real() {
        standin.set("capability", 80);
    }
    let opened = open(&standin);
    for (n, dtype) in TYPES.into_iter().enumerate() {
        let long = dtype.block_len() == 256;
        // More tokens than a tile and more rows than a tile, neither of them whole; steps that are not whole either.
        let shapes = match is_quantized(dtype).unwrap() {
            true => [(70, if long { 256 } else { 96 }, 9), (3, if long { 512 } else { 160 }, 131)],
            false => [(134, 40, 17), (3, 104, 131)],
        };
        for shape in shapes {
            agrees(&opened, dtype, shape, n as u64, |work| {
                for schedule in [0, EARLY | 1, 7] {
                    standin.set("schedule", i64::from(schedule));
                    work(schedule);
                }
            });
        }
    }
}

/// Products of one matrix with up to so many rows of activations, split by columns or not.
struct Batch {
    opened: (Device, Kernels, Stream),
    weights: Weights,
    partials: Option<Partials>,
    shape: (usize, usize),
    x: Vec<f32>,
    expected: Vec<f32>,
}

impl Batch {
    fn new(standin: &Standin, dtype: DType, (rows, cols): (usize, usize), tokens: usize, split: bool) -> Self {
        let opened = open(standin);
        let bytes = weights(dtype, rows, cols, dtype as u64);
        let x = Numbers::new(31).values(tokens * cols);
        Self {
            weights: upload(&opened.0, dtype, rows, cols, &bytes),
            partials: if split { Partials::new(&opened.0, tokens).unwrap() } else { None },
            expected: expected(dtype, rows, cols, &bytes, &x),
            shape: (rows, cols),
            opened,
            x,
        }
    }

    fn tokens(&self, first: usize, count: usize) -> Vec<f32> {
        let (device, kernels, stream) = &self.opened;
        let (rows, cols) = self.shape;
        let x = &self.x[first * cols..(first + count) * cols];
        let x = Activations::new(device, kernels, stream, self.weights.dtype(), cols, x);
        let out = zeros(device, count, rows);
        let projection = Projection { weights: &self.weights, bias: None, out: &out, accumulate: false };
        kernels.matmul(stream, x.input(), &[projection], self.partials.as_ref(), count).unwrap();
        out.read(count).unwrap()
    }

    fn bits(&self, first: usize, count: usize) -> Vec<u32> {
        self.tokens(first, count).into_iter().map(f32::to_bits).collect()
    }

    fn error(&self, got: &[f32]) -> f32 {
        error(got, &self.expected[..got.len()])
    }
}

/// Tiles of 16, 32 and 64 tokens, full, with one token and one short of full; more rows than a tile.
#[test]
fn batches_agree_with_the_reference_split_and_whole() {
    let standin = standin();
    if !standin.is_real() {
        standin.set("capability", 80);
    }
    for dtype in TYPES.into_iter().filter(|dtype| is_quantized(*dtype).unwrap()) {
        let short = if dtype.block_len() == 256 { 256 } else { 160 };
        // Two splits of four steps; with blocks of 32, the last step is not whole.
        let long = if dtype.block_len() == 256 { 1024 } else { 1056 };
        for (cols, split) in [(short, false), (long, true)] {
            let batch = Batch::new(&standin, dtype, (70, cols), 65, split);
            for (order, tokens) in [9, 16, 17, 31, 32, 33, 48, 63, 64, 65].into_iter().enumerate() {
                standin.set("schedule", [0, 1, 7][order % 3]);
                let error = batch.error(&batch.tokens(0, tokens));
                assert!(error < CEILING, "{dtype} {cols} columns, {tokens} tokens: {error:e}");
            }
        }
    }
}

/// Whatever the order of blocks, however often, and whoever else is in the batch; and splits are at work where they should be.
#[test]
fn a_token_of_a_batch_has_one_result() {
    let standin = standin();
    let (rows, cols) = (131, 2048);
    for dtype in [DType::Q4_0, DType::Q4_K, DType::Q6_K] {
        let [split, whole] = [true, false].map(|split| Batch::new(&standin, dtype, (rows, cols), 64, split));
        // Of the tiles of 16 and 32 tokens, which are split alike, and of those of 64.
        for (all, parts) in [(32, [(0, 9), (3, 16), (16, 16), (5, 17)]), (64, [(0, 33), (16, 48), (1, 63), (24, 40)])] {
            let expected = split.bits(0, all);
            let plain = whole.bits(0, all);
            if !standin.is_real() {
                assert_ne!(expected, plain, "{dtype}, {all} tokens: nothing was split");
            }
            standin.in_every_order(|schedule| {
                for turn in 0..2 {
                    assert_eq!(split.bits(0, all), expected, "{dtype}, order {schedule}, turn {turn}");
                }
            });
            for (first, count) in parts {
                let range = first * rows..(first + count) * rows;
                assert_eq!(split.bits(first, count), expected[range.clone()], "{dtype}, {count} of {all} split");
                assert_eq!(whole.bits(first, count), plain[range], "{dtype}, {count} of {all}");
            }
        }
    }
}

#[test]
fn split_products_have_biases_residuals_and_gates() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let cols = 1024;
    let partials = Partials::new(&device, 64).unwrap().unwrap();
    for (dtype, tokens) in [(DType::Q5_1, 12), (DType::Q6_K, 20), (DType::Q4_K, 40)] {
        let x = Numbers::new(1).values(tokens * cols);
        let heights = [70, 40];
        let bytes: Vec<_> = (0..2).map(|i| weights(dtype, heights[i], cols, i as u64)).collect();
        let matrices: Vec<_> = (0..2).map(|i| upload(&device, dtype, heights[i], cols, &bytes[i])).collect();
        let bias = Numbers::new(9).values(heights[0]);
        let before = Numbers::new(10).values(tokens * heights[1]);
        let activations = Activations::new(&device, &kernels, &stream, dtype, cols, &x);
        let bias_on_device = Floats::with(&device, heights[0], &bias).unwrap();
        let product = |partials| {
            let outs = [zeros(&device, tokens, heights[0]), Floats::with(&device, heights[1], &before).unwrap()];
            let projections = [
                Projection { weights: &matrices[0], bias: Some(&bias_on_device), out: &outs[0], accumulate: false },
                Projection { weights: &matrices[1], bias: None, out: &outs[1], accumulate: true },
            ];
            kernels.matmul(&stream, activations.input(), &projections, partials, tokens).unwrap();
            outs.map(|out| out.read(tokens).unwrap())
        };
        let got = product(Some(&partials));
        for (i, got) in got.iter().enumerate() {
            let mut expected = expected(dtype, heights[i], cols, &bytes[i], &x);
            for (at, value) in expected.iter_mut().enumerate() {
                *value += if i == 0 { bias[at % heights[0]] } else { before[at] };
            }
            let error = error(got, &expected);
            assert!(error < CEILING, "{dtype} matrix {i}: {error:e}");
        }

        let rows = 37;
        let bytes = [3, 4].map(|seed| weights(dtype, rows, cols, seed));
        let mut wanted = vec![0.0; tokens * rows];
        let [gate, up] = bytes.each_ref().map(|bytes| expected(dtype, rows, cols, bytes, &x));
        reference::swiglu(&gate, &up, &mut wanted);
        let on_device = bytes.map(|bytes| upload(&device, dtype, rows, cols, &bytes));
        let gated = |partials| {
            let out = zeros(&device, tokens, rows);
            kernels.gated_matmul(&stream, activations.input(), on_device.each_ref(), &out, partials, tokens).unwrap();
            out.read(tokens).unwrap()
        };
        let got_gated = gated(Some(&partials));
        let error = error(&got_gated, &wanted);
        assert!(error < 2.0 * CEILING, "{dtype}: {error:e}");
        // Both were split, unless the device is large.
        if !standin.is_real() {
            assert!(product(None) != got && gated(None) != got_gated, "{dtype}");
        }
    }
}

/// The counters are as they were after each launch, so a recording can run again; partial sums that are too small for the launch
/// are not used.
#[test]
fn split_products_are_recorded() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let (rows, cols, tokens) = (70, 1024, 33);
    let bytes = weights(DType::Q4_K, rows, cols, 1);
    let x = Numbers::new(2).values(cols * tokens);
    let expected = expected(DType::Q4_K, rows, cols, &bytes, &x);
    let on_device = upload(&device, DType::Q4_K, rows, cols, &bytes);
    let x = Activations::new(&device, &kernels, &stream, DType::Q4_K, cols, &x);
    let out = zeros(&device, tokens, rows);
    let product = |stream: &Stream, partials: &Partials| {
        let projection = Projection { weights: &on_device, bias: None, out: &out, accumulate: false };
        kernels.matmul(stream, x.input(), &[projection], Some(partials), tokens)
    };
    let partials = Partials::new(&device, tokens).unwrap().unwrap();
    let graph = stream.capture(|stream| product(stream, &partials)).unwrap();
    // The recording keeps them.
    drop(partials);
    let mut first = None;
    for _ in 0..3 {
        out.span().upload(&vec![f32::NAN; tokens * rows]).unwrap();
        graph.launch().unwrap();
        let got = out.read(tokens).unwrap();
        assert!(error(&got, &expected) < CEILING);
        let first = first.get_or_insert_with(|| got.clone());
        assert!(got == *first);
    }
    assert!(Partials::new(&device, 8).unwrap().is_none());
    let small = Partials::new(&device, 9).unwrap().unwrap();
    product(&stream, &small).unwrap();
    assert!(error(&out.read(tokens).unwrap(), &expected) < CEILING);
}

#[test]
fn many_tokens_share_matrices_biases_and_gates() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    // One with halves of blocks and one with whole ones, and floats.
    for (plain, width, gated, cols) in [(DType::Q5_1, 64, DType::Q6_K, 256), (DType::BF16, 88, DType::F16, 40)] {
        let tokens = 20;
        let x = Numbers::new(1).values(tokens * width);
        let heights = [130, 40];
        let bytes: Vec<_> = (0..2).map(|i| weights(plain, heights[i], width, i as u64)).collect();
        let matrices: Vec<_> = (0..2).map(|i| upload(&device, plain, heights[i], width, &bytes[i])).collect();
        let bias = Numbers::new(9).values(heights[0]);
        let before = Numbers::new(10).values(tokens * heights[1]);
        let activations = Activations::new(&device, &kernels, &stream, plain, width, &x);
        let bias_on_device = Floats::with(&device, heights[0], &bias).unwrap();
        let outs = [zeros(&device, tokens, heights[0]), Floats::with(&device, heights[1], &before).unwrap()];
        let projections = [
            Projection { weights: &matrices[0], bias: Some(&bias_on_device), out: &outs[0], accumulate: false },
            Projection { weights: &matrices[1], bias: None, out: &outs[1], accumulate: true },
        ];
        kernels.matmul(&stream, activations.input(), &projections, None, tokens).unwrap();
        for i in 0..2 {
            let mut expected = expected(plain, heights[i], width, &bytes[i], &x);
            for (at, value) in expected.iter_mut().enumerate() {
                *value += if i == 0 { bias[at % heights[0]] } else { before[at] };
            }
            let error = error(&outs[i].read(tokens).unwrap(), &expected);
            assert!(error < CEILING, "{plain} matrix {i}: {error:e}");
        }

        let rows = 75;
        let [gate, up] = [1, 2].map(|seed| weights(gated, rows, cols, seed));
        let x = Numbers::new(3).values(tokens * cols);
        let mut wanted = vec![0.0; tokens * rows];
        let linear = expected(gated, rows, cols, &up, &x);
        reference::swiglu(&expected(gated, rows, cols, &gate, &x), &linear, &mut wanted);
        let on_device = [gate, up].map(|bytes| upload(&device, gated, rows, cols, &bytes));
        let activations = Activations::new(&device, &kernels, &stream, gated, cols, &x);
        let out = zeros(&device, tokens, rows);
        kernels.gated_matmul(&stream, activations.input(), on_device.each_ref(), &out, None, tokens).unwrap();
        let error = error(&out.read(tokens).unwrap(), &wanted);
        assert!(error < 2.0 * CEILING, "{gated}: {error:e}");
    }
}

/// Large activations of F16 weights neither overflow nor lose more than the rest of the row hides.
#[test]
fn activations_beyond_the_range_of_f16_are_multiplied() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let (rows, cols, tokens) = (3, 64, 17);
    let bytes = weights(DType::F16, rows, cols, 4);
    let mut x = Numbers::new(5).values(tokens * cols);
    x[7] = 4e5;
    let mut exact = vec![0.0; tokens * rows];
    reference::matmul(formats::of(DType::F16).unwrap(), rows, cols, &bytes, &x, &mut exact);
    let on_device = upload(&device, DType::F16, rows, cols, &bytes);
    let x = Activations::new(&device, &kernels, &stream, DType::F16, cols, &x);
    let out = zeros(&device, tokens, rows);
    let projection = Projection { weights: &on_device, bias: None, out: &out, accumulate: false };
    kernels.matmul(&stream, x.input(), &[projection], None, tokens).unwrap();
    let got = out.read(tokens).unwrap();
    for (got, exact) in got.chunks_exact(rows).zip(exact.chunks_exact(rows)) {
        assert!(error(got, exact) < 1e-3, "{got:?} for {exact:?}");
    }
}

/// A model that went wrong shows it: what is no number in a row of activations, or of weights, makes results that are none there,
/// at every number of tokens, and nowhere else.
#[test]
fn what_is_not_finite_shows_in_its_own_row_and_nowhere_else() {
    let standin = standin();
    let (rows, wrong_row) = (9, 4);
    for (dtype, cols) in [(DType::Q4_0, 96), (DType::Q4_K, 256), (DType::F16, 40), (DType::BF16, 40), (DType::F32, 40)]
    {
        let quantized = is_quantized(dtype).unwrap();
        let bytes = weights(dtype, rows, cols, 5);
        // A scale or a weight of the row.
        let mut wrong_bytes = bytes.clone();
        let at = wrong_row * bytes.len() / rows;
        let wrong: &[u8] = match dtype {
            DType::F32 => &[0, 0, 0xc0, 0x7f],
            DType::BF16 => &[0xc0, 0x7f],
            _ => &[0, 0x7e],
        };
        wrong_bytes[at..at + wrong.len()].copy_from_slice(wrong);
        for (capability, tokens) in [(90, 1), (90, 12), (90, 20), (90, 40), (80, 70), (90, 70)] {
            if !standin.is_real() {
                standin.set("capability", capability);
            }
            let (device, kernels, stream) = open(&standin);
            let x = Numbers::new(3).values(tokens * cols);
            let product = |bytes: &[u8], x: &[f32]| {
                let on_device = upload(&device, dtype, rows, cols, bytes);
                let x = Activations::new(&device, &kernels, &stream, dtype, cols, x);
                let out = zeros(&device, tokens, rows);
                let projection = Projection { weights: &on_device, bias: None, out: &out, accumulate: false };
                kernels.matmul(&stream, x.input(), &[projection], None, tokens).unwrap();
                out.read(tokens).unwrap()
            };
            let expected = product(&bytes, &x);
            assert!(expected.iter().all(|value| value.is_finite()));
            let check = |what: &str, got: &[f32], nan: bool, is_wrong: &dyn Fn(usize, usize) -> bool| {
                for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    let (token, row) = (index / rows, index % rows);
                    let right = match is_wrong(token, row) {
                        true if nan => got.is_nan(),
                        true => !got.is_finite(),
                        false => got.to_bits() == expected.to_bits(),
                    };
                    assert!(right, "{dtype}, {tokens} tokens, {capability}, {what}: {got} of {token}, {row}");
                }
            };
            let wrong_token = tokens / 2;
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = x.clone();
                x[wrong_token * cols + 7] = value;
                // A quantized block with an infinity has no scale.
                let nan = value.is_nan() || quantized;
                check(&format!("activation {value}"), &product(&bytes, &x), nan, &|token, _| token == wrong_token);
            }
            check("weight", &product(&wrong_bytes, &x), true, &|_, row| row == wrong_row);
        }
    }
}

#[test]
fn a_missing_barrier_or_wait_of_the_prefill_kernels_is_noticed() {
    let standin = standin();
    for (dtype, (rows, cols, tokens), syncs) in
        [(DType::Q4_K, (3, 512, 9), 2), (DType::F16, (3, 128, 17), 2), (DType::F32, (3, 128, 17), 1)]
    {
        let bytes = weights(dtype, rows, cols, 1);
        let x = Numbers::new(2).values(cols * tokens);
        let expected = expected(dtype, rows, cols, &bytes, &x);
        standin.expect_every_sync_to_matter(syncs, || {
            let (device, kernels, stream) = open(&standin);
            let on_device = upload(&device, dtype, rows, cols, &bytes);
            let x = Activations::new(&device, &kernels, &stream, dtype, cols, &x);
            let out = zeros(&device, tokens, rows);
            let projection = Projection { weights: &on_device, bias: None, out: &out, accumulate: false };
            kernels.matmul(&stream, x.input(), &[projection], None, tokens).unwrap();
            out.read(tokens).is_ok_and(|got| error(&got, &expected) < SPLIT_CEILING)
        });
    }
}

#[test]
fn missing_synchronisations_of_split_products_are_noticed() {
    let standin = standin();
    // The barrier and the wait of a step; the barriers before and after a block counts itself.
    standin.expect_every_sync_to_matter(4, || {
        let batch = Batch::new(&standin, DType::Q4_K, (3, 1024), 9, true);
        let (device, kernels, stream) = &batch.opened;
        let x = Activations::new(device, kernels, stream, DType::Q4_K, 1024, &batch.x);
        let out = zeros(device, 9, 3);
        let projection = Projection { weights: &batch.weights, bias: None, out: &out, accumulate: false };
        kernels.matmul(stream, x.input(), &[projection], batch.partials.as_ref(), 9).unwrap();
        out.read(9).is_ok_and(|got| batch.error(&got) < CEILING)
    });
}

#[test]
fn any_bits_are_weights() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    for dtype in TYPES.into_iter().filter(|dtype| is_quantized(*dtype).unwrap()) {
        let (rows, cols) = (4, 512);
        let mut numbers = Numbers::new(dtype as u64 + 1);
        let mut bytes: Vec<u8> = (0..dtype.bytes_for(rows * cols).unwrap()).map(|_| numbers.bits() as u8).collect();
        // Scales that are finite and of one size, so that errors can be compared; everything else stays random.
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            let len = block.len();
            let halves: &[usize] = match dtype {
                DType::Q2_K => &[80, 82],
                DType::Q3_K | DType::Q6_K => &[len - 2],
                DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
                DType::MXFP4 => &[],
                _ => &[0],
            };
            for at in halves {
                block[*at + 1] = block[*at + 1] & 0x83 | 0x20;
            }
            if dtype == DType::MXFP4 {
                block[0] = 120 + block[0] % 4;
            }
        }
        let x = Numbers::new(3).values(cols);
        let expected = expected(dtype, rows, cols, &bytes, &x);
        let on_device = upload(&device, dtype, rows, cols, &bytes);
        let x = Activations::new(&device, &kernels, &stream, dtype, cols, &x);
        let out = zeros(&device, 1, rows);
        let projection = Projection { weights: &on_device, bias: None, out: &out, accumulate: false };
        kernels.matmul(&stream, x.input(), &[projection], None, 1).unwrap();
        let error = error(&out.read(1).unwrap(), &expected);
        assert!(error < CEILING, "{dtype}: {error:e}");
    }
}

#[test]
fn rows_of_a_table_are_read_bit_for_bit() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let (rows, cols) = (9, 512);
    for dtype in TYPES {
        let mut numbers = Numbers::new(dtype as u64);
        let mut bytes: Vec<u8> = (0..dtype.bytes_for(rows * cols).unwrap()).map(|_| numbers.bits() as u8).collect();
        if !is_quantized(dtype).unwrap() {
            bytes = weights(dtype, rows, cols, 5);
        }
        let table = upload(&device, dtype, rows, cols, &bytes);
        let tokens = [8u32, 0, 3];
        let ids = rustai_kernels_cuda::Span::new(&device, "test", 12).unwrap();
        ids.upload(&tokens).unwrap();
        let out = zeros(&device, 3, cols);
        kernels.embed(&stream, &table, &ids, &out, 1.0, 3).unwrap();
        let got = out.read(3).unwrap();
        let row_bytes = bytes.len() / rows;
        let mut row = vec![0.0; cols];
        for (token, got) in tokens.iter().zip(got.chunks_exact(cols)) {
            let at = *token as usize * row_bytes;
            (formats::of(dtype).unwrap().dequantize)(&bytes[at..at + row_bytes], &mut row);
            for (i, (got, expected)) in got.iter().zip(&row).enumerate() {
                let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
                assert!(same, "{dtype} token {token} value {i}: {got:e} for {expected:e}");
            }
        }
        ids.upload(&[9u32]).unwrap();
        kernels.embed(&stream, &table, &ids, &out, 1.0, 1).unwrap();
        assert!(out.read(1).unwrap().iter().all(|x| x.is_nan()), "a token that is not in the table");
    }
}

#[test]
fn matrices_biases_and_residuals_share_a_launch() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let (cols, tokens) = (256, 2);
    let x = Numbers::new(1).values(tokens * cols);
    let heights = [6, 3, 4];
    let bytes: Vec<_> = (0..3).map(|i| weights(DType::Q4_K, heights[i], cols, i as u64)).collect();
    let matrices: Vec<_> = (0..3).map(|i| upload(&device, DType::Q4_K, heights[i], cols, &bytes[i])).collect();
    let bias = Numbers::new(9).values(heights[1]);
    let before = Numbers::new(10).values(tokens * heights[2]);
    standin.in_every_order(|schedule| {
        let activations = Activations::new(&device, &kernels, &stream, DType::Q4_K, cols, &x);
        let outs = [
            zeros(&device, tokens, heights[0]),
            zeros(&device, tokens, heights[1]),
            Floats::with(&device, heights[2], &before).unwrap(),
        ];
        let bias_on_device = Floats::with(&device, heights[1], &bias).unwrap();
        let projections: Vec<_> = (0..3)
            .map(|i| Projection {
                weights: &matrices[i],
                bias: (i == 1).then_some(&bias_on_device),
                out: &outs[i],
                accumulate: i == 2,
            })
            .collect();
        kernels.matmul(&stream, activations.input(), &projections, None, tokens).unwrap();
        for i in 0..3 {
            let mut expected = expected(DType::Q4_K, heights[i], cols, &bytes[i], &x);
            for (at, value) in expected.iter_mut().enumerate() {
                *value += match i {
                    1 => bias[at % heights[1]],
                    2 => before[at],
                    _ => 0.0,
                };
            }
            let error = error(&outs[i].read(tokens).unwrap(), &expected);
            assert!(error < CEILING, "matrix {i}, order {schedule}: {error:e}");
        }
    });
}

/// With the results of launches of their own, bit for bit under the emulator; many tokens have a launch for each type.
#[test]
fn matrices_of_several_quantized_types_share_a_launch() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let quantized: Vec<_> = TYPES.into_iter().filter(|dtype| is_quantized(*dtype).unwrap()).collect();
    let (cols, heights) = (512, [5, 2, 3]);
    let bias = Numbers::new(9).values(heights[1]);
    let bias = Floats::with(&device, heights[1], &bias).unwrap();
    let launches = || if standin.is_real() { 0 } else { standin.get("launches") };
    for (first, tokens) in (0..quantized.len()).zip([1, 2, 3, 4, 8, 12].into_iter().cycle()) {
        let dtypes = [0, 1, 2].map(|i| quantized[(first + 4 * i) % quantized.len()]);
        let x = Numbers::new(first as u64).values(tokens * cols);
        let bytes = [0, 1, 2].map(|i| weights(dtypes[i], heights[i], cols, i as u64));
        let matrices = [0, 1, 2].map(|i| upload(&device, dtypes[i], heights[i], cols, &bytes[i]));
        let before = Floats::with(&device, heights[2], &Numbers::new(10).values(tokens * heights[2])).unwrap();
        let x_on_device = Activations::new(&device, &kernels, &stream, dtypes[0], cols, &x);
        stream.synchronize().unwrap();
        let run = |together: bool| {
            let last = Floats::with(&device, heights[2], &before.read(tokens).unwrap()).unwrap();
            let outs = [zeros(&device, tokens, heights[0]), zeros(&device, tokens, heights[1]), last];
            let projections = [0, 1, 2].map(|i| Projection {
                weights: &matrices[i],
                bias: (i == 1).then_some(&bias),
                out: &outs[i],
                accumulate: i == 2,
            });
            let count = launches();
            for projections in projections.chunks(if together { 3 } else { 1 }) {
                kernels.matmul(&stream, x_on_device.input(), projections, None, tokens).unwrap();
            }
            let got = outs.map(|out| out.read(tokens).unwrap());
            (got, launches() - count)
        };
        let (alone, _) = run(false);
        let error = error(&alone[0], &expected(dtypes[0], heights[0], cols, &bytes[0], &x));
        assert!(error < CEILING, "{dtypes:?}: {error:e}");
        standin.in_every_order(|schedule| {
            let (got, count) = run(true);
            let same = match standin.is_real() {
                // A compiler may fuse other multiplications in another kernel.
                true => got.iter().zip(&alone).all(|(got, alone)| support::error(got, alone) < CEILING),
                false => got == alone,
            };
            assert!(same, "{dtypes:?}, {tokens} tokens, order {schedule}");
            let wanted = if tokens > 8 { 3 } else { 1 };
            assert!(standin.is_real() || count == wanted, "{count} launches for {tokens} tokens");
        });
    }
    // Four matrices of two types: two launches, or one for each type.
    let matrices = [DType::Q4_K, DType::Q6_K, DType::Q4_K, DType::Q6_K]
        .map(|dtype| upload(&device, dtype, 2, cols, &weights(dtype, 2, cols, 1)));
    let x = Activations::new(&device, &kernels, &stream, DType::Q4_K, cols, &Numbers::new(1).values(9 * cols));
    let outs = [0; 4].map(|_| zeros(&device, 9, 2));
    let projections =
        [0, 1, 2, 3].map(|i| Projection { weights: &matrices[i], bias: None, out: &outs[i], accumulate: false });
    for tokens in [8, 9] {
        stream.synchronize().unwrap();
        let count = launches();
        kernels.matmul(&stream, x.input(), &projections, None, tokens).unwrap();
        let got = outs.each_ref().map(|out| out.read(tokens).unwrap());
        assert!(got[0] == got[2] && got[1] == got[3] && got[0] != got[1]);
        assert!(standin.is_real() || launches() - count == 2, "{tokens} tokens");
    }
    // Floats beside them are not multiplied by what they want.
    let floats = upload(&device, DType::F16, 2, cols, &weights(DType::F16, 2, cols, 1));
    let out = zeros(&device, 1, 2);
    let projections =
        [&matrices[0], &floats].map(|weights| Projection { weights, bias: None, out: &out, accumulate: false });
    assert!(matches!(kernels.matmul(&stream, x.input(), &projections, None, 1), Err(DeviceError::Invalid(_))));
    assert!(matches!(kernels.matmul(&stream, x.input(), &[], None, 1), Err(DeviceError::Invalid(_))));
}

#[test]
fn gate_and_up_are_one_launch() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let (rows, cols, tokens) = (5, 288, 3);
    let x = Numbers::new(1).values(tokens * cols);
    let [gate, up] = [1, 2].map(|seed| weights(DType::Q8_0, rows, cols, seed));
    let mut wanted = vec![0.0; tokens * rows];
    let linear = expected(DType::Q8_0, rows, cols, &up, &x);
    reference::swiglu(&expected(DType::Q8_0, rows, cols, &gate, &x), &linear, &mut wanted);
    let on_device = [gate, up].map(|bytes| upload(&device, DType::Q8_0, rows, cols, &bytes));
    standin.in_every_order(|schedule| {
        let activations = Activations::new(&device, &kernels, &stream, DType::Q8_0, cols, &x);
        let out = zeros(&device, tokens, rows);
        kernels.gated_matmul(&stream, activations.input(), on_device.each_ref(), &out, None, tokens).unwrap();
        let error = error(&out.read(tokens).unwrap(), &wanted);
        assert!(error < 2.0 * CEILING, "order {schedule}: {error:e}");
    });
}

#[test]
fn a_missing_barrier_is_noticed() {
    let standin = standin();
    let (rows, cols) = (3, 8192);
    let bytes = weights(DType::Q4_0, rows, cols, 1);
    let x = Numbers::new(2).values(cols);
    let expected = expected(DType::Q4_0, rows, cols, &bytes, &x);
    standin.expect_every_sync_to_matter(1, || {
        let (device, kernels, stream) = open(&standin);
        let on_device = upload(&device, DType::Q4_0, rows, cols, &bytes);
        let x = Activations::new(&device, &kernels, &stream, DType::Q4_0, cols, &x);
        let out = zeros(&device, 1, rows);
        let projection = Projection { weights: &on_device, bias: None, out: &out, accumulate: false };
        kernels.matmul(&stream, x.input(), &[projection], None, 1).unwrap();
        out.read(1).is_ok_and(|got| error(&got, &expected) < CEILING)
    });
}

/// More than an uploader's buffers hold, in parts that begin and end within rows, the last one first.
#[test]
fn weights_put_in_parts_are_those_that_are_packed_whole() {
    let standin = standin();
    let (device, _kernels, stream) = open(&standin);
    let planes = |weights: &Weights| {
        weights.planes().each_ref().map(|plane| {
            let mut bytes = vec![0u8; plane.bytes()];
            plane.download(&mut bytes).unwrap();
            bytes
        })
    };
    for dtype in TYPES {
        let (cols, unit_values) = (1280, dtype.block_len().max(if is_quantized(dtype).unwrap() { 32 } else { 8 }));
        let rows = if dtype == DType::Q4_0 { Uploader::ROOM / 720 + 7 } else { 9 };
        let pattern = weights(dtype, 9, cols, 3);
        let row = dtype.bytes_for(cols).unwrap();
        let bytes: Vec<u8> = (0..rows).flat_map(|i| pattern[i * 7 % 9 * row..][..row].iter().copied()).collect();
        let expected = planes(&upload(&device, dtype, rows, cols, &bytes));
        let mut arena = Arena::new(&device, "test", device_bytes(dtype, rows, cols).unwrap()).unwrap();
        let matrix = Weights::take(&mut arena, dtype, rows, cols).unwrap();
        let unit = matrix.unit_bytes();
        assert_eq!(Some(unit), dtype.bytes_for(unit_values), "{dtype}");
        let mut uploader = Uploader::new(&stream).unwrap();
        let cuts = [0, unit, row + 2 * unit, 3 * row, bytes.len()];
        for part in cuts.windows(2).rev() {
            matrix.put(&mut uploader, part[0], &bytes[part[0]..part[1]]).unwrap();
        }
        stream.synchronize().unwrap();
        assert!(planes(&matrix) == expected, "{dtype}");
        let mut refused = |at: usize, bytes: &[u8]| {
            assert!(matches!(matrix.put(&mut uploader, at, bytes), Err(DeviceError::Invalid(_))), "{dtype} at {at}");
        };
        refused(1, &bytes[..unit]);
        refused(0, &bytes[..unit - 1]);
        refused(bytes.len(), &bytes[..unit]);
        // What lies in a buffer is a file's, which only floats are on the device.
        let buffer = uploader.take().unwrap();
        assert_eq!(matrix.send(&mut uploader, 0, buffer, 16).is_ok(), !is_quantized(dtype).unwrap(), "{dtype}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let invalid = |result: Result<(), DeviceError>, text: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    let bytes = weights(DType::Q4_0, 2, 64, 1);
    invalid(Packed::new(DType::Q4_0, 3, 64, &bytes).map(|_| ()), "are not 3 rows of 64 Q4_0 values");
    invalid(Packed::new(DType::Q4_0, 2, 48, &bytes).map(|_| ()), "no multiple of 32");
    invalid(Packed::new(DType::F16, 1, 12, &[0; 24]).map(|_| ()), "no multiple of 8");
    invalid(Packed::new(DType::IQ1_S, 1, 256, &[0; 50]).map(|_| ()), "no CUDA kernel reads");
    invalid(Packed::new(DType::Q4_0, 0, 64, &[]).map(|_| ()), "0 rows");
    let matrix = upload(&device, DType::Q4_0, 2, 64, &bytes);
    let x = Activations::new(&device, &kernels, &stream, DType::Q4_0, 64, &[1.0; 128]);
    let (narrow, out) = (zeros(&device, 2, 1), zeros(&device, 2, 2));
    let launch = |out: &Floats, tokens: usize, input: Input<'_>| {
        kernels.matmul(
            &stream,
            input,
            &[Projection { weights: &matrix, bias: None, out, accumulate: false }],
            None,
            tokens,
        )
    };
    invalid(launch(&narrow, 1, x.input()), "result");
    invalid(launch(&out, 3, x.input()), "input: 3 rows");
    invalid(launch(&out, 0, x.input()), "0 tokens");
    invalid(launch(&out, 9, x.input()), "input: 9 rows");
    invalid(launch(&out, 1, Input::Floats(&x.floats)), "not of the kind");
    invalid(kernels.matmul(&stream, x.input(), &[], None, 1), "0 matrices");
    launch(&out, 2, x.input()).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn benchmarks_measure_real_products_and_roofs() {
    let standin = standin();
    let (_device, kernels, stream) = open(&standin);
    let roofs = Roofs::measure(&kernels, &stream).unwrap();
    let [alone, overlapped] = roofs.launch;
    let peaks = roofs.peaks.iter().map(|(_, rate)| *rate);
    for value in [roofs.memory, roofs.cache, roofs.copy, alone, overlapped].into_iter().chain(peaks) {
        assert!(value.is_finite() && value > 0.0, "{roofs:?}");
    }
    let hopper = kernels.device().info().capability == (9, 0);
    let measured: Vec<_> = roofs.peaks.iter().map(|(peak, _)| *peak).collect();
    assert_eq!(measured, Peak::ALL.into_iter().filter(|peak| hopper || *peak != Peak::WgmmaF16).collect::<Vec<_>>());
    let kernels = std::sync::Arc::new(kernels);
    let shape = Shape { role: "test", rows: 48, cols: 256 };
    for dtype in [DType::Q4_0, DType::F16] {
        let mut hot = Product::new(&kernels, dtype, shape, 12, Residence::Cache).unwrap();
        let mut cold = Product::new(&kernels, dtype, shape, 12, Residence::Memory(50_000)).unwrap();
        for tokens in [1, 12] {
            assert!(hot.time(tokens).unwrap() > 0.0 && cold.time(tokens).unwrap() > 0.0);
            let values = hot.result(tokens).unwrap();
            assert!(values.iter().all(|value| value.is_finite()) && values.iter().any(|value| *value != 0.0));
            assert_eq!(cold.result(tokens).unwrap(), values, "{dtype}");
        }
        assert!(cold.working_set() >= 50_000 && cold.products() > 1, "{dtype}");
        assert!(hot.time(13).is_err() && hot.time(0).is_err());
    }
    let narrow = Shape { cols: 40, ..shape };
    assert!(Product::new(&kernels, DType::Q4_0, narrow, 1, Residence::Cache).is_err());
}

#[test]
fn a_product_names_its_kernel_and_its_instruction() {
    let standin = standin();
    let (_device, kernels, _stream) = open(&standin);
    let named = |kernels: &Kernels, dtype, tokens| {
        let kernel = kernels.product_kernel(dtype, tokens).unwrap();
        (kernel.name, kernel.peak, kernel.times)
    };
    for (dtype, tokens, name, peak, times) in [
        (DType::Q4_0, 3, "gemv_q4_0_4", Peak::Dp4a, 1),
        (DType::Q4_0, 9, "gemm_q4_0_16", Peak::MmaInt8, 1),
        (DType::F16, 8, "gemv_f16_8", Peak::Fma, 1),
        (DType::F16, 16, "gemv_f16_8", Peak::Fma, 1),
        (DType::F16, 17, "gemm_f16", Peak::MmaF16, 1),
        (DType::BF16, 4096, "gemm_bf16", Peak::MmaBf16, 1),
        (DType::F32, 4096, "gemm_f32", Peak::MmaBf16, 3),
    ] {
        assert_eq!(named(&kernels, dtype, tokens), (name.to_owned(), peak, times));
    }
    if kernels.device().info().capability == (9, 0) {
        let hopper = named(&kernels, DType::Q4_K, 4096);
        assert_eq!(hopper, ("gemm_sm90a_q4_k".to_owned(), Peak::WgmmaF16, 1));
    }
    assert!(kernels.product_kernel(DType::IQ2_XXS, 1).is_err());
    if !standin.is_real() {
        standin.set("capability", 89);
        let (_device, kernels, _stream) = open(&standin);
        assert_eq!(named(&kernels, DType::Q4_K, 4096), ("gemm_q4_k_128".to_owned(), Peak::MmaInt8, 1));
    }
}
