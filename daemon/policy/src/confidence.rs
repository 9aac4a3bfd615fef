//! How sure a local answer was of itself: what its tokens' probabilities, its length and its repetitions say about whether
//! it is right.
//!
//! A [`Gauge`] is told each token of an answer as it comes; its [`Signals`] are a handful of numbers, and a [`Confidence`]
//! makes a probability of them: a logistic regression, fitted by `andon-lab router calibrate` to answers that were known
//! to be right or wrong. Whatever the signals are, finite or not, the result is between 0 and 1.

use alloc::vec::Vec;

/// Likeliest tokens of each choice that [`entropy`] is to be told: with fewer or more of them it is another number than
/// those that confidence was fitted to.
pub const ALTERNATIVES: u8 = 20;

/// Tokens of a run whose coming back counts as repetition.
const RUN: usize = 4;

/// What is known of an answer that ended. The numbers are of its tokens as the model gave them, before temperature and
/// filters; natural logarithms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Signals {
    /// Tokens of the answer.
    pub tokens: u32,
    /// Mean log-probability of its tokens; at most 0.
    pub logprob_mean: f32,
    /// The least log-probability of a token; at most 0.
    pub logprob_min: f32,
    /// Mean entropy of the choices, in nats.
    pub entropy_mean: f32,
    /// The largest entropy of a choice, in nats.
    pub entropy_max: f32,
    /// Share of runs of four tokens that were there before in the answer, 0 to 1.
    pub repetition: f32,
    /// How often the answer was made again because what it is held to was not met.
    pub retries: u32,
    /// Whether it ended by itself, rather than by a limit.
    pub ended: bool,
    /// What was thought of it before it was made: the estimator's probability that the local answer will do; 0.5 for
    /// nothing.
    pub prior: f32,
}

impl Default for Signals {
    fn default() -> Signals {
        Signals {
            tokens: 0,
            logprob_mean: 0.0,
            logprob_min: 0.0,
            entropy_mean: 0.0,
            entropy_max: 0.0,
            repetition: 0.0,
            retries: 0,
            ended: true,
            prior: 0.5,
        }
    }
}

/// Listens to an answer. It keeps four bytes a token.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    ids: Vec<u32>,
    logprobs: f64,
    logprob_min: f32,
    entropies: f64,
    entropy_max: f32,
}

impl Gauge {
    /// A gauge that has heard nothing.
    #[must_use]
    pub fn new() -> Gauge {
        Gauge::default()
    }

    /// A token came: its id, its log-probability and the [`entropy`] of the choice. What is no number counts as unsure.
    pub fn token(&mut self, id: u32, logprob: f32, entropy: f32) {
        let logprob = bounded(logprob, LOGPROB_LEAST, 0.0, LOGPROB_LEAST);
        let entropy = bounded(entropy, 0.0, ENTROPY_MOST, ENTROPY_MOST);
        self.ids.push(id);
        self.logprobs += f64::from(logprob);
        self.logprob_min = self.logprob_min.min(logprob);
        self.entropies += f64::from(entropy);
        self.entropy_max = self.entropy_max.max(entropy);
    }

    /// Forgets the answer, which is made again.
    pub fn clear(&mut self) {
        *self = Gauge::default();
    }

    /// What was heard; `retries`, `ended` and `prior` are for the caller to fill in.
    #[must_use]
    pub fn signals(&self) -> Signals {
        let count = self.ids.len().max(1) as f64;
        Signals {
            tokens: u32::try_from(self.ids.len()).unwrap_or(u32::MAX),
            logprob_mean: (self.logprobs / count) as f32,
            logprob_min: self.logprob_min,
            entropy_mean: (self.entropies / count) as f32,
            entropy_max: self.entropy_max,
            repetition: repetition(&self.ids),
            ..Signals::default()
        }
    }
}

/// Share of the runs of [`RUN`] tokens that were there before.
fn repetition(ids: &[u32]) -> f32 {
    let mut runs: Vec<&[u32]> = ids.windows(RUN).collect();
    if runs.is_empty() {
        return 0.0;
    }
    let all = runs.len();
    runs.sort_unstable();
    runs.dedup();
    (all - runs.len()) as f32 / all as f32
}

/// Entropy of a choice in nats, of the log-probabilities of its [`ALTERNATIVES`] likeliest tokens; the others count as one, so that it is
/// never above the true one.
#[must_use]
pub fn entropy(top: impl IntoIterator<Item = f32>) -> f32 {
    let (mut sum, mut rest) = (0.0, 1.0_f32);
    for logprob in top {
        let share = libm::expf(logprob.min(0.0));
        if share > 0.0 {
            sum -= share * logprob;
            rest -= share;
        }
    }
    if rest > f32::EPSILON {
        sum -= rest * libm::logf(rest);
    }
    bounded(sum, 0.0, ENTROPY_MOST, ENTROPY_MOST)
}

/// Bounds within which a signal counts: beyond them there is nothing more to say.
const LOGPROB_LEAST: f32 = -16.0;
const ENTROPY_MOST: f32 = 12.0;
const TOKENS_MOST: u32 = 4096;
const RETRIES_MOST: u32 = 4;
const PRIOR_LEAST: f32 = 0.01;

fn bounded(value: f32, least: f32, most: f32, otherwise: f32) -> f32 {
    if value.is_nan() {
        otherwise
    } else {
        value.clamp(least, most)
    }
}

/// Numbers that [`Confidence`] weighs.
pub const FEATURES: usize = 9;

/// Their names, in order; `andon-lab router calibrate` writes weights by these.
pub const FEATURE_NAMES: [&str; FEATURES] = [
    "logprob-mean",
    "logprob-min",
    "entropy-mean",
    "entropy-max",
    "length",
    "repetition",
    "retries",
    "cut",
    "prior",
];

impl Signals {
    /// The numbers that are weighed, each of a size about 1 and within bounds: `length` is the logarithm of the tokens,
    /// `prior` the log-odds of the estimate.
    #[must_use]
    pub fn features(&self) -> [f32; FEATURES] {
        let prior = bounded(self.prior, PRIOR_LEAST, 1.0 - PRIOR_LEAST, 0.5);
        [
            bounded(self.logprob_mean, LOGPROB_LEAST, 0.0, LOGPROB_LEAST),
            bounded(self.logprob_min, LOGPROB_LEAST, 0.0, LOGPROB_LEAST) / 4.0,
            bounded(self.entropy_mean, 0.0, ENTROPY_MOST, ENTROPY_MOST),
            bounded(self.entropy_max, 0.0, ENTROPY_MOST, ENTROPY_MOST) / 4.0,
            libm::logf(1.0 + self.tokens.min(TOKENS_MOST) as f32) / 4.0,
            bounded(self.repetition, 0.0, 1.0, 1.0),
            self.retries.min(RETRIES_MOST) as f32,
            if self.ended { 0.0 } else { 1.0 },
            libm::logf(prior / (1.0 - prior)),
        ]
    }
}

/// Makes a probability of [`Signals`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Confidence {
    bias: f32,
    weights: [f32; FEATURES],
}

/// The largest weight that may be given.
const WEIGHT_MOST: f32 = 100.0;

impl Confidence {
    /// One of given weights, in the order of [`FEATURE_NAMES`]; `None` if one of them is no number or beyond ±100.
    #[must_use]
    pub fn new(bias: f32, weights: [f32; FEATURES]) -> Option<Confidence> {
        let sound = |weight: f32| weight.is_finite() && weight.abs() <= WEIGHT_MOST;
        (sound(bias) && weights.iter().all(|&weight| sound(weight)))
            .then_some(Confidence { bias, weights })
    }

    /// Its bias and weights.
    #[must_use]
    pub fn weights(&self) -> (f32, [f32; FEATURES]) {
        (self.bias, self.weights)
    }

    /// The probability that the answer is right, 0 to 1.
    #[must_use]
    pub fn of(&self, signals: &Signals) -> f32 {
        let features = signals.features();
        let terms = features.iter().zip(&self.weights);
        let odds: f32 = terms.map(|(feature, weight)| feature * weight).sum();
        1.0 / (1.0 + libm::expf(-(self.bias + odds)))
    }
}

impl Default for Confidence {
    /// The one for any model. An answer that is as sure of itself as small models' answers mostly are leaves the estimate as it
    /// was; surer tokens raise it, others lower it.
    fn default() -> Confidence {
        Confidence {
            bias: 0.8,
            weights: [0.5, 0.25, -0.25, -0.25, 0.0, -1.0, -0.5, -0.5, 1.0],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sure() -> Signals {
        let mut gauge = Gauge::new();
        for id in 0..20 {
            gauge.token(id, -0.05, 0.2);
        }
        gauge.signals()
    }

    #[test]
    fn a_gauge_tells_mean_least_and_most() {
        let mut gauge = Gauge::new();
        for (id, logprob, entropy) in [(7, -1.0, 2.0), (8, -3.0, 1.0), (9, -0.5, 0.0)] {
            gauge.token(id, logprob, entropy);
        }
        let signals = gauge.signals();
        assert_eq!((signals.tokens, signals.logprob_mean), (3, -1.5));
        assert_eq!((signals.logprob_min, signals.entropy_max), (-3.0, 2.0));
        assert_eq!((signals.entropy_mean, signals.repetition), (1.0, 0.0));
        gauge.clear();
        assert_eq!(gauge.signals(), Signals::default());
    }

    #[test]
    fn runs_that_come_back_are_repetition() {
        assert_eq!(repetition(&[1, 2, 3]), 0.0);
        assert_eq!(repetition(&[1, 2, 3, 4, 5, 6, 7]), 0.0);
        // Of the five runs of eight tokens only the last was there before.
        assert_eq!(repetition(&[1, 2, 3, 4, 1, 2, 3, 4]), 0.2);
        assert!(repetition(&[5; 100]) > 0.98);
    }

    #[test]
    fn entropy_is_that_of_the_shares() {
        assert_eq!(entropy([0.0]), 0.0);
        let half = libm::logf(0.5);
        assert!((entropy([half, half]) - core::f32::consts::LN_2).abs() < 1e-6);
        // What is not told counts as one token.
        assert!((entropy([half]) - core::f32::consts::LN_2).abs() < 1e-6);
        assert!(entropy([f32::NEG_INFINITY]).abs() < 1e-6);
    }

    #[test]
    fn the_less_sure_the_less_confident() {
        let confidence = Confidence::default();
        let at = |change: fn(&mut Signals)| {
            let mut signals = sure();
            change(&mut signals);
            confidence.of(&signals)
        };
        let whole = at(|_| ());
        assert!(at(|signals| signals.logprob_mean = -2.0) < whole);
        assert!(at(|signals| signals.prior = 0.1) < whole);
        assert!(at(|signals| signals.repetition = 0.9) < whole);
    }

    #[test]
    fn an_ordinary_answer_leaves_the_estimate_as_it_was() {
        for prior in [0.2, 0.5, 0.8] {
            let ordinary = Signals {
                tokens: 12,
                logprob_mean: -0.45,
                logprob_min: -1.7,
                entropy_mean: 0.9,
                entropy_max: 2.0,
                prior,
                ..Signals::default()
            };
            let got = Confidence::default().of(&ordinary);
            assert!((got - prior).abs() < 0.05, "{got} for {prior}");
        }
    }

    #[test]
    fn weights_that_are_no_numbers_are_refused() {
        assert!(Confidence::new(f32::NAN, [0.0; FEATURES]).is_none());
        assert!(Confidence::new(0.0, [f32::INFINITY; FEATURES]).is_none());
        assert!(Confidence::new(0.0, [101.0; FEATURES]).is_none());
        let even = Confidence::new(0.0, [0.0; FEATURES]).expect("sound");
        assert_eq!(even.of(&sure()), 0.5);
    }

    proptest! {
        #[test]
        fn anything_gives_a_probability(
            tokens: u32,
            numbers in proptest::array::uniform6(proptest::num::f32::ANY),
            retries: u32,
            ended: bool,
        ) {
            let [logprob_mean, logprob_min, entropy_mean, entropy_max, repetition, prior] = numbers;
            let signals = Signals {
                tokens, logprob_mean, logprob_min, entropy_mean, entropy_max, repetition, retries, ended, prior,
            };
            let got = Confidence::default().of(&signals);
            prop_assert!((0.0..=1.0).contains(&got), "{got} of {signals:?}");
        }

        #[test]
        fn a_gauge_of_anything_stays_within_bounds(
            heard in proptest::collection::vec((0_u32..9, proptest::num::f32::ANY, proptest::num::f32::ANY), 0..40),
        ) {
            let mut gauge = Gauge::new();
            for &(id, logprob, entropy) in &heard {
                gauge.token(id, logprob, entropy);
            }
            let signals = gauge.signals();
            prop_assert!((LOGPROB_LEAST..=0.0).contains(&signals.logprob_mean));
            prop_assert!(signals.logprob_min <= signals.logprob_mean);
            prop_assert!((0.0..=ENTROPY_MOST).contains(&signals.entropy_mean));
            prop_assert!((0.0..=1.0).contains(&signals.repetition));
        }

        #[test]
        fn entropy_of_anything_is_finite(top in proptest::collection::vec(proptest::num::f32::ANY, 0..20)) {
            prop_assert!((0.0..=ENTROPY_MOST).contains(&entropy(top)));
        }
    }
}
