//! An MQTT broker in this process, on ports of its own: one for MQTT 5, one for 3.1.1.
//!
//! It keeps nothing and lets everybody in from this machine. Right for a demonstration; a gateway has
//! a real broker.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest wait for a port to answer.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a port that somebody took meanwhile is chosen anew.
const TRIES: usize = 5;

/// A running broker; it ends with the process.
pub(crate) struct Broker {
    port_v5: u16,
    port_v311: u16,
}

impl Broker {
    /// Starts a broker.
    pub(crate) fn start() -> Result<Broker> {
        let mut outcome = Err(anyhow::anyhow!("not tried"));
        for _ in 0..TRIES {
            outcome = Broker::start_once();
            if outcome.is_ok() {
                break;
            }
        }
        outcome.context("cannot start a broker")
    }

    /// The port for MQTT 5.
    pub(crate) fn port_v5(&self) -> u16 {
        self.port_v5
    }

    /// The port for MQTT 3.1.1.
    pub(crate) fn port_v311(&self) -> u16 {
        self.port_v311
    }

    fn start_once() -> Result<Broker> {
        // Both are held until both are known, so that they differ.
        let free = [
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
        ];
        let (port_v5, port_v311) = (free[0].local_addr()?.port(), free[1].local_addr()?.port());
        drop(free);
        let listener = |version: &str, port: u16| {
            format!(
                "[{version}.1]\nname = '{version}'\nlisten = '127.0.0.1:{port}'\nnext_connection_delay_ms = 1\n\
                 [{version}.1.connections]\nconnection_timeout_ms = 10000\nmax_payload_size = 1048576\n\
                 max_inflight_count = 100\ndynamic_filters = true\n"
            )
        };
        let text = format!(
            "id = 0\n[router]\nid = 0\nmax_connections = 100\nmax_outgoing_packet_count = 200\n\
             max_segment_size = 10485760\nmax_segment_count = 4\n{}{}",
            listener("v4", port_v311),
            listener("v5", port_v5),
        );
        let config: rumqttd::Config = toml::from_str(&text)?;
        let mut broker = rumqttd::Broker::new(config);
        thread::Builder::new()
            .name("broker".to_owned())
            .spawn(move || {
                if let Err(error) = broker.start() {
                    eprintln!("broker: {error}");
                }
            })?;
        for port in [port_v5, port_v311] {
            let start = Instant::now();
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
                if start.elapsed() > START_TIMEOUT {
                    bail!("port {port} does not answer");
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(Broker { port_v5, port_v311 })
    }
}
