//! Several models: a worker for each that is loaded, and which of them answers to a name.
//!
//! Front ends hold a [`Workers`] and hand it requests; each goes to the worker of the model that it, or its task, names. A
//! model that is kept and not loaded is loaded for whoever asks, where there is room; requests wait for it meanwhile in
//! its worker's bounded queue. Models compute one at a time ([`Machine`]).
//!
//! Invariant: a name is answered by the same model until [`Workers::swap`] or a rollback has the next one ready; what
//! was taken before is answered by the model that took it.

mod hand;
mod keep;
mod names;
mod room;
mod route;
mod swap;
mod tend;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use andon_engine::Model;
use andon_engine::kv::disk::StoreError;
use andon_policy::residency::Heat;
use andon_policy::throttle::{Cause, Throttle};
use tokio::sync::{broadcast, watch};

pub use self::names::rewritten;
use self::names::{Names, Target};
use crate::access::{Access, Caller, Denied, Rights};
use crate::audit::Audit;
use crate::config::{Config, Current};
use crate::fault::{Fault, FaultCode};
use crate::memory::Budget;
use crate::registry::{Registry, Use};
use crate::request::{Egress, Input, Origin, Request};
use crate::task::Resolved;
use crate::telemetry::Telemetry;
use crate::worker::{
    Asked, AtFault, CorpusFacts, Erased, Handed, JobStream, Machine, ModelFacts, Status,
    WorkerHandle, WorkerState,
};

/// Words about models that took another's place which wait for whoever listens.
const SWAPS_WAITING_MAX: usize = 16;
/// For how long a model that could not be loaded is not tried again, and one for which there was no room.
const TRY_AGAIN: Duration = Duration::from_secs(10);
const ROOM_AGAIN: Duration = Duration::from_secs(1);

/// The way to the workers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Workers {
    inner: Arc<Inner>,
}

/// A model took another's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swapped {
    /// The name that is answered by another model now.
    pub name: String,
    /// Which answered before; `None` if none did.
    pub from: Option<String>,
    /// Which does now.
    pub to: String,
    /// Whether that is the former one again.
    pub rolled_back: bool,
    /// Why, if nobody asked for it.
    pub why: Option<String>,
}

/// A model, by a name that it answers to.
#[derive(Debug, Clone)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The kept model that answers, if its own name is another.
    pub model: Option<String>,
    /// Whether it is loaded.
    pub state: Residence,
    /// Whether requests that name none go there.
    pub default: bool,
    /// Whether it stays loaded until it is told to go.
    pub pinned: bool,
    /// Whether the model that answered before would take the name back if this one fails.
    pub probation: bool,
    /// Which model answered before, which a rollback has back.
    pub former: Option<String>,
    /// Bytes of memory that it has.
    pub bytes: u64,
    /// What it is like, once that is known.
    pub facts: Option<Arc<ModelFacts>>,
}

/// How far a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residence {
    /// It is kept, and loaded when it is asked for.
    Kept,
    /// It is being loaded.
    Loading,
    /// It answers.
    Loaded,
    /// It answers what it has taken, and goes.
    Leaving,
    /// It cannot be served.
    Failed,
}

impl Residence {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Residence::Kept => "kept",
            Residence::Loading => "loading",
            Residence::Loaded => "loaded",
            Residence::Leaving => "leaving",
            Residence::Failed => "failed",
        }
    }
}

#[derive(Debug)]
struct Inner {
    config: Current,
    access: Arc<Access>,
    registry: Arc<Registry>,
    telemetry: Arc<Telemetry>,
    audit: Audit,
    machine: Arc<Machine>,
    budget: Arc<Budget>,
    epoch: Instant,
    state: Mutex<State>,
    /// Counts changes of the workers' states.
    changes: Mutex<u64>,
    changed: Condvar,
    /// The state of the model that answers to the configured name, as it is shown.
    shown: watch::Sender<WorkerState>,
    /// Becomes true when all workers' threads are done.
    ended: watch::Sender<bool>,
    swaps: broadcast::Sender<Swapped>,
    /// What waits for nobody in particular. Nothing else is locked under it.
    handed: Mutex<Vec<Handed>>,
    /// Held by whoever writes the file of names.
    writing: Mutex<()>,
    operator_at_fault: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    members: BTreeMap<Target, Member>,
    /// Members that answer what they took, and go, while others of the same models are loaded in their stead.
    displaced: Vec<Member>,
    names: Names,
    /// Names that models are about to take. Nobody else changes them by hand.
    coming: BTreeMap<String, Coming>,
    /// When the file of names is to be written again: it does not say what `names` does.
    unwritten: Option<Instant>,
    /// Whether there is a thread that does.
    writes: bool,
    /// Models that could not be loaded, and when that was.
    failed: BTreeMap<Target, Failed>,
    probations: Vec<Probation>,
    /// What is to be there from the start, until the configured model has its memory.
    preload: Vec<String>,
    throttle: (Throttle, Option<Cause>),
    stopping: bool,
}

/// A model that could not be loaded, or broke.
#[derive(Debug)]
struct Failed {
    at: Instant,
    why: String,
    fault: AtFault,
}

/// A model that is loaded, or being loaded.
#[derive(Debug)]
struct Member {
    worker: WorkerHandle,
    heat: Heat,
    /// It stays until it is told to go.
    pinned: bool,
    /// Somebody waits for it, so that it must not make room for others.
    held: u32,
    /// It was loaded as the one that answers to the configured name.
    default: bool,
    /// It has been told to go.
    leaving: bool,
    /// It has been told that it is loaded.
    told: bool,
}

/// A model that is about to take a name.
#[derive(Debug)]
struct Coming {
    target: Target,
    /// Whether requests wait for it already.
    awaited: bool,
}

/// A model that took another's place, which may have it back.
#[derive(Debug)]
struct Probation {
    name: String,
    target: Target,
    /// Until when; unknown before it is loaded.
    until: Option<Instant>,
    /// How many passes had failed when it began.
    failures: u64,
    /// Whether this run of the daemon has been counted as a start of it: that is so from when it is loaded.
    counted: bool,
}

impl State {
    /// All that are in memory.
    fn all(&self) -> impl Iterator<Item = &Member> {
        self.members.values().chain(&self.displaced)
    }
}

impl Member {
    /// Whether it could answer and has nothing to.
    fn is_unused(&self) -> bool {
        self.worker.state() == WorkerState::Ready && self.worker.is_idle()
    }

    /// Whether it answers, and does batch work only.
    fn is_patient(&self) -> bool {
        self.worker.state() == WorkerState::Ready && self.worker.is_patient()
    }
}

impl Inner {
    /// No model is there yet.
    fn new(
        config: Current,
        access: Arc<Access>,
        registry: Arc<Registry>,
        telemetry: Arc<Telemetry>,
        audit: Audit,
        budget: Arc<Budget>,
    ) -> Arc<Inner> {
        let damaged = |error: &dyn fmt::Display| {
            crate::event!(ModelNamesLost, %error, "the file of models' names is of no use; each answers to its own");
            registry.set_names_aside();
            Names::default()
        };
        let names = match registry.read_names() {
            Ok(None) => Names::default(),
            Ok(Some(text)) => Names::parse(&text).unwrap_or_else(|error| damaged(&error)),
            Err(error) => damaged(&error),
        };
        let (shown, _) = watch::channel(WorkerState::Loading);
        let (ended, _) = watch::channel(false);
        let (swaps, _) = broadcast::channel(SWAPS_WAITING_MAX);
        Arc::new(Inner {
            config,
            access,
            registry,
            telemetry,
            audit,
            machine: Arc::default(),
            budget,
            epoch: Instant::now(),
            state: Mutex::new(State {
                names,
                ..State::default()
            }),
            changes: Mutex::new(0),
            changed: Condvar::new(),
            shown,
            ended,
            swaps,
            handed: Mutex::default(),
            writing: Mutex::new(()),
            operator_at_fault: AtomicBool::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handed(&self) -> MutexGuard<'_, Vec<Handed>> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn changes(&self) -> MutexGuard<'_, u64> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker's state has changed.
    fn nudge(&self) {
        let mut changes = self.changes();
        *changes = changes.wrapping_add(1);
        drop(changes);
        self.changed.notify_all();
    }

    /// Waits until there were more changes than `seen`, but not longer than `most`. Gives how many there were.
    fn wait(&self, seen: u64, most: Duration) -> u64 {
        let changes = self.changes();
        *self
            .changed
            .wait_timeout_while(changes, most, |changes| *changes == seen)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// The name that requests go to which name no model.
    fn default_name(&self) -> String {
        self.config.get().model.name()
    }

    /// What the configuration names.
    fn configured(&self) -> Target {
        if self.config.get().model.is_kept() {
            Target::Kept(self.default_name())
        } else {
            Target::Configured
        }
    }

    /// What answers to a name of itself.
    fn own(&self, name: &str) -> Option<Target> {
        if self.default_name() == name {
            Some(self.configured())
        } else {
            self.registry
                .is_kept(name)
                .then(|| Target::Kept(name.to_owned()))
        }
    }

    /// Whether a model is there that could be loaded, as far as is known without asking the disk.
    fn is_there(&self, target: &Target) -> bool {
        match target {
            Target::Configured => true,
            Target::Kept(name) => self.registry.is_kept(name),
        }
    }

    /// What answers to a name: what is about to, where requests wait for that.
    fn target(&self, state: &State, name: &str) -> Option<Target> {
        let coming = state.coming.get(name).filter(|coming| coming.awaited);
        let named = || state.names.get(name).map(|entry| &entry.target);
        let target = coming.map(|coming| &coming.target).or_else(named);
        target.cloned().or_else(|| self.own(name))
    }

    fn default_target(&self, state: &State) -> Target {
        let target = self.target(state, &self.default_name());
        target.unwrap_or_else(|| self.configured())
    }

    /// What a model is called.
    fn label(&self, target: &Target) -> String {
        match target {
            Target::Configured => self.default_name(),
            Target::Kept(name) => name.clone(),
        }
    }

    /// The worker of the model that answers to the configured name.
    fn default_member<'a>(&self, state: &'a State) -> Option<&'a Member> {
        state.members.get(&self.default_target(state))
    }

    /// Tells the registry which models must stay.
    fn note_used(&self, state: &State) {
        let mut used = BTreeMap::new();
        let mut note = |target: &Target, as_what| {
            if let Target::Kept(name) = target {
                used.insert(name.clone(), as_what);
            }
        };
        state
            .members
            .keys()
            .for_each(|target| note(target, Use::Loaded));
        for (_, entry) in state.names.iter() {
            note(&entry.target, Use::Named);
        }
        for (_, entry) in state.names.iter() {
            if let (Some(former), Some(_)) = (&entry.former, entry.probation) {
                note(former, Use::Former);
            }
        }
        for coming in state.coming.values() {
            note(&coming.target, Use::Named);
        }
        note(&self.default_target(state), Use::Served);
        self.registry.set_used(used);
    }
}

impl Workers {
    /// Starts a worker for the model that answers to the configured name, and those that are to be there from the start.
    /// See [`Workers::states`].
    ///
    /// # Errors
    /// What the system says when it has no thread to give.
    pub fn start(
        config: Current,
        access: Arc<Access>,
        registry: Arc<Registry>,
        telemetry: Arc<Telemetry>,
        audit: Audit,
        budget: Arc<Budget>,
    ) -> std::io::Result<Workers> {
        let inner = Inner::new(config, access, registry, telemetry, audit, budget);
        inner.begin()?;
        let tending = Arc::clone(&inner);
        std::thread::Builder::new()
            .name("workers".to_owned())
            .spawn(move || tending.tend())?;
        Ok(Workers { inner })
    }

    /// The name of the model that a request is for.
    pub fn name_of(&self, request: &Request) -> String {
        request.model_by(&self.inner.config.get())
    }

    /// What the caller of a request may ask for, if this request is among it.
    ///
    /// # Errors
    /// [`FaultCode::Denied`] with what was asked and what may be.
    pub fn permit(&self, request: &Request, caller: &Caller) -> Result<Arc<Rights>, Fault> {
        let rights = self.inner.access.rights(caller);
        let permitted = rights.and_then(|rights| {
            let config = self.inner.config.get();
            let by_task = request.class_by_task(&config);
            rights.check(request, &request.model_by(&config), by_task)?;
            Ok(rights)
        });
        or_denied(permitted, caller)
    }

    /// Whether a caller may have text looked at by the model that answers to the configured name, without an answer.
    ///
    /// # Errors
    /// [`FaultCode::Denied`] with what may be asked.
    pub fn permit_text(&self, caller: &Caller) -> Result<(), Fault> {
        let rights = self.inner.access.rights(caller);
        let permitted = rights.and_then(|rights| rights.may_ask(&self.inner.default_name(), None));
        or_denied(permitted, caller)
    }

    /// Hands a request over, if its caller may ask it. Never blocks.
    ///
    /// # Errors
    /// A bound that is broken, as [`WorkerHandle::submit`], what [`Workers::permit`] denies, and where its model is unknown
    /// or cannot be loaded now.
    pub fn submit(&self, mut request: Request, caller: &Caller) -> Result<JobStream, Fault> {
        let inner = &self.inner;
        let asked = Asked::of(&request);
        let refused = |fault: &Fault| {
            asked.comes(&inner.telemetry);
            asked.refused(&inner.telemetry, fault);
        };
        if let Some(fault) = inner.audit.refuses() {
            refused(&fault);
            return Err(fault);
        }
        // What is wrong with the request itself goes before what is with its model.
        let checked = request.check(&inner.config.get().limits);
        checked.inspect_err(refused)?;
        request.rights = self.permit(&request, caller).inspect_err(refused)?;
        let mut state = inner.state();
        if inner.comes_soon(&state, &request) {
            let parked = inner.park(&state, request);
            asked.comes(&inner.telemetry);
            match &parked {
                Ok(_) => asked.taken(&inner.telemetry),
                Err(fault) => asked.refused(&inner.telemetry, fault),
            }
            return parked;
        }
        let (worker, label) = inner.route(&mut state, &request).inspect_err(refused)?;
        // Under the lock, so that no worker is told to go that has just been chosen.
        let stream = worker.submit(request)?;
        drop(state);
        inner.telemetry.model_request(&label);
        Ok(stream)
    }

    /// Goes by another configuration from now on, as all that are loaded do. It is the one in force already.
    pub fn reloaded(&self, config: &Arc<Config>) {
        for worker in self.workers() {
            worker.reloaded(config);
        }
        // What is kept, and for how long, may have changed.
        self.inner.nudge();
    }

    fn workers(&self) -> Vec<WorkerHandle> {
        let state = self.inner.state();
        state.all().map(|member| member.worker.clone()).collect()
    }

    /// The worker of the model that answers to the configured name.
    fn default_worker(&self) -> Option<WorkerHandle> {
        let state = self.inner.state();
        let member = self.inner.default_member(&state);
        member.map(|member| member.worker.clone())
    }

    /// Ends a client's request by its id; its stream ends with [`FaultCode::Cancelled`]. Says whether there was one.
    pub fn cancel(&self, origin: Origin, client: &str, id: &str) -> bool {
        // To the end, so that none goes from one place to another meanwhile.
        let state = self.inner.state();
        let mut all = state.all();
        all.any(|member| member.worker.cancel(origin, client, id)) || {
            let handed = self.inner.handed();
            let found = handed.iter().find(|handed| handed.is(origin, client, id));
            found.inspect(|handed| handed.cancel()).is_some()
        }
    }

    /// How the model is that answers to the configured name, and the load of all now.
    pub fn status(&self) -> Status {
        let state = self.inner.state();
        let load = |status: &Status| (status.waiting, status.running);
        let mut waiting = 0;
        let mut running = 0;
        let default = self.inner.default_target(&state);
        let mut answers = None;
        let default = state.members.get(&default);
        for member in state.all() {
            let status = member.worker.status();
            let (more_waiting, more_running) = load(&status);
            waiting += more_waiting;
            running += more_running;
            if default.is_some_and(|default| std::ptr::eq(default, member)) {
                answers = Some(status);
            }
        }
        let throttle = state.throttle;
        match answers {
            // It knows of memory, too.
            Some(status) => Status {
                waiting,
                running,
                ..status
            },
            None => Status {
                state: self.inner.shown.borrow().clone(),
                model: None,
                draft: None,
                waiting,
                running,
                throttle,
            },
        }
    }

    /// The models, by the names that they answer to: first the configured one, then the others in order.
    pub fn list(&self) -> Vec<Named> {
        let inner = &self.inner;
        let kept = inner.registry.kept();
        let state = inner.state();
        let default = inner.default_name();
        let mut names: Vec<&str> = kept.iter().map(String::as_str).collect();
        names.extend(state.names.iter().map(|(name, _)| name));
        names.push(&default);
        names.sort_unstable();
        names.dedup();
        let only = inner.config.get().models.loaded_max == 1;
        let rows = names.into_iter().filter_map(|name| {
            let target = inner.target(&state, name)?;
            let member = state.members.get(&target);
            let is_default = name == default;
            // Nothing else is ever loaded.
            if only && member.is_none() && !is_default {
                return None;
            }
            let residence = member.map_or(Residence::Kept, |member| match member.worker.state() {
                _ if member.leaving => Residence::Leaving,
                WorkerState::Loading | WorkerState::Waiting(_) => Residence::Loading,
                WorkerState::Ready => Residence::Loaded,
                WorkerState::Stopping => Residence::Leaving,
                WorkerState::Failed(_) | WorkerState::Broken(_) => Residence::Failed,
            });
            let entry = state.names.get(name);
            let label = inner.label(&target);
            Some(Named {
                name: name.to_owned(),
                model: (label != name).then_some(label),
                state: residence,
                default: is_default,
                pinned: member.is_some_and(|member| member.pinned),
                probation: entry.is_some_and(|entry| entry.probation.is_some()),
                former: entry
                    .and_then(|entry| entry.former.as_ref())
                    .map(|former| inner.label(former)),
                bytes: member.map_or(0, |member| member.worker.bytes()),
                facts: member.and_then(|member| member.worker.facts()),
            })
        });
        let mut rows: Vec<Named> = rows.collect();
        rows.sort_by_key(|row| !row.default);
        rows
    }

    /// What the model is like that answers to a name, else to the configured one.
    ///
    /// # Errors
    /// If there is none of that name, or it is not loaded.
    pub fn facts(&self, name: Option<&str>) -> Result<Arc<ModelFacts>, Fault> {
        let worker = self.named(name)?;
        match (worker.state(), worker.facts()) {
            (WorkerState::Ready | WorkerState::Stopping, Some(facts)) => Ok(facts),
            (WorkerState::Broken(why) | WorkerState::Waiting(why), _) => {
                Err(Fault::new(FaultCode::ModelUnavailable, why))
            }
            _ => Err(Workers::loading()),
        }
    }

    /// The model that answers to a name, else to the configured one.
    ///
    /// # Errors
    /// If there is none of that name, or it is not loaded.
    pub fn model(&self, name: Option<&str>) -> Result<Arc<Model>, Fault> {
        self.named(name)?.model()
    }

    /// The worker of the model that answers to a name, if it is loaded or being loaded.
    fn named(&self, name: Option<&str>) -> Result<WorkerHandle, Fault> {
        let state = self.inner.state();
        let target = match name {
            None => self.inner.default_target(&state),
            Some(name) => self
                .inner
                .target(&state, name)
                .ok_or_else(|| Inner::unknown(name))?,
        };
        let member = state.members.get(&target);
        let worker = member.map(|member| member.worker.clone());
        worker.ok_or_else(|| {
            Fault::new(
                FaultCode::ModelUnavailable,
                format!("the model {} is not loaded", self.inner.label(&target)),
            )
        })
    }

    fn loading() -> Fault {
        Fault::new(FaultCode::ModelUnavailable, "the model is being loaded")
            .retry_after(Duration::from_secs(1))
    }

    /// Whether a request may name this model.
    pub fn knows(&self, name: &str) -> bool {
        let state = self.inner.state();
        match self.inner.target(&state, name) {
            None => false,
            Some(target) => {
                self.inner.config.get().models.loaded_max > 1
                    || state.members.contains_key(&target)
                    || target == self.inner.default_target(&state)
            }
        }
    }

    /// Models that take another's place from now on.
    pub fn swaps(&self) -> broadcast::Receiver<Swapped> {
        self.inner.swaps.subscribe()
    }

    /// Has batch work give way so far, until told otherwise.
    pub fn throttle(&self, throttle: Throttle, cause: Option<Cause>) {
        let mut state = self.inner.state();
        state.throttle = (throttle, cause);
        for member in state.all() {
            member.worker.throttle(throttle, cause);
        }
    }

    /// Has caches give way. To be called again while memory is short.
    pub fn shed(&self) {
        self.workers().iter().for_each(WorkerHandle::shed);
    }

    /// Whether what is computed for prompts should be kept on the disk and cannot be.
    pub fn cannot_keep_pages(&self) -> bool {
        let workers = self.workers();
        workers.iter().any(WorkerHandle::cannot_keep_pages)
    }

    /// Whether the processor had to go on for a device that failed.
    pub fn lost_a_device(&self) -> bool {
        let workers = self.workers();
        workers.iter().any(WorkerHandle::lost_its_device)
    }

    /// Whether the model that answers to the configured name is to be read from a pack and is not.
    pub fn lacks_its_pack(&self) -> bool {
        self.default_worker()
            .is_some_and(|worker| worker.lacks_its_pack())
    }

    /// Changes of state of the model that answers to the configured name; the present one is seen first.
    pub fn states(&self) -> watch::Receiver<WorkerState> {
        self.inner.shown.subscribe()
    }

    /// For how long what is running has made no progress, if that is longer than any pass takes.
    pub fn stalled(&self) -> Option<Duration> {
        let workers = self.workers();
        workers.iter().filter_map(WorkerHandle::stalled).max()
    }

    /// How many steps of loading are behind for the model that answers to the configured name; see [`Workers::states`] for whether
    /// there are more to come.
    pub fn load_steps(&self) -> u64 {
        self.default_worker()
            .map_or(0, |worker| worker.load_steps())
    }

    /// Takes nothing new, refuses what waits, and gives what runs this long to finish.
    pub fn stop(&self, grace: Duration) {
        let mut state = self.inner.state();
        state.stopping = true;
        for member in state.all() {
            member.worker.stop(grace);
        }
        drop(state);
        self.inner.nudge();
    }

    /// Waits until the workers' threads are done: after [`Workers::stop`] or a failure.
    pub async fn ended(&self) {
        // The sender lives in `inner`, so waiting ends by the value only.
        drop(self.inner.ended.subscribe().wait_for(|ended| *ended).await);
    }

    /// Whose earlier answers are kept for guesses; `None` until a model is loaded. Reads the disk.
    pub fn list_corpora(&self) -> Option<std::io::Result<Vec<CorpusFacts>>> {
        let mut all = Vec::new();
        let workers = self.workers();
        let lists = workers.iter().filter_map(WorkerHandle::list_corpora);
        let mut any = false;
        for list in lists {
            any = true;
            match list {
                Ok(list) => all.extend(list),
                Err(error) => return Some(Err(error)),
            }
        }
        // Each sees what the others have on the disk; what one has in memory is later.
        let whose = |facts: &CorpusFacts| (facts.task.clone(), facts.client.clone(), facts.local);
        all.sort_by_key(|facts| (whose(facts), std::cmp::Reverse(facts.tokens)));
        all.dedup_by_key(|facts| whose(facts));
        any.then_some(Ok(all))
    }

    /// Erases earlier answers to a task, of clients of this name, or all; `None` until a model is loaded. Writes to the
    /// disk.
    pub fn erase_corpora(
        &self,
        task: Option<&str>,
        client: Option<&str>,
    ) -> Option<std::io::Result<Erased>> {
        let mut all: Option<Erased> = None;
        for worker in self.workers() {
            match worker.erase_corpora(task, client) {
                None => {}
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(erased)) => {
                    let all = all.get_or_insert(Erased {
                        count: 0,
                        shared: 0,
                    });
                    all.count += erased.count;
                    all.shared = all.shared.max(erased.shared);
                }
            }
        }
        all.map(Ok)
    }

    /// When the answer to a request is worthless: as it says, else as its task does, from `since` on.
    pub fn deadline(&self, request: &Request, since: Instant) -> Option<Instant> {
        if request.deadline.is_some() {
            return request.deadline;
        }
        match &request.input {
            Input::Task { name, .. } => match self.inner.config.get().task.get(name) {
                Some(task) => since.checked_add(Duration::from_millis(task.deadline_ms?)),
                None => self.default_worker()?.deadline(request, since),
            },
            _ => None,
        }
    }

    /// Names that the model of a request goes by, the surest first: its own among those that are kept, the one that clients
    /// give, that of its file, and, once it is loaded, what the file says.
    pub(crate) fn names_of(&self, request: &Request) -> Vec<String> {
        let config = self.inner.config.get();
        let asked = request.model_by(&config);
        let state = self.inner.state();
        let target = self.inner.target(&state, &asked);
        let worker = (target.as_ref())
            .and_then(|target| state.members.get(target))
            .map(|member| member.worker.clone());
        drop(state);
        let kept = match &target {
            Some(Target::Kept(name)) => Some(name.clone()),
            Some(Target::Configured) | None => None,
        };
        let is_file = target == Some(Target::Configured);
        let file = config.model.path.file_stem().filter(|_| is_file);
        let file = file.map(|stem| stem.to_string_lossy().into_owned());
        let says = worker.and_then(|worker| Some(worker.model().ok()?.info().name.clone()));
        let names = [kept, Some(asked), file, says];
        names.into_iter().flatten().collect()
    }

    /// What a request's task makes of it; `None` if it names none.
    pub(crate) fn resolve(&self, request: &Request) -> Option<Result<Resolved, Fault>> {
        self.default_worker()?.resolve(request)
    }

    /// How far requests of a task may travel, unless they say less.
    pub(crate) fn egress_of(&self, task: &str) -> Option<Egress> {
        self.default_worker()?.egress_of(task)
    }

    /// Whether a client has a request of this id open.
    pub(crate) fn has(&self, origin: Origin, client: &str, id: &str) -> bool {
        let state = self.inner.state();
        state
            .all()
            .any(|member| member.worker.has(origin, client, id))
            || {
                let handed = self.inner.handed();
                handed.iter().any(|handed| handed.is(origin, client, id))
            }
    }

    /// How many pages of keys and values are kept on the disk, and their bytes; `None` until the model is loaded.
    pub fn kept_pages(&self) -> Option<Result<(usize, u64), StoreError>> {
        self.default_worker()?.kept_pages()
    }

    /// Erases what is kept of prompts, on the disk and in memory, and says how many pages that were on the disk; `None` until
    /// the model is loaded. Writes to the disk.
    pub fn erase_pages(&self) -> Option<Result<usize, StoreError>> {
        let mut all = None;
        for worker in self.workers() {
            match worker.erase_pages() {
                None => {}
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(count)) => *all.get_or_insert(0) += count,
            }
        }
        all.map(Ok)
    }

    /// Names of the tasks that can be asked, once the model is there that answers them.
    pub fn tasks(&self) -> Vec<String> {
        self.default_worker()
            .map_or_else(Vec::new, |worker| worker.tasks())
    }

    /// Whether a [`WorkerState::Failed`] is the configuration's or the model file's fault.
    pub fn operator_at_fault(&self) -> bool {
        self.inner.operator_at_fault.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Swapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.rolled_back {
            "answers again to"
        } else {
            "answers to"
        };
        write!(f, "{} {verb} {}", self.to, self.name)?;
        match &self.why {
            Some(why) => write!(f, ": {why}"),
            None => Ok(()),
        }
    }
}

/// Tells the journal what is denied.
fn or_denied<T>(permitted: Result<T, Denied>, caller: &Caller) -> Result<T, Fault> {
    permitted.map_err(|denied| {
        caller.note_denied(&denied);
        denied.into()
    })
}
