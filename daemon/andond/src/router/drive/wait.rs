//! Waiting until upstream can be had.
//!
//! Invariant: a request that waits is asked upstream only while nobody of its client stands before it; it wakes when something has
//! changed that it waits for, or at a moment that it can name, and so neither spins nor waits longer than it may.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::route::{Decision, Reason, Upstream};
use tokio::sync::watch;

use super::ask::{Asked, Spare};
use super::{Driven, Next, Then, at, refusal, stopping, too_late};
use crate::router::Inner;
use crate::router::judge::who;
use crate::router::line::Place;

/// The first pause after upstream failed with what waits for it, and the longest: after an attempt that cost nothing, and after
/// one that may have.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
const WASTED_PAUSE_MAX: Duration = Duration::from_secs(1800);
/// What waits is answered here so long before that has to be begun: answers are made safe and delivered, too, and others may be
/// computing.
const MARGIN: Duration = Duration::from_secs(1);
/// How often it is looked whether what waits may go, if nothing is heard: budgets begin anew by the clock.
const LOOK: Duration = Duration::from_secs(5);

/// A place in line, of which the metrics know as long as it is held.
struct Waiting {
    router: Arc<Inner>,
    place: Option<Place>,
}

impl Waiting {
    fn new(router: &Arc<Inner>, place: Place) -> Waiting {
        router.telemetry.route_waiting(router.line.len());
        Waiting {
            router: Arc::clone(router),
            place: Some(place),
        }
    }

    /// Whether nobody of the same client is before it.
    fn is_first(&self) -> bool {
        self.place.as_ref().is_some_and(Place::is_first)
    }

    /// Waits until nobody of the same client is before it. `moved` tells of all who leave, most of whom are others'.
    async fn becomes_first(&self, moved: &mut watch::Receiver<u64>) {
        loop {
            moved.mark_unchanged();
            // The sender does not go before the router does.
            if self.is_first() || moved.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.place.take());
        let router = &self.router;
        router.telemetry.route_waiting(router.line.len());
    }
}

impl Driven {
    /// Waits until upstream can be had, and asks it; or goes on to be answered here when it can wait no longer. Upstream is to be
    /// left alone for so long first.
    pub(super) async fn wait(&mut self, place: Place, first_pause: Option<Duration>) -> Next {
        let router = Arc::clone(&self.router);
        let waiting = Waiting::new(&router, place);
        let (mut link, mut moved) = (router.upstreams.link(), router.line.moved());
        self.late = true;
        let mut pause = PAUSE;
        let mut not_before = first_pause.and_then(|after| later(after.max(pause)));
        let mut was_up = link.borrow().up;
        loop {
            let is_up = link.borrow_and_update().up;
            let was_down = !std::mem::replace(&mut was_up, is_up);
            if is_up && was_down && !self.wasted {
                // What failed before was another link.
                (pause, not_before) = (PAUSE, None);
            }
            if let Err(fault) = self.follow() {
                return Next::failed(fault);
            }
            let now = Instant::now();
            let over = self.over();
            let is_over = over <= now;
            not_before = not_before.filter(|moment| *moment > now);
            self.look();
            self.terms.facts.waits &= !is_over;
            let decision = (router.judge).decide(&self.terms.facts, &self.terms.config);
            let is_first = waiting.is_first();
            let goes = is_first && not_before.is_none() && (!is_over || self.insists());
            match decision {
                Decision::Cloud(_) if goes => {
                    let asked = self.ask(self.why(), Spare::Local).await;
                    let is_busy = matches!(asked, Asked::Cannot(Reason::Busy));
                    match self.then(asked).await {
                        Then::Next(next) => return next,
                        // Another had the place: it waits for the next one.
                        Then::Wait(None) if is_busy => continue,
                        Then::Wait(None) => {}
                        Then::Wait(Some(after)) => {
                            not_before = later(after.max(pause));
                            let wasted = self.wasted.then_some(WASTED_PAUSE_MAX);
                            pause = (pause * 2).min(wasted.unwrap_or(PAUSE_MAX));
                        }
                    }
                }
                Decision::Cloud(_) | Decision::Wait(_) if !is_over => {}
                Decision::Cloud(_) | Decision::Wait(_) => return self.gives_up(now),
                Decision::Refuse(_) if self.is_late(now) => return Next::failed(too_late()),
                Decision::Refuse(reason) => return Next::failed(refusal(reason)),
                Decision::Local(_) | Decision::Cascade | Decision::Fallback(_) => {
                    return Next::Here;
                }
            }
            // Whoever is first waits for a place among the others who want one; nobody else keeps one.
            let is_full = is_first && decision == Decision::Wait(Reason::Busy);
            if !is_full {
                self.place = None;
            }
            let look = later(LOOK);
            let wake = [Some(over), not_before, look].into_iter().flatten().min();
            tokio::select! {
                () = router.stops() => return Next::failed(stopping()),
                // The sender does not go before the router does.
                _ = link.changed() => {}
                () = waiting.becomes_first(&mut moved), if !is_first => {}
                place = Arc::clone(&router.places).acquire_owned(), if is_full => {
                    self.place = place.ok();
                }
                () = at(wake) => {}
            }
        }
    }

    /// What is known of the moment.
    fn look(&mut self) {
        let Some((question, _)) = &self.terms.sent else {
            return;
        };
        let (facts, config) = (&mut self.terms.facts, &self.terms.config);
        let who = who(&self.request);
        (self.router).look(facts, who, question, self.deadline, config);
        if self.place.is_some() && facts.upstream == Upstream::Busy {
            // With this one.
            facts.upstream = Upstream::Up;
        }
    }

    /// When it has waited as long as it may, or as leaves time for an answer made here, where there would be some.
    fn over(&self) -> Instant {
        let submitted = self.account.submitted();
        let patience = submitted.checked_add(self.terms.config.router.wait_max());
        let early = self.deadline.map(|deadline| {
            if self.insists() {
                return deadline;
            }
            let local = Duration::from_millis(self.terms.facts.local_ms);
            until(submitted, deadline, local)
        });
        let moments = [patience, early].into_iter().flatten();
        moments.min().unwrap_or(submitted)
    }

    fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// It has waited as long as it may.
    fn gives_up(&self, now: Instant) -> Next {
        if self.is_late(now) {
            Next::failed(too_late())
        } else if self.insists() {
            Next::failed(refusal(Reason::Link))
        } else {
            Next::Here
        }
    }
}

/// Until when may wait what was submitted then and takes so long to answer here: a while before that has to be begun; not at all
/// where there is time for the answer only, and to the end where there is not even that.
fn until(submitted: Instant, deadline: Instant, local: Duration) -> Instant {
    let last = deadline.checked_sub(local);
    let Some(last) = last.filter(|last| *last > submitted) else {
        return deadline;
    };
    let early = last.checked_sub(MARGIN);
    early.map_or(submitted, |early| early.max(submitted))
}

/// So long from now.
fn later(after: Duration) -> Option<Instant> {
    Instant::now().checked_add(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_leaves_time_for_an_answer_made_here_where_there_is_any() {
        let submitted = Instant::now();
        let of = |deadline: u64, local: u64| {
            let [deadline, local] = [deadline, local].map(Duration::from_millis);
            until(submitted, submitted + deadline, local) - submitted
        };
        assert_eq!(of(5_000, 1_500), Duration::from_millis(2_500));
        // There is none to wait in.
        assert_eq!(of(1_000, 200), Duration::ZERO);
        assert_eq!(of(1_200, 200), Duration::ZERO);
        assert_eq!(of(800, 0), Duration::ZERO);
        // There is none for an answer made here.
        assert_eq!(of(1_000, 1_000), Duration::from_secs(1));
        assert_eq!(of(1_000, 2_000), Duration::from_secs(1));
    }
}
