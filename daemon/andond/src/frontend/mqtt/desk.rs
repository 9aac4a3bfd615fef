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
        match self.recent.find(&key, fingerprint, now) {
            Known::New => {}
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
        let open = self.jobs.len().saturating_add(self.outbox.answers());
        if open >= self.config.mqtt.requests_max {
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
            JobEvent::Accepted { .. } | JobEvent::Started => {}
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
mod tests {
    use bytes::Bytes;
    use serde_json::Value;

    use super::*;
    use crate::frontend::mqtt::message::Version;
    use crate::frontend::mqtt::outbox::Gate;
    use crate::worker::{Chunk, Finish, Timings, Usage};

    fn small(requests_max: usize) -> Desk {
        let mut config = Config::default();
        config.gateway.name = Some("gw1".to_owned());
        config.mqtt.requests_max = requests_max;
        config.mqtt.fleet_group = Some("hall".to_owned());
        Desk::new(Arc::new(config), Arc::new(Telemetry::new())).unwrap()
    }

    fn message(topic: &str, payload: &str) -> Incoming {
        Incoming {
            topic: topic.to_owned(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            retain: false,
            properties: Properties::default(),
            ack: None,
        }
    }

    fn ask(desk: &mut Desk, id: &str, prompt: &str) -> Verdict {
        let payload = format!(r#"{{"id":"{id}","prompt":"{prompt}"}}"#);
        desk.receive(&message("andon/gw1/request/plc", &payload), Instant::now())
    }

    fn accept(desk: &mut Desk, verdict: Verdict) -> Key {
        let Verdict::Submit(prepared) = verdict else {
            panic!("{verdict:?}");
        };
        let key = prepared.key.clone();
        desk.accepted(*prepared);
        key
    }

    fn finish(desk: &mut Desk, key: &Key, text: &str) {
        let now = Instant::now();
        let chunk = Chunk {
            text: text.to_owned(),
            ..Chunk::default()
        };
        desk.event(key, JobEvent::Chunk(chunk), now);
        let done = Done {
            finish: Finish::Stop,
            usage: Usage::default(),
            timings: Timings::default(),
        };
        desk.event(key, JobEvent::Done(done), now);
    }

    fn sent(desk: &mut Desk) -> Vec<(String, Value)> {
        let gate = Gate {
            version: Version::V5,
            packet_bytes_max: 65_536,
            window: 1000,
        };
        let mut sent = Vec::new();
        desk.outbox.pump(gate, Instant::now(), |message| {
            sent.push((
                message.topic.clone(),
                serde_json::from_slice(&message.payload).unwrap(),
            ));
            true
        });
        for packet_id in 1..=1000 {
            desk.outbox.sent(packet_id);
            desk.outbox.confirmed(packet_id);
        }
        sent
    }

    #[test]
    fn a_request_is_submitted_and_answered_once() {
        let mut desk = small(4);
        let verdict = ask(&mut desk, "1", "hi");
        let key = accept(&mut desk, verdict);
        assert!(
            matches!(ask(&mut desk, "1", "hi"), Verdict::Done),
            "it runs already"
        );
        finish(&mut desk, &key, "hello");
        let answers = sent(&mut desk);
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].0, "andon/gw1/response/plc/1");
        assert_eq!(answers[0].1["answer"], "hello");
        assert!(
            matches!(ask(&mut desk, "1", "hi"), Verdict::Done),
            "it was answered already"
        );
        let again = sent(&mut desk);
        assert_eq!(again[0].1["answer"], "hello");
        assert_eq!(desk.unanswered(), 0);
    }

    #[test]
    fn an_id_with_other_contents_never_gets_the_old_answer() {
        let mut desk = small(4);
        let verdict = ask(&mut desk, "1", "hi");
        let key = accept(&mut desk, verdict);
        finish(&mut desk, &key, "hello");
        sent(&mut desk);
        assert!(matches!(ask(&mut desk, "1", "other"), Verdict::Done));
        let refused = sent(&mut desk);
        assert_eq!(refused[0].1["error"]["code"], "duplicate_id");
        assert_eq!(refused[1].0, "andon/gw1/event/refused");
    }

    #[test]
    fn correlation_data_may_repeat() {
        let mut desk = small(4);
        for text in ["a", "b"] {
            let mut incoming = message(
                "andon/gw1/request/plc",
                &format!(r#"{{"prompt":"{text}"}}"#),
            );
            incoming.properties.correlation = Some(Bytes::from_static(b"same"));
            let verdict = desk.receive(&incoming, Instant::now());
            let key = accept(&mut desk, verdict);
            finish(&mut desk, &key, text);
            assert_eq!(sent(&mut desk)[0].1["answer"], text);
        }
    }

    #[test]
    fn what_is_over_the_bound_is_refused_with_a_hint() {
        let mut desk = small(1);
        let verdict = ask(&mut desk, "1", "hi");
        let key = accept(&mut desk, verdict);
        assert!(matches!(ask(&mut desk, "2", "hi"), Verdict::Done));
        let refused = sent(&mut desk);
        assert_eq!(refused[0].1["error"]["code"], "busy");
        assert!(refused[0].1["error"]["retry_after_ms"].is_u64());
        finish(&mut desk, &key, "x");
        // An answer that the broker has not taken counts as well.
        assert!(matches!(ask(&mut desk, "2", "hi"), Verdict::Done));
        sent(&mut desk);
        assert!(matches!(ask(&mut desk, "2", "hi"), Verdict::Submit(_)));
    }

    #[test]
    fn a_refusal_by_the_worker_is_told_and_may_be_tried_again() {
        let mut desk = small(4);
        let Verdict::Submit(prepared) = ask(&mut desk, "1", "hi") else {
            panic!("submitted");
        };
        desk.refused(&prepared, Fault::new(FaultCode::Unavailable, "stopping"));
        let refused = sent(&mut desk);
        assert_eq!(refused[0].1["error"]["code"], "unavailable");
        assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Submit(_)));
    }

    #[test]
    fn chunks_are_sent_if_asked_for_and_the_answer_always() {
        let mut desk = small(4);
        let payload = r#"{"id":"1","prompt":"hi","stream":true}"#;
        let verdict = desk.receive(&message("andon/gw1/request/plc", payload), Instant::now());
        let key = accept(&mut desk, verdict);
        finish(&mut desk, &key, "hello");
        let messages = sent(&mut desk);
        let kinds: Vec<&str> = messages
            .iter()
            .filter_map(|(_, value)| value["type"].as_str())
            .collect();
        assert_eq!(kinds, ["chunk", "answer"]);
        assert_eq!(messages[1].1["sequence"], 1);
        assert_eq!(messages[1].1["answer"], "hello");
    }

    #[test]
    fn a_failure_is_told_and_a_passed_deadline_is_an_event_too() {
        let mut desk = small(4);
        let verdict = ask(&mut desk, "1", "hi");
        let key = accept(&mut desk, verdict);
        let fault = Fault::new(FaultCode::DeadlineExceeded, "too late");
        desk.event(&key, JobEvent::Failed(fault), Instant::now());
        let messages = sent(&mut desk);
        assert_eq!(messages[0].1["error"]["code"], "deadline_exceeded");
        assert_eq!(messages[1].0, "andon/gw1/event/expired");
        // It may be asked again: nothing was answered.
        assert!(matches!(ask(&mut desk, "1", "hi"), Verdict::Submit(_)));
    }

    #[test]
    fn only_a_clients_own_running_request_is_cancelled() {
        let mut desk = small(4);
        let verdict = ask(&mut desk, "1", "hi");
        let key = accept(&mut desk, verdict);
        let now = Instant::now();
        let cancel =
            |desk: &mut Desk, topic: &str, id: &str| desk.receive(&message(topic, id), now);
        assert!(matches!(
            cancel(&mut desk, "andon/gw1/cancel/other", "1"),
            Verdict::Done
        ));
        assert!(matches!(
            cancel(&mut desk, "andon/gw1/cancel/plc", "2"),
            Verdict::Done
        ));
        assert!(matches!(
            cancel(&mut desk, "andon/gw1/cancel/plc", "a/b"),
            Verdict::Done
        ));
        assert!(
            matches!(cancel(&mut desk, "andon/gw1/cancel/plc", r#"{"id":"1"}"#), Verdict::Cancel(found) if found == key)
        );
    }

    #[test]
    fn retained_and_foreign_messages_are_no_requests() {
        let mut desk = small(4);
        let mut retained = message("andon/gw1/request/plc", r#"{"prompt":"a"}"#);
        retained.retain = true;
        let now = Instant::now();
        assert!(matches!(desk.receive(&retained, now), Verdict::Done));
        for topic in [
            "",
            "x",
            "andon/gw1/request",
            "andon/gw1/request/a/b/c",
            "andon/gw1/status",
        ] {
            assert!(matches!(
                desk.receive(&message(topic, "{}"), now),
                Verdict::Done
            ));
        }
        assert!(sent(&mut desk).is_empty());
    }

    #[test]
    fn a_fleets_request_is_answered_under_the_fleets_topics() {
        let mut desk = small(4);
        assert_eq!(desk.filters()[2], "$share/hall/andon/fleet/hall/request/#");
        let verdict = desk.receive(
            &message("andon/fleet/hall/request/plc", r#"{"id":"1","prompt":"a"}"#),
            Instant::now(),
        );
        let key = accept(&mut desk, verdict);
        finish(&mut desk, &key, "x");
        assert_eq!(sent(&mut desk)[0].0, "andon/fleet/hall/response/plc/1");
    }
}
