//! The guesses for one answer.

use std::sync::Arc;

use super::acceptance::{Acceptance, Source};
use super::vote::Draft;
use super::{Corpus, DRAFT_MAX, Lookup, Sources};

/// Guesses by which sources are compared.
const COMPARED: usize = 8;

/// Knows the text so far and proposes how it goes on.
#[derive(Debug)]
pub(crate) struct Guesser {
    /// The prompt and the answer.
    text: Lookup,
    own: bool,
    corpus: Option<Arc<Corpus>>,
    model: bool,
    /// By source.
    drafts: [Draft; Source::ALL.len()],
    best: Source,
    seen: Acceptance,
}

impl Guesser {
    /// For an answer to `prompt` of at most `tokens_max` tokens; `None` if there are no sources.
    pub(crate) fn new(sources: &Sources, prompt: &[u32], tokens_max: usize) -> Option<Guesser> {
        if sources.is_empty() {
            return None;
        }
        let mut text = Lookup::with_capacity(prompt.len().saturating_add(tokens_max));
        text.extend(prompt);
        Some(Guesser {
            text,
            own: sources.own,
            corpus: sources.corpus.clone(),
            model: sources.model,
            drafts: Source::ALL.map(|_| Draft::new()),
            best: Source::Own,
            seen: Acceptance::default(),
        })
    }

    /// The prompt and the answer so far.
    pub(crate) fn text(&self) -> &[u32] {
        self.text.tokens()
    }

    /// Whether a model may guess.
    pub(crate) fn asks_model(&self) -> bool {
        self.model
    }

    /// The text, and where a model's guesses go.
    pub(crate) fn model_draft(&mut self) -> (&[u32], &mut Vec<u32>) {
        let draft = &mut self.drafts[Source::Model as usize];
        draft.clear();
        (self.text.tokens(), &mut draft.tokens)
    }

    /// Leaves as many of a model's guesses as `fits` says.
    pub(crate) fn cut_model_draft(&mut self, fits: impl Fn(&[u32]) -> usize) {
        let tokens = &mut self.drafts[Source::Model as usize].tokens;
        if !tokens.is_empty() {
            tokens.truncate(fits(tokens));
        }
    }

    /// Probability that a model's guess `guess` is right if all before it are.
    pub(crate) fn model_probability(&self, all: &Acceptance, guess: usize) -> f32 {
        self.probability_of(all, Source::Model, guess)
    }

    /// Looks for guesses that cost nothing; returns how many the best source has, at most `most`.
    /// `fits` says how many of some tokens may come next one after the other.
    pub(crate) fn propose(
        &mut self,
        all: &Acceptance,
        most: usize,
        fits: impl Fn(&[u32]) -> usize,
    ) -> usize {
        let most = most.min(DRAFT_MAX);
        self.drafts.iter_mut().for_each(Draft::clear);
        let [own, corpus, _] = &mut self.drafts;
        if self.own {
            own.vote(&self.text, most, |found| self.text.find_own(found));
        }
        if let Some(earlier) = &self.corpus {
            earlier.guess(self.text.tokens(), most, corpus);
        }
        for draft in [own, corpus] {
            if !draft.tokens.is_empty() {
                draft.tokens.truncate(fits(&draft.tokens));
            }
        }
        self.take_best(all)
    }

    /// Settles on the best source, a model's guesses included if some were made; returns how many it has.
    pub(crate) fn take_best(&mut self, all: &Acceptance) -> usize {
        let expected = |source: Source| -> f32 {
            let mut all_right = 1.0;
            let compared = self.drafts[source as usize].tokens.len().min(COMPARED);
            (0..compared)
                .map(|guess| {
                    all_right *= self.probability_of(all, source, guess);
                    all_right
                })
                .sum()
        };
        let mut best = (Source::Own, expected(Source::Own));
        for source in [Source::Corpus, Source::Model] {
            let expected = expected(source);
            if expected > best.1 {
                best = (source, expected);
            }
        }
        self.best = best.0;
        self.drafts[self.best as usize].tokens.len()
    }

    /// Probability that guess `guess` of the best source is right if all before it are.
    pub(crate) fn probability(&self, all: &Acceptance, guess: usize) -> f32 {
        self.probability_of(all, self.best, guess)
    }

    fn probability_of(&self, all: &Acceptance, source: Source, guess: usize) -> f32 {
        let grounds = self.drafts[source as usize].grounds(guess);
        all.probability(&self.seen, source, grounds)
    }

    /// The guesses of the best source.
    pub(crate) fn guesses(&self) -> &[u32] {
        &self.drafts[self.best as usize].tokens
    }

    /// Takes the tokens that were chosen since [`Guesser::propose`], and counts which guesses were right, tried or not; the
    /// first `tried` of the best source's were. Returns how many of these were right.
    pub(crate) fn chosen(&mut self, all: &mut Acceptance, tokens: &[u32], tried: usize) -> usize {
        let best = &self.drafts[self.best as usize];
        let guesses = best.tokens.iter().take(tried).zip(tokens);
        let accepted = guesses.take_while(|(guess, token)| guess == token).count();
        if tried > 0 {
            all.tried(self.best, best.grounds(0).agreement, tried, accepted);
        }
        for source in Source::ALL {
            let draft = &self.drafts[source as usize];
            for (index, (guess, token)) in draft.tokens.iter().zip(tokens).enumerate() {
                let right = guess == token;
                let grounds = draft.grounds(index);
                all.count(source, grounds, right);
                self.seen.count(source, grounds, right);
                if !right {
                    break;
                }
            }
        }
        self.drafts.iter_mut().for_each(Draft::clear);
        self.text.extend(tokens);
        accepted
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Acceptance, Corpus, Sources};
    use super::Guesser;
    use std::sync::Arc;

    #[test]
    fn nothing_is_made_without_sources() {
        assert!(Guesser::new(&Sources::default(), &[1, 2, 3], 9).is_none());
    }

    #[test]
    fn the_better_source_is_taken_and_both_are_judged() {
        let corpus = Arc::new(Corpus::new(100));
        corpus.add(&[], &[8, 1, 2, 3, 4, 5]);
        let sources = Sources {
            own: true,
            corpus: Some(corpus),
            ..Sources::default()
        };
        let mut all = Acceptance::default();
        let mut guesser = Guesser::new(&sources, &[1, 2, 9, 9, 8, 1, 2], 9).unwrap();
        assert_eq!(guesser.propose(&all, 2, <[u32]>::len), 2);
        assert_eq!(
            guesser.guesses(),
            [3, 4],
            "three tokens agree there, two here"
        );
        let before = guesser.probability(&all, 0);
        assert_eq!(guesser.chosen(&mut all, &[3, 7], 2), 1);
        assert!(guesser.guesses().is_empty());
        assert_eq!(
            guesser.propose(&all, 9, <[u32]>::len),
            0,
            "nothing has an end like this"
        );
        // The first guess was right, the second, after one more token of agreement, was not.
        assert_eq!(guesser.chosen(&mut all, &[8, 1, 2], 0), 0);
        assert!(guesser.propose(&all, 9, <[u32]>::len) > 0);
        assert!(guesser.probability(&all, 0) > before);
        assert!(guesser.probability(&all, 1) < 0.5);
    }

    #[test]
    fn guesses_end_where_nothing_of_the_kind_may_come() {
        let sources = Sources {
            own: true,
            ..Sources::default()
        };
        let mut all = Acceptance::default();
        let mut guesser = Guesser::new(&sources, &[1, 2, 3, 4, 5, 1, 2], 9).unwrap();
        let even = |tokens: &[u32]| tokens.iter().take_while(|&token| *token < 5).count();
        assert_eq!(guesser.propose(&all, 9, even), 2);
        assert_eq!(guesser.guesses(), [3, 4]);
        guesser.chosen(&mut all, &[3], 0);
        assert_eq!(guesser.propose(&all, 9, |_| 0), 0);
    }
}
