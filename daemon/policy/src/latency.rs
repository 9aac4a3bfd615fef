//! How long an answer takes elsewhere, by those that came before.
//!
//! Averages in which each answer counts an eighth, so that a link that has become slow is known after a few.

/// Answers faster than this many microseconds a token are taken for buffered ones that say nothing of the speed.
const TOKEN_US_MIN: u64 = 1;

/// What is known of one upstream; nothing at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Until the first token, and how far from that it mostly is, in microseconds.
    first: Option<(u64, u64)>,
    /// For each further token, in microseconds.
    token_us: Option<u64>,
}

/// What is expected of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Until the first token, in milliseconds; about three of four come earlier.
    pub first_ms: u64,
    /// Until the end, in milliseconds.
    pub whole_ms: u64,
}

impl Latency {
    /// Takes the time from the question to the first token.
    pub fn began(&mut self, first_ms: u64) {
        let took = first_ms.saturating_mul(1_000);
        self.first = Some(match self.first {
            None => (took, took / 4),
            Some((mean, spread)) => (
                toward(mean, took, 8),
                toward(spread, mean.abs_diff(took), 4),
            ),
        });
    }

    /// Takes the time from the first token to the end of an answer with so many tokens.
    pub fn ended(&mut self, tokens: u32, rest_ms: u64) {
        let Some(further) = u64::from(tokens).checked_sub(1).filter(|&count| count > 0) else {
            return;
        };
        let took = (rest_ms.saturating_mul(1_000) / further).max(TOKEN_US_MIN);
        self.token_us = Some(match self.token_us {
            None => took,
            Some(mean) => toward(mean, took, 8),
        });
    }

    /// What is expected of an answer with so many tokens, once one has begun.
    #[must_use]
    pub fn expected(&self, tokens: u32) -> Option<Expected> {
        let (mean, spread) = self.first?;
        let first_us = mean.saturating_add(spread);
        let further = u64::from(tokens.saturating_sub(1));
        let rest_us = self.token_us.unwrap_or(0).saturating_mul(further);
        Some(Expected {
            first_ms: first_us / 1_000,
            whole_ms: first_us.saturating_add(rest_us) / 1_000,
        })
    }
}

/// A part of the way from one to the other.
fn toward(from: u64, to: u64, part: u64) -> u64 {
    if to >= from {
        from + (to - from).div_ceil(part)
    } else {
        from - (from - to).div_ceil(part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_expected_of_whom_nobody_asked() {
        let mut latency = Latency::default();
        latency.ended(100, 1_000);
        assert_eq!(latency.expected(10), None);
    }

    #[test]
    fn a_link_that_becomes_slow_is_known_after_a_few_answers() {
        let mut latency = Latency::default();
        for _ in 0..50 {
            latency.began(200);
            latency.ended(101, 2_000);
        }
        let fast = latency.expected(51).expect("known");
        assert!((200..=205).contains(&fast.first_ms), "{fast:?}");
        assert!((1_200..=1_210).contains(&fast.whole_ms), "{fast:?}");
        for _ in 0..3 {
            latency.began(4_000);
        }
        let slow = latency.expected(1).expect("known");
        assert!(
            slow.first_ms > 2_000 && slow.whole_ms == slow.first_ms,
            "{slow:?}"
        );
    }

    proptest! {
        /// It lies between what was seen, give or take the spread, and comes to where it stays.
        #[test]
        fn it_follows(values in proptest::collection::vec(0u64..u64::MAX, 1..20), last in 0u64..1_000_000) {
            let mut latency = Latency::default();
            for value in values {
                latency.began(value);
                latency.ended(u32::MAX, value);
            }
            for _ in 0..600 {
                latency.began(last);
            }
            let expected = latency.expected(0).expect("known");
            prop_assert!(expected.first_ms >= last);
            prop_assert!(expected.first_ms <= last + last / 50 + 2);
        }
    }
}
