//! How a request gets a task of its own, if its bounds leave room for it.
//!
//! Invariant: what is begun here holds a place with upstream, a place in line or a draft that a worker has taken: so there are never
//! more tasks than there is room for.

use std::sync::Arc;
use std::time::Instant;

use andon_policy::route::{Decision, Policy, Reason};
use tokio::sync::OwnedSemaphorePermit;

use super::drive::{Driven, Way};
use super::judge::Known;
use super::terms::Terms;
use super::{Inner, duplicate, no_place, refusal, stopping};
use crate::access::Caller;
use crate::config::Config;
use crate::fault::{Fault, FaultCode};
use crate::request::{Origin, Part, Request};
use crate::worker::{Account, Asked, JobStream};

impl Inner {
    /// Has a request, of which it is decided that it leaves or waits for that, go its way.
    pub(super) fn begin(
        self: &Arc<Inner>,
        request: Request,
        caller: &Caller,
        known: Known,
        decision: Decision,
        config: &Arc<Config>,
    ) -> Result<JobStream, Fault> {
        let asked = Asked::of(&request);
        let refused = |fault| self.refused(&asked, fault);
        if self.stopping.borrow().is_some() {
            return Err(refused(stopping()));
        }
        if self
            .workers
            .has(request.origin, &request.client, &request.id)
        {
            return Err(refused(duplicate()));
        }
        let deadline = known.deadline;
        let terms = self.terms(&request, known, config);
        let instead = |reason| self.instead(&request, caller, &terms, reason);
        if terms.sent.is_none() {
            // Its secrets stay, and it with them.
            return if decision == Decision::Cascade {
                self.workers.submit(request, caller)
            } else {
                instead(Reason::Kind)
            };
        }
        let is_kept = decision != Decision::Cascade && self.is_kept(&request, &terms);
        let goes = matches!(decision, Decision::Cloud(_));
        let place = goes.then(|| self.place()).flatten();
        let up = is_kept || place.is_some();
        match decision {
            _ if up => {}
            Decision::Local(reason) | Decision::Fallback(reason) | Decision::Refuse(reason) => {
                return instead(reason);
            }
            Decision::Cloud(_) if !terms.facts.waits => return instead(Reason::Busy),
            Decision::Cloud(_) | Decision::Wait(_) | Decision::Cascade => {}
        }
        let waits = terms.facts.waits && decision != Decision::Cascade;
        let entry = self.open.enter(&request, waits, config).map_err(refused)?;
        let number = self.line.number();
        let way = if up {
            Way::Up(place)
        } else if decision == Decision::Cascade {
            match self.draft(&request, deadline, caller, true) {
                // What is refused here is refused: it is nothing that upstream would mend.
                Err(fault) if is_of_the_request(&fault) => return Err(refused(fault)),
                draft => Way::Draft(draft),
            }
        } else {
            let whose = entry.whose().clone();
            match self.line.enter(whose, number, terms.bytes(&request)) {
                Some(place) => Way::Wait(place),
                None if terms.facts.policy == Policy::Cloud => return Err(refused(no_place())),
                None => {
                    drop(entry);
                    return self.fall_back(request, caller);
                }
            }
        };
        asked.comes(&self.telemetry);
        asked.taken(&self.telemetry);
        let stream = entry.feed().stream();
        let account = Account::upstream(&request, config.log.text, self.audit.mac());
        let can_restart = !(request.stream && request.origin == Origin::Http);
        let driven = Driven {
            router: Arc::clone(self),
            entry,
            number,
            caller: caller.clone(),
            terms,
            deadline,
            can_restart,
            account,
            request,
            begun: false,
            said: false,
            late: false,
            told: false,
            wasted: false,
            place: None,
        };
        tokio::spawn(driven.run(way));
        Ok(stream)
    }

    /// What becomes of a request that cannot go up now: it is answered here, or refused if it insists.
    fn instead(
        &self,
        request: &Request,
        caller: &Caller,
        terms: &Terms,
        reason: Reason,
    ) -> Result<JobStream, Fault> {
        if terms.facts.policy == Policy::Cloud {
            return Err(self.refused(&Asked::of(request), refusal(reason)));
        }
        self.fall_back(request.clone(), caller)
    }

    /// A place for a question with upstreams, if one is free.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Whether there is an answer of upstream to a request that is kept.
    fn is_kept(&self, request: &Request, terms: &Terms) -> bool {
        let key = self.cache_key(request, terms);
        key.is_some_and(|key| self.cache.get(&key, Instant::now()).is_some())
    }

    /// Begins a local answer that is held back.
    pub(super) fn draft(
        &self,
        request: &Request,
        deadline: Option<Instant>,
        caller: &Caller,
        is_judged: bool,
    ) -> Result<JobStream, Fault> {
        let mut draft = Request {
            part: Part::Draft,
            deadline,
            ..request.clone()
        };
        if is_judged {
            draft.logprobs = Some(andon_policy::confidence::ALTERNATIVES);
        }
        self.workers.submit(draft, caller)
    }
}

/// Whether somebody here has refused a request for what it is, or for how much its client asks: not for want of the model.
pub(super) fn is_of_the_request(fault: &Fault) -> bool {
    match fault.code {
        FaultCode::InvalidRequest
        | FaultCode::TooLarge
        | FaultCode::UnknownModel
        | FaultCode::UnknownTask
        | FaultCode::Denied
        | FaultCode::Busy
        | FaultCode::DuplicateId
        | FaultCode::DeadlineExceeded
        | FaultCode::Cancelled
        | FaultCode::SlowReader
        | FaultCode::Unavailable => true,
        FaultCode::Unsupported
        | FaultCode::ContextFull
        | FaultCode::ModelUnavailable
        | FaultCode::UpstreamUnavailable
        | FaultCode::Internal => false,
    }
}
