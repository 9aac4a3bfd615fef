//! The `strftime_now` function: today's date in a prompt.
//!
//! Times are in UTC: a gateway's prompts should not change with a setting of its users' interface.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

/// Bytes of a format; each takes at most ten bytes of output.
const FORMAT_BYTES_MAX: usize = 256;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock before 1970 has not been set yet.
    let seconds = now.map_or(0, |now| now.as_secs());
    strftime(format, seconds)
}

/// A moment, given in seconds since 1970, in a format of Python's `strftime` (English names).
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    if format.len() > FORMAT_BYTES_MAX {
        return Err(invalid(format!(
            "a date format has at most {FORMAT_BYTES_MAX} bytes"
        )));
    }
    let days = seconds / 86_400;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let date = Date::from_days(days);
    // 1970 began on a Thursday.
    let weekday = (days + 4) % 7;
    let day_name = DAYS.get(weekday as usize).copied().unwrap_or_default();
    let month_name = MONTHS
        .get(date.month as usize - 1)
        .copied()
        .unwrap_or_default();
    let hour_12 = (hour + 11) % 12 + 1;

    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut letter = characters.next();
        let padded = letter != Some('-');
        if !padded {
            letter = characters.next();
        }
        let mut number = |value: u64, width: usize| {
            let width = if padded { width } else { 0 };
            write!(text, "{value:0width$}")
        };
        let written = match letter {
            Some('Y') => number(date.year, 4),
            Some('y') => number(date.year % 100, 2),
            Some('m') => number(date.month, 2),
            Some('d') => number(date.day, 2),
            Some('j') => number(date.day_of_year, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(hour_12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('w') => number(weekday, 1),
            Some('B') => text.write_str(month_name),
            Some('b' | 'h') => text.write_str(month_name.get(..3).unwrap_or_default()),
            Some('A') => text.write_str(day_name),
            Some('a') => text.write_str(day_name.get(..3).unwrap_or_default()),
            Some('p') => text.write_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => write!(text, "{:04}-{:02}-{:02}", date.year, date.month, date.day),
            Some('T') => write!(text, "{hour:02}:{minute:02}:{second:02}"),
            Some('z') => text.write_str("+0000"),
            Some('Z') => text.write_str("UTC"),
            Some('%') => text.write_str("%"),
            other => {
                let letter = other.map(String::from).unwrap_or_default();
                return Err(invalid(format!(
                    "the date format %{letter} is not supported"
                )));
            }
        };
        // Writing to a string does not fail.
        written.map_err(|error| invalid(error.to_string()))?;
    }
    Ok(text)
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

struct Date {
    year: u64,
    /// From 1.
    month: u64,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
}

impl Date {
    /// The date so many days after 1970-01-01.
    fn from_days(days: u64) -> Self {
        const DAYS_OF_400_YEARS: u64 = 146_097;
        let mut year = 1970 + days / DAYS_OF_400_YEARS * 400;
        let mut left = days % DAYS_OF_400_YEARS;
        loop {
            let leap =
                year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
            let length = if leap { 366 } else { 365 };
            if left >= length {
                left -= length;
                year += 1;
                continue;
            }
            let day_of_year = left + 1;
            let february = if leap { 29 } else { 28 };
            let mut month = 1;
            for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
                if left < length {
                    break;
                }
                left -= length;
                month += 1;
            }
            return Self {
                year,
                month,
                day: left + 1,
                day_of_year,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        let all = "%Y-%m-%d %j %H:%M:%S %I %p %A %a %B %b %w %y %-d %-m %% %F %T";
        for (seconds, expected) in [
            (
                0,
                "1970-01-01 001 00:00:00 12 AM Thursday Thu January Jan 4 70 1 1 % 1970-01-01 00:00:00",
            ),
            (
                951_782_400 + 86_399,
                "2000-02-29 060 23:59:59 11 PM Tuesday Tue February Feb 2 00 29 2 % 2000-02-29 23:59:59",
            ),
            (
                1_735_603_200,
                "2024-12-31 366 00:00:00 12 AM Tuesday Tue December Dec 2 24 31 12 % 2024-12-31 00:00:00",
            ),
            (
                4_107_542_400 + 43_200,
                "2100-03-01 060 12:00:00 12 PM Monday Mon March Mar 1 00 1 3 % 2100-03-01 12:00:00",
            ),
        ] {
            assert_eq!(strftime(all, seconds).expect("a date"), expected);
        }
        assert_eq!(
            strftime("%d %b %Y", 1_753_574_400).expect("a date"),
            "27 Jul 2025"
        );
    }

    #[test]
    fn what_is_not_supported_is_an_error() {
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("%", 0).is_err());
        assert!(strftime(&"x".repeat(FORMAT_BYTES_MAX + 1), 0).is_err());
        assert!(strftime_now("%Y").is_ok());
        assert!(strftime("%Y", u64::MAX).is_ok());
    }
}
