//! When to try the broker again, and in which version of MQTT.
//!
//! The pause doubles from [`PAUSE_MIN`] to the configured longest one and is cut by chance to between half
//! and all of it, so that gateways thrown out together do not come back together. A connection that held
//! for [`STEADY`] starts the series anew.
//!
//! A broker that does not know MQTT 5 says so in the reply code of 3.1.1, which is no valid reply of MQTT 5,
//! or just hangs up. Either looks like a connection that ends before the greeting; so does a broker that
//! is shutting down. One such end is taken for an accident, two in a row for an old broker. Every
//! connection that was lost is tried with MQTT 5 first again: brokers get updated.

use std::time::Duration;

use super::message::Version;
use crate::config::mqtt::Protocol;

/// First pause.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(250);
/// A connection that held this long was a good one.
pub(super) const STEADY: Duration = Duration::from_secs(10);
/// Ends without greeting after which a broker is taken for one that does not know MQTT 5.
const SILENT_ENDS: u32 = 2;

/// How a connection, or the attempt at one, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The broker could not be reached.
    Unreachable,
    /// The broker was reached and hung up, or kept silent, without a greeting.
    NoGreeting,
    /// The broker does not speak this version.
    VersionRefused,
    /// The broker turned the client away for another reason.
    Refused,
    /// A connection that was up broke after so long.
    Lost(Duration),
    /// A packet from the broker was larger than the reader takes.
    PacketTooLarge,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    /// Wait this long before.
    pub(super) pause: Duration,
    /// Speak this version.
    pub(super) version: Version,
    /// Throw the session at the broker away: it holds a message that cannot be read.
    pub(super) clean: bool,
}

/// The series of attempts.
#[derive(Debug)]
pub(super) struct Reconnect {
    protocol: Protocol,
    pause_max: Duration,
    failures: u32,
    silent_ends: u32,
    version: Version,
    clean: bool,
}

impl Reconnect {
    /// The series before its first attempt.
    pub(super) fn new(protocol: Protocol, pause_max: Duration) -> Reconnect {
        Reconnect {
            protocol,
            pause_max,
            failures: 0,
            silent_ends: 0,
            version: first_version(protocol),
            clean: false,
        }
    }

    /// The first attempt.
    pub(super) fn first(&self) -> Attempt {
        Attempt {
            pause: Duration::ZERO,
            version: self.version,
            clean: false,
        }
    }

    /// The broker greeted.
    pub(super) fn connected(&mut self) {
        self.clean = false;
        if self.version == Version::V5 {
            self.silent_ends = 0;
        }
    }

    /// The attempt after one that ended so. `chance` lies between 0 and 1.
    pub(super) fn after(&mut self, end: End, chance: f64) -> Attempt {
        let tried = self.version;
        self.clean |= end == End::PacketTooLarge;
        if tried == Version::V5 && end == End::NoGreeting {
            self.silent_ends = self.silent_ends.saturating_add(1);
        }
        let old_broker = end == End::VersionRefused
            || (end == End::NoGreeting && self.silent_ends >= SILENT_ENDS);
        if self.protocol == Protocol::Auto && tried == Version::V5 && old_broker {
            self.version = Version::V311;
            return Attempt {
                pause: Duration::ZERO,
                version: self.version,
                clean: self.clean,
            };
        }
        self.version = first_version(self.protocol);
        if matches!(end, End::Lost(held) if held >= STEADY) {
            self.failures = 0;
        }
        let pause = self.pause(chance);
        self.failures = self.failures.saturating_add(1);
        Attempt {
            pause,
            version: self.version,
            clean: self.clean,
        }
    }

    fn pause(&self, chance: f64) -> Duration {
        let doubled =
            PAUSE_MIN.saturating_mul(1u32.checked_shl(self.failures.min(16)).unwrap_or(u32::MAX));
        let pause = doubled.min(self.pause_max);
        pause.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
    }
}

fn first_version(protocol: Protocol) -> Version {
    match protocol {
        Protocol::Auto | Protocol::V5 => Version::V5,
        Protocol::V311 => Version::V311,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto() -> Reconnect {
        Reconnect::new(Protocol::Auto, Duration::from_secs(4))
    }

    #[test]
    fn pauses_double_up_to_the_bound_and_vary() {
        let mut series = auto();
        let pauses: Vec<u64> = (0..6)
            .map(|_| series.after(End::Unreachable, 1.0).pause.as_millis() as u64)
            .collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 4000]);
        assert_eq!(
            series.after(End::Unreachable, 0.0).pause,
            Duration::from_secs(2)
        );
        for _ in 0..100 {
            series.after(End::Unreachable, 1.0);
        }
        assert_eq!(
            series.after(End::Unreachable, 1.0).pause,
            Duration::from_secs(4)
        );
    }

    #[test]
    fn a_steady_connection_starts_the_series_anew_and_a_brief_one_does_not() {
        let mut series = auto();
        series.after(End::Unreachable, 1.0);
        series.after(End::Unreachable, 1.0);
        assert_eq!(
            series.after(End::Lost(Duration::from_secs(1)), 1.0).pause,
            Duration::from_secs(1)
        );
        assert_eq!(series.after(End::Lost(STEADY), 1.0).pause, PAUSE_MIN);
    }

    #[test]
    fn an_old_broker_is_spoken_to_in_its_own_version_at_once() {
        let mut series = auto();
        let next = series.after(End::VersionRefused, 1.0);
        assert_eq!((next.version, next.pause), (Version::V311, Duration::ZERO));
        series.connected();
        assert_eq!(series.after(End::Lost(STEADY), 1.0).version, Version::V5);
    }

    #[test]
    fn one_silent_end_is_an_accident_and_two_are_an_old_broker() {
        let mut series = auto();
        let next = series.after(End::NoGreeting, 1.0);
        assert_eq!((next.version, next.pause), (Version::V5, PAUSE_MIN));
        let next = series.after(End::NoGreeting, 1.0);
        assert_eq!((next.version, next.pause), (Version::V311, Duration::ZERO));
        series.connected();
        // Lost later: MQTT 5 is tried first, and its silence is enough now.
        assert_eq!(series.after(End::Lost(STEADY), 1.0).version, Version::V5);
        assert_eq!(series.after(End::NoGreeting, 1.0).version, Version::V311);
    }

    #[test]
    fn a_fixed_version_stays() {
        let mut series = Reconnect::new(Protocol::V5, Duration::from_secs(1));
        for _ in 0..4 {
            assert_eq!(series.after(End::VersionRefused, 1.0).version, Version::V5);
            assert_eq!(series.after(End::NoGreeting, 1.0).version, Version::V5);
        }
        let mut series = Reconnect::new(Protocol::V311, Duration::from_secs(1));
        assert_eq!(series.first().version, Version::V311);
        assert_eq!(series.after(End::NoGreeting, 1.0).version, Version::V311);
    }

    #[test]
    fn an_unreadable_message_costs_the_session_once() {
        let mut series = auto();
        assert!(series.after(End::PacketTooLarge, 1.0).clean);
        assert!(series.after(End::VersionRefused, 1.0).clean);
        series.connected();
        assert!(!series.after(End::Unreachable, 1.0).clean);
    }
}
