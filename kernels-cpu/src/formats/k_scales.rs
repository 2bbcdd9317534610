//! The 12 bytes with 8 scales and 8 minima of 6 bits each that Q4_K and Q5_K share.
//!
//! Bytes 0-3 hold scales 0-3 in their low six bits, bytes 4-7 minima 0-3. Bytes 8-11 hold the low four bits of scales 4-7
//! (low nibble) and minima 4-7 (high nibble), whose upper two bits fill the top of bytes 0-3 and 4-7.

/// The scales and the minima of the eight groups of 32 values.
pub(crate) fn unpack(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 0x3f;
        mins[i] = packed[i + 4] & 0x3f;
        scales[i + 4] = packed[i + 8] & 0x0f | packed[i] >> 6 << 4;
        mins[i + 4] = packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4;
    }
    (scales, mins)
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
