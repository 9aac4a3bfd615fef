//! Waiting until upstream can be had.
//!
//! Invariant: a request that waits is asked upstream only while nobody of its client stands before it; it wakes when something has
//! changed that it waits for, or at a moment that it can name, and so neither spins nor waits longer than it may.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::route::{Decision, Reason, Upstream};

use super::ask::Spare;
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
        loop {
            link.mark_unchanged();
            moved.mark_unchanged();
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
                    match self.then(asked).await {
                        Then::Next(next) => return next,
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
                // Neither sender goes before the router does.
                _ = link.changed() => {}
                _ = moved.changed() => {}
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
            let early = deadline.checked_sub(local.saturating_add(MARGIN));
            early.filter(|early| *early > submitted).unwrap_or(deadline)
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

/// So long from now.
fn later(after: Duration) -> Option<Instant> {
    Instant::now().checked_add(after)
}
