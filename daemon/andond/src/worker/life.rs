//! What a worker has to do with those of other models: what they share, when it is asked to go, and what is told of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use andon_engine::backend::Backend;
use andon_engine::embed::Embedder;
use andon_engine::{Files, Model, Needs};
use andon_policy::memory::Bound;
use andon_wire::Priority;

use super::account::Account;
use super::board::{Board, Job, Key, Phase};
use super::job::{JobEvent, JobStream, Mailbox};
use super::load::LoadFailure;
use super::machine::{Machine, Seat, most_urgent};
use super::memory::{self, Memory};
use super::schedule::{Turn, cancelled};
use super::trying::Proved;
use super::{Shared, WorkerHandle, WorkerState};
use crate::audit::Audit;
use crate::config::Config;
use crate::fault::{Fault, FaultCode};
use crate::memory::{Budget, Held, Part, Refusal, Reservation};
use crate::registry::Registry;
use crate::request::{Origin, Request};
use crate::telemetry::Telemetry;

/// What a worker is started with.
pub(crate) struct Setup {
    /// The configuration, whose `[model]` is the one to serve.
    pub(crate) config: Arc<Config>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) audit: Audit,
    pub(crate) machine: Arc<Machine>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) around: Around,
}

/// What is around a worker.
pub(crate) struct Around {
    /// Whether the model is loaded because somebody asks for it, and not as the daemon starts: others may be answering
    /// meanwhile, and it is tried in full.
    pub(crate) asked: bool,
    /// Whether it answers to the configured name: others make room for it, it is not held to what the system has left just
    /// now, and where it is not kept yet it is waited for.
    pub(crate) needed: bool,
    /// Gets those that waited for the worker when it ends, and the daemon does not.
    pub(crate) hand_over: Box<dyn Fn(Vec<Handed>) + Send + Sync>,
    /// Told when the worker's state has changed.
    pub(crate) changed: Box<dyn Fn() + Send + Sync>,
    /// Has others make room, if there are some that may. Says whether it is worth trying again.
    pub(crate) make_room: Box<dyn Fn() -> bool + Send + Sync>,
}

/// A request without a worker, with the place to which its answer goes: what waited for one that ends, or is for one that is not
/// there yet. It is to be taken over by a worker, or failed.
#[derive(Debug)]
#[must_use = "somebody waits for its end"]
pub(crate) struct Handed {
    pub(super) key: Key,
    pub(super) submitted: Instant,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) request: Arc<Request>,
}

impl Handed {
    /// One that just came, and what is read of it.
    pub(crate) fn new(request: Request) -> (Handed, JobStream) {
        let mailbox = Arc::new(Mailbox::default());
        let handed = Handed {
            key: Key::of(&request),
            submitted: Instant::now(),
            mailbox: Arc::clone(&mailbox),
            request: Arc::new(request),
        };
        (handed, JobStream::new(mailbox))
    }

    /// One that waited.
    pub(super) fn of(job: &Job, request: Arc<Request>) -> Handed {
        Handed {
            key: job.key.clone(),
            submitted: job.submitted,
            mailbox: Arc::clone(&job.mailbox),
            request,
        }
    }

    /// Whether it is this client's of this id.
    pub(crate) fn is(&self, origin: Origin, client: &str, id: &str) -> bool {
        self.key == Key::new(origin, client, id)
    }

    /// Whether it is one of this client's.
    pub(crate) fn is_by(&self, origin: Origin, client: &str) -> bool {
        self.key.is_by(origin, client)
    }

    /// What it asks.
    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    /// When it came.
    pub(crate) fn submitted(&self) -> Instant {
        self.submitted
    }

    /// Whether its client wants it no more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.mailbox.cancelled()
    }

    /// Its client wants it no more.
    pub(crate) fn cancel(&self) {
        self.mailbox.cancel();
    }

    /// Tells that it has no answer.
    pub(crate) fn fail(self, telemetry: &Telemetry, audit: &Audit, mut fault: Fault) {
        // It was taken before: whoever keeps it tries again.
        if fault.code == FaultCode::Busy {
            fault.code = FaultCode::ModelUnavailable;
        }
        let fault = if self.mailbox.cancelled() {
            cancelled()
        } else {
            fault
        };
        let model = self.request.model.clone().unwrap_or_default();
        let account = Account::new(&self.request, None, model, self.submitted, false);
        let event = JobEvent::Failed(fault);
        account.ended(telemetry, audit, &[], &event);
        self.mailbox.post(event);
    }
}

impl Around {
    /// The state has changed. Not under the board's lock.
    pub(super) fn tell(&self) {
        (self.changed)();
    }
}

impl fmt::Debug for Around {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Around")
            .field("asked", &self.asked)
            .field("needed", &self.needed)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// What a model that takes `needs` and what goes with it may take, promised; or why it is not.
    pub(super) fn promised(
        &self,
        model: &Model,
        needs: &Needs,
        tasks: usize,
    ) -> Result<(Memory, Vec<Reservation>), LoadFailure> {
        self.promise_all(|all| Memory::of(&self.config, model, needs, tasks, all))
    }

    /// The same where the processor serves while a device gets the weights, and may have to go on for it later.
    pub(super) fn promised_for_both(
        &self,
        model: &Model,
        needs: &Needs,
        tasks: usize,
    ) -> Result<(Memory, Vec<Reservation>), LoadFailure> {
        self.promise_all(|all| {
            Memory::of(&self.config, model, needs, tasks, all).with_files(&self.config, model)
        })
    }

    fn promise_all(
        &self,
        memory: impl Fn(Option<u64>) -> Memory,
    ) -> Result<(Memory, Vec<Reservation>), LoadFailure> {
        self.promise(|| {
            let all = self.budget.left_in_all();
            memory(all).promise(&self.budget, self.around.needed)
        })
    }

    /// Memory for the weights in a model's files, promised.
    pub(super) fn promised_weights(&self, files: &Files) -> Result<Reservation, LoadFailure> {
        let bytes: u64 = files.maps().iter().map(|map| map.len() as u64).sum();
        self.promise(|| {
            let needed = self.around.needed;
            memory::promised(&self.budget, needed, Part::Weights, Held::Mapped, bytes)
        })
    }

    /// Memory for what an embedder takes, promised.
    pub(super) fn promised_encoder(
        &self,
        embedder: &Embedder,
    ) -> Result<Vec<Reservation>, LoadFailure> {
        let weights = memory::weights(&self.config, embedder.model()) as u64;
        // One of each class may wait half done for a more urgent one.
        let encodings = embedder.encoding_bytes_max().saturating_mul(3);
        let working = embedder.bytes().saturating_add(encodings) as u64;
        self.promise(|| {
            let parts = [
                (Part::Weights, Held::Mapped, weights),
                (Part::Working, Held::Private, working),
            ];
            let promised = parts.into_iter().map(|(part, held, bytes)| {
                memory::promised(&self.budget, self.around.needed, part, held, bytes)
            });
            let promised = promised.collect::<Result<_, _>>()?;
            self.bytes
                .store(weights.saturating_add(working), Ordering::Relaxed);
            Ok(promised)
        })
    }

    /// Tries as long as others make room.
    fn promise<T>(&self, attempt: impl Fn() -> Result<T, Refusal>) -> Result<T, LoadFailure> {
        let mut stale = true;
        loop {
            let refusal = match attempt() {
                Ok(promised) => return Ok(promised),
                Err(refusal) => refusal,
            };
            self.is_wanted()?;
            if refusal.bound == Bound::System && stale {
                // What has gone is free since, and was not when the system was asked last: nobody else is to go for that.
                self.budget.refresh();
                stale = false;
            } else if (self.around.make_room)() {
                stale = true;
            } else {
                let message = format!(
                    "{refusal}; give andond more ([memory] budget-bytes), or the model less ([model] kv-tokens-max)"
                );
                return Err(if self.around.needed {
                    // Nobody else has any of it.
                    LoadFailure::operator(&message)
                } else {
                    LoadFailure::room(&message)
                });
            }
        }
    }

    /// After a step of loading: whether somebody still wants the model. Locks nothing.
    pub(super) fn goes_on(&self) -> Result<(), LoadFailure> {
        self.load_steps.fetch_add(1, Ordering::Relaxed);
        self.is_wanted()
    }

    /// The same where loading waits for something else, and comes no further by asking.
    pub(super) fn is_wanted(&self) -> Result<(), LoadFailure> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(LoadFailure::given_up());
        }
        Ok(())
    }

    /// Takes the machine for a step of loading, which is as urgent as whoever waits for the model.
    pub(super) fn take_to_load(&self, seat: &mut Seat) -> Result<(), LoadFailure> {
        seat.take_waiting(|| self.is_wanted().is_ok().then(|| self.urgency()));
        self.goes_on()
    }

    /// How urgent the most urgent is of those that have no answer yet.
    pub(super) fn urgency(&self) -> Priority {
        let board = self.board();
        most_urgent(board.open.values().map(|job| job.priority))
    }

    /// The model is not kept here, and nobody knows when it will be: whoever waits for it is told so, and whoever comes. False
    /// if the worker is to end.
    pub(super) fn lacks_its_model(&self, why: String) -> bool {
        let mut board = self.board();
        if board.phase != Phase::Loading {
            return false;
        }
        let waiting = WorkerState::Waiting(why);
        let changed = self.state.send_if_modified(|state| {
            let changed = *state != waiting;
            if changed {
                *state = waiting;
            }
            changed
        });
        let mut turn = Turn::default();
        if changed {
            turn.turn_away(&mut board, self.now_ms(), &self.closed());
            self.tell_load(&board);
        }
        drop(board);
        if changed {
            turn.tell(self);
            self.around.tell();
        }
        true
    }

    /// The model is there that was missing: requests may wait for it from now on.
    pub(super) fn has_its_model(&self) {
        let board = self.board();
        let changed = board.phase == Phase::Loading
            && self.state.send_if_modified(|state| {
                let changed = matches!(state, WorkerState::Waiting(_));
                if changed {
                    *state = WorkerState::Loading;
                }
                changed
            });
        drop(board);
        if changed {
            self.around.tell();
        }
    }

    /// Ends what waits still when the worker does.
    pub(super) fn ends(&self) {
        let mut board = self.board();
        if !matches!(board.phase, Phase::Stopping(_) | Phase::Failed) {
            board.enter(Phase::Stopping(Instant::now()));
        }
        let mut turn = Turn::default();
        turn.gather(self, &mut board, self.now_ms());
        drop(board);
        turn.tell(self);
    }

    /// A pass has failed, and with it what took part in it.
    pub(super) fn pass_failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.around.tell();
    }

    /// Ends what was drained: all of the worker's threads then end.
    pub(super) fn leave(&self, board: &mut Board) {
        if board.phase == Phase::Draining {
            board.enter(Phase::Stopping(Instant::now()));
            self.state.send_replace(WorkerState::Stopping);
        }
        self.changed.notify_all();
    }

    /// Tells how much there is to do.
    pub(super) fn tell_load(&self, board: &Board) {
        let now = [board.waiting.len(), board.running()];
        self.tell_counts(now.map(|count| i64::try_from(count).unwrap_or(i64::MAX)));
    }

    /// Takes back what was told when the worker ends.
    pub(super) fn no_load(&self) {
        self.tell_counts([0, 0]);
        if self.packed.swap(false, Ordering::Relaxed) {
            self.telemetry.packed.dec();
        }
    }

    fn tell_counts(&self, now: [i64; 2]) {
        let [waiting, running] = &self.told;
        let waiting = now[0] - waiting.swap(now[0], Ordering::Relaxed);
        let running = now[1] - running.swap(now[1], Ordering::Relaxed);
        if (waiting, running) != (0, 0) {
            self.telemetry.load(waiting, running);
        }
    }
}

/// What a model takes of memory and what computes it, as it was told; taken back when that ends.
pub(super) struct Parts<'a> {
    shared: &'a Shared,
    told: Vec<(&'static str, i64)>,
    backend: Option<Backend>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(shared: &'a Shared) -> Parts<'a> {
        Parts {
            shared,
            told: Vec::new(),
            backend: None,
        }
    }

    /// What computes it.
    pub(super) fn computed_by(&mut self, backend: Backend) {
        self.shared.telemetry.backend(backend, 1);
        self.backend = Some(backend);
    }

    pub(super) fn add(&mut self, part: &'static str, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.shared.telemetry.memory(part, bytes);
        self.told.push((part, bytes));
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        for (part, bytes) in self.told.drain(..) {
            self.shared.telemetry.memory(part, -bytes);
        }
        if let Some(backend) = self.backend {
            let now = self.shared.facts_now();
            let backend = now.map_or(backend, |facts| facts.computes.backend);
            self.shared.telemetry.backend(backend, -1);
        }
    }
}

impl WorkerHandle {
    /// Why nothing is taken while the daemon stops.
    pub(crate) fn stopping() -> Fault {
        Shared::stopping()
    }

    /// Takes over what waited for another worker, or fails it.
    pub(crate) fn take_over(&self, handed: Handed) {
        let request = Arc::clone(&handed.request);
        if let Err(fault) = self.shared.admit(request, Some(&handed)) {
            handed.fail(&self.shared.telemetry, &self.shared.audit, fault);
        }
    }

    /// Takes nothing new, answers what was taken, and ends. A model that is not there yet is given up.
    pub(crate) fn drain(&self) {
        let mut board = self.shared.board();
        match board.phase {
            Phase::Serving => board.enter(Phase::Draining),
            Phase::Loading => {
                self.shared.given_up.store(true, Ordering::Relaxed);
                board.enter(Phase::Stopping(Instant::now()));
                self.shared.state.send_replace(WorkerState::Stopping);
            }
            Phase::Draining | Phase::Stopping(_) | Phase::Failed => {}
        }
        drop(board);
        self.shared.changed.notify_all();
    }

    /// Takes requests again after [`WorkerHandle::drain`], if it is not too late. Says whether it takes some.
    pub(crate) fn undrain(&self) -> bool {
        let mut board = self.shared.board();
        if board.phase == Phase::Draining {
            board.enter(Phase::Serving);
        }
        matches!(board.phase, Phase::Serving | Phase::Loading)
    }

    /// While the model is being loaded, or given up meanwhile, ends requests that wait for it and need not any more.
    pub(crate) fn tend(&self) {
        let shared = &self.shared;
        let mut board = shared.board();
        // Before the model is there, nothing gets ready; afterwards the thread that computes looks.
        let loads = matches!(board.phase, Phase::Loading | Phase::Stopping(_));
        if !loads || shared.model.get().is_some() {
            return;
        }
        let mut turn = Turn::default();
        turn.gather(shared, &mut board, shared.now_ms());
        shared.tell_load(&board);
        drop(board);
        turn.tell(shared);
    }

    /// Whether it does batch work only.
    pub(crate) fn is_patient(&self) -> bool {
        let board = self.shared.board();
        let mut open = board.open.values();
        open.all(|job| job.priority == Priority::Batch)
    }

    /// Whether an alarm waits for it, or is answered.
    pub(crate) fn is_urgent(&self) -> bool {
        let board = self.shared.board();
        let mut open = board.open.values();
        open.any(|job| job.priority == Priority::Alarm)
    }

    /// How many requests it has that have no answer yet.
    pub(crate) fn open(&self) -> usize {
        self.shared.board().open.len()
    }

    /// Whether nothing is waiting or running.
    pub(crate) fn is_idle(&self) -> bool {
        let board = self.shared.board();
        board.open.is_empty() && board.running() == 0
    }

    /// Whether a client has a request of this id in flight here.
    pub(crate) fn has(&self, origin: Origin, client: &str, id: &str) -> bool {
        let key = Key::new(origin, client, id);
        self.shared.board().open.contains_key(&key)
    }

    /// Where the worker is in its life.
    pub(crate) fn state(&self) -> WorkerState {
        self.shared.state.borrow().clone()
    }

    /// Whether its threads are done.
    pub(crate) fn has_ended(&self) -> bool {
        *self.shared.ended.borrow()
    }

    /// How many passes have failed.
    pub(crate) fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::Relaxed)
    }

    /// How the model did when it was tried, once it was.
    pub(crate) fn proved(&self) -> Option<Proved> {
        self.shared.proved.get().copied()
    }

    /// How many steps of loading it are behind; more as it comes further, and no more once it is loaded.
    pub(crate) fn load_steps(&self) -> u64 {
        self.shared.load_steps.load(Ordering::Relaxed)
    }

    /// What loading it took, in milliseconds.
    pub(crate) fn load_ms(&self) -> u64 {
        self.shared.load_ms.load(Ordering::Relaxed)
    }

    /// Bytes of memory that it has.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// What the model is like, once that is known.
    pub(crate) fn facts(&self) -> Option<Arc<super::ModelFacts>> {
        self.shared.facts.get().cloned()
    }
}
