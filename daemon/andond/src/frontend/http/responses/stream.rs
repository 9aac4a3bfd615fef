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
use super::super::answer::{broken_off, event_stream};
use super::super::error::ApiError;
use super::shape::{Stage, last_event, part};
use super::{Keep, Reply, named};
use crate::fault::Fault;
use crate::worker::{Done, JobEvent, JobStream};

/// Waits until the engine begins, then streams. What fails before that still gets a status of its own.
pub(super) async fn streamed(
    service: Arc<Service>,
    mut job: JobStream,
    reply: Reply,
    keep: Option<Keep>,
) -> Result<Response<Body>, ApiError> {
    loop {
        match job.next().await {
            Some(JobEvent::Accepted { .. }) => {}
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
        text: String::new(),
        number: 0,
        ready: VecDeque::new(),
    };
    events.begin();
    let body = stream::unfold(events, |mut events| async move {
        events
            .next()
            .await
            .map(|bytes| (Ok::<Bytes, Infallible>(bytes), events))
    });
    Ok(event_stream(Body::from_stream(body)))
}

struct Events {
    service: Arc<Service>,
    job: JobStream,
    reply: Reply,
    keep: Option<Keep>,
    text: String,
    number: u64,
    ready: VecDeque<Bytes>,
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
            "output_index": 0,
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
        let item = json!({"output_index": 0, "item": self.reply.item("", None)});
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
                    self.text.push_str(&chunk.text);
                    let mut delta = self.about_part("delta", json!(chunk.text));
                    delta["logprobs"] = json!([]);
                    self.push("response.output_text.delta", delta);
                }
                JobEvent::Done(done) => self.end(&done),
                JobEvent::Failed(fault) => self.fail(&fault),
            }
        }
    }

    fn end(&mut self, done: &Done) {
        let mut text = self.about_part("text", json!(self.text));
        text["logprobs"] = json!([]);
        self.push("response.output_text.done", text);
        let whole = self.about_part("part", part(&self.text));
        self.push("response.content_part.done", whole);
        let item = self.reply.item(&self.text, Some(done.finish));
        self.push(
            "response.output_item.done",
            json!({"output_index": 0, "item": item}),
        );
        let text = &self.text;
        let object = self.reply.object(Stage::Over { text, done });
        if let Some(keep) = self.keep.take() {
            keep.keep(&self.service, &self.reply.id, object.clone(), text);
        }
        self.push(last_event(done.finish), json!({"response": object}));
    }

    fn fail(&mut self, fault: &Fault) {
        let text = &self.text;
        let object = self.reply.object(Stage::Failed { text, fault });
        self.push("response.failed", json!({"response": object}));
    }
}
