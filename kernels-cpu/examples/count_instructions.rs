//! Runs one kernel once, on one thread, on input that is always the same, so that its instructions can be counted.
//!
//! `scripts/count_instructions.py` runs it under callgrind and counts what happens inside `measured_region`;
//! `scripts/inspect_kernels.py` reads its machine code. Without a name it lists the kernels.

use rustai_abi::{Batch, BatchSequence, DType, PAGE_TOKENS};
use rustai_kernels_cpu::{
    Buf, Call, Executor, Isa, KvShape, KvType, Program, Rows,
    bench::{Product, Residence, Shape},
};
use std::{error::Error, hint::black_box, process::ExitCode};

/// The hottest kernels: name, and type and tokens of the product, or attention.
const KERNELS: [(&str, Option<(DType, usize)>); 6] = [
    ("q4_0 decode", Some((DType::Q4_0, 1))),
    ("q4_k decode", Some((DType::Q4_K, 1))),
    ("q6_k decode", Some((DType::Q6_K, 1))),
    ("q8_0 decode", Some((DType::Q8_0, 1))),
    ("q4_0 prefill 16", Some((DType::Q4_0, 16))),
    ("attention decode", None),
];

/// Small, since a counted instruction takes a hundred times as long, but so large that the way to the kernel does not count.
const SHAPE: Shape = Shape { role: "counted", rows: 256, cols: 2048 };

/// What the counting tool switches on when it is entered, and off when it is left.
#[inline(never)]
fn measured_region(run: &mut dyn FnMut()) {
    run();
}

fn product(isa: Isa, dtype: DType, tokens: usize) -> Result<(), Box<dyn Error>> {
    let mut product = Product::new(isa, 1, dtype, SHAPE, tokens, Residence::Cache)?;
    if product.kernel() != isa.name() {
        return Err(format!("{} has no kernel for {dtype}", isa.name()).into());
    }
    let mut outcome = Ok(0.0);
    measured_region(&mut || outcome = product.run(tokens).map(|values| values[0]));
    black_box(outcome?);
    Ok(())
}

/// One token at position 511 with the heads of Llama 3.2 1B, over an empty cache.
fn attention(isa: Isa) -> Result<(), Box<dyn Error>> {
    const POSITIONS: usize = 512;
    let (heads, kv_heads, head_dim) = (32, 8, 64);
    let width = heads * head_dim;
    let q = Buf { offset: 0, width, rows: Rows::Tokens };
    let out = Buf { offset: Buf::bytes(width, 1), ..q };
    let pages: Vec<u32> = (0..POSITIONS.div_ceil(PAGE_TOKENS) as u32).collect();
    let program = Program {
        calls: vec![Call::Attention { q, out, layer: 0, scale: 0.125, window: None }],
        arena_bytes: out.offset + Buf::bytes(width, 1),
        max_tokens: 1,
        max_outputs: 1,
        kv: Some(KvShape { layers: 1, kv_heads, head_dim, pages: pages.len(), kv_type: KvType::F16 }),
        inputs: vec![q],
        output: out,
    };
    let mut executor = Executor::new(isa, 1, program)?;
    executor.write(q, &vec![0.5; width])?;
    let sequences = [BatchSequence { len: 1, start: POSITIONS as u32 - 1, pages: &pages }];
    let batch = Batch { tokens: &[0], sequences: &sequences, outputs: &[] };
    let mut outcome = Ok(0.0);
    measured_region(&mut || outcome = executor.run(&batch).map(|values| values[0]));
    black_box(outcome?);
    Ok(())
}

fn run(name: &str) -> Result<(), Box<dyn Error>> {
    let isa = Isa::select()?.isa;
    let (_, kernel) = KERNELS.iter().find(|(known, _)| *known == name).ok_or_else(|| format!("no kernel {name:?}"))?;
    match *kernel {
        Some((dtype, tokens)) => product(isa, dtype, tokens),
        None => attention(isa),
    }
}

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        KERNELS.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    };
    match run(&name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
