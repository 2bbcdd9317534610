//! Weights on their way to a device.

use super::{file, kernels, load, logits, options, standin, tiny, tokens};
use rustai::{
    DType,
    backend::{BuildError, DeviceChoice},
    gguf::GgufFile,
    graph::Place,
    model::{self, LoadError, ModelFile},
};
use rustai_tests::{Elsewhere, TinyLlama};
use std::path::Path;

#[test]
fn host_memory_that_cannot_be_locked_is_an_error_and_what_was_taken_comes_back() {
    let (standin, folder) = (standin(), kernels());
    let held = standin.get("allocations");
    standin.set("fail_host_memory", 1);
    let file = file(&tiny(DType::Q4_0));
    let error = load(&file, &options(DeviceChoice::Cuda(0), &folder)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("page-locked host memory"), "{error}");
    assert_eq!(standin.get("allocations"), held);
}

/// A layer whose matrices are read in parts, and a token's logits.
pub(super) fn large_layer(dtype: DType) -> TinyLlama {
    TinyLlama { layers: 1, feed_forward: 3072, ..tiny(dtype) }
}

#[test]
fn weights_are_the_same_from_memory_from_a_mapped_file_and_read_from_a_file() {
    let (_standin, folder) = (standin(), kernels());
    let options = options(DeviceChoice::Cuda(0), &folder);
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::Q4_0, DType::Q6_K] {
        let model = large_layer(dtype);
        let on_disk = GgufFile::open(&model.write(folder.path())).unwrap();
        let run = |file: &dyn ModelFile| {
            let mut states = Vec::new();
            let mut model = model::load(file, &options, &mut |state| states.push(state)).unwrap();
            let total = states[0].total;
            assert!(states.is_sorted_by_key(|state| state.done) && states.iter().all(|state| state.total == total));
            assert_eq!((states[0].done, states.last().unwrap().done), (0, total), "{dtype}");
            logits(&mut *model, &tokens(1), 1).iter().map(|value| value.to_bits()).collect::<Vec<u32>>()
        };
        let expected = run(&file(&model));
        assert!(run(&Elsewhere::mapped(&on_disk)) == expected, "{dtype}, mapped");
        assert!(run(&on_disk) == expected, "{dtype}, read");
    }
}

/// Float weights are read, so what ails their file is an error that names it. Others are mapped.
#[test]
fn reads_that_fail_name_tensor_and_file_and_the_next_load_works() {
    let (standin, folder) = (standin(), kernels());
    let options = options(DeviceChoice::Cuda(0), &folder);
    let load = |file: &dyn ModelFile| model::load(file, &options, &mut |_| {});
    let held = standin.get("allocations");
    let on_disk = GgufFile::open(&large_layer(DType::F16).write(folder.path())).unwrap();
    // The first page of a process is mapped nowhere.
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let found = memory.metadata().unwrap();
    let stamp = (found.len(), found.modified().unwrap());
    let nowhere = Place { file: &memory, path: Path::new("/proc/self/mem"), offset: 0, stamp };
    let fails = |place: &(dyn for<'a> Fn(&str, Place<'a>) -> Option<Place<'a>> + Sync), words: &[&str]| {
        let error = load(&Elsewhere::new(&on_disk, place)).map(|_| ()).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert_eq!(standin.get("allocations"), held);
    };
    let up = "blk.0.ffn_up.weight";
    fails(
        &|name, place| Some(if name == up { Place { offset: u64::from(u32::MAX), ..place } } else { place }),
        &[up, ".gguf", "end of file", "see that the file is whole"],
    );
    fails(
        &|name, place| Some(Place { stamp: (place.stamp.0 + u64::from(name == up), place.stamp.1), ..place }),
        &[".gguf", "has changed", "load it again"],
    );
    let elsewhere = |name: &str, place| Some(if name == up { nowhere } else { place });
    let error = load(&Elsewhere::new(&on_disk, &elsewhere)).map(|_| ()).unwrap_err();
    let LoadError::Build(BuildError::Read { tensor, path, source }) = error else { panic!("{error}") };
    assert_eq!((&tensor[..], path.as_path(), source.raw_os_error()), (up, nowhere.path, Some(5)));
    assert_eq!(standin.get("allocations"), held);
    load(&on_disk).unwrap();
    let quantized = GgufFile::open(&large_layer(DType::Q4_0).write(folder.path())).unwrap();
    load(&Elsewhere::new(&quantized, &elsewhere)).unwrap();
}

#[test]
fn a_file_that_changes_after_it_was_opened_is_not_loaded() {
    let (_standin, folder) = (standin(), kernels());
    let path = large_layer(DType::F16).write(folder.path());
    let open = GgufFile::open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let error = load(&open, &options(DeviceChoice::Cuda(0), &folder)).map(|_| ()).unwrap_err();
    assert!(matches!(&error, LoadError::Build(BuildError::FileChanged { path: named }) if *named == path), "{error}");
}
