//! A response as typed server-sent events, numbered from 0.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::super::Service;
use super::super::answer::{Ending, broken_off, event_stream};
use super::super::calls::{Call, Part, Reading, gather};
use super::super::error::ApiError;
use super::shape::{Answer, Stage, call_item, call_item_id, last_event, part};
use super::{Keep, Reply, named};
use crate::fault::Fault;
use crate::worker::{Done, Finish, JobEvent, JobStream};

/// Waits until the engine begins, then streams. What fails before that still gets a status of its own.
pub(super) async fn streamed(
    service: Arc<Service>,
    mut job: JobStream,
    reply: Reply,
    keep: Option<Keep>,
) -> Result<Response<Body>, ApiError> {
    let mut reading = Reading::new(None, &reply.id, 0);
    loop {
        match job.next().await {
            Some(JobEvent::Accepted { calls, .. }) => {
                reading = Reading::new(calls.as_ref(), &reply.id, 0);
            }
            Some(JobEvent::Failed(fault)) => return Err(named(fault).into()),
            Some(JobEvent::Started) => break,
            Some(_) | None => return Err(broken_off().into()),
        }
    }
    let mut events = Events {
        service,
        job,
        reply,
        keep,
        reading,
        answer: Answer::default(),
        open: Open::Nothing,
        items: 0,
        number: 0,
        ready: VecDeque::new(),
        ending: Ending::default(),
    };
    let ending = events.ending.clone();
    events.begin();
    let body = stream::unfold(events, |mut events| async move {
        events
            .next()
            .await
            .map(|bytes| (Ok::<Bytes, Infallible>(bytes), events))
    });
    Ok(event_stream(Body::from_stream(body), ending))
}

/// The item that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Nothing,
    Text,
    Call,
}

struct Events {
    service: Arc<Service>,
    job: JobStream,
    reply: Reply,
    keep: Option<Keep>,
    reading: Reading,
    answer: Answer,
    open: Open,
    /// Items before the one that is open.
    items: usize,
    number: u64,
    ready: VecDeque<Bytes>,
    ending: Ending,
}

impl Events {
    fn push(&mut self, kind: &str, mut event: Value) {
        if let Value::Object(event) = &mut event {
            event.insert("type".to_owned(), json!(kind));
            event.insert("sequence_number".to_owned(), json!(self.number));
        }
        self.number += 1;
        self.ready
            .push_back(Bytes::from(format!("event: {kind}\ndata: {event}\n\n")));
    }

    /// An event about the answer's one part.
    fn about_part(&self, name: &str, value: Value) -> Value {
        let mut event = json!({
            "item_id": self.reply.item_id,
            "output_index": self.items,
            "content_index": 0,
        });
        if let Value::Object(event) = &mut event {
            event.insert(name.to_owned(), value);
        }
        event
    }

    fn begin(&mut self) {
        let begun = json!({"response": self.reply.object(Stage::Begun)});
        self.push("response.created", begun.clone());
        self.push("response.in_progress", begun);
        if !self.reading.reads_calls() {
            self.open_text();
        }
    }

    fn open_text(&mut self) {
        self.open = Open::Text;
        let item = json!({"output_index": self.items, "item": self.reply.item("", None)});
        self.push("response.output_item.added", item);
        let added = self.about_part("part", part(""));
        self.push("response.content_part.added", added);
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            match self.job.next().await? {
                JobEvent::Accepted { .. }
                | JobEvent::Started
                | JobEvent::ChoiceDone { .. }
                | JobEvent::Vectors(_) => {}
                JobEvent::Chunk(chunk) => {
                    let parts = self.reading.push(&chunk.text);
                    self.take(parts);
                }
                JobEvent::Restarted => self.fail(&broken_off()),
                JobEvent::Done(done) => self.end(&done),
                JobEvent::Failed(fault) => self.fail(&fault),
            }
        }
    }

    fn take(&mut self, parts: Vec<Part>) {
        for part in parts {
            match &part {
                Part::Text(text) => {
                    if self.open == Open::Nothing {
                        self.open_text();
                    }
                    let mut delta = self.about_part("delta", json!(text));
                    delta["logprobs"] = json!([]);
                    self.push("response.output_text.delta", delta);
                }
                Part::Begin { id, name, .. } => {
                    self.close(Finish::Stop);
                    self.open = Open::Call;
                    let call = Call {
                        id: id.clone(),
                        name: name.clone(),
                        ..Call::default()
                    };
                    let item = call_item(&call, "in_progress");
                    let added = json!({"output_index": self.items, "item": item});
                    self.push("response.output_item.added", added);
                }
                Part::Arguments { text, .. } => {
                    if let Some(call) = self.answer.calls.last() {
                        let delta = json!({
                            "item_id": call_item_id(call),
                            "output_index": self.items,
                            "delta": text,
                        });
                        self.push("response.function_call_arguments.delta", delta);
                    }
                }
                Part::End { .. } => {}
            }
            let is_end = matches!(part, Part::End { .. });
            gather(vec![part], &mut self.answer.text, &mut self.answer.calls);
            if is_end {
                self.close(Finish::Stop);
            }
        }
    }

    /// Ends the item that is open.
    fn close(&mut self, finish: Finish) {
        let done = match std::mem::replace(&mut self.open, Open::Nothing) {
            Open::Nothing => return,
            Open::Text => {
                let said = self.answer.text.clone();
                let mut text = self.about_part("text", json!(said));
                text["logprobs"] = json!([]);
                self.push("response.output_text.done", text);
                let whole = self.about_part("part", part(&said));
                self.push("response.content_part.done", whole);
                self.reply.item(&said, Some(finish))
            }
            Open::Call => {
                let Some(call) = self.answer.calls.last().cloned() else {
                    return;
                };
                let status = if call.complete {
                    "completed"
                } else {
                    "incomplete"
                };
                let whole = json!({
                    "item_id": call_item_id(&call),
                    "output_index": self.items,
                    "name": call.name,
                    "arguments": call.arguments,
                });
                self.push("response.function_call_arguments.done", whole);
                call_item(&call, status)
            }
        };
        let item = json!({"output_index": self.items, "item": done});
        self.push("response.output_item.done", item);
        self.items += 1;
    }

    fn end(&mut self, done: &Done) {
        let parts = self.reading.finish();
        self.take(parts);
        if self.open == Open::Nothing && self.items == 0 {
            self.open_text();
        }
        self.close(done.finish);
        let answer = &self.answer;
        let object = self.reply.object(Stage::Over { answer, done });
        if let Some(keep) = self.keep.take() {
            keep.keep(&self.service, &self.reply.id, object.to_string(), answer);
        }
        self.push(last_event(done.finish), json!({"response": object}));
        self.ending.set(Ok(()));
    }

    fn fail(&mut self, fault: &Fault) {
        let answer = &self.answer;
        let object = self.reply.object(Stage::Failed { answer, fault });
        self.push("response.failed", json!({"response": object}));
        self.ending.set(Err(fault.code));
    }
}
