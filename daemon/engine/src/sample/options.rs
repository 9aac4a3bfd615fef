//! What a caller may ask of the sampling chain, and the bounds each value must keep.

use thiserror::Error;

/// Largest accepted temperature. At 100 even logits a hundred apart are nearly even odds.
pub const TEMPERATURE_MAX: f32 = 100.0;
/// Smallest accepted repetition penalty; below it a penalised logit could leave the range of f32.
pub const REPEAT_PENALTY_MIN: f32 = 0.01;
/// Largest accepted repetition penalty.
pub const REPEAT_PENALTY_MAX: f32 = 100.0;
/// Largest accepted magnitude of the presence and frequency penalties.
pub const PENALTY_MAX: f32 = 100.0;
/// Largest accepted min-p; at 1 only tokens as probable as the most probable one remain.
pub const MIN_P_MAX: f32 = 1.0;

/// How the next token is chosen. The order in which the fields act is described in [`crate::sample`].
///
/// The default is greedy: temperature 0 and no penalties.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 chooses the most probable token. `0..=TEMPERATURE_MAX`.
    pub temperature: f32,
    /// Keeps this many most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest most probable tokens whose probabilities reach this; 1 keeps all. `0..=1`.
    pub top_p: f32,
    /// Keeps tokens at least this many times as probable as the most probable one; 0 keeps all. `0..=1`.
    pub min_p: f32,
    /// Keeps the tokens whose surprise is nearest to the expected one, as many as it takes for their probabilities to
    /// reach this; 1 keeps all. `0..=1`.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the window; 1 is off.
    /// `REPEAT_PENALTY_MIN..=REPEAT_PENALTY_MAX`.
    pub repeat_penalty: f32,
    /// Window of `repeat_penalty`: this many last tokens of prompt and answer together.
    pub repeat_last_n: u32,
    /// Taken from the logit of every token that the answer already has; 0 is off. `±PENALTY_MAX`.
    pub presence_penalty: f32,
    /// Taken from the logit of a token for each time that the answer already has it; 0 is off.
    /// `±PENALTY_MAX`.
    pub frequency_penalty: f32,
    /// Key of the draws. Equal seeds, options and logits give equal tokens at equal positions.
    pub seed: u64,
    /// Second key of the draws: tells apart the answers to one request.
    pub choice: u32,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            choice: 0,
        }
    }
}

/// An option outside its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum SamplingError {
    /// The value is not a number.
    #[error("{field} is not a number")]
    NotANumber {
        /// Name of the field in [`SamplingOptions`].
        field: &'static str,
    },
    /// The value lies outside the accepted range.
    #[error("{field} is {value}, outside {min}..={max}")]
    OutOfRange {
        /// Name of the field in [`SamplingOptions`].
        field: &'static str,
        /// What was given.
        value: f32,
        /// Smallest accepted value.
        min: f32,
        /// Largest accepted value.
        max: f32,
    },
}

impl SamplingOptions {
    /// Checks every field against its bounds.
    ///
    /// # Errors
    ///
    /// The first field, in the order of declaration, that is not a number or out of range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        for (field, value, min, max) in [
            ("temperature", self.temperature, 0.0, TEMPERATURE_MAX),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, MIN_P_MAX),
            ("typical_p", self.typical_p, 0.0, 1.0),
            (
                "repeat_penalty",
                self.repeat_penalty,
                REPEAT_PENALTY_MIN,
                REPEAT_PENALTY_MAX,
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                -PENALTY_MAX,
                PENALTY_MAX,
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                -PENALTY_MAX,
                PENALTY_MAX,
            ),
        ] {
            if value.is_nan() {
                return Err(SamplingError::NotANumber { field });
            }
            if !(min..=max).contains(&value) {
                return Err(SamplingError::OutOfRange {
                    field,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }

    /// Whether the most probable token is always taken.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether the largest logit is always taken, which is also the largest of any tokens that have it among them.
    pub(crate) fn takes_largest(&self) -> bool {
        self.is_greedy() || self.top_k == 1
    }

    /// Whether tokens are drawn and none is left out for being unlikely.
    pub(crate) fn keeps_all(&self) -> bool {
        !self.takes_largest()
            && self.top_k == 0
            && self.typical_p >= 1.0
            && self.top_p >= 1.0
            && self.min_p <= 0.0
    }

    /// Whether any penalty changes the logits.
    pub(super) fn has_penalties(&self) -> bool {
        (self.repeat_penalty != 1.0 && self.repeat_last_n > 0)
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_greedy() {
        let options = SamplingOptions::default();
        assert_eq!(options.validate(), Ok(()));
        assert!(options.is_greedy());
        assert!(!options.has_penalties());
    }

    #[test]
    fn each_field_is_checked_and_named() {
        type Set = fn(&mut SamplingOptions, f32);
        let fields: [(&str, Set, f32, f32); 7] = [
            (
                "temperature",
                |o, v| o.temperature = v,
                0.0,
                TEMPERATURE_MAX,
            ),
            ("top_p", |o, v| o.top_p = v, 0.0, 1.0),
            ("min_p", |o, v| o.min_p = v, 0.0, 1.0),
            ("typical_p", |o, v| o.typical_p = v, 0.0, 1.0),
            (
                "repeat_penalty",
                |o, v| o.repeat_penalty = v,
                REPEAT_PENALTY_MIN,
                REPEAT_PENALTY_MAX,
            ),
            (
                "presence_penalty",
                |o, v| o.presence_penalty = v,
                -PENALTY_MAX,
                PENALTY_MAX,
            ),
            (
                "frequency_penalty",
                |o, v| o.frequency_penalty = v,
                -PENALTY_MAX,
                PENALTY_MAX,
            ),
        ];
        for (name, set, min, max) in fields {
            let with = |value| {
                let mut options = SamplingOptions::default();
                set(&mut options, value);
                options.validate()
            };
            assert_eq!(with(min), Ok(()), "{name}");
            assert_eq!(with(max), Ok(()), "{name}");
            assert_eq!(
                with(f32::NAN),
                Err(SamplingError::NotANumber { field: name })
            );
            for value in [min - 0.5, max + 0.5, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(
                    with(value),
                    Err(SamplingError::OutOfRange {
                        field: name,
                        value,
                        min,
                        max
                    })
                );
            }
        }
    }
}
