//! The alphabet in which byte-level vocabularies are written: one printable character for each byte.
//!
//! The 188 bytes that are printable in Latin-1 stand for themselves; the other 68, in order, are written
//! as the characters from U+0100 on. The mapping is one-to-one, so decoding and encoding lose nothing.

/// The byte that each character from U+0100 to U+0143 stands for.
const SHIFTED: [u8; 68] = {
    let mut shifted = [0; 68];
    let mut count = 0;
    let mut byte = 0usize;
    while byte < 256 {
        if !stands_for_itself(byte as u32) {
            shifted[count] = byte as u8;
            count += 1;
        }
        byte += 1;
    }
    shifted
};

const fn stands_for_itself(code: u32) -> bool {
    matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// Appends the bytes that `text` stands for to `bytes` and returns true, or returns false and leaves
/// `bytes` as it was if some character is not of the alphabet.
pub(super) fn decode_into(text: &str, bytes: &mut Vec<u8>) -> bool {
    let start = bytes.len();
    for character in text.chars() {
        let code = character as u32;
        let byte = if stands_for_itself(code) {
            u8::try_from(code).ok()
        } else {
            let index = code.checked_sub(0x100).map(|index| index as usize);
            index.and_then(|index| SHIFTED.get(index)).copied()
        };
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
