//! Which backend computes a model.
//!
//! Invariant: a backend that the configuration asks for is used or the model is not served; only `auto` takes another, and then
//! says why.

use andon_engine::Model;
use andon_engine::backend::{Backend, State};

use crate::config::Config;
use crate::config::engine::BackendChoice;

/// The backend of a model, and why it is not a better one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Computes {
    /// What computes it.
    pub backend: Backend,
    /// Why no accelerator does, where one might have.
    pub why_not: Option<String>,
}

/// The accelerators, in the order in which they are taken.
const ACCELERATORS: [Backend; 1] = [Backend::Cuda];

/// The accelerator that the configuration asks for.
fn demanded(config: &Config) -> Option<Backend> {
    match config.engine.backend {
        BackendChoice::Auto | BackendChoice::Cpu => None,
        BackendChoice::Cuda => Some(Backend::Cuda),
    }
}

fn missing(backend: Backend, why: &str) -> String {
    format!("{backend} is asked for and cannot be used: {why}")
}

/// Why a backend cannot be used on this machine; `None` if it can.
fn unusable(backend: Backend) -> Option<String> {
    match backend.state() {
        State::NotBuilt(why) | State::Unavailable(why) => Some(why),
        State::Available(_) => None,
    }
}

/// Checks that the backend that the configuration asks for is there, which may take seconds.
///
/// # Errors
/// Why it is not.
pub fn check(config: &Config) -> Result<(), String> {
    let Some(backend) = demanded(config) else {
        return Ok(());
    };
    match unusable(backend) {
        Some(why) => Err(missing(backend, &why)),
        None => Ok(()),
    }
}

/// The backend for a model that generates text, as the configuration has it.
///
/// # Errors
/// Why the one that it asks for cannot compute this model.
pub(super) fn choose(config: &Config, model: &Model) -> Result<Computes, String> {
    let cpu = |why_not| Computes {
        backend: Backend::Cpu,
        why_not,
    };
    let cannot = |backend: Backend| {
        // What the model lacks is known without opening a device.
        let why = backend.not_built().or_else(|| model.not_covered(backend));
        why.or_else(|| unusable(backend))
    };
    if let Some(backend) = demanded(config) {
        return match cannot(backend) {
            Some(why) => Err(missing(backend, &why)),
            None => Ok(Computes {
                backend,
                why_not: None,
            }),
        };
    }
    if config.engine.backend == BackendChoice::Cpu {
        return Ok(cpu(Some("[engine] backend is \"cpu\"".to_owned())));
    }
    let mut why_not = None;
    for backend in ACCELERATORS {
        match cannot(backend) {
            None => {
                return Ok(Computes {
                    backend,
                    why_not: None,
                });
            }
            Some(why) => why_not = Some(format!("{backend}: {why}")),
        }
    }
    Ok(cpu(why_not))
}
