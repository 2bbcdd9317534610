//! Every kernel of every instruction set that this processor has, against the scalar reference, at awkward shapes.

mod differential;

use differential::{Bench, Shape, at_an_odd_address, expected, half_scales, isas, quantized_planes};
use rustai_abi::{Batch, BatchSequence, DType, PAGE_TOKENS};
use rustai_kernels_cpu::{
    Act, ActKind, Buf, BytesOwner, Call, Executor, Isa, KvShape, KvType, Matrix, MatrixError, Program, Projection,
    QBuf, Rope, RopeStyle, Rows, SharedBytes, formats, reference,
};
use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

/// A small generator (Marsaglia 2003, xorshift), so that every run sees the same data.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform in -1 .. 1.
    fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// All types that can be multiplied: those with a fast kernel, and those that go through the reference.
fn types() -> impl Iterator<Item = DType> {
    formats::table()
        .iter()
        .map(|format| format.dtype)
        .filter(|dtype| Matrix::kernel_for(Isa::Reference, *dtype).is_some())
}

/// Whether a type of blocks has a fast kernel on this processor.
fn fast_anywhere(dtype: DType) -> bool {
    dtype.block_len() > 1
        && isas().any(|isa| isa != Isa::Reference && Matrix::kernel_for(isa, dtype) == Some(isa.name()))
}

/// Random blocks: any quants, and scales of the size that real models have.
fn blocks(random: &mut Random, dtype: DType, count: usize, scale: f32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        let mut block: Vec<u8> = (0..dtype.block_bytes()).map(|_| random.bits() as u8).collect();
        let f16 = half::f16::from_f32(random.value() * scale);
        match dtype {
            DType::F32 => block.copy_from_slice(&(random.value() * scale).to_le_bytes()),
            DType::BF16 => block.copy_from_slice(&half::bf16::from_f32(random.value() * scale).to_le_bytes()),
            DType::MXFP4 => block[0] = 110 + (random.bits() % 16) as u8,
            DType::IQ1_M => {
                // A nibble of the scale on top of each of four words.
                for (i, byte) in [49, 51, 53, 55].into_iter().enumerate() {
                    block[byte] = block[byte] & 0x0f | ((f16.to_bits() >> (4 * i)) as u8) << 4;
                }
            }
            _ => {}
        }
        for at in half_scales(dtype) {
            block[*at..at + 2].copy_from_slice(&half::f16::from_f32(random.value() * scale).to_le_bytes());
        }
        bytes.extend(block);
    }
    bytes
}

#[test]
fn matmul_agrees_with_the_reference_at_awkward_shapes() {
    let mut random = Random(1);
    for isa in isas() {
        for dtype in types() {
            let block = dtype.block_len();
            for (rows, blocks_per_row, tokens) in [
                (1, 1, 1),
                (5, 2, 2),
                (16, 3, 3),
                (17, 1, 4),
                (31, 18, 5),
                (33, 5, 7),
                (48, 2, 9),
                (100, 17, 1),
                (64, 33, 13),
                // As wide as rows that have one plane.
                (17, 34, 1),
                (33, 33, 3),
            ] {
                let blocks_per_row = if block == 256 {
                    blocks_per_row.min(5)
                } else if block == 1 {
                    blocks_per_row * 13
                } else {
                    blocks_per_row
                };
                let cols = blocks_per_row * block;
                let weights = blocks(&mut random, dtype, rows * blocks_per_row, 0.1);
                let x = random.values(tokens * cols);
                for planes in [1, 2] {
                    let weight = Matrix::new(isa, dtype, rows, cols, at_an_odd_address(&weights)).unwrap();
                    let shape = Shape { dtype, rows, cols, planes };
                    let (expected, size) = expected(weight.wants(), shape, &weights, &x);
                    let got = Bench { isa, threads: 2, tokens, planes }.matmul(weight, &x);
                    for (i, ((got, expected), size)) in got.iter().zip(&expected).zip(&size).enumerate() {
                        // Integer parts are exact; what remains is f32 rounding of a few dozen additions.
                        let ceiling = 2e-6 * size + 1e-30;
                        assert!(
                            (got - expected).abs() <= ceiling,
                            "{isa:?} {shape:?}, {tokens} tokens, element {i}: {got} for {expected} (ceiling {ceiling})"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn matmul_is_exact_about_extreme_scales_and_saturating_activations() {
    for isa in isas() {
        for dtype in types().filter(|dtype| fast_anywhere(*dtype)) {
            let (rows, cols) = (20, 256);
            for fill in [0x00, 0x7f, 0x80, 0xff] {
                for scale in [0.0, 6.0e-8, 65504.0, -1.0] {
                    let mut weights = vec![fill; dtype.bytes_for(rows * cols).unwrap()];
                    for block in weights.chunks_exact_mut(dtype.block_bytes()) {
                        for at in half_scales(dtype) {
                            block[*at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
                        }
                    }
                    for sign in [1.0, -1.0] {
                        // All quants become 127 or -127: the largest sums that bytes can make. One row of activations and
                        // few go through other loops than ten.
                        for (tokens, planes) in [(1, 1), (3, 1), (5, 2)] {
                            let x = vec![sign * 3.0; tokens * cols];
                            let weight = Matrix::new(isa, dtype, rows, cols, weights.clone().into()).unwrap();
                            let shape = Shape { dtype, rows, cols, planes };
                            let (expected, size) = expected(weight.wants(), shape, &weights, &x);
                            let got = Bench { isa, threads: 1, tokens, planes }.matmul(weight, &x);
                            for ((got, expected), size) in got.iter().zip(&expected).zip(&size) {
                                // Where the result leaves the range of f32, by which way is up to the order of additions.
                                let fits = (got - expected).abs() <= 2e-6 * size + 1e-37;
                                assert!(
                                    fits || !expected.is_finite() && !got.is_finite(),
                                    "{isa:?} {shape:?} {tokens} {fill} {scale}: {got} for {expected}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_scale_that_is_not_a_number_spoils_its_row_only() {
    let (rows, cols) = (18, 512);
    for isa in isas() {
        // The scale of MXFP4 is an exponent, and no number of its is NaN.
        for dtype in types().filter(|dtype| fast_anywhere(*dtype) && *dtype != DType::MXFP4) {
            let mut weights = blocks(&mut Random(3), dtype, rows * cols / dtype.block_len(), 0.1);
            let last = &mut weights[17 * dtype.bytes_for(cols).unwrap()..];
            for at in half_scales(dtype) {
                last[*at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
            }
            for (tokens, planes) in [(1, 1), (3, 1), (6, 1), (6, 2)] {
                let x = Random(4).values(tokens * cols);
                let weight = Matrix::new(isa, dtype, rows, cols, weights.clone().into()).unwrap();
                let got = Bench { isa, threads: 2, tokens, planes }.matmul(weight, &x);
                for row in got.chunks_exact(rows) {
                    let (sound, spoiled) = (&row[..17], row[17]);
                    assert!(sound.iter().all(|x| x.is_finite()), "{isa:?} {dtype} {tokens} x {planes}: {row:?}");
                    assert!(spoiled.is_nan(), "{isa:?} {dtype} {tokens} x {planes}: {spoiled}");
                }
            }
        }
    }
}

#[test]
fn results_depend_on_neither_threads_nor_the_batch() {
    let mut random = Random(5);
    for isa in isas() {
        for dtype in types() {
            let (rows, cols, tokens) = (80, 768, 11);
            let weights = blocks(&mut random, dtype, rows * cols / dtype.block_len(), 0.1);
            let x = random.values(tokens * cols);
            let make = || Matrix::new(isa, dtype, rows, cols, weights.clone().into()).unwrap();
            for planes in [1, 2] {
                let together = Bench { isa, threads: 1, tokens, planes }.matmul(make(), &x);
                let threaded = Bench { isa, threads: 5, tokens, planes }.matmul(make(), &x);
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&together), bits(&threaded), "{isa:?} {dtype}");
                for t in 0..tokens {
                    let count = (1 + t % 3).min(tokens - t);
                    let few = Bench { isa, threads: 2, tokens: count, planes };
                    let few = few.matmul(make(), &x[t * cols..(t + count) * cols]);
                    assert_eq!(bits(&few), bits(&together[t * rows..(t + count) * rows]), "{isa:?} {dtype} {count}");
                }
            }
        }
    }
}

/// The bytes of some matrices, which remembers what was let go of.
struct Watched {
    bytes: Vec<u8>,
    released: Mutex<Vec<Range<usize>>>,
}

impl BytesOwner for Watched {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn release(&self, part: Range<usize>) {
        self.released.lock().unwrap().push(part);
    }
}

#[test]
fn deferred_matrices_give_the_same_bits_before_while_and_after_they_are_packed() {
    let (max_tokens, cols) = (20, 256);
    let buf = |offset: usize, width| Buf { offset, width, rows: Rows::Tokens };
    for isa in isas() {
        // One type has no fast kernel: it stays in its file.
        let some = |dtype: &DType| fast_anywhere(*dtype) || dtype.block_len() == 1 || *dtype == DType::IQ2_XS;
        for dtype in types().filter(some) {
            // Of one tile, of a strip and a last group that lacks rows, and of two for a gated product.
            let rows = [24, 150, 96, 96];
            let row_bytes = dtype.bytes_for(cols).unwrap();
            let bytes = blocks(&mut Random(21), dtype, rows.iter().sum::<usize>() * cols / dtype.block_len(), 0.1);
            let watched = Arc::new(Watched { bytes, released: Mutex::default() });
            let starts = [0, 24, 174, 270].map(|row| row * row_bytes);
            let parts: [_; 4] = std::array::from_fn(|i| starts[i]..starts[i] + rows[i] * row_bytes);
            type Make = fn(Isa, DType, usize, usize, SharedBytes) -> Result<Matrix, MatrixError>;
            let executor = |make: Make| {
                let weights: [_; 4] = std::array::from_fn(|i| {
                    let bytes = SharedBytes::new(watched.clone(), parts[i].clone()).unwrap();
                    Arc::new(make(isa, dtype, rows[i], cols, bytes).unwrap())
                });
                let mut end = 0;
                let mut take = |width| {
                    end += Buf::bytes(width, max_tokens);
                    buf(end - Buf::bytes(width, max_tokens), width)
                };
                let [x, embedded, a, b, gated] = [cols, cols, rows[0], rows[1], rows[2]].map(&mut take);
                let quantized = QBuf { offset: end, width: cols, rows: Rows::Tokens, planes: 2 };
                let project = |weight: &Arc<Matrix>, out| {
                    let weight = Arc::clone(weight);
                    Projection { weight, bias: None, out, accumulate: false }
                };
                let (input, mut calls) = match weights[0].wants() {
                    ActKind::F32 => (Act::F32(x), Vec::new()),
                    ActKind::Q8 => (Act::Q8(quantized), vec![Call::Quantize { x, out: quantized }]),
                };
                let [first, second, gate, up] = &weights;
                calls.extend([
                    Call::Embed { table: first.clone(), out: embedded, scale: 1.0 },
                    Call::MatMul { x: input, projections: vec![project(first, a), project(second, b)] },
                    Call::GatedMatMul { x: input, gate: gate.clone(), up: up.clone(), out: gated },
                ]);
                let program = Program {
                    calls,
                    arena_bytes: end + QBuf::bytes(cols, max_tokens, 2),
                    max_tokens,
                    max_outputs: 1,
                    kv: None,
                    inputs: vec![x],
                    output: gated,
                };
                (Executor::new(isa, 3, program).unwrap(), [embedded, a, b, gated])
            };
            let x = Random(22).values(max_tokens * cols);
            let run = |executor: &mut Executor, results: [Buf; 4], tokens: usize| {
                let (ids, pages): (Vec<u32>, Vec<u32>) = ((0..tokens as u32).collect(), (0..8).collect());
                let sequences =
                    &[BatchSequence { len: tokens as u32, start: 0, pages: &pages[..tokens.div_ceil(PAGE_TOKENS)] }];
                let batch = Batch { tokens: &ids, sequences, outputs: &[] };
                executor.write(executor.program().inputs[0], &x[..tokens * cols]).unwrap();
                executor.run(&batch).unwrap();
                results.map(|buf| executor.values(buf, &batch).unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>())
            };
            let (mut packed, results) = executor(Matrix::new);
            let expected = [1, 20].map(|tokens| run(&mut packed, results, tokens));
            let (mut deferred, results) = executor(Matrix::deferred);
            let fast = Matrix::kernel_for(isa, dtype) != Some(Isa::Reference.name());
            for left in (0..=if fast { 4 } else { 0 }).rev() {
                for (tokens, expected) in [1, 20].into_iter().zip(&expected) {
                    assert!(run(&mut deferred, results, tokens) == *expected, "{isa:?} {dtype} {tokens}, {left} left");
                }
                assert_eq!(deferred.pack_next().unwrap(), left > 0, "{isa:?} {dtype}");
            }
            if fast {
                // At the start (a table that is a matrix, too, for each of them), after it was packed, and at the end.
                let released = watched.released.lock().unwrap();
                let counts = parts.each_ref().map(|part| released.iter().filter(|released| *released == part).count());
                assert_eq!(counts, [4, 3, 3, 3], "{isa:?} {dtype}");
                assert_eq!(Arc::strong_count(&watched), 1, "{isa:?} {dtype}");
            }
        }
    }
}

/// Matrices with so many rows that one thread takes several groups at a time, and rows so long that what is prepared of the
/// activations is prepared in parts.
#[test]
fn results_do_not_depend_on_how_a_matrix_is_cut() {
    let mut random = Random(11);
    for isa in isas() {
        for dtype in types() {
            // More rows than a strip for few tokens has; more columns than sums of many tokens are prepared for at once, or of few.
            for (rows, cols, tokens, planes) in [(1100, 256, 21, 2), (20, 45_056, 10, 1)] {
                let weights = blocks(&mut random, dtype, rows * cols / dtype.block_len(), 0.1);
                let x = random.values(tokens * cols);
                let make = || Matrix::new(isa, dtype, rows, cols, weights.clone().into()).unwrap();
                let product = |threads, range: std::ops::Range<usize>| {
                    let x = &x[range.start * cols..range.end * cols];
                    let values = Bench { isa, threads, tokens: range.len(), planes }.matmul(make(), x);
                    values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                let alone = product(1, 0..tokens);
                assert_eq!(product(5, 0..tokens), alone, "{isa:?} {dtype} {rows} x {cols}");
                for range in [0..1, 0..3, 3..5, 1..5, 0..5, 6..tokens] {
                    let part = &alone[range.start * rows..range.end * rows];
                    for threads in [1, 2] {
                        assert_eq!(product(threads, range.clone()), part, "{isa:?} {dtype} {rows} x {cols} {range:?}");
                    }
                }
            }
        }
    }
}

/// The body of the fuzz target on random inputs, long and short.
#[test]
fn kernels_agree_with_the_reference_on_random_bytes() {
    let mut random = Random(10);
    for round in 0..600 {
        let len = if round % 3 == 0 { random.bits() % 40 } else { random.bits() % 3000 };
        let mut bytes: Vec<u8> = (0..len).map(|_| random.bits() as u8).collect();
        // Every type in turn.
        if let Some(first) = bytes.first_mut() {
            *first = round as u8;
        }
        differential::check(&bytes);
    }
}

#[test]
fn row_kernels_agree_with_the_reference() {
    let mut random = Random(6);
    for isa in isas() {
        for width in [1, 7, 32, 33, 96, 576, 1000] {
            let tokens = 3;
            let x: Vec<f32> = random.values(tokens * width).iter().map(|x| x * 8.0).collect();
            let weight: Arc<[f32]> = random.values(width).into();
            let bench = Bench { isa, threads: 2, tokens, planes: 1 };
            let check = |name: &str, got: Vec<f32>, reference: &dyn Fn(&[f32], &mut [f32])| {
                for (got, x) in got.chunks_exact(width).zip(x.chunks_exact(width)) {
                    let mut expected = vec![0.0; width];
                    reference(x, &mut expected);
                    for (got, expected) in got.iter().zip(&expected) {
                        assert!(
                            (got - expected).abs() <= 2e-6 * expected.abs() + 1e-7,
                            "{isa:?} {name} {width}: {got} for {expected}"
                        );
                    }
                }
            };
            let got = bench.run(&x, width, width, |x, _, out| {
                vec![Call::RmsNorm { x, weight: Arc::clone(&weight), eps: 1e-5, out: Act::F32(out) }]
            });
            check("rms_norm", got, &|x, out| reference::rms_norm(x, &weight, 1e-5, out));
            let got = bench.run(&x, width, width, |x, _, out| vec![Call::Silu { x, out }]);
            check("silu", got, &|x, out| {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = reference::silu(*x);
                }
            });
            // In place, then copied by an addition of zeros.
            let got = bench
                .run(&x, width, width, |x, _, out| vec![Call::Softmax { x, out: x }, Call::Add { a: x, b: out, out }]);
            check("softmax", got, &|x, out| reference::softmax(x, out));
        }
    }
}

#[test]
fn gated_projections_add_and_multiply() {
    let mut random = Random(7);
    for isa in isas() {
        let (rows, cols, tokens) = (40, 64, 5);
        let gate = blocks(&mut random, DType::Q8_0, rows * 2, 0.02);
        let up = blocks(&mut random, DType::Q8_0, rows * 2, 0.02);
        let x = random.values(tokens * cols);
        let make = |bytes: &Vec<u8>| Matrix::new(isa, DType::Q8_0, rows, cols, bytes.clone().into()).unwrap();
        let wants = make(&gate).wants();
        let shape = Shape { dtype: DType::Q8_0, rows, cols, planes: 2 };
        let got = Bench { isa, threads: 3, tokens, planes: 2 }.run(&x, cols, rows, |x, quantized, out| {
            let act = if wants == ActKind::Q8 { Act::Q8(quantized) } else { Act::F32(x) };
            let (gate, up) = (Arc::new(make(&gate)), Arc::new(make(&up)));
            vec![Call::Quantize { x, out: quantized }, Call::GatedMatMul { x: act, gate, up, out }]
        });
        let (gate, _) = expected(wants, shape, &gate, &x);
        let (up, _) = expected(wants, shape, &up, &x);
        let mut expected = vec![0.0; got.len()];
        reference::swiglu(&gate, &up, &mut expected);
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() <= 1e-5 * expected.abs() + 1e-6, "{isa:?}: {got} for {expected}");
        }
    }
}

/// What is packed already takes longer strips than what is not, and so do narrower types.
#[test]
fn a_gated_product_may_be_of_two_types_of_which_one_is_packed() {
    let mut random = Random(23);
    for isa in isas() {
        for (types, rows, cols) in [([DType::Q4_K, DType::Q4_K], 1100, 512), ([DType::Q4_K, DType::Q8_0], 600, 4096)] {
            let weights = types.map(|dtype| blocks(&mut random, dtype, rows * cols / dtype.block_len(), 0.02));
            for tokens in [1, 4, 12] {
                let x = random.values(tokens * cols);
                type Make = fn(Isa, DType, usize, usize, SharedBytes) -> Result<Matrix, MatrixError>;
                let product = |threads, make: [Make; 2]| {
                    let [gate, up] = [0, 1]
                        .map(|i| Arc::new(make[i](isa, types[i], rows, cols, weights[i].clone().into()).unwrap()));
                    let wants = gate.wants();
                    let values = Bench { isa, threads, tokens, planes: 1 }.run(&x, cols, rows, |x, quantized, out| {
                        let act = if wants == ActKind::Q8 { Act::Q8(quantized) } else { Act::F32(x) };
                        vec![Call::Quantize { x, out: quantized }, Call::GatedMatMul { x: act, gate, up, out }]
                    });
                    values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                let (packed, deferred): (Make, Make) = (Matrix::new, Matrix::deferred);
                let expected = product(1, [packed; 2]);
                for threads in [1, 2] {
                    for make in [[packed, deferred], [deferred, packed], [deferred; 2]] {
                        assert!(
                            product(threads, make) == expected,
                            "{isa:?} {types:?} {tokens} tokens, {threads} threads"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn activation_quantization_is_the_reference_bit_for_bit() {
    // The identity as weights shows the dequantized activations.
    let mut random = Random(8);
    let width = 96;
    let mut x = random.values(6 * width);
    // Any finite numbers, from denormal to huge.
    x.extend(
        (0..40 * width).map(|_| f32::from_bits(random.bits() as u32)).map(|x| if x.is_finite() { x } else { 1.0 }),
    );
    let tokens = x.len() / width;
    for (i, x) in x[2 * width..3 * width].iter_mut().enumerate() {
        *x *= 10f32.powi(i as i32 / 8 * 7 - 38);
    }
    x[3 * width..4 * width].fill(0.0);
    x[4 * width + 40] = f32::NAN;
    x[5 * width + 70] = f32::NEG_INFINITY;
    for isa in isas().filter(|isa| *isa != Isa::Reference) {
        let mut identity = vec![0; DType::Q8_0.bytes_for(width * width).unwrap()];
        for r in 0..width {
            let block = &mut identity[(r * width / 32 + r / 32) * 34..][..34];
            block[..2].copy_from_slice(&half::f16::ONE.to_le_bytes());
            block[2 + r % 32] = 1;
        }
        let weight = Matrix::new(isa, DType::Q8_0, width, width, identity.into()).unwrap();
        let got = Bench { isa, threads: 1, tokens, planes: 2 }.matmul(weight, &x);
        let planes = quantized_planes(&x, width, 2);
        for (i, got) in got.iter().enumerate() {
            let expected = planes[0][i] + planes[1][i];
            // A value that is not finite spoils its block, and by the zeros of the identity all columns of its row.
            let spoiled = planes[0][i / width * width..][..width].iter().any(|x| x.is_nan());
            assert!(if spoiled { got.is_nan() } else { *got == expected }, "{isa:?} {i}: {got} for {expected}");
        }
    }
}

/// Queries, keys and values of random sequences through the cache, in steps, against the scalar reference.
#[derive(Clone, Copy, Debug)]
struct AttentionCase {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<u32>,
    kv_type: KvType,
}

impl AttentionCase {
    /// Feeds two sequences of `lengths` tokens in `steps` pieces; returns the attention output of each token, per sequence.
    fn run(&self, isa: Isa, threads: usize, lengths: [usize; 2], steps: usize, data: &[Vec<f32>; 2]) -> [Vec<f32>; 2] {
        let Self { heads, kv_heads, head_dim, window, kv_type } = *self;
        let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let max_tokens = lengths[0] + lengths[1];
        let buf = |offset, width| Buf { offset, width, rows: Rows::Tokens };
        let q = buf(0, q_width);
        let k = buf(Buf::bytes(q_width, max_tokens), kv_width);
        let v = buf(k.offset + Buf::bytes(kv_width, max_tokens), kv_width);
        let out = buf(v.offset + Buf::bytes(kv_width, max_tokens), q_width);
        let inv_freq: Arc<[f32]> = (0..head_dim / 2).map(|i| 100f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let rope = Rope { style: RopeStyle::Interleaved, inv_freq, magnitude: 1.0 };
        let pages = lengths.map(|len| len.div_ceil(PAGE_TOKENS));
        let program = Program {
            calls: vec![
                Call::RopeAppend { q, k, v, layer: 1, rope: Some(rope) },
                Call::Attention { q, out, layer: 1, scale: 0.3, window },
            ],
            arena_bytes: out.offset + Buf::bytes(q_width, max_tokens),
            max_tokens,
            max_outputs: 1,
            kv: Some(KvShape { layers: 2, kv_heads, head_dim, pages: pages[0] + pages[1], kv_type }),
            inputs: vec![q, k, v],
            output: out,
        };
        let mut executor = Executor::new(isa, threads, program).unwrap();
        // Interleaved, backwards: a block table that no one would mistake for the identity.
        let all: Vec<u32> = (0..(pages[0] + pages[1]) as u32).rev().collect();
        let tables = [all[..pages[0]].to_vec(), all[pages[0]..].to_vec()];
        let mut done = [0; 2];
        let mut result = [Vec::new(), Vec::new()];
        for step in 0..steps {
            let until = lengths.map(|len| if step + 1 == steps { len } else { len * (step + 1) / (steps + 1) });
            let mut inputs = [Vec::new(), Vec::new(), Vec::new()];
            let mut sequences = Vec::new();
            for s in 0..2 {
                let width = q_width + 2 * kv_width;
                for row in data[s][done[s] * width..until[s] * width].chunks_exact(width) {
                    inputs[0].extend(&row[..q_width]);
                    inputs[1].extend(&row[q_width..q_width + kv_width]);
                    inputs[2].extend(&row[q_width + kv_width..]);
                }
                if until[s] > done[s] {
                    let (len, start) = ((until[s] - done[s]) as u32, done[s] as u32);
                    sequences.push(BatchSequence { len, start, pages: &tables[s] });
                }
            }
            for (buf, input) in [q, k, v].into_iter().zip(&inputs) {
                executor.write(buf, input).unwrap();
            }
            let tokens = vec![0; inputs[0].len() / q_width];
            if tokens.is_empty() {
                continue;
            }
            let got = executor.run(&Batch { tokens: &tokens, sequences: &sequences, outputs: &[] }).unwrap();
            let mut at = 0;
            for s in 0..2 {
                let count = (until[s] - done[s]) * q_width;
                result[s].extend(&got[at..at + count]);
                at += count;
            }
            done = until;
        }
        result
    }

    /// What the cache of `isa` makes of keys or values.
    fn stored(&self, isa: Isa, values: &mut [f32]) {
        match self.kv_type {
            KvType::Q8_0 => {
                let format = formats::of(DType::Q8_0).unwrap();
                let mut bytes = vec![0; DType::Q8_0.bytes_for(values.len()).unwrap()];
                format.quantize.unwrap()(values, None, &mut bytes);
                (format.dequantize)(&bytes, values);
            }
            _ if isa == Isa::Reference => {}
            _ => values.iter_mut().for_each(|x| *x = half::f16::from_f32(*x).to_f32()),
        }
    }

    fn expected(&self, len: usize, data: &[f32], isa: Isa) -> Vec<f32> {
        let Self { heads, kv_heads, head_dim, window, .. } = *self;
        let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let inv_freq: Vec<f32> = (0..head_dim / 2).map(|i| 100f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let mut rows: Vec<Vec<f32>> = data.chunks_exact(q_width + 2 * kv_width).map(<[f32]>::to_vec).collect();
        for (position, row) in rows.iter_mut().enumerate() {
            for head in row[..q_width + kv_width].chunks_exact_mut(head_dim) {
                reference::rope(head, RopeStyle::Interleaved, &inv_freq, 1.0, position as u32);
            }
            self.stored(isa, &mut row[q_width..]);
        }
        let mut out = Vec::new();
        for t in 0..len {
            for h in 0..heads {
                let at = q_width + h / (heads / kv_heads) * head_dim;
                let first = (t + 1).saturating_sub(window.map_or(usize::MAX, |w| w as usize));
                let keys: Vec<&[f32]> = rows[first..=t].iter().map(|row| &row[at..at + head_dim]).collect();
                let values: Vec<&[f32]> = rows[first..=t].iter().map(|row| &row[at + kv_width..][..head_dim]).collect();
                let mut head = vec![0.0; head_dim];
                reference::attention(&rows[t][h * head_dim..][..head_dim], &keys, &values, 0.3, &mut head);
                out.extend(head);
            }
        }
        out
    }
}

fn bits(values: &[Vec<f32>; 2]) -> [Vec<u32>; 2] {
    values.each_ref().map(|values| values.iter().map(|x| x.to_bits()).collect())
}

#[test]
fn attention_agrees_with_the_reference_through_a_paged_cache() {
    let mut random = Random(9);
    for (heads, kv_heads, head_dim, window) in [
        (1, 1, 16, None),
        (9, 3, 64, None),
        (8, 2, 80, None),
        (4, 4, 128, Some(20)),
        (6, 1, 12, None),
        (2, 2, 48, Some(1)),
        (7, 1, 32, Some(70)),
        (8, 1, 96, Some(9)),
        (40, 1, 32, None),
    ] {
        let lengths = [77, 33];
        let width = (heads + 2 * kv_heads) * head_dim;
        let data = lengths.map(|len| random.values(len * width));
        for kv_type in KvType::ALL.into_iter().filter(|kv_type| head_dim % kv_type.block_len() == 0) {
            let case = AttentionCase { heads, kv_heads, head_dim, window, kv_type };
            let reference = case.run(Isa::Reference, 2, lengths, 1, &data);
            for isa in isas() {
                let once = case.run(isa, 2, lengths, 1, &data);
                for s in 0..2 {
                    let expected = case.expected(lengths[s], &data[s], isa);
                    // Rotated keys are rounded to the cache's precision, where a last bit of f32 may decide a tie.
                    let ceiling = match kv_type {
                        KvType::Q8_0 => 1e-3,
                        _ if isa == Isa::Reference => 1e-6,
                        _ => 2e-4,
                    };
                    for (i, (got, expected)) in once[s].iter().zip(&expected).enumerate() {
                        assert!((got - expected).abs() <= ceiling, "{isa:?} {case:?}, {i}: {got} for {expected}");
                    }
                    // 8-bit entries are the same bytes for all instruction sets.
                    if kv_type == KvType::Q8_0 {
                        for (i, (got, expected)) in once[s].iter().zip(&reference[s]).enumerate() {
                            assert!((got - expected).abs() <= 3e-6, "{isa:?} {case:?}, {i}: {got} for {expected}");
                        }
                    }
                }
                for (threads, steps) in [(1, 1), (3, 2), (2, 40)] {
                    let again = case.run(isa, threads, lengths, steps, &data);
                    assert_eq!(bits(&once), bits(&again), "{isa:?} {case:?}: {threads} threads, {steps} steps");
                }
            }
        }
    }
}

#[test]
fn long_sequences_give_the_same_bits_whole_and_in_parts() {
    let mut random = Random(19);
    let lengths = [560, 290];
    for (heads, kv_heads, window) in [(3, 1, None), (2, 2, Some(300)), (8, 1, Some(40))] {
        let data = lengths.map(|len| random.values(len * (heads + 2 * kv_heads) * 32));
        for kv_type in KvType::ALL {
            let case = AttentionCase { heads, kv_heads, head_dim: 32, window, kv_type };
            // The reference is slow, and knows neither chunks nor parts.
            for isa in isas().filter(|isa| *isa != Isa::Reference) {
                let once = case.run(isa, 1, lengths, 1, &data);
                for s in 0..2 {
                    let expected = case.expected(lengths[s], &data[s], isa);
                    for (i, (got, expected)) in once[s].iter().zip(&expected).enumerate() {
                        assert!((got - expected).abs() <= 1e-3, "{isa:?} {case:?}, {i}: {got} for {expected}");
                    }
                }
                // Many threads compute parts, which one of them merges; the last runs decode token by token.
                for (threads, steps) in [(2, 3), (8, 7), (1, 560), (3, 560)] {
                    let again = case.run(isa, threads, lengths, steps, &data);
                    assert_eq!(bits(&once), bits(&again), "{isa:?} {case:?}: {threads} threads, {steps} steps");
                }
            }
        }
    }
}

/// A weight of 0 does not hide an infinite value: 0 times infinity is NaN.
#[test]
fn later_values_that_are_not_finite_do_not_spoil_earlier_tokens() {
    const BAD: usize = 41;
    let lengths = [70, 5];
    for (heads, kv_heads, window) in [(2, 2, None), (9, 1, None), (2, 1, Some(7)), (12, 1, Some(20))] {
        let q_width = heads * 32;
        let width = q_width + 2 * kv_heads * 32;
        let clean = lengths.map(|len| Random(21).values(len * width));
        for kv_type in KvType::ALL {
            let case = AttentionCase { heads, kv_heads, head_dim: 32, window, kv_type };
            for (isa, bad) in isas().flat_map(|isa| [f32::INFINITY, f32::NEG_INFINITY, f32::NAN].map(|bad| (isa, bad)))
            {
                let mut data = clean.clone();
                let values = BAD * width + q_width + kv_heads * 32;
                data[0][values..values + kv_heads * 32].fill(bad);
                let [expected, _] = case.run(isa, 2, lengths, 1, &clean);
                for steps in [1, 3] {
                    let [got, _] = case.run(isa, 2, lengths, steps, &data);
                    let tokens = got.chunks_exact(q_width).zip(expected.chunks_exact(q_width)).enumerate();
                    for (token, (got, expected)) in tokens {
                        let sees = token >= BAD && window.is_none_or(|window| token < BAD + window as usize);
                        if sees {
                            assert!(got.iter().all(|x| !x.is_finite()), "{isa:?} {case:?}, {bad}, token {token}");
                        } else {
                            assert_eq!(got, expected, "{isa:?} {case:?}, {bad}, token {token}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn rms_norm_survives_values_whose_squares_do_not_fit() {
    for isa in isas() {
        for (scale, eps) in [(1e30, 1e-5), (3e38, 1e-5), (1e19, 1e-5), (1e-25, 0.0), (1e-38, 0.0), (1e-16, 0.0)] {
            let x: Vec<f32> = Random(5).values(90).iter().map(|x| x * scale).collect();
            let weight: Arc<[f32]> = Random(6).values(90).into();
            let mut expected = vec![0.0; 90];
            reference::rms_norm(&x, &weight, eps, &mut expected);
            let got = Bench { isa, threads: 1, tokens: 1, planes: 1 }.run(&x, 90, 90, |x, _, out| {
                vec![Call::RmsNorm { x, weight: Arc::clone(&weight), eps, out: Act::F32(out) }]
            });
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() <= 1e-6 * expected.abs(), "{isa:?} {scale:e}: {got} for {expected}");
            }
        }
    }
}

#[test]
fn unsound_programs_and_batches_are_refused() {
    let x = Buf { offset: 0, width: 8, rows: Rows::Tokens };
    let program = |calls, arena_bytes| Program {
        calls,
        arena_bytes,
        max_tokens: 4,
        max_outputs: 2,
        kv: Some(KvShape { layers: 1, kv_heads: 1, head_dim: 8, pages: 2, kv_type: KvType::F16 }),
        inputs: vec![x],
        output: x,
    };
    let refused = |calls, arena_bytes: usize| {
        Executor::new(Isa::Reference, 1, program(calls, arena_bytes)).err().unwrap().to_string()
    };
    let far = Buf { offset: 64, ..x };
    assert!(refused(vec![Call::Silu { x, out: far }], 192).contains("overlap"));
    assert!(refused(vec![Call::Silu { x, out: Buf { offset: 128, ..x } }], 192).contains("arena"));
    assert!(refused(vec![Call::Silu { x, out: Buf { width: 4, ..x } }], 128).contains("differ in shape"));
    let rope = Some(Rope { style: RopeStyle::Neox, inv_freq: [1.0].into(), magnitude: 1.0 });
    assert!(refused(vec![Call::RopeAppend { q: x, k: x, v: x, layer: 0, rope }], 128).contains("overlap"));
    assert!(
        refused(vec![Call::Attention { q: x, out: x, layer: 1, scale: 1.0, window: None }], 128).contains("layer 1")
    );

    let eight_bit = KvShape { layers: 1, kv_heads: 1, head_dim: 40, pages: 2, kv_type: KvType::Q8_0 };
    let error =
        Executor::new(Isa::Reference, 1, Program { kv: Some(eight_bit), ..program(vec![], 128) }).err().unwrap();
    assert!(error.to_string().contains("q8_0") && error.to_string().contains("40"), "{error}");

    // In place as well, a buffer must lie in the arena.
    let outside = Buf { offset: 1 << 20, ..x };
    assert!(refused(vec![Call::Silu { x: outside, out: outside }], 128).contains("arena"));
    assert!(refused(vec![Call::Add { a: outside, b: outside, out: outside }], 128).contains("arena"));
    let call = Call::Attention { q: outside, out: outside, layer: 0, scale: 1.0, window: None };
    assert!(refused(vec![call], 128).contains("arena"));

    let mut executor = Executor::new(Isa::Reference, 1, program(vec![], 128)).unwrap();
    let mut refused = |tokens: &[u32], outputs: &[u32], sequences: &[(u32, u32, &[u32])]| {
        let sequences: Vec<_> =
            sequences.iter().map(|&(len, start, pages)| BatchSequence { len, start, pages }).collect();
        executor.run(&Batch { tokens, sequences: &sequences, outputs }).unwrap_err().to_string()
    };
    assert!(refused(&[], &[], &[]).contains("0 tokens"));
    assert!(refused(&[0; 5], &[], &[(5, 0, &[0])]).contains("5 tokens"));
    assert!(refused(&[0; 2], &[2], &[(2, 0, &[0])]).contains("output row 2"));
    assert!(refused(&[0; 2], &[0, 0, 0], &[(2, 0, &[0])]).contains("3 outputs"));
    assert!(refused(&[0; 2], &[], &[(1, 0, &[0])]).contains("sequences of 1"));
    assert!(refused(&[0; 2], &[], &[(2, 31, &[0])]).contains("1 pages for 2"));
    assert!(refused(&[0; 2], &[], &[(2, 0, &[2])]).contains("page 2 of 2"));
    assert!(refused(&[0; 2], &[], &[(1, 0, &[1]), (1, 5, &[1])]).contains("one page"));
    assert!(refused(&[0; 2], &[], &[(2, 31, &[1, 1])]).contains("one page"));
    assert!(refused(&[0; 2], &[], &[(2, u32::MAX, &[0])]).contains("position 4294967295"));
    assert!(executor.write(far, &[0.0; 8]).is_err());
    assert!(executor.write(x, &[0.0; 40]).is_err());
}

#[test]
fn sizes_that_overflow_are_refused() {
    let x = Buf { offset: 0, width: 8, rows: Rows::Tokens };
    let kv = KvShape { layers: 1, kv_heads: 1, head_dim: 8, pages: 2, kv_type: KvType::F16 };
    let small = Program {
        calls: vec![],
        arena_bytes: 128,
        max_tokens: 4,
        max_outputs: 2,
        kv: Some(kv),
        inputs: vec![x],
        output: x,
    };
    let refused = |program: Program| Executor::new(Isa::Reference, 2, program).err().unwrap();
    // Bytes that come out as 0 when they wrap around.
    let wide = Buf { width: 1 << 62, ..x };
    refused(Program { inputs: vec![wide], ..small.clone() });
    refused(Program { calls: vec![Call::Silu { x: wide, out: wide }], ..small.clone() });
    let quantized = QBuf { offset: 0, width: 1 << 63, rows: Rows::Tokens, planes: 1 };
    refused(Program {
        calls: vec![Call::Quantize { x: Buf { width: 1 << 63, ..x }, out: quantized }],
        ..small.clone()
    });
    let outputs = Buf { rows: Rows::Outputs, ..x };
    refused(Program { max_tokens: 1 << 57, inputs: vec![], output: outputs, ..small.clone() });
    for kv in [
        KvShape { kv_heads: 1 << 32, head_dim: 1 << 32, ..kv },
        KvShape { head_dim: 1 << 58, ..kv },
        KvShape { pages: 1 << 55, ..kv },
        KvShape { layers: 1 << 54, ..kv },
    ] {
        refused(Program { kv: Some(kv), ..small.clone() });
        assert!(Executor::cache_bytes(Isa::Reference, &kv) > 1 << 50);
    }
    Executor::new(Isa::Reference, 2, small).unwrap();
}

#[test]
fn matrices_that_cannot_be_used_are_refused() {
    use rustai_kernels_cpu::MatrixError;
    for isa in Isa::KNOWN {
        let matrix = |rows, cols| Matrix::new(isa, DType::F32, rows, cols, vec![0; rows * cols * 4].into());
        if isa.missing_feature().is_some() {
            assert!(matches!(matrix(1, 1), Err(MatrixError::Isa { .. })));
            continue;
        }
        for (rows, cols) in [(0, 0), (0, 3), (3, 0)] {
            assert!(matches!(matrix(rows, cols), Err(MatrixError::Empty { .. })));
        }
        matrix(1, 1).unwrap();
    }
}

#[test]
fn values_that_are_not_finite_show_as_in_the_reference() {
    for isa in isas() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN, f32::MAX] {
            let mut x = vec![0.5; 40];
            x[3] = bad;
            let bench = Bench { isa, threads: 1, tokens: 1, planes: 1 };
            let same = |name: &str, got: Vec<f32>, expected: Vec<f32>| {
                for (got, expected) in got.iter().zip(&expected) {
                    let same = got == expected || got.is_nan() && expected.is_nan() || (got - expected).abs() < 1e-6;
                    assert!(same, "{isa:?} {name} {bad}: {got} for {expected}");
                }
            };
            let got = bench.run(&x, 40, 40, |x, _, out| vec![Call::Silu { x, out }]);
            same("silu", got, x.iter().map(|x| reference::silu(*x)).collect());
            let got = bench.run(&x, 40, 40, |x, _, out| vec![Call::Softmax { x, out }]);
            let mut expected = vec![0.0; 40];
            reference::softmax(&x, &mut expected);
            same("softmax", got, expected);
        }
    }
}

#[test]
fn a_query_that_is_not_finite_spoils_its_own_head_only_and_shows() {
    let case = AttentionCase { heads: 2, kv_heads: 1, head_dim: 16, window: None, kv_type: KvType::F16 };
    let width = (2 + 2) * 16;
    let mut data = [40, 3].map(|len| Random(11).values(len * width));
    data[0][38 * width] = f32::NAN;
    for isa in isas() {
        let [first, second] = case.run(isa, 2, [40, 3], 1, &data);
        for (i, head) in first.chunks_exact(16).enumerate() {
            assert!(head.iter().all(|x| x.is_nan() == (i == 2 * 38)), "{isa:?}, head {i}: {head:?}");
        }
        assert!(second.iter().all(|x| x.is_finite()), "{isa:?}");
    }
}

#[test]
fn what_an_earlier_sequence_left_in_a_page_does_not_show() {
    let (width, buf) = (16, |offset| Buf { offset, width: 16, rows: Rows::Tokens });
    let (x, out) = (buf(0), buf(Buf::bytes(width, PAGE_TOKENS)));
    let program = Program {
        calls: vec![
            Call::RopeAppend { q: x, k: x, v: x, layer: 0, rope: None },
            Call::Attention { q: x, out, layer: 0, scale: 0.3, window: None },
        ],
        arena_bytes: 2 * Buf::bytes(width, PAGE_TOKENS),
        max_tokens: PAGE_TOKENS,
        max_outputs: 1,
        kv: Some(KvShape { layers: 1, kv_heads: 1, head_dim: width, pages: 1, kv_type: KvType::F16 }),
        inputs: vec![x],
        output: out,
    };
    let fresh = Random(12).values(3 * width);
    for isa in isas() {
        let mut executor = Executor::new(isa, 1, program.clone()).unwrap();
        let mut run = |input: &[f32]| {
            executor.write(x, input).unwrap();
            let tokens = vec![0; input.len() / width];
            let sequences = [BatchSequence { len: tokens.len() as u32, start: 0, pages: &[0] }];
            executor.run(&Batch { tokens: &tokens, sequences: &sequences, outputs: &[] }).unwrap().to_vec()
        };
        let expected = run(&fresh);
        assert!(run(&[f32::NAN; 32 * 16]).iter().all(|x| x.is_nan()), "{isa:?}");
        assert_eq!(run(&fresh), expected, "{isa:?}");
    }
}
