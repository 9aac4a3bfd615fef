//! Jobs' events as one HTTP reply: gathered into one object, or streamed as server-sent events.
//!
//! A body with several prompts is several jobs, and each may have several answers: answer `c` of job `j` has the index
//! `j * n + c`. What fails in one job fails the reply; dropping the reply cancels every job.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use andon_engine::calls::CallFormat;
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use futures_util::stream::{self, SelectAll, Stream, StreamExt as _};
use serde_json::Value;

use super::calls::{Part, Reading, gather};
use super::error::ApiError;
use super::json_response;
use super::shape::{Answer, ROUTE_HEADER, Shape};
use crate::fault::{Fault, FaultCode};
use crate::worker::{Done, Finish, JobEvent, JobStream, TokenLogprob};

pub(super) fn broken_off() -> Fault {
    // The mailbox always ends with a terminal event; this is what is left to say if it did not.
    Fault::new(FaultCode::Internal, "the answer broke off")
}

/// How a streamed reply has ended, beside its bytes: an extension of the reply. Text of a model looks like any end.
#[derive(Debug, Clone, Default)]
pub(super) struct Ending(Arc<OnceLock<Result<(), FaultCode>>>);

impl Ending {
    /// Notes the end; the first counts.
    pub(super) fn set(&self, outcome: Result<(), FaultCode>) {
        let _ = self.0.set(outcome);
    }

    /// How it ended; without an end it broke off.
    pub(super) fn get(&self) -> Result<(), FaultCode> {
        self.0.get().copied().unwrap_or(Err(FaultCode::Internal))
    }
}

/// The events of several jobs, with the place of each job.
type Events = SelectAll<Pin<Box<dyn Stream<Item = (usize, JobEvent)> + Send>>>;

/// The jobs of one reply.
pub(super) struct Jobs {
    events: Events,
    /// Jobs that are not over.
    open: usize,
    /// Answers of each job.
    choices: usize,
    /// The text that the answers of each job begin with.
    echo: Vec<String>,
    /// What the jobs that are over took together.
    spent: Option<Done>,
    /// How their answers write calls, if they may have some.
    format: Option<CallFormat>,
}

impl Jobs {
    /// The jobs of a reply, each with `choices` answers that begin with the job's `echo`, if it has one.
    pub(super) fn new(jobs: Vec<JobStream>, choices: usize, echo: Vec<String>) -> Jobs {
        let open = jobs.len();
        let events = jobs.into_iter().enumerate().map(|(place, job)| {
            stream::unfold(job, move |mut job| async move {
                let event = job.next().await?;
                Some(((place, event), job))
            })
            .boxed()
        });
        Jobs {
            events: events.collect(),
            open,
            choices,
            echo,
            spent: None,
            format: None,
        }
    }

    async fn next(&mut self) -> Option<(usize, JobEvent)> {
        self.events.next().await
    }

    fn index(&self, job: usize, choice: u32) -> usize {
        let choice = usize::try_from(choice).unwrap_or(usize::MAX);
        job.saturating_mul(self.choices).saturating_add(choice)
    }

    /// A reading of each answer.
    fn readings(&self, id: &str) -> Vec<Reading> {
        let count = self.echo.len().saturating_mul(self.choices);
        let new = |index| Reading::new(self.format.as_ref(), id, index);
        (0..count).map(new).collect()
    }

    /// Notes the end of a job. Says what all took, if it was the last.
    fn done(&mut self, done: &Done) -> Option<Done> {
        self.open = self.open.saturating_sub(1);
        let spent = match self.spent.take() {
            None => done.clone(),
            Some(before) => together(before, done),
        };
        self.spent = Some(spent);
        self.spent.clone().filter(|_| self.open == 0)
    }
}

/// What two jobs took: tokens add up, and of times the longer is what the client waits for.
fn together(a: Done, b: &Done) -> Done {
    let mut sum = a;
    sum.usage.prompt_tokens += b.usage.prompt_tokens;
    sum.usage.cached_tokens += b.usage.cached_tokens;
    sum.usage.completion_tokens += b.usage.completion_tokens;
    sum.usage.guessed_tokens += b.usage.guessed_tokens;
    sum.usage.accepted_tokens += b.usage.accepted_tokens;
    sum.timings.queue_us = sum.timings.queue_us.max(b.timings.queue_us);
    sum.timings.prefill_us = sum.timings.prefill_us.max(b.timings.prefill_us);
    sum.timings.decode_us = sum.timings.decode_us.max(b.timings.decode_us);
    sum.timings.first_token_us = sum.timings.first_token_us.min(b.timings.first_token_us);
    sum
}

impl Answer {
    fn take(&mut self, parts: Vec<Part>) {
        gather(parts, &mut self.text, &mut self.calls);
    }

    fn end(&mut self, reading: &mut Reading, finish: Finish) {
        self.take(reading.finish());
        self.finish = Some(reading.finish_name(finish));
    }
}

/// Waits for the end and answers with one object.
pub(super) async fn whole(mut jobs: Jobs, mut shape: Shape) -> Result<Response<Body>, ApiError> {
    let mut answers: Vec<Answer> = Vec::new();
    answers.resize_with(
        jobs.echo.len().saturating_mul(jobs.choices),
        Answer::default,
    );
    let mut readings = jobs.readings(shape.id());
    while let Some((job, event)) = jobs.next().await {
        match event {
            JobEvent::Accepted { calls, .. } => {
                if calls.is_some() {
                    jobs.format = calls;
                    readings = jobs.readings(shape.id());
                }
            }
            // No request for embeddings is answered here.
            JobEvent::Started | JobEvent::Vectors(_) => {}
            JobEvent::Restarted => {
                let (first, count) = (jobs.index(job, 0), jobs.choices);
                for answer in answers.iter_mut().skip(first).take(count) {
                    *answer = Answer::default();
                }
                let fresh = jobs.readings(shape.id()).into_iter().skip(first);
                for (reading, fresh) in readings.iter_mut().skip(first).take(count).zip(fresh) {
                    *reading = fresh;
                }
            }
            JobEvent::Chunk(chunk) => {
                let index = jobs.index(job, chunk.choice);
                if let Some((answer, reading)) = answers.get_mut(index).zip(readings.get_mut(index))
                {
                    answer.take(reading.push(&chunk.text));
                    answer.tokens.extend(chunk.logprobs);
                }
            }
            JobEvent::ChoiceDone { choice, finish } => {
                let index = jobs.index(job, choice);
                if let Some((answer, reading)) = answers.get_mut(index).zip(readings.get_mut(index))
                {
                    answer.end(reading, finish);
                }
            }
            JobEvent::Done(done) => {
                let first = jobs.index(job, 0);
                let answers_of = answers.iter_mut().zip(&mut readings);
                for (answer, reading) in answers_of.skip(first).take(jobs.choices) {
                    if answer.finish.is_none() {
                        answer.end(reading, done.finish);
                    }
                }
                if let Some(spent) = jobs.done(&done) {
                    // Not before: a prompt that is refused was not multiplied.
                    for (answers, echo) in answers.chunks_mut(jobs.choices.max(1)).zip(&jobs.echo) {
                        for answer in answers {
                            answer.text.insert_str(0, echo);
                        }
                    }
                    return Ok(with_route(
                        json_response(&shape.whole(&answers, &spent)),
                        &spent,
                    ));
                }
            }
            JobEvent::Failed(fault) => return Err(fault.into()),
        }
    }
    Err(broken_off().into())
}

/// A reply that says in its head where the answer was made.
pub(super) fn with_route(mut response: Response<Body>, done: &Done) -> Response<Body> {
    let route = HeaderValue::from_static(done.route.as_str());
    response.headers_mut().insert(ROUTE_HEADER, route);
    response
}

/// Waits until the engine begins, then streams. What fails before that still gets a status of its own.
pub(super) async fn streamed(mut jobs: Jobs, shape: Shape) -> Result<Response<Body>, ApiError> {
    loop {
        match jobs.next().await {
            Some((_, JobEvent::Accepted { calls, .. })) => jobs.format = jobs.format.or(calls),
            Some((_, JobEvent::Failed(fault))) => return Err(fault.into()),
            Some((_, JobEvent::Started)) => break,
            Some(_) | None => return Err(broken_off().into()),
        }
    }
    let frames = Frames::new(jobs, shape);
    let ending = frames.ending.clone();
    let body = stream::unfold(frames, |mut frames| async move {
        frames
            .next()
            .await
            .map(|bytes| (Ok::<Bytes, Infallible>(bytes), frames))
    });
    Ok(event_stream(Body::from_stream(body), ending))
}

/// A reply of server-sent events.
pub(super) fn event_stream(body: Body, ending: Ending) -> Response<Body> {
    let mut response = Response::new(body);
    response.extensions_mut().insert(ending);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The frames of one stream, each one server-sent event.
struct Frames {
    jobs: Jobs,
    shape: Shape,
    readings: Vec<Reading>,
    ready: VecDeque<Bytes>,
    over: bool,
    ending: Ending,
}

impl Frames {
    fn new(jobs: Jobs, mut shape: Shape) -> Frames {
        let mut ready = VecDeque::new();
        let echoes = jobs
            .echo
            .iter()
            .flat_map(|echo| std::iter::repeat_n(echo, jobs.choices));
        for (index, echo) in echoes.enumerate() {
            ready.extend(shape.first(index).as_ref().map(frame));
            if !echo.is_empty() {
                ready.push_back(frame(&shape.piece(index, echo, &[])));
            }
        }
        Frames {
            readings: jobs.readings(shape.id()),
            jobs,
            shape,
            ready,
            over: false,
            ending: Ending::default(),
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if self.over {
                return None;
            }
            let (job, event) = self.jobs.next().await?;
            match event {
                JobEvent::Accepted { .. } | JobEvent::Started | JobEvent::Vectors(_) => {}
                JobEvent::Restarted => {
                    self.over = true;
                    self.ending.set(Err(FaultCode::Internal));
                    return Some(frame(&ApiError::from(broken_off()).body()));
                }
                JobEvent::Chunk(chunk) => {
                    let index = self.jobs.index(job, chunk.choice);
                    self.take(index, &chunk.text, &chunk.logprobs);
                }
                JobEvent::ChoiceDone { choice, finish } => {
                    let index = self.jobs.index(job, choice);
                    self.end(index, finish, None);
                }
                JobEvent::Done(done) => self.job_done(job, &done),
                // The status is sent long since; clients look for an error object in the stream.
                JobEvent::Failed(fault) => {
                    self.over = true;
                    self.ending.set(Err(fault.code));
                    return Some(frame(&ApiError::from(fault).body()));
                }
            }
        }
    }

    /// A piece of an answer.
    fn take(&mut self, index: usize, text: &str, tokens: &[TokenLogprob]) {
        let Some(reading) = self.readings.get_mut(index) else {
            return;
        };
        if !reading.reads_calls() {
            let piece = self.shape.piece(index, text, tokens);
            return self.ready.push_back(frame(&piece));
        }
        let parts = reading.push(text);
        if !tokens.is_empty() {
            let piece = self.shape.piece(index, "", tokens);
            self.ready.push_back(frame(&piece));
        }
        self.put(index, parts);
    }

    fn put(&mut self, index: usize, parts: Vec<Part>) {
        for part in parts {
            let chunk = match &part {
                Part::Text(text) => Some(self.shape.piece(index, text, &[])),
                other => self.shape.call_piece(index, other),
            };
            self.ready.extend(chunk.as_ref().map(frame));
        }
    }

    /// The end of an answer.
    fn end(&mut self, index: usize, finish: Finish, done: Option<&Done>) {
        let Some(reading) = self.readings.get_mut(index) else {
            return;
        };
        let parts = reading.finish();
        let finish = reading.finish_name(finish);
        self.put(index, parts);
        let last = self.shape.last(index, finish, done);
        self.ready.push_back(frame(&last));
    }

    fn job_done(&mut self, job: usize, done: &Done) {
        // Several answers have said one by one why they ended, unless the client ended them.
        if self.jobs.choices == 1 {
            self.end(job, done.finish, Some(done));
        } else if done.finish == Finish::Cancelled {
            self.over = true;
            self.ending.set(Err(FaultCode::Cancelled));
            return;
        }
        if let Some(spent) = self.jobs.done(done) {
            self.ready
                .extend(self.shape.usage(&spent).as_ref().map(frame));
            self.ready
                .push_back(Bytes::from_static(b"data: [DONE]\n\n"));
            self.over = true;
            self.ending.set(Ok(()));
        }
    }
}

fn frame(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_ended_as_its_maker_says_and_else_broke_off() {
        let ending = Ending::default();
        assert_eq!(ending.get(), Err(FaultCode::Internal));
        ending.clone().set(Err(FaultCode::Unavailable));
        ending.set(Ok(()));
        assert_eq!(ending.get(), Err(FaultCode::Unavailable));
    }
}
