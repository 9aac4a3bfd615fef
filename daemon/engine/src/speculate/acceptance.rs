//! How often guesses come true, by where they came from and how well they matched.
//!
//! What a source proposes is compared with what was chosen even where it was not tried, which costs nothing; so a source
//! that does not pay is known to do so without being paid for.

use super::vote::{Consent, Grounds};

/// Where guesses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The prompt and the answer so far.
    Own,
    /// Earlier answers.
    Corpus,
    /// A small model.
    Model,
}

impl Source {
    /// Every source.
    pub const ALL: [Source; 3] = [Source::Own, Source::Corpus, Source::Model];

    /// Name used in metrics and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Source::Own => "own",
            Source::Corpus => "corpus",
            Source::Model => "model",
        }
    }
}

/// Least agreement of each kind of guess, and the share of such guesses that is taken to come true before anything is
/// known: of SmolLM2's and Gemma 3's answers to questions about text, roughly, and on the careful side.
const KINDS: [(usize, f32); 7] = [
    (0, 0.30),
    (3, 0.40),
    (4, 0.50),
    (6, 0.60),
    (9, 0.70),
    (14, 0.80),
    (22, 0.88),
];

/// What it is more, or less, by who spoke for a guess; from the same.
const CONSENT: [f32; Consent::COUNT] = [0.0, 0.1, 0.2, -0.1, -0.25];

/// Bounds of what is taken for granted.
const ASSUMED: (f32, f32) = (0.05, 0.97);

/// As much for a model's guesses, which are known by how many others are before them instead.
const MODEL_RIGHT: f32 = 0.65;

/// Guesses that what is taken for granted at the start counts for.
const PRIOR_WEIGHT: f32 = 6.0;

/// Guesses that what is known of other answers counts for beside an answer's own.
const OTHERS_WEIGHT: f32 = 8.0;

/// Guesses after which old ones count half.
const MEMORY: f32 = 256.0;

/// Kind of a guess that agrees over `length` tokens.
fn kind(length: usize) -> usize {
    KINDS.partition_point(|&(least, _)| least <= length).max(1) - 1
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    right: f32,
    all: f32,
}

impl Tally {
    fn count(&mut self, right: bool) {
        if self.all >= MEMORY {
            self.right /= 2.0;
            self.all /= 2.0;
        }
        self.right += f32::from(u8::from(right));
        self.all += 1.0;
    }
}

/// Guesses of a kind that were put into passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuessCount {
    /// Where they came from.
    pub source: Source,
    /// Over how many tokens, at least, the text agreed with what the first of them followed.
    pub agreement: usize,
    /// Passes that had such guesses, each counted once for every answer that had.
    pub passes: u64,
    /// Tokens guessed.
    pub guessed: u64,
    /// Those of them that were right.
    pub accepted: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    passes: u64,
    guessed: u64,
    accepted: u64,
}

/// Tallies of guesses, of one answer or of all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Acceptance {
    tallies: [[[Tally; Consent::COUNT]; KINDS.len()]; Source::ALL.len()],
    tried: [[Tried; KINDS.len()]; Source::ALL.len()],
    /// Guesses that were right, tried or not.
    right: [u64; Source::ALL.len()],
}

impl Acceptance {
    /// Counts a guess made on `grounds`.
    pub(crate) fn count(&mut self, source: Source, grounds: Grounds, right: bool) {
        self.tallies[source as usize][kind(grounds.agreement)][grounds.consent as usize]
            .count(right);
        self.right[source as usize] += u64::from(right);
    }

    /// How many guesses of a source were right, tried or not.
    pub(crate) fn right(&self, source: Source) -> u64 {
        self.right[source as usize]
    }

    /// How many guesses that passes had were right.
    pub(crate) fn accepted(&self) -> u64 {
        let tried = self.tried.as_flattened().iter();
        tried.map(|tried| tried.accepted).sum()
    }

    /// Counts guesses that a pass had, the first of which followed `length` agreeing tokens.
    pub(crate) fn tried(&mut self, source: Source, length: usize, guessed: usize, accepted: usize) {
        let tried = &mut self.tried[source as usize][kind(length)];
        tried.passes += 1;
        tried.guessed += guessed as u64;
        tried.accepted += accepted as u64;
    }

    /// What was tried so far, by kind.
    pub(crate) fn counts(&self) -> impl Iterator<Item = GuessCount> + '_ {
        Source::ALL.into_iter().flat_map(|source| {
            let tried = self.tried[source as usize].iter();
            KINDS
                .iter()
                .zip(tried)
                .map(move |(kind, tried)| GuessCount {
                    source,
                    agreement: kind.0,
                    passes: tried.passes,
                    guessed: tried.guessed,
                    accepted: tried.accepted,
                })
        })
    }

    fn tally(&self, source: Source, grounds: Grounds) -> Tally {
        self.tallies[source as usize][kind(grounds.agreement)][grounds.consent as usize]
    }

    /// Probability that such a guess comes true, by these tallies alone.
    fn general(&self, source: Source, grounds: Grounds) -> f32 {
        let tally = self.tally(source, grounds);
        let assumed = match source {
            Source::Own | Source::Corpus => {
                let assumed = KINDS[kind(grounds.agreement)].1 + CONSENT[grounds.consent as usize];
                assumed.clamp(ASSUMED.0, ASSUMED.1)
            }
            Source::Model => MODEL_RIGHT,
        };
        (tally.right + assumed * PRIOR_WEIGHT) / (tally.all + PRIOR_WEIGHT)
    }

    /// Probability that a guess made on `grounds` comes true in the answer that `own` is of, where these are the tallies
    /// of all.
    pub(crate) fn probability(&self, own: &Acceptance, source: Source, grounds: Grounds) -> f32 {
        let general = self.general(source, grounds);
        let tally = own.tally(source, grounds);
        (tally.right + general * OTHERS_WEIGHT) / (tally.all + OTHERS_WEIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::{Acceptance, Consent, Grounds, KINDS, Source, kind};

    #[test]
    fn kinds_cover_every_length() {
        assert_eq!(kind(0), 0);
        assert_eq!(kind(2), 0);
        assert_eq!(kind(3), 1);
        assert_eq!(kind(8), 3);
        assert_eq!(kind(1000), KINDS.len() - 1);
    }

    #[test]
    fn what_was_tried_is_counted_by_kind() {
        let mut all = Acceptance::default();
        all.tried(Source::Own, 4, 5, 2);
        all.tried(Source::Own, 5, 3, 3);
        all.tried(Source::Corpus, 100, 1, 0);
        let counts: Vec<_> = all.counts().filter(|count| count.passes > 0).collect();
        let figures = |at: usize| {
            let count = &counts[at];
            (count.agreement, count.passes, count.guessed, count.accepted)
        };
        assert_eq!(counts.len(), 2);
        assert_eq!(figures(0), (4, 2, 8, 5));
        assert_eq!(figures(1), (22, 1, 1, 0));
        assert_eq!(counts[1].source, Source::Corpus);
        assert_eq!(all.accepted(), 5);
    }

    #[test]
    fn what_is_seen_outweighs_what_was_assumed() {
        let (mut all, mut own) = (Acceptance::default(), Acceptance::default());
        let alone = Grounds {
            agreement: 4,
            consent: Consent::Alone,
        };
        let many = Grounds {
            consent: Consent::Many,
            ..alone
        };
        let before = all.probability(&own, Source::Own, alone);
        assert!((before - 0.5).abs() < 1e-6);
        let others = all.probability(&own, Source::Own, many);
        assert!((others - 0.7).abs() < 1e-6);
        for _ in 0..1000 {
            all.count(Source::Own, alone, false);
        }
        let after = all.probability(&own, Source::Own, alone);
        assert!(after < 0.05, "{after}");
        assert_eq!(all.probability(&own, Source::Own, many), others);
        assert_eq!(all.probability(&own, Source::Corpus, alone), before);
        for _ in 0..30 {
            own.count(Source::Own, alone, true);
        }
        assert_eq!((own.right(Source::Own), all.right(Source::Own)), (30, 0));
        assert!(all.probability(&own, Source::Own, alone) > 0.75);
        assert!((0.0..=1.0).contains(&all.probability(&own, Source::Own, alone)));
    }
}
