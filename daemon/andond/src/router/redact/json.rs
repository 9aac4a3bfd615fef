//! The parts of a text that is JSON, where they stand in it: so that something can be taken out of one, and the rest stays as it
//! was written, names that come twice and numbers of any length too.
//!
//! Invariant: parts are in order, none is in another, and what is between them is brackets, commas, colons, spaces and the words
//! `true`, `false` and `null`.

use std::ops::Range;

use serde::de::IgnoredAny;

use super::view;

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// What is between the quotes of a string.
    Text(Range<usize>),
    /// A number.
    Number(Range<usize>),
}

impl Part {
    pub(super) fn bytes(&self) -> &Range<usize> {
        match self {
            Part::Text(bytes) | Part::Number(bytes) => bytes,
        }
    }
}

/// The parts of a text; `None` if it is no JSON.
pub(super) fn parts(text: &str) -> Option<Vec<Part>> {
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    let bytes = text.as_bytes();
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(&first) = bytes.get(at) {
        match first {
            b'"' => {
                let start = at + 1;
                at = start;
                // There is an end.
                while bytes.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                parts.push(Part::Text(start..at.min(bytes.len())));
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let start = at;
                let goes_on =
                    |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                at += bytes[at..].iter().take_while(|byte| goes_on(byte)).count();
                parts.push(Part::Number(start..at));
            }
            _ => at += 1,
        }
    }
    Some(parts)
}

/// A place within the text of a string, and as much around it as escapes have that it cuts.
pub(super) fn whole(text: &str, place: Range<usize>) -> Range<usize> {
    let Range { mut start, mut end } = place;
    let mut at = 0;
    while let Some(next) = text[at..].find('\\').map(|next| at + next) {
        if next >= end {
            break;
        }
        let bytes = view::escape(&text[next..]).map_or(1, |(_, bytes)| bytes);
        let behind = next + bytes;
        if next < start && start < behind {
            start = next;
        }
        if end < behind {
            end = behind;
        }
        at = behind;
    }
    start..end
}

/// What a piece of a string says.
pub(super) fn said(piece: &str) -> String {
    let said = serde_json::from_str(&format!("\"{piece}\""));
    // It is half of a pair that stands for one character.
    said.unwrap_or_else(|_| piece.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_apart() {
        let text = r#" {"a\"b": [-1.5e+3,"", true], "a\"b":{"\\":12345678901234567890123}}"#;
        let parts = parts(text).expect("JSON");
        let parts: Vec<&str> = parts
            .iter()
            .map(|part| &text[part.bytes().clone()])
            .collect();
        assert_eq!(
            parts,
            [
                r#"a\"b"#,
                "-1.5e+3",
                "",
                r#"a\"b"#,
                r"\\",
                "12345678901234567890123"
            ]
        );
        for text in ["", "{", "{\"a\":1} x", "\"a", "'a'", &"[".repeat(1000)] {
            assert_eq!(super::parts(text), None, "{text}");
        }
        assert_eq!(super::parts("7"), Some(vec![Part::Number(0..1)]));
    }

    #[test]
    fn escapes_are_not_cut() {
        let text = r"a\u0041b\nc\ud83d\ude00";
        for (place, wide) in [
            (0..1, 0..1),
            (2..3, 1..7),
            (0..2, 0..7),
            (7..8, 7..8),
            (7..9, 7..10),
            (9..11, 8..11),
            (17..18, 11..23),
        ] {
            assert_eq!(whole(text, place.clone()), wide, "{place:?}");
        }
        assert_eq!(said(r"\u0041\n"), "A\n");
        assert_eq!(said(r"\ud83d"), r"\ud83d");
    }
}
