//! What waits for the broker, and what it has not confirmed yet.
//!
//! Invariant: an answer that was put in leaves only when the broker confirmed or refused it, or when the
//! bounds of the broker itself leave no way to send it, and then a short error goes out in its place.
//! Chunks, refusals and events may be dropped when too many wait; the number of answers is bounded by
//! whoever accepts requests. At most the window the broker granted is under way.
//!
//! The box knows no socket and no clock: it is asked for the next message and told what became of it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::message::{Outgoing, Version};

/// What goes out instead of a message that cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Substitutes {
    /// Instead of one that the broker would not take for its size.
    pub(super) too_large: Outgoing,
    /// Instead of one whose reader no longer wants it, and since when that is.
    pub(super) late: Option<(Instant, Outgoing)>,
}

/// A message and how much it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Letter {
    /// The last message of an accepted request: never dropped.
    Answer(Outgoing, Box<Substitutes>),
    /// A chunk, a refusal or an event: dropped when too much waits.
    Passing(Outgoing),
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
        }
    }

    /// Puts a message in; `false` if it was dropped.
    pub(super) fn put(&mut self, letter: Letter) -> bool {
        if matches!(letter, Letter::Passing(_)) {
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
        self.queue
            .iter()
            .chain(&self.given)
            .chain(self.under_way.values())
            .filter(|entry| matches!(entry.letter, Letter::Answer(..)))
            .count()
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
                        letter: Letter::Passing(status),
                        status: true,
                    });
                }
                continue;
            }
            let Some(mut entry) = self.queue.pop_front() else {
                return;
            };
            let passing = matches!(entry.letter, Letter::Passing(_));
            if !fit(&mut entry.letter, gate, now) {
                tracing::warn!(
                    topic = message(&entry.letter).topic,
                    packet_bytes_max = gate.packet_bytes_max,
                    "the broker takes no packet large enough for this message"
                );
                self.passing -= usize::from(passing);
                continue;
            }
            if !send(message(&entry.letter)) {
                self.queue.push_front(entry);
                return;
            }
            self.passing -= usize::from(passing);
            if message(&entry.letter).confirmed {
                self.given.push_back(entry);
            }
        }
    }

    /// The oldest message given away has this packet id.
    pub(super) fn sent(&mut self, packet_id: u16) {
        if let Some(entry) = self.given.pop_front() {
            self.under_way.insert(packet_id, entry);
        }
    }

    /// The broker has taken, or refused, a message; returns its topic.
    pub(super) fn confirmed(&mut self, packet_id: u16) -> Option<String> {
        let entry = self.under_way.remove(&packet_id)?;
        Some(message(&entry.letter).topic.clone())
    }

    /// The connection is gone: what was not confirmed is sent again on the next, in the old order. Only the
    /// status is not: it says how things were.
    pub(super) fn disconnected(&mut self) {
        let under_way = std::mem::take(&mut self.under_way).into_values();
        let mut again: Vec<Entry> = under_way
            .chain(self.given.drain(..))
            .filter(|entry| !entry.status)
            .collect();
        self.status = None;
        again.sort_by_key(|entry| entry.order);
        for entry in again.into_iter().rev() {
            self.passing += usize::from(matches!(entry.letter, Letter::Passing(_)));
            self.queue.push_front(entry);
        }
    }

    fn next_order(&mut self) -> u64 {
        self.order = self.order.wrapping_add(1);
        self.order
    }
}

fn message(letter: &Letter) -> &Outgoing {
    match letter {
        Letter::Answer(message, _) | Letter::Passing(message) => message,
    }
}

/// Makes a letter one that can go out, by a substitute if need be; `false` if there is no way.
fn fit(letter: &mut Letter, gate: Gate, now: Instant) -> bool {
    let fits = |message: &Outgoing| message.packet_bytes(gate.version) <= gate.packet_bytes_max;
    if let Letter::Answer(message, substitutes) = letter {
        if let Some((_, late)) = substitutes.late.take_if(|(since, _)| *since <= now) {
            *message = late;
        }
        if !fits(message) {
            *message = substitutes.too_large.clone();
        }
    }
    fits(message(letter))
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
        Letter::Answer(outgoing(payload, true), Box::new(substitutes))
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
        assert_eq!(outbox.confirmed(2).as_deref(), Some("t"));
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
        assert!(outbox.put(Letter::Passing(outgoing("x", true))));
        assert!(!outbox.put(Letter::Passing(outgoing("y", true))));
        assert!(outbox.put(answer("a")));
        assert_eq!(outbox.take_dropped(), 1);
        assert_eq!(pump(&mut outbox, Instant::now()), ["x", "a"]);
        assert!(outbox.put(Letter::Passing(outgoing("y", true))));
    }

    #[test]
    fn an_unconfirmed_message_is_done_when_it_is_given_away() {
        let mut outbox = Outbox::new(9);
        outbox.put(Letter::Passing(outgoing("x", false)));
        assert_eq!(pump(&mut outbox, Instant::now()), ["x"]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_large_answer_is_replaced_and_a_large_chunk_is_not_sent() {
        let mut outbox = Outbox::new(9);
        let large = "x".repeat(300);
        outbox.put(Letter::Passing(outgoing(&large, true)));
        outbox.put(answer(&large));
        assert_eq!(pump(&mut outbox, Instant::now()), ["too large"]);
    }

    #[test]
    fn a_late_answer_is_replaced() {
        let now = Instant::now();
        let mut outbox = Outbox::new(9);
        let mut letter = answer("a");
        if let Letter::Answer(_, substitutes) = &mut letter {
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
        assert_eq!(sent, ["a", "late", "late"]);
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
}
