//! Llama 1 to 3.x and models of the same make: SmolLM2, Mistral, TinyLlama.
//!
//! Touvron et al., 2023 (arXiv 2302.13971, 2307.09288); grouped-query attention after Ainslie et al., 2023 (arXiv
//! 2305.13245). GGUF files of this architecture store queries and keys for interleaved RoPE.

use super::{LoadError, ModelGraph, reader::Reader, rope};
use crate::graph::{Attention, GraphBuilder, Rope, RopeStyle, ValueId, WeightId};
use std::sync::Arc;

/// Far more than any model has; RoPE's table of a damaged file must not fill the memory.
const LONGEST_HEAD: usize = 1 << 16;

/// Hyper-parameters, all of which are checked against each other.
struct Hyper {
    layers: usize,
    width: usize,
    hidden: usize,
    attention: Attention,
    eps: f32,
    rope: Arc<Rope>,
}

pub(super) fn build(reader: &Reader<'_>) -> Result<ModelGraph, LoadError> {
    let context = reader.positive("context_length")?;
    let hyper = Hyper::read(reader, context)?;
    let mut b = GraphBuilder::new();
    let vocab = reader.info("token_embd.weight", &[hyper.width, 0])?.dims[1];
    let table = reader.weight(&mut b, "token_embd.weight", &[hyper.width, vocab])?;
    let mut x = b.embedding("token_embd", table, 1.0)?;
    for layer in 0..hyper.layers {
        let mut block = Block { reader, b: &mut b, hyper: &hyper, layer };
        x = block.attention(x)?;
        x = block.feed_forward(x)?;
    }
    let norm = reader.weight(&mut b, "output_norm.weight", &[hyper.width])?;
    let x = b.rms_norm("output_norm", x, norm, hyper.eps)?;
    let x = b.select_outputs("outputs", x)?;
    // Without a matrix of its own the output is tied to the embedding.
    let output = reader.optional(&mut b, "output.weight", &[hyper.width, vocab])?.unwrap_or(table);
    let bias = reader.optional(&mut b, "output.bias", &[vocab])?;
    let logits = b.matmul("output", x, output, bias)?;
    Ok(ModelGraph { graph: b.finish(logits)?, context, vocab })
}

impl Hyper {
    fn read(reader: &Reader<'_>, context: usize) -> Result<Self, LoadError> {
        let experts = reader.size("expert_count")?.unwrap_or(0);
        if experts > 0 {
            return Err(reader.unsupported("expert_count", experts, "a mixture of experts is"));
        }
        let width = reader.positive("embedding_length")?;
        let heads = reader.positive("attention.head_count")?;
        let kv_heads = reader.positive_or("attention.head_count_kv", heads)?;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("it should divide the {heads} heads");
            return Err(reader.invalid("attention.head_count_kv", kv_heads, expected));
        }
        if reader.size("attention.key_length")?.is_none() && !width.is_multiple_of(heads) {
            let expected = format!("it should divide the width of {width}");
            return Err(reader.invalid("attention.head_count", heads, expected));
        }
        let head_dim = reader.positive_or("attention.key_length", width / heads)?;
        let value_dim = reader.positive_or("attention.value_length", head_dim)?;
        if value_dim != head_dim {
            return Err(reader.unsupported(
                "attention.value_length",
                value_dim,
                "values of another length than keys are",
            ));
        }
        if head_dim > LONGEST_HEAD {
            let expected = format!("it should be at most {LONGEST_HEAD}");
            return Err(reader.invalid("attention.key_length", head_dim, expected));
        }
        const EPS: &str = "attention.layer_norm_rms_epsilon";
        let eps = reader.real(EPS)?.ok_or_else(|| LoadError::MissingMetadata { key: reader.key(EPS) })?;
        if eps < 0.0 {
            return Err(reader.invalid(EPS, eps, "it should not be negative"));
        }
        let window = reader.size("attention.sliding_window")?.filter(|window| *window > 0);
        let scale = reader.real("attention.scale")?.filter(|scale| *scale != 0.0);
        let attention = Attention {
            layer: 0,
            heads,
            kv_heads,
            head_dim,
            scale: scale.unwrap_or_else(|| (head_dim as f32).sqrt().recip()),
            window: window.and_then(|window| u32::try_from(window).ok()),
        };
        Ok(Self {
            layers: reader.positive("block_count")?,
            width,
            hidden: reader.positive("feed_forward_length")?,
            attention,
            eps,
            rope: rope::read(reader, RopeStyle::Interleaved, head_dim, context)?,
        })
    }
}

/// One transformer block, whose tensors are called `blk.N.*`.
struct Block<'a> {
    reader: &'a Reader<'a>,
    b: &'a mut GraphBuilder,
    hyper: &'a Hyper,
    layer: usize,
}

impl Block<'_> {
    fn attention(&mut self, x: ValueId) -> Result<ValueId, LoadError> {
        let Hyper { width, attention, ref rope, .. } = *self.hyper;
        let Attention { heads, kv_heads, head_dim, .. } = attention;
        let n = self.norm("attn_norm", x)?;
        let q = self.linear("attn_q", n, width, heads * head_dim)?;
        let k = self.linear("attn_k", n, width, kv_heads * head_dim)?;
        let v = self.linear("attn_v", n, width, kv_heads * head_dim)?;
        let q = self.b.rope(self.name("attn_q.rope"), q, head_dim, rope.clone())?;
        let k = self.b.rope(self.name("attn_k.rope"), k, head_dim, rope.clone())?;
        let a = self.b.attention(self.name("attn"), q, k, v, Attention { layer: self.layer, ..attention })?;
        let o = self.linear("attn_output", a, heads * head_dim, width)?;
        Ok(self.b.add(self.name("attn_residual"), x, o)?)
    }

    /// SwiGLU (Shazeer, 2020, arXiv 2002.05202).
    fn feed_forward(&mut self, x: ValueId) -> Result<ValueId, LoadError> {
        let Hyper { width, hidden, .. } = *self.hyper;
        let n = self.norm("ffn_norm", x)?;
        let gate = self.linear("ffn_gate", n, width, hidden)?;
        let up = self.linear("ffn_up", n, width, hidden)?;
        let gate = self.b.silu(self.name("ffn_silu"), gate)?;
        let gated = self.b.mul(self.name("ffn_gated"), gate, up)?;
        let down = self.linear("ffn_down", gated, hidden, width)?;
        Ok(self.b.add(self.name("ffn_residual"), x, down)?)
    }

    fn norm(&mut self, part: &str, x: ValueId) -> Result<ValueId, LoadError> {
        let weight = self.weight(&format!("{part}.weight"), &[self.hyper.width])?;
        Ok(self.b.rms_norm(self.name(part), x, weight, self.hyper.eps)?)
    }

    fn linear(&mut self, part: &str, x: ValueId, inputs: usize, outputs: usize) -> Result<ValueId, LoadError> {
        let weight = self.weight(&format!("{part}.weight"), &[inputs, outputs])?;
        let bias = self.reader.optional(self.b, &self.name(&format!("{part}.bias")), &[outputs])?;
        Ok(self.b.matmul(self.name(part), x, weight, bias)?)
    }

    fn weight(&mut self, part: &str, dims: &[usize]) -> Result<WeightId, LoadError> {
        self.reader.weight(self.b, &self.name(part), dims)
    }

    fn name(&self, part: &str) -> String {
        format!("blk.{}.{part}", self.layer)
    }
}
