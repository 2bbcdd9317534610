//! `perplexity`: how well a model predicts a text, after llama-perplexity's method.
//! See [`rustai::perplexity`] for the method.

use super::model;
use crate::{args::PerplexityArgs, compute, failure::Failure, input, interrupt::Guard, ui, ui::Printer};
use rustai::{
    model::LoadOptions,
    perplexity::Score,
    text::{Specials, Tokenizer},
};
use serde::Serialize;
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    perplexity: f64,
    uncertainty: f64,
    chunks: usize,
    ctx: usize,
    kv_type: &'static str,
    scored_tokens: usize,
    seconds: f64,
    tokens_per_second: f64,
}

/// Scores a text and prints the running estimate and the final one.
pub fn run(args: &PerplexityArgs) -> Result<(), Failure> {
    if args.ctx < 4 || args.batch_size == 0 {
        return Err(Failure::usage(format!(
            "--ctx {} --batch-size {} leaves nothing to score",
            args.ctx, args.batch_size
        ))
        .help("give --ctx at least 4 and --batch-size at least 1"));
    }
    let text = input::file(&args.file)?;
    let path = model::find(&args.model.model)?;
    let file = model::open(&path)?;
    rustai::model::check_whole(&file).map_err(|error| model::explain_in(&path, error))?;
    let tokenizer = Tokenizer::from_metadata(file.metadata())?;
    let bos = tokenizer.prefix();
    let tokens = tokenizer.encode_prompt(&text, Specials::Text)?;
    let chunks = (tokens.len() / args.ctx).min(args.chunks.unwrap_or(usize::MAX));
    if chunks == 0 {
        return Err(Failure::new(format!(
            "the text has {}, and a chunk takes {}",
            ui::counted(tokens.len(), "token"),
            args.ctx
        ))
        .help("give a longer text, a smaller --ctx, or --chunks above 0"));
    }
    let options = LoadOptions {
        threads: compute::threads(args.threads),
        context: args.ctx,
        max_batch: args.batch_size.min(args.ctx),
        max_outputs: args.batch_size.min(args.ctx),
        kv_type: args.kv_type.into(),
        device: args.device.device,
        gpu_layers: args.device.gpu_layers.0,
        ..LoadOptions::default()
    };
    let mut model = model::load(&path, &file, &options)?;
    let guard = Guard::new();
    let mut out = Printer::default();
    let mut score = Score::default();
    let started = Instant::now();
    for (index, chunk) in tokens.chunks_exact(args.ctx).take(chunks).enumerate() {
        let mut chunk = chunk.to_vec();
        if let Some(bos) = bos {
            chunk[0] = bos;
        }
        score.add_chunk(&mut *model, &chunk, options.max_batch, || guard.check())?;
        if !args.json {
            out.piece(&format!("[{}]{:.4},", index + 1, score.perplexity()))?;
        }
    }
    out.end_line()?;
    let seconds = started.elapsed().as_secs_f64();
    let report = Report {
        perplexity: score.perplexity(),
        uncertainty: score.uncertainty(),
        chunks,
        ctx: args.ctx,
        kv_type: options.kv_type.name(),
        scored_tokens: score.count(),
        seconds,
        tokens_per_second: (chunks * args.ctx) as f64 / seconds,
    };
    if args.json {
        return ui::json(&report);
    }
    out.line(format_args!(
        "Final estimate: PPL = {:.4} +/- {:.5} ({} of {}, {:.1} tokens/s)",
        report.perplexity,
        report.uncertainty,
        ui::counted(chunks, "chunk"),
        args.ctx,
        report.tokens_per_second
    ))
}
