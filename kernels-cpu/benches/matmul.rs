//! Matrix products of every fast type and instruction set at 1 to 512 tokens, on all cores: weights from memory (a matrix of
//! a 1B and of an 8B model) and in the caches (one of a 135M model). Bytes of weights per second up to 4 tokens, multiply-adds
//! per second from there on.
//!
//! `cargo bench -p rustai-kernels-cpu --bench matmul` runs all, which takes long, and writes `target/criterion/report/index.html`;
//! a filter picks some: `cargo bench -p rustai-kernels-cpu --bench matmul -- memory/avx512/Q4_0`. `rustai bench kernels`
//! shows the same products beside the limits of the machine.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustai_kernels_cpu::{
    Isa, Matrix,
    bench::{MODELS, Product, Residence, TOKENS},
    formats,
};
use std::time::Duration;

/// More than the last cache of most machines.
const MEMORY: Residence = Residence::Memory(512 << 20);

fn matmul(criterion: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let most = TOKENS.into_iter().max().unwrap_or(1);
    let places =
        [("memory", MODELS[1], MEMORY), ("memory-8b", MODELS[2], MEMORY), ("cache", MODELS[0], Residence::Cache)];
    for (place, model, residence) in places {
        let mut group = criterion.benchmark_group(place);
        group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.missing_feature().is_none()) {
            let types = formats::table().iter().map(|format| format.dtype);
            let fast = |dtype: &_| Matrix::kernel_for(isa, *dtype) == Some(isa.name());
            for dtype in types.filter(fast).filter(|_| isa != Isa::Reference) {
                let shape = model.shapes[0];
                let bytes = dtype.bytes_for(shape.rows * shape.cols).expect("whole blocks");
                // Made when the first benchmark runs that the filter lets through.
                let mut product = None;
                for tokens in TOKENS {
                    let products = residence.products(bytes) as u64;
                    group.throughput(match tokens {
                        ..=4 => Throughput::Bytes(bytes as u64 * products),
                        _ => Throughput::Elements((shape.rows * shape.cols * tokens) as u64 * products),
                    });
                    let name = BenchmarkId::new(format!("{}/{dtype}", isa.name()), tokens);
                    group.bench_function(name, |bencher| {
                        let product = product.get_or_insert_with(|| {
                            Product::new(isa, threads, dtype, shape, most, residence).expect("a sound product")
                        });
                        bencher.iter(|| product.run(tokens).expect("a sound batch")[0]);
                    });
                }
            }
        }
    }
}

criterion_group!(benches, matmul);
criterion_main!(benches);
