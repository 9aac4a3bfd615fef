//! The front end's mind: what a message means and what follows from it.
//!
//! For each request the order is: validate, accept, acknowledge, answer. The desk validates and answers; its
//! owner accepts (hands the request to the worker) and acknowledges in between. It knows no socket, no
//! worker and no clock: messages, the worker's events and the time come in, letters for the
//! [`Outbox`] come out.
//!
//! Invariant: every message is acknowledged, whatever it says, unless it came in while the daemon stops;
//! every request gets exactly one last message, be it an answer or an error; a request that runs or was
//! answered lately is not submitted again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_wire::GatewayName;
use andon_wire::topic::{self, Door, Event, Topics};

use super::message::{Incoming, Outgoing, Properties};
use super::outbox::{Letter, Outbox};
use super::recent::{Bounds, Key, Known, Recent};
use super::reply::{self, Answer, Format, ReplyTo};
use super::request::{self, IdSource, Ids, Place, Refusal};
use crate::config::Config;
use crate::fault::{Fault, FaultCode};
use crate::request::{Origin, Request};
use crate::telemetry::Telemetry;
use crate::worker::{Done, JobEvent};

/// When a refused client may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What to do with a message.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Submit this, tell the desk how that went, then acknowledge.
    Submit(Box<Prepared>),
    /// Cancel this running request, then acknowledge.
    Cancel(Key),
    /// Only acknowledge: the desk has done the rest.
    Done,
}

/// A request that is valid, new and within the bounds.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The request.
    pub(super) request: Request,
    /// Its name.
    pub(super) key: Key,
    reply: ReplyTo,
    fingerprint: u64,
}

#[derive(Debug)]
struct Job {
    reply: ReplyTo,
    text: String,
    chunks_sent: u32,
    chunk_lost: bool,
}

/// The desk.
#[derive(Debug)]
pub(super) struct Desk {
    config: Arc<Config>,
    telemetry: Arc<Telemetry>,
    topics: Topics,
    fleet: Option<Topics>,
    ids: Ids,
    recent: Recent,
    jobs: HashMap<Key, Job>,
    model: String,
    /// What waits for the broker.
    pub(super) outbox: Outbox,
}

impl Desk {
    /// A desk with nothing on it.
    ///
    /// # Errors
    /// A base topic or fleet group that is none.
    pub(super) fn new(
        config: Arc<Config>,
        telemetry: Arc<Telemetry>,
    ) -> Result<Desk, topic::TopicError> {
        let topics = Topics::with_base(&config.mqtt.base(&config.gateway))?;
        let fleet = match &config.mqtt.fleet_group {
            Some(group) => Some(Topics::with_base(&format!("andon/fleet/{group}"))?),
            None => None,
        };
        let recent = Recent::new(Bounds {
            count_max: config.mqtt.remember_max,
            bytes_max: config.mqtt.remember_bytes_max,
            age_max: config.mqtt.remember(),
        });
        let outbox = Outbox::new(config.mqtt.queue_max);
        Ok(Desk {
            config,
            telemetry,
            topics,
            fleet,
            ids: Ids::default(),
            recent,
            jobs: HashMap::new(),
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

    /// The model whose name answers carry.
    pub(super) fn set_model(&mut self, name: &str) {
        if self.model != name {
            name.clone_into(&mut self.model);
        }
    }

    /// How many accepted requests have no answer yet.
    pub(super) fn unanswered(&self) -> usize {
        self.jobs.len()
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
            topic::Incoming::Request { client, task, door } => {
                let topics = match (door, &self.fleet) {
                    (Door::Fleet, Some(fleet)) => fleet,
                    _ => &self.topics,
                };
                let place = Place {
                    topics,
                    own: &self.topics,
                    client,
                    task,
                    allowed: &self.config.mqtt.response_topics,
                    limits: &self.config.limits,
                    payload_bytes_max: usize::try_from(self.config.mqtt.packet_bytes_max)
                        .unwrap_or(usize::MAX),
                };
                let (reply, outcome) = request::read(message, &place, &mut self.ids, now);
                match outcome {
                    Ok(parsed) => self.consider(message, reply, parsed, now),
                    Err(refusal) => {
                        self.telemetry.malformed(Origin::Mqtt);
                        self.turn_away(&reply, &refusal);
                        Verdict::Done
                    }
                }
            }
        }
    }

    fn consider(
        &mut self,
        message: &Incoming,
        mut reply: ReplyTo,
        parsed: request::Parsed,
        now: Instant,
    ) -> Verdict {
        let request::Parsed {
            mut request,
            id_source,
        } = parsed;
        let mut key = Key {
            client: request.client.clone(),
            id: request.id.clone(),
        };
        let fingerprint = self
            .recent
            .fingerprint(reply.task.as_deref(), &message.payload);
        let open = self.jobs.len().saturating_add(self.outbox.answers());
        let full = open >= self.config.mqtt.requests_max;
        match self.recent.find(&key, fingerprint, now) {
            Known::New => {}
            // Answers are never dropped, so one that is given again takes a place like any other.
            Known::Answered(_) if full => {}
            Known::Running => {
                tracing::info!(
                    client = key.client,
                    id = key.id,
                    "a request came again while it is being answered"
                );
                // The answer goes to whoever asked last: the first asker gave up or is the same.
                if let Some(job) = self.jobs.get_mut(&key) {
                    reply.stream = job.reply.stream;
                    job.reply = reply;
                }
                return Verdict::Done;
            }
            Known::Answered(payloads) => {
                tracing::info!(
                    client = key.client,
                    id = key.id,
                    "a request came again and gets its answer again"
                );
                for payload in payloads {
                    let letter = reply.last(reply.again(payload));
                    self.outbox.put(letter);
                }
                return Verdict::Done;
            }
            Known::Other if id_source == IdSource::Payload => {
                let refusal = Refusal {
                    fault: Fault::new(
                        FaultCode::DuplicateId,
                        "this id was used for another request a short while ago",
                    ),
                    field: Some("id".to_owned()),
                };
                self.turn_away(&reply, &refusal);
                return Verdict::Done;
            }
            Known::Other => {
                // Correlation Data need not be unique; the client did not mean it as a name.
                let id = self.ids.make();
                id.as_str().clone_into(&mut request.id);
                id.as_str().clone_into(&mut key.id);
                reply.id = id;
            }
        }
        if full {
            let fault = Fault::new(
                FaultCode::Busy,
                format!("{open} requests have no answer yet"),
            );
            self.turn_away(&reply, &fault.retry_after(RETRY_AFTER).into());
            return Verdict::Done;
        }
        Verdict::Submit(Box::new(Prepared {
            request,
            key,
            reply,
            fingerprint,
        }))
    }

    fn cancel(&mut self, client: &str, payload: &[u8]) -> Verdict {
        let Some(id) = request::cancel_id(payload) else {
            tracing::warn!(client, "a cancel names no id");
            self.telemetry.malformed(Origin::Mqtt);
            return Verdict::Done;
        };
        let key = Key {
            client: client.to_owned(),
            id: id.as_str().to_owned(),
        };
        if self.recent.is_running(&key) {
            return Verdict::Cancel(key);
        }
        tracing::info!(
            client,
            id = key.id,
            "a cancel names a request that is not running"
        );
        Verdict::Done
    }

    /// The worker has taken the request.
    pub(super) fn accepted(&mut self, prepared: Prepared) {
        let job = Job {
            reply: prepared.reply,
            text: String::new(),
            chunks_sent: 0,
            chunk_lost: false,
        };
        self.recent
            .started(prepared.key.clone(), prepared.fingerprint);
        self.jobs.insert(prepared.key, job);
    }

    /// The worker has not taken the request.
    pub(super) fn refused(&mut self, prepared: &Prepared, fault: Fault) {
        self.turn_away(&prepared.reply, &fault.into());
    }

    /// The worker says something about a request.
    pub(super) fn event(&mut self, key: &Key, event: JobEvent, now: Instant) {
        match event {
            // Requests that come this way have one answer, and it is a text.
            JobEvent::Accepted { .. }
            | JobEvent::Started
            | JobEvent::ChoiceDone { .. }
            | JobEvent::Vectors(_) => {}
            JobEvent::Chunk(chunk) => {
                let Some(job) = self.jobs.get_mut(key) else {
                    return;
                };
                job.text.push_str(&chunk.text);
                if !job.reply.stream || chunk.text.is_empty() {
                    return;
                }
                for message in job.reply.chunks(&chunk.text, 1, job.chunks_sent) {
                    job.chunks_sent = job.chunks_sent.saturating_add(1);
                    job.chunk_lost |= !self.outbox.put(Letter::Passing(message));
                }
            }
            JobEvent::Done(done) => self.done(key, done, now),
            JobEvent::Failed(fault) => {
                let Some(job) = self.jobs.remove(key) else {
                    return;
                };
                self.recent.dropped(key);
                tracing::info!(
                    client = key.client,
                    id = key.id,
                    code = fault.code.name(),
                    "a request has no answer"
                );
                let refusal = Refusal::from(fault);
                let message = job.reply.fault(&refusal.fault, refusal.field.as_deref());
                self.outbox.put(job.reply.last(message));
                if refusal.fault.code == FaultCode::DeadlineExceeded {
                    self.announce(Event::Expired, &job.reply, &refusal);
                }
            }
        }
    }

    fn done(&mut self, key: &Key, done: Done, now: Instant) {
        let Some(job) = self.jobs.remove(key) else {
            return;
        };
        // The frames that end a postcard answer carry no text, so an answer that lost a chunk is
        // told whole again, as another attempt.
        let again = job.chunk_lost && job.reply.format == Format::Postcard;
        let answer = Answer {
            text: &job.text,
            done,
            model: &self.model,
            attempt: if again { 2 } else { 1 },
            chunks_sent: if again { 0 } else { job.chunks_sent },
        };
        for message in job.reply.answer(&answer, now) {
            self.outbox.put(job.reply.last(message));
        }
        // The last message of JSON and text is the whole answer; frames have to be told again, chunks and all.
        let whole = match job.reply.format {
            Format::Json | Format::Text => answer,
            Format::Postcard => Answer {
                attempt: answer.attempt.saturating_add(1),
                chunks_sent: 0,
                ..answer
            },
        };
        let payloads = job
            .reply
            .answer(&whole, now)
            .into_iter()
            .map(|message| message.payload);
        self.recent.answered(key.clone(), payloads.collect(), now);
    }

    /// Tells the client and the event topic that a request is refused.
    fn turn_away(&mut self, reply: &ReplyTo, refusal: &Refusal) {
        tracing::info!(
            client = reply.client,
            id = reply.id.as_str(),
            code = refusal.fault.code.name(),
            field = refusal.field,
            "a request is refused"
        );
        let message = reply.fault(&refusal.fault, refusal.field.as_deref());
        self.outbox.put(Letter::Passing(message));
        self.announce(Event::Refused, reply, refusal);
    }

    fn announce(&mut self, event: Event, reply: &ReplyTo, refusal: &Refusal) {
        let message = Outgoing {
            topic: self.topics.event(event).as_str().to_owned(),
            payload: reply::event(reply, &refusal.fault, refusal.field.as_deref()),
            retain: false,
            confirmed: false,
            // None: listeners of any version, behind any broker.
            properties: Properties::default(),
        };
        self.outbox.put(Letter::Passing(message));
    }
}

#[cfg(test)]
mod tests;
