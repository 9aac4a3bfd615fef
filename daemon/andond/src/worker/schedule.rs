//! What the engine's thread does between two passes: it tells the scheduler who is gone, and gathers what is to be done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::scheduler::{Cancelled, Decision, Expiry, Ticket};

use super::Shared;
use super::board::{Board, Job, Phase, Waiting};
use super::life::Handed;
use crate::fault::{Fault, FaultCode};

/// What is to be done before the next pass.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// With those that the engine has, in this order; and which others it is to begin with, after that.
    pub(super) decisions: Vec<Decision>,
    pub(super) starts: Vec<(Ticket, Waiting)>,
    /// Those that waited and are over.
    over: Vec<(Arc<Job>, Fault)>,
    /// Those that waited for this worker, and may be answered by another.
    handed: Vec<Handed>,
}

impl Turn {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.decisions.is_empty()
            && self.starts.is_empty()
            && self.over.is_empty()
            && self.handed.is_empty()
    }

    /// Gathers what is to be done at this time.
    pub(super) fn gather(&mut self, shared: &Shared, board: &mut Board, now_ms: u64) {
        self.decisions.clear();
        match board.phase {
            Phase::Stopping(_) | Phase::Failed => {
                let fault = shared.closed();
                for ticket in board.scheduler.clear(now_ms) {
                    if fault.code == FaultCode::ModelUnavailable {
                        self.hand_over(board, ticket, &fault);
                    } else {
                        self.give_up(board, ticket, fault.clone());
                    }
                }
            }
            Phase::Loading | Phase::Serving | Phase::Draining => {
                let gone = |(&ticket, waiting): (&Ticket, &Waiting)| {
                    waiting.job.mailbox.cancelled().then_some(ticket)
                };
                let gone: Vec<Ticket> = board.waiting.iter().filter_map(gone).collect();
                for ticket in gone {
                    if board.scheduler.cancelled(now_ms, ticket) == Cancelled::Waiting {
                        self.give_up(board, ticket, cancelled());
                    }
                }
            }
        }
        let mut decisions = std::mem::take(&mut self.decisions);
        board.scheduler.decide(now_ms, &mut decisions);
        decisions.retain(|&decision| match decision {
            Decision::Expire(ticket, expiry) => {
                let fault = match expiry {
                    Expiry::Passed => expired("before its turn came"),
                    Expiry::CannotBeMet => Fault::new(
                        FaultCode::DeadlineExceeded,
                        "the deadline can no longer be met: the answer would begin after it",
                    ),
                };
                self.give_up(board, ticket, fault);
                false
            }
            Decision::Start(ticket) => {
                let waiting = board.waiting.remove(&ticket);
                self.starts.extend(waiting.map(|waiting| (ticket, waiting)));
                false
            }
            Decision::Stop(_) | Decision::Park(_) | Decision::Resume(_) => true,
        });
        self.decisions = decisions;
    }

    /// Ends all that wait: there is nothing that they could wait for.
    pub(super) fn turn_away(&mut self, board: &mut Board, now_ms: u64, fault: &Fault) {
        for ticket in board.scheduler.clear(now_ms) {
            self.give_up(board, ticket, fault.clone());
        }
    }

    fn give_up(&mut self, board: &mut Board, ticket: Ticket, fault: Fault) {
        let waiting = board.waiting.remove(&ticket);
        self.over
            .extend(waiting.map(|waiting| (waiting.job, fault)));
    }

    fn hand_over(&mut self, board: &mut Board, ticket: Ticket, fault: &Fault) {
        let Some(waiting) = board.waiting.remove(&ticket) else {
            return;
        };
        let Waiting { job, request, .. } = waiting;
        if job.mailbox.take_back() {
            board.open.remove(&job.key);
            self.handed.push(Handed::of(&job, request));
        } else {
            self.over.push((job, fault.clone()));
        }
    }

    /// Tells those that are over, and hands over those that are not. Not under the board's lock.
    pub(super) fn tell(&mut self, shared: &Shared) {
        if !self.handed.is_empty() {
            (shared.around.hand_over)(std::mem::take(&mut self.handed));
        }
        for (job, fault) in self.over.drain(..) {
            shared.fail(&job, fault);
        }
    }
}

impl Board {
    /// When the engine's thread is to look again if nothing happens before, as a time from now: when the scheduler is to be
    /// asked, or what runs has had the time that it is given at the end.
    pub(super) fn wake_after(&self, now_ms: u64) -> Option<Duration> {
        let asked = self.scheduler.wake_ms().map(|wake_ms| {
            // Not at once again.
            Duration::from_millis(wake_ms.saturating_sub(now_ms).max(1))
        });
        let Phase::Stopping(until) = self.phase else {
            return asked;
        };
        let grace = until.saturating_duration_since(Instant::now());
        let grace = (!grace.is_zero()).then_some(grace);
        asked.into_iter().chain(grace).min()
    }
}

pub(super) fn cancelled() -> Fault {
    Fault::new(FaultCode::Cancelled, "the client ended the request")
}

pub(super) fn expired(when: &str) -> Fault {
    Fault::new(
        FaultCode::DeadlineExceeded,
        format!("the deadline passed {when}"),
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use andon_policy::admission::Refuses;
    use andon_policy::throttle::{Restraint, Throttle};

    use super::super::admit::scheduling;
    use super::{Board, Phase};
    use crate::config::Config;

    #[test]
    fn who_stands_aside_at_the_end_is_waited_for_no_longer_than_the_grace() {
        let mut board = Board::new(scheduling(&Config::default()));
        assert_eq!(board.wake_after(0), None);
        board.restrain(Restraint {
            batch: Throttle::Hold,
            ..Restraint::default()
        });
        let grace = Duration::from_secs(3600);
        board.enter(Phase::Stopping(Instant::now() + grace));
        assert!(board.wake_after(0).is_some_and(|wait| wait <= grace));
        // And what was accepted is no longer held back.
        assert_eq!(board.scheduler.restraint(), Restraint::default());
        board.enter(Phase::Stopping(Instant::now()));
        assert_eq!(board.wake_after(0), None);
    }

    #[test]
    fn a_model_that_is_to_go_comes_to_its_end_however_short_memory_is() {
        let mut board = Board::new(scheduling(&Config::default()));
        let short = Restraint {
            batch: Throttle::Hold,
            refuses: Refuses::Batch,
        };
        let gentle = Restraint {
            batch: Throttle::Slow,
            ..Restraint::default()
        };
        board.enter(Phase::Serving);
        board.restrain(short);
        board.enter(Phase::Draining);
        assert_eq!(board.scheduler.restraint(), gentle);
        board.restrain(short);
        assert_eq!(board.scheduler.restraint(), gentle);
        // If it stays after all, it gives way as it was told.
        board.enter(Phase::Serving);
        assert_eq!(board.scheduler.restraint(), short);
    }
}
