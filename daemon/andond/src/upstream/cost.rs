//! What attempts at a question come to: by the upstream's word, where that can be true, else as much as they may have come to.

use andon_policy::budget::{Price, Spend};

use super::answer::{FaultKind, Spent};
use super::client::Refusal;
use super::question::Question;

/// Tokens that a server may add to a prompt of its own: what it says to its model before anybody asks.
const ADDED_TOKENS_MAX: u64 = 8 * 1024;

/// What an upstream says that an answer took, as far as that can be: no more than it could read and write, of which so much was
/// seen here.
pub(super) fn bounded(said: Spent, question: &Question, seen: u32) -> Spent {
    let count = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
    let prompt_max = question.prompt_tokens_max();
    let prompt = if u64::from(said.prompt_tokens) > prompt_max.saturating_add(ADDED_TOKENS_MAX) {
        count(prompt_max)
    } else {
        said.prompt_tokens
    };
    let completion_max = count(question.answer_tokens_max()).max(seen);
    let completion = said.completion_tokens.min(completion_max);
    Spent {
        prompt_tokens: prompt,
        completion_tokens: completion,
        is_exact: said.is_exact
            && (prompt, completion) == (said.prompt_tokens, said.completion_tokens),
    }
}

/// What an answer comes to that took this.
pub(super) fn of(price: Price, spent: &Spent) -> Spend {
    price.spend(spent.prompt_tokens.into(), spent.completion_tokens.into())
}

/// Tokens by which a prompt was longer than its question can be.
pub(super) fn added(spent: &Spent, question: &Question) -> u64 {
    u64::from(spent.prompt_tokens).saturating_sub(question.prompt_tokens_max())
}

/// What a failed attempt came to, `added` being what the server may have added to the prompt, `spent` what its answer took if that
/// was complete, and `began` whether there was some.
pub(super) fn of_failed(
    price: Price,
    question: &Question,
    added: u64,
    refusal: &Refusal,
    spent: Option<&Spent>,
    began: bool,
) -> Spend {
    if let Some(spent) = spent {
        return of(price, spent);
    }
    if is_free(refusal, began) {
        return Spend::default();
    }
    let prompt = question.prompt_tokens_max().saturating_add(added);
    price.spend(prompt, question.answer_tokens_max())
}

/// Whether nobody has taken the question.
fn is_free(refusal: &Refusal, began: bool) -> bool {
    let refused = match refusal.kind {
        FaultKind::Unavailable
        | FaultKind::Busy
        | FaultKind::Unreachable
        | FaultKind::Untrusted
        | FaultKind::Redirected
        | FaultKind::Denied
        | FaultKind::Rejected
        | FaultKind::Failed => true,
        FaultKind::Slow
        | FaultKind::Deadline
        | FaultKind::Broken
        | FaultKind::Garbled
        | FaultKind::Endless
        | FaultKind::Misshapen
        | FaultKind::Withheld => refusal.is_unbegun,
    };
    refused && !began
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Message;

    const PRICE: Price = Price {
        prompt_micros_per_million: 1_000_000,
        answer_micros_per_million: 2_000_000,
    };

    fn question() -> Question {
        Question {
            tokens_max: Some(100),
            ..Question::new(vec![Message::new("user", "x".repeat(60))])
        }
    }

    #[test]
    fn what_cannot_have_been_taken_is_not_believed() {
        let spent = |prompt_tokens, completion_tokens, is_exact| Spent {
            prompt_tokens,
            completion_tokens,
            is_exact,
        };
        let bounded =
            |prompt, completion, seen| bounded(spent(prompt, completion, true), &question(), seen);
        assert_eq!(bounded(20, 30, 30), spent(20, 30, true));
        // Servers have words of their own.
        assert_eq!(bounded(2_000, 100, 30), spent(2_000, 100, true));
        assert_eq!(added(&bounded(2_000, 100, 30), &question()), 2_000 - 80);
        assert_eq!(added(&bounded(u32::MAX, 100, 30), &question()), 0);
        assert_eq!(added(&bounded(20, 100, 30), &question()), 0);
        assert_eq!(bounded(u32::MAX, 30, 30), spent(80, 30, false));
        assert_eq!(bounded(20, u32::MAX, 30), spent(20, 100, false));
        // What was seen was taken, whatever was asked for.
        assert_eq!(bounded(20, u32::MAX, 150), spent(20, 150, false));
    }

    #[test]
    fn a_failed_attempt_comes_to_all_that_it_may_unless_nobody_took_it() {
        let of = |kind, is_unbegun, spent: Option<&Spent>, began| {
            let refusal = Refusal {
                is_unbegun,
                ..Refusal::new(kind, "")
            };
            of_failed(PRICE, &question(), 7, &refusal, spent, began)
        };
        let all = PRICE.spend(80 + 7, 100);
        for (kind, is_unbegun, expected) in [
            (FaultKind::Unreachable, true, Spend::default()),
            (FaultKind::Slow, true, Spend::default()),
            (FaultKind::Slow, false, all),
            (FaultKind::Busy, true, Spend::default()),
            (FaultKind::Failed, false, Spend::default()),
            (FaultKind::Rejected, false, Spend::default()),
            (FaultKind::Deadline, false, all),
            (FaultKind::Broken, false, all),
        ] {
            assert_eq!(of(kind, is_unbegun, None, false), expected, "{kind:?}");
            assert_eq!(of(kind, is_unbegun, None, true), all, "{kind:?}");
        }
        let spent = Spent {
            prompt_tokens: 5,
            completion_tokens: 7,
            is_exact: true,
        };
        let said = of(FaultKind::Misshapen, false, Some(&spent), true);
        assert_eq!(said, PRICE.spend(5, 7));
    }
}
