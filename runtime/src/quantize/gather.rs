//! Gathers an importance matrix: runs a text through a model and sums the squares of what each weight matrix multiplies.
//!
//! The model runs in floats, whatever the types of its file: quantized matrices are expanded to F16 when they are loaded,
//! because then the inputs of products are floats that can be looked at. The step is cut into its kernel calls only here;
//! nothing of it is in the way of ordinary steps.

use super::{Entry, Imatrix, QuantizeError};
use crate::{
    backend::cpu::CpuModel,
    error::Error,
    gguf::GgufFile,
    graph::{WeightInfo, WeightSource},
    model::{self, LoadError, LoadOptions, ModelFile},
    perplexity::Score,
};
use rustai_abi::{Batch, BatchSequence, DType, PAGE_TOKENS};
use rustai_kernels_cpu::{SharedBytes, formats};
use std::{collections::HashMap, ops::ControlFlow};

/// How far gathering has come.
#[derive(Clone, Copy, Debug)]
pub struct GatherProgress {
    /// Chunks that are done.
    pub done: usize,
    /// All.
    pub total: usize,
    /// How well the text is predicted so far: an outlier tells that text and model do not belong together.
    pub perplexity: f64,
}

/// Sums of one matrix.
struct Sums {
    squares: Vec<f64>,
    rows: u64,
}

/// Runs `tokens` through the model in chunks of `chunk`, each on an empty cache and with `bos` in the place of its first
/// token if the model wants one, and gathers the importance of all matrices but the output's. Incomplete chunks are left
/// out. `threads` of 0 is one per core. `progress` is told of each chunk and may end the work: then the result is what the
/// chunks so far gave, and its [`chunks`](Imatrix::chunks) tells how many they are.
///
/// # Errors
/// [`QuantizeError::ChunkTooSmall`], [`QuantizeError::TextTooShort`], [`QuantizeError::NotFiniteOnText`]; as of loading the
/// model and running it.
pub fn gather(
    file: &GgufFile,
    tokens: &[u32],
    chunk: usize,
    bos: Option<u32>,
    threads: usize,
    progress: &mut dyn FnMut(GatherProgress) -> ControlFlow<()>,
) -> Result<Imatrix, Error> {
    if chunk < 2 {
        return Err(QuantizeError::ChunkTooSmall { chunk }.into());
    }
    if tokens.len() < chunk {
        return Err(QuantizeError::TextTooShort { tokens: tokens.len(), chunk }.into());
    }
    let options =
        LoadOptions { threads, context: chunk, max_batch: chunk, max_outputs: chunk, ..LoadOptions::default() };
    let mut model = model::load_cpu(&Expanded(file), &options, &mut |_| ())?;
    let last = last_matrix(&model);
    let pages: Vec<u32> = (0..chunk.div_ceil(PAGE_TOKENS) as u32).collect();
    // All rows are outputs: the last layer, too, must see them all.
    let outputs: Vec<u32> = (0..chunk as u32).collect();
    let mut sums = HashMap::<String, Sums>::new();
    let mut score = Score::default();
    let (mut chunks, total) = (0, tokens.len() / chunk);
    for text in tokens.chunks_exact(chunk) {
        let mut text = text.to_vec();
        if let Some(bos) = bos {
            text[0] = bos;
        }
        let sequence = BatchSequence { len: chunk as u32, start: 0, pages: &pages };
        let batch = Batch { tokens: &text, sequences: &[sequence], outputs: &outputs };
        let mut not_finite = None;
        let logits = model.step_observed(&batch, &mut |weights, width, rows| {
            let squares = column_squares(width, rows);
            if not_finite.is_none() && squares.iter().any(|sum| !sum.is_finite()) {
                not_finite = weights.first().map(|weight| format!("inputs of {weight}"));
            }
            for weight in weights.iter().filter(|weight| **weight != last) {
                if !sums.contains_key(*weight) {
                    sums.insert((*weight).to_owned(), Sums { squares: vec![0.0; width], rows: 0 });
                }
                if let Some(sums) = sums.get_mut(*weight) {
                    sums.squares.iter_mut().zip(&squares).for_each(|(sum, square)| *sum += square);
                    sums.rows += (rows.len() / width) as u64;
                }
            }
        })?;
        if not_finite.is_none() && logits.iter().any(|logit| logit.is_nan()) {
            not_finite = Some("logits".to_owned());
        }
        // Further chunks would not heal it, and take hours on a large model.
        if let Some(what) = not_finite {
            return Err(QuantizeError::NotFiniteOnText { what }.into());
        }
        let rows = logits.chunks_exact(logits.len() / chunk).zip(&text[1..]);
        rows.skip(chunk / 2).for_each(|(row, &next)| score.add_token(row, next as usize));
        chunks += 1;
        if progress(GatherProgress { done: chunks, total, perplexity: score.perplexity() }).is_break() {
            break;
        }
    }
    let mut imatrix = Imatrix::default();
    (imatrix.chunks, imatrix.chunk_tokens) = (chunks as u32, chunk as u32);
    for (name, Sums { squares, rows }) in sums {
        let squares: Vec<f32> = squares.iter().map(|&sum| sum as f32).collect();
        let entry = Entry::new(&squares, vec![rows as f32]);
        // Sums may be finite in doubles only.
        let entry = entry.ok_or_else(|| QuantizeError::NotFiniteOnText { what: format!("inputs of {name}") })?;
        imatrix.insert(name, entry);
    }
    Ok(imatrix)
}

/// Sums of squares over the rows, for each column.
fn column_squares(width: usize, rows: &[f32]) -> Vec<f64> {
    let mut squares = vec![0f64; width];
    for row in rows.chunks_exact(width) {
        squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
    squares
}

/// The matrix whose product is the result. Its inputs differ from those of the embedding that it may be tied to, so that
/// they would mislead; llama.cpp leaves it out as well.
fn last_matrix(model: &CpuModel) -> String {
    let graph = &model.plan().graph;
    let matrix = match graph.node(graph.output()).op {
        crate::graph::Op::MatMul { weight, .. } => Some(graph.weight(weight).name.clone()),
        _ => None,
    };
    matrix.unwrap_or_default()
}

/// A model file whose matrices are floats.
struct Expanded<'a>(&'a GgufFile);

impl Expanded<'_> {
    fn dtype(dtype: DType) -> DType {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => dtype,
            quantized if formats::of(quantized).is_some() => DType::F16,
            other => other,
        }
    }
}

impl WeightSource for Expanded<'_> {
    fn info(&self, name: &str) -> Option<WeightInfo> {
        let info = self.0.info(name)?;
        Some(WeightInfo { dtype: Self::dtype(info.dtype), ..info })
    }

    fn bytes(&self, name: &str) -> Option<SharedBytes> {
        let (info, bytes) = (self.0.info(name)?, WeightSource::bytes(self.0, name)?);
        if Self::dtype(info.dtype) == info.dtype {
            return Some(bytes);
        }
        let (from, to) = (formats::of(info.dtype)?, formats::of(DType::F16)?.quantize?);
        // Row by row, so that the numbers in between take no memory.
        let (cols, row_bytes) = (info.dims[0], info.dtype.bytes_for(info.dims[0])?);
        let mut values = vec![0.0; cols];
        let mut out = vec![0; bytes.len() / row_bytes * cols * 2];
        for (row, out) in bytes.chunks_exact(row_bytes).zip(out.chunks_exact_mut(cols * 2)) {
            (from.dequantize)(row, &mut values);
            to(&values, None, out);
        }
        WeightSource::release(self.0, name);
        Some(out.into())
    }

    fn release(&self, name: &str) {
        WeightSource::release(self.0, name);
    }
}

impl ModelFile for Expanded<'_> {
    fn str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.0.str(key)
    }

    fn u64(&self, key: &str) -> Result<Option<u64>, LoadError> {
        self.0.u64(key)
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        self.0.f32(key)
    }

    fn count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.0.count(key)
    }

    fn tensor_names(&self) -> Vec<String> {
        self.0.tensor_names()
    }

    fn weights(&self) -> &dyn WeightSource {
        self
    }
}
