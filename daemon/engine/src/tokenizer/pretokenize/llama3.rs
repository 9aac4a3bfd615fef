//! `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
//! with a parameter for the number of digits that stay together.

use super::class::{Class, run_bytes, spaces_before_word};

/// Bytes of the first piece of a text that is not empty.
pub(super) fn piece_bytes<const DIGITS: usize>(text: &str) -> usize {
    if let Some(bytes) = contraction_bytes(text) {
        return bytes;
    }
    let mut characters = text.chars();
    let Some(first) = characters.next() else {
        return 0;
    };
    let class = Class::of(first);
    match class {
        Class::Letter => return run_bytes(text, Class::Letter),
        Class::Number => {
            return text
                .chars()
                .take(DIGITS)
                .take_while(|&character| Class::of(character) == Class::Number)
                .map(char::len_utf8)
                .sum();
        }
        Class::Space | Class::Other => {}
    }
    let rest = characters.as_str();
    let second = characters.next().map(Class::of);
    if second == Some(Class::Letter) && !matches!(first, '\r' | '\n') {
        return first.len_utf8() + run_bytes(rest, Class::Letter);
    }
    if class == Class::Other || first == ' ' && second == Some(Class::Other) {
        let run = first.len_utf8() + run_bytes(rest, Class::Other);
        let lines = text.get(run..).unwrap_or_default();
        return run + lines.len() - lines.trim_start_matches(['\r', '\n']).len();
    }
    let run = run_bytes(text, Class::Space);
    match text.get(..run).and_then(|run| run.rfind(['\r', '\n'])) {
        Some(last_line_end) => last_line_end + 1,
        None => spaces_before_word(text, run),
    }
}

/// Bytes of `(?i:'s|'t|'re|'ve|'m|'ll|'d)` at the start of a text. Without case, `s` is also U+017F, the
/// long s; no other character folds to one of these letters.
fn contraction_bytes(text: &str) -> Option<usize> {
    let mut characters = text.strip_prefix('\'')?.chars();
    let first = characters.next()?;
    let pair = match first {
        's' | 'S' | 't' | 'T' | 'm' | 'M' | 'd' | 'D' | 'ſ' => return Some(1 + first.len_utf8()),
        'r' | 'R' | 'v' | 'V' => 'e',
        'l' | 'L' => 'l',
        _ => return None,
    };
    characters
        .next()
        .filter(|second| second.eq_ignore_ascii_case(&pair))
        .map(|_| 3)
}
