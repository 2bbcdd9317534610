//! `quantize`: makes a smaller model file. See [`rustai::quantize`] for how.

use super::model;
use crate::{
    args::{GlobalArgs, QuantizeArgs},
    compute,
    failure::Failure,
    interrupt::Guard,
    ui::{self, Printer, Progress, Table},
};
use rustai::{
    gguf::GgufError,
    quantize::{Imatrix, Job, Mix, Options, Output, Planned, QuantizeError, Wishes},
};
use serde::Serialize;
use std::{collections::BTreeMap, ops::ControlFlow, path::Path, sync::Arc, time::Instant};

#[derive(Serialize)]
struct Report {
    input: String,
    output: String,
    r#type: &'static str,
    dry_run: bool,
    parameters: u64,
    bytes_before: u64,
    bytes_after: u64,
    bits_per_weight_before: f64,
    bits_per_weight_after: f64,
    seconds: f64,
    types: Vec<TypeReport>,
    fallbacks: Vec<Fallback>,
    tensors: Vec<TensorReport>,
}

#[derive(Serialize)]
struct TypeReport {
    r#type: &'static str,
    tensors: usize,
    bytes: u64,
}

/// Tensors whose rows do not divide into the blocks of the type that the mix has for them.
#[derive(Serialize)]
struct Fallback {
    wanted: &'static str,
    used: &'static str,
    tensors: usize,
}

#[derive(Serialize)]
struct TensorReport {
    name: String,
    shape: Vec<usize>,
    from: &'static str,
    to: &'static str,
    instead_of: Option<&'static str>,
    weighted: bool,
    bytes_before: usize,
    bytes_after: usize,
}

/// Quantizes a file, or tells what would become of it.
pub fn run(args: &QuantizeArgs, global: GlobalArgs) -> Result<(), Failure> {
    let path = model::find(&args.input)?;
    let file = model::open(&path)?;
    let options = options(args)?;
    let explain = |error| explain(error, &path);
    let output = match args.dry_run {
        true => None,
        false => {
            let mut inputs = vec![path.as_path()];
            inputs.extend(args.imatrix.as_deref());
            Some(output(&args.output, &inputs)?)
        }
    };
    let job = Job::plan(&file, &options).map_err(explain)?;
    tell_unknown(&options, job.tensors());
    tell_unwise(&options, job.tensors());
    let fallbacks = fallbacks(job.tensors());
    for Fallback { wanted, used, tensors } in &fallbacks {
        let plural = if *tensors == 1 { "" } else { "s" };
        ui::warn(format_args!(
            "the rows of {tensors} tensor{plural} do not divide into blocks of {wanted}; {used} is used instead"
        ));
    }
    let started = Instant::now();
    if let Some(output) = output {
        write(&job, output, global.verbose > 0).map_err(|failure| failure.map_or(Failure::Interrupted, explain))?;
    }
    let bits = |bytes: u64| bytes as f64 * 8.0 / job.parameters().max(1) as f64;
    let report = Report {
        input: path.display().to_string(),
        output: args.output.display().to_string(),
        r#type: options.mix.name(),
        dry_run: args.dry_run,
        parameters: job.parameters(),
        bytes_before: job.bytes_before(),
        bytes_after: job.bytes_after(),
        bits_per_weight_before: bits(job.bytes_before()),
        bits_per_weight_after: bits(job.bytes_after()),
        seconds: started.elapsed().as_secs_f64(),
        types: types(job.tensors()),
        fallbacks,
        tensors: job.tensors().iter().map(tensor).collect(),
    };
    if args.json { ui::json(&report) } else { print(&report) }
}

fn options(args: &QuantizeArgs) -> Result<Options, Failure> {
    let imatrix =
        args.imatrix.as_ref().map(|path| Imatrix::read(path).map(Arc::new).map_err(|error| explain(error, path)));
    let unknown = || Failure::usage(format!("{} is no type", args.mix)).help("`rustai help quantize` lists them");
    Ok(Options {
        mix: Mix::parse(&args.mix).ok_or_else(unknown)?,
        wishes: Wishes {
            pure: args.pure,
            token_embedding: QuantizeArgs::dtype(args.token_embedding_type.as_ref()),
            output: QuantizeArgs::dtype(args.output_tensor_type.as_ref()),
        },
        allow_requantize: args.allow_requantize,
        imatrix: imatrix.transpose()?,
        threads: compute::threads(args.threads),
    })
}

/// Writes the file with a progress bar; `None` as the error means Ctrl-C.
fn write(job: &Job<'_>, output: Output, verbose: bool) -> Result<(), Option<QuantizeError>> {
    let guard = Guard::new();
    let bar = Progress::bytes("quantizing");
    let mut last = Instant::now();
    let result = job.write_output(output, &mut |state| {
        bar.set(state.done, Some(state.total));
        if verbose && state.finished {
            let Planned { name, dims, from, to, bytes_before, bytes_after, .. } = state.tensor;
            let (before, after) = (ui::bytes(*bytes_before as u64), ui::bytes(*bytes_after as u64));
            let time = ui::seconds(last.elapsed());
            bar.note(format_args!("{name} {dims:?}: {from} {before} -> {to} {after} in {time}"));
            last = Instant::now();
        }
        if guard.raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    result.map_err(|error| Some(error).filter(|error| !matches!(error, QuantizeError::Cancelled)))
}

/// Takes the place for a result, which is none of `inputs`.
pub fn output(path: &Path, inputs: &[&Path]) -> Result<Output, Failure> {
    if path == Path::new("-") {
        return Err(Failure::usage("the result is a file; it cannot go to standard output")
            .help("name a file; one that is called - is ./-"));
    }
    Output::create(path, inputs).map_err(|error| match error {
        QuantizeError::SameFile { .. } => Failure::from(error).into_usage(),
        error => error.into(),
    })
}

/// Tells what went wrong with the file at `path`, unless the message names another one, or no file is to blame. Adds a
/// remedy where the library's message has none.
fn explain(error: QuantizeError, path: &Path) -> Failure {
    match error {
        QuantizeError::Gguf(GgufError::Io { .. } | GgufError::NotAFile { .. })
        | QuantizeError::Output { .. }
        | QuantizeError::Threads { .. } => error.into(),
        QuantizeError::Io { .. } => Failure::from(error).or_help("check the path and its permissions"),
        error => Failure::from(error).or_help("`rustai inspect` shows what a file holds").within(path.display()),
    }
}

/// Tells if the importance matrix leaves out matrices that it should know.
fn tell_unknown(options: &Options, tensors: &[Planned]) {
    let Some(imatrix) = &options.imatrix else { return };
    // Embeddings and outputs are left out when importance is gathered.
    let quantized = tensors.iter().filter(|tensor| tensor.name.starts_with("blk.") && tensor.from != tensor.to);
    let (mut all, mut unknown) = (0, 0);
    for tensor in quantized {
        all += 1;
        unknown += usize::from(imatrix.get(&tensor.name).is_none());
    }
    if unknown > 0 {
        ui::warn(format_args!("the importance matrix knows nothing of {unknown} of {all} matrices"));
    }
}

/// Tells if the mix is not what its name promises.
fn tell_unwise(options: &Options, tensors: &[Planned]) {
    let mix = options.mix;
    if mix.needs_importance() && options.imatrix.is_none() {
        ui::warn(format_args!(
            "{mix} without an importance matrix loses much; gather one with `rustai imatrix` for --imatrix, or choose Q2_K"
        ));
    }
    if mix == Mix::MXFP4_MOE && !tensors.iter().any(|tensor| tensor.to == mix.dtype()) {
        ui::warn(format_args!("the model has no experts, which alone {mix} makes MXFP4; choose MXFP4 or Q8_0 instead"));
    }
}

fn fallbacks(tensors: &[Planned]) -> Vec<Fallback> {
    let mut counts = BTreeMap::new();
    for tensor in tensors {
        if let Some(wanted) = tensor.instead_of {
            *counts.entry((wanted, tensor.to)).or_insert(0) += 1;
        }
    }
    counts
        .into_iter()
        .map(|((wanted, used), tensors)| Fallback { wanted: wanted.name(), used: used.name(), tensors })
        .collect()
}

fn types(tensors: &[Planned]) -> Vec<TypeReport> {
    let mut types = BTreeMap::new();
    for tensor in tensors {
        let entry: &mut (usize, u64) = types.entry(tensor.to).or_default();
        *entry = (entry.0 + 1, entry.1 + tensor.bytes_after as u64);
    }
    types.into_iter().map(|(dtype, (tensors, bytes))| TypeReport { r#type: dtype.name(), tensors, bytes }).collect()
}

fn tensor(tensor: &Planned) -> TensorReport {
    TensorReport {
        name: tensor.name.clone(),
        shape: tensor.dims.clone(),
        from: tensor.from.name(),
        to: tensor.to.name(),
        instead_of: tensor.instead_of.map(|dtype| dtype.name()),
        weighted: tensor.weighted,
        bytes_before: tensor.bytes_before,
        bytes_after: tensor.bytes_after,
    }
}

fn print(report: &Report) -> Result<(), Failure> {
    let mut out = Printer::default();
    if report.dry_run {
        let mut table = Table::new(&["tensor", "shape", "from", "to", ">size"]);
        for tensor in &report.tensors {
            let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
            let size = ui::bytes(tensor.bytes_after as u64);
            table.row(vec![ui::plain(&tensor.name).into(), shape, tensor.from.into(), tensor.to.into(), size]);
        }
        out.piece(&table.text())?;
        out.piece("\n")?;
    }
    let mut table = Table::new(&["type", ">tensors", ">size"]);
    for row in &report.types {
        table.row(vec![row.r#type.into(), row.tensors.to_string(), ui::bytes(row.bytes)]);
    }
    out.piece(&table.text())?;
    let time = match report.dry_run {
        true => "nothing written".to_owned(),
        false => format!("in {}", ui::seconds(std::time::Duration::from_secs_f64(report.seconds))),
    };
    out.line(format_args!(
        "{}: {}, {} -> {} ({:.2} -> {:.2} bits per weight), {time}",
        ui::plain(&report.output),
        report.r#type,
        ui::bytes(report.bytes_before),
        ui::bytes(report.bytes_after),
        report.bits_per_weight_before,
        report.bits_per_weight_after,
    ))
}
