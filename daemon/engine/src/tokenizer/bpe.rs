//! Byte-pair encoding of one piece of text: bytes become tokens, then neighbours are merged, always the
//! pair with the lowest rank, the leftmost first among equals, until no pair has a rank.
//!
//! Takes `n log n` time in the length of a piece, whatever is in it.

use core::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use rustc_hash::FxSeededState;

use super::byte_level;
use super::error::TokenizerError;
use super::vocabulary::{Kind, Vocabulary, hasher, strings};
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

/// The merges of a byte-level vocabulary.
#[derive(Debug)]
pub(super) struct Bpe {
    /// The token of each byte; some vocabularies lack bytes that their training text did not have.
    byte_tokens: [u32; 256],
    merges: HashMap<u64, Merge, FxSeededState>,
    /// A piece that is a token as a whole is taken as it is, even if the merges would not make it.
    ignore_merges: bool,
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
        let mut merges = HashMap::with_capacity_and_hasher(array.len(), hasher());
        let mut bytes = Vec::new();
        let mut token = NO_TOKEN;
        for (index, text) in strings(MERGES, &array)?.enumerate() {
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
            bytes.clear();
            if !byte_level::decode_into(left, &mut bytes) {
                return Err(unknown());
            }
            let middle = bytes.len();
            if !byte_level::decode_into(right, &mut bytes) {
                return Err(unknown());
            }
            let (left, right) = bytes.split_at_checked(middle).ok_or_else(unknown)?;
            let left = vocabulary.find_spelled(left).ok_or_else(unknown)?;
            let right = vocabulary.find_spelled(right).ok_or_else(unknown)?;
            // Vocabularies list tokens in the order of the merges that make them, so a comparison with
            // the last result and the one after it nearly always saves a search.
            let is_result = |id: u32| vocabulary.is_spelled(id) && vocabulary.bytes(id) == bytes;
            let next = token.wrapping_add(1);
            token = if is_result(next) {
                next
            } else if is_result(token) {
                token
            } else {
                vocabulary.find_spelled(&bytes).ok_or_else(unknown)?
            };
            // An array's length fits 32 bits.
            let rank = index as u32;
            if merges
                .insert(pair(left, right), Merge { rank, token })
                .is_some()
            {
                return Err(TokenizerError::DuplicateMerge {
                    index,
                    merge: text.to_owned(),
                });
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
        self.merges
            .get(&pair(left, right))
            .copied()
            .unwrap_or(NO_MERGE)
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

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}
