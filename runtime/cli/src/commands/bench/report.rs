//! Rows of results and their printed forms. The names in JSON and CSV are llama-bench's where it has one.

use super::{
    measure::Test,
    statistics::{deviation, mean},
};
use crate::{
    args::BenchFormat,
    commands::{info, model},
    failure::Failure,
    ui::{self, Printer, Table},
};
use rustai::{Isa, backend::Executable, gguf::GgufFile, model::LoadOptions};
use serde::Serialize;
use std::{path::Path, time::Duration};

/// What is the same for all rows of one loaded model.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// This program's version.
    build_version: &'static str,
    /// Processor.
    cpu_info: String,
    /// Instruction set of the kernels.
    isa: &'static str,
    /// Where the model ran.
    device: String,
    /// The backend's own words.
    backend: String,
    /// Path of the file.
    model_filename: String,
    /// Architecture and main type, such as `llama Q4_1`.
    model_type: String,
    /// Bytes of all tensors.
    model_size: u64,
    /// Elements of all tensors.
    model_n_params: u64,
    /// Most tokens in a step.
    n_batch: usize,
    /// Threads.
    n_threads: usize,
    /// How the cache keeps keys, and values.
    type_k: &'static str,
    type_v: &'static str,
    /// Time to load.
    load_ns: u64,
}

impl Setup {
    /// Collects it.
    pub fn new(
        path: &Path,
        file: &GgufFile,
        options: &LoadOptions,
        model: &dyn Executable,
        load: Duration,
    ) -> Result<Self, Failure> {
        let summary = model::Summary::of(file)?;
        Ok(Self {
            build_version: env!("CARGO_PKG_VERSION"),
            cpu_info: info::processor(),
            isa: Isa::select()?.isa.name(),
            device: model.device(),
            backend: model.describe(),
            model_filename: path.display().to_string(),
            model_type: summary.description(),
            model_size: summary.bytes,
            model_n_params: summary.parameters,
            n_batch: options.max_batch,
            n_threads: options.threads,
            type_k: options.kv_type.name(),
            type_v: options.kv_type.name(),
            load_ns: load.as_nanos() as u64,
        })
    }
}

/// One row.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    #[serde(flatten)]
    setup: Setup,
    test: String,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    n_sequences: usize,
    avg_ns: f64,
    stddev_ns: f64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
    /// Largest resident set of the process so far; `null` if the system does not tell.
    peak_rss_bytes: Option<u64>,
}

impl Row {
    /// Works out the figures.
    pub fn new(setup: Setup, test: Test, samples: Vec<Duration>) -> Self {
        let nanoseconds: Vec<f64> = samples.iter().map(|sample| sample.as_nanos().max(1) as f64).collect();
        let rates: Vec<f64> = nanoseconds.iter().map(|ns| test.tokens() as f64 * 1e9 / ns).collect();
        Self {
            setup,
            test: test.name(),
            n_prompt: test.prompt,
            n_gen: test.generate,
            n_depth: test.depth,
            n_sequences: test.sequences,
            avg_ns: mean(&nanoseconds),
            stddev_ns: deviation(&nanoseconds),
            avg_ts: mean(&rates),
            stddev_ts: deviation(&rates),
            samples_ns: samples.iter().map(|sample| sample.as_nanos() as u64).collect(),
            samples_ts: rates,
            peak_rss_bytes: info::peak_rss(),
        }
    }
}

/// Prints all rows.
pub fn print(rows: &[Row], format: BenchFormat) -> Result<(), Failure> {
    match format {
        BenchFormat::Json => ui::json(&rows),
        BenchFormat::Md => {
            let mut out = Printer::default();
            out.piece(&markdown(rows))?;
            out.piece(&footer(rows))
        }
        BenchFormat::Csv => Printer::default().piece(&csv(rows)),
    }
}

fn markdown(rows: &[Row]) -> String {
    let mut table = Table::new(&["model", ">size", ">params", "kernels", "cache", ">threads", ">test", ">t/s"]);
    for row in rows {
        table.row(vec![
            row.setup.model_type.clone(),
            ui::bytes(row.setup.model_size),
            ui::count(row.setup.model_n_params),
            row.setup.device.replace("cpu", row.setup.isa),
            row.setup.type_k.to_owned(),
            row.setup.n_threads.to_string(),
            row.test.clone(),
            format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts),
        ]);
    }
    table.markdown()
}

/// The machine, the program, and what computed the rows: a line for each configuration, in the order of the rows.
fn footer(rows: &[Row]) -> String {
    let Some(Row { setup: Setup { cpu_info, build_version, .. }, .. }) = rows.first() else { return String::new() };
    let mut backends: Vec<&str> = Vec::new();
    for Row { setup, .. } in rows {
        if !backends.contains(&setup.backend.as_str()) {
            backends.push(&setup.backend);
        }
    }
    let between = if backends.len() == 1 { "; " } else { "\n" };
    format!("\n{cpu_info}; rustai {build_version}{between}{}\n", backends.join("\n"))
}

fn csv(rows: &[Row]) -> String {
    let mut table = Table::new(&[
        "build_version",
        "cpu_info",
        "isa",
        "model_filename",
        "model_type",
        "model_size",
        "model_n_params",
        "n_batch",
        "n_threads",
        "device",
        "type_k",
        "type_v",
        "n_prompt",
        "n_gen",
        "n_depth",
        "n_sequences",
        "avg_ns",
        "stddev_ns",
        "avg_ts",
        "stddev_ts",
    ]);
    for row in rows {
        let Row { setup, n_prompt, n_gen, n_depth, n_sequences, avg_ns, stddev_ns, avg_ts, stddev_ts, .. } = row;
        table.row(vec![
            setup.build_version.to_owned(),
            setup.cpu_info.clone(),
            setup.isa.to_owned(),
            setup.model_filename.clone(),
            setup.model_type.clone(),
            setup.model_size.to_string(),
            setup.model_n_params.to_string(),
            setup.n_batch.to_string(),
            setup.n_threads.to_string(),
            setup.device.clone(),
            setup.type_k.to_owned(),
            setup.type_v.to_owned(),
            n_prompt.to_string(),
            n_gen.to_string(),
            n_depth.to_string(),
            n_sequences.to_string(),
            format!("{avg_ns:.0}"),
            format!("{stddev_ns:.0}"),
            format!("{avg_ts:.6}"),
            format!("{stddev_ts:.6}"),
        ]);
    }
    table.csv()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let setup = Setup {
            build_version: "0",
            cpu_info: "a, b".into(),
            isa: "avx2",
            device: "cpu".into(),
            backend: "cpu".into(),
            model_filename: "m.gguf".into(),
            model_type: "llama Q4_1".into(),
            model_size: 96_576_768,
            model_n_params: 134_515_008,
            n_batch: 512,
            n_threads: 2,
            type_k: "f16",
            type_v: "f16",
            load_ns: 1,
        };
        let samples = vec![Duration::from_secs(1), Duration::from_secs(2)];
        Row::new(setup, Test { prompt: 512, generate: 0, depth: 0, sequences: 1 }, samples)
    }

    #[test]
    fn rates_are_averaged_not_times() {
        let row = row();
        assert_eq!(row.avg_ts, 384.0);
        assert!((row.stddev_ts - 181.019_335_983_756_18).abs() < 1e-9);
        assert!(markdown(&[row]).contains("| pp512 | 384.00 ± 181.02 |"));
    }

    #[test]
    fn the_footer_tells_every_configuration() {
        let of = |backend: &str| Row { setup: Setup { backend: backend.into(), ..row().setup }, ..row() };
        assert_eq!(footer(&[of("one"), of("one")]), "\na, b; rustai 0; one\n");
        assert_eq!(footer(&[of("one"), of("two"), of("one")]), "\na, b; rustai 0\none\ntwo\n");
        assert_eq!(footer(&[]), "");
    }

    #[test]
    fn json_keeps_its_names() {
        let value = serde_json::to_value(row()).unwrap();
        for name in
            ["model_type", "model_size", "model_n_params", "n_threads", "n_prompt", "n_gen", "avg_ts", "isa", "type_k"]
        {
            assert!(value.get(name).is_some(), "{name}");
        }
        assert!(csv(&[row()]).lines().nth(1).unwrap().starts_with("0,\"a, b\",avx2,m.gguf,"));
    }
}
