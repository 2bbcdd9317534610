//! `graph`: a model's computation graph as text, DOT or SVG, or its plan. No weights are loaded.

use super::model;
use crate::{
    args::{GraphArgs, GraphFormat},
    failure::Failure,
    ui::Printer,
};
use rustai::{
    Isa, PAGE_TOKENS, graph,
    model::{LoadOptions, ModelGraph},
    plan::{Plan, PlanOptions},
};
use rustai_kernels_cpu::{ActKind, Matrix};
use std::fs;

/// Prints it.
pub fn run(args: &GraphArgs) -> Result<(), Failure> {
    if args.plan && args.format != GraphFormat::Text {
        return Err(Failure::usage("a plan is printed as text only").help("leave out --format, or --plan"));
    }
    let path = model::find(&args.model.model)?;
    let file = model::open(&path)?;
    let model = rustai::model::graph(&file).map_err(|error| model::explain(error).within(path.display()))?;
    let text = match (args.plan, args.format) {
        (true, _) => plan(&model, args.ctx)?.to_string(),
        (false, GraphFormat::Text) => graph::text(&model.graph),
        (false, GraphFormat::Dot) => graph::dot(&model.graph),
        (false, GraphFormat::Svg) => graph::svg(&model.graph),
    };
    match &args.output {
        Some(path) => fs::write(path, text).map_err(|error| {
            Failure::new(format!("{} cannot be written: {error}", path.display())).help("give another path with -o")
        }),
        None => Printer::default().piece(&text),
    }
}

/// The plan for one sequence with the default batch.
fn plan(model: &ModelGraph, context: usize) -> Result<Plan, Failure> {
    let isa = Isa::select()?.isa;
    let options = LoadOptions::default();
    // The default that `LoadOptions::context` describes.
    let context = if context == 0 { model.context.min(4096) } else { context };
    let sizes = PlanOptions {
        max_tokens: options.max_batch,
        max_outputs: options.max_outputs,
        pages: context.div_ceil(PAGE_TOKENS),
    };
    let wants = |graph: &graph::Graph, id| {
        let weight = graph.weight(id);
        let row = weight.dtype.bytes_for(weight.dims[0]).map(|bytes| vec![0; bytes]);
        let matrix = row.and_then(|row| Matrix::new(isa, weight.dtype, 1, weight.dims[0], row.into()).ok());
        matrix.map_or(ActKind::F32, |matrix| matrix.wants())
    };
    Ok(Plan::new(&model.graph, sizes, &wants)?)
}
