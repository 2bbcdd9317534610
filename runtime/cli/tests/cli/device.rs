//! The program on a GPU: on the stand-in for the driver library, which the system's loader finds in place of a real one.

use super::program::{Rustai, Tiny};
use rustai::DType;
use rustai_tests::TinyLlama;
use std::{os::unix::fs::symlink, path::Path};
use tempfile::TempDir;

/// A host with a GPU.
struct Host {
    folder: TempDir,
    tiny: Tiny,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = rustai_cuda_standin::build(Path::new(env!("CARGO_TARGET_TMPDIR")));
        symlink(library, folder.path().join("libcuda.so")).unwrap();
        std::fs::write(folder.path().join("all.sm_90a.cubin"), b"// the stand-in has all kernels in it\0").unwrap();
        let model = TinyLlama { width: 256, feed_forward: 256, dtype: DType::Q4_0, ..TinyLlama::default() };
        Self { folder, tiny: Tiny::of(&model) }
    }

    fn run(&self, args: &str) -> Rustai {
        let run = self.tiny.run(args).env("LD_LIBRARY_PATH", self.folder.path());
        run.env("RUSTAI_CUDA_KERNELS", self.folder.path())
    }
}

#[test]
fn a_gpu_is_found_named_and_used() {
    let host = Host::new();
    let info = Rustai::line("info --json").env("LD_LIBRARY_PATH", host.folder.path()).json();
    assert_eq!(info["devices"][0]["device"], "cuda:0");
    assert_eq!(info["devices"][0]["name"], "emulated device");
    assert_eq!(info["devices"][0]["compute_capability"], "9.0");

    let fit = host.run("fit --json").json();
    assert_eq!((&fit["layers"], &fit["parts"][0]["device"]), (&2.into(), &"cuda:0".into()), "{fit}");
    assert!(fit["parts"][0]["weights_bytes"].as_u64().unwrap() > 10_000, "{fit}");
    let larger = host.run("fit -s 4 -b 1024 --outputs 64 --json").json();
    for bytes in ["cache_bytes", "activations_bytes"] {
        let of = |fit: &serde_json::Value| fit["parts"][0][bytes].as_u64().unwrap();
        assert!(of(&larger) > of(&fit), "{bytes}: {larger}");
    }
    assert!(larger["parts"][0]["page_locked_bytes"].as_u64().unwrap() >= 16 << 20, "{larger}");
    assert!(larger["parts"][0]["reserve_bytes"].as_u64().unwrap() > 0, "{larger}");
    host.run("fit --batch-size 0").refuses(2, &["--batch-size 0", "at least 1"]);
    let table = host.run("fit --gpu-layers 1").ok();
    assert!(table.contains("cuda:0 (emulated device)") && table.contains("1 of 2"), "{table}");
    assert!(table.contains("Why: 1 of 2 layers were asked for on the GPU."), "{table}");

    let rows = host.run("bench -p 8 -n 2 -r 1 --no-warmup --json").json();
    assert!(rows[0]["backend"].as_str().unwrap().starts_with("CUDA device 0"), "{rows}");
    let table = host.run("bench -p 8 -n 0 -r 1 --no-warmup").ok();
    assert!(table.contains("| cuda:0 "), "{table}");

    let answer =
        |device: &str| host.run("generate --raw -n 4 --temperature 0").arg("--device").arg(device).arg("a").ok();
    assert!(!answer("cuda").is_empty());
    let on_cpu = host.run("bench -p 8 -n 0 -r 1 --no-warmup --json").env("RUSTAI_DEVICE", "cpu").json();
    assert!(on_cpu[0]["backend"].as_str().unwrap().starts_with("CPU"), "{on_cpu}");
}

#[test]
fn kernels_are_measured_beside_the_ceilings_of_the_gpu() {
    let host = Host::new();
    let run = |args: &str| {
        let run = Rustai::line("bench kernels --quick --type Q4_0,IQ2_XXS --model 135m --m 1")
            .env("RUSTAI_CUDA_KERNELS", host.folder.path());
        let run = args.split_whitespace().fold(run, Rustai::arg);
        run.env("LD_LIBRARY_PATH", host.folder.path())
    };
    let report = run("--device cuda --json").json();
    assert_eq!(report["gpu"], "emulated device (compute capability 9.0, 4 multiprocessors)");
    let points = report["points"].as_array().unwrap();
    assert!(points.len() == 2 && points.iter().all(|point| point["type"] == "Q4_0"), "{report}");
    for point in points {
        assert_eq!((&point["isa"], &point["kernel"]), (&"cuda".into(), &"gemv_q4_0_1".into()));
        assert!(
            point["time_ns"].as_f64().unwrap() > 0.0 && point["percent_of_roof"].as_f64().unwrap() > 0.0,
            "{point}"
        );
    }
    run("--device cuda:3").refuses(1, &["there is no CUDA device 3"]);
    run("--device cuda --isa avx2").refuses(2, &["no instruction sets"]);
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let host = Host::new();
    host.run("generate --device cuda:7 a").refuses(1, &["there is no CUDA device 7", "rustai info"]);
    let ended = host.run("generate --device gpu a").run();
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    assert!(ended.err.contains("\"gpu\" is no device; give auto, cpu, cuda or cuda:N"), "{}", ended.err);
    host.run("fit").env("RUSTAI_DEVICE", "tpu").refuses(1, &["RUSTAI_DEVICE", "\"tpu\""]);
    let wrong = host.run("fit --device cuda").env("RUSTAI_CUDA_KERNELS", "/nowhere");
    wrong.refuses(1, &["the folder /nowhere of kernels cannot be read"]);
}

/// On hosts with a driver of their own there is nothing to refuse.
#[test]
fn a_host_without_a_driver_says_so_when_asked_for_a_gpu() {
    let tiny = Tiny::new();
    let info = Rustai::line("info --json").json();
    if info["devices_missing"].is_null() {
        return;
    }
    tiny.run("generate --device cuda a").refuses(1, &["no NVIDIA driver", "--device cpu"]);
    let fit = tiny.run("fit --json").json();
    assert_eq!(fit["parts"][0]["device"], "cpu");
}

#[test]
fn a_gpu_draws_tokens_where_the_flag_asks_for_it() {
    let host = Host::new();
    let tokens = |flags: &str| {
        let answer = host.run(&format!("generate --raw -n 12 --seed 3 --json {flags}")).arg("a").json();
        assert!(answer["tokens"].is_array(), "{answer}");
        answer["tokens"].clone()
    };
    let drawn = tokens("--device cuda --device-sampling");
    assert_eq!(tokens("--device cuda --device-sampling"), drawn);
    assert_ne!(tokens("--device cuda"), drawn, "the GPU has random numbers of its own");
    assert_eq!(tokens("--device cpu --device-sampling"), tokens("--device cpu"));
}
