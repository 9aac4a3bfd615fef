//! The constraint of an answer under way, and the thread that computes what may come next while a pass runs.
//!
//! What may come next follows from the tokens so far alone, so it can be found as soon as the last of them is known. A
//! [`Masker`] has a state from then on until the logits are there; nobody else touches it meanwhile.

use std::cell::{Cell, RefCell};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use crate::grammar::{Allowed, Grammar, State, StateError};
use crate::speculate::Limits;

/// The state of one answer, here or with the [`Masker`].
#[derive(Debug)]
pub(super) struct Constrained {
    place: RefCell<Place>,
    /// Takes forced tokens one by one.
    one_by_one: bool,
    /// Guesses that the state is ahead of the answer by.
    ahead: Cell<usize>,
}

#[derive(Debug)]
enum Place {
    Here(Box<State>),
    Away(Receiver<Box<State>>),
}

impl Constrained {
    /// The beginning of an answer.
    pub(super) fn new(
        grammar: &Grammar,
        drops_space: bool,
        tokens_max: usize,
        one_by_one: bool,
    ) -> Result<Self, StateError> {
        let mut state = Box::new(grammar.state());
        state.begin(drops_space, tokens_max)?;
        Ok(Self {
            place: RefCell::new(Place::Here(state)),
            one_by_one,
            ahead: Cell::new(0),
        })
    }

    /// Does something with the state, for which the masker may have to finish first.
    fn with<T>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let mut place = self.place.borrow_mut();
        if let Place::Away(back) = &*place {
            let state = back.recv().map_err(|_| StateError::lost())?;
            *place = Place::Here(state);
        }
        match &mut *place {
            Place::Here(state) => work(state),
            Place::Away(_) => Err(StateError::lost()),
        }
    }

    /// Chooses the token behind `guesses`: the only one there is, or one of those that `choose` is told of.
    pub(super) fn choose<E: From<StateError>>(
        &self,
        guesses: &[u32],
        mut choose: impl FnMut(&[u32]) -> Result<u32, E>,
    ) -> Result<u32, E> {
        self.with(|state| {
            let mut taken = 0;
            let chosen = guesses.iter().try_for_each(|&guess| {
                state.accept(guess)?;
                taken += 1;
                Ok(())
            });
            // Where the guesses complete the answer, nothing is chosen behind them, and nobody asks for it.
            let chosen = chosen.and_then(|()| choose_next(state, &mut choose));
            state.rollback(taken)?;
            chosen
        })?
    }

    /// Takes a token that was chosen; what is forced behind it is added to `forced`, unless that is taken one by one.
    pub(super) fn accept(&self, id: u32, forced: &mut Vec<u32>) -> Result<(), StateError> {
        self.with(|state| {
            state.accept(id)?;
            if !self.one_by_one {
                while let Some(&next) = state.forced().first() {
                    state.accept(next)?;
                    forced.push(next);
                }
            }
            Ok(())
        })
    }

    /// How many of `guesses` may come next one after the other.
    pub(super) fn fitting(&self, guesses: &[u32]) -> usize {
        self.with(|state| Ok(state.fitting(guesses))).unwrap_or(0)
    }

    /// Takes back the guesses that were made by [`Limits::guess`].
    pub(super) fn take_back(&self) {
        let ahead = self.ahead.replace(0);
        if ahead > 0 {
            // An error stays in the state, and whoever asks it next is told.
            let _ = self.with(|state| state.rollback(ahead));
        }
    }

    /// Whether the answer is complete.
    pub(super) fn is_finished(&self) -> bool {
        self.with(|state| Ok(state.is_finished())).unwrap_or(false)
    }
}

impl Limits for Constrained {
    fn guess(&self, choose: &mut dyn FnMut(&[u32]) -> Option<u32>) -> Option<u32> {
        let guess = self.with(|state| {
            if state.is_finished() {
                return Ok(None);
            }
            let guess = match state.allowed()? {
                Allowed::One(id) => Some(id),
                Allowed::Any(words) => choose(words),
            };
            if let Some(id) = guess {
                state.accept(id)?;
            }
            Ok(guess)
        });
        let guess = guess.ok().flatten();
        self.ahead
            .set(self.ahead.get() + usize::from(guess.is_some()));
        guess
    }
}

/// Chooses among what may come next, again where the choice does not stand.
fn choose_next<E>(
    state: &mut State,
    choose: &mut impl FnMut(&[u32]) -> Result<u32, E>,
) -> Result<Result<u32, E>, StateError> {
    loop {
        let chosen = match state.allowed()? {
            Allowed::One(id) => return Ok(Ok(id)),
            Allowed::Any(words) => choose(words),
        };
        let id = match chosen {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(id) = state.settle(id)? {
            return Ok(Ok(id));
        }
    }
}

/// Computes masks on a thread of its own, which the first of them starts.
#[derive(Debug, Default)]
pub(super) struct Masker {
    jobs: Option<Sender<Job>>,
}

#[derive(Debug)]
struct Job {
    state: Box<State>,
    back: SyncSender<Box<State>>,
}

impl Masker {
    /// Begins to find out what may come next, if that is not known.
    pub(super) fn prepare(&mut self, constrained: &Constrained) {
        let mut place = constrained.place.borrow_mut();
        let Place::Here(state) = &*place else {
            return;
        };
        if !state.is_to_be_prepared() {
            return;
        }
        let Some(jobs) = self.jobs() else {
            // Then it is computed where it is needed.
            return;
        };
        let (back, receiver) = sync_channel(1);
        let Place::Here(state) = core::mem::replace(&mut *place, Place::Away(receiver)) else {
            return;
        };
        if let Err(unsent) = jobs.send(Job { state, back }) {
            *place = Place::Here(unsent.0.state);
            self.jobs = None;
        }
    }

    fn jobs(&mut self) -> Option<&Sender<Job>> {
        if self.jobs.is_none() {
            let (sender, receiver) = channel::<Job>();
            let run = move || {
                for mut job in receiver {
                    // An error stays in the state, and whoever asks it next is told.
                    let _ = job.state.prepare();
                    // Whoever lent it may be gone.
                    let _ = job.back.send(job.state);
                }
            };
            let thread = std::thread::Builder::new().name("masks".to_owned());
            match thread.spawn(run) {
                Ok(_) => self.jobs = Some(sender),
                Err(error) => tracing::warn!("masks have no thread of their own: {error}"),
            }
        }
        self.jobs.as_ref()
    }
}
