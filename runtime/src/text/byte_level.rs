//! The byte alphabet of GPT-2: each byte is written as one printable character, so that a vocabulary is valid text
//! (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2, and its released encoder).
//!
//! Bytes that are printable in Latin-1 stand for themselves; the other 68 get U+0100 onwards, in order.

/// The character that each byte is written as.
pub(super) const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let (mut byte, mut next) = (0, 0x100);
    while byte < 256 {
        chars[byte] = if is_printable(byte as u8) {
            byte as u8 as char
        } else {
            next += 1;
            // 0x100..0x144 holds no surrogates.
            match char::from_u32(next - 1) {
                Some(c) => c,
                None => panic!("the alphabet ends far below the surrogates"),
            }
        };
        byte += 1;
    }
    chars
};

/// Byte plus one for each character below [`BYTES`]'s length; 0 where the character is not in the alphabet.
const BYTES: [u16; 0x144] = {
    let mut bytes = [0; 0x144];
    let mut byte = 0;
    while byte < 256 {
        bytes[CHARS[byte] as usize] = byte as u16 + 1;
        byte += 1;
    }
    bytes
};

const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The byte that a character of the alphabet stands for.
pub(super) fn byte(c: char) -> Option<u8> {
    BYTES.get(c as usize).and_then(|b| b.checked_sub(1)).map(|b| b as u8)
}

/// The bytes that a piece stands for. Characters outside the alphabet stand for themselves: files have such tokens.
pub(super) fn decode(piece: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(piece.len());
    for c in piece.chars() {
        match byte(c) {
            Some(b) => bytes.push(b),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// Writes bytes in the alphabet.
pub(super) fn encode_into(bytes: &[u8], out: &mut String) {
    out.extend(bytes.iter().map(|&b| CHARS[b as usize]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_gpt2s() {
        assert_eq!(CHARS[b' ' as usize], 'Ġ');
        assert_eq!(CHARS[b'\n' as usize], 'Ċ');
        assert_eq!(CHARS[0xAD], 'Ń');
        assert_eq!(CHARS[b'a' as usize], 'a');
    }

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let mut written = String::new();
        encode_into(&all, &mut written);
        assert_eq!(decode(&written), all);
        assert_eq!(byte('字'), None);
        assert_eq!(byte('\u{144}'), None);
        assert_eq!(decode("字"), "字".as_bytes());
    }
}
