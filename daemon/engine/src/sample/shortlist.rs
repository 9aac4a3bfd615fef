//! The tokens that rank before all others behind bias and penalties, found from the best ones before.
//!
//! Invariant: what is given is the beginning of the order that all logits would give, equal ones included. The logits of
//! tokens that are not among the best are known to be no larger than the least of those; bias and penalties keep the order of
//! the values that they change, so what becomes of such a token is no larger than what would become of that least one.

use super::penalty::{self, Change, Counts};
use super::row::LogitRow;
use super::select::{self, Candidate};
use super::{History, LogitBias, SamplingOptions};

/// Tokens whose logits are known, or bounded, by id.
#[derive(Debug, Default)]
pub(super) struct Shortlist {
    /// For each token of the vocabulary its place among those here, and one more; all zero between uses.
    places: Vec<u32>,
    /// The best ones, then others that are changed.
    tokens: Vec<(u32, f32)>,
    /// What those others are taken for.
    least: f32,
}

impl Change for Shortlist {
    fn count(&self) -> usize {
        self.places.len()
    }

    fn logit(&mut self, token: u32) -> Option<&mut f32> {
        let place = self.places.get_mut(token as usize)?;
        if *place == 0 {
            self.tokens.push((token, self.least));
            *place = u32::try_from(self.tokens.len()).ok()?;
        }
        let (_, logit) = self.tokens.get_mut(*place as usize - 1)?;
        Some(logit)
    }
}

impl Shortlist {
    /// Leaves the tokens that rank before all others in `first`, in order, weights zero: none where the best of `row` are not
    /// known.
    pub(super) fn rank(
        &mut self,
        row: &LogitRow<'_>,
        options: &SamplingOptions,
        bias: &LogitBias,
        history: History<'_>,
        counts: &mut Counts,
        first: &mut Vec<Candidate>,
    ) {
        first.clear();
        let best = row.best();
        let Some(&(_, least)) = best.last() else {
            return;
        };
        let of = |&(id, logit): &(u32, f32)| Candidate {
            logit,
            id,
            weight: 0,
        };
        if !options.has_penalties() && bias.is_empty() {
            first.extend(best.iter().map(of));
            return;
        }
        self.places.resize(row.len(), 0);
        self.least = least;
        for &(id, logit) in best {
            if let Some(known) = self.logit(id) {
                *known = logit;
            }
        }
        bias.apply(self);
        penalty::apply(self, options, history, counts);
        let (known, others) = self.tokens.split_at(best.len().min(self.tokens.len()));
        let others = others.iter().map(|&(_, logit)| logit);
        let bound = others.fold(least, f32::max);
        // Of tokens whose logits equal the bound, some that are not here may come first.
        let all = best.len() >= row.len();
        let before_others = known.iter().filter(|&&(_, logit)| all || logit > bound);
        first.extend(before_others.map(of));
        first.sort_unstable_by(select::by_logit);
        for (id, _) in self.tokens.drain(..) {
            if let Some(place) = self.places.get_mut(id as usize) {
                *place = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::Rows;
    use super::super::{LogitBias, Sampler};
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    /// A row that is elsewhere, and how often it was read.
    struct Away {
        logits: Vec<f32>,
        best: Vec<(u32, f32)>,
        reads: Cell<usize>,
    }

    impl Rows for Away {
        fn row(&self, _: usize) -> Option<&[f32]> {
            self.reads.set(self.reads.get() + 1);
            Some(&self.logits)
        }
    }

    impl Away {
        fn new(logits: Vec<f32>, count: usize) -> Away {
            let mut best: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            best.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("finite").then(a.0.cmp(&b.0)));
            best.truncate(count);
            // As a device gives them.
            best.iter_mut().for_each(|(_, logit)| *logit += 0.0);
            let reads = Cell::new(0);
            Away {
                logits,
                best,
                reads,
            }
        }

        fn row(&self) -> LogitRow<'_> {
            LogitRow::there(self.logits.len(), &self.best, (self, 0))
        }
    }

    fn options() -> impl Strategy<Value = SamplingOptions> {
        let penalty = || prop_oneof![Just(0.0), Just(0.5), Just(-0.5), -100.0_f32..100.0];
        let shapes = (
            prop_oneof![Just(0.0), Just(0.7_f32)],
            prop_oneof![Just(0), 1_u32..12],
            prop_oneof![Just(1.0), Just(0.6_f32)],
            prop_oneof![Just(0.0), Just(0.2_f32)],
            prop_oneof![Just(1.0), Just(0.5_f32)],
        );
        let penalties = (
            prop_oneof![Just(1.0), Just(2.0), Just(0.5), 0.01_f32..100.0],
            0_u32..30,
            penalty(),
            penalty(),
        );
        (shapes, penalties, any::<u64>()).prop_map(|(shapes, penalties, seed)| {
            let (temperature, top_k, top_p, min_p, typical_p) = shapes;
            let (repeat_penalty, repeat_last_n, presence_penalty, frequency_penalty) = penalties;
            SamplingOptions {
                temperature,
                top_k,
                top_p,
                min_p,
                typical_p,
                repeat_penalty,
                repeat_last_n,
                presence_penalty,
                frequency_penalty,
                seed,
                choice: 0,
            }
        })
    }

    /// Few distinct values, of both signs, so that ties are everywhere; zeros of both signs among them.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![
            (-4_i8..5).prop_map(|value| f32::from(value) / 2.0),
            Just(-0.0)
        ];
        prop::collection::vec(value, 1..90)
    }

    fn tokens(count: usize) -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0_u32..100, 0..count)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn the_best_give_what_all_give(
            logits in logits(),
            known in 1_usize..24,
            options in options(),
            biases in prop_oneof![
                2 => Just(Vec::new()),
                1 => prop::collection::btree_map(0_u32..100, -3.0_f32..3.0, 0..8)
                    .prop_map(|values| values.into_iter().collect()),
            ],
            (prompt, generated) in (tokens(20), tokens(20)),
            mask in prop::option::of(prop::collection::vec(any::<u32>(), 0..4)),
            position in 0_u64..1000,
            count in 0_usize..9,
        ) {
            let bias = LogitBias::new(biases).expect("a valid bias");
            let history = History { prompt: &prompt, generated: &generated };
            let away = Away::new(logits.clone(), known);
            let (mut one, mut other) = (Sampler::new(), Sampler::new());
            // Twice, since buffers are to be left clean.
            for _ in 0..2 {
                let mask = mask.as_deref();
                prop_assert_eq!(
                    one.sample_among(away.row(), &options, &bias, history, position, mask),
                    other.sample_among(&logits, &options, &bias, history, position, mask)
                );
                let here = LogitRow::from(&logits);
                let all: Vec<u32> = other.rank(here, &options, &bias, history, count).collect();
                let best: Vec<u32> = one.rank(away.row(), &options, &bias, history, count).collect();
                prop_assert_eq!(best, all);
            }
            // Nothing is read where nothing changes and the list is long enough.
            if !options.has_penalties() && bias.is_empty() && mask.is_none() {
                let reads = away.reads.take();
                let _ = one.sample(away.row(), &options, &bias, history, position);
                let decides = options.takes_largest()
                    || options.top_k > 0 && (options.top_k as usize) < away.best.len();
                prop_assert_eq!(away.reads.get() == 0, decides, "{} reads before", reads);
            }
        }
    }

    #[test]
    fn penalties_that_leave_a_leader_need_no_others() {
        let logits: Vec<f32> = (0..1000_u16)
            .map(|id| -f32::from(id * 37 % 1000) / 8.0)
            .collect();
        let away = Away::new(logits.clone(), 64);
        let options = SamplingOptions {
            repeat_penalty: 1.1,
            frequency_penalty: 0.2,
            top_k: 20,
            temperature: 0.8,
            ..SamplingOptions::default()
        };
        let bias = LogitBias::new(vec![(5, -100.0), (900, 0.5)]).expect("a valid bias");
        let generated: Vec<u32> = (0..300).map(|index| index * 7 % 1000).collect();
        let (prompt, mut sampler) = ([3, 4, 5], Sampler::new());
        for end in 0..generated.len() {
            let history = History {
                prompt: &prompt,
                generated: &generated[..end],
            };
            let position = end as u64;
            let of_best = sampler.sample(away.row(), &options, &bias, history, position);
            let of_all = sampler.sample(&logits, &options, &bias, history, position);
            assert_eq!(of_best, of_all);
        }
        assert!(
            away.reads.get() < 30,
            "{} of 300 were read",
            away.reads.get()
        );
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        struct Gone;
        impl Rows for Gone {
            fn row(&self, _: usize) -> Option<&[f32]> {
                None
            }
        }
        let row = LogitRow::there(9, &[(4, 2.0), (1, 1.0)], (&Gone, 0));
        let mut sampler = Sampler::new();
        let (bias, history) = (LogitBias::default(), History::default());
        let greedy = SamplingOptions::default();
        assert_eq!(sampler.sample(row, &greedy, &bias, history, 0), Ok(4));
        let drawn = SamplingOptions {
            temperature: 1.0,
            ..greedy
        };
        let unread = Err(super::super::SampleError::Unread);
        assert_eq!(sampler.sample(row, &drawn, &bias, history, 0), unread);
        assert_eq!(sampler.rank(row, &greedy, &bias, history, 2).count(), 2);
        assert_eq!(sampler.rank(row, &greedy, &bias, history, 3).count(), 0);
        assert!(sampler.logprobs(row, 4, 0).is_err());
    }
}
