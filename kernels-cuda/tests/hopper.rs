//! Products of weights with `f16` activations on Hopper, against the scalar reference. A device that does not multiply these
//! makes the same products of 8-bit activations.

mod support;

use half::f16;
use rustai_abi::DType;
use rustai_cuda_standin::EARLY;
use rustai_kernels_cpu::reference;
use rustai_kernels_cuda::{
    Arena, DeviceError, Floats, Halves, Input, Projection, Span,
    driver::TensorMap,
    ops::{HOPPER_TOKENS, Targets},
    weights::is_quantized,
};
use support::{
    Numbers, error, open,
    products::{Activations, HOPPER_CEILING, TYPES, agrees, upload, weights, zeros},
    standin,
};

#[test]
fn many_tokens_agree_with_the_reference() {
    let standin = standin();
    let opened = open(&standin);
    for (n, dtype) in TYPES.into_iter().enumerate().filter(|(_, dtype)| is_quantized(*dtype).unwrap()) {
        let long = dtype.block_len() == 256;
        // More rows than a tile, more tokens than a tile; more steps than the ring of tiles has, an odd number of them, and half
        // a step; a single one.
        let mut shapes = vec![(133, if long { 256 } else { 160 }, 65), (9, if long { 512 } else { 352 }, 131)];
        if !long {
            shapes.push((9, 32, 65));
        }
        for shape in shapes {
            agrees(&opened, dtype, shape, n as u64, |work| {
                for schedule in [0, 5, EARLY | 7] {
                    standin.set("schedule", i64::from(schedule));
                    work(schedule);
                }
            });
        }
    }
}

#[test]
fn missing_synchronisations_are_noticed() {
    let standin = standin();
    let (rows, cols, tokens) = (9, 512, 65);
    let bytes = weights(DType::Q4_0, rows, cols, 1);
    let x = Numbers::new(2).values(cols * tokens);
    // A barrier of the block, and waits for a full tile, an empty one and the products.
    standin.expect_every_sync_to_matter(4, || {
        let (device, kernels, stream) = open(&standin);
        let on_device = upload(&device, DType::Q4_0, rows, cols, &bytes);
        let activations = Activations::new(&device, &kernels, &stream, DType::Q4_0, cols, &x);
        let (expected, ceiling) = activations.expected(DType::Q4_0, rows, &bytes, &x);
        let out = zeros(&device, tokens, rows);
        let projection = Projection { weights: &on_device, bias: None, out: &out, accumulate: false };
        kernels.matmul(&stream, activations.input(), &[projection], None, tokens).unwrap();
        out.read(tokens).is_ok_and(|got| error(&got, &expected) < ceiling)
    });
}

#[test]
fn products_have_biases_and_gates() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let (rows, cols, tokens) = (75, 64, 70);
    let x = Numbers::new(3).values(tokens * cols);
    let bytes = [1, 2].map(|seed| weights(DType::Q4_1, rows, cols, seed));
    let activations = Activations::new(&device, &kernels, &stream, DType::Q4_1, cols, &x);
    let products = bytes.each_ref().map(|bytes| activations.expected(DType::Q4_1, rows, bytes, &x).0);
    let on_device = bytes.map(|bytes| upload(&device, DType::Q4_1, rows, cols, &bytes));
    let mut wanted = vec![0.0; tokens * rows];
    reference::swiglu(&products[0], &products[1], &mut wanted);
    let out = zeros(&device, tokens, rows);
    kernels.gated_matmul(&stream, activations.input(), on_device.each_ref(), &out, None, tokens).unwrap();
    let off = error(&out.read(tokens).unwrap(), &wanted);
    assert!(off < 2.0 * HOPPER_CEILING, "{off:e}");

    let bias = Numbers::new(9).values(rows);
    let bias_on_device = Floats::with(&device, rows, &bias).unwrap();
    let before = Numbers::new(10).values(tokens * rows);
    let outs = [zeros(&device, tokens, rows), Floats::with(&device, rows, &before).unwrap()];
    let projections = [0, 1].map(|i| Projection {
        weights: &on_device[i],
        bias: (i == 0).then_some(&bias_on_device),
        out: &outs[i],
        accumulate: i == 1,
    });
    kernels.matmul(&stream, activations.input(), &projections, None, tokens).unwrap();
    for i in 0..2 {
        let wanted = products[i].iter().enumerate();
        let wanted: Vec<_> = wanted.map(|(at, x)| x + if i == 0 { bias[at % rows] } else { before[at] }).collect();
        let off = error(&outs[i].read(tokens).unwrap(), &wanted);
        assert!(off < HOPPER_CEILING, "matrix {i}: {off:e}");
    }
}

/// Whoever else is in the batch, and whatever lies behind the last token: results have the same bits.
#[test]
fn a_token_has_one_result() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let (rows, cols, all) = (9, 352, 200);
    let bytes = weights(DType::Q4_0, rows, cols, 1);
    let on_device = upload(&device, DType::Q4_0, rows, cols, &bytes);
    let x = Numbers::new(2).values(cols * all);
    let product = |x: &Activations, tokens: usize| {
        let out = zeros(&device, tokens, rows);
        let projection = Projection { weights: &on_device, bias: None, out: &out, accumulate: false };
        kernels.matmul(&stream, x.input(), &[projection], None, tokens).unwrap();
        out.read(tokens).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let activations = |x: &[f32]| Activations::new(&device, &kernels, &stream, DType::Q4_0, cols, x);
    let whole = activations(&x);
    let expected = product(&whole, all);
    for (first, count) in [(0, 65), (60, 128), (7, 129), (135, 65)] {
        let part = &x[first * cols..(first + count) * cols];
        assert!(product(&activations(part), count) == expected[first * rows..(first + count) * rows], "{count} tokens");
    }
    // Rows of an earlier step: of these, or no numbers.
    assert!(product(&whole, 70) == expected[..70 * rows]);
    if let Some(halves) = &whole.halves {
        halves.span().upload(&vec![f16::NAN.to_bits(); all * cols]).unwrap();
        let targets = Targets { halves: Some(halves), ..Targets::default() };
        kernels.convert(&stream, &whole.floats, targets, 70).unwrap();
        standin.in_every_order(|order| assert!(product(&whole, 70) == expected[..70 * rows], "order {order}"));
    }
}

/// A recording has a copy of the map of its activations, and keeps their memory; it multiplies what is there when it runs.
#[test]
fn products_are_recorded() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let (rows, cols, tokens) = (9, 128, 65);
    let bytes = weights(DType::Q4_0, rows, cols, 1);
    let on_device = upload(&device, DType::Q4_0, rows, cols, &bytes);
    let values = [2, 3].map(|seed| Numbers::new(seed).values(cols * tokens));
    let x = values.each_ref().map(|x| Activations::new(&device, &kernels, &stream, DType::Q4_0, cols, x));
    let expected = values.each_ref().map(|values| x[0].expected(DType::Q4_0, rows, &bytes, values).0);
    let out = zeros(&device, tokens, rows);
    let graph = stream.capture(|stream| {
        let projection = Projection { weights: &on_device, bias: None, out: &out, accumulate: false };
        kernels.matmul(stream, x[0].input(), &[projection], None, tokens)
    });
    let graph = graph.unwrap();
    // The second values in the place of the first.
    let [first, second] = x;
    let targets = Targets { floats: None, quants: first.quants.as_ref(), halves: first.halves.as_ref() };
    let run = |expected: &[f32]| {
        out.span().upload(&vec![f32::NAN; tokens * rows]).unwrap();
        graph.launch().unwrap();
        let off = error(&out.read(tokens).unwrap(), expected);
        assert!(off < HOPPER_CEILING, "{off:e}");
    };
    run(&expected[0]);
    kernels.convert(&stream, &second.floats, targets, tokens).unwrap();
    stream.synchronize().unwrap();
    drop((first, second));
    run(&expected[1]);
    run(&expected[1]);
}

#[test]
fn a_map_is_made_once_for_a_buffer() {
    let standin = standin();
    if standin.is_real() {
        return;
    }
    let (device, kernels, stream) = open(&standin);
    let bytes = weights(DType::Q8_0, 9, 64, 1);
    let on_device = upload(&device, DType::Q8_0, 9, 64, &bytes);
    let x = Activations::new(&device, &kernels, &stream, DType::Q8_0, 64, &[1.0; 64 * 70]);
    let out = zeros(&device, 70, 9);
    let maps = standin.get("tensor_maps");
    assert_eq!(maps, 1);
    for tokens in [65, 70, 66] {
        let projection = Projection { weights: &on_device, bias: None, out: &out, accumulate: false };
        kernels.matmul(&stream, x.input(), &[projection], None, tokens).unwrap();
    }
    stream.synchronize().unwrap();
    assert_eq!(standin.get("tensor_maps"), maps);
}

#[test]
fn what_does_not_fit_is_refused() {
    let standin = standin();
    if standin.is_real() {
        return;
    }
    let (device, kernels, stream) = open(&standin);
    assert_eq!(kernels.halves_from(), Ok(Some(HOPPER_TOKENS)));
    let span = Span::new(&device, "test", 1 << 12).unwrap();
    let refused = |result: Result<(), DeviceError>, text: &str| {
        let error = result.unwrap_err();
        assert!(matches!(&error, DeviceError::Invalid(reason) if reason.contains(text)), "{error}");
    };
    let map = |span: &Span, rows, columns, tile| TensorMap::of_f16(span, rows, columns, tile).map(drop);
    for (rows, columns, tile) in [(32, 64, 128), (1, 8, 1), (16, 128, 256)] {
        map(&span, rows, columns, tile).unwrap();
        let past = Span::new(&device, "test", 2 * rows * columns - 2).unwrap();
        refused(map(&past, rows, columns, tile), "bytes for a span of");
    }
    for (rows, columns) in [(0, 64), (1, 0), (1, 12), (1 << 33, 8), (1, 1 << 33)] {
        refused(map(&span, rows, columns, 128), "no matrix of which tiles");
    }
    refused(map(&span, 1, 64, 0), "a tile of 0 rows");
    refused(map(&span, 1, 64, 257), "a tile of 257 rows");
    refused(map(&span.part(8, 256).unwrap(), 1, 64, 1), "no multiple of 16");
    refused(Halves::at(&span, 1, 48).map(drop), "no multiple of 32");
    refused(Halves::at(&span, 33, 64).map(drop), "not inside");
    standin.fault("cuTensorMapEncodeTiled", 1, 1);
    let error = Halves::at(&span, 1, 64).unwrap_err().to_string();
    assert!(error.contains("cuTensorMapEncodeTiled failed: CUDA_ERROR_INVALID_VALUE"), "{error}");

    let halves = Halves::at(&span, 32, 64).unwrap();
    let out = zeros(&device, 40, 9);
    let [quantized, floats] =
        [DType::Q4_0, DType::F16].map(|dtype| upload(&device, dtype, 9, 64, &weights(dtype, 9, 64, 1)));
    let product = |weights, tokens| {
        let projection = Projection { weights, bias: None, out: &out, accumulate: false };
        kernels.matmul(&stream, Input::Halves(&halves), &[projection], None, tokens)
    };
    refused(product(&floats, 1), "not of the kind");
    refused(product(&quantized, 33), "input: 33 rows");
    // Fewer than are worth it.
    let targets = Targets { halves: Some(&halves), ..Targets::default() };
    kernels.convert(&stream, &zeros(&device, 32, 64), targets, 32).unwrap();
    product(&quantized, 3).unwrap();
    assert_eq!(out.read(3).unwrap(), [0.0; 27]);
    refused(kernels.convert(&stream, &zeros(&device, 33, 64), targets, 33), "result: 33 rows");
    refused(kernels.convert(&stream, &zeros(&device, 1, 32), targets, 1), "result: 1 rows of 32");

    // Devices without such a kernel, and images without it.
    let mut arena = Arena::new(&device, "test", Halves::room(1, 64)).unwrap();
    let halves = Halves::take(&mut arena, 1, 64).unwrap();
    standin.set("capability", 100);
    let (_device, kernels, stream) = open(&standin);
    assert_eq!(kernels.halves_from(), Ok(None));
    let projection = Projection { weights: &quantized, bias: None, out: &out, accumulate: false };
    let product = kernels.matmul(&stream, Input::Halves(&halves), &[projection], None, 1);
    refused(product, "does not multiply Q4_0 weights by f16");
}
