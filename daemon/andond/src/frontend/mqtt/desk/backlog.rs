//! What waits in the spool and has no job: requests of an earlier process, answers that were not delivered, and what an operator
//! asks for.
//!
//! Invariant: a record is fetched by number, once at a time, and what is fetched is what the spool says by then.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use andon_wire::RequestId;
use bytes::Bytes;

use super::{Desk, FETCHED_MAX, Job, KeptRequest, Note, Prepared, Source};
use crate::fault::{Fault, FaultCode};
use crate::frontend::mqtt::message::Incoming;
use crate::frontend::mqtt::reply::{self, ReplyTo};
use crate::frontend::mqtt::request::Refusal;
use crate::request::Priority;
use crate::spool::record::{Header, Key};
use crate::spool::{Kept, Order};

/// Records to answer or deliver that no job is for yet, in the order of arrival, alarms first.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    answers: BTreeSet<u64>,
    alarms: BTreeSet<u64>,
    others: BTreeSet<u64>,
    /// The numbers at which it goes on, so that what has to wait keeps its place and nothing behind it from its turn.
    alarms_from: u64,
    others_from: u64,
}

impl Backlog {
    /// Puts a record in.
    pub(super) fn put(&mut self, number: u64, header: &Header) {
        self.remove(number);
        let of = match header.priority {
            _ if header.state.is_answered() => &mut self.answers,
            Priority::Alarm => &mut self.alarms,
            Priority::Interactive | Priority::Batch => &mut self.others,
        };
        of.insert(number);
    }

    fn remove(&mut self, number: u64) {
        for of in [&mut self.answers, &mut self.alarms, &mut self.others] {
            of.remove(&number);
        }
    }

    /// The next whose turn it is of the alarms, or of the others; it stays in.
    fn turn(&mut self, alarm: bool) -> Option<u64> {
        let (of, from) = if alarm {
            (&self.alarms, &mut self.alarms_from)
        } else {
            (&self.others, &mut self.others_from)
        };
        let number = *of.range(*from..).next().or_else(|| of.first())?;
        *from = number.saturating_add(1);
        Some(number)
    }

    /// Whether it is in.
    pub(super) fn contains(&self, number: u64) -> bool {
        let all = [&self.answers, &self.alarms, &self.others];
        all.iter().any(|of| of.contains(&number))
    }

    /// Takes an answer out.
    pub(super) fn remove_answer(&mut self, number: u64) {
        self.answers.remove(&number);
    }

    fn of(&self, alarm: bool) -> &BTreeSet<u64> {
        if alarm { &self.alarms } else { &self.others }
    }

    /// How many wait for an answer before an alarm, or before anything else.
    pub(super) fn requests(&self, alarm: bool) -> usize {
        self.alarms.len() + if alarm { 0 } else { self.others.len() }
    }

    fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.requests(false) == 0
    }
}

impl Desk {
    /// Puts a record that has no job any more where it waits.
    pub(super) fn wait_on(&mut self, number: u64) {
        if let Some(header) = self.spool.get(number) {
            self.backlog.put(number, &header);
        }
    }

    /// Puts a record back that was to be computed and cannot be now: meanwhile others may be.
    pub(super) fn put_back(&mut self, number: u64) {
        self.spool.leave(number);
        self.wait_on(number);
    }

    /// Whether something waits in the spool that no job is for.
    pub(in crate::frontend::mqtt) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty() || !self.unread.is_empty()
    }

    /// Fetches what waits in the spool: answers always, requests if workers take some.
    pub(in crate::frontend::mqtt) fn fetch(&mut self, serving: bool, now: Instant) {
        for number in std::mem::take(&mut self.unread) {
            self.read_again(number);
        }
        for number in self.outbox.take_unsendable() {
            self.give_up(number, "no packet of the broker is large enough");
        }
        let mut due = Vec::new();
        for (number, refusals) in &mut self.refused {
            if refusals.again_at.take_if(|at| *at <= now).is_some() {
                due.push(*number);
            }
        }
        for number in due {
            self.wait_on(number);
        }
        self.fetch_answers();
        if serving {
            self.fetch_requests();
        }
    }

    /// No more than the broker will soon take: what waits in the spool takes no memory, and no place of what comes.
    fn fetch_answers(&mut self) {
        let room = (self.config.mqtt.requests_max / 4).max(1);
        while self.outbox.answers() < room && self.fetched.len() < FETCHED_MAX.min(room) {
            let Some(number) = self.backlog.answers.pop_first() else {
                return;
            };
            match self.spool.get(number) {
                Some(header) if header.state.is_answered() => self.read_record(number),
                Some(header) => self.backlog.put(number, &header),
                None => {}
            }
        }
    }

    /// Alarms first, and as many as the worker may have at once.
    fn fetch_requests(&mut self) {
        for alarm in [true, false] {
            let waiting = self.backlog.of(alarm).len();
            // Each once.
            for _ in 0..waiting {
                let room = self.open_max(alarm).saturating_sub(self.jobs.len());
                if self.fetched.len() >= FETCHED_MAX.min(room) {
                    break;
                }
                if let Some(number) = self.backlog.turn(alarm) {
                    self.fetch_request(number);
                }
            }
        }
    }

    fn fetch_request(&mut self, number: u64) {
        let Some(header) = self.spool.get(number) else {
            self.cancelled.remove(&number);
            return self.backlog.remove(number);
        };
        if self.jobs.contains_key(&header.key) {
            return self.backlog.remove(number);
        }
        if header.state.is_answered() {
            return self.backlog.put(number, &header);
        }
        if self.spool.may_run(number) {
            self.backlog.remove(number);
            // On the disk before what is read comes: a request that ends the daemon at once is counted all the same.
            self.spool.running(number);
            self.read_record(number);
        }
    }

    fn read_record(&mut self, number: u64) {
        self.fetched.insert(number);
        let notes = self.notes.clone();
        let then = Box::new(move |kept| drop(notes.send(Note::Read(number, Box::new(kept)))));
        self.spool.read(number, then);
    }

    /// Goes on with a record of an earlier process.
    pub(super) fn recover(
        &mut self,
        number: u64,
        kept: Kept,
        now: Instant,
    ) -> Option<Box<Prepared>> {
        let Kept {
            header,
            request,
            answer,
        } = kept;
        let (Ok(kept), Ok(id)) = (
            postcard::from_bytes::<KeptRequest>(&request),
            RequestId::new(&header.key.id),
        ) else {
            self.end_unreadable(number, &header, "it is no request over MQTT");
            return None;
        };
        let message = Incoming {
            topic: kept.topic.clone(),
            payload: Bytes::from(kept.payload.clone()),
            retain: false,
            repeated: true,
            properties: kept.properties.clone(),
            ack: None,
        };
        let Some((mut reply, outcome)) = self.read(&message, Some(id), now) else {
            let why = format!("its topic {} is none of this gateway", kept.topic);
            self.end_unreadable(number, &header, &why);
            return None;
        };
        reply.topic.clone_from(&kept.reply_topic);
        reply.attempt = header.attempt;
        reply.deadline = self.spool.deadline(&header);
        if header.state.is_answered() {
            if self.repeats.contains_key(&number) {
                // Whoever has asked for it meanwhile says where it goes.
                let kept = Kept {
                    header,
                    request,
                    answer,
                };
                self.repeated(number, Ok(Some(kept)), now);
                return None;
            }
            for message in reply.again(answer.as_deref().unwrap_or_default(), now) {
                let mut letter = reply.last(message, number);
                // By an earlier process, or before the broker has refused a part of it.
                letter.sent = true;
                self.outbox.put(letter);
            }
            return None;
        }
        let deadly = header.too_many_crashes();
        let outcome = match deadly {
            Some(fault) => outcome.and(Err(fault.into())),
            None => outcome,
        };
        let refusal = match outcome {
            _ if self.cancelled.remove(&number) => {
                Fault::new(FaultCode::Cancelled, "the client ended the request").into()
            }
            Err(refusal) => refusal,
            // Its model may be away for long, and then nobody else looks at that.
            Ok(_) if self.spool.left(&header) == Some(Duration::ZERO) => Fault::new(
                FaultCode::DeadlineExceeded,
                "the deadline passed while the request waited",
            )
            .into(),
            Ok(parsed) => {
                tracing::debug!(
                    client = header.key.client,
                    request_id = header.key.id,
                    attempt = header.attempt,
                    "a request of the spool is handed to its model"
                );
                let mut request = parsed.request;
                request.seed_unsaid = Some(header.seed);
                // What is left of the first one; the task's own would begin anew.
                request.deadline = reply.deadline;
                return Some(Box::new(Prepared {
                    request,
                    key: header.key,
                    ack: None,
                    reply,
                    fingerprint: header.fingerprint,
                    kept,
                    source: Source::Spool(number),
                }));
            }
        };
        self.end_without_job(number, &header.key, &reply, refusal);
        None
    }

    /// Ends a record that will not be computed.
    pub(super) fn end_without_job(
        &mut self,
        number: u64,
        key: &Key,
        reply: &ReplyTo,
        refusal: Refusal,
    ) {
        let message = reply.fault(&refusal.fault, refusal.field.as_deref());
        let code = refusal.fault.code;
        let kept = ReplyTo::kept(std::slice::from_ref(&message));
        let job = Job {
            serial: self.next_serial(),
            number,
            model: None,
            reply: reply.clone(),
            text: String::new(),
            chunks_sent: 0,
            chunk_lost: false,
            safe: true,
            acks: Vec::new(),
            held: Vec::new(),
            answer: Some(vec![message]),
            left: None,
            expired: (code == FaultCode::DeadlineExceeded).then_some(refusal),
            again: false,
        };
        self.jobs.insert(key.clone(), job);
        self.keep_answer(key, number, kept, Some(code));
    }

    /// An operator wants something of a record. Returns a running request that is to be cancelled.
    pub(in crate::frontend::mqtt) fn order(&mut self, order: Order) -> Option<Key> {
        match order {
            Order::Dropped(number, key) => {
                self.outbox.forget(number);
                self.refused.remove(&number);
                if let Some((_, late)) = self.late.remove(&number) {
                    self.acks.extend(late.acks);
                }
                if self.jobs.get(&key)?.number != number {
                    return None;
                }
                let job = self.jobs.remove(&key)?;
                // It was safe, and the operator knows better.
                self.acks.extend(job.acks);
                Some(key)
            }
            Order::Again(number) => {
                let header = self.spool.get(number)?;
                if self.jobs.contains_key(&header.key) || self.backlog.contains(number) {
                    return None;
                }
                if header.fault.is_some() {
                    self.outbox.disown(number);
                    (self.spool).again(number, header.attempt, None, Box::new(drop));
                }
                self.wait_on(number);
                None
            }
        }
    }
}

/// What a record says, for an operator.
pub(in crate::frontend::mqtt) fn describe(kept: &Kept) -> serde_json::Value {
    let text = |bytes: &[u8]| {
        serde_json::from_slice(bytes)
            .unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned().into())
    };
    let mut object = serde_json::json!({});
    if let Ok(request) = postcard::from_bytes::<KeptRequest>(&kept.request) {
        object["topic"] = request.topic.into();
        object["reply_topic"] = request.reply_topic.into();
        object["request"] = text(&request.payload);
    }
    if let Some(answer) = &kept.answer {
        let payloads = reply::payloads(answer);
        object["answer"] = payloads.iter().map(|payload| text(payload)).collect();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_to_wait_keeps_its_place_and_holds_up_nobody() {
        let mut backlog = Backlog {
            others: BTreeSet::from([3, 5, 8]),
            ..Backlog::default()
        };
        let turns = [(); 4].map(|()| backlog.turn(false));
        assert_eq!(turns, [Some(3), Some(5), Some(8), Some(3)]);
        backlog.remove(5);
        assert_eq!(backlog.turn(false), Some(8));
        assert_eq!(backlog.turn(true), None);
        // What has gone back comes in the order of its arrival.
        backlog.others.insert(5);
        assert_eq!(
            [backlog.turn(false), backlog.turn(false)],
            [Some(3), Some(5)]
        );
        assert!(backlog.contains(5) && !backlog.contains(4));
    }
}
