//! The tokens of a model: their bytes, their kinds, and which token has given bytes.
//!
//! All bytes lie in one arena, and the index keeps numbers only, so a vocabulary of 150,000 tokens takes
//! three to four megabytes. The invariant: `ends` has one entry a token, never decreases, and its last is
//! the arena's length.

use super::byte_level;
use super::error::TokenizerError;
use super::index::Index;
use crate::gguf::{Array, Gguf, MetaError, Strs};

/// Tokens in a vocabulary. The largest in use have a quarter of a million.
pub(super) const VOCABULARY_COUNT_MAX: usize = 1 << 21;
/// Bytes of all tokens together, so that an offset fits 32 bits with room to spare.
pub(super) const VOCABULARY_BYTES_MAX: usize = 1 << 28;

/// What a token is for, as the file numbers it (`tokenizer.ggml.token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made by the merges.
    Normal,
    /// Stands for what the vocabulary cannot say.
    Unknown,
    /// Structure of a prompt: never shown, and never made from what users write.
    Control,
    /// Text that is always one token, wherever it stands.
    UserDefined,
}

impl Kind {
    fn from_id(id: i128) -> Option<Self> {
        Some(match id {
            // Unused tokens (5) and bytes (6) are spelled like normal ones.
            1 | 5 | 6 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: Kind,
    /// Written in the byte alphabet, and standing for the bytes it spells: what merges can make.
    spelled: bool,
}

pub(super) struct Vocabulary {
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
    /// Reads a vocabulary written in the byte alphabet. Tokens for which `is_control` holds are control
    /// tokens whatever the file says of them.
    pub(super) fn byte_level(
        gguf: &Gguf<'_>,
        is_control: impl Fn(&str) -> bool,
    ) -> Result<Self, TokenizerError> {
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
        for (id, text) in texts.enumerate() {
            let mut kind = match kinds.as_mut() {
                Some(kinds) => kinds
                    .next()
                    .flatten()
                    .ok_or(TokenizerError::TokenType { id })?,
                None => Kind::Normal,
            };
            if is_control(text) {
                kind = Kind::Control;
            }
            if text.len() > VOCABULARY_BYTES_MAX - arena.len() {
                return Err(TokenizerError::VocabularyBytes {
                    max: VOCABULARY_BYTES_MAX,
                });
            }
            let start = arena.len();
            let mut spelled = byte_level::decode_into(text, &mut arena);
            let literal = matches!(kind, Kind::Control | Kind::UserDefined);
            if !spelled || literal && arena.get(start..) != Some(text.as_bytes()) {
                spelled = false;
                arena.truncate(start);
                arena.extend_from_slice(text.as_bytes());
            }
            // At most VOCABULARY_BYTES_MAX, since decoding never makes text longer.
            ends.push(arena.len() as u32);
            entries.push(Entry { kind, spelled });
        }
        let mut vocabulary = Self {
            arena: arena.into_boxed_slice(),
            ends: ends.into_boxed_slice(),
            entries: entries.into_boxed_slice(),
            index: Index::with_capacity(count),
        };
        vocabulary.fill_index()?;
        Ok(vocabulary)
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
            let hash = index.hash(bytes);
            let same = |other| self.is_spelled(other) == spelled && self.bytes(other) == bytes;
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
        let slots: Vec<u64> = hashes
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
