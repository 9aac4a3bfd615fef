//! What waits for the broker, and what it has not confirmed yet.
//!
//! Invariant: an answer that was put in leaves only when the broker confirmed or refused it, when it came too late and nobody
//! has read it ([`Late`]), or when the bounds of the broker itself leave no way to send it, and then a short error goes out in
//! its place. So does the refusal
//! of a request that the broker waits to have acknowledged: the acknowledgement is given out when the refusal leaves.
//! Chunks, events and the refusals of requests that nobody acknowledges may be dropped when too many wait; the number of
//! answers is bounded by whoever accepts requests, that of the other refusals by what the broker sends without
//! acknowledgement. At most the window the broker granted is under way.
//!
//! The box knows no socket and no clock: it is asked for the next message and told what became of it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::message::{AckToken, Outgoing, Version};

/// What goes out instead of a message that cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Substitutes {
    /// Instead of one that the broker would not take for its size.
    pub(super) too_large: Outgoing,
    /// Instead of one whose reader no longer wants it, and since when that is; never of one that may have been sent.
    pub(super) late: Option<(Instant, Outgoing)>,
}

/// A message and what depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Letter {
    /// The message.
    pub(super) message: Outgoing,
    /// The record whose answer it is, or a part of it: never dropped.
    pub(super) record: Option<u64>,
    /// What goes out in its place.
    pub(super) substitutes: Option<Box<Substitutes>>,
    /// What to acknowledge once it has left: never dropped before.
    pub(super) acks: Vec<AckToken>,
    /// Whether a reader may have it already: then nothing else is said in its place.
    pub(super) sent: bool,
}

impl Letter {
    /// A chunk, a refusal or an event: dropped when too much waits.
    pub(super) fn passing(message: Outgoing) -> Letter {
        Letter {
            message,
            record: None,
            substitutes: None,
            acks: Vec::new(),
            sent: false,
        }
    }

    /// A refusal of a request that is acknowledged when it has left.
    pub(super) fn refusal(message: Outgoing, ack: Option<AckToken>) -> Letter {
        Letter {
            acks: ack.into_iter().collect(),
            ..Letter::passing(message)
        }
    }

    fn is_passing(&self) -> bool {
        self.record.is_none() && self.acks.is_empty()
    }
}

/// An answer that nobody wants any more and nobody has read, taken out of the box.
#[derive(Debug)]
pub(super) struct Late {
    /// Its record.
    pub(super) record: u64,
    /// What is to be said in its place.
    pub(super) message: Outgoing,
    /// What to acknowledge once that has left.
    pub(super) acks: Vec<AckToken>,
}

/// What left the box for good.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Confirmed {
    /// The topic it went to.
    pub(super) topic: String,
    /// The record whose answer it is, if that was the last of it in the box.
    pub(super) record: Option<u64>,
    /// The record whose answer, or a part of it, it is.
    pub(super) of: Option<u64>,
}

/// What the broker takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gate {
    /// The version spoken.
    pub(super) version: Version,
    /// Largest packet, in bytes.
    pub(super) packet_bytes_max: usize,
    /// Most messages without confirmation.
    pub(super) window: usize,
}

#[derive(Debug)]
struct Entry {
    order: u64,
    letter: Letter,
    /// A status is out of date with its connection.
    status: bool,
}

/// The box.
#[derive(Debug)]
pub(super) struct Outbox {
    passing_max: usize,
    queue: VecDeque<Entry>,
    passing: usize,
    dropped: u64,
    /// The status to send: only the newest counts.
    status: Option<Outgoing>,
    /// Given to the connection, without packet id yet.
    given: VecDeque<Entry>,
    /// Under way, by packet id.
    under_way: BTreeMap<u16, Entry>,
    order: u64,
    /// What may be acknowledged now.
    released: Vec<AckToken>,
    /// Records whose answers the broker takes in no form.
    unsendable: Vec<u64>,
    late: Vec<Late>,
}

impl Outbox {
    /// An empty box in which so many droppable messages may wait.
    pub(super) fn new(passing_max: usize) -> Outbox {
        Outbox {
            passing_max,
            queue: VecDeque::new(),
            passing: 0,
            dropped: 0,
            status: None,
            given: VecDeque::new(),
            under_way: BTreeMap::new(),
            order: 0,
            released: Vec::new(),
            unsendable: Vec::new(),
            late: Vec::new(),
        }
    }

    /// So many droppable messages may wait from now on.
    pub(super) fn set_passing_max(&mut self, passing_max: usize) {
        self.passing_max = passing_max;
    }

    /// Puts a message in; `false` if it was dropped.
    pub(super) fn put(&mut self, letter: Letter) -> bool {
        if letter.is_passing() {
            if self.passing >= self.passing_max {
                self.dropped = self.dropped.saturating_add(1);
                return false;
            }
            self.passing += 1;
        }
        let order = self.next_order();
        self.queue.push_back(Entry {
            order,
            letter,
            status: false,
        });
        true
    }

    /// Puts the status in, in place of an older one that was not sent.
    pub(super) fn put_status(&mut self, status: Outgoing) {
        self.status = Some(status);
    }

    /// How many answers wait or are under way.
    pub(super) fn answers(&self) -> usize {
        self.entries()
            .filter(|entry| entry.letter.record.is_some())
            .count()
    }

    /// What may be acknowledged since this was asked last.
    pub(super) fn take_released(&mut self) -> Vec<AckToken> {
        std::mem::take(&mut self.released)
    }

    /// Records whose answers cannot be sent at all, since this was asked last.
    pub(super) fn take_unsendable(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.unsendable)
    }

    /// Answers that nobody wants any more, since this was asked last.
    pub(super) fn take_late(&mut self) -> Vec<Late> {
        std::mem::take(&mut self.late)
    }

    /// Whether the answer of a record is on its way to this topic; `ack` is then acknowledged when it has left.
    pub(super) fn brings(&mut self, record: u64, topic: &str, ack: Option<AckToken>) -> bool {
        let last = (self.queue.iter_mut())
            .chain(&mut self.given)
            .chain(self.under_way.values_mut())
            .filter(|entry| {
                entry.letter.record == Some(record) && entry.letter.message.topic == topic
            })
            .max_by_key(|entry| entry.order);
        if let Some(entry) = last {
            entry.letter.acks.extend(ack);
            return true;
        }
        false
    }

    /// Forgets the messages of a record that wait: what was to be acknowledged with them is now.
    pub(super) fn forget(&mut self, record: u64) {
        let (released, queue) = (&mut self.released, &mut self.queue);
        queue.retain_mut(|entry| {
            let stays = entry.letter.record != Some(record);
            if !stays {
                released.append(&mut entry.letter.acks);
            }
            stays
        });
    }

    /// Forgets the messages of a record that wait; of those under way, nothing is concluded for it any more.
    pub(super) fn disown(&mut self, record: u64) {
        self.forget(record);
        let under_way = self.given.iter_mut().chain(self.under_way.values_mut());
        for entry in under_way.filter(|entry| entry.letter.record == Some(record)) {
            entry.letter.record = None;
        }
    }

    /// Whether nothing waits and nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
            && self.status.is_none()
            && self.given.is_empty()
            && self.under_way.is_empty()
    }

    /// How many messages were dropped since this was asked last.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Gives messages to `send` as long as the window has room and `send` takes them.
    pub(super) fn pump(
        &mut self,
        gate: Gate,
        now: Instant,
        mut send: impl FnMut(&Outgoing) -> bool,
    ) {
        while self.given.len() + self.under_way.len() < gate.window {
            if let Some(status) = self.status.take() {
                if !send(&status) {
                    self.status = Some(status);
                    return;
                }
                if status.confirmed {
                    let order = self.next_order();
                    self.given.push_back(Entry {
                        order,
                        letter: Letter::passing(status),
                        status: true,
                    });
                }
                continue;
            }
            let Some(mut entry) = self.queue.pop_front() else {
                return;
            };
            let passing = entry.letter.is_passing();
            if let Some((record, message)) = overdue(&mut entry.letter, now) {
                let mut late = Late {
                    record,
                    message,
                    acks: entry.letter.acks,
                };
                self.queue.retain_mut(|entry| {
                    let stays = entry.letter.record != Some(record);
                    if !stays {
                        late.acks.append(&mut entry.letter.acks);
                    }
                    stays
                });
                self.late.push(late);
                continue;
            }
            if !fit(&mut entry.letter, gate) {
                tracing::warn!(
                    topic = entry.letter.message.topic,
                    packet_bytes_max = gate.packet_bytes_max,
                    "the broker takes no packet large enough for this message"
                );
                self.passing -= usize::from(passing);
                self.unsendable.extend(entry.letter.record);
                self.released.extend(entry.letter.acks);
                continue;
            }
            if !send(&entry.letter.message) {
                self.queue.push_front(entry);
                return;
            }
            self.passing -= usize::from(passing);
            entry.letter.sent = true;
            if entry.letter.message.confirmed {
                self.given.push_back(entry);
            } else {
                self.released.extend(entry.letter.acks);
            }
        }
    }

    /// The oldest message given away has this packet id.
    pub(super) fn sent(&mut self, packet_id: u16) {
        if let Some(entry) = self.given.pop_front() {
            self.under_way.insert(packet_id, entry);
        }
    }

    /// The broker has taken, or refused, a message.
    pub(super) fn confirmed(&mut self, packet_id: u16) -> Option<Confirmed> {
        let letter = self.under_way.remove(&packet_id)?.letter;
        self.released.extend(letter.acks);
        let open = |record: u64| {
            self.entries()
                .any(|entry| entry.letter.record == Some(record))
        };
        Some(Confirmed {
            record: letter.record.filter(|record| !open(*record)),
            of: letter.record,
            topic: letter.message.topic,
        })
    }

    /// The connection is gone: what was not confirmed is sent again on the next, in the old order. Only the
    /// status is not: it says how things were. Nothing is left to acknowledge: the broker sends that again.
    pub(super) fn disconnected(&mut self) {
        let under_way = std::mem::take(&mut self.under_way).into_values();
        let mut again: Vec<Entry> = under_way
            .chain(self.given.drain(..))
            .filter(|entry| !entry.status)
            .collect();
        self.status = None;
        self.released.clear();
        again.sort_by_key(|entry| entry.order);
        for entry in again.into_iter().rev() {
            self.queue.push_front(entry);
        }
        // A request that was to be acknowledged comes again, and hears again, or by then otherwise, whether it is refused.
        self.queue
            .retain(|entry| entry.letter.record.is_some() || entry.letter.acks.is_empty());
        for entry in &mut self.queue {
            entry.letter.acks.clear();
        }
        let passing = self.queue.iter().filter(|entry| entry.letter.is_passing());
        self.passing = passing.count();
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.queue
            .iter()
            .chain(&self.given)
            .chain(self.under_way.values())
    }

    fn next_order(&mut self) -> u64 {
        self.order = self.order.wrapping_add(1);
        self.order
    }
}

/// What is to be said of which record in place of an answer that has come too late, unless a reader may have that.
fn overdue(letter: &mut Letter, now: Instant) -> Option<(u64, Outgoing)> {
    let record = letter.record.filter(|_| !letter.sent)?;
    let late = &mut letter.substitutes.as_mut()?.late;
    let (_, message) = late.take_if(|(since, _)| *since <= now)?;
    Some((record, message))
}

/// Makes a letter one that can go out, by a substitute if need be; `false` if there is no way.
fn fit(letter: &mut Letter, gate: Gate) -> bool {
    let fits = |message: &Outgoing| message.packet_bytes(gate.version) <= gate.packet_bytes_max;
    if let Some(substitutes) = &letter.substitutes
        && !fits(&letter.message)
    {
        letter.message = substitutes.too_large.clone();
    }
    fits(&letter.message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::frontend::mqtt::message::Properties;

    const GATE: Gate = Gate {
        version: Version::V5,
        packet_bytes_max: 200,
        window: 2,
    };

    fn outgoing(payload: &str, confirmed: bool) -> Outgoing {
        Outgoing {
            topic: "t".to_owned(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            retain: false,
            confirmed,
            properties: Properties::default(),
        }
    }

    fn answer(payload: &str) -> Letter {
        let substitutes = Substitutes {
            too_large: outgoing("too large", true),
            late: None,
        };
        Letter {
            message: outgoing(payload, true),
            record: Some(7),
            substitutes: Some(Box::new(substitutes)),
            acks: Vec::new(),
            sent: false,
        }
    }

    fn pump(outbox: &mut Outbox, now: Instant) -> Vec<String> {
        let mut sent = Vec::new();
        outbox.pump(GATE, now, |message| {
            sent.push(String::from_utf8(message.payload.to_vec()).unwrap());
            true
        });
        sent
    }

    #[test]
    fn the_window_is_kept_and_confirmations_open_it() {
        let now = Instant::now();
        let mut outbox = Outbox::new(9);
        for text in ["a", "b", "c"] {
            outbox.put(answer(text));
        }
        assert_eq!(pump(&mut outbox, now), ["a", "b"]);
        assert!(pump(&mut outbox, now).is_empty());
        outbox.sent(1);
        outbox.sent(2);
        let confirmed = outbox.confirmed(2).expect("under way");
        assert_eq!((confirmed.topic.as_str(), confirmed.record), ("t", None));
        assert_eq!(pump(&mut outbox, now), ["c"]);
        assert_eq!(outbox.answers(), 2);
        assert!(outbox.confirmed(9).is_none());
    }

    #[test]
    fn what_was_not_confirmed_goes_again_in_order() {
        let now = Instant::now();
        let mut outbox = Outbox::new(9);
        for text in ["a", "b", "c"] {
            outbox.put(answer(text));
        }
        pump(&mut outbox, now);
        outbox.sent(7);
        outbox.disconnected();
        assert_eq!(pump(&mut outbox, now), ["a", "b"]);
        outbox.sent(1);
        outbox.sent(2);
        outbox.confirmed(1);
        outbox.confirmed(2);
        assert_eq!(pump(&mut outbox, now), ["c"]);
        outbox.sent(3);
        outbox.confirmed(3);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_link_without_room_keeps_the_message_here() {
        let now = Instant::now();
        let mut outbox = Outbox::new(9);
        outbox.put(answer("a"));
        outbox.pump(GATE, now, |_| false);
        assert_eq!(pump(&mut outbox, now), ["a"]);
    }

    #[test]
    fn only_droppable_messages_are_dropped() {
        let mut outbox = Outbox::new(1);
        assert!(outbox.put(Letter::passing(outgoing("x", true))));
        assert!(!outbox.put(Letter::passing(outgoing("y", true))));
        assert!(outbox.put(answer("a")));
        assert_eq!(outbox.take_dropped(), 1);
        assert_eq!(pump(&mut outbox, Instant::now()), ["x", "a"]);
        assert!(outbox.put(Letter::passing(outgoing("y", true))));
    }

    #[test]
    fn an_unconfirmed_message_is_done_when_it_is_given_away() {
        let mut outbox = Outbox::new(9);
        outbox.put(Letter::passing(outgoing("x", false)));
        assert_eq!(pump(&mut outbox, Instant::now()), ["x"]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_large_answer_is_replaced_and_a_large_chunk_is_not_sent() {
        let mut outbox = Outbox::new(9);
        let large = "x".repeat(300);
        outbox.put(Letter::passing(outgoing(&large, true)));
        outbox.put(answer(&large));
        assert_eq!(pump(&mut outbox, Instant::now()), ["too large"]);
    }

    #[test]
    fn a_late_answer_is_taken_out_unless_it_may_have_been_read() {
        let now = Instant::now();
        let mut outbox = Outbox::new(9);
        let mut letter = answer("a");
        if let Some(substitutes) = &mut letter.substitutes {
            substitutes.late = Some((now + Duration::from_secs(1), outgoing("late", true)));
        }
        outbox.put(letter.clone());
        outbox.put(letter);
        let mut sent = Vec::new();
        let one = Gate { window: 1, ..GATE };
        outbox.pump(one, now, |message| {
            sent.push(message.payload.clone());
            true
        });
        outbox.disconnected();
        outbox.pump(GATE, now + Duration::from_secs(1), |message| {
            sent.push(message.payload.clone());
            true
        });
        // The other one is taken out, to be told once that is safe.
        assert_eq!(sent, ["a", "a"]);
        let late = outbox.take_late();
        assert_eq!((late.len(), late[0].record), (1, 7));
        assert_eq!(late[0].message, outgoing("late", true));
    }

    #[test]
    fn only_the_newest_status_is_sent_and_first() {
        let mut outbox = Outbox::new(9);
        outbox.put(answer("a"));
        outbox.put_status(outgoing("starting", true));
        outbox.put_status(outgoing("ready", true));
        assert_eq!(pump(&mut outbox, Instant::now()), ["ready", "a"]);
        outbox.sent(1);
        outbox.disconnected();
        assert_eq!(pump(&mut outbox, Instant::now()), ["a"]);
    }

    #[test]
    fn a_record_is_delivered_with_the_last_of_its_messages() {
        let now = Instant::now();
        let mut outbox = Outbox::new(9);
        outbox.put(answer("chunk"));
        outbox.put(answer("end"));
        pump(&mut outbox, now);
        outbox.sent(1);
        outbox.sent(2);
        assert_eq!(outbox.confirmed(1).and_then(|left| left.record), None);
        assert_eq!(outbox.confirmed(2).and_then(|left| left.record), Some(7));
    }

    #[test]
    fn what_is_left_of_an_attempt_says_nothing_about_the_next() {
        let now = Instant::now();
        let mut outbox = Outbox::new(9);
        outbox.put(answer("old"));
        pump(&mut outbox, now);
        outbox.sent(1);
        outbox.put(answer("older"));
        outbox.disown(7);
        let left = outbox.confirmed(1).expect("under way");
        assert_eq!((left.record, left.of), (None, None));
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_refused_request_is_acknowledged_when_the_refusal_has_left() {
        let token = AckToken {
            packet_id: 5,
            exactly_once: false,
        };
        let now = Instant::now();
        let mut outbox = Outbox::new(0);
        assert!(!outbox.put(Letter::passing(outgoing("x", true))), "no room");
        assert!(outbox.put(Letter::refusal(outgoing("no", true), Some(token))));
        assert_eq!(pump(&mut outbox, now), ["no"]);
        outbox.sent(1);
        assert!(outbox.take_released().is_empty());
        outbox.confirmed(1);
        assert_eq!(outbox.take_released(), [token]);
        // With its connection a token means nothing, and the request comes again.
        outbox.put(Letter::refusal(outgoing("no", true), Some(token)));
        pump(&mut outbox, now);
        outbox.sent(2);
        outbox.disconnected();
        assert!(pump(&mut outbox, now).is_empty());
        assert!(outbox.take_released().is_empty() && outbox.is_empty());
    }
}
