//! What runs where, and what memory it takes.

use super::{file, kernels, load, options, standin, tiny};
use rustai::{
    DType,
    backend::{BuildError, DeviceChoice, cuda},
    model::{self, LoadError, LoadOptions},
};
use rustai_tests::TinyLlama;

#[test]
fn memory_decides_how_many_layers_run_on_the_gpu() {
    let (standin, folder) = (standin(), kernels());
    let file = file(&TinyLlama { tied: false, ..tiny(DType::F32) });
    let plan = |device, layers| model::fit(&file, &LoadOptions { gpu_layers: layers, ..options(device, &folder) });
    let whole = plan(DeviceChoice::Auto, None).unwrap();
    let (info, part) = whole.gpu.as_ref().expect("the stand-in has a device");
    assert_eq!((part.layers, &info.name[..], whole.cpu), (3, "emulated device", None));
    assert!(whole.reason.contains("fits"), "{}", whole.reason);
    let (all, memory, reserve) = (part.memory.total(), part.memory, part.reserve);
    assert!(memory.cache > 0 && memory.activations > 0 && memory.weights > 0, "{memory:?}");

    // What is foreseen is what is taken, but for rounding.
    let held = standin.get("allocated");
    let loaded = load(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap();
    let taken = (standin.get("allocated") - held) as u64;
    assert!(taken <= all + 4096 && taken + 4096 >= all, "{taken} of {all}");
    drop(loaded);
    assert_eq!(standin.get("allocated"), held);

    standin.set("memory", held + (reserve + all - 1) as i64);
    let most = plan(DeviceChoice::Auto, None).unwrap();
    let part = most.gpu.as_ref().unwrap().1;
    assert!(part.layers < 3 && part.layers > 0 && most.cpu.unwrap().layers == 3 - part.layers, "{most}");
    assert!(most.reason.contains("most layers that fit"), "{}", most.reason);
    let model = load(&file, &options(DeviceChoice::Auto, &folder)).unwrap();
    assert!(model.describe().contains("layers there"), "{}", model.describe());
    drop(model);

    let refused = plan(DeviceChoice::Auto, Some(3));
    let on_cpu = refused.expect("without a GPU asked for by name, the CPU serves");
    assert!(
        on_cpu.gpu.is_none() && on_cpu.reason.contains("device memory are needed for 3 layers"),
        "{}",
        on_cpu.reason
    );
    let error = plan(DeviceChoice::Cuda(0), Some(3)).unwrap_err();
    assert!(matches!(error, LoadError::Build(BuildError::OutOfDeviceMemory { layers: 3, .. })), "{error}");

    standin.set("memory", held + reserve as i64);
    let on_cpu = plan(DeviceChoice::Auto, None).unwrap();
    assert!(on_cpu.gpu.is_none() && on_cpu.cpu.unwrap().layers == 3, "{on_cpu}");
    assert!(plan(DeviceChoice::Cuda(0), None).is_err());
}

/// Where steps may have so many tokens that they multiply activations in `f16`, these lie where those in 8 bits do otherwise.
#[test]
fn memory_for_activations_in_f16_is_foreseen() {
    let (standin, folder) = (standin(), kernels());
    let file = file(&tiny(DType::Q4_0));
    let activations = [64, 65].map(|max_batch| {
        let options = LoadOptions { max_batch, ..options(DeviceChoice::Cuda(0), &folder) };
        let memory = model::fit(&file, &options).unwrap().gpu.unwrap().1.memory;
        let (held, maps) = (standin.get("allocated"), standin.get("tensor_maps"));
        let loaded = load(&file, &options).unwrap();
        let taken = (standin.get("allocated") - held) as u64;
        let all = memory.total();
        assert!(taken <= all + 4096 && taken + 4096 >= all, "{taken} of {all}");
        assert_eq!(standin.get("tensor_maps") > maps, max_batch == 65);
        drop(loaded);
        memory.activations
    });
    // At least the widest of them.
    assert!(activations[1] > activations[0] + 64 * 256 / 2, "{activations:?}");
}

#[test]
fn page_locked_memory_is_foreseen() {
    let (standin, folder) = (standin(), kernels());
    let one_layer = TinyLlama { width: 64, feed_forward: 64, heads: 1, kv_heads: 1, layers: 1, ..tiny(DType::F16) };
    // Where steps are small, the staging of weights takes most.
    for (model, max_sequences, max_batch) in [(&one_layer, 1, 48), (&one_layer, 1024, 1024), (&tiny(DType::F32), 1, 48)]
    {
        let file = file(model);
        for gpu_layers in [None, Some(2)] {
            let options =
                LoadOptions { max_sequences, max_batch, gpu_layers, ..options(DeviceChoice::Cuda(0), &folder) };
            let foreseen = model::fit(&file, &options).unwrap().gpu.unwrap().1.page_locked;
            standin.reset();
            let held = standin.get("host_most");
            drop(load(&file, &options).unwrap());
            let taken = (standin.get("host_most") - held) as u64;
            assert!(taken <= foreseen + 4096 && taken + 4096 >= foreseen, "{taken} of {foreseen}");
            assert!((max_sequences > 1) == (foreseen > 16 << 20), "{foreseen}");
        }
    }
}

#[test]
fn what_has_no_kernel_runs_on_the_cpu_unless_the_gpu_was_asked_for() {
    let (_standin, folder) = (standin(), kernels());
    let narrow_heads = TinyLlama { heads: 16, ..TinyLlama::default() };
    let no_kernels = TinyLlama { dtype: DType::IQ2_XXS, embedding_dtype: Some(DType::F16), ..tiny(DType::F16) };
    for (model, reason) in [(narrow_heads, "heads of 4 values"), (no_kernels, "IQ2_XXS")] {
        let file = file(&model);
        let auto = model::fit(&file, &options(DeviceChoice::Auto, &folder)).unwrap();
        assert!(auto.gpu.is_none() && auto.reason.contains(reason), "{}", auto.reason);
        let error = model::fit(&file, &options(DeviceChoice::Cuda(0), &folder)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn devices_that_are_not_there_are_named() {
    let (standin, folder) = (standin(), kernels());
    assert_eq!(cuda::devices().unwrap().len(), 1);
    let file = file(&tiny(DType::F16));
    let error = |device| model::fit(&file, &options(device, &folder)).map(|_| ()).unwrap_err().to_string();
    assert!(error(DeviceChoice::Cuda(1)).contains("there is no CUDA device 1; the host has 1"));
    standin.set("init", 802);
    assert!(error(DeviceChoice::Cuda(0)).contains("CUDA_ERROR_SYSTEM_NOT_READY") && cuda::devices().is_err());
    standin.reset();
    standin.set("devices", 2);
    let second = model::fit(&file, &options(DeviceChoice::Cuda(1), &folder)).unwrap();
    assert_eq!(second.gpu.unwrap().0.ordinal, 1);
    assert_eq!(model::fit(&file, &options(DeviceChoice::Auto, &folder)).unwrap().gpu.unwrap().0.ordinal, 0);
    standin.set("devices", 0);
    assert!(error(DeviceChoice::Cuda(0)).contains("finds no device"));
    let auto = model::fit(&file, &options(DeviceChoice::Auto, &folder)).unwrap();
    assert!(auto.gpu.is_none() && auto.reason.contains("finds no device"), "{}", auto.reason);
}
