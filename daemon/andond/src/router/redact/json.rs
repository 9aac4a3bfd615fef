//! The parts of a text that is JSON, where they stand in it: so that something can be taken out of one, and the rest stays as it
//! was written, names that come twice and numbers of any length too.
//!
//! Invariant: parts are in order, none is in another, and what is between them is brackets, commas, colons, spaces and the words
//! `true`, `false` and `null`.

use std::ops::Range;

use serde::de::IgnoredAny;

use super::Unredactable;
use super::find::Effort;
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

/// The escapes of the text of a string, for places that come in order: the text is gone over once for all of them.
#[derive(Debug)]
pub(super) struct Escapes<'t> {
    text: &'t str,
    /// The escape up to which it was gone over, which the next place may cut, too; behind the text if there are no more.
    escape: Range<usize>,
}

impl<'t> Escapes<'t> {
    pub(super) fn of(text: &'t str) -> Escapes<'t> {
        Escapes { text, escape: 0..0 }
    }

    /// A place that is not empty and begins behind those of before, and as much around it as escapes have that it cuts.
    pub(super) fn whole(
        &mut self,
        place: Range<usize>,
        effort: &mut Effort,
    ) -> Result<Range<usize>, Unredactable> {
        let Range { mut start, mut end } = place;
        let from = self.escape.start;
        loop {
            if self.escape.contains(&start) {
                start = self.escape.start;
            }
            if self.escape.end >= end {
                break;
            }
            let at = self.escape.end;
            let next = self.text[at..].find('\\').map(|next| at + next);
            let next = next.unwrap_or(self.text.len());
            let bytes = view::escape(&self.text[next..]).map_or(1, |(_, bytes)| bytes);
            self.escape = next..next + bytes;
        }
        effort.spend(self.escape.start - from)?;
        if self.escape.start < end {
            end = self.escape.end;
        }
        Ok(start..end)
    }
}

/// What a piece of a string says.
pub(super) fn said(piece: &str) -> String {
    let said = serde_json::from_str(&format!("\"{piece}\""));
    // It is half of a pair that stands for one character.
    said.unwrap_or_else(|_| piece.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::find::LOOK;
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
            let found = Escapes::of(text).whole(place.clone(), &mut Effort::new());
            assert_eq!(found, Ok(wide), "{place:?}");
        }
        // Two may be cut by one escape.
        let (mut escapes, mut effort) = (Escapes::of(text), Effort::new());
        let found = |place| escapes.whole(place, &mut effort).expect("little");
        let places = [0..2, 3..4, 5..6, 7..8, 9..11, 12..13, 22..23];
        assert_eq!(
            places.map(found),
            [0..7, 1..7, 1..7, 7..8, 8..11, 11..23, 11..23]
        );
        assert_eq!(said(r"\u0041\n"), "A\n");
        assert_eq!(said(r"\ud83d"), r"\ud83d");
    }

    #[test]
    fn a_text_is_gone_over_once_for_all_places() {
        let (line, count) = (r"SN-1\n\n\n\n", 20_000);
        let text = line.repeat(count);
        let (mut escapes, mut effort) = (Escapes::of(&text), Effort::new());
        effort.until = None;
        let before = effort.left;
        for start in (0..count).map(|count| count * line.len()) {
            let place = start..start + 4;
            assert_eq!(escapes.whole(place.clone(), &mut effort), Ok(place));
        }
        let spent = before - effort.left;
        assert!(
            (count * LOOK..=count * LOOK + text.len()).contains(&spent),
            "{spent}"
        );
    }
}
