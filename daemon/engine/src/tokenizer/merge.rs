//! Merging neighbours: always the pair with the lowest rank, the leftmost first among equals, until no pair has a
//! rank. What a pair makes, and at which rank, is for [`Pairs`] to say.
//!
//! Takes `n log n` time in the symbols, and asks for at most three pairs a symbol.

use core::cmp::Reverse;
use std::collections::BinaryHeap;

/// Up to this many symbols a scan for the best pair beats a heap; words are shorter, almost always.
const SCAN_SYMBOLS_MAX: usize = 32;

/// Most symbols merged as one.
const SYMBOLS_MAX: usize = 1 << 31;

pub(super) const NO_TOKEN: u32 = u32::MAX;
/// No merge has this rank: there are at most as many as an array may have elements.
pub(super) const NO_RANK: u32 = u32::MAX;
/// The end of the linked list.
const NONE: u32 = u32::MAX;

/// What two symbols make.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merge {
    pub(super) rank: u32,
    pub(super) token: u32,
}

pub(super) const NO_MERGE: Merge = Merge {
    rank: NO_RANK,
    token: NO_TOKEN,
};

/// Which symbols may be merged. A symbol is a token, and whatever else tells symbols apart.
pub(super) trait Pairs {
    /// What is known of a symbol beside its token.
    type Part: Copy + core::fmt::Debug;

    /// What two neighbours make; [`NO_MERGE`] if nothing.
    fn merge(&self, left: (u32, Self::Part), right: (u32, Self::Part)) -> Merge;

    /// The part of what two neighbours make.
    fn join(left: Self::Part, right: Self::Part) -> Self::Part;
}

#[derive(Debug, Clone, Copy)]
struct Symbol<P> {
    token: u32,
    part: P,
    previous: u32,
    next: u32,
    /// What this symbol and the next one make.
    merge: Merge,
}

/// The symbols of one piece; kept from piece to piece for its memory.
#[derive(Debug)]
pub(super) struct Symbols<P> {
    symbols: Vec<Symbol<P>>,
    /// Rank, then position: the order in which merges are made.
    queue: BinaryHeap<Reverse<(u32, u32)>>,
}

impl<P> Default for Symbols<P> {
    fn default() -> Self {
        Self {
            symbols: Vec::new(),
            queue: BinaryHeap::new(),
        }
    }
}

impl<P: Copy + core::fmt::Debug> Symbols<P> {
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
    }

    /// Whether the piece has to end here, so that positions fit 32 bits.
    pub(super) fn is_full(&self) -> bool {
        self.symbols.len() >= SYMBOLS_MAX
    }

    /// Adds a symbol. There must be room: see [`Symbols::is_full`].
    pub(super) fn push(&mut self, token: u32, part: P) {
        self.symbols.push(Symbol {
            token,
            part,
            previous: NONE,
            next: NONE,
            merge: NO_MERGE,
        });
    }

    /// Merges as long as there is a merge and hands the symbols over in order.
    pub(super) fn merge<M: Pairs<Part = P>>(&mut self, pairs: &M, mut visit: impl FnMut(u32, P)) {
        for index in 1..self.symbols.len() {
            let (left, right) = (self.symbols[index - 1], self.symbols[index]);
            self.symbols[index - 1].merge = ask(pairs, &left, &right);
        }
        if self.symbols.len() <= SCAN_SYMBOLS_MAX {
            self.merge_by_scan(pairs);
            for symbol in &self.symbols {
                visit(symbol.token, symbol.part);
            }
        } else {
            self.merge_by_queue(pairs);
            let mut index = 0;
            while let Some(symbol) = self.symbols.get(index as usize) {
                visit(symbol.token, symbol.part);
                index = symbol.next;
            }
        }
    }

    fn merge_by_scan<M: Pairs<Part = P>>(&mut self, pairs: &M) {
        let symbols = &mut self.symbols;
        loop {
            let ranks = symbols.iter().map(|symbol| symbol.merge.rank);
            // The first of equal minima, as the order of merges wants it.
            let Some((index, rank)) = ranks.enumerate().min_by_key(|&(_, rank)| rank) else {
                return;
            };
            if rank == NO_RANK {
                return;
            }
            // A symbol with a rank has a next one.
            let gone = symbols.remove(index + 1);
            symbols[index].token = symbols[index].merge.token;
            symbols[index].part = M::join(symbols[index].part, gone.part);
            symbols[index].merge = match symbols.get(index + 1) {
                Some(next) => ask(pairs, &symbols[index], next),
                None => NO_MERGE,
            };
            if let Some(previous) = index.checked_sub(1) {
                symbols[previous].merge = ask(pairs, &symbols[previous], &symbols[index]);
            }
        }
    }

    /// Leaves the result as a linked list that starts at the first symbol. An entry of the queue counts
    /// if its rank is still that of the pair at its position; a symbol that was merged away has none.
    fn merge_by_queue<M: Pairs<Part = P>>(&mut self, pairs: &M) {
        let symbols = &mut self.symbols;
        // Positions fit 32 bits, as `push` demands.
        let last = symbols.len() - 1;
        for (index, symbol) in symbols.iter_mut().enumerate() {
            symbol.previous = (index as u32).wrapping_sub(1);
            symbol.next = if index == last {
                NONE
            } else {
                index as u32 + 1
            };
        }
        let mut entries = core::mem::take(&mut self.queue).into_vec();
        entries.clear();
        entries.extend(
            symbols
                .iter()
                .enumerate()
                .filter(|(_, symbol)| symbol.merge.rank != NO_RANK)
                .map(|(index, symbol)| Reverse((symbol.merge.rank, index as u32))),
        );
        let mut queue = BinaryHeap::from(entries);
        while let Some(Reverse((rank, position))) = queue.pop() {
            let mut symbol = symbols[position as usize];
            if symbol.merge.rank != rank {
                continue;
            }
            // A symbol with a rank has a next one.
            let gone = symbols[symbol.next as usize];
            symbols[symbol.next as usize].merge = NO_MERGE;
            symbol.token = symbol.merge.token;
            symbol.part = M::join(symbol.part, gone.part);
            symbol.next = gone.next;
            symbol.merge = match symbols.get_mut(gone.next as usize) {
                Some(next) => {
                    next.previous = position;
                    ask(pairs, &symbol, next)
                }
                None => NO_MERGE,
            };
            symbols[position as usize] = symbol;
            if symbol.merge.rank != NO_RANK {
                queue.push(Reverse((symbol.merge.rank, position)));
            }
            if let Some(previous) = symbols.get_mut(symbol.previous as usize) {
                previous.merge = ask(pairs, previous, &symbol);
                if previous.merge.rank != NO_RANK {
                    queue.push(Reverse((previous.merge.rank, symbol.previous)));
                }
            }
        }
        self.queue = queue;
    }
}

fn ask<M: Pairs>(pairs: &M, left: &Symbol<M::Part>, right: &Symbol<M::Part>) -> Merge {
    pairs.merge((left.token, left.part), (right.token, right.part))
}
