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

/// Tokens that an answer goes on for before guesses are held against its constraint again where that failed, and how often
/// they become twice as many.
const RESUME_TOKENS: usize = 16;
const RESUMES_MAX: u32 = 10;

/// The state of one answer, here or with the [`Masker`].
///
/// Invariant: what is asked of the state for an answer, and in which order, follows from its tokens and their logits alone:
/// with guesses it is the same as without, limits of work included. What only guesses ask is asked of the [`Trial`].
#[derive(Debug)]
pub(super) struct Constrained {
    place: RefCell<Place>,
    /// Takes forced tokens one by one.
    one_by_one: bool,
    /// Tokens that the state is ahead of the answer by: guesses that were chosen, whose turn is when the pass is over.
    ahead: Cell<usize>,
    trial: RefCell<Trial>,
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

/// Where guesses are held against a constraint: a copy of the answer's state, so that nothing they take or break is the
/// answer's. It is made for the first guess and then follows the answer, which is less work than a copy for each.
#[derive(Debug, Default)]
struct Trial {
    state: Option<Box<State>>,
    /// Guesses that it is ahead of the answer by.
    ahead: usize,
    /// Copies that failed, and the tokens that the answer has to have for another to be made.
    failed: u32,
    resumes: usize,
}

impl Trial {
    /// The copy, where `answer` stands, or ahead of it by guesses. `None` if there is none for now.
    fn follow(&mut self, answer: &State) -> Result<Option<&mut State>, StateError> {
        let said = answer.said();
        if self.state.is_none() && said.len() >= self.resumes {
            self.state = Some(Box::new(answer.fork()));
            self.ahead = 0;
        }
        let Some(state) = self.state.as_deref_mut() else {
            return Ok(None);
        };
        let known = state.said().len().saturating_sub(self.ahead);
        if let Some(new @ [_, ..]) = said.get(known..) {
            state.rollback(core::mem::take(&mut self.ahead))?;
            new.iter().try_for_each(|&id| state.follow(id))?;
        }
        Ok(Some(state))
    }

    /// Gives up a copy that failed.
    fn fail(&mut self, said: usize) {
        self.state = None;
        self.failed += 1;
        self.resumes = said.saturating_add(RESUME_TOKENS << self.failed.min(RESUMES_MAX));
    }
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
            trial: RefCell::default(),
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
        if self.asks_all.get() && state.is_to_be_prepared() {
            // Behind a guess nobody did so beside the pass.
            state.prepare()?;
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
            let mut ahead = self.ahead.take();
            if state.last(ahead).first() == Some(&id) {
                ahead -= 1;
            } else {
                state.rollback(ahead)?;
                ahead = 0;
                state.accept(id)?;
            }
            while !self.one_by_one
                && let Some(next) = state.forced_before(ahead)
            {
                match ahead.checked_sub(1) {
                    Some(less) => ahead = less,
                    None => state.accept(next)?,
                }
                forced.push(next);
            }
            self.ahead.set(ahead);
            Ok(())
        })
    }

    /// Does something for guesses, with a state that is not the answer's and how many guesses it is ahead of that by. `None`
    /// where it fails: then there are no guesses for a while.
    fn try_out<T>(
        &self,
        work: impl FnOnce(&mut State, &mut usize) -> Result<T, StateError>,
    ) -> Option<T> {
        let mut trial = self.trial.try_borrow_mut().ok()?;
        let followed = self.with(|answer| {
            self.come_back(answer)?;
            let said = answer.said().len();
            Ok((said, trial.follow(answer).map(|state| state.is_some())))
        });
        let (said, followed) = followed.ok()?;
        let Trial { state, ahead, .. } = &mut *trial;
        let state = state.as_deref_mut()?;
        let done = followed.and_then(|_| work(state, ahead));
        let (masks, masking) = state.spent();
        let mut counts = self.counts.get();
        counts.masks += u64::from(masks);
        counts.masking += masking;
        self.counts.set(counts);
        if done.is_err() {
            trial.fail(said);
        }
        done.ok()
    }

    /// How many of `guesses` may come next one after the other.
    pub(super) fn fitting(&self, guesses: &[u32]) -> usize {
        self.try_out(|state, ahead| {
            state.rollback(core::mem::take(ahead))?;
            state.fitting(guesses)
        })
        .unwrap_or(0)
    }

    /// Takes back the guesses that were made by [`Limits::guess`].
    pub(super) fn take_back(&self) {
        let made = self.trial.try_borrow().is_ok_and(|trial| trial.ahead > 0);
        if made {
            self.try_out(|state, ahead| state.rollback(core::mem::take(ahead)));
        }
    }

    /// Whether the answer is complete.
    pub(super) fn is_finished(&self) -> bool {
        // Nothing is behind one that is.
        self.ahead.get() == 0 && self.with(|state| Ok(state.is_finished())).unwrap_or(false)
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

    /// Goes back to where the answer is.
    fn come_back(&self, state: &mut State) -> Result<(), StateError> {
        state.rollback(self.ahead.take())
    }
}

impl Limits for Constrained {
    fn guess(&self, choose: &mut dyn FnMut(Option<&[u32]>) -> Option<u32>) -> Option<u32> {
        let guess = self.try_out(|state, ahead| {
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
            // What may come is known here, one way or the other.
            let guess = guess.filter(|&id| state.takes(id) == Some(true));
            if let Some(id) = guess {
                state.follow(id)?;
                *ahead += 1;
            }
            Ok(guess)
        });
        guess.flatten()
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
