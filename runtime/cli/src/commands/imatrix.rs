//! `imatrix`: gathers an importance matrix on a text. See [`rustai::quantize::gather`].

use super::{model, quantize::output, session};
use crate::{
    args::ImatrixArgs,
    compute,
    failure::Failure,
    input,
    interrupt::Guard,
    ui::{self, Printer, Progress},
};
use rustai::{
    Error,
    quantize::{self, QuantizeError},
    text::{Specials, Tokenizer},
};
use serde::Serialize;
use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

#[derive(Serialize)]
struct Report {
    output: String,
    matrices: usize,
    chunks: u32,
    ctx: u32,
    perplexity: f64,
    seconds: f64,
    interrupted: bool,
}

/// Runs the text through the model and writes the matrix; after Ctrl-C, that of the chunks so far.
pub fn run(args: &ImatrixArgs) -> Result<(), Failure> {
    let text = input::file(&args.file)?;
    let path = model::find(&args.model.model)?;
    let file = model::open(&path)?;
    let tokenizer = Tokenizer::from_metadata(file.metadata())?;
    let mut tokens = tokenizer.encode_prompt(&text, Specials::Text)?;
    tokens.truncate(args.chunks.unwrap_or(usize::MAX).saturating_mul(args.ctx));
    let guard = Guard::new();
    let output = output(&args.output, &[&path, &args.file])?;
    let bar = Progress::steps("gathering");
    let started = Instant::now();
    let (mut perplexity, mut total) = (f64::NAN, 0);
    let threads = compute::threads(args.threads);
    let gathered = quantize::gather(&file, &tokens, args.ctx, tokenizer.prefix(), threads, &mut |state| {
        bar.set(state.done as u64, Some(state.total as u64));
        (perplexity, total) = (state.perplexity, state.total);
        if guard.raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.clear();
    let mut imatrix = gathered.map_err(|error| match error {
        Error::Quantize(ref inner) if matches!(**inner, QuantizeError::TextTooShort { .. }) => Failure::from(error),
        error => session::explain(error).within(path.display()),
    })?;
    imatrix.datasets = vec![args.file.display().to_string()];
    imatrix.write_output(output)?;
    // What came after the last chunk stopped nothing.
    let interrupted = (imatrix.chunks as usize) < total;
    let report = Report {
        output: args.output.display().to_string(),
        matrices: imatrix.len(),
        chunks: imatrix.chunks,
        ctx: imatrix.chunk_tokens,
        perplexity,
        seconds: started.elapsed().as_secs_f64(),
        interrupted,
    };
    print(&report, args.json)?;
    if interrupted {
        let (output, chunks) = (ui::plain(&report.output), report.chunks);
        ui::warn(format_args!("interrupted: {output} holds what {chunks} of {total} chunks gave"));
        return Err(Failure::Interrupted);
    }
    Ok(())
}

fn print(report: &Report, json: bool) -> Result<(), Failure> {
    if json {
        return ui::json(report);
    }
    Printer::default().line(format_args!(
        "{}: importance of {} matrices from {} chunks of {} (perplexity {:.4}), in {}",
        ui::plain(&report.output),
        report.matrices,
        report.chunks,
        report.ctx,
        report.perplexity,
        ui::seconds(Duration::from_secs_f64(report.seconds))
    ))
}
