//! What the benchmark of attention measures: the append to the cache and the attention of all heads of one layer after the
//! other, with the head shapes that models have.

use crate::{Buf, Call, Executor, ExecutorError, Isa, KvShape, KvType, Program, Rows};
use rustai_abi::{Batch, BatchSequence, PAGE_TOKENS};

/// The heads of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// How flags name the model.
    pub name: &'static str,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
}

impl Heads {
    /// Multiply-adds of one layer for `tokens` tokens behind `depth` others: scores and weighted values of every position that a
    /// token sees.
    pub fn macs(&self, depth: usize, tokens: usize) -> u64 {
        let seen = tokens * depth + tokens * (tokens + 1) / 2;
        (2 * seen * self.heads * self.head_dim) as u64
    }

    /// Bytes of the keys and values of one layer.
    pub fn cache_bytes(&self, kv_type: KvType, positions: usize) -> u64 {
        let values = (2 * positions * self.kv_heads * self.head_dim) as u64;
        match kv_type {
            KvType::F16 => values * 2,
            // 34 bytes for 32 values.
            KvType::Q8_0 => values / 16 * 17,
        }
    }
}

/// The heads of [`MODELS`](super::MODELS), in their order.
pub const HEADS: [Heads; 3] = [
    Heads { name: "135m", heads: 9, kv_heads: 3, head_dim: 64 },
    Heads { name: "1b", heads: 32, kv_heads: 8, head_dim: 64 },
    Heads { name: "8b", heads: 32, kv_heads: 8, head_dim: 128 },
];

/// Attention of some tokens of one sequence behind `depth` others, through so many layers.
pub struct Attention {
    executor: Executor,
    depth: usize,
    tokens: usize,
    pages: Vec<u32>,
    ids: Vec<u32>,
}

impl Attention {
    /// Fills a cache of `layers` layers with `depth` positions, and makes queries for `tokens` more.
    ///
    /// # Errors
    /// [`ExecutorError`] if the processor lacks `isa`, heads do not fit `kv_type`, or memory or threads are refused.
    pub fn new(
        isa: Isa,
        threads: usize,
        heads: Heads,
        kv_type: KvType,
        depth: usize,
        tokens: usize,
        layers: usize,
    ) -> Result<Self, ExecutorError> {
        let (q_width, kv_width) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let pages = (depth + tokens).div_ceil(PAGE_TOKENS);
        let max_tokens = tokens.max(PAGE_TOKENS);
        let mut arena_bytes = 0;
        let mut buf = |width| {
            let buf = Buf { offset: arena_bytes, width, rows: Rows::Tokens };
            arena_bytes += Buf::bytes(width, max_tokens);
            buf
        };
        let [q, k, v, out] = [q_width, kv_width, kv_width, q_width].map(&mut buf);
        let scale = (heads.head_dim as f32).sqrt().recip();
        let layer = |layer| {
            [Call::RopeAppend { q, k, v, layer, rope: None }, Call::Attention { q, out, layer, scale, window: None }]
        };
        let program = Program {
            calls: (0..layers).flat_map(layer).collect(),
            arena_bytes,
            max_tokens,
            max_outputs: 1,
            kv: Some(KvShape { layers, kv_heads: heads.kv_heads, head_dim: heads.head_dim, pages, kv_type }),
            inputs: vec![q, k, v],
            output: out,
        };
        let mut executor = Executor::new(isa, threads, program)?;
        for (index, (buf, width)) in [(q, q_width), (k, kv_width), (v, kv_width)].into_iter().enumerate() {
            let value = |i: usize| ((i * 37 + index * 11) % 251) as f32 / 125.0 - 1.0;
            executor.write(buf, &(0..width * max_tokens).map(value).collect::<Vec<f32>>())?;
        }
        let pages: Vec<u32> = (0..pages as u32).collect();
        let ids = vec![0; max_tokens];
        // Page by page as sequences of their own, which takes no time for attention.
        for page in pages.chunks(1) {
            let sequences = [BatchSequence { len: PAGE_TOKENS as u32, start: 0, pages: page }];
            executor.run(&Batch { tokens: &ids[..PAGE_TOKENS], sequences: &sequences, outputs: &[] })?;
        }
        Ok(Self { executor, depth, tokens, pages, ids })
    }

    /// Appends the tokens and computes their attention in every layer; returns the last layer's result.
    ///
    /// # Errors
    /// [`ExecutorError::Panicked`] after a defect.
    pub fn run(&mut self) -> Result<&[f32], ExecutorError> {
        let sequences = [BatchSequence { len: self.tokens as u32, start: self.depth as u32, pages: &self.pages }];
        self.executor.run(&Batch { tokens: &self.ids[..self.tokens], sequences: &sequences, outputs: &[] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_gives_the_same_result_for_the_same_cache() {
        let heads = Heads { name: "test", heads: 4, kv_heads: 2, head_dim: 32 };
        assert_eq!(heads.macs(500, 3), 2 * (501 + 502 + 503) * 4 * 32);
        assert_eq!(heads.cache_bytes(KvType::Q8_0, 10), 10 * 2 * 2 * 34);
        for kv_type in KvType::ALL {
            let run = |threads, layers| {
                let mut attention = Attention::new(Isa::best(), threads, heads, kv_type, 500, 3, layers).unwrap();
                attention.run().unwrap().to_vec()
            };
            let once = run(1, 1);
            assert_eq!(once.len(), 3 * 4 * 32);
            assert!(once.iter().all(|x| x.is_finite()) && once.iter().any(|x| *x != 0.0));
            assert_eq!(run(4, 3), once);
        }
    }
}
