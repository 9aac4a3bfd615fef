//! Whether the thread that computes hangs.
//!
//! It says when it comes a step further and when it has nothing to do; whoever feeds the watchdog looks from elsewhere. A
//! thread that waits for another model's pass comes no further than that one: both hang, or neither.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How far a thread is.
#[derive(Debug, Default)]
pub(super) struct Advance {
    /// When it last came a step further, in milliseconds plus one; 0 while it has nothing to do.
    at_ms: AtomicU64,
}

impl Advance {
    /// It has come a step further, and is to come to the next one before long.
    pub(super) fn step(&self, now_ms: u64) {
        self.at_ms
            .store(now_ms.saturating_add(1), Ordering::Relaxed);
    }

    /// It waits for another, which began with what it does that long ago.
    pub(super) fn follow(&self, now_ms: u64, began: Duration) {
        let began_ms = u64::try_from(began.as_millis()).unwrap_or(u64::MAX);
        let at_ms = now_ms.saturating_sub(began_ms).saturating_add(1);
        self.at_ms.fetch_max(at_ms, Ordering::Relaxed);
    }

    /// It has nothing to do.
    pub(super) fn rest(&self) {
        self.at_ms.store(0, Ordering::Relaxed);
    }

    /// How long ago it came a step further; `None` while it has nothing to do.
    pub(super) fn since(&self, now_ms: u64) -> Option<Duration> {
        let at_ms = self.at_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(now_ms.saturating_sub(at_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::Advance;
    use std::time::Duration;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn who_has_nothing_to_do_does_not_hang() {
        let advance = Advance::default();
        assert_eq!(advance.since(5_000), None);
        advance.step(5_000);
        assert_eq!(advance.since(9_000), Some(ms(4_000)));
        advance.rest();
        assert_eq!(advance.since(99_000), None);
    }

    #[test]
    fn who_waits_for_another_hangs_as_that_one_does() {
        let advance = Advance::default();
        advance.step(1_000);
        // The other makes one pass after the other.
        for now_ms in (1_000..90_000).step_by(20) {
            advance.follow(now_ms, ms(now_ms % 500));
            assert!(advance.since(now_ms).is_some_and(|since| since < ms(500)));
        }
        // And then one that does not end.
        for now_ms in (90_000..180_000).step_by(20) {
            advance.follow(now_ms, ms(now_ms - 90_000));
        }
        assert!(advance.since(180_000) >= Some(ms(90_000)));
        // One that began before this one came to it is no older than this one's wait.
        let advance = Advance::default();
        advance.step(70_000);
        advance.follow(70_020, ms(69_000));
        assert_eq!(advance.since(70_020), Some(ms(20)));
        assert_eq!(Advance::default().since(0), None);
    }
}
