//! `graph`: a model's computation graph as text, DOT or SVG, or its plan. No weights are loaded.

use super::model;
use crate::{
    args::{GraphArgs, GraphFormat},
    failure::Failure,
    ui::Printer,
};
use rustai::{graph, model::LoadOptions};
use std::fs;

/// Prints it.
pub fn run(args: &GraphArgs) -> Result<(), Failure> {
    if args.plan && args.format != GraphFormat::Text {
        return Err(Failure::usage("a plan is printed as text only").help("leave out --format, or --plan"));
    }
    let path = model::find(&args.model.model)?;
    let file = model::open(&path)?;
    let explain = |error| model::explain_in(&path, error);
    let text = if args.plan {
        let options = LoadOptions { context: args.ctx, ..LoadOptions::default() };
        rustai::model::plan(&file, &options).map_err(explain)?.to_string()
    } else {
        let graph = rustai::model::graph(&file).map_err(explain)?.graph;
        match args.format {
            GraphFormat::Text => graph::text(&graph),
            GraphFormat::Dot => graph::dot(&graph),
            GraphFormat::Svg => graph::svg(&graph),
        }
    };
    match &args.output {
        Some(path) => fs::write(path, text).map_err(|error| {
            Failure::new(format!("{} cannot be written: {error}", path.display())).help("give another path with -o")
        }),
        None => Printer::default().piece(&text),
    }
}
