//! A request as it is kept.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::clock::Stamp;
use crate::fault::{Fault, FaultCode};
use crate::request::{Origin, Priority};

/// The way a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Door {
    /// MQTT.
    Mqtt,
    /// HTTP.
    Http,
}

impl Door {
    /// The name used in lists.
    pub fn name(self) -> &'static str {
        self.origin().name()
    }

    /// The front end's name elsewhere.
    pub fn origin(self) -> Origin {
        match self {
            Door::Mqtt => Origin::Mqtt,
            Door::Http => Origin::Http,
        }
    }
}

/// Who asked what, by name. Two requests with the same are the same, or the later one is refused: the fingerprint decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The way it came.
    pub door: Door,
    /// The client.
    pub client: String,
    /// The client's id.
    pub id: String,
}

impl Key {
    /// What draws begin with, so that the same request asked again gets the same text, also where nothing is known of the
    /// first time: by another gateway of the fleet, or when the record is gone.
    pub fn seed(&self, asked: &Fingerprint) -> u64 {
        u64::from_le_bytes(self.hash(&[b"seed", self.id.as_bytes(), &asked.0]))
    }

    /// An id for the `count`-th request of this client that has none, asks this and came under this number of its connection.
    pub fn made(&self, asked: &Fingerprint, packet: u16, count: u16) -> String {
        let (packet, count) = (packet.to_le_bytes(), count.to_le_bytes());
        let hash = self.hash(&[b"id", &asked.0, &packet, &count]);
        format!("{:016x}", u64::from_be_bytes(hash))
    }

    fn hash(&self, parts: &[&[u8]]) -> [u8; 8] {
        let mut all = vec![self.client.as_bytes()];
        all.extend(parts);
        let [a, b, c, d, e, f, g, h, ..] = Fingerprint::of(&all).0;
        [a, b, c, d, e, f, g, h]
    }
}

/// How far a request is. What was answered goes back only if a client or an operator asks for another attempt; what runs, if it
/// is left for later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum State {
    /// It is safe here.
    Accepted,
    /// An answer is being made.
    Running,
    /// The answer is safe here.
    Answered,
    /// Its reader, or the broker, has it.
    Delivered,
}

impl State {
    /// Every state, in order.
    pub const ALL: [State; 4] = [
        State::Accepted,
        State::Running,
        State::Answered,
        State::Delivered,
    ];

    /// The name used in lists and metrics.
    pub fn name(self) -> &'static str {
        match self {
            State::Accepted => "accepted",
            State::Running => "running",
            State::Answered => "answered",
            State::Delivered => "delivered",
        }
    }

    /// Whether there is an answer.
    pub fn is_answered(self) -> bool {
        self >= State::Answered
    }
}

/// What was asked, shortened so that other contents are told apart; the same in every process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// The fingerprint of some parts.
    pub fn of(parts: &[&[u8]]) -> Fingerprint {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let whole: [u8; 32] = hash.finalize().into();
        let mut short = [0; 16];
        short.copy_from_slice(&whole[..16]);
        Fingerprint(short)
    }
}

/// What is kept of a request beside what was asked and answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Its name.
    pub key: Key,
    /// The task it asks.
    pub task: Option<String>,
    /// How urgent it is.
    pub priority: Priority,
    /// What was asked, shortened.
    pub fingerprint: Fingerprint,
    /// How far it is.
    pub state: State,
    /// Which attempt at an answer this is, from 1. No two attempts of which anything was published have the same number.
    pub attempt: u16,
    /// Draws of every attempt begin with this, unless the request or its task names a seed.
    pub seed: u64,
    /// When it came.
    pub arrived: Stamp,
    /// When the answer is worthless.
    pub due: Option<Due>,
    /// When it was answered.
    pub answered: Option<Stamp>,
    /// When the answer was delivered.
    pub delivered: Option<Stamp>,
    /// The kind of failure, if the answer is that there is none.
    pub fault: Option<String>,
    /// Bytes of what was asked.
    pub request_bytes: u64,
    /// Bytes of what was answered.
    pub answer_bytes: u64,
    /// How often the daemon ended without order while an answer was being made, and the machine stayed up.
    pub crashes: u8,
}

/// So many ends of the daemon over one request are enough.
pub const CRASHES_MAX: u8 = 3;

/// A deadline: so much time was left at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// Milliseconds.
    pub left_ms: u64,
    /// The moment.
    pub at: Stamp,
}

impl Due {
    /// A deadline so long after a moment.
    pub fn new(left: std::time::Duration, at: Stamp) -> Due {
        Due {
            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            at,
        }
    }

    /// What is left now.
    pub fn left_ms(&self, now: &Stamp) -> u64 {
        self.left_ms.saturating_sub(now.since(&self.at))
    }
}

/// What a record takes beside what was asked and answered, about.
const RECORD_BYTES: u64 = 512;

impl Header {
    /// Why there is no other attempt, if the daemon has ended too often during those before: a request that ends the daemon
    /// must not end it for all others, for ever.
    pub fn too_many_crashes(&self) -> Option<Fault> {
        (self.crashes >= CRASHES_MAX).then(|| {
            Fault::new(
                FaultCode::Internal,
                format!(
                    "the daemon ended {} times while it answered this",
                    self.crashes
                ),
            )
        })
    }

    /// Bytes the record takes, about.
    pub fn bytes(&self) -> u64 {
        RECORD_BYTES
            .saturating_add(self.request_bytes)
            .saturating_add(self.answer_bytes)
    }
}
