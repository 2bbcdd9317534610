//! What tests of products share: weights of every type, activations in the forms that devices want, and what the product must be.

use super::{Numbers, error};
use half::{bf16, f16};
use rustai_abi::DType;
use rustai_kernels_cpu::{
    formats::{self, q8a},
    reference,
};
use rustai_kernels_cuda::{
    Arena, Device, Floats, Halves, Input, Kernels, Packed, Projection, Quants, Stream, Weights, ops::Targets,
    weights::is_quantized,
};

pub const TYPES: [DType; 16] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::MXFP4,
];

/// Sums in `f32` of products that the reference sums in `f64`.
pub const CEILING: f32 = 4e-6;

/// Random weights as a file holds them.
pub fn weights(dtype: DType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let values = Numbers::new(seed).values(rows * cols);
    let mut bytes = vec![0; dtype.bytes_for(rows * cols).unwrap()];
    (formats::of(dtype).unwrap().quantize.unwrap())(&values, None, &mut bytes);
    bytes
}

/// As [`CEILING`], of F32 weights by many tokens: both sides are rounded to 16 bits.
pub const SPLIT_CEILING: f32 = 2e-5;

/// As [`CEILING`], of quantized weights by many tokens on Hopper, and of what they are by the activations as they are: both are
/// rounded to 11 bits.
pub const HOPPER_CEILING: f32 = 1e-3;

/// What the product must be: of the weights with the activations as they are quantized, or rounded for many tokens.
pub fn expected(dtype: DType, rows: usize, cols: usize, bytes: &[u8], x: &[f32]) -> Vec<f32> {
    let mut x = x.to_vec();
    let many = x.len() / cols > 16;
    match dtype {
        DType::F16 if many => x.iter_mut().for_each(|x| *x = f16::from_f32(*x / 16.0).to_f32() * 16.0),
        DType::BF16 if many => x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        _ => {}
    }
    if is_quantized(dtype).unwrap() {
        let mut row = vec![0; q8a::row_bytes(cols)];
        for x in x.chunks_exact_mut(cols) {
            q8a::quantize_row(x, &mut row);
            q8a::Row::new(&row, cols).dequantize(x);
        }
    }
    exact(dtype, rows, cols, bytes, &x)
}

/// The product of the weights with the activations as they are.
pub fn exact(dtype: DType, rows: usize, cols: usize, bytes: &[u8], x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / cols * rows];
    reference::matmul(formats::of(dtype).unwrap(), rows, cols, bytes, x, &mut out);
    out
}

/// Activations on the device in the forms that a type and a device want.
pub struct Activations {
    pub floats: Floats,
    pub quants: Option<Quants>,
    pub halves: Option<Halves>,
}

impl Activations {
    pub fn new(device: &Device, kernels: &Kernels, stream: &Stream, dtype: DType, cols: usize, x: &[f32]) -> Self {
        let floats = Floats::with(device, cols, x).unwrap();
        let (rows, quantized) = (floats.rows(), is_quantized(dtype).unwrap());
        let is_wide = quantized && kernels.halves_from().unwrap().is_some_and(|from| rows >= from);
        let room = Quants::room(rows, cols) + Halves::room(rows, cols);
        let mut arena = Arena::new(device, "test", room).unwrap();
        let quants = quantized.then(|| Quants::take(&mut arena, rows, cols).unwrap());
        let halves = is_wide.then(|| Halves::take(&mut arena, rows, cols).unwrap());
        if quantized {
            let targets = Targets { floats: None, quants: quants.as_ref(), halves: halves.as_ref() };
            kernels.convert(stream, &floats, targets, rows).unwrap();
        }
        Self { floats, quants, halves }
    }

    pub fn input(&self) -> Input<'_> {
        match (&self.halves, &self.quants) {
            (Some(halves), _) => Input::Halves(halves),
            (None, Some(quants)) => Input::Quantized(quants),
            (None, None) => Input::Floats(&self.floats),
        }
    }

    /// What a product with weights must be, given the values of which these are, and how far off it may be.
    pub fn expected(&self, dtype: DType, rows: usize, bytes: &[u8], x: &[f32]) -> (Vec<f32>, f32) {
        let product = if self.halves.is_some() { exact } else { expected };
        let ceiling = match self.input() {
            Input::Halves(_) => HOPPER_CEILING,
            Input::Floats(x) if dtype == DType::F32 && x.rows() > 16 => SPLIT_CEILING,
            Input::Floats(_) | Input::Quantized(_) => CEILING,
        };
        (product(dtype, rows, self.floats.width(), bytes, x), ceiling)
    }
}

pub fn upload(device: &Device, dtype: DType, rows: usize, cols: usize, bytes: &[u8]) -> Weights {
    Packed::new(dtype, rows, cols, bytes).unwrap().upload(device).unwrap()
}

pub fn zeros(device: &Device, rows: usize, width: usize) -> Floats {
    Floats::with(device, width, &vec![0.0; rows * width]).unwrap()
}

/// Compares one product of `tokens` rows with the reference, in each order of threads that `orders` asks for.
pub fn agrees(
    (device, kernels, stream): &(Device, Kernels, Stream),
    dtype: DType,
    (rows, cols, tokens): (usize, usize, usize),
    seed: u64,
    orders: impl FnOnce(&mut dyn FnMut(u32)),
) {
    let bytes = weights(dtype, rows, cols, seed);
    let x = Numbers::new(77 + seed).values(tokens * cols);
    let on_device = upload(device, dtype, rows, cols, &bytes);
    let activations = || Activations::new(device, kernels, stream, dtype, cols, &x);
    let (expected, ceiling) = activations().expected(dtype, rows, &bytes, &x);
    orders(&mut |schedule| {
        let x = activations();
        let out = zeros(device, tokens, rows);
        let projection = Projection { weights: &on_device, bias: None, out: &out, accumulate: false };
        kernels.matmul(stream, x.input(), &[projection], None, tokens).unwrap();
        let error = error(&out.read(tokens).unwrap(), &expected);
        assert!(error < ceiling, "{dtype} {rows} x {cols}, {tokens} tokens, order {schedule}: {error:e}");
    });
}
