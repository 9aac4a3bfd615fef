//! What a caller adds to the logits of single tokens.
//!
//! Invariant: a bias names each token once, in ascending order, with a finite value within [`LOGIT_BIAS_MAX`]; so
//! adding it is a function of the logits alone.

use super::penalty::Change;
use thiserror::Error;

/// Largest magnitude of a bias: the OpenAI API's own, which as good as forbids or forces a token.
pub const LOGIT_BIAS_MAX: f32 = 100.0;
/// Most tokens of one bias. The OpenAI API's own limit is 300; lists of forbidden words are longer.
pub const LOGIT_BIAS_COUNT_MAX: usize = 1024;

/// Values added to the logits of tokens, before anything else looks at them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitBias(Box<[(u32, f32)]>);

/// Why a bias is refused.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum BiasError {
    /// More tokens than [`LOGIT_BIAS_COUNT_MAX`].
    #[error("{count} tokens have a bias, more than {LOGIT_BIAS_COUNT_MAX}")]
    TooMany {
        /// How many were given.
        count: usize,
    },
    /// A value is not a number or too large.
    #[error("the bias of token {token} is {value}, outside -{LOGIT_BIAS_MAX}..={LOGIT_BIAS_MAX}")]
    OutOfRange {
        /// The token.
        token: u32,
        /// What was given.
        value: f32,
    },
    /// A token is named twice.
    #[error("token {token} has two biases")]
    Twice {
        /// The token.
        token: u32,
    },
}

impl LogitBias {
    /// A bias of these tokens, in any order.
    ///
    /// # Errors
    /// If there are too many, one is named twice, or a value is out of range.
    pub fn new(mut values: Vec<(u32, f32)>) -> Result<LogitBias, BiasError> {
        if values.len() > LOGIT_BIAS_COUNT_MAX {
            let count = values.len();
            return Err(BiasError::TooMany { count });
        }
        // Written so that it is also true of what is not a number.
        let outside = |value: f32| !(-LOGIT_BIAS_MAX..=LOGIT_BIAS_MAX).contains(&value);
        if let Some(&(token, value)) = values.iter().find(|&&(_, value)| outside(value)) {
            return Err(BiasError::OutOfRange { token, value });
        }
        values.sort_unstable_by_key(|&(token, _)| token);
        match values.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(BiasError::Twice { token: pair[0].0 }),
            None => Ok(LogitBias(values.into())),
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tokens and what is added to them, in ascending order.
    #[must_use]
    pub fn values(&self) -> &[(u32, f32)] {
        &self.0
    }

    /// Adds it; tokens without a logit are passed over.
    pub(super) fn apply(&self, logits: &mut impl Change) {
        for &(token, value) in &self.0 {
            if let Some(logit) = logits.logit(token) {
                *logit += value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        let of = |values: &[(u32, f32)]| LogitBias::new(values.to_vec());
        assert!(of(&[(3, 100.0), (1, -100.0)]).is_ok_and(|bias| bias.values()[0].0 == 1));
        for value in [100.5, f32::INFINITY] {
            assert_eq!(
                of(&[(3, value)]),
                Err(BiasError::OutOfRange { token: 3, value })
            );
        }
        assert!(matches!(
            of(&[(3, f32::NAN)]),
            Err(BiasError::OutOfRange { token: 3, .. })
        ));
        assert_eq!(
            of(&[(3, 1.0), (2, 0.0), (3, 1.0)]),
            Err(BiasError::Twice { token: 3 })
        );
        let many: Vec<_> = (0..=LOGIT_BIAS_COUNT_MAX as u32)
            .map(|token| (token, 0.0))
            .collect();
        assert_eq!(
            of(&many),
            Err(BiasError::TooMany {
                count: LOGIT_BIAS_COUNT_MAX + 1
            })
        );
    }

    #[test]
    fn only_the_named_logits_change() {
        let bias = LogitBias::new(vec![(2, -1.5), (0, 2.0), (9, 1.0)]).expect("a valid bias");
        let mut logits = vec![1.0, 2.0, 3.0];
        bias.apply(&mut logits);
        assert_eq!(logits, [3.0, 2.0, 1.5]);
    }
}
