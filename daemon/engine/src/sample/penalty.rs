//! Repetition, presence and frequency penalties.
//!
//! The repetition penalty looks at the last `repeat_last_n` tokens of prompt and answer together.
//! Presence and frequency look at the answer alone, all of it, as the OpenAI API defines them: how
//! often a token "was sampled". Each token's logit is changed once, whatever its count, so the
//! result does not depend on the order in which tokens are met.

use super::{History, SamplingOptions};

/// Logits by token, to be changed.
pub(super) trait Change {
    /// How many tokens there are.
    fn count(&self) -> usize;
    /// The logit of one; `None` if it has none.
    fn logit(&mut self, token: u32) -> Option<&mut f32>;
}

impl Change for Vec<f32> {
    fn count(&self) -> usize {
        self.len()
    }

    fn logit(&mut self, token: u32) -> Option<&mut f32> {
        self.get_mut(token as usize)
    }
}

/// Counts by token id, all zero between uses.
#[derive(Debug, Default)]
pub(super) struct Counts(Vec<u32>);

impl Counts {
    /// Counts `tokens` and calls `each` once for every distinct one that has a logit.
    fn for_each_distinct<'a>(
        &mut self,
        tokens: impl Iterator<Item = &'a u32> + Clone,
        logits: &mut impl Change,
        each: impl Fn(&mut f32, u32),
    ) {
        self.0.resize(logits.count(), 0);
        for &token in tokens.clone() {
            if let Some(count) = self.0.get_mut(token as usize) {
                *count = count.saturating_add(1);
            }
        }
        for &token in tokens {
            if let Some(count) = self.0.get_mut(token as usize)
                && *count > 0
                && let Some(logit) = logits.logit(token)
            {
                each(logit, *count);
                *count = 0;
            }
        }
    }
}

/// Applies the penalties of `options` to `logits`.
pub(super) fn apply(
    logits: &mut impl Change,
    options: &SamplingOptions,
    history: History<'_>,
    counts: &mut Counts,
) {
    if options.repeat_penalty != 1.0 {
        let window = usize::try_from(options.repeat_last_n).unwrap_or(usize::MAX);
        let generated = last(history.generated, window);
        let prompt = last(history.prompt, window - generated.len());
        counts.for_each_distinct(prompt.iter().chain(generated), logits, |logit, _| {
            if *logit > 0.0 {
                *logit /= options.repeat_penalty;
            } else {
                *logit *= options.repeat_penalty;
            }
        });
    }
    if options.presence_penalty != 0.0 || options.frequency_penalty != 0.0 {
        counts.for_each_distinct(history.generated.iter(), logits, |logit, count| {
            *logit -= options.presence_penalty + options.frequency_penalty * count as f32;
        });
    }
}

/// The last `count` tokens, or all if there are fewer.
fn last(tokens: &[u32], count: usize) -> &[u32] {
    &tokens[tokens.len().saturating_sub(count)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalised(options: SamplingOptions, prompt: &[u32], generated: &[u32]) -> Vec<f32> {
        let mut logits = vec![1.0, 2.0, -1.0, 4.0];
        let mut counts = Counts::default();
        apply(
            &mut logits,
            &options,
            History { prompt, generated },
            &mut counts,
        );
        assert!(
            counts.0.iter().all(|&count| count == 0),
            "counts are left clean"
        );
        logits
    }

    #[test]
    fn repetition_acts_once_per_token_and_towards_less_likely() {
        let options = SamplingOptions {
            repeat_penalty: 2.0,
            ..SamplingOptions::default()
        };
        assert_eq!(
            penalised(options, &[2, 2], &[3, 3, 3]),
            [1.0, 2.0, -2.0, 2.0]
        );
    }

    #[test]
    fn the_window_reaches_from_the_answer_back_into_the_prompt() {
        let options = SamplingOptions {
            repeat_penalty: 2.0,
            repeat_last_n: 2,
            ..SamplingOptions::default()
        };
        assert_eq!(penalised(options, &[0, 1], &[3]), [1.0, 1.0, -1.0, 2.0]);
        assert_eq!(penalised(options, &[0, 1], &[2, 3]), [1.0, 2.0, -2.0, 2.0]);
        let none = SamplingOptions {
            repeat_last_n: 0,
            ..options
        };
        assert_eq!(penalised(none, &[0, 1], &[2, 3]), [1.0, 2.0, -1.0, 4.0]);
    }

    #[test]
    fn presence_and_frequency_count_the_answer_alone() {
        let options = SamplingOptions {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..SamplingOptions::default()
        };
        assert_eq!(
            penalised(options, &[0, 1], &[3, 3, 1]),
            [1.0, 1.25, -1.0, 3.0]
        );
    }

    #[test]
    fn tokens_without_a_logit_are_passed_over() {
        let options = SamplingOptions {
            repeat_penalty: 2.0,
            frequency_penalty: 1.0,
            ..SamplingOptions::default()
        };
        assert_eq!(
            penalised(options, &[99], &[u32::MAX]),
            [1.0, 2.0, -1.0, 4.0]
        );
    }
}
