//! Bounded reading: every step checks what is left before it moves or takes memory.

use super::{
    error::GgufError,
    strings::Strings,
    value::{Array, Value, ValueType},
};
use std::fmt;

/// Most memory that a header (metadata and tensor table) may take. The largest known vocabularies need under 100 MB.
const HEADER_BUDGET: usize = 256 << 20;
/// Deepest nesting of arrays. Known files use one level.
const MAX_DEPTH: usize = 8;
/// Longest key or tensor name: the specification's limit for keys.
const MAX_NAME: u64 = 65_535;

/// What is being read; named in errors.
#[derive(Clone, Copy)]
pub(super) enum Field<'a> {
    /// A field of the preamble.
    Preamble(&'static str),
    /// The key of a metadata entry.
    Key(u64),
    /// The value of a key.
    Value(&'a str),
    /// The name of an entry of the tensor table.
    TensorName(u64),
    /// A field of a named tensor.
    Tensor(&'a str, &'static str),
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preamble(name) => f.write_str(name),
            Self::Key(index) => write!(f, "the key of metadata entry {index}"),
            Self::Value(key) => write!(f, "the value of metadata key {key:?}"),
            Self::TensorName(index) => write!(f, "the name of tensor {index}"),
            Self::Tensor(name, part) => write!(f, "the {part} of tensor {name:?}"),
        }
    }
}

/// A position in the header.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Memory that may still be taken.
    budget: usize,
}

/// A plain little-endian number.
pub(super) trait Number: Sized + Copy {
    /// Its size in the file.
    const BYTES: usize;
    /// From exactly [`Self::BYTES`] bytes.
    fn decode(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($type:ty)*) => {$(
        impl Number for $type {
            const BYTES: usize = size_of::<$type>();

            fn decode(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$type>()];
                array.copy_from_slice(bytes);
                Self::from_le_bytes(array)
            }
        }
    )*};
}
numbers!(u8 i8 u16 i16 u32 i32 f32 u64 i64 f64);

impl<'a> Cursor<'a> {
    /// At the start of a file.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, budget: HEADER_BUDGET }
    }

    /// Byte offset in the file.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `need` bytes.
    fn take(&mut self, need: u64, field: Field<'_>) -> Result<&'a [u8], GgufError> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(need).ok().and_then(|need| rest.get(..need)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(GgufError::Truncated {
                field: field.to_string(),
                at: self.at as u64,
                need,
                left: rest.len() as u64,
            }),
        }
    }

    /// Counts `bytes` of memory that are about to be taken.
    pub(super) fn charge(&mut self, bytes: usize, field: Field<'_>) -> Result<(), GgufError> {
        match self.budget.checked_sub(bytes) {
            Some(budget) => {
                self.budget = budget;
                Ok(())
            }
            None => {
                Err(GgufError::HeaderTooLarge { field: field.to_string(), at: self.at as u64, limit: HEADER_BUDGET })
            }
        }
    }

    /// A number.
    pub(super) fn number<T: Number>(&mut self, field: Field<'_>) -> Result<T, GgufError> {
        Ok(T::decode(self.take(T::BYTES as u64, field)?))
    }

    /// A count of things that take at least `min_bytes` in the file each and `memory` bytes once read.
    pub(super) fn count(&mut self, min_bytes: usize, memory: usize, field: Field<'_>) -> Result<usize, GgufError> {
        let at = self.at as u64;
        let count: u64 = self.number(field)?;
        let most = self.left() / min_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= most => {
                self.charge(count.saturating_mul(memory), field)?;
                Ok(count)
            }
            _ => Err(GgufError::Count {
                field: field.to_string(),
                at,
                count,
                left: self.left() as u64,
                most: most as u64,
            }),
        }
    }

    /// A string.
    pub(super) fn string(&mut self, field: Field<'_>) -> Result<String, GgufError> {
        let len = self.number(field)?;
        let at = self.at as u64;
        let bytes = self.take(len, field)?;
        self.charge(bytes.len(), field)?;
        // Copied first and checked then, so that what was checked cannot change under a mapping.
        String::from_utf8(bytes.to_vec()).map_err(|_| GgufError::Utf8 { field: field.to_string(), at })
    }

    /// A key or a tensor name.
    pub(super) fn name(&mut self, field: Field<'_>) -> Result<String, GgufError> {
        let at = self.at as u64;
        let len: u64 = self.number(field)?;
        // A length that the file cannot hold is a truncation; only one that it could hold is a name too long.
        if len > MAX_NAME && len <= self.left() as u64 {
            return Err(GgufError::NameTooLong { field: field.to_string(), at, len, limit: MAX_NAME });
        }
        self.at = at as usize;
        self.string(field)
    }

    /// A value with its type identifier in front.
    pub(super) fn value(&mut self, field: Field<'_>) -> Result<Value, GgufError> {
        Ok(match self.value_type(field)? {
            ValueType::U8 => Value::U8(self.number(field)?),
            ValueType::I8 => Value::I8(self.number(field)?),
            ValueType::U16 => Value::U16(self.number(field)?),
            ValueType::I16 => Value::I16(self.number(field)?),
            ValueType::U32 => Value::U32(self.number(field)?),
            ValueType::I32 => Value::I32(self.number(field)?),
            ValueType::F32 => Value::F32(self.number(field)?),
            ValueType::Bool => Value::Bool(self.bool(field)?),
            ValueType::String => Value::String(self.string(field)?),
            ValueType::Array => Value::Array(self.array(field, 1)?),
            ValueType::U64 => Value::U64(self.number(field)?),
            ValueType::I64 => Value::I64(self.number(field)?),
            ValueType::F64 => Value::F64(self.number(field)?),
        })
    }

    fn value_type(&mut self, field: Field<'_>) -> Result<ValueType, GgufError> {
        let at = self.at as u64;
        let id = self.number(field)?;
        ValueType::from_id(id).ok_or_else(|| GgufError::ValueTypeId { field: field.to_string(), at, id })
    }

    fn bool(&mut self, field: Field<'_>) -> Result<bool, GgufError> {
        let at = self.at as u64;
        match self.number(field)? {
            0u8 => Ok(false),
            1 => Ok(true),
            value => Err(GgufError::Bool { field: field.to_string(), at, value }),
        }
    }

    /// An array at nesting level `depth` (the outermost is 1).
    fn array(&mut self, field: Field<'_>, depth: usize) -> Result<Array, GgufError> {
        if depth > MAX_DEPTH {
            return Err(GgufError::NestedTooDeep { field: field.to_string(), at: self.at as u64, limit: MAX_DEPTH });
        }
        Ok(match self.value_type(field)? {
            ValueType::U8 => Array::U8(self.numbers(field)?),
            ValueType::I8 => Array::I8(self.numbers(field)?),
            ValueType::U16 => Array::U16(self.numbers(field)?),
            ValueType::I16 => Array::I16(self.numbers(field)?),
            ValueType::U32 => Array::U32(self.numbers(field)?),
            ValueType::I32 => Array::I32(self.numbers(field)?),
            ValueType::F32 => Array::F32(self.numbers(field)?),
            ValueType::Bool => Array::Bool(self.items(ValueType::Bool, field, |cursor| cursor.bool(field))?),
            ValueType::String => Array::String(self.strings(field)?),
            ValueType::Array => {
                Array::Array(self.items(ValueType::Array, field, |cursor| cursor.array(field, depth + 1))?)
            }
            ValueType::U64 => Array::U64(self.numbers(field)?),
            ValueType::I64 => Array::I64(self.numbers(field)?),
            ValueType::F64 => Array::F64(self.numbers(field)?),
        })
    }

    fn numbers<T: Number>(&mut self, field: Field<'_>) -> Result<Vec<T>, GgufError> {
        let count = self.count(T::BYTES, size_of::<T>(), field)?;
        let bytes = self.take((count * T::BYTES) as u64, field)?;
        Ok(bytes.chunks_exact(T::BYTES).map(T::decode).collect())
    }

    fn strings(&mut self, field: Field<'_>) -> Result<Strings, GgufError> {
        let count = self.count(ValueType::String.min_bytes(), size_of::<usize>(), field)?;
        let first = self.at;
        let (mut text, mut ends) = (Vec::new(), Vec::with_capacity(count));
        for _ in 0..count {
            let len = self.number(field)?;
            let bytes = self.take(len, field)?;
            self.charge(bytes.len(), field)?;
            text.extend_from_slice(bytes);
            ends.push(text.len());
        }
        // Copied first and checked then, as a single string is. Each has a length of eight bytes in front.
        Strings::from_parts(text, ends).map_err(|(index, start)| {
            let at = (first + 8 * (index + 1) + start) as u64;
            GgufError::Utf8 { field: field.to_string(), at }
        })
    }

    fn items<T>(
        &mut self,
        item_type: ValueType,
        field: Field<'_>,
        mut read: impl FnMut(&mut Self) -> Result<T, GgufError>,
    ) -> Result<Vec<T>, GgufError> {
        let count = self.count(item_type.min_bytes(), size_of::<T>(), field)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(read(self)?);
        }
        Ok(items)
    }
}
