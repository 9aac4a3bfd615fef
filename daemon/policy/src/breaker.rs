//! Whether an upstream is asked, by what became of the questions before.
//!
//! Closed, it is asked. After some failures in a row, or when most of the last ones failed, it opens and nobody asks until a wait
//! is over; then it is half open: one question, or a probe beside them, is let through on trial. What comes of that closes it or
//! opens it for twice as long. A server that says when to come again has not failed, and is left alone until then.
//!
//! Invariant: while it is half open there is one question on trial at most, and what was asked before it opened says nothing
//! about it any more.

/// So many of the last outcomes are remembered.
const RECENT: u32 = 16;
/// So many of them have to be failures for it to open although some went well in between.
const RECENT_FAILURES_MAX: u32 = 8;
/// What a server says about when to come again is believed up to this, in milliseconds.
pub const LIMITED_MS_MAX: u64 = 3_600_000;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row after which it opens; at least 1 counts.
    pub failures_max: u32,
    /// How long it stays open first, in milliseconds.
    pub open_ms: u64,
    /// How long at most, in milliseconds.
    pub open_ms_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            failures_max: 3,
            open_ms: 5_000,
            open_ms_max: 120_000,
        }
    }
}

/// How a breaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Questions go through.
    Closed,
    /// None does.
    Open,
    /// One does, on trial.
    HalfOpen,
    /// None does until the server's own word is over.
    Limited,
}

impl State {
    /// The word for it in the status, in metrics and in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
            Self::Limited => "limited",
        }
    }
}

/// What was let through. Whoever has it gives it back with what came of it, exactly once.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Ticket {
    epoch: u32,
    trial: bool,
}

impl Ticket {
    /// Whether the server has failed before, and this is to show whether it works again.
    #[must_use]
    pub const fn is_trial(&self) -> bool {
        self.trial
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed { failures: u32 },
    Open { until_ms: u64 },
    HalfOpen { on_trial: bool },
}

/// The breaker of one upstream. Times are in milliseconds on a clock that does not run backwards.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    settings: Settings,
    phase: Phase,
    /// Counts how often it was opened or closed.
    epoch: u32,
    /// How long it stays open the next time.
    wait_ms: u64,
    /// The last outcomes while it was closed, failures as ones, the latest lowest.
    recent: u16,
    limited_until_ms: u64,
}

impl Breaker {
    /// One that is closed.
    #[must_use]
    pub const fn new(settings: Settings) -> Self {
        Self {
            settings,
            phase: Phase::Closed { failures: 0 },
            epoch: 0,
            wait_ms: settings.open_ms,
            recent: 0,
            limited_until_ms: 0,
        }
    }

    /// How it is.
    #[must_use]
    pub const fn state(&self, now_ms: u64) -> State {
        match self.phase {
            Phase::Open { .. } => State::Open,
            _ if now_ms < self.limited_until_ms => State::Limited,
            Phase::Closed { .. } => State::Closed,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Whether a question would go through now.
    #[must_use]
    pub const fn lets(&self, now_ms: u64) -> bool {
        if now_ms < self.limited_until_ms {
            return false;
        }
        match self.phase {
            Phase::Closed { .. } => true,
            Phase::Open { until_ms } => now_ms >= until_ms,
            Phase::HalfOpen { on_trial } => !on_trial,
        }
    }

    /// Lets a question through, or not.
    pub fn ask(&mut self, now_ms: u64) -> Option<Ticket> {
        if !self.lets(now_ms) {
            return None;
        }
        let trial = !matches!(self.phase, Phase::Closed { .. });
        if trial {
            self.phase = Phase::HalfOpen { on_trial: true };
        }
        Some(Ticket {
            epoch: self.epoch,
            trial,
        })
    }

    /// When it is worth to look whether the server is there again: the end of the wait while it is open.
    #[must_use]
    pub const fn due_ms(&self) -> Option<u64> {
        match self.phase {
            Phase::Open { until_ms } => Some(until_ms),
            _ => None,
        }
    }

    /// When a question may go through that does not now because of the server's own word.
    #[must_use]
    pub const fn limited_until_ms(&self, now_ms: u64) -> Option<u64> {
        if now_ms < self.limited_until_ms {
            Some(self.limited_until_ms)
        } else {
            None
        }
    }

    /// The answer has begun. What is on trial is good enough for others to go through, but one failure opens it again.
    pub fn began(&mut self, ticket: &mut Ticket) {
        if ticket.trial && self.is_of_now(ticket) {
            self.close(self.settings.failures_max.saturating_sub(1));
            *ticket = Ticket {
                epoch: self.epoch,
                trial: false,
            };
        }
    }

    /// The answer is complete.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is given back once")]
    pub fn succeeded(&mut self, ticket: Ticket) {
        if !self.is_of_now(&ticket) {
            return;
        }
        if ticket.trial {
            self.close(0);
        }
        self.wait_ms = self.settings.open_ms;
        self.recent <<= 1;
        if let Phase::Closed { failures } = &mut self.phase {
            *failures = 0;
        }
    }

    /// The server has failed. `noise` is any number; waits differ by it, so that many gateways do not come at once.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is given back once")]
    pub fn failed(&mut self, ticket: Ticket, now_ms: u64, noise: u32) {
        if !self.is_of_now(&ticket) {
            return;
        }
        match &mut self.phase {
            Phase::Closed { failures } => {
                *failures = failures.saturating_add(1);
                let in_a_row = *failures >= self.settings.failures_max.max(1);
                self.recent = (self.recent << 1) | 1;
                if in_a_row || self.recent.count_ones() >= RECENT_FAILURES_MAX {
                    self.open(now_ms, noise);
                }
            }
            Phase::HalfOpen { .. } => self.open(now_ms, noise),
            Phase::Open { .. } => {}
        }
    }

    /// The server says to come again in so many milliseconds.
    pub fn limited(&mut self, ticket: Ticket, now_ms: u64, after_ms: u64) {
        let until = now_ms.saturating_add(after_ms.min(LIMITED_MS_MAX));
        self.limited_until_ms = self.limited_until_ms.max(until);
        self.gave_up(ticket);
    }

    /// Nothing came of it that says something about the server: whoever asked has gone, or the question was at fault.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is given back once")]
    pub fn gave_up(&mut self, ticket: Ticket) {
        if ticket.trial && self.is_of_now(&ticket) {
            self.phase = Phase::HalfOpen { on_trial: false };
        }
    }

    /// Somebody has looked whether the server is there, once that was due. If it is, a question may go through on trial.
    pub fn probed(&mut self, is_there: bool, now_ms: u64, noise: u32) {
        if !matches!(self.phase, Phase::Open { until_ms } if now_ms >= until_ms) {
            return;
        }
        if is_there {
            self.phase = Phase::HalfOpen { on_trial: false };
        } else {
            self.open(now_ms, noise);
        }
    }

    /// The ways of the network have changed: what was found out by the former ones does not count.
    pub fn network_changed(&mut self, now_ms: u64) {
        if let Phase::Open { until_ms } = &mut self.phase {
            *until_ms = now_ms.min(*until_ms);
            self.wait_ms = self.settings.open_ms;
        }
    }

    fn is_of_now(&self, ticket: &Ticket) -> bool {
        ticket.epoch == self.epoch
    }

    fn close(&mut self, failures: u32) {
        self.epoch = self.epoch.wrapping_add(1);
        self.recent = 0;
        self.phase = Phase::Closed { failures };
    }

    /// Opens it, for between three and five quarters of the wait.
    fn open(&mut self, now_ms: u64, noise: u32) {
        let wait = self.wait_ms.max(1);
        let half = wait / 2;
        let share = u128::from(half) * u128::from(noise) / u128::from(u32::MAX);
        // It is at most half of a u64.
        let share = u64::try_from(share).unwrap_or(half);
        let wait = (wait - wait / 4).saturating_add(share);
        self.epoch = self.epoch.wrapping_add(1);
        self.phase = Phase::Open {
            until_ms: now_ms.saturating_add(wait),
        };
        self.wait_ms = self
            .wait_ms
            .saturating_mul(2)
            .min(self.settings.open_ms_max)
            .max(self.settings.open_ms);
    }
}

const _: () = assert!(RECENT == u16::BITS && RECENT_FAILURES_MAX <= RECENT);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use alloc::vec::Vec;

    const SETTINGS: Settings = Settings {
        failures_max: 3,
        open_ms: 1_000,
        open_ms_max: 16_000,
    };

    fn open(noise: u32) -> Breaker {
        let mut breaker = Breaker::new(SETTINGS);
        for _ in 0..3 {
            let ticket = breaker.ask(0).expect("closed");
            breaker.failed(ticket, 0, noise);
        }
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_not_before() {
        let mut breaker = Breaker::new(SETTINGS);
        for outcome in [false, false, true, false, false] {
            let ticket = breaker.ask(0).expect("closed");
            if outcome {
                breaker.succeeded(ticket);
            } else {
                breaker.failed(ticket, 0, 0);
            }
            assert_eq!(breaker.state(0), State::Closed);
        }
        let ticket = breaker.ask(0).expect("closed");
        breaker.failed(ticket, 0, 0);
        assert_eq!(breaker.state(0), State::Open);
        assert!(breaker.ask(749).is_none());
        assert!(breaker.ask(750).is_some());
    }

    #[test]
    fn it_opens_when_every_other_question_fails() {
        let mut breaker = Breaker::new(SETTINGS);
        let mut failed = 0;
        while breaker.state(0) == State::Closed {
            let ticket = breaker.ask(0).expect("closed");
            breaker.succeeded(ticket);
            let ticket = breaker.ask(0).expect("closed");
            breaker.failed(ticket, 0, 0);
            failed += 1;
        }
        assert_eq!(failed, RECENT_FAILURES_MAX);
    }

    #[test]
    fn what_was_asked_before_it_opened_does_not_count() {
        let mut breaker = Breaker::new(SETTINGS);
        let mut tickets: Vec<Ticket> = (0..8).map(|_| breaker.ask(0).expect("closed")).collect();
        for ticket in tickets.drain(..6) {
            breaker.failed(ticket, 0, 0);
        }
        assert_eq!(breaker.due_ms(), Some(750));
        let trial = breaker.ask(800).expect("the wait is over");
        for ticket in tickets {
            breaker.succeeded(ticket);
        }
        assert_eq!(breaker.state(800), State::HalfOpen);
        breaker.failed(trial, 900, 0);
        // Twice as long: 1500 at least.
        assert_eq!(breaker.due_ms(), Some(2_400));
    }

    #[test]
    fn an_answer_that_begins_lets_others_through_and_one_failure_opens_again() {
        let mut breaker = open(0);
        let mut trial = breaker.ask(1_000).expect("due");
        assert!(breaker.ask(1_000).is_none());
        breaker.began(&mut trial);
        assert_eq!(breaker.state(1_000), State::Closed);
        breaker.failed(trial, 1_000, 0);
        assert_eq!(breaker.due_ms(), Some(2_500));
        let mut trial = breaker.ask(3_000).expect("due");
        breaker.began(&mut trial);
        breaker.succeeded(trial);
        // All is as at the start.
        for _ in 0..3 {
            assert_eq!(breaker.state(3_000), State::Closed);
            let ticket = breaker.ask(3_000).expect("closed");
            breaker.failed(ticket, 3_000, 0);
        }
        assert_eq!(breaker.due_ms(), Some(3_750));
    }

    #[test]
    fn a_server_that_says_when_to_come_again_is_left_alone_until_then() {
        let mut breaker = Breaker::new(SETTINGS);
        let ticket = breaker.ask(10).expect("closed");
        breaker.limited(ticket, 10, 500);
        assert_eq!(breaker.state(509), State::Limited);
        assert_eq!(breaker.limited_until_ms(509), Some(510));
        assert!(breaker.ask(509).is_none());
        let ticket = breaker.ask(510).expect("it is over");
        breaker.limited(ticket, 510, u64::MAX);
        assert_eq!(breaker.limited_until_ms(511), Some(510 + LIMITED_MS_MAX));
    }

    #[test]
    fn another_network_is_tried_at_once() {
        let mut breaker = open(u32::MAX);
        assert_eq!(breaker.due_ms(), Some(1_250));
        breaker.network_changed(100);
        assert_eq!(breaker.due_ms(), Some(100));
        breaker.probed(false, 99, 0);
        assert_eq!(breaker.due_ms(), Some(100));
        breaker.probed(false, 100, 0);
        assert_eq!(breaker.due_ms(), Some(850));
        breaker.probed(true, 850, 0);
        assert_eq!(breaker.state(850), State::HalfOpen);
        let trial = breaker.ask(850).expect("one");
        breaker.gave_up(trial);
        assert!(breaker.lets(850));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask,
        Began(usize),
        Succeeded(usize),
        Failed(usize, u32),
        Limited(usize, u64),
        GaveUp(usize),
        Probed(bool, u32),
        NetworkChanged,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => Just(Step::Ask),
            1 => any::<usize>().prop_map(Step::Began),
            2 => any::<usize>().prop_map(Step::Succeeded),
            6 => (any::<usize>(), any::<u32>()).prop_map(|(at, noise)| Step::Failed(at, noise)),
            1 => (any::<usize>(), 0u64..5_000).prop_map(|(at, ms)| Step::Limited(at, ms)),
            1 => any::<usize>().prop_map(Step::GaveUp),
            2 => (any::<bool>(), any::<u32>()).prop_map(|(there, noise)| Step::Probed(there, noise)),
            1 => Just(Step::NetworkChanged),
            4 => (0u64..3_000).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever happens: one question on trial at most, none while it is open, waits within their bounds, and a server that
        /// works again is asked again.
        #[test]
        fn whatever_happens(
            steps in proptest::collection::vec(step(), 0..200),
            failures_max in 0u32..5,
            start in prop_oneof![Just(0u64), Just(u64::MAX / 2)],
        ) {
            let settings = Settings { failures_max, ..SETTINGS };
            let mut breaker = Breaker::new(settings);
            let mut now = start;
            let mut out: Vec<Ticket> = Vec::new();
            for step in steps {
                let before = breaker.state(now);
                let due = breaker.due_ms();
                let take = |out: &mut Vec<Ticket>, at: usize| {
                    (!out.is_empty()).then(|| out.swap_remove(at % out.len()))
                };
                match step {
                    Step::Ask => {
                        let lets = breaker.lets(now);
                        let ticket = breaker.ask(now);
                        prop_assert_eq!(lets, ticket.is_some());
                        if ticket.is_some() {
                            prop_assert!(before != State::Limited);
                            prop_assert!(before != State::Open || due.is_some_and(|due| now >= due));
                        }
                        out.extend(ticket);
                    }
                    Step::Began(at) => {
                        if !out.is_empty() {
                            let at = at % out.len();
                            breaker.began(&mut out[at]);
                        }
                    }
                    Step::Succeeded(at) => {
                        if let Some(ticket) = take(&mut out, at) {
                            breaker.succeeded(ticket);
                            prop_assert!(breaker.state(now) != State::Open || before == State::Open);
                        }
                    }
                    Step::Failed(at, noise) => {
                        if let Some(ticket) = take(&mut out, at) {
                            let counts = ticket.epoch == breaker.epoch;
                            breaker.failed(ticket, now, noise);
                            let opened = breaker.state(now) == State::Open && before != State::Open;
                            prop_assert!(!opened || counts);
                        }
                    }
                    Step::Limited(at, after) => {
                        if let Some(ticket) = take(&mut out, at) {
                            breaker.limited(ticket, now, after);
                            prop_assert!(breaker.state(now) != State::Closed || after == 0);
                        }
                    }
                    Step::GaveUp(at) => {
                        if let Some(ticket) = take(&mut out, at) {
                            breaker.gave_up(ticket);
                            prop_assert!(breaker.state(now) != State::Open || before == State::Open);
                        }
                    }
                    Step::Probed(there, noise) => breaker.probed(there, now, noise),
                    Step::NetworkChanged => breaker.network_changed(now),
                    Step::Wait(ms) => now += ms,
                }
                let on_trial = out.iter().filter(|ticket| ticket.trial && ticket.epoch == breaker.epoch);
                let on_trial = on_trial.count();
                prop_assert!(on_trial <= 1);
                prop_assert_eq!(on_trial == 1, matches!(breaker.phase, Phase::HalfOpen { on_trial: true }));
                if let (Some(due), true) = (breaker.due_ms(), breaker.due_ms() != due) {
                    let wait = due.saturating_sub(now);
                    prop_assert!(wait <= settings.open_ms_max + settings.open_ms_max / 4);
                    let was_told = due <= now;
                    prop_assert!(was_told || wait >= settings.open_ms - settings.open_ms / 4);
                }
            }
            // Nobody asks any more, and the server works again.
            for ticket in out {
                breaker.gave_up(ticket);
            }
            now += LIMITED_MS_MAX + 2 * settings.open_ms_max;
            for _ in 0..2 {
                let ticket = breaker.ask(now).expect("it is asked again");
                breaker.succeeded(ticket);
                prop_assert_eq!(breaker.state(now), State::Closed);
            }
        }
    }
}
