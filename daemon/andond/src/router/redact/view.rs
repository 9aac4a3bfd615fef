//! A text as its reader takes it: without the ways of writing that hide from an expression what it fits.
//!
//! Two of them are undone: escapes with a backslash, as JSON, programs and Markdown have them, also of a text that was escaped more
//! than once; and other forms of the same letters, as Unicode has them for compatibility, composed or not, with invisible
//! characters between them, or with the hyphens, quotes and spaces that word processors put in place of those of the keyboard.
//!
//! Invariant: every byte of a view knows where it comes from, so that what is found in a view is a place in the text itself.

use std::ops::Range;

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::canonical_combining_class;

/// So many times a text may have been escaped.
const LEVELS_MAX: usize = 4;

/// A text made of another one.
#[derive(Debug)]
pub(super) struct View {
    text: String,
    /// Where in the other text the character of a byte begins, and its end behind the last.
    from: Vec<u32>,
}

impl View {
    fn with_capacity(bytes: usize) -> View {
        View {
            text: String::with_capacity(bytes),
            from: Vec::with_capacity(bytes + 1),
        }
    }

    fn push(&mut self, char: char, from: u32) {
        self.text.push(char);
        self.from.resize(self.text.len(), from);
    }

    /// Of a view of a view, one of what that is a view of.
    fn seen_through(mut self, other: Option<&View>) -> View {
        if let Some(other) = other {
            for from in &mut self.from {
                *from = other.from[*from as usize];
            }
        }
        self
    }

    /// The text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The bytes of the other text that these, which are not none, were made of.
    pub(super) fn origin(&self, place: Range<usize>) -> Range<usize> {
        let last = self.from[place.end - 1];
        // One character may have become several. They are in order.
        let of_last = self.from[place.end..].partition_point(|from| *from <= last);
        let end = self.from.get(place.end + of_last).or(self.from.last());
        self.from[place.start] as usize..end.copied().unwrap_or(last) as usize
    }
}

fn at(byte: usize) -> u32 {
    // No text of a request is so long.
    u32::try_from(byte).unwrap_or(u32::MAX)
}

/// Looks at the views of a text beside itself, one after the other; mostly there are none.
///
/// # Errors
/// As `look` has it, who is asked no further then.
pub(super) fn each<E>(text: &str, mut look: impl FnMut(&View) -> Result<(), E>) -> Result<(), E> {
    if let Some(plain) = plain(text) {
        look(&plain)?;
    }
    let mut last: Option<View> = None;
    for _ in 0..LEVELS_MAX {
        let escaped = last.as_ref().map_or(text, View::text);
        let Some(next) = unescaped(escaped) else {
            break;
        };
        let next = next.seen_through(last.as_ref());
        if let Some(plain) = plain(next.text()) {
            look(&plain.seen_through(Some(&next)))?;
        }
        look(&next)?;
        last = Some(next);
    }
    Ok(())
}

/// Without escapes; `None` if there are none.
fn unescaped(text: &str) -> Option<View> {
    let mut view = None;
    let mut place = text.find('\\')?;
    let mut done = 0;
    loop {
        let escape = escape(&text[place..]);
        let (char, bytes) = escape.unwrap_or(('\\', 1));
        if escape.is_some() {
            view.get_or_insert_with(|| View::with_capacity(text.len()));
        }
        if let Some(view) = &mut view {
            copy(text, done..place, view);
            view.push(char, at(place));
            done = place + bytes;
        }
        match text[place + bytes..].find('\\') {
            Some(next) => place += bytes + next,
            None => break,
        }
    }
    let mut view = view?;
    copy(text, done..text.len(), &mut view);
    view.from.push(at(text.len()));
    Some(view)
}

fn copy(text: &str, place: Range<usize>, view: &mut View) {
    let start = place.start;
    for (offset, char) in text[place].char_indices() {
        view.push(char, at(start + offset));
    }
}

/// What an escape at the beginning of a text stands for, and its bytes.
pub(super) fn escape(text: &str) -> Option<(char, usize)> {
    let hex = |from: usize, count: usize| {
        let digits = text.get(from..from + count)?;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u32::from_str_radix(digits, 16).ok())?
    };
    let mut chars = text.chars();
    if chars.next() != Some('\\') {
        return None;
    }
    Some(match chars.next()? {
        'b' => ('\u{8}', 2),
        'f' => ('\u{c}', 2),
        'n' => ('\n', 2),
        'r' => ('\r', 2),
        't' => ('\t', 2),
        'x' => (char::from_u32(hex(2, 2)?)?, 4),
        'u' => {
            let first = hex(2, 4)?;
            if let Some(char) = char::from_u32(first) {
                return Some((char, 6));
            }
            let second = text.get(6..8).filter(|second| *second == "\\u");
            let second = second.and_then(|_| hex(8, 4));
            let pair = second.filter(|second| first < 0xdc00 && (0xdc00..0xe000).contains(second));
            let both = pair.and_then(|second| {
                char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))
            });
            both.map_or((char::REPLACEMENT_CHARACTER, 6), |both| (both, 12))
        }
        mark if mark.is_ascii_punctuation() => (mark, 2),
        _ => return None,
    })
}

/// In plain letters; `None` of a text that is ASCII.
fn plain(text: &str) -> Option<View> {
    if text.is_ascii() {
        return None;
    }
    let mut view = View::with_capacity(text.len());
    let mut seen = text
        .char_indices()
        .filter(|(_, char)| !is_invisible(*char))
        .peekable();
    let mut together = String::new();
    while let Some((from, first)) = seen.next() {
        together.clear();
        together.push(first);
        while let Some((_, next)) = seen.next_if(|(_, next)| joins(*next)) {
            together.push(next);
        }
        if together.is_ascii() {
            view.push(first, at(from));
        } else {
            let same = together.nfkc().filter(|char| !is_invisible(*char));
            same.for_each(|char| view.push(of_keyboard(char), at(from)));
        }
    }
    view.from.push(at(text.len()));
    Some(view)
}

/// In small letters; `None` of a text that is ASCII.
pub(super) fn small(text: &str) -> Option<View> {
    if text.is_ascii() {
        return None;
    }
    let mut view = View::with_capacity(text.len());
    for (from, char) in text.char_indices() {
        lower(char).for_each(|char| view.push(char, at(from)));
    }
    view.from.push(at(text.len()));
    Some(view)
}

/// A text in plain and small letters.
pub(super) fn folded(text: &str) -> String {
    match plain(text) {
        Some(plain) => plain.text.chars().flat_map(lower).collect(),
        None => text.to_ascii_lowercase(),
    }
}

/// The small letters of a letter, wherever in a word it stands.
fn lower(char: char) -> impl Iterator<Item = char> {
    let small = char.to_lowercase();
    small.map(|small| if small == 'ς' { 'σ' } else { small })
}

/// Whether a character may be one with what stands before it.
fn joins(char: char) -> bool {
    // The vowels and finals of Hangul are no marks.
    canonical_combining_class(char) != 0 || matches!(char, '\u{1160}'..='\u{11ff}')
}

/// Characters that are not seen.
fn is_invisible(char: char) -> bool {
    matches!(
        char,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// What a keyboard has in the place of a sign.
fn of_keyboard(char: char) -> char {
    match char {
        '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{2d7}' | '\u{fe58}' => '-',
        '\u{2018}'..='\u{201b}' | '\u{2bc}' | '\u{2032}' => '\'',
        '\u{201c}'..='\u{201f}' | '\u{2033}' => '"',
        '\u{2028}' | '\u{2029}' | '\u{85}' => '\n',
        '\u{1680}' => ' ',
        char => char,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where in a text the first `needle` of each of its views comes from.
    fn found(text: &str, needle: &str) -> Vec<String> {
        let mut found = Vec::new();
        let looked = each(text, |view| {
            let start = view.text().find(needle);
            let place = start.map(|start| view.origin(start..start + needle.len()));
            found.extend(place.map(|place| text[place].to_owned()));
            Ok::<(), ()>(())
        });
        assert_eq!(looked, Ok(()));
        found
    }

    #[test]
    fn what_is_plain_has_no_views() {
        for text in ["", "SN-1234 of Ada", "{\"a\": [1, 2]}", "C:\\", "\\q\\w"] {
            assert_eq!(each(text, |_| Err(())), Ok(()), "{text}");
        }
    }

    #[test]
    fn escapes_are_undone_as_often_as_they_were_made() {
        for (text, from) in [
            (r"is \u0053N\u002d1\u00324 !", r"\u0053N\u002d1\u00324"),
            (r"SN\-124", r"SN\-124"),
            (r"\x53N-124\n", r"\x53N-124"),
            (r"\\u0053N-124", r"\\u0053N-124"),
            (r"\\\\u0053N-124", r"\\\\u0053N-124"),
            (r"\q\u0053N-124", r"\u0053N-124"),
        ] {
            let found = found(text, "SN-124");
            assert!(found.contains(&from.to_owned()), "{text}: {found:?}");
        }
        assert_eq!(found(r"a\ud83d\ude00b", "😀"), [r"\ud83d\ude00"; 2]);
        assert_eq!(found(r"a\ud83db", "\u{fffd}"), [r"\ud83d"; 2]);
        // What is cut short is none.
        for text in ["\\u00", "\\x5", "\\u00é0", "\\"] {
            assert!(unescaped(text).is_none(), "{text}");
        }
    }

    #[test]
    fn other_forms_of_the_same_letters_are_seen_as_these() {
        for (text, from) in [
            ("der ＳＮ－１２４!", "ＳＮ－１２４"),
            ("SN\u{2011}124", "SN\u{2011}124"),
            ("SN\u{2013}1\u{200b}2\u{ad}4", "SN\u{2013}1\u{200b}2\u{ad}4"),
            ("\u{feff}S\u{200d}N-124.", "S\u{200d}N-124"),
            ("é𝐒𝐍-124", "𝐒𝐍-124"),
        ] {
            assert_eq!(found(text, "SN-124"), [from], "{text}");
        }
        assert_eq!(found("Mu\u{308}ller", "Müller"), ["Mu\u{308}ller"]);
        assert_eq!(
            found("\u{1112}\u{1161}\u{11ab}", "한"),
            ["\u{1112}\u{1161}\u{11ab}"]
        );
        // A part of a ligature is all of it.
        assert_eq!(found("oﬃce", "fi"), ["ﬃ"]);
        assert_eq!(found(r"\uff33N-124", "SN-124"), [r"\uff33N-124"]);
    }

    #[test]
    fn small_letters_know_where_they_come_from() {
        let view = small("İSTANBUL Ä").expect("not ASCII");
        let start = view.text().find("stan").expect("there");
        assert_eq!(view.origin(start..start + 4), 2..6);
        assert_eq!(folded("ＭÜLLER"), "müller");
        assert_eq!(folded("Ada"), "ada");
        assert_eq!(folded("ΟΔΟΣ"), folded("οδος"));
    }
}
