//! The GGUF reader on arbitrary bytes: it must return, without a panic, and what it accepts must hold.
//!
//! `cargo +nightly fuzz run gguf --fuzz-dir tests/fuzz` (seeds are in `corpus/gguf`; see README.md).
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustai::gguf::{GgufFile, GgufWriter};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = GgufFile::from_bytes(bytes.to_vec()) else { return };
    let mut writer = GgufWriter::new();
    writer.version(file.version());
    let mut data = Vec::new();
    for (key, value) in file.metadata().iter() {
        assert_eq!(file.metadata().get(key).map(|found| found.value_type()), Some(value.value_type()));
        std::hint::black_box(value.to_string());
        writer.set(key, value.clone());
    }
    for tensor in file.tensors() {
        let bytes = file.data(tensor);
        assert_eq!(bytes.len(), tensor.bytes);
        assert_eq!(file.tensor(&tensor.name), Some(tensor));
        writer.tensor(&tensor.name, tensor.dtype, &tensor.dims).expect("what was read can be written");
        data.push(bytes);
    }
    // Alignments of another integer type are read, but not written.
    let Ok(again) = writer.to_bytes(data.iter().map(|bytes| &**bytes)) else { return };
    let again = GgufFile::from_bytes(again).expect("what was written can be read");
    assert_eq!(again.tensors().len(), file.tensors().len());
    assert_eq!(again.metadata().len(), file.metadata().len());
});
