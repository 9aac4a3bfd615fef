//! Byte-pair encoding of one piece of text: bytes become tokens, then neighbours are merged, always the
//! pair with the lowest rank, the leftmost first among equals, until no pair has a rank.
//!
//! Takes `n log n` time in the length of a piece, whatever is in it.

use core::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashTable;

use super::byte_level;
use super::error::TokenizerError;
use super::index::Hasher;
use super::vocabulary::{Kind, Vocabulary, strings};
use crate::gguf::Gguf;

/// Up to this many symbols a scan for the best pair beats a heap; words are shorter, almost always.
const SCAN_SYMBOLS_MAX: usize = 32;
/// Longest run of bytes merged as one, so that positions fit 32 bits.
const PIECE_BYTES_MAX: usize = 1 << 31;

const NO_TOKEN: u32 = u32::MAX;
/// No merge has this rank: there are at most as many as an array may have elements.
const NO_RANK: u32 = u32::MAX;
/// The end of the linked list.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Merge {
    rank: u32,
    token: u32,
}

const NO_MERGE: Merge = Merge {
    rank: NO_RANK,
    token: NO_TOKEN,
};

/// Merges looked up together when a vocabulary is read.
const BATCH: usize = 64;

/// The merges of a byte-level vocabulary.
#[derive(Debug)]
pub(super) struct Bpe {
    /// The token of each byte; some vocabularies lack bytes that their training text did not have.
    byte_tokens: [u32; 256],
    merges: Merges,
    /// A piece that is a token as a whole is taken as it is, even if the merges would not make it.
    ignore_merges: bool,
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

    /// Adds the merge of the next rank; false if there is one of this pair.
    fn push(&mut self, pair: Pair) -> bool {
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
            true
        } else {
            false
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

/// Working memory of [`Bpe::encode`], kept from piece to piece.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    /// Rank, then position: the order in which merges are made.
    queue: BinaryHeap<Reverse<(u32, u32)>>,
}

#[derive(Debug, Clone, Copy)]
struct Symbol {
    token: u32,
    previous: u32,
    next: u32,
    /// What this symbol and the next one make.
    merge: Merge,
}

impl Bpe {
    pub(super) fn from_gguf(
        gguf: &Gguf<'_>,
        vocabulary: &Vocabulary,
        ignore_merges: bool,
    ) -> Result<Self, TokenizerError> {
        const MERGES: &str = "tokenizer.ggml.merges";
        let array = gguf.array(MERGES)?;
        let mut merges = Merges::with_capacity(array.len());
        let mut texts = strings(MERGES, &array)?;
        let mut batch = Batch::default();
        let mut result = NO_TOKEN;
        loop {
            let first = merges.pairs.len();
            batch.clear();
            for text in texts.by_ref().take(BATCH) {
                batch.push(vocabulary, text, first + batch.texts.len())?;
            }
            if batch.texts.is_empty() {
                break;
            }
            let likely = vocabulary.likely(&batch.hashes);
            let (likely, _) = likely.as_chunks::<2>();
            for ((text, split), likely) in batch.texts.iter().zip(&batch.splits).zip(likely) {
                let index = merges.pairs.len();
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
                let left = half(likely[0], left)?;
                let right = half(likely[1], right)?;
                let next = result.wrapping_add(1);
                result = if is(bytes, next) {
                    next
                } else if is(bytes, result) {
                    result
                } else {
                    vocabulary.find_spelled(bytes).ok_or_else(unknown)?
                };
                let pair = Pair {
                    left,
                    right,
                    token: result,
                };
                if !merges.push(pair) {
                    return Err(TokenizerError::DuplicateMerge {
                        index,
                        merge: (*text).to_owned(),
                    });
                }
            }
        }
        let mut byte_tokens = [NO_TOKEN; 256];
        for (byte, token) in (0..=u8::MAX).zip(&mut byte_tokens) {
            *token = vocabulary.find_spelled(&[byte]).unwrap_or(NO_TOKEN);
        }
        Ok(Self {
            byte_tokens,
            merges,
            ignore_merges,
        })
    }

    /// Appends the tokens of a piece to `tokens`. Bytes that the vocabulary lacks are left out before
    /// anything is merged, so their neighbours are neighbours.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        piece: &str,
        scratch: &mut Scratch,
        tokens: &mut Vec<u32>,
    ) {
        if self.ignore_merges {
            // Text never makes a control token by itself.
            let whole = vocabulary.find(piece.as_bytes(), |id| {
                vocabulary.is_spelled(id) && vocabulary.kind(id) != Some(Kind::Control)
            });
            if let Some(token) = whole {
                tokens.push(token);
                return;
            }
        }
        for bytes in piece.as_bytes().chunks(PIECE_BYTES_MAX) {
            let symbols = &mut scratch.symbols;
            symbols.clear();
            symbols.extend(
                bytes
                    .iter()
                    .map(|&byte| self.byte_tokens[usize::from(byte)])
                    .filter(|&token| token != NO_TOKEN)
                    .map(|token| Symbol {
                        token,
                        previous: NONE,
                        next: NONE,
                        merge: NO_MERGE,
                    }),
            );
            for index in 1..symbols.len() {
                let merge = self.merge(symbols[index - 1].token, symbols[index].token);
                symbols[index - 1].merge = merge;
            }
            if symbols.len() <= SCAN_SYMBOLS_MAX {
                self.merge_by_scan(symbols);
                tokens.extend(symbols.iter().map(|symbol| symbol.token));
            } else {
                self.merge_by_queue(symbols, &mut scratch.queue);
                let mut index = 0;
                while let Some(symbol) = symbols.get(index as usize) {
                    tokens.push(symbol.token);
                    index = symbol.next;
                }
            }
        }
    }

    fn merge(&self, left: u32, right: u32) -> Merge {
        self.merges.get(left, right)
    }

    fn merge_by_scan(&self, symbols: &mut Vec<Symbol>) {
        loop {
            let ranks = symbols.iter().map(|symbol| symbol.merge.rank);
            // The first of equal minima, as the order of merges wants it.
            let Some((index, rank)) = ranks.enumerate().min_by_key(|&(_, rank)| rank) else {
                return;
            };
            if rank == NO_RANK {
                return;
            }
            symbols[index].token = symbols[index].merge.token;
            // A symbol with a rank has a next one.
            symbols.remove(index + 1);
            symbols[index].merge = match symbols.get(index + 1) {
                Some(next) => self.merge(symbols[index].token, next.token),
                None => NO_MERGE,
            };
            if let Some(previous) = index.checked_sub(1) {
                symbols[previous].merge = self.merge(symbols[previous].token, symbols[index].token);
            }
        }
    }

    /// Leaves the result as a linked list that starts at the first symbol. An entry of the queue counts
    /// if its rank is still that of the pair at its position; a symbol that was merged away has none.
    fn merge_by_queue(&self, symbols: &mut [Symbol], queue: &mut BinaryHeap<Reverse<(u32, u32)>>) {
        // Positions fit 32 bits by PIECE_BYTES_MAX.
        let last = symbols.len() - 1;
        for (index, symbol) in symbols.iter_mut().enumerate() {
            symbol.previous = (index as u32).wrapping_sub(1);
            symbol.next = if index == last {
                NONE
            } else {
                index as u32 + 1
            };
        }
        let mut entries = core::mem::take(queue).into_vec();
        entries.clear();
        entries.extend(
            symbols
                .iter()
                .enumerate()
                .filter(|(_, symbol)| symbol.merge.rank != NO_RANK)
                .map(|(index, symbol)| Reverse((symbol.merge.rank, index as u32))),
        );
        *queue = BinaryHeap::from(entries);
        while let Some(Reverse((rank, position))) = queue.pop() {
            let symbol = symbols[position as usize];
            if symbol.merge.rank != rank {
                continue;
            }
            // A symbol with a rank has a next one.
            let gone = symbols[symbol.next as usize];
            symbols[symbol.next as usize].merge = NO_MERGE;
            let token = symbol.merge.token;
            let merge = match symbols.get_mut(gone.next as usize) {
                Some(next) => {
                    next.previous = position;
                    self.merge(token, next.token)
                }
                None => NO_MERGE,
            };
            symbols[position as usize] = Symbol {
                token,
                previous: symbol.previous,
                next: gone.next,
                merge,
            };
            if merge.rank != NO_RANK {
                queue.push(Reverse((merge.rank, position)));
            }
            if let Some(previous) = symbols.get_mut(symbol.previous as usize) {
                previous.merge = self.merge(previous.token, token);
                if previous.merge.rank != NO_RANK {
                    queue.push(Reverse((previous.merge.rank, symbol.previous)));
                }
            }
        }
    }
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
        let (left, right) = text.split_once(' ').ok_or_else(malformed)?;
        if left.is_empty() || right.is_empty() || right.contains(' ') {
            return Err(malformed());
        }
        let start = self.bytes.len();
        for half in [left, right] {
            let from = self.bytes.len();
            if !byte_level::decode_into(half, &mut self.bytes) {
                return Err(unknown());
            }
            let half = self.bytes.get(from..).unwrap_or_default();
            self.hashes.push(vocabulary.hash(half));
        }
        let end = self.bytes.len();
        // A character stands for one byte.
        let middle = left.chars().count();
        self.splits.push(Split { start, end, middle });
        self.texts.push(text);
        Ok(())
    }
}
