//! Guesses for the generations of a pass.

use super::active::Active;
use super::drafting::Drafting;
use super::event::GenerationId;
use crate::Executor;
use crate::speculate::{Acceptance, COLUMNS_MAX, PassCosts, Planner, Proposal, Retry};

/// What one token more adds to a pass at most, relative to one over a single token.
const COLUMN_COST_MAX: f32 = 1.0;

/// Guesses that are right less often than that are kept back for more than what passes cost.
const RIGHT_MIN: f32 = 0.5;

/// What passes cost, how many guesses came true, and what is proposed for the next pass.
#[derive(Debug, Default)]
pub(super) struct Guessing {
    pub(super) costs: PassCosts,
    pub(super) acceptance: Acceptance,
    pub(super) drafting: Option<Drafting>,
    planner: Planner,
    /// Of guesses that do not pay by what passes are taken to cost, and how many were right in all when one was last tried.
    retry: Retry,
    retried: Option<u64>,
    /// One by one, what generations propose, and their indexes.
    proposals: Vec<Proposal>,
    proposing: Vec<usize>,
}

impl Guessing {
    /// Puts guesses behind the tokens that a pass is made for, which also reads `reading` tokens of a prompt and takes at
    /// most `room` tokens in all.
    pub(super) fn guess(
        &mut self,
        active: &mut [Active],
        reading: usize,
        room: usize,
        executor: Option<&mut Executor>,
    ) {
        self.proposals.clear();
        self.proposing.clear();
        for (index, active) in active.iter_mut().enumerate() {
            if !active.reads_prompt() && !active.waits() {
                let left = active.propose(&self.acceptance);
                self.proposing.push(index);
                self.proposals.push(Proposal::of(left));
            }
        }
        let columns = reading + self.proposals.len();
        // Beyond what costs are known for, guesses would be a prompt of their own; and each has a row of logits.
        let rows = COLUMNS_MAX.saturating_sub(self.proposals.len());
        let room = room.saturating_sub(columns).min(rows);
        self.plan(active, columns, room);
        if let Some(drafting) = &mut self.drafting {
            let made = drafting.draft(
                &mut self.costs,
                &self.acceptance,
                (columns, room),
                (&mut *active, &self.proposing, &self.proposals),
                executor,
            );
            if made {
                for (&index, proposal) in self.proposing.iter().zip(&mut self.proposals) {
                    *proposal = Proposal::of(active[index].take_best(&self.acceptance));
                }
                self.plan(active, columns, room);
            }
        }
        self.try_again(active, columns, room);
        for (&index, proposal) in self.proposing.iter().zip(&self.proposals) {
            active[index].try_guesses(proposal.taken);
        }
    }

    /// Takes the likeliest guess if none pays and it is time: what a pass with it costs is only seen by making one.
    fn try_again(&mut self, active: &[Active], columns: usize, room: usize) {
        if let Some(before) = self.retried.take() {
            self.retry.judge(self.acceptance.accepted() > before);
        }
        if self.proposals.is_empty() || self.proposals.iter().any(|each| each.taken > 0) {
            return;
        }
        self.retry.wait(self.costs.of(columns));
        if room == 0 || !self.retry.is_due(COLUMN_COST_MAX) {
            return;
        }
        let acceptance = &self.acceptance;
        let right = |&index: &usize| {
            let guesses = active[index].guesses_count();
            if guesses > 0 {
                active[index].probability(acceptance, 0)
            } else {
                0.0
            }
        };
        let likeliest = (self.proposing.iter().map(right).enumerate())
            .max_by(|(_, one), (_, other)| one.total_cmp(other));
        if let Some((place, right)) = likeliest
            && right >= RIGHT_MIN
        {
            self.proposals[place].taken = 1;
            self.retry.made();
            self.retried = Some(acceptance.accepted());
        }
    }

    fn plan(&mut self, active: &[Active], columns: usize, room: usize) {
        let (acceptance, proposing) = (&self.acceptance, &self.proposing);
        let probability = |proposal: usize, guess: usize| {
            let index: usize = proposing[proposal];
            active[index].probability(acceptance, guess)
        };
        self.planner.plan(
            &self.costs,
            columns,
            proposing.len(),
            room,
            &mut self.proposals,
            probability,
        );
    }

    /// Sees what guesses behind `text` take. False if there are none.
    pub(super) fn time_drafter(&mut self, text: &[u32], executor: Option<&mut Executor>) -> bool {
        match &mut self.drafting {
            Some(drafting) => drafting.time(&mut self.costs, text, executor),
            None => false,
        }
    }

    /// There will be no more of this generation.
    pub(super) fn forget(&mut self, id: GenerationId) {
        if let Some(drafting) = &mut self.drafting {
            drafting.forget(id);
        }
    }
}
