//! Headers as earlier versions wrote them, and how each becomes one of today.
//!
//! 1 is 2 without the number of crashes. In 2, moments were the time since a start of the machine and the wall clock's; since 3
//! they are on the spool's own clock (see [`clock`](super::clock)), and a header says how urgent its request is and when its answer
//! was delivered; those of before are as urgent as most are, alarms too.

use serde::Deserialize;

use super::clock::{Seen, Stamp};
use super::error::SpoolError;
use super::record::{Due, Fingerprint, Header, Key, State};
use super::store::{decode, encode};
use crate::request::Priority;

/// The schema that this version writes. A change of [`Header`] or of a table raises it and gets a step here.
pub(super) const SCHEMA: u32 = 3;

/// A moment, and what was noted of the clock, until 2.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Moment {
    boot: u128,
    up_ms: u64,
    _wall_ms: u64,
}

#[derive(Debug, Deserialize)]
struct DueBefore {
    left_ms: u64,
    at: Moment,
}

#[derive(Debug, Deserialize)]
struct Before {
    key: Key,
    task: Option<String>,
    fingerprint: Fingerprint,
    state: State,
    attempt: u16,
    seed: u64,
    arrived: Moment,
    due: Option<DueBefore>,
    answered: Option<Moment>,
    fault: Option<String>,
    request_bytes: u64,
    answer_bytes: u64,
    crashes: u8,
}

impl Moment {
    /// The moment on the spool's clock. Of starts before the last one, nothing is known of how long ago they were: their
    /// records are of the last start's beginning.
    fn stamp(self, seen: Moment) -> Stamp {
        let last = self.boot == seen.boot;
        Stamp {
            starts: u32::from(last),
            ran_ms: if last { self.up_ms } else { 0 },
            wall_ms: None,
        }
    }

    /// What was noted of the clock, as it is noted today.
    pub(super) fn seen(self) -> Seen {
        Seen {
            boot: self.boot,
            up_ms: self.up_ms,
            starts: 1,
            ran_ms: self.up_ms,
        }
    }
}

/// A header of schema `found`, 1 or 2, as one of today.
pub(super) fn header(found: u32, mut bytes: Vec<u8>, seen: Moment) -> Result<Vec<u8>, SpoolError> {
    if found == 1 {
        bytes.push(0);
    }
    let before: Before = decode(&bytes)?;
    let answered = before.answered.map(|at| at.stamp(seen));
    let delivered = before.state == State::Delivered;
    encode(&Header {
        key: before.key,
        task: before.task,
        priority: Priority::Interactive,
        fingerprint: before.fingerprint,
        state: before.state,
        attempt: before.attempt,
        seed: before.seed,
        arrived: before.arrived.stamp(seen),
        due: before.due.map(|due| Due {
            left_ms: due.left_ms,
            at: due.at.stamp(seen),
        }),
        answered,
        delivered: answered.filter(|_| delivered),
        fault: before.fault,
        request_bytes: before.request_bytes,
        answer_bytes: before.answer_bytes,
        crashes: before.crashes,
    })
}

/// A header as the first version wrote it; the second put the number of crashes behind.
#[cfg(test)]
const HEADER: [u8; 45] = [
    0x01, 0x03, 0x70, 0x6c, 0x63, 0x01, 0x31, 0x00, 0xf9, 0x1b, 0x14, 0xe7, 0xbb, 0xea, 0x4c, 0x5b,
    0xfa, 0x0e, 0x1a, 0x70, 0x40, 0x17, 0x71, 0x66, 0x03, 0x02, 0x09, 0x06, 0xa0, 0x1f, 0x05, 0x01,
    0x46, 0x07, 0xe8, 0x07, 0x05, 0x01, 0x07, 0xd0, 0x0f, 0x05, 0x00, 0x09, 0x03,
];

/// What either noted of the clock.
#[cfg(test)]
const SEEN: [u8; 4] = [0x07, 0xa8, 0x46, 0x05];

/// A header of an earlier schema and what was noted of the clock, as bytes, and what becomes of the header.
#[cfg(test)]
pub(super) fn sample(found: u32) -> (Vec<u8>, Vec<u8>, Header) {
    let mut bytes = HEADER.to_vec();
    let mut crashes = 0;
    if found == 2 {
        crashes = 2;
        bytes.push(crashes);
    }
    let stamp = |starts, ran_ms| Stamp {
        starts,
        ran_ms,
        wall_ms: None,
    };
    let becomes = Header {
        key: Key {
            door: super::record::Door::Http,
            client: "plc".to_owned(),
            id: "1".to_owned(),
        },
        task: None,
        priority: Priority::Interactive,
        fingerprint: Fingerprint::of(&[b"x"]),
        state: State::Delivered,
        attempt: 2,
        seed: 9,
        arrived: stamp(0, 0),
        due: Some(Due {
            left_ms: 70,
            at: stamp(1, 1000),
        }),
        answered: Some(stamp(1, 2000)),
        delivered: Some(stamp(1, 2000)),
        fault: None,
        request_bytes: 9,
        answer_bytes: 3,
        crashes,
    };
    (bytes, SEEN.to_vec(), becomes)
}
