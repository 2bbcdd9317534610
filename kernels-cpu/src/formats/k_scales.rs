//! The 12 bytes with 8 scales and 8 minima of 6 bits each that Q4_K and Q5_K share.
//!
//! Bytes 0-3 hold scales 0-3 in their low six bits, bytes 4-7 minima 0-3. Bytes 8-11 hold the low four bits of scales 4-7
//! (low nibble) and minima 4-7 (high nibble), whose upper two bits fill the top of bytes 0-3 and 4-7.

/// The scales and the minima of the eight groups of 32 values.
#[inline(always)]
pub(super) fn unpack(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    // A byte of each word belongs to one of four scales.
    let word = |i: usize| u32::from_le_bytes([packed[4 * i], packed[4 * i + 1], packed[4 * i + 2], packed[4 * i + 3]]);
    let (scales, mins, low) = (word(0), word(1), word(2));
    let eight = |word: u32, low: u32| {
        let (first, last) = (word & 0x3f3f_3f3f, low & 0x0f0f_0f0f | word >> 2 & 0x3030_3030);
        (u64::from(first) | u64::from(last) << 32).to_le_bytes()
    };
    (eight(scales, low), eight(mins, low >> 4))
}

/// The inverse of [`unpack`]; scales and minima are below 64.
pub(super) fn pack(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for i in 0..4 {
        packed[i] = scales[i] | scales[i + 4] >> 4 << 6;
        packed[i + 4] = mins[i] | mins[i + 4] >> 4 << 6;
        packed[i + 8] = scales[i + 4] & 0x0f | mins[i + 4] << 4;
    }
    packed
}
