use super::*;
use proptest::prelude::*;

fn sample(logits: &[f32], options: SamplingOptions, position: u64) -> u32 {
    Sampler::new()
        .sample(
            logits,
            &options,
            &LogitBias::default(),
            History::default(),
            position,
        )
        .unwrap()
}

/// The same chain in floating point, by sorting: the probability of each token.
fn probabilities(logits: &[f32], options: &SamplingOptions) -> Vec<f64> {
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if options.top_k > 0 {
        ranked.truncate(options.top_k as usize);
    }
    let max = logits[ranked[0]];
    let weights: Vec<f64> = ranked
        .iter()
        .map(|&id| (f64::from(logits[id] - max) / f64::from(options.temperature)).exp())
        .collect();
    let mut kept: Vec<(usize, f64)> = ranked.into_iter().zip(weights).collect();
    if options.typical_p < 1.0 {
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let surprise = |weight: f64| -(weight / total).ln();
        let entropy: f64 = kept
            .iter()
            .map(|&(_, weight)| weight / total * surprise(weight))
            .sum();
        kept.sort_by(|(_, a), (_, b)| {
            let deviation = |weight: f64| (surprise(weight) - entropy).abs();
            deviation(*a).total_cmp(&deviation(*b))
        });
        let mut sum = 0.0;
        let count = kept.iter().take_while(|(_, weight)| {
            let before = sum;
            sum += weight;
            before < f64::from(options.typical_p) * total
        });
        let count = count.count().max(1);
        kept.truncate(count);
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let heaviest = kept[0].1;
    let mut sum = 0.0;
    let mut count = 0;
    for (_, weight) in &kept {
        if count > 0
            && (sum >= f64::from(options.top_p) * total
                || *weight < f64::from(options.min_p) * heaviest)
        {
            break;
        }
        sum += weight;
        count += 1;
    }
    let mut probabilities = vec![0.0; logits.len()];
    for (id, weight) in kept.into_iter().take(count) {
        probabilities[id] = weight / sum;
    }
    probabilities
}

/// Logits in no order, a few of them large, without ties.
fn bumpy(count: u16) -> Vec<f32> {
    (0..count)
        .map(|i| f32::from(i.wrapping_mul(40_503) % 10_007) / 900.0 - 4.0)
        .collect()
}

#[test]
fn draws_follow_the_probabilities() {
    const DRAWS: u32 = 20_000;
    let base = SamplingOptions {
        temperature: 1.0,
        seed: 11,
        ..SamplingOptions::default()
    };
    let logits = bumpy(300);
    for options in [
        base,
        SamplingOptions {
            temperature: 0.4,
            ..base
        },
        SamplingOptions { top_k: 7, ..base },
        SamplingOptions {
            top_p: 0.7,
            temperature: 1.7,
            ..base
        },
        SamplingOptions { min_p: 0.2, ..base },
        SamplingOptions {
            typical_p: 0.3,
            ..base
        },
        SamplingOptions {
            typical_p: 0.8,
            top_k: 60,
            top_p: 0.9,
            min_p: 0.02,
            choice: 3,
            ..base
        },
        SamplingOptions {
            top_k: 90,
            top_p: 0.8,
            min_p: 0.05,
            temperature: 2.5,
            ..base
        },
    ] {
        let expected = probabilities(&logits, &options);
        let mut counts = vec![0_u32; logits.len()];
        let mut sampler = Sampler::new();
        for position in 0..DRAWS {
            let token = sampler
                .sample(
                    &logits,
                    &options,
                    &LogitBias::default(),
                    History::default(),
                    u64::from(position),
                )
                .unwrap();
            counts[token as usize] += 1;
        }
        for (&count, &probability) in counts.iter().zip(&expected) {
            let mean = f64::from(DRAWS) * probability;
            // Six standard deviations of the binomial, and a little for the rarest.
            let slack = 6.0 * (mean * (1.0 - probability)).sqrt() + 3.0;
            assert!(
                (f64::from(count) - mean).abs() <= if probability == 0.0 { 0.0 } else { slack },
                "{options:?}"
            );
        }
    }
}

#[test]
fn greedy_takes_the_lowest_of_equal_ids() {
    let greedy = SamplingOptions::default();
    assert_eq!(sample(&[1.0, 5.0, 5.0, 2.0], greedy, 0), 1);
    assert_eq!(sample(&[-0.0, 0.0], greedy, 0), 0);
    let top_1 = SamplingOptions {
        temperature: 1.0,
        top_k: 1,
        ..greedy
    };
    assert!((0..50).all(|position| sample(&[1.0, 5.0, 5.0, 2.0], top_1, position) == 1));
}

#[test]
fn the_narrowest_filters_leave_the_most_probable_token() {
    let base = SamplingOptions {
        temperature: 5.0,
        ..SamplingOptions::default()
    };
    let logits = bumpy(2000);
    let best = sample(&logits, SamplingOptions::default(), 0);
    for options in [
        SamplingOptions { top_p: 0.0, ..base },
        SamplingOptions {
            top_p: 1e-9,
            ..base
        },
        SamplingOptions { min_p: 1.0, ..base },
        SamplingOptions {
            temperature: 1e-30,
            ..base
        },
    ] {
        assert!(
            (0..200).all(|position| sample(&logits, options, position) == best),
            "{options:?}"
        );
    }
}

#[test]
fn a_large_flat_vocabulary_is_sampled_evenly() {
    let logits = vec![3.0; 150_000];
    let options = SamplingOptions {
        temperature: 1.0,
        top_p: 0.5,
        ..SamplingOptions::default()
    };
    let mut sampler = Sampler::new();
    for position in 0..50 {
        let token = sampler
            .sample(
                &logits,
                &options,
                &LogitBias::default(),
                History::default(),
                position,
            )
            .unwrap();
        assert!(token < 75_000, "the lower half of equals is the nucleus");
    }
}

#[test]
fn a_reused_sampler_gives_what_a_new_one_gives() {
    let options = SamplingOptions {
        temperature: 1.0,
        frequency_penalty: 1.0,
        seed: 3,
        ..SamplingOptions::default()
    };
    let mut reused = Sampler::new();
    for (position, size) in [2000_u16, 30, 999, 31]
        .into_iter()
        .cycle()
        .take(40)
        .enumerate()
    {
        let logits = bumpy(size);
        let history = History {
            prompt: &[1, 2],
            generated: &[5, 6, 5],
        };
        let position = position as u64;
        assert_eq!(
            reused.sample(&logits, &options, &LogitBias::default(), history, position),
            Sampler::new().sample(&logits, &options, &LogitBias::default(), history, position)
        );
    }
}

#[test]
fn penalties_act_before_the_choice() {
    let none = LogitBias::default();
    let options = SamplingOptions {
        frequency_penalty: 1.0,
        ..SamplingOptions::default()
    };
    let history = History {
        prompt: &[],
        generated: &[1, 1],
    };
    let logits = [2.5, 4.0, 1.0];
    assert_eq!(
        Sampler::new().sample(&logits, &options, &none, history, 0),
        Ok(0)
    );
    assert_eq!(
        Sampler::new().sample(&logits, &options, &none, History::default(), 0),
        Ok(1)
    );
}

#[test]
fn options_that_mean_nothing_still_give_a_token() {
    let logits = bumpy(300);
    for value in [-2.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN] {
        for (top_k, top_p, min_p, typical_p) in [
            (0, 1.0, 0.0, 1.0),
            (0, 0.9, 0.0, 1.0),
            (0, value, 0.0, 1.0),
            (0, 1.0, value, 1.0),
            (0, 1.0, 0.0, value),
            (20, 0.9, 0.1, 0.8),
        ] {
            for temperature in [0.7, value] {
                let options = SamplingOptions {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    typical_p,
                    ..SamplingOptions::default()
                };
                assert!(sample(&logits, options, 3) < 300, "{options:?}");
            }
        }
    }
}

#[test]
fn bad_logits_are_errors() {
    let none = LogitBias::default();
    let mut sampler = Sampler::new();
    let options = SamplingOptions {
        temperature: 1.0,
        ..SamplingOptions::default()
    };
    assert_eq!(
        sampler.sample(&[], &options, &none, History::default(), 0),
        Err(SampleError::Empty)
    );
    let result = sampler.sample(
        &[0.0, f32::INFINITY, f32::NAN],
        &options,
        &none,
        History::default(),
        0,
    );
    assert_eq!(
        result,
        Err(SampleError::NonFinite {
            token: 1,
            value: f32::INFINITY
        })
    );
    assert!(matches!(
        sampler.logprobs(&[f32::NAN], 0, 1),
        Err(SampleError::NonFinite { token: 0, .. })
    ));
    let overflow = SamplingOptions {
        repeat_penalty: 0.01,
        ..options
    };
    let history = History {
        prompt: &[0],
        generated: &[],
    };
    assert!(
        sampler
            .sample(&[f32::MAX], &overflow, &none, history, 0)
            .is_err()
    );
}

#[test]
fn a_bias_acts_before_everything_and_can_forbid_or_force() {
    let logits = bumpy(300);
    let best = sample(&logits, SamplingOptions::default(), 0);
    let bias = |token: u32, value: f32| LogitBias::new(vec![(token, value)]).expect("valid");
    let drawn = SamplingOptions {
        temperature: 1.0,
        top_k: 5,
        ..SamplingOptions::default()
    };
    let with = |options: &SamplingOptions, bias: &LogitBias, position| {
        Sampler::new()
            .sample(&logits, options, bias, History::default(), position)
            .expect("finite logits")
    };
    let greedy = SamplingOptions::default();
    assert_ne!(with(&greedy, &bias(best, -100.0), 0), best);
    for position in 0..50 {
        assert_eq!(with(&drawn, &bias(123, 100.0), position), 123);
        assert_ne!(with(&drawn, &bias(best, -100.0), position), best);
    }
    assert_eq!(with(&greedy, &bias(best, 0.0), 0), best);
    assert_eq!(with(&greedy, &bias(best + 100_000, 100.0), 0), best);
}

#[test]
fn choices_of_one_seed_differ_and_can_be_repeated() {
    let logits = vec![1.0; 1000];
    let of = |choice, position| {
        let options = SamplingOptions {
            temperature: 1.0,
            seed: 9,
            choice,
            ..SamplingOptions::default()
        };
        sample(&logits, options, position)
    };
    let tokens = |choice| {
        (0..20)
            .map(|position| of(choice, position))
            .collect::<Vec<_>>()
    };
    assert_eq!(tokens(1), tokens(1));
    assert_ne!(tokens(0), tokens(1));
    assert_ne!(tokens(1), tokens(2));
}

proptest! {
    /// Whatever the options, the token is one that the filters leave.
    #[test]
    fn a_drawn_token_is_one_that_the_filters_keep(
        logits in prop::collection::vec(-30.0_f32..30.0, 1..400),
        temperature in 0.1_f32..4.0,
        top_k in 0_u32..450,
        top_p in 0.0_f32..=1.0,
        min_p in 0.0_f32..=1.0,
        typical_p in prop_oneof![Just(1.0_f32), 0.0_f32..=1.0],
        seed in any::<u64>(),
        position in any::<u64>(),
    ) {
        let options = SamplingOptions { temperature, top_k, top_p, min_p, typical_p, seed, ..SamplingOptions::default() };
        let token = sample(&logits, options, position);
        // Borders move by rounding: ask the reference with a hair more room, and on both sides of the border of
        // the typical set, since a larger set is not a roomier one for what comes after.
        let kept = [0.99999_f32, 1.0, 1.00001].into_iter().any(|hair| {
            let roomy = SamplingOptions {
                top_p: (top_p * 1.00001).min(1.0),
                min_p: min_p * 0.99999,
                typical_p: if typical_p < 1.0 { (typical_p * hair).min(1.0) } else { 1.0 },
                ..options
            };
            probabilities(&logits, &roomy)[token as usize] > 0.0
        });
        prop_assert!(kept);
    }
}

proptest! {
    #[test]
    fn what_is_not_allowed_might_as_well_not_be_there(
        logits in prop::collection::vec(-8.0_f32..8.0, 1..150),
        masks in prop::collection::vec(any::<u32>(), 5),
        full in 0usize..5,
        options in (0.0_f32..2.0, 0_u32..20, 0.3_f32..1.0, 0.0_f32..0.3),
        position in any::<u64>(),
    ) {
        let mut masks = masks;
        masks[full] = u32::MAX;
        let options = SamplingOptions {
            temperature: options.0,
            top_k: options.1,
            top_p: options.2,
            min_p: options.3,
            presence_penalty: 0.5,
            ..SamplingOptions::default()
        };
        let allowed: Vec<u32> = (0..logits.len() as u32)
            .filter(|id| masks[*id as usize / 32] >> (id % 32) & 1 == 1)
            .collect();
        let history = History { prompt: &[], generated: &allowed[..allowed.len() / 2] };
        let mut sampler = Sampler::new();
        let bias = LogitBias::default();
        let among = sampler.sample_among(&logits, &options, &bias, history, position, Some(&masks));
        if allowed.is_empty() {
            prop_assert_eq!(among, Err(SampleError::Empty));
        } else {
            let kept: Vec<f32> = allowed.iter().map(|&id| logits[id as usize]).collect();
            // The tokens so far, by their places among those that are kept.
            let before: Vec<u32> = (0..allowed.len() as u32 / 2).collect();
            let history = History { prompt: &[], generated: &before };
            let index = sampler.sample(&kept, &options, &bias, history, position).unwrap();
            prop_assert_eq!(among, Ok(allowed[index as usize]));
        }
    }

    #[test]
    fn a_bad_logit_is_named_by_its_token(id in 0_u32..70, others in any::<u64>()) {
        let mut logits = vec![0.0; 70];
        logits[id as usize] = f32::NAN;
        let mut masks = [others as u32, (others >> 32) as u32, 0];
        masks[id as usize / 32] |= 1 << (id % 32);
        let result = Sampler::new().sample_among(
            &logits, &SamplingOptions::default(), &LogitBias::default(), History::default(), 0, Some(&masks));
        let is_named = matches!(result, Err(SampleError::NonFinite { token, .. }) if token == id);
        prop_assert!(is_named, "{result:?}");
    }
}
