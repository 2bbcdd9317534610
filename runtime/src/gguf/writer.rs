//! Writing GGUF files: header first, then each tensor's data in the order in which the tensors were declared, so that no
//! more than one tensor need be in memory.

use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT,
    value::{Array, Value},
};
use rustai_abi::DType;
use std::{
    collections::HashSet,
    io::{self, Write},
};

/// Why a file cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are named in the messages, which say what they are")]
pub enum WriteError {
    /// The sink failed.
    #[error("cannot write the GGUF file: {0}")]
    Io(#[from] io::Error),
    /// A version other than 2 or 3.
    #[error("GGUF version {0} cannot be written, only 2 and 3 can")]
    Version(u32),
    /// `general.alignment` is not a u32 power of two from 8 to 65,536.
    #[error("{ALIGNMENT_KEY} is {0}, not a u32 power of two from 8 to 65536")]
    Alignment(Value),
    /// A key that is set twice.
    #[error("the metadata key {0:?} is set twice")]
    DuplicateKey(String),
    /// A tensor that is declared twice.
    #[error("the tensor {0:?} is declared twice")]
    DuplicateTensor(String),
    /// Dimensions that a file cannot hold.
    #[error("tensor {name:?} cannot have dimensions {dims:?}: 1 to 4 are needed, none zero, rows in blocks of {dtype}")]
    Dimensions { name: String, dims: Vec<usize>, dtype: DType },
    /// Data of the wrong size.
    #[error("tensor {name:?} has {expected} bytes, but {found} were given")]
    DataSize { name: String, expected: usize, found: usize },
    /// More data than declared tensors, or fewer.
    #[error("data for {found} tensors were given, but {declared} are declared")]
    DataCount { declared: usize, found: usize },
}

#[derive(Debug)]
struct Declared {
    name: String,
    dtype: DType,
    dims: Vec<usize>,
    bytes: usize,
}

/// The header of a file to be written.
///
/// ```
/// use rustai::{DType, gguf::{GgufFile, GgufWriter}};
///
/// let mut writer = GgufWriter::new();
/// writer.set("general.architecture", "llama").tensor("w", DType::F32, &[2, 1])?;
/// let bytes = writer.to_bytes([[0u8; 8]])?;
/// assert_eq!(GgufFile::from_bytes(bytes)?.tensor("w").unwrap().dims, [2, 1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct GgufWriter {
    version: u32,
    entries: Vec<(String, Value)>,
    tensors: Vec<Declared>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufWriter {
    /// A version 3 file with neither metadata nor tensors.
    pub fn new() -> Self {
        Self { version: 3, entries: Vec::new(), tensors: Vec::new() }
    }

    /// Sets the version: 2 or 3. The two differ in the number only.
    pub fn version(&mut self, version: u32) -> &mut Self {
        self.version = version;
        self
    }

    /// Adds a metadata entry. `general.alignment` also sets the alignment of the data.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        self.entries.push((key.into(), value.into()));
        self
    }

    /// Declares a tensor; its data are written later, in the order of declaration. `dims` are fastest first.
    ///
    /// # Errors
    /// [`WriteError::Dimensions`].
    pub fn tensor(&mut self, name: impl Into<String>, dtype: DType, dims: &[usize]) -> Result<&mut Self, WriteError> {
        let (name, dims) = (name.into(), dims.to_vec());
        let rows_in_blocks = dims.first().is_some_and(|cols| cols.is_multiple_of(dtype.block_len()));
        let elements = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        let bytes = elements.filter(|&elements| elements > 0).and_then(|elements| dtype.bytes_for(elements));
        match bytes {
            Some(bytes) if rows_in_blocks && dims.len() <= 4 => {
                self.tensors.push(Declared { name, dtype, dims, bytes });
                Ok(self)
            }
            _ => Err(WriteError::Dimensions { name, dims, dtype }),
        }
    }

    /// Writes the header to `sink` and returns what takes the tensors' data.
    ///
    /// # Errors
    /// [`WriteError`]; nothing has been written unless it is [`WriteError::Io`].
    pub fn begin<W: Write>(&self, mut sink: W) -> Result<TensorWriter<'_, W>, WriteError> {
        let (header, alignment) = self.header()?;
        sink.write_all(&header)?;
        Ok(TensorWriter { sink, alignment, tensors: &self.tensors, written: 0, part: 0 })
    }

    /// The whole file in memory; `data` yields each tensor's bytes in the order of declaration.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn to_bytes<D: AsRef<[u8]>>(&self, data: impl IntoIterator<Item = D>) -> Result<Vec<u8>, WriteError> {
        let mut bytes = Vec::new();
        let mut writer = self.begin(&mut bytes)?;
        for tensor in data {
            writer.write(tensor.as_ref())?;
        }
        writer.finish()?;
        Ok(bytes)
    }

    /// The header, padded to the alignment, and the alignment.
    fn header(&self) -> Result<(Vec<u8>, usize), WriteError> {
        if !matches!(self.version, 2 | 3) {
            return Err(WriteError::Version(self.version));
        }
        if let Some(key) = first_twice(self.entries.iter().map(|entry| entry.0.as_str())) {
            return Err(WriteError::DuplicateKey(key.to_owned()));
        }
        if let Some(name) = first_twice(self.tensors.iter().map(|tensor| tensor.name.as_str())) {
            return Err(WriteError::DuplicateTensor(name.to_owned()));
        }
        let alignment = self.alignment()?;
        let mut out = Vec::new();
        out.extend(b"GGUF");
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            put_string(key, &mut out);
            out.extend(value.value_type().id().to_le_bytes());
            put_value(value, &mut out);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_string(&tensor.name, &mut out);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
            out.extend(tensor.dtype.gguf_id().to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.next_multiple_of(alignment);
        }
        out.resize(out.len().next_multiple_of(alignment), 0);
        Ok((out, alignment))
    }

    fn alignment(&self) -> Result<usize, WriteError> {
        match self.entries.iter().find(|entry| entry.0 == ALIGNMENT_KEY) {
            None => Ok(DEFAULT_ALIGNMENT),
            Some((_, Value::U32(value))) if value.is_power_of_two() && (8..=65_536).contains(value) => {
                Ok(*value as usize)
            }
            Some((_, value)) => Err(WriteError::Alignment(value.clone())),
        }
    }
}

/// Takes the data of the declared tensors, one after the other.
pub struct TensorWriter<'a, W> {
    sink: W,
    alignment: usize,
    tensors: &'a [Declared],
    /// Tensors that are complete.
    written: usize,
    /// Bytes of the next one that are written.
    part: usize,
}

impl<'a, W: Write> TensorWriter<'a, W> {
    /// Writes the next tensor's data, and padding up to the alignment.
    ///
    /// # Errors
    /// [`WriteError::DataSize`] and [`WriteError::DataCount`] (nothing has been written then), [`WriteError::Io`].
    pub fn write(&mut self, data: &[u8]) -> Result<(), WriteError> {
        let tensor = self.expected()?;
        if self.part + data.len() != tensor.bytes {
            return Err(WriteError::DataSize { name: tensor.name.clone(), expected: tensor.bytes, found: data.len() });
        }
        self.write_part(data)
    }

    /// Writes some of the next tensor's data; after its last byte the padding up to the alignment.
    ///
    /// # Errors
    /// As [`write`](Self::write), [`WriteError::DataSize`] if there is more than the tensor holds.
    pub fn write_part(&mut self, data: &[u8]) -> Result<(), WriteError> {
        let tensor = self.expected()?;
        let end = self.part + data.len();
        if end > tensor.bytes {
            return Err(WriteError::DataSize { name: tensor.name.clone(), expected: tensor.bytes, found: end });
        }
        self.sink.write_all(data)?;
        self.part = end;
        if end == tensor.bytes {
            let padding = end.next_multiple_of(self.alignment) - end;
            io::copy(&mut io::Read::take(io::repeat(0), padding as u64), &mut self.sink)?;
            (self.written, self.part) = (self.written + 1, 0);
        }
        Ok(())
    }

    /// The tensor whose data come next.
    fn expected(&self) -> Result<&'a Declared, WriteError> {
        let too_many = WriteError::DataCount { declared: self.tensors.len(), found: self.written + 1 };
        self.tensors.get(self.written).ok_or(too_many)
    }

    /// Ends the file: checks that all tensors were written, flushes, and returns the sink.
    ///
    /// # Errors
    /// [`WriteError::DataCount`], [`WriteError::Io`].
    pub fn finish(mut self) -> Result<W, WriteError> {
        if self.written != self.tensors.len() {
            return Err(WriteError::DataCount { declared: self.tensors.len(), found: self.written });
        }
        self.sink.flush()?;
        Ok(self.sink)
    }
}

fn first_twice<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = HashSet::new();
    names.find(|name| !seen.insert(*name))
}

fn put_string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(v) => put_string(v, out),
        Value::Array(v) => put_array(v, out),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(array: &Array, out: &mut Vec<u8>) {
    out.extend(array.item_type().id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(items) => out.extend(items),
        Array::I8(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::U16(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::I16(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::U32(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::I32(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::F32(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::Bool(items) => out.extend(items.iter().map(|&item| u8::from(item))),
        Array::String(items) => items.iter().for_each(|item| put_string(item, out)),
        Array::Array(items) => items.iter().for_each(|item| put_array(item, out)),
        Array::U64(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::I64(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
        Array::F64(items) => items.iter().for_each(|item| out.extend(item.to_le_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::GgufFile, *};

    /// One value of each type, one array of each type, and a nested array.
    fn every_type() -> GgufWriter {
        let mut writer = GgufWriter::new();
        writer
            .set("u8", 200u8)
            .set("i8", -100i8)
            .set("u16", 60_000u16)
            .set("i16", -30_000i16)
            .set("u32", 4_000_000_000u32)
            .set("i32", -2_000_000_000)
            .set("f32", 0.1f32)
            .set("bool", true)
            .set("string", "grüße")
            .set("u64", u64::MAX)
            .set("i64", i64::MIN)
            .set("f64", 0.1f64)
            .set("empty", Vec::<u32>::new())
            .set("u8s", vec![1u8, 2])
            .set("i8s", vec![-1i8])
            .set("u16s", vec![3u16])
            .set("i16s", vec![-3i16])
            .set("u32s", vec![4u32])
            .set("i32s", vec![-4i32])
            .set("f32s", vec![0.5f32, f32::INFINITY])
            .set("bools", vec![true, false])
            .set("strings", vec!["a", "", "ü"])
            .set("u64s", vec![5u64])
            .set("i64s", vec![-5i64])
            .set("f64s", vec![0.25f64])
            .set("nested", Array::Array(vec![Array::U8(vec![1]), Array::Array(vec![Array::String(["x"].into())])]));
        writer
    }

    #[test]
    fn what_is_written_is_read_back_in_both_versions() {
        for version in [2, 3] {
            let mut writer = every_type();
            writer.version(version).set(ALIGNMENT_KEY, 64u32);
            writer.tensor("a", DType::F32, &[3, 2]).unwrap().tensor("b", DType::Q8_0, &[32, 1, 1, 2]).unwrap();
            let (a, b): (Vec<u8>, Vec<u8>) = ((0..24).collect(), (0..68).collect());
            let bytes = writer.to_bytes([&a, &b]).unwrap();
            let mut pieces = writer.begin(Vec::new()).unwrap();
            for piece in [&a[..7], &a[7..], &b[..64], &b[64..]] {
                pieces.write_part(piece).unwrap();
            }
            assert_eq!(pieces.finish().unwrap(), bytes);
            let file = GgufFile::from_bytes(bytes).unwrap();
            assert_eq!((file.version(), file.alignment()), (version, 64));
            assert_eq!(
                file.metadata().iter().map(|(k, v)| (k.to_owned(), v.clone())).collect::<Vec<_>>(),
                writer.entries
            );
            assert_eq!(file.tensors().iter().map(|t| (t.offset, t.bytes)).collect::<Vec<_>>(), [(0, 24), (64, 68)]);
            assert_eq!(*file.data(file.tensor("a").unwrap()), a);
            assert_eq!(*file.data(file.tensor("b").unwrap()), b);
            assert_eq!(file.file_size(), file.data_offset() + 64 + 128);
        }
    }

    #[test]
    fn mistakes_of_the_caller_are_errors() {
        let mut writer = GgufWriter::new();
        for dims in [&[][..], &[0], &[32, 0], &[33], &[32, 1, 1, 1, 1], &[1 << 40, 1 << 40]] {
            assert!(matches!(writer.tensor("t", DType::Q8_0, dims), Err(WriteError::Dimensions { .. })), "{dims:?}");
        }
        writer.tensor("t", DType::F32, &[1]).unwrap();
        assert!(matches!(writer.to_bytes([[0u8; 5]]), Err(WriteError::DataSize { expected: 4, found: 5, .. })));
        assert!(matches!(writer.to_bytes([[0u8; 4]; 2]), Err(WriteError::DataCount { declared: 1, found: 2 })));
        assert!(matches!(writer.to_bytes([[0u8; 4]; 0]), Err(WriteError::DataCount { declared: 1, found: 0 })));
        let mut data = writer.begin(io::sink()).unwrap();
        data.write_part(&[0; 3]).unwrap();
        assert!(matches!(data.write_part(&[0; 2]), Err(WriteError::DataSize { expected: 4, found: 5, .. })));
        assert!(matches!(data.finish(), Err(WriteError::DataCount { declared: 1, found: 0 })));
        writer.tensor("t", DType::F32, &[1]).unwrap();
        assert!(matches!(writer.to_bytes([[0u8; 4]; 2]), Err(WriteError::DuplicateTensor(name)) if name == "t"));
        assert!(matches!(GgufWriter::new().version(1).begin(io::sink()), Err(WriteError::Version(1))));
        let mut writer = GgufWriter::new();
        writer.set(ALIGNMENT_KEY, 48u32);
        assert!(matches!(writer.begin(io::sink()), Err(WriteError::Alignment(_))));
        writer.set(ALIGNMENT_KEY, 64u32);
        assert!(matches!(writer.begin(io::sink()), Err(WriteError::DuplicateKey(_))));
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut writer = GgufWriter::new();
        writer.tensor("t", DType::F32, &[1]).unwrap();
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert!(matches!(writer.begin(full), Err(WriteError::Io(e)) if e.kind() == io::ErrorKind::StorageFull));
    }
}
