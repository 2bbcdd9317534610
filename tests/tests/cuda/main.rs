//! The CUDA backend as it runs, down to logits and answers, on the stand-in for the driver library: the same code that drives a
//! GPU, with the kernels run by the emulator. A program of its own, since a process keeps the library.

mod engine;
mod loading;
mod logits;
mod placement;
mod sampling;
mod steps;

use rustai::{
    Batch, BatchSequence, DType,
    backend::{DeviceChoice, Executable},
    gguf::GgufFile,
    model::{self, LoadError, LoadOptions},
};
use rustai_cuda_standin::Standin;
use rustai_tests::{TinyLlama, divergence::squares};
use std::path::PathBuf;
use tempfile::TempDir;

/// A folder with an image for the stand-in's architecture. What is in it does not matter there. A real device has those of the
/// program.
fn kernels() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.sm_90a.cubin"), b"// the stand-in has all kernels in it\0").unwrap();
    folder
}

fn standin() -> Standin {
    Standin::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A tiny model whose heads have a length that there are kernels for.
fn tiny(dtype: DType) -> TinyLlama {
    TinyLlama { width: 256, feed_forward: 256, heads: 4, kv_heads: 2, layers: 3, dtype, ..TinyLlama::default() }
}

fn file(model: &TinyLlama) -> GgufFile {
    GgufFile::from_bytes(model.bytes()).unwrap()
}

/// The folder, unless the device is a real one.
fn folder_for_standin(folder: &TempDir) -> Option<PathBuf> {
    std::env::var_os("RUSTAI_TEST_DEVICE").is_none().then(|| folder.path().to_owned())
}

fn options(device: DeviceChoice, folder: &TempDir) -> LoadOptions {
    LoadOptions {
        threads: 1,
        context: 128,
        max_batch: 48,
        max_outputs: 48,
        device,
        cuda_kernels: folder_for_standin(folder),
        ..LoadOptions::default()
    }
}

fn load(file: &GgufFile, options: &LoadOptions) -> Result<Box<dyn Executable>, LoadError> {
    model::load(file, options, &mut |_| {})
}

const PAGES: [u32; 4] = [2, 0, 3, 1];

/// Logits of all tokens, computed in chunks of so many.
fn logits(model: &mut dyn Executable, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut all = Vec::new();
    let mut start = 0;
    for tokens in tokens.chunks(chunk) {
        let sequences = [BatchSequence { len: tokens.len() as u32, start, pages: &PAGES }];
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        all.extend_from_slice(model.step(&Batch { tokens, sequences: &sequences, outputs: &outputs }).unwrap());
        start += tokens.len() as u32;
    }
    all
}

/// The relative error of logits.
fn error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let (error, norm) = squares(expected, got);
    (error / norm).sqrt()
}

/// How far logits may be from the CPU's: that keeps twice the bits of activations of these widths.
fn tolerance(dtype: DType) -> f64 {
    if matches!(dtype, DType::F16 | DType::F32) { 2e-3 } else { 0.05 }
}

fn tokens(count: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 7 + 3) % 250).collect()
}
