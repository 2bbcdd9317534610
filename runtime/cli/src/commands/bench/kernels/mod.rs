//! `bench kernels`: matrix products beside the limits of this computer.
//!
//! [`select`] reads which products are meant, [`machine`] measures the roofs before and after them, [`measure`] times
//! them in turn, [`report`] works out the figures and prints them, and [`picture`] draws them.

mod machine;
mod measure;
mod picture;
mod report;
mod select;

use crate::{args::KernelsArgs, compute, failure::Failure, interrupt, ui};
use machine::{Caches, Level, Roofs};
use measure::{Effort, measure};
use report::Report;
use rustai::Isa;
use std::fs;

/// Measures what the flags select.
pub fn run(args: &KernelsArgs) -> Result<(), Failure> {
    let threads = compute::threads(args.threads);
    let caches = Caches::detect();
    let selection = select::select(args, &caches, threads)?;
    if let Some(path) = &args.svg {
        // A path that cannot be written should not cost a measurement.
        fs::write(path, "").map_err(|error| {
            Failure::usage(format!("{} cannot be written: {error}", path.display())).help("give another path to --svg")
        })?;
    }
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    let guard = interrupt::Guard::new();
    let levels = selection.levels();
    let mut roofs = measure_roofs(&selection.isas, threads, &caches, &levels, &guard)?;
    let mut points = Vec::new();
    let outcome = measure(&selection, threads, effort, &guard, &mut points);
    if outcome.is_ok() && !args.quick {
        // The machine may have been disturbed the first time.
        let later = measure_roofs(&selection.isas, threads, &caches, &levels, &guard)?;
        roofs.iter_mut().zip(&later).for_each(|(roofs, later)| roofs.raise(later));
    }
    // After Ctrl-C, what has been measured is shown all the same.
    if !points.is_empty() {
        let report = Report::new(roofs, &points, threads, effort.samples);
        if let Some(path) = &args.svg {
            fs::write(path, picture::draw(&report))
                .map_err(|error| Failure::new(format!("{} cannot be written: {error}", path.display())))?;
        }
        if args.json { ui::json(&report)? } else { report.print()? }
    }
    outcome
}

fn measure_roofs(
    isas: &[Isa],
    threads: usize,
    caches: &Caches,
    levels: &[Level],
    guard: &interrupt::Guard,
) -> Result<Vec<Roofs>, Failure> {
    let progress = ui::Progress::steps("measuring the roofs");
    let mut roofs = Vec::new();
    for (done, &isa) in isas.iter().enumerate() {
        guard.check()?;
        progress.set(done as u64, Some(isas.len() as u64));
        roofs.push(Roofs::measure(isa, threads, caches, levels)?);
    }
    Ok(roofs)
}
