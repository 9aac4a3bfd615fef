//! Earlier answers, as a source of guesses for the next ones.
//!
//! Invariant: a corpus holds at most as many tokens as it was made for; the oldest answers give way. It belongs to
//! whoever's answers are in it: nobody else's generation is to be given it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::lookup::{Lookup, SEPARATOR};
use super::vote::Draft;

/// Tokens before an answer that are kept with it, so that the beginning of the next one finds it.
pub const CORPUS_LEAD_TOKENS: usize = 8;

/// Answers in order of age, bounded by their tokens.
#[derive(Debug)]
pub struct Corpus {
    tokens_max: usize,
    texts: Mutex<Texts>,
}

#[derive(Debug)]
struct Texts {
    /// Each text with a separator behind it, the oldest first. It begins with some that are not kept.
    lookup: Lookup,
    /// Tokens of those that are.
    kept: usize,
    /// How many texts were ever added.
    added: u64,
}

impl Texts {
    /// Where those begin that are kept.
    fn start(&self) -> usize {
        self.lookup.len() - self.kept
    }
}

impl Corpus {
    /// Most tokens that one may be made for.
    pub const TOKENS_MAX: usize = 1 << 20;

    /// An empty one for `tokens_max` tokens; for no more than [`Corpus::TOKENS_MAX`].
    #[must_use]
    pub fn new(tokens_max: usize) -> Corpus {
        let tokens_max = tokens_max.min(Corpus::TOKENS_MAX);
        Corpus {
            tokens_max,
            texts: Mutex::new(Texts {
                lookup: Lookup::bounded(2 * tokens_max),
                kept: 0,
                added: 0,
            }),
        }
    }

    /// Most bytes of memory that one for `tokens_max` tokens takes: about 40 for each.
    #[must_use]
    pub fn bytes_max(tokens_max: usize) -> usize {
        Lookup::bytes_max(2 * tokens_max.min(Corpus::TOKENS_MAX))
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lock().lookup.bytes()
    }

    /// One of the texts that [`Corpus::texts`] gave.
    pub(super) fn of_texts(tokens_max: usize, texts: &[u32]) -> Corpus {
        let corpus = Corpus::new(tokens_max);
        for text in texts.split(|&token| token == SEPARATOR) {
            corpus.add(&[], text);
        }
        corpus.lock().added = 0;
        corpus
    }

    /// The tokens of all texts, each followed by a separator.
    pub(super) fn texts(&self) -> Vec<u32> {
        let texts = self.lock();
        texts.lookup.tokens()[texts.start()..].to_vec()
    }

    /// How many answers were added since it was made or read.
    #[must_use]
    pub fn added(&self) -> u64 {
        self.lock().added
    }

    fn lock(&self) -> MutexGuard<'_, Texts> {
        // Every change leaves the texts whole.
        self.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an answer that came after `prompt`. One that is longer than the whole corpus may be is left out.
    pub fn add(&self, prompt: &[u32], answer: &[u32]) {
        let lead = &prompt[prompt.len().saturating_sub(CORPUS_LEAD_TOKENS)..];
        let length = lead.len() + answer.len() + 1;
        if answer.is_empty() || length > self.tokens_max {
            return;
        }
        let mut texts = self.lock();
        while texts.kept + length > self.tokens_max {
            let start = texts.start();
            let mut oldest = texts.lookup.tokens()[start..].iter();
            let Some(end) = oldest.position(|&token| token == SEPARATOR) else {
                break;
            };
            texts.kept -= end + 1;
        }
        // What gave way goes when it is as much as what is left: each token is moved once, on average.
        if texts.lookup.len() + length > 2 * self.tokens_max {
            let start = texts.start();
            texts.lookup.forget(start);
        }
        texts.lookup.extend(lead);
        texts.lookup.extend(answer);
        texts.lookup.separate();
        texts.kept += length;
        texts.added += 1;
    }

    /// Tokens of the answers kept.
    #[must_use]
    pub fn token_count(&self) -> usize {
        self.lock().kept
    }

    /// At most `most` tokens that `text` may go on with, by what came after its end in earlier answers.
    #[must_use]
    pub fn continuation(&self, text: &[u32], most: usize) -> Vec<u32> {
        let mut draft = Draft::new();
        self.guess(text, most, &mut draft);
        draft.tokens
    }

    /// Appends at most `most` tokens to `draft` by what came after the end of `text`.
    pub(crate) fn guess(&self, text: &[u32], most: usize, draft: &mut Draft) {
        let texts = self.lock();
        let gone = texts.start();
        draft.vote(&texts.lookup, most, |found| {
            texts.lookup.find(text, gone, found);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::Corpus;

    #[test]
    fn answers_are_found_by_their_lead_and_their_text() {
        let corpus = Corpus::new(1000);
        corpus.add(&[1, 2, 3], &[10, 11, 12, 13]);
        corpus.add(&[1, 2, 3], &[10, 20, 21]);
        assert_eq!(corpus.continuation(&[1, 2, 3], 2), [10, 20], "the latest");
        assert_eq!(corpus.continuation(&[5, 11, 12], 2), [13]);
        assert!(
            corpus.continuation(&[12, 13], 2).is_empty(),
            "nothing follows"
        );
        assert!(
            corpus.continuation(&[21, 4], 2).is_empty(),
            "texts are apart"
        );
    }

    #[test]
    fn the_oldest_give_way_and_memory_stays_bounded() {
        let corpus = Corpus::new(100);
        for answer in 0..1000_u32 {
            let tokens: Vec<u32> = (answer..answer + 10).collect();
            corpus.add(&[], &tokens);
            assert!(corpus.token_count() <= 100);
            assert!(corpus.lock().lookup.len() <= 200);
        }
        for most in [100, 1000, 1024, 1100] {
            let corpus = Corpus::new(most);
            assert!(corpus.bytes() <= 64, "nothing is in it");
            for answer in 0..3000_u32 {
                corpus.add(&[], &vec![answer; 1 + answer as usize % 70]);
                assert!(corpus.bytes() <= Corpus::bytes_max(most), "{most}");
            }
        }
        assert_eq!(Corpus::bytes_max(32768), 40 * 32768);
        assert!(corpus.continuation(&[3, 4], 2).is_empty());
        assert_eq!(corpus.continuation(&[1000, 1001], 2), [1002, 1003]);
        corpus.add(&[], &[7; 200]);
        assert!(corpus.continuation(&[7, 7], 2).is_empty(), "too long");
    }
}
