//! How a struct of the interface becomes bytes, and how bytes are judged before they become one.
//!
//! Each struct starts with `{u32 size, u32 flags}`. A caller with a newer header may pass a longer struct; what this
//! version does not know must then be zero. The bytes are in the order of the machine: both sides are on one host.

use super::errno::Errno;

/// Where a field lies, for comparison with the C header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldInfo {
    /// Name, the same in C.
    pub name: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Bytes of the field.
    pub size: usize,
}

/// A field's type: integers of fixed width and arrays of them.
pub trait Value: Copy {
    /// All bits zero.
    const ZERO: Self;
    /// Writes the value to the `size_of::<Self>()` bytes of `out`.
    fn put(&self, out: &mut [u8]);
    /// Reads the value from `size_of::<Self>()` bytes.
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! integers {
    ($($ty:ty)*) => {$(
        impl Value for $ty {
            const ZERO: Self = 0;
            fn put(&self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_ne_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                let mut raw = [0; core::mem::size_of::<$ty>()];
                raw.copy_from_slice(bytes);
                <$ty>::from_ne_bytes(raw)
            }
        }
    )*};
}

integers!(u8 u16 u32 u64 i32);

impl<T: Value, const N: usize> Value for [T; N] {
    const ZERO: Self = [T::ZERO; N];
    fn put(&self, out: &mut [u8]) {
        for (value, out) in self.iter().zip(out.chunks_exact_mut(core::mem::size_of::<T>())) {
            value.put(out);
        }
    }
    fn get(bytes: &[u8]) -> Self {
        let mut all = Self::ZERO;
        for (value, bytes) in all.iter_mut().zip(bytes.chunks_exact(core::mem::size_of::<T>())) {
            *value = T::get(bytes);
        }
        all
    }
}

/// A struct of the interface.
pub trait Wire: Copy {
    /// Name of the struct in C.
    const C_NAME: &'static str;
    /// Bytes of this version of the struct.
    const SIZE: usize;
    /// Its fields, in order, without gaps.
    const FIELDS: &'static [FieldInfo];

    /// All fields zero except `size`.
    fn new() -> Self;

    /// The value of the `size` field.
    fn size(&self) -> u32;

    /// Writes the struct to the first [`Self::SIZE`] bytes of `out`; false (and nothing written) if `out` is shorter.
    #[must_use]
    fn write(&self, out: &mut [u8]) -> bool;

    /// Reads the struct from the first [`Self::SIZE`] bytes; `None` if there are fewer.
    fn read(bytes: &[u8]) -> Option<Self>;

    /// Reads what a caller passed, by the rules for versions. `bytes` is what lies there, up to the `size` that the
    /// caller wrote into it.
    ///
    /// # Errors
    /// [`Errno::EINVAL`] if `bytes` or `size` is smaller than this version, or `size` is larger than `bytes`;
    /// [`Errno::E2BIG`] if the unknown tail is not zero.
    fn parse(bytes: &[u8]) -> Result<Self, Errno> {
        let value = Self::read(bytes).ok_or(Errno::EINVAL)?;
        let size = value.size() as usize;
        if size < Self::SIZE {
            return Err(Errno::EINVAL);
        }
        let tail = bytes.get(Self::SIZE..size).ok_or(Errno::EINVAL)?;
        if tail.iter().any(|&byte| byte != 0) {
            return Err(Errno::E2BIG);
        }
        Ok(value)
    }
}

/// Declares a struct of the interface: name in C, size and the offset of each field are stated and proven.
macro_rules! wire {
    (
        $(#[$meta:meta])*
        struct $name:ident($c_name:literal, $size:literal) {
            $($(#[$field_meta:meta])* $offset:literal $field:ident: $ty:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $ty,)*
        }

        const _: () = {
            assert!(core::mem::size_of::<$name>() == $size);
            assert!(core::mem::align_of::<$name>() <= 8);
            assert!(0 $(+ core::mem::size_of::<$ty>())* == $size, "the struct has a gap");
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)*
        };

        impl Wire for $name {
            const C_NAME: &'static str = $c_name;
            const SIZE: usize = $size;
            const FIELDS: &'static [FieldInfo] = &[
                $(FieldInfo { name: stringify!($field), offset: $offset, size: core::mem::size_of::<$ty>() },)*
            ];

            fn new() -> Self {
                let mut value = Self { $($field: <$ty as Value>::ZERO,)* };
                value.size = $size;
                value
            }

            fn size(&self) -> u32 {
                self.size
            }

            fn write(&self, out: &mut [u8]) -> bool {
                let Some(out) = out.get_mut(..$size) else { return false };
                $(self.$field.put(&mut out[$offset..][..core::mem::size_of::<$ty>()]);)*
                true
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                let bytes = bytes.get(..$size)?;
                Some(Self { $($field: <$ty as Value>::get(&bytes[$offset..][..core::mem::size_of::<$ty>()]),)* })
            }
        }

        impl Default for $name {
            fn default() -> Self {
                <Self as Wire>::new()
            }
        }
    };
}

pub(super) use wire;
