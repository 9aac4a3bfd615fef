//! The thread that looks after the workers: it notices what became of them, ends probations, and unloads what nobody asks
//! for. It never computes, and waits for nobody.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::names::{Entry, Target};
use super::room::Yields;
use super::{Failed, Inner, Probation, State, Swapped};
use crate::worker::{AtFault, WorkerHandle, WorkerState};

/// How often requests are looked at that wait for a model.
const TEND_EVERY: Duration = Duration::from_millis(100);
/// How often the rest is, if nothing changes.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A panic here would leave the daemon without anybody to look after its models; systemd restarts what aborts.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Inner {
    /// Looks after the workers until the last has ended after a stop.
    pub(super) fn tend(self: &Arc<Inner>) {
        let _guard = AbortOnPanic;
        loop {
            let seen = *self.changes();
            let Some(pause) = self.look() else { break };
            self.wait(seen, pause);
        }
        self.rest();
        self.ended.send_replace(true);
    }

    /// Does what is due. Gives for how long nothing else is; `None` when all is over.
    fn look(self: &Arc<Inner>) -> Option<Duration> {
        let mut state = self.state();
        // Before it is seen what became of those that they waited for.
        let handed = std::mem::take(&mut *self.handed());
        self.note_changes(&mut state);
        if !state.stopping {
            self.unload_idle(&mut state);
            if self.budget.take_idle() {
                let default = self.default_target(&state);
                self.evict(&mut state, &default, Yields::Idle);
            }
            self.have_default(&mut state);
            self.preload(&mut state);
        }
        let mut pause = LOOK_EVERY;
        for member in state.all() {
            member.worker.tend();
            let state = member.worker.state();
            if matches!(state, WorkerState::Loading | WorkerState::Stopping) {
                pause = TEND_EVERY;
            }
        }
        if state.stopping {
            // First, so that whatever a worker hands over at its end is there by then.
            let over = state.all().all(|member| member.worker.has_ended());
            for handed in handed.into_iter().chain(self.handed().drain(..)) {
                handed.fail(&self.telemetry, &self.audit, WorkerHandle::stopping());
            }
            return (!over).then_some(pause);
        }
        let told = self.judge(&mut state);
        self.write_due(&mut state);
        if self.place(&mut state, handed) {
            pause = TEND_EVERY;
        }
        drop(state);
        for swapped in told {
            self.announce(swapped);
            pause = Duration::ZERO;
        }
        Some(pause)
    }

    /// Notices what became of the workers.
    fn note_changes(&self, state: &mut State) {
        let default = self.default_target(state);
        let mut gone = Vec::new();
        for (target, member) in &mut state.members {
            let (label, now) = (self.label(target), member.worker.state());
            if !member.told && now == WorkerState::Ready {
                member.told = true;
                self.telemetry.model_loaded(&label, true);
                self.telemetry.model_load(&label, "ready");
            }
            let why = match now {
                WorkerState::Failed(why) | WorkerState::Broken(why) => Some(why),
                _ => None,
            };
            // The one that answers to the configured name is kept as it is, so that its state is seen.
            if member.worker.has_ended() && (*target != default || why.is_none()) {
                gone.push((target.clone(), why));
            }
        }
        if let Some(member) = state.members.get(&default) {
            let now = member.worker.state();
            // Else what takes its place is seen instead.
            if !self.falls_back(state, &now) {
                if let WorkerState::Failed(_) = now {
                    let operator = member.worker.failure() == AtFault::Operator;
                    self.operator_at_fault.store(operator, Ordering::Relaxed);
                }
                self.show(now);
            }
        }
        state.displaced.retain(|member| !member.worker.has_ended());
        if gone.is_empty() || state.stopping {
            return;
        }
        for (target, why) in gone {
            let Some(member) = state.members.remove(&target) else {
                continue;
            };
            let label = self.label(&target);
            self.telemetry.model_loaded(&label, false);
            match why {
                Some(why) => {
                    if !member.told {
                        self.telemetry.model_load(&label, "failed");
                    }
                    crate::event!(ModelFailed, model = label, why, "a model is not served");
                    let failed = Failed {
                        at: Instant::now(),
                        why,
                        fault: member.worker.failure(),
                    };
                    state.failed.insert(target, failed);
                }
                None => crate::event!(ModelUnloaded, model = label, "model unloaded"),
            }
        }
        self.note_used(state);
    }

    /// Shows the state of the model that answers to the configured name.
    fn show(&self, now: WorkerState) {
        self.shown.send_if_modified(|shown| {
            let changed = *shown != now;
            if changed {
                *shown = now;
            }
            changed
        });
    }

    /// Whether the model that answered to the configured name before takes the place of the one that is in this state: where
    /// that cannot be loaded, and on probation where it breaks. One that is about to take the name leaves it as it was.
    pub(super) fn falls_back(&self, state: &State, now: &WorkerState) -> bool {
        let name = self.default_name();
        let coming = state.coming.get(&name);
        if coming.is_some_and(|coming| coming.awaited) {
            return matches!(now, WorkerState::Failed(_) | WorkerState::Broken(_));
        }
        let entry = state.names.get(&name);
        entry.is_some_and(|entry| match now {
            WorkerState::Failed(_) => self.has_way_back(entry),
            WorkerState::Broken(_) => entry.probation.is_some() && self.has_way_back(entry),
            _ => false,
        })
    }

    /// Whether there is a model that could take a name back.
    fn has_way_back(&self, entry: &Entry) -> bool {
        let former = entry.former.as_ref();
        former.is_some_and(|former| self.is_there(former))
    }

    /// Has the model be there that answers to the configured name.
    fn have_default(self: &Arc<Inner>, state: &mut State) {
        let target = self.default_target(state);
        self.wanted_back(state, &self.default_name(), &target);
    }

    /// Unloads what nobody asked for in a long time.
    fn unload_idle(&self, state: &mut State) {
        let idle_s = self.config.get().models.idle_unload_s;
        if idle_s == 0 {
            return;
        }
        let (now_ms, idle_ms) = (self.now_ms(), idle_s.saturating_mul(1000));
        for member in state.members.values_mut() {
            if !member.worker.is_idle() {
                member.heat.works(now_ms);
            }
        }
        let idle = state.members.iter().filter(|(target, member)| {
            self.may_go(state, target)
                && now_ms.saturating_sub(member.heat.used_ms()) >= idle_ms
                && member.is_unused()
        });
        let idle: Vec<Target> = idle.map(|(target, _)| target.clone()).collect();
        for target in idle {
            tracing::info!(
                model = self.label(&target),
                idle_s,
                "nobody asks for a model"
            );
            self.let_go(state, &target);
        }
    }

    /// Has who answered before do so again where the model on probation has failed, and go where it is through. Gives the
    /// names that changed hands.
    fn judge(self: &Arc<Inner>, state: &mut State) -> Vec<Swapped> {
        let (failed, over) = self.verdicts(state);
        if failed.is_empty() && over.is_empty() {
            return Vec::new();
        }
        for name in &over {
            state.names.prove(name);
            tracing::info!(name, "a model is through its probation");
        }
        let passed = |probation: &Probation| over.contains(&probation.name);
        state.probations.retain(|probation| !passed(probation));
        for name in &over {
            let entry = state.names.get(name);
            let former = entry.and_then(|entry| entry.former.clone());
            if let Some(former) = former {
                self.let_unnamed_go(state, &former);
            }
        }
        let back = |(name, why): (String, String)| self.go_back(state, &name, why);
        let told = failed.into_iter().filter_map(back).collect();
        state.unwritten = Some(Instant::now());
        self.note_used(state);
        told
    }

    /// The names whose models failed, and how; and those whose models are through their probation.
    fn verdicts(&self, state: &mut State) -> (Vec<(String, String)>, Vec<String>) {
        let mut failed = Vec::new();
        let mut over = Vec::new();
        let default = self.default_name();
        if let Some(entry) = state.names.get(&default)
            && let Some(member) = state.members.get(&entry.target)
            && let WorkerState::Failed(why) = member.worker.state()
            && self.has_way_back(entry)
        {
            failed.push((default, why));
        }
        let most = Duration::from_secs(self.config.get().models.probation_s);
        for probation in &mut state.probations {
            if failed.iter().any(|(name, _)| *name == probation.name) {
                continue;
            }
            let passed = probation.until.is_some_and(|until| Instant::now() >= until);
            let Some(member) = state.members.get(&probation.target) else {
                // It was unloaded, and what made it go is not its fault.
                let why = state.failed.get(&probation.target);
                if let Some(model) = why {
                    failed.push((probation.name.clone(), model.why.clone()));
                } else if passed {
                    over.push(probation.name.clone());
                }
                continue;
            };
            match member.worker.state() {
                WorkerState::Failed(why) | WorkerState::Broken(why) => {
                    failed.push((probation.name.clone(), why));
                }
                WorkerState::Ready if member.worker.failures() > probation.failures => {
                    let why = "a pass of it failed".to_owned();
                    failed.push((probation.name.clone(), why));
                }
                WorkerState::Ready if passed => over.push(probation.name.clone()),
                WorkerState::Ready => {
                    probation.until.get_or_insert_with(|| Instant::now() + most);
                }
                WorkerState::Loading | WorkerState::Waiting(_) | WorkerState::Stopping => {}
            }
        }
        (failed, over)
    }

    /// Has who answered before do so again, if there is one.
    fn go_back(self: &Arc<Inner>, state: &mut State, name: &str, why: String) -> Option<Swapped> {
        state.probations.retain(|probation| probation.name != name);
        if !self.has_way_back(state.names.get(name)?) {
            // Nothing is to be waited for any more.
            state.names.prove(name);
            return None;
        }
        let own = self.own(name);
        let from = state.names.roll_back(name, own.as_ref())?;
        Some(self.gone_back(state, name, &from, Some(why)))
    }

    /// Whether a model is to be there that would take a name back, should the one on probation fail that has it now.
    fn is_awaited(&self, state: &State, target: &Target) -> bool {
        state.probations.iter().any(|probation| {
            let entry = state.names.get(&probation.name);
            entry.is_some_and(|entry| entry.former.as_ref() == Some(target))
                && state.members.contains_key(&probation.target)
        })
    }

    /// Whether a model that is loaded may be unloaded without anybody having asked for that.
    pub(super) fn may_go(&self, state: &State, target: &Target) -> bool {
        let member = state.members.get(target);
        let stays = member.is_none_or(|member| member.pinned || member.held > 0 || member.leaving);
        !stays && self.default_target(state) != *target && !self.is_awaited(state, target)
    }

    /// Lets a model go that answered to a name and does not any more, unless it has another reason to stay.
    pub(super) fn let_unnamed_go(&self, state: &mut State, target: &Target) {
        let answers = |name| self.target(state, name).as_ref() == Some(target);
        let named = state.names.iter().any(|(name, _)| answers(name));
        let comes = state.coming.values().any(|coming| coming.target == *target);
        if !named && !comes && self.may_go(state, target) {
            self.let_go(state, target);
        }
    }
}
