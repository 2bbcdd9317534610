//! Matrix products of the fast kernels against the scalar reference, on whatever bytes they are given.
//!
//! The tests beside this folder and the fuzz target `matmul` (`tests/fuzz`) share it: [`check`] is the target's body.

use rustai_abi::{Batch, BatchSequence, DType};
use rustai_kernels_cpu::{
    Act, ActKind, Buf, Call, Executor, Isa, Matrix, Program, Projection, QBuf, Rows, SharedBytes, formats,
    formats::q8a, reference,
};
use std::{ops::Range, sync::Arc};

/// The instruction sets that this processor has; only the best of them where the environment names it, since slow emulated
/// processors (`scripts/cross_test.sh`) take one each.
pub fn isas() -> impl Iterator<Item = Isa> {
    let only = std::env::var("RUSTAI_TEST_BEST").ok();
    Isa::ALL
        .into_iter()
        .filter(|isa| isa.missing_feature().is_none())
        .filter(move |isa| only.as_deref().is_none_or(|name| isa.name() == name))
}

/// Runs the calls that `make` writes for an input of `tokens` rows of `width` values and an output of `out_width` columns.
pub struct Bench {
    pub isa: Isa,
    pub threads: usize,
    pub tokens: usize,
    /// Rows of 8-bit activations for a token.
    pub planes: usize,
}

impl Bench {
    pub fn run(
        &self,
        input: &[f32],
        width: usize,
        out_width: usize,
        make: impl FnOnce(Buf, QBuf, Buf) -> Vec<Call>,
    ) -> Vec<f32> {
        let tokens = self.tokens;
        let x = Buf { offset: 0, width, rows: Rows::Tokens };
        let planes = self.planes;
        let quantized = QBuf { offset: Buf::bytes(width, tokens), width, rows: Rows::Tokens, planes };
        let offset = quantized.offset + QBuf::bytes(width, tokens, planes);
        let out = Buf { offset, width: out_width, rows: Rows::Tokens };
        let program = Program {
            calls: make(x, quantized, out),
            arena_bytes: offset + Buf::bytes(out_width, tokens),
            max_tokens: tokens,
            max_outputs: 1,
            kv: None,
            inputs: vec![x],
            output: out,
        };
        let mut executor = Executor::new(self.isa, self.threads, program).unwrap();
        executor.write(x, input).unwrap();
        let ids = vec![0; tokens];
        let sequences = [BatchSequence { len: tokens as u32, start: 0, pages: &[] }];
        executor.run(&Batch { tokens: &ids, sequences: &sequences, outputs: &[] }).unwrap().to_vec()
    }

    pub fn matmul(&self, weight: Matrix, input: &[f32]) -> Vec<f32> {
        let (width, out_width) = (weight.cols(), weight.rows());
        self.run(input, width, out_width, |x, quantized, out| {
            let mut calls = Vec::new();
            let act = if weight.wants() == ActKind::Q8 {
                calls.push(Call::Quantize { x, out: quantized });
                Act::Q8(quantized)
            } else {
                Act::F32(x)
            };
            let projection = Projection { weight: Arc::new(weight), bias: None, out, accumulate: false };
            calls.push(Call::MatMul { x: act, projections: vec![projection] });
            calls
        })
    }
}

/// Rows of `width` values as `q8a` stands for them, plane by plane.
pub fn quantized_planes(x: &[f32], width: usize, planes: usize) -> Vec<Vec<f32>> {
    let mut rest = x.to_vec();
    let mut row = vec![0; q8a::row_bytes(width)];
    (0..planes)
        .map(|_| {
            let mut plane = vec![0.0; x.len()];
            for (rest, plane) in rest.chunks_exact_mut(width).zip(plane.chunks_exact_mut(width)) {
                q8a::quantize_row(rest, &mut row);
                q8a::Row::new(&row, width).dequantize(plane);
                q8a::subtract(rest, &row);
            }
            plane
        })
        .collect()
}

/// A matrix of so many rows and columns, and the rows of 8-bit activations that it is multiplied with for a token.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
    pub planes: usize,
}

/// What a matrix that wants `kind` should give, and the sum of magnitudes that rounding errors scale with.
pub fn expected(kind: ActKind, shape: Shape, weights: &[u8], x: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let Shape { dtype, rows, cols, planes } = shape;
    let format = formats::of(dtype).unwrap();
    let tokens = x.len() / cols;
    let mut plain = vec![0.0; rows * cols];
    (format.dequantize)(weights, &mut plain);
    // What the kernel sees of the activations: all of it, or one or two planes of quantized values.
    let planes = if kind == ActKind::Q8 { quantized_planes(x, cols, planes) } else { vec![x.to_vec()] };
    let mut out = vec![0.0; tokens * rows];
    let mut product = vec![0.0; tokens * rows];
    for plane in &planes {
        reference::matmul(format, rows, cols, weights, plane, &mut product);
        for (out, product) in out.iter_mut().zip(&product) {
            *out += product;
        }
    }
    let mut size = vec![0.0; tokens * rows];
    for (t, size) in size.chunks_exact_mut(rows).enumerate() {
        for (r, size) in size.iter_mut().enumerate() {
            let terms = x[t * cols..][..cols].iter().zip(&plain[r * cols..]);
            *size = terms.map(|(x, w)| (x * w).abs()).sum();
        }
    }
    (out, size)
}

/// Where a block keeps its f16 scales and minima.
///
/// # Panics
/// For types that nothing multiplies.
pub fn half_scales(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::F16 | DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::Q1_0 | DType::Q2_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        DType::IQ1_S | DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S | DType::IQ3_XXS | DType::IQ3_S => &[0],
        DType::IQ4_NL | DType::IQ4_XS => &[0],
        DType::TQ1_0 => &[52],
        DType::TQ2_0 => &[64],
        // Floats of another width, exponents, or a scale in parts.
        DType::F32 | DType::BF16 | DType::MXFP4 | DType::NVFP4 | DType::IQ1_M => &[],
        other => panic!("{other}"),
    }
}

/// The quants of the types with a minimum. Where they are zero, a block's values are its minima, negated or not.
fn quants_over_a_minimum(dtype: DType) -> Option<Range<usize>> {
    Some(match dtype {
        DType::Q4_1 | DType::Q5_1 => 4..dtype.block_bytes(),
        DType::Q4_K | DType::Q5_K => 16..dtype.block_bytes(),
        DType::Q2_K => 16..80,
        _ => return None,
    })
}

/// Clears the upper half of the exponents of all scales, so that they are finite and below two.
fn tame(dtype: DType, blocks: &mut [u8]) {
    for block in blocks.chunks_exact_mut(dtype.block_bytes()) {
        for at in half_scales(dtype) {
            block[at + 1] &= !0x40;
        }
        match dtype {
            DType::F32 => block[3] &= !0x40,
            DType::BF16 => block[1] &= !0x40,
            DType::IQ1_M => block[55] &= !0x40,
            DType::MXFP4 => block[0] &= !0x80,
            _ => {}
        }
    }
}

/// The same bytes where no value is aligned.
pub fn at_an_odd_address(bytes: &[u8]) -> SharedBytes {
    let mut longer = vec![0; 2];
    longer.extend(bytes);
    let start = 1 + longer.as_ptr().addr() % 2;
    longer.copy_within(2.., start);
    SharedBytes::new(Arc::new(longer), start..start + bytes.len()).expect("the owner is long enough")
}

/// Multiplies a matrix made of `bytes` on every instruction set that has a fast kernel for its type, and compares.
///
/// The first byte chooses the type among those with a fast kernel, the next four the shape, the number of tokens, their size,
/// whether scales may be anything, whether a token has one row of 8-bit activations or two, and whether the matrix begins at an
/// odd address. The rest, over and over, makes the blocks and the activations.
///
/// # Panics
/// If a kernel gives anything else than the reference, beyond the rounding of `f32`.
pub fn check(bytes: &[u8]) {
    let Some((&[kind, rows, blocks, tokens, flags], data)) = bytes.split_first_chunk::<5>() else { return };
    let fast = |isa: Isa, dtype| Matrix::kernel_for(isa, dtype).is_some_and(|kernel| kernel != Isa::Reference.name());
    let types: Vec<DType> = formats::table()
        .iter()
        .map(|format| format.dtype)
        .filter(|dtype| isas().any(|isa| fast(isa, *dtype)))
        .collect();
    if types.is_empty() || data.is_empty() {
        return;
    }
    let dtype = types[usize::from(kind) % types.len()];
    let (rows, tokens) = (1 + usize::from(rows) % 40, 1 + usize::from(tokens) % 9);
    // Up to 640 columns, in whole blocks.
    let cols = (1 + usize::from(blocks) % (640 / dtype.block_len()).min(20)) * dtype.block_len();
    let mut data = data.iter().copied().cycle();
    let mut weights: Vec<u8> = data.by_ref().take(dtype.bytes_for(rows * cols).expect("whole blocks")).collect();
    if flags & 1 == 0 {
        tame(dtype, &mut weights);
    }
    let planes = 1 + usize::from(flags >> 1 & 1);
    let shape = Shape { dtype, rows, cols, planes };
    let size = 2f32.powi(i32::from(flags >> 4) - 12);
    let x: Vec<f32> = data.map(|byte| f32::from(byte as i8) * size).take(tokens * cols).collect();

    let format = formats::of(dtype).expect("a row of the table");
    let mut plain = vec![0.0; rows * cols];
    (format.dequantize)(&weights, &mut plain);
    // What is added up: a value is a part above its minimum, and the minimum, which may cancel.
    let mut minima = vec![0.0; rows * cols];
    if let Some(quants) = quants_over_a_minimum(dtype) {
        let mut zeros = weights.clone();
        zeros.chunks_exact_mut(dtype.block_bytes()).for_each(|block| block[quants.clone()].fill(0));
        (format.dequantize)(&zeros, &mut minima);
    }
    for isa in isas().filter(|isa| fast(*isa, dtype)) {
        let bytes = if flags & 4 == 0 { weights.clone().into() } else { at_an_odd_address(&weights) };
        let weight = Matrix::new(isa, dtype, rows, cols, bytes).expect("a sound matrix");
        let (expected, _) = expected(weight.wants(), shape, &weights, &x);
        let got = Bench { isa, threads: 1, tokens, planes }.matmul(weight, &x);
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let (row, x) = (i % rows * cols, &x[i / rows * cols..][..cols]);
            let (plain, minima) = (&plain[row..][..cols], &minima[row..][..cols]);
            if plain.iter().any(|w| !w.is_finite()) {
                // Half of an MXFP4 scale may be finite where a value is not, so that the order of operations decides.
                assert!(!got.is_finite() || dtype == DType::MXFP4, "{isa:?} {dtype} {i}: {got} for {expected}");
                continue;
            }
            let terms = x.iter().zip(plain).zip(minima);
            let size: f64 = terms.map(|((x, w), m)| f64::from(x.abs()) * f64::from(w.abs() + 2.0 * m.abs())).sum();
            // Near the end of f32, too, the order of operations decides.
            if size < 1e37 {
                let ceiling = 2e-6 * size + 1e-30;
                let error = (f64::from(*got) - f64::from(*expected)).abs();
                assert!(
                    error <= ceiling,
                    "{isa:?} {dtype} {rows}x{cols} {i}: {got} for {expected}, ceiling {ceiling:e}"
                );
            }
        }
    }
}
