//! Days and months of a clock that may be wrong.
//!
//! A [`Calendar`] goes by the gateway's wall clock in UTC and never back. Where the wall clock is put back by more than a moment,
//! the calendar goes on at the speed at which the machine runs, and only after a day of that it believes the other time. A jump
//! ahead is believed at once, since that is how the clock of a machine without a battery is set, but it is told apart from
//! time that passed: see [`Turn`].
//!
//! Invariant: between two starts of the machine, whatever becomes of the wall clock, there is at least as much running but for an
//! hour between two days that are told of as [`Turn::Passed`], and as the shortest month has but for one day between two months.

use serde::{Deserialize, Serialize};

const MS_OF_A_DAY: u64 = 86_400_000;

/// So far the wall clock may be put ahead within a day or month without that being more than a correction.
const CORRECTED_MS_MAX: u64 = 3_600_000;
/// Least running between two days, and two months, that passed.
const BETWEEN_MS_MIN: [u64; 2] = [MS_OF_A_DAY - CORRECTED_MS_MAX, 27 * MS_OF_A_DAY];
/// For so long a wall clock that is behind the calendar has to stay so until it is believed.
const BELIEVED_AFTER_MS: u64 = MS_OF_A_DAY;

/// A reading of the gateway's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock: milliseconds since 1970, UTC.
    pub wall_ms: u64,
    /// How long the machine was seen to run in all, in milliseconds: a clock that nobody sets and that never goes back.
    pub ran_ms: u64,
    /// How often the machine was started.
    pub starts: u32,
}

/// How a new day or month came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is the same.
    None,
    /// Time passed until it came.
    Passed,
    /// The clock was put there: what was done since the machine was started, or since time passed into the former one, may have
    /// been done on the same day as what comes now.
    Set,
}

/// What a reading comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The time of the calendar: milliseconds since 1970, UTC.
    pub at_ms: u64,
    /// Whether the machine was started since the last reading.
    pub started: bool,
    /// How its day came.
    pub day: Turn,
    /// How its month came.
    pub month: Turn,
}

/// What is known of the day or the month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Current {
    /// How far the wall clock was put ahead of what passed since it began.
    ahead_ms: u64,
    /// When, on the clock that nobody sets, one was last passed into since the machine was started.
    passed_at_ms: Option<u64>,
    /// Whether the clock was put into one since then.
    was_put: bool,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calendar {
    at_ms: u64,
    ran_ms: u64,
    starts: u32,
    day: Current,
    month: Current,
    /// Since when, on the clock that nobody sets, the wall clock has been behind.
    behind_since_ms: Option<u64>,
}

impl Current {
    const NEW: Self = Self {
        ahead_ms: 0,
        passed_at_ms: None,
        was_put: false,
    };
}

impl Calendar {
    /// One that begins now.
    #[must_use]
    pub const fn new(now: Moment) -> Self {
        Self {
            at_ms: now.wall_ms,
            ran_ms: now.ran_ms,
            starts: now.starts,
            day: Current::NEW,
            month: Current::NEW,
            behind_since_ms: None,
        }
    }

    /// The time of the last reading: milliseconds since 1970, UTC.
    #[must_use]
    pub const fn at_ms(&self) -> u64 {
        self.at_ms
    }

    /// Reads the clocks.
    pub fn read(&mut self, now: Moment) -> Reading {
        let before_ms = self.at_ms;
        let started = now.starts != self.starts;
        let passed_ms = now.ran_ms.saturating_sub(self.ran_ms);
        let went_on_ms = before_ms.saturating_add(passed_ms);
        self.ran_ms = self.ran_ms.max(now.ran_ms);
        self.starts = now.starts;
        if before_ms.saturating_sub(now.wall_ms) <= CORRECTED_MS_MAX {
            // A correction back is waited for.
            self.at_ms = before_ms.max(now.wall_ms);
            self.behind_since_ms = None;
        } else {
            let since_ms = *self.behind_since_ms.get_or_insert(self.ran_ms);
            if self.ran_ms - since_ms.min(self.ran_ms) >= BELIEVED_AFTER_MS {
                self.at_ms = now.wall_ms;
                self.behind_since_ms = None;
            } else {
                self.at_ms = went_on_ms;
            }
        }
        // Nobody knows for how long a machine was off.
        let put_ahead_ms = if started {
            0
        } else {
            self.at_ms.saturating_sub(went_on_ms)
        };
        let (at_ms, ran_ms) = (self.at_ms, self.ran_ms);
        let turn = |current: &mut Current, of: fn(u64) -> u32, between_ms_min: u64| {
            if started {
                (current.passed_at_ms, current.was_put) = (None, false);
            }
            current.ahead_ms = current.ahead_ms.saturating_add(put_ahead_ms);
            if of(before_ms) == of(at_ms) {
                return Turn::None;
            }
            let too_soon = current.was_put
                && current
                    .passed_at_ms
                    .is_some_and(|passed_ms| ran_ms.saturating_sub(passed_ms) < between_ms_min);
            let is_put = current.ahead_ms > CORRECTED_MS_MAX || at_ms < before_ms || too_soon;
            current.ahead_ms = 0;
            current.was_put = is_put;
            if is_put {
                return Turn::Set;
            }
            current.passed_at_ms = Some(ran_ms);
            Turn::Passed
        };
        let [day_ms_min, month_ms_min] = BETWEEN_MS_MIN;
        let day = turn(&mut self.day, day_of, day_ms_min);
        let month = turn(&mut self.month, month_of, month_ms_min);
        Reading {
            at_ms: self.at_ms,
            started,
            day,
            month,
        }
    }

    /// In how many milliseconds the next day begins.
    #[must_use]
    pub const fn day_ends_in_ms(&self) -> u64 {
        MS_OF_A_DAY - self.at_ms % MS_OF_A_DAY
    }

    /// In how many milliseconds the next month begins.
    #[must_use]
    pub fn month_ends_in_ms(&self) -> u64 {
        let month = month_of(self.at_ms);
        let day = u64::from(day_of(self.at_ms));
        let begin_ms = |days: u64| (day + days) * MS_OF_A_DAY;
        // None is longer.
        let days = (1..31).find(|days| month_of(begin_ms(*days)) != month);
        begin_ms(days.unwrap_or(31)).saturating_sub(self.at_ms)
    }
}

/// The day of a time, counted from the first of January 1970.
fn day_of(at_ms: u64) -> u32 {
    u32::try_from(at_ms / MS_OF_A_DAY).unwrap_or(u32::MAX)
}

/// The month of a time, counted from January 1970.
fn month_of(at_ms: u64) -> u32 {
    // Years are taken to begin in March, so that a leap day is the last of one; 400 of them have 146 097 days.
    let days = u64::from(day_of(at_ms)) + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let months = (era * 400 + year_of_era) * 12 + month_from_march + 2;
    u32::try_from(months - 1970 * 12).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const DAY: u64 = MS_OF_A_DAY;

    fn at(wall_ms: u64, ran_ms: u64, starts: u32) -> Moment {
        Moment {
            wall_ms,
            ran_ms,
            starts,
        }
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        let seconds = |text: u64| text * 1000;
        for (at_s, month) in [
            (0, 0),
            (31 * 86_400 - 1, 0),
            (31 * 86_400, 1),
            // 29 February 2000, 1 March 2000, 31 December 2026, 1 January 2027, 28 February and 1 March 2100.
            (951_782_400, 30 * 12 + 1),
            (951_868_800, 30 * 12 + 2),
            (1_798_761_599, 56 * 12 + 11),
            (1_798_761_600, 57 * 12),
            (4_107_542_399, 130 * 12 + 1),
            (4_107_542_400, 130 * 12 + 2),
        ] {
            assert_eq!(month_of(seconds(at_s)), month, "{at_s}");
        }
        // Every month is as long as it is.
        let mut lengths = alloc::collections::BTreeMap::new();
        for day in 0..u64::from(day_of(4_102_444_800_000)) {
            *lengths.entry(month_of(day * DAY)).or_insert(0) += 1;
        }
        for (month, days) in lengths {
            let year = 1970 + month / 12;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let expected = match month % 12 {
                1 => 28 + u32::from(leap),
                3 | 5 | 8 | 10 => 30,
                _ => 31,
            };
            assert_eq!(days, expected, "{year}, {}", month % 12 + 1);
        }
    }

    #[test]
    fn days_pass_and_months_with_them() {
        let mut calendar = Calendar::new(at(30 * DAY + 23 * HOUR, 5, 1));
        assert_eq!(calendar.day_ends_in_ms(), HOUR);
        assert_eq!(calendar.month_ends_in_ms(), HOUR);
        let reading = calendar.read(at(30 * DAY + 24 * HOUR - 1, HOUR, 1));
        assert_eq!((reading.day, reading.month), (Turn::None, Turn::None));
        let reading = calendar.read(at(31 * DAY, HOUR + 5, 1));
        assert_eq!((reading.day, reading.month), (Turn::Passed, Turn::Passed));
        assert_eq!(calendar.month_ends_in_ms(), 28 * DAY);
    }

    #[test]
    fn what_the_machine_was_off_for_is_time_that_passed() {
        let mut calendar = Calendar::new(at(10 * DAY, HOUR, 1));
        let reading = calendar.read(at(13 * DAY, HOUR + 1000, 2));
        assert!(reading.started);
        assert_eq!(reading.day, Turn::Passed);
    }

    #[test]
    fn a_clock_that_is_set_is_believed_and_told_apart() {
        let mut calendar = Calendar::new(at(0, 1000, 1));
        let now = 20_000 * DAY + HOUR;
        let reading = calendar.read(at(now, 2000, 1));
        assert_eq!((reading.at_ms, reading.day), (now, Turn::Set));
        assert_eq!(reading.month, Turn::Set);
        // From then on time passes.
        let reading = calendar.read(at(now + DAY, 2000 + DAY, 1));
        assert_eq!(reading.day, Turn::Passed);
    }

    #[test]
    fn a_clock_at_the_end_of_time_stands() {
        let mut calendar = Calendar::new(at(u64::MAX, u64::MAX, u32::MAX));
        assert_eq!(calendar.month_ends_in_ms(), 0);
        let reading = calendar.read(at(0, 0, 1));
        assert_eq!(reading.at_ms, u64::MAX);
        assert_eq!((reading.day, reading.month), (Turn::None, Turn::None));
    }

    #[test]
    fn corrections_make_no_difference() {
        let mut calendar = Calendar::new(at(10 * DAY + 23 * HOUR, 0, 1));
        // Put ahead over midnight by half an hour, and back again.
        let reading = calendar.read(at(11 * DAY + HOUR / 4, HOUR / 2, 1));
        assert_eq!(reading.day, Turn::Passed);
        let reading = calendar.read(at(11 * DAY - HOUR / 4, HOUR / 2, 1));
        assert_eq!(
            (reading.at_ms, reading.day),
            (11 * DAY + HOUR / 4, Turn::None)
        );
        let reading = calendar.read(at(11 * DAY + HOUR / 2, 5 * HOUR / 4, 1));
        assert_eq!(
            (reading.at_ms, reading.day),
            (11 * DAY + HOUR / 2, Turn::None)
        );
    }

    #[test]
    fn many_corrections_are_a_step() {
        let mut calendar = Calendar::new(at(10 * DAY, 0, 1));
        let mut turns = alloc::vec::Vec::new();
        for step in 1..=60 {
            let reading = calendar.read(at(10 * DAY + step * HOUR / 2, step, 1));
            turns.push(reading.day);
        }
        assert!(turns.contains(&Turn::Set) && !turns.contains(&Turn::Passed));
    }

    #[test]
    fn a_clock_that_is_set_again_and_again_passes_into_no_more_days_than_the_machine_runs() {
        let mut calendar = Calendar::new(at(10 * DAY, 0, 1));
        let (mut wall_ms, mut passed) = (10 * DAY, 0);
        // Always into another day, a minute before its midnight, which then comes.
        for step in 1..=480 {
            wall_ms = (wall_ms / DAY + 3) * DAY - 60_000;
            let ran_ms = step * HOUR / 2;
            calendar.read(at(wall_ms, ran_ms - 90_000, 1));
            let reading = calendar.read(at(wall_ms + 90_000, ran_ms, 1));
            passed += u32::from(reading.day == Turn::Passed);
        }
        assert!((2..=11).contains(&passed), "{passed} in ten days");
    }

    #[test]
    fn a_clock_that_is_put_back_is_not_believed_for_a_day_and_time_goes_on() {
        let mut calendar = Calendar::new(at(400 * DAY, 0, 1));
        for hour in 0..24 {
            let reading = calendar.read(at(10 * DAY + hour * HOUR, hour * HOUR, 1));
            assert_eq!(reading.at_ms, 400 * DAY + hour * HOUR);
            assert_eq!(reading.day, Turn::None, "{hour}");
        }
        let reading = calendar.read(at(11 * DAY, DAY, 1));
        assert_eq!((reading.at_ms, reading.day), (11 * DAY, Turn::Set));
        let reading = calendar.read(at(12 * DAY, 2 * DAY, 1));
        assert_eq!(reading.day, Turn::Passed);
    }
}
