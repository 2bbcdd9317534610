//! Attention with the heads of real models, on all cores: decoding one token behind 512 to 8192 others, with a cache that does
//! not fit the processor's (bytes of keys and values per second: the limit is the memory's bandwidth), and a prompt of 512
//! tokens behind 2048 (multiply-adds per second: the limit is two `f32` vectors of them per cycle).
//!
//! `cargo bench -p rustai-kernels-cpu --bench attention -- decode/8b/q8_0` runs some of them.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustai_kernels_cpu::{
    Isa, KvType,
    bench::{Attention, HEADS},
};
use std::time::Duration;

/// More than the last cache of most machines.
const MEMORY: usize = 96 << 20;

fn attention(criterion: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for (kind, tokens, depths) in [("decode", 1, &[512, 2048, 8192][..]), ("prefill", 512, &[2048])] {
        let mut group = criterion.benchmark_group(kind);
        group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
        for (heads, kv_type) in HEADS.into_iter().flat_map(|heads| KvType::ALL.map(|kv_type| (heads, kv_type))) {
            for &depth in depths {
                let layer = 2 * depth * heads.kv_heads * heads.head_dim;
                let layers = if tokens == 1 { MEMORY.div_ceil(layer) } else { 1 };
                group.throughput(match tokens {
                    1 => Throughput::Bytes(heads.cache_bytes(kv_type, depth + 1) * layers as u64),
                    _ => Throughput::Elements(heads.macs(depth, tokens)),
                });
                let new = || Attention::new(Isa::best(), threads, heads, kv_type, depth, tokens, layers);
                let mut attention = None;
                group.bench_function(BenchmarkId::new(format!("{}/{kv_type}", heads.name), depth), |bencher| {
                    // Made when the first benchmark runs that the filter lets through.
                    let attention = attention.get_or_insert_with(|| new().expect("a sound program"));
                    bencher.iter(|| attention.run().expect("a sound batch")[0]);
                });
            }
        }
    }
}

criterion_group!(benches, attention);
criterion_main!(benches);
