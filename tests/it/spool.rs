//! The spool: the real daemon is killed wherever it hurts, and nothing is lost, answered twice in two ways, or damaged.

mod campaign;
mod faults;
mod http;
mod ledger;
mod network;
mod operator;

use std::net::Ipv4Addr;
use std::path::Path;

use andon_tests::broker::Broker;
use andon_tests::daemon::{Builder, Daemon};

/// A broker that keeps its sessions and messages over its own end, in this folder.
fn lasting_broker(folder: &Path) -> Broker {
    lasting_broker_at(folder, None)
}

/// The same, which also listens at another address, at the same port.
fn lasting_broker_at(folder: &Path, address: Option<Ipv4Addr>) -> Broker {
    let options = format!(
        "persistence true\npersistence_location {}/\nautosave_interval 1\nautosave_on_changes true\n\
         max_queued_messages 0\nmax_inflight_messages 64",
        folder.display()
    );
    Broker::start_at(&options, address).unwrap()
}

/// The daemon, once its session is at the broker: what is published before that, no broker keeps.
fn started(broker: &Broker, builder: Builder) -> Daemon {
    let status = broker.watch("andon/test/status", "mqttv5").unwrap();
    let daemon = builder.start().unwrap();
    let online = |value: serde_json::Value| value["state"] == "online";
    status
        .wait_for(|seen| seen.json().is_ok_and(online))
        .unwrap();
    daemon
}
