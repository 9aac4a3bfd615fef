//! The worker: the one owner of the engine, and the queue before it.
//!
//! Front ends hold a [`WorkerHandle`] and never block: [`WorkerHandle::submit`] either refuses at once or
//! returns a [`JobStream`]. Behind it a few threads render and tokenize, and one computes; all
//! look at the same bounded board.
//!
//! Invariant: every job that was submitted ends with exactly one terminal event, whatever happens to its
//! client; nothing a client does or fails to do can stall another's job.

mod account;
mod admit;
mod advance;
mod backend;
mod board;
mod calibrate;
mod corpora;
mod device;
mod draft;
mod embed;
mod grammars;
mod job;
mod life;
mod load;
mod machine;
mod memory;
mod pack;
mod pages;
mod prepare;
mod proof;
mod run;
mod schedule;
mod terms;
mod text;
mod tools;
mod trying;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use andon_engine::backend::Backend;
use andon_engine::kv::disk::StoreError;
use andon_engine::{Isa, Model};
use andon_policy::throttle::{Cause, Restraint, Throttle};
use tokio::sync::watch;

use self::advance::Advance;
use self::board::{Board, Job, Key, Phase};
use self::corpora::Corpora;
use self::load::{Engine, LoadFailure};
use self::pages::Pages;
use self::prepare::Lane;
use self::terms::InForce;
use crate::audit::Audit;
use crate::config::Config;
use crate::config::cache::PackWhen;
use crate::config::models::SignaturePolicy;
use crate::fault::{Fault, FaultCode};
use crate::memory::Budget;
use crate::registry::{self, Packs, Proof, Proven, Registry, RegistryError, Served};
use crate::request::{Egress, Input, Origin, Request};
use crate::task::Resolved;
use crate::telemetry::Telemetry;

pub(crate) use account::Asked;
pub(crate) use admit::{fault_of, rates};
pub(crate) use life::{Around, Handed, Setup};
pub(crate) use load::AtFault;
pub(crate) use machine::Machine;
pub(crate) use trying::Proved;

pub(crate) use account::Account;
pub use account::TEXT_BYTES_MAX;
pub use backend::{Computes, check as check_backend};
pub use corpora::{CorpusFacts, Erased};
pub use draft::{DraftFacts, DraftUse};
pub use text::{apply_template, detokenize, tokenize};

pub use job::{
    Chunk, Done, Feed, Finish, JobEvent, JobStream, Timings, TokenLogprob, TopLogprob,
    UNREAD_BYTES_MAX, UNREAD_CHUNKS_MAX, Usage, Vectors,
};

/// Places beside `[engine] parallel-max` that only alarms may take, so that one starts at once.
const PLACES_FOR_ALARMS: u32 = 1;
/// An eighth of the queue and of the KV cache is kept for alarms.
pub(crate) const SHARE_FOR_ALARMS: usize = 8;
/// How often a stop is looked for while the model is not there.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Where the worker is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerState {
    /// The model is being mapped and tried; requests wait for that.
    Loading,
    /// The model to serve is not kept here yet; the text says what to do. It is loaded once it is added, and requests are refused
    /// until then.
    Waiting(String),
    /// A real token has been decoded; requests are taken.
    Ready,
    /// The daemon stops; nothing new is taken.
    Stopping,
    /// The model could not be served; the text says why.
    Failed(String),
    /// The model was served and is broken, which only a new start mends; the text says why.
    Broken(String),
}

/// The served model, as clients may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// The name to ask for.
    pub name: String,
    /// The architecture.
    pub architecture: String,
    /// Longest prompt and answer together; of a model that makes embeddings, longest input.
    pub context_tokens_max: usize,
    /// Length of the vectors that the model makes; `None` for one that generates text.
    pub embedding: Option<usize>,
    /// Size of the file.
    pub file_bytes: u64,
    /// The file's time of change, seconds since 1970.
    pub created_s: u64,
    /// What computes it.
    pub computes: Computes,
    /// Instruction set in use.
    pub isa: String,
    /// Compute threads in use.
    pub threads: usize,
}

/// The worker's load at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Where it is in its life.
    pub state: WorkerState,
    /// The model, once it is loaded.
    pub model: Option<Arc<ModelFacts>>,
    /// What became of the draft that the configuration names, once that is known.
    pub draft: Option<Arc<DraftFacts>>,
    /// Requests waiting.
    pub waiting: usize,
    /// Requests being answered.
    pub running: usize,
    /// How far batch work gives way, and why.
    pub throttle: (Throttle, Option<Cause>),
}

/// The way to the worker; cheap to clone.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    config: Arc<Config>,
    registry: Arc<Registry>,
    /// What it shares with the workers of other models.
    machine: Arc<Machine>,
    around: life::Around,
    budget: Arc<Budget>,
    in_force: InForce,
    /// How the model did when it was tried.
    proved: OnceLock<Proved>,
    /// What it took to load it, in milliseconds, and the memory that it has.
    load_ms: AtomicU64,
    bytes: AtomicU64,
    /// How many steps of loading it are behind.
    load_steps: AtomicU64,
    /// How many passes have failed.
    failures: AtomicU64,
    /// The load that was told last: how many wait and run.
    told: [AtomicI64; 2],
    telemetry: Arc<Telemetry>,
    audit: Audit,
    /// Of the model's files, by its manifest, once it is known which model it is.
    weights_sha256: OnceLock<Vec<String>>,
    state: watch::Sender<WorkerState>,
    /// Becomes true when the worker's threads are done.
    ended: watch::Sender<bool>,
    facts: OnceLock<Arc<ModelFacts>>,
    /// What became of the device that computed, if the processor had to go on.
    lost: OnceLock<String>,
    /// How far a device is that is to compute while the processor does.
    moving: device::Moving,
    draft: OnceLock<Arc<DraftFacts>>,
    model: OnceLock<Arc<Model>>,
    corpora: OnceLock<Arc<Corpora>>,
    pages: OnceLock<Arc<Pages>>,
    /// Whether the model had a pack when that was last asked.
    packed: AtomicBool,
    failure: OnceLock<AtFault>,
    board: Mutex<Board>,
    changed: Condvar,
    /// Whether an alarm has become ready since the engine's thread last looked: a pass over another prompt then ends.
    alarm_ready: AtomicBool,
    /// Whether the daemon stops, and not just this worker; whether the model is not wanted any more that may be being loaded;
    /// and whether an alarm has come for it.
    stops: AtomicBool,
    given_up: AtomicBool,
    hurries: AtomicBool,
    /// Whether the machine is being measured, beside which nothing else is to run.
    measuring: AtomicBool,
    /// Where the policy's clock begins.
    epoch: Instant,
    throttle: Mutex<(Throttle, Option<Cause>)>,
    /// Whether the KV cache is to give back what nobody holds of it.
    sheds: AtomicBool,
    /// How far the thread that computes is.
    advance: Advance,
    seeds: RandomState,
    seed_count: AtomicU64,
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        // Every critical section leaves the board whole, so a poisoned lock still holds a good one.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &'a self,
        board: MutexGuard<'a, Board>,
        timeout: Option<Duration>,
    ) -> MutexGuard<'a, Board> {
        match timeout {
            None => self
                .changed
                .wait(board)
                .unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.changed
                    .wait_timeout(board, timeout)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        }
    }

    /// Makes the worker look at its jobs again.
    fn wake(&self) {
        drop(self.board());
        self.changed.notify_all();
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// On the policy's clock, rounded up: a deadline in the future never reads as passed.
    fn at_ms(&self, instant: Instant) -> u64 {
        let micros = instant.saturating_duration_since(self.epoch).as_micros();
        u64::try_from(micros.div_ceil(1000)).unwrap_or(u64::MAX)
    }

    /// How far batch work gives way, and why: to heat and power, or to a lack of memory.
    fn throttle(&self) -> (Throttle, Option<Cause>) {
        let told = *self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        let short = self.budget.facts().shortage.throttle();
        if short > told.0 {
            (short, Some(Cause::Memory))
        } else {
            told
        }
    }

    /// The thread that computes has come a step further.
    fn progress(&self) {
        self.advance.step(self.now_ms());
    }

    /// It waits for another model.
    fn follow(&self) {
        self.advance.follow(self.now_ms(), self.machine.taken());
    }

    /// It has nothing to do.
    fn idle(&self) {
        self.advance.rest();
    }

    /// The model as it is now.
    fn facts_now(&self) -> Option<Arc<ModelFacts>> {
        let facts = self.facts.get()?;
        let moved = self.moving.computes();
        let lost = self.lost.get().map(|why| {
            let device = moved.as_ref().unwrap_or(&facts.computes).backend;
            Computes {
                backend: Backend::Cpu,
                why_not: Some(format!("{device} failed: {why}")),
            }
        });
        let Some(computes) = lost.or(moved) else {
            return Some(Arc::clone(facts));
        };
        let mut facts = ModelFacts::clone(facts);
        facts.isa = match computes.backend {
            Backend::Cpu => {
                let isa = load::isa(&self.config).ok().flatten();
                isa.unwrap_or_else(Isa::best).name().to_owned()
            }
            device => device.name().to_owned(),
        };
        facts.computes = computes;
        Some(Arc::new(facts))
    }

    /// Whether a device computes the model, or is about to.
    fn is_on_a_device(&self) -> bool {
        let lost = self.lost.get().is_some();
        let of = |facts: &Arc<ModelFacts>| facts.computes.backend != Backend::Cpu;
        !lost && (self.moving.is_elsewhere() || self.facts.get().is_some_and(of))
    }

    /// A seed nobody asked for, different each time.
    fn fresh_seed(&self) -> u64 {
        self.seeds
            .hash_one(self.seed_count.fetch_add(1, Ordering::Relaxed))
    }

    /// Why nothing is taken any more.
    fn closed(&self) -> Fault {
        if self.stops.load(Ordering::Relaxed) {
            return Shared::stopping();
        }
        let name = self.config.model.name();
        let message = match &*self.state.borrow() {
            WorkerState::Broken(why) | WorkerState::Waiting(why) => why.clone(),
            WorkerState::Failed(why) => format!("the model {name} cannot be served: {why}"),
            _ => format!("the model {name} is being unloaded"),
        };
        Fault::new(FaultCode::ModelUnavailable, message).retry_after(Duration::from_secs(1))
    }

    /// Ends all service with the model; what waits is refused by whoever waits for it.
    fn breaks(&self, why: String) {
        crate::event!(
            ModelBroken,
            why,
            "the model is of no use any more; start andond again"
        );
        let mut board = self.board();
        if matches!(board.phase, Phase::Serving | Phase::Draining) {
            board.enter(Phase::Failed);
            self.state.send_replace(WorkerState::Broken(why));
        }
        drop(board);
        self.changed.notify_all();
        self.around.tell();
    }

    fn stopping() -> Fault {
        Fault::new(FaultCode::Unavailable, "the daemon is stopping")
            .retry_after(Duration::from_secs(5))
    }

    /// Closes a job and posts its terminal event. Not under the board's lock.
    fn finish(&self, job: &Job, event: JobEvent) {
        self.board().open.remove(&job.key);
        self.end(job, event);
    }

    fn fail(&self, job: &Job, fault: Fault) {
        self.finish(job, JobEvent::Failed(fault));
    }

    /// Tells and posts the terminal event of a job that is closed already.
    fn end(&self, job: &Job, event: JobEvent) {
        let weights = self.weights_sha256.get().map_or(&[][..], Vec::as_slice);
        job.account
            .ended(&self.telemetry, &self.audit, weights, &event);
        job.mailbox.post(event);
    }
}

impl WorkerHandle {
    /// Starts the worker's threads; the model is loaded in the background.
    ///
    /// # Errors
    /// What the system says when it has no thread to give.
    pub(crate) fn start(setup: Setup) -> std::io::Result<WorkerHandle> {
        let Setup {
            config,
            registry,
            telemetry,
            audit,
            machine,
            budget,
            around,
        } = setup;
        let (state, _) = watch::channel(WorkerState::Loading);
        let (ended, _) = watch::channel(false);
        let board = Board::new(admit::scheduling(&config));
        // Tasks of the configuration can be asked while the model is being loaded.
        let in_force = InForce::new(Arc::clone(&config));
        let shared = Arc::new(Shared {
            config,
            registry,
            machine,
            around,
            in_force,
            proved: OnceLock::new(),
            load_ms: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            load_steps: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            told: [const { AtomicI64::new(0) }; 2],
            telemetry,
            audit,
            weights_sha256: OnceLock::new(),
            budget,
            state,
            ended,
            facts: OnceLock::new(),
            lost: OnceLock::new(),
            moving: device::Moving::default(),
            draft: OnceLock::new(),
            model: OnceLock::new(),
            corpora: OnceLock::new(),
            pages: OnceLock::new(),
            packed: AtomicBool::new(false),
            failure: OnceLock::new(),
            board: Mutex::new(board),
            changed: Condvar::new(),
            alarm_ready: AtomicBool::new(false),
            stops: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            hurries: AtomicBool::new(false),
            measuring: AtomicBool::new(false),
            epoch: Instant::now(),
            throttle: Mutex::default(),
            sheds: AtomicBool::new(false),
            advance: Advance::default(),
            seeds: RandomState::new(),
            seed_count: AtomicU64::new(0),
        });
        let worker = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("worker".to_owned())
            .spawn(move || {
                let _guard = AbortOnPanic;
                serve(&worker);
                worker.ends();
                worker.no_load();
                worker.ended.send_replace(true);
                worker.around.tell();
            })?;
        Ok(WorkerHandle { shared })
    }

    /// Hands a request over. Never blocks.
    ///
    /// # Errors
    /// The reason it is refused: a full queue, an id in flight, an unknown model or task, a
    /// worker that stops or has no model to load. While the model is being loaded it waits. What can only be known later (a prompt too long for the context,
    /// a deadline passed) arrives as [`JobEvent::Failed`].
    pub fn submit(&self, request: Request) -> Result<JobStream, Fault> {
        let telemetry = &self.shared.telemetry;
        let asked = Asked::of(&request);
        asked.comes(telemetry);
        match self.shared.admit(Arc::new(request), None) {
            Ok(mailbox) => {
                asked.taken(telemetry);
                Ok(JobStream::new(mailbox))
            }
            Err(fault) => {
                asked.refused(telemetry, &fault);
                Err(fault)
            }
        }
    }

    /// Ends a client's request by its id; its stream ends with [`FaultCode::Cancelled`]. Says whether there was one.
    pub fn cancel(&self, origin: Origin, client: &str, id: &str) -> bool {
        let key = Key::new(origin, client, id);
        let job = self.shared.board().open.get(&key).cloned();
        match job {
            Some(job) => {
                job.mailbox.cancel();
                self.shared.wake();
                true
            }
            None => false,
        }
    }

    /// The load now.
    pub fn status(&self) -> Status {
        let board = self.shared.board();
        Status {
            state: self.shared.state.borrow().clone(),
            model: self.shared.facts_now(),
            draft: self.shared.draft.get().cloned(),
            waiting: board.waiting.len(),
            running: board.running(),
            throttle: self.shared.throttle(),
        }
    }

    /// Has batch work give way so far, and work of whatever class to a lack of memory, until told otherwise. To be called
    /// whenever either changes.
    pub fn throttle(&self, throttle: Throttle, cause: Option<Cause>) {
        let shared = &self.shared;
        *shared
            .throttle
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = (throttle, cause);
        let restraint = Restraint {
            batch: shared.throttle().0,
            refuses: shared.budget.facts().shortage.refuses(),
        };
        shared.board().restrain(restraint);
        shared.changed.notify_all();
    }

    /// Has caches give way: pages of the KV cache that nobody holds, compiled shapes, and earlier answers that are on the disk
    /// too. To be called again while memory is short.
    pub fn shed(&self) {
        self.shared.sheds.store(true, Ordering::Relaxed);
        self.shared.wake();
    }

    /// For how long the thread that computes has made no progress, if that is longer than any pass takes.
    pub fn stalled(&self) -> Option<Duration> {
        let since = self.shared.advance.since(self.shared.now_ms())?;
        let terms = self.shared.in_force.get();
        (since > terms.config.gateway.stall()).then_some(since)
    }

    /// Goes by another configuration in what it takes from now on. What it has taken is answered as it was taken; keys that need
    /// a restart stay as they are.
    pub fn reloaded(&self, config: &Arc<Config>) {
        self.shared.reloaded(config);
    }

    /// Takes nothing new, refuses what waits, and gives what runs this long to finish.
    pub fn stop(&self, grace: Duration) {
        let until = Instant::now() + grace;
        let mut board = self.shared.board();
        self.shared.stops.store(true, Ordering::Relaxed);
        self.shared.given_up.store(true, Ordering::Relaxed);
        if board.phase != Phase::Failed {
            board.enter(Phase::Stopping(until));
            self.shared.state.send_replace(WorkerState::Stopping);
        }
        drop(board);
        self.shared.changed.notify_all();
    }

    /// Waits until the worker's threads are done: after [`WorkerHandle::stop`] or a failure.
    pub async fn ended(&self) {
        // The sender lives in `shared`, so waiting ends by the value only.
        drop(self.shared.ended.subscribe().wait_for(|ended| *ended).await);
    }

    /// Whose earlier answers are kept for guesses; `None` until the model is loaded. Reads the disk.
    pub fn list_corpora(&self) -> Option<std::io::Result<Vec<CorpusFacts>>> {
        Some(self.shared.corpora.get()?.list())
    }

    /// Erases earlier answers to a task, of clients of this name, or all; `None` until the model is loaded. Writes to the
    /// disk.
    pub fn erase_corpora(
        &self,
        task: Option<&str>,
        client: Option<&str>,
    ) -> Option<std::io::Result<Erased>> {
        Some(self.shared.corpora.get()?.erase(task, client))
    }

    /// When the answer to a request is worthless: as it says, else as its task does, from `since` on.
    pub fn deadline(&self, request: &Request, since: Instant) -> Option<Instant> {
        let by_task = || {
            let Input::Task { name, .. } = &request.input else {
                return None;
            };
            let terms = self.shared.in_force.get();
            let (_, deadline) = terms.tasks().defaults(name)?;
            since.checked_add(deadline?)
        };
        request.deadline.or_else(by_task)
    }

    /// What a request's task makes of it; `None` if it names none.
    pub(crate) fn resolve(&self, request: &Request) -> Option<Result<Resolved, Fault>> {
        let Input::Task { name, input } = &request.input else {
            return None;
        };
        Some(self.shared.in_force.get().tasks().resolve(name, input))
    }

    /// How far requests of a task may travel, unless they say less.
    pub(crate) fn egress_of(&self, task: &str) -> Option<Egress> {
        self.shared.in_force.get().tasks().egress(task)
    }

    /// How many pages of keys and values are kept on the disk, and their bytes; `None` until the model is loaded.
    pub fn kept_pages(&self) -> Option<Result<(usize, u64), StoreError>> {
        Some(self.shared.pages.get()?.kept())
    }

    /// Erases what is kept of prompts, on the disk and in memory, and says how many pages that were on the disk; `None` until
    /// the model is loaded. Writes to the disk.
    pub fn erase_pages(&self) -> Option<Result<usize, StoreError>> {
        Some(self.shared.pages.get()?.erase())
    }

    /// Whether what is computed for prompts should be kept on the disk and cannot be.
    pub fn cannot_keep_pages(&self) -> bool {
        self.shared.pages.get().is_some_and(|pages| pages.fails())
    }

    /// Whether the processor had to go on for a device that failed.
    pub fn lost_its_device(&self) -> bool {
        self.shared.lost.get().is_some()
    }

    /// Whether the model is to be read from a pack and is not.
    pub fn lacks_its_pack(&self) -> bool {
        let config = &self.shared.config;
        let wanted = match config.cache.pack {
            PackWhen::Never => false,
            PackWhen::Added => config.model.is_kept(),
            PackWhen::Idle => true,
        };
        wanted && !self.shared.is_on_a_device() && !self.shared.packed.load(Ordering::Relaxed)
    }

    /// Names of the tasks that can be asked, once the model is there that answers them.
    pub fn tasks(&self) -> Vec<String> {
        let terms = self.shared.in_force.get();
        let tasks = terms.all_tasks();
        tasks.map_or_else(Vec::new, |tasks| tasks.names().map(str::to_owned).collect())
    }

    /// What is at fault for a [`WorkerState::Failed`].
    pub(crate) fn failure(&self) -> AtFault {
        let failure = self.shared.failure.get().copied();
        failure.unwrap_or(AtFault::Machine)
    }
}

/// Checks that the configured instruction set can be used on this machine.
///
/// # Errors
/// Why it cannot.
pub fn check_isa(config: &Config) -> Result<(), String> {
    load::isa(config).map(drop)
}

/// A panic in the worker would leave clients waiting for ever; systemd restarts what aborts.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// The worker thread's whole life.
fn serve(shared: &Arc<Shared>) {
    let served = match find(shared) {
        Ok(Some(served)) => served,
        Ok(None) => return,
        Err(failure) => return shared.failed(failure),
    };
    shared
        .weights_sha256
        .get_or_init(|| account::weights(&served.sha256));
    let began = Instant::now();
    let loaded = match load::load(shared, &served) {
        Ok(loaded) => loaded,
        Err(failure) => return shared.failed(failure),
    };
    // To the end, when nothing of the model is left.
    let _promised = loaded.promised;
    if let Err(problems) = shared.in_force.complete(served.bundled) {
        return shared.failed(LoadFailure::operator(&problems));
    }
    let context_tokens_max = loaded.facts.context_tokens_max;
    let load_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    shared.load_ms.store(load_ms, Ordering::Relaxed);
    crate::event!(
        ModelLoaded,
        model = loaded.facts.name,
        architecture = loaded.facts.architecture,
        backend = loaded.facts.computes.backend.name(),
        isa = loaded.facts.isa,
        threads = loaded.facts.threads,
        context_tokens_max,
        packed = loaded.model.pack().is_some(),
        load_ms,
        tokens_per_second = loaded.proved.tokens_per_second,
        "model loaded and tried"
    );
    shared.proved.get_or_init(|| loaded.proved);
    if let Some(options) = &loaded.moves {
        shared.moves_to(options.backend);
    }
    shared.facts.get_or_init(|| Arc::new(loaded.facts));
    let looked = proof::Looked::new(&shared.telemetry);
    looked.compared(loaded.proven != Proven::No);
    let mut parts = life::Parts::new(shared);
    if let Some(facts) = shared.facts.get() {
        parts.computed_by(facts.computes.backend);
    }
    let drafts = loaded.draft_model.is_some();
    let mut corpora_max = 0;
    if let Some(memory) = &loaded.memory {
        corpora_max = memory.corpora_max();
        for (part, bytes) in memory.parts() {
            parts.add(part, bytes as u64);
        }
    }
    if let Some(draft) = loaded.draft {
        let bytes = draft.state.as_ref().map_or(0, |used| used.bytes);
        parts.add("draft", bytes);
        shared.draft.get_or_init(|| Arc::new(draft));
        shared.telemetry.draft(drafts);
    }
    let model = loaded.model;
    shared.model.get_or_init(|| Arc::clone(&model));
    shared.look_after_pack();
    let limits = (corpora_max, drafts);
    let corpora = Corpora::new(&shared.config, limits, &model, loaded.key.as_ref());
    let corpora = shared.corpora.get_or_init(|| Arc::new(corpora));
    let pages = shared.pages.get_or_init(|| Arc::new(loaded.pages));
    std::thread::scope(|scope| {
        for lane in Lane::ALL {
            let prepare = std::thread::Builder::new()
                .name(lane.name().to_owned())
                .spawn_scoped(scope, {
                    let model = &model;
                    move || {
                        let _guard = AbortOnPanic;
                        prepare::run(shared, lane, model, corpora, context_tokens_max);
                    }
                });
            if let Err(error) = prepare {
                shared.board().enter(Phase::Failed);
                shared.changed.notify_all();
                let message = format!("cannot start a thread: {error}");
                shared.state.send_replace(WorkerState::Failed(message));
                shared.around.tell();
                return;
            }
        }
        if let Some(packs) = shared.registry.packs() {
            let proof = |model: &Arc<Model>| {
                let mut left = loaded.unproven.iter();
                let found = left.find(|(one, _)| Arc::ptr_eq(one, model));
                found.map(|(_, proof)| proof)
            };
            if let Some(key) = &loaded.key {
                shared.pack(scope, packs, key, &model, proof(&model));
            }
            if let Some((draft, Some(key))) = &loaded.draft_model {
                shared.pack(scope, packs, key, draft, proof(draft));
            }
        }
        if !loaded.unproven.is_empty() {
            let comparing = std::thread::Builder::new()
                .name("proof".to_owned())
                .spawn_scoped(scope, || proof::run(shared, &loaded.unproven, &looked));
            if let Err(error) = comparing {
                tracing::warn!(%error, "the weights are not compared with their manifest");
            }
        }
        if let Some(options) = &loaded.moves {
            let bringing = std::thread::Builder::new()
                .name("device".to_owned())
                .spawn_scoped(scope, || device::run(shared, &model, options));
            if let Err(error) = bringing {
                shared.stays(format!("cannot start a thread: {error}"));
            }
        }
        let writing = std::thread::Builder::new()
            .name("corpora".to_owned())
            .spawn_scoped(scope, || corpora::run(shared, corpora));
        if let Err(error) = writing {
            tracing::warn!(%error, "earlier answers are written only when the daemon stops");
        }
        let mut engine = loaded.engine;
        let mut keeping = pages.way().and_then(|(keeping, incoming)| {
            let writing = std::thread::Builder::new()
                .name("pages".to_owned())
                .spawn_scoped(scope, move || pages::run(shared, pages, &incoming));
            if let Err(error) = &writing {
                tracing::warn!(%error, "nothing more is kept of prompts for the next start");
            }
            writing.ok().map(|_| keeping)
        });
        if let (Engine::Generator(generator), Some(keeping)) = (&mut engine, &mut keeping) {
            keeping.read_first(generator);
        }
        {
            let mut board = shared.board();
            if board.phase == Phase::Loading {
                board.enter(Phase::Serving);
                shared.state.send_replace(WorkerState::Ready);
            }
        }
        shared.around.tell();
        match engine {
            Engine::Generator(generator) => {
                run::run(shared, *generator, model.tokenizer(), keeping);
            }
            Engine::Embedder(embedder) => embed::run(shared, *embedder),
        }
    });
    corpora.write();
}

/// What is to be served. Where that is a model which is not kept here yet, waits until it is added: on a new
/// gateway the daemon has to run so that it can be. `None` when the daemon stops meanwhile.
fn find(shared: &Shared) -> Result<Option<Served>, LoadFailure> {
    loop {
        match registry::served(&shared.config, &shared.registry) {
            Ok(served) => {
                shared.has_its_model();
                return Ok(Some(served));
            }
            Err(RegistryError::Unknown(name)) if shared.around.needed || !shared.around.asked => {
                let why = format!(
                    "no model {name} is kept here; `andonctl model add --name {name} FILE` adds it"
                );
                if !shared.lacks_its_model(why) {
                    return Ok(None);
                }
                shared.registry.wait(LOOK_AGAIN);
            }
            Err(error) => return Err(LoadFailure::of_kept(&error)),
        }
    }
}

impl Shared {
    /// Has a thread see to it that the model is packed.
    fn pack<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        packs: &'scope Packs,
        key: &'scope andon_engine::pack::Key,
        model: &'scope Model,
        proof: Option<&'scope Proof>,
    ) {
        let packing = std::thread::Builder::new()
            .name("pack".to_owned())
            .spawn_scoped(scope, move || {
                let compare = self.config.models.signature == SignaturePolicy::Require;
                pack::run(self, model, packs.cache(), key, compare, proof);
            });
        if let Err(error) = packing {
            tracing::warn!(%error, "the model's weights are not packed");
        }
    }

    /// Notes whether the model is packed, and wakes the thread that packs if the engine left a damaged pack since this
    /// was last asked.
    fn look_after_pack(&self) {
        let packed = self.model.get().is_some_and(|model| model.pack().is_some());
        if self.packed.swap(packed, Ordering::Relaxed) != packed {
            self.telemetry.packed.inc_by(if packed { 1 } else { -1 });
            if !packed {
                self.wake();
            }
        }
    }

    fn failed(&self, failure: LoadFailure) {
        let mut board = self.board();
        // What was given up has not failed.
        if matches!(board.phase, Phase::Stopping(_)) {
            return;
        }
        self.failure.get_or_init(|| failure.fault);
        board.enter(Phase::Failed);
        self.state
            .send_replace(WorkerState::Failed(failure.message));
    }

    fn loading() -> Fault {
        Fault::new(FaultCode::ModelUnavailable, "the model is not loaded yet")
            .retry_after(Duration::from_secs(1))
    }
}
