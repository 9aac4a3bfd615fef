//! When a request that computes has got stuck: passes are made, and it gets nothing of them.
//!
//! Every pass that a request is in brings it a token, or some of its prompt, unless other prompts are read before it: such
//! passes do not count. What counts is the time of such passes and not that of a clock, so that neither a machine that sleeps nor a request that stands
//! aside is taken for stuck.
//!
//! Invariant: whoever makes progress in one of any passes that take the bound together is never stuck.

/// Passes that bring a request nothing take at least so long together until it is stuck.
pub const BOUND_MS_MIN: u64 = 20_000;

/// How many times as long as what is expected, if that is more.
const FACTOR: u64 = 8;

/// What is known of one request's progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    made: u64,
    idle_us: u64,
}

impl Progress {
    /// Takes in a pass that it was in: tokens read and chosen so far, in all, what the pass took, and by [`bound_us`] how long
    /// it may get nothing. True if that was longer, which is said once.
    pub const fn passed(&mut self, made: u64, took_us: u64, bound_us: u64) -> bool {
        if made != self.made {
            self.made = made;
            self.idle_us = 0;
            return false;
        }
        let before = self.idle_us;
        self.idle_us = before.saturating_add(took_us);
        before <= bound_us && self.idle_us > bound_us
    }

    /// Tokens read and chosen by when it was last looked at.
    #[must_use]
    pub const fn made(&self) -> u64 {
        self.made
    }

    /// How long it has got nothing of passes, in microseconds.
    #[must_use]
    pub const fn idle_us(&self) -> u64 {
        self.idle_us
    }
}

/// How long a request may get nothing of passes, where reading every prompt under way and a step of all answers are expected to
/// take so long.
#[must_use]
pub const fn bound_us(prompts_us: u64, step_us: u64) -> u64 {
    let expected = prompts_us.saturating_add(step_us).saturating_mul(FACTOR);
    let least = BOUND_MS_MIN * 1000;
    if expected > least { expected } else { least }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::{BOUND_MS_MIN, Progress, bound_us};

    #[test]
    fn a_request_that_gets_nothing_is_stuck_once() {
        let mut progress = Progress::default();
        let mut found = Vec::new();
        for _ in 0..100 {
            if progress.passed(0, 10, 500) {
                found.push(progress.idle_us());
            }
        }
        assert_eq!(found, [510]);
    }

    #[test]
    fn any_progress_begins_anew() {
        let mut progress = Progress::default();
        for pass in 0..1_000 {
            assert!(!progress.passed(pass / 50, 10, 500), "{pass}");
        }
        // A generation that gave tokens back has been at work too.
        assert!(!progress.passed(3, 501, 500));
        assert!(progress.passed(3, 501, 500));
    }

    #[test]
    fn slow_machines_have_longer() {
        assert_eq!(bound_us(1_000, 1_000), BOUND_MS_MIN * 1000);
        assert_eq!(bound_us(9_000_000, 1_000_000), 80_000_000);
        assert_eq!(bound_us(u64::MAX, 1), u64::MAX);
    }
}
