//! The constraint of an answer under way, and the thread that computes what may come next while a pass runs.
//!
//! What may come next follows from the tokens so far alone, so it can be found as soon as the last of them is known. A
//! [`Masker`] has a state from then on until the logits are there; nobody else touches it meanwhile.

use std::cell::{Cell, RefCell};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use crate::grammar::{Allowed, Grammar, State, StateError};
use crate::speculate::Limits;

/// Tokens that are looked at one by one before all that may come next are: together they are less work.
const LIKELY: usize = 8;

/// The state of one answer, here or with the [`Masker`].
#[derive(Debug)]
pub(super) struct Constrained {
    place: RefCell<Place>,
    /// Takes forced tokens one by one.
    one_by_one: bool,
    /// Guesses that the state is ahead of the answer by.
    ahead: Cell<usize>,
    /// Whether the last choice had to know all that might come next, so that the next is likely to.
    asks_all: Cell<bool>,
    counts: Cell<ConstraintCounts>,
}

/// What constraints took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConstraintCounts {
    /// Choices among tokens that constraints allow, those after guesses that were wrong included.
    pub choices: u64,
    /// Masks of all tokens that may come next. Most choices need none.
    pub masks: u64,
    /// The time to compute those, mostly beside passes.
    pub masking: Duration,
}

impl ConstraintCounts {
    pub(super) fn add(&mut self, other: ConstraintCounts) {
        self.choices += other.choices;
        self.masks += other.masks;
        self.masking += other.masking;
    }
}

/// How a token is chosen among those that may come next.
pub(super) trait Choose {
    /// Why none is.
    type Error: From<StateError>;

    /// Tokens that are the choice where they may come and none of those before may: puts them into `ids`, and says how
    /// many there are, fewer than fit if there are no more. What is chosen where none of them may come follows from
    /// [`Choose::among`]. Asked anew, it says the same.
    fn likely(&mut self, ids: &mut [u32]) -> usize;

    /// The choice among these: their bits are set, the lowest first.
    fn among(&mut self, allowed: &[u32]) -> Result<u32, Self::Error>;
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
        asks_all: bool,
    ) -> Result<Self, StateError> {
        let mut state = Box::new(grammar.state());
        state.begin(drops_space, tokens_max)?;
        Ok(Self {
            place: RefCell::new(Place::Here(state)),
            one_by_one,
            ahead: Cell::new(0),
            asks_all: Cell::new(asks_all),
            counts: Cell::default(),
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

    /// Chooses the token behind `guesses`: the only one there is, or one of those that `choose` is told of. What it is asked
    /// next is mostly the token behind one guess more, so the state stays where it is.
    pub(super) fn choose<C: Choose>(
        &self,
        guesses: &[u32],
        choose: &mut C,
    ) -> Result<u32, C::Error> {
        self.with(|state| {
            let mut ahead = self.ahead.get();
            if guesses.get(..ahead) != Some(state.last(ahead)) {
                state.rollback(ahead)?;
                ahead = 0;
            }
            let accepted = guesses[ahead..].iter().try_for_each(|&guess| {
                state.accept(guess)?;
                ahead += 1;
                Ok(())
            });
            self.ahead.set(ahead);
            // Where the guesses complete the answer, nothing is chosen behind them, and nobody asks for it.
            accepted.and_then(|()| self.choose_next(state, choose))
        })?
    }

    /// Chooses among what may come next, again where the choice does not stand.
    fn choose_next<C: Choose>(
        &self,
        state: &mut State,
        choose: &mut C,
    ) -> Result<Result<u32, C::Error>, StateError> {
        if let Some(&only) = state.forced().first() {
            return Ok(Ok(only));
        }
        let mut counts = self.counts.get();
        counts.choices += 1;
        self.counts.set(counts);
        self.asks_all.set(false);
        let mut tried = 0;
        // One is mostly enough, and by far the least work.
        for count in [1, LIKELY] {
            let mut ids = [0; LIKELY];
            let found = choose.likely(&mut ids[..count]);
            for &id in ids[..found].iter().skip(tried) {
                tried += 1;
                let takes = match state.takes(id) {
                    Some(takes) => takes,
                    None => {
                        self.asks_all.set(true);
                        state.prepare()?;
                        state.takes(id).unwrap_or(false)
                    }
                };
                if takes && let Some(id) = state.settle(id)? {
                    return Ok(Ok(id));
                }
            }
            if found < count {
                break;
            }
        }
        self.asks_all.set(true);
        loop {
            let chosen = match state.allowed()? {
                Allowed::One(id) => return Ok(Ok(id)),
                Allowed::Any(words) => choose.among(words),
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

    /// Takes a token that was chosen; what is forced behind it is added to `forced`, unless that is taken one by one.
    pub(super) fn accept(&self, id: u32, forced: &mut Vec<u32>) -> Result<(), StateError> {
        self.with(|state| {
            self.come_back(state)?;
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
        self.with(|state| {
            self.come_back(state)?;
            Ok(state.fitting(guesses))
        })
        .unwrap_or(0)
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
        self.with(|state| {
            self.come_back(state)?;
            Ok(state.is_finished())
        })
        .unwrap_or(false)
    }

    /// What it took since this was last asked.
    pub(super) fn counts(&self) -> ConstraintCounts {
        let mut counts = self.counts.take();
        // One that is with the masker tells the next time.
        if let Place::Here(state) = &mut *self.place.borrow_mut() {
            let (masks, masking) = state.spent();
            counts.masks += u64::from(masks);
            counts.masking += masking;
        }
        counts
    }

    /// Takes back guesses.
    fn come_back(&self, state: &mut State) -> Result<(), StateError> {
        state.rollback(self.ahead.take())
    }
}

impl Limits for Constrained {
    fn guess(&self, choose: &mut dyn FnMut(Option<&[u32]>) -> Option<u32>) -> Option<u32> {
        let guess = self.with(|state| {
            if state.is_finished() {
                return Ok(None);
            }
            let likely = match state.forced().first() {
                Some(&only) => Some(only),
                None => choose(None).filter(|&id| state.takes(id) == Some(true)),
            };
            let guess = match likely {
                Some(likely) => Some(likely),
                None => match state.allowed()? {
                    Allowed::One(id) => Some(id),
                    Allowed::Any(words) => choose(Some(words)),
                },
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
    /// Begins to find out what may come next, if that is not known and likely to be asked.
    pub(super) fn prepare(&mut self, constrained: &Constrained) {
        let mut place = constrained.place.borrow_mut();
        let Place::Here(state) = &*place else {
            return;
        };
        if !constrained.asks_all.get() || !state.is_to_be_prepared() {
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
