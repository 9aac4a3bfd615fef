//! One model taking another's place, and the way back.
//!
//! The new model is loaded and tried while the old one answers, and takes over the name only then. For
//! `[models] probation-s` the old one stays, so that it is there at once if the new one fails.

use std::sync::Arc;

use andon_wire::manifest::is_model_name;

use super::hand::Progress;
use super::names::{Entry, NAMES_MAX, Names, Target};
use super::{Coming, Inner, Probation, State, Swapped, Workers};
use crate::registry::RegistryError;
use crate::worker::{WorkerHandle, WorkerState};

/// A name that a model is about to take. All is as it was when this is dropped, unless the model has taken it by then.
struct Claim<'a> {
    inner: &'a Arc<Inner>,
    name: &'a str,
    target: &'a Target,
    was_loaded: bool,
    /// The model has taken the name.
    taken: bool,
}

impl Claim<'_> {
    /// The model has taken the name: it stays.
    fn taken(mut self) {
        self.taken = true;
    }

    /// Requests wait for the new model from now on, and the one goes that answers.
    fn unload_first(&self) {
        let mut state = self.inner.state();
        let Some(former) = self.inner.target(&state, self.name) else {
            return;
        };
        if let Some(coming) = state.coming.get_mut(self.name) {
            coming.awaited = true;
        }
        // It is tried whatever became of it before.
        state.failed.remove(self.target);
        self.inner.let_unnamed_go(&mut state, &former);
        self.inner.note_used(&state);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let inner = self.inner;
        let mut state = inner.state();
        state.coming.remove(self.name);
        if let Some(target) = inner.target(&state, self.name) {
            inner.wanted_back(&mut state, self.name, &target);
        }
        if !self.was_loaded && !self.taken {
            inner.let_unnamed_go(&mut state, self.target);
        }
        inner.note_used(&state);
        drop(state);
        inner.nudge();
    }
}

impl Workers {
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
        let target = inner.kept(model)?;
        let default = inner.default_name();
        let name = name.unwrap_or(&default);
        if !is_model_name(name) && name != default {
            return Err(RegistryError::Invalid(format!(
                "{name:?} is not a model's name"
            )));
        }
        let claim = inner.claim(name, &target)?;
        let former = {
            let state = inner.state();
            inner.room_for(&mut state.names.clone(), name)?;
            inner.target(&state, name)
        };
        if former.as_ref() == Some(&target) {
            return Err(answers_already(model, name));
        }
        let embeds = former.as_ref().and_then(|former| inner.embeds(former));
        if unload_first {
            claim.unload_first();
        }
        let stay = inner.hold(&target, true)?;
        let worker = inner.ready(&target, progress)?;
        let failures = inner.fit(&worker, embeds)?;
        let swapped = inner.commit(name, &target, failures)?;
        drop(stay);
        claim.taken();
        inner.announce(swapped);
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
        let default = inner.default_name();
        let name = name.unwrap_or(&default);
        let none = || {
            RegistryError::Conflict(format!(
                "no other model is remembered that answered to {name}"
            ))
        };
        let former = {
            let state = inner.state();
            let entry = state.names.get(name);
            entry.and_then(|entry| entry.former.clone())
        };
        let former = former.ok_or_else(none)?;
        if !inner.is_there(&former) {
            return Err(RegistryError::Unknown(inner.label(&former)));
        }
        let claim = inner.claim(name, &former)?;
        let stay = inner.hold(&former, true)?;
        inner.ready(&former, progress)?;
        let own = inner.own(name);
        let (mut state, from) = inner.change_names(|names| {
            let entry = names.get(name);
            if entry.and_then(|entry| entry.former.as_ref()) != Some(&former) {
                return Err(none());
            }
            names.roll_back(name, own.as_ref()).ok_or_else(none)
        })?;
        let swapped = inner.gone_back(&mut state, name, &from, None);
        drop(state);
        drop(stay);
        claim.taken();
        inner.announce(swapped);
        Ok(())
    }
}

fn answers_already(model: &str, name: &str) -> RegistryError {
    RegistryError::Conflict(format!("{model} answers to {name} already"))
}

impl Inner {
    /// The right to have a model take a name.
    fn claim<'a>(
        self: &'a Arc<Inner>,
        name: &'a str,
        target: &'a Target,
    ) -> Result<Claim<'a>, RegistryError> {
        let mut state = self.state();
        if state.coming.contains_key(name) {
            return Err(RegistryError::Busy(format!(
                "another model is taking the name {name} just now"
            )));
        }
        let coming = Coming {
            target: target.clone(),
            awaited: false,
        };
        state.coming.insert(name.to_owned(), coming);
        self.note_used(&state);
        Ok(Claim {
            inner: self,
            name,
            target,
            was_loaded: state.members.contains_key(target),
            taken: false,
        })
    }

    /// Whether a model makes embeddings, as far as that is known.
    fn embeds(&self, target: &Target) -> Option<bool> {
        let loaded = {
            let state = self.state();
            let member = state.members.get(target);
            let facts = member.and_then(|member| member.worker.facts());
            facts.map(|facts| facts.embedding.is_some())
        };
        loaded.or_else(|| match target {
            Target::Kept(name) => self.registry.makes_text(name).then_some(false),
            Target::Configured => None,
        })
    }

    /// Whether a model that is ready may take the place of one that makes embeddings, or does not. Gives how many of its
    /// passes have failed.
    fn fit(&self, worker: &WorkerHandle, embeds: Option<bool>) -> Result<u64, RegistryError> {
        let proved = worker.proved().unwrap_or_default();
        let (least, made) = (
            self.config.get().models.tokens_per_second_min,
            proved.tokens_per_second,
        );
        if made > 0.0 && made < least {
            return Err(RegistryError::Rejected(format!(
                "it makes {made:.1} tokens per second where [models] tokens-per-second-min asks for {least:.1}"
            )));
        }
        let own = worker.facts().map(|facts| facts.embedding.is_some());
        if embeds.is_some() && embeds != own {
            return Err(RegistryError::Rejected(
                "one of the two models makes embeddings and the other generates text".to_owned(),
            ));
        }
        Ok(worker.failures())
    }

    /// Has there be room for one more name that another model answers to.
    fn room_for(&self, names: &mut Names, name: &str) -> Result<(), RegistryError> {
        if names.make_room(name, |name| self.own(name)) {
            return Ok(());
        }
        Err(RegistryError::Busy(format!(
            "{NAMES_MAX} names are answered by other models, the most; andonctl model rm removes one that is no model's own"
        )))
    }

    /// A model that is ready takes a name.
    fn commit(
        self: &Arc<Inner>,
        name: &str,
        target: &Target,
        failures: u64,
    ) -> Result<Swapped, RegistryError> {
        let own = self.own(name);
        let (mut state, (former, probation)) = self.change_names(|names| {
            let former = names.get(name).map(|entry| entry.target.clone());
            let former = former.or_else(|| own.clone());
            if former.as_ref() == Some(target) {
                return Err(answers_already(&self.label(target), name));
            }
            self.room_for(names, name)?;
            let probation = former.is_some() && self.config.get().models.probation_s > 0;
            let entry = Entry::taking(target.clone(), former.clone(), probation);
            names.set(name, own.as_ref(), entry);
            Ok((former, probation))
        })?;
        state.probations.retain(|probation| probation.name != name);
        if probation {
            state.probations.push(Probation {
                name: name.to_owned(),
                target: target.clone(),
                until: None,
                failures,
                counted: true,
            });
        }
        if let Some(former) = &former {
            self.let_unnamed_go(&mut state, former);
        }
        self.note_used(&state);
        Ok(Swapped {
            from: former.as_ref().map(|former| self.label(former)),
            to: self.label(target),
            name: name.to_owned(),
            rolled_back: false,
            why: None,
        })
    }

    /// A name has gone back from `from` to the model that answered before.
    pub(super) fn gone_back(
        self: &Arc<Inner>,
        state: &mut State,
        name: &str,
        from: &Target,
        why: Option<String>,
    ) -> Swapped {
        state.probations.retain(|probation| probation.name != name);
        let coming = state.coming.get(name);
        let awaited = coming.is_some_and(|coming| coming.awaited);
        if let Some(target) = self.target(state, name).filter(|_| !awaited) {
            let members = &state.members;
            let ended = |target| {
                members
                    .get(target)
                    .is_some_and(|member| member.worker.has_ended())
            };
            if ended(&target) {
                state.members.remove(&target);
            }
            self.wanted_back(state, name, &target);
        }
        self.let_unnamed_go(state, from);
        self.note_used(state);
        self.swapped_back(state, name, from, why)
    }

    /// Has the model be there that answers to a name, whatever room there is: it was before. That of another name than the
    /// configured one is loaded when it is asked.
    pub(super) fn wanted_back(self: &Arc<Inner>, state: &mut State, name: &str, target: &Target) {
        let lacks = self.lacks(state, target);
        let loaded = match state.members.get_mut(target) {
            _ if state.stopping => return,
            // Once it is there: what waits for it is not to be lost.
            Some(member) if lacks && member.worker.state() == WorkerState::Ready => {
                self.load_anew(state, target)
            }
            Some(member) => {
                member.leaving = member.leaving && !member.worker.undrain();
                return;
            }
            None if name == self.default_name() => self.load(state, target, true).map(drop),
            None => return,
        };
        if let Err(error) = loaded {
            crate::event!(ModelFailed, %error, model = self.label(target), "the model is not loaded");
        }
    }
}
