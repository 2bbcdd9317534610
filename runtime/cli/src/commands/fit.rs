//! `fit`: what of a model would run where, and what memory that takes.

use super::model;
use crate::{
    args::FitArgs,
    compute,
    failure::Failure,
    ui::{self, Printer, Table},
};
use rustai::{
    backend::fit::{Fit, Part},
    model::LoadOptions,
};
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    layers: usize,
    parts: Vec<PartReport>,
    reason: String,
}

#[derive(Serialize)]
struct PartReport {
    device: String,
    name: Option<String>,
    layers: usize,
    weights_bytes: u64,
    cache_bytes: u64,
    activations_bytes: u64,
    reserve_bytes: u64,
    page_locked_bytes: u64,
    free_bytes: Option<u64>,
}

impl PartReport {
    fn new(device: String, name: Option<String>, part: &Part) -> Self {
        let Part { layers, memory, reserve, page_locked, free } = *part;
        Self {
            device,
            name,
            layers,
            weights_bytes: memory.weights,
            cache_bytes: memory.cache,
            activations_bytes: memory.activations,
            reserve_bytes: reserve,
            page_locked_bytes: page_locked,
            free_bytes: free,
        }
    }

    fn needed(&self) -> u64 {
        self.weights_bytes + self.cache_bytes + self.activations_bytes + self.reserve_bytes
    }
}

/// Prints it.
pub fn run(args: &FitArgs) -> Result<(), Failure> {
    for (flag, value) in [("sequences", args.sequences), ("batch-size", args.batch_size), ("outputs", args.outputs)] {
        if value == 0 {
            return Err(Failure::usage(format!("--{flag} 0 computes nothing")).help("give at least 1"));
        }
    }
    let path = model::find(&args.model.model)?;
    let file = model::open(&path)?;
    let options = LoadOptions {
        threads: compute::threads(args.compute.threads),
        context: args.compute.ctx,
        max_sequences: args.sequences,
        max_batch: args.batch_size,
        max_outputs: args.outputs.max(args.sequences).min(args.batch_size),
        kv_type: args.compute.kv_type.into(),
        device: args.compute.device.device,
        gpu_layers: args.compute.device.gpu_layers.0,
        ..LoadOptions::default()
    };
    let fit = rustai::model::fit(&file, &options).map_err(|error| model::explain(error).within(path.display()))?;
    let report = report(&fit);
    if args.json { ui::json(&report) } else { print(&report) }
}

fn report(fit: &Fit) -> Report {
    let mut parts = Vec::new();
    if let Some(part) = &fit.cpu {
        parts.push(PartReport::new("cpu".into(), None, part));
    }
    if let Some((info, part)) = &fit.gpu {
        parts.push(PartReport::new(format!("cuda:{}", info.ordinal), Some(info.name.clone()), part));
    }
    Report { layers: fit.layers, parts, reason: fit.reason.clone() }
}

fn print(report: &Report) -> Result<(), Failure> {
    let mut table = Table::new(&[
        "device",
        ">layers",
        ">weights",
        ">cache",
        ">activations",
        ">reserve",
        ">needed",
        ">free",
        ">page-locked",
    ]);
    for part in &report.parts {
        let device = match &part.name {
            Some(name) => format!("{} ({name})", part.device),
            None => part.device.clone(),
        };
        table.row(vec![
            device,
            format!("{} of {}", part.layers, report.layers),
            ui::bytes(part.weights_bytes),
            ui::bytes(part.cache_bytes),
            ui::bytes(part.activations_bytes),
            ui::bytes(part.reserve_bytes),
            ui::bytes(part.needed()),
            part.free_bytes.map_or_else(|| "unknown".to_owned(), ui::bytes),
            ui::bytes(part.page_locked_bytes),
        ]);
    }
    Printer::default().piece(&format!("{}\nWhy: {}.\n", table.text(), report.reason.trim_end_matches('.')))
}
