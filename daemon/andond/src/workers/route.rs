//! Which model a request goes to, and what waits until that is known.
//!
//! Invariant: a request that was taken goes to a worker or ends; while it is being decided who answers to a name, it waits. It
//! goes to no model that its rights do not have by the name that it is routed by.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::admission::Reason;

use super::names::Target;
use super::{Inner, Member, State};
use crate::access::note_denied;
use crate::fault::{Fault, FaultCode};
use crate::request::{Input, Part, Priority, Request};
use crate::worker::{Handed, JobStream, SHARE_FOR_ALARMS, WorkerHandle, WorkerState};

impl Inner {
    pub(super) fn unknown(name: &str) -> Fault {
        let shown: String = name.chars().take(128).collect();
        let message = format!("the model {shown} is not served here");
        Fault {
            param: Some("model"),
            ..Fault::new(FaultCode::UnknownModel, message)
        }
    }

    /// Finds the worker for a request, loading its model if need be.
    pub(super) fn route(
        self: &Arc<Inner>,
        state: &mut State,
        request: &Request,
    ) -> Result<(WorkerHandle, String), Fault> {
        let config = self.config.get();
        let name = request.model_by(&config);
        // Its task may name another model by now than when it was permitted.
        let by_task = request.class_by_task(&config);
        let permitted = request.rights.check(request, &name, by_task);
        permitted.inspect_err(|denied| note_denied(&request.client, denied))?;
        let target = self.target(state, &name);
        let target = target.ok_or_else(|| Inner::unknown(&name))?;
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
        if request.part == Part::Draft {
            // Nobody else knows it by its id.
            return Ok(());
        }
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
        let config = self.config.get();
        let default = config.model.name();
        let name = request.model_by(&config);
        let name = name.as_str();
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
        let urgent = self.is_urgent(&request);
        self.check_parked(&request, urgent)?;
        self.check_open(state, urgent)?;
        let (parked, stream) = Handed::new(request);
        self.handed().push(parked);
        Ok(stream)
    }

    /// A worker counts what a client has open there; what waits for none is counted here, by the same bound. Alarms may go
    /// beyond it, as far as places are kept for them.
    fn check_parked(&self, request: &Request, urgent: bool) -> Result<(), Fault> {
        let limits = &self.config.get().limits;
        let beyond = if urgent {
            limits.queue_max / SHARE_FOR_ALARMS
        } else {
            0
        };
        let handed = self.handed();
        let theirs = handed
            .iter()
            .filter(|handed| handed.is_by(request.origin, &request.client));
        if theirs.count() < limits.client_requests_max.saturating_add(beyond) {
            return Ok(());
        }
        let fault = Fault::new(FaultCode::Busy, Reason::ClientFull.to_string());
        Err(fault.retry_after(Duration::from_secs(1)))
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

    /// Whether a request is an alarm, by itself or by its task.
    pub(super) fn is_urgent(&self, request: &Request) -> bool {
        let by_task = || request.class_by_task(&self.config.get());
        let priority = request.priority.or_else(by_task);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Access, Caller, Rules};
    use crate::audit::Audit;
    use crate::config::{Config, Current};
    use crate::memory::Budget;
    use crate::registry::Registry;
    use crate::request::Origin;
    use crate::telemetry::Telemetry;
    use crate::workers::Workers;

    /// Workers that run nothing.
    fn workers(text: &str) -> (Workers, Current) {
        let config = config(text);
        let rules = Rules::resolve(&config).expect("known names");
        let telemetry = Arc::new(Telemetry::new());
        let current = Current::new(Arc::clone(&config));
        let inner = Inner::new(
            current.clone(),
            Arc::new(Access::new(rules)),
            Registry::new(config.models.clone(), None, None),
            Arc::clone(&telemetry),
            Audit::open(&config, telemetry).expect("nothing to open"),
            Budget::of(&config),
        );
        (Workers { inner }, current)
    }

    fn config(text: &str) -> Arc<Config> {
        let text = format!("[model]\npath = \"/nowhere/m.gguf\"\n{text}");
        Arc::new(Config::parse(&text).expect("a configuration"))
    }

    fn request(client: &str, id: usize) -> Request {
        let input = Input::Task {
            name: "t".to_owned(),
            input: serde_json::Value::Null,
        };
        Request::new(id.to_string(), client, Origin::Mqtt, input)
    }

    fn task(model: &str) -> String {
        format!(
            "[task.t]\ninstructions = \"x\"\nmodel = \"{model}\"\n\
             [[access]]\nclients = [\"plc\"]\nmodels = [\"small\"]\n"
        )
    }

    #[test]
    fn a_task_that_names_another_model_by_now_is_denied_where_that_may_not_be_asked() {
        let (workers, current) = workers(&task("small"));
        let mut request = request("plc", 1);
        let caller = Caller::Client("plc".into());
        request.rights = workers.permit(&request, &caller).expect("it may");
        let routed = |request: &Request| {
            let mut state = workers.inner.state();
            workers.inner.route(&mut state, request).map(|_| ())
        };
        // Nobody is called so here, which only who may ask for it hears.
        let fault = routed(&request).expect_err("no such model");
        assert_eq!(fault.code, FaultCode::UnknownModel, "{}", fault.message);
        current.replace(config(&task("big")));
        let fault = routed(&request).expect_err("it may not");
        assert_eq!(fault.code, FaultCode::Denied, "{}", fault.message);
        assert!(fault.message.contains("big"), "{}", fault.message);
    }

    #[test]
    fn what_waits_for_no_worker_yet_counts_for_its_client() {
        let (workers, _) = workers("[limits]\nclient-requests-max = 2\nqueue-max = 16\n");
        let inner = &workers.inner;
        let mut streams = Vec::new();
        let mut park = |request| {
            let parked = inner.park(&inner.state(), request);
            parked.map(|stream| streams.push(stream))
        };
        for id in 0..2 {
            park(request("plc", id)).expect("a place");
        }
        let fault = park(request("plc", 2)).expect_err("it has as many as it may");
        assert_eq!(fault.code, FaultCode::Busy, "{}", fault.message);
        assert!(fault.retry_after.is_some());
        park(request("other", 2)).expect("others have places of their own");
        let mut alarm = request("plc", 3);
        alarm.priority = Some(Priority::Alarm);
        park(alarm).expect("alarms have a few more");
    }
}
