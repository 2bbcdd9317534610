//! What the types with a codebook share: their quants are indices of entries, and an entry stands for eight values, or for
//! four, which are levels of a short list.
//!
//! Indices have as many bits as the table has entries, so that every byte pattern names one.

pub(super) mod tables;

/// The eight levels of an entry of two-bit levels.
pub(super) fn eight(entry: u16, levels: &[f32; 4]) -> [f32; 8] {
    std::array::from_fn(|i| levels[usize::from(entry >> (2 * i) & 3)])
}

/// The eight levels of two entries of four levels each, which have three bits each and stand four bits apart.
pub(super) fn two_of_four(entries: [u16; 2], levels: &[f32; 8]) -> [f32; 8] {
    std::array::from_fn(|i| levels[usize::from(entries[i / 4] >> (4 * (i % 4)) & 7)])
}

/// `scale * level`, negative where the value's bit of `signs` (first value lowest) is set.
pub(super) fn write_signed(scale: f32, levels: [f32; 8], signs: u8, out: &mut [f32; 8]) {
    for (i, (value, level)) in out.iter_mut().zip(levels).enumerate() {
        let sign = if signs >> i & 1 == 0 { 1.0 } else { -1.0 };
        *value = scale * level * sign;
    }
}

/// Eight signs from the low seven bits of `index`: types that store seven have an even number of negative values among
/// eight, so that the last sign follows from the others (`ksigns` in the `gguf` package's `quants.py`).
pub(super) fn even_signs(index: u32) -> u8 {
    let seven = (index & 0x7f) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_only_levels_that_exist() {
        let all = [&tables::IQ1[..], &tables::IQ2_XXS, &tables::IQ2_XS, &tables::IQ2_S];
        for entry in all.into_iter().flatten() {
            assert!((0..8).all(|i| entry >> (2 * i) & 3 != 3), "{entry:#06x}");
        }
        for entry in tables::IQ3_XXS.iter().chain(&tables::IQ3_S) {
            assert_eq!(entry & 0x8888, 0, "{entry:#06x}");
        }
    }

    #[test]
    fn eight_signs_have_an_even_number_of_negatives() {
        assert_eq!(even_signs(0), 0);
        assert_eq!(even_signs(1), 0x81);
        assert_eq!(even_signs(0xffff_ff83), 0x03);
        assert!((0..128).all(|index| even_signs(index).count_ones().is_multiple_of(2)));
    }
}
