//! Answers that are made here: held back until it is known whether they are wanted, or passed on in place of upstream's.

use std::sync::Arc;

use andon_policy::route::{Reason, Route};

use super::ask::{Asked, Spare};
use super::draft::{Draft, Drafting, Unmade};
use super::{Driven, Next};
use crate::fault::{Fault, FaultCode};
use crate::request::{Input, Part, Request};
use crate::router::begin::is_of_the_request;
use crate::router::judge::milliseconds;
use crate::upstream::UpstreamFault;
use crate::worker::{Done, JobEvent, JobStream};

impl Driven {
    /// Waits for the local answer, and has upstream answer if that is not sure of itself, or fails.
    pub(super) async fn cascade(&mut self, started: Result<JobStream, Fault>) -> Next {
        let made = match started {
            Ok(stream) => Drafting::new(stream).made().await,
            Err(fault) => Err(Unmade::Failed(fault)),
        };
        let config = Arc::clone(&self.terms.config);
        let (threshold, confidence) = (config.router.cascade_threshold, config.router.confidence());
        let sure = |draft: &Draft| f64::from(draft.confidence(&confidence, self.terms.prior));
        let made = match made {
            Ok(draft) if sure(&draft) >= threshold => return self.keep(draft, Route::Local),
            // Nor would it be taken elsewhere.
            Err(Unmade::Failed(fault)) if is_of_the_request(&fault) => {
                return Next::failed(taken_before(fault));
            }
            made => made,
        };
        self.router.telemetry.doubted();
        // What may wait does not go before what waits.
        let behind = self.terms.facts.waits && self.router.line.has(self.entry.whose());
        let asked = if behind {
            Asked::Cannot(Reason::Busy)
        } else {
            self.ask(Reason::Hard, Spare::Telling).await
        };
        match asked {
            Asked::Done(done) => return Next::End(JobEvent::Done(done)),
            Asked::Failed(fault) => return Next::failed(fault),
            Asked::Instead(draft, route) => return self.keep(draft, route),
            Asked::Fault(fault, _) => self.note_failed(&fault),
            Asked::Cannot(_) => {}
        }
        if let Err(next) = self.begin_again() {
            return next;
        }
        match made {
            // Such as it is, it is an answer.
            Ok(draft) => self.keep(draft, Route::LocalFallback),
            Err(Unmade::TooLong) => Next::Here,
            Err(Unmade::Failed(fault)) => Next::failed(taken_before(fault)),
        }
    }

    /// What becomes of the request when upstream has failed with it.
    pub(super) async fn without_upstream(
        &mut self,
        fault: UpstreamFault,
        draft: Option<Drafting>,
    ) -> Next {
        if self.insists() {
            return Next::failed(fault.into_fault());
        }
        if let Err(next) = self.begin_again() {
            return next;
        }
        if let Some(mut drafting) = draft
            && let Ok(draft) = drafting.made().await
        {
            return self.keep(draft, Route::LocalFallback);
        }
        Next::Here
    }

    /// A local answer that was held back is the answer.
    pub(super) fn keep(&mut self, draft: Draft, route: Route) -> Next {
        self.begin(draft.calls.clone());
        if let Err(fault) = self.say(&draft.text) {
            return Next::failed(fault);
        }
        Next::End(JobEvent::Done(Done {
            route,
            late: self.late,
            ..draft.done
        }))
    }

    /// Has the request answered here in place of upstream, passes that on as it is made, and gives its end, which the worker has
    /// recorded.
    pub(super) async fn here(&mut self) -> JobEvent {
        self.account.goes(Route::LocalFallback);
        let waited = self.account.submitted().elapsed();
        let (origin, client, id) = {
            let request = &self.request;
            (request.origin, request.client.clone(), request.id.clone())
        };
        // The worker has it from now on, and it is kept once.
        let rest = Request::new(&*id, &*client, origin, Input::Prompt(String::new()));
        let request = Request {
            part: Part::Fallback,
            deadline: self.deadline,
            ..std::mem::replace(&mut self.request, rest)
        };
        self.terms.sent = None;
        let workers = &self.router.workers;
        let mut stream = match workers.submit(request, &self.caller) {
            Ok(stream) => stream,
            Err(fault) => return self.recorded(JobEvent::Failed(taken_before(fault))),
        };
        let feed = self.entry.feed().clone();
        let cancel = || {
            workers.cancel(origin, &client, &id);
        };
        // Whatever ends it, the worker says how it ended; and ends what it has when the daemon stops.
        let (mut is_wanted, mut slow) = (true, None);
        loop {
            let event = tokio::select! {
                biased;
                event = stream.next() => event,
                () = feed.unwanted(), if is_wanted => {
                    is_wanted = false;
                    cancel();
                    continue;
                }
            };
            match event {
                Some(JobEvent::Accepted { calls, .. }) => {
                    // Of those who were told nobody is told again.
                    if !self.begun {
                        feed.post(JobEvent::Accepted {
                            prompt_tokens: 0,
                            calls,
                        });
                    }
                }
                Some(JobEvent::Started) => feed.post(JobEvent::Started),
                Some(JobEvent::Chunk(chunk)) => {
                    if slow.is_none()
                        && let Err(fault) =
                            feed.post_chunk(chunk.choice, &chunk.text, chunk.logprobs)
                    {
                        slow = Some(fault);
                        cancel();
                    }
                }
                Some(JobEvent::Done(mut done)) => {
                    if let Some(fault) = slow {
                        return JobEvent::Failed(fault);
                    }
                    done.late = self.late;
                    let waited_us = milliseconds(waited).saturating_mul(1000);
                    let timings = &mut done.timings;
                    timings.queue_us = timings.queue_us.saturating_add(waited_us);
                    timings.first_token_us = timings.first_token_us.saturating_add(waited_us);
                    return JobEvent::Done(done);
                }
                Some(JobEvent::Failed(fault)) => return JobEvent::Failed(slow.unwrap_or(fault)),
                Some(JobEvent::Restarted | JobEvent::ChoiceDone { .. } | JobEvent::Vectors(_)) => {}
                None => {
                    let message = "the answer broke off";
                    return JobEvent::Failed(Fault::new(FaultCode::Internal, message));
                }
            }
        }
    }
}

/// What the client is told of a refusal here: it was taken before, so that whoever keeps it tries again.
fn taken_before(mut fault: Fault) -> Fault {
    if fault.code == FaultCode::Busy {
        fault.code = FaultCode::ModelUnavailable;
    }
    fault
}
