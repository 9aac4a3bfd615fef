//! The escapes in which RWKV vocabularies write bytes: `\n`, `\r`, `\t`, `\xHH`; any other character after a
//! backslash stands for itself.

/// Appends the bytes that `text` stands for; an escape that is cut short stands for nothing.
pub(super) fn decode_into(text: &str, bytes: &mut Vec<u8>) {
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest.next() {
            Some(b'n') => bytes.push(b'\n'),
            Some(b'r') => bytes.push(b'\r'),
            Some(b't') => bytes.push(b'\t'),
            Some(b'x') => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                if let (Some(high), Some(low)) = (digit(), digit()) {
                    // Two digits of four bits.
                    bytes.push((high << 4 | low) as u8);
                }
            }
            Some(other) => bytes.push(other),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_stand_for_bytes() {
        let mut bytes = Vec::new();
        decode_into(r"a\n\r\t\\\'\x0a\xFfé", &mut bytes);
        assert_eq!(bytes, b"a\n\r\t\\'\x0a\xff\xc3\xa9");
        bytes.clear();
        for cut in [r"\", r"\x", r"\x1", r"\xgg"] {
            decode_into(cut, &mut bytes);
        }
        assert!(bytes.is_empty(), "{bytes:?}");
    }
}
