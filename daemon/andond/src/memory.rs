//! The daemon's one budget of memory: every part of it that keeps more than a few megabytes asks here before it does.
//!
//! What is promised is in hand as a [`Reservation`], which gives it back when it is dropped. The arithmetic, and how memory
//! that is short is shared out, is [`andon_policy::memory`]'s; what the system has left comes from [`crate::hardware`].
//! Whoever keeps what can be spared watches [`Budget::shortage`] and lets go of it: caches at [`Shortage::Caches`], a model that
//! nobody asks with each reading of [`Shortage::Idle`] or more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use andon_policy::memory::{self, Limits, Reading};
use tokio::sync::watch;

pub use andon_policy::memory::{Held, Part, Refusal, Shortage};

use crate::config::Config;
use crate::config::hardware::HardwareConfig;

/// Promises memory. See the module.
#[derive(Debug)]
pub struct Budget {
    state: Mutex<memory::Budget>,
    shortage: watch::Sender<Shortage>,
    /// Where the system says what it has left; `None` if it is not asked.
    system: Option<HardwareConfig>,
}

/// What the budget says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetFacts {
    /// Most bytes that are promised together; `None` if nothing bounds them.
    pub bytes_max: Option<u64>,
    /// Bytes promised for each part.
    pub parts: [(Part, u64); Part::COUNT],
    /// Bytes that could be promised now; `None` if nothing bounds them.
    pub left: Option<u64>,
    /// How short memory is.
    pub shortage: Shortage,
}

impl Budget {
    /// The budget that a configuration gives on this machine.
    #[must_use]
    pub fn of(config: &Config) -> Arc<Budget> {
        let memory = &config.memory;
        let all = andon_os::memory_bytes();
        let limits = Limits::new(all, memory.budget_bytes, memory.reserve_bytes);
        Budget::within(limits, Some(config.hardware.clone()))
    }

    /// A budget within limits, of which nothing is promised.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Budget> {
        Budget::within(limits, None)
    }

    fn within(limits: Limits, system: Option<HardwareConfig>) -> Arc<Budget> {
        Arc::new(Budget {
            state: Mutex::new(memory::Budget::new(limits)),
            shortage: watch::Sender::new(Shortage::None),
            system,
        })
    }

    fn state(&self) -> MutexGuard<'_, memory::Budget> {
        // Every critical section leaves the numbers whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises memory, if the budget has it and the system has it left.
    ///
    /// # Errors
    /// Which does not.
    pub fn reserve(
        self: &Arc<Self>,
        part: Part,
        held: Held,
        bytes: u64,
    ) -> Result<Reservation, Refusal> {
        self.state().reserve(part, held, bytes)?;
        Ok(self.promised(part, held, bytes))
    }

    /// Promises memory that the daemon cannot do without, if the budget has it, whatever the system has left now.
    ///
    /// # Errors
    /// The budget has not.
    pub fn require(
        self: &Arc<Self>,
        part: Part,
        held: Held,
        bytes: u64,
    ) -> Result<Reservation, Refusal> {
        self.state().require(part, held, bytes)?;
        Ok(self.promised(part, held, bytes))
    }

    fn promised(self: &Arc<Self>, part: Part, held: Held, bytes: u64) -> Reservation {
        Reservation {
            budget: Arc::clone(self),
            part,
            held,
            bytes,
        }
    }

    /// Bytes that could be promised now; `None` if nothing bounds them.
    #[must_use]
    pub fn left(&self) -> Option<u64> {
        self.state().left()
    }

    /// Bytes of the budget that are not promised, whatever the system has left now; `None` if it has no bound.
    #[must_use]
    pub fn left_in_all(&self) -> Option<u64> {
        self.state().left_of_budget()
    }

    /// Whether caches are to give way.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.state().shortage() != Shortage::None
    }

    /// How short memory is, and when that changes.
    #[must_use]
    pub fn shortage(&self) -> watch::Receiver<Shortage> {
        self.shortage.subscribe()
    }

    /// What there is to tell.
    #[must_use]
    pub fn facts(&self) -> BudgetFacts {
        let state = self.state();
        BudgetFacts {
            bytes_max: state.limits().bytes_max,
            parts: Part::ALL.map(|part| (part, state.part(part))),
            left: state.left(),
            shortage: state.shortage(),
        }
    }

    /// Whether a model that nobody asks is to go now, for want of memory at the last reading.
    pub(crate) fn take_idle(&self) -> bool {
        self.state().take_idle()
    }

    /// Asks the system what it has left by now; how short memory is is told by [`Budget::read`] only. Reads a few small files.
    pub(crate) fn refresh(&self) {
        if let Some(config) = &self.system {
            let memory = crate::hardware::memory_of(config);
            let resident_bytes = memory.resident_bytes.unwrap_or(0);
            self.state().refresh(memory.left_bytes(), resident_bytes);
        }
    }

    /// Takes in what the system says. Gives how short memory is if that changed.
    pub(crate) fn read(&self, reading: Reading, now_ms: u64) -> Option<Shortage> {
        let mut state = self.state();
        let changed = state.read(reading, now_ms);
        let shortage = state.shortage();
        drop(state);
        self.shortage.send_if_modified(|known| {
            let differs = *known != shortage;
            *known = shortage;
            differs
        });
        changed.then_some(shortage)
    }
}

/// Memory that is promised; dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping it gives the memory back"]
pub struct Reservation {
    budget: Arc<Budget>,
    part: Part,
    held: Held,
    bytes: u64,
}

impl Reservation {
    /// How much it is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes it more, if there is that much, or less.
    ///
    /// # Errors
    /// There is not; it is what it was.
    pub fn resize(&mut self, bytes: u64) -> Result<(), Refusal> {
        let mut state = self.budget.state();
        if let Some(more) = bytes.checked_sub(self.bytes) {
            state.reserve(self.part, self.held, more)?;
        } else {
            state.give_back(self.part, self.held, self.bytes - bytes);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Reservation {
    /// What it is for.
    pub(crate) fn part(&self) -> Part {
        self.part
    }

    /// A graphics processor's driver has all of it from now on.
    pub(crate) fn is_the_devices(&mut self) {
        if self.held == Held::Private {
            self.budget.state().take_for_device(self.bytes);
            self.held = Held::Device;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.give_back(self.part, self.held, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, Held, Part, Shortage};
    use andon_policy::memory::{Limits, Reading};

    #[test]
    fn what_is_dropped_is_given_back() {
        let budget = Budget::new(Limits {
            bytes_max: Some(100),
            ..Limits::default()
        });
        let weights = budget.require(Part::Weights, Held::Mapped, 70).expect("70");
        let mut answers = budget
            .reserve(Part::Answers, Held::Private, 20)
            .expect("20");
        assert!(answers.resize(31).is_err());
        assert_eq!((answers.bytes(), budget.left()), (20, Some(10)));
        answers.resize(30).expect("30");
        assert!(budget.reserve(Part::Draft, Held::Private, 1).is_err());
        answers.resize(5).expect("less");
        drop(weights);
        assert_eq!(budget.left(), Some(95));
        drop(answers);
        assert_eq!(budget.facts().left, Some(100));
    }

    #[test]
    fn those_who_watch_are_told_how_short_memory_is() {
        let budget = Budget::new(Limits {
            reserve_bytes: 1_000,
            ..Limits::default()
        });
        let shortage = budget.shortage();
        let left = |left_bytes| Reading {
            left_bytes: Some(left_bytes),
            ..Reading::default()
        };
        assert_eq!(budget.read(left(5_000), 0), None);
        assert!(!shortage.has_changed().expect("it is there"));
        assert_eq!(budget.read(left(700), 1), Some(Shortage::Idle));
        assert_eq!(*shortage.borrow(), Shortage::Idle);
    }
}
