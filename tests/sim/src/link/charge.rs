//! What servers charge, and whether that is within the budgets: kept by the wall clock, apart from what the daemon believes.

use std::collections::BTreeMap;

use andon_policy::budget::Spend;

use super::{Broken, Call, DAY, Day, HOUR};

/// An account: the number of the rule, the client where each has its own, and the day or month, by its number from 1970.
type Name = (usize, Option<usize>, Span);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Span {
    Day(u64),
    Month(u64),
    /// Where the clock is wrong there are no days: all of it.
    All,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    charged: Spend,
    largest: Spend,
    over: bool,
}

/// What was charged.
#[derive(Debug, Default)]
pub(super) struct Charges(BTreeMap<Name, Account>);

/// Months as people count them: the day of the calendar, without a library and by another way than the daemon's.
fn month(wall_ms: u64) -> u64 {
    let mut days = wall_ms / DAY;
    for year in 1970_u64.. {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let lengths = [
            31,
            if leap { 29 } else { 28 },
            31,
            30,
            31,
            30,
            31,
            31,
            30,
            31,
            30,
            31,
        ];
        for (month, length) in (0..).zip(lengths) {
            if days < length {
                return (year - 1970) * 12 + month;
            }
            days -= length;
        }
    }
    0
}

impl Day {
    /// A server charges for a question, on the day on which it was sent.
    pub(super) fn charge(&mut self, call: &Call) -> Result<(), Broken> {
        let client = self.requests[call.request].client;
        let name = format!("client-{client}");
        let spans = if self.clock_is_right {
            vec![
                Span::Day(call.sent_wall_ms / DAY),
                Span::Month(month(call.sent_wall_ms)),
            ]
        } else {
            vec![Span::All]
        };
        if call.charged.tokens > call.expected.tokens || call.charged.micros > call.expected.micros
        {
            return Err(format!("charged more than was expected: {call:?}"));
        }
        for (number, rule) in self.budget_rules.iter().enumerate() {
            if !rule.clients.is_empty() && !rule.clients.contains(&name) {
                continue;
            }
            let whose = rule.each_client.then_some(client);
            for (&span, cap) in spans.iter().zip([rule.day, rule.month]) {
                let account = self.charges.0.entry((number, whose, span)).or_default();
                account.charged = account.charged.plus(call.charged);
                account.largest = Spend {
                    tokens: account.largest.tokens.max(call.charged.tokens),
                    micros: account.largest.micros.max(call.charged.micros),
                };
                // Days that the clock made, if it is wrong: no more than the machine ran through, and was started into.
                let days = match span {
                    Span::All => self.now_ms / (23 * HOUR) + 2 + u64::from(self.starts),
                    Span::Day(_) | Span::Month(_) => 1,
                };
                for (cap, charged, largest) in [
                    (cap.tokens, account.charged.tokens, account.largest.tokens),
                    (cap.micros, account.charged.micros, account.largest.micros),
                ] {
                    let Some(cap) = cap else { continue };
                    if charged > 0 && charged >= days * (cap + largest) {
                        return Err(format!(
                            "{charged} of {cap} charged for {span:?} of {rule:?}"
                        ));
                    }
                    if charged > cap && days == 1 && !std::mem::replace(&mut account.over, true) {
                        self.report.over += 1;
                    }
                }
            }
        }
        Ok(())
    }
}
