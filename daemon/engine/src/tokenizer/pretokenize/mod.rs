//! Cutting text into the pieces that are merged separately.
//!
//! Models define this by regular expressions over Unicode classes. Here each is a scanner written by
//! hand that takes the same pieces in one pass, whatever the text; each module quotes the expression it
//! follows. Nothing is lost: the pieces, joined, are the text.

mod class;
mod gpt2;
mod llama3;

/// The pre-tokenizers in use, by what they do; several names in files mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// Words with a space before them, runs of digits, runs of other characters.
    Gpt2,
    /// Each digit by itself; between digits as [`PreTokenizer::Gpt2`].
    DigitsGpt2,
    /// Words with any one character before them, up to three digits, other characters with the line
    /// ends after them. Whole pieces that are tokens are not merged.
    Llama3,
    /// As [`PreTokenizer::Llama3`], with each digit by itself and all pieces merged.
    Qwen2,
}

/// Sorted by name.
const NAMES: [(&str, PreTokenizer); 14] = [
    ("deepseek-r1-qwen", PreTokenizer::Qwen2),
    ("gpt-2", PreTokenizer::Gpt2),
    ("llama-bpe", PreTokenizer::Llama3),
    ("llama-v3", PreTokenizer::Llama3),
    ("llama3", PreTokenizer::Llama3),
    ("megrez", PreTokenizer::Qwen2),
    ("mpt", PreTokenizer::Gpt2),
    ("olmo", PreTokenizer::Gpt2),
    ("phi-2", PreTokenizer::Gpt2),
    ("qwen2", PreTokenizer::Qwen2),
    ("refact", PreTokenizer::DigitsGpt2),
    ("smollm", PreTokenizer::DigitsGpt2),
    ("stablelm2", PreTokenizer::Qwen2),
    ("starcoder", PreTokenizer::DigitsGpt2),
];

impl PreTokenizer {
    /// The pre-tokenizer that files mean by a name (`tokenizer.ggml.pre`).
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let row = NAMES
            .binary_search_by_key(&name, |&(known, _)| known)
            .ok()?;
        NAMES.get(row).map(|&(_, pre)| pre)
    }

    /// All names, sorted.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|&(name, _)| name)
    }

    /// Whether a piece that is a token as a whole is taken without merging.
    pub(super) fn ignores_merges(self) -> bool {
        self == Self::Llama3
    }

    /// Whether prompts start with the beginning-of-sequence token where the file does not say.
    pub(super) fn adds_bos(self) -> bool {
        self == Self::Llama3
    }

    /// Hands over the pieces of a text in order; none is empty.
    pub(super) fn split<'t>(self, text: &'t str, mut visit: impl FnMut(&'t str)) {
        match self {
            Self::Gpt2 => take_pieces(text, gpt2::piece_bytes, &mut visit),
            Self::DigitsGpt2 => {
                let mut rest = text;
                while !rest.is_empty() {
                    let digit = rest.char_indices().find(|&(_, c)| c.is_numeric());
                    let (start, bytes) =
                        digit.map_or((rest.len(), 0), |(start, c)| (start, c.len_utf8()));
                    let (words, after) = rest.split_at(start);
                    take_pieces(words, gpt2::piece_bytes, &mut visit);
                    let (digit, after) = after.split_at(bytes);
                    if !digit.is_empty() {
                        visit(digit);
                    }
                    rest = after;
                }
            }
            Self::Llama3 => take_pieces(text, llama3::piece_bytes::<3>, &mut visit),
            Self::Qwen2 => take_pieces(text, llama3::piece_bytes::<1>, &mut visit),
        }
    }
}

/// Cuts a text by a function that gives the bytes of the first piece of what it is shown.
fn take_pieces<'t>(text: &'t str, piece_bytes: fn(&str) -> usize, visit: &mut impl FnMut(&'t str)) {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        // A piece is never empty, or this would not end.
        let bytes = piece_bytes(rest).max(first.len_utf8());
        let (piece, after) = rest.split_at_checked(bytes).unwrap_or((rest, ""));
        visit(piece);
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_found() {
        assert!(NAMES.is_sorted_by_key(|&(name, _)| name));
        assert!(
            NAMES
                .iter()
                .all(|&(name, pre)| PreTokenizer::from_name(name) == Some(pre))
        );
        assert_eq!(PreTokenizer::from_name("no-such"), None);
    }
}
