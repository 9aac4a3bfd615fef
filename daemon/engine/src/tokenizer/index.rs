//! A set of token numbers by the hash of their bytes, without the bytes.
//!
//! Loading a model looks up each half of every merge, half a million times, and most of that time is
//! waiting for memory. So an entry is one word of 32 bits, with as many bits of the hash beside the number as
//! the number leaves: a look into the table is one access, and nearly every entry with another hash is passed over
//! without a look at the token.

use core::hash::{BuildHasher, Hash};
use std::collections::hash_map::RandomState;

const EMPTY: u32 = u32::MAX;

/// Open addressing, linear probing, at most two thirds full: there is always an empty slot.
#[derive(Debug)]
pub(super) struct Index {
    /// The upper bits of the hash, then the number.
    slots: Box<[u32]>,
    used: usize,
    /// The bits that are a number's. No number has all of them, so no entry looks empty.
    numbers: u32,
    hasher: Hasher,
}

impl Default for Index {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

/// A keyed hash (SipHash) whose key differs from process to process, so that no file can be made to collide. Faster
/// hashes are seeded, too, but let a file collide whatever the seed.
pub(super) struct Hasher(RandomState);

impl Hasher {
    pub(super) fn new() -> Self {
        Self(RandomState::new())
    }

    pub(super) fn hash<T: Hash>(&self, value: T) -> u64 {
        self.0.hash_one(value)
    }
}

impl core::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // The key is nobody's business.
        f.write_str("Hasher")
    }
}

impl Index {
    /// Room for so many tokens, at most 2^31, with numbers below that.
    pub(super) fn with_capacity(count: usize) -> Self {
        let slots = (count + count / 2 + 1).next_power_of_two();
        Self {
            slots: vec![EMPTY; slots].into_boxed_slice(),
            used: 0,
            numbers: ((count + 1).next_power_of_two() - 1) as u32,
            hasher: Hasher::new(),
        }
    }

    pub(super) fn hash(&self, bytes: &[u8]) -> u64 {
        self.hasher.hash(bytes)
    }

    /// What an entry has beside its number.
    fn mark(&self, hash: u64) -> u32 {
        (hash >> 32) as u32 & !self.numbers
    }

    /// Adds a token; one beyond the capacity is left out.
    pub(super) fn insert(&mut self, hash: u64, id: u32) {
        if self.used + 1 >= self.slots.len() || id >= self.numbers {
            return;
        }
        let mask = self.slots.len() - 1;
        let mut position = hash as usize & mask;
        while self.slots[position] != EMPTY {
            position = (position + 1) & mask;
        }
        self.slots[position] = self.mark(hash) | id;
        self.used += 1;
    }

    /// The slot that a search for this hash looks at first: one access and no decision, so that many of
    /// these wait for memory at the same time. To be given to [`Index::find_from`].
    pub(super) fn first_slot(&self, hash: u64) -> u32 {
        self.slots[hash as usize & (self.slots.len() - 1)]
    }

    /// Some token added under this hash or one like it, given the first slot of its search.
    pub(super) fn find_from(&self, slot: u32, hash: u64) -> Option<u32> {
        if slot != EMPTY && slot & !self.numbers == self.mark(hash) {
            return Some(slot & self.numbers);
        }
        self.find(hash, |_| true)
    }

    /// The first token added under this hash for which the condition holds. Another token of the same
    /// upper bits may come up, so the condition has to look at the bytes to be sure.
    pub(super) fn find(&self, hash: u64, condition: impl Fn(u32) -> bool) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut position = hash as usize & mask;
        loop {
            let slot = self.slots[position];
            if slot == EMPTY {
                return None;
            }
            let id = slot & self.numbers;
            if slot & !self.numbers == self.mark(hash) && condition(id) {
                return Some(id);
            }
            position = (position + 1) & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_added_and_nothing_else() {
        let mut index = Index::with_capacity(1000);
        // Few hashes, so that entries share slots and hashes.
        let hash = |id: u32| u64::from(id % 7) << 60 | u64::from(id % 3);
        for id in 0..1000 {
            index.insert(hash(id), id);
        }
        for id in 0..1000 {
            assert_eq!(index.find(hash(id), |found| found == id), Some(id));
            let like = index.find(hash(id), |_| true);
            assert_eq!(like.map(|like| like % 7), Some(id % 7));
        }
        assert_eq!(index.find(1 << 63, |_| true), None);
        assert_eq!(Index::default().find(0, |_| true), None);
    }
}
