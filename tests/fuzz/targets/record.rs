//! What stands in a record of the spool: a byte for what it is, then the bytes. A header of each schema, before which the
//! length and bytes of what was noted of the clock stand; or what was asked and answered over a front end, between which a
//! byte stands that no text has.
//!
//! It is refused, or the same after writing and reading; with whatever it says, the book of records does its sums, and an
//! operator is shown something.

use andon_os::heap;
use andond::frontend::described;
use andond::request::Priority;
use andond::spool::Kept;
use andond::spool::book::{Book, Bounds, begin_attempts};
use andond::spool::clock::Stamp;
use andond::spool::image;
use andond::spool::record::{CRASHES_MAX, Header, State};
use std::collections::BTreeMap;

/// Kinds from 0 on are headers of schema 1 and so on.
pub(crate) const SCHEMAS: u8 = 3;
/// A request and its answer, over MQTT and HTTP.
pub(crate) const MQTT: u8 = SCHEMAS;
pub(crate) const HTTP: u8 = SCHEMAS + 1;
const KINDS: u8 = SCHEMAS + 2;

/// Between what was asked and answered.
pub(crate) const BREAK: u8 = 0xff;

const BOUNDS: Bounds = Bounds {
    requests_max: 3,
    bytes_max: 1 << 20,
    keep_ms: 1000,
    age_max_ms: 5000,
};

pub(crate) fn run(data: &[u8]) {
    let [kind, data @ ..] = data else {
        return;
    };
    // As JSON what was asked and answered takes several times its bytes.
    let limit = (1 << 20) + 200 * data.len();
    heap::measure(limit, data.len() as u64, || match kind % KINDS {
        schema if schema < SCHEMAS => {
            if let Some((&length, rest)) = data.split_first() {
                let (seen, bytes) = rest.split_at(rest.len().min(usize::from(length)));
                header(u32::from(schema) + 1, bytes, seen);
            }
        }
        kind => contents(kind, data),
    });
}

fn header(schema: u32, bytes: &[u8], seen: &[u8]) {
    let header = match image::header(schema, bytes, seen) {
        Ok(header) => header,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let written = image::header_bytes(&header).expect("it was read");
    let again = image::header(SCHEMAS.into(), &written, &[]).expect("it was written");
    assert_eq!(again, header);
    sums(&header);
}

/// What a start and a day do with such records, of whatever number.
fn sums(header: &Header) {
    let same = [1, 2, u64::MAX / 2].map(|number| (number, header.clone()));
    let mut records = BTreeMap::from(same);
    for same_start in [true, false] {
        let before = records.clone();
        let begun = begin_attempts(&mut records, same_start);
        for (number, after) in &records {
            let before = &before[number];
            if before.state.is_answered() {
                assert_eq!(after, before);
                continue;
            }
            assert!(begun.contains(number));
            assert_eq!(after.state, State::Accepted);
            assert!(after.attempt > before.attempt || after.attempt == u16::MAX);
            assert_eq!(
                after.too_many_crashes().is_some(),
                after.crashes >= CRASHES_MAX
            );
        }
    }
    let mut book = Book::new(BOUNDS, records);
    assert_eq!(book.counts().iter().sum::<usize>(), 3);
    assert!(book.bytes() >= header.bytes());
    for priority in [Priority::Alarm, Priority::Interactive] {
        if let Some(gone) = book.room_for(header.bytes(), priority) {
            // Nothing gives way that was not delivered.
            let mut states = gone.iter().filter_map(|number| book.get(*number));
            assert!(states.all(|header| header.state == State::Delivered));
        }
    }
    for ran_ms in [0, header.arrived.ran_ms, u64::MAX] {
        for wall_ms in [None, Some(0), Some(u64::MAX)] {
            let now = Stamp {
                starts: header.arrived.starts.wrapping_add(1),
                ran_ms,
                wall_ms,
            };
            let outdated = book.outdated(&now);
            let known = |number: &u64| book.get(*number).is_some();
            assert!(outdated.iter().all(known));
            if let Some(due) = &header.due {
                assert!(due.left_ms(&now) <= due.left_ms);
            }
        }
    }
    let number = book.put(header.clone());
    assert_eq!(book.find(&header.key).map(|(found, _)| found), Some(number));
    let numbers: Vec<u64> = book.iter().map(|(number, _)| number).collect();
    for number in numbers {
        book.remove(number).expect("it is there");
    }
    assert_eq!(book.counts(), [0; State::ALL.len()]);
}

fn contents(kind: u8, data: &[u8]) {
    let (request, answer) = match data.iter().position(|&byte| byte == BREAK) {
        Some(at) => (&data[..at], Some(data[at + 1..].to_vec().into())),
        None => (data, None),
    };
    // The shortest header there is, of either front end.
    let mut bytes = vec![kind - MQTT, 0, 0, 0, 0];
    bytes.extend([0; 16 + 3 + 3 + 4 + 2 + 1]);
    let kept = Kept {
        header: image::header(SCHEMAS.into(), &bytes, &[]).expect("a header"),
        request: request.to_vec().into(),
        answer,
    };
    let described = described(&kept);
    let fields = described.as_object().expect("an object");
    let known = ["topic", "reply_topic", "request", "status", "answer"];
    assert!(fields.keys().all(|name| known.contains(&name.as_str())));
    if kind == MQTT {
        for name in ["topic", "reply_topic"] {
            assert_eq!(fields.contains_key(name), fields.contains_key("request"));
        }
    }
    assert!(kind == HTTP || !fields.contains_key("status"));
}
