//! When something is tried though it does not pay: what it costs by now, and how often it comes true, is only seen by trying.
//!
//! Invariant: what is tried costs at most a hundredth of what passed without it, and less the more often it was in vain.

/// How many times what a trial costs must have passed without one.
const SHARE: f32 = 100.0;

/// How often the wait for the next doubles at most.
const FAILURES_MAX: i32 = 3;

/// The trials of one thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retry {
    /// What passed without it and is not paid out for a trial yet.
    idle: f32,
    /// Trials in vain, one after the other.
    failures: i32,
}

impl Retry {
    /// Notes that work of `cost` was done without it.
    pub(crate) fn wait(&mut self, cost: f32) {
        self.idle += cost;
    }

    /// Whether a trial of `cost` is due.
    pub(crate) fn is_due(&self, cost: f32) -> bool {
        self.idle >= cost * SHARE * 2.0_f32.powi(self.failures)
    }

    /// Whether one of `cost` would not be due after as much more as `cost_left`, either.
    pub(crate) fn is_far(&self, cost: f32, cost_left: f32) -> bool {
        self.idle + cost_left < cost * SHARE * 2.0_f32.powi(self.failures)
    }

    /// Notes that a part of a trial was made, for `cost`.
    pub(crate) fn spend(&mut self, cost: f32) {
        self.idle = (self.idle - cost * SHARE).max(0.0);
    }

    /// Notes that a trial was made.
    pub(crate) fn made(&mut self) {
        self.idle = 0.0;
    }

    /// Notes what came of one.
    pub(crate) fn judge(&mut self, right: bool) {
        self.failures = if right {
            0
        } else {
            (self.failures + 1).min(FAILURES_MAX)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::Retry;

    /// Passes of `passes` of cost 1 in which a trial of `cost` is made.
    fn trials(cost: f32, passes: usize, right: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut retry = Retry::default();
        let mut made = Vec::new();
        for pass in 1..=passes {
            retry.wait(1.0);
            if retry.is_due(cost) {
                retry.made();
                retry.judge(right(pass));
                made.push(pass);
            }
        }
        made
    }

    #[test]
    fn what_is_in_vain_is_tried_less_and_less_and_never_given_up() {
        let made = trials(0.5, 2000, |_| false);
        assert_eq!(made, [50, 150, 350, 750, 1150, 1550, 1950]);
        let made = trials(0.5, 2000, |pass| pass > 350);
        assert_eq!(made[..7], [50, 150, 350, 750, 800, 850, 900]);
    }

    #[test]
    fn trials_take_a_hundredth_of_the_time_at_most() {
        for cost in [0.003, 0.1, 1.0, 7.0, 40.0] {
            let passes = 10_000;
            for made in [
                trials(cost, passes, |_| true),
                trials(cost, passes, |pass| pass % 3 == 0),
            ] {
                // One is made in each of the passes at most.
                assert!(made.len() as f32 * cost <= passes as f32 / 100.0, "{cost}");
            }
        }
    }

    #[test]
    fn what_is_spent_is_waited_for_again() {
        let mut retry = Retry::default();
        retry.wait(150.0);
        assert!(retry.is_due(1.0) && retry.is_far(2.0, 40.0) && !retry.is_far(2.0, 50.0));
        retry.spend(1.0);
        assert!(!retry.is_due(1.0) && retry.is_due(0.5));
        retry.spend(9.0);
        assert!(!retry.is_due(0.01));
    }
}
