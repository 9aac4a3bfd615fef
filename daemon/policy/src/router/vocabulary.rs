//! What a site talks about: the words of its tasks, its assets and its usual questions.
//!
//! Holds hashes and no text. A question made of these words is one that the site's model was chosen for.
//!
//! Invariant: at most [`WORDS_MAX`] words, sorted, none twice.

use alloc::vec::Vec;

use super::features::words_of;

/// So many words are kept; later ones are passed over.
pub const WORDS_MAX: usize = 32 * 1024;

/// The words of a site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vocabulary {
    words: Vec<u32>,
}

impl Vocabulary {
    /// The words of these texts.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut words = Vec::new();
        for text in texts {
            words_of(text, |word| words.push(word));
            // Bounds what is held while texts are read to twice what is kept.
            if words.len() > 2 * WORDS_MAX {
                words.sort_unstable();
                words.dedup();
                if words.len() >= WORDS_MAX {
                    break;
                }
            }
        }
        words.sort_unstable();
        words.dedup();
        words.truncate(WORDS_MAX);
        Self { words }
    }

    /// How many different words there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Whether the word with this hash is one of them.
    pub(super) fn has(&self, word: u32) -> bool {
        self.words.binary_search(&word).is_ok()
    }
}
