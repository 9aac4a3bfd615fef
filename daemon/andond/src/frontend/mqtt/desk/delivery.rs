//! What the broker has taken or refused, what it cannot be given any more, and what the world is told beside answers.

use std::time::Instant;

use andon_policy::throttle::{Cause, Throttle};
use andon_wire::RequestId;
use andon_wire::topic::Event;
use bytes::Bytes;
use serde_json::json;

use super::{Desk, Note, REFUSED_PAUSES, Verdict};
use crate::fault::{Fault, FaultCode};
use crate::frontend::mqtt::message::{AckToken, Outgoing, Properties};
use crate::frontend::mqtt::outbox::{Late, Letter};
use crate::frontend::mqtt::reply::{self, Format, ReplyTo};
use crate::frontend::mqtt::request::Refusal;
use crate::router::Escalated;
use crate::spool::record::{Header, State};
use crate::workers::Swapped;

/// What the broker has refused of an answer.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// How often some of it was.
    count: usize,
    /// Whether a part was of what is under way.
    part: bool,
    /// When the whole is sent again: not before all of it has left.
    pub(super) again_at: Option<Instant>,
}

impl Desk {
    /// The broker has taken, or refused, a message.
    pub(in crate::frontend::mqtt) fn confirmed(&mut self, packet_id: u16, refused: Option<&str>) {
        let Some(left) = self.outbox.confirmed(packet_id) else {
            return;
        };
        if let Some(why) = refused {
            tracing::warn!(
                topic = left.topic,
                record = left.of,
                why,
                "the broker refused a message"
            );
            if let Some(number) = left.of {
                self.refused.entry(number).or_default().part = true;
            }
        }
        // Whoever has a part of what came too late has not had it all.
        let Some(number) = left.record.filter(|of| !self.late.contains_key(of)) else {
            return;
        };
        match self.refused.get_mut(&number) {
            Some(refusals) if refusals.part => {
                refusals.part = false;
                match REFUSED_PAUSES.get(refusals.count) {
                    Some(pause) => {
                        refusals.count += 1;
                        refusals.again_at = Instant::now().checked_add(*pause);
                    }
                    None => {
                        self.give_up(number, refused.unwrap_or("the broker refuses a part of it"));
                    }
                }
            }
            _ => {
                self.refused.remove(&number);
                self.spool.delivered(number);
            }
        }
    }

    /// Tries no more to deliver an answer: it gives way to new requests as if it were delivered.
    pub(super) fn give_up(&mut self, number: u64, why: &str) {
        crate::event!(
            AnswerUndelivered,
            number,
            why,
            "an answer cannot be delivered and is given up; it stays in the spool for a while, to be asked for again"
        );
        self.refused.remove(&number);
        self.spool.delivered(number);
    }

    /// Keeps that answers have come too late which nobody has read, before anybody hears it: who asks again must not hear
    /// the answer after that.
    pub(in crate::frontend::mqtt) fn keep_late(&mut self) {
        for late in self.outbox.take_late() {
            let number = late.record;
            let notes = self.notes.clone();
            let then = Box::new(move |outcome| drop(notes.send(Note::Late(number, outcome))));
            let kept = ReplyTo::kept(std::slice::from_ref(&late.message));
            let header = self.spool.get(number);
            match header.filter(|header| header.state == State::Answered) {
                Some(header)
                    if self
                        .spool
                        .fail(number, kept, FaultCode::DeadlineExceeded, then) =>
                {
                    self.late.insert(number, (header.attempt, late));
                }
                // Dropped meanwhile, or delivered after all.
                _ => self.acks.extend(late.acks),
            }
        }
    }

    /// It is safe that an answer came too late, or that has waited long enough.
    pub(super) fn replaced(&mut self, number: u64, outcome: Result<(), Fault>) {
        let Some((attempt, late)) = self.late.remove(&number) else {
            return;
        };
        if let Err(fault) = outcome {
            crate::event!(AnswerUnsafe, number, %fault, "an error is published that is not safe on the disk");
        }
        let Late { message, acks, .. } = late;
        match self.spool.get(number) {
            Some(header) if header.attempt == attempt => {
                let mut letter = Letter::passing(message);
                letter.record = Some(number);
                letter.acks = acks;
                self.outbox.put(letter);
            }
            // Dropped, or asked for again: another answer comes.
            _ => self.acks.extend(acks),
        }
    }

    /// Ends a record that cannot be read: nobody knows where its answer goes, but who asks again hears why there is none.
    pub(super) fn end_unreadable(&mut self, number: u64, header: &Header, why: &str) {
        crate::event!(
            RecordUnreadable,
            number,
            client = header.key.client,
            request_id = header.key.id,
            why,
            "a record of the spool cannot be answered or delivered"
        );
        self.cancelled.remove(&number);
        let Ok(id) = RequestId::new(&header.key.id) else {
            return;
        };
        let reply = ReplyTo {
            topic: String::new(),
            correlation: None,
            format: Format::Json,
            with_properties: false,
            client: header.key.client.clone(),
            task: header.task.clone(),
            id,
            stream: false,
            attempt: header.attempt,
            deadline: None,
        };
        let fault = Fault::new(
            FaultCode::Internal,
            format!("what was kept cannot be read: {why}"),
        );
        let kept = ReplyTo::kept(&[reply.fault(&fault, None)]);
        if self.spool.fail(number, kept, fault.code, Box::new(drop)) {
            self.spool.delivered(number);
        }
        // Whoever has asked for it meanwhile hears so.
        self.repeated(number, Ok(None), Instant::now());
    }

    /// Tells the client and the event topic that a request is refused. Says what to do with its message.
    pub(super) fn turn_away(
        &mut self,
        reply: &ReplyTo,
        refusal: &Refusal,
        ack: Option<AckToken>,
    ) -> Verdict {
        tracing::info!(
            client = reply.client,
            request_id = reply.id.as_str(),
            fault = refusal.fault.code.name(),
            field = refusal.field,
            "a request is refused"
        );
        let message = reply.fault(&refusal.fault, refusal.field.as_deref());
        self.outbox.put(Letter::refusal(message, ack));
        self.announce(Event::Refused, reply, refusal);
        Verdict::Later
    }

    /// Tells the event topic how far batch work gives way by now.
    pub(in crate::frontend::mqtt) fn throttled(
        &mut self,
        throttle: Throttle,
        cause: Option<Cause>,
    ) {
        let value = json!({ "batch": throttle.as_str(), "cause": cause.map(Cause::as_str) });
        self.tell(Event::Throttled, value.to_string().into());
    }

    /// Tells the event topic which model answers to a name by now.
    pub(in crate::frontend::mqtt) fn swapped(&mut self, swapped: &Swapped) {
        let value = json!({
            "name": swapped.name,
            "from": swapped.from,
            "to": swapped.to,
            "rolled_back": swapped.rolled_back,
            "reason": swapped.why,
        });
        self.tell(Event::ModelSwapped, value.to_string().into());
    }

    /// Tells the event topic that a request went upstream.
    pub(in crate::frontend::mqtt) fn escalated(&mut self, escalated: &Escalated) {
        let value = json!({
            "client": escalated.client,
            "id": escalated.id,
            "task": escalated.task,
            "reason": escalated.why,
        });
        self.tell(Event::Escalated, value.to_string().into());
    }

    pub(super) fn announce(&mut self, event: Event, reply: &ReplyTo, refusal: &Refusal) {
        let payload = reply::event(reply, &refusal.fault, refusal.field.as_deref());
        self.tell(event, payload);
    }

    fn tell(&mut self, event: Event, payload: Bytes) {
        let message = Outgoing {
            topic: self.topics.event(event).as_str().to_owned(),
            payload,
            retain: false,
            confirmed: false,
            // None: listeners of any version, behind any broker.
            properties: Properties::default(),
        };
        self.outbox.put(Letter::passing(message));
    }
}
