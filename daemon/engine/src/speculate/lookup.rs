//! Finds where the end of a text has occurred before, as match finders of compressors do (LZ77): positions with the same
//! last tokens are chained by a hash, the latest first, and of a bounded number of them the one that agrees over the most
//! tokens wins.

use std::ops::Range;

/// Tokens that must agree at least.
const MATCH_MIN: usize = 2;

/// Agreement beyond which longer ones are no better.
const MATCH_ENOUGH: usize = 32;

/// Earlier positions that are looked at.
const CANDIDATES_MAX: usize = 48;

/// Marks the end of a chain.
const NONE: u32 = u32::MAX;

/// Stands between texts: no token has this id.
pub(super) const SEPARATOR: u32 = u32::MAX;

/// An earlier occurrence of a text's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where its continuation begins.
    pub at: usize,
    /// Over how many tokens it agrees; [`MATCH_ENOUGH`] stands for more.
    pub length: usize,
}

/// A text, or several, that can be looked through for the end of one.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    tokens: Vec<u32>,
    /// For each position, the one before it with the same hash; the hash is of the tokens that end there.
    previous: Vec<u32>,
    /// Latest position of each hash. Its length is a power of two, or zero.
    latest: Vec<u32>,
}

impl Lookup {
    /// An empty one with room for `tokens` tokens.
    #[must_use]
    pub fn with_capacity(tokens: usize) -> Lookup {
        let mut lookup = Lookup {
            tokens: Vec::with_capacity(tokens),
            previous: Vec::with_capacity(tokens),
            latest: Vec::new(),
        };
        lookup.grow(tokens);
        lookup
    }

    /// The tokens so far.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens, separators included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Appends tokens; positions beyond `u32::MAX - 1` are not found.
    pub fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.push(token);
        }
    }

    /// Ends a text: what comes after has nothing to do with what was before.
    pub fn separate(&mut self) {
        self.push(SEPARATOR);
    }

    /// Appends a token.
    pub fn push(&mut self, token: u32) {
        let position = self.tokens.len();
        self.tokens.push(token);
        if self.latest.len() < self.tokens.len() {
            self.grow(self.tokens.len() * 2);
        }
        self.previous.push(NONE);
        self.link(position);
    }

    /// Puts a position at the head of its chain.
    fn link(&mut self, position: usize) {
        let slot = slot_of(&self.tokens[..=position], self.latest.len());
        if let (Some(slot), Ok(named)) = (slot, u32::try_from(position)) {
            self.previous[position] = self.latest[slot];
            self.latest[slot] = named;
        }
    }

    /// Makes the table fit for `tokens` tokens and fills it again.
    fn grow(&mut self, tokens: usize) {
        let slots = tokens.max(16).next_power_of_two();
        self.latest.clear();
        self.latest.resize(slots, NONE);
        for position in 0..self.previous.len() {
            self.previous[position] = NONE;
            self.link(position);
        }
    }

    /// Where the end of its own text has occurred before; the longest agreement, the latest of equals.
    #[must_use]
    pub fn find_own(&self) -> Option<Found> {
        // The latest position of the chain is the end itself.
        self.search(&self.tokens, 0..self.tokens.len().checked_sub(1)?)
    }

    /// Where the end of `text` has occurred from position `start` on.
    #[must_use]
    pub fn find(&self, text: &[u32], start: usize) -> Option<Found> {
        self.search(text, start..self.tokens.len())
    }

    /// The tokens that came after an occurrence, up to the end of that text.
    pub fn continuation(&self, found: Found) -> impl Iterator<Item = u32> + '_ {
        let tokens = self.tokens.get(found.at..).unwrap_or_default();
        tokens
            .iter()
            .copied()
            .take_while(|&token| token != SEPARATOR)
    }

    /// The best of `positions` where `text` may end.
    fn search(&self, text: &[u32], positions: Range<usize>) -> Option<Found> {
        let slot = slot_of(text, self.latest.len())?;
        let mut best: Option<Found> = None;
        let mut position = self.latest[slot];
        for _ in 0..CANDIDATES_MAX {
            // A chain goes back in the text.
            if position == NONE || (position as usize) < positions.start {
                break;
            }
            let at = position as usize;
            position = self.previous[at];
            if at >= positions.end {
                continue;
            }
            let length = self.agreement(text, at);
            // Nothing follows the end of a text.
            let continues = self
                .tokens
                .get(at + 1)
                .is_some_and(|&token| token != SEPARATOR);
            if length >= MATCH_MIN && continues && best.is_none_or(|best| length > best.length) {
                best = Some(Found { at: at + 1, length });
                if length == MATCH_ENOUGH {
                    break;
                }
            }
        }
        best
    }

    /// Over how many tokens the text that ends at position `at` agrees with the end of `text`.
    fn agreement(&self, text: &[u32], at: usize) -> usize {
        let mine = self.tokens[..=at].iter().rev();
        mine.zip(text.iter().rev())
            .take(MATCH_ENOUGH)
            .take_while(|(mine, its)| mine == its && **mine != SEPARATOR)
            .count()
    }
}

/// Slot, among `slots`, of a text by its last tokens; `None` if it is too short or ends a text.
fn slot_of(text: &[u32], slots: usize) -> Option<usize> {
    let &[.., before, last] = text else {
        return None;
    };
    if slots == 0 || before == SEPARATOR || last == SEPARATOR {
        return None;
    }
    // Fibonacci hashing: the upper bits of a product with 2^64 divided by the golden ratio.
    let key = (u64::from(before) << 32) | u64::from(last);
    let hash = (key ^ (key >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Some((hash >> 32) as usize & (slots - 1))
}

#[cfg(test)]
mod tests {
    use super::{Found, Lookup, MATCH_ENOUGH};
    use proptest::prelude::*;

    fn lookup(tokens: &[u32]) -> Lookup {
        let mut lookup = Lookup::default();
        lookup.extend(tokens);
        lookup
    }

    #[test]
    fn the_longest_agreement_wins_and_the_latest_of_equals() {
        let text = [9, 1, 2, 3, 7, 1, 2, 4, 8, 9, 1, 2, 5, 6, 1, 2];
        // "1 2" three times before; only the end's neighbour 6 is nowhere, so the latest wins.
        assert_eq!(lookup(&text).find_own(), Some(Found { at: 12, length: 2 }));
        let text = [9, 1, 2, 3, 7, 1, 2, 4, 8, 9, 1, 2];
        let found = lookup(&text).find_own().unwrap();
        assert_eq!(found, Found { at: 3, length: 3 });
        let lookup = lookup(&text);
        assert!(lookup.continuation(found).eq([3, 7, 1, 2, 4, 8, 9, 1, 2]));
    }

    #[test]
    fn what_never_occurred_is_not_found() {
        assert_eq!(lookup(&[]).find_own(), None);
        assert_eq!(lookup(&[1]).find_own(), None);
        assert_eq!(lookup(&[1, 2, 3, 4]).find_own(), None);
        assert_eq!(
            lookup(&[1, 2, 3, 2]).find_own(),
            None,
            "one token is too few"
        );
    }

    #[test]
    fn texts_do_not_run_into_each_other() {
        let mut corpus = lookup(&[1, 2, 3]);
        corpus.separate();
        corpus.extend(&[4, 2, 3, 5]);
        corpus.separate();
        let found = corpus.find(&[8, 2, 3], 0).unwrap();
        assert_eq!(found, Found { at: 7, length: 2 });
        assert!(corpus.continuation(found).eq([5]));
        assert_eq!(corpus.find(&[1, 2, 3], 0), Some(Found { at: 7, length: 2 }));
        assert_eq!(corpus.find(&[3, 5], 0), None, "nothing follows the end");
    }

    #[test]
    fn agreement_is_bounded() {
        let found = lookup(&[7; 100]).find_own().unwrap();
        assert_eq!(found.length, MATCH_ENOUGH);
    }

    proptest! {
        #[test]
        fn what_is_found_agrees(tokens in prop::collection::vec(0_u32..4, 0..200)) {
            let lookup = lookup(&tokens);
            if let Some(Found { at, length }) = lookup.find_own() {
                prop_assert!(at < tokens.len());
                prop_assert_eq!(&tokens[at - length..at], &tokens[tokens.len() - length..]);
            } else {
                // No pair of tokens before has the end's two.
                let end = &tokens[tokens.len().saturating_sub(2)..];
                let before = &tokens[..tokens.len().saturating_sub(1)];
                prop_assert!(end.len() < 2 || !before.windows(2).any(|pair| pair == end));
            }
        }
    }
}
