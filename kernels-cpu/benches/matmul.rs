//! Matrix products of each fast type and instruction set: decode (one token; bytes of weights per second) and prefill (512
//! tokens; multiply-adds per second), on all cores.
//!
//! `cargo bench -p rustai-kernels-cpu`, or with a filter: `cargo bench -p rustai-kernels-cpu -- decode/avx512`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustai_abi::{Batch, BatchSequence, DType};
use rustai_kernels_cpu::{Act, ActKind, Buf, Call, Executor, Isa, Matrix, Program, Projection, QBuf, Rows};
use std::{sync::Arc, time::Duration};

const TYPES: [DType; 7] = [DType::Q4_0, DType::Q4_1, DType::Q8_0, DType::Q4_K, DType::Q6_K, DType::F16, DType::F32];

/// A program that multiplies `tokens` rows with `copies` matrices in turn, so that decode reads from memory rather than
/// from cache.
fn executor(isa: Isa, dtype: DType, rows: usize, cols: usize, tokens: usize, copies: usize) -> Executor {
    let x = Buf { offset: 0, width: cols, rows: Rows::Tokens };
    let quantized = QBuf { offset: Buf::bytes(cols, tokens), width: cols, rows: Rows::Tokens };
    let out = Buf { offset: quantized.offset + QBuf::bytes(cols, tokens), width: rows, rows: Rows::Tokens };
    let bytes = dtype.bytes_for(rows * cols).expect("whole blocks");
    // Any bits are valid quants; 0x2c as the high byte of a scale makes it a small, normal number.
    let blocks: Vec<u8> = (0..bytes).map(|i| if i % 2 == 1 { 0x2c } else { ((i * 37) >> 3) as u8 }).collect();
    let mut calls = vec![Call::Quantize { x, out: quantized }];
    for _ in 0..copies {
        let weight = Matrix::new(isa, dtype, rows, cols, blocks.clone().into()).expect("a sound matrix");
        let act = if weight.wants() == ActKind::Q8 { Act::Q8(quantized) } else { Act::F32(x) };
        let projection = Projection { weight: Arc::new(weight), bias: None, out, accumulate: false };
        calls.push(Call::MatMul { x: act, projections: vec![projection] });
    }
    let program = Program {
        calls,
        arena_bytes: out.offset + Buf::bytes(rows, tokens),
        max_tokens: tokens,
        max_outputs: 1,
        kv: None,
        inputs: vec![x],
        output: out,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut executor = Executor::new(isa, threads, program).expect("a sound program");
    let values: Vec<f32> = (0..tokens * cols).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect();
    executor.write(x, &values).expect("an input");
    executor
}

fn matmul(criterion: &mut Criterion) {
    let (rows, cols) = (2048, 8192);
    for (name, tokens, copies) in [("decode", 1, 24), ("prefill", 512, 1)] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for isa in Isa::ALL.into_iter().skip(1).filter(|isa| isa.missing_feature().is_none()) {
            for dtype in TYPES {
                let mut executor = executor(isa, dtype, rows, cols, tokens, copies);
                let elements = rows * cols;
                group.throughput(match tokens {
                    1 => Throughput::Bytes((copies * dtype.bytes_for(elements).expect("whole blocks")) as u64),
                    _ => Throughput::Elements((elements * tokens * copies) as u64),
                });
                let (ids, sequences) = (vec![0; tokens], [BatchSequence { len: tokens as u32, start: 0, pages: &[] }]);
                let batch = Batch { tokens: &ids, sequences: &sequences, outputs: &[] };
                group.bench_function(BenchmarkId::new(isa.name(), dtype), |bencher| {
                    bencher.iter(|| executor.run(&batch).expect("a sound batch")[0]);
                });
            }
        }
    }
}

criterion_group!(benches, matmul);
criterion_main!(benches);
