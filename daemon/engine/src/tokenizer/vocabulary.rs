//! The tokens of a model: their bytes, their kinds, and which token has given bytes.
//!
//! All bytes lie in one arena, and the index keeps numbers only, so a vocabulary of 150,000 tokens takes
//! three to four megabytes. The invariant: `ends` has one entry a token, never decreases, and its last is
//! the arena's length.

use super::error::TokenizerError;
use super::index::Index;
use super::{byte_level, escape};
use crate::gguf::{Array, Gguf, MetaError, Strs};

/// Tokens in a vocabulary. The largest in use have a quarter of a million.
pub(super) const VOCABULARY_COUNT_MAX: usize = 1 << 21;
/// Bytes of all tokens together, so that an offset fits 32 bits with room to spare.
pub(super) const VOCABULARY_BYTES_MAX: usize = 1 << 28;

/// What a token is for, as the file numbers it (`tokenizer.ggml.token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made from text.
    Normal,
    /// Made from text as well, though no text of the training had it.
    Unused,
    /// Stands for what the vocabulary cannot say.
    Unknown,
    /// Structure of a prompt: never shown, and never made from what users write.
    Control,
    /// Text that is always one token, wherever it stands.
    UserDefined,
    /// One byte, for text that no other token has.
    Byte,
}

impl Kind {
    fn from_id(id: i128) -> Option<Self> {
        Some(match id {
            1 => Self::Normal,
            // Those whose kind is not defined (0) are treated the same.
            0 | 5 => Self::Unused,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Whether text is searched for this token before anything else is done with it.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::UserDefined)
    }
}

/// How a file writes what tokens stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// One character for each byte.
    ByteAlphabet,
    /// Plain text, with U+2581 for a space and `<0x0A>` for a byte.
    Spaces,
    /// Text with escapes: `\n`, `\\`, `\x0a`.
    Escapes,
}

/// In plain spelling, what stands for a space.
pub(super) const SPACE_MARK: char = '\u{2581}';

impl Spelling {
    /// Appends what a text stands for and returns true; or appends something else, or nothing, and returns false
    /// if no token that is made from text is written like this.
    fn spell(self, text: &str, bytes: &mut Vec<u8>) -> bool {
        match self {
            Self::ByteAlphabet => byte_level::decode_into(text, bytes),
            Self::Escapes => {
                escape::decode_into(text, bytes);
                true
            }
            Self::Spaces => {
                push_spaces(text, bytes);
                !text.contains(' ')
            }
        }
    }
}

/// Appends a text with spaces in place of their marks.
pub(super) fn push_spaces(text: &str, bytes: &mut Vec<u8>) {
    let mut parts = text.split(SPACE_MARK);
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        bytes.push(b' ');
        bytes.extend_from_slice(part.as_bytes());
    }
}

/// The byte that `<0x0A>` stands for.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok())?
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: Kind,
    /// Standing for the bytes that its text spells: what encoding can make.
    spelled: bool,
}

/// The text of a token that is searched for in texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpecialText {
    pub(super) id: u32,
    pub(super) kind: Kind,
    pub(super) text: Box<str>,
}

pub(super) struct Vocabulary {
    spelling: Spelling,
    arena: Box<[u8]>,
    ends: Box<[u32]>,
    entries: Box<[Entry]>,
    index: Index,
}

impl core::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vocabulary")
            .field("count", &self.ends.len())
            .finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// Reads a vocabulary, and the special tokens in it as they are written. Tokens for which `is_control` holds are
    /// control tokens whatever the file says of them; it is told a text and the kind that the file gives it.
    pub(super) fn from_gguf(
        gguf: &Gguf<'_>,
        spelling: Spelling,
        is_control: impl Fn(&str, Kind) -> bool,
    ) -> Result<(Self, Vec<SpecialText>), TokenizerError> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        let array = gguf.array(TOKENS)?;
        let texts = strings(TOKENS, &array)?;
        let count = array.len();
        if count == 0 || count > VOCABULARY_COUNT_MAX {
            return Err(TokenizerError::VocabularyCount {
                count,
                max: VOCABULARY_COUNT_MAX,
            });
        }
        let mut kinds = kinds(gguf, count)?;

        let mut arena = Vec::new();
        let mut ends = Vec::with_capacity(count);
        let mut entries = Vec::with_capacity(count);
        let mut special = Vec::new();
        for (id, text) in texts.enumerate() {
            let mut kind = match kinds.as_mut() {
                Some(kinds) => kinds
                    .next()
                    .flatten()
                    .ok_or(TokenizerError::TokenType { id })?,
                // Files without kinds write bytes as others do.
                None if spelling == Spelling::Spaces && byte_of(text).is_some() => Kind::Byte,
                None => Kind::Normal,
            };
            if is_control(text, kind) {
                kind = Kind::Control;
            }
            if text.len() > VOCABULARY_BYTES_MAX - arena.len() {
                return Err(TokenizerError::VocabularyBytes {
                    max: VOCABULARY_BYTES_MAX,
                });
            }
            let byte = match kind {
                Kind::Byte => byte_of(text),
                _ => None,
            };
            if kind == Kind::Byte && byte.is_none() {
                kind = Kind::Normal;
            }
            let start = arena.len();
            let mut spelled = byte.is_none() && spelling.spell(text, &mut arena);
            if let Some(byte) = byte {
                arena.push(byte);
            } else {
                let literal = match (spelling, kind) {
                    (Spelling::ByteAlphabet, kind) if kind.is_special() => {
                        arena.get(start..) != Some(text.as_bytes())
                    }
                    (Spelling::ByteAlphabet, _) => !spelled,
                    (_, kind) => matches!(kind, Kind::Control | Kind::Unknown),
                };
                if literal {
                    spelled = false;
                    arena.truncate(start);
                    arena.extend_from_slice(text.as_bytes());
                }
            }
            // At most VOCABULARY_BYTES_MAX, since spelling never makes text longer.
            ends.push(arena.len() as u32);
            entries.push(Entry { kind, spelled });
            if kind.is_special() && !text.is_empty() {
                special.push(SpecialText {
                    // VOCABULARY_COUNT_MAX fits 32 bits.
                    id: id as u32,
                    kind,
                    text: text.into(),
                });
            }
        }
        let mut vocabulary = Self {
            spelling,
            arena: arena.into_boxed_slice(),
            ends: ends.into_boxed_slice(),
            entries: entries.into_boxed_slice(),
            index: Index::with_capacity(count),
        };
        vocabulary.fill_index()?;
        Ok((vocabulary, special))
    }

    /// Appends what a text of the file stands for; false if no token that is made from text is written like this.
    pub(super) fn spell(&self, text: &str, bytes: &mut Vec<u8>) -> bool {
        self.spelling.spell(text, bytes)
    }

    /// The token of each byte, for text that no other token has; `u32::MAX` where there is none.
    pub(super) fn byte_tokens(&self) -> [u32; 256] {
        let mut tokens = [u32::MAX; 256];
        // VOCABULARY_COUNT_MAX fits 32 bits.
        for id in (0..self.count() as u32).rev() {
            if let (Some(Kind::Byte), &[byte]) = (self.kind(id), self.bytes(id)) {
                tokens[usize::from(byte)] = id;
            }
        }
        tokens
    }

    /// The numbers of the tokens that encoding can make.
    pub(super) fn spelled(&self) -> impl Iterator<Item = u32> {
        // VOCABULARY_COUNT_MAX fits 32 bits.
        (0..self.count() as u32).filter(|&id| self.is_spelled(id) && !self.bytes(id).is_empty())
    }

    fn fill_index(&mut self) -> Result<(), TokenizerError> {
        let mut index = core::mem::take(&mut self.index);
        // VOCABULARY_COUNT_MAX fits 32 bits.
        for id in 0..self.count() as u32 {
            let bytes = self.bytes(id);
            // Some files fill unused numbers with empty tokens; no text makes them.
            if bytes.is_empty() {
                continue;
            }
            let spelled = self.is_spelled(id);
            let is_byte = self.kind(id) == Some(Kind::Byte);
            let hash = index.hash(bytes);
            let same = |other| {
                self.is_spelled(other) == spelled
                    && (self.kind(other) == Some(Kind::Byte)) == is_byte
                    && self.bytes(other) == bytes
            };
            if let Some(first) = index.find(hash, same) {
                return Err(TokenizerError::DuplicateToken { first, second: id });
            }
            index.insert(hash, id);
        }
        self.index = index;
        Ok(())
    }

    pub(super) fn count(&self) -> usize {
        self.ends.len()
    }

    /// The bytes a token stands for; empty for an unknown number.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let index = id as usize;
        let start = match index.checked_sub(1) {
            Some(previous) => self.ends.get(previous).copied(),
            None => Some(0),
        };
        let end = self.ends.get(index).copied();
        match (start, end) {
            (Some(start), Some(end)) => self
                .arena
                .get(start as usize..end as usize)
                .unwrap_or_default(),
            _ => &[],
        }
    }

    pub(super) fn kind(&self, id: u32) -> Option<Kind> {
        self.entries.get(id as usize).map(|entry| entry.kind)
    }

    pub(super) fn is_spelled(&self, id: u32) -> bool {
        self.entries
            .get(id as usize)
            .is_some_and(|entry| entry.spelled)
    }

    /// The first token with these bytes that satisfies a condition.
    pub(super) fn find(&self, bytes: &[u8], condition: impl Fn(u32) -> bool) -> Option<u32> {
        self.index.find(self.hash(bytes), |id| {
            self.bytes(id) == bytes && condition(id)
        })
    }

    /// The token that merges make of these bytes.
    pub(super) fn find_spelled(&self, bytes: &[u8]) -> Option<u32> {
        self.find(bytes, |id| self.is_spelled(id))
    }

    pub(super) fn hash(&self, bytes: &[u8]) -> u64 {
        self.index.hash(bytes)
    }

    /// For each hash a token that may have its bytes, and that token's first byte. Nearly all of the work
    /// is waiting for memory, so it is done step by step for all of them, with the accesses of a step
    /// under way together; the first bytes bring near the rest, with which they will be compared.
    pub(super) fn likely(&self, hashes: &[u64]) -> Vec<(u32, Option<u8>)> {
        let slots: Vec<u32> = hashes
            .iter()
            .map(|&hash| self.index.first_slot(hash))
            .collect();
        let ids: Vec<u32> = slots
            .iter()
            .zip(hashes)
            .map(|(&slot, &hash)| self.index.find_from(slot, hash).unwrap_or(u32::MAX))
            .collect();
        let starts: Vec<u32> = ids
            .iter()
            .map(|&id| {
                self.ends
                    .get((id as usize).wrapping_sub(1))
                    .copied()
                    .unwrap_or(0)
            })
            .collect();
        starts
            .iter()
            .zip(ids)
            .map(|(&start, id)| (id, self.arena.get(start as usize).copied()))
            .collect()
    }
}

pub(super) fn strings<'a>(key: &str, array: &Array<'a>) -> Result<Strs<'a>, MetaError> {
    array.strs().ok_or_else(|| MetaError::WrongType {
        key: key.to_owned(),
        wanted: "an array of strings",
        found: array.element_type(),
    })
}

/// The kinds of the tokens, in order, if the file says; an inner `None` is a number that means nothing.
fn kinds<'a>(
    gguf: &Gguf<'a>,
    count: usize,
) -> Result<Option<impl Iterator<Item = Option<Kind>> + use<'a>>, TokenizerError> {
    const TYPES: &str = "tokenizer.ggml.token_type";
    let array = match gguf.array(TYPES) {
        Ok(array) => array,
        Err(MetaError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if array.len() != count {
        return Err(TokenizerError::TokenTypeCount {
            types: array.len(),
            tokens: count,
        });
    }
    let integers = array.integers().ok_or_else(|| MetaError::WrongType {
        key: TYPES.to_owned(),
        wanted: "an array of integers",
        found: array.element_type(),
    })?;
    Ok(Some(integers.map(Kind::from_id)))
}

/// The score of each token, none of them infinite or not a number.
pub(super) fn scores(gguf: &Gguf<'_>, count: usize) -> Result<Box<[f32]>, TokenizerError> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let array = match gguf.array(SCORES) {
        Ok(array) => array,
        Err(MetaError::Missing { .. }) => return Ok(vec![0.0; count].into_boxed_slice()),
        Err(error) => return Err(error.into()),
    };
    if array.len() != count {
        return Err(TokenizerError::ScoreCount {
            scores: array.len(),
            tokens: count,
        });
    }
    let scores: Box<[f32]> = if let Some(floats) = array.numbers::<f32>() {
        floats.collect()
    } else {
        let integers = array.integers().ok_or_else(|| MetaError::WrongType {
            key: SCORES.to_owned(),
            wanted: "an array of numbers",
            found: array.element_type(),
        })?;
        integers.map(|score| score as f32).collect()
    };
    match scores.iter().position(|score| !score.is_finite()) {
        Some(id) => Err(TokenizerError::Score { id }),
        None => Ok(scores),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_in_hexadecimal() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        assert_eq!(byte_of("<0xff>"), Some(255));
        for other in [
            "<0x0A", "0x0A>", "<0x+1>", "<0x1>", "<0x100>", "<0x>", "<0xé>",
        ] {
            assert_eq!(byte_of(other), None, "{other}");
        }
    }

    #[test]
    fn spaces_take_the_place_of_their_marks() {
        let mut bytes = Vec::new();
        assert!(Spelling::Spaces.spell("▁▁a▁b▁", &mut bytes));
        assert_eq!(bytes, b"  a b ");
        assert!(!Spelling::Spaces.spell("a b", &mut bytes));
    }
}
