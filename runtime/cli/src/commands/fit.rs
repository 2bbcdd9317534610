//! `fit`: what of a model would run where, and what memory that takes.

use super::model;
use crate::{
    args::FitArgs,
    compute,
    failure::Failure,
    ui::{self, Printer, Table},
};
use rustai::{
    backend::{
        BuildError,
        fit::{Fit, Part},
    },
    model::{LoadError, LoadOptions},
};
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    layers: usize,
    parts: Vec<PartReport>,
    /// What the host's memory has to hold, page-locked memory among it, and what is free of it.
    host_needed_bytes: u64,
    host_free_bytes: Option<u64>,
    /// Whether there is room for all; `null` if the system does not say.
    fits: Option<bool>,
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
    needed_bytes: u64,
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
            needed_bytes: part.needed(),
            free_bytes: free,
        }
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
    let fit = rustai::model::fit(&file, &options).map_err(|error| match error {
        // Elsewhere the advice is to come here.
        LoadError::Build(BuildError::Device(_)) => {
            model::explain(error).help("give --device cpu or auto; `rustai info` shows what devices there are")
        }
        LoadError::Build(BuildError::OutOfDeviceMemory { .. }) => Failure::from(error).within(path.display()),
        error => model::explain_in(&path, error),
    })?;
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
    Report {
        layers: fit.layers,
        parts,
        host_needed_bytes: fit.host_needed(),
        host_free_bytes: fit.host_free(),
        fits: fit.fits(),
        reason: fit.reason.clone(),
    }
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
            ui::bytes(part.needed_bytes),
            part.free_bytes.map_or_else(|| "unknown".to_owned(), ui::bytes),
            ui::bytes(part.page_locked_bytes),
        ]);
    }
    let (table, reason, verdict) = (table.text(), report.reason.trim_end_matches('.'), verdict(report));
    Printer::default().piece(&format!("{table}\nWhy: {reason}.\n{verdict}\n"))
}

/// Whether there is room, in a sentence or two.
fn verdict(report: &Report) -> String {
    match report.fits {
        Some(true) => return "There is room for it.".to_owned(),
        None => return "Whether there is room for it is not known: the system does not say what is free.".to_owned(),
        Some(false) => {}
    }
    let host = ("the host", report.host_needed_bytes, report.host_free_bytes);
    let devices = report.parts.iter().filter(|part| part.name.is_some());
    let places = devices.map(|part| (part.device.as_str(), part.needed_bytes, part.free_bytes)).chain([host]);
    let lacking = places.filter_map(|(place, needed, free)| {
        let free = free.filter(|free| needed > *free)?;
        Some(format!("{place} needs {} and has {}", ui::bytes(needed), ui::bytes(free)))
    });
    let lacking: Vec<String> = lacking.collect();
    format!(
        "It does not fit: {}. A smaller --ctx, --kv-type q8_0, fewer --sequences or a smaller --batch-size take less.",
        lacking.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_names_each_place_that_lacks_memory() {
        let part = |device: &str, needed_bytes, free_bytes| PartReport {
            device: device.to_owned(),
            name: (device != "cpu").then(|| "a GPU".to_owned()),
            layers: 1,
            weights_bytes: needed_bytes,
            cache_bytes: 0,
            activations_bytes: 0,
            reserve_bytes: 0,
            page_locked_bytes: 0,
            needed_bytes,
            free_bytes,
        };
        let mut report = Report {
            layers: 2,
            parts: vec![part("cpu", 1024, Some(10)), part("cuda:0", 4096, Some(2048))],
            host_needed_bytes: 2048,
            host_free_bytes: Some(1024),
            fits: Some(false),
            reason: String::new(),
        };
        let told = verdict(&report);
        let lacking =
            "It does not fit: cuda:0 needs 4.00 KiB and has 2.00 KiB, the host needs 2.00 KiB and has 1.00 KiB.";
        assert!(told.starts_with(lacking) && told.contains("--ctx"), "{told}");
        report.fits = Some(true);
        assert_eq!(verdict(&report), "There is room for it.");
        report.fits = None;
        assert!(verdict(&report).contains("not known"));
    }
}
