//! `perplexity`: how well a model predicts a text, after llama-perplexity's method.
//!
//! The whole text becomes tokens (BOS in front if the model asks for it) and is cut into chunks of `--ctx` tokens. Each
//! chunk is computed on an empty cache, its first token replaced by BOS if the model asks for one, and the tokens of its
//! second half are scored. PPL is `exp` of the mean negative log-likelihood; its uncertainty is the standard error of
//! that mean times PPL.

use super::model;
use crate::{args::PerplexityArgs, compute, failure::Failure, input, interrupt::Guard, ui, ui::Printer};
use rustai::{
    Batch, BatchSequence, PAGE_TOKENS,
    backend::Executable,
    model::LoadOptions,
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
    rustai::model::check_whole(&file).map_err(|error| model::explain(error).within(path.display()))?;
    let tokenizer = Tokenizer::from_metadata(file.metadata())?;
    let bos = tokenizer.prefix();
    let tokens = tokenizer.encode_prompt(&text, Specials::Text)?;
    let chunks = (tokens.len() / args.ctx).min(args.chunks.unwrap_or(usize::MAX));
    if chunks == 0 {
        return Err(Failure::new(format!("the text has {} tokens, and a chunk takes {}", tokens.len(), args.ctx))
            .help("give a longer text, a smaller --ctx, or --chunks above 0"));
    }
    let options = LoadOptions {
        threads: compute::threads(args.threads),
        context: args.ctx,
        max_batch: args.batch_size.min(args.ctx),
        max_outputs: args.batch_size.min(args.ctx),
        ..LoadOptions::default()
    };
    let mut model = model::load(&file, &options).map_err(|failure| failure.within(path.display()))?;
    let guard = Guard::new();
    let mut out = Printer::default();
    let mut score = Score::default();
    let started = Instant::now();
    for (index, chunk) in tokens.chunks_exact(args.ctx).take(chunks).enumerate() {
        let mut chunk = chunk.to_vec();
        if let Some(bos) = bos {
            chunk[0] = bos;
        }
        score_chunk(&mut *model, &chunk, options.max_batch, &mut score, &guard)?;
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
        scored_tokens: score.count,
        seconds,
        tokens_per_second: (chunks * args.ctx) as f64 / seconds,
    };
    if args.json {
        return ui::json(&report);
    }
    out.line(format_args!(
        "Final estimate: PPL = {:.4} +/- {:.5} ({chunks} chunks of {}, {:.1} tokens/s)",
        report.perplexity, report.uncertainty, args.ctx, report.tokens_per_second
    ))
}

/// Runs one chunk and scores the tokens of its second half.
fn score_chunk(
    model: &mut dyn Executable,
    chunk: &[u32],
    batch: usize,
    score: &mut Score,
    guard: &Guard,
) -> Result<(), Failure> {
    let vocab = model.limits().vocab;
    let pages: Vec<u32> = (0..chunk.len().div_ceil(PAGE_TOKENS) as u32).collect();
    let first = chunk.len() / 2;
    for start in (0..chunk.len()).step_by(batch) {
        guard.check()?;
        let tokens = &chunk[start..chunk.len().min(start + batch)];
        // Position p predicts token p + 1, so the last position predicts nothing that is known.
        let scored = start.max(first)..(start + tokens.len()).min(chunk.len() - 1);
        let outputs: Vec<u32> = scored.clone().map(|position| (position - start) as u32).collect();
        let sequence = BatchSequence { len: tokens.len() as u32, start: start as u32, pages: &pages };
        let logits = model.step(&Batch { tokens, sequences: &[sequence], outputs: &outputs })?;
        for (row, position) in logits.chunks_exact(vocab).zip(scored) {
            score.add(negative_log_likelihood(row, chunk[position + 1] as usize));
        }
    }
    Ok(())
}

/// `-ln softmax(logits)[token]`, summed in f64.
fn negative_log_likelihood(logits: &[f32], token: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    sum.ln() + f64::from(largest) - f64::from(logits[token])
}

/// The sums behind the estimate.
#[derive(Default)]
struct Score {
    count: usize,
    sum: f64,
    squares: f64,
}

impl Score {
    fn add(&mut self, nll: f64) {
        self.count += 1;
        self.sum += nll;
        self.squares += nll * nll;
    }

    fn perplexity(&self) -> f64 {
        (self.sum / self.count as f64).exp()
    }

    fn uncertainty(&self) -> f64 {
        let mean = self.sum / self.count as f64;
        let variance = (self.squares / self.count as f64 - mean * mean).max(0.0);
        if self.count < 2 { 0.0 } else { (variance / (self.count - 1) as f64).sqrt() * self.perplexity() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustai::backend::{Limits, StepError};

    /// Always predicts the token after the one it sees, with logit 2 against 0, and checks what it is asked.
    struct Successor {
        logits: Vec<f32>,
        seen: usize,
    }

    const VOCAB: usize = 5;

    impl Executable for Successor {
        fn step(&mut self, batch: &Batch<'_>) -> Result<&[f32], StepError> {
            assert_eq!(batch.sequences[0].start as usize, self.seen);
            self.seen += batch.tokens.len();
            self.logits = vec![0.0; batch.outputs.len() * VOCAB];
            for (row, &output) in batch.outputs.iter().enumerate() {
                self.logits[row * VOCAB + (batch.tokens[output as usize] as usize + 1) % VOCAB] = 2.0;
            }
            Ok(&self.logits)
        }
        fn limits(&self) -> Limits {
            Limits { max_tokens: 8, max_outputs: 8, pages: 8, context: 64, vocab: VOCAB }
        }
        fn describe(&self) -> String {
            String::new()
        }
    }

    #[test]
    fn the_second_half_is_scored_whatever_the_batch() {
        let chunk: Vec<u32> = (0..16).map(|i| i % 5).collect();
        let right = (1.0 + 4.0 * (-2.0f64).exp()).ln();
        for batch in [1, 3, 8, 16] {
            let mut score = Score::default();
            let mut model = Successor { logits: Vec::new(), seen: 0 };
            score_chunk(&mut model, &chunk, batch, &mut score, &Guard::new()).unwrap();
            assert_eq!(score.count, 7, "positions 8 to 14 predict tokens 9 to 15");
            assert!((score.sum - 7.0 * right).abs() < 1e-9);
            assert!(score.uncertainty().abs() < 1e-6);
        }
    }

    #[test]
    fn likelihood_survives_large_logits() {
        assert!((negative_log_likelihood(&[1e4, 1e4], 1) - 2f64.ln()).abs() < 1e-9);
        assert!((negative_log_likelihood(&[-1e4, 1e4], 0) - 2e4).abs() < 1e-6);
    }

    #[test]
    fn uncertainty_is_the_standard_error_of_the_mean() {
        let mut score = Score::default();
        [1.0, 2.0, 3.0, 4.0].into_iter().for_each(|nll| score.add(nll));
        assert!((score.perplexity() - 2.5f64.exp()).abs() < 1e-12);
        assert!((score.uncertainty() - (1.25f64 / 3.0).sqrt() * 2.5f64.exp()).abs() < 1e-12);
    }
}
