//! Requests that the worker has: from its taking one until the answer is published.
//!
//! Invariant: nothing of a job is heard of before its attempt is safe.

use std::time::Instant;

use andon_wire::topic::Event;
use bytes::Bytes;

use super::{Desk, Job, Left, Note, Prepared, Source, Verdict};
use crate::fault::{Fault, FaultCode};
use crate::frontend::mqtt::outbox::Letter;
use crate::frontend::mqtt::reply::{Answer, Format, ReplyTo};
use crate::frontend::mqtt::request::Refusal;
use crate::request::{Priority, Request};
use crate::spool::New;
use crate::spool::record::Key;
use crate::worker::{Done, JobEvent};

impl Desk {
    /// The worker has taken the request: it is kept. False if that is refused at once.
    pub(in crate::frontend::mqtt) fn accept(&mut self, prepared: Prepared) -> bool {
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
        if let Source::Again(number, _) = source {
            // What is left of the attempt before says nothing about this one.
            self.outbox.disown(number);
            self.refused.remove(&number);
        }
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
            Source::Again(number, before) => match self.spool.again(number, before, left, then) {
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
            again: matches!(source, Source::Again(..)),
        };
        self.jobs.insert(key, job);
        true
    }

    /// Which attempt at its answer a request is.
    pub(in crate::frontend::mqtt) fn attempt(&self, prepared: &Prepared) -> u16 {
        match prepared.source {
            Source::New => 1,
            Source::Again(_, before) => before.saturating_add(1),
            Source::Spool(number) => self.spool.get(number).map_or(1, |header| header.attempt),
        }
    }

    /// How urgent a request is, as far as that is known without its model.
    pub(super) fn priority(&self, request: &Request, reply: &ReplyTo) -> Priority {
        let task = || self.config.task.get(reply.task.as_deref()?)?.priority;
        request
            .priority
            .or_else(task)
            .unwrap_or(Priority::Interactive)
    }

    pub(super) fn next_serial(&mut self) -> u64 {
        self.serials = self.serials.wrapping_add(1);
        self.serials
    }

    /// Whether this is the job of that name.
    pub(in crate::frontend::mqtt) fn is_current(&self, key: &Key, serial: u64) -> bool {
        self.jobs.get(key).is_some_and(|job| job.serial == serial)
    }

    /// Nobody can take the request now, and it may wait until somebody can: it is kept, and left for later.
    pub(in crate::frontend::mqtt) fn accept_for_later(
        &mut self,
        prepared: Prepared,
        fault: Fault,
    ) -> Verdict {
        if matches!(prepared.source, Source::Spool(_)) {
            return self.refused(&prepared, fault);
        }
        let key = prepared.key.clone();
        if self.accept(prepared) {
            self.event(&key, JobEvent::Failed(fault), Instant::now());
        }
        Verdict::Later
    }

    /// The worker has not taken the request. Says what to do with its message.
    pub(in crate::frontend::mqtt) fn refused(
        &mut self,
        prepared: &Prepared,
        fault: Fault,
    ) -> Verdict {
        let Source::Spool(number) = prepared.source else {
            return self.turn_away(&prepared.reply, &fault.into(), prepared.ack);
        };
        match fault.code {
            // It waits on: for a place, or for a daemon that does not stop,
            FaultCode::Busy | FaultCode::Unavailable | FaultCode::DuplicateId => {
                self.put_back(number);
            }
            // or for its model, and that may take days.
            FaultCode::ModelUnavailable => {
                self.spool.rest(number);
                self.wait_on(number);
            }
            _ => self.end_without_job(number, &prepared.key, &prepared.reply, fault.into()),
        }
        Verdict::Later
    }

    /// The worker says something about a request.
    pub(in crate::frontend::mqtt) fn event(&mut self, key: &Key, event: JobEvent, now: Instant) {
        let Some(job) = self.jobs.get_mut(key) else {
            return;
        };
        match event {
            // Requests that come this way have one answer, and it is a text.
            JobEvent::Accepted { .. } | JobEvent::ChoiceDone { .. } | JobEvent::Vectors(_) => {}
            JobEvent::Started => self.spool.running(job.number),
            JobEvent::Restarted => {
                job.text.clear();
                if job.chunks_sent == 0 {
                    return;
                }
                job.held.clear();
                (job.chunks_sent, job.chunk_lost) = (0, false);
                // Kept, too, so that what comes of another attempt after the next start replaces this one.
                self.spool.anew(job.number);
                self.spool.running(job.number);
                job.reply.attempt = job.reply.attempt.saturating_add(1);
            }
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
            JobEvent::Done(done) => self.done(key, &done, now),
            JobEvent::Failed(Fault {
                code: code @ (FaultCode::Unavailable | FaultCode::ModelUnavailable),
                message,
                ..
            }) => {
                // What is not safe yet is left with the broker, or becomes safe and is acknowledged.
                tracing::info!(
                    client = key.client,
                    request_id = key.id,
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
                tracing::debug!(
                    client = key.client,
                    request_id = key.id,
                    fault = fault.code.name(),
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
        self.spool.rest(job.number);
        if job.left != Some(Left::ToLater) {
            return;
        }
        if job.chunks_sent > 0 {
            self.spool.anew(job.number);
        }
        self.wait_on(job.number);
        self.has_left = true;
    }

    /// Whether something was left for later since that was asked last.
    pub(in crate::frontend::mqtt) fn take_has_left(&mut self) -> bool {
        std::mem::take(&mut self.has_left)
    }

    fn done(&mut self, key: &Key, done: &Done, now: Instant) {
        let Some(job) = self.jobs.get_mut(key) else {
            return;
        };
        // The frames that end a postcard answer carry no text, so an answer that lost a chunk is
        // told whole again, as another attempt.
        let again = job.chunk_lost && job.reply.format == Format::Postcard;
        let answer = Answer {
            text: &job.text,
            done,
            model: (done.model.as_deref())
                .or(job.model.as_deref())
                .unwrap_or(&self.model),
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

    pub(super) fn keep_answer(
        &mut self,
        key: &Key,
        number: u64,
        kept: Bytes,
        code: Option<FaultCode>,
    ) {
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

    pub(super) fn accepted(&mut self, key: &Key, outcome: Result<(), Fault>) {
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
                    self.wait_on(job.number);
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
    pub(super) fn answered(&mut self, key: &Key, outcome: Result<(), Fault>) {
        let Some(mut job) = self.jobs.remove(key) else {
            return;
        };
        let number = job.number;
        if let Err(fault) = outcome {
            crate::event!(AnswerUnsafe, number, %fault, "an answer is published that is not safe on the disk");
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
}
