//! `'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

use super::class::{Class, run_bytes, space_bytes, spaces_before_word};

/// Bytes of the first piece of a text that is not empty.
pub(super) fn piece_bytes(text: &str) -> usize {
    if let Some(rest) = text.strip_prefix('\'') {
        let ends = ["s", "d", "m", "t", "ll", "ve", "re"];
        if let Some(end) = ends.iter().find(|end| rest.starts_with(**end)) {
            return 1 + end.len();
        }
    }
    let word = text.strip_prefix(' ').unwrap_or(text);
    let run = match word.chars().next().map(Class::of) {
        Some(Class::Space) | None => return spaces_before_word(text, space_bytes(text)),
        Some(class @ (Class::Letter | Class::Number)) => {
            run_bytes(word, |character| Class::of(character) == class)
        }
        Some(_) => run_bytes(word, |character| Class::of(character).is_other()),
    };
    text.len() - word.len() + run
}
