//! Time that survives a restart: how much of a deadline is left on a machine whose clock may be wrong.
//!
//! A deadline is kept as a length after an arrival, never as a time of day. While the machine stays up, what has
//! passed is told by the clock that counts from its start and also while it sleeps; nobody can set that one. Over a start
//! of the machine, the wall clock tells it if it reads sane both times; otherwise only the time that the machine was
//! seen to run counts, so that a gateway without a clock battery keeps a deadline open for as long as it was switched off,
//! rather than drop a request that may still matter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Where the kernel names this start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A wall clock that reads less than this, the beginning of 2026, was never set.
const SANE_MS: u64 = 1_767_225_600_000;

/// A moment, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// Which start of the machine; 0 if that is not known, which equals no other.
    pub boot: u128,
    /// Since that start, sleep included, in milliseconds.
    pub up_ms: u64,
    /// Since 1970, in milliseconds, as the wall clock had it.
    pub wall_ms: u64,
}

/// Tells the time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    boot: u128,
}

impl Clock {
    /// This machine's clock.
    pub fn new() -> Clock {
        let text = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
        let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        Clock {
            boot: u128::from_str_radix(&hex, 16).unwrap_or(0),
        }
    }

    /// Now.
    pub fn now(&self) -> Stamp {
        let up = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Stamp {
            boot: self.boot,
            up_ms: millis(up),
            wall_ms: millis(wall),
        }
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

/// Milliseconds from `since` to `now`; `seen` is the last moment noted before the machine was started again, if it was.
pub fn elapsed_ms(since: &Stamp, seen: &Stamp, now: &Stamp) -> u64 {
    let ran_ms = ran_ms(since, seen, now);
    let same = since.boot == now.boot && since.boot != 0;
    let sane = since.wall_ms >= SANE_MS && now.wall_ms >= since.wall_ms;
    if sane && !same {
        ran_ms.max(now.wall_ms - since.wall_ms)
    } else {
        ran_ms
    }
}

/// Of these, the milliseconds that the machine was seen to run.
pub fn ran_ms(since: &Stamp, seen: &Stamp, now: &Stamp) -> u64 {
    // Where the starts have no names, a clock that went on is taken for the same start.
    if since.boot == now.boot && (since.boot != 0 || now.up_ms >= since.up_ms) {
        return now.up_ms.saturating_sub(since.up_ms);
    }
    // It ran so long at least: until it was seen last, and since it was started again.
    let before = if seen.boot == since.boot {
        seen.up_ms.saturating_sub(since.up_ms)
    } else {
        0
    };
    before.saturating_add(now.up_ms)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(boot: u128, up_ms: u64, wall_ms: u64) -> Stamp {
        Stamp {
            boot,
            up_ms,
            wall_ms,
        }
    }

    #[test]
    fn steps_of_the_wall_clock_change_nothing_while_the_machine_is_up() {
        let since = stamp(1, 1000, SANE_MS + 5000);
        for wall_ms in [0, SANE_MS, SANE_MS + 1_000_000_000] {
            let now = stamp(1, 4000, wall_ms);
            assert_eq!(elapsed_ms(&since, &since, &now), 3000);
        }
    }

    #[test]
    fn over_a_start_a_sane_wall_clock_tells_and_any_other_does_not() {
        let since = stamp(1, 1000, SANE_MS);
        let seen = stamp(1, 3000, SANE_MS + 2000);
        let now = stamp(2, 500, SANE_MS + 60_000);
        assert_eq!(elapsed_ms(&since, &seen, &now), 60_000);
        // It went back, or was never set: what is sure is 2 s before and half a second after.
        for wall_ms in [0, SANE_MS - 1] {
            assert_eq!(elapsed_ms(&since, &seen, &stamp(2, 500, wall_ms)), 2500);
        }
        let unset = stamp(1, 1000, 3000);
        assert_eq!(elapsed_ms(&unset, &seen, &now), 2500);
    }

    #[test]
    fn a_machine_that_does_not_say_which_start_it_is_counts_no_uptime_across() {
        let since = stamp(0, 9000, 0);
        assert_eq!(elapsed_ms(&since, &since, &stamp(0, 400, 0)), 400);
        assert_eq!(elapsed_ms(&since, &since, &stamp(0, 9500, 0)), 500);
    }

    #[test]
    fn time_goes_on() {
        let clock = Clock::new();
        let since = clock.now();
        let now = clock.now();
        assert_eq!(since.boot, now.boot);
        assert!(elapsed_ms(&since, &since, &now) < 60_000);
    }
}
