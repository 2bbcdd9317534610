//! The figures: a table for people, an object for programs.

use super::{
    machine::{Level, Roofs},
    measure::{Measured, Point},
    select::Selection,
};
use crate::{
    commands::info,
    failure::Failure,
    ui::{self, Printer, Table},
};
use rustai::DType;
use serde::Serialize;
use std::cmp::Reverse;

/// Everything that one run found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub build_version: &'static str,
    pub cpu_info: String,
    pub n_threads: usize,
    /// The GPU that multiplied; `null` if the CPU did.
    pub gpu: Option<String>,
    /// Samples that were wanted of each point.
    pub samples: usize,
    /// What an early end left out; `null` if the measurement came to its end.
    pub missing: Option<Missing>,
    pub roofs: Vec<Roofs>,
    pub points: Vec<Row>,
}

/// What was measured, and how.
pub struct Run {
    pub threads: usize,
    /// The GPU that multiplied.
    pub gpu: Option<String>,
    /// Samples that were wanted of each point.
    pub samples: usize,
    /// What an early end left out.
    pub missing: Option<Missing>,
}

/// What a measurement that ended early did not reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Points without a sample, and how many there would have been.
    pub points: usize,
    pub of: usize,
    /// Types of which there is no point at all.
    pub types: Vec<&'static str>,
}

impl Missing {
    /// Compares what was found with what was meant.
    pub fn of(selection: &Selection, found: &Measured) -> Self {
        let of = (selection.cases.len() * selection.tokens.len()).saturating_sub(found.left_out);
        let mut types: Vec<_> = selection.cases.iter().map(|case| case.dtype).collect();
        types.sort_unstable();
        types.dedup();
        types.retain(|dtype| found.points.iter().all(|point| point.case.dtype != *dtype));
        let types = types.into_iter().map(DType::name).collect();
        Self { points: of.saturating_sub(found.points.len()), of, types }
    }

    /// In a sentence.
    pub fn sentence(&self) -> String {
        let Self { points, of, types } = self;
        let all = match types.is_empty() {
            true => String::new(),
            false => format!(", all of {} among them", types.join(", ")),
        };
        match points {
            0 => "The measurement ended early: not all samples were taken.".to_owned(),
            _ => format!("The measurement ended early: {points} of {of} rows are missing{all}."),
        }
    }
}

/// One product at one number of tokens.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    #[serde(rename = "type")]
    pub dtype: &'static str,
    pub isa: &'static str,
    /// What really multiplies: the instruction set, or `reference` if it has no kernel for the type; on a GPU the kernel.
    pub kernel: String,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub model: &'static str,
    pub role: &'static str,
    /// Where weights come from.
    pub weights_in: Level,
    pub weight_bytes: u64,
    pub working_set_bytes: u64,
    /// Median time of one product.
    pub time_ns: f64,
    /// Slowest minus fastest sample, as a part of the median.
    pub spread: f64,
    pub samples_ns: Vec<f64>,
    /// Bytes of weights per second.
    pub bytes_per_s: f64,
    pub macs_per_s: f64,
    /// Multiply-adds per byte of weights.
    pub intensity: f64,
    /// Multiply-adds per second that the roofs allow.
    pub roof_macs_per_s: f64,
    pub percent_of_roof: f64,
    /// Which roof that is: a level of `reads` or a name of `peaks`.
    pub bound: &'static str,
}

impl Row {
    fn new(point: &Point, roofs: &Roofs) -> Option<Self> {
        let mut sorted = point.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (fastest, slowest) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        let intensity = point.macs as f64 / point.weight_bytes as f64;
        let (roof, bound) = roofs.limit(point.case.level, intensity, point.peak, point.planes)?;
        let macs_per_s = point.macs as f64 / median;
        Some(Self {
            dtype: point.case.dtype.name(),
            isa: point.case.runner.name(),
            kernel: point.kernel.clone(),
            m: point.tokens,
            n: point.case.shape.rows,
            k: point.case.shape.cols,
            model: point.case.model,
            role: point.case.shape.role,
            weights_in: point.case.level,
            weight_bytes: point.weight_bytes,
            working_set_bytes: point.working_set,
            time_ns: median * 1e9,
            spread: (slowest - fastest) / median,
            samples_ns: point.samples.iter().map(|seconds| seconds * 1e9).collect(),
            bytes_per_s: point.weight_bytes as f64 / median,
            macs_per_s,
            intensity,
            roof_macs_per_s: roof,
            percent_of_roof: 100.0 * macs_per_s / roof,
            bound,
        })
    }
}

impl Report {
    /// Works out the figures. Points are sorted by matrix, place, type and instruction set.
    pub fn new(roofs: Vec<Roofs>, points: &[Point], run: Run) -> Self {
        let mut sorted: Vec<&Point> = points.iter().collect();
        sorted.sort_by_key(|point| {
            let case = &point.case;
            (Reverse(case.level), case.shape.cols, case.shape.rows, case.dtype, case.runner, point.tokens)
        });
        let row = |point: &Point| {
            let roofs = roofs.iter().find(|roofs| roofs.isa == point.case.runner.name())?;
            Row::new(point, roofs)
        };
        let points = sorted.into_iter().filter_map(row).collect();
        let (build_version, cpu_info) = (env!("CARGO_PKG_VERSION"), info::processor());
        let Run { threads, gpu, samples, missing } = run;
        Self { build_version, cpu_info, n_threads: threads, gpu, samples, missing, roofs, points }
    }

    /// Prints the roofs, then a table.
    pub fn print(&self) -> Result<(), Failure> {
        let mut out = Printer::default();
        let machine = match &self.gpu {
            Some(gpu) => gpu.clone(),
            None => format!("{}, {}", self.cpu_info, ui::counted(self.n_threads, "thread")),
        };
        out.line(format_args!("{machine}, rustai {}", self.build_version))?;
        out.line("")?;
        out.piece(&self.roof_table().text())?;
        out.line("")?;
        out.piece(&self.point_table().text())?;
        out.line("")?;
        if let Some(missing) = &self.missing {
            out.line(missing.sentence())?;
        }
        out.line(format_args!(
            "Times are medians of {}; spread is slowest minus fastest. GB/s counts bytes of weights, G MAC/s counts\n\
             multiply-adds in 10^9. The roof of a row is the lower of bandwidth times multiply-adds per byte and the arithmetic\n\
             peak; `bound` names which. Both were measured in this run; the best of several rounds counts.",
            self.samples_taken()
        ))
    }

    /// Samples of a point; after an early end some have fewer.
    fn samples_taken(&self) -> String {
        let counts = self.points.iter().map(|row| row.samples_ns.len());
        let (fewest, most) = counts.fold((self.samples, 0), |(low, high), count| (low.min(count), high.max(count)));
        if fewest < most { format!("{fewest} to {most} samples") } else { ui::counted(most, "sample") }
    }

    fn roof_table(&self) -> Table {
        let mut table = Table::new(&["roof", "isa", ">1 thread", ">all threads", ">", "measured with"]);
        for roofs in &self.roofs {
            for read in &roofs.reads {
                table.row(vec![
                    format!("read {}", read.level.name()),
                    roofs.isa.to_owned(),
                    if self.gpu.is_some() { String::new() } else { figure(read.one_thread / 1e9) },
                    figure(read.all_threads / 1e9),
                    "GB/s".to_owned(),
                    format!("{} in all", ui::bytes(read.buffer_bytes as u64)),
                ]);
            }
            if let Some(copy) = roofs.copy {
                table.row(vec![
                    "copy".to_owned(),
                    roofs.isa.to_owned(),
                    String::new(),
                    figure(copy.bytes_per_second / 1e9),
                    "GB/s".to_owned(),
                    format!("{} in all, read and written", ui::bytes(copy.buffer_bytes as u64)),
                ]);
            }
            for peak in &roofs.peaks {
                table.row(vec![
                    peak.name.to_owned(),
                    roofs.isa.to_owned(),
                    String::new(),
                    figure(peak.macs_per_second / 1e9),
                    "G MAC/s".to_owned(),
                    peak.instruction.to_owned(),
                ]);
            }
            if let Some(launches) = roofs.launches {
                for (name, how, time) in [
                    ("launch", "a graph of kernels that do nothing", launches.alone_ns),
                    ("launch, overlapped", "the same, each started before the last has ended", launches.overlapped_ns),
                ] {
                    table.row(vec![
                        name.to_owned(),
                        roofs.isa.to_owned(),
                        String::new(),
                        figure(time / 1e3),
                        "µs".to_owned(),
                        how.to_owned(),
                    ]);
                }
            }
        }
        table
    }

    fn point_table(&self) -> Table {
        let heads = [
            "type",
            "isa",
            ">M",
            ">N x K",
            "weights in",
            ">time",
            ">spread",
            ">GB/s",
            ">G MAC/s",
            ">% of roof",
            "bound",
        ];
        let mut table = Table::new(&heads);
        for row in &self.points {
            let isa = if row.kernel == row.isa { row.isa.to_owned() } else { format!("{} ({})", row.isa, row.kernel) };
            table.row(vec![
                row.dtype.to_owned(),
                isa,
                row.m.to_string(),
                format!("{} x {}", row.n, row.k),
                row.weights_in.name().to_owned(),
                time(row.time_ns),
                format!("{:.0} %", row.spread * 100.0),
                figure(row.bytes_per_s / 1e9),
                figure(row.macs_per_s / 1e9),
                format!("{:.0}", row.percent_of_roof),
                row.bound.to_owned(),
            ]);
        }
        table
    }
}

/// Three digits that mean something.
pub fn figure(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ..1e6 => format!("{} µs", figure(nanoseconds / 1e3)),
        _ => format!("{} ms", figure(nanoseconds / 1e6)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{
        super::{
            machine::{Arithmetic, Read},
            select::{Case, Runner},
        },
        *,
    };
    use rustai::Isa;
    use rustai_kernels_cpu::bench::{Residence, Shape};

    /// A report with the points of one type.
    pub fn sample() -> Report {
        let shape = Shape { role: "ffn_down", rows: 64, cols: 256 };
        let (level, residence) = (Level::Memory, Residence::Memory(1));
        let case =
            Case { runner: Runner::Cpu(Isa::Reference), dtype: DType::Q8_0, model: "1b", shape, level, residence };
        let weight_bytes = 64 * 256 / 32 * 34;
        let point = |tokens: usize, samples: &[f64]| Point {
            case,
            tokens,
            kernel: "reference".to_owned(),
            peak: "integer",
            planes: 1,
            weight_bytes,
            working_set: weight_bytes,
            macs: (64 * 256 * tokens) as u64,
            samples: samples.to_vec(),
        };
        let read = Read { level, buffer_bytes: 1 << 20, one_thread: 1e9, all_threads: 2e9 };
        let peaks = vec![Arithmetic { name: "integer", instruction: "a & b", macs_per_second: 1e11 }];
        let roofs = vec![Roofs { isa: "reference", reads: vec![read], peaks, copy: None, launches: None }];
        let points = [point(512, &[2e-4, 1e-4, 1.5e-4]), point(1, &[1e-5, 2e-5, 1.2e-5, 1.4e-5]), point(4, &[])];
        Report::new(roofs, &points, Run { threads: 2, gpu: None, samples: 4, missing: None })
    }

    #[test]
    fn an_early_end_tells_what_is_missing_and_how_often_the_rest_was_sampled() {
        assert_eq!(sample().samples_taken(), "3 to 4 samples");
        let mut even = sample();
        even.points.truncate(1);
        assert_eq!(even.samples_taken(), "4 samples");

        let shape = Shape { role: "ffn_down", rows: 64, cols: 256 };
        let (level, residence) = (Level::Memory, Residence::Memory(1));
        let case = |dtype| Case { runner: Runner::Cpu(Isa::Reference), dtype, model: "1b", shape, level, residence };
        let cases = [DType::Q4_0, DType::F16, DType::Q8_0].map(case).to_vec();
        let selection = Selection { runners: vec![Runner::Cpu(Isa::Reference)], cases, tokens: vec![1, 16] };
        let point = Point {
            case: case(DType::Q4_0),
            tokens: 1,
            kernel: String::new(),
            peak: "integer",
            planes: 1,
            weight_bytes: 1,
            working_set: 1,
            macs: 1,
            samples: vec![1.0],
        };
        let mut found = Measured { points: vec![point], left_out: 1 };
        let missing = Missing::of(&selection, &found);
        assert_eq!(missing, Missing { points: 4, of: 5, types: vec!["F16", "Q8_0"] });
        let told = missing.sentence();
        assert_eq!(told, "The measurement ended early: 4 of 5 rows are missing, all of F16, Q8_0 among them.");
        found.points = vec![found.points[0].clone(); 5];
        assert_eq!(Missing::of(&selection, &found).points, 0);
    }

    #[test]
    fn figures_follow_from_the_samples() {
        let report = sample();
        assert_eq!(report.points.len(), 2, "a point without samples is left out");
        let decode = &report.points[0];
        assert_eq!(decode.m, 1);
        assert!((decode.time_ns - 13e3).abs() < 1e-6);
        assert!((decode.spread - 10.0 / 13.0).abs() < 1e-9);
        assert!((decode.bytes_per_s - 17408.0 / 13e-6).abs() < 1.0);
        assert!((decode.percent_of_roof - 100.0 * decode.bytes_per_s / 2e9).abs() < 1e-9);
        assert_eq!(decode.bound, "memory");
        let prefill = &report.points[1];
        assert_eq!(prefill.bound, "integer");
        assert!((prefill.percent_of_roof - 100.0 * (64.0 * 256.0 * 512.0 / 1.5e-4) / 1e11).abs() < 1e-9);
    }

    #[test]
    fn the_tables_name_roofs_and_points() {
        let report = sample();
        let roofs = report.roof_table().text();
        let words =
            |text: &str, line: usize| text.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&roofs, 1), "read memory reference 1.00 2.00 GB/s 1.00 MiB in all");
        assert_eq!(words(&roofs, 2), "integer reference 100 G MAC/s a & b");
        let points = report.point_table().text();
        assert_eq!(words(&points, 1), "Q8_0 reference 1 64 x 256 memory 13.0 µs 77 % 1.34 1.26 67 memory");
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["points"][1]["type"], "Q8_0");
        assert_eq!(value["points"][1]["weights_in"], "memory");
        assert_eq!(value["roofs"][0]["reads"][0]["level"], "memory");
    }
}
