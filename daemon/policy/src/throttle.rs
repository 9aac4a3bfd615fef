//! How far batch work gives way to heat, to a limit on power and to a lack of memory.
//!
//! Alarms and people are served at full speed until the system itself slows down; batch work gives way before that, in
//! two steps. It gives way at once and comes back late: [`RELEASE_MS`] after the last moment at which there was a reason.
//! It waits and is not refused; only [`crate::memory`] has requests turned away.
//!
//! Invariant: without readings nothing is slowed.

use crate::admission::Refuses;

/// At this margin below the limit of a thermal zone batch work is slowed, in thousandths of a degree.
pub const SLOW_MARGIN_MC: i32 = 5_000;
/// At this margin it is held.
pub const HOLD_MARGIN_MC: i32 = 1_000;
/// A power above the limit by this share of it holds batch work, in thousandths.
pub const HOLD_POWER_PERMILLE: u32 = 1_150;
/// At this share of time in which some task waited for memory batch work is slowed, in thousandths.
pub const SLOW_STALL_PERMILLE: u16 = 100;
/// At this share it is held.
pub const HOLD_STALL_PERMILLE: u16 = 400;
/// How long there must be no reason before batch work gets back a step. Heat sinks take about that long.
pub const RELEASE_MS: u64 = 10_000;

/// How far batch work gives way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Throttle {
    /// Not at all.
    #[default]
    None,
    /// It gets half of the time.
    Slow,
    /// It waits.
    Hold,
}

impl Throttle {
    /// The word for it in the status and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Slow => "slow",
            Self::Hold => "hold",
        }
    }

    const fn less(self) -> Self {
        match self {
            Self::Hold => Self::Slow,
            Self::Slow | Self::None => Self::None,
        }
    }
}

/// What work gives way, and how far, to all that there is a reason for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restraint {
    /// How far batch work gives way. It keeps what was computed of it.
    pub batch: Throttle,
    /// What is turned away at the door, and does not begin if it is inside.
    pub refuses: Refuses,
}

/// Why batch work gives way: the first of these that asks for the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A thermal zone is near its limit.
    Heat,
    /// The machine takes more power than it may.
    Power,
    /// Tasks wait for memory.
    Memory,
}

impl Cause {
    /// The word for it in the status and in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Heat => "heat",
            Self::Power => "power",
            Self::Memory => "memory",
        }
    }
}

/// What was read; `None` for what the machine does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strain {
    /// By how much the hottest zone is below its limit, in thousandths of a degree.
    pub margin_mc: Option<i32>,
    /// Power, in milliwatts.
    pub power_mw: Option<u32>,
    /// Time in which some task waited for memory, in thousandths of the last ten seconds.
    pub stall_permille: Option<u16>,
}

/// Decides from one reading after the other.
#[derive(Clone, Copy, Debug)]
pub struct Governor {
    power_mw_max: Option<u32>,
    throttle: Throttle,
    cause: Option<Cause>,
    /// When there was last a reason for at least the present step.
    reason_ms: u64,
}

impl Governor {
    /// One that slows nothing yet. With `power_mw_max`, power above it slows batch work.
    #[must_use]
    pub const fn new(power_mw_max: Option<u32>) -> Self {
        Self {
            power_mw_max,
            throttle: Throttle::None,
            cause: None,
            reason_ms: 0,
        }
    }

    /// How far batch work gives way, and why; by the last reading.
    #[must_use]
    pub const fn state(&self) -> (Throttle, Option<Cause>) {
        (self.throttle, self.cause)
    }

    /// Takes a reading; times do not run backwards. Says whether anything changed.
    pub fn read(&mut self, strain: &Strain, now_ms: u64) -> bool {
        let before = self.state();
        let (wanted, cause) = self.wanted(strain);
        if wanted >= self.throttle {
            if wanted > Throttle::None {
                self.reason_ms = now_ms;
                self.cause = cause;
            }
            self.throttle = wanted;
        } else if now_ms.saturating_sub(self.reason_ms) >= RELEASE_MS {
            self.throttle = self.throttle.less().max(wanted);
            self.reason_ms = now_ms;
            if self.throttle == Throttle::None {
                self.cause = None;
            }
        }
        self.state() != before
    }

    fn wanted(&self, strain: &Strain) -> (Throttle, Option<Cause>) {
        let step = |slow: bool, hold: bool| match (hold, slow) {
            (true, _) => Throttle::Hold,
            (false, true) => Throttle::Slow,
            (false, false) => Throttle::None,
        };
        let heat = strain.margin_mc.map_or(Throttle::None, |margin| {
            step(margin <= SLOW_MARGIN_MC, margin <= HOLD_MARGIN_MC)
        });
        let power = match (strain.power_mw, self.power_mw_max) {
            (Some(power), Some(max)) => {
                let permille = u64::from(power) * 1000;
                let max = u64::from(max);
                step(
                    permille > max * 1000,
                    permille > max * u64::from(HOLD_POWER_PERMILLE),
                )
            }
            _ => Throttle::None,
        };
        let memory = strain.stall_permille.map_or(Throttle::None, |stall| {
            step(stall >= SLOW_STALL_PERMILLE, stall >= HOLD_STALL_PERMILLE)
        });
        let asked = [
            (heat, Cause::Heat),
            (power, Cause::Power),
            (memory, Cause::Memory),
        ];
        let most = heat.max(power).max(memory);
        let cause = asked
            .into_iter()
            .find(|&(throttle, _)| throttle == most && most > Throttle::None)
            .map(|(_, cause)| cause);
        (most, cause)
    }
}

#[cfg(test)]
mod tests {
    use super::{Cause, Governor, RELEASE_MS, Strain, Throttle};

    fn heat(margin_mc: i32) -> Strain {
        Strain {
            margin_mc: Some(margin_mc),
            ..Strain::default()
        }
    }

    #[test]
    fn without_readings_nothing_is_slowed() {
        let mut governor = Governor::new(Some(1));
        assert!(!governor.read(&Strain::default(), 5));
        assert_eq!(governor.state(), (Throttle::None, None));
    }

    #[test]
    fn batch_work_gives_way_at_once_and_comes_back_late_and_by_steps() {
        let mut governor = Governor::new(None);
        assert!(governor.read(&heat(500), 0));
        assert_eq!(governor.state(), (Throttle::Hold, Some(Cause::Heat)));
        assert!(!governor.read(&heat(30_000), RELEASE_MS - 1));
        assert!(governor.read(&heat(30_000), RELEASE_MS));
        assert_eq!(governor.state(), (Throttle::Slow, Some(Cause::Heat)));
        assert!(!governor.read(&heat(30_000), 2 * RELEASE_MS - 1));
        assert!(governor.read(&heat(30_000), 2 * RELEASE_MS));
        assert_eq!(governor.state(), (Throttle::None, None));
    }

    #[test]
    fn a_reason_in_between_begins_the_wait_anew() {
        let mut governor = Governor::new(None);
        governor.read(&heat(4_000), 0);
        governor.read(&heat(4_999), RELEASE_MS - 1);
        assert!(!governor.read(&heat(9_000), RELEASE_MS));
        assert_eq!(governor.state().0, Throttle::Slow);
        assert!(governor.read(&heat(9_000), 2 * RELEASE_MS - 1));
    }

    #[test]
    fn it_falls_no_lower_than_what_is_wanted() {
        let mut governor = Governor::new(None);
        governor.read(&heat(0), 0);
        governor.read(&heat(3_000), RELEASE_MS);
        assert_eq!(governor.state().0, Throttle::Slow);
        governor.read(&heat(3_000), 9 * RELEASE_MS);
        assert_eq!(governor.state().0, Throttle::Slow);
    }

    #[test]
    fn the_cause_that_asks_for_most_is_named() {
        let strain = Strain {
            margin_mc: Some(4_000),
            power_mw: Some(1_200),
            stall_permille: Some(150),
        };
        let mut governor = Governor::new(Some(1_000));
        governor.read(&strain, 0);
        assert_eq!(governor.state(), (Throttle::Hold, Some(Cause::Power)));
        let mut governor = Governor::new(Some(1_200));
        governor.read(&strain, 0);
        assert_eq!(governor.state(), (Throttle::Slow, Some(Cause::Heat)));
        let mut governor = Governor::new(None);
        governor.read(
            &Strain {
                stall_permille: Some(400),
                ..Strain::default()
            },
            0,
        );
        assert_eq!(governor.state(), (Throttle::Hold, Some(Cause::Memory)));
    }
}
