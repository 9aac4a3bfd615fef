//! What was spent upstream.

use andon_policy::budget::Spend;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Telemetry;

/// A budget, by its name in the configuration, and for how long it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BudgetLabels {
    budget: String,
    span: &'static str,
}

/// What was spent of each budget.
#[derive(Debug, Default)]
pub(super) struct LedgerMetrics {
    tokens: Family<BudgetLabels, Gauge>,
    micros: Family<BudgetLabels, Gauge>,
    failing: Gauge,
}

impl LedgerMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "budget_spent_tokens",
            "Tokens spent upstream today and this month, by budget",
            self.tokens.clone(),
        );
        registry.register(
            "budget_spent_micros",
            "Millionths of the unit of money spent upstream today and this month, by budget",
            self.micros.clone(),
        );
        registry.register(
            "ledger_failing",
            "Whether it is not known, or cannot be written down, what was spent upstream",
            self.failing.clone(),
        );
    }
}

impl Telemetry {
    /// So much of a budget was spent today, and this month.
    pub fn budget_spent(&self, budget: &str, day: Spend, month: Spend) {
        for (span, spend) in [("day", day), ("month", month)] {
            let labels = BudgetLabels {
                budget: budget.to_owned(),
                span,
            };
            let shown = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            let ledger = &self.ledger;
            ledger
                .tokens
                .get_or_create(&labels)
                .set(shown(spend.tokens));
            ledger
                .micros
                .get_or_create(&labels)
                .set(shown(spend.micros));
        }
    }

    /// Whether it is not known, or cannot be written down, what was spent.
    pub fn ledger_failing(&self, failing: bool) {
        self.ledger.failing.set(failing.into());
    }
}
