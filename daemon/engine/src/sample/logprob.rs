//! Log probabilities of tokens, as the model gives them.
//!
//! They are the log-softmax of the raw logits: before penalties, temperature and the filters, so
//! they say what the model believed and not how the caller chose to sample.

use super::select::{self, Candidate};
use andon_kernels::op::exp::exp;

/// Most alternatives that can be asked for with each token; the OpenAI API's own limit.
pub const LOGPROBS_TOP_MAX: u8 = 20;

/// A token and its natural-log probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankedToken {
    /// Token id.
    pub id: u32,
    /// Natural logarithm of the token's probability; at most 0.
    pub logprob: f32,
}

/// Log probability of a chosen token and of the most probable ones.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the chosen token's probability.
    pub logprob: f32,
    /// The most probable tokens, best first, equals by id; the chosen one is among them only if it ranks so.
    pub top: Vec<RankedToken>,
}

const LANES: usize = 16;

/// `ln(sum(exp(logit - max)))`, added in sixteen lanes whatever the machine.
fn log_sum_exp(logits: &[f32], max: f32) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let (rows, rest) = logits.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            sums[lane] += f64::from(exp(row[lane] - max));
        }
    }
    for (sum, &logit) in sums.iter_mut().zip(rest) {
        *sum += f64::from(exp(logit - max));
    }
    libm::log(sums.iter().sum())
}

/// Log probabilities of `token` and of the `top` best. `max` is the largest of `logits`, all finite;
/// `token` has a logit.
pub(super) fn of(
    logits: &[f32],
    max: f32,
    token: u32,
    top: u8,
    ranked: &mut Vec<Candidate>,
) -> TokenLogprobs {
    let log_sum = log_sum_exp(logits, max);
    let logprob = |logit: f32| (f64::from(logit) - f64::from(max) - log_sum) as f32;
    select::top(ranked, logits, usize::from(top.min(LOGPROBS_TOP_MAX)));
    ranked.sort_unstable_by(select::by_logit);
    TokenLogprobs {
        logprob: logits
            .get(token as usize)
            .map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
        top: ranked
            .iter()
            .map(|candidate| RankedToken {
                id: candidate.id,
                logprob: logprob(candidate.logit),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_direct_log_softmax() {
        let logits: Vec<f32> = (0..1003_u16)
            .map(|i| f32::from(i.wrapping_mul(7919) % 1009) / 40.0 - 12.0)
            .collect();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exact = |id: usize| {
            let sum: f64 = logits
                .iter()
                .map(|&logit| f64::from(logit - max).exp())
                .sum();
            f64::from(logits[id] - max) - sum.ln()
        };
        let got = of(&logits, max, 17, 20, &mut Vec::new());
        assert!((f64::from(got.logprob) - exact(17)).abs() < 1e-5);
        assert_eq!(got.top.len(), 20);
        assert!(
            got.top
                .windows(2)
                .all(|pair| pair[0].logprob >= pair[1].logprob)
        );
        for token in &got.top {
            assert!((f64::from(token.logprob) - exact(token.id as usize)).abs() < 1e-5);
        }
    }

    #[test]
    fn equal_alternatives_come_in_order_of_id() {
        let got = of(&[1.0, 3.0, 3.0, 3.0], 3.0, 0, 2, &mut Vec::new());
        assert_eq!(
            got.top.iter().map(|token| token.id).collect::<Vec<_>>(),
            [1, 2]
        );
    }

    #[test]
    fn a_certain_token_has_logprob_zero() {
        let got = of(&[0.0, 500.0, 0.0], 500.0, 1, 0, &mut Vec::new());
        assert_eq!(got.logprob, 0.0);
        assert!(got.top.is_empty());
        assert_eq!(
            of(&[0.0, 500.0], 500.0, 0, 0, &mut Vec::new()).logprob,
            -500.0
        );
    }
}
