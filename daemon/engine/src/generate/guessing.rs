//! Guesses for the generations of a pass.

use super::active::Active;
use super::drafting::Drafting;
use super::event::GenerationId;
use crate::Executor;
use crate::speculate::{Acceptance, COLUMNS_MAX, PassCosts, Planner, Proposal};

/// What passes cost, how many guesses came true, and what is proposed for the next pass.
#[derive(Debug, Default)]
pub(super) struct Guessing {
    pub(super) costs: PassCosts,
    pub(super) acceptance: Acceptance,
    pub(super) drafting: Option<Drafting>,
    planner: Planner,
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
        // Beyond what costs are known for, guesses would be a prompt of their own.
        let room = room.saturating_sub(columns).min(COLUMNS_MAX - 1);
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
        for (&index, proposal) in self.proposing.iter().zip(&self.proposals) {
            active[index].try_guesses(proposal.taken);
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
