//! `[router]`: which requests go upstream, and what becomes of them when nobody is there.

use std::path::PathBuf;
use std::time::Duration;

use andon_policy::confidence::{Confidence, FEATURES};
use andon_policy::route::Policy;
use andon_policy::router::weights::NAME_BYTES;
use serde::{Deserialize, Serialize};

use super::Problems;

/// `[router]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct RouterConfig {
    /// Who answers, unless the request, its task or its caller's rule says so.
    pub policy: Policy,
    /// Only notes what would be sent up, and sends nothing.
    pub shadow: bool,
    /// Below this probability that the local answer is as good as upstream's, a request goes up.
    pub threshold: f64,
    /// Share of the requests which may go up that shall; unset, `threshold` stays as it is.
    pub target_share: Option<f64>,
    /// Whether local answers that are not sure of themselves go up, too.
    pub cascade: bool,
    /// Below this confidence they do.
    pub cascade_threshold: f64,
    /// What confidence weighs: its bias, then a weight for each of its features; unset, those that are built in.
    pub cascade_weights: Option<[f64; FEATURES + 1]>,
    /// Whether requests may wait until upstream can be had, unless they or their tasks say so.
    pub wait: bool,
    /// Longest that one waits.
    pub wait_max_s: u64,
    /// Most questions that are with upstreams at once.
    pub requests_max: usize,
    /// Most requests that wait.
    pub waiting_max: usize,
    /// Most bytes of them.
    pub waiting_bytes_max: usize,
    /// After so long without a first token from upstream, an answer is begun here beside it; unset, never.
    pub hedge_ms: Option<u64>,
    /// Weights of the estimator, in place of those that are built in.
    pub weights: Option<PathBuf>,
    /// The model whose answers are expected, by its name in the weights; unset, it is found by its own.
    pub weights_model: Option<String>,
}

impl Default for RouterConfig {
    fn default() -> Self {
        RouterConfig {
            policy: Policy::Auto,
            shadow: false,
            threshold: 0.5,
            target_share: None,
            cascade: false,
            cascade_threshold: 0.5,
            cascade_weights: None,
            wait: false,
            wait_max_s: 86_400,
            requests_max: 16,
            waiting_max: 256,
            waiting_bytes_max: 8 * 1024 * 1024,
            hedge_ms: None,
            weights: None,
            weights_model: None,
        }
    }
}

impl RouterConfig {
    /// How sure a local answer is of itself.
    #[must_use]
    pub fn confidence(&self) -> Confidence {
        // What is refused is refused when it is read.
        let given = self.cascade_weights.as_ref().and_then(weighing);
        given.unwrap_or_default()
    }

    /// Longest that a request waits.
    #[must_use]
    pub fn wait_max(&self) -> Duration {
        Duration::from_secs(self.wait_max_s)
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        problems.within("router.threshold", self.threshold, 0.0..=1.0);
        if let Some(share) = self.target_share {
            problems.within("router.target-share", share, 0.0..=1.0);
        }
        problems.within(
            "router.cascade-threshold",
            self.cascade_threshold,
            0.0..=1.0,
        );
        problems.require(
            self.cascade_weights
                .as_ref()
                .is_none_or(|weights| weighing(weights).is_some()),
            "router.cascade-weights",
            "has a number that is beyond ±100",
            "copy what andon-lab router calibrate prints",
        );
        problems.within("router.requests-max", self.requests_max, 1..=1024);
        problems.within("router.wait-max-s", self.wait_max_s, 1..=30 * 86_400);
        problems.within("router.waiting-max", self.waiting_max, 0..=100_000);
        problems.within(
            "router.waiting-bytes-max",
            self.waiting_bytes_max,
            0..=1024 * 1024 * 1024,
        );
        if let Some(hedge_ms) = self.hedge_ms {
            problems.within("router.hedge-ms", hedge_ms, 1..=600_000);
        }
        if let Some(weights) = &self.weights {
            problems.require(
                weights.is_absolute(),
                "router.weights",
                "is not an absolute path",
                "write the whole path of the file",
            );
        }
        if let Some(name) = &self.weights_model {
            problems.within("router.weights-model", name.len(), 1..=NAME_BYTES);
        }
    }
}

/// The confidence of a bias and weights, if they are within bounds.
fn weighing(weights: &[f64; FEATURES + 1]) -> Option<Confidence> {
    let [bias, weights @ ..] = weights.map(|weight| weight as f32);
    Confidence::new(bias, weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_confidence_are_those_that_are_given() {
        let mut weights = [0.0; FEATURES + 1];
        weights[0] = -2.0;
        let given = RouterConfig {
            cascade_weights: Some(weights),
            ..RouterConfig::default()
        };
        assert_eq!(given.confidence().weights(), (-2.0, [0.0; FEATURES]));
        let unset = RouterConfig::default().confidence();
        assert_eq!(unset, Confidence::default());
    }

    #[test]
    fn shares_and_thresholds_are_between_nothing_and_all() {
        let config = RouterConfig {
            threshold: 1.5,
            target_share: Some(f64::NAN),
            cascade_threshold: -0.1,
            cascade_weights: Some([101.0; FEATURES + 1]),
            hedge_ms: Some(0),
            weights: Some("router.weights".into()),
            weights_model: Some(String::new()),
            ..RouterConfig::default()
        };
        let mut problems = Problems::default();
        config.check(&mut problems);
        let keys: Vec<&str> = problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(
            keys,
            [
                "router.threshold",
                "router.target-share",
                "router.cascade-threshold",
                "router.cascade-weights",
                "router.hedge-ms",
                "router.weights",
                "router.weights-model"
            ]
        );
        let mut problems = Problems::default();
        RouterConfig::default().check(&mut problems);
        assert_eq!(problems.iter().count(), 0);
    }
}
