//! A word of the file, of one row or of four rows side by side.

/// The same word of one or more rows, and the operations that packing needs; shifts are by less than 32.
pub(crate) trait Column<const R: usize>: Copy {
    fn splat(word: u32) -> Self;
    /// The word at byte `at` of the blocks.
    fn one(blocks: [&[u8]; R], at: usize) -> Self;
    /// The four words from byte `at` on.
    fn four(blocks: [&[u8]; R], at: usize) -> [Self; 4];
    fn and(self, mask: u32) -> Self;
    fn or(self, other: Self) -> Self;
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
        Self::from_le_bytes(bytes_of(block, at))
    }

    #[inline(always)]
    fn four([block]: [&[u8]; 1], at: usize) -> [Self; 4] {
        let words: [u8; 16] = bytes_of(block, at);
        [Self::one([&words], 0), Self::one([&words], 4), Self::one([&words], 8), Self::one([&words], 12)]
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
fn bytes_of<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    *block[at..].first_chunk().expect("the bytes lie in the block")
}

/// A word of four rows, which compilers keep in one register.
#[derive(Clone, Copy)]
#[repr(align(16))]
pub struct Four([u32; 4]);

impl Four {
    /// The words of the rows, one after the other.
    #[inline(always)]
    pub(super) fn to_le_bytes(self) -> [u8; 16] {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = self.0.map(u32::to_le_bytes);
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

impl Column<4> for Four {
    #[inline(always)]
    fn splat(word: u32) -> Self {
        Self([word; 4])
    }

    #[inline(always)]
    fn one([a, b, c, d]: [&[u8]; 4], at: usize) -> Self {
        Self([u32::one([a], at), u32::one([b], at), u32::one([c], at), u32::one([d], at)])
    }

    #[inline(always)]
    fn four([a, b, c, d]: [&[u8]; 4], at: usize) -> [Self; 4] {
        let row = |block| u32::four([block], at);
        turned([row(a), row(b), row(c), row(d)])
    }

    #[inline(always)]
    fn and(self, mask: u32) -> Self {
        let [a, b, c, d] = self.0;
        Self([a & mask, b & mask, c & mask, d & mask])
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        Self([a | e, b | f, c | g, d | h])
    }

    #[inline(always)]
    fn shl(self, by: u32) -> Self {
        let [a, b, c, d] = self.0;
        Self([a << by, b << by, c << by, d << by])
    }

    #[inline(always)]
    fn shr(self, by: u32) -> Self {
        let [a, b, c, d] = self.0;
        Self([a >> by, b >> by, c >> by, d >> by])
    }
}

/// Word `i` of row `r` becomes word `r` of row `i`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn turned(rows: [[u32; 4]; 4]) -> [Four; 4] {
    #[cfg(target_arch = "aarch64")]
    use std::arch::aarch64::{uint32x4_t as Register, vzip1q_u32 as zip_low, vzip2q_u32 as zip_high};
    #[cfg(target_arch = "x86_64")]
    use std::arch::x86_64::{__m128i as Register, _mm_unpackhi_epi32 as zip_high, _mm_unpacklo_epi32 as zip_low};
    // SAFETY: every x86-64 has SSE2, every AArch64 NEON; four words and a register are the same sixteen bytes.
    unsafe {
        let [a, b, c, d] = std::mem::transmute::<[[u32; 4]; 4], [Register; 4]>(rows);
        let (ac, bd) = (zip_low(a, c), zip_low(b, d));
        let (ac_high, bd_high) = (zip_high(a, c), zip_high(b, d));
        let columns = [zip_low(ac, bd), zip_high(ac, bd), zip_low(ac_high, bd_high), zip_high(ac_high, bd_high)];
        std::mem::transmute::<[Register; 4], [Four; 4]>(columns)
    }
}

/// Word `i` of row `r` becomes word `r` of row `i`.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn turned([a, b, c, d]: [[u32; 4]; 4]) -> [Four; 4] {
    let column = |i: usize| Four([a[i], b[i], c[i], d[i]]);
    [column(0), column(1), column(2), column(3)]
}
