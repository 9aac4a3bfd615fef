//! A job's events as an HTTP reply: gathered into one object, or streamed as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use futures_util::stream;
use serde_json::Value;

use super::error::ApiError;
use super::shape::Shape;
use crate::fault::{Fault, FaultCode};
use crate::worker::{JobEvent, JobStream};

fn broken_off() -> Fault {
    // The mailbox always ends with a terminal event; this is what is left to say if it did not.
    Fault::new(FaultCode::Internal, "the answer broke off")
}

/// Waits for the end and answers with one object.
pub(super) async fn whole(
    mut job: JobStream,
    mut shape: Shape,
) -> Result<Response<Body>, ApiError> {
    let mut text = String::new();
    let mut tokens = Vec::new();
    while let Some(event) = job.next().await {
        match event {
            JobEvent::Accepted { .. } | JobEvent::Started => {}
            JobEvent::Chunk(chunk) => {
                text.push_str(&chunk.text);
                tokens.extend(chunk.logprobs);
            }
            JobEvent::Done(done) => {
                let body = shape.whole(&text, &tokens, &done).to_string();
                let mut response = Response::new(Body::from(body));
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                return Ok(response);
            }
            JobEvent::Failed(fault) => return Err(fault.into()),
        }
    }
    Err(broken_off().into())
}

/// Waits until the engine begins, then streams. What fails before that still gets a status of its own.
pub(super) async fn streamed(mut job: JobStream, shape: Shape) -> Result<Response<Body>, ApiError> {
    loop {
        match job.next().await {
            Some(JobEvent::Accepted { .. }) => {}
            Some(JobEvent::Failed(fault)) => return Err(fault.into()),
            Some(JobEvent::Started) => break,
            Some(JobEvent::Chunk(_) | JobEvent::Done(_)) | None => return Err(broken_off().into()),
        }
    }
    let events = Events::new(job, shape);
    let body = stream::unfold(events, |mut events| async move {
        events
            .next()
            .await
            .map(|bytes| (Ok::<Bytes, Infallible>(bytes), events))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// The frames of one stream, each one server-sent event.
struct Events {
    job: JobStream,
    shape: Shape,
    ready: VecDeque<Bytes>,
}

impl Events {
    fn new(job: JobStream, mut shape: Shape) -> Events {
        let ready = shape.first().as_ref().map(frame).into_iter().collect();
        Events { job, shape, ready }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            match self.job.next().await? {
                JobEvent::Accepted { .. } | JobEvent::Started => {}
                JobEvent::Chunk(chunk) => return Some(frame(&self.shape.piece(&chunk))),
                JobEvent::Done(done) => {
                    self.ready.push_back(frame(&self.shape.last(&done)));
                    self.ready
                        .extend(self.shape.usage(&done).as_ref().map(frame));
                    self.ready
                        .push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                }
                // The status is sent long since; clients look for an error object in the stream.
                JobEvent::Failed(fault) => return Some(frame(&ApiError::from(fault).body())),
            }
        }
    }
}

fn frame(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}
