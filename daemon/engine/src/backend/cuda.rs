//! NVIDIA cards and Jetson.
//!
//! The first device that the driver has is opened once for the whole program, when it is first wanted, and by all models
//! together. A device that broke is of no use to the process any more.

use super::State;
use andon_cuda::{Device, Error};
use std::sync::{Arc, OnceLock};

/// The device, or why there is none.
static DEVICE: OnceLock<Result<Arc<Device>, Error>> = OnceLock::new();

/// Why this program has no kernels; `None` if it has.
pub(super) fn not_built() -> Option<&'static str> {
    andon_cuda::not_built()
}

/// The device.
///
/// # Errors
/// [`Error`], always the same once it was opened or could not be.
fn device() -> Result<Arc<Device>, Error> {
    let device = DEVICE.get_or_init(|| Device::open(0).map(Arc::new));
    device.clone()
}

/// See [`super::Backend::state`].
pub(super) fn state() -> State {
    if let Some(why) = not_built() {
        return State::NotBuilt(why.to_owned());
    }
    let limits = device().and_then(|device| device.limits());
    match limits {
        Ok(limits) => {
            let (major, minor) = limits.capability;
            State::Available(format!(
                "{}, sm_{major}{minor}, {} processors",
                limits.name, limits.processors
            ))
        }
        Err(error) => State::Unavailable(error.to_string()),
    }
}
