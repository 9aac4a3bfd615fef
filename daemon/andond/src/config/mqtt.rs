//! `[mqtt]`: the link to the floor's broker.

use std::path::PathBuf;

use andon_wire::limits::TOPIC_BYTES_MAX;
use andon_wire::topic::Topics;
use serde::{Deserialize, Serialize};

use super::Problems;
use super::gateway::{GatewayConfig, is_name};

/// Longest host name, in bytes (RFC 1035).
const HOST_BYTES_MAX: usize = 253;
/// Longest client id, in bytes: MQTT's own bound is 65535, but brokers log it.
const CLIENT_ID_BYTES_MAX: usize = 128;
/// Longest user name, in bytes.
const USERNAME_BYTES_MAX: usize = 256;
/// Most entries of the list of response topics.
const RESPONSE_TOPICS_MAX: usize = 32;
/// The registered port of MQTT.
const PORT_PLAIN: u16 = 1883;
/// The registered port of MQTT over TLS.
const PORT_TLS: u16 = 8883;

/// Which MQTT the broker is spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum Protocol {
    /// MQTT 5, and 3.1.1 where the broker does not take it.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// MQTT 5 or nothing.
    #[serde(rename = "5")]
    V5,
    /// MQTT 3.1.1 from the start.
    #[serde(rename = "3.1.1")]
    V311,
}

/// `[mqtt]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct MqttConfig {
    /// Whether the front end runs.
    pub enabled: bool,
    /// The broker's name or address.
    pub host: String,
    /// The broker's port; unset, 1883, or 8883 with TLS.
    pub port: Option<u16>,
    /// `auto`, `5` or `3.1.1`.
    pub protocol: Protocol,
    /// The session's name at the broker; unset, `andon-<gateway>`. Two daemons of one name throw each
    /// other out.
    pub client_id: Option<String>,
    /// What every topic begins with; unset, `andon/<gateway>`.
    pub base: Option<String>,
    /// The user name given to the broker.
    pub username: Option<String>,
    /// A file that holds the password; one line end at its end is not part of it.
    pub password_file: Option<PathBuf>,
    /// Whether the link is encrypted, and the broker's certificate checked against `host`.
    pub tls: bool,
    /// PEM file with the authorities a broker's certificate may come from.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the certificate shown to the broker.
    pub certificate_file: Option<PathBuf>,
    /// PEM file with the key of `certificate-file`.
    pub key_file: Option<PathBuf>,
    /// Silence after which the link is probed.
    pub keep_alive_s: u16,
    /// How long the broker keeps requests for a gateway that is away. MQTT 5 only: a 3.1.1 broker has
    /// its own rule.
    pub session_expiry_s: u32,
    /// Longest wait for the broker's greeting.
    pub connect_timeout_s: u64,
    /// Longest pause between two attempts to reach the broker.
    pub reconnect_max_s: u64,
    /// Serve the requests of this fleet too, shared with its other gateways.
    pub fleet_group: Option<String>,
    /// Response Topics that are answered on, as topic filters; `<base>` and `<client>` stand for the
    /// request's own. A request that names another is answered on `<base>/response/<client>/<id>`.
    pub response_topics: Vec<String>,
    /// Most requests accepted and not yet answered; what comes above is refused.
    pub requests_max: usize,
    /// Most messages under way without acknowledgement, each way.
    pub unacknowledged_max: u16,
    /// Largest packet taken from the broker and given to it, in bytes.
    pub packet_bytes_max: u32,
    /// Most chunks, refusals and events that wait for the broker; what comes above is dropped. Answers
    /// of accepted requests always wait.
    pub queue_max: usize,
    /// Shortest time between two changes of the status topic.
    pub status_interval_ms: u64,
}

impl Default for MqttConfig {
    fn default() -> Self {
        MqttConfig {
            enabled: false,
            host: "localhost".to_owned(),
            port: None,
            protocol: Protocol::Auto,
            client_id: None,
            base: None,
            username: None,
            password_file: None,
            tls: false,
            ca_file: None,
            certificate_file: None,
            key_file: None,
            keep_alive_s: 30,
            session_expiry_s: 3600,
            connect_timeout_s: 10,
            reconnect_max_s: 30,
            fleet_group: None,
            response_topics: vec!["<base>/response/<client>/#".to_owned()],
            requests_max: 64,
            unacknowledged_max: 32,
            packet_bytes_max: 256 * 1024,
            queue_max: 256,
            status_interval_ms: 1000,
        }
    }
}

impl MqttConfig {
    /// The broker's port.
    pub fn port(&self) -> u16 {
        self.port
            .unwrap_or(if self.tls { PORT_TLS } else { PORT_PLAIN })
    }

    /// The session's name at the broker.
    pub fn client_id(&self, gateway: &GatewayConfig) -> String {
        self.client_id
            .clone()
            .unwrap_or_else(|| format!("andon-{}", gateway.name()))
    }

    /// What every topic begins with, without a slash at its end.
    pub fn base(&self, gateway: &GatewayConfig) -> String {
        self.base
            .clone()
            .unwrap_or_else(|| format!("andon/{}", gateway.name()))
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            (1..=HOST_BYTES_MAX).contains(&self.host.len())
                && !self
                    .host
                    .contains(|c: char| c.is_whitespace() || c.is_control() || c == '/'),
            "mqtt.host",
            "is not a host",
            "give a name or an address, without scheme and port",
        );
        problems.require(
            self.port != Some(0),
            "mqtt.port",
            "is 0",
            "leave it out for 1883, or 8883 with TLS",
        );
        if let Some(id) = &self.client_id {
            problems.require(
                (1..=CLIENT_ID_BYTES_MAX).contains(&id.len()) && !id.contains(char::is_control),
                "mqtt.client-id",
                "is not a client id",
                "use 1 to 128 bytes without control characters",
            );
        }
        if let Some(base) = &self.base
            && let Err(error) = Topics::with_base(base)
        {
            problems.add(
                "mqtt.base",
                format!("cannot begin a topic: {error}"),
                "write levels such as plant/andon/press-3",
            );
        }
        if let Some(name) = &self.username {
            problems.require(
                (1..=USERNAME_BYTES_MAX).contains(&name.len()),
                "mqtt.username",
                "is empty or too long",
                "use 1 to 256 bytes",
            );
        }
        problems.require(
            self.password_file.is_none() || self.username.is_some(),
            "mqtt.password-file",
            "is of no use without mqtt.username",
            "set mqtt.username too",
        );
        self.check_tls(problems);
        problems.within("mqtt.keep-alive-s", self.keep_alive_s, 5..=3600);
        problems.within("mqtt.connect-timeout-s", self.connect_timeout_s, 1..=300);
        problems.within("mqtt.reconnect-max-s", self.reconnect_max_s, 1..=3600);
        if let Some(group) = &self.fleet_group {
            problems.require(
                is_name(group),
                "mqtt.fleet-group",
                "is not a name",
                "use 1 to 64 letters, digits, '.', '-' or '_'",
            );
        }
        if self.response_topics.len() > RESPONSE_TOPICS_MAX {
            problems.add(
                "mqtt.response-topics",
                format!("{} filters are listed", self.response_topics.len()),
                format!("list at most {RESPONSE_TOPICS_MAX}"),
            );
        }
        for filter in &self.response_topics {
            if !is_filter(filter) {
                problems.add(
                    "mqtt.response-topics",
                    format!("{filter:?} is not a topic filter"),
                    "write whole levels; '+' stands for one level, '#' for the rest",
                );
            }
        }
        problems.within("mqtt.requests-max", self.requests_max, 1..=4096);
        problems.within("mqtt.unacknowledged-max", self.unacknowledged_max, 2..=1024);
        problems.within(
            "mqtt.packet-bytes-max",
            self.packet_bytes_max,
            4096..=16 * 1024 * 1024,
        );
        problems.within("mqtt.queue-max", self.queue_max, 1..=65_536);
        problems.within(
            "mqtt.status-interval-ms",
            self.status_interval_ms,
            100..=3_600_000,
        );
    }

    fn check_tls(&self, problems: &mut Problems) {
        for (key, file) in [
            ("mqtt.ca-file", &self.ca_file),
            ("mqtt.certificate-file", &self.certificate_file),
            ("mqtt.key-file", &self.key_file),
        ] {
            problems.require(
                file.is_none() || self.tls,
                key,
                "is set, but the link is not encrypted",
                "set mqtt.tls = true",
            );
        }
        problems.require(
            !self.tls || self.ca_file.is_some(),
            "mqtt.tls",
            "is set without an authority to trust",
            "name the broker's authority in mqtt.ca-file",
        );
        problems.require(
            self.certificate_file.is_some() == self.key_file.is_some(),
            "mqtt.certificate-file",
            "and mqtt.key-file belong together",
            "set both or neither",
        );
    }
}

/// Whether `filter` is a topic filter that matches some topic names of clients.
fn is_filter(filter: &str) -> bool {
    if !(1..=TOPIC_BYTES_MAX).contains(&filter.len())
        || filter.starts_with('$')
        || filter.contains(char::is_control)
    {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let good = match level {
            "+" => true,
            "#" => levels.peek().is_none(),
            _ => !level.contains(['+', '#']),
        };
        if !good {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: &MqttConfig) -> Vec<String> {
        let mut problems = Problems::default();
        config.check(&mut problems);
        problems.iter().map(|problem| problem.key.clone()).collect()
    }

    #[test]
    fn the_default_is_in_order() {
        assert!(problems(&MqttConfig::default()).is_empty());
    }

    #[test]
    fn every_mistake_is_found_at_once() {
        let config = MqttConfig {
            host: "mqtt://broker".to_owned(),
            base: Some("plant/+/andon".to_owned()),
            password_file: Some(PathBuf::from("/x")),
            ca_file: Some(PathBuf::from("/x")),
            key_file: Some(PathBuf::from("/x")),
            fleet_group: Some("a/b".to_owned()),
            response_topics: vec!["a/#/b".to_owned(), "ok/+/#".to_owned(), String::new()],
            packet_bytes_max: 1,
            ..MqttConfig::default()
        };
        assert_eq!(
            problems(&config),
            [
                "mqtt.host",
                "mqtt.base",
                "mqtt.password-file",
                "mqtt.ca-file",
                "mqtt.key-file",
                "mqtt.certificate-file",
                "mqtt.fleet-group",
                "mqtt.response-topics",
                "mqtt.response-topics",
                "mqtt.packet-bytes-max",
            ]
        );
    }

    #[test]
    fn names_follow_the_gateway() {
        let gateway = GatewayConfig {
            name: Some("press-3".to_owned()),
            ..GatewayConfig::default()
        };
        let config = MqttConfig::default();
        assert_eq!(config.base(&gateway), "andon/press-3");
        assert_eq!(config.client_id(&gateway), "andon-press-3");
        assert_eq!(config.port(), 1883);
        assert_eq!(
            MqttConfig {
                tls: true,
                ..config
            }
            .port(),
            8883
        );
    }
}
