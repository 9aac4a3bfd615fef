//! The expressions of models since GPT-4, which are made of the same parts:
//!
//! `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
//!
//! [`LLAMA3`] is this one; the others say what they have in place of a part. Without case, `s` is also U+017F, the
//! long s; no other character folds to one of the letters of the contractions.

use super::class::{Class, run_bytes, space_bytes, spaces_before_word};

/// The parts of an expression, in the order in which they are tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)`
    contractions: bool,
    /// ``[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+``
    marked_ascii: bool,
    /// One character that may stand before a word.
    before: Before,
    letters: Letters,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)?` behind a word.
    contracts: bool,
    /// `\p{N}{1,n}`; 0 is none.
    digits: usize,
    others: Others,
    /// What may follow those.
    ends: Ends,
    /// `\s*[\r\n]+`, else `[\r\n]`
    line_runs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// `[^\r\n\p{L}\p{N}]?`
    NoLetterNumber,
    /// `[^\r\n\p{L}\p{P}\p{S}]?`
    NoLetterSign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Letters {
    /// `\p{L}+`
    Plain,
    /// `[\p{L}\p{M}]+`
    Marked,
    /// `\p{L}+` without Chinese characters.
    NotChinese,
    /// `\p{L}\p{M}*(?: ?\p{L}\p{M}*)*`
    Spaced,
    /// Capitals and then small letters, `[\p{L}--[a-z]]*[\p{L}--[A-Z]]+|[\p{L}--[a-z]]+[\p{L}--[A-Z]]*`: where the models
    /// have all capitals and small letters of Unicode, llama.cpp tells only those of ASCII apart.
    Cased,
    /// The same with `[\p{L}\p{M}]`.
    CasedMarked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    /// ` ?[^\s\p{L}\p{N}]+`
    All,
    /// ` ?[^\s\p{L}\p{M}\p{N}]+`
    NoMarks,
    /// ` ?[\p{P}\p{S}]+`
    Signs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    None,
    /// `[\r\n]*`
    Lines,
    /// `[\r\n/]*`
    LinesSlashes,
    /// `[\r\n/]?`
    OneLineSlash,
}

pub(super) const LLAMA3: Words = Words {
    contractions: true,
    marked_ascii: false,
    before: Before::NoLetterNumber,
    letters: Letters::Plain,
    contracts: false,
    digits: 3,
    others: Others::All,
    ends: Ends::Lines,
    line_runs: true,
};
pub(super) const QWEN2: Words = Words {
    digits: 1,
    ..LLAMA3
};
pub(super) const QWEN35: Words = Words {
    letters: Letters::Marked,
    others: Others::NoMarks,
    ..QWEN2
};
pub(super) const UFAKZEKA: Words = Words {
    contractions: false,
    ..QWEN2
};
pub(super) const SEED_CODER: Words = Words {
    ends: Ends::None,
    ..QWEN2
};
pub(super) const MINICPM5: Words = Words {
    digits: usize::MAX,
    ..LLAMA3
};
pub(super) const EXAONE_MOE: Words = Words {
    letters: Letters::Spaced,
    ends: Ends::OneLineSlash,
    ..QWEN2
};
pub(super) const TEKKEN: Words = Words {
    contractions: false,
    letters: Letters::Cased,
    ends: Ends::LinesSlashes,
    ..QWEN2
};
pub(super) const GPT4O: Words = Words {
    contracts: true,
    digits: 3,
    ..TEKKEN
};
pub(super) const GRANITE_EMBED: Words = Words {
    letters: Letters::CasedMarked,
    ..GPT4O
};
/// The one of `gpt-4o` again, but llama.cpp does not tell capitals from small letters in it.
pub(super) const TINY_AYA: Words = Words {
    letters: Letters::Marked,
    ..GPT4O
};
pub(super) const YOUTU: Words = Words {
    digits: 1,
    ..TINY_AYA
};
pub(super) const KIMI_K2: Words = Words {
    contractions: false,
    letters: Letters::NotChinese,
    contracts: true,
    ..LLAMA3
};
pub(super) const DEEPSEEK_V3: Words = Words {
    contractions: false,
    marked_ascii: true,
    before: Before::NoLetterSign,
    letters: Letters::Marked,
    digits: 0,
    others: Others::Signs,
    ..LLAMA3
};
pub(super) const SPARK: Words = Words {
    ends: Ends::None,
    line_runs: false,
    ..DEEPSEEK_V3
};

impl Words {
    /// Bytes of the piece at the start of a text; 0 if none starts there.
    pub(super) fn piece_bytes(&self, text: &str) -> usize {
        let mut characters = text.chars();
        let Some(first) = characters.next() else {
            return 0;
        };
        let rest = characters.as_str();
        let class = Class::of(first);
        if self.contractions
            && let Some(bytes) = contraction_bytes(text)
        {
            return bytes;
        }
        if self.marked_ascii
            && first.is_ascii_punctuation()
            && rest.starts_with(|next: char| next.is_ascii_alphabetic())
        {
            return 1 + run_bytes(rest, |next| next.is_ascii_alphabetic());
        }
        if let Some(word) = self.word_bytes(text, first, class) {
            let after = text.get(word..).unwrap_or_default();
            let contraction = self.contracts.then(|| contraction_bytes(after)).flatten();
            return word + contraction.unwrap_or(0);
        }
        if class == Class::Number && self.digits > 0 {
            let digits = text.chars().take(self.digits);
            return digits
                .take_while(|&digit| Class::of(digit) == Class::Number)
                .map(char::len_utf8)
                .sum();
        }
        if let Some(bytes) = self.others_bytes(text) {
            return bytes;
        }
        if class != Class::Space {
            return 0;
        }
        if !self.line_runs && matches!(first, '\r' | '\n') {
            return 1;
        }
        let run = space_bytes(text);
        let lines = text.get(..run).and_then(|run| run.rfind(['\r', '\n']));
        match lines.filter(|_| self.line_runs) {
            Some(last_line_end) => last_line_end + 1,
            None => spaces_before_word(text, run),
        }
    }

    /// Bytes of a word and what may stand before it.
    fn word_bytes(&self, text: &str, first: char, class: Class) -> Option<usize> {
        let before = !matches!(first, '\r' | '\n')
            && match self.before {
                Before::NoLetterNumber => !matches!(class, Class::Letter | Class::Number),
                Before::NoLetterSign => {
                    !matches!(class, Class::Letter | Class::Punctuation | Class::Symbol)
                }
            };
        let first_bytes = first.len_utf8();
        let rest = text.get(first_bytes..).unwrap_or_default();
        let with_or_without = |bytes: &dyn Fn(&str) -> Option<usize>| {
            let with = if before { bytes(rest) } else { None };
            with.map(|bytes| first_bytes + bytes)
                .or_else(|| bytes(text))
        };
        let run = |text: &str, holds: &dyn Fn(char) -> bool| match run_bytes(text, holds) {
            0 => None,
            bytes => Some(bytes),
        };
        match self.letters {
            Letters::Plain => with_or_without(&|text| run(text, &is_letter)),
            Letters::Marked => with_or_without(&|text| run(text, &is_letter_or_mark)),
            Letters::NotChinese => {
                let holds = |c| is_letter(c) && !is_chinese(c);
                with_or_without(&|text| run(text, &holds))
            }
            Letters::Spaced => with_or_without(&spaced_bytes),
            Letters::Cased => with_or_without(&|text| capitalized_bytes(text, is_letter))
                .or_else(|| with_or_without(&|text| capitals_bytes(text, is_letter))),
            Letters::CasedMarked => {
                with_or_without(&|text| capitalized_bytes(text, is_letter_or_mark))
                    .or_else(|| with_or_without(&|text| capitals_bytes(text, is_letter_or_mark)))
            }
        }
    }

    /// Bytes of signs, a space before them, and what may follow them.
    fn others_bytes(&self, text: &str) -> Option<usize> {
        let holds = |character| {
            let class = Class::of(character);
            match self.others {
                Others::All => class.is_other(),
                Others::NoMarks => class.is_other() && class != Class::Mark,
                Others::Signs => matches!(class, Class::Punctuation | Class::Symbol),
            }
        };
        let signs = text.strip_prefix(' ').unwrap_or(text);
        let bytes = match run_bytes(signs, holds) {
            0 => return None,
            bytes => text.len() - signs.len() + bytes,
        };
        let after = text.get(bytes..).unwrap_or_default();
        let is_line = |character: char| matches!(character, '\r' | '\n');
        let is_end = |character: char| is_line(character) || character == '/';
        Some(
            bytes
                + match self.ends {
                    Ends::None => 0,
                    Ends::Lines => run_bytes(after, is_line),
                    Ends::LinesSlashes => run_bytes(after, is_end),
                    Ends::OneLineSlash => usize::from(after.starts_with(is_end)),
                },
        )
    }
}

fn is_letter(character: char) -> bool {
    Class::of(character) == Class::Letter
}

fn is_letter_or_mark(character: char) -> bool {
    matches!(Class::of(character), Class::Letter | Class::Mark)
}

/// The blocks of Chinese characters.
pub(super) fn is_chinese(character: char) -> bool {
    matches!(
        character,
        '\u{4e00}'..='\u{9fff}'
            | '\u{3400}'..='\u{4dbf}'
            | '\u{20000}'..='\u{2a6df}'
            | '\u{2a700}'..='\u{2ebef}'
            | '\u{f900}'..='\u{faff}'
            | '\u{2f800}'..='\u{2fa1f}'
    )
}

/// `\p{L}\p{M}*(?: ?\p{L}\p{M}*)*`
fn spaced_bytes(text: &str) -> Option<usize> {
    let is_mark = |character| Class::of(character) == Class::Mark;
    let mut rest = text;
    loop {
        let word = match rest.strip_prefix(' ') {
            Some(word) if rest.len() < text.len() => word,
            _ => rest,
        };
        let Some(letter) = word.chars().next().filter(|&letter| is_letter(letter)) else {
            break;
        };
        let after = word.get(letter.len_utf8()..).unwrap_or_default();
        rest = after.trim_start_matches(is_mark);
    }
    match text.len() - rest.len() {
        0 => None,
        bytes => Some(bytes),
    }
}

/// `[L--[a-z]]*[L--[A-Z]]+` for some set of letters L. If no small letter follows the capitals, the expression gives
/// characters back up to one that is of both sets.
fn capitalized_bytes(text: &str, is_letter: fn(char) -> bool) -> Option<usize> {
    let mut both = None;
    let mut capitals = text.len();
    for (at, character) in text.char_indices() {
        if !is_letter(character) || character.is_ascii_lowercase() {
            capitals = at;
            break;
        }
        if !character.is_ascii_uppercase() {
            both = Some(at + character.len_utf8());
        }
    }
    let after = text.get(capitals..).unwrap_or_default();
    match run_bytes(after, |c| is_letter(c) && !c.is_ascii_uppercase()) {
        0 => both,
        small => Some(capitals + small),
    }
}

/// `[L--[a-z]]+[L--[A-Z]]*` where the other expression found nothing: no small letter follows.
fn capitals_bytes(text: &str, is_letter: fn(char) -> bool) -> Option<usize> {
    match run_bytes(text, |c| is_letter(c) && !c.is_ascii_lowercase()) {
        0 => None,
        bytes => Some(bytes),
    }
}

/// Bytes of `(?i:'s|'t|'re|'ve|'m|'ll|'d)` at the start of a text.
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
