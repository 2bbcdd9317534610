//! Damaged and hostile GGUF files: each gives a typed error that names what is wrong, or is harmless; none makes the
//! reader panic, hang or take much memory.

use cap::Cap;
use rustai::gguf::{Array, GgufError, GgufFile, GgufWriter, Value};
use rustai_abi::{DType, UnknownDType};
use rustai_tests::{Rng, TinyLlama};
use std::{alloc::System, fs::File, io::Write, path::Path};

/// No test here has reason to take more than this, whatever a file claims: a larger allocation ends the test program.
#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, 64 << 20);

/// A header, written byte by byte so that it may lie.
struct Raw {
    version: u32,
    tensors: Vec<Vec<u8>>,
    entries: Vec<Vec<u8>>,
    data: usize,
}

impl Raw {
    fn new() -> Self {
        Self { version: 3, tensors: Vec::new(), entries: Vec::new(), data: 0 }
    }

    /// A metadata entry: its value is `bytes`, said to be of type `id`.
    fn entry(mut self, key: &str, id: u32, bytes: &[u8]) -> Self {
        self.entries.push([&string(key)[..], &id.to_le_bytes(), bytes].concat());
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], id: u32, offset: u64) -> Self {
        let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        let rank = dims.len() as u32;
        let parts = [&string(name)[..], &rank.to_le_bytes(), &dims_bytes, &id.to_le_bytes(), &offset.to_le_bytes()];
        self.tensors.push(parts.concat());
        self
    }

    /// Bytes behind the header.
    fn data(mut self, bytes: usize) -> Self {
        self.data = bytes;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = preamble(self.version, self.tensors.len() as u64, self.entries.len() as u64);
        out.extend(self.entries.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(32) + self.data, 0);
        out
    }

    /// What the reader says of it.
    fn error(&self) -> GgufError {
        refused(self.bytes())
    }
}

fn preamble(version: u32, tensors: u64, entries: u64) -> Vec<u8> {
    [&b"GGUF"[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn refused(bytes: Vec<u8>) -> GgufError {
    let error = GgufFile::from_bytes(bytes).expect_err("a file that must be refused");
    assert!(
        ["damaged", "again", "name a", "newer", "pull", "convert", "unpack", "address"]
            .iter()
            .any(|remedy| error.to_string().contains(remedy)),
        "no remedy: {error}"
    );
    error
}

/// Asserts that an error is of a kind, and that its message holds some words.
macro_rules! assert_refused {
    ($error:expr, $pattern:pat, $($words:expr),*) => {{
        let error = $error;
        let text = error.to_string();
        assert!(matches!(error, $pattern), "{error:?}");
        $(assert!(text.contains($words), "{text:?} lacks {:?}", $words);)*
    }};
}

/// A small file with something of everything, and where its header ends.
fn sample() -> (Vec<u8>, usize) {
    let mut writer = GgufWriter::new();
    writer
        .set("general.architecture", "llama")
        .set("general.alignment", 32u32)
        .set("u64", 1u64 << 40)
        .set("f32", 0.5f32)
        .set("yes", true)
        .set("strings", vec!["a", "", "ü"])
        .set("i32s", vec![1, 2, 3])
        .set("nested", Array::Array(vec![Array::U8(vec![1, 2]), Array::Bool(vec![true])]));
    writer.tensor("a", DType::F32, &[8, 2]).unwrap().tensor("b", DType::Q8_0, &[32, 1, 1, 1]).unwrap();
    let bytes = writer.to_bytes([vec![1; 64], vec![2; 34]]).unwrap();
    let header = GgufFile::from_bytes(bytes.clone()).unwrap().data_offset();
    (bytes, header)
}

#[test]
fn other_files_are_told_apart() {
    for (start, words) in [
        (&b""[..], "the file is empty"),
        (b"GGU", "GGU"),
        (b"\x7fELF........", r"\x7fELF"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "safetensors"),
        (b"PK\x03\x04......", "zip"),
        (b"tjgg\x03\x00\x00\x00", "before GGUF"),
        (b"FUGG\x03\x00\x00\x00", "FUGG"),
    ] {
        assert_refused!(refused(start.to_vec()), GgufError::NotGguf { .. }, words);
    }
}

#[test]
fn paths_that_are_no_files_are_told_apart() {
    let open = |path: &Path| GgufFile::open(path).unwrap_err();
    let folder = tempfile::tempdir().unwrap();
    assert_refused!(open(folder.path()), GgufError::NotAFile { .. }, "not a regular file");
    assert_refused!(open(Path::new("/dev/zero")), GgufError::NotAFile { .. }, "/dev/zero");
    let missing = folder.path().join("none.gguf");
    assert_refused!(open(&missing), GgufError::Io { .. }, "none.gguf");
    File::create(&missing).unwrap();
    assert_refused!(open(&missing), GgufError::NotGguf { .. }, "empty");
}

#[test]
fn other_versions_are_refused() {
    for version in [0, 1, 4, 1000, u32::MAX] {
        let raw = Raw { version, ..Raw::new() };
        assert_refused!(raw.error(), GgufError::Version { .. }, &version.to_string(), "byte 4");
    }
    for version in [2u32, 3] {
        let raw = Raw { version: version.swap_bytes(), ..Raw::new() };
        assert_refused!(raw.error(), GgufError::BigEndian { .. }, "big-endian", &version.to_string());
        GgufFile::from_bytes(Raw { version, ..Raw::new() }.bytes()).unwrap();
    }
}

#[test]
fn a_cut_at_any_byte_is_refused_and_named() {
    let (bytes, header) = sample();
    // What follows the last tensor's last byte is padding.
    let end = header + 64 + 34;
    for len in 0..end {
        let error = refused(bytes[..len].to_vec());
        match error {
            GgufError::NotGguf { .. } if len < 4 => {}
            GgufError::Truncated { at, need, left, .. } => {
                assert_eq!(at + left, len as u64);
                assert!(need > left);
            }
            GgufError::Count { count, most, .. } => assert!(count > most),
            GgufError::PastTheEnd { tensor, .. } => assert!(len >= header - 32 && (tensor == "a" || tensor == "b")),
            other => panic!("cut at {len}: {other:?}"),
        }
    }
    GgufFile::from_bytes(bytes[..end].to_vec()).unwrap();
}

#[test]
fn a_cut_of_a_whole_model_is_refused_in_every_section() {
    let bytes = TinyLlama::of(DType::Q8_0).bytes();
    for len in (0..bytes.len() - 32).step_by(61) {
        refused(bytes[..len].to_vec());
    }
}

#[test]
fn a_changed_byte_is_harmless_or_refused() {
    let (bytes, header) = sample();
    for at in 0..header {
        for change in [|b: u8| b ^ 1, |b: u8| b ^ 0x80, |b: u8| b.wrapping_add(1), |_| 0, |_| 0xff, |_| 9, |b: u8| !b] {
            let mut changed = bytes.clone();
            changed[at] = change(changed[at]);
            use_everything(changed);
        }
    }
}

#[test]
fn random_damage_is_harmless_or_refused() {
    let (small, header) = sample();
    let large = TinyLlama::of(DType::Q4_0).bytes();
    let large_header = GgufFile::from_bytes(large.clone()).unwrap().data_offset();
    let mut rng = Rng::new(11);
    for (bytes, header, rounds) in [(small, header, 20_000), (large, large_header, 2_000)] {
        for _ in 0..rounds {
            let mut damaged = bytes.clone();
            for _ in 0..=rng.below(4) {
                let at = rng.below(header);
                match rng.below(4) {
                    0 => damaged[at] = rng.bits() as u8,
                    1 => damaged[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
                    2 => drop(damaged.drain(at..(at + 1 + rng.below(16)).min(bytes.len() - 64))),
                    _ => damaged.splice(at..at, (0..rng.below(16)).map(|i| i as u8)).for_each(drop),
                }
            }
            use_everything(damaged);
        }
    }
}

/// Reads a file that may be damaged; if it is accepted, everything that it promises must be there.
fn use_everything(bytes: Vec<u8>) {
    let size = bytes.len();
    let file = match GgufFile::from_bytes(bytes) {
        Ok(file) => file,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for tensor in file.tensors() {
        assert_eq!(file.data(tensor).len(), tensor.bytes);
        assert_eq!(file.tensor(&tensor.name), Some(tensor));
        file.release(tensor);
    }
    for (key, value) in file.metadata().iter() {
        assert_eq!(file.metadata().get(key).map(Value::value_type), Some(value.value_type()));
        assert!(value.to_string().len() <= 16 * size);
    }
}

#[test]
fn a_tensor_past_the_end_is_refused() {
    let raw = |offset| Raw::new().tensor("w", &[8], 0, offset).data(64);
    GgufFile::from_bytes(raw(32).bytes()).unwrap();
    for offset in [64, 96, 1 << 40, u64::MAX - 31] {
        let words = ["\"w\"".to_owned(), offset.to_string(), "only 64".into()];
        assert_refused!(raw(offset).error(), GgufError::PastTheEnd { .. }, &words[0], &words[1], &words[2]);
    }
    // A header that ends before the data section would begin.
    let mut bytes = Raw::new().tensor("w", &[1], 0, 0).bytes();
    bytes.truncate(24 + 9 + 4 + 8 + 4 + 8);
    assert_refused!(refused(bytes), GgufError::PastTheEnd { available: 0, .. }, "truncated");
}

#[test]
fn overlapping_tensors_are_refused() {
    let raw = |second| Raw::new().tensor("u", &[16], 0, 0).tensor("v", &[8], 0, second).data(128);
    GgufFile::from_bytes(raw(64).bytes()).unwrap();
    for offset in [0, 32] {
        assert_refused!(raw(offset).error(), GgufError::Overlap { .. }, "\"u\"", "\"v\"");
    }
}

#[test]
fn misaligned_tensors_are_refused() {
    for offset in [1, 4, 31, 33] {
        let raw = Raw::new().tensor("w", &[1], 0, offset).data(128);
        assert_refused!(raw.error(), GgufError::Misaligned { .. }, "\"w\"", &offset.to_string(), "32");
    }
}

#[test]
fn removed_and_unassigned_types_are_refused_by_name() {
    for (id, name) in [(4, "Q4_2"), (5, "Q4_3"), (31, "Q4_0_4_4"), (33, "Q4_0_8_8"), (36, "IQ4_NL_4_4")] {
        let error = Raw::new().tensor("w", &[32], id, 0).data(128).error();
        assert_refused!(
            error,
            GgufError::TensorType { source: UnknownDType::Removed { .. }, .. },
            name,
            "removed",
            "\"w\""
        );
    }
    for id in [43, 1000, u32::MAX] {
        let error = Raw::new().tensor("w", &[32], id, 0).data(128).error();
        assert_refused!(
            error,
            GgufError::TensorType { source: UnknownDType::Unassigned { .. }, .. },
            &id.to_string(),
            "\"w\""
        );
    }
}

#[test]
fn names_that_occur_twice_are_refused() {
    let raw = Raw::new().entry("k", 0, &[1]).entry("j", 0, &[1]).entry("k", 0, &[2]);
    assert_refused!(raw.error(), GgufError::DuplicateKey { .. }, "\"k\"", "twice");
    let raw = Raw::new().tensor("w", &[1], 0, 0).tensor("w", &[1], 0, 32).data(64);
    assert_refused!(raw.error(), GgufError::DuplicateTensor { .. }, "\"w\"", "twice");
}

#[test]
fn absurd_counts_are_refused_before_memory_is_taken() {
    for count in [2, 1 << 20, 1 << 40, u64::MAX] {
        let fill = [0; 24];
        let bytes = |tensors, entries| [&preamble(3, tensors, entries)[..], &fill].concat();
        assert_refused!(refused(bytes(count, 0)), GgufError::Count { .. }, "number of tensors", &count.to_string());
        assert_refused!(refused(bytes(0, count)), GgufError::Count { .. }, "metadata entries", &count.to_string());
        let length = count.to_le_bytes();
        let raw = Raw::new().entry("text", 8, &[&length[..], b"x"].concat());
        let mut cut = raw.bytes();
        cut.truncate(24 + 8 + 4 + 4 + 8 + 1);
        assert_refused!(refused(cut), GgufError::Truncated { .. }, "\"text\"", &count.to_string());
    }
    for id in 0..=12u32 {
        for count in [1 << 30, 1 << 61, i64::MAX as u64, u64::MAX] {
            let array = [&id.to_le_bytes()[..], &count.to_le_bytes(), &[0; 64]].concat();
            let error = Raw::new().entry("list", 9, &array).error();
            assert_refused!(error, GgufError::Count { .. }, "\"list\"", &count.to_string());
        }
    }
}

#[test]
fn a_huge_file_of_holes_takes_no_memory() {
    // 64 GiB of zeros that take no space: an array of empty strings that the file does hold.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let array = [&8u32.to_le_bytes()[..], &(1u64 << 32).to_le_bytes()].concat();
    file.write_all(&Raw::new().entry("list", 9, &array).bytes()).unwrap();
    file.as_file().set_len(64 << 30).unwrap();
    let error = GgufFile::open(file.path()).unwrap_err();
    assert_refused!(error, GgufError::HeaderTooLarge { .. }, "\"list\"");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&preamble(3, 1 << 30, 0)).unwrap();
    file.as_file().set_len(64 << 30).unwrap();
    let error = GgufFile::open(file.path()).unwrap_err();
    assert_refused!(error, GgufError::HeaderTooLarge { .. }, "number of tensors");
}

#[test]
fn deep_arrays_are_refused() {
    // GGUF has no references, so nothing can be cyclic; what comes closest is nesting without end.
    let nested = |depth: usize| {
        let level = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
        let innermost = [&0u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[7]].concat();
        [level.repeat(depth - 1), innermost].concat()
    };
    GgufFile::from_bytes(Raw::new().entry("deep", 9, &nested(8)).bytes()).unwrap();
    for depth in [9, 100_000] {
        let error = Raw::new().entry("deep", 9, &nested(depth)).error();
        assert_refused!(error, GgufError::NestedTooDeep { .. }, "\"deep\"", "8");
    }
}

#[test]
fn wrong_dimensions_are_refused() {
    let error = |dims: &[u64], id| Raw::new().tensor("w", dims, id, 0).data(64).error();
    assert_refused!(error(&[], 0), GgufError::Rank { rank: 0, .. }, "\"w\"", "1 to 4");
    assert_refused!(error(&[1; 5], 0), GgufError::Rank { rank: 5, .. }, "\"w\"");
    assert_refused!(error(&[4, 0], 0), GgufError::ZeroDimension { axis: 1, .. }, "\"w\"");
    for dims in [&[u64::MAX][..], &[1 << 62], &[1 << 32, 1 << 32], &[1 << 16; 4], &[u64::MAX, u64::MAX, 2, 3]] {
        assert_refused!(error(dims, 0), GgufError::TooManyElements { .. }, "\"w\"", "absurd");
    }
    // 48 elements are a block and a half, also where two rows would fill whole blocks.
    assert_refused!(error(&[48, 2], 2), GgufError::PartialBlock { .. }, "\"w\"", "Q4_0", "48", "32");
    assert_refused!(error(&[128, 2], 12), GgufError::PartialBlock { .. }, "Q4_K", "256");
}

#[test]
fn wrong_alignments_are_refused() {
    for alignment in [0u32, 1, 4, 24, 48, 1 << 17, u32::MAX] {
        let raw = Raw::new().entry("general.alignment", 4, &alignment.to_le_bytes());
        assert_refused!(raw.error(), GgufError::Alignment { .. }, "power of two", &alignment.to_string());
    }
    let raw = Raw::new().entry("general.alignment", 8, &string("32"));
    assert_refused!(raw.error(), GgufError::WrongType { .. }, "general.alignment", "string");
}

#[test]
fn wrong_values_are_refused() {
    assert_refused!(Raw::new().entry("k", 13, &[]).error(), GgufError::ValueTypeId { id: 13, .. }, "\"k\"");
    assert_refused!(Raw::new().entry("k", 7, &[2]).error(), GgufError::Bool { value: 2, .. }, "\"k\"");
    let bools = [&7u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[1, 3]].concat();
    assert_refused!(Raw::new().entry("k", 9, &bools).error(), GgufError::Bool { value: 3, .. }, "\"k\"");
    let text = [&2u64.to_le_bytes()[..], &[0xc3, 0x28]].concat();
    assert_refused!(Raw::new().entry("k", 8, &text).error(), GgufError::Utf8 { .. }, "\"k\"", "UTF-8");
    let long = "x".repeat(65_536);
    assert_refused!(Raw::new().entry(&long, 0, &[1]).error(), GgufError::NameTooLong { .. }, "65536");
    assert_refused!(Raw::new().tensor(&long, &[1], 0, 0).error(), GgufError::NameTooLong { .. }, "tensor 0");
}

/// The fuzz target's seeds: small files that reach every part of the reader, and some that it refuses late.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let (sample, header) = sample();
    let mut old = Raw { version: 2, ..Raw::new() }.entry("k", 12, &0.5f64.to_le_bytes());
    old = old.tensor("w", &[2, 2, 2, 2], 0, 0).data(64);
    let aligned = Raw::new().entry("general.alignment", 4, &64u32.to_le_bytes()).tensor("w", &[1], 0, 64).data(128);
    let quantized = Raw::new().tensor("a", &[256], 14, 0).tensor("b", &[64, 3], 2, 224).data(352);
    let overlap = Raw::new().tensor("u", &[16], 0, 0).tensor("v", &[8], 0, 32).data(128);
    vec![
        ("empty-v3", Raw::new().bytes()),
        ("every-part", sample.clone()),
        ("cut-in-data", sample[..header + 70].to_vec()),
        ("cut-in-header", sample[..header / 2].to_vec()),
        ("version-2", old.bytes()),
        ("alignment-64", aligned.bytes()),
        ("quantized", quantized.bytes()),
        ("overlap", overlap.bytes()),
    ]
}

#[test]
fn seeds_of_the_fuzzer_are_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/gguf");
    for (name, bytes) in seeds() {
        let path = folder.join(name);
        if std::env::var_os("RUSTAI_BLESS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap_or_default(), bytes, "{} (RUSTAI_BLESS=1 writes it)", path.display());
    }
    for entry in std::fs::read_dir(&folder).unwrap() {
        use_everything(std::fs::read(entry.unwrap().path()).unwrap());
    }
}
