//! Small random models of the llama architecture, valid in every detail.

use crate::{Rng, random_blocks, vocab::Vocab};
use rustai::gguf::{GgufWriter, Value};
use rustai_abi::DType;
use std::path::{Path, PathBuf};

/// A small random llama. Change the fields, then make bytes or a file of it; equal fields give equal bytes.
///
/// ```
/// use rustai_tests::TinyLlama;
///
/// let bytes = TinyLlama { biases: true, ..TinyLlama::default() }.bytes();
/// assert_eq!(rustai::gguf::GgufFile::from_bytes(bytes)?.metadata().u32("llama.block_count")?, Some(2));
/// # Ok::<(), rustai::gguf::GgufError>(())
/// ```
#[derive(Clone, Debug)]
pub struct TinyLlama {
    /// GGUF version: 2 or 3.
    pub version: u32,
    /// Layers.
    pub layers: usize,
    /// Model width; a multiple of the heads and of the type's block.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of the feed-forward layers; a multiple of the type's block.
    pub feed_forward: usize,
    /// Longest context that the file states.
    pub context: u32,
    /// Type of the matrices. Norms and biases are F32.
    pub dtype: DType,
    /// Type of the embedding and the output, if it is another.
    pub embedding_dtype: Option<DType>,
    /// Type of the matrices of values and of the feed-forward's last, if it is another, as in llama.cpp's mixes.
    pub value_dtype: Option<DType>,
    /// The vocabulary.
    pub vocab: Vocab,
    /// Whether the embedding serves as the output too.
    pub tied: bool,
    /// Whether query, key and value have biases.
    pub biases: bool,
    /// Whether there are RoPE frequency factors.
    pub rope_freqs: bool,
    /// Seed of the weights.
    pub seed: u64,
    /// Metadata entries that are added, or put in the place of those of the same key.
    pub metadata: Vec<(String, Value)>,
    /// Keys and tensors that are left out.
    pub without: Vec<String>,
}

impl Default for TinyLlama {
    fn default() -> Self {
        Self {
            version: 3,
            layers: 2,
            width: 64,
            heads: 4,
            kv_heads: 2,
            feed_forward: 128,
            context: 256,
            dtype: DType::F32,
            embedding_dtype: None,
            value_dtype: None,
            vocab: Vocab::Bpe,
            tied: true,
            biases: false,
            rope_freqs: false,
            seed: 1,
            metadata: Vec::new(),
            without: Vec::new(),
        }
    }
}

/// A tensor of the model: its values are random with a mean and a spread.
struct Tensor {
    name: String,
    dtype: DType,
    dims: Vec<usize>,
    mean: f32,
    std: f32,
}

impl TinyLlama {
    /// With matrices of `dtype`; as small as that type's blocks allow.
    pub fn of(dtype: DType) -> Self {
        let width = dtype.block_len().max(64);
        Self { dtype, width, feed_forward: 2 * width, ..Self::default() }
    }

    /// The model file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut writer = GgufWriter::new();
        writer.version(self.version);
        for (key, value) in self.entries() {
            writer.set(key, value);
        }
        let mut data = Vec::new();
        for (place, tensor) in self.tensors().into_iter().enumerate() {
            // A generator per tensor: leaving one out does not change the others.
            let mut rng = Rng::new(self.seed.wrapping_mul(0x1_0001).wrapping_add(place as u64));
            if self.without.contains(&tensor.name) {
                continue;
            }
            writer.tensor(&tensor.name, tensor.dtype, &tensor.dims).expect("dimensions in whole blocks");
            let elements = tensor.dims.iter().product();
            data.push(match tensor.dtype {
                // Vectors may have a mean.
                DType::F32 => {
                    (0..elements).flat_map(|_| (tensor.mean + tensor.std * rng.normal()).to_le_bytes()).collect()
                }
                dtype => random_blocks(dtype, elements, tensor.std, &mut rng),
            });
        }
        writer.to_bytes(&data).expect("a consistent file")
    }

    /// Writes the model file into `folder` and returns its path.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join(format!("tiny-llama-{}-{}.gguf", self.dtype, self.seed));
        std::fs::write(&path, self.bytes()).expect("space for a small file");
        path
    }

    fn entries(&self) -> Vec<(String, Value)> {
        let head = (self.width / self.heads) as u32;
        let mut entries: Vec<(&str, Value)> = vec![
            ("general.architecture", "llama".into()),
            ("general.name", "tiny random llama".into()),
            ("llama.block_count", (self.layers as u32).into()),
            ("llama.context_length", self.context.into()),
            ("llama.embedding_length", (self.width as u32).into()),
            ("llama.feed_forward_length", (self.feed_forward as u32).into()),
            ("llama.attention.head_count", (self.heads as u32).into()),
            ("llama.attention.head_count_kv", (self.kv_heads as u32).into()),
            ("llama.attention.layer_norm_rms_epsilon", 1e-5f32.into()),
            ("llama.rope.dimension_count", head.into()),
            ("llama.rope.freq_base", 10_000f32.into()),
            ("llama.vocab_size", (self.vocab.tokens().len() as u32).into()),
        ];
        entries.extend(self.vocab.metadata());
        let mut entries: Vec<(String, Value)> =
            entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        for (key, value) in &self.metadata {
            match entries.iter_mut().find(|entry| entry.0 == *key) {
                Some(entry) => entry.1 = value.clone(),
                None => entries.push((key.clone(), value.clone())),
            }
        }
        entries.retain(|entry| !self.without.contains(&entry.0));
        entries
    }

    fn tensors(&self) -> Vec<Tensor> {
        let (width, head) = (self.width, self.width / self.heads);
        let (kv, ff, words) = (self.kv_heads * head, self.feed_forward, self.vocab.tokens().len());
        let [outer, value] = [self.embedding_dtype, self.value_dtype].map(|dtype| dtype.unwrap_or(self.dtype));
        let matrix = |name: String, dtype, cols: usize, rows| Tensor {
            name,
            dtype,
            dims: vec![cols, rows],
            mean: 0.0,
            std: (cols as f32).powf(-0.5),
        };
        let vector = |name: String, len, mean, std| Tensor { name, dtype: DType::F32, dims: vec![len], mean, std };
        let mut tensors = vec![matrix("token_embd.weight".into(), outer, width, words)];
        if self.rope_freqs {
            tensors.push(vector("rope_freqs.weight".into(), head / 2, 4.0, 0.5));
        }
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            tensors.push(vector(name("attn_norm.weight"), width, 1.0, 0.1));
            tensors.push(matrix(name("attn_q.weight"), self.dtype, width, width));
            tensors.push(matrix(name("attn_k.weight"), self.dtype, width, kv));
            tensors.push(matrix(name("attn_v.weight"), value, width, kv));
            if self.biases {
                tensors.push(vector(name("attn_q.bias"), width, 0.0, 0.1));
                tensors.push(vector(name("attn_k.bias"), kv, 0.0, 0.1));
                tensors.push(vector(name("attn_v.bias"), kv, 0.0, 0.1));
            }
            tensors.push(matrix(name("attn_output.weight"), self.dtype, width, width));
            tensors.push(vector(name("ffn_norm.weight"), width, 1.0, 0.1));
            tensors.push(matrix(name("ffn_gate.weight"), self.dtype, width, ff));
            tensors.push(matrix(name("ffn_up.weight"), self.dtype, width, ff));
            tensors.push(matrix(name("ffn_down.weight"), value, ff, width));
        }
        tensors.push(vector("output_norm.weight".into(), width, 1.0, 0.1));
        if !self.tied {
            tensors.push(matrix("output.weight".into(), outer, width, words));
        }
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustai::gguf::GgufFile;
    use rustai_kernels_cpu::formats;

    #[test]
    fn every_variant_is_a_valid_file_and_the_same_each_time() {
        for dtype in formats::table().iter().map(|format| format.dtype).filter(|dtype| *dtype != DType::Q8_K) {
            let model = TinyLlama { tied: false, biases: true, rope_freqs: true, ..TinyLlama::of(dtype) };
            let file = GgufFile::from_bytes(model.bytes()).unwrap();
            assert_eq!(file.tensor("blk.1.ffn_down.weight").unwrap().dtype, dtype);
            assert_eq!(model.bytes(), model.bytes());
        }
        let other = TinyLlama { seed: 2, ..TinyLlama::default() };
        assert_ne!(other.bytes(), TinyLlama::default().bytes());
    }

    #[test]
    fn entries_can_be_replaced_and_parts_left_out() {
        let model = TinyLlama {
            vocab: Vocab::SentencePiece,
            metadata: vec![("general.architecture".into(), "other".into())],
            without: vec!["output_norm.weight".into(), "general.name".into()],
            ..TinyLlama::default()
        };
        let file = GgufFile::from_bytes(model.bytes()).unwrap();
        assert_eq!(file.metadata().str("general.architecture").unwrap(), Some("other"));
        assert_eq!(file.metadata().str("general.name").unwrap(), None);
        assert!(file.tensor("output_norm.weight").is_none());
    }
}
