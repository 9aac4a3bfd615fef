//! Loading and unloading by hand, one model taking another's place, and the way back.
//!
//! The new model is loaded and tried while the old one answers, and takes over the name only then. For
//! `[models] probation-s` the old one stays, so that it is there at once if the new one fails.

use std::sync::{Arc, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use andon_wire::ModelStage;
use andon_wire::manifest::is_model_name;

use super::names::{Entry, NAMES_MAX, Target};
use super::{Inner, Probation, State, Swapped, Workers};
use crate::registry::RegistryError;
use crate::worker::{WorkerHandle, WorkerState};

/// How often a sign of life is given.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Hears what is being done.
type Progress<'a> = &'a mut dyn FnMut(ModelStage);

/// A model that is held in memory while somebody waits for it.
struct Held<'a> {
    inner: &'a Inner,
    target: Target,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        if let Some(member) = state.members.get_mut(&self.target) {
            member.held = member.held.saturating_sub(1);
        }
    }
}

impl Workers {
    /// Removes a model that is kept and not in use; no rollback leads to it any more.
    ///
    /// # Errors
    /// If there is none, it is in use, or its folder cannot be removed.
    pub fn remove(&self, model: &str) -> Result<(), RegistryError> {
        let inner = &self.inner;
        let _swapping = inner.swapping()?;
        inner.registry.remove(model)?;
        let mut state = inner.state();
        let before = state.names.clone();
        inner.forget_gone(&mut state, |name| !inner.registry.is_kept(name));
        let names = (state.names != before).then(|| state.names.clone());
        drop(state);
        if let Some(names) = names {
            inner.keep_names(&names);
        }
        Ok(())
    }

    /// Loads a model, which stays until it is unloaded. Blocks until it is ready.
    ///
    /// # Errors
    /// If it is not kept here, or cannot be loaded.
    pub fn load(&self, model: &str, progress: Progress<'_>) -> Result<(), RegistryError> {
        let inner = &self.inner;
        let target = inner.kept(model)?;
        let held = inner.hold(&target, false)?;
        inner.ready(&target, progress)?;
        if let Some(member) = inner.state().members.get_mut(&target) {
            member.pinned = true;
        }
        drop(held);
        Ok(())
    }

    /// Unloads a model once it has answered what it has taken. Blocks until it is gone. Says whether it was loaded.
    ///
    /// # Errors
    /// If it answers to the configured name.
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
        Ok(true)
    }

    /// Has a model answer to a name, by default the configured one, in place of the one that does. Blocks until it does.
    /// With `unload_first` the old one goes before the new one is loaded, for which requests then wait.
    ///
    /// # Errors
    /// Why everything is as it was.
    pub fn swap(
        &self,
        model: &str,
        name: Option<&str>,
        unload_first: bool,
        progress: Progress<'_>,
    ) -> Result<(), RegistryError> {
        let inner = &self.inner;
        let _swapping = inner.swapping()?;
        let target = inner.kept(model)?;
        let default = inner.default_name();
        let name = name.unwrap_or(&default).to_owned();
        if !is_model_name(&name) && name != default {
            return Err(RegistryError::Invalid(format!(
                "{name:?} is not a model's name"
            )));
        }
        let former = {
            let state = inner.state();
            if state.names.get(&name).is_none() && state.names.len() >= NAMES_MAX {
                return Err(RegistryError::Busy(format!(
                    "{NAMES_MAX} names are answered by other models, the most"
                )));
            }
            inner.target(&state, &name)
        };
        if former.as_ref() == Some(&target) {
            return Err(RegistryError::Conflict(format!(
                "{model} answers to {name} already"
            )));
        }
        let before = inner.state().names.get(&name).cloned();
        let was_loaded = inner.state().members.contains_key(&target);
        if was_loaded && name == default {
            inner.reload_as_default(&target, progress);
        }
        // Requests wait for the new one from now on.
        if unload_first && let Some(former) = &former {
            let entry = Entry::taking(target.clone(), Some(former.clone()), false);
            let mut state = inner.state();
            state.names.set(&name, inner.own(&name).as_ref(), entry);
            inner.let_unnamed_go(&mut state, former);
            inner.note_used(&state);
        }
        let held = match inner.hold(&target, name == default) {
            Ok(held) => held,
            Err(error) => {
                inner.undo(&name, before, former.as_ref(), &target, was_loaded);
                return Err(error);
            }
        };
        let fit = inner
            .ready(&target, progress)
            .and_then(|worker| inner.fit(&worker, former.as_ref()));
        let failures = match fit {
            Ok(failures) => failures,
            Err(error) => {
                drop(held);
                inner.undo(&name, before, former.as_ref(), &target, was_loaded);
                return Err(error);
            }
        };
        let probation = former.is_some() && inner.config.models.probation_s > 0;
        let entry = Entry::taking(target.clone(), former.clone(), probation);
        let mut names = inner.state().names.clone();
        names.set(&name, inner.own(&name).as_ref(), entry);
        if let Err(error) = inner.registry.write_names(&names.text()) {
            drop(held);
            inner.undo(&name, before, former.as_ref(), &target, was_loaded);
            return Err(error);
        }
        let mut state = inner.state();
        state.names = names;
        state.probations.retain(|probation| probation.name != name);
        if probation {
            state.probations.push(Probation {
                name: name.clone(),
                target: target.clone(),
                until: None,
                failures,
            });
        }
        if let Some(former) = &former {
            inner.let_unnamed_go(&mut state, former);
        }
        inner.note_used(&state);
        inner.announce(Swapped {
            from: former.as_ref().map(|former| inner.label(former)),
            to: inner.label(&target),
            name,
            rolled_back: false,
            why: None,
        });
        drop(state);
        drop(held);
        inner.nudge();
        Ok(())
    }

    /// Has the model answer to a name, by default the configured one, that did before. Blocks until it does.
    ///
    /// # Errors
    /// If none is remembered, or it cannot be loaded any more.
    pub fn roll_back(
        &self,
        name: Option<&str>,
        progress: Progress<'_>,
    ) -> Result<(), RegistryError> {
        let inner = &self.inner;
        let _swapping = inner.swapping()?;
        let default = inner.default_name();
        let name = name.unwrap_or(&default).to_owned();
        let former = {
            let state = inner.state();
            let entry = state.names.get(&name);
            entry.and_then(|entry| entry.former.clone())
        };
        let Some(former) = former else {
            return Err(RegistryError::Conflict(format!(
                "no other model is remembered that answered to {name}"
            )));
        };
        if !inner.is_there(&former) {
            return Err(RegistryError::Unknown(inner.label(&former)));
        }
        let held = inner.hold(&former, name == default)?;
        inner.ready(&former, progress)?;
        inner.go_back(&name, None)?;
        drop(held);
        inner.nudge();
        Ok(())
    }
}

impl Inner {
    /// The right to have models take others' places.
    pub(super) fn swapping(&self) -> Result<MutexGuard<'_, ()>, RegistryError> {
        match self.swapping.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(RegistryError::Busy(
                "another model is taking a place just now".to_owned(),
            )),
        }
    }

    /// Has a model go that was loaded without what only the one of the configured name has: a draft, and the tasks that come
    /// with it.
    fn reload_as_default(&self, target: &Target, progress: Progress<'_>) {
        let config = &self.config;
        if !config.models.bundle_tasks && config.speculation.draft_place().is_none() {
            return;
        }
        let mut state = self.state();
        let lacks = state
            .members
            .get(target)
            .is_some_and(|member| !member.default && member.held == 0);
        if lacks {
            self.let_go(&mut state, target);
            drop(state);
            self.gone(target, progress);
        }
    }

    /// A model that is kept.
    fn kept(&self, model: &str) -> Result<Target, RegistryError> {
        let stored = self.registry.find(model)?;
        Ok(Target::Kept(stored.name))
    }

    /// Holds a model in memory, beginning to load it if need be.
    fn hold(self: &Arc<Inner>, target: &Target, default: bool) -> Result<Held<'_>, RegistryError> {
        let mut seen = *self.changes();
        loop {
            let mut state = self.state();
            if state.stopping {
                return Err(RegistryError::Conflict("the daemon is stopping".to_owned()));
            }
            let usable = match state.members.get_mut(target) {
                None => {
                    let loaded = state.members.values().filter(|member| !member.leaving);
                    if loaded.count() >= self.config.models.loaded_max {
                        // Where none may go there is one more for a while: memory is what counts.
                        self.evict(&mut state, target);
                    }
                    let loaded = self.load_as(&mut state, target, true, default);
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
                return Ok(Held {
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
    fn ready(
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
    fn gone(&self, target: &Target, progress: Progress<'_>) {
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

    /// Whether a model that is ready may take the place of `former`. Gives how many of its passes have failed.
    fn fit(&self, worker: &WorkerHandle, former: Option<&Target>) -> Result<u64, RegistryError> {
        let proved = worker.proved().unwrap_or_default();
        let (least, made) = (
            self.config.models.tokens_per_second_min,
            proved.tokens_per_second,
        );
        if made > 0.0 && made < least {
            return Err(RegistryError::Rejected(format!(
                "it makes {made:.1} tokens per second where [models] tokens-per-second-min asks for {least:.1}"
            )));
        }
        let embeds = |worker: &WorkerHandle| {
            let facts = worker.facts();
            facts.map(|facts| facts.embedding.is_some())
        };
        let state = self.state();
        let old = former.and_then(|former| state.members.get(former));
        let old = old.and_then(|member| embeds(&member.worker));
        if old.is_some() && old != embeds(worker) {
            return Err(RegistryError::Rejected(
                "one of the two models makes embeddings and the other generates text".to_owned(),
            ));
        }
        Ok(worker.failures())
    }

    /// Has all be as it was before a model could not take the place of `former`.
    fn undo(
        self: &Arc<Inner>,
        name: &str,
        before: Option<Entry>,
        former: Option<&Target>,
        target: &Target,
        was_loaded: bool,
    ) {
        let mut state = self.state();
        if state.names.get(name) != before.as_ref() {
            let own = self.own(name);
            let own_entry = || Some(Entry::taking(own.clone()?, None, false));
            if let Some(entry) = before.or_else(own_entry) {
                state.names.set(name, own.as_ref(), entry);
            }
            if let Some(former) = former
                && let Err(fault) = self.obtain(&mut state, former)
            {
                // It has just ended, and is loaded again once it is gone.
                tracing::debug!(name, %fault, "what answered before is not there yet");
            }
        }
        if !was_loaded {
            self.let_unnamed_go(&mut state, target);
        }
        self.note_used(&state);
        drop(state);
        self.nudge();
    }

    /// Has what answered before do so again.
    fn go_back(self: &Arc<Inner>, name: &str, why: Option<String>) -> Result<(), RegistryError> {
        let mut names = self.state().names.clone();
        let own = self.own(name);
        let Some(from) = names.roll_back(name, own.as_ref()) else {
            return Ok(());
        };
        let written = self.registry.write_names(&names.text());
        match (&written, &why) {
            // Nobody who could be told asked for it, and it is done all the same.
            (Err(error), Some(_)) => {
                tracing::error!(%error, "which model answers to which name is not kept for the next start");
            }
            (Err(_), None) => return written,
            (Ok(()), _) => {}
        }
        let mut state = self.state();
        state.names = names;
        state.probations.retain(|probation| probation.name != name);
        if let Some(target) = self.target(&state, name) {
            let broken = state
                .members
                .get(&target)
                .is_some_and(|member| member.worker.has_ended());
            if broken {
                state.members.remove(&target);
            }
            self.wanted_back(&mut state, &target);
        }
        self.let_unnamed_go(&mut state, &from);
        self.note_used(&state);
        self.announce_back(&state, name.to_owned(), &from, why);
        Ok(())
    }

    /// Has a model be there that answers again, whatever room there is: it was there before.
    fn wanted_back(self: &Arc<Inner>, state: &mut State, target: &Target) {
        let there = state.members.get_mut(target).is_some_and(|member| {
            member.leaving = member.leaving && !member.worker.undrain();
            !member.leaving
        });
        if there || state.members.contains_key(target) {
            return;
        }
        if let Err(error) = self.load(state, target, true) {
            tracing::error!(%error, model = self.label(target), "what answered before is not loaded");
        }
    }

    /// Takes a name from a model that failed on probation.
    pub(super) fn roll_back_failed(self: &Arc<Inner>, name: &str, why: String) {
        // Whoever swaps just now has nothing to do with this name, or takes it from the one that failed.
        let Ok(_swapping) = self.swapping() else {
            std::thread::sleep(Duration::from_millis(10));
            return;
        };
        let began = Instant::now();
        if let Err(error) = self.go_back(name, Some(why)) {
            tracing::error!(name, %error, "a failed model answers still");
        }
        tracing::debug!(took_ms = began.elapsed().as_millis(), "rolled back");
    }
}
