//! The front end's mind: what a message means and what follows from it.
//!
//! For each request the order is: validate, accept, acknowledge, answer. The desk validates and answers; its
//! owner hands the request to the worker in between, and the [`Spool`] says when it is safe. It knows no socket, no
//! worker and no clock: messages, the worker's events, the spool's word and the time come in, letters for the
//! [`Outbox`] and what may be acknowledged come out.
//!
//! Invariant: a message is acknowledged when what it asks is safe in the spool, or when the broker has the word that it
//! is refused, unless it came in while the daemon stops; nothing of an attempt is published before its number is safe, and
//! no answer before it is; every request gets exactly one last message, be it an answer or an error; a request that
//! runs or was answered is not computed again.

mod again;
mod backlog;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::throttle::{Cause, Throttle};
use andon_wire::topic::{self, Door, Event, Topics};
use andon_wire::{GatewayName, RequestId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

use self::again::{Repeat, Repetition};
use super::message::{AckToken, Incoming, Outgoing, Properties};
use super::outbox::{Letter, Outbox};
use super::reply::{self, Answer, Format, ReplyTo};
use super::request::{self, IdSource, Ids, Place, Refusal};
use crate::config::Config;
use crate::fault::{Fault, FaultCode};
use crate::request::{Origin, Priority, Request};
use crate::spool::book::Filter;
use crate::spool::record::{self, Fingerprint, Key, State};
use crate::spool::{Kept, New, Spool};
use crate::telemetry::Telemetry;
use crate::worker::{Done, JobEvent};
use crate::workers::Swapped;

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
    /// It was asked before and has failed: another attempt under its number.
    Again(u64),
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
    telemetry: Arc<Telemetry>,
    spool: Spool,
    notes: mpsc::UnboundedSender<Note>,
    topics: Topics,
    fleet: Option<Topics>,
    ids: Ids,
    jobs: HashMap<Key, Job>,
    /// Records to answer or deliver that no job is for yet.
    backlog: VecDeque<u64>,
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
    /// How often the broker has refused the answer of a record, and when that is sent again.
    refused: HashMap<u64, (usize, Option<Instant>)>,
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
        let of_mqtt = spool.list(&Filter::default()).into_iter();
        let of_mqtt = of_mqtt.filter(|(_, header)| {
            header.key.door == record::Door::Mqtt && header.state != State::Delivered
        });
        let backlog = of_mqtt.map(|(number, _)| number).collect();
        Ok(Desk {
            config,
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
            refused: HashMap::new(),
            serials: 0,
            acks: Vec::new(),
            model: String::new(),
            outbox,
        })
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

    /// How many accepted requests the worker has that have no answer yet.
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
                let Some((reply, outcome)) = self.read(message, None, now) else {
                    return Verdict::Done;
                };
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
        let task = reply.task.as_deref().unwrap_or_default();
        let fingerprint = Fingerprint::of(&[task.as_bytes(), &message.payload]);
        let open = self.jobs.len() + self.backlog.len() + self.outbox.answers();
        let full = open >= self.config.mqtt.requests_max;
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
                match self.known(number, &header, &key, &mut reply, message) {
                    Repetition::Waits(verdict) => return verdict,
                    // Repetitions that nobody waits to have acknowledged are bounded by nothing: over the bound they hear
                    // nothing, for anything but the answer would be a second one.
                    Repetition::HasAnswer if full && message.ack.is_none() => {
                        return Verdict::Done;
                    }
                    Repetition::HasAnswer => {
                        self.repeat(number, &key, reply, message.ack);
                        return Verdict::Later;
                    }
                    Repetition::HasFailed => source = Source::Again(number),
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
        request.seed_unsaid = Some(self.ids.seed());
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
                id = key.id,
                "a cancel names a request that is not running"
            ),
        }
        Verdict::Done
    }

    /// The worker has taken the request: it is kept. False if that is refused at once.
    pub(super) fn accept(&mut self, prepared: Prepared) -> bool {
        let Prepared {
            request,
            key,
            ack,
            mut reply,
            fingerprint,
            kept,
            source,
        } = prepared;
        let (notes, name) = (self.notes.clone(), key.clone());
        let serial = self.next_serial();
        let then = Box::new(move |outcome| drop(notes.send(Note::Accepted(name, serial, outcome))));
        let left = (request.deadline).map(|at| at.saturating_duration_since(Instant::now()));
        let accepted = match source {
            Source::New => {
                let new = New {
                    key: key.clone(),
                    task: reply.task.clone(),
                    priority: self.priority(&request, &reply),
                    fingerprint,
                    seed: request.seed_unsaid.unwrap_or_default(),
                    left,
                    request: postcard::to_stdvec(&kept)
                        .map(Bytes::from)
                        .unwrap_or_default(),
                };
                self.spool.accept(new, then).map(|number| (number, 1))
            }
            Source::Again(number) => match self.spool.again(number, left, then) {
                Some(header) => Ok((number, header.attempt)),
                None => Err(Fault::new(FaultCode::Busy, "the request was just dropped")),
            },
            Source::Spool(number) => {
                let attempt = self.spool.get(number).map_or(1, |header| header.attempt);
                Ok((number, attempt))
            }
        };
        let (number, attempt) = match accepted {
            Ok(accepted) => accepted,
            Err(fault) => {
                self.telemetry.spool_unkept();
                self.turn_away(&reply, &fault.into(), ack);
                return false;
            }
        };
        reply.attempt = attempt;
        let task = reply.task.as_ref();
        let by_task = task.and_then(|task| self.config.task.get(task.as_str())?.model.clone());
        let job = Job {
            serial,
            number,
            model: request.model.or(by_task),
            reply,
            text: String::new(),
            chunks_sent: 0,
            chunk_lost: false,
            safe: matches!(source, Source::Spool(_)),
            acks: ack.into_iter().collect(),
            held: Vec::new(),
            answer: None,
            left: None,
            expired: None,
            again: matches!(source, Source::Again(_)),
        };
        self.jobs.insert(key, job);
        true
    }

    /// How urgent a request is, as far as that is known without its model.
    fn priority(&self, request: &Request, reply: &ReplyTo) -> Priority {
        let task = || self.config.task.get(reply.task.as_deref()?)?.priority;
        request
            .priority
            .or_else(task)
            .unwrap_or(Priority::Interactive)
    }

    fn next_serial(&mut self) -> u64 {
        self.serials = self.serials.wrapping_add(1);
        self.serials
    }

    /// Whether this is the job of that name.
    pub(super) fn is_current(&self, key: &Key, serial: u64) -> bool {
        self.jobs.get(key).is_some_and(|job| job.serial == serial)
    }

    /// Whether something could not be read since this was asked last.
    pub(super) fn take_read_failed(&mut self) -> bool {
        std::mem::take(&mut self.read_failed)
    }

    /// The worker has not taken the request. Says what to do with its message.
    pub(super) fn refused(&mut self, prepared: &Prepared, fault: Fault) -> Verdict {
        let Source::Spool(number) = prepared.source else {
            return self.turn_away(&prepared.reply, &fault.into(), prepared.ack);
        };
        match fault.code {
            // It waits on: for a place, or for a daemon that does not stop.
            FaultCode::Busy
            | FaultCode::Unavailable
            | FaultCode::ModelUnavailable
            | FaultCode::DuplicateId => self.backlog.push_back(number),
            _ => self.end_without_job(number, &prepared.key, &prepared.reply, fault.into()),
        }
        Verdict::Later
    }

    /// The worker says something about a request.
    pub(super) fn event(&mut self, key: &Key, event: JobEvent, now: Instant) {
        let Some(job) = self.jobs.get_mut(key) else {
            return;
        };
        match event {
            // Requests that come this way have one answer, and it is a text.
            JobEvent::Accepted { .. } | JobEvent::ChoiceDone { .. } | JobEvent::Vectors(_) => {}
            JobEvent::Started => self.spool.running(job.number),
            JobEvent::Chunk(chunk) => {
                job.text.push_str(&chunk.text);
                if !job.reply.stream || chunk.text.is_empty() {
                    return;
                }
                let attempt = job.reply.attempt;
                for message in job.reply.chunks(&chunk.text, attempt, job.chunks_sent) {
                    job.chunks_sent = job.chunks_sent.saturating_add(1);
                    if job.safe {
                        job.chunk_lost |= !self.outbox.put(Letter::passing(message));
                    } else {
                        job.held.push(message);
                    }
                }
            }
            JobEvent::Done(done) => self.done(key, done, now),
            JobEvent::Failed(Fault {
                code: code @ (FaultCode::Unavailable | FaultCode::ModelUnavailable),
                message,
                ..
            }) => {
                // What is not safe yet is left with the broker, or becomes safe and is acknowledged.
                tracing::info!(
                    client = key.client,
                    id = key.id,
                    why = message,
                    "a request is left in the spool"
                );
                job.left = Some(match code {
                    FaultCode::ModelUnavailable => Left::ToLater,
                    _ => Left::ToTheNextStart,
                });
                if job.safe {
                    self.leave(key);
                }
            }
            JobEvent::Failed(fault) => {
                tracing::info!(
                    client = key.client,
                    id = key.id,
                    code = fault.code.name(),
                    "a request has no answer"
                );
                let refusal = Refusal::from(fault);
                let message = job.reply.fault(&refusal.fault, refusal.field.as_deref());
                let (number, code) = (job.number, refusal.fault.code);
                let kept = ReplyTo::kept(std::slice::from_ref(&message));
                job.answer = Some(vec![message]);
                if code == FaultCode::DeadlineExceeded {
                    job.expired = Some(refusal);
                }
                self.keep_answer(key, number, kept, Some(code));
            }
        }
    }

    /// Takes a job out that is safe and has been left.
    fn leave(&mut self, key: &Key) {
        let Some(job) = self.jobs.remove(key) else {
            return;
        };
        if job.left != Some(Left::ToLater) {
            return;
        }
        if job.chunks_sent > 0
            && let Some(header) = self.spool.get(job.number)
        {
            let left = self.spool.left(&header);
            self.spool.again(job.number, left, Box::new(drop));
        }
        self.backlog.push_back(job.number);
        self.has_left = true;
    }

    /// Whether something was left for later since that was asked last.
    pub(super) fn take_has_left(&mut self) -> bool {
        std::mem::take(&mut self.has_left)
    }

    fn done(&mut self, key: &Key, done: Done, now: Instant) {
        let Some(job) = self.jobs.get_mut(key) else {
            return;
        };
        // The frames that end a postcard answer carry no text, so an answer that lost a chunk is
        // told whole again, as another attempt.
        let again = job.chunk_lost && job.reply.format == Format::Postcard;
        let answer = Answer {
            text: &job.text,
            done,
            model: job.model.as_deref().unwrap_or(&self.model),
            attempt: job.reply.attempt.saturating_add(u16::from(again)),
            chunks_sent: if again { 0 } else { job.chunks_sent },
        };
        let messages = job.reply.answer(&answer, now);
        // The last message of JSON and text is the whole answer; frames have to be told again, chunks and all.
        let kept = match job.reply.format {
            Format::Postcard if answer.chunks_sent > 0 => {
                let whole = Answer {
                    attempt: answer.attempt.saturating_add(1),
                    chunks_sent: 0,
                    ..answer
                };
                ReplyTo::kept(&job.reply.answer(&whole, now))
            }
            Format::Json | Format::Text | Format::Postcard => ReplyTo::kept(&messages),
        };
        job.answer = Some(messages);
        let number = job.number;
        self.keep_answer(key, number, kept, None);
    }

    fn keep_answer(&mut self, key: &Key, number: u64, kept: Bytes, code: Option<FaultCode>) {
        let Some(serial) = self.jobs.get(key).map(|job| job.serial) else {
            return;
        };
        let (notes, name) = (self.notes.clone(), key.clone());
        let then = Box::new(move |outcome| drop(notes.send(Note::Answered(name, serial, outcome))));
        let fault = code.map(FaultCode::name);
        if !self.spool.answer(number, kept, fault, then) {
            // Dropped meanwhile.
            self.jobs.remove(key);
        }
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
                match *kept {
                    Ok(Some(kept)) => self.recover(number, kept, now),
                    Ok(None) => None,
                    Err(fault) if fault.code == FaultCode::Unavailable => {
                        self.read_failed = true;
                        self.backlog.push_back(number);
                        None
                    }
                    // No later reading reads it better.
                    Err(fault) => {
                        tracing::error!(number, %fault, "a record of the spool cannot be answered or delivered");
                        None
                    }
                }
            }
            Note::Repeated(number, kept) => {
                self.repeated(number, *kept, now);
                None
            }
        }
    }

    fn accepted(&mut self, key: &Key, outcome: Result<(), Fault>) {
        let Some(job) = self.jobs.get_mut(key) else {
            return;
        };
        match outcome {
            Ok(()) => {
                job.safe = true;
                self.acks.append(&mut job.acks);
                for message in job.held.drain(..) {
                    job.chunk_lost |= !self.outbox.put(Letter::passing(message));
                }
                if job.left.is_some() {
                    self.leave(key);
                }
            }
            Err(fault) => {
                let Some(job) = self.jobs.remove(key) else {
                    return;
                };
                self.telemetry.spool_unkept();
                let mut job = job;
                if job.again {
                    // The record has gone on to this attempt, and is not taken back: it is answered once the disk works, as
                    // of a later attempt than the refusal.
                    self.backlog.push_back(job.number);
                    job.reply.attempt = job.reply.attempt.saturating_sub(1);
                }
                let refusal = fault.into();
                if job.acks.is_empty() {
                    self.turn_away(&job.reply, &refusal, None);
                }
                for ack in job.acks {
                    self.turn_away(&job.reply, &refusal, Some(ack));
                }
            }
        }
    }

    /// An answer is safe, or has waited for that long enough: then it is published all the same. It is the same that a
    /// later attempt would give, and a machine may wait for it.
    fn answered(&mut self, key: &Key, outcome: Result<(), Fault>) {
        let Some(mut job) = self.jobs.remove(key) else {
            return;
        };
        let number = job.number;
        if let Err(fault) = outcome {
            tracing::error!(number, %fault, "an answer is published that is not safe on the disk");
        }
        // Nothing is left to wait for.
        self.acks.append(&mut job.acks);
        for message in job.answer.take().unwrap_or_default() {
            self.outbox.put(job.reply.last(message, number));
        }
        if let Some(refusal) = &job.expired {
            self.announce(Event::Expired, &job.reply, refusal);
        }
    }

    /// The broker has taken, or refused, a message.
    pub(super) fn confirmed(&mut self, packet_id: u16, refused: Option<&str>) {
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
                self.refused.entry(number).or_default().1 = Some(Instant::now());
            }
        }
        let Some(number) = left.record else {
            return;
        };
        // Set only if the broker has refused a part of what has just left.
        match self.refused.get_mut(&number) {
            Some((count, at @ Some(_))) => match REFUSED_PAUSES.get(*count) {
                Some(pause) => {
                    *count += 1;
                    *at = Instant::now().checked_add(*pause);
                }
                None => self.give_up(number, refused.unwrap_or("the broker refuses a part of it")),
            },
            _ => {
                self.refused.remove(&number);
                self.spool.delivered(number);
            }
        }
    }

    /// Tries no more to deliver an answer: it gives way to new requests as if it were delivered.
    fn give_up(&mut self, number: u64, why: &str) {
        tracing::error!(
            number,
            why,
            "an answer cannot be delivered and is given up; it stays in the spool for a while, to be asked for again"
        );
        self.refused.remove(&number);
        self.spool.delivered(number);
    }

    /// Tells the client and the event topic that a request is refused. Says what to do with its message.
    fn turn_away(&mut self, reply: &ReplyTo, refusal: &Refusal, ack: Option<AckToken>) -> Verdict {
        tracing::info!(
            client = reply.client,
            id = reply.id.as_str(),
            code = refusal.fault.code.name(),
            field = refusal.field,
            "a request is refused"
        );
        let message = reply.fault(&refusal.fault, refusal.field.as_deref());
        self.outbox.put(Letter::refusal(message, ack));
        self.announce(Event::Refused, reply, refusal);
        Verdict::Later
    }

    /// Tells the event topic how far batch work gives way by now.
    pub(super) fn throttled(&mut self, throttle: Throttle, cause: Option<Cause>) {
        let value = json!({ "batch": throttle.as_str(), "cause": cause.map(Cause::as_str) });
        self.tell(Event::Throttled, value.to_string().into());
    }

    /// Tells the event topic which model answers to a name by now.
    pub(super) fn swapped(&mut self, swapped: &Swapped) {
        let value = json!({
            "name": swapped.name,
            "from": swapped.from,
            "to": swapped.to,
            "rolled_back": swapped.rolled_back,
            "reason": swapped.why,
        });
        self.tell(Event::ModelSwapped, value.to_string().into());
    }

    fn announce(&mut self, event: Event, reply: &ReplyTo, refusal: &Refusal) {
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

#[cfg(test)]
mod tests;
