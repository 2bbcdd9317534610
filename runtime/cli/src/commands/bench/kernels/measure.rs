//! Timing of products, interleaved: a disturbance hits all of them a little rather than one of them fully.

use super::{
    gpu::Gpu,
    machine::peak_name,
    select::{Case, Runner, Selection},
};
use crate::{
    failure::Failure,
    interrupt::Guard,
    ui::{self, Progress},
};
use rustai::{Isa, backend::cuda};
use rustai_kernels_cpu::bench::{Product, ProductError};
use std::time::{Duration, Instant};

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Samples of each point.
    pub samples: usize,
    /// A sample repeats its run until so much time has passed.
    pub sample: Duration,
}

impl Effort {
    /// Enough to trust a difference of some per cent on a quiet machine.
    pub const FULL: Self = Self { samples: 5, sample: Duration::from_millis(20) };
    /// A first impression.
    pub const QUICK: Self = Self { samples: 3, sample: Duration::from_millis(8) };
}

/// Workers of another product may still be awake and in the way for so long.
const SETTLE: Duration = Duration::from_millis(2);
/// A run that would take longer is left out.
const TOO_LONG: Duration = Duration::from_secs(20);
/// Weights that are kept at a time.
const GROUP_BYTES: usize = 2 << 30;

/// Samples of one product at one number of tokens.
#[derive(Clone, Debug)]
pub struct Point {
    pub case: Case,
    pub tokens: usize,
    pub kernel: String,
    /// The name of the arithmetic roof.
    pub peak: &'static str,
    pub planes: usize,
    pub weight_bytes: u64,
    pub working_set: u64,
    pub macs: u64,
    /// Seconds of one product, in the order of measuring.
    pub samples: Vec<f64>,
}

/// What has been measured.
#[derive(Debug, Default)]
pub struct Measured {
    pub points: Vec<Point>,
    /// Products at a number of tokens that would have taken too long.
    pub left_out: usize,
}

/// What does not change from sample to sample.
struct Facts {
    kernel: String,
    peak: &'static str,
    planes: usize,
    weight_bytes: u64,
    working_set: u64,
    macs: u64,
}

/// A product that can be timed, wherever it runs.
trait Timed {
    fn facts(&self, tokens: usize) -> Result<Facts, Failure>;
    /// Makes ready for timing.
    fn settle(&mut self) -> Result<(), Failure>;
    /// Seconds of one product, over as many runs as fill `at_least`.
    fn time(&mut self, tokens: usize, at_least: Duration) -> Result<f64, Failure>;
}

impl Timed for Product {
    fn facts(&self, tokens: usize) -> Result<Facts, Failure> {
        Ok(Facts {
            kernel: self.kernel().to_owned(),
            peak: peak_name(self.wants()),
            planes: self.planes(),
            weight_bytes: self.weight_bytes(),
            working_set: self.working_set(),
            macs: self.macs(tokens),
        })
    }

    /// Wakes the product's threads and lets those of others fall asleep.
    fn settle(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        while started.elapsed() < SETTLE {
            self.run(1)?;
        }
        Ok(())
    }

    fn time(&mut self, tokens: usize, at_least: Duration) -> Result<f64, Failure> {
        let started = Instant::now();
        let mut products = 0;
        loop {
            self.run(tokens)?;
            products += self.products();
            let elapsed = started.elapsed();
            if elapsed >= at_least {
                return Ok(elapsed.as_secs_f64() / products as f64);
            }
        }
    }
}

impl Timed for cuda::Product {
    fn facts(&self, tokens: usize) -> Result<Facts, Failure> {
        let kernel = self.kernel(tokens)?;
        Ok(Facts {
            kernel: kernel.name,
            peak: kernel.peak.name(),
            planes: kernel.times,
            weight_bytes: self.weight_bytes(),
            working_set: self.working_set(),
            macs: self.macs(tokens),
        })
    }

    /// Clocks rise with work, and the first run is recorded.
    fn settle(&mut self) -> Result<(), Failure> {
        self.time(1).map(drop).map_err(Failure::from)
    }

    fn time(&mut self, tokens: usize, at_least: Duration) -> Result<f64, Failure> {
        let (mut spent, mut runs) = (0.0, 0);
        while runs == 0 || spent * (self.products() as f64) < at_least.as_secs_f64() {
            spent += self.time(tokens)?;
            runs += 1;
        }
        Ok(spent / f64::from(runs))
    }
}

/// Measures all cases. After an early end `found` holds what has been sampled, if less often.
pub fn measure(
    selection: &Selection,
    gpu: Option<&Gpu>,
    threads: usize,
    effort: Effort,
    guard: &Guard,
    found: &mut Measured,
) -> Result<(), Failure> {
    let progress = Progress::steps("preparing weights");
    let total = (selection.cases.len() * selection.tokens.len() * effort.samples) as u64;
    let mut done = 0;
    progress.set(0, Some(total));
    for group in groups(&selection.cases) {
        let mut products = Vec::new();
        for case in group {
            guard.check()?;
            progress.say("preparing weights".to_owned());
            products.push(prepare(case, gpu, threads, &selection.tokens)?);
        }
        let mut measured: Vec<Point> = Vec::new();
        let mut work: Vec<(usize, usize)> = Vec::new();
        for (index, (case, product)) in group.iter().zip(&mut products).enumerate() {
            // The reference takes its time for each token anew; all others share the work with weights among tokens.
            let one = match case.runner {
                Runner::Cpu(Isa::Reference) => {
                    product.time(1, Duration::ZERO)? * case.residence.products(case.matrix_bytes()) as f64
                }
                _ => 0.0,
            };
            for &tokens in &selection.tokens {
                if one * tokens as f64 > TOO_LONG.as_secs_f64() {
                    ui::note(format_args!("{} {} M = {tokens} would take too long", case.runner.name(), case.dtype));
                    done += effort.samples as u64;
                    found.left_out += 1;
                    continue;
                }
                work.push((index, measured.len()));
                let Facts { kernel, peak, planes, weight_bytes, working_set, macs } = product.facts(tokens)?;
                measured.push(Point {
                    case: *case,
                    tokens,
                    kernel,
                    peak,
                    planes,
                    weight_bytes,
                    working_set,
                    macs,
                    samples: Vec::with_capacity(effort.samples),
                });
            }
        }
        let mut round = || -> Result<(), Failure> {
            for &(product, point) in &work {
                guard.check()?;
                let (product, point) = (&mut products[product], &mut measured[point]);
                progress.say(format!("{} {} M = {}", point.case.runner.name(), point.case.dtype, point.tokens));
                product.settle()?;
                point.samples.push(product.time(point.tokens, effort.sample)?);
                done += 1;
                progress.set(done, Some(total));
            }
            Ok(())
        };
        let outcome = (0..effort.samples).try_for_each(|_| round());
        found.points.extend(measured.into_iter().filter(|point| !point.samples.is_empty()));
        outcome?;
    }
    progress.clear();
    Ok(())
}

fn prepare(case: &Case, gpu: Option<&Gpu>, threads: usize, tokens: &[usize]) -> Result<Box<dyn Timed>, Failure> {
    let most = tokens.iter().copied().max().unwrap_or(1);
    let Case { runner, dtype, shape, residence, .. } = *case;
    match (runner, gpu) {
        (Runner::Cpu(isa), _) => {
            let product = Product::new(isa, threads, dtype, shape, most, residence);
            Ok(Box::new(product.map_err(|error| match error {
                ProductError::Executor(error) => Failure::from(error).or_help("measure fewer types, or smaller models"),
                ProductError::Matrix(error) => Failure::from(error).or_help("measure other types, or other models"),
            })?))
        }
        (Runner::Cuda, Some(gpu)) => Ok(Box::new(gpu.product(dtype, shape, most, residence)?)),
        (Runner::Cuda, None) => Err(Failure::new("no GPU was opened").help("give --device cuda")),
    }
}

/// Runs of neighbours that fit in memory together.
fn groups(cases: &[Case]) -> Vec<&[Case]> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, case) in cases.iter().enumerate() {
        if index > start && bytes + case.bytes() > GROUP_BYTES {
            groups.push(&cases[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += case.bytes();
    }
    groups.push(&cases[start..]);
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::kernels::machine::Level;
    use rustai::DType;
    use rustai_kernels_cpu::bench::{Residence, Shape};

    fn case(dtype: DType, residence: Residence) -> Case {
        let shape = Shape { role: "test", rows: 32, cols: 256 };
        Case { runner: Runner::Cpu(Isa::Reference), dtype, model: "test", shape, level: Level::L2, residence }
    }

    #[test]
    fn groups_hold_every_case_once_and_not_too_much() {
        let large = case(DType::F32, Residence::Memory(GROUP_BYTES / 3));
        let small = case(DType::F32, Residence::Cache);
        let huge = case(DType::F32, Residence::Memory(2 * GROUP_BYTES));
        let cases = [large, large, small, large, huge, small];
        let sizes: Vec<usize> = groups(&cases).iter().map(|group| group.len()).collect();
        assert_eq!(sizes, [3, 1, 1, 1]);
    }

    #[test]
    fn every_point_has_its_samples() {
        let cases = vec![case(DType::Q4_0, Residence::Cache), case(DType::F16, Residence::Memory(50_000))];
        let selection = Selection { runners: vec![Runner::Cpu(Isa::Reference)], cases, tokens: vec![1, 3] };
        let effort = Effort { samples: 2, sample: Duration::ZERO };
        let mut found = Measured::default();
        measure(&selection, None, 1, effort, &Guard::new(), &mut found).unwrap();
        let points = found.points;
        assert_eq!(points.iter().map(|point| point.tokens).collect::<Vec<_>>(), [1, 3, 1, 3]);
        assert!(points.iter().all(|point| point.samples.len() == 2 && point.samples.iter().all(|time| *time > 0.0)));
        assert_eq!((points[1].macs, points[3].working_set), (3 * 32 * 256, 4 * 32 * 256 * 2));
    }
}
