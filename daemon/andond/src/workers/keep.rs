//! Changing which model answers to which name, and bringing that to the disk.
//!
//! What somebody asks for is on the disk before it holds. What the daemon does of itself holds at once, for those who wait
//! for answers, and is written by a thread of its own: a disk that hangs keeps nobody from being answered.
//!
//! Invariant: one thread writes at a time, and what is written last is what holds.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::names::Names;
use super::{Inner, State};
use crate::registry::RegistryError;

/// After this time it is tried again to write what could not be written.
const WRITE_AGAIN: Duration = Duration::from_secs(60);

impl Inner {
    /// The right to write. Taken before the state is, if both are.
    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the names as `change` does, on the disk before it holds here. That may be called more than once, where the
    /// names change meanwhile. What it gave is handed out with the state in which it holds.
    pub(super) fn change_names<T>(
        &self,
        change: impl Fn(&mut Names) -> Result<T, RegistryError>,
    ) -> Result<(MutexGuard<'_, State>, T), RegistryError> {
        let _writing = self.writing();
        let mut state = self.state();
        loop {
            if state.stopping {
                return Err(RegistryError::Conflict("the daemon is stopping".to_owned()));
            }
            let before = state.names.clone();
            let mut names = before.clone();
            let made = change(&mut names)?;
            drop(state);
            let written = self.registry.write_names(&names.text());
            state = self.state();
            if written.is_ok() && state.names == before {
                state.names = names;
                return Ok((state, made));
            }
            // Whatever the file says now, it is to say what holds.
            state.unwritten = Some(Instant::now());
            written?;
        }
    }

    /// Has a thread write the names if that is due.
    pub(super) fn write_due(self: &Arc<Inner>, state: &mut State) {
        let due = state.unwritten.is_some_and(|due| due <= Instant::now());
        if !due || state.writes {
            return;
        }
        state.writes = true;
        let inner = Arc::clone(self);
        let started = std::thread::Builder::new()
            .name("names".to_owned())
            .spawn(move || inner.write_now());
        if let Err(error) = started {
            state.writes = false;
            state.unwritten = Some(Instant::now() + WRITE_AGAIN);
            crate::event!(ModelNamesLost, %error, "no thread writes which model answers to which name");
        }
    }

    fn write_now(&self) {
        let _writing = self.writing();
        let mut state = self.state();
        while state.unwritten.is_some_and(|due| due <= Instant::now()) {
            state.unwritten = None;
            let names = state.names.clone();
            drop(state);
            let written = self.keep_names(&names);
            state = self.state();
            if !written {
                state.unwritten = Some(Instant::now() + WRITE_AGAIN);
            }
        }
        state.writes = false;
    }

    /// Writes the names; where that fails, what is so now may not be so after the next start. Says whether it did not.
    pub(super) fn keep_names(&self, names: &Names) -> bool {
        let written = self.registry.write_names(&names.text());
        if let Err(error) = &written {
            crate::event!(ModelNamesLost, %error, "which model answers to which name is not kept for the next start");
        }
        written.is_ok()
    }

    /// The daemon ends in good order, which is not to count against who is on probation.
    pub(super) fn rest(&self) {
        let _writing = self.writing();
        let mut names = self.state().names.clone();
        let unwritten = self.state().unwritten.is_some();
        if names.rest() || unwritten {
            self.keep_names(&names);
        }
    }
}
