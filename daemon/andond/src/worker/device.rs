//! How a model comes to what computes it: what that takes is promised first, then it is made beside others that answer.
//!
//! A device that has no memory but the machine's gets its copies before the model is served: a processor that served
//! meanwhile would need the same memory again. One that has its own gets them while the processor serves, where the
//! configuration leaves the choice to andond (`auto`), and computes once it was found to compute the same. A device that the
//! configuration names is waited for: named and missing it is an error, and one that comes after answers were given would be
//! none.
//!
//! Invariant: nothing is taken before it is promised; what a device refuses leaves the processor serving, where that may, with
//! the reason.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use andon_engine::backend::{Backend, DeviceNeeds};
use andon_engine::generate::{Forward, Generator};
use andon_engine::speculate::PassCosts;
use andon_engine::{Executor, ExecutorError, ExecutorOptions, Loading, Model, Needs};
use andon_wire::Priority;

use super::Shared;
use super::backend::{self, Computes};
use super::board::Phase;
use super::load::{AtFault, LoadFailure, giving_way};
use super::machine::Seat;
use super::memory::Memory;
use crate::config::engine::BackendChoice;
use crate::memory::{Held, Part, Reservation};

/// What computes a model, ready, and what it was promised.
pub(super) struct Made {
    pub(super) executor: Executor,
    pub(super) computes: Computes,
    pub(super) memory: Memory,
    pub(super) promised: Vec<Reservation>,
    /// How it is to be made for the device that gets the weights while the processor serves.
    pub(super) moves: Option<ExecutorOptions>,
}

/// Why a device does not compute a model.
enum Refused {
    /// Whether `auto` may take the processor is for whoever asks to say.
    Device(ExecutorError),
    Load(LoadFailure),
}

impl From<LoadFailure> for Refused {
    fn from(failure: LoadFailure) -> Refused {
        Refused::Load(failure)
    }
}

impl Refused {
    /// Why the processor is to compute instead; the failure if nothing is to.
    fn why_not(self) -> Result<String, LoadFailure> {
        match self {
            Refused::Device(
                error @ (ExecutorError::Device { .. }
                | ExecutorError::NoRoom { .. }
                | ExecutorError::Differs { .. }),
            ) => Ok(error.to_string()),
            Refused::Load(refused) if refused.fault != AtFault::Machine => Ok(refused.message),
            other => Err(other.failure()),
        }
    }

    fn failure(self) -> LoadFailure {
        match self {
            Refused::Device(error) => LoadFailure::machine(&error),
            Refused::Load(failure) => failure,
        }
    }
}

/// Makes what computes a model with these options, whose backend is chosen here. `tasks` tasks are configured for it.
pub(super) fn make(
    shared: &Shared,
    model: &Arc<Model>,
    tasks: usize,
    mut options: ExecutorOptions,
) -> Result<Made, LoadFailure> {
    let config = &*shared.config;
    let mut computes =
        backend::choose(config, model).map_err(|error| LoadFailure::operator(&error))?;
    if computes.backend != Backend::Cpu {
        options.backend = computes.backend;
        let refused = match on_device(shared, model, tasks, &options) {
            Ok(made) => return Ok(made),
            Err(refused) => refused,
        };
        if config.engine.backend != BackendChoice::Auto {
            return Err(refused.failure());
        }
        computes = Computes {
            backend: Backend::Cpu,
            why_not: Some(refused.why_not()?),
        };
        options.backend = Backend::Cpu;
    }
    if let Some(why) = &computes.why_not {
        tracing::info!(backend = computes.backend.name(), %why, "no accelerator computes the model");
    }
    let needs = needs_of(model, &options).map_err(Refused::failure)?;
    let (memory, promised) = shared.promised(model, &needs, tasks)?;
    let executor = Executor::new(Arc::clone(model), &options);
    Ok(Made {
        executor: executor.map_err(|error| LoadFailure::machine(&error))?,
        computes,
        memory,
        promised,
        moves: None,
    })
}

fn needs_of(model: &Model, options: &ExecutorOptions) -> Result<Needs, Refused> {
    Executor::needs_of(model, options).map_err(Refused::Device)
}

fn on_device(
    shared: &Shared,
    model: &Arc<Model>,
    tasks: usize,
    options: &ExecutorOptions,
) -> Result<Made, Refused> {
    let needs = needs_of(model, options)?;
    needs.fits(options.backend).map_err(Refused::Device)?;
    let integrated = needs.device.is_some_and(|device| device.integrated);
    if !integrated && shared.config.engine.backend == BackendChoice::Auto {
        return processor_first(shared, model, tasks, options);
    }
    let (memory, mut promised) = shared.promised(model, &needs, tasks)?;
    // For the time of the upload.
    let pieces = shared.promised_pieces(needs.device.filter(|device| !device.integrated))?;
    let uploaded = shared.aside(&|_, goes_on| {
        let mut beside = Beside::new(shared, Urgency::OfRequests, &goes_on);
        match Executor::load(Arc::clone(model), options, &mut beside) {
            Err(ExecutorError::GivenUp) => None,
            done => Some(done),
        }
    })?;
    // On threads of the usual rank: whoever has the machine is waited for.
    let goes_on = || shared.goes_on().is_ok();
    let compared = uploaded.and_then(|uploaded| {
        uploaded.compared(&mut Beside::new(shared, Urgency::OfRequests, &goes_on))
    });
    let executor = match compared {
        Err(ExecutorError::GivenUp) => return Err(LoadFailure::given_up().into()),
        done => done.map_err(Refused::Device)?,
    };
    drop(pieces);
    model.release();
    for reservation in &mut promised {
        if reservation.part() == Part::Device {
            // Pieces are gone. Less is always there.
            let _ = reservation.resize(memory.device());
            reservation.is_the_devices();
        }
    }
    Ok(Made {
        executor,
        computes: Computes {
            backend: options.backend,
            why_not: None,
        },
        memory,
        promised,
        moves: None,
    })
}

/// The processor serves until a device has the weights.
fn processor_first(
    shared: &Shared,
    model: &Arc<Model>,
    tasks: usize,
    options: &ExecutorOptions,
) -> Result<Made, Refused> {
    let both = ExecutorOptions {
        falls_back: true,
        ..options.clone()
    };
    let needs = needs_of(model, &both)?;
    let (memory, promised) = shared.promised_for_both(model, &needs, tasks)?;
    let now = ExecutorOptions {
        backend: Backend::Cpu,
        ..options.clone()
    };
    let executor = Executor::new(Arc::clone(model), &now).map_err(Refused::Device)?;
    Ok(Made {
        executor,
        computes: Computes {
            backend: Backend::Cpu,
            why_not: Some(format!("{}: {ON_THEIR_WAY}", options.backend)),
        },
        memory,
        promised,
        moves: Some(options.clone()),
    })
}

const ON_THEIR_WAY: &str =
    "the weights are on their way to the device, and the processor computes until they are there";

/// How urgent it is.
#[derive(Clone, Copy)]
enum Urgency {
    /// As the most urgent request that waits for the model.
    OfRequests,
    /// Nobody waits for it.
    Least,
}

/// Loading beside others that answer.
struct Beside<'a> {
    shared: &'a Shared,
    urgency: Urgency,
    goes_on: &'a dyn Fn() -> bool,
    seat: Option<Seat>,
}

impl<'a> Beside<'a> {
    fn new(shared: &'a Shared, urgency: Urgency, goes_on: &'a dyn Fn() -> bool) -> Beside<'a> {
        Beside {
            shared,
            urgency,
            goes_on,
            seat: None,
        }
    }
}

impl Loading for Beside<'_> {
    fn goes_on(&mut self, sent: usize, all: usize) -> bool {
        self.shared.moving.sent(sent, all);
        (self.goes_on)()
    }

    fn pass(&mut self, pass: &mut dyn FnMut(&dyn Fn() -> bool)) -> bool {
        let Beside {
            shared,
            urgency,
            goes_on,
            seat,
        } = self;
        let seat = seat.get_or_insert_with(|| shared.machine.seat());
        let wanted = || {
            goes_on().then(|| match urgency {
                Urgency::OfRequests => shared.urgency(),
                Urgency::Least => Priority::Batch,
            })
        };
        if !seat.take_waiting(wanted) {
            return false;
        }
        let alarms = seat.alarms();
        pass(&|| seat.alarms() != alarms);
        seat.release();
        true
    }
}

/// How far a device is that gets the weights while the processor serves.
#[derive(Debug, Default)]
pub(super) struct Moving {
    state: Mutex<State>,
    /// Whether there is an executor to change over to.
    ready: AtomicBool,
    /// Hundredths that are on their way.
    percent: AtomicU8,
}

#[derive(Debug, Default)]
enum State {
    /// There is none, or what computed the model when it was loaded does still.
    #[default]
    No,
    Uploading(Backend),
    Ready(Box<Executor>),
    /// It computes.
    Done(Backend),
    /// The processor goes on, for this reason.
    Failed(String),
}

impl Moving {
    fn state(&self) -> MutexGuard<'_, State> {
        // It is replaced as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, sent: usize, all: usize) {
        let percent = sent.saturating_mul(100) / all.max(1);
        let percent = u8::try_from(percent).unwrap_or(100).min(100);
        self.percent.store(percent, Ordering::Relaxed);
    }

    /// What computes the model by now; `None` if it is what did when it was loaded.
    pub(super) fn computes(&self) -> Option<Computes> {
        let cpu = |why: String| Computes {
            backend: Backend::Cpu,
            why_not: Some(why),
        };
        match &*self.state() {
            State::No => None,
            State::Uploading(backend) => {
                let percent = self.percent.load(Ordering::Relaxed);
                Some(cpu(format!("{backend}: {ON_THEIR_WAY} ({percent} %)")))
            }
            State::Ready(executor) => {
                let backend = executor.backend();
                Some(cpu(format!("{backend}: it computes from the next pass on")))
            }
            State::Done(backend) => Some(Computes {
                backend: *backend,
                why_not: None,
            }),
            State::Failed(why) => Some(cpu(why.clone())),
        }
    }

    /// Whether packed weights are of no use, or soon will be.
    pub(super) fn is_elsewhere(&self) -> bool {
        !matches!(*self.state(), State::No | State::Failed(_))
    }

    /// Whether there is an executor to change over to.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    fn take_ready(&self) -> Option<Executor> {
        self.ready.store(false, Ordering::Relaxed);
        let mut state = self.state();
        match std::mem::take(&mut *state) {
            State::Ready(executor) => Some(*executor),
            other => {
                *state = other;
                None
            }
        }
    }
}

/// The thread that brings the model's weights to a device while the processor serves.
pub(super) fn run(shared: &Shared, model: &Arc<Model>, options: &ExecutorOptions) {
    match upload(shared, model, options) {
        Ok(executor) => {
            *shared.moving.state() = State::Ready(Box::new(executor));
            shared.moving.ready.store(true, Ordering::Relaxed);
            shared.wake();
        }
        // The daemon stops, or the model goes.
        Err(Refused::Device(ExecutorError::GivenUp)) => {}
        Err(refused) => shared.stays(refused.failure().message),
    }
    shared.around.tell();
}

fn upload(
    shared: &Shared,
    model: &Arc<Model>,
    options: &ExecutorOptions,
) -> Result<Executor, Refused> {
    let needs = needs_of(model, options)?;
    let _pieces = shared.promised_pieces(needs.device)?;
    let goes_on = || {
        let phase = shared.board().phase;
        matches!(phase, Phase::Loading | Phase::Serving)
    };
    let uploaded = giving_way(|| {
        let mut beside = Beside::new(shared, Urgency::Least, &goes_on);
        Executor::load(Arc::clone(model), options, &mut beside)
    });
    let mut beside = Beside::new(shared, Urgency::Least, &goes_on);
    let compared = uploaded.and_then(|uploaded| uploaded.compared(&mut beside));
    compared.map_err(Refused::Device)
}

impl Shared {
    /// Memory for pieces of the weights on their way, promised.
    fn promised_pieces(&self, device: Option<DeviceNeeds>) -> Result<Option<Reservation>, Refused> {
        let Some(device) = device else {
            return Ok(None);
        };
        let pieces = device.pieces as u64;
        let promised = self.budget.reserve(Part::Working, Held::Private, pieces);
        promised
            .map(Some)
            .map_err(|refusal| LoadFailure::room(&refusal).into())
    }

    /// A device is to get the weights while the processor serves.
    pub(super) fn moves_to(&self, backend: Backend) {
        *self.moving.state() = State::Uploading(backend);
    }

    /// Between two passes: has the device compute that is ready. What is being answered goes on with the same words.
    pub(super) fn changes_over<F: Forward>(&self, generator: &mut Generator<F>) {
        let Some(device) = self.moving.take_ready() else {
            return;
        };
        let backend = device.backend();
        let Some(executor) = generator.executor_mut() else {
            return;
        };
        match executor.change_over(device) {
            Ok(()) => {
                // Of a device's passes nothing is known before they are made.
                generator.set_costs(PassCosts::default());
                *self.moving.state() = State::Done(backend);
                self.telemetry.backend(Backend::Cpu, -1);
                self.telemetry.backend(backend, 1);
                crate::event!(
                    BackendReady,
                    backend = backend.name(),
                    "the device has the model's weights and computes from now on"
                );
            }
            Err(error) => {
                self.stays(format!("{backend}: {error}"));
            }
        }
        self.around.tell();
    }

    /// The processor goes on, since the device that was to does not compute the model.
    pub(super) fn stays(&self, why: String) {
        tracing::warn!(%why, "the device does not compute the model, and the processor goes on");
        *self.moving.state() = State::Failed(why);
        // Whoever packs waits for that.
        self.wake();
    }
}
