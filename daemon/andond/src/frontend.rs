//! The ways in. Each front end speaks one protocol, turns it into a [`crate::request::Request`], and
//! turns the worker's events back; none of them knows another.

pub mod http;
pub mod metrics;
pub mod mqtt;
mod places;
pub mod wire;

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::config::{Config, Current};
use crate::confine::Confined;
use crate::health;
use crate::memory::Budget;
use crate::registry::Registry;
use crate::reload::Reload;
use crate::router::Router;
use crate::spool::record::Door;
use crate::spool::{Kept, Spool};
use crate::telemetry::Telemetry;
use crate::worker::WorkerState;
use crate::workers::Workers;

/// What every front end is given.
#[derive(Debug, Clone)]
pub struct Context {
    /// The way to the configuration in force: see [`Context::config`].
    pub current: Current,
    /// What reads it again.
    pub reload: Arc<Reload>,
    /// Who may ask for what, as it is now.
    pub access: Arc<Access>,
    /// The models that are kept.
    pub registry: Arc<Registry>,
    /// Where requests go.
    pub router: Router,
    /// Who answers them here.
    pub workers: Workers,
    /// What memory is promised.
    pub budget: Arc<Budget>,
    /// Where they are kept.
    pub spool: Spool,
    /// What the daemon gave up when it started.
    pub confined: Arc<Confined>,
    /// What is counted.
    pub telemetry: Arc<Telemetry>,
    /// Cancelled when the daemon begins to stop. A front end then takes no new request, waits until its
    /// requests in flight have ended (the worker ends each of them with a terminal event, within
    /// `[gateway] shutdown-grace-ms`), says goodbye and returns.
    pub stopping: CancellationToken,
}

/// What a record of the spool says, for an operator: the front end that took the request knows how to read it.
#[must_use]
pub fn described(kept: &Kept) -> serde_json::Value {
    match kept.header.key.door {
        Door::Mqtt => mqtt::describe(kept),
        Door::Http => http::describe(kept),
    }
}

impl Context {
    /// The configuration in force now. A reload replaces it: who decides something takes it once.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.current.get()
    }

    /// Waits as long as the model that answers to the configured name is being loaded, at most until `deadline`: for what needs the
    /// model itself. A request for an answer waits where it is handed over.
    pub async fn once_loaded(&self, deadline: Option<Instant>) {
        let mut states = self.workers.states();
        let loaded = states.wait_for(|state| *state != WorkerState::Loading);
        // The sender lives as long as the workers do, and whoever waited looks at what there is.
        match deadline {
            Some(deadline) => drop(tokio::time::timeout_at(deadline.into(), loaded).await),
            None => drop(loaded.await),
        }
    }

    /// Everything that is counted, as Prometheus reads it.
    pub fn metrics(&self) -> String {
        self.telemetry.budget(&self.budget.facts());
        self.router.report();
        let degraded = health::degraded(self, &self.workers.status());
        self.telemetry.degraded(&degraded);
        self.telemetry.encode()
    }
}
