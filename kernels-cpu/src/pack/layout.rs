//! Packed orders: one row of [`LAYOUTS`] for each type that a fast kernel reads.
//!
//! A layout says three things, and kernels are made from these alone: how codes lie in memory, which whole number a code
//! stands for, and how scales are kept.

use super::{
    GROUP,
    column::Four,
    words::{self, Whole, Words},
};
use crate::formats::{iq4_nl, mxfp4};
use rustai_abi::DType;

/// Blocks of 32 columns that may share first-level scales.
pub(crate) const SUPERBLOCK: usize = 8;

/// How the codes of a block of 32 columns and 16 rows lie in 64-byte registers.
///
/// Register by register, bytes `4r .. 4r + 4` belong to row `r`. *Step* `j` means columns `4j .. 4j + 4`, so a step of all
/// rows is one register of bytes, once it is expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// Two registers; bits `2s` of register `i` are step `4i + s`.
    Two,
    /// As [`Two`](Self::Two), then a register whose bit `j` is the third bit of step `j`.
    Three,
    /// Four registers; low nibbles of register `i` are step `i`, high nibbles step `i + 4`.
    Four,
    /// As [`Four`](Self::Four), then a register whose bit `j` is the fifth bit of step `j`.
    Five,
    /// As [`Four`](Self::Four), then the upper two bits as in [`Two`](Self::Two).
    Six,
    /// Eight registers of bytes.
    Eight,
}

/// The whole number that a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// The code less a power of two, or less nothing.
    Offset(u8),
    /// The code is a signed byte.
    Signed,
    /// An entry of a table.
    Table(&'static [i8; 16]),
}

/// How the scales of a group are kept; each line is what belongs to so many columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Per 32: 16 x f16 d.
    Half,
    /// Per 32: 16 x f16 d, 16 x f16 m, which is added.
    HalfWithMin,
    /// Per 32: 16 x E8M0.
    Exponent,
    /// Per 256: 16 x f16 d, then for each 32 columns 16 x i8.
    Runs32,
    /// Per 256: 16 x f16 d, then for each 16 columns 16 x i8.
    Runs16,
    /// Per 256: 16 x f16 d, 16 x f16 dmin, then for each 32 columns 16 x u8 scale, 16 x u8 min, which is subtracted.
    Runs32WithMin,
    /// Per 256: 16 x f16 d, 16 x f16 dmin, then for each 16 columns 16 x (scale in the low nibble, min in the high).
    Runs16WithMin,
}

/// Integer formats and their packed order.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// How codes lie.
    pub codes: Codes,
    /// What a code stands for.
    pub values: Values,
    /// How scales are kept.
    pub scales: Scales,
    /// Where a block of the file has its f16 d, with its m or dmin after that if there is one, or its E8M0.
    pub d_at: usize,
    /// The whole numbers of a block of the file that belong to runs, as bytes: scales, then minima; of
    /// [`Scales::Runs16WithMin`] both in one.
    pub whole_of: fn([&[u8]; 1]) -> Whole,
    /// The same for a block of each of four rows.
    pub(super) whole_of_four: fn([&[u8]; 4]) -> Whole<Four>,
    /// Brings 32 columns of a block of the file, counted by the number, into the order of `codes`.
    pub words_of: fn([&[u8]; 1], usize) -> Words,
    /// The same for a block of each of four rows.
    pub(super) words_of_four: fn([&[u8]; 4], usize) -> Words<Four>,
}

/// A packed order.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
    /// Per column 16 values of so many bytes, as the file has them.
    Plain(usize),
    /// Quantized blocks; kernels multiply 8-bit activations.
    Blocks(Blocks),
}

/// The row of a type of blocks; the last two parts are names of functions of [`words`].
macro_rules! blocks {
    ($codes:expr, $values:expr, $scales:expr, $d_at:expr, $whole:path, $words:path) => {
        Layout::Blocks(Blocks {
            codes: $codes,
            values: $values,
            scales: $scales,
            d_at: $d_at,
            whole_of: $whole,
            whole_of_four: $whole,
            words_of: $words,
            words_of_four: $words,
        })
    };
}

/// The types with a packed order.
pub(crate) const LAYOUTS: [(DType, Layout); 16] = [
    (DType::F32, Layout::Plain(4)),
    (DType::F16, Layout::Plain(2)),
    (DType::BF16, Layout::Plain(2)),
    (DType::Q4_0, blocks!(Codes::Four, Values::Offset(8), Scales::Half, 0, words::no_whole, words::q4_0)),
    (DType::Q4_1, blocks!(Codes::Four, Values::Offset(0), Scales::HalfWithMin, 0, words::no_whole, words::q4_1)),
    (DType::Q5_0, blocks!(Codes::Five, Values::Offset(16), Scales::Half, 0, words::no_whole, words::q5_0)),
    (DType::Q5_1, blocks!(Codes::Five, Values::Offset(0), Scales::HalfWithMin, 0, words::no_whole, words::q5_1)),
    (DType::Q8_0, blocks!(Codes::Eight, Values::Signed, Scales::Half, 0, words::no_whole, words::q8_0)),
    (DType::Q2_K, blocks!(Codes::Two, Values::Offset(0), Scales::Runs16WithMin, 80, words::whole_q2_k, words::q2_k)),
    (DType::Q3_K, blocks!(Codes::Three, Values::Offset(4), Scales::Runs16, 108, words::whole_q3_k, words::q3_k)),
    (DType::Q4_K, blocks!(Codes::Four, Values::Offset(0), Scales::Runs32WithMin, 0, words::whole_k, words::q4_k)),
    (DType::Q5_K, blocks!(Codes::Five, Values::Offset(0), Scales::Runs32WithMin, 0, words::whole_k, words::q5_k)),
    (DType::Q6_K, blocks!(Codes::Six, Values::Offset(32), Scales::Runs16, 208, words::whole_q6_k, words::q6_k)),
    (
        DType::IQ4_NL,
        blocks!(Codes::Four, Values::Table(&iq4_nl::VALUES), Scales::Half, 0, words::no_whole, words::q4_0),
    ),
    (
        DType::IQ4_XS,
        blocks!(Codes::Four, Values::Table(&iq4_nl::VALUES), Scales::Runs32, 0, words::whole_iq4_xs, words::iq4_xs),
    ),
    (
        DType::MXFP4,
        blocks!(Codes::Four, Values::Table(&mxfp4::VALUES), Scales::Exponent, 0, words::no_whole, words::mxfp4),
    ),
];

impl Layout {
    /// The packed order of a type, if it has one.
    pub fn of(dtype: DType) -> Option<Self> {
        LAYOUTS.iter().find(|row| row.0 == dtype).map(|row| row.1)
    }

    /// Whether the layout's kernels multiply 8-bit activations.
    pub(crate) const fn is_integer(self) -> bool {
        matches!(self, Self::Blocks(_))
    }

    /// Bytes of one group of rows of `cols` columns, a multiple of 64.
    pub(crate) const fn group_bytes(self, cols: usize) -> usize {
        self.used_bytes(cols).next_multiple_of(64)
    }

    /// As [`group_bytes`](Self::group_bytes), without the padding at the end.
    pub(crate) const fn used_bytes(self, cols: usize) -> usize {
        match self {
            Self::Plain(size) => cols * size * GROUP,
            Self::Blocks(blocks) => cols / 32 / blocks.scales.blocks() * blocks.bytes(),
        }
    }
}

impl Blocks {
    /// The row of [`LAYOUTS`] for a type of blocks, for kernels to be made from.
    pub(crate) const fn of(dtype: DType) -> Self {
        let mut i = 0;
        while i < LAYOUTS.len() {
            if let (found, Layout::Blocks(blocks)) = LAYOUTS[i]
                && found as u32 == dtype as u32
            {
                return blocks;
            }
            i += 1;
        }
        // PANIC: while compiling, since kernels are made from constants.
        panic!("no such row")
    }

    /// Bytes of a superblock of sixteen rows: its scales, then the codes of its blocks.
    pub(crate) const fn bytes(&self) -> usize {
        self.scales.bytes() + self.scales.blocks() * self.codes.bytes()
    }

    /// Where block `b` of a group lies that begins at `group`.
    #[inline(always)]
    pub(crate) const fn place(&self, group: *const u8, b: usize) -> BlockPlace {
        let index = b % self.scales.blocks();
        let scales = group.wrapping_add(b / self.scales.blocks() * self.bytes());
        BlockPlace { codes: scales.wrapping_add(self.scales.bytes() + index * self.codes.bytes()), scales, index }
    }
}

/// Where a block of sixteen rows lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockPlace {
    /// Its codes.
    pub(crate) codes: *const u8,
    /// The scales of its superblock.
    pub(crate) scales: *const u8,
    /// Which block of the superblock it is.
    pub(crate) index: usize,
}

impl Codes {
    /// Registers of a block: words of a row's part of it.
    pub const fn registers(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Three => 3,
            Self::Four => 4,
            Self::Five => 5,
            Self::Six => 6,
            Self::Eight => 8,
        }
    }

    /// Bytes of a block of sixteen rows.
    pub(crate) const fn bytes(self) -> usize {
        self.registers() * 64
    }

    /// The largest code.
    pub(crate) const fn largest(self) -> i32 {
        match self {
            Self::Two => 3,
            Self::Three => 7,
            Self::Four => 15,
            Self::Five => 31,
            Self::Six => 63,
            Self::Eight => 255,
        }
    }
}

impl Scales {
    /// Bytes of a superblock of sixteen rows.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Half => 32,
            Self::HalfWithMin => 64,
            Self::Exponent => 16,
            Self::Runs32 => 32 + 8 * 16,
            Self::Runs16 => 32 + 16 * 16,
            Self::Runs32WithMin => 64 + 8 * 32,
            Self::Runs16WithMin => 64 + 16 * 16,
        }
    }

    /// Blocks of a superblock: those that share first-level scales, or a block alone.
    pub(crate) const fn blocks(self) -> usize {
        if self.two_level() { SUPERBLOCK } else { 1 }
    }

    /// Where the bytes of sixteen rows lie in a superblock, for whole number `i` of [`Blocks::whole_of`].
    pub(super) const fn place(self, i: usize) -> usize {
        match self {
            Self::Half | Self::HalfWithMin | Self::Exponent => 0,
            Self::Runs32 | Self::Runs16 => 32 + i * GROUP,
            Self::Runs32WithMin => 64 + (i % 8 * 2 + i / 8) * GROUP,
            Self::Runs16WithMin => 64 + i * GROUP,
        }
    }

    /// Whole numbers of [`Blocks::whole_of`].
    pub(super) const fn whole(self) -> usize {
        match self {
            Self::Half | Self::HalfWithMin | Self::Exponent => 0,
            Self::Runs32 => 8,
            Self::Runs16 | Self::Runs32WithMin | Self::Runs16WithMin => 16,
        }
    }

    /// Whether a scale belongs to 16 columns rather than to 32.
    pub const fn halves(self) -> bool {
        matches!(self, Self::Runs16 | Self::Runs16WithMin)
    }

    /// Whether there are minima besides scales.
    pub const fn has_min(self) -> bool {
        matches!(self, Self::HalfWithMin | Self::Runs32WithMin | Self::Runs16WithMin)
    }

    /// Whether scales are products of whole numbers and one `d` for 256 columns.
    pub(crate) const fn two_level(self) -> bool {
        matches!(self, Self::Runs32 | Self::Runs16 | Self::Runs32WithMin | Self::Runs16WithMin)
    }
}

/// A type of blocks, for kernels to be generic over.
pub(crate) trait Packed {
    const DTYPE: DType;
    /// Its row of [`LAYOUTS`].
    const BLOCKS: Blocks = Blocks::of(Self::DTYPE);
}

/// Calls a macro with all types that have integer kernels: the name of the entry point, then the name of the type.
macro_rules! integer_types {
    ($callback:ident) => {
        $callback! {
            q4_0: Q4_0, q4_1: Q4_1, q5_0: Q5_0, q5_1: Q5_1, q8_0: Q8_0, q2_k: Q2_K, q3_k: Q3_K, q4_k: Q4_K, q5_k: Q5_K,
            q6_k: Q6_K, iq4_nl: IQ4_NL, iq4_xs: IQ4_XS, mxfp4: MXFP4
        }
    };
}
pub(crate) use integer_types;

/// One type without values for each of the integer types.
#[allow(non_camel_case_types, reason = "the field writes these names so")]
pub(crate) mod types {
    use super::{DType, Packed};

    macro_rules! declare {
        ($($entry:ident: $name:ident),+) => {
            $(
                pub(crate) struct $name;

                impl Packed for $name {
                    const DTYPE: DType = DType::$name;
                }
            )+
        };
    }
    integer_types!(declare);
}
