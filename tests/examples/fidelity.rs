//! How near the logits of fast kernels, and those of another engine, are to exact arithmetic on one model file.
//!
//! `fidelity text OUT` writes wikitext-2's test split as it is tokenized.
//! `fidelity tokens MODEL COUNT OUT` writes the first COUNT tokens of wikitext-2's test split, as little-endian u32.
//! `fidelity compare MODEL TOKENS WINDOW LOGITS` computes each window of WINDOW tokens on an empty cache, through the
//! reference (f32 weights and activations) and through each instruction set of this processor, and prints one JSON object.
//! LOGITS holds the other engine's f32 logits of the same tokens, a row per position. Driven by
//! `scripts/compare_fidelity.py` and `scripts/compare_quantize.py`.

use rustai::{
    Batch, BatchSequence, Isa, PAGE_TOKENS,
    backend::Executable,
    gguf::GgufFile,
    model::{self, LoadOptions},
    text::{Specials, Tokenizer},
};
use rustai_tests::{divergence, fixtures};
use serde_json::json;
use std::{error::Error, fs, path::Path};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["text", out] => Ok(fs::write(out, fixtures::wikitext2_test())?),
        ["tokens", model, count, out] => tokens(Path::new(model), count.parse()?, Path::new(out)),
        ["compare", model, tokens, window, logits] => {
            compare(Path::new(model), Path::new(tokens), window.parse()?, Path::new(logits))
        }
        _ => Err(
            "usage: fidelity text OUT | fidelity tokens MODEL COUNT OUT | fidelity compare MODEL TOKENS WINDOW LOGITS"
                .into(),
        ),
    }
}

fn tokens(model: &Path, count: usize, out: &Path) -> Outcome<()> {
    let tokenizer = Tokenizer::from_metadata(GgufFile::open(model)?.metadata())?;
    let tokens = tokenizer.encode(&fixtures::wikitext2_test(), Specials::Text)?;
    let taken = tokens.get(..count).ok_or_else(|| format!("the text has only {} tokens", tokens.len()))?;
    Ok(fs::write(out, taken.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>())?)
}

fn compare(path: &Path, tokens: &Path, window: usize, theirs: &Path) -> Outcome<()> {
    let tokens: Vec<u32> = words(&fs::read(tokens)?).map(u32::from_le_bytes).collect();
    let theirs: Vec<f32> = words(&fs::read(theirs)?).map(f32::from_le_bytes).collect();
    let file = GgufFile::open(path)?;
    let (_, truth) = logits(&file, Isa::Reference, &tokens, window)?;
    if theirs.len() != truth.len() {
        return Err(format!("{} logits of the other engine for {} of ours", theirs.len(), truth.len()).into());
    }
    let vocab = truth.len() / tokens.len();
    let mut rows = vec![row("other", String::new(), &truth, &theirs, vocab)];
    for isa in Isa::ALL.into_iter().filter(|isa| *isa != Isa::Reference && isa.missing_feature().is_none()) {
        let (description, ours) = logits(&file, isa, &tokens, window)?;
        rows.push(row(isa.name(), description, &truth, &ours, vocab));
    }
    println!("{}", json!({ "positions": tokens.len(), "rows": rows }));
    Ok(())
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.as_chunks::<4>().0.iter().copied()
}

/// The logits of all tokens, and the backend's own words.
fn logits(file: &GgufFile, isa: Isa, tokens: &[u32], window: usize) -> Outcome<(String, Vec<f32>)> {
    let options = LoadOptions {
        context: window,
        max_batch: window,
        max_outputs: window,
        isa: Some(isa),
        ..LoadOptions::default()
    };
    let mut model: Box<dyn Executable> = model::load(file, &options, &mut |_| ())?;
    let pages: Vec<u32> = (0..window.div_ceil(PAGE_TOKENS) as u32).collect();
    let mut logits = Vec::new();
    for tokens in tokens.chunks(window) {
        let sequence = BatchSequence { len: tokens.len() as u32, start: 0, pages: &pages };
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        logits.extend_from_slice(model.step(&Batch { tokens, sequences: &[sequence], outputs: &outputs })?);
    }
    Ok((model.describe(), logits))
}

fn row(name: &str, description: String, truth: &[f32], found: &[f32], vocab: usize) -> serde_json::Value {
    let (mut kl, mut largest, mut error, mut norm) = (0.0, 0f64, 0.0, 0.0);
    for (p, q) in truth.chunks_exact(vocab).zip(found.chunks_exact(vocab)) {
        let divergence = divergence::kl(p, q);
        (kl, largest) = (kl + divergence, largest.max(divergence));
        let (e, n) = divergence::squares(p, q);
        (error, norm) = (error + e, norm + n);
    }
    let positions = (truth.len() / vocab) as f64;
    json!({
        "kernels": name, "description": description, "mean_kl": kl / positions, "largest_kl": largest,
        "relative_error": (error / norm).sqrt(),
    })
}
