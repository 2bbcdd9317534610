//! The tensor table: reading it, and checking it against the file.

use super::{
    cursor::{Cursor, Field},
    error::GgufError,
};
use rustai_abi::DType;

/// A tensor's entry in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, fastest first (GGUF order): `[cols, rows, ..]`.
    pub dims: Vec<usize>,
    /// Bytes of data.
    pub bytes: usize,
    /// Where the data start, in bytes from the start of the data section.
    pub offset: usize,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Byte after the last, from the start of the data section.
    fn end(&self) -> usize {
        self.offset + self.bytes
    }
}

/// Reads one entry. Its offset is not yet checked: that needs the alignment and the end of the table.
pub(super) fn read(cursor: &mut Cursor<'_>, index: usize) -> Result<(TensorInfo, u64), GgufError> {
    let name = cursor.name(Field::TensorName(index as u64))?;
    let at = cursor.at() as u64;
    let rank: u32 = cursor.number(Field::Tensor(&name, "rank"))?;
    if !matches!(rank, 1..=4) {
        return Err(GgufError::Rank { tensor: name, at, rank });
    }
    let at = cursor.at() as u64;
    let mut raw = Vec::with_capacity(4);
    for axis in 0..rank as usize {
        let dim: u64 = cursor.number(Field::Tensor(&name, "dimensions"))?;
        if dim == 0 {
            return Err(GgufError::ZeroDimension { tensor: name, at, axis });
        }
        raw.push(dim);
    }
    let type_at = cursor.at() as u64;
    let dtype = DType::from_gguf_id(cursor.number(Field::Tensor(&name, "type"))?);
    let dtype = dtype.map_err(|source| GgufError::TensorType { tensor: name.clone(), at: type_at, source })?;
    let offset = cursor.number(Field::Tensor(&name, "offset"))?;
    let Some((dims, bytes)) = size(&raw, dtype, &name)? else {
        return Err(GgufError::TooManyElements { tensor: name, at, dims: raw });
    };
    Ok((TensorInfo { name, dtype, dims, bytes, offset: 0 }, offset))
}

/// Dimensions and bytes; `None` if their product overflows what can be addressed.
fn size(raw: &[u64], dtype: DType, name: &str) -> Result<Option<(Vec<usize>, usize)>, GgufError> {
    let dims: Option<Vec<usize>> = raw.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let Some(dims) = dims else { return Ok(None) };
    let (cols, block) = (dims[0], dtype.block_len());
    if !cols.is_multiple_of(block) {
        return Err(GgufError::PartialBlock { tensor: name.to_owned(), dtype, cols, block });
    }
    let elements = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let bytes = elements.and_then(|elements| dtype.bytes_for(elements)).filter(|&bytes| bytes <= isize::MAX as usize);
    Ok(bytes.map(|bytes| (dims, bytes)))
}

/// Sets and checks the offset of a tensor in a data section of `available` bytes.
pub(super) fn place(tensor: &mut TensorInfo, offset: u64, alignment: usize, available: usize) -> Result<(), GgufError> {
    if !offset.is_multiple_of(alignment as u64) {
        return Err(GgufError::Misaligned { tensor: tensor.name.clone(), offset, alignment });
    }
    let fits = |start: usize| start.checked_add(tensor.bytes).is_some_and(|end| end <= available);
    match usize::try_from(offset) {
        Ok(start) if fits(start) => {
            tensor.offset = start;
            Ok(())
        }
        _ => Err(GgufError::PastTheEnd { tensor: tensor.name.clone(), offset, bytes: tensor.bytes, available }),
    }
}

/// Checks that no two tensors share a byte.
pub(super) fn check_overlaps(tensors: &[TensorInfo]) -> Result<(), GgufError> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if first.end() > second.offset {
            return Err(GgufError::Overlap {
                first: first.name.clone(),
                second: second.name.clone(),
                offset: second.offset as u64,
            });
        }
    }
    Ok(())
}

/// The indices of `items` sorted by name, or the index of one whose name occurs twice.
pub(super) fn sorted_index<T>(items: &[T], name: impl Fn(&T) -> &String) -> Result<Vec<u32>, usize> {
    let mut order: Vec<u32> = (0..items.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| name(&items[a as usize]).cmp(name(&items[b as usize])));
    let twice = order.windows(2).find(|pair| name(&items[pair[0] as usize]) == name(&items[pair[1] as usize]));
    match twice {
        Some(pair) => Err(pair[0] as usize),
        None => Ok(order),
    }
}
