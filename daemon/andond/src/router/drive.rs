//! One request on its way between here and upstream.
//!
//! It has a task of its own, which writes to the stream that the front end reads, and goes through at most two stages. In the
//! first it is decided who answers, and an answer of upstream, or one that was made here and held back, is passed on. In the
//! second a worker answers in place of upstream; there is no way back from it.
//!
//! Invariant: how a request ends is recorded once: in [`Driven::run`] for the first stage, by the worker for the second. A question
//! is sent upstream in one place only ([`ask`]), with a place among those that are there and what it may come to reserved; both
//! are given back there, whatever comes of it, and what was reserved counts as spent where nobody says what it came to.

mod ask;
mod draft;
mod here;
mod relay;
mod wait;

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::route::{Policy, Reason};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep_until;

use self::ask::{Asked, Spare};
use super::line::Place;
use super::open::Entry;
use super::terms::Terms;
use super::{Inner, no_place, refusal, sent, stopping};
use crate::access::Caller;
use crate::fault::{Fault, FaultCode};
use crate::request::{Calling, Request};
use crate::upstream::{FaultKind, UpstreamFault};
use crate::worker::{Account, Finish, JobEvent, JobStream, Usage};

/// Most bytes of an answer that are held back.
pub(super) const HOLD_BYTES_MAX: usize = 128 * 1024;
/// How long after its deadline a request is ended, if nobody did before: upstream and workers know it, and say more.
const GRACE: Duration = Duration::from_millis(100);

/// Which way it goes first.
#[derive(Debug)]
pub(super) enum Way {
    /// To upstream, with a place there unless its answer is kept.
    Up(Option<OwnedSemaphorePermit>),
    /// To the local model, and to upstream if that is not sure of itself or cannot answer.
    Draft(Result<JobStream, Fault>),
    /// To upstream, once that can be had.
    Wait(Place),
}

/// A request with a task of its own.
#[derive(Debug)]
pub(super) struct Driven {
    pub(super) router: Arc<Inner>,
    pub(super) entry: Entry,
    /// Among all requests, by when they came.
    pub(super) number: u64,
    pub(super) request: Request,
    pub(super) caller: Caller,
    pub(super) terms: Terms,
    pub(super) deadline: Option<Instant>,
    /// Whether the client can be told that an answer begins again.
    pub(super) can_restart: bool,
    pub(super) account: Account,
    /// Whether it was said that the answer is being made.
    pub(super) begun: bool,
    /// Whether some of it was said.
    pub(super) said: bool,
    /// Whether it waited.
    pub(super) late: bool,
    /// Whether those who listen were told that it goes upstream.
    pub(super) told: bool,
    /// Whether the last attempt at it may have cost something without an answer.
    pub(super) wasted: bool,
    /// Its place with upstreams, before it is asked.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// How the first stage ends.
#[derive(Debug)]
enum Next {
    /// The request ends so.
    End(JobEvent),
    /// A worker answers in place of upstream.
    Here,
}

impl Next {
    fn failed(fault: Fault) -> Next {
        Next::End(JobEvent::Failed(fault))
    }
}

/// What follows from what came of asking upstream.
#[derive(Debug)]
enum Then {
    /// The first stage is over.
    Next(Next),
    /// Upstream may answer later. If it has failed, it is to be left alone first, for so long at least.
    Wait(Option<Duration>),
}

impl Driven {
    /// Sees the request to its end.
    pub(super) async fn run(mut self, way: Way) {
        let (feed, router) = (self.entry.feed().clone(), Arc::clone(&self.router));
        if !self.may_call() {
            // Of others it is not known yet how calls will be written.
            feed.post(JobEvent::Accepted {
                prompt_tokens: 0,
                calls: None,
            });
        }
        let last = self.deadline.and_then(|at| at.checked_add(GRACE));
        // Of what is dropped here nothing goes on: no question, no draft, no wait.
        let next = tokio::select! {
            biased;
            () = feed.unwanted() => None,
            next = self.drive(way) => Some(next),
            () = router.must_stop() => Some(Next::failed(stopping())),
            () = at(last) => Some(Next::failed(too_late())),
        };
        let event = match next.unwrap_or_else(|| self.unwanted()) {
            Next::End(event) => self.recorded(event),
            Next::Here => {
                self.place = None;
                self.here().await
            }
        };
        self.entry.end(event);
    }

    /// Records how the request ends, if it is not a worker that answers.
    fn recorded(&self, event: JobEvent) -> JobEvent {
        let router = &self.router;
        if let JobEvent::Done(done) = &event {
            router.telemetry.told(done);
        }
        (self.account).ended(&router.telemetry, &router.audit, &[], &event);
        event
    }

    /// How it ends if nobody wants it any more.
    fn unwanted(&self) -> Next {
        if self.said {
            let done = self.done(Finish::Cancelled, Usage::default(), None);
            return Next::End(JobEvent::Done(done));
        }
        let message = "the client ended the request";
        Next::failed(Fault::new(FaultCode::Cancelled, message))
    }

    async fn drive(&mut self, way: Way) -> Next {
        match way {
            Way::Wait(place) => self.wait(place, None).await,
            Way::Draft(started) => self.cascade(started).await,
            Way::Up(place) => {
                self.place = place;
                let asked = self.ask(self.why(), Spare::Local).await;
                match self.then(asked).await {
                    Then::Next(next) => next,
                    Then::Wait(pause) => match self.in_line() {
                        Some(place) => self.wait(place, pause).await,
                        None if self.insists() => Next::failed(no_place()),
                        None => Next::Here,
                    },
                }
            }
        }
    }

    /// What follows from what came of asking upstream.
    async fn then(&mut self, asked: Asked) -> Then {
        let (fault, draft) = match asked {
            Asked::Done(done) => return Then::Next(Next::End(JobEvent::Done(done))),
            Asked::Failed(fault) => return Then::Next(Next::failed(fault)),
            Asked::Instead(draft, route) => return Then::Next(self.keep(draft, route)),
            Asked::Cannot(reason) => {
                return match reason {
                    Reason::Link | Reason::Busy | Reason::Budget if self.terms.facts.waits => {
                        Then::Wait(None)
                    }
                    Reason::Deadline if self.insists() => Then::Next(Next::failed(too_late())),
                    reason if self.insists() => Then::Next(Next::failed(refusal(reason))),
                    _ => Then::Next(Next::Here),
                };
            }
            Asked::Fault(fault, draft) => (fault, draft),
        };
        self.note_failed(&fault);
        let again = self.terms.facts.waits && may_pass(&fault);
        if again && draft.is_none() {
            return match self.begin_again() {
                Ok(()) => Then::Wait(Some(fault.retry_after.unwrap_or_default())),
                Err(next) => Then::Next(next),
            };
        }
        Then::Next(self.without_upstream(fault, draft).await)
    }

    fn insists(&self) -> bool {
        self.terms.facts.policy == Policy::Cloud
    }

    /// A place in its client's line, if there is room.
    fn in_line(&self) -> Option<Place> {
        let whose = self.entry.whose().clone();
        let line = &self.router.line;
        line.enter(whose, self.number, self.terms.bytes(&self.request))
    }

    fn why(&self) -> Reason {
        if self.insists() {
            Reason::Policy
        } else {
            Reason::Hard
        }
    }

    fn note_failed(&self, fault: &UpstreamFault) {
        tracing::info!(
            request_id = self.request.id,
            client = self.request.client,
            fault = fault.kind.name(),
            why = %fault,
            said = self.said,
            "upstream did not answer"
        );
    }

    /// Takes back what was said of the answer, if some was; how it ends, if that cannot be told.
    fn begin_again(&mut self) -> Result<(), Next> {
        if !self.said {
            return Ok(());
        }
        if !self.can_restart {
            let message = "upstream broke off in the middle of the answer; ask again";
            let fault = Fault::new(FaultCode::UpstreamUnavailable, message);
            return Err(Next::failed(fault.retry_after(Duration::from_secs(1))));
        }
        self.router.telemetry.restarted();
        self.account.restarted(self.router.audit.mac());
        self.entry.feed().post(JobEvent::Restarted);
        self.said = false;
        Ok(())
    }

    /// Whether the answer may call tools: then it is passed on when it is complete, since how calls are written is said before.
    fn may_call(&self) -> bool {
        self.request.tool_choice.calling != Calling::Never
    }

    /// Goes by the configuration in force, if that is another by now.
    ///
    /// # Errors
    /// It may not be asked any more.
    fn follow(&mut self) -> Result<(), Fault> {
        let config = self.router.config.get();
        if Arc::ptr_eq(&config, &self.terms.config) {
            return Ok(());
        }
        let router = &self.router;
        self.request.rights = router.workers.permit(&self.request, &self.caller)?;
        let known = router.known(&self.request, &config)?;
        let is_alike = sent::is_alike(&self.request, &self.terms.config, &config);
        let kept = self.terms.sent.take().filter(|_| is_alike);
        self.terms = router.terms_with(kept, &self.request, known, &config);
        Ok(())
    }
}

impl Inner {
    /// Waits until the daemon stops.
    async fn stops(&self) {
        let mut stopping = self.stopping.subscribe();
        if stopping.wait_for(Option::is_some).await.is_err() {
            // The sender lives as long as this.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until what is under way has to end since the daemon does.
    async fn must_stop(&self) {
        self.stops().await;
        let until = *self.stopping.borrow();
        at(until).await;
    }
}

/// Waits until then; for ever, if there is no such moment.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Whether upstream may answer the same question later: its fault is none of the question's.
fn may_pass(fault: &UpstreamFault) -> bool {
    match fault.kind {
        FaultKind::Unavailable
        | FaultKind::Busy
        | FaultKind::Unreachable
        | FaultKind::Untrusted
        | FaultKind::Slow
        | FaultKind::Broken
        | FaultKind::Garbled
        | FaultKind::Endless
        | FaultKind::Redirected
        | FaultKind::Denied
        | FaultKind::Failed => true,
        FaultKind::Deadline | FaultKind::Rejected | FaultKind::Misshapen | FaultKind::Withheld => {
            false
        }
    }
}

fn too_late() -> Fault {
    let message = "the deadline passed before upstream had answered";
    Fault::new(FaultCode::DeadlineExceeded, message)
}
