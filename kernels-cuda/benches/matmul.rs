//! Matrix products of every type that there are kernels for, at 1 to 4096 tokens, on the first GPU: weights from its memory (a
//! matrix of an 8B model) and in its L2 cache (one of a 135M model). Times are the device's own. Bytes of weights per second up
//! to 8 tokens, multiply-adds per second from there on.
//!
//! `cargo bench -p rustai-kernels-cuda` runs all and writes `target/criterion/report/index.html`; a filter picks some:
//! `cargo bench -p rustai-kernels-cuda -- memory/Q4_0`. A host without a GPU is told so. `rustai bench kernels --device cuda` shows
//! the same products beside the limits of the device.

use criterion::{BenchmarkId, Criterion, Throughput};
use rustai_abi::DType;
use rustai_kernels_cpu::{
    bench::{MODELS, Residence},
    formats,
};
use rustai_kernels_cuda::{
    Device, KernelSources, Kernels,
    bench::{Product, overflow},
    weights,
};
use std::{env, sync::Arc, time::Duration};

const TOKENS: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 256, 4096];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let folder = env::var_os("RUSTAI_CUDA_KERNELS").map(Into::into);
    let opened = Device::open(0).and_then(|device| Kernels::load(&device, &KernelSources { folder, cache: None }));
    match opened {
        Ok(kernels) => matmul(&mut criterion, &Arc::new(kernels)),
        Err(error) => println!("no device: {error}"),
    }
    criterion.final_summary();
}

fn matmul(criterion: &mut Criterion, kernels: &Arc<Kernels>) {
    let memory = Residence::Memory(overflow(kernels.device()));
    for (place, model, residence) in [("memory", MODELS[2], memory), ("cache", MODELS[0], Residence::Cache)] {
        let mut group = criterion.benchmark_group(place);
        group.sample_size(10).warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(200));
        let shape = model.shapes[0];
        let types = formats::table().iter().map(|format| format.dtype);
        let has_kernel = |dtype: &DType| weights::device_bytes(*dtype, shape.rows, shape.cols).is_some();
        for dtype in types.filter(has_kernel) {
            let bytes = weights::device_bytes(dtype, shape.rows, shape.cols).expect("a type with a kernel") as u64;
            // Made when the first benchmark runs that the filter lets through.
            let mut product = None;
            for tokens in TOKENS {
                group.throughput(match tokens {
                    ..=8 => Throughput::Bytes(bytes),
                    _ => Throughput::Elements((shape.rows * shape.cols * tokens) as u64),
                });
                group.bench_function(BenchmarkId::new(dtype.name(), tokens), |bencher| {
                    let product = product.get_or_insert_with(|| {
                        Product::new(kernels, dtype, shape, TOKENS[TOKENS.len() - 1], residence)
                            .expect("a sound product")
                    });
                    bencher.iter_custom(|runs| {
                        let seconds: f64 = (0..runs).map(|_| product.time(tokens).expect("a device that works")).sum();
                        Duration::from_secs_f64(seconds)
                    });
                });
            }
        }
    }
}
