//! What could compute models, and what does.

use andon_engine::backend::{Backend, State};
use andon_wire::{BackendStatus, Backends, limits, shorten};

use crate::config::engine::BackendChoice;
use crate::frontend::Context;

/// A backend, with the texts that a frame borrows.
#[derive(Debug)]
pub(super) struct Described {
    backend: Backend,
    built: bool,
    available: bool,
    chosen: bool,
    device: String,
    reason: String,
}

/// Every backend. May take seconds, where nobody has opened a device before.
pub(super) fn describe(context: &Context) -> Vec<Described> {
    let model = context.workers.status().model;
    let cpu_only = context.config().engine.backend == BackendChoice::Cpu;
    let of = |backend: Backend| {
        let state = match backend {
            Backend::Cpu => backend.state(),
            _ => match backend.not_built() {
                Some(why) => State::NotBuilt(why),
                // In its sandbox the daemon could not reach it.
                None if cpu_only => State::Unavailable(
                    "it was not looked for, since [engine] backend is \"cpu\"".to_owned(),
                ),
                None => backend.state(),
            },
        };
        let computes = model.as_deref().map(|facts| &facts.computes);
        let chosen = computes.is_some_and(|computes| computes.backend == backend);
        let not_chosen = || match computes {
            None => "no model is loaded".to_owned(),
            Some(computes) => match &computes.why_not {
                Some(why) if backend != Backend::Cpu => why.clone(),
                _ => format!("{} computes the model", computes.backend),
            },
        };
        let (built, available) = match &state {
            State::NotBuilt(_) => (false, false),
            State::Unavailable(_) => (true, false),
            State::Available(_) => (true, true),
        };
        let (device, reason) = match state {
            State::NotBuilt(why) | State::Unavailable(why) => (String::new(), why),
            State::Available(device) if chosen => (device, String::new()),
            State::Available(device) => (device, not_chosen()),
        };
        Described {
            backend,
            built,
            available,
            chosen,
            device,
            reason,
        }
    };
    Backend::ALL.map(of).into()
}

/// The frame that says so.
pub(super) fn frame(described: &[Described]) -> Backends<'_> {
    let cut = |text| shorten(text, limits::FAULT_MESSAGE_BYTES_MAX);
    let all = described.iter().map(|one| BackendStatus {
        name: one.backend.name(),
        built: one.built,
        available: one.available,
        chosen: one.chosen,
        device: cut(&one.device),
        reason: cut(&one.reason),
    });
    Backends {
        backends: all.take(limits::BACKENDS_MAX).collect(),
    }
}
