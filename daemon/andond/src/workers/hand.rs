//! What is done with models by hand: loaded, to stay; unloaded; removed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_wire::ModelStage;

use super::names::Target;
use super::room::Yields;
use super::{Inner, Workers};
use crate::registry::RegistryError;
use crate::worker::{WorkerHandle, WorkerState};

/// How often a sign of life is given.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Hears what is being done.
pub(super) type Progress<'a> = &'a mut dyn FnMut(ModelStage);

/// A model stays in memory for as long as somebody has this, who waits for it.
pub(super) struct Stay<'a> {
    inner: &'a Inner,
    target: Target,
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        if let Some(member) = state.members.get_mut(&self.target) {
            member.held = member.held.saturating_sub(1);
        }
    }
}

impl Workers {
    /// Loads a model, which stays until it is unloaded. Blocks until it is ready.
    ///
    /// # Errors
    /// If it is not kept here, or cannot be loaded.
    pub fn load(&self, model: &str, progress: Progress<'_>) -> Result<(), RegistryError> {
        let inner = &self.inner;
        let target = inner.kept(model)?;
        let stay = inner.hold(&target, false)?;
        inner.ready(&target, progress)?;
        if let Some(member) = inner.state().members.get_mut(&target) {
            member.pinned = true;
        }
        drop(stay);
        Ok(())
    }

    /// Unloads a model once it has answered what it has taken. Blocks until it is gone. Says whether it was loaded.
    ///
    /// # Errors
    /// If it answers to the configured name, or is asked for before it is gone.
    pub fn unload(&self, model: &str, progress: Progress<'_>) -> Result<bool, RegistryError> {
        let inner = &self.inner;
        let target = Target::Kept(model.to_owned());
        {
            let mut state = inner.state();
            if inner.default_target(&state) == target {
                return Err(RegistryError::Conflict(format!(
                    "{model} answers to the configured name {}; swap another in first",
                    inner.default_name()
                )));
            }
            let Some(member) = state.members.get_mut(&target) else {
                if inner.registry.is_kept(model) {
                    return Ok(false);
                }
                return Err(RegistryError::Unknown(model.chars().take(128).collect()));
            };
            if member.held > 0 {
                return Err(RegistryError::Conflict(format!(
                    "somebody waits for {model} to be loaded"
                )));
            }
            member.pinned = false;
            inner.let_go(&mut state, &target);
        }
        inner.nudge();
        inner.gone(&target, progress);
        if inner.state().members.contains_key(&target) {
            return Err(RegistryError::Conflict(format!(
                "{model} was asked for meanwhile and stays until nobody does"
            )));
        }
        Ok(true)
    }

    /// Removes a model that is kept and not in use; no rollback leads to it any more. Where a name is no model's own it goes,
    /// and the model that answers to it stays.
    ///
    /// # Errors
    /// If there is none, it is in use, or its folder cannot be removed.
    pub fn remove(&self, model: &str) -> Result<(), RegistryError> {
        let inner = &self.inner;
        let lent = inner.own(model).is_none() && inner.state().names.get(model).is_some();
        if lent {
            return inner.forget_name(model);
        }
        inner.registry.remove(model)?;
        let mut state = inner.state();
        let before = state.names.clone();
        inner.forget_gone(&mut state.names, |name| !inner.registry.is_kept(name));
        if state.names != before {
            state.unwritten = Some(Instant::now());
        }
        drop(state);
        inner.nudge();
        Ok(())
    }
}

impl Inner {
    /// Has a name be none any more that is no model's own.
    fn forget_name(&self, name: &str) -> Result<(), RegistryError> {
        let (mut state, entry) = self.change_names(|names| {
            let unknown = || RegistryError::Unknown(name.chars().take(128).collect());
            names.remove(name).ok_or_else(unknown)
        })?;
        state.probations.retain(|probation| probation.name != name);
        for target in entry.former.iter().chain([&entry.target]) {
            self.let_unnamed_go(&mut state, target);
        }
        self.note_used(&state);
        drop(state);
        self.nudge();
        Ok(())
    }

    /// A model that is kept.
    pub(super) fn kept(&self, model: &str) -> Result<Target, RegistryError> {
        let stored = self.registry.find(model)?;
        Ok(Target::Kept(stored.name))
    }

    /// Holds a model in memory, beginning to load it if need be. With `beside` that is one more for a while where none may go:
    /// the one whose place it takes has to be there meanwhile, and memory is what counts.
    pub(super) fn hold(
        self: &Arc<Inner>,
        target: &Target,
        beside: bool,
    ) -> Result<Stay<'_>, RegistryError> {
        let mut seen = *self.changes();
        loop {
            let mut state = self.state();
            if state.stopping {
                return Err(RegistryError::Conflict("the daemon is stopping".to_owned()));
            }
            let lacks = self.lacks(&state, target);
            let usable = match state.members.get_mut(target) {
                // Once it is there: what waits for it is not to be lost.
                Some(member) if lacks && member.worker.state() == WorkerState::Ready => {
                    let loaded = self.load_anew(&mut state, target);
                    loaded.map_err(|error| RegistryError::Io("a thread".into(), "start", error))?;
                    true
                }
                Some(member) if lacks && member.worker.state() == WorkerState::Loading => false,
                None => {
                    let loaded = state.members.values().filter(|member| !member.leaving);
                    let most = self.config.get().models.loaded_max;
                    if loaded.count() >= most
                        && !self.evict(&mut state, target, Yields::Idle)
                        && !beside
                    {
                        return Err(RegistryError::Conflict(format!(
                            "{most} models are loaded, the most at once ([models] loaded-max), and none of them may go"
                        )));
                    }
                    let loaded = self.load(&mut state, target, true);
                    loaded.map_err(|error| RegistryError::Io("a thread".into(), "start", error))?;
                    true
                }
                Some(member) if member.leaving => {
                    member.leaving = !member.worker.undrain();
                    !member.leaving
                }
                Some(member) => !matches!(
                    member.worker.state(),
                    WorkerState::Failed(_) | WorkerState::Broken(_) | WorkerState::Stopping
                ),
            };
            if usable {
                if let Some(member) = state.members.get_mut(target) {
                    member.held += 1;
                }
                drop(state);
                return Ok(Stay {
                    inner: self,
                    target: target.clone(),
                });
            }
            let broken = state
                .members
                .get(target)
                .is_some_and(|member| member.worker.has_ended() && !member.leaving);
            if broken && *target == self.default_target(&state) {
                let state = state
                    .members
                    .get(target)
                    .map(|member| member.worker.state());
                let why = match state {
                    Some(WorkerState::Failed(why) | WorkerState::Broken(why)) => why,
                    _ => "it has ended".to_owned(),
                };
                return Err(RegistryError::Rejected(format!(
                    "{} cannot be served: {why}",
                    self.label(target)
                )));
            }
            drop(state);
            seen = self.wait(seen, LOOK_AGAIN);
        }
    }

    /// Waits until a model that is held is ready.
    pub(super) fn ready(
        &self,
        target: &Target,
        progress: Progress<'_>,
    ) -> Result<WorkerHandle, RegistryError> {
        let label = self.label(target);
        let mut seen = *self.changes();
        loop {
            let state = self.state();
            let member = state.members.get(target);
            let worker = member.map(|member| member.worker.clone());
            let failed = state.failed.get(target).map(|failed| failed.why.clone());
            drop(state);
            let Some(worker) = worker else {
                let why = failed.unwrap_or_else(|| "it was unloaded".to_owned());
                return Err(RegistryError::Rejected(format!(
                    "{label} cannot be served: {why}"
                )));
            };
            match worker.state() {
                WorkerState::Ready => return Ok(worker),
                WorkerState::Failed(why) | WorkerState::Broken(why) => {
                    return Err(RegistryError::Rejected(format!(
                        "{label} cannot be served: {why}"
                    )));
                }
                WorkerState::Stopping => {
                    return Err(RegistryError::Conflict(format!(
                        "{label} is being unloaded"
                    )));
                }
                WorkerState::Loading | WorkerState::Waiting(_) => {}
            }
            progress(ModelStage::Loading);
            seen = self.wait(seen, LOOK_AGAIN);
        }
    }

    /// Waits until a model that was told to go is gone, or is wanted again.
    pub(super) fn gone(&self, target: &Target, progress: Progress<'_>) {
        let mut seen = *self.changes();
        loop {
            let state = self.state();
            let leaving = state
                .members
                .get(target)
                .is_some_and(|member| member.leaving);
            drop(state);
            if !leaving {
                return;
            }
            progress(ModelStage::Unloading);
            seen = self.wait(seen, LOOK_AGAIN);
        }
    }
}
