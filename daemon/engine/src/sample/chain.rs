//! The chain itself: see the module above for its order.

use thiserror::Error;

use super::among::{self, Kept};
use super::logprob::{self, TokenLogprobs};
use super::penalty::{self, Counts};
use super::row::LogitRow;
use super::select::{self, Candidate};
use super::shortlist::Shortlist;
use super::weight::{self, Row, Weigher};
use super::{LogitBias, SamplingOptions, draw, typical};

#[cfg(test)]
mod tests;

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
    /// The logits are on a device, and cannot be read from there.
    #[error("the logits cannot be read from the device")]
    Unread,
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
    weigher: Weigher,
    penalised: Vec<f32>,
    kept: Kept,
    sums: Vec<u64>,
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
    counts: Counts,
    shortlist: Shortlist,
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
    /// [`SampleError`] for empty or non-finite logits, and those that cannot be read.
    pub fn sample<'a>(
        &mut self,
        logits: impl Into<LogitRow<'a>>,
        options: &SamplingOptions,
        bias: &LogitBias,
        history: History<'_>,
        position: u64,
    ) -> Result<u32, SampleError> {
        self.sample_among(logits, options, bias, history, position, None)
    }

    /// [`Sampler::sample`] among the tokens of `allowed` only, the lowest bit of its first word being token 0: as if the
    /// others were not in the vocabulary. Tokens without a bit are not allowed; `None` allows all.
    ///
    /// # Errors
    ///
    /// [`SampleError`] as there, and if none is allowed.
    pub fn sample_among<'a>(
        &mut self,
        logits: impl Into<LogitRow<'a>>,
        options: &SamplingOptions,
        bias: &LogitBias,
        history: History<'_>,
        position: u64,
        allowed: Option<&[u32]>,
    ) -> Result<u32, SampleError> {
        let row = logits.into();
        let of_best = self.choose_of_best(&row, options, bias, history, position, allowed);
        if let Some(chosen) = of_best {
            return Ok(chosen);
        }
        let logits = row.all().ok_or(SampleError::Unread)?;
        self.with_changed(logits, options, bias, history, |sampler, whole| {
            let Some(allowed) = allowed else {
                return sampler.choose_from(whole, options, position);
            };
            if options.takes_largest() {
                return among::first_largest(whole, allowed);
            }
            let mut kept = core::mem::take(&mut sampler.kept);
            kept.fill(whole, allowed);
            // What is kept is in the order of the tokens, so equals are ranked as they are.
            let chosen = match kept.ids.as_slice() {
                &[only] if kept.logits[0].is_finite() => Ok(only),
                ids => sampler
                    .choose_from(&kept.logits, options, position)
                    .map(|index| ids.get(index as usize).copied().unwrap_or_default())
                    .map_err(|error| kept.blame(error)),
            };
            sampler.kept = kept;
            chosen
        })
    }

    /// The choice by what is known of the best tokens of `row`; `None` if others may matter.
    fn choose_of_best(
        &mut self,
        row: &LogitRow<'_>,
        options: &SamplingOptions,
        bias: &LogitBias,
        history: History<'_>,
        position: u64,
        allowed: Option<&[u32]>,
    ) -> Option<u32> {
        let top_k = usize::try_from(options.top_k).unwrap_or(usize::MAX);
        if row.best().is_empty() || !options.takes_largest() && top_k == 0 {
            return None;
        }
        self.rank_best(row, options, bias, history);
        let first = &mut self.candidates;
        if let Some(allowed) = allowed {
            first.retain(|candidate| among::is_allowed(allowed, candidate.id));
        }
        let largest = *first.first()?;
        if options.takes_largest() {
            return Some(largest.id);
        }
        // Where there are no more than `top_k` in all, none is left out for that.
        if first.len() <= top_k {
            return None;
        }
        first.truncate(top_k);
        let weights = Row::new(&[], largest.logit, options.temperature);
        self.choose_weighed(weights, options, position)
            .or(Some(largest.id))
    }

    /// Draws from the candidates, all of which top-k keeps, by what `options` keep of them otherwise.
    fn choose_weighed(
        &mut self,
        row: Row<'_>,
        options: &SamplingOptions,
        position: u64,
    ) -> Option<u32> {
        for candidate in &mut self.candidates {
            candidate.weight = row.weight(candidate.logit);
        }
        let draw = |total| draw::below(total, options.seed, options.choice, position);
        choose_among(&mut self.candidates, options, row.largest, draw)
    }

    /// Has the candidates be those that rank before all others behind step 2, in order, as far as that is known.
    fn rank_best(
        &mut self,
        row: &LogitRow<'_>,
        options: &SamplingOptions,
        bias: &LogitBias,
        history: History<'_>,
    ) {
        let (counts, first) = (&mut self.counts, &mut self.candidates);
        self.shortlist
            .rank(row, options, bias, history, counts, first);
    }

    /// The `count` largest logits' tokens in the order in which step 3 would choose them if each before it were not
    /// allowed. None if a logit is not finite: then it matters whether its token is allowed.
    pub(crate) fn rank(
        &mut self,
        row: LogitRow<'_>,
        options: &SamplingOptions,
        bias: &LogitBias,
        history: History<'_>,
        count: usize,
    ) -> impl Iterator<Item = u32> + use<'_> {
        self.rank_best(&row, options, bias, history);
        if self.candidates.len() >= count.min(row.len()) && !row.best().is_empty() {
            self.candidates.truncate(count);
        } else if let Some(logits) = row.all() {
            self.rank_all(logits, options, bias, history, count);
        } else {
            self.candidates.clear();
        }
        self.candidates.iter().map(|candidate| candidate.id)
    }

    fn rank_all(
        &mut self,
        logits: &[f32],
        options: &SamplingOptions,
        bias: &LogitBias,
        history: History<'_>,
        count: usize,
    ) {
        self.with_changed(logits, options, bias, history, |sampler, whole| {
            sampler.candidates.clear();
            if let Ok(largest) = sampler.largest(whole) {
                if count == 1 {
                    sampler.candidates.push(Candidate {
                        logit: largest,
                        id: first_equal(whole, largest),
                        weight: 0,
                    });
                } else {
                    select::top(&mut sampler.candidates, whole, count);
                    sampler.candidates.sort_unstable_by(select::by_logit);
                }
            }
        });
    }

    /// Does something with the logits behind step 2, or those at hand if it changes none.
    fn with_changed<T>(
        &mut self,
        logits: &[f32],
        options: &SamplingOptions,
        bias: &LogitBias,
        history: History<'_>,
        work: impl FnOnce(&mut Self, &[f32]) -> T,
    ) -> T {
        if !options.has_penalties() && bias.is_empty() {
            return work(self, logits);
        }
        // Taken out for the time, because the chain has the other buffers.
        let mut row = core::mem::take(&mut self.penalised);
        row.clear();
        row.extend_from_slice(logits);
        bias.apply(&mut row);
        penalty::apply(&mut row, options, history, &mut self.counts);
        let done = work(self, &row);
        self.penalised = row;
        done
    }

    /// The chain from step 3 on. Tokens are named by their places in `logits`.
    fn choose_from(
        &mut self,
        logits: &[f32],
        options: &SamplingOptions,
        position: u64,
    ) -> Result<u32, SampleError> {
        let max = self.largest(logits)?;
        if options.takes_largest() {
            return Ok(first_equal(logits, max));
        }
        let draw = |total| draw::below(total, options.seed, options.choice, position);
        let row = Row::new(logits, max, options.temperature);
        let top_k = usize::try_from(options.top_k).unwrap_or(usize::MAX);
        let chosen = if (1..logits.len()).contains(&top_k) {
            select::top(&mut self.candidates, logits, top_k);
            self.choose_weighed(row, options, position)
        } else if options.typical_p < 1.0 {
            self.weigher.fill(row, &mut self.weights);
            gather(&mut self.candidates, logits, &self.weights, 1);
            choose_among(&mut self.candidates, options, max, draw)
        } else if options.top_p >= 1.0 && options.min_p <= 0.0 {
            // All tokens stay in, so none has to be ranked: they are drawn in the order of their numbers.
            let total = self.weigher.sum(row, &mut self.sums);
            row.at_mass(&self.sums, draw(total) + 1)
        } else {
            let total = self.weigher.sum(row, &mut self.sums);
            self.weigher.fill(row, &mut self.weights);
            let weights = &self.weights;
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
        Ok(chosen.unwrap_or_else(|| first_equal(logits, max)))
    }

    fn largest(&self, logits: &[f32]) -> Result<f32, SampleError> {
        self.weigher.largest_finite(logits).ok_or_else(|| {
            (0_u32..)
                .zip(logits)
                .find(|(_, logit)| !logit.is_finite())
                .map_or(SampleError::Empty, |(token, &value)| {
                    SampleError::NonFinite { token, value }
                })
        })
    }

    /// Log probabilities of `token` and of the `top` most probable tokens (at most
    /// [`super::LOGPROBS_TOP_MAX`]) under the raw `logits`.
    ///
    /// # Errors
    ///
    /// [`SampleError`] for empty or non-finite logits, and those that cannot be read.
    pub fn logprobs<'a>(
        &mut self,
        logits: impl Into<LogitRow<'a>>,
        token: u32,
        top: u8,
    ) -> Result<TokenLogprobs, SampleError> {
        let logits = logits.into().all().ok_or(SampleError::Unread)?;
        let max = self.largest(logits)?;
        Ok(logprob::of(logits, max, token, top, &mut self.candidates))
    }
}

/// Draws from the candidates, which have their weights, by what `options` keep of them.
fn choose_among(
    candidates: &mut Vec<Candidate>,
    options: &SamplingOptions,
    max: f32,
    draw: impl Fn(u64) -> u64,
) -> Option<u32> {
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

/// Tokens that are looked at together where few of them are looked for.
const TOGETHER: usize = 16;

/// Collects every token that weighs at least `least`.
fn gather(candidates: &mut Vec<Candidate>, logits: &[f32], weights: &[f32], least: u64) {
    candidates.clear();
    // Most are lighter, and so by far that a comparison before rounding says so.
    let bar = least.saturating_sub(1) as f32 / (1_u32 << 20) as f32 * (1.0 - f32::EPSILON);
    let pieces = logits.chunks(TOGETHER).zip(weights.chunks(TOGETHER));
    for (piece, (logits, weights)) in pieces.enumerate() {
        if !weights
            .iter()
            .fold(false, |any, &weight| any | (weight >= bar))
        {
            continue;
        }
        // A vocabulary's numbers fit 32 bits.
        let first = (piece * TOGETHER) as u32;
        for ((id, &logit), &weight) in (first..).zip(logits).zip(weights) {
            let weight = weight::quantize(weight);
            if weight >= least {
                candidates.push(Candidate { logit, id, weight });
            }
        }
    }
}

fn first_equal(logits: &[f32], max: f32) -> u32 {
    let is_in = |piece: &[f32]| piece.iter().fold(false, |any, &logit| any | (logit == max));
    let piece = logits.chunks(TOGETHER).position(is_in).unwrap_or(0);
    let first = piece * TOGETHER;
    let rest = logits.iter().skip(first);
    // A vocabulary's numbers fit 32 bits.
    let at = rest.into_iter().position(|&logit| logit == max);
    at.map_or(0, |at| (first + at) as u32)
}
