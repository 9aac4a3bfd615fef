//! Which model a request goes to, and what waits until that is known.
//!
//! Invariant: a request that was taken goes to a worker or ends; while it is being decided who answers to a name, it waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::names::Target;
use super::{Inner, Member, State};
use crate::fault::{Fault, FaultCode};
use crate::request::{Input, Priority, Request};
use crate::worker::{Handed, JobStream, SHARE_FOR_ALARMS, WorkerHandle, WorkerState};

impl Inner {
    /// The model that a request is for.
    pub(super) fn name_of(&self, request: &Request) -> Option<String> {
        let by_task = || match &request.input {
            Input::Task { name, .. } => self.config.get().task.get(name)?.model.clone(),
            _ => None,
        };
        request.model.clone().or_else(by_task)
    }

    pub(super) fn unknown(name: &str) -> Fault {
        let shown: String = name.chars().take(128).collect();
        let message = format!("the model {shown} is not served here");
        Fault {
            param: Some("model"),
            ..Fault::new(FaultCode::UnknownModel, message)
        }
    }

    /// Which model answers a request.
    fn target_of(&self, state: &State, request: &Request) -> Option<Target> {
        match self.name_of(request) {
            Some(name) => self.target(state, &name),
            None => Some(self.default_target(state)),
        }
    }

    /// Finds the worker for a request, loading its model if need be.
    pub(super) fn route(
        self: &Arc<Inner>,
        state: &mut State,
        request: &Request,
    ) -> Result<(WorkerHandle, String), Fault> {
        let Some(target) = self.target_of(state, request) else {
            return Err(Inner::unknown(&self.name_of(request).unwrap_or_default()));
        };
        self.check_id(state, Some(&target), request)?;
        let urgent = self.is_urgent(request);
        self.check_open(state, urgent)?;
        let worker = self.obtain(state, &target, urgent)?;
        Ok((worker, self.label(&target)))
    }

    /// Refuses a request whose id another model than `except` has in flight.
    fn check_id(
        &self,
        state: &State,
        except: Option<&Target>,
        request: &Request,
    ) -> Result<(), Fault> {
        let (origin, client, id) = (request.origin, &request.client, &request.id);
        let has = |member: &Member| member.worker.has(origin, client, id);
        let others = state.members.iter();
        let others = others.filter(|(other, _)| Some(*other) != except);
        let mut elsewhere = others.map(|(_, member)| member).chain(&state.displaced);
        let waits = |handed: &Handed| handed.is(origin, client, id);
        if elsewhere.any(has) || self.handed().iter().any(waits) {
            return Err(Fault {
                param: Some("id"),
                ..Fault::new(
                    FaultCode::DuplicateId,
                    "a request of this client and id is in flight",
                )
            });
        }
        Ok(())
    }

    /// Whether it is known in a moment who answers a request, and whether: who was to has failed, and who did before has its place
    /// again; or its task may be one of those that come with the model, which is being loaded.
    pub(super) fn comes_soon(&self, state: &State, request: &Request) -> bool {
        let default = self.default_name();
        let name = self.name_of(request);
        let name = name.as_deref().unwrap_or(&default);
        let Some(target) = self.target(state, name).filter(|_| !state.stopping) else {
            return false;
        };
        let is_tried = (state.coming.get(name)).is_some_and(|coming| coming.awaited);
        match state
            .members
            .get(&target)
            .map(|member| member.worker.state())
        {
            Some(now @ (WorkerState::Failed(_) | WorkerState::Broken(_))) => {
                is_tried || (name == default && self.falls_back(state, &now))
            }
            Some(WorkerState::Loading) => {
                name == default && self.may_come_with_the_model(&request.input)
            }
            Some(_) => false,
            None => is_tried && state.failed.contains_key(&target),
        }
    }

    /// Whether it is a task that the configuration does not have and a model may bring.
    fn may_come_with_the_model(&self, input: &Input) -> bool {
        let named = match input {
            Input::Task { name, .. } => !self.config.get().task.contains_key(name),
            _ => false,
        };
        named && self.config.get().models.bundle_tasks
    }

    /// Keeps a request until that is known.
    pub(super) fn park(&self, state: &State, request: Request) -> Result<JobStream, Fault> {
        self.check_id(state, None, &request)?;
        self.check_open(state, self.is_urgent(&request))?;
        let (parked, stream) = Handed::new(request);
        self.handed().push(parked);
        Ok(stream)
    }

    /// Each worker has a queue of its own, and others wait for none; the memory that is promised for requests is that of one
    /// queue. Alarms have a part of it to themselves, as they have in each.
    fn check_open(&self, state: &State, urgent: bool) -> Result<(), Fault> {
        let parked = self.handed().len();
        if state.all().nth(1).is_none() && parked == 0 {
            return Ok(());
        }
        let queue_max = self.config.get().limits.queue_max;
        let kept = if urgent {
            0
        } else {
            queue_max / SHARE_FOR_ALARMS
        };
        let most = queue_max.saturating_add(self.config.get().engine.parallel_max) - kept;
        let members = state.all();
        let open = parked + members.map(|member| member.worker.open()).sum::<usize>();
        if open < most {
            return Ok(());
        }
        let message = format!("{open} requests to all models together have no answer yet");
        Err(Fault::new(FaultCode::Busy, message).retry_after(Duration::from_secs(1)))
    }

    /// The class that a request has by its task, if that is one of the configuration. Of those that come with a model the
    /// worker knows.
    pub(super) fn class_by_task(&self, request: &Request) -> Option<Priority> {
        match &request.input {
            Input::Task { name, .. } => self.config.get().task.get(name)?.priority,
            _ => None,
        }
    }

    /// Whether a request is an alarm, by itself or by its task.
    pub(super) fn is_urgent(&self, request: &Request) -> bool {
        let priority = request.priority.or_else(|| self.class_by_task(request));
        priority == Some(Priority::Alarm)
    }

    /// Whether the answer to a request is worthless by now: as it says, else as its task does.
    fn is_late(&self, handed: &Handed) -> bool {
        let request = handed.request();
        let by_task = || match &request.input {
            Input::Task { name, .. } => {
                let deadline_ms = self.config.get().task.get(name)?.deadline_ms?;
                let deadline = Duration::from_millis(deadline_ms);
                handed.submitted().checked_add(deadline)
            }
            _ => None,
        };
        let deadline = request.deadline.or_else(by_task);
        deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Has those answered who wait for nobody in particular, by whoever has their names now. Says whether some wait on.
    pub(super) fn place(self: &Arc<Inner>, state: &mut State, all: Vec<Handed>) -> bool {
        let mut waits = false;
        for handed in all {
            if handed.is_cancelled() || self.is_late(&handed) {
                let fault = Fault::new(
                    FaultCode::DeadlineExceeded,
                    "the deadline passed before its turn came",
                );
                handed.fail(&self.telemetry, &self.audit, fault);
                continue;
            }
            if self.comes_soon(state, handed.request()) {
                self.handed().push(handed);
                waits = true;
                continue;
            }
            match self.route(state, handed.request()) {
                Ok((worker, _)) => worker.take_over(handed),
                Err(fault) => handed.fail(&self.telemetry, &self.audit, fault),
            }
        }
        waits
    }
}
