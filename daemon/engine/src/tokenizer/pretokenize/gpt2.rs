//! `'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

use super::class::{Class, run_bytes, spaces_before_word};

/// Bytes of the first piece of a text that is not empty.
pub(super) fn piece_bytes(text: &str) -> usize {
    if let Some(rest) = text.strip_prefix('\'') {
        let ends = ["s", "d", "m", "t", "ll", "ve", "re"];
        if let Some(end) = ends.iter().find(|end| rest.starts_with(**end)) {
            return 1 + end.len();
        }
    }
    let word = text.strip_prefix(' ').unwrap_or(text);
    match word.chars().next().map(Class::of) {
        Some(Class::Space) | None => spaces_before_word(text, run_bytes(text, Class::Space)),
        Some(class) => text.len() - word.len() + run_bytes(word, class),
    }
}
