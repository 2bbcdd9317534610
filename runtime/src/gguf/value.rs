//! Metadata values: the thirteen types of the specification.

use super::Strings;
use std::fmt;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is named for the type that it holds")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array: all elements have one type.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is named for the type of its elements")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Strings),
    /// Inner arrays may differ in type.
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Type of a value, or of an array's elements. The discriminant is the GGUF identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "each variant is its own name")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

/// Evaluates `$body` for whichever variant of an [`Array`] `$array` is, with `$items` bound to its elements.
macro_rules! with_items {
    ($array:expr, $items:ident => $body:expr) => {
        match $array {
            Array::U8($items) => $body,
            Array::I8($items) => $body,
            Array::U16($items) => $body,
            Array::I16($items) => $body,
            Array::U32($items) => $body,
            Array::I32($items) => $body,
            Array::F32($items) => $body,
            Array::Bool($items) => $body,
            Array::String($items) => $body,
            Array::Array($items) => $body,
            Array::U64($items) => $body,
            Array::I64($items) => $body,
            Array::F64($items) => $body,
        }
    };
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type that a GGUF identifier names, if any.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// The GGUF identifier.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Fewest bytes that one value takes in a file.
    pub(super) fn min_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            // The length of an empty string.
            Self::String => 8,
            Self::U64 | Self::I64 | Self::F64 => 8,
            // Element type and count of an empty array.
            Self::Array => 12,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        })
    }
}

impl Value {
    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// The value as an integer, if it is of an integer type.
    pub(super) fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }
}

impl Array {
    /// Type of the elements.
    pub fn item_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        with_items!(self, items => items.len())
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Elements of an array that `{}` shows.
const SHOWN_ITEMS: usize = 6;
/// Bytes of a string that `{}` shows.
const SHOWN_BYTES: usize = 72;

/// One line for people. `{}` shortens long strings and arrays, `{:#}` shows them whole.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(v) => v.fmt(f),
            Self::I8(v) => v.fmt(f),
            Self::U16(v) => v.fmt(f),
            Self::I16(v) => v.fmt(f),
            Self::U32(v) => v.fmt(f),
            Self::I32(v) => v.fmt(f),
            Self::F32(v) => write!(f, "{v:?}"),
            Self::Bool(v) => v.fmt(f),
            Self::String(v) => v.show(f),
            Self::Array(v) => v.fmt(f),
            Self::U64(v) => v.fmt(f),
            Self::I64(v) => v.fmt(f),
            Self::F64(v) => write!(f, "{v:?}"),
        }
    }
}

/// See [`Value`]'s.
impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_items!(self, items => show_items(items.iter(), self.item_type(), f))
    }
}

fn show_items<'a, T: Show + ?Sized + 'a>(
    items: impl ExactSizeIterator<Item = &'a T>,
    item_type: ValueType,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let len = items.len();
    let shown = if f.alternate() { len } else { len.min(SHOWN_ITEMS) };
    f.write_str("[")?;
    for (i, item) in items.take(shown).enumerate() {
        f.write_str(if i == 0 { "" } else { ", " })?;
        item.show(f)?;
    }
    if shown < len {
        // The types of numbers are names without a plural.
        let plural = if matches!(item_type, ValueType::Bool | ValueType::String | ValueType::Array) { "s" } else { "" };
        write!(f, ", ... {len} {item_type}{plural} in all")?;
    }
    f.write_str("]")
}

/// How one element is shown.
trait Show {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

impl Show for str {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() || self.len() <= SHOWN_BYTES {
            return write!(f, "{self:?}");
        }
        write!(f, "{:?}... ({} bytes)", &self[..self.floor_char_boundary(SHOWN_BYTES)], self.len())
    }
}

impl Show for Array {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! plain {
    ($($type:ty)*) => {$(
        impl Show for $type {
            fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Debug writes floats with a decimal point, and other plain values as Display does.
                write!(f, "{self:?}")
            }
        }
    )*};
}
plain!(u8 i8 u16 i16 u32 i32 f32 bool u64 i64 f64);

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<Vec<&str>> for Value {
    fn from(items: Vec<&str>) -> Self {
        Self::Array(Array::String(items.into()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}

impl From<Vec<String>> for Value {
    fn from(items: Vec<String>) -> Self {
        Self::Array(Array::String(items.into()))
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Self::Array(array)
    }
}

macro_rules! conversions {
    ($($variant:ident($type:ty)),*) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        }

        impl From<Vec<$type>> for Value {
            fn from(items: Vec<$type>) -> Self {
                Self::Array(Array::$variant(items))
            }
        }
    )*};
}
conversions!(U8(u8), I8(i8), U16(u16), I16(i16), U32(u32), I32(i32), F32(f32), Bool(bool));
conversions!(U64(u64), I64(i64), F64(f64));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_and_types_agree() {
        for (id, value_type) in ValueType::ALL.into_iter().enumerate() {
            assert_eq!(value_type.id() as usize, id);
            assert_eq!(ValueType::from_id(id as u32), Some(value_type));
        }
        assert_eq!(ValueType::from_id(13), None);
    }

    #[test]
    fn long_values_are_shortened_and_the_alternate_form_is_whole() {
        let long = Value::from((0..100).collect::<Vec<i32>>());
        assert_eq!(long.to_string(), "[0, 1, 2, 3, 4, 5, ... 100 i32 in all]");
        let words = Value::from(vec!["a"; 7]);
        assert!(words.to_string().ends_with("\"a\", ... 7 strings in all]"), "{words}");
        assert!(format!("{long:#}").ends_with("98, 99]"));
        assert_eq!(Value::from(vec![0.5f32, 1.0]).to_string(), "[0.5, 1.0]");
        // A cut inside a two-byte character moves to its start.
        let text = Value::from(format!("a{}", "é".repeat(50)).as_str());
        assert_eq!(text.to_string(), format!("\"a{}\"... (101 bytes)", "é".repeat(35)));
        assert_eq!(Value::from("a\nb").to_string(), r#""a\nb""#);
        let nested = Value::from(Array::Array(vec![Array::U8(vec![1]), Array::String(["x"].into())]));
        assert_eq!(nested.to_string(), r#"[[1], ["x"]]"#);
    }
}
