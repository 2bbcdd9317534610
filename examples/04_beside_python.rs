//! Example 4: two measurements that essays on Rust and Python like, on this computer, with Python beside.
//!
//! ```text
//! pip install numpy joblib
//! cargo run --release -p rustai-examples --example 04_beside_python
//! ```
//!
//! 1. 10^9 floating-point operations on all cores: 500,000 numbers, 1,000 times `x = 0.999 * x + 0.5` in double precision.
//!    Rust threads, against numpy in joblib's worker processes.
//! 2. A product of two 500 x 500 matrices in single precision, `A * W^T` as in a linear layer. This runtime's kernels,
//!    with and without the packing of `W`, against numpy's BLAS, and against loops in plain Python.
//!
//! Every round runs each of them once, so that what else the computer does meets all alike; the table has the medians. The
//! figures of the essay that this project grew from, taken on an Apple M1, stand in a column of their own. Results are
//! checked: the recurrence against its closed form, products against double precision.

use rustai::{Batch, BatchSequence, DType, Isa};
use rustai_kernels_cpu::{Act, Buf, Call, Executor, Matrix, Program, Projection, Rows};
use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 5;
const SIZE: usize = 500;

/// Numbers that a thread takes at a time, and how many such chunks there are: 500,000 numbers in all.
const CHUNK: usize = 4000;
const CHUNKS: usize = 125;
/// Two operations each; times 500,000 numbers that makes 10^9.
const STEPS: usize = 1000;

/// The sum of `length` numbers from `chunk * length` on after `steps` steps. Sixteen at a time stay in registers.
fn steps<const LENGTH: usize>(chunk: usize, steps: usize) -> f64 {
    let mut numbers: [f64; LENGTH] = std::array::from_fn(|i| (chunk * LENGTH + i) as f64);
    for few in numbers.as_chunks_mut::<16>().0 {
        for _ in 0..steps {
            for x in few.iter_mut() {
                *x = 0.999 * *x + 0.5;
            }
        }
    }
    numbers.iter().sum()
}

/// The same sum over all chunks, by the formula: `x` tends to 500, and its distance shrinks to 0.999 of itself each step.
fn closed_form() -> f64 {
    let count = (CHUNK * CHUNKS) as f64;
    let mean = (count - 1.0) / 2.0;
    count * (500.0 + (mean - 500.0) * 0.999f64.powi(STEPS as i32))
}

fn operations(threads: usize) -> f64 {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut sum = 0.0;
        loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                chunk if chunk < CHUNKS => sum += steps::<CHUNK>(chunk, STEPS),
                _ => return sum,
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("the work does not panic")).sum()
    })
}

/// Repeatable numbers from -1 to 1, the same as on the Python side.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let number = |i: u32| {
        let mut bits = i.wrapping_add(seed.wrapping_mul(1_000_003)).wrapping_mul(2_654_435_761);
        bits ^= bits >> 15;
        (bits >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count as u32).map(number).collect()
}

/// `A * W^T` on this processor's kernels.
struct Product {
    executor: Executor,
    isa: Isa,
    w: Vec<u8>,
    tokens: Vec<u32>,
}

impl Product {
    fn new(isa: Isa, threads: usize, a: &[f32], w: &[f32]) -> Result<Self> {
        let w: Vec<u8> = w.iter().flat_map(|x| x.to_le_bytes()).collect();
        let x = Buf { offset: 0, width: SIZE, rows: Rows::Tokens };
        let out = Buf { offset: Buf::bytes(SIZE, SIZE), width: SIZE, rows: Rows::Tokens };
        let weight = Arc::new(pack(isa, &w)?);
        let projection = Projection { weight, bias: None, out, accumulate: false };
        let program = Program {
            calls: vec![Call::MatMul { x: Act::F32(x), projections: vec![projection] }],
            arena_bytes: 2 * Buf::bytes(SIZE, SIZE),
            max_tokens: SIZE,
            max_outputs: 1,
            kv: None,
            inputs: vec![x],
            output: out,
        };
        let mut executor = Executor::new(isa, threads, program)?;
        executor.write(x, a)?;
        Ok(Self { executor, isa, w, tokens: vec![0; SIZE] })
    }

    fn run(&mut self) -> Result<&[f32]> {
        let sequences = [BatchSequence { len: SIZE as u32, start: 0, pages: &[] }];
        Ok(self.executor.run(&Batch { tokens: &self.tokens, sequences: &sequences, outputs: &[] })?)
    }
}

/// Brings a matrix into the order that the kernels read; a model's matrices are packed once, when it is loaded.
fn pack(isa: Isa, bytes: &[u8]) -> Result<Matrix> {
    Ok(Matrix::new(isa, DType::F32, SIZE, SIZE, bytes.to_vec().into())?)
}

/// The product in double precision, and for each element the sum of magnitudes that rounding errors scale with.
fn exact(a: &[f32], w: &[f32]) -> Vec<(f64, f64)> {
    let rows = a.chunks_exact(SIZE).flat_map(|a| w.chunks_exact(SIZE).map(move |w| (a, w)));
    rows.map(|(a, w)| {
        a.iter().zip(w).fold((0.0, 0.0), |(sum, size), (a, w)| {
            let term = f64::from(*a) * f64::from(*w);
            (sum + term, size + term.abs())
        })
    })
    .collect()
}

/// Fails if an element is off by more than `f32` rounding explains.
fn verify(got: &[f32], exact: &[(f64, f64)]) -> Result<()> {
    let off = |(got, (sum, size)): (&f32, &(f64, f64))| (f64::from(*got) - sum).abs() / size;
    let worst = got.iter().zip(exact).map(off).fold(0.0, f64::max);
    // Not `worst > ...`: a NaN has to fail.
    let fine = got.len() == exact.len() && got.iter().all(|x| x.is_finite()) && worst < 2e-6;
    if fine { Ok(()) } else { Err(format!("the product is off by {worst:e} of its terms").into()) }
}

/// The Python process beside this one.
struct Python {
    child: Child,
    tasks: ChildStdin,
    answers: BufReader<ChildStdout>,
    versions: String,
    /// Sum of the part of the product that the plain loops compute.
    part: f64,
}

impl Python {
    /// `None` if there is no `python3` that can import numpy and joblib.
    fn start(threads: usize) -> Result<Option<Self>> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/04_beside_python.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(threads.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut child) = command.spawn() else { return Ok(None) };
        let tasks = child.stdin.take().ok_or("no pipe to Python")?;
        let mut answers = BufReader::new(child.stdout.take().ok_or("no pipe from Python")?);
        let (mut versions, mut part) = (String::new(), String::new());
        answers.read_line(&mut versions)?;
        answers.read_line(&mut part)?;
        if part.is_empty() {
            return match child.wait()?.code() {
                Some(3) => Ok(None),
                _ => Err("04_beside_python.py failed, see above".into()),
            };
        }
        Ok(Some(Self { child, tasks, answers, versions: versions.trim().to_owned(), part: part.trim().parse()? }))
    }

    /// Seconds that a task took, after a check of its result.
    fn time(&mut self, task: &str, expected: f64, tolerance: f64) -> Result<f64> {
        writeln!(self.tasks, "{task}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let (seconds, checksum) = answer.trim().split_once(' ').ok_or("04_beside_python.py failed, see above")?;
        let off = (checksum.parse::<f64>()? - expected).abs();
        if off <= tolerance { Ok(seconds.parse()?) } else { Err(format!("Python's {task} is off by {off:e}").into()) }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of the table: its times in all rounds.
struct Row {
    what: &'static str,
    who: String,
    work: f64,
    essay: Option<f64>,
    seconds: Vec<f64>,
}

impl Row {
    fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

const OPERATIONS: &str = "10^9 operations (f64)";
const PRODUCT: &str = "500 x 500 product (f32)";

fn measure(isa: Isa, threads: usize, python: &mut Option<Python>) -> Result<Vec<Row>> {
    let (a, w) = (numbers(1, SIZE * SIZE), numbers(2, SIZE * SIZE));
    let exact = exact(&a, &w);
    let sum: f64 = exact.iter().map(|(sum, _)| sum).sum();
    let mut product = Product::new(isa, threads, &a, &w)?;
    verify(product.run()?, &exact)?;

    let flops = 2.0 * (SIZE as f64).powi(3);
    let row = |what, who: &str, work, essay| Row { what, who: who.to_owned(), work, essay, seconds: Vec::new() };
    let mut rows = vec![
        row(OPERATIONS, "Rust threads", 1e9, Some(0.187)),
        row(PRODUCT, &format!("rustai ({}), W packed", isa.name()), flops, None),
        row(PRODUCT, &format!("rustai ({}), with packing", isa.name()), flops, Some(0.097)),
    ];
    let mut tasks = Vec::new();
    if python.is_some() {
        // Sums of f32 elements are off by the rounding of each; those of plain Python are in double precision.
        let tasks_of = [
            ("operations", OPERATIONS, "joblib + numpy", 1e9, Some(1.002), closed_form(), 1e-9 * closed_form()),
            ("numpy", PRODUCT, "numpy (BLAS)", flops, None, sum, 1.0),
            ("joblib", PRODUCT, "joblib, plain Python loops (1)", flops, Some(1.523), f64::NAN, 1e-6),
            ("loops", PRODUCT, "plain Python loops (1)", flops, None, f64::NAN, 1e-6),
        ];
        for (task, what, who, work, essay, expected, tolerance) in tasks_of {
            rows.push(row(what, who, work, essay));
            tasks.push((task, expected, tolerance));
        }
    }
    for round in 0..=ROUNDS {
        let mut seconds = Vec::new();
        let start = Instant::now();
        let sum = operations(threads);
        seconds.push(start.elapsed().as_secs_f64());
        if (sum / closed_form() - 1.0).abs() > 1e-9 {
            return Err(format!("the operations gave {sum}, not {}", closed_form()).into());
        }
        let start = Instant::now();
        let packed = pack(isa, &product.w)?;
        let packing = start.elapsed().as_secs_f64();
        drop(packed);
        let start = Instant::now();
        let got = product.run()?;
        let multiplying = start.elapsed().as_secs_f64();
        verify(got, &exact)?;
        seconds.extend([multiplying, packing + multiplying]);
        if let Some(python) = python {
            for (task, expected, tolerance) in &tasks {
                let expected = if expected.is_nan() { python.part } else { *expected };
                seconds.push(python.time(task, expected, *tolerance)?);
            }
        }
        // The first round warms caches, threads and joblib's processes.
        if round > 0 {
            rows.iter_mut().zip(seconds).for_each(|(row, seconds)| row.seconds.push(seconds));
        }
    }
    rows.sort_by_key(|row| row.what != OPERATIONS);
    Ok(rows)
}

fn print(rows: &[Row]) {
    println!("{:<25} {:<33} {:>10} {:>9} {:>9}", "", "", "seconds", "GFLOP/s", "essay (s)");
    let mut last = "";
    for row in rows {
        let what = if row.what == last { "" } else { row.what };
        last = row.what;
        let (seconds, essay) = (row.median(), row.essay.map(|s| format!("{s:.3}")).unwrap_or_default());
        println!("{what:<25} {:<33} {seconds:>10.4} {:>9.2} {essay:>9}", row.who, row.work / seconds / 1e9);
    }
}

/// Says in words who is ahead in the product, whoever that is.
fn verdict(rows: &[Row]) {
    let median = |who: &str| rows.iter().find(|row| row.what == PRODUCT && row.who.contains(who)).map(Row::median);
    let (Some(ours), Some(whole), Some(blas)) = (median("W packed"), median("with packing"), median("BLAS")) else {
        return;
    };
    let compare = |ours: f64| match blas / ours {
        ratio if ratio >= 1.0 => format!("{ratio:.2} times as fast as"),
        ratio => format!("{:.2} times slower than", 1.0 / ratio),
    };
    println!(
        "\nIn the product, this runtime's kernels are {} numpy's BLAS here, and with the packing of W counted {} it.",
        compare(ours),
        compare(whole)
    );
}

fn main() -> Result<()> {
    let isa = Isa::select()?.isa;
    let threads = thread::available_parallelism()?.get();
    let mut python = Python::start(threads)?;
    let rows = measure(isa, threads, &mut python)?;
    println!("{threads} threads; medians of {ROUNDS} rounds, after one to warm up; results checked in every round.");
    match &python {
        Some(python) => println!("{}\n", python.versions),
        None => {
            println!("Without Python's rows: `pip install numpy joblib` for the `python3` in the PATH adds them.\n")
        }
    }
    print(&rows);
    if python.is_some() {
        println!(
            "(1) 100 of the 500 rows, the time multiplied by five. What numpy and joblib need to start is not counted."
        );
    }
    verdict(&rows);
    println!("Essay: an Apple M1; \"Rust\" and \"Python (joblib)\", each beside the row here that comes nearest.");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_follow_the_closed_form() {
        assert!((operations(2) / closed_form() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn products_are_right_and_wrong_ones_are_noticed() {
        let (a, w) = (numbers(1, SIZE * SIZE), numbers(2, SIZE * SIZE));
        let exact = exact(&a, &w);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.missing_feature().is_none()) {
            let mut product = Product::new(isa, 2, &a, &w).unwrap();
            let mut got = product.run().unwrap().to_vec();
            verify(&got, &exact).unwrap();
            got[777] += 0.01;
            assert!(verify(&got, &exact).is_err());
            got[777] = f32::NAN;
            assert!(verify(&got, &exact).is_err());
        }
    }
}
