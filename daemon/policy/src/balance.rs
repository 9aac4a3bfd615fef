//! Which of several upstreams is asked: the first in rank that may be, and among those of one rank each as often as its weight
//! says.

/// What counts when one is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its rank: lower ones first.
    pub priority: u32,
    /// Its share among those of its rank; at least 1 counts.
    pub weight: u32,
    /// Whether it may be asked at all.
    pub may: bool,
}

/// The index of the one that is asked; `None` if none may be. `noise` is any number, and decides among those of a rank.
#[must_use]
pub fn choose(candidates: &[Candidate], noise: u32) -> Option<usize> {
    let may = || candidates.iter().enumerate().filter(|(_, one)| one.may);
    let rank = may().map(|(_, one)| one.priority).min()?;
    let of_rank = || may().filter(|(_, one)| one.priority == rank);
    let weight = |one: &Candidate| u64::from(one.weight.max(1));
    let all: u64 = of_rank().map(|(_, one)| weight(one)).sum();
    let mut left = (u128::from(all) * u128::from(noise)) >> u32::BITS;
    for (index, one) in of_rank() {
        match left.checked_sub(u128::from(weight(one))) {
            Some(rest) => left = rest,
            None => return Some(index),
        }
    }
    // The number is below the sum of the weights.
    None
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_is_asked_as_often_as_its_weight_says() {
        let one = |priority, weight, may| Candidate {
            priority,
            weight,
            may,
        };
        let all = [
            one(1, 1, true),
            one(0, 5, false),
            one(1, 3, true),
            one(2, 9, true),
        ];
        let mut counts = [0u32; 4];
        for step in 0..1_000u32 {
            let chosen = choose(&all, step.wrapping_mul(4_294_967)).expect("some may");
            counts[chosen] += 1;
        }
        assert_eq!((counts[1], counts[3]), (0, 0));
        assert!((249..=251).contains(&counts[0]), "{counts:?}");
        assert_eq!(choose(&[one(0, 1, false)], 7), None);
        assert_eq!(choose(&[], 7), None);
    }

    proptest! {
        #[test]
        fn it_is_one_of_the_lowest_rank_that_may(
            all in proptest::collection::vec((0u32..3, any::<u32>(), any::<bool>()), 0..12),
            noise in any::<u32>(),
        ) {
            let all: Vec<Candidate> = all
                .into_iter()
                .map(|(priority, weight, may)| Candidate { priority, weight, may })
                .collect();
            let rank = all.iter().filter(|one| one.may).map(|one| one.priority).min();
            let chosen = choose(&all, noise).map(|index| all[index]);
            prop_assert_eq!(chosen.map(|one| one.priority), rank);
            prop_assert!(chosen.is_none_or(|one| one.may));
        }
    }
}
