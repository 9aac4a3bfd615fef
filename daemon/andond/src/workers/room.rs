//! Loading models and letting them go.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use andon_policy::residency::{Candidate, Heat, least};

use super::names::{Names, Target};
use super::{Failed, Inner, Member, Probation, ROOM_AGAIN, State, Swapped, TRY_AGAIN};
use crate::config::Config;
use crate::fault::{Fault, FaultCode};
use crate::worker::{Around, AtFault, Setup, WorkerHandle, WorkerState};

impl Inner {
    /// Starts what is to be there from the start.
    pub(super) fn begin(self: &Arc<Inner>) -> std::io::Result<()> {
        let mut state = self.state();
        let before = state.names.clone();
        for name in self.forget_gone(&mut state.names, |name| self.registry.is_gone(name)) {
            crate::event!(
                ModelNamesLost,
                name,
                "the model that answered to a name is not kept any more"
            );
        }
        let mut told = Vec::new();
        for name in state.names.unproved() {
            let why = "the daemon did not get through its probation with it".to_owned();
            let own = self.own(&name);
            if let Some(from) = state.names.roll_back(&name, own.as_ref()) {
                told.push(self.swapped_back(&state, &name, &from, Some(why)));
            }
        }
        for (name, entry) in state.names.clone().iter() {
            if entry.probation.is_some() {
                state.probations.push(Probation {
                    name: name.to_owned(),
                    target: entry.target.clone(),
                    until: None,
                    failures: 0,
                    counted: false,
                });
            }
        }
        let target = self.default_target(&state);
        if target != self.configured() {
            tracing::info!(
                name = self.default_name(),
                model = self.label(&target),
                "the configured name is answered by the model that took it, not by that of [model]"
            );
        }
        // Before they are loaded: one that takes the daemon with it is to be found out.
        self.count_start(&mut state, &target);
        for name in &self.config.get().models.preload {
            self.count_start(&mut state, &Target::Kept(name.clone()));
        }
        if state.names != before && self.keep_names(&state.names) {
            state.unwritten = None;
        }
        self.load(&mut state, &target, false)?;
        state.preload.clone_from(&self.config.get().models.preload);
        self.note_used(&state);
        drop(state);
        told.into_iter().for_each(|swapped| self.announce(swapped));
        Ok(())
    }

    /// Models on probation are loaded for the first time since the daemon started.
    fn count_start(&self, state: &mut State, target: &Target) {
        for probation in &mut state.probations {
            if probation.target == *target && !probation.counted {
                probation.counted = true;
                if state.names.count_start(&probation.name) {
                    state.unwritten = Some(Instant::now());
                }
            }
        }
    }

    /// Loads what is to be there from the start, once the configured model has its memory: the others get what that leaves.
    pub(super) fn preload(self: &Arc<Inner>, state: &mut State) {
        let settled = self.default_member(state).is_none_or(|member| {
            member.worker.bytes() > 0 || member.worker.state() != WorkerState::Loading
        });
        if !settled {
            return;
        }
        for name in std::mem::take(&mut state.preload) {
            let target = Target::Kept(name);
            if let Some(member) = state.members.get_mut(&target) {
                member.pinned = true;
                continue;
            }
            match self.load(state, &target, true) {
                Ok(member) => member.pinned = true,
                Err(error) => {
                    crate::event!(ModelFailed, model = self.label(&target), %error, "the model is not loaded");
                }
            }
        }
    }

    /// Forgets names' models that are gone. Gives the names that they answered to.
    pub(super) fn forget_gone(
        &self,
        names: &mut Names,
        is_gone: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let configured = self.configured();
        names.forget_gone(
            |name| self.own(name),
            |target| match target {
                // By its path or by its name, whichever the configuration has now.
                Target::Configured => Some(configured.clone()),
                Target::Kept(name) => {
                    (*target == configured || !is_gone(name)).then(|| target.clone())
                }
            },
        )
    }

    /// Tells that a model took another's place.
    pub(super) fn announce(&self, swapped: Swapped) {
        let outcome = if swapped.rolled_back {
            "rolled-back"
        } else {
            "swapped"
        };
        self.telemetry.model_swap(&swapped.to, outcome);
        if swapped.why.is_some() {
            crate::event!(
                ModelRolledBack,
                name = swapped.name,
                from = swapped.from,
                to = swapped.to,
                why = swapped.why,
                "model rolled back"
            );
        } else {
            crate::event!(
                ModelSwapped,
                name = swapped.name,
                from = swapped.from,
                to = swapped.to,
                outcome,
                "model swapped"
            );
        }
        // Nobody may be listening.
        drop(self.swaps.send(swapped));
    }

    /// What answered before `from` does so again.
    pub(super) fn swapped_back(
        &self,
        state: &State,
        name: &str,
        from: &Target,
        why: Option<String>,
    ) -> Swapped {
        let to = self.target(state, name);
        Swapped {
            name: name.to_owned(),
            from: Some(self.label(from)),
            to: to.map_or_else(|| name.to_owned(), |to| self.label(&to)),
            rolled_back: true,
            why,
        }
    }

    /// Whether a model answers to the configured name, or is about to.
    fn is_default(&self, state: &State, target: &Target) -> bool {
        let coming = state.coming.get(&self.default_name());
        self.default_target(state) == *target
            || coming.is_some_and(|coming| coming.target == *target)
    }

    /// The configuration for a model's worker.
    fn config_of(&self, target: &Target, default: bool) -> Arc<Config> {
        if *target == self.configured() && default {
            return self.config.get();
        }
        let mut config = (*self.config.get()).clone();
        if let Target::Kept(name) = target {
            config.model.path = std::path::PathBuf::new();
            config.model.name = Some(name.clone());
            // These are of the configured model.
            if *target != self.configured() {
                config.model.pre_tokenizer = None;
                config.model.chat_template = None;
            }
        }
        if !default {
            // A draft guesses for the served model, whose pages are the ones to be kept over a restart.
            config.speculation.draft = None;
            config.cache.kv_keep = Some(false);
            config.models.bundle_tasks = false;
        }
        Arc::new(config)
    }

    /// Starts a worker. With `asked` for somebody who waits for it, else as the daemon starts. That of the configured name is
    /// needed.
    pub(super) fn load<'a>(
        self: &Arc<Inner>,
        state: &'a mut State,
        target: &Target,
        asked: bool,
    ) -> std::io::Result<&'a mut Member> {
        let default = self.is_default(state, target);
        // What is only about to answer to the configured name has to fit beside what others have.
        let named = state.names.get(&self.default_name());
        let needed =
            named.map_or_else(|| self.configured(), |entry| entry.target.clone()) == *target;
        let changed: Weak<Inner> = Arc::downgrade(self);
        let (room, heirs) = (Weak::clone(&changed), Weak::clone(&changed));
        let own = target.clone();
        let around = Around {
            asked,
            needed,
            hand_over: Box::new(move |all| {
                // The tending thread holds what is locked longer.
                if let Some(inner) = heirs.upgrade() {
                    inner.handed().extend(all);
                    inner.nudge();
                }
            }),
            changed: Box::new(move || {
                if let Some(inner) = changed.upgrade() {
                    inner.nudge();
                }
            }),
            make_room: Box::new(move || {
                let inner = room.upgrade();
                inner.is_some_and(|inner| inner.make_room(&own, needed))
            }),
        };
        let worker = WorkerHandle::start(Setup {
            config: self.config_of(target, default),
            registry: Arc::clone(&self.registry),
            telemetry: Arc::clone(&self.telemetry),
            audit: self.audit.clone(),
            machine: Arc::clone(&self.machine),
            budget: Arc::clone(&self.budget),
            around,
        })?;
        let (throttle, cause) = state.throttle;
        worker.throttle(throttle, cause);
        let mut heat = Heat::default();
        heat.used(self.now_ms());
        let member = Member {
            worker,
            heat,
            pinned: false,
            held: 0,
            default,
            leaving: false,
            told: false,
        };
        state.failed.remove(target);
        state.members.insert(target.clone(), member);
        self.count_start(state, target);
        self.note_used(state);
        state
            .members
            .get_mut(target)
            .ok_or_else(|| std::io::Error::other("the worker is gone"))
    }

    /// Whether a model is loaded and lacks what only that of the configured name has, which it is or is about to be: a draft,
    /// the tasks that come with it, and pages on the disk. One that has them and is that no more keeps them until it goes.
    pub(super) fn lacks(&self, state: &State, target: &Target) -> bool {
        let config = self.config.get();
        let differs = config.keeps_pages()
            || config.models.bundle_tasks
            || config.speculation.draft_place().is_some();
        let member = state.members.get(target);
        differs && member.is_some_and(|member| !member.default) && self.is_default(state, target)
    }

    /// Has a model be loaded anew, as what it is to be now. Requests wait for that from now on; what was taken before is
    /// answered by the one that took it.
    pub(super) fn load_anew(
        self: &Arc<Inner>,
        state: &mut State,
        target: &Target,
    ) -> std::io::Result<()> {
        let Some(old) = self.displace(state, target) else {
            return Ok(());
        };
        tracing::info!(model = self.label(target), "a model is loaded anew");
        let new = self.load(state, target, true)?;
        (new.pinned, new.held) = old;
        Ok(())
    }

    /// Has a model answer what it has taken and go, beside another that is loaded in its stead. Says whether it was to stay,
    /// and how many wait for it.
    fn displace(&self, state: &mut State, target: &Target) -> Option<(bool, u32)> {
        let old = state.members.remove(target)?;
        old.worker.drain();
        self.telemetry.model_loaded(&self.label(target), false);
        let waited_for = (old.pinned, old.held);
        state.displaced.push(old);
        Some(waited_for)
    }

    /// The worker of a model, which is loaded if need be. For an alarm one that does batch work makes room.
    pub(super) fn obtain(
        self: &Arc<Inner>,
        state: &mut State,
        target: &Target,
        urgent: bool,
    ) -> Result<WorkerHandle, Fault> {
        let now_ms = self.now_ms();
        let unavailable = |message: String, after| {
            Fault::new(FaultCode::ModelUnavailable, message).retry_after(after)
        };
        let second = Duration::from_secs(1);
        let lacks = self.lacks(state, target);
        let mut before = None;
        if let Some(member) = state.members.get_mut(target)
            && member.leaving
            && !state.stopping
        {
            member.leaving = lacks || !member.worker.undrain();
            if member.leaving {
                // It is too late for it to stay.
                before = self.displace(state, target);
            }
        }
        if let Some(member) = state.members.get_mut(target) {
            member.heat.used(now_ms);
            return Ok(member.worker.clone());
        }
        if state.stopping {
            return Err(WorkerHandle::stopping());
        }
        if self.config.get().models.loaded_max == 1 && *target != self.default_target(state) {
            return Err(Inner::unknown(&self.label(target)));
        }
        if let Some(failed) = state.failed.get(target)
            && let Some(left) = failed.pause().checked_sub(failed.at.elapsed())
        {
            let (label, why) = (self.label(target), &failed.why);
            let message = format!("the model {label} cannot be loaded: {why}");
            return Err(if failed.fault == AtFault::Operator {
                // Whoever waits is told so, rather than wait for ever.
                Fault::new(FaultCode::Internal, message)
            } else {
                unavailable(message, left.max(second))
            });
        }
        let loaded = state.members.values().filter(|member| !member.leaving);
        let most = self.config.get().models.loaded_max;
        let yields = if urgent { Yields::Batch } else { Yields::Idle };
        if loaded.count() >= most && !self.evict(state, target, yields) {
            let message =
                format!("{most} models are loaded, the most at once, and all of them are in use");
            return Err(Fault::new(FaultCode::Busy, message).retry_after(second));
        }
        tracing::info!(
            model = self.label(target),
            "a model is loaded for who asks for it"
        );
        let member = self.load(state, target, true).map_err(|error| {
            let message = format!("cannot start a thread: {error}");
            Fault::new(FaultCode::Internal, message)
        })?;
        // It takes the place of one that had to stay, or for which somebody waits.
        (member.pinned, member.held) = before.unwrap_or_default();
        Ok(member.worker.clone())
    }

    /// Has the model go that is worth least, if one may, of those that yield most easily. Says whether one does.
    pub(super) fn evict(&self, state: &mut State, except: &Target, yields: Yields) -> bool {
        let all = [Yields::Idle, Yields::Batch, Yields::All];
        let mut all = all.into_iter().filter(|&easily| easily <= yields);
        all.any(|easily| self.evict_one(state, except, easily))
    }

    fn evict_one(&self, state: &mut State, except: &Target, yields: Yields) -> bool {
        let now_ms = self.now_ms();
        let may = state.members.iter().filter(|(target, member)| {
            let goes = match yields {
                Yields::Idle => self.may_go(state, target) && member.is_unused(),
                Yields::Batch => self.may_go(state, target) && member.is_patient(),
                Yields::All => self.default_target(state) != **target && !member.leaving,
            };
            goes && *target != except
        });
        let candidates = may.map(|(target, member)| {
            let candidate = Candidate {
                heat: member.heat,
                load_ms: member.worker.load_ms(),
                bytes: member.worker.bytes(),
            };
            (target.clone(), candidate)
        });
        let Some(target) = least(now_ms, candidates) else {
            return false;
        };
        tracing::info!(
            model = self.label(&target),
            "a model is unloaded to make room"
        );
        self.let_go(state, &target);
        true
    }

    /// Has a model answer what it has taken, and go.
    pub(super) fn let_go(&self, state: &mut State, target: &Target) {
        if let Some(member) = state.members.get_mut(target) {
            member.leaving = true;
            member.worker.drain();
        }
    }

    /// Has another model make room for one that is being loaded; for one that is needed any, for an alarm also one that does
    /// batch work. Says whether it is worth trying again. Blocks for a moment.
    fn make_room(&self, target: &Target, needed: bool) -> bool {
        let seen = *self.changes();
        let mut state = self.state();
        let own = state.members.get(target);
        if state.stopping || own.is_none_or(|own| own.leaving) {
            return false;
        }
        let yields = match own.is_some_and(|own| own.worker.is_urgent()) {
            _ if needed => Yields::All,
            true => Yields::Batch,
            false => Yields::Idle,
        };
        let mut others = state.members.iter().filter(|(other, _)| *other != target);
        let goes = others.any(|(_, member)| member.leaving) || !state.displaced.is_empty();
        let goes = goes || self.evict(&mut state, target, yields);
        drop(state);
        if goes {
            self.wait(seen, Duration::from_millis(100));
        }
        goes
    }
}

/// Which models make room for another, those before included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Yields {
    /// Those that nobody asks just now.
    Idle,
    /// Those that do batch work only, once they have answered what they have taken.
    Batch,
    /// All but the one that answers to the configured name.
    All,
}

impl Failed {
    /// For how long the model is not tried again.
    fn pause(&self) -> Duration {
        match self.fault {
            AtFault::Operator | AtFault::Machine => TRY_AGAIN,
            AtFault::Room => ROOM_AGAIN,
        }
    }
}
