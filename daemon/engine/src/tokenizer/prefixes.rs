//! Which tokens a text begins with, shortest first.
//!
//! The tokens lie in the order of their bytes, so those that begin like the text are neighbours, fewer with each
//! byte that is looked at. The first eight bytes of each lie beside it: few searches look further.

use super::error::TokenizerError;
use super::vocabulary::Vocabulary;

/// Bytes in a token that is looked for at every place of a text, so that hostile vocabularies do not make that slow.
/// The longest in use have about a hundred.
pub(super) const TOKEN_BYTES_MAX: usize = 1024;

/// Bytes of a token that are kept beside its number.
const KEY_BYTES: usize = 8;

#[derive(Debug)]
pub(super) struct Prefixes {
    /// The first bytes of each token, the first of them highest, zeros behind the end.
    keys: Box<[u64]>,
    ids: Box<[u32]>,
    /// For each byte, how many tokens begin with a lower one.
    starts: Box<[u32]>,
}

impl Prefixes {
    /// All tokens that encoding can make.
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<Self, TokenizerError> {
        let mut tokens = Vec::with_capacity(vocabulary.count());
        for id in vocabulary.spelled() {
            let bytes = vocabulary.bytes(id);
            if bytes.len() > TOKEN_BYTES_MAX {
                return Err(TokenizerError::TokenLength {
                    id,
                    bytes: bytes.len(),
                    max: TOKEN_BYTES_MAX,
                });
            }
            tokens.push((key(bytes), id));
        }
        tokens.sort_unstable_by(|(key, id), (other_key, other_id)| {
            let rest = || vocabulary.bytes(*id).cmp(vocabulary.bytes(*other_id));
            key.cmp(other_key).then_with(rest)
        });
        let starts = (0..=256_u64)
            .map(|byte| {
                let below = |&(key, _): &(u64, u32)| key >> 56 < byte;
                // The number of tokens fits 32 bits.
                tokens.partition_point(below) as u32
            })
            .collect();
        Ok(Self {
            keys: tokens.iter().map(|&(key, _)| key).collect(),
            ids: tokens.iter().map(|&(_, id)| id).collect(),
            starts,
        })
    }

    /// Hands over the tokens that are the beginning of a text, and their lengths, shortest first.
    pub(super) fn visit(
        &self,
        vocabulary: &Vocabulary,
        text: &[u8],
        mut visit: impl FnMut(u32, usize),
    ) {
        let Some(&first) = text.first() else { return };
        let first = usize::from(first);
        let mut low = self.starts[first] as usize;
        let mut high = self.starts[first + 1] as usize;
        for depth in 1..=text.len() {
            if low >= high {
                return;
            }
            // All from here on begin with the first `depth` bytes; one that has no more comes first.
            if self.byte(vocabulary, low, depth).is_none() {
                visit(self.ids[low], depth);
                low += 1;
            }
            let Some(&wanted) = text.get(depth) else {
                return;
            };
            if low >= high {
                return;
            }
            let is = |at| self.byte(vocabulary, at, depth) == Some(wanted);
            if is(low) && is(high - 1) {
                continue;
            }
            let range = low..high;
            low = partition(range.clone(), |at| {
                self.byte(vocabulary, at, depth) < Some(wanted)
            });
            high = partition(low..range.end, is);
        }
    }

    /// The longest token that is the beginning of a text, and its length.
    pub(super) fn longest(&self, vocabulary: &Vocabulary, text: &[u8]) -> Option<(u32, usize)> {
        let mut longest = None;
        self.visit(vocabulary, text, |id, bytes| longest = Some((id, bytes)));
        longest
    }

    /// A byte of the token at a place; `None` behind its end.
    fn byte(&self, vocabulary: &Vocabulary, at: usize, depth: usize) -> Option<u8> {
        if depth < KEY_BYTES {
            let byte = self.keys[at].to_be_bytes()[depth];
            // A zero may be one of the token's or stand behind its end.
            if byte != 0 {
                return Some(byte);
            }
        }
        vocabulary.bytes(self.ids[at]).get(depth).copied()
    }
}

fn key(bytes: &[u8]) -> u64 {
    let mut key = [0; KEY_BYTES];
    for (to, from) in key.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_be_bytes(key)
}

/// The end of the part of a range for which the condition holds; it holds for none behind one for which it does not.
fn partition(range: core::ops::Range<usize>, holds: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low.midpoint(high);
        if holds(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
