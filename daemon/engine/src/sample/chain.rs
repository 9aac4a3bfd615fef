//! The chain itself: see the module above for its order.

use thiserror::Error;

use super::logprob::{self, TokenLogprobs};
use super::penalty::{self, Counts};
use super::select::{self, Candidate};
use super::{LogitBias, SamplingOptions, draw, typical, weight};

/// The tokens before the one to be chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct History<'a> {
    /// Tokens that were given.
    pub prompt: &'a [u32],
    /// Tokens that were chosen since.
    pub generated: &'a [u32],
}

/// Why no token could be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum SampleError {
    /// There is no logit to choose from.
    #[error("the model gave no logits")]
    Empty,
    /// A logit is not a number or infinite, as the model gave it or after bias and penalties.
    #[error("the logit of token {token} is {value}")]
    NonFinite {
        /// The first such token.
        token: u32,
        /// Its logit.
        value: f32,
    },
}

/// Buffers of the chain. One serves any number of generations in turn: nothing but capacity is
/// carried from one call to the next.
#[derive(Debug, Default)]
pub struct Sampler {
    penalised: Vec<f32>,
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
    counts: Counts,
}

impl Sampler {
    /// A sampler without buffers yet; the first calls allocate them.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The token at `position` (its index in the sequence, prompt included), chosen from `logits`
    /// (one per token of the vocabulary).
    ///
    /// `options` should have passed [`SamplingOptions::validate`]; with others the choice is
    /// meaningless but still one of the tokens.
    ///
    /// # Errors
    ///
    /// [`SampleError`] for empty or non-finite logits.
    pub fn sample(
        &mut self,
        logits: &[f32],
        options: &SamplingOptions,
        bias: &LogitBias,
        history: History<'_>,
        position: u64,
    ) -> Result<u32, SampleError> {
        let logits = if options.has_penalties() || !bias.is_empty() {
            self.penalised.clear();
            self.penalised.extend_from_slice(logits);
            bias.apply(&mut self.penalised);
            penalty::apply(&mut self.penalised, options, history, &mut self.counts);
            &self.penalised
        } else {
            logits
        };
        let max = max_finite(logits)?;
        let best = first_equal(logits, max);
        if options.is_greedy() || options.top_k == 1 {
            return Ok(best);
        }
        let draw = |total| draw::below(total, options.seed, options.choice, position);
        let top_k = usize::try_from(options.top_k).unwrap_or(usize::MAX);
        let chosen = if (1..logits.len()).contains(&top_k) {
            select::top(&mut self.candidates, logits, top_k);
            for candidate in &mut self.candidates {
                candidate.weight =
                    weight::quantize(weight::of(candidate.logit, max, options.temperature));
            }
            self.choose_among_candidates(options, max, draw)
        } else if options.typical_p < 1.0 {
            weight::fill(&mut self.weights, logits, max, options.temperature);
            gather(&mut self.candidates, logits, &self.weights, 1);
            self.choose_among_candidates(options, max, draw)
        } else {
            weight::fill(&mut self.weights, logits, max, options.temperature);
            let weights = &self.weights;
            let total = weight::total(weights);
            let above = above_min_p(
                options,
                total,
                weight::ONE,
                weights.iter().map(|&weight| weight::quantize(weight)),
            );
            choose(
                &mut self.candidates,
                options,
                total,
                above,
                draw,
                |candidates, mass| {
                    let least = lightest(total, mass, logits.len());
                    gather(candidates, logits, weights, least);
                },
            )
        };
        // The masses asked for never exceed the total, so a token is always found.
        Ok(chosen.unwrap_or(best))
    }

    /// Draws from the candidates, which have their weights, by what `options` keep of them.
    fn choose_among_candidates(
        &mut self,
        options: &SamplingOptions,
        max: f32,
        draw: impl Fn(u64) -> u64,
    ) -> Option<u32> {
        let candidates = &mut self.candidates;
        let total_of = |candidates: &[Candidate]| -> u64 {
            candidates.iter().map(|candidate| candidate.weight).sum()
        };
        if options.typical_p < 1.0 {
            let total = total_of(candidates);
            let (temperature, typical_p) = (options.temperature, options.typical_p);
            typical::keep(candidates, max, temperature, typical_p, total);
        }
        let total = total_of(candidates);
        let weights = || candidates.iter().map(|candidate| candidate.weight);
        let heaviest = weights().max().unwrap_or(weight::ONE);
        let above = above_min_p(options, total, heaviest, weights());
        choose(candidates, options, total, above, draw, |_, _| ())
    }

    /// Log probabilities of `token` and of the `top` most probable tokens (at most
    /// [`super::LOGPROBS_TOP_MAX`]) under the raw `logits`.
    ///
    /// # Errors
    ///
    /// [`SampleError`] for empty or non-finite logits.
    pub fn logprobs(
        &mut self,
        logits: &[f32],
        token: u32,
        top: u8,
    ) -> Result<TokenLogprobs, SampleError> {
        let max = max_finite(logits)?;
        Ok(logprob::of(logits, max, token, top, &mut self.candidates))
    }
}

/// Draws from the tokens that top-p and min-p keep. Each keeps the heaviest down to some token, so
/// what counts is the smaller of their weights: `above` is that of min-p.
///
/// `prepare` is called before each search with the mass that will be looked for.
fn choose(
    candidates: &mut Vec<Candidate>,
    options: &SamplingOptions,
    total: u64,
    above: u64,
    draw: impl Fn(u64) -> u64,
    prepare: impl Fn(&mut Vec<Candidate>, u64),
) -> Option<u32> {
    let mut kept = above;
    if options.top_p < 1.0 {
        // `total` is below 2^64, so the f64 product is off by less than one part in 2^52 of it.
        let mass = ((f64::from(options.top_p) * total as f64).ceil() as u64).clamp(1, total);
        prepare(candidates, mass);
        kept = select::at_mass(candidates, mass, select::by_weight)?
            .1
            .min(above);
    }
    let mass = draw(kept) + 1;
    prepare(candidates, mass);
    let (token, _) = select::at_mass(candidates, mass, select::by_weight)?;
    Some(token.id)
}

/// Weight of the tokens that min-p keeps: all of them if it is off.
fn above_min_p(
    options: &SamplingOptions,
    total: u64,
    heaviest: u64,
    weights: impl Iterator<Item = u64>,
) -> u64 {
    if options.min_p <= 0.0 {
        return total;
    }
    // Exact: a weight has at most 41 bits.
    let least = ((f64::from(options.min_p) * heaviest as f64).ceil() as u64).min(heaviest);
    weights.filter(|&weight| weight >= least).sum()
}

/// A weight that every token reaches which can be among the heaviest ones weighing `mass` together.
///
/// Tokens lighter than `(total - mass) / count` can be left out: all of them together weigh less
/// than `total - mass`, so those that remain weigh at least `mass`.
fn lightest(total: u64, mass: u64, count: usize) -> u64 {
    (total.saturating_sub(mass) / count.max(1) as u64).max(1)
}

/// Collects every token that weighs at least `least`.
fn gather(candidates: &mut Vec<Candidate>, logits: &[f32], weights: &[f32], least: u64) {
    candidates.clear();
    for ((id, &logit), &weight) in (0_u32..).zip(logits).zip(weights) {
        let weight = weight::quantize(weight);
        if weight >= least {
            candidates.push(Candidate { logit, id, weight });
        }
    }
}

fn max_finite(logits: &[f32]) -> Result<f32, SampleError> {
    weight::max_finite(logits).ok_or_else(|| {
        (0_u32..)
            .zip(logits)
            .find(|(_, logit)| !logit.is_finite())
            .map_or(SampleError::Empty, |(token, &value)| {
                SampleError::NonFinite { token, value }
            })
    })
}

fn first_equal(logits: &[f32], max: f32) -> u32 {
    (0_u32..)
        .zip(logits)
        .find(|&(_, &logit)| logit == max)
        .map_or(0, |(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(logits: &[f32], options: SamplingOptions, position: u64) -> u32 {
        Sampler::new()
            .sample(
                logits,
                &options,
                &LogitBias::default(),
                History::default(),
                position,
            )
            .unwrap()
    }

    /// The same chain in floating point, by sorting: the probability of each token.
    fn probabilities(logits: &[f32], options: &SamplingOptions) -> Vec<f64> {
        let mut ranked: Vec<usize> = (0..logits.len()).collect();
        ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if options.top_k > 0 {
            ranked.truncate(options.top_k as usize);
        }
        let max = logits[ranked[0]];
        let weights: Vec<f64> = ranked
            .iter()
            .map(|&id| (f64::from(logits[id] - max) / f64::from(options.temperature)).exp())
            .collect();
        let mut kept: Vec<(usize, f64)> = ranked.into_iter().zip(weights).collect();
        if options.typical_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
            let surprise = |weight: f64| -(weight / total).ln();
            let entropy: f64 = kept
                .iter()
                .map(|&(_, weight)| weight / total * surprise(weight))
                .sum();
            kept.sort_by(|(_, a), (_, b)| {
                let deviation = |weight: f64| (surprise(weight) - entropy).abs();
                deviation(*a).total_cmp(&deviation(*b))
            });
            let mut sum = 0.0;
            let count = kept.iter().take_while(|(_, weight)| {
                let before = sum;
                sum += weight;
                before < f64::from(options.typical_p) * total
            });
            let count = count.count().max(1);
            kept.truncate(count);
            kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        }
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let heaviest = kept[0].1;
        let mut sum = 0.0;
        let mut count = 0;
        for (_, weight) in &kept {
            if count > 0
                && (sum >= f64::from(options.top_p) * total
                    || *weight < f64::from(options.min_p) * heaviest)
            {
                break;
            }
            sum += weight;
            count += 1;
        }
        let mut probabilities = vec![0.0; logits.len()];
        for (id, weight) in kept.into_iter().take(count) {
            probabilities[id] = weight / sum;
        }
        probabilities
    }

    /// Logits in no order, a few of them large, without ties.
    fn bumpy(count: u16) -> Vec<f32> {
        (0..count)
            .map(|i| f32::from(i.wrapping_mul(40_503) % 10_007) / 900.0 - 4.0)
            .collect()
    }

    #[test]
    fn draws_follow_the_probabilities() {
        const DRAWS: u32 = 20_000;
        let base = SamplingOptions {
            temperature: 1.0,
            seed: 11,
            ..SamplingOptions::default()
        };
        let logits = bumpy(300);
        for options in [
            base,
            SamplingOptions {
                temperature: 0.4,
                ..base
            },
            SamplingOptions { top_k: 7, ..base },
            SamplingOptions {
                top_p: 0.7,
                temperature: 1.7,
                ..base
            },
            SamplingOptions { min_p: 0.2, ..base },
            SamplingOptions {
                typical_p: 0.3,
                ..base
            },
            SamplingOptions {
                typical_p: 0.8,
                top_k: 60,
                top_p: 0.9,
                min_p: 0.02,
                choice: 3,
                ..base
            },
            SamplingOptions {
                top_k: 90,
                top_p: 0.8,
                min_p: 0.05,
                temperature: 2.5,
                ..base
            },
        ] {
            let expected = probabilities(&logits, &options);
            let mut counts = vec![0_u32; logits.len()];
            let mut sampler = Sampler::new();
            for position in 0..DRAWS {
                let token = sampler
                    .sample(
                        &logits,
                        &options,
                        &LogitBias::default(),
                        History::default(),
                        u64::from(position),
                    )
                    .unwrap();
                counts[token as usize] += 1;
            }
            for (&count, &probability) in counts.iter().zip(&expected) {
                let mean = f64::from(DRAWS) * probability;
                // Six standard deviations of the binomial, and a little for the rarest.
                let slack = 6.0 * (mean * (1.0 - probability)).sqrt() + 3.0;
                assert!(
                    (f64::from(count) - mean).abs() <= if probability == 0.0 { 0.0 } else { slack },
                    "{options:?}"
                );
            }
        }
    }

    #[test]
    fn greedy_takes_the_lowest_of_equal_ids() {
        let greedy = SamplingOptions::default();
        assert_eq!(sample(&[1.0, 5.0, 5.0, 2.0], greedy, 0), 1);
        assert_eq!(sample(&[-0.0, 0.0], greedy, 0), 0);
        let top_1 = SamplingOptions {
            temperature: 1.0,
            top_k: 1,
            ..greedy
        };
        assert!((0..50).all(|position| sample(&[1.0, 5.0, 5.0, 2.0], top_1, position) == 1));
    }

    #[test]
    fn the_narrowest_filters_leave_the_most_probable_token() {
        let base = SamplingOptions {
            temperature: 5.0,
            ..SamplingOptions::default()
        };
        let logits = bumpy(2000);
        let best = sample(&logits, SamplingOptions::default(), 0);
        for options in [
            SamplingOptions { top_p: 0.0, ..base },
            SamplingOptions {
                top_p: 1e-9,
                ..base
            },
            SamplingOptions { min_p: 1.0, ..base },
            SamplingOptions {
                temperature: 1e-30,
                ..base
            },
        ] {
            assert!(
                (0..200).all(|position| sample(&logits, options, position) == best),
                "{options:?}"
            );
        }
    }

    #[test]
    fn a_large_flat_vocabulary_is_sampled_evenly() {
        let logits = vec![3.0; 150_000];
        let options = SamplingOptions {
            temperature: 1.0,
            top_p: 0.5,
            ..SamplingOptions::default()
        };
        let mut sampler = Sampler::new();
        for position in 0..50 {
            let token = sampler
                .sample(
                    &logits,
                    &options,
                    &LogitBias::default(),
                    History::default(),
                    position,
                )
                .unwrap();
            assert!(token < 75_000, "the lower half of equals is the nucleus");
        }
    }

    #[test]
    fn a_reused_sampler_gives_what_a_new_one_gives() {
        let options = SamplingOptions {
            temperature: 1.0,
            frequency_penalty: 1.0,
            seed: 3,
            ..SamplingOptions::default()
        };
        let mut reused = Sampler::new();
        for (position, size) in [2000_u16, 30, 999, 31]
            .into_iter()
            .cycle()
            .take(40)
            .enumerate()
        {
            let logits = bumpy(size);
            let history = History {
                prompt: &[1, 2],
                generated: &[5, 6, 5],
            };
            let position = position as u64;
            assert_eq!(
                reused.sample(&logits, &options, &LogitBias::default(), history, position),
                Sampler::new().sample(&logits, &options, &LogitBias::default(), history, position)
            );
        }
    }

    #[test]
    fn penalties_act_before_the_choice() {
        let none = LogitBias::default();
        let options = SamplingOptions {
            frequency_penalty: 1.0,
            ..SamplingOptions::default()
        };
        let history = History {
            prompt: &[],
            generated: &[1, 1],
        };
        let logits = [2.5, 4.0, 1.0];
        assert_eq!(
            Sampler::new().sample(&logits, &options, &none, history, 0),
            Ok(0)
        );
        assert_eq!(
            Sampler::new().sample(&logits, &options, &none, History::default(), 0),
            Ok(1)
        );
    }

    #[test]
    fn bad_logits_are_errors() {
        let none = LogitBias::default();
        let mut sampler = Sampler::new();
        let options = SamplingOptions {
            temperature: 1.0,
            ..SamplingOptions::default()
        };
        assert_eq!(
            sampler.sample(&[], &options, &none, History::default(), 0),
            Err(SampleError::Empty)
        );
        let result = sampler.sample(
            &[0.0, f32::INFINITY, f32::NAN],
            &options,
            &none,
            History::default(),
            0,
        );
        assert_eq!(
            result,
            Err(SampleError::NonFinite {
                token: 1,
                value: f32::INFINITY
            })
        );
        assert!(matches!(
            sampler.logprobs(&[f32::NAN], 0, 1),
            Err(SampleError::NonFinite { token: 0, .. })
        ));
        let overflow = SamplingOptions {
            repeat_penalty: 0.01,
            ..options
        };
        let history = History {
            prompt: &[0],
            generated: &[],
        };
        assert!(
            sampler
                .sample(&[f32::MAX], &overflow, &none, history, 0)
                .is_err()
        );
    }

    #[test]
    fn a_bias_acts_before_everything_and_can_forbid_or_force() {
        let logits = bumpy(300);
        let best = sample(&logits, SamplingOptions::default(), 0);
        let bias = |token: u32, value: f32| LogitBias::new(vec![(token, value)]).expect("valid");
        let drawn = SamplingOptions {
            temperature: 1.0,
            top_k: 5,
            ..SamplingOptions::default()
        };
        let with = |options: &SamplingOptions, bias: &LogitBias, position| {
            Sampler::new()
                .sample(&logits, options, bias, History::default(), position)
                .expect("finite logits")
        };
        let greedy = SamplingOptions::default();
        assert_ne!(with(&greedy, &bias(best, -100.0), 0), best);
        for position in 0..50 {
            assert_eq!(with(&drawn, &bias(123, 100.0), position), 123);
            assert_ne!(with(&drawn, &bias(best, -100.0), position), best);
        }
        assert_eq!(with(&greedy, &bias(best, 0.0), 0), best);
        assert_eq!(with(&greedy, &bias(best + 100_000, 100.0), 0), best);
    }

    #[test]
    fn choices_of_one_seed_differ_and_can_be_repeated() {
        let logits = vec![1.0; 1000];
        let of = |choice, position| {
            let options = SamplingOptions {
                temperature: 1.0,
                seed: 9,
                choice,
                ..SamplingOptions::default()
            };
            sample(&logits, options, position)
        };
        let tokens = |choice| {
            (0..20)
                .map(|position| of(choice, position))
                .collect::<Vec<_>>()
        };
        assert_eq!(tokens(1), tokens(1));
        assert_ne!(tokens(0), tokens(1));
        assert_ne!(tokens(1), tokens(2));
    }

    proptest! {
        /// Whatever the options, the token is one that the filters leave.
        #[test]
        fn a_drawn_token_is_one_that_the_filters_keep(
            logits in prop::collection::vec(-30.0_f32..30.0, 1..400),
            temperature in 0.1_f32..4.0,
            top_k in 0_u32..450,
            top_p in 0.0_f32..=1.0,
            min_p in 0.0_f32..=1.0,
            typical_p in prop_oneof![Just(1.0_f32), 0.0_f32..=1.0],
            seed in any::<u64>(),
            position in any::<u64>(),
        ) {
            let options = SamplingOptions { temperature, top_k, top_p, min_p, typical_p, seed, ..SamplingOptions::default() };
            let token = sample(&logits, options, position);
            // Borders move by rounding: ask the reference with a hair more room, and on both sides of the border of
            // the typical set, since a larger set is not a roomier one for what comes after.
            let kept = [0.99999_f32, 1.0, 1.00001].into_iter().any(|hair| {
                let roomy = SamplingOptions {
                    top_p: (top_p * 1.00001).min(1.0),
                    min_p: min_p * 0.99999,
                    typical_p: if typical_p < 1.0 { (typical_p * hair).min(1.0) } else { 1.0 },
                    ..options
                };
                probabilities(&logits, &roomy)[token as usize] > 0.0
            });
            prop_assert!(kept);
        }
    }
}
