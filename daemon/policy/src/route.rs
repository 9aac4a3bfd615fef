//! Where a request is answered: here, upstream, here first and upstream if that is not good enough, or later.
//!
//! What is known of the request and of the moment is in [`Facts`]; [`decide`] says what to do, and the reason that an operator is
//! told. Estimates, budgets and the state of the link come from elsewhere.
//!
//! Invariants: what may not leave is never sent up, whatever else is said; with no upstream, or with one that cannot be had, only
//! what insists on one goes without an answer.

use serde::{Deserialize, Serialize};

/// Who is to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The local model, always.
    Local,
    /// Upstream what is beyond the local model, else that.
    #[default]
    Auto,
    /// Upstream, or nobody.
    Cloud,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Local, Self::Auto, Self::Cloud];

    /// The word for it in requests and in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Auto => "auto",
            Self::Cloud => "cloud",
        }
    }
}

/// Where an answer was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Route {
    /// On the gateway.
    #[default]
    Local,
    /// Upstream.
    Cloud,
    /// On the gateway, since upstream could not be had.
    LocalFallback,
}

impl Route {
    /// Every route.
    pub const ALL: [Self; 3] = [Self::Local, Self::Cloud, Self::LocalFallback];

    /// The word for it in answers, records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Cloud => "cloud",
            Self::LocalFallback => "local-fallback",
        }
    }
}

/// Whether upstream can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// None is configured.
    Absent,
    /// There is no link, or all of them fail.
    Down,
    /// It has as many questions as it may.
    Busy,
    /// One can be asked.
    Up,
}

/// What may be spent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Purse {
    /// As much as comes.
    Open,
    /// A request has to be this much harder than usual to be worth it: a share of the scale from 0 to 1.
    Slope(f32),
    /// Nothing now.
    Shut,
}

impl Purse {
    fn raise(self) -> f32 {
        match self {
            Self::Slope(raise) if raise.is_finite() => raise.clamp(0.0, 1.0),
            Self::Open | Self::Slope(_) | Self::Shut => 0.0,
        }
    }
}

/// What is known when a request comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// Who is to answer.
    pub policy: Policy,
    /// Whether its bytes may leave the gateway.
    pub may_leave: bool,
    /// Whether upstream would understand what it asks: a conversation, no tokens, vectors or gaps.
    pub can_leave: bool,
    /// Whether upstream can be had.
    pub upstream: Upstream,
    /// Probability that the local answer is as good as upstream's, 0 to 1: that it will do, or that neither will. Anything else
    /// counts as 1: what is not known is no reason to spend money.
    pub as_good: f32,
    /// What may be spent.
    pub purse: Purse,
    /// Whether it may wait until upstream can be had.
    pub waits: bool,
    /// Milliseconds until its answer is worthless.
    pub left_ms: Option<u64>,
    /// Milliseconds that an answer from upstream takes as far as is known, 0 if nothing is.
    pub upstream_ms: u64,
    /// The same of a local answer.
    pub local_ms: u64,
}

/// What the operator has set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Below this probability that the local answer is as good as upstream's, a request goes up.
    pub threshold: f32,
    /// Whether local answers that are not sure of themselves go up, too.
    pub cascade: bool,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is answered here.
    Local(Reason),
    /// It is answered here, and goes up if that answer is not sure of itself.
    Cascade,
    /// It goes up. With [`Policy::Auto`] it is answered here if that fails.
    Cloud(Reason),
    /// It waits until upstream can be had.
    Wait(Reason),
    /// It should go up and cannot, and is answered here.
    Fallback(Reason),
    /// It has no answer.
    Refuse(Reason),
}

impl Decision {
    /// The word for it in records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local(_) => "local",
            Self::Cascade => "cascade",
            Self::Cloud(_) => "cloud",
            Self::Wait(_) => "wait",
            Self::Fallback(_) => "local-fallback",
            Self::Refuse(_) => "refuse",
        }
    }

    /// Why.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Cascade => Reason::Easy,
            Self::Local(reason)
            | Self::Cloud(reason)
            | Self::Wait(reason)
            | Self::Fallback(reason)
            | Self::Refuse(reason) => reason,
        }
    }
}

/// Why a request is answered where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The policy says so.
    Policy,
    /// It may not leave the gateway.
    Egress,
    /// Upstream would not understand it.
    Kind,
    /// There is no upstream.
    NoUpstream,
    /// Little is gained upstream: the local model is likely to do, or upstream is not likely to do better.
    Easy,
    /// The local model is not likely to do, and upstream is.
    Hard,
    /// Upstream cannot be had.
    Link,
    /// Upstream has as many questions as it may.
    Busy,
    /// The budget is spent.
    Budget,
    /// Upstream would be too late.
    Deadline,
}

impl Reason {
    /// The word for it in records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Egress => "egress",
            Self::Kind => "kind",
            Self::NoUpstream => "no-upstream",
            Self::Easy => "easy",
            Self::Hard => "hard",
            Self::Link => "link",
            Self::Busy => "busy",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
        }
    }
}

/// What to do with a request of which this is known.
#[must_use]
pub fn decide(facts: &Facts, rules: &Rules) -> Decision {
    if facts.policy == Policy::Local {
        return Decision::Local(Reason::Policy);
    }
    if !facts.may_leave {
        return Decision::Local(Reason::Egress);
    }
    if !facts.can_leave {
        return Decision::Local(Reason::Kind);
    }
    let insists = facts.policy == Policy::Cloud;
    if facts.upstream == Upstream::Absent {
        return if insists {
            Decision::Refuse(Reason::NoUpstream)
        } else {
            Decision::Local(Reason::NoUpstream)
        };
    }
    if !insists && !is_hard(facts.as_good, rules.threshold, facts.purse) {
        let both_ms = facts.local_ms.saturating_add(facts.upstream_ms);
        let could = facts.upstream == Upstream::Up
            && facts.purse != Purse::Shut
            && facts.left_ms.is_none_or(|left_ms| left_ms > both_ms);
        return if rules.cascade && could {
            Decision::Cascade
        } else {
            Decision::Local(Reason::Easy)
        };
    }
    let cannot = if facts.purse == Purse::Shut {
        Some(Reason::Budget)
    } else if facts.upstream == Upstream::Down {
        Some(Reason::Link)
    } else if facts.upstream == Upstream::Busy {
        Some(Reason::Busy)
    } else {
        None
    };
    let in_time = facts
        .left_ms
        .is_none_or(|left_ms| left_ms > facts.upstream_ms);
    match cannot {
        // What is to wait must be worth something when it comes back.
        Some(reason) if facts.waits && in_time && facts.left_ms != Some(0) => {
            Decision::Wait(reason)
        }
        Some(reason) if insists => Decision::Refuse(reason),
        Some(reason) => Decision::Fallback(reason),
        None if insists => Decision::Cloud(Reason::Policy),
        None if !in_time => Decision::Fallback(Reason::Deadline),
        None => Decision::Cloud(Reason::Hard),
    }
}

/// Whether a local answer that is as good as upstream's with this probability is to be improved upon there.
#[must_use]
pub fn is_hard(as_good: f32, threshold: f32, purse: Purse) -> bool {
    (0.0..=1.0).contains(&as_good) && as_good + purse.raise() < threshold
}

/// How much one request moves the threshold: a few hundred requests come to a new share.
const SHARE_GAIN: f32 = 0.01;

/// The threshold below which requests go up: a fixed one, or one that moves so that a share of all requests does.
///
/// With a target it goes up a little after each request that stayed and down after each that went, so that it rests where the
/// two balance: at the quantile of the scores that the target names, wherever the scores lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    target: Option<f32>,
    threshold: f32,
}

impl Share {
    /// One that begins at this threshold; both are between 0 and 1.
    #[must_use]
    pub fn new(threshold: f32, target: Option<f32>) -> Self {
        Self {
            target: target.map(|target| target.clamp(0.0, 1.0)),
            threshold: threshold.clamp(0.0, 1.0),
        }
    }

    /// The threshold now.
    #[must_use]
    pub const fn threshold(&self) -> f32 {
        self.threshold
    }

    /// A request that could have gone up was hard enough to, or was not.
    pub fn note(&mut self, hard: bool) {
        if let Some(target) = self.target {
            let went = if hard { 1.0 } else { 0.0 };
            let moved = self.threshold + SHARE_GAIN * (target - went);
            self.threshold = moved.clamp(0.0, 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        threshold: 0.5,
        cascade: false,
    };

    fn hard() -> Facts {
        Facts {
            policy: Policy::Auto,
            may_leave: true,
            can_leave: true,
            upstream: Upstream::Up,
            as_good: 0.2,
            purse: Purse::Open,
            waits: false,
            left_ms: None,
            upstream_ms: 2_000,
            local_ms: 1_000,
        }
    }

    #[test]
    fn what_is_hard_goes_up_and_what_is_easy_stays() {
        assert_eq!(decide(&hard(), &RULES), Decision::Cloud(Reason::Hard));
        let easy = Facts {
            as_good: 0.8,
            ..hard()
        };
        assert_eq!(decide(&easy, &RULES), Decision::Local(Reason::Easy));
        let unknown = Facts {
            as_good: f32::NAN,
            ..hard()
        };
        assert_eq!(decide(&unknown, &RULES), Decision::Local(Reason::Easy));
    }

    #[test]
    fn a_cascade_needs_the_time_for_both_and_somebody_to_ask() {
        let rules = Rules {
            cascade: true,
            ..RULES
        };
        let easy = Facts {
            as_good: 0.8,
            left_ms: Some(3_001),
            ..hard()
        };
        assert_eq!(decide(&easy, &rules), Decision::Cascade);
        let local = Decision::Local(Reason::Easy);
        for cannot in [
            Facts {
                left_ms: Some(3_000),
                ..easy
            },
            Facts {
                upstream: Upstream::Down,
                ..easy
            },
            Facts {
                purse: Purse::Shut,
                ..easy
            },
        ] {
            assert_eq!(decide(&cannot, &rules), local, "{cannot:?}");
        }
    }

    #[test]
    fn without_a_link_it_waits_or_falls_back_and_only_who_insists_is_refused() {
        let down = Facts {
            upstream: Upstream::Down,
            ..hard()
        };
        assert_eq!(decide(&down, &RULES), Decision::Fallback(Reason::Link));
        let waits = Facts {
            waits: true,
            ..down
        };
        assert_eq!(decide(&waits, &RULES), Decision::Wait(Reason::Link));
        let late = Facts {
            left_ms: Some(2_000),
            ..waits
        };
        assert_eq!(decide(&late, &RULES), Decision::Fallback(Reason::Link));
        let insists = Facts {
            policy: Policy::Cloud,
            ..down
        };
        assert_eq!(decide(&insists, &RULES), Decision::Refuse(Reason::Link));
        let insists = Facts {
            policy: Policy::Cloud,
            ..waits
        };
        assert_eq!(decide(&insists, &RULES), Decision::Wait(Reason::Link));
    }

    #[test]
    fn a_purse_that_empties_lets_less_up() {
        let slope = |raise| {
            let purse = Purse::Slope(raise);
            decide(&Facts { purse, ..hard() }, &RULES)
        };
        assert_eq!(slope(0.25), Decision::Cloud(Reason::Hard));
        assert_eq!(slope(0.5), Decision::Local(Reason::Easy));
        let shut = Facts {
            purse: Purse::Shut,
            ..hard()
        };
        assert_eq!(decide(&shut, &RULES), Decision::Fallback(Reason::Budget));
    }

    #[test]
    fn what_would_come_too_late_is_not_sent() {
        let late = Facts {
            left_ms: Some(2_000),
            ..hard()
        };
        assert_eq!(decide(&late, &RULES), Decision::Fallback(Reason::Deadline));
        let insists = Facts {
            policy: Policy::Cloud,
            ..late
        };
        assert_eq!(decide(&insists, &RULES), Decision::Cloud(Reason::Policy));
    }
}
