//! What the microbenchmarks measure: matrix products of the shapes that models have, with weights in a cache or in memory, and
//! attention.
//!
//! `cargo bench -p rustai-kernels-cpu` and `rustai bench kernels` share this. Nothing else needs it.

mod attention;

pub use attention::{Attention, HEADS, Heads};

use crate::{
    Act, ActKind, Buf, Call, Executor, ExecutorError, Isa, Matrix, MatrixError, Program, Projection, QBuf, Rows,
    formats::q8a,
};
use rustai_abi::{Batch, BatchSequence, DType};
use std::sync::Arc;

/// A matrix of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What the model uses it for.
    pub role: &'static str,
    /// Outputs (N).
    pub rows: usize,
    /// Inputs (K).
    pub cols: usize,
}

/// A model and the shapes of its matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// How flags name it.
    pub name: &'static str,
    /// The model that has these shapes.
    pub like: &'static str,
    /// The shapes. The first stands for the model where one is enough; its row length is a multiple of every block.
    pub shapes: [Shape; 4],
}

impl Model {
    const fn new(name: &'static str, like: &'static str, width: usize, kv_width: usize, ffn: usize) -> Self {
        Self {
            name,
            like,
            shapes: [
                Shape { role: "ffn_down", rows: width, cols: ffn },
                Shape { role: "ffn_up", rows: ffn, cols: width },
                Shape { role: "attn_q", rows: width, cols: width },
                Shape { role: "attn_k", rows: kv_width, cols: width },
            ],
        }
    }
}

/// The models, smallest first.
pub const MODELS: [Model; 3] = [
    Model::new("135m", "SmolLM2-135M", 576, 192, 1536),
    Model::new("1b", "Llama 3.2 1B", 2048, 512, 8192),
    Model::new("8b", "Llama 3.1 8B", 4096, 1024, 14336),
];

/// Numbers of tokens (M) from decoding one sequence over decoding several to a prompt.
pub const TOKENS: [usize; 5] = [1, 4, 16, 64, 512];

/// Where the weights are when a product starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// One matrix is multiplied again and again, so that it stays in the caches if it fits.
    Cache,
    /// At least so many bytes of equal matrices are multiplied in turn, so that each has been evicted when it comes again.
    Memory(usize),
}

impl Residence {
    /// Matrices that are kept, if each has so many bytes.
    pub fn matrices(self, bytes: usize) -> usize {
        match self {
            Self::Cache => 1,
            Self::Memory(least) => least.div_ceil(bytes.max(1)).max(1),
        }
    }

    /// Products that are made in one run.
    pub fn products(self, bytes: usize) -> usize {
        match self {
            Self::Cache => HOT_PRODUCTS,
            Self::Memory(_) => self.matrices(bytes),
        }
    }
}

/// Products that are made in one run with one hot matrix: enough that starting a run does not count.
const HOT_PRODUCTS: usize = 16;

/// A product that cannot be prepared or run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProductError {
    /// The matrix.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// Memory, threads or the batch.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
}

/// One matrix product, ready to run with any number of tokens up to a limit.
///
/// A run quantizes the activations if the kernel wants that, then multiplies them with every matrix in turn.
pub struct Product {
    executor: Executor,
    tokens: Vec<u32>,
    shape: Shape,
    dtype: DType,
    kernel: &'static str,
    wants: ActKind,
    products: usize,
    working_set: usize,
}

impl Product {
    /// Prepares weights of type `dtype` for the kernels of `isa`, and activations of up to `max_tokens` tokens.
    ///
    /// # Errors
    /// [`ProductError`] if the type has no kernel or does not fit the shape, the processor lacks `isa`, or memory or threads
    /// are refused.
    pub fn new(
        isa: Isa,
        threads: usize,
        dtype: DType,
        shape: Shape,
        max_tokens: usize,
        residence: Residence,
    ) -> Result<Self, ProductError> {
        let Shape { rows, cols, .. } = shape;
        let block = dtype.block_len();
        let bytes = dtype.bytes_for(cols).ok_or(MatrixError::RowLength { cols, dtype, block })? * rows;
        let (matrices, products) = (residence.matrices(bytes), residence.products(bytes));
        // Any bits are valid quants; 0x2c as the high byte of a scale makes it a small, normal number.
        let blocks: Vec<u8> = (0..bytes).map(|i| if i % 2 == 1 { 0x2c } else { ((i * 37) >> 3) as u8 }).collect();
        let weights = (0..matrices)
            .map(|_| Ok(Arc::new(Matrix::new(isa, dtype, rows, cols, blocks.clone().into())?)))
            .collect::<Result<Vec<_>, MatrixError>>()?;
        let (kernel, wants) = (weights[0].kernel_name(), weights[0].wants());

        let x = Buf { offset: 0, width: cols, rows: Rows::Tokens };
        let planes = q8a::planes(cols);
        let quantized = QBuf { offset: Buf::bytes(cols, max_tokens), width: cols, rows: Rows::Tokens, planes };
        let after = match wants {
            ActKind::Q8 => quantized.offset + QBuf::bytes(cols, max_tokens, planes),
            ActKind::F32 => quantized.offset,
        };
        let out = Buf { offset: after, width: rows, rows: Rows::Tokens };
        let (first, act) = match wants {
            ActKind::Q8 => (Some(Call::Quantize { x, out: quantized }), Act::Q8(quantized)),
            ActKind::F32 => (None, Act::F32(x)),
        };
        let calls = weights.iter().cycle().take(products).map(|weight| {
            let projection = Projection { weight: Arc::clone(weight), bias: None, out, accumulate: false };
            Call::MatMul { x: act, projections: vec![projection] }
        });
        let program = Program {
            calls: first.into_iter().chain(calls).collect(),
            arena_bytes: out.offset.saturating_add(Buf::bytes(rows, max_tokens)),
            max_tokens,
            max_outputs: 1,
            kv: None,
            inputs: vec![x],
            output: out,
        };
        let mut executor = Executor::new(isa, threads, program)?;
        let values: Vec<f32> = (0..max_tokens * cols).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect();
        executor.write(x, &values)?;
        let tokens = vec![0; max_tokens];
        let working_set = matrices * bytes;
        Ok(Self { executor, tokens, shape, dtype, kernel, wants, products, working_set })
    }

    /// Multiplies the first `tokens` rows of activations with every matrix; returns the last product's rows.
    ///
    /// # Errors
    /// [`ExecutorError::Batch`] for no token, or more than the limit; [`ExecutorError::Panicked`] after a defect.
    pub fn run(&mut self, tokens: usize) -> Result<&[f32], ExecutorError> {
        let Some(ids) = self.tokens.get(..tokens) else {
            let most = self.tokens.len();
            return Err(ExecutorError::Batch(format!("{tokens} tokens, but the product was prepared for {most}")));
        };
        let sequences = [BatchSequence { len: tokens as u32, start: 0, pages: &[] }];
        self.executor.run(&Batch { tokens: ids, sequences: &sequences, outputs: &[] })
    }

    /// Matrix products in a run.
    pub fn products(&self) -> usize {
        self.products
    }

    /// Multiply-adds of one product.
    pub fn macs(&self, tokens: usize) -> u64 {
        (self.shape.rows * self.shape.cols * tokens) as u64
    }

    /// Bytes of one matrix as files store it.
    pub fn weight_bytes(&self) -> u64 {
        self.dtype.bytes_for(self.shape.rows * self.shape.cols).unwrap_or(0) as u64
    }

    /// Bytes of all matrices of a run.
    pub fn working_set(&self) -> u64 {
        self.working_set as u64
    }

    /// Name of the kernel in use: an instruction set, or `reference`.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// What the kernel multiplies the weights with.
    pub fn wants(&self) -> ActKind {
        self.wants
    }

    /// Rows of quantized activations that stand for one token, as where queries and keys are made: two for narrow ones, which doubles the
    /// arithmetic.
    pub fn planes(&self) -> usize {
        if self.wants == ActKind::Q8 { q8a::planes(self.shape.cols) } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_shape_of_a_model_suits_every_type() {
        for model in MODELS {
            for format in crate::formats::table() {
                assert!(format.dtype.bytes_for(model.shapes[0].cols).is_some(), "{} {}", model.name, format.dtype);
            }
        }
    }

    #[test]
    fn hot_and_cold_weights_give_the_same_product() {
        let shape = Shape { role: "test", rows: 48, cols: 256 };
        for dtype in [DType::Q4_0, DType::Q6_K, DType::F32, DType::Q5_0] {
            let mut hot = Product::new(Isa::best(), 2, dtype, shape, 3, Residence::Cache).unwrap();
            let mut cold = Product::new(Isa::best(), 1, dtype, shape, 3, Residence::Memory(100_000)).unwrap();
            let values = hot.run(2).unwrap().to_vec();
            assert_eq!(values.len(), 2 * 48);
            assert!(values.iter().all(|value| value.is_finite()) && values.iter().any(|value| *value != 0.0));
            assert_eq!(cold.run(2).unwrap(), values, "{dtype}");
            assert_eq!(hot.working_set(), hot.weight_bytes());
            assert!(
                cold.working_set() >= 100_000 && cold.products() as u64 * cold.weight_bytes() == cold.working_set()
            );
            assert_eq!(hot.macs(2), 2 * 48 * 256);
            assert!(matches!(hot.run(4), Err(ExecutorError::Batch(_))));
        }
        let narrow = Shape { cols: 40, ..shape };
        let error = Product::new(Isa::best(), 1, DType::Q4_0, narrow, 1, Residence::Cache).err().unwrap();
        assert!(matches!(error, ProductError::Matrix(MatrixError::RowLength { .. })));
    }
}
