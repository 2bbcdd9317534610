//! A checked model file.

use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, cursor::Cursor, error::GgufError, metadata::Metadata, preamble, tensor,
    tensor::TensorInfo,
};
use crate::sys::Mapping;
use rustai_kernels_cpu::{BytesOwner, SharedBytes};
use std::{
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

/// Largest `general.alignment`: a page of the machines with the largest pages.
const MAX_ALIGNMENT: usize = 65_536;

/// A model file whose header has been checked, mapped or in memory. Opening reads the header only; tensor data are
/// brought in by the system when they are first touched.
pub struct GgufFile {
    path: Option<PathBuf>,
    storage: Storage,
    header: Header,
}

/// What the header says.
struct Header {
    version: u32,
    alignment: usize,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Indices of `tensors`, sorted by name.
    by_name: Vec<u32>,
    data_offset: usize,
}

enum Storage {
    /// And the file, with its size and the time of its last change when it was mapped.
    Mapped(Arc<Mapping>, File, (u64, SystemTime)),
    Memory(Arc<Vec<u8>>),
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(mapping, ..) => mapping.bytes(),
            Self::Memory(bytes) => bytes,
        }
    }
}

impl GgufFile {
    /// Maps and checks a file.
    ///
    /// The file must not be shortened while it is open: reading what was cut off ends the process (`SIGBUS`). Replacing it
    /// by renaming another over it is harmless.
    ///
    /// # Errors
    /// [`GgufError`] if the file cannot be read or breaks the format.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        // Asked before opening, because opening a pipe waits for its other end.
        let found = fs::metadata(path).map_err(io)?;
        if !found.is_file() {
            return Err(GgufError::NotAFile { path: path.to_owned() });
        }
        let storage = match found.len() {
            // An empty file cannot be mapped.
            0 => Storage::Memory(Arc::default()),
            _ => {
                let file = File::open(path).map_err(io)?;
                let found = file.metadata().map_err(io)?;
                let stamp = (found.len(), found.modified().map_err(io)?);
                Storage::Mapped(Arc::new(Mapping::new(&file).map_err(io)?), file, stamp)
            }
        };
        let header = Header::read(storage.bytes())?;
        if let Storage::Mapped(mapping, ..) = &storage {
            // All of the header that is needed later was copied.
            mapping.release(0..header.data_offset);
        }
        Ok(Self { path: Some(path.to_owned()), storage, header })
    }

    /// Checks a file that is in memory.
    ///
    /// # Errors
    /// [`GgufError`] if it breaks the format.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        let header = Header::read(&bytes)?;
        Ok(Self { path: None, storage: Storage::Memory(Arc::new(bytes)), header })
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// One tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let Header { tensors, by_name, .. } = &self.header;
        let place = by_name.binary_search_by(|&i| tensors[i as usize].name.as_str().cmp(name)).ok()?;
        Some(&tensors[by_name[place] as usize])
    }

    /// A tensor's bytes, shared with the mapping (no copy).
    ///
    /// # Panics
    /// If `tensor` is not of this file and lies outside it.
    pub fn data(&self, tensor: &TensorInfo) -> SharedBytes {
        let start = self.header.data_offset + tensor.offset;
        let range = start..start + tensor.bytes;
        let data = match &self.storage {
            Storage::Mapped(mapping, ..) => SharedBytes::new(mapping.clone(), range),
            Storage::Memory(bytes) => SharedBytes::new(bytes.clone(), range),
        };
        // PANIC: the range of each of this file's tensors was checked when the file was opened.
        data.expect("a tensor of this file")
    }

    /// The open file, with its size in bytes and the time of its last change when it was opened; `None` if it is in memory.
    pub fn opened(&self) -> Option<(&File, (u64, SystemTime))> {
        match &self.storage {
            Storage::Mapped(_, file, stamp) => Some((file, *stamp)),
            Storage::Memory(_) => None,
        }
    }

    /// Tells the system that a tensor's pages are no longer needed (they were copied). Reading them again is still right.
    ///
    /// # Panics
    /// As [`data`](Self::data).
    pub fn release(&self, tensor: &TensorInfo) {
        self.data(tensor).release();
    }

    /// GGUF version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Alignment of tensor data, in bytes: a power of two.
    pub fn alignment(&self) -> usize {
        self.header.alignment
    }

    /// Where the data section starts, in bytes from the start of the file. Past the end of a file without tensors.
    pub fn data_offset(&self) -> usize {
        self.header.data_offset
    }

    /// Size of the whole file, in bytes.
    pub fn file_size(&self) -> usize {
        self.storage.bytes().len()
    }

    /// The file's path; `None` if it is in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GgufFile")
            .field("path", &self.path)
            .field("version", &self.header.version)
            .field("entries", &self.header.metadata.len())
            .field("tensors", &self.header.tensors.len())
            .field("bytes", &self.file_size())
            .finish()
    }
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(bytes);
        let preamble = preamble::read(bytes, &mut cursor)?;
        let metadata = Metadata::read(&mut cursor, preamble.entries)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = Vec::with_capacity(preamble.tensors);
        let mut offsets = Vec::with_capacity(preamble.tensors);
        for index in 0..preamble.tensors {
            let (tensor, offset) = tensor::read(&mut cursor, index)?;
            tensors.push(tensor);
            offsets.push(offset);
        }
        let data_offset = cursor.at().next_multiple_of(alignment);
        let available = bytes.len().saturating_sub(data_offset);
        for (tensor, offset) in tensors.iter_mut().zip(offsets) {
            tensor::place(tensor, offset, alignment, available)?;
        }
        let by_name = tensor::sorted_index(&tensors, |tensor| &tensor.name)
            .map_err(|twice| GgufError::DuplicateTensor { tensor: tensors[twice].name.clone() })?;
        tensor::check_overlaps(&tensors)?;
        Ok(Self { version: preamble.version, alignment, metadata, tensors, by_name, data_offset })
    }
}

fn alignment(metadata: &Metadata) -> Result<usize, GgufError> {
    let Some(value) = metadata.u64(ALIGNMENT_KEY)? else { return Ok(DEFAULT_ALIGNMENT) };
    match usize::try_from(value) {
        Ok(alignment) if alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&alignment) => Ok(alignment),
        _ => Err(GgufError::Alignment { value }),
    }
}
