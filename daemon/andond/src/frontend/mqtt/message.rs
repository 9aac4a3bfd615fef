//! MQTT messages without a protocol version: what the rest of the front end deals in.
//!
//! A message of MQTT 3.1.1 is one with empty [`Properties`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes of a publish packet beside topic, payload and properties: the fixed header with the longest
/// length field, the topic's length and the packet id.
const PACKET_BYTES_BASE: usize = 5 + 2 + 2;

/// The MQTT that is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// MQTT 5.
    V5,
    /// MQTT 3.1.1.
    V311,
}

impl Version {
    /// The version's number.
    pub(super) fn name(self) -> &'static str {
        match self {
            Version::V5 => "5",
            Version::V311 => "3.1.1",
        }
    }
}

/// What it takes to acknowledge a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AckToken {
    /// The packet's id on the connection it came by.
    pub(super) packet_id: u16,
    /// Whether the message came at QoS 2, which is acknowledged in two steps.
    pub(super) exactly_once: bool,
}

/// The properties of MQTT 5 that carry meaning here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Properties {
    /// Response Topic.
    pub(super) response_topic: Option<String>,
    /// Correlation Data.
    #[serde(with = "optional_bytes")]
    pub(super) correlation: Option<Bytes>,
    /// Content Type.
    pub(super) content_type: Option<String>,
    /// Message Expiry Interval, seconds.
    pub(super) expiry_s: Option<u32>,
    /// User Properties, in order.
    pub(super) user: Vec<(String, String)>,
}

/// A message from the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Incoming {
    /// The topic; empty if it was not UTF-8, which no broker lets through.
    pub(super) topic: String,
    /// The payload.
    pub(super) payload: Bytes,
    /// Whether the broker kept it from before the subscription.
    pub(super) retain: bool,
    /// Whether the broker has sent it before.
    pub(super) repeated: bool,
    /// The properties.
    pub(super) properties: Properties,
    /// How to acknowledge it; `None` for QoS 0.
    pub(super) ack: Option<AckToken>,
}

/// A message to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outgoing {
    /// The topic.
    pub(super) topic: String,
    /// The payload.
    pub(super) payload: Bytes,
    /// Whether the broker keeps it for later subscribers.
    pub(super) retain: bool,
    /// Whether the broker confirms it (QoS 1) or not (QoS 0).
    pub(super) confirmed: bool,
    /// The properties; lost on a connection of 3.1.1.
    pub(super) properties: Properties,
}

impl Outgoing {
    /// The size of the packet at most; the exact one is a few bytes less.
    pub(super) fn packet_bytes(&self, version: Version) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, |text| 3 + text.len());
        let properties = match version {
            Version::V311 => 0,
            Version::V5 => {
                let properties = &self.properties;
                let user: usize = properties
                    .user
                    .iter()
                    .map(|(key, value)| 5 + key.len() + value.len())
                    .sum();
                // The properties' own length and the expiry interval.
                4 + 5
                    + text(&properties.response_topic)
                    + text(&properties.content_type)
                    + properties
                        .correlation
                        .as_ref()
                        .map_or(0, |data| 3 + data.len())
                    + user
            }
        };
        PACKET_BYTES_BASE + self.topic.len() + self.payload.len() + properties
    }
}

/// Bytes as any other list of them, without a feature of the crate that has them.
mod optional_bytes {
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(
        bytes: &Option<Bytes>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Bytes>, D::Error> {
        let bytes = Option::<Vec<u8>>::deserialize(deserializer)?;
        Ok(bytes.map(Bytes::from))
    }
}
