//! From the worker's words to messages: chunks, answers, errors and events.
//!
//! An answer comes in the format of its request. JSON messages carry `type` (`chunk`, `answer`, `error`);
//! postcard messages are the frames of `andon-wire` without their length, which MQTT has of its own; text
//! messages are the bare text, with the rest in User Properties.

use std::time::Instant;

use andon_wire::limits::{CHUNK_TEXT_BYTES_MAX, FAULT_MESSAGE_BYTES_MAX, SERVER_FRAME_BYTES_MAX};
use andon_wire::{HEADER_BYTES, ModelName, RequestId, ServerFrame};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::message::{Outgoing, Properties};
use super::outbox::{Letter, Substitutes};
use crate::fault::{Fault, FaultCode};
use crate::worker::{Done, Finish};

/// The form of a request and of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// JSON.
    Json,
    /// Frames of `andon-wire`.
    Postcard,
    /// The bare text.
    Text,
}

impl Format {
    /// The Content Type.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Postcard => "application/postcard",
            Format::Text => "text/plain",
        }
    }
}

/// Where an answer goes and what it looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplyTo {
    /// The topic.
    pub(super) topic: String,
    /// The request's Correlation Data.
    pub(super) correlation: Option<Bytes>,
    /// The format.
    pub(super) format: Format,
    /// Whether the request had properties. Who sends none reads none: most likely it speaks 3.1.1, and
    /// there are brokers that fail on passing properties on to such a client.
    pub(super) with_properties: bool,
    /// Who asked.
    pub(super) client: String,
    /// The task, if one was asked.
    pub(super) task: Option<String>,
    /// The request's id.
    pub(super) id: RequestId,
    /// Whether chunks are wanted.
    pub(super) stream: bool,
    /// Which attempt at an answer this is, from 1.
    pub(super) attempt: u16,
    /// When the answer becomes worthless.
    pub(super) deadline: Option<Instant>,
}

/// A message of an answer, kept.
#[derive(Debug, Serialize, Deserialize)]
struct KeptMessage {
    payload: Vec<u8>,
    user: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    /// The text.
    pub(super) text: &'a str,
    /// The end of the job.
    pub(super) done: &'a Done,
    /// The model that answered.
    pub(super) model: &'a str,
    /// Which attempt this is, from 1.
    pub(super) attempt: u16,
    /// Chunks of this attempt that went out before.
    pub(super) chunks_sent: u32,
}

impl ReplyTo {
    /// One message with this payload.
    fn message(&self, payload: impl Into<Bytes>, kind: &str, sequence: Option<u32>) -> Outgoing {
        let mut user = Vec::new();
        if self.format == Format::Text {
            user.push(("type".to_owned(), kind.to_owned()));
            user.push(("id".to_owned(), self.id.as_str().to_owned()));
            user.push(("attempt".to_owned(), self.attempt.to_string()));
            if let Some(sequence) = sequence {
                user.push(("sequence".to_owned(), sequence.to_string()));
            }
        }
        Outgoing {
            topic: self.topic.clone(),
            payload: payload.into(),
            retain: false,
            confirmed: true,
            properties: Properties {
                correlation: self.correlation.clone(),
                content_type: self
                    .with_properties
                    .then(|| self.format.content_type().to_owned()),
                user,
                ..Properties::default()
            },
        }
    }

    /// The messages of a piece of the answer, the first with number `sequence`.
    pub(super) fn chunks(&self, text: &str, attempt: u16, sequence: u32) -> Vec<Outgoing> {
        match self.format {
            Format::Json => {
                let payload = json!({
                    "type": "chunk",
                    "id": self.id.as_str(),
                    "attempt": attempt,
                    "sequence": sequence,
                    "text": text,
                });
                vec![self.message(payload.to_string(), "chunk", Some(sequence))]
            }
            Format::Text => vec![self.message(text.to_owned(), "chunk", Some(sequence))],
            Format::Postcard => pieces(text, CHUNK_TEXT_BYTES_MAX)
                .zip(sequence..)
                .map(|(text, sequence)| {
                    let frame = ServerFrame::Chunk(andon_wire::Chunk {
                        id: self.id.clone(),
                        attempt,
                        sequence,
                        text,
                    });
                    self.message(payload(&frame), "chunk", Some(sequence))
                })
                .collect(),
        }
    }

    /// The messages that end an answer; the last of them says that it is complete.
    pub(super) fn answer(&self, answer: &Answer<'_>, now: Instant) -> Vec<Outgoing> {
        let mut messages = match self.format {
            Format::Json => vec![self.message(
                self.answer_json(answer).to_string(),
                "answer",
                Some(answer.chunks_sent),
            )],
            Format::Text => {
                let text = answer.text.to_owned();
                let mut message = self.message(text, "answer", Some(answer.chunks_sent));
                let mut say = |key: &str, value: &str| {
                    let user = &mut message.properties.user;
                    user.push((key.to_owned(), value.to_owned()));
                };
                say("origin", answer.done.route.as_str());
                if answer.done.late {
                    say("late", "true");
                }
                vec![message]
            }
            Format::Postcard => {
                // Without chunks before it, the text comes now; the frame that ends an answer has none.
                let mut messages = if answer.chunks_sent == 0 {
                    self.chunks(answer.text, answer.attempt, 0)
                } else {
                    Vec::new()
                };
                let sent = u32::try_from(messages.len()).unwrap_or(u32::MAX);
                let frame = self.done_frame(answer, answer.chunks_sent.saturating_add(sent));
                messages.push(self.message(payload(&frame), "answer", None));
                messages
            }
        };
        self.expire(&mut messages, now);
        messages
    }

    /// The message that ends a request without an answer.
    pub(super) fn fault(&self, fault: &Fault, field: Option<&str>) -> Outgoing {
        let payload: Bytes = match self.format {
            Format::Json => {
                let mut error = error_json(fault, field);
                error["type"] = "error".into();
                error["id"] = self.id.as_str().into();
                error["attempt"] = self.attempt.into();
                error["origin"] = "local".into();
                error.to_string().into()
            }
            Format::Text => fault.to_string().into(),
            Format::Postcard => {
                let message = cut(&fault.message, FAULT_MESSAGE_BYTES_MAX);
                let frame = ServerFrame::Error(andon_wire::Fault {
                    id: Some(self.id.clone()),
                    code: wire_code(fault.code),
                    message,
                    retry_after_ms: fault
                        .retry_after
                        .map(|after| u32::try_from(after.as_millis()).unwrap_or(u32::MAX)),
                });
                payload(&frame)
            }
        };
        let mut message = self.message(payload, "error", None);
        if self.format == Format::Text {
            message
                .properties
                .user
                .push(("code".to_owned(), fault.code.name().to_owned()));
        }
        message
    }

    /// The last messages of an answer as they are kept: what does not follow from the request.
    pub(super) fn kept(messages: &[Outgoing]) -> Bytes {
        let messages = messages.iter().map(|message| KeptMessage {
            payload: message.payload.to_vec(),
            user: message.properties.user.clone(),
        });
        let messages: Vec<KeptMessage> = messages.collect();
        postcard::to_stdvec(&messages)
            .map(Bytes::from)
            .unwrap_or_default()
    }

    /// The messages of an answer that was kept; none if it cannot be read.
    pub(super) fn again(&self, kept: &[u8], now: Instant) -> Vec<Outgoing> {
        let kept: Vec<KeptMessage> = postcard::from_bytes(kept).unwrap_or_default();
        let again = kept.into_iter().map(|kept| {
            let mut message = self.message(kept.payload, "answer", None);
            message.properties.user = kept.user;
            message
        });
        let mut messages: Vec<Outgoing> = again.collect();
        self.expire(&mut messages, now);
        messages
    }

    /// The letter for a last message of the request with this number.
    pub(super) fn last(&self, message: Outgoing, record: u64) -> Letter {
        let too_large = self.fault(
            &Fault::new(
                FaultCode::TooLarge,
                "the answer is larger than the broker takes; ask for fewer tokens",
            ),
            None,
        );
        let late = self.deadline.map(|deadline| {
            let fault = Fault::new(
                FaultCode::DeadlineExceeded,
                "the answer could not be delivered before its deadline",
            );
            (deadline, self.fault(&fault, None))
        });
        Letter {
            message,
            record: Some(record),
            substitutes: Some(Box::new(Substitutes { too_large, late })),
            acks: Vec::new(),
            sent: false,
        }
    }

    fn answer_json(&self, answer: &Answer<'_>) -> Value {
        let Done {
            finish,
            usage,
            timings,
            route,
            late,
            ..
        } = answer.done;
        let mut value = json!({
            "type": "answer",
            "id": self.id.as_str(),
            "attempt": answer.attempt,
            "sequence": answer.chunks_sent,
            "answer": answer.text,
            "finish": finish.name(),
            "model": answer.model,
            "origin": route.as_str(),
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
                "guessed_tokens": usage.guessed_tokens,
                "accepted_tokens": usage.accepted_tokens,
            },
            "timings": {
                "queue_us": timings.queue_us,
                "prefill_us": timings.prefill_us,
                "decode_us": timings.decode_us,
                "first_token_us": timings.first_token_us,
            },
        });
        if let Some(task) = &self.task {
            value["task"] = task.as_str().into();
        }
        if *late {
            value["late"] = true.into();
        }
        value
    }

    fn done_frame(&self, answer: &Answer<'_>, chunks: u32) -> ServerFrame<'static> {
        let Done {
            finish,
            usage,
            timings,
            ..
        } = answer.done;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        // A model's name that does not fit is cut rather than the answer lost.
        let model = ModelName::new(cut(answer.model, ModelName::BYTES_MAX))
            .or_else(|_| ModelName::new("unnamed"))
            .unwrap_or_else(|_| unreachable!("a plain word is a name"));
        ServerFrame::Done(andon_wire::Done {
            id: self.id.clone(),
            attempt: answer.attempt,
            chunks,
            finish: match *finish {
                Finish::Stop => andon_wire::Finish::Stop,
                Finish::Length => andon_wire::Finish::Length,
                Finish::Cancelled => andon_wire::Finish::Cancelled,
            },
            model,
            usage: andon_wire::Usage {
                prompt_tokens: count(usage.prompt_tokens),
                cached_tokens: count(usage.cached_tokens),
                completion_tokens: count(usage.completion_tokens),
            },
            timings: andon_wire::Timings {
                queue_us: timings.queue_us,
                prefill_us: timings.prefill_us,
                decode_us: timings.decode_us,
                first_token_us: timings.first_token_us,
            },
            origin: answer.done.origin(),
        })
    }

    /// The broker should not keep an answer past its deadline either.
    fn expire(&self, messages: &mut [Outgoing], now: Instant) {
        let Some(deadline) = self.deadline.filter(|_| self.with_properties) else {
            return;
        };
        let left_s = deadline
            .saturating_duration_since(now)
            .as_secs()
            .saturating_add(1);
        for message in messages {
            message.properties.expiry_s = Some(u32::try_from(left_s).unwrap_or(u32::MAX));
        }
    }
}

/// The payloads of an answer that was kept.
pub(super) fn payloads(kept: &[u8]) -> Vec<Vec<u8>> {
    let kept: Vec<KeptMessage> = postcard::from_bytes(kept).unwrap_or_default();
    kept.into_iter().map(|kept| kept.payload).collect()
}

/// The payload of an event about a request.
pub(super) fn event(reply: &ReplyTo, fault: &Fault, field: Option<&str>) -> Bytes {
    let mut value = error_json(fault, field);
    value["client"] = reply.client.as_str().into();
    value["id"] = reply.id.as_str().into();
    if let Some(task) = &reply.task {
        value["task"] = task.as_str().into();
    }
    value.to_string().into()
}

fn error_json(fault: &Fault, field: Option<&str>) -> Value {
    let mut error = json!({
        "code": fault.code.name(),
        "message": fault.message,
    });
    if let Some(field) = field {
        error["field"] = field.into();
    }
    if let Some(after) = fault.retry_after {
        error["retry_after_ms"] = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).into();
    }
    json!({ "error": error })
}

fn payload(frame: &ServerFrame<'_>) -> Bytes {
    let mut buffer = [0; HEADER_BYTES + SERVER_FRAME_BYTES_MAX];
    let frame = frame.encode(&mut buffer).and_then(|bytes| {
        bytes
            .get(HEADER_BYTES..)
            .ok_or(andon_wire::EncodeError::BufferFull { bytes: 0 })
    });
    match frame {
        Ok(payload) => Bytes::copy_from_slice(payload),
        Err(error) => {
            // Chunks, messages and names are cut to the protocol's bounds before.
            crate::event!(Internal, %error, "an answer could not be encoded");
            Bytes::new()
        }
    }
}

fn wire_code(code: FaultCode) -> andon_wire::ErrorCode {
    use andon_wire::ErrorCode;
    match code {
        FaultCode::InvalidRequest => ErrorCode::InvalidRequest,
        FaultCode::TooLarge => ErrorCode::TooLarge,
        FaultCode::UnknownModel => ErrorCode::UnknownModel,
        FaultCode::UnknownTask => ErrorCode::UnknownTask,
        FaultCode::Unsupported => ErrorCode::Unsupported,
        FaultCode::ContextFull => ErrorCode::ContextFull,
        FaultCode::Denied => ErrorCode::Denied,
        FaultCode::Busy | FaultCode::SlowReader => ErrorCode::Busy,
        FaultCode::DuplicateId => ErrorCode::DuplicateId,
        FaultCode::DeadlineExceeded => ErrorCode::DeadlineExceeded,
        FaultCode::Cancelled => ErrorCode::Cancelled,
        FaultCode::Unavailable | FaultCode::ModelUnavailable | FaultCode::UpstreamUnavailable => {
            ErrorCode::Unavailable
        }
        FaultCode::Internal => ErrorCode::Internal,
    }
}

/// The longest beginning of `text` of at most so many bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = text.floor_char_boundary(bytes_max);
    text.get(..end).unwrap_or(text)
}

/// `text` in pieces of whole characters of at most so many bytes.
fn pieces(text: &str, bytes_max: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let piece = cut(rest, bytes_max);
        rest = rest.get(piece.len()..).unwrap_or_default();
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::worker::{Timings, Usage};

    fn reply(format: Format) -> ReplyTo {
        ReplyTo {
            topic: "a/response/plc/7".to_owned(),
            correlation: Some(Bytes::from_static(b"\x01")),
            format,
            with_properties: true,
            client: "plc".to_owned(),
            task: None,
            id: RequestId::new("7").unwrap(),
            stream: false,
            attempt: 1,
            deadline: None,
        }
    }

    static DONE: Done = Done::new(
        Finish::Stop,
        Usage {
            prompt_tokens: 3,
            cached_tokens: 1,
            completion_tokens: 2,
            guessed_tokens: 1,
            accepted_tokens: 1,
        },
        Timings {
            queue_us: 0,
            prefill_us: 0,
            decode_us: 0,
            first_token_us: 0,
        },
    );

    fn answer(text: &str) -> Answer<'_> {
        Answer {
            text,
            done: &DONE,
            model: "tiny",
            attempt: 1,
            chunks_sent: 0,
        }
    }

    fn frames(messages: &[Outgoing]) -> Vec<ServerFrame<'_>> {
        messages
            .iter()
            .map(|message| ServerFrame::decode(&message.payload).unwrap())
            .collect()
    }

    #[test]
    fn a_json_answer_says_everything() {
        let messages = reply(Format::Json).answer(&answer("Jam \"now\""), Instant::now());
        let [message] = messages.as_slice() else {
            panic!("one message");
        };
        let value: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(value["type"], "answer");
        assert_eq!(value["id"], "7");
        assert_eq!(value["answer"], "Jam \"now\"");
        assert_eq!(value["finish"], "stop");
        assert_eq!(value["origin"], "local");
        assert_eq!(value["model"], "tiny");
        assert_eq!(value["usage"]["completion_tokens"], 2);
        assert_eq!(
            message.properties.correlation.as_deref(),
            Some(b"\x01".as_slice())
        );
        assert_eq!(
            message.properties.content_type.as_deref(),
            Some("application/json")
        );
        assert!(message.confirmed && !message.retain);
    }

    #[test]
    fn an_answer_to_a_request_without_properties_has_none() {
        let reply = ReplyTo {
            correlation: None,
            with_properties: false,
            deadline: Some(Instant::now()),
            ..reply(Format::Json)
        };
        for message in reply.answer(&answer("Jam"), Instant::now()) {
            assert_eq!(message.properties, Properties::default());
        }
    }

    #[test]
    fn a_postcard_answer_is_chunks_and_an_end_that_counts_them() {
        let text = "é".repeat(CHUNK_TEXT_BYTES_MAX / 2) + "end";
        let messages = reply(Format::Postcard).answer(&answer(&text), Instant::now());
        let frames = frames(&messages);
        let mut joined = String::new();
        for (index, frame) in frames.iter().enumerate() {
            match frame {
                ServerFrame::Chunk(chunk) => {
                    assert_eq!(usize::try_from(chunk.sequence).unwrap(), index);
                    joined.push_str(chunk.text);
                }
                ServerFrame::Done(done) => {
                    assert_eq!(index, frames.len() - 1);
                    assert_eq!(done.chunks, 2);
                    assert_eq!(done.model.as_str(), "tiny");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(joined, text);
    }

    #[test]
    fn a_fault_names_code_and_field_in_every_format() {
        let fault = Fault::new(FaultCode::Busy, "full").retry_after(Duration::from_secs(2));
        let json = reply(Format::Json).fault(&fault, Some("id"));
        let value: Value = serde_json::from_slice(&json.payload).unwrap();
        assert_eq!(value["type"], "error");
        assert_eq!(value["error"]["code"], "busy");
        assert_eq!(value["error"]["field"], "id");
        assert_eq!(value["error"]["retry_after_ms"], 2000);
        let frame = reply(Format::Postcard).fault(&fault, None);
        let Ok(ServerFrame::Error(wire)) = ServerFrame::decode(&frame.payload) else {
            panic!("an error frame");
        };
        assert_eq!(
            (wire.code, wire.retry_after_ms),
            (andon_wire::ErrorCode::Busy, Some(2000))
        );
        let text = reply(Format::Text).fault(&fault, None);
        assert!(
            text.properties
                .user
                .contains(&("code".to_owned(), "busy".to_owned()))
        );
    }

    #[test]
    fn a_text_answer_is_the_bare_text() {
        let messages = reply(Format::Text).answer(&answer("Clear the jam."), Instant::now());
        assert_eq!(messages[0].payload, "Clear the jam.");
        let attempt = ("attempt".to_owned(), "1".to_owned());
        assert!(messages[0].properties.user.contains(&attempt));
        assert!(
            messages[0]
                .properties
                .user
                .contains(&("id".to_owned(), "7".to_owned()))
        );
    }

    #[test]
    fn answers_expire_with_their_deadline() {
        let now = Instant::now();
        let mut reply = reply(Format::Json);
        reply.deadline = Some(now + Duration::from_millis(2500));
        let messages = reply.answer(&answer("x"), now);
        assert_eq!(messages[0].properties.expiry_s, Some(3));
    }

    #[test]
    fn pieces_keep_characters_whole() {
        let joined: Vec<&str> = pieces("aéé", 2).collect();
        assert_eq!(joined, ["a", "é", "é"]);
    }
}
