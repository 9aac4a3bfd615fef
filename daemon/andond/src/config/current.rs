//! The configuration in force, which a reload replaces as a whole.

use std::sync::Arc;

use tokio::sync::watch;

use super::Config;

/// The way to the configuration in force; cheap to clone.
///
/// Whoever decides something takes [`Current::get`] once and goes by that to the end of the decision, so that none is made by
/// half of one configuration and half of another.
#[derive(Debug, Clone)]
pub struct Current(Arc<watch::Sender<Arc<Config>>>);

impl Current {
    /// The configuration that the daemon starts with.
    #[must_use]
    pub fn new(config: Arc<Config>) -> Current {
        Current(Arc::new(watch::Sender::new(config)))
    }

    /// The configuration in force now.
    #[must_use]
    pub fn get(&self) -> Arc<Config> {
        Arc::clone(&self.0.borrow())
    }

    /// Puts another in force and tells all who watch, also where it is equal: files that it names may have changed.
    pub fn replace(&self, config: Arc<Config>) {
        self.0.send_replace(config);
    }

    /// Tells when there was a reload.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Config>> {
        self.0.subscribe()
    }
}
