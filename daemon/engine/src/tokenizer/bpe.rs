//! Byte-pair encoding of one piece of text: bytes (or, for vocabularies written as plain text, characters) become
//! tokens, then neighbours are merged in the order of the file's merges.
//!
//! Takes `n log n` time in the length of a piece, whatever is in it.

use hashbrown::HashTable;

use super::error::TokenizerError;
use super::index::Hasher;
use super::merge::{Merge, NO_MERGE, NO_TOKEN, Pairs, Symbols};
use super::vocabulary::{Kind, Spelling, Vocabulary, strings};
use crate::gguf::Gguf;

/// Longest run of bytes merged as one, so that positions fit 32 bits.
const PIECE_BYTES_MAX: usize = 1 << 31;

/// Merges looked up together when a vocabulary is read.
const BATCH: usize = 64;

/// The merges of a byte-level vocabulary.
#[derive(Debug)]
pub(super) struct Bpe {
    /// The token of each byte; some vocabularies lack bytes that their training text did not have.
    byte_tokens: [u32; 256],
    spelling: Spelling,
    merges: Merges,
    whole: Whole,
}

/// Pieces that are taken as they are if they are a token as a whole, even if the merges would not make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    Never,
    /// Those of line ends.
    Lines,
    Always,
}

/// The merges in the order of their ranks, and an index of them. Most pairs that are asked for have no
/// merge, and the index alone, which is small, says so.
#[derive(Debug)]
struct Merges {
    pairs: Vec<Pair>,
    ranks: HashTable<u32>,
    hasher: Hasher,
}

#[derive(Debug, Clone, Copy)]
struct Pair {
    left: u32,
    right: u32,
    token: u32,
}

impl Merges {
    fn with_capacity(count: usize) -> Self {
        Self {
            pairs: Vec::with_capacity(count),
            ranks: HashTable::with_capacity(count),
            hasher: Hasher::new(),
        }
    }

    /// Adds the merge of the next rank, unless there is one of this pair: the lower rank wins.
    fn push(&mut self, pair: Pair) {
        let hash = |pair: &Pair| self.hasher.hash((pair.left, pair.right));
        let pairs = &self.pairs;
        let entry = self.ranks.entry(
            hash(&pair),
            |&rank| is_pair(pairs, rank, pair.left, pair.right).is_some(),
            |&rank| pairs.get(rank as usize).map_or(0, hash),
        );
        if let hashbrown::hash_table::Entry::Vacant(vacant) = entry {
            // An array's length fits 32 bits.
            vacant.insert(self.pairs.len() as u32);
            self.pairs.push(pair);
        }
    }

    fn get(&self, left: u32, right: u32) -> Merge {
        let hash = self.hasher.hash((left, right));
        let rank = self.ranks.find(hash, |&rank| {
            is_pair(&self.pairs, rank, left, right).is_some()
        });
        let pair = rank.and_then(|&rank| self.pairs.get(rank as usize));
        match (rank, pair) {
            (Some(&rank), Some(pair)) => Merge {
                rank,
                token: pair.token,
            },
            _ => NO_MERGE,
        }
    }
}

fn is_pair(pairs: &[Pair], rank: u32, left: u32, right: u32) -> Option<&Pair> {
    let pair = pairs.get(rank as usize)?;
    (pair.left == left && pair.right == right).then_some(pair)
}

impl Bpe {
    /// The merges of a file.
    pub(super) fn from_gguf(
        gguf: &Gguf<'_>,
        vocabulary: &Vocabulary,
        spelling: Spelling,
        whole: Whole,
    ) -> Result<Self, TokenizerError> {
        const MERGES: &str = "tokenizer.ggml.merges";
        let array = gguf.array(MERGES)?;
        let mut merges = Merges::with_capacity(array.len());
        let mut texts = strings(MERGES, &array)?;
        let mut batch = Batch::default();
        let mut result = NO_TOKEN;
        // Where the batch begins in the file; merges that are left out count too.
        let mut first = 0;
        loop {
            batch.clear();
            for text in texts.by_ref().take(BATCH) {
                batch.push(vocabulary, text, first + batch.texts.len())?;
            }
            if batch.texts.is_empty() {
                break;
            }
            let likely = vocabulary.likely(&batch.hashes);
            let (likely, _) = likely.as_chunks::<2>();
            let entries = batch.texts.iter().zip(&batch.splits).zip(likely);
            for (((text, split), likely), index) in entries.zip(first..) {
                let unknown = || TokenizerError::UnknownMerge {
                    index,
                    merge: (*text).to_owned(),
                };
                let bytes = batch.bytes.get(split.start..split.end).unwrap_or_default();
                let (left, right) = bytes.split_at_checked(split.middle).ok_or_else(unknown)?;
                // Vocabularies list tokens in the order of the merges that make them, so a comparison
                // with the last result and the one after it nearly always saves a search.
                let is = |bytes: &[u8], id: u32| {
                    vocabulary.is_spelled(id) && vocabulary.bytes(id) == bytes
                };
                let half = |(id, first): (u32, Option<u8>), bytes: &[u8]| {
                    if bytes.first().copied() == first && is(bytes, id) {
                        return Ok(id);
                    }
                    vocabulary.find_spelled(bytes).ok_or_else(unknown)
                };
                let next = result.wrapping_add(1);
                let whole = if is(bytes, next) {
                    Ok(next)
                } else if is(bytes, result) {
                    Ok(result)
                } else {
                    vocabulary.find_spelled(bytes).ok_or_else(unknown)
                };
                let (left, right) = match (half(likely[0], left), half(likely[1], right), whole) {
                    (Ok(left), Ok(right), Ok(whole)) => {
                        result = whole;
                        (left, right)
                    }
                    // Written as plain text, control tokens may be among the merges; text never makes one.
                    _ if spelling == Spelling::Spaces => continue,
                    (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => return Err(error),
                };
                let pair = Pair {
                    left,
                    right,
                    token: result,
                };
                merges.push(pair);
            }
            first += batch.texts.len();
        }
        let byte_tokens = match spelling {
            Spelling::ByteAlphabet => {
                let mut tokens = [NO_TOKEN; 256];
                for (byte, token) in (0..=u8::MAX).zip(&mut tokens) {
                    *token = vocabulary.find_spelled(&[byte]).unwrap_or(NO_TOKEN);
                }
                tokens
            }
            Spelling::Spaces | Spelling::Escapes => vocabulary.byte_tokens(),
        };
        Ok(Self {
            byte_tokens,
            spelling,
            merges,
            whole,
        })
    }

    /// Appends the tokens of a piece to `tokens`. Bytes that the vocabulary lacks are left out before
    /// anything is merged, so their neighbours are neighbours.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        piece: &str,
        scratch: &mut Symbols<()>,
        tokens: &mut Vec<u32>,
    ) {
        let whole = match self.whole {
            Whole::Never => false,
            Whole::Lines => piece.starts_with('\n'),
            Whole::Always => true,
        };
        if whole {
            // Text never makes a control token by itself.
            let whole = vocabulary.find(piece.as_bytes(), |id| {
                vocabulary.is_spelled(id) && vocabulary.kind(id) != Some(Kind::Control)
            });
            if let Some(token) = whole {
                tokens.push(token);
                return;
            }
        }
        match self.spelling {
            Spelling::ByteAlphabet => {
                for bytes in piece.as_bytes().chunks(PIECE_BYTES_MAX) {
                    scratch.clear();
                    self.push_bytes(bytes, scratch);
                    scratch.merge(self, |token, ()| tokens.push(token));
                }
            }
            Spelling::Spaces | Spelling::Escapes => {
                scratch.clear();
                let mut buffer = [0; 4];
                for character in piece.chars() {
                    if scratch.is_full() {
                        scratch.merge(self, |token, ()| tokens.push(token));
                        scratch.clear();
                    }
                    let bytes = character.encode_utf8(&mut buffer).as_bytes();
                    match vocabulary.find_spelled(bytes) {
                        Some(token) => scratch.push(token, ()),
                        None => self.push_bytes(bytes, scratch),
                    }
                }
                scratch.merge(self, |token, ()| tokens.push(token));
            }
        }
    }

    fn push_bytes(&self, bytes: &[u8], scratch: &mut Symbols<()>) {
        for &byte in bytes {
            let token = self.byte_tokens[usize::from(byte)];
            if token != NO_TOKEN {
                scratch.push(token, ());
            }
        }
    }
}

impl Pairs for Bpe {
    type Part = ();

    fn merge(&self, (left, ()): (u32, ()), (right, ()): (u32, ())) -> Merge {
        self.merges.get(left, right)
    }

    fn join((): (), (): ()) {}
}

/// Some merges of a file, spelled out.
#[derive(Default)]
struct Batch<'a> {
    texts: Vec<&'a str>,
    splits: Vec<Split>,
    bytes: Vec<u8>,
    /// Of the left half and the right half of each.
    hashes: Vec<u64>,
}

struct Split {
    /// Of the merge, in the bytes of the batch.
    start: usize,
    end: usize,
    /// Bytes of the left half.
    middle: usize,
}

impl<'a> Batch<'a> {
    fn clear(&mut self) {
        self.texts.clear();
        self.splits.clear();
        self.bytes.clear();
        self.hashes.clear();
    }

    fn push(
        &mut self,
        vocabulary: &Vocabulary,
        text: &'a str,
        index: usize,
    ) -> Result<(), TokenizerError> {
        let malformed = || TokenizerError::MalformedMerge {
            index,
            merge: text.to_owned(),
        };
        let unknown = || TokenizerError::UnknownMerge {
            index,
            merge: text.to_owned(),
        };
        // Written as plain text, a half may be a space itself.
        let from = text.chars().next().map_or(0, char::len_utf8);
        let space = text.get(from..).and_then(|rest| rest.find(' '));
        let (left, right) = space
            .and_then(|at| Some((text.get(..from + at)?, text.get(from + at + 1..)?)))
            .ok_or_else(malformed)?;
        if left.is_empty() || right.is_empty() || right.contains(' ') {
            return Err(malformed());
        }
        let start = self.bytes.len();
        let mut middle = 0;
        for half in [left, right] {
            let from = self.bytes.len();
            middle = from - start;
            if !vocabulary.spell(half, &mut self.bytes) {
                return Err(unknown());
            }
            let half = self.bytes.get(from..).unwrap_or_default();
            self.hashes.push(vocabulary.hash(half));
        }
        let end = self.bytes.len();
        self.splits.push(Split { start, end, middle });
        self.texts.push(text);
        Ok(())
    }
}
