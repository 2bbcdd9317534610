//! Importance matrices: for each weight matrix, the mean square of the activations that each of its columns meets.
//!
//! Files are llama.cpp's: GGUF with `general.type` = `imatrix` and two tensors per matrix, `NAME.in_sum2` (sums of squares) and
//! `NAME.counts` (rows that were summed); the older `.dat` files are read too. So files interchange with `llama-imatrix` and
//! `llama-quantize` in both directions.

use super::{Output, QuantizeError};
use crate::gguf::{GgufError, GgufFile, GgufWriter, TensorInfo, Value, WriteError};
use rustai_abi::DType;
use std::{collections::BTreeMap, fs, io::Write, path::Path};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// What is known of one weight matrix, or of the matrices of all experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Mean square for each column; the experts' one after the other.
    means: Vec<f32>,
    /// Rows that each expert saw; one number for a plain matrix.
    counts: Vec<f32>,
}

impl Entry {
    /// From sums of squares and the rows that were summed for each matrix. Matrices that saw nothing count all columns
    /// alike. `None` if a number is negative or not finite, or the lengths disagree.
    pub fn new(sums: &[f32], counts: Vec<f32>) -> Option<Self> {
        if counts.is_empty() || sums.is_empty() || !sums.len().is_multiple_of(counts.len()) {
            return None;
        }
        let sound = |value: &f32| value.is_finite() && *value >= 0.0;
        if !sums.iter().chain(&counts).all(sound) {
            return None;
        }
        let matrices = sums.chunks_exact(sums.len() / counts.len()).zip(&counts);
        let mean = |sum: f32, count: f32| if count > 0.0 { sum / count } else { 1.0 };
        let means = matrices.flat_map(|(sums, &count)| sums.iter().map(move |&sum| mean(sum, count))).collect();
        Some(Self { means, counts })
    }

    /// Mean square for each column; the experts' one after the other.
    pub fn means(&self) -> &[f32] {
        &self.means
    }

    /// Rows that each expert saw; one number for a plain matrix.
    pub fn counts(&self) -> &[f32] {
        &self.counts
    }
}

/// An importance matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    entries: BTreeMap<String, Entry>,
    /// Names of the texts that it was gathered on.
    pub datasets: Vec<String>,
    /// Chunks of text.
    pub chunks: u32,
    /// Tokens per chunk; 0 if the file does not tell.
    pub chunk_tokens: u32,
}

impl Imatrix {
    /// Mean square for each column of a tensor.
    pub fn get(&self, tensor: &str) -> Option<&[f32]> {
        self.entries.get(tensor).map(|entry| &entry.means[..])
    }

    /// Matrices that it knows, by name.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Matrices that it knows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds what is known of a matrix.
    pub fn insert(&mut self, tensor: impl Into<String>, entry: Entry) {
        self.entries.insert(tensor.into(), entry);
    }

    /// Reads a file of either form.
    ///
    /// # Errors
    /// [`QuantizeError::Gguf`] if it cannot be read or is damaged, [`QuantizeError::NotAnImatrix`] if it is something else.
    pub fn read(path: &Path) -> Result<Self, QuantizeError> {
        match GgufFile::open(path) {
            Ok(file) => Self::from_gguf(&file),
            Err(GgufError::NotGguf { .. }) => {
                let bytes = fs::read(path).map_err(|source| QuantizeError::Io { path: path.to_owned(), source })?;
                Self::from_legacy(&bytes).ok_or_else(|| not_one("it is neither a GGUF file nor an old .dat file"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a GGUF file that is open already.
    ///
    /// # Errors
    /// [`QuantizeError`].
    pub fn from_gguf(file: &GgufFile) -> Result<Self, QuantizeError> {
        let metadata = file.metadata();
        let mut imatrix = Self {
            entries: BTreeMap::new(),
            datasets: metadata.strings(DATASETS)?.unwrap_or_default().iter().map(str::to_owned).collect(),
            chunks: metadata.u32(CHUNK_COUNT)?.unwrap_or(0),
            chunk_tokens: metadata.u32(CHUNK_SIZE)?.unwrap_or(0),
        };
        for tensor in file.tensors() {
            let Some(name) = tensor.name.strip_suffix(SUMS) else { continue };
            let counts = file.tensor(&format!("{name}{COUNTS}"));
            let counts = counts.ok_or_else(|| not_one(&format!("{name} has sums, but no counts")))?;
            let entry = Entry::new(&floats(file, tensor)?, floats(file, counts)?);
            let entry = entry.ok_or_else(|| not_one(&format!("sums or counts of {name} make no sense")))?;
            imatrix.insert(name, entry);
        }
        match imatrix.is_empty() {
            true => Err(not_one(&format!("no tensor is called *{SUMS}"))),
            false => Ok(imatrix),
        }
    }

    /// The form before GGUF: a count of entries, each with its name, calls and sums, then calls and the text's name.
    fn from_legacy(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut imatrix = Self::default();
        for _ in 0..count(&mut rest)? {
            let name = string(&mut rest)?;
            let (calls, values) = (count(&mut rest)?, count(&mut rest)?);
            let values = take(&mut rest, values.checked_mul(4)?)?;
            let sums: Vec<f32> = values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            imatrix.insert(name, Entry::new(&sums, vec![calls.max(1) as f32])?);
        }
        // The end is missing in the oldest files.
        if let Some(chunks) = count(&mut rest) {
            imatrix.chunks = u32::try_from(chunks).ok()?;
            imatrix.datasets.extend(string(&mut rest));
        }
        (!imatrix.is_empty()).then_some(imatrix)
    }

    /// Writes a GGUF file; it is whole or as it was before.
    ///
    /// # Errors
    /// As [`Output::create`] and [`write_output`](Self::write_output).
    pub fn write(&self, path: &Path) -> Result<(), QuantizeError> {
        self.write_output(Output::create(path, &[])?)
    }

    /// Writes a GGUF file to a place that was taken before.
    ///
    /// # Errors
    /// [`QuantizeError::Output`] if the file cannot be written.
    pub fn write_output(&self, output: Output) -> Result<(), QuantizeError> {
        let bytes = self.to_bytes()?;
        output.fill(|sink| sink.write_all(&bytes).map_err(|error| WriteError::Io(error).into()))
    }

    /// The GGUF file.
    ///
    /// # Errors
    /// [`WriteError`] if a name occurs in it that no file can hold.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WriteError> {
        let mut writer = GgufWriter::new();
        writer.set("general.type", "imatrix");
        writer.set(DATASETS, Value::from(self.datasets.clone()));
        writer.set(CHUNK_COUNT, self.chunks).set(CHUNK_SIZE, self.chunk_tokens);
        let mut data = Vec::with_capacity(2 * self.len());
        for (name, entry) in &self.entries {
            let matrices = entry.counts.len();
            let cols = entry.means.len() / matrices;
            writer.tensor(format!("{name}{SUMS}"), DType::F32, &[cols, matrices])?;
            writer.tensor(format!("{name}{COUNTS}"), DType::F32, &[1, matrices])?;
            let sums = entry.means.chunks_exact(cols).zip(&entry.counts);
            data.push(
                sums.flat_map(|(means, count)| means.iter().map(move |mean| mean * count))
                    .flat_map(f32::to_le_bytes)
                    .collect::<Vec<u8>>(),
            );
            data.push(entry.counts.iter().copied().flat_map(f32::to_le_bytes).collect());
        }
        writer.to_bytes(data)
    }
}

fn not_one(reason: &str) -> QuantizeError {
    QuantizeError::NotAnImatrix { reason: reason.to_owned() }
}

fn floats(file: &GgufFile, tensor: &TensorInfo) -> Result<Vec<f32>, QuantizeError> {
    let floats = crate::graph::read_floats(tensor.dtype, &file.data(tensor), tensor.elements());
    floats.ok_or_else(|| not_one(&format!("{} is {}, not F32", tensor.name, tensor.dtype)))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    rest.split_off(..count)
}

/// A 32-bit count, which is not negative.
fn count(rest: &mut &[u8]) -> Option<usize> {
    let number = i32::from_le_bytes(*take(rest, 4)?.first_chunk()?);
    usize::try_from(number).ok()
}

fn string(rest: &mut &[u8]) -> Option<String> {
    let len = count(rest)?;
    Some(std::str::from_utf8(take(rest, len)?).ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Imatrix {
        let mut imatrix =
            Imatrix { datasets: vec!["wiki.txt".into()], chunks: 3, chunk_tokens: 512, ..Imatrix::default() };
        imatrix.insert("blk.0.attn_q.weight", Entry::new(&[4.0, 8.0, 0.0], vec![2.0]).unwrap());
        imatrix.insert("blk.0.ffn_down_exps.weight", Entry::new(&[4.0, 8.0, 5.0, 5.0], vec![4.0, 0.0]).unwrap());
        imatrix
    }

    #[test]
    fn what_is_written_is_read_back() {
        let file = GgufFile::from_bytes(sample().to_bytes().unwrap()).unwrap();
        assert_eq!(file.metadata().str("general.type").unwrap(), Some("imatrix"));
        assert_eq!(file.tensor("blk.0.ffn_down_exps.weight.in_sum2").unwrap().dims, [2, 2]);
        let read = Imatrix::from_gguf(&file).unwrap();
        assert_eq!(read.get("blk.0.attn_q.weight").unwrap(), [2.0, 4.0, 0.0]);
        // An expert that no token met counts its columns alike.
        assert_eq!(read.get("blk.0.ffn_down_exps.weight").unwrap(), [1.0, 2.0, 1.0, 1.0]);
        assert_eq!(read, sample());
    }

    #[test]
    fn old_files_are_read_and_damaged_ones_refused() {
        let mut bytes = Vec::new();
        let int = |bytes: &mut Vec<u8>, value: i32| bytes.extend(value.to_le_bytes());
        int(&mut bytes, 1);
        int(&mut bytes, 3);
        bytes.extend(b"a.w");
        int(&mut bytes, 2);
        int(&mut bytes, 2);
        [6f32, 0.5].iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        let short = bytes.len();
        int(&mut bytes, 7);
        int(&mut bytes, 4);
        bytes.extend(b"text");
        let read = Imatrix::from_legacy(&bytes).unwrap();
        assert_eq!((read.get("a.w").unwrap(), read.chunks, &read.datasets[0][..]), (&[3.0, 0.25][..], 7, "text"));
        assert!(Imatrix::from_legacy(&bytes[..short]).is_some(), "without its end");
        for cut in 0..short {
            assert!(Imatrix::from_legacy(&bytes[..cut]).is_none(), "{cut}");
        }
        bytes[0..4].copy_from_slice(&(-1i32).to_le_bytes());
        assert!(Imatrix::from_legacy(&bytes).is_none());
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        assert!(Entry::new(&[1.0, f32::NAN], vec![1.0]).is_none());
        assert!(Entry::new(&[1.0, -1.0], vec![1.0]).is_none());
        assert!(Entry::new(&[1.0, 1.0, 1.0], vec![1.0, 1.0]).is_none());
        assert!(Entry::new(&[], vec![]).is_none());
        let model = GgufWriter::new().to_bytes([[0u8; 0]; 0]).unwrap();
        let error = Imatrix::from_gguf(&GgufFile::from_bytes(model).unwrap()).unwrap_err();
        assert!(matches!(error, QuantizeError::NotAnImatrix { .. }), "{error}");
    }
}
