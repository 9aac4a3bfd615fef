//! Asking upstream: the one place from which a question is sent.
//!
//! Invariant: nothing is sent without a permit, a place among the questions that may be with upstreams at once, and a reservation of
//! what one attempt may come to. Attempts that are known to have cost nothing share a reservation; after any other the question
//! comes back, and goes to another upstream with a new one. So what is spent is never more than what was reserved, but for what a
//! server adds to prompts of its own before an answer has shown how much that is; and each reservation is settled once: with what
//! the attempts came to, or, where that is not known, with all of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::budget::Spend;
use andon_policy::route::{Reason, Route};
use tokio::sync::OwnedSemaphorePermit;

use super::Driven;
use super::draft::{Draft, Drafting};
use super::relay::{Relayed, Relaying};
use crate::fault::Fault;
use crate::request::Input;
use crate::router::judge::who;
use crate::router::redact::Secrets;
use crate::router::{Escalated, cache};
use crate::upstream::{FaultKind, Permit, Question, UpstreamFault};
use crate::worker::Done;

/// What telling an answer takes that has been made here already.
const TELLING: Duration = Duration::from_millis(100);
/// What is kept for an answer made here where nothing is known of how long that takes, but no more than a quarter of the time.
const UNKNOWN_LOCAL: Duration = Duration::from_secs(1);

/// What time upstream leaves of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spare {
    /// That for an answer made here, if there is enough for both.
    Local,
    /// A moment: one was made already.
    Telling,
}

/// What came of asking upstream.
#[derive(Debug)]
pub(super) enum Asked {
    /// A whole answer, which was passed on but for this end.
    Done(Done),
    /// The request ends with this fault, whoever else could answer.
    Failed(Fault),
    /// A local answer was complete before upstream began, by this route.
    Instead(Draft, Route),
    /// No answer, and perhaps a local one that is being made.
    Fault(UpstreamFault, Option<Drafting>),
    /// Nothing was sent, and why.
    Cannot(Reason),
}

impl Driven {
    /// Asks upstream, and passes its answer on as it comes.
    pub(super) async fn ask(&mut self, why: Reason, spare: Spare) -> Asked {
        let place = self.place.take();
        self.wasted = false;
        if let Err(fault) = self.follow() {
            return Asked::Failed(fault);
        }
        let Some((question, secrets)) = self.terms.sent.clone() else {
            return Asked::Cannot(Reason::Kind);
        };
        let router = Arc::clone(&self.router);
        let cached = router.cache_key(&self.request, &self.terms);
        if let Some(kept) = cached.and_then(|key| router.cache.get(&key, Instant::now())) {
            match self.again(&question, &secrets, &kept) {
                // With these secrets it is of no use; another may be.
                Asked::Fault(fault, _) => self.note_failed(&fault),
                asked => return asked,
            }
        }
        let Some(place) = place.or_else(|| router.place()) else {
            return Asked::Cannot(Reason::Busy);
        };
        self.send(why, spare, question, &secrets, cached, &place)
            .await
    }

    /// Sends the question, for which there is a place, until there is an answer or nobody else to ask.
    async fn send(
        &mut self,
        why: Reason,
        spare: Spare,
        mut question: Question,
        secrets: &Secrets,
        cached: Option<cache::Key>,
        _place: &OwnedSemaphorePermit,
    ) -> Asked {
        let router = Arc::clone(&self.router);
        let most = router.most(&question);
        question.spends_once = true;
        let mut last: Option<UpstreamFault> = None;
        loop {
            let failed = |reason| {
                let cannot = Asked::Cannot(reason);
                last.clone()
                    .map_or(cannot, |fault| Asked::Fault(fault, None))
            };
            let Some(permit) = Permit::of(&self.request, router.egress_by_task(&self.request))
            else {
                return failed(Reason::Egress);
            };
            if !self.has_time(spare) {
                return failed(Reason::Deadline);
            }
            let held = match router.ledger.reserve(who(&self.request), most).await {
                Ok(held) => held,
                Err(why) => {
                    tracing::info!(%why, request_id = self.request.id, "nothing is spent on it");
                    return failed(Reason::Budget);
                }
            };
            // It may have taken a while to write that down.
            if !self.has_time(spare) {
                held.settle(Spend::default());
                return failed(Reason::Deadline);
            }
            self.tell(why);
            let until = self.upstream_until(spare);
            let answering = (router.upstreams).ask(permit, question.clone(), until);
            let may_hedge = spare == Spare::Local && !self.insists();
            let relaying = Relaying::new(answering, &question, secrets, may_hedge);
            let Relayed { asked, cost } = self.relay(relaying, cached).await;
            match cost {
                Some(cost) => held.settle(cost),
                // What is not known may be all of it.
                None => drop(held),
            }
            let Asked::Fault(fault, draft) = asked else {
                return asked;
            };
            let is_free = cost == Some(Spend::default());
            self.wasted |= !is_free;
            // One that nobody could be asked for any more says less than the one before.
            if fault.upstream.is_none()
                && let Some(before) = last
            {
                return Asked::Fault(before, draft);
            }
            let name = (fault.upstream.clone()).filter(|name| !question.avoid.contains(name));
            let another = name.filter(|_| {
                // Where nothing was spent all others were asked already.
                let others = router.upstreams.count() > question.avoid.len() + 1;
                let is_open = !self.said && draft.is_none();
                others && is_open && !is_free && fault.kind != FaultKind::Deadline
            });
            let Some(name) = another else {
                return Asked::Fault(fault, draft);
            };
            question.avoid.push(name);
            last = Some(fault);
        }
    }

    /// Tells whoever listens that the request goes upstream, once.
    fn tell(&mut self, why: Reason) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        // Nobody may listen.
        let _ = self.router.escalations.send(Escalated {
            client: self.request.client.clone(),
            id: self.request.id.clone(),
            task: match &self.request.input {
                Input::Task { name, .. } => Some(name.clone()),
                _ => None,
            },
            why: why.as_str(),
        });
    }

    fn has_time(&self, spare: Spare) -> bool {
        let until = self.upstream_until(spare);
        until.is_none_or(|until| until > Instant::now())
    }

    /// Until when upstream may take.
    fn upstream_until(&self, spare: Spare) -> Option<Instant> {
        let deadline = self.deadline?;
        let facts = &self.terms.facts;
        let keeps = match spare {
            Spare::Telling => TELLING,
            Spare::Local if self.insists() => Duration::ZERO,
            Spare::Local if facts.local_ms == 0 => {
                let left = deadline.saturating_duration_since(Instant::now());
                (left / 4).min(UNKNOWN_LOCAL)
            }
            Spare::Local => Duration::from_millis(facts.local_ms),
        };
        let upstream = Duration::from_millis(facts.upstream_ms);
        Some(until(Instant::now(), deadline, keeps, upstream, spare))
    }
}

/// Until when upstream may take, if so much is kept of the time and it is expected to take so long, as far as that is known.
fn until(
    now: Instant,
    deadline: Instant,
    keeps: Duration,
    upstream: Duration,
    spare: Spare,
) -> Instant {
    let left = deadline.saturating_duration_since(now);
    let Some(early) = left.checked_sub(keeps) else {
        return match spare {
            // There is no time for an answer made here in any case.
            Spare::Local => deadline,
            Spare::Telling => now,
        };
    };
    match spare {
        Spare::Telling => now + early,
        // What is not known may take its part.
        Spare::Local => now + early.max(upstream).max(left / 2).min(left),
    }
}

/// A fault that is found here in an answer of upstream.
pub(super) fn unusable(kind: FaultKind, upstream: Option<Arc<str>>, what: &str) -> UpstreamFault {
    UpstreamFault {
        upstream,
        ..UpstreamFault::new(kind, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(now: Instant, until: Instant) -> f32 {
        until.saturating_duration_since(now).as_secs_f32()
    }

    #[test]
    fn upstream_has_the_time_that_an_answer_made_here_leaves() {
        let now = Instant::now();
        let of = |left: u64, keeps: u64, upstream: u64, spare| {
            let [left, keeps, upstream] = [left, keeps, upstream].map(Duration::from_secs);
            seconds(now, until(now, now + left, keeps, upstream, spare))
        };
        assert_eq!(of(10, 2, 1, Spare::Local), 8.0);
        // It is known to take longer, or may.
        assert_eq!(of(10, 7, 6, Spare::Local), 6.0);
        assert_eq!(of(10, 9, 0, Spare::Local), 5.0);
        // Nothing can be made here in time.
        assert_eq!(of(10, 10, 0, Spare::Local), 5.0);
        assert_eq!(of(10, 11, 0, Spare::Local), 10.0);
        assert_eq!(of(10, 60, 30, Spare::Local), 10.0);
        // It is made already.
        assert_eq!(of(10, 1, 0, Spare::Telling), 9.0);
        assert_eq!(of(1, 2, 0, Spare::Telling), 0.0);
        // The time is over.
        assert_eq!(of(0, 0, 0, Spare::Local), 0.0);
        assert_eq!(of(0, 2, 3, Spare::Local), 0.0);
    }
}
