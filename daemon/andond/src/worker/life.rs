//! What a worker has to do with those of other models: what they share, when it is asked to go, and what is told of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use andon_engine::Executor;

use super::board::{Board, Key, Phase};
use super::load::LoadFailure;
use super::machine::Machine;
use super::memory::Memory;
use super::schedule::Turn;
use super::trying::Proved;
use super::{Shared, WorkerHandle, WorkerState};
use crate::config::Config;
use crate::fault::Fault;
use crate::memory::{Budget, Held, Part, Refusal, Reservation};
use crate::registry::Registry;
use crate::request::Origin;
use crate::telemetry::Telemetry;

/// What a worker is started with.
pub(crate) struct Setup {
    /// The configuration, whose `[model]` is the one to serve.
    pub(crate) config: Arc<Config>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) around: Around,
}

/// What is around a worker.
pub(crate) struct Around {
    /// Whether the model is loaded because somebody asks for it, and not as the daemon starts: requests may wait for it, it
    /// is tried in full, and it is refused where there is no room.
    pub(crate) asked: bool,
    /// Told when the worker's state has changed.
    pub(crate) changed: Box<dyn Fn() + Send + Sync>,
    /// Has others make room, if there are some that may. Says whether it is worth trying again.
    pub(crate) make_room: Box<dyn Fn() -> bool + Send + Sync>,
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
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// What the model that `executor` runs may take, promised; or why it is not.
    pub(super) fn promised(
        &self,
        executor: &Executor,
        tasks: usize,
    ) -> Result<(Memory, Vec<Reservation>), LoadFailure> {
        self.promise(|| {
            let all = self.budget.left_in_all();
            let memory = Memory::of(&self.config, executor, tasks, all);
            let promised = memory.promise(&self.budget, self.around.asked)?;
            self.bytes.store(memory.bytes() as u64, Ordering::Relaxed);
            Ok((memory, promised))
        })
    }

    /// Memory for weights alone, promised.
    pub(super) fn promised_weights(&self, bytes: u64) -> Result<Reservation, LoadFailure> {
        self.promise(|| {
            let (part, held) = (Part::Weights, Held::Mapped);
            let promised = if self.around.asked {
                self.budget.reserve(part, held, bytes)?
            } else {
                self.budget.require(part, held, bytes)?
            };
            self.bytes.store(bytes, Ordering::Relaxed);
            Ok(promised)
        })
    }

    /// Tries as long as others make room.
    fn promise<T>(&self, attempt: impl Fn() -> Result<T, Refusal>) -> Result<T, LoadFailure> {
        loop {
            match attempt() {
                Ok(promised) => return Ok(promised),
                Err(_) if self.around.asked && (self.around.make_room)() => {}
                Err(refusal) => {
                    return Err(LoadFailure::operator(&format!(
                        "{refusal}; give andond more ([memory] budget-bytes), or the model less ([model] kv-tokens-max)"
                    )));
                }
            }
        }
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

/// What a model takes of memory, as it was told; taken back when that ends.
pub(super) struct Parts<'a> {
    shared: &'a Shared,
    told: Vec<(&'static str, i64)>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(shared: &'a Shared) -> Parts<'a> {
        Parts {
            shared,
            told: Vec::new(),
        }
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
    }
}

impl WorkerHandle {
    /// Why nothing is taken while the daemon stops.
    pub(crate) fn stopping() -> Fault {
        Shared::stopping()
    }

    /// Takes nothing new, answers what was taken, and ends. A model that is not there yet is given up.
    pub(crate) fn drain(&self) {
        let mut board = self.shared.board();
        match board.phase {
            Phase::Serving => board.enter(Phase::Draining),
            Phase::Loading => {
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

    /// While the model is being loaded, ends requests that wait for it and need not any more.
    pub(crate) fn tend(&self) {
        let shared = &self.shared;
        let mut board = shared.board();
        // Before the model is there, nothing gets ready; afterwards the thread that computes looks.
        if board.phase != Phase::Loading || shared.model.get().is_some() {
            return;
        }
        let mut turn = Turn::default();
        turn.gather(shared, &mut board, shared.now_ms());
        shared.tell_load(&board);
        drop(board);
        turn.tell(shared);
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
