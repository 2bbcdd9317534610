//! The first 24 bytes: magic, version, counts.

use super::{
    cursor::{Cursor, Field},
    error::GgufError,
};

/// The counts that the preamble announces, checked against the file's size.
pub(super) struct Preamble {
    pub(super) version: u32,
    pub(super) tensors: usize,
    pub(super) entries: usize,
}

/// Fewest bytes of a tensor's entry: name length, rank, one dimension, type, offset.
const MIN_TENSOR: usize = 8 + 4 + 8 + 4 + 8;
/// Fewest bytes of a metadata entry: key length, value type, a one-byte value.
const MIN_ENTRY: usize = 8 + 4 + 1;
/// Memory that a tensor's entry takes beside its name: the entry, its dimensions, its place in the index.
const TENSOR_MEMORY: usize = size_of::<super::TensorInfo>() + 4 * size_of::<usize>() + size_of::<u32>();
/// Memory that a metadata entry takes beside its key and value's contents.
const ENTRY_MEMORY: usize = size_of::<(String, super::Value)>() + size_of::<u32>();

/// Other files that are taken for models, by how they start.
const OTHER_FILES: &[(&[u8], &str)] = &[
    (b"version https://git-lfs", "it is a Git LFS pointer: fetch the file that it stands for (`git lfs pull`)"),
    (b"<!DOCTYPE", "it is a web page: use the address of the file itself"),
    (b"<html", "it is a web page: use the address of the file itself"),
    (b"lmgg", "it is a ggml file from before GGUF: convert the model again"),
    (b"tjgg", "it is a ggjt file from before GGUF: convert the model again"),
    (b"PK\x03\x04", "it is a zip archive or a PyTorch checkpoint: convert or unpack it"),
    (b"\x1f\x8b", "it is gzip data: unpack it"),
];

pub(super) fn read(bytes: &[u8], cursor: &mut Cursor<'_>) -> Result<Preamble, GgufError> {
    let start = &bytes[..bytes.len().min(4)];
    if start != b"GGUF" {
        return Err(not_gguf(bytes));
    }
    let _magic: u32 = cursor.number(Field::Preamble("the magic"))?;
    let version: u32 = cursor.number(Field::Preamble("the version"))?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 1..=3) => {
            return Err(GgufError::BigEndian { version: version.swap_bytes() });
        }
        _ => return Err(GgufError::Version { version }),
    }
    let tensors = cursor.count(MIN_TENSOR, TENSOR_MEMORY, Field::Preamble("the number of tensors"))?;
    let entries = cursor.count(MIN_ENTRY, ENTRY_MEMORY, Field::Preamble("the number of metadata entries"))?;
    Ok(Preamble { version, tensors, entries })
}

fn not_gguf(bytes: &[u8]) -> GgufError {
    let found = match bytes {
        [] => "nothing (the file is empty)".to_owned(),
        _ => format!("\"{}\"", bytes[..bytes.len().min(4)].escape_ascii()),
    };
    let remedy = match OTHER_FILES.iter().find(|(start, _)| bytes.starts_with(start)) {
        Some((_, remedy)) => remedy,
        // A safetensors file starts with the length of its JSON header.
        None if bytes.get(8) == Some(&b'{') => "it looks like a safetensors file: convert it to GGUF",
        None => "name a .gguf file",
    };
    GgufError::NotGguf { found, remedy }
}
