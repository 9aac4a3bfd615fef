//! Finding tokens by rank or by cumulative probability without sorting the vocabulary.

use core::cmp::Ordering;

/// A token that is still in the running.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) logit: f32,
    pub(super) id: u32,
    /// Fixed-point probability relative to the most probable token (see [`super::weight`]).
    pub(super) weight: u64,
}

/// Below this many candidates sorting is cheaper than another halving.
const SORT_COUNT: usize = 64;

/// The larger logit first, equal logits by id. Total, because logits are finite.
pub(super) fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit
        .partial_cmp(&a.logit)
        .unwrap_or(Ordering::Equal)
        .then(a.id.cmp(&b.id))
}

/// The heavier first, equal weights by id. Weights follow logits except that close logits may
/// round to one weight.
pub(super) fn by_weight(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// Leaves the `count` tokens of `logits` that come first by [`by_logit`] in `kept`, in no particular order, weights zero.
///
/// One pass with one comparison per token; the buffer holds at most twice `count`, and each time
/// it is full the better half stays and raises the bar.
pub(super) fn top(kept: &mut Vec<Candidate>, logits: &[f32], count: usize) {
    kept.clear();
    if count == 0 {
        return;
    }
    let full = count.saturating_mul(2).max(SORT_COUNT);
    // Ids ascend, so a later token that only equals the bar ranks behind `count` others.
    let mut bar = f32::NEG_INFINITY;
    for (id, &logit) in (0_u32..).zip(logits) {
        if logit > bar {
            kept.push(Candidate {
                logit,
                id,
                weight: 0,
            });
            if kept.len() == full {
                kept.select_nth_unstable_by(count - 1, by_logit);
                kept.truncate(count);
                bar = kept[count - 1].logit;
            }
        }
    }
    if kept.len() > count {
        kept.select_nth_unstable_by(count - 1, by_logit);
        kept.truncate(count);
    }
}

/// The token at which the cumulative weight, in the total `order`, reaches `mass`, and that cumulative
/// weight. `None` if the candidates do not weigh that much together.
///
/// Halving: linear in the number of candidates whatever their weights.
pub(super) fn at_mass(
    candidates: &mut [Candidate],
    mass: u64,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
) -> Option<(Candidate, u64)> {
    let mut rest = candidates;
    let mut before = 0_u64;
    while rest.len() > SORT_COUNT {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, &order);
        let (better, worse) = rest.split_at_mut(middle);
        let weight: u64 = better.iter().map(|candidate| candidate.weight).sum();
        if before + weight >= mass {
            rest = better;
        } else {
            before += weight;
            rest = worse;
        }
    }
    rest.sort_unstable_by(&order);
    for candidate in rest {
        before += candidate.weight;
        if before >= mass {
            return Some((*candidate, before));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranked(logits: &[f32]) -> Vec<Candidate> {
        let mut all: Vec<_> = (0..)
            .zip(logits)
            .map(|(id, &logit)| Candidate {
                logit,
                id,
                weight: u64::from(id) % 5,
            })
            .collect();
        all.sort_by(by_logit);
        all
    }

    /// Few distinct values, so that ties are everywhere.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec((-4_i8..4).prop_map(|value| f32::from(value) / 2.0), 1..700)
    }

    proptest! {
        #[test]
        fn top_agrees_with_sorting(logits in logits(), count in 0_usize..800) {
            let mut kept = Vec::new();
            top(&mut kept, &logits, count);
            let mut kept: Vec<_> = kept.iter().map(|candidate| candidate.id).collect();
            kept.sort_unstable();
            let mut expected: Vec<_> = ranked(&logits).iter().take(count).map(|candidate| candidate.id).collect();
            expected.sort_unstable();
            prop_assert_eq!(kept, expected);
        }

        #[test]
        fn at_mass_agrees_with_walking(logits in logits(), mass in 1_u64..1500) {
            let mut sorted = ranked(&logits);
            sorted.sort_by(by_weight);
            let mut sum = 0;
            let expected = sorted.iter().find_map(|candidate| {
                sum += candidate.weight;
                (sum >= mass).then_some((*candidate, sum))
            });
            let mut shuffled = sorted.clone();
            shuffled.sort_by_key(|candidate| candidate.id.wrapping_mul(0x9E37_79B9));
            prop_assert_eq!(at_mass(&mut shuffled, mass, by_weight), expected);
        }
    }

    #[test]
    fn zero_and_negative_zero_tie() {
        let mut kept = Vec::new();
        top(&mut kept, &[-0.0, 0.0, -0.0], 1);
        assert_eq!(kept[0].id, 0);
    }
}
