//! rumqttd inside the test's own process: a second make of broker, with one port for MQTT 5 and one that
//! speaks only 3.1.1. It has no durable sessions and ignores their expiry.
//!
//! rumqttd cannot be stopped: its threads end with the process.

use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rumqttd::Config;
use serde_json::{Value, json};

use crate::broker::{START_TIMEOUT, config, free_port};

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(10);

/// A running rumqttd.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedBroker {
    v5: u16,
    v311: u16,
}

impl EmbeddedBroker {
    /// Starts a broker.
    ///
    /// # Errors
    /// When it does not take connections.
    pub fn start() -> io::Result<EmbeddedBroker> {
        let broker = EmbeddedBroker {
            v5: free_port()?,
            v311: free_port()?,
        };
        let server = |name: &str, port: u16| {
            json!({
                "name": name,
                "listen": format!("127.0.0.1:{port}"),
                "next_connection_delay_ms": 1,
                "connections": {
                    "connection_timeout_ms": 5000,
                    "max_payload_size": 262_144,
                    "max_inflight_count": 100,
                    "dynamic_filters": true,
                },
            })
        };
        let settings: Value = json!({
            "id": 0,
            "router": {
                "max_connections": 32,
                "max_outgoing_packet_count": 200,
                "max_segment_size": 1_048_576,
                "max_segment_count": 4,
            },
            "v5": { "1": server("v5", broker.v5) },
            "v4": { "1": server("v4", broker.v311) },
        });
        let settings: Config = serde_json::from_value(settings).map_err(io::Error::other)?;
        thread::spawn(move || {
            if let Err(error) = rumqttd::Broker::new(settings).start() {
                eprintln!("rumqttd: {error}");
            }
        });
        let start = Instant::now();
        while start.elapsed() < START_TIMEOUT {
            let open = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
            if open(broker.v5) && open(broker.v311) {
                return Ok(broker);
            }
            thread::sleep(POLL);
        }
        Err(io::Error::other("rumqttd does not take connections"))
    }

    /// The port for MQTT 5.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.v5
    }

    /// The port that speaks only 3.1.1, and hangs up on MQTT 5 without a word.
    #[must_use]
    pub fn port_v311(&self) -> u16 {
        self.v311
    }

    /// Lines for the daemon's configuration that connect it by MQTT 5.
    #[must_use]
    pub fn config(&self) -> String {
        config(self.v5)
    }

    /// Lines for the daemon's configuration that connect it to the port of 3.1.1.
    #[must_use]
    pub fn config_v311(&self) -> String {
        config(self.v311)
    }
}
