//! Tensor element types: GGUF identifiers, names and block layouts.
//!
//! Identifiers and block sizes follow the GGUF specification (ggml, `docs/gguf.md`) and the `gguf` package's table of
//! quantization sizes.

use core::fmt;

/// Element type of a tensor. The discriminant is the type's GGUF identifier.
#[allow(non_camel_case_types, reason = "the field writes these names so")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each variant is its own name; `DType::block` gives the layout")]
pub enum DType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

/// Why a GGUF type identifier names no element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownDType {
    /// The identifier once meant this type; the format has since removed it.
    Removed {
        /// The identifier.
        id: u32,
        /// The name that the type had.
        name: &'static str,
    },
    /// No version of the format that this crate knows assigns the identifier.
    Unassigned {
        /// The identifier.
        id: u32,
    },
}

impl fmt::Display for UnknownDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed { id, name } => {
                write!(f, "tensor type {id} ({name}) was removed from the GGUF format; convert the model again")
            }
            Self::Unassigned { id } => {
                write!(f, "tensor type {id} is not known; the file may be newer than this program, or damaged")
            }
        }
    }
}

impl core::error::Error for UnknownDType {}

/// One row per type: name, elements per block, bytes per block.
const TABLE: &[(DType, &str, u32, u32)] = &[
    (DType::F32, "F32", 1, 4),
    (DType::F16, "F16", 1, 2),
    (DType::Q4_0, "Q4_0", 32, 18),
    (DType::Q4_1, "Q4_1", 32, 20),
    (DType::Q5_0, "Q5_0", 32, 22),
    (DType::Q5_1, "Q5_1", 32, 24),
    (DType::Q8_0, "Q8_0", 32, 34),
    (DType::Q8_1, "Q8_1", 32, 36),
    (DType::Q2_K, "Q2_K", 256, 84),
    (DType::Q3_K, "Q3_K", 256, 110),
    (DType::Q4_K, "Q4_K", 256, 144),
    (DType::Q5_K, "Q5_K", 256, 176),
    (DType::Q6_K, "Q6_K", 256, 210),
    (DType::Q8_K, "Q8_K", 256, 292),
    (DType::IQ2_XXS, "IQ2_XXS", 256, 66),
    (DType::IQ2_XS, "IQ2_XS", 256, 74),
    (DType::IQ3_XXS, "IQ3_XXS", 256, 98),
    (DType::IQ1_S, "IQ1_S", 256, 50),
    (DType::IQ4_NL, "IQ4_NL", 32, 18),
    (DType::IQ3_S, "IQ3_S", 256, 110),
    (DType::IQ2_S, "IQ2_S", 256, 82),
    (DType::IQ4_XS, "IQ4_XS", 256, 136),
    (DType::I8, "I8", 1, 1),
    (DType::I16, "I16", 1, 2),
    (DType::I32, "I32", 1, 4),
    (DType::I64, "I64", 1, 8),
    (DType::F64, "F64", 1, 8),
    (DType::IQ1_M, "IQ1_M", 256, 56),
    (DType::BF16, "BF16", 1, 2),
    (DType::TQ1_0, "TQ1_0", 256, 54),
    (DType::TQ2_0, "TQ2_0", 256, 66),
    (DType::MXFP4, "MXFP4", 32, 17),
    (DType::NVFP4, "NVFP4", 64, 36),
    (DType::Q1_0, "Q1_0", 128, 18),
    (DType::Q2_0, "Q2_0", 64, 18),
];

/// Identifiers that earlier versions of the format used.
const REMOVED: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

impl DType {
    /// The type that a GGUF identifier names.
    ///
    /// # Errors
    /// [`UnknownDType`] for an identifier that was removed or never assigned.
    pub fn from_gguf_id(id: u32) -> Result<Self, UnknownDType> {
        if let Some(row) = TABLE.iter().find(|row| row.0 as u32 == id) {
            return Ok(row.0);
        }
        match REMOVED.iter().find(|row| row.0 == id) {
            Some(&(id, name)) => Err(UnknownDType::Removed { id, name }),
            None => Err(UnknownDType::Unassigned { id }),
        }
    }

    /// The identifier that GGUF files use.
    pub const fn gguf_id(self) -> u32 {
        self as u32
    }

    /// All known types, in the order of their identifiers.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// The name that the field uses, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements in one block. Rows are a whole number of blocks.
    pub fn block_len(self) -> usize {
        self.row().2 as usize
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().3 as usize
    }

    /// Bytes of `elements` consecutive elements; `None` if they are no whole number of blocks or the product overflows.
    pub fn bytes_for(self, elements: usize) -> Option<usize> {
        if elements.checked_rem(self.block_len()) != Some(0) {
            return None;
        }
        elements.checked_div(self.block_len())?.checked_mul(self.block_bytes())
    }

    fn row(self) -> &'static (DType, &'static str, u32, u32) {
        // PANIC: a unit test proves that each variant has its row.
        TABLE.iter().find(|row| row.0 == self).expect("every type has a row")
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_known_removed_or_unassigned() {
        for id in 0..=42 {
            match DType::from_gguf_id(id) {
                Ok(dtype) => {
                    assert_eq!(dtype.gguf_id(), id);
                    assert_eq!(dtype.bytes_for(dtype.block_len()), Some(dtype.block_bytes()));
                }
                Err(UnknownDType::Removed { id: got, name }) => {
                    assert_eq!(got, id);
                    assert!(name.starts_with('Q') || name.starts_with("IQ"));
                }
                Err(UnknownDType::Unassigned { .. }) => panic!("{id} has neither a type nor a removed name"),
            }
        }
        assert_eq!(DType::from_gguf_id(43), Err(UnknownDType::Unassigned { id: 43 }));
    }

    #[test]
    fn byte_counts_refuse_partial_blocks_and_overflow() {
        assert_eq!(DType::Q4_0.bytes_for(64), Some(36));
        assert_eq!(DType::Q4_0.bytes_for(33), None);
        assert_eq!(DType::F64.bytes_for(usize::MAX), None);
    }
}
