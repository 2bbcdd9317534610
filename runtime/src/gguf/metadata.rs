//! The key/value pairs of a file, and typed lookups in them.

use super::{
    cursor::{Cursor, Field},
    error::GgufError,
    strings::Strings,
    value::{Array, Value},
};

/// The key/value pairs of a file.
///
/// The typed lookups return `None` if the key is absent and an error if its value is of another type. Integers of any
/// width convert if they fit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// In file order.
    entries: Vec<(String, Value)>,
    /// Indices of `entries`, sorted by key.
    by_key: Vec<u32>,
}

impl Metadata {
    /// Reads `count` entries, which the caller has checked and charged.
    pub(super) fn read(cursor: &mut Cursor<'_>, count: usize) -> Result<Self, GgufError> {
        let mut entries = Vec::with_capacity(count);
        for index in 0..count {
            let key = cursor.name(Field::Key(index as u64))?;
            let value = cursor.value(Field::Value(&key))?;
            entries.push((key, value));
        }
        Self::new(entries)
    }

    /// From entries in file order.
    ///
    /// # Errors
    /// [`GgufError::DuplicateKey`].
    pub fn new(entries: Vec<(String, Value)>) -> Result<Self, GgufError> {
        match super::tensor::sorted_index(&entries, |entry| &entry.0) {
            Ok(by_key) => Ok(Self { entries, by_key }),
            Err(twice) => Err(GgufError::DuplicateKey { key: entries[twice].0.clone() }),
        }
    }

    /// All pairs, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key, of whatever type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let place = self.by_key.binary_search_by(|&i| self.entries[i as usize].0.as_str().cmp(key)).ok()?;
        Some(&self.entries[self.by_key[place] as usize].1)
    }

    /// A string.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] if the value is of another type; so for all lookups.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.lookup(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An integer of any width.
    ///
    /// # Errors
    /// [`GgufError::WrongType`]; [`GgufError::OutOfRange`] if it is negative or does not fit.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.integer(key, "an unsigned 32-bit integer")
    }

    /// An integer of any width.
    ///
    /// # Errors
    /// [`GgufError::WrongType`]; [`GgufError::OutOfRange`] if it is negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.integer(key, "an unsigned 64-bit integer")
    }

    /// A float; one of 64 bits is rounded.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.lookup(key, "a float", |value| match *value {
            Value::F32(number) => Some(number),
            Value::F64(number) => Some(number as f32),
            _ => None,
        })
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.lookup(key, "a boolean", |value| match *value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn strings(&self, key: &str) -> Result<Option<&Strings>, GgufError> {
        self.lookup(key, "an array of strings", |value| match value {
            Value::Array(Array::String(items)) => Some(items),
            _ => None,
        })
    }

    /// An array of f32.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.lookup(key, "an array of f32", |value| match value {
            Value::Array(Array::F32(items)) => Some(items.as_slice()),
            _ => None,
        })
    }

    /// An array of i32, or of u32 that fit.
    ///
    /// # Errors
    /// [`GgufError::WrongType`]; [`GgufError::OutOfRange`] for a u32 that does not fit.
    pub fn i32s(&self, key: &str) -> Result<Option<&[i32]>, GgufError> {
        let wanted = "an array of i32";
        if let Some(Value::Array(Array::U32(items))) = self.get(key)
            && let Some(&value) = items.iter().find(|&&item| i32::try_from(item).is_err())
        {
            return Err(GgufError::OutOfRange { key: key.to_owned(), value: value.into(), wanted });
        }
        self.lookup(key, wanted, |value| match value {
            Value::Array(Array::I32(items)) => Some(items.as_slice()),
            // Those that fit have the same bits in both types.
            Value::Array(Array::U32(items)) => Some(bytemuck::cast_slice(items)),
            _ => None,
        })
    }

    fn lookup<'a, T>(
        &'a self,
        key: &str,
        wanted: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(GgufError::WrongType { key: key.to_owned(), found: value.value_type(), wanted }),
        }
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, wanted: &'static str) -> Result<Option<T>, GgufError> {
        let Some(value) = self.lookup(key, wanted, Value::integer)? else { return Ok(None) };
        match T::try_from(value) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(GgufError::OutOfRange { key: key.to_owned(), value, wanted }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(entries: Vec<(&str, Value)>) -> Metadata {
        Metadata::new(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()).unwrap()
    }

    #[test]
    fn integers_of_any_width_convert_if_they_fit() {
        let m = metadata(vec![
            ("b", 7u8.into()),
            ("w", (-3i16).into()),
            ("q", (1u64 << 40).into()),
            ("i", 5i64.into()),
            ("f", 1.5f32.into()),
        ]);
        assert_eq!(m.u32("b").unwrap(), Some(7));
        assert_eq!(m.u64("i").unwrap(), Some(5));
        assert_eq!(m.u64("q").unwrap(), Some(1 << 40));
        assert!(matches!(m.u32("q"), Err(GgufError::OutOfRange { value: 0x100_0000_0000, .. })));
        assert!(matches!(m.u32("w"), Err(GgufError::OutOfRange { value: -3, .. })));
        assert!(matches!(m.u32("f"), Err(GgufError::WrongType { .. })));
        assert_eq!(m.f32("f").unwrap(), Some(1.5));
        assert_eq!(m.u32("absent").unwrap(), None);
    }

    #[test]
    fn arrays_are_typed_and_u32_serves_as_i32_if_it_fits() {
        let m = metadata(vec![
            ("u", vec![1u32, 2].into()),
            ("big", vec![1u32, u32::MAX].into()),
            ("s", vec!["x", "y"].into()),
        ]);
        assert_eq!(m.i32s("u").unwrap(), Some(&[1, 2][..]));
        assert!(matches!(m.i32s("big"), Err(GgufError::OutOfRange { value: 0xffff_ffff, .. })));
        assert!(matches!(m.f32s("u"), Err(GgufError::WrongType { .. })));
        assert_eq!(m.strings("s").unwrap().unwrap().len(), 2);
        assert_eq!(m.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["u", "big", "s"]);
    }

    #[test]
    fn a_key_that_occurs_twice_is_refused() {
        let entries = vec![("k".to_owned(), Value::U8(1)), ("j".to_owned(), 2u8.into()), ("k".to_owned(), 1u8.into())];
        assert!(matches!(Metadata::new(entries), Err(GgufError::DuplicateKey { key }) if key == "k"));
    }
}
