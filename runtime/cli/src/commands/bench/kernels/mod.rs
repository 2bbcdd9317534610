//! `bench kernels`: matrix products beside the limits of this computer.
//!
//! [`select`] reads which products are meant, [`machine`] measures the roofs before and after them, [`measure`] times
//! them in turn on the CPU or on a [`gpu`], [`report`] works out the figures and prints them, and [`picture`] draws them.

mod gpu;
mod machine;
mod measure;
mod picture;
mod report;
mod select;

use crate::{args::KernelsArgs, compute, failure::Failure, interrupt, ui};
use gpu::Gpu;
use machine::{Caches, Roofs};
use measure::{Effort, Measured, measure};
use report::{Missing, Report, Run};
use rustai::backend::DeviceChoice;
use select::{Runner, Selection};
use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
};

/// Measures what the flags select.
pub fn run(args: &KernelsArgs) -> Result<(), Failure> {
    let gpu = match args.device {
        DeviceChoice::Cuda(ordinal) => Some(Gpu::open(ordinal)?),
        DeviceChoice::Cpu | DeviceChoice::Auto => None,
    };
    if gpu.is_some() && !args.isas.is_empty() {
        return Err(Failure::usage("a GPU has no instruction sets to choose from").help("leave out --isa, or --device"));
    }
    let threads = if gpu.is_some() { 1 } else { compute::threads(args.threads) };
    let caches = gpu.as_ref().map_or_else(Caches::detect, Gpu::caches);
    let selection = select::select(args, &caches, threads, gpu.is_some())?;
    if let Some(path) = &args.svg {
        // A path that cannot be written should not cost a measurement.
        check_writable(path).map_err(|error| {
            Failure::usage(format!("{} cannot be written: {error}", path.display())).help("give another path to --svg")
        })?;
    }
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    let guard = interrupt::Guard::new();
    let measure_roofs = || measure_roofs(&selection, gpu.as_ref(), threads, &caches, &guard);
    let mut roofs = measure_roofs()?;
    let mut measured = Measured::default();
    let outcome = measure(&selection, gpu.as_ref(), threads, effort, &guard, &mut measured);
    if outcome.is_ok() && !args.quick {
        // The machine may have been disturbed the first time.
        let later = measure_roofs()?;
        roofs.iter_mut().zip(&later).for_each(|(roofs, later)| roofs.raise(later));
    }
    // After Ctrl-C, what has been measured is shown all the same.
    if !measured.points.is_empty() {
        let run = Run {
            threads,
            gpu: gpu.as_ref().map(Gpu::name),
            samples: effort.samples,
            missing: outcome.is_err().then(|| Missing::of(&selection, &measured)),
        };
        let report = Report::new(roofs, &measured.points, run);
        if let Some(path) = &args.svg {
            fs::write(path, picture::draw(&report))
                .map_err(|error| Failure::new(format!("{} cannot be written: {error}", path.display())))?;
        }
        if args.json { ui::json(&report)? } else { report.print()? }
    }
    outcome
}

/// Tries to open the file for writing. What is there keeps its content, and what is not there is not left behind: a
/// measurement may end early, and the picture of the last one is better than an empty file.
fn check_writable(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().write(true).open(path).map(drop)
        }
        Err(error) => Err(error),
    }
}

fn measure_roofs(
    selection: &Selection,
    gpu: Option<&Gpu>,
    threads: usize,
    caches: &Caches,
    guard: &interrupt::Guard,
) -> Result<Vec<Roofs>, Failure> {
    let progress = ui::Progress::steps("measuring the roofs");
    let levels = selection.levels();
    let mut roofs = Vec::new();
    for (done, &runner) in selection.runners.iter().enumerate() {
        guard.check()?;
        progress.set(done as u64, Some(selection.runners.len() as u64));
        match (runner, gpu) {
            (Runner::Cpu(isa), _) => roofs.push(Roofs::measure(isa, threads, caches, &levels)?),
            (Runner::Cuda, Some(gpu)) => roofs.push(gpu.roofs()?),
            (Runner::Cuda, None) => {}
        }
    }
    Ok(roofs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_tried_without_touching_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let picture = folder.path().join("roofline.svg");
        check_writable(&picture).unwrap();
        assert!(!picture.exists(), "an empty file was left");
        fs::write(&picture, "a picture").unwrap();
        check_writable(&picture).unwrap();
        assert_eq!(fs::read_to_string(&picture).unwrap(), "a picture");
        assert!(check_writable(folder.path()).is_err(), "a folder");
        assert!(check_writable(&folder.path().join("no/such.svg")).is_err());
    }
}
