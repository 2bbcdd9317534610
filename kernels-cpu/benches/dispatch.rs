//! What it costs to hand a kernel call to all threads: the executor's lock step, beside a fork and join per call that
//! reaches every thread of a rayon pool. A decode step has some three hundred calls, so the difference counts three hundred times per token.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustai_abi::{Batch, BatchSequence};
use rustai_kernels_cpu::{Buf, Call, Executor, Isa, Program, Rows};

const CALLS: usize = 300;

fn dispatch(criterion: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut group = criterion.benchmark_group("dispatch");
    group.throughput(Throughput::Elements(CALLS as u64));

    // One row of 16 values: next to no work, so what is measured is the way to it.
    let x = Buf { offset: 0, width: 16, rows: Rows::Tokens };
    let program = Program {
        calls: vec![Call::Silu { x, out: x }; CALLS],
        arena_bytes: 64,
        max_tokens: 1,
        max_outputs: 1,
        kv: None,
        inputs: vec![x],
        output: x,
    };
    let mut executor = Executor::new(Isa::best(), threads, program).expect("a sound program");
    executor.write(x, &[1.0; 16]).expect("an input");
    let sequences = [BatchSequence { len: 1, start: 0, pages: &[] }];
    let batch = Batch { tokens: &[0], sequences: &sequences, outputs: &[] };
    group.bench_function("lock step", |bencher| bencher.iter(|| executor.run(&batch).expect("a sound batch")[0]));

    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    group.bench_function("rayon broadcast", |bencher| {
        bencher.iter(|| {
            for call in 0..CALLS {
                pool.broadcast(|thread| std::hint::black_box(thread.index() + call));
            }
        });
    });
}

criterion_group!(benches, dispatch);
criterion_main!(benches);
