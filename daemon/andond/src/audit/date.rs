//! Dates of the wall clock, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A day, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Day(pub(super) u64);

const DAY_S: u64 = 86_400;

fn since_1970(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Day {
    pub(super) fn of(at: SystemTime) -> Day {
        Day(since_1970(at).as_secs() / DAY_S)
    }

    /// Year, month and day of the month.
    fn civil(self) -> (u64, u64, u64) {
        // Years begin with March here, so that the day that comes and goes is a year's last; 719 468 days before 1970-01-01 an era
        // of 400 years began.
        let days = self.0 + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        (era * 400 + year + u64::from(month <= 2), month, day)
    }

    /// As it stands in names of files: `20261126`.
    pub(super) fn digits(self) -> String {
        let (year, month, day) = self.civil();
        format!("{year:04}{month:02}{day:02}")
    }

    /// The day of such digits.
    pub(super) fn parse(digits: &str) -> Option<Day> {
        let number: u64 = digits.parse().ok().filter(|_| digits.len() == 8)?;
        let (year, month, day) = (number / 10_000, number / 100 % 100, number % 100);
        if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        let (year, month) = if month > 2 {
            (year, month - 3)
        } else {
            (year - 1, month + 9)
        };
        let of_year = (153 * month + 2) / 5 + day - 1;
        let days = year / 400 * 146_097 + year % 400 * 365 + year % 400 / 4 - year % 400 / 100;
        (days + of_year).checked_sub(719_468).map(Day)
    }
}

/// As in RFC 3339, to the microsecond: `2026-11-26T19:54:03.000123Z`.
pub(super) fn rfc3339(at: SystemTime) -> String {
    let since = since_1970(at);
    let (year, month, day) = Day::of(at).civil();
    let second = since.as_secs() % DAY_S;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        let at = |seconds: u64, micros: u64| {
            UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros)
        };
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000007Z"),
            (951_868_799, "2000-02-29T23:59:59.000007Z"),
            (1_764_187_445, "2025-11-26T20:04:05.000007Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000007Z"),
        ] {
            assert_eq!(rfc3339(at(seconds, 7)), text);
        }
    }

    #[test]
    fn days_are_read_as_they_are_written() {
        for day in (0..200_000).map(Day) {
            assert_eq!(Day::parse(&day.digits()), Some(day), "{}", day.digits());
        }
        for none in [
            "", "2026112", "20261301", "20261132", "19691231", "2026112x",
        ] {
            assert_eq!(Day::parse(none), None, "{none}");
        }
    }
}
