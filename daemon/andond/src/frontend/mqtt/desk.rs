//! The front end's mind: what a message means and what follows from it.
//!
//! For each request the order is: validate, accept, acknowledge, answer. The desk validates and answers; its
//! owner hands the request to the worker in between, and the [`Spool`] says when it is safe. It knows no socket, no
//! worker and no clock: messages, who may ask, the worker's events, the spool's word and the time come in, letters for the
//! [`Outbox`] and what may be acknowledged come out.
//!
//! Invariant: a message is acknowledged when what it asks is safe in the spool, or when the broker has the word that it
//! is refused; one that comes in while the daemon stops is not. Nothing of an attempt is published before its number is
//! safe, and no answer before it is, unless the disk fails for longer than the patience. Of every attempt there is one last
//! message, be it an answer or an error, which may be sent more than once. A request that runs or was answered is not
//! computed again.

mod again;
mod backlog;
mod delivery;
mod jobs;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_wire::topic::{self, Door, Topics};
use andon_wire::{GatewayName, RequestId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use self::again::{Repeat, Repetition};
use self::backlog::Backlog;
use self::delivery::Refusals;
use super::message::{AckToken, Incoming, Outgoing, Properties};
use super::outbox::{Late, Outbox};
use super::reply::{Format, ReplyTo};
use super::request::{self, IdSource, Ids, Place, Refusal};
use crate::access::{Access, Caller};
use crate::config::Config;
use crate::fault::{Fault, FaultCode};
use crate::request::{Origin, Priority, Request};
use crate::spool::book::Filter;
use crate::spool::record::{self, Fingerprint, Key, State};
use crate::spool::{Kept, Spool};
use crate::telemetry::Telemetry;

pub(super) use self::backlog::describe;

/// When a refused client may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Records of an earlier process that are fetched at once.
const FETCHED_MAX: usize = 8;
/// Pauses before an answer that the broker has refused is sent again; after the last it is given up.
const REFUSED_PAUSES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(16),
    Duration::from_secs(64),
    Duration::from_secs(256),
];

/// Most messages of the same packet id that ask the same and are kept.
const NAMES_MAX: u16 = 64;

/// What to do with a message.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Submit this and tell the desk how that went.
    Submit(Box<Prepared>),
    /// Cancel this running request, then acknowledge.
    Cancel(Key),
    /// Acknowledge.
    Done,
    /// The desk says when to acknowledge.
    Later,
}

/// A request that is valid and within the bounds.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The request.
    pub(super) request: Request,
    /// Its name.
    pub(super) key: Key,
    /// What is acknowledged once it is safe.
    pub(super) ack: Option<AckToken>,
    reply: ReplyTo,
    fingerprint: Fingerprint,
    kept: KeptRequest,
    source: Source,
}

/// Where a prepared request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// It is new.
    New,
    /// It was asked before and has failed with this attempt: another under its number.
    Again(u64, u16),
    /// It is in the spool, from before.
    Spool(u64),
}

/// A request as the spool keeps it: the message, and what was settled when it came.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct KeptRequest {
    topic: String,
    payload: Vec<u8>,
    properties: Properties,
    /// Where its answer goes.
    reply_topic: String,
}

/// The word of the spool on a request.
#[derive(Debug)]
pub(super) enum Note {
    /// The job of this serial is safe, or cannot be kept.
    Accepted(Key, u64, Result<(), Fault>),
    /// The answer of the job of this serial is safe, or that takes too long.
    Answered(Key, u64, Result<(), Fault>),
    /// It is safe that the answer of a record came too late, or that takes too long.
    Late(u64, Result<(), Fault>),
    /// What was kept of it.
    Read(u64, Box<Result<Option<Kept>, Fault>>),
    /// What was kept of it, for whoever asks again.
    Repeated(u64, Box<Result<Option<Kept>, Fault>>),
}

/// Who is to answer what has been left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// The next start.
    ToTheNextStart,
    /// This process, once the model is there.
    ToLater,
}

#[derive(Debug)]
struct Job {
    /// No other job of this process has it: names and numbers come again.
    serial: u64,
    number: u64,
    /// The model that was asked for, if one was.
    model: Option<String>,
    reply: ReplyTo,
    text: String,
    chunks_sent: u32,
    chunk_lost: bool,
    /// Whether it is safe, so that its attempt may be heard of.
    safe: bool,
    /// Acknowledged once it is.
    acks: Vec<AckToken>,
    /// Chunks until then.
    held: Vec<Outgoing>,
    /// The last messages, once there are some.
    answer: Option<Vec<Outgoing>>,
    /// Whether the worker has left it for a later attempt, and whether that is this process's.
    left: Option<Left>,
    expired: Option<Refusal>,
    /// Whether it is another attempt at what has failed.
    again: bool,
}

/// The desk.
#[derive(Debug)]
pub(super) struct Desk {
    config: Arc<Config>,
    access: Arc<Access>,
    telemetry: Arc<Telemetry>,
    spool: Spool,
    notes: mpsc::UnboundedSender<Note>,
    topics: Topics,
    fleet: Option<Topics>,
    ids: Ids,
    jobs: HashMap<Key, Job>,
    /// Records to answer or deliver that no job is for yet.
    backlog: Backlog,
    /// Those of them that are being fetched.
    fetched: HashSet<u64>,
    /// Answers that are being read to be given again.
    repeats: HashMap<u64, Repeat>,
    /// Those of them that could not be read.
    unread: Vec<u64>,
    /// Whether something could not be read since that was asked last.
    read_failed: bool,
    /// Whether something was left for later since that was asked last.
    has_left: bool,
    /// Answers that nobody wants any more and nobody has read, until it is safe that they are replaced.
    late: HashMap<u64, (u16, Late)>,
    /// Records whose answers the broker has refused, or a part of them.
    refused: HashMap<u64, Refusals>,
    serials: u64,
    /// Those of them that were cancelled.
    cancelled: HashSet<u64>,
    acks: Vec<AckToken>,
    model: String,
    /// What waits for the broker.
    pub(super) outbox: Outbox,
}

impl Desk {
    /// A desk with nothing on it but what the spool has; the spool's word comes by the receiver that belongs to `notes`.
    ///
    /// # Errors
    /// A base topic or fleet group that is none.
    pub(super) fn new(
        config: Arc<Config>,
        access: Arc<Access>,
        telemetry: Arc<Telemetry>,
        spool: Spool,
        notes: mpsc::UnboundedSender<Note>,
    ) -> Result<Desk, topic::TopicError> {
        let topics = Topics::with_base(&config.mqtt.base(&config.gateway))?;
        let fleet = match &config.mqtt.fleet_group {
            Some(group) => Some(Topics::with_base(&format!("andon/fleet/{group}"))?),
            None => None,
        };
        let outbox = Outbox::new(config.mqtt.queue_max);
        let mut backlog = Backlog::default();
        for (number, header) in spool.list(&Filter::default()) {
            if header.key.door == record::Door::Mqtt && header.state != State::Delivered {
                backlog.put(number, &header);
            }
        }
        Ok(Desk {
            config,
            access,
            telemetry,
            spool,
            notes,
            topics,
            fleet,
            ids: Ids::default(),
            jobs: HashMap::new(),
            backlog,
            fetched: HashSet::new(),
            cancelled: HashSet::new(),
            repeats: HashMap::new(),
            unread: Vec::new(),
            read_failed: false,
            has_left: false,
            late: HashMap::new(),
            refused: HashMap::new(),
            serials: 0,
            acks: Vec::new(),
            model: String::new(),
            outbox,
        })
    }

    /// Goes by another configuration in what comes from now on. Topics stay as they are.
    pub(super) fn reloaded(&mut self, config: Arc<Config>) {
        self.outbox.set_passing_max(config.mqtt.queue_max);
        self.config = config;
    }

    /// The gateway's topics.
    pub(super) fn topics(&self) -> &Topics {
        &self.topics
    }

    /// What to subscribe to: requests, cancels, and the fleet's requests if there is a fleet.
    pub(super) fn filters(&self) -> Vec<String> {
        let mut filters = vec![
            self.topics.request_filter().as_str().to_owned(),
            self.topics.cancel_filter().as_str().to_owned(),
        ];
        let group = self
            .config
            .mqtt
            .fleet_group
            .as_deref()
            .and_then(|group| GatewayName::new(group).ok());
        if let Some(group) = group {
            filters.push(topic::fleet_filter(&group).as_str().to_owned());
        }
        filters
    }

    /// The model whose name answers carry that nobody named a model for.
    pub(super) fn set_model(&mut self, name: &str) {
        if self.model != name {
            name.clone_into(&mut self.model);
        }
    }

    /// How many accepted requests have no answer yet, or one that waits for the disk.
    pub(super) fn unanswered(&self) -> usize {
        self.jobs.len()
    }

    /// What may be acknowledged since this was asked last.
    pub(super) fn take_acks(&mut self) -> Vec<AckToken> {
        let mut acks = std::mem::take(&mut self.acks);
        acks.extend(self.outbox.take_released());
        acks
    }

    /// The connection is gone, and with it what was to be acknowledged.
    pub(super) fn disconnected(&mut self) {
        self.outbox.disconnected();
        self.acks.clear();
        for job in self.jobs.values_mut() {
            job.acks.clear();
        }
        for repeat in self.repeats.values_mut() {
            repeat.acks.clear();
        }
        for (_, late) in self.late.values_mut() {
            late.acks.clear();
        }
    }

    /// Whether a message ends a request.
    pub(super) fn is_cancel(&self, message: &Incoming) -> bool {
        let parsed = self.topics.parse(&message.topic);
        matches!(parsed, Ok(topic::Incoming::Cancel { .. }))
    }

    /// Looks at a message.
    pub(super) fn receive(&mut self, message: &Incoming, now: Instant) -> Verdict {
        let parsed = match self.topics.parse(&message.topic) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::warn!(topic = message.topic, %error, "a message came on a topic that means nothing");
                self.telemetry.malformed(Origin::Mqtt);
                return Verdict::Done;
            }
        };
        if message.retain {
            tracing::warn!(
                topic = message.topic,
                "a retained message is no request: it would be asked again at every start; clear it at the broker"
            );
            self.telemetry.malformed(Origin::Mqtt);
            return Verdict::Done;
        }
        match parsed {
            topic::Incoming::Cancel { client } => self.cancel(client.as_str(), &message.payload),
            topic::Incoming::Request { .. } => {
                let Some((mut reply, mut outcome)) = self.read(message, None, now) else {
                    return Verdict::Done;
                };
                if let Ok(parsed) = &mut outcome
                    && parsed.id_source == IdSource::Made
                    && let Some(id) = self.name(message, &reply)
                    && let Some(named) = self.read(message, Some(id), now)
                {
                    (reply, outcome) = named;
                    if let Ok(parsed) = &mut outcome {
                        parsed.id_source = IdSource::Made;
                    }
                }
                match outcome {
                    Ok(parsed) => self.consider(message, reply, parsed),
                    Err(refusal) => {
                        self.telemetry.malformed(Origin::Mqtt);
                        self.turn_away(&reply, &refusal, message.ack)
                    }
                }
            }
        }
    }

    /// Reads a request; `None` if its topic is none of one.
    fn read(
        &mut self,
        message: &Incoming,
        id: Option<RequestId>,
        now: Instant,
    ) -> Option<(ReplyTo, Result<request::Parsed, Refusal>)> {
        let Ok(topic::Incoming::Request { client, task, door }) = self.topics.parse(&message.topic)
        else {
            return None;
        };
        let topics = match (door, &self.fleet) {
            (Door::Fleet, Some(fleet)) => fleet,
            _ => &self.topics,
        };
        let place = Place {
            topics,
            own: &self.topics,
            client,
            id,
            task,
            allowed: &self.config.mqtt.response_topics,
            limits: &self.config.limits,
            payload_bytes_max: usize::try_from(self.config.mqtt.packet_bytes_max)
                .unwrap_or(usize::MAX),
        };
        Some(request::read(message, &place, &mut self.ids, now))
    }

    fn consider(
        &mut self,
        message: &Incoming,
        mut reply: ReplyTo,
        parsed: request::Parsed,
    ) -> Verdict {
        let request::Parsed {
            mut request,
            id_source,
        } = parsed;
        let mut key = Key {
            door: record::Door::Mqtt,
            client: request.client.clone(),
            id: request.id.clone(),
        };
        let fingerprint = fingerprint(message, &reply);
        let alarm = self.priority(&request, &reply) == Priority::Alarm;
        let waiting = self.backlog.requests(alarm);
        let open = self.jobs.len() + waiting + self.outbox.answers();
        let full = open >= self.open_max(alarm);
        let mut source = Source::New;
        match self.spool.find(&key) {
            None => {}
            Some((_, header)) if header.fingerprint != fingerprint => {
                if id_source == IdSource::Payload {
                    let refusal = Refusal {
                        fault: Fault::new(
                            FaultCode::DuplicateId,
                            "this id was used for another request a short while ago",
                        ),
                        field: Some("id".to_owned()),
                    };
                    return self.turn_away(&reply, &refusal, message.ack);
                }
                // Correlation Data need not be unique; the client did not mean it as a name.
                let id = self.ids.make();
                id.as_str().clone_into(&mut request.id);
                id.as_str().clone_into(&mut key.id);
                reply.id = id;
            }
            Some((number, header)) => {
                // New requests and attempts are looked at where they are handed over. What the broker sends again was asked once,
                // and keeps what it was granted.
                if !message.repeated
                    && let Err(fault) = self.permit(&request)
                {
                    return self.turn_away(&reply, &fault.into(), message.ack);
                }
                match self.known(number, &header, &key, &mut reply, message) {
                    Repetition::Waits(verdict) => return verdict,
                    // Over the bound, one that is not to be acknowledged hears nothing: nothing else bounds how many of them
                    // wait for an answer to be read, and any word but that answer would be a second one.
                    Repetition::HasAnswer if full && message.ack.is_none() => {
                        return Verdict::Done;
                    }
                    Repetition::HasAnswer => {
                        self.repeat(number, &key, reply, message.ack);
                        return Verdict::Later;
                    }
                    Repetition::HasFailed => source = Source::Again(number, header.attempt),
                }
            }
        }
        if full {
            let fault = Fault::new(
                FaultCode::Busy,
                format!("{open} requests have no answer yet"),
            );
            return self.turn_away(&reply, &fault.retry_after(RETRY_AFTER).into(), message.ack);
        }
        if let Some(fault) = self.spool.failing() {
            self.telemetry.spool_unkept();
            return self.turn_away(&reply, &fault.into(), message.ack);
        }
        request.seed_unsaid = Some(key.seed(&fingerprint));
        let kept = KeptRequest {
            topic: message.topic.clone(),
            payload: message.payload.to_vec(),
            properties: message.properties.clone(),
            reply_topic: reply.topic.clone(),
        };
        Verdict::Submit(Box::new(Prepared {
            request,
            key,
            ack: message.ack,
            reply,
            fingerprint,
            kept,
            source,
        }))
    }

    /// Whether the client of a request that it asked before may ask it now.
    fn permit(&self, request: &Request) -> Result<(), Fault> {
        let caller = Caller::Client(request.client.as_str().into());
        let rights = self.access.rights(&caller);
        let permitted = rights.and_then(|rights| {
            let model = request.model_by(&self.config);
            rights.check(request, &model, request.class_by_task(&self.config))
        });
        permitted.map_err(|denied| {
            caller.note_denied(&denied);
            denied.into()
        })
    }

    /// Most requests without an answer, or with one that the broker does not have: so many more if it is an alarm, so that who
    /// has asked for much else may still raise one.
    fn open_max(&self, alarm: bool) -> usize {
        let max = self.config.mqtt.requests_max;
        if alarm { max + (max / 8).max(1) } else { max }
    }

    /// The id of a message that has none and is to be acknowledged: such that the broker's sending it again, also to the next
    /// process, is known for what it is.
    fn name(&self, message: &Incoming, reply: &ReplyTo) -> Option<RequestId> {
        let packet_id = message.ack?.packet_id;
        let fingerprint = fingerprint(message, reply);
        let mut key = Key {
            door: record::Door::Mqtt,
            client: reply.client.clone(),
            id: String::new(),
        };
        let mut before = None;
        for count in 0..NAMES_MAX {
            key.id = key.made(&fingerprint, packet_id, count);
            match self.spool.find(&key) {
                // Packets' ids come again, and so may what is asked: what was delivered was acknowledged, most likely.
                Some((_, header)) => {
                    before = (header.state != State::Delivered).then(|| key.id.clone());
                }
                None => {
                    let again = before.filter(|_| message.repeated);
                    return RequestId::new(&again.unwrap_or(key.id)).ok();
                }
            }
        }
        None
    }

    fn cancel(&mut self, client: &str, payload: &[u8]) -> Verdict {
        let Some(id) = request::cancel_id(payload) else {
            tracing::warn!(client, "a cancel names no id");
            self.telemetry.malformed(Origin::Mqtt);
            return Verdict::Done;
        };
        let key = Key {
            door: record::Door::Mqtt,
            client: client.to_owned(),
            id: id.as_str().to_owned(),
        };
        if self.jobs.contains_key(&key) {
            return Verdict::Cancel(key);
        }
        match self.spool.find(&key) {
            Some((number, header)) if !header.state.is_answered() => {
                self.cancelled.insert(number);
            }
            _ => tracing::info!(
                client,
                request_id = key.id,
                "a cancel names a request that is not running"
            ),
        }
        Verdict::Done
    }

    /// Whether something could not be read since this was asked last.
    pub(super) fn take_read_failed(&mut self) -> bool {
        std::mem::take(&mut self.read_failed)
    }

    /// The spool says something about a request. Returns one that is to be submitted.
    pub(super) fn note(&mut self, note: Note, now: Instant) -> Option<Box<Prepared>> {
        match note {
            Note::Accepted(key, serial, outcome) => {
                if self.is_current(&key, serial) {
                    self.accepted(&key, outcome);
                }
                None
            }
            Note::Answered(key, serial, outcome) => {
                if self.is_current(&key, serial) {
                    self.answered(&key, outcome);
                }
                None
            }
            Note::Read(number, kept) => {
                self.fetched.remove(&number);
                let Some(header) = self.spool.get(number) else {
                    // Dropped while it was read.
                    self.cancelled.remove(&number);
                    self.repeated(number, Ok(None), now);
                    return None;
                };
                match *kept {
                    // Asked for again while it was read.
                    Ok(Some(kept)) if kept.header.attempt != header.attempt => {
                        if !header.state.is_answered()
                            && let Some(mut repeat) = self.repeats.remove(&number)
                        {
                            self.acks.append(&mut repeat.acks);
                        }
                        self.put_back(number);
                        None
                    }
                    Ok(Some(kept)) => self.recover(number, kept, now),
                    // There was none a moment ago.
                    Ok(None) => {
                        self.put_back(number);
                        None
                    }
                    Err(fault) if fault.code == FaultCode::Unavailable => {
                        self.read_failed = true;
                        self.put_back(number);
                        None
                    }
                    // No later reading reads it better.
                    Err(fault) => {
                        self.end_unreadable(number, &header, &fault.message);
                        None
                    }
                }
            }
            Note::Repeated(number, kept) => {
                let there = self.spool.get(number).is_some();
                self.repeated(number, if there { *kept } else { Ok(None) }, now);
                None
            }
            Note::Late(number, outcome) => {
                self.replaced(number, outcome);
                None
            }
        }
    }
}

/// What a message asks, shortened: the same bytes in another form ask for another answer.
fn fingerprint(message: &Incoming, reply: &ReplyTo) -> Fingerprint {
    let task = reply.task.as_deref().unwrap_or_default().as_bytes();
    match reply.format {
        Format::Json => Fingerprint::of(&[task, &message.payload]),
        other => Fingerprint::of(&[task, &message.payload, other.content_type().as_bytes()]),
    }
}

#[cfg(test)]
mod tests;
