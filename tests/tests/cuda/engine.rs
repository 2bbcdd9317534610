//! The engine on a device: answers, memory of callers, failures.

use super::{PAGES, error, file, folder_for_standin, kernels, load, logits, options, standin, tiny, tokens, tolerance};
use rustai::{
    Batch, BatchSequence, DType, Error,
    backend::{DeviceChoice, Executable},
    engine::{Engine, EngineBuilder, EngineError, Request},
    queue::{Broker, BrokerOptions, Client, ClientOptions, InProcess, Job, Server, ServerOptions},
};
use rustai_tests::TinyLlama;
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;

pub(super) fn on_device(builder: EngineBuilder, folder: &TempDir) -> Engine {
    let builder = builder.device(DeviceChoice::Cuda(0));
    match folder_for_standin(folder) {
        Some(folder) => builder.cuda_kernels(folder),
        None => builder,
    }
    .build()
    .unwrap()
}

pub(super) fn engine(model: &TinyLlama, folder: &TempDir) -> (Engine, TempDir) {
    let place = tempfile::tempdir().unwrap();
    let path: PathBuf = place.path().join("model.gguf");
    std::fs::write(&path, model.bytes()).unwrap();
    (on_device(Engine::builder(&path).threads(1), folder), place)
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let (_standin, folder) = (standin(), kernels());
    let (engine, _place) = engine(&tiny(DType::Q4_0), &folder);
    let request = || Request::raw("once").temperature(1.0).seed(11).ignore_end(true).max_tokens(12);
    let answer = || engine.generate(request()).unwrap().tokens;
    let first = answer();
    assert!(!first.is_empty());
    assert_eq!(answer(), first);
}

#[test]
fn embeddings_and_logits_are_written_where_they_are_wanted() {
    let (_standin, folder) = (standin(), kernels());
    for dtype in [DType::Q8_0, DType::F16] {
        let file = file(&tiny(dtype));
        let mut on_cpu = load(&file, &options(DeviceChoice::Cpu, &folder)).unwrap();
        let mut on_gpu = load(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap();
        let width = on_gpu.embedding_width().unwrap();
        assert_eq!(on_cpu.embedding_width(), Some(width));
        let vocab = on_gpu.limits().vocab;
        let run = |model: &mut dyn Executable| {
            let [logits, embedding] = [vocab, width].map(rustai::engine::External::zeroed);
            let sequences = [BatchSequence { len: 3, start: 0, pages: &PAGES }];
            let batch = Batch { tokens: &[1, 2, 3], sequences: &sequences, outputs: &[1, 2] };
            let (output, normalized) = ([None, Some(logits.clone())], [Some(embedding.clone())]);
            let outside = rustai::backend::Outside { inputs: &[], output: &output, normalized: &normalized };
            let own = model.step_with(&batch, outside).unwrap()[..vocab].to_vec();
            [own, logits.to_vec(), embedding.to_vec()]
        };
        for (got, expected) in run(&mut *on_gpu).iter().zip(run(&mut *on_cpu)) {
            assert!(error(got, &expected) < tolerance(dtype), "{dtype}: {:.2e}", error(got, &expected));
        }
        let wrong = [Some(rustai::engine::External::zeroed(vocab + 1))];
        let sequences = [BatchSequence { len: 1, start: 0, pages: &PAGES }];
        let batch = Batch { tokens: &[1], sequences: &sequences, outputs: &[0] };
        let outside = rustai::backend::Outside { output: &wrong, ..Default::default() };
        assert!(on_gpu.step_with(&batch, outside).is_err());
    }
}

#[test]
fn rows_of_callers_are_awaited_together_and_fetched_once() {
    let (standin, folder) = (standin(), kernels());
    let file = file(&tiny(DType::Q8_0));
    let mut model = load(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap();
    let (vocab, tokens) = (model.limits().vocab, tokens(8));
    let expected = logits(&mut *model, &tokens, 8);
    let sequences = [BatchSequence { len: 8, start: 0, pages: &PAGES }];
    let batch = Batch { tokens: &tokens, sequences: &sequences, outputs: &[0, 1, 2, 3, 4, 5, 6, 7] };
    let rows: Vec<_> = (0..8).map(|_| Some(rustai::engine::External::zeroed(vocab))).collect();
    let counts = || ["waits", "fetched"].map(|name| standin.get(name));
    let before = counts();
    model.step_with(&batch, rustai::backend::Outside { output: &rows, ..Default::default() }).unwrap();
    let after = counts();
    // The last inputs have arrived, the rows have, and nothing is left to do.
    assert!(after[0] - before[0] <= 3, "{}", after[0] - before[0]);
    assert_eq!(after[1] - before[1], (8 * vocab * 4) as i64);
    let got: Vec<f32> = rows.iter().flatten().flat_map(|row| row.to_vec()).collect();
    assert!(error(&got, &expected) < 1e-3, "{:.2e}", error(&got, &expected));
}

/// Logits for a client of the queue: its buffer is page-locked by the first job that is worth it, and as long as it is mapped.
#[test]
fn buffers_of_clients_are_page_locked() {
    let (standin, folder) = (standin(), kernels());
    let small = TinyLlama { width: 64, feed_forward: 64, heads: 1, kv_heads: 1, layers: 1, ..tiny(DType::F16) };
    let builder = Engine::builder(file(&small)).threads(1).max_batch(64).max_outputs(64);
    let engine = on_device(builder, &folder);
    let vocab = engine.info().vocab;
    let prompt = tokens(64);
    let rows = (64usize << 10).div_ceil(vocab * 4);
    assert!(rows <= prompt.len());
    let expected = engine.logits(&prompt[..rows]).unwrap();
    for refused in [0, 1] {
        standin.set("fail_register", refused);
        let broker = Broker::new(BrokerOptions::default()).unwrap();
        let server = Server::start(broker.clone(), Some(engine.clone()), ServerOptions::default()).unwrap();
        let client = Client::over(Arc::new(InProcess::open(&broker).unwrap()), ClientOptions::default()).unwrap();
        let before = ["registered", "registrations", "fetched_locked"].map(|name| standin.get(name));
        let since = || {
            let now = ["registered", "registrations", "fetched_locked"].map(|name| standin.get(name));
            [0, 1, 2].map(|i| now[i] - before[i])
        };
        let run = |rows: usize| {
            let tokens = client.buffer(rows * 4).unwrap().tensor::<u32>(0, &[rows]).unwrap();
            tokens.write(0, &prompt[..rows]);
            let out = client.buffer(vocab * rows * 4).unwrap().tensor::<f32>(0, &[vocab, rows]).unwrap();
            for _ in 0..2 {
                assert_eq!(client.run(&Job::logits(&tokens, &out)).unwrap().result as usize, rows);
            }
            out.to_vec()
        };
        run(1);
        assert_eq!(since(), [0, 0, 0], "a small copy");
        let all = run(rows);
        assert!(error(&all[vocab * (rows - 1)..], &expected) < 1e-3);
        let bytes = (2 * rows * vocab * 4) as i64;
        assert_eq!(since()[1..], if refused == 1 { [0, 0] } else { [1, bytes] });
        // The next buffer is other memory, also where the first one was.
        run(rows);
        assert_eq!(since()[1..], if refused == 1 { [0, 0] } else { [2, 2 * bytes] });
        drop(client);
        let until = Instant::now() + Duration::from_secs(20);
        while server.stat().mapped > 0 || since()[0] > 0 {
            assert!(Instant::now() < until, "a mapping or a page lock is left behind");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_device_that_fails_ends_the_engine_with_its_reason() {
    let (standin, folder) = (standin(), kernels());
    let (broken, _place) = engine(&tiny(DType::Q4_0), &folder);
    assert!(broken.generate(Request::raw("a").max_tokens(2)).is_ok());
    standin.set("fail_launch", 3);
    let error = broken.generate(Request::raw("a").max_tokens(2)).unwrap_err();
    assert!(matches!(error, Error::Engine(EngineError::Device { .. })), "{error}");
    assert!(error.to_string().contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    let again = broken.generate(Request::raw("a").max_tokens(2)).unwrap_err();
    assert!(matches!(again, Error::Engine(EngineError::Device { .. })), "{again}");
    drop(broken);
    // The process goes on: another engine, on a device that works.
    standin.reset();
    let (next, _place) = engine(&tiny(DType::Q4_0), &folder);
    assert!(next.generate(Request::raw("a").max_tokens(2)).is_ok());
}

#[test]
fn a_lost_device_ends_the_engine_and_the_next_one_runs() {
    let (standin, folder) = (standin(), kernels());
    let held = standin.get("allocations");
    for (call, result, name) in [
        ("cuMemcpyDtoHAsync", 214, "CUDA_ERROR_ECC_UNCORRECTABLE"),
        ("cuMemcpyHtoDAsync", 999, "CUDA_ERROR_UNKNOWN"),
        ("cuGraphLaunch", 700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuEventRecord", 719, "CUDA_ERROR_LAUNCH_FAILED"),
    ] {
        let (broken, _place) = engine(&tiny(DType::Q4_0), &folder);
        assert!(broken.generate(Request::raw("a").max_tokens(2)).is_ok());
        standin.fault(call, 2, result);
        for _ in 0..2 {
            let error = broken.generate(Request::raw("a").max_tokens(4)).unwrap_err();
            assert!(matches!(error, Error::Engine(EngineError::Device { .. })), "{call}: {error}");
            assert!(error.to_string().contains(name), "{call}: {error}");
        }
        drop(broken);
        assert_eq!(standin.get("allocations"), held, "{call}");
    }
    let (next, _place) = engine(&tiny(DType::Q4_0), &folder);
    assert!(next.generate(Request::raw("a").max_tokens(2)).is_ok());
}
