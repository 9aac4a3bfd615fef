//! Whether guesses that cost something are made, for whom, and how many.
//!
//! They are wanted where the tokens that a pass is expected to give, divided by what it and the guesses cost, become more
//! than with guesses that cost nothing. How often they come true is only seen by making them, so where they do not pay
//! some are made all the same, for at most a hundredth of the time. Of a text that would take longer to read than that,
//! the last tokens alone are guessed by then: as an answer goes on, what was right and what was not may change.

use std::time::Instant;

use super::active::Active;
use super::event::GenerationId;
use crate::Executor;
use crate::sample::{LogitBias, SamplingOptions};
use crate::speculate::{
    Acceptance, DRAFT_MAX, Drafter, GAIN_MIN, NEAR_TOKENS, PassCosts, Proposal, Retry, Source,
    Wanted,
};

/// No generation gets as far as this number.
const NOBODY: u64 = u64::MAX;

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
    retry: Retry,
    /// How many of its guesses were right in all when a trial was last made.
    tried: Option<u64>,
    candidates: Vec<Candidate>,
}

impl Drafting {
    pub(super) fn new(drafter: Box<dyn Drafter>, vocabulary_count: usize) -> Drafting {
        Drafting {
            drafter,
            vocabulary_count,
            retry: Retry::default(),
            tried: None,
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
        let id = NOBODY;
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
                before: 0,
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
        if let Some(before) = self.tried.take() {
            self.retry.judge(acceptance.right(Source::Model) > before);
        }
        let rest = (others, other_columns, columns + room);
        let best = self.best(costs, acceptance, active, rest, |candidate| {
            candidate.missing <= NEAR_TOKENS
        });
        if best.length == 0 {
            self.retry.wait(costs.of(columns));
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
            self.tried = Some(acceptance.right(Source::Model));
            (TRIAL_TOKENS, Some(index))
        } else if let Some(index) = self.trial_of_end(costs, active) {
            self.tried = Some(acceptance.right(Source::Model));
            return self.guess_end(costs, &mut active[index], executor);
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
            self.check(wanted);
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
        let tries = now.length == 0 && self.retry.is_due(cost);
        if !pays && !tries {
            return false;
        }
        let began = Instant::now();
        let read = self.drafter.read(executor, of.id.0, of.text());
        costs.drafter_read(read, began.elapsed());
        if !pays {
            self.retry.spend(read as f32 * costs.of_read());
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
        if !self.retry.is_due(cost) {
            return None;
        }
        self.retry.made();
        Some(candidate.index)
    }

    /// For whom a trial with the end of the text alone is made, if one is due and the text would not come to be read for one.
    fn trial_of_end(&mut self, costs: &PassCosts, active: &[Active]) -> Option<usize> {
        let candidates = self.candidates.iter();
        let candidate = candidates.min_by_key(|candidate| candidate.missing)?;
        let of = &active[candidate.index];
        let left = (of.answered() + HORIZON_TOKENS).min(of.tokens_left());
        let reading = candidate.missing as f32 * costs.of_read();
        let cost = TRIAL_TOKENS as f32 * costs.of_draft() + NEAR_TOKENS as f32 * costs.of_read();
        let due = self.retry.is_due(cost) && self.retry.is_far(reading, left as f32);
        let text = of.text();
        let end = &text[text.len().saturating_sub(NEAR_TOKENS)..];
        let missing = self.drafter.missing(NOBODY, end).filter(|_| due)?;
        if missing > NEAR_TOKENS {
            return None;
        }
        self.retry.made();
        Some(candidate.index)
    }

    /// Makes the guesses of a trial by the end of a text. Says whether any were made.
    fn guess_end(
        &mut self,
        costs: &mut PassCosts,
        of: &mut Active,
        executor: Option<&mut Executor>,
    ) -> bool {
        let count = of.drafts_max().map_or(0, |most| most.min(TRIAL_TOKENS));
        let Some(mut wanted) = of.wanted(count) else {
            return false;
        };
        wanted.id = NOBODY;
        wanted.before = wanted.text.len().saturating_sub(NEAR_TOKENS);
        wanted.text = &wanted.text[wanted.before..];
        wanted.prompt_tokens = wanted.prompt_tokens.saturating_sub(wanted.before);
        let read = wanted.text.len();
        let began = Instant::now();
        let passes = self
            .drafter
            .draft(executor, std::slice::from_mut(&mut wanted));
        self.check(&mut wanted);
        self.drafter.forget(NOBODY);
        // Reading is most of it.
        let reading = read as f32 * costs.of_read();
        let whole = reading + passes as f32 * costs.of_draft();
        if passes > 0 && whole > 0.0 {
            costs.drafter_read(read, began.elapsed().mul_f32(reading / whole));
        }
        of.drafted();
        passes > 0
    }

    /// Leaves of the guesses what was asked for and is a token.
    fn check(&self, wanted: &mut Wanted<'_>) {
        let mut guesses = wanted.guesses.iter();
        let unknown = guesses.position(|&token| token as usize >= self.vocabulary_count);
        let count = unknown.unwrap_or(wanted.count).min(wanted.count);
        wanted.guesses.truncate(count);
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
