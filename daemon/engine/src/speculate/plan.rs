//! How many guesses go into a pass.
//!
//! Tokens are added one by one, the likeliest first over all answers, and as many are kept as make the most tokens per
//! time: the expected number of tokens that the pass gives, divided by what it costs.

use super::PassCosts;

/// Least gain for which guesses are tried; less is within what costs and probabilities are off by.
pub(crate) const GAIN_MIN: f32 = 1.08;

/// Decides how many guesses are tried.
#[derive(Debug, Default)]
pub(crate) struct Planner {
    /// Which answer got each token that was added.
    order: Vec<usize>,
}

/// What one answer proposes.
#[derive(Debug)]
pub(crate) struct Proposal {
    /// Probability that the next guess that may be added is accepted: that it and all before it are right.
    pub(crate) next: f32,
    /// Guesses that may be added.
    pub(crate) left: usize,
    /// Guesses taken.
    pub(crate) taken: usize,
}

impl Proposal {
    /// One of `left` guesses.
    pub(crate) fn of(left: usize) -> Proposal {
        Proposal {
            next: 0.0,
            left,
            taken: 0,
        }
    }
}

impl Planner {
    /// Sets how many guesses each proposal gets, at most `room` in all, for a pass that has `columns` tokens without them
    /// and gives `tokens`. `probability` says how likely guess `n` of proposal `p` is accepted if all before it are.
    pub(crate) fn plan(
        &mut self,
        costs: &PassCosts,
        columns: usize,
        tokens: usize,
        room: usize,
        proposals: &mut [Proposal],
        probability: impl Fn(usize, usize) -> f32,
    ) {
        self.order.clear();
        for (index, proposal) in proposals.iter_mut().enumerate() {
            proposal.taken = 0;
            proposal.next = if proposal.left > 0 {
                probability(index, 0)
            } else {
                0.0
            };
        }
        let mut expected = tokens as f32;
        let (mut best, mut best_rate) = (0, expected / costs.of(columns) * GAIN_MIN);
        while self.order.len() < room {
            let likeliest = proposals
                .iter()
                .enumerate()
                .filter(|(_, proposal)| proposal.left > 0)
                .max_by(|(_, one), (_, other)| one.next.total_cmp(&other.next));
            let Some((index, _)) = likeliest else { break };
            let proposal = &mut proposals[index];
            expected += proposal.next;
            proposal.left -= 1;
            proposal.taken += 1;
            self.order.push(index);
            if proposal.left > 0 {
                proposal.next *= probability(index, proposal.taken);
            }
            let rate = expected / costs.of(columns + self.order.len());
            if rate > best_rate {
                (best, best_rate) = (self.order.len(), rate);
            }
        }
        for &index in &self.order[best..] {
            proposals[index].taken -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PassCosts, Planner, Proposal};

    fn plan(probabilities: &[&[f32]], room: usize) -> Vec<usize> {
        let mut proposals: Vec<Proposal> = probabilities
            .iter()
            .map(|each| Proposal::of(each.len()))
            .collect();
        Planner::default().plan(
            &PassCosts::default(),
            proposals.len(),
            proposals.len(),
            room,
            &mut proposals,
            |proposal, guess| probabilities[proposal][guess],
        );
        proposals.iter().map(|proposal| proposal.taken).collect()
    }

    #[test]
    fn sure_guesses_are_taken_and_unlikely_ones_are_not() {
        assert_eq!(plan(&[&[1.0; 7]], 100), [7]);
        assert_eq!(plan(&[&[0.05; 7]], 100), [0]);
        assert_eq!(plan(&[&[]], 100), [0]);
        assert_eq!(plan(&[&[1.0; 7]], 2), [2]);
        let some = plan(&[&[0.6; 7]], 100)[0];
        assert!((1..7).contains(&some), "{some}");
    }

    #[test]
    fn answers_share_the_room_by_likelihood() {
        let taken = plan(&[&[0.2; 4], &[0.95; 4], &[0.0; 4]], 3);
        assert_eq!(taken, [0, 3, 0]);
    }

    #[test]
    fn a_step_in_the_costs_is_looked_beyond() {
        // The first guess alone does not pay, all of them do.
        let taken = plan(&[&[0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]], 100);
        assert_eq!(taken, [0], "nor do they all at these odds");
        let taken = plan(&[&[0.4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]], 100);
        assert_eq!(taken, [7]);
    }
}
