//! What the estimator sees of a question: grams, which are hashed words and pieces of words, and figures, which are
//! counts and shares.
//!
//! Figures are of two sorts. Those of [`GENERAL`] mean the same in every language: length, lists, digits, coverage. The
//! others count English words ([`super::lexicon`]) and are worth as much as the text is English. Nothing here is learned;
//! what is made of it is in the weights. Digits count as one letter, so that an asset's number is not a word of its own.
//!
//! Invariant: a text of any length costs a bounded time and no allocation: grams are made of [`GRAM_BYTES_HEAD`] and
//! [`GRAM_BYTES_TAIL`], figures of [`TEXT_BYTES_HEAD`] and [`TEXT_BYTES_TAIL`]; only the length counts all of it.

use super::lexicon::{self, Cue};
use super::vocabulary::Vocabulary;

/// Revision of what this module makes of a text. Weights are of use with the revision that they were trained with.
pub const REVISION: u16 = 1;

/// So much of a long text's beginning is read, in bytes.
pub const TEXT_BYTES_HEAD: usize = 8 * 1024;
/// And so much of its end.
pub const TEXT_BYTES_TAIL: usize = 4 * 1024;
/// So much of the beginning of what is read makes grams, in bytes.
pub const GRAM_BYTES_HEAD: usize = 3 * 1024;
/// And so much of its end: what is asked is often said last.
pub const GRAM_BYTES_TAIL: usize = 1024;
/// Of longer words the beginning makes grams, in letters.
const WORD_LETTERS_MAX: usize = 24;
/// Shortest and longest pieces of words, in letters with one for each end of the word.
const PIECE_LETTERS: core::ops::RangeInclusive<usize> = 3..=5;

/// A question, as far as the estimate depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Question<'a> {
    /// What is asked, with what it is asked about.
    pub text: &'a str,
    /// The task of the site that it belongs to, by name.
    pub task: Option<&'a str>,
    /// What the site's texts are made of. `None`: nothing is known of the site.
    pub vocabulary: Option<&'a Vocabulary>,
}

impl<'a> Question<'a> {
    /// A question of which nothing but the text is known.
    #[must_use]
    pub const fn of(text: &'a str) -> Self {
        Self {
            text,
            task: None,
            vocabulary: None,
        }
    }
}

/// What a gram is a hash of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GramKind {
    /// A word.
    Word,
    /// Two words in a row.
    Pair,
    /// The first word of a sentence or line, which says what to do in many instructions.
    Opening,
    /// A few letters in a row of a word, its ends included.
    Piece,
    /// The name of the task.
    Task,
}

impl GramKind {
    const fn seed(self) -> u32 {
        match self {
            Self::Word => 0,
            Self::Pair => 0x51ED_270B,
            Self::Opening => 0xB529_7A4D,
            Self::Piece => 0x68E3_1DA4,
            Self::Task => 0x1B56_C4E9,
        }
    }
}

/// A gram of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gram {
    /// What it is a hash of.
    pub kind: GramKind,
    /// The hash, of which the low bits choose a weight.
    pub hash: u32,
    /// Where in the text it stands, in bytes; empty for the task's name.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// Names of the figures, in order, as `explain` shows them. The first [`GENERAL`] mean the same in every language.
pub const FIGURES: &[&str] = &[
    "length",
    "words",
    "lines",
    "list lines",
    "share of data",
    "share of digits",
    "numbers",
    "digits of the longest number",
    "share of symbols",
    "mathematical signs",
    "questions",
    "share of capitals",
    "letters per word",
    "share of repeated words",
    "options",
    "length of the options",
    "unevenness of the options",
    "share of other scripts",
    "coverage by the site",
    "words known",
    "task known",
    "thinking asked for",
    "causes asked for",
    "looking up asked for",
    "bounds of the answer",
    "conditions",
    "comparisons",
    "steps",
    "amounts",
    "negations",
    "code",
    "facts asked for",
    "may or should",
    "mathematics",
    "horizon",
    "writing asked for",
    "share of function words",
    "requests",
    "words per sentence",
    "commas per sentence",
];

/// How many figures mean the same in every language.
pub const GENERAL: usize = 21;

/// Where the share of letters outside the Latin script stands.
pub const FOREIGN: usize = 17;
/// Where the coverage by the site's vocabulary stands.
pub const COVERAGE: usize = 18;
/// Where it stands whether a task is known.
pub const TASK_KNOWN: usize = 20;

/// How many figures there are.
pub const COUNT: usize = FIGURES.len();

/// The figures of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Values in the order of [`FIGURES`]. Counts are as `log2(1 + n)`, shares between 0 and 1.
    pub values: [f32; COUNT],
    /// Grams that were handed on.
    pub grams: u32,
    /// Words of letters of which `known` was asked, and how many of them it knew.
    pub words: u32,
    /// Of these, known ones.
    pub known: u32,
}

impl Figures {
    /// How much of the text is of words that were known, from 0 to 1; 0 without words.
    #[must_use]
    pub fn known_share(&self) -> f32 {
        share(self.known, self.words)
    }
}

/// `count` of `all`, 0 of none.
fn share(count: u32, all: u32) -> f32 {
    if all == 0 {
        0.0
    } else {
        count as f32 / all as f32
    }
}

/// `log2(1 + count)`, between powers of two by a straight line.
fn scale(count: u32) -> f32 {
    let above = count.saturating_add(1);
    let exponent = above.ilog2();
    exponent as f32 + (above as f32 / (1_u32 << exponent) as f32 - 1.0)
}

const OFFSET: u32 = 0x811C_9DC5;
const PRIME: u32 = 0x0100_0193;

const fn step(hash: u32, letter: u32) -> u32 {
    (hash ^ letter).wrapping_mul(PRIME)
}

/// The hash of the word in `bytes[at..end]`, which are lower-case ASCII.
pub(super) const fn hash_word(bytes: &[u8], at: usize, end: usize) -> u32 {
    let mut hash = OFFSET;
    let mut index = at;
    while index < end {
        hash = step(hash, bytes[index] as u32);
        index += 1;
    }
    hash
}

/// Spreads a hash over all bits.
const fn spread(hash: u32, seed: u32) -> u32 {
    let mut hash = hash ^ seed;
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85EB_CA6B);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xC2B2_AE35);
    hash ^ (hash >> 16)
}

/// The hash under which a vocabulary knows a word, given folded letter by letter.
pub(super) const fn known_as(word: u32) -> u32 {
    spread(word, 0x2545_F491)
}

/// Calls `found` with the hash of each word of letters in `text`, as [`known_as`] has it, and with those of other words.
pub(super) fn words_of(text: &str, mut found: impl FnMut(u32)) {
    let mut reader = Words::new(text, 0);
    while let Some(word) = reader.next() {
        if word.letters > 0 {
            found(known_as(word.hash));
        }
    }
}

/// The parts of `text` that are read: all of it, or its beginning and its end.
fn read_parts(text: &str) -> (&str, &str) {
    if text.len() <= TEXT_BYTES_HEAD + TEXT_BYTES_TAIL {
        return (text, "");
    }
    let head = text.floor_char_boundary(TEXT_BYTES_HEAD);
    let tail = text.ceil_char_boundary(text.len() - TEXT_BYTES_TAIL);
    (&text[..head], &text[tail..])
}

/// A word: letters, digits and what stands inside words.
struct Word {
    start: usize,
    end: usize,
    /// Of its folded letters.
    hash: u32,
    /// How many letters it has that are no digits.
    letters: u32,
    digits: u32,
    capitals: u32,
    /// Letters outside the Latin script.
    foreign: u32,
    folded: [u32; WORD_LETTERS_MAX],
    folded_count: usize,
    /// What stands between it and the word before.
    gap: Gap,
}

/// What stands between two words.
#[derive(Clone, Copy, Default)]
struct Gap {
    commas: u32,
    questions: u32,
    /// A sentence or a line has ended.
    ends: bool,
    /// Signs that are no punctuation of prose.
    symbols: u32,
    mathematical: u32,
}

struct Words<'a> {
    text: &'a str,
    at: usize,
    /// Where `text` begins in the whole.
    base: usize,
    /// What stands after the last word.
    rest: Gap,
}

/// Scripts without spaces between words: each letter counts as a word.
const fn stands_alone(letter: char) -> bool {
    matches!(letter as u32, 0x0E00..=0x0EFF | 0x2E80..=0x9FFF | 0xF900..=0xFAFF | 0x2_0000..=0x3_FFFF)
}

/// Digits as one, letters in lower case. Of letters whose lower case is several, the first.
fn fold(letter: char) -> u32 {
    if letter.is_ascii() {
        return match letter {
            '0'..='9' => u32::from('0'),
            '’' => u32::from('\''),
            _ => letter.to_ascii_lowercase() as u32,
        };
    }
    if letter == '’' {
        return u32::from('\'');
    }
    letter.to_lowercase().next().map_or(0, u32::from)
}

impl<'a> Words<'a> {
    const fn new(text: &'a str, base: usize) -> Self {
        Self {
            text,
            at: 0,
            base,
            rest: Gap {
                commas: 0,
                questions: 0,
                ends: false,
                symbols: 0,
                mathematical: 0,
            },
        }
    }

    fn next(&mut self) -> Option<Word> {
        let mut gap = Gap::default();
        let mut characters = self.text[self.at..].char_indices();
        let (start, first) = loop {
            let Some((offset, character)) = characters.next() else {
                self.at = self.text.len();
                self.rest = gap;
                return None;
            };
            if character.is_alphanumeric() {
                break (self.at + offset, character);
            }
            match character {
                ' ' | '\t' | '"' | '\'' | '\r' | '’' | '‘' | '“' | '”' | '-' => {}
                '\n' => gap.ends = true,
                '.' | '!' | ':' | '。' | '！' | '：' => gap.ends = true,
                '?' | '？' | '؟' => {
                    gap.ends = true;
                    gap.questions += 1;
                }
                ',' | ';' | '，' | '、' | '；' => gap.commas += 1,
                '$' | '\\' | '^' | '+' | '=' | '<' | '>' | '*' | '/' | '%' | '√' | '∫' | '≤'
                | '≥' | '×' | '÷' | '−' => {
                    gap.mathematical += 1;
                    gap.symbols += 1;
                }
                _ => gap.symbols += 1,
            }
        };
        let mut word = Word {
            start: self.base + start,
            end: 0,
            hash: OFFSET,
            letters: 0,
            digits: 0,
            capitals: 0,
            foreign: 0,
            folded: [0; WORD_LETTERS_MAX],
            folded_count: 0,
            gap,
        };
        let mut end = start;
        let mut character = first;
        let mut rest = self.text[start + first.len_utf8()..].chars();
        loop {
            word.take(character);
            end += character.len_utf8();
            if stands_alone(character) {
                break;
            }
            let mut following = rest.clone();
            let Some(next) = following.next() else { break };
            let inside = next.is_alphanumeric() && !stands_alone(next)
                // An apostrophe between letters, a point or comma between digits.
                || matches!(next, '\'' | '’') && character.is_alphabetic() && following.clone().next().is_some_and(char::is_alphabetic)
                || matches!(next, '.' | ',') && character.is_ascii_digit() && following.clone().next().is_some_and(|c| c.is_ascii_digit());
            if !inside {
                break;
            }
            rest = following;
            character = next;
        }
        word.end = self.base + end;
        self.at = end;
        Some(word)
    }
}

impl Word {
    fn take(&mut self, character: char) {
        if character.is_ascii_digit() {
            self.digits += 1;
        } else if character.is_alphabetic() {
            self.letters += 1;
            self.capitals += u32::from(character.is_uppercase());
            // Latin with its extensions ends there.
            self.foreign += u32::from(character as u32 > 0x24F);
        } else if character.is_numeric() {
            self.digits += 1;
        }
        let folded = fold(character);
        self.hash = step(self.hash, folded);
        if self.folded_count < WORD_LETTERS_MAX {
            self.folded[self.folded_count] = folded;
            self.folded_count += 1;
        }
    }
}

/// What is counted over the words of a text.
#[derive(Default)]
struct Counts {
    words: u32,
    letter_words: u32,
    known: u32,
    site: u32,
    letters: u32,
    digits: u32,
    capitals: u32,
    foreign: u32,
    numbers: u32,
    number_digits_max: u32,
    symbols: u32,
    mathematical: u32,
    questions: u32,
    commas: u32,
    sentences: u32,
    repeated: u32,
    requests: u32,
    cues: [u32; lexicon::KINDS],
    grams: u32,
}

/// Reads a question. `known` says whether a word is known to the weights; `gram` gets every gram.
pub fn read(
    question: &Question<'_>,
    known: impl Fn(u32) -> bool,
    mut gram: impl FnMut(Gram),
) -> Figures {
    let (head, tail) = read_parts(question.text);
    let mut counts = Counts::default();
    // Words seen so far, by their hash: some of long texts are taken for repeated that are not.
    let mut seen = [0_u64; 64];
    let read = head.len() + tail.len();
    let tail_at = question.text.len() - tail.len();
    // Grams are made where a word begins before the first or after the second of these.
    let head_end = GRAM_BYTES_HEAD;
    let tail_start = if read <= GRAM_BYTES_HEAD + GRAM_BYTES_TAIL {
        0
    } else {
        question.text.len() - GRAM_BYTES_TAIL
    };
    for (part, base) in [(head, 0), (tail, tail_at)] {
        if part.is_empty() {
            continue;
        }
        let mut words = Words::new(part, base);
        let mut before: Option<(u32, usize)> = None;
        let mut opens = true;
        while let Some(word) = words.next() {
            counts.gap(word.gap);
            if word.gap.ends {
                opens = true;
                before = None;
            }
            counts.word(&word, &mut seen);
            let hash = word.hash;
            let mut kinds = lexicon::cues(hash);
            if let Some((first, _)) = before {
                kinds |= lexicon::cues(lexicon::pair(first, hash));
            }
            counts.kinds(kinds, opens);
            if word.letters > 0 {
                let name = known_as(hash);
                counts.known += u32::from(known(name));
                counts.site += u32::from(question.vocabulary.is_some_and(|site| site.has(name)));
            }
            if word.start < head_end || word.start >= tail_start {
                let mut found = |kind: GramKind, hash: u32, start: usize, end: usize| {
                    counts.grams += 1;
                    let hash = spread(hash, kind.seed());
                    gram(Gram {
                        kind,
                        hash,
                        start,
                        end,
                    });
                };
                found(GramKind::Word, hash, word.start, word.end);
                if let Some((first, start)) = before {
                    found(GramKind::Pair, lexicon::pair(first, hash), start, word.end);
                }
                if opens {
                    found(GramKind::Opening, hash, word.start, word.end);
                }
                if word.letters > 0 {
                    pieces(&word, |hash| {
                        found(GramKind::Piece, hash, word.start, word.end);
                    });
                }
            }
            opens = false;
            before = Some((hash, word.start));
        }
        counts.gap(words.rest);
    }
    let lines = Lines::of(head, tail);
    let mut task_known = 0.0;
    if let Some(task) = question.task {
        let mut hash = OFFSET;
        for letter in task.chars().take(64) {
            hash = step(hash, fold(letter));
        }
        gram(Gram {
            kind: GramKind::Task,
            hash: spread(hash, GramKind::Task.seed()),
            start: 0,
            end: 0,
        });
        counts.grams += 1;
        task_known = 1.0;
    }
    counts.figures(question, read, &lines, task_known)
}

/// Calls `found` with the hash of each piece of a word with its ends.
fn pieces(word: &Word, mut found: impl FnMut(u32)) {
    const EDGE: u32 = 1;
    let letters = word.folded_count;
    let at = |index: usize| {
        if index == 0 || index == letters + 1 {
            EDGE
        } else {
            word.folded[index - 1]
        }
    };
    for start in 0..letters + 2 {
        let mut hash = OFFSET;
        for length in 1..=*PIECE_LETTERS.end() {
            let index = start + length - 1;
            if index > letters + 1 {
                break;
            }
            hash = step(hash, at(index));
            if PIECE_LETTERS.contains(&length) {
                found(hash);
            }
        }
    }
}

impl Counts {
    fn gap(&mut self, gap: Gap) {
        self.commas += gap.commas;
        self.questions += gap.questions;
        self.symbols += gap.symbols;
        self.mathematical += gap.mathematical;
        self.sentences += u32::from(gap.ends && self.words > 0);
    }

    fn word(&mut self, word: &Word, seen: &mut [u64; 64]) {
        self.words += 1;
        self.letters += word.letters;
        self.digits += word.digits;
        self.capitals += word.capitals;
        self.foreign += word.foreign;
        if word.letters > 0 {
            self.letter_words += 1;
        } else {
            self.numbers += 1;
            self.number_digits_max = self.number_digits_max.max(word.digits);
        }
        let bit = spread(word.hash, 0) as usize % (64 * 64);
        let mask = 1_u64 << (bit % 64);
        self.repeated += u32::from(seen[bit / 64] & mask != 0);
        seen[bit / 64] |= mask;
    }

    fn kinds(&mut self, kinds: u16, opens: bool) {
        const ORDERS: u16 =
            1 << Cue::Work as u16 | 1 << Cue::Lookup as u16 | 1 << Cue::Story as u16;
        let mut left = kinds;
        while left != 0 {
            self.cues[left.trailing_zeros() as usize] += 1;
            left &= left - 1;
        }
        self.requests += u32::from(opens && kinds & ORDERS != 0);
    }

    fn figures(
        &self,
        question: &Question<'_>,
        read: usize,
        lines: &Lines,
        task_known: f32,
    ) -> Figures {
        let sentences = self.sentences.max(1);
        let cue = |kind: Cue| scale(self.cues[kind as usize]);
        let bytes = u32::try_from(question.text.len()).unwrap_or(u32::MAX);
        let read = u32::try_from(read).unwrap_or(u32::MAX);
        let values = [
            scale(bytes),
            scale(self.words),
            scale(lines.count),
            scale(lines.listed),
            share(lines.data_bytes, read),
            share(self.digits, read),
            scale(self.numbers),
            self.number_digits_max.min(12) as f32,
            share(self.symbols, read),
            scale(self.mathematical),
            scale(self.questions),
            share(self.capitals, self.letters),
            share(self.letters, self.letter_words).min(16.0),
            share(self.repeated, self.words),
            lines.options.min(8) as f32,
            lines.option_mean(),
            lines.option_unevenness(),
            share(self.foreign, self.letters),
            if question.vocabulary.is_some() {
                share(self.site, self.letter_words)
            } else {
                UNKNOWN_COVERAGE
            },
            share(self.known, self.letter_words),
            task_known,
            cue(Cue::Work),
            cue(Cue::Cause),
            cue(Cue::Lookup),
            cue(Cue::Bounded),
            cue(Cue::Condition),
            cue(Cue::Comparison),
            cue(Cue::Step),
            cue(Cue::Quantity),
            cue(Cue::Negation),
            cue(Cue::Code),
            cue(Cue::Fact),
            cue(Cue::Modal),
            cue(Cue::Mathematics),
            cue(Cue::Horizon),
            cue(Cue::Story),
            share(self.cues[Cue::Function as usize], self.words),
            scale(self.requests),
            scale(self.words / sentences),
            scale(self.commas / sentences),
        ];
        Figures {
            values,
            grams: self.grams,
            words: self.letter_words,
            known: self.known,
        }
    }
}

/// The coverage of a question where nothing is known of the site.
pub const UNKNOWN_COVERAGE: f32 = 0.5;

/// What is counted over the lines of a text.
#[derive(Default)]
struct Lines {
    count: u32,
    /// Lines that begin as those of a list do.
    listed: u32,
    /// Bytes of lines that are data rather than prose: listed, or with a good share of digits, capitals and signs.
    data_bytes: u32,
    /// Lines that begin with the letter or number of an option.
    options: u32,
    option_bytes: u32,
    option_bytes_min: u32,
    option_bytes_max: u32,
}

impl Lines {
    fn of(head: &str, tail: &str) -> Self {
        let mut lines = Self::default();
        for line in head.lines().chain(tail.lines()) {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            lines.count += 1;
            lines.line(line);
        }
        lines
    }

    fn line(&mut self, line: &str) {
        let bytes = line.as_bytes();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let option = match bytes {
            [b'A'..=b'J', b'.' | b')' | b':', b' ', ..] => 3,
            [b'(', b'A'..=b'J' | b'a'..=b'j', b')', b' ', ..] => 4,
            _ => 0,
        };
        if option > 0 {
            let length = length - option;
            self.option_bytes_min = if self.options == 0 {
                length
            } else {
                self.option_bytes_min.min(length)
            };
            self.option_bytes_max = self.option_bytes_max.max(length);
            self.option_bytes += length;
            self.options += 1;
            return;
        }
        let listed = matches!(bytes, [b'-' | b'*' | b'|' | b'#', ..])
            || line.starts_with('•')
            || matches!(
                bytes,
                [b'0'..=b'9', b'.' | b')', b' ', ..]
                    | [b'0'..=b'9', b'0'..=b'9', b'.' | b')', b' ', ..]
            );
        let dense = bytes
            .iter()
            .filter(|byte| {
                byte.is_ascii_digit()
                    || byte.is_ascii_uppercase()
                    || matches!(byte, b'_' | b'=' | b'|' | b'{' | b'}')
            })
            .count();
        self.listed += u32::from(listed);
        // Prose in English has some 3 % of these.
        if listed || dense * 5 > bytes.len() {
            self.data_bytes += length;
        }
    }

    fn option_mean(&self) -> f32 {
        scale(self.option_bytes / self.options.max(1))
    }

    /// How many times the longest is as long as the shortest, as `log2`.
    fn option_unevenness(&self) -> f32 {
        scale(self.option_bytes_max) - scale(self.option_bytes_min)
    }
}
