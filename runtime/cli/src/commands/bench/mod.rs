//! `bench`: tokens per second of prompt processing (pp) and generation (tg), after llama-bench's conventions.
//!
//! Each row runs steps of the model itself on random tokens: no tokenizer, no sampler, no scheduler. One run before the
//! measurements warms caches. `t/s` is the mean of the runs' rates, with their sample standard deviation.
//!
//! `bench kernels` is [`kernels`], `bench queue` is [`queue`].

mod kernels;
mod measure;
#[cfg(target_os = "linux")]
mod peer;
#[cfg(target_os = "linux")]
mod queue;
mod report;
mod statistics;
#[cfg(target_os = "linux")]
mod tokens;

use super::model;
use crate::{
    args::{BenchArgs, BenchCommand, BenchFormat, GlobalArgs},
    compute,
    failure::Failure,
    interrupt, ui,
};
use measure::{Test, measure};
use report::{Row, Setup};
use rustai::model::LoadOptions;
use std::time::Instant;

/// Runs all combinations of the values given.
pub fn run(args: &BenchArgs, global: GlobalArgs) -> Result<(), Failure> {
    match &args.what {
        Some(BenchCommand::Kernels(args)) => return kernels::run(args),
        #[cfg(target_os = "linux")]
        Some(BenchCommand::Queue(args)) => return queue::run(args),
        None => {}
    }
    let tests = tests(args)?;
    let mut rows = Vec::new();
    let finished = measure_all(args, global, &tests, &mut rows);
    // After Ctrl-C, what has been measured is printed all the same.
    let format = if args.json { BenchFormat::Json } else { args.output };
    if !rows.is_empty() || finished.is_ok() {
        report::print(&rows, format)?;
    }
    finished
}

fn measure_all(args: &BenchArgs, global: GlobalArgs, tests: &[Test], rows: &mut Vec<Row>) -> Result<(), Failure> {
    let longest = tests.iter().map(Test::context).max().unwrap_or(0);
    let sequences = tests.iter().map(|test| test.sequences).max().unwrap_or(1);
    for spec in &args.models {
        let path = model::find(spec)?;
        for &batch in &args.batch_size {
            for (&threads, &kv_type) in
                args.threads.iter().flat_map(|threads| args.kv_type.iter().map(move |t| (threads, t)))
            {
                let options = LoadOptions {
                    threads: compute::threads(threads),
                    context: longest,
                    max_sequences: sequences,
                    max_batch: batch.max(sequences),
                    max_outputs: sequences,
                    kv_type: kv_type.into(),
                    device: args.device.device,
                    gpu_layers: args.device.gpu_layers.0,
                    ..LoadOptions::default()
                };
                let file = model::open(&path)?;
                let started = Instant::now();
                let mut model = model::load(&path, &file, &options)?;
                let setup = Setup::new(&path, &file, &options, &*model, started.elapsed())?;
                // Its metadata have served, and are not measured along.
                drop(file);
                let guard = interrupt::Guard::new();
                for test in tests {
                    if global.verbose > 0 {
                        let threads = ui::counted(options.threads, "thread");
                        ui::note(format_args!("{}: {threads}, {}", path.display(), test.name()));
                    }
                    let samples = measure(&mut *model, *test, batch, args.repetitions, !args.no_warmup, &guard)?;
                    rows.push(Row::new(setup.clone(), *test, samples));
                }
            }
        }
    }
    Ok(())
}

/// The rows asked for: prompts first, then generations, each at every depth.
fn tests(args: &BenchArgs) -> Result<Vec<Test>, Failure> {
    let mut tests = Vec::new();
    for &depth in &args.n_depth {
        tests.extend(args.n_prompt.iter().map(|&prompt| Test { prompt, generate: 0, depth, sequences: 1 }));
        for &sequences in &args.sequences {
            tests.extend(args.n_gen.iter().map(|&generate| Test { prompt: 0, generate, depth, sequences }));
        }
    }
    tests.retain(|test| test.prompt + test.generate > 0);
    if tests.is_empty() {
        return Err(
            Failure::usage("there is nothing to measure: -p and -n are both 0").help("give one of them a number")
        );
    }
    if args.sequences.contains(&0) {
        return Err(Failure::usage("no sequences generate nothing").help("give --sequences at least 1"));
    }
    if args.batch_size.contains(&0) {
        return Err(Failure::usage("a batch of 0 tokens computes nothing").help("give --batch-size at least 1"));
    }
    Ok(tests)
}
