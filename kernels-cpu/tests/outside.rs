//! Rows outside the arena: a run reads and writes them in place, and says which it cannot.

use rustai_abi::{Batch, BatchSequence, DType};
use rustai_kernels_cpu::{
    Act, Buf, Call, Executor, ExecutorError, External, Isa, Matrix, Outside, Program, Projection, Rows, SharedBytes,
};
use std::{cell::UnsafeCell, ptr::NonNull, sync::Arc};

const WIDTH: usize = 64;
const OUT: usize = 40;
const TOKENS: usize = 5;

/// A normalization and a product, as a model's last two calls are.
fn program(isa: Isa) -> Program {
    let weights: Vec<u8> = (0..OUT * WIDTH).flat_map(|i| ((i % 13) as f32 - 6.0).to_le_bytes()).collect();
    let weight = Arc::new(Matrix::new(isa, DType::F32, OUT, WIDTH, SharedBytes::from(weights)).unwrap());
    let x = Buf { offset: 0, width: WIDTH, rows: Rows::Tokens };
    let normalized = Buf { offset: Buf::bytes(WIDTH, TOKENS), ..x };
    let out = Buf { offset: 2 * Buf::bytes(WIDTH, TOKENS), width: OUT, rows: Rows::Tokens };
    let factors: Arc<[f32]> = (0..WIDTH).map(|i| 1.0 + i as f32 / 64.0).collect();
    let projection = Projection { weight, bias: Some(vec![0.5; OUT].into()), out, accumulate: false };
    Program {
        calls: vec![
            Call::RmsNorm { x, weight: factors, eps: 1e-5, out: Act::F32(normalized) },
            Call::MatMul { x: Act::F32(normalized), projections: vec![projection] },
        ],
        arena_bytes: 2 * Buf::bytes(WIDTH, TOKENS) + Buf::bytes(OUT, TOKENS),
        max_tokens: TOKENS,
        max_outputs: 1,
        kv: None,
        inputs: vec![x],
        output: out,
    }
}

fn input() -> Vec<f32> {
    (0..TOKENS * WIDTH).map(|i| ((i * 7 % 31) as f32 - 15.0) / 8.0).collect()
}

fn batch(run: impl FnOnce(&Batch<'_>)) {
    let sequences = [BatchSequence { len: TOKENS as u32, start: 0, pages: &[] }];
    run(&Batch { tokens: &[0; TOKENS], sequences: &sequences, outputs: &[] });
}

/// 64 bytes at a multiple of 64.
#[repr(C, align(64))]
struct Line([UnsafeCell<f32>; 16]);

// SAFETY: the cells are reached through the pointer of an `External` only.
unsafe impl Sync for Line {}

/// 64-byte aligned floats; `External::zeroed` promises less.
fn aligned(values: &[f32]) -> External {
    let lines: Vec<Line> = (0..values.len().div_ceil(16)).map(|_| Line(Default::default())).collect();
    let owner = Arc::new(lines);
    let start = NonNull::from(&owner[..]).cast();
    // SAFETY: the lines hold at least so many floats, live as long as their owner, and are not borrowed any more.
    let place = unsafe { External::new(start, values.len(), owner) };
    place.copy_from(values);
    place
}

#[test]
fn rows_outside_are_what_they_would_be_inside() {
    for isa in [Isa::Reference, Isa::best()] {
        let mut executor = Executor::new(isa, 2, program(isa)).unwrap();
        let x = executor.program().inputs[0];
        executor.write(x, &input()).unwrap();
        batch(|batch| {
            let inside = executor.run(batch).unwrap().to_vec();
            let normalized = executor.program().calls.iter().find_map(|call| match call {
                Call::RmsNorm { out: Act::F32(out), .. } => Some(*out),
                _ => None,
            });
            let normalized = executor.values(normalized.unwrap(), batch).unwrap().to_vec();
            // Everything but the input in the arena is spoiled, and the input comes from outside.
            executor.write(x, &[f32::NAN; TOKENS * WIDTH]).unwrap();
            let given = [Some(aligned(&input()))];
            let rows: Vec<_> = (0..TOKENS).map(|row| (row % 2 == 0).then(|| External::zeroed(OUT))).collect();
            let hidden: Vec<_> = (0..TOKENS).map(|row| (row != 1).then(|| External::zeroed(WIDTH))).collect();
            let outside = Outside { inputs: &given, output: &rows, normalized: &hidden };
            let result = executor.run_with(batch, outside).unwrap().to_vec();
            for row in 0..TOKENS {
                let expected = &inside[row * OUT..][..OUT];
                match &rows[row] {
                    Some(place) => assert_eq!(place.to_vec(), expected, "row {row} outside"),
                    None => assert_eq!(&result[row * OUT..][..OUT], expected, "row {row} inside"),
                }
                if let Some(place) = &hidden[row] {
                    assert_eq!(place.to_vec(), normalized[row * WIDTH..][..WIDTH], "hidden row {row}");
                }
            }
        });
    }
}

/// Types whose tiles are dequantized, and blocks that begin at an odd address.
#[test]
fn a_matrix_outside_is_what_it_would_be_inside() {
    for isa in [Isa::Reference, Isa::best()] {
        for dtype in [DType::F32, DType::F16, DType::Q4_0, DType::Q6_K, DType::IQ2_XS] {
            let (rows, cols) = (37, 512);
            let bytes: Vec<u8> =
                (0..dtype.bytes_for(rows * cols).unwrap()).map(|i| (i * 37 % 251) as u8 & 0x3f).collect();
            let owner = Arc::new([vec![0], bytes.clone()].concat());
            let start = NonNull::from(&owner[1..]).cast();
            // SAFETY: the owner has the bytes, and nobody borrows them any more. They are only read.
            let place = unsafe { External::new(start, bytes.len(), owner) };
            let inside = Matrix::unpacked(isa, dtype, rows, cols, SharedBytes::from(bytes)).unwrap();
            let outside = Matrix::outside(isa, dtype, rows, cols, place).unwrap();
            let row = |matrix: &Matrix| {
                let mut row = vec![0.0; cols];
                matrix.row(rows - 1, &mut row);
                row
            };
            assert_eq!(row(&inside), row(&outside), "{isa:?} {dtype}");
            let product = |matrix: Matrix| {
                let x = Buf { offset: 0, width: cols, rows: Rows::Tokens };
                let out = Buf { offset: Buf::bytes(cols, TOKENS), width: rows, rows: Rows::Tokens };
                let projection = Projection { weight: Arc::new(matrix), bias: None, out, accumulate: false };
                let program = Program {
                    calls: vec![Call::MatMul { x: Act::F32(x), projections: vec![projection] }],
                    arena_bytes: Buf::bytes(cols, TOKENS) + Buf::bytes(rows, TOKENS),
                    max_tokens: TOKENS,
                    max_outputs: 1,
                    kv: None,
                    inputs: vec![x],
                    output: out,
                };
                let mut executor = Executor::new(isa, 2, program).unwrap();
                let input: Vec<f32> = (0..TOKENS * cols).map(|i| (i * 7 % 31) as f32 - 15.0).collect();
                let given = [Some(aligned(&input))];
                let mut result = Vec::new();
                batch(|batch| {
                    let outside = Outside { inputs: &given, ..Outside::default() };
                    result = executor.run_with(batch, outside).unwrap().to_vec();
                });
                assert!(result.iter().any(|x| *x != 0.0));
                result
            };
            assert_eq!(product(inside), product(outside), "{isa:?} {dtype}");
        }
    }
    let bytes = External::zeroed(9);
    // SAFETY: the nine values are 36 bytes that nobody borrows; `bytes` keeps them.
    let bytes = unsafe { External::new(NonNull::new(bytes.as_ptr().cast::<u8>()).unwrap(), 36, Arc::new(bytes)) };
    let refused = Matrix::outside(Isa::Reference, DType::Q4_0, 3, 32, bytes).unwrap_err();
    assert!(refused.to_string().contains("54") && refused.to_string().contains("36"), "{refused}");
}

#[test]
fn an_input_that_is_written_stays_inside() {
    let mut program = program(Isa::Reference);
    let x = program.inputs[0];
    program.calls.insert(0, Call::Silu { x, out: x });
    let mut executor = Executor::new(Isa::Reference, 1, program).unwrap();
    batch(|batch| {
        let given = [Some(aligned(&input()))];
        let refused = executor.run_with(batch, Outside { inputs: &given, ..Outside::default() }).unwrap_err();
        assert!(refused.to_string().contains("cannot lie outside: call 0"), "{refused}");
        executor.write(x, &input()).unwrap();
        executor.run(batch).unwrap();
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut executor = Executor::new(Isa::Reference, 1, program(Isa::Reference)).unwrap();
    batch(|batch| {
        let short = [Some(External::zeroed(OUT - 1))];
        let many: Vec<_> = (0..=TOKENS).map(|_| Some(External::zeroed(OUT))).collect();
        for outside in [
            Outside { output: &short, ..Outside::default() },
            Outside { output: &many, ..Outside::default() },
            Outside { normalized: &short, ..Outside::default() },
            Outside { inputs: &short, ..Outside::default() },
            Outside { inputs: &many[..2], ..Outside::default() },
        ] {
            let refused = executor.run_with(batch, outside);
            assert!(matches!(refused, Err(ExecutorError::Batch(_))), "{outside:?}");
        }
    });
    // A program that ends with something else has no rows to give.
    let mut other = program(Isa::Reference);
    let out = other.output;
    other.calls.push(Call::Silu { x: out, out });
    let mut executor = Executor::new(Isa::Reference, 1, other).unwrap();
    batch(|batch| {
        let row = [Some(External::zeroed(OUT))];
        let refused = executor.run_with(batch, Outside { output: &row, ..Outside::default() });
        assert!(matches!(refused, Err(ExecutorError::Batch(_))));
    });
}
