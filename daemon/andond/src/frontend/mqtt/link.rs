//! One connection to a broker, in either version of MQTT, from the attempt to its end.
//!
//! A [`Link`] is never reused: its end is told once as [`LinkEvent::Closed`], and what was not confirmed by
//! then is the business of the [`super::outbox`]. rumqttc's own memory of unconfirmed messages is
//! dropped with it on purpose: it forgets them when the broker has no session, and after a collision of
//! packet ids it waits for a confirmation that never comes.
//!
//! The task behind a link only polls and reports; it never waits for its reader while the reader waits for
//! it, because everything given to a link is taken at once or not at all.

mod v311;
mod v5;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::message::{AckToken, Incoming, Outgoing, Version};

/// Events that may wait for the reader.
const EVENTS_WAITING_MAX: usize = 64;
/// On 3.1.1 a broker cannot be told how large a packet may be, and a message that was not read comes
/// again with every connection. So packets this many times the bound are still read, and refused
/// properly.
const OVERSIZE_FACTOR: u32 = 8;

/// What a connection is made with.
#[derive(Clone)]
pub(super) struct LinkOptions {
    /// The broker's name or address.
    pub(super) host: String,
    /// The broker's port.
    pub(super) port: u16,
    /// Encryption, if any.
    pub(super) transport: rumqttc::Transport,
    /// The session's name.
    pub(super) client_id: String,
    /// User name and password.
    pub(super) credentials: Option<(String, String)>,
    /// Silence after which the link is probed.
    pub(super) keep_alive: Duration,
    /// How long the broker keeps the session, in seconds.
    pub(super) session_expiry_s: u32,
    /// Longest wait for the greeting.
    pub(super) connect_timeout: Duration,
    /// Largest packet, both ways, in bytes.
    pub(super) packet_bytes_max: u32,
    /// Most messages without acknowledgement, each way.
    pub(super) unacknowledged_max: u16,
    /// What the broker says when this client is gone.
    pub(super) will: Outgoing,
}

impl LinkOptions {
    /// Places in the channel to rumqttc: the window of messages, an acknowledgement for each message the
    /// broker may have under way, and room for subscriptions, events and the goodbye.
    fn request_places(&self) -> usize {
        2 * usize::from(self.unacknowledged_max) + 32
    }

    /// Largest packet read on a connection of 3.1.1.
    fn oversize_bytes_max(&self) -> u32 {
        self.packet_bytes_max.saturating_mul(OVERSIZE_FACTOR)
    }
}

/// The broker's greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Greeting {
    /// Whether the broker kept this client's session.
    pub(super) session_present: bool,
    /// Largest packet the broker takes, in bytes.
    pub(super) packet_bytes_max: usize,
    /// Most messages it takes without having confirmed them.
    pub(super) window: usize,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The broker could not be reached.
    Unreachable,
    /// The broker was reached, but there was no greeting.
    NoGreeting,
    /// The broker does not speak this version.
    VersionRefused,
    /// The broker turned the client away.
    Refused,
    /// A packet was larger than is read.
    PacketTooLarge,
    /// It broke.
    Broken,
}

/// What happens on a link.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// The broker greeted; comes first, if at all.
    Greeted(Greeting),
    /// The broker answered a subscription: for each filter, why it was not taken.
    Subscribed(Vec<Option<String>>),
    /// A message came.
    Message(Incoming),
    /// The oldest confirmed message given to the link, of those not reported here yet, has this packet id.
    Sent(u16),
    /// The broker confirmed a message; the text says why it did not take it.
    Confirmed(u16, Option<String>),
    /// Something else went over the wire.
    Alive,
    /// The connection is over; nothing follows.
    Closed(Cause, String),
}

#[derive(Debug)]
enum Client {
    V5(rumqttc::v5::AsyncClient),
    V311(rumqttc::AsyncClient),
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    events: mpsc::Receiver<LinkEvent>,
    driver: JoinHandle<()>,
    version: Version,
}

impl Link {
    /// Begins a connection; its outcome comes as an event.
    pub(super) fn open(options: &LinkOptions, version: Version, clean: bool) -> Link {
        let (sender, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let (client, driver) = match version {
            Version::V5 => {
                let (client, driver) = v5::open(options, clean, sender);
                (Client::V5(client), driver)
            }
            Version::V311 => {
                let (client, driver) = v311::open(options, clean, sender);
                (Client::V311(client), driver)
            }
        };
        Link {
            client,
            events,
            driver,
            version,
        }
    }

    /// The version spoken.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// The next event. Cancel safe.
    pub(super) async fn event(&mut self) -> LinkEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => LinkEvent::Closed(Cause::Broken, "the connection's task ended".to_owned()),
        }
    }

    /// Gives a message to the link; `false` if it has no room now.
    pub(super) fn publish(&self, message: &Outgoing) -> bool {
        match &self.client {
            Client::V5(client) => v5::publish(client, message),
            Client::V311(client) => v311::publish(client, message),
        }
    }

    /// Acknowledges a message that came by this link; `false` if it has no room now.
    pub(super) fn acknowledge(&self, token: AckToken) -> bool {
        match &self.client {
            Client::V5(client) => v5::acknowledge(client, token),
            Client::V311(client) => v311::acknowledge(client, token),
        }
    }

    /// Subscribes to filters in one packet; `false` if the link has no room now.
    pub(super) fn subscribe(&self, filters: &[String]) -> bool {
        match &self.client {
            Client::V5(client) => v5::subscribe(client, filters),
            Client::V311(client) => v311::subscribe(client, filters),
        }
    }

    /// Says goodbye; the broker then keeps the last will to itself.
    pub(super) fn disconnect(&self) -> bool {
        match &self.client {
            Client::V5(client) => client.try_disconnect().is_ok(),
            Client::V311(client) => client.try_disconnect().is_ok(),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
