//! What a reload, or a file that was replaced, changes of the link: it is closed in order and made anew, while what was asked
//! goes on being answered.
//!
//! The broker keeps the session meanwhile, so requests that come wait there, and what was not confirmed is sent again. A
//! certificate is shown to the broker beside the connection in use before that is given up for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::credentials::Credentials;
use super::reconnect::Reconnect;
use super::{Frontend, tls};
use crate::config::Config;
use crate::config::mqtt::MqttConfig;
use crate::credential::Unusable;

/// How often the files of certificates and passwords are looked at for changes: four questions to the file system. Whoever
/// replaces them leaves the former valid for longer, and a file that is half replaced is looked at again. The system's
/// notifications would need a watch of every folder on the way, and of what links point to.
pub(super) const FILES_EVERY: Duration = Duration::from_secs(15);
/// How long a broker has to hang up after we said goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// A certificate that is being shown to the broker.
pub(super) struct Probe {
    task: JoinHandle<Result<(), String>>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits for what the broker says.
pub(super) async fn probed(probe: Option<&mut Probe>) -> Result<(), String> {
    match probe {
        Some(probe) => (&mut probe.task)
            .await
            .unwrap_or_else(|error| Err(error.to_string())),
        None => std::future::pending().await,
    }
}

/// Whether the files that the configuration names are of use. Reads them.
///
/// # Errors
/// The first that is not.
pub(crate) fn check(config: &MqttConfig) -> Result<(), Unusable> {
    Credentials::read(config).map(drop)
}

/// What of the configuration the connection is made with: all but what is looked at for each message.
fn of_the_link(config: &MqttConfig) -> MqttConfig {
    MqttConfig {
        response_topics: Vec::new(),
        requests_max: 0,
        queue_max: 0,
        reconnect_max_s: 0,
        status_interval_ms: 0,
        ..config.clone()
    }
}

impl Frontend {
    /// A clock for the status.
    pub(super) fn ticks(&self) -> Interval {
        let every = Duration::from_millis(self.config.mqtt.status_interval_ms);
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }

    /// The configuration was read again.
    pub(super) fn reloaded(&mut self, config: &Arc<Config>) {
        let former = std::mem::replace(&mut self.config, Arc::clone(config));
        let (former, mqtt) = (&former.mqtt, &config.mqtt);
        self.board
            .set_interval(Duration::from_millis(mqtt.status_interval_ms));
        self.desk.reloaded(Arc::clone(config));
        if (former.protocol, former.reconnect_max_s) != (mqtt.protocol, mqtt.reconnect_max_s) {
            let longest = Duration::from_secs(mqtt.reconnect_max_s);
            self.series = Reconnect::new(mqtt.protocol, longest);
        }
        if of_the_link(former) == of_the_link(mqtt) {
            self.keyring.forgive();
            self.look_at_files(true);
        } else {
            self.probe = None;
            self.keyring.forget();
            self.leave("the configuration has changed");
        }
    }

    /// Looks whether certificates or the password have changed; with `anew` also where the files look as before.
    pub(super) fn look_at_files(&mut self, anew: bool) {
        let connected = self.connection.as_ref();
        if !connected.is_some_and(|connection| connection.greeting.is_some() && !connection.leaving)
        {
            // The next attempt reads them.
            return;
        }
        let Some(new) = self.keyring.changed(&self.config.mqtt, anew) else {
            return;
        };
        match new.tls {
            None => self.leave("the password has changed"),
            Some(client) => {
                let (host, port) = (self.config.mqtt.host.clone(), self.config.mqtt.port());
                let patience = Duration::from_secs(self.config.mqtt.connect_timeout_s);
                let task =
                    tokio::spawn(async move { tls::probe(client, &host, port, patience).await });
                self.probe = Some(Probe { task });
            }
        }
    }

    /// The broker has, or has not, taken a new certificate.
    pub(super) fn probed(&mut self, outcome: Result<(), String>) {
        self.probe = None;
        match outcome {
            Ok(()) => self.leave("the certificate or password has changed"),
            Err(error) => {
                self.keyring.complain(&error);
                self.keyring.look_again();
            }
        }
    }

    /// Closes the connection in order, if there is one, to make it anew at once.
    fn leave(&mut self, why: &'static str) {
        tracing::info!(why, "the broker is connected to anew");
        let Some(connection) = &mut self.connection else {
            self.attempt = self.series.first();
            self.attempt_at = Instant::now();
            return;
        };
        connection.leaving = true;
        connection.silent_at = Instant::now() + GOODBYE_MAX;
        let said = connection.greeting.is_some() && connection.link.disconnect();
        if !said {
            self.left();
        }
    }

    /// The connection was left, and the next is made.
    pub(super) fn left(&mut self) {
        self.keyring.ended(true);
        self.disconnected();
        self.attempt = self.series.first();
        self.attempt_at = Instant::now();
    }
}
