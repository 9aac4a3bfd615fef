//! The classes of characters that pre-tokenizers tell apart, and what they share in scanning them.
//!
//! Letters and numbers are by Unicode 16, which is what the regular expressions of Hugging Face's
//! `tokenizers` 0.23 know; its digit splitter, like [`char::is_numeric`] here, already knows Unicode 17.

use unicode_general_category::{GeneralCategory, get_general_category};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\p{M}`
    Mark,
    /// `\p{P}`
    Punctuation,
    /// `\p{S}`
    Symbol,
    /// `\s`
    Space,
    /// All else: controls, private use, what is not assigned.
    Other,
}

impl Class {
    pub(super) fn of(character: char) -> Self {
        match character {
            'a'..='z' | 'A'..='Z' => return Self::Letter,
            '0'..='9' => return Self::Number,
            ' ' | '\t'..='\r' => return Self::Space,
            '$' | '+' | '<'..='>' | '^' | '`' | '|' | '~' => return Self::Symbol,
            '!'..='/' | ':'..='@' | '['..='_' | '{'..='}' => return Self::Punctuation,
            '\0'..='\x7f' => return Self::Other,
            _ if character.is_whitespace() => return Self::Space,
            _ => {}
        }
        match get_general_category(character) {
            GeneralCategory::UppercaseLetter
            | GeneralCategory::LowercaseLetter
            | GeneralCategory::TitlecaseLetter
            | GeneralCategory::ModifierLetter
            | GeneralCategory::OtherLetter => Self::Letter,
            GeneralCategory::DecimalNumber
            | GeneralCategory::LetterNumber
            | GeneralCategory::OtherNumber => Self::Number,
            GeneralCategory::NonspacingMark
            | GeneralCategory::SpacingMark
            | GeneralCategory::EnclosingMark => Self::Mark,
            GeneralCategory::ConnectorPunctuation
            | GeneralCategory::DashPunctuation
            | GeneralCategory::OpenPunctuation
            | GeneralCategory::ClosePunctuation
            | GeneralCategory::InitialPunctuation
            | GeneralCategory::FinalPunctuation
            | GeneralCategory::OtherPunctuation => Self::Punctuation,
            GeneralCategory::MathSymbol
            | GeneralCategory::CurrencySymbol
            | GeneralCategory::ModifierSymbol
            | GeneralCategory::OtherSymbol => Self::Symbol,
            _ => Self::Other,
        }
    }

    /// `[^\s\p{L}\p{N}]`
    pub(super) fn is_other(self) -> bool {
        !matches!(self, Self::Letter | Self::Number | Self::Space)
    }
}

/// Bytes of the characters at the start of a text for which a condition holds.
pub(super) fn run_bytes(text: &str, holds: impl Fn(char) -> bool) -> usize {
    text.find(|character| !holds(character))
        .unwrap_or(text.len())
}

/// Bytes of the run of white space at the start of a text.
pub(super) fn space_bytes(text: &str) -> usize {
    run_bytes(text, char::is_whitespace)
}

/// Bytes that `\s+(?!\S)|\s+` takes of a text that starts with a run of white space of `run` bytes: the
/// run up to the end of the text, else all but its last character, which may go with the next word.
pub(super) fn spaces_before_word(text: &str, run: usize) -> usize {
    if run == text.len() {
        return run;
    }
    let last = text.get(..run).and_then(|run| run.chars().next_back());
    match run - last.map_or(0, char::len_utf8) {
        0 => run,
        shorter => shorter,
    }
}
