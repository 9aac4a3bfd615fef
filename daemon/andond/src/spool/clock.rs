//! Time that survives a restart: how old a request is, and how much of its deadline is left, on a machine whose wall clock may
//! be wrong.
//!
//! The spool has a clock of its own: how long the machine was seen to run. While it stays up, that is the clock that counts from
//! its start, sleep included, which nobody can set. Over a start of the machine it goes on from the last moment noted.
//! A deadline is a length after an arrival on this clock, never a time of day. What a machine was switched off for counts
//! only if its wall clock was known to be right both when the request came and now: a gateway without a clock battery answers
//! late rather than drop a request that may still matter, and no wrong time of day drops anything.
//!
//! Invariant: this clock never goes back, whatever becomes of the wall clock.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Where the kernel names this start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// There once the wall clock was set by a time server since this start, by systemd-timesyncd or whoever stands in for it. The
/// kernel's own word on it would be had by a system call that the daemon's unit forbids, for the same one sets the clock.
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// After so many starts of the machine that the spool has seen.
    pub starts: u32,
    /// So long the machine was seen to run by then, sleep included, in milliseconds.
    pub ran_ms: u64,
    /// Since 1970, in milliseconds, if the wall clock was known to be right.
    pub wall_ms: Option<u64>,
}

impl Stamp {
    /// How long after `since` this is, as far as the machine was seen to run, in milliseconds.
    pub fn ran_since(&self, since: &Stamp) -> u64 {
        self.ran_ms.saturating_sub(since.ran_ms)
    }

    /// How long after `since` this is, in milliseconds: with what the machine was switched off for, where that is known.
    pub fn since(&self, since: &Stamp) -> u64 {
        let ran_ms = self.ran_since(since);
        match (since.wall_ms, self.wall_ms) {
            (Some(then), Some(now)) if since.starts != self.starts => {
                ran_ms.max(now.saturating_sub(then))
            }
            _ => ran_ms,
        }
    }
}

/// What is noted of the clock with every commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Which start of the machine; 0 if it does not say.
    pub boot: u128,
    /// Since that start, sleep included, in milliseconds.
    pub up_ms: u64,
    /// After so many starts.
    pub starts: u32,
    /// So long the machine was seen to run.
    pub ran_ms: u64,
}

/// Tells the time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    boot: u128,
    starts: u32,
    /// How long it was seen to run before it was started.
    before_ms: u64,
    same_start: bool,
}

impl Clock {
    /// This machine's clock, which goes on after what was noted last.
    pub fn after(seen: &Seen) -> Clock {
        let text = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
        let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        Clock::going_on(seen, u128::from_str_radix(&hex, 16).unwrap_or(0), up_ms())
    }

    fn going_on(seen: &Seen, boot: u128, up_ms: u64) -> Clock {
        // Where starts have no names, a clock that went on is taken for the same start.
        let same_start = seen.boot == boot && (boot != 0 || up_ms >= seen.up_ms);
        let (starts, before_ms) = if same_start {
            (seen.starts, seen.ran_ms.saturating_sub(seen.up_ms))
        } else {
            (seen.starts.saturating_add(1), seen.ran_ms)
        };
        Clock {
            boot,
            starts,
            before_ms,
            same_start,
        }
    }

    /// Whether the machine was not started again since what was noted last.
    pub fn is_same_start(&self) -> bool {
        self.same_start
    }

    /// Now.
    pub fn now(&self) -> Stamp {
        let wall = Path::new(SYNCHRONISED).exists().then(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
        });
        Stamp {
            starts: self.starts,
            ran_ms: self.ran_ms(up_ms()),
            wall_ms: wall.map(millis),
        }
    }

    /// What is to be noted now.
    pub fn seen(&self) -> Seen {
        let up_ms = up_ms();
        Seen {
            boot: self.boot,
            up_ms,
            starts: self.starts,
            ran_ms: self.ran_ms(up_ms),
        }
    }

    fn ran_ms(&self, up_ms: u64) -> u64 {
        self.before_ms.saturating_add(up_ms)
    }
}

fn up_ms() -> u64 {
    millis(clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(starts: u32, ran_ms: u64, wall_ms: Option<u64>) -> Stamp {
        Stamp {
            starts,
            ran_ms,
            wall_ms,
        }
    }

    #[test]
    fn steps_of_the_wall_clock_change_nothing_while_the_machine_is_up() {
        let since = stamp(1, 1000, Some(5_000_000));
        for wall_ms in [None, Some(0), Some(9_000_000_000)] {
            assert_eq!(stamp(1, 4000, wall_ms).since(&since), 3000);
        }
    }

    #[test]
    fn over_a_start_a_wall_clock_known_to_be_right_tells_and_any_other_does_not() {
        let since = stamp(1, 1000, Some(5_000_000));
        assert_eq!(stamp(2, 3500, Some(5_060_000)).since(&since), 60_000);
        assert_eq!(stamp(2, 3500, Some(5_060_000)).ran_since(&since), 2500);
        // It went back, is not known to be right, or was not when the request came.
        assert_eq!(stamp(2, 3500, Some(0)).since(&since), 2500);
        assert_eq!(stamp(2, 3500, None).since(&since), 2500);
        let unset = stamp(1, 1000, None);
        assert_eq!(stamp(2, 3500, Some(5_060_000)).since(&unset), 2500);
    }

    #[test]
    fn the_clock_goes_on_over_processes_and_starts_of_the_machine() {
        let first = Clock::going_on(&Seen::default(), 7, 10_000);
        assert_eq!((first.ran_ms(10_000), first.same_start), (10_000, false));
        let seen = |boot, clock: &Clock, up_ms| Seen {
            boot,
            up_ms,
            starts: clock.starts,
            ran_ms: clock.ran_ms(up_ms),
        };
        let next = Clock::going_on(&seen(7, &first, 12_000), 7, 15_000);
        assert_eq!((next.ran_ms(15_000), next.same_start), (15_000, true));
        // Twice started again: both lives before count, and so does this one.
        let again = Clock::going_on(&seen(7, &next, 20_000), 8, 300);
        assert_eq!((again.ran_ms(300), again.same_start), (20_300, false));
        let again = Clock::going_on(&seen(8, &again, 1000), 9, 50);
        assert_eq!((again.ran_ms(50), again.starts), (21_050, first.starts + 2));
    }

    #[test]
    fn a_machine_that_does_not_name_its_starts_is_told_by_its_uptime() {
        let seen = Seen {
            boot: 0,
            up_ms: 9000,
            starts: 3,
            ran_ms: 9000,
        };
        let same = Clock::going_on(&seen, 0, 9500);
        assert_eq!((same.ran_ms(9500), same.starts), (9500, 3));
        let other = Clock::going_on(&seen, 0, 400);
        assert_eq!((other.ran_ms(400), other.starts), (9400, 4));
    }

    #[test]
    fn time_goes_on() {
        let clock = Clock::after(&Seen::default());
        let (since, seen) = (clock.now(), clock.seen());
        let now = Clock::after(&seen).now();
        assert_eq!(since.starts, now.starts);
        assert!(now.ran_ms >= since.ran_ms && now.since(&since) < 60_000);
    }
}
