//! A word of the file, of one row or of four rows side by side.

#[cfg(target_arch = "aarch64")]
use neon as four;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use plain as four;
#[cfg(target_arch = "x86_64")]
use sse2 as four;

/// The same word of one or more rows, and the operations that packing needs; shifts are by less than 32.
pub(crate) trait Column<const R: usize>: Copy {
    fn splat(word: u32) -> Self;
    /// The word at byte `at` of the blocks.
    fn one(blocks: [&[u8]; R], at: usize) -> Self;
    /// The four words from byte `at` on.
    fn four(blocks: [&[u8]; R], at: usize) -> [Self; 4];
    fn and(self, mask: u32) -> Self;
    fn or(self, other: Self) -> Self;
    fn xor(self, mask: u32) -> Self;
    fn shl(self, by: u32) -> Self;
    fn shr(self, by: u32) -> Self;
}

impl Column<1> for u32 {
    #[inline(always)]
    fn splat(word: u32) -> Self {
        word
    }

    #[inline(always)]
    fn one([block]: [&[u8]; 1], at: usize) -> Self {
        Self::from_le_bytes(*bytes_of(block, at))
    }

    #[inline(always)]
    fn four(block: [&[u8]; 1], at: usize) -> [Self; 4] {
        [Self::one(block, at), Self::one(block, at + 4), Self::one(block, at + 8), Self::one(block, at + 12)]
    }

    #[inline(always)]
    fn and(self, mask: u32) -> Self {
        self & mask
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        self | other
    }

    #[inline(always)]
    fn xor(self, mask: u32) -> Self {
        self ^ mask
    }

    #[inline(always)]
    fn shl(self, by: u32) -> Self {
        self << by
    }

    #[inline(always)]
    fn shr(self, by: u32) -> Self {
        self >> by
    }
}

/// `N` bytes from `at` on.
#[inline(always)]
fn bytes_of<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("the bytes lie in the block")
}

/// A word of four rows in one register.
#[derive(Clone, Copy)]
pub struct Four(four::Words);

impl Four {
    /// The words of the rows, one after the other.
    #[inline(always)]
    pub(super) fn to_le_bytes(self) -> [u8; 16] {
        four::to_le_bytes(self.0)
    }

    /// Byte `i` of all sixteen rows of four columns is array `i`.
    #[inline(always)]
    pub(super) fn bytes([a, b, c, d]: [Self; 4]) -> [[u8; 16]; 4] {
        four::bytes([a.0, b.0, c.0, d.0])
    }
}

impl Column<4> for Four {
    #[inline(always)]
    fn splat(word: u32) -> Self {
        Self(four::from_words([word; 4]))
    }

    #[inline(always)]
    fn one([a, b, c, d]: [&[u8]; 4], at: usize) -> Self {
        Self(four::from_words([u32::one([a], at), u32::one([b], at), u32::one([c], at), u32::one([d], at)]))
    }

    #[inline(always)]
    fn four([a, b, c, d]: [&[u8]; 4], at: usize) -> [Self; 4] {
        let [a, b, c, d] = four::columns([bytes_of(a, at), bytes_of(b, at), bytes_of(c, at), bytes_of(d, at)]);
        [Self(a), Self(b), Self(c), Self(d)]
    }

    #[inline(always)]
    fn and(self, mask: u32) -> Self {
        Self(four::and(self.0, Self::splat(mask).0))
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        Self(four::or(self.0, other.0))
    }

    #[inline(always)]
    fn xor(self, mask: u32) -> Self {
        Self(four::xor(self.0, Self::splat(mask).0))
    }

    #[inline(always)]
    fn shl(self, by: u32) -> Self {
        Self(four::shl(self.0, by))
    }

    #[inline(always)]
    fn shr(self, by: u32) -> Self {
        Self(four::shr(self.0, by))
    }
}

/// [`Four`] in one register.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod register {
    #[cfg(target_arch = "aarch64")]
    pub(super) use std::arch::aarch64::uint32x4_t as Words;
    #[cfg(target_arch = "x86_64")]
    pub(super) use std::arch::x86_64::__m128i as Words;
    use std::mem::transmute;

    #[inline(always)]
    pub(super) fn from_words(words: [u32; 4]) -> Words {
        // SAFETY: both are sixteen bytes of any contents.
        unsafe { transmute(words) }
    }

    #[inline(always)]
    pub(super) fn to_le_bytes(words: Words) -> [u8; 16] {
        // SAFETY: as above; the processor is little-endian.
        unsafe { transmute(words) }
    }
}

/// [`Four`] with the instructions of every x86-64.
///
/// SAFETY of the whole module: every x86-64 has SSE2.
#[cfg(target_arch = "x86_64")]
mod sse2 {
    pub(super) use super::register::*;
    use std::arch::x86_64::*;

    #[inline(always)]
    pub(super) fn and(a: Words, b: Words) -> Words {
        // SAFETY: see the head of the module.
        unsafe { _mm_and_si128(a, b) }
    }

    #[inline(always)]
    pub(super) fn or(a: Words, b: Words) -> Words {
        // SAFETY: see the head of the module.
        unsafe { _mm_or_si128(a, b) }
    }

    #[inline(always)]
    pub(super) fn xor(a: Words, b: Words) -> Words {
        // SAFETY: see the head of the module.
        unsafe { _mm_xor_si128(a, b) }
    }

    #[inline(always)]
    pub(super) fn shl(a: Words, by: u32) -> Words {
        // SAFETY: see the head of the module.
        unsafe { _mm_sll_epi32(a, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    pub(super) fn shr(a: Words, by: u32) -> Words {
        // SAFETY: see the head of the module.
        unsafe { _mm_srl_epi32(a, _mm_cvtsi32_si128(by as i32)) }
    }

    /// Word `i` of row `r` becomes word `r` of column `i`.
    #[inline(always)]
    pub(super) fn columns(rows: [&[u8; 16]; 4]) -> [Words; 4] {
        // SAFETY: see the head of the module; each load is of an array of sixteen bytes.
        unsafe {
            let [a, b, c, d] = rows.map(|row| _mm_loadu_si128(row.as_ptr().cast()));
            let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
            [
                _mm_unpacklo_epi64(ab, cd),
                _mm_unpackhi_epi64(ab, cd),
                _mm_unpacklo_epi64(ab_high, cd_high),
                _mm_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    pub(super) fn bytes([a, b, c, d]: [Words; 4]) -> [[u8; 16]; 4] {
        let lowest = from_words([0xff; 4]);
        let byte = |by| {
            let [a, b, c, d] = [a, b, c, d].map(|words| and(shr(words, by), lowest));
            // SAFETY: see the head of the module.
            to_le_bytes(unsafe { _mm_packus_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d)) })
        };
        [byte(0), byte(8), byte(16), byte(24)]
    }
}

/// [`Four`] with the instructions of every AArch64.
///
/// SAFETY of the whole module: every AArch64 has NEON, and registers hold any bytes.
#[cfg(target_arch = "aarch64")]
mod neon {
    pub(super) use super::register::*;
    use std::{arch::aarch64::*, mem::transmute};

    #[inline(always)]
    pub(super) fn and(a: Words, b: Words) -> Words {
        // SAFETY: see the head of the module.
        unsafe { vandq_u32(a, b) }
    }

    #[inline(always)]
    pub(super) fn or(a: Words, b: Words) -> Words {
        // SAFETY: see the head of the module.
        unsafe { vorrq_u32(a, b) }
    }

    #[inline(always)]
    pub(super) fn xor(a: Words, b: Words) -> Words {
        // SAFETY: see the head of the module.
        unsafe { veorq_u32(a, b) }
    }

    #[inline(always)]
    pub(super) fn shl(a: Words, by: u32) -> Words {
        // SAFETY: see the head of the module.
        unsafe { vshlq_u32(a, vdupq_n_s32(by as i32)) }
    }

    #[inline(always)]
    pub(super) fn shr(a: Words, by: u32) -> Words {
        // SAFETY: see the head of the module.
        unsafe { vshlq_u32(a, vdupq_n_s32(-(by as i32))) }
    }

    /// Word `i` of row `r` becomes word `r` of column `i`.
    #[inline(always)]
    pub(super) fn columns(rows: [&[u8; 16]; 4]) -> [Words; 4] {
        // SAFETY: see the head of the module; each load is of an array of sixteen bytes.
        unsafe {
            let [a, b, c, d] = rows.map(|row| vreinterpretq_u32_u8(vld1q_u8(row.as_ptr())));
            let (ac, bd) = (vzip1q_u32(a, c), vzip1q_u32(b, d));
            let (ac_high, bd_high) = (vzip2q_u32(a, c), vzip2q_u32(b, d));
            [vzip1q_u32(ac, bd), vzip2q_u32(ac, bd), vzip1q_u32(ac_high, bd_high), vzip2q_u32(ac_high, bd_high)]
        }
    }

    #[inline(always)]
    pub(super) fn bytes(columns: [Words; 4]) -> [[u8; 16]; 4] {
        // SAFETY: see the head of the module.
        unsafe {
            let [a, b, c, d] = columns.map(|words| vreinterpretq_u8_u32(words));
            let (even, odd) = ([vuzp1q_u8(a, b), vuzp1q_u8(c, d)], [vuzp2q_u8(a, b), vuzp2q_u8(c, d)]);
            transmute([
                vuzp1q_u8(even[0], even[1]),
                vuzp1q_u8(odd[0], odd[1]),
                vuzp2q_u8(even[0], even[1]),
                vuzp2q_u8(odd[0], odd[1]),
            ])
        }
    }
}

/// [`Four`] as four words.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod plain {
    use std::array::from_fn;

    pub(super) type Words = [u32; 4];

    pub(super) fn from_words(words: [u32; 4]) -> Words {
        words
    }

    pub(super) fn to_le_bytes(words: Words) -> [u8; 16] {
        from_fn(|i| words[i / 4].to_le_bytes()[i % 4])
    }

    pub(super) fn and(a: Words, b: Words) -> Words {
        from_fn(|r| a[r] & b[r])
    }

    pub(super) fn or(a: Words, b: Words) -> Words {
        from_fn(|r| a[r] | b[r])
    }

    pub(super) fn xor(a: Words, b: Words) -> Words {
        from_fn(|r| a[r] ^ b[r])
    }

    pub(super) fn shl(a: Words, by: u32) -> Words {
        a.map(|word| word << by)
    }

    pub(super) fn shr(a: Words, by: u32) -> Words {
        a.map(|word| word >> by)
    }

    /// Word `i` of row `r` becomes word `r` of column `i`.
    pub(super) fn columns(rows: [&[u8; 16]; 4]) -> [Words; 4] {
        let rows = rows.map(|row| row.as_chunks().0);
        from_fn(|i| from_fn(|r| u32::from_le_bytes(rows[r][i])))
    }

    pub(super) fn bytes(columns: [Words; 4]) -> [[u8; 16]; 4] {
        from_fn(|i| from_fn(|r| columns[r / 4][r % 4].to_le_bytes()[i]))
    }
}
