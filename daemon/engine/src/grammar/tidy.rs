//! What a grammar cannot see of JSON whose schema is open: names that an object has already, numbers beyond all bounds.
//!
//! Text of JSON has one spelling here ([`super::schema`]), so names are the same when their bytes are.

/// Most bytes of a number.
const NUMBER_BYTES_MAX: usize = 32;
/// Most digits of its exponent: all such numbers are within the range of 64-bit floating point.
const EXPONENT_DIGITS_MAX: usize = 2;

/// Whether a beginning of JSON has no object with a name twice, and no number that is too long.
pub(super) fn is_tidy(text: &[u8]) -> bool {
    // Of each open object its names, of each open array none; and whether a string now would be a name.
    let mut open: Vec<Option<Vec<&[u8]>>> = Vec::new();
    let mut names_next = false;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let start = at;
        at += 1;
        match byte {
            b'{' => {
                open.push(Some(Vec::new()));
                names_next = true;
            }
            b'[' => {
                open.push(None);
                names_next = false;
            }
            b'}' | b']' => {
                open.pop();
                names_next = false;
            }
            b',' => names_next = matches!(open.last(), Some(Some(_))),
            b':' => names_next = false,
            b'"' => {
                at = end_of_string(text, at);
                // It has not ended.
                if at >= text.len() {
                    return true;
                }
                let name = &text[start..at];
                at += 1;
                if names_next && let Some(Some(names)) = open.last_mut() {
                    if names.contains(&name) {
                        return false;
                    }
                    names.push(name);
                }
            }
            // A literal; or, between calls of tools, a name of one, whose digits are no number.
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                let is_of_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte);
                at += text[at..]
                    .iter()
                    .take_while(|byte| is_of_word(byte))
                    .count();
            }
            b'-' | b'0'..=b'9' => {
                let is_of_number =
                    |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                at += text[at..]
                    .iter()
                    .take_while(|byte| is_of_number(byte))
                    .count();
                let number = &text[start..at];
                let mut parts = number.split(|byte| matches!(byte, b'e' | b'E'));
                let exponent = parts.nth(1).unwrap_or_default();
                let digits = exponent.iter().filter(|byte| byte.is_ascii_digit()).count();
                if number.len() > NUMBER_BYTES_MAX || digits > EXPONENT_DIGITS_MAX {
                    return false;
                }
            }
            _ => {}
        }
    }
    true
}

/// Where the string that began before `at` ends: at its quote, or behind all.
fn end_of_string(text: &[u8], mut at: usize) -> usize {
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_counts_once_it_has_ended_and_in_its_own_object() {
        for (text, tidy) in [
            (r#"{"a":1,"a"#, true),
            (r#"{"a":1,"a""#, false),
            (r#"{"a":{"a":["a","a",{"a":1},{"a":2}]},"b":"a","c""#, true),
            (r#"{"a":{},"b":[{"x":1,"y":"x","x":"#, false),
            (r#"{"a\"b":1,"a\"b""#, false),
            (r#"{"a\\":1,"a":1}"#, true),
            (r#"{"a\"#, true),
        ] {
            assert_eq!(is_tidy(text.as_bytes()), tidy, "{text}");
        }
    }

    #[test]
    fn numbers_are_within_the_range_of_readers() {
        assert!(is_tidy(b"[-1.5e99,123456789012345678901234567890]"));
        assert!(is_tidy(b"{\"1e999\":\"1e999\"}"));
        assert!(is_tidy(b"[TOOL_CALLS]lookup_1e999[ARGS]{\"a\":true}"));
        assert!(!is_tidy(b"[1e100") && !is_tidy(b"[1.0E-100"));
        assert!(!is_tidy(b"[123456789012345678901234567890123"));
    }
}
