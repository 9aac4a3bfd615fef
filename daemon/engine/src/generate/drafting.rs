//! Whether guesses that cost something are made, for whom, and how many.
//!
//! They are wanted where the tokens that a pass is expected to give, divided by what it and the guesses cost, become more
//! than with guesses that cost nothing. How often they come true is only seen by making them, so where they do not pay
//! some are made all the same, for at most a hundredth of the time.

use std::time::Instant;

use super::active::Active;
use super::event::GenerationId;
use crate::Executor;
use crate::sample::{LogitBias, SamplingOptions};
use crate::speculate::{
    Acceptance, DRAFT_MAX, Drafter, GAIN_MIN, NEAR_TOKENS, PassCosts, Proposal, Wanted,
};

/// How many times what a trial costs must have passed without guesses before it is made.
const TRIAL_SHARE: f32 = 100.0;

/// Guesses of a trial.
const TRIAL_TOKENS: usize = 2;

/// Tokens that an answer is taken to go on for, beside as many as it has.
const HORIZON_TOKENS: usize = 32;

/// One answer that a drafter may guess for.
#[derive(Debug)]
struct Candidate {
    index: usize,
    /// Tokens of its text that were not read.
    missing: usize,
    most: usize,
    /// Tokens expected of the guesses that cost nothing, and how many those are.
    free: f32,
    taken: usize,
    /// Of the drafter's guesses so far: probability that all are right, tokens expected.
    right: f32,
    expected: f32,
}

/// What was found to be best.
#[derive(Clone, Copy, Debug)]
struct Best {
    length: usize,
    /// Tokens per cost, and without the drafter.
    rate: f32,
    plain: f32,
}

/// A drafter, and what is known of its use.
#[derive(Debug)]
pub(super) struct Drafting {
    drafter: Box<dyn Drafter>,
    /// Ids from here on are no tokens.
    vocabulary_count: usize,
    /// Cost of the passes without its guesses that are not paid for a trial yet.
    idle: f32,
    candidates: Vec<Candidate>,
}

impl Drafting {
    pub(super) fn new(drafter: Box<dyn Drafter>, vocabulary_count: usize) -> Drafting {
        Drafting {
            drafter,
            vocabulary_count,
            idle: 0.0,
            candidates: Vec::new(),
        }
    }

    pub(super) fn forget(&mut self, id: GenerationId) {
        self.drafter.forget(id.0);
    }

    /// Sees what guesses behind `text` take. False if there are none.
    pub(super) fn time(
        &mut self,
        costs: &mut PassCosts,
        text: &[u32],
        mut executor: Option<&mut Executor>,
    ) -> bool {
        // No generation gets as far as this number.
        let id = u64::MAX;
        if text.is_empty() || self.drafter.missing(id, text).is_none() {
            return false;
        }
        let beginning = &text[..text.len().min(NEAR_TOKENS)];
        let mut guesses = Vec::new();
        let mut passes = 0;
        // The first pass reads the text, and brings in weights that were not used yet.
        for count in [1, TRIAL_TOKENS] {
            guesses.clear();
            let wanted = Wanted {
                id,
                text: beginning,
                prompt_tokens: beginning.len(),
                sampling: &SamplingOptions::default(),
                bias: &LogitBias::default(),
                limits: None,
                count,
                guesses: &mut guesses,
            };
            let began = Instant::now();
            passes = self.drafter.draft(executor.as_deref_mut(), &mut [wanted]);
            if count > 1 {
                costs.drafted(passes, began.elapsed());
            }
        }
        self.drafter.forget(id);
        passes > 0
    }

    /// Makes guesses where they pay, for a pass over `columns` tokens that may take `room` guesses, where each of the
    /// generations at `proposing` has its proposal of others. Says whether any were made.
    pub(super) fn draft(
        &mut self,
        costs: &mut PassCosts,
        acceptance: &Acceptance,
        (columns, room): (usize, usize),
        (active, proposing, proposals): (&mut [Active], &[usize], &[Proposal]),
        mut executor: Option<&mut Executor>,
    ) -> bool {
        self.candidates.clear();
        // Tokens and columns of those that are no candidates.
        let (mut others, mut other_columns) = (0.0, columns - proposing.len());
        for (&index, proposal) in proposing.iter().zip(proposals) {
            let of = &active[index];
            let free = expected(proposal.taken, |guess| of.probability(acceptance, guess));
            let missing = || self.drafter.missing(of.id.0, of.text());
            match of.drafts_max().and_then(|most| Some((most, missing()?))) {
                Some((most, missing)) => self.candidates.push(Candidate {
                    index,
                    missing,
                    most,
                    free,
                    taken: proposal.taken,
                    right: 1.0,
                    expected: 0.0,
                }),
                None => {
                    others += 1.0 + free;
                    other_columns += 1 + proposal.taken;
                }
            }
        }
        if self.candidates.is_empty() {
            return false;
        }
        let rest = (others, other_columns, columns + room);
        let best = self.best(costs, acceptance, active, rest, |candidate| {
            candidate.missing <= NEAR_TOKENS
        });
        if best.length == 0 {
            self.idle += costs.of(columns);
        }
        if self.read(
            costs,
            acceptance,
            active,
            rest,
            best,
            executor.as_deref_mut(),
        ) {
            return false;
        }
        let (length, trial) = if best.length > 0 {
            (best.length, None)
        } else if let Some(index) = self.trial(costs) {
            (TRIAL_TOKENS, Some(index))
        } else {
            return false;
        };
        let candidates = &self.candidates;
        let count = |index: usize, active: &Active| -> Option<usize> {
            let candidate = candidates
                .iter()
                .find(|candidate| candidate.index == index)?;
            let count = length.min(candidate.most);
            let draft = expected(count, |guess| active.draft_probability(acceptance, guess));
            let wanted = match trial {
                Some(trial) => trial == index,
                None => candidate.missing <= NEAR_TOKENS && draft > candidate.free,
            };
            wanted.then_some(count)
        };
        let mut wanted: Vec<Wanted<'_>> = active
            .iter_mut()
            .enumerate()
            .filter_map(|(index, active)| active.wanted(count(index, active)?))
            .collect();
        let began = Instant::now();
        let passes = self.drafter.draft(executor, &mut wanted);
        costs.drafted(passes, began.elapsed());
        for wanted in &mut wanted {
            let mut guesses = wanted.guesses.iter();
            let unknown = guesses.position(|&token| token as usize >= self.vocabulary_count);
            let count = unknown.unwrap_or(wanted.count).min(wanted.count);
            wanted.guesses.truncate(count);
        }
        drop(wanted);
        active.iter_mut().for_each(Active::drafted);
        passes > 0
    }

    /// The number of guesses each that makes the most tokens per time, 0 if that is none, among those that are `ready`.
    fn best(
        &mut self,
        costs: &PassCosts,
        acceptance: &Acceptance,
        active: &[Active],
        (others, other_columns, columns_max): (f32, usize, usize),
        ready: impl Fn(&Candidate) -> bool,
    ) -> Best {
        let (mut tokens, mut columns) = (others, other_columns);
        for candidate in &mut self.candidates {
            tokens += 1.0 + candidate.free;
            columns += 1 + candidate.taken;
            (candidate.right, candidate.expected) = (1.0, 0.0);
        }
        let plain = tokens / costs.of(columns);
        let mut best = Best {
            length: 0,
            rate: plain * GAIN_MIN,
            plain,
        };
        for length in 1..=DRAFT_MAX {
            let (mut tokens, mut columns, mut used) = (others, other_columns, false);
            for candidate in &mut self.candidates {
                if length <= candidate.most {
                    let of = &active[candidate.index];
                    candidate.right *= of.draft_probability(acceptance, length - 1);
                    candidate.expected += candidate.right;
                }
                let (gained, guesses) = if candidate.expected > candidate.free && ready(candidate) {
                    used |= length <= candidate.most;
                    (candidate.expected, length.min(candidate.most))
                } else {
                    (candidate.free, candidate.taken)
                };
                tokens += 1.0 + gained;
                columns += 1 + guesses;
            }
            if columns > columns_max {
                break;
            }
            let rate = tokens / (costs.of(columns) + length as f32 * costs.of_draft());
            if used && rate > best.rate {
                (best.length, best.rate) = (length, rate);
            }
        }
        best
    }

    /// Reads a piece of a text, if guesses for it are worth that or a trial is due. Says whether it did.
    fn read(
        &mut self,
        costs: &mut PassCosts,
        acceptance: &Acceptance,
        active: &[Active],
        rest: (f32, usize, usize),
        now: Best,
        executor: Option<&mut Executor>,
    ) -> bool {
        let far = |candidate: &&Candidate| candidate.missing > NEAR_TOKENS;
        let Some(nearest) = self
            .candidates
            .iter()
            .filter(far)
            .min_by_key(|candidate| candidate.missing)
        else {
            return false;
        };
        let (index, missing) = (nearest.index, nearest.missing);
        let of = &active[index];
        let cost = missing as f32 * costs.of_read();
        let then = self.best(costs, acceptance, active, rest, |candidate| {
            candidate.missing <= NEAR_TOKENS || candidate.index == index
        });
        let before = if now.length > 0 { now.rate } else { now.plain };
        let left = of.answered() + HORIZON_TOKENS;
        let left = of.drafts_max().map_or(0, |_| left.min(of.tokens_left()));
        let gain = left as f32 * (1.0 / before - 1.0 / then.rate);
        let pays = then.length > 0 && then.rate > before && gain > cost;
        let tries = now.length == 0 && self.idle > cost * TRIAL_SHARE;
        if !pays && !tries {
            return false;
        }
        let began = Instant::now();
        let read = self.drafter.read(executor, of.id.0, of.text());
        costs.drafter_read(read, began.elapsed());
        if !pays {
            self.idle -= read as f32 * costs.of_read() * TRIAL_SHARE;
        }
        read > 0
    }

    /// For whom a trial is made, if one is due.
    fn trial(&mut self, costs: &PassCosts) -> Option<usize> {
        let candidate = self
            .candidates
            .iter()
            .filter(|candidate| candidate.missing <= NEAR_TOKENS)
            .min_by_key(|candidate| candidate.missing)?;
        let cost =
            TRIAL_TOKENS as f32 * costs.of_draft() + candidate.missing as f32 * costs.of_read();
        if self.idle < cost * TRIAL_SHARE {
            return None;
        }
        self.idle = 0.0;
        Some(candidate.index)
    }
}

/// Tokens expected of `count` guesses.
fn expected(count: usize, probability: impl Fn(usize) -> f32) -> f32 {
    let mut all_right = 1.0;
    (0..count)
        .map(|guess| {
            all_right *= probability(guess);
            all_right
        })
        .sum()
}
