//! The alphabet in which byte-level vocabularies are written: one printable character for each byte.
//!
//! The 188 bytes that are printable in Latin-1 stand for themselves; the other 68, in order, are written
//! as the characters from U+0100 on. The mapping is one-to-one, so decoding and encoding lose nothing.

/// Code points from here on are not of the alphabet.
const CODES: usize = 0x144;

/// The byte that each character of the alphabet stands for.
const BYTES: [Option<u8>; CODES] = {
    let mut bytes = [None; CODES];
    let mut shifted = 0x100;
    let mut byte = 0;
    while byte < 256 {
        if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            bytes[byte] = Some(byte as u8);
        } else {
            bytes[shifted] = Some(byte as u8);
            shifted += 1;
        }
        byte += 1;
    }
    bytes
};

/// Appends the bytes that `text` stands for to `bytes` and returns true, or returns false and leaves
/// `bytes` as it was if some character is not of the alphabet.
pub(super) fn decode_into(text: &str, bytes: &mut Vec<u8>) -> bool {
    let start = bytes.len();
    for character in text.chars() {
        let byte = BYTES.get(character as usize).copied().flatten();
        match byte {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut seen = [false; 256];
        let mut bytes = Vec::new();
        for character in (0..=0x200).filter_map(char::from_u32) {
            bytes.clear();
            if decode_into(character.encode_utf8(&mut [0; 4]), &mut bytes) {
                assert_eq!(bytes.len(), 1);
                assert!(!std::mem::replace(&mut seen[usize::from(bytes[0])], true));
            }
        }
        assert!(seen.iter().all(|&seen| seen));
    }

    #[test]
    fn well_known_characters() {
        let mut bytes = Vec::new();
        assert!(decode_into("ĠaĊÃ©Ń", &mut bytes));
        assert_eq!(bytes, b" a\n\xc3\xa9\xad");
        assert!(!decode_into("a b", &mut bytes));
        assert!(!decode_into("▁a", &mut bytes));
        assert_eq!(bytes.len(), 6);
    }
}
