//! Guesses for the generations of a pass.

use super::active::Active;
use crate::speculate::{Acceptance, COLUMNS_MAX, PassCosts, Planner, Proposal};

/// What passes cost, how many guesses came true, and what is proposed for the next pass.
#[derive(Debug, Default)]
pub(super) struct Guessing {
    pub(super) costs: PassCosts,
    pub(super) acceptance: Acceptance,
    planner: Planner,
    /// One by one, what generations propose, and their indexes.
    proposals: Vec<Proposal>,
    proposing: Vec<usize>,
}

impl Guessing {
    /// Puts guesses behind the tokens that a pass is made for, which also reads `reading` tokens of a prompt and takes at
    /// most `room` tokens in all.
    pub(super) fn guess(&mut self, active: &mut [Active], reading: usize, room: usize) {
        self.proposals.clear();
        self.proposing.clear();
        for (index, active) in active.iter_mut().enumerate() {
            if !active.reads_prompt() && !active.waits() {
                let left = active.propose(&self.acceptance);
                self.proposing.push(index);
                self.proposals.push(Proposal::of(left));
            }
        }
        let deciding = self.proposals.len();
        let columns = reading + deciding;
        // Beyond what costs are known for, guesses would be a prompt of their own.
        let room = room.saturating_sub(columns).min(COLUMNS_MAX - 1);
        let (acceptance, proposing) = (&self.acceptance, &self.proposing);
        let probability = |proposal: usize, guess: usize| {
            let index: usize = proposing[proposal];
            active[index].probability(acceptance, guess)
        };
        self.planner.plan(
            &self.costs,
            columns,
            deciding,
            room,
            &mut self.proposals,
            probability,
        );
        for (&index, proposal) in self.proposing.iter().zip(&self.proposals) {
            active[index].try_guesses(proposal.taken);
        }
    }
}
