//! Finds where the end of a text has occurred before, as match finders of compressors do (LZ77): positions with the same
//! last tokens are chained by a hash, the latest first, and a bounded number of them is looked at.

use std::ops::Range;

/// Agreement beyond which longer ones are no better.
pub(crate) const AGREEMENT_MAX: usize = 32;

/// Earlier positions with the same last two tokens that are looked at.
const PAIRS_MAX: usize = 48;

/// With fewer of those, this many with the same last token are looked at, too.
const SINGLES_MAX: usize = 16;

/// Most occurrences that a search finds.
pub(crate) const OCCURRENCES_MAX: usize = PAIRS_MAX + SINGLES_MAX;

/// Marks the end of a chain.
const NONE: u32 = u32::MAX;

/// Stands between texts: no token has this id.
pub(super) const SEPARATOR: u32 = u32::MAX;

/// An earlier occurrence of a text's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Occurrence {
    /// Where its continuation begins.
    pub(crate) at: usize,
    /// Over how many tokens it agrees; [`AGREEMENT_MAX`] stands for more.
    pub(crate) agreement: usize,
}

/// Positions by the tokens that end there.
#[derive(Clone, Debug, Default)]
struct Chains {
    /// For each position, the one before it with the same hash.
    previous: Vec<u32>,
    /// Latest position of each hash. Its length is a power of two, or zero.
    latest: Vec<u32>,
}

impl Chains {
    /// Puts the next position at the head of the chain of `key`, if that is something to be found by.
    fn push(&mut self, key: Option<u64>) {
        let named = u32::try_from(self.previous.len()).unwrap_or(NONE);
        let slot = key
            .filter(|_| !self.latest.is_empty() && named != NONE)
            .map(|key| slot(key, self.latest.len()));
        let head = slot.map(|slot| core::mem::replace(&mut self.latest[slot], named));
        self.previous.push(head.unwrap_or(NONE));
    }

    /// The positions of `key`'s hash, the latest first.
    fn positions(&self, key: Option<u64>) -> impl Iterator<Item = usize> + '_ {
        let head = key
            .filter(|_| !self.latest.is_empty())
            .map_or(NONE, |key| self.latest[slot(key, self.latest.len())]);
        let named = |position: u32| (position != NONE).then_some(position as usize);
        std::iter::successors(named(head), move |&at| named(self.previous[at]))
    }
}

/// Slots for so many tokens.
fn slots(tokens: usize) -> usize {
    tokens.max(16).next_power_of_two()
}

/// Slot, among `slots`, of a key.
fn slot(key: u64, slots: usize) -> usize {
    // Fibonacci hashing: the upper bits of a product with 2^64 divided by the golden ratio.
    let hash = (key ^ (key >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 32) as usize & (slots - 1)
}

/// By what a text's end is found: its last two tokens, and its last one; nothing where a text ends.
fn keys(text: &[u32]) -> (Option<u64>, Option<u64>) {
    match *text {
        [.., last] if last == SEPARATOR => (None, None),
        [.., before, last] if before != SEPARATOR => (
            Some((u64::from(before) << 32) | u64::from(last)),
            Some(u64::from(last)),
        ),
        [.., last] => (None, Some(u64::from(last))),
        [] => (None, None),
    }
}

/// A text, or several, that can be looked through for the end of one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lookup {
    tokens: Vec<u32>,
    pairs: Chains,
    singles: Chains,
    /// Most tokens, if it is bounded.
    most: Option<usize>,
}

impl Lookup {
    /// An empty one with room for `tokens` tokens.
    pub(crate) fn with_capacity(tokens: usize) -> Lookup {
        let mut lookup = Lookup {
            tokens: Vec::with_capacity(tokens),
            ..Lookup::default()
        };
        lookup.grow(tokens);
        lookup
    }

    /// An empty one that is to have at most `most` tokens, and takes memory as it gets them: at most
    /// [`Lookup::bytes_max`].
    pub(crate) fn bounded(most: usize) -> Lookup {
        Lookup {
            most: Some(most),
            ..Lookup::default()
        }
    }

    /// Most bytes of one that is bounded: a token and its place in two chains, and the heads of the chains.
    pub(crate) fn bytes_max(most: usize) -> usize {
        let slots = slots(most);
        let words = most
            .saturating_mul(3)
            .saturating_add(slots.saturating_mul(2));
        words.saturating_mul(size_of::<u32>())
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        let chains = |chains: &Chains| chains.previous.capacity() + chains.latest.capacity();
        let words = self.tokens.capacity() + chains(&self.pairs) + chains(&self.singles);
        words * size_of::<u32>()
    }

    /// The tokens so far.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens, separators included.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Appends tokens; positions beyond `u32::MAX - 1` are not found.
    pub(crate) fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.push(token);
        }
    }

    /// Ends a text: what comes after has nothing to do with what was before.
    pub(crate) fn separate(&mut self) {
        self.push(SEPARATOR);
    }

    /// Drops the first `count` tokens.
    pub(crate) fn forget(&mut self, count: usize) {
        self.tokens.drain(..count);
        self.grow(self.tokens.len() * 2);
    }

    fn push(&mut self, token: u32) {
        let count = self.tokens.len() + 1;
        if self.pairs.latest.len() < count {
            self.grow(count * 2);
        }
        self.tokens.push(token);
        self.link(count);
    }

    /// Chains the position at which the first `count` tokens end.
    fn link(&mut self, count: usize) {
        let (pair, single) = keys(&self.tokens[..count]);
        self.pairs.push(pair);
        self.singles.push(single);
    }

    /// Makes the tables fit for `tokens` tokens and fills them again.
    fn grow(&mut self, tokens: usize) {
        let tokens = self.most.map_or(tokens, |most| tokens.min(most));
        let slots = slots(tokens);
        // So many fit until it grows again.
        let room = self.most.map_or(tokens, |most| slots.min(most));
        let more = room.saturating_sub(self.tokens.len());
        self.tokens.reserve_exact(more);
        for chains in [&mut self.pairs, &mut self.singles] {
            chains.latest.clear();
            chains.latest.reserve_exact(slots);
            chains.latest.resize(slots, NONE);
            chains.previous.clear();
            chains.previous.reserve_exact(room);
        }
        for count in 1..=self.tokens.len() {
            self.link(count);
        }
    }

    /// Finds where the end of its own text has occurred before.
    pub(crate) fn find_own(&self, found: &mut Vec<Occurrence>) {
        // The latest position of a chain is the end itself.
        self.search(&self.tokens, 0..self.len().saturating_sub(1), found);
    }

    /// Finds where the end of `text` has occurred from position `start` on.
    pub(crate) fn find(&self, text: &[u32], start: usize, found: &mut Vec<Occurrence>) {
        self.search(text, start..self.len(), found);
    }

    /// Sets `found` to those of `positions` where `text` may end and something follows, the latest first of those that
    /// agree over two tokens and more, then of those that agree over one.
    fn search(&self, text: &[u32], positions: Range<usize>, found: &mut Vec<Occurrence>) {
        found.clear();
        let (pair, single) = keys(text);
        let tried = |chains: &'_ Chains,
                     key,
                     most: usize,
                     fits: fn(usize) -> bool,
                     found: &mut Vec<Occurrence>| {
            let known = chains
                .positions(key)
                .take_while(|&at| at >= positions.start);
            for at in known.filter(|&at| at < positions.end).take(most) {
                let agreement = self.agreement(text, at);
                let continues = self
                    .tokens
                    .get(at + 1)
                    .is_some_and(|&next| next != SEPARATOR);
                if fits(agreement) && continues {
                    found.push(Occurrence {
                        at: at + 1,
                        agreement,
                    });
                }
            }
        };
        tried(
            &self.pairs,
            pair,
            PAIRS_MAX,
            |agreement| agreement >= 2,
            found,
        );
        if found.len() < SINGLES_MAX {
            tried(
                &self.singles,
                single,
                SINGLES_MAX,
                |agreement| agreement == 1,
                found,
            );
        }
    }

    /// Over how many tokens the text that ends at position `at` agrees with the end of `text`.
    fn agreement(&self, text: &[u32], at: usize) -> usize {
        let mine = self.tokens[..=at].iter().rev();
        mine.zip(text.iter().rev())
            .take(AGREEMENT_MAX)
            .take_while(|(mine, its)| mine == its && **mine != SEPARATOR)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::{AGREEMENT_MAX, Lookup, OCCURRENCES_MAX, Occurrence};
    use proptest::prelude::*;

    fn lookup(tokens: &[u32]) -> Lookup {
        let mut lookup = Lookup::default();
        lookup.extend(tokens);
        lookup
    }

    fn own(tokens: &[u32]) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        lookup(tokens).find_own(&mut found);
        pairs(&found)
    }

    fn pairs(found: &[Occurrence]) -> Vec<(usize, usize)> {
        found.iter().map(|one| (one.at, one.agreement)).collect()
    }

    #[test]
    fn the_latest_come_first_and_single_tokens_last() {
        let text = [9, 1, 2, 3, 7, 1, 2, 4, 2, 8, 9, 1, 2];
        assert_eq!(own(&text), [(7, 2), (3, 3), (9, 1)]);
    }

    #[test]
    fn what_never_occurred_is_not_found() {
        assert!(own(&[]).is_empty());
        assert!(own(&[1]).is_empty());
        assert!(own(&[1, 2, 3, 4]).is_empty());
        assert_eq!(own(&[1, 2, 3, 2]), [(2, 1)]);
    }

    #[test]
    fn texts_do_not_run_into_each_other() {
        let mut corpus = lookup(&[1, 2, 3]);
        corpus.separate();
        corpus.extend(&[4, 2, 3, 5]);
        corpus.separate();
        let find = |text: &[u32], start| {
            let mut found = Vec::new();
            corpus.find(text, start, &mut found);
            pairs(&found)
        };
        assert_eq!(find(&[8, 2, 3], 0), [(7, 2)]);
        assert_eq!(
            find(&[1, 2, 3], 0),
            [(7, 2)],
            "nothing follows the first text"
        );
        assert_eq!(find(&[3, 5], 0), [], "nor the second");
        assert_eq!(find(&[1, 2], 0), [(2, 2), (6, 1)]);
        assert_eq!(find(&[1, 2], 3), [(6, 1)]);
    }

    #[test]
    fn agreement_is_bounded() {
        let found = own(&[7; 100]);
        assert_eq!(found[0], (99, AGREEMENT_MAX));
        assert!(found.len() <= OCCURRENCES_MAX);
    }

    proptest! {
        #[test]
        fn what_is_found_agrees(tokens in prop::collection::vec(0_u32..4, 0..200)) {
            let found = own(&tokens);
            prop_assert!(found.len() <= OCCURRENCES_MAX);
            for &(at, agreement) in &found {
                prop_assert!(at < tokens.len() && agreement > 0);
                prop_assert_eq!(&tokens[at - agreement..at], &tokens[tokens.len() - agreement..]);
            }
            if let ([before @ .., last], true) = (&*tokens, found.is_empty()) {
                prop_assert!(!before.contains(last));
            }
        }
    }
}
