//! What this machine delivers: the limits that speed is a share of, and what a pass over several tokens costs beside one
//! over a single token. Scheduling and speculation decide by it.
//!
//! A [`Calibrator`] measures on the weights of a loaded model, in steps of a few milliseconds each, so that whoever drives
//! it can look for work between them. [`store`] keeps what came out for the next start. [`limits`] measures the same limits
//! for tools, with more care and on memory of its own.
//!
//! Invariant: a [`Calibration`] is [`Calibration::is_plausible`], wherever it came from.

mod calibrator;
pub mod limits;
pub mod store;

pub use calibrator::{Calibrator, Progress};
pub use limits::Limits;

use serde::{Deserialize, Serialize};

/// Columns whose cost is measured.
pub const COLUMNS_MAX: usize = 8;

/// What a machine delivers to one model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Streaming read of the weights with all threads, in bytes per second.
    pub read_bytes_per_s: f64,
    /// 8-bit multiply-adds per second with all threads.
    pub multiply_adds_per_s: f64,
    /// How much longer than with one column a product of the model's main format takes with 1 to 8: T(M) / T(1).
    pub column_cost: [f32; COLUMNS_MAX],
    /// What waking a sleeping worker takes, in seconds.
    pub wake_s: f32,
    /// How long a thread should wait awake before it sleeps, in seconds: what sleeping and waking cost, within bounds.
    pub spin_s: f32,
    /// Whether the system gives out huge pages.
    pub huge_pages: HugePages,
}

/// Whether memory without a file comes in huge pages. Weights do not, whatever this says: they are clean pages of mapped
/// files, and a copy of them in huge pages would be no faster to read in order, only larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HugePages {
    /// Always.
    Always,
    /// Where a program asks for them.
    OnRequest,
    /// Not at all.
    Never,
    /// The system does not say.
    Unknown,
}

impl HugePages {
    /// The word for it in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            HugePages::Always => "always",
            HugePages::OnRequest => "on-request",
            HugePages::Never => "never",
            HugePages::Unknown => "unknown",
        }
    }

    /// What the system says.
    #[must_use]
    pub fn detect() -> HugePages {
        let said = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        HugePages::parse(said.as_deref().unwrap_or_default())
    }

    /// The chosen word stands in brackets.
    fn parse(said: &str) -> HugePages {
        let chosen = said
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'));
        match chosen {
            Some(("always", _)) => HugePages::Always,
            Some(("madvise", _)) => HugePages::OnRequest,
            Some(("never", _)) => HugePages::Never,
            _ => HugePages::Unknown,
        }
    }
}

impl Calibration {
    /// Whether every figure is one that a machine can have: a file may hold anything.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        // From a hundredth of the slowest board to a hundred times the fastest server.
        let rates = [self.read_bytes_per_s, self.multiply_adds_per_s];
        let costs = &self.column_cost;
        rates.iter().all(|rate| (1e6..1e15).contains(rate))
            && costs[0] == 1.0
            && costs.iter().all(|cost| (0.1..=100.0).contains(cost))
            && (0.0..1.0).contains(&self.wake_s)
            && (0.0..0.01).contains(&self.spin_s)
    }
}

#[cfg(test)]
mod tests {
    use super::HugePages;

    #[test]
    fn the_word_in_brackets_is_chosen() {
        assert_eq!(
            HugePages::parse("always [madvise] never\n"),
            HugePages::OnRequest
        );
        assert_eq!(
            HugePages::parse("[always] madvise never\n"),
            HugePages::Always
        );
        assert_eq!(
            HugePages::parse("always madvise [never]\n"),
            HugePages::Never
        );
        assert_eq!(HugePages::parse(""), HugePages::Unknown);
    }
}
