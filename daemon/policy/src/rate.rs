//! How much of something may be had in a time: a bucket that fills by the clock.
//!
//! Invariant: over any stretch of `t` milliseconds no more is let through than the bucket holds
//! and what flows in during `t`, but for the last thing let through, whose size is paid off before
//! anything else is let through. All arithmetic saturates.

/// Units in a bucket are this much finer than what is counted, so that what flows in within a
/// millisecond at one per minute is a whole number.
const FINE: i64 = 60_000;

/// A bucket; it begins full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Below zero while something that was let through is being paid off.
    level: i64,
    filled_ms: u64,
}

/// What a bucket holds and what flows in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How much flows in within a minute.
    pub per_minute: u32,
    /// How much a full bucket holds.
    pub burst: u32,
}

impl Rate {
    /// So much in a minute, at any time of it.
    #[must_use]
    pub const fn per_minute(count: u32) -> Self {
        Self {
            per_minute: count,
            burst: count,
        }
    }

    const fn full(self) -> i64 {
        self.burst as i64 * FINE
    }
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub const fn full(rate: Rate, now_ms: u64) -> Self {
        Self {
            level: rate.full(),
            filled_ms: now_ms,
        }
    }

    /// Lets in what has flowed since this was last asked.
    fn fill(&mut self, rate: Rate, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.filled_ms);
        self.filled_ms = self.filled_ms.max(now_ms);
        let passed = i64::try_from(passed).unwrap_or(i64::MAX);
        let flowed = passed.saturating_mul(i64::from(rate.per_minute));
        self.level = self.level.saturating_add(flowed).min(rate.full());
    }

    /// In how many milliseconds `count` can be had; 0 if it can be had now. More than a full
    /// bucket holds can be had when it is full.
    pub fn wait_ms(&mut self, rate: Rate, count: u32, now_ms: u64) -> u64 {
        self.fill(rate, now_ms);
        let wanted = (i64::from(count) * FINE).min(rate.full());
        let missing = wanted.saturating_sub(self.level);
        if missing <= 0 {
            return 0;
        }
        match i64::from(rate.per_minute) {
            0 => u64::MAX,
            flow => u64::try_from((missing - 1) / flow + 1).unwrap_or(u64::MAX),
        }
    }

    /// Takes `count`, also if there is not so much: it is paid off before more is let through.
    pub fn take(&mut self, rate: Rate, count: u32, now_ms: u64) {
        self.fill(rate, now_ms);
        self.level = self.level.saturating_sub(i64::from(count) * FINE);
    }

    /// Whether there is nothing to remember: it is full.
    pub fn is_full(&mut self, rate: Rate, now_ms: u64) -> bool {
        self.fill(rate, now_ms);
        self.level == rate.full()
    }
}

#[cfg(test)]
mod tests {
    use super::{Bucket, Rate};

    const RATE: Rate = Rate {
        per_minute: 60,
        burst: 3,
    };

    #[test]
    fn a_burst_and_then_one_a_second() {
        let mut bucket = Bucket::full(RATE, 5);
        for _ in 0..3 {
            assert_eq!(bucket.wait_ms(RATE, 1, 5), 0);
            bucket.take(RATE, 1, 5);
        }
        assert_eq!(bucket.wait_ms(RATE, 1, 5), 1_000);
        assert_eq!(bucket.wait_ms(RATE, 1, 505), 500);
        assert_eq!(bucket.wait_ms(RATE, 1, 1_004), 1);
        assert_eq!(bucket.wait_ms(RATE, 1, 1_005), 0);
        assert!(!bucket.is_full(RATE, 1_005));
        assert!(bucket.is_full(RATE, 100_000));
    }

    #[test]
    fn what_was_taken_beyond_is_paid_off_first() {
        let mut bucket = Bucket::full(RATE, 0);
        bucket.take(RATE, 13, 0);
        assert_eq!(bucket.wait_ms(RATE, 1, 0), 11_000);
        assert_eq!(bucket.wait_ms(RATE, 1, 11_000), 0);
    }

    #[test]
    fn more_than_it_holds_is_had_when_it_is_full() {
        let mut bucket = Bucket::full(RATE, 0);
        assert_eq!(bucket.wait_ms(RATE, 100, 0), 0);
        bucket.take(RATE, 1, 0);
        assert_eq!(bucket.wait_ms(RATE, 100, 0), 1_000);
    }

    #[test]
    fn a_clock_that_stands_or_a_rate_of_nothing_lets_nothing_in() {
        let mut bucket = Bucket::full(RATE, 10);
        bucket.take(RATE, 3, 10);
        assert_eq!(bucket.wait_ms(RATE, 1, 0), 1_000);
        let none = Rate {
            per_minute: 0,
            burst: 1,
        };
        let mut bucket = Bucket::full(none, 0);
        bucket.take(none, 1, 0);
        assert_eq!(bucket.wait_ms(none, 1, u64::MAX), u64::MAX);
    }
}
