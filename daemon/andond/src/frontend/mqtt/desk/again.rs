//! Requests that come again: what was answered is given again, and nothing is computed twice.
//!
//! Invariant: of one record at most one answer is being read and one is on its way to a topic, however often it is asked for.

use std::time::Instant;

use super::{Desk, Note, RETRY_AFTER, Verdict};
use crate::fault::{Fault, FaultCode};
use crate::frontend::mqtt::message::{AckToken, Incoming};
use crate::frontend::mqtt::outbox::Letter;
use crate::frontend::mqtt::reply::ReplyTo;
use crate::spool::Kept;
use crate::spool::record::{Header, Key};

/// Whoever asked again for an answer that is being read.
#[derive(Debug)]
pub(super) struct Repeat {
    pub(super) reply: ReplyTo,
    /// Acknowledged once the answer has left.
    pub(super) acks: Vec<AckToken>,
}

/// What a request that comes again has a right to.
pub(super) enum Repetition {
    /// It waits for the answer that is being made.
    Waits(Verdict),
    /// The answer that was made.
    HasAnswer,
    /// Another attempt.
    HasFailed,
}

impl Desk {
    /// What a request that is in the spool and comes again has a right to.
    pub(super) fn known(
        &mut self,
        number: u64,
        header: &Header,
        key: &Key,
        reply: &mut ReplyTo,
        message: &Incoming,
    ) -> Repetition {
        if let Some(job) = self.jobs.get_mut(key) {
            self.telemetry.spool_repeated();
            tracing::info!(
                client = key.client,
                request_id = key.id,
                "a request came again while it is being answered"
            );
            // The answer goes to whoever asked last: the first asker gave up or is the same.
            reply.stream = job.reply.stream;
            reply.attempt = job.reply.attempt;
            job.reply = reply.clone();
            if job.safe {
                return Repetition::Waits(Verdict::Done);
            }
            job.acks.extend(message.ack);
            return Repetition::Waits(Verdict::Later);
        }
        if !header.state.is_answered() {
            tracing::info!(number, "a request came again that waits in the spool");
            self.telemetry.spool_repeated();
            return Repetition::Waits(Verdict::Done);
        }
        // The broker sends again what it does not know to be acknowledged; a client asks again because it wants an
        // answer in place of the error.
        if header.fault.is_some() && !message.repeated {
            return Repetition::HasFailed;
        }
        Repetition::HasAnswer
    }

    /// Gives an answer again, unless it is on its way.
    pub(super) fn repeat(&mut self, number: u64, key: &Key, reply: ReplyTo, ack: Option<AckToken>) {
        tracing::info!(
            client = key.client,
            request_id = key.id,
            "a request came again and gets its answer again"
        );
        self.telemetry.spool_repeated();
        if self.outbox.brings(number, &reply.topic, ack) {
            return;
        }
        if let Some((_, late)) = self.late.get_mut(&number) {
            late.acks.extend(ack);
            return;
        }
        if let Some(repeat) = self.repeats.get_mut(&number) {
            repeat.reply = reply;
            repeat.acks.extend(ack);
            return;
        }
        let acks = ack.into_iter().collect();
        self.repeats.insert(number, Repeat { reply, acks });
        // One of an earlier process goes out once, to whoever asks for it now.
        self.backlog.remove_answer(number);
        if !self.fetched.contains(&number) {
            self.read_again(number);
        }
    }

    pub(super) fn read_again(&self, number: u64) {
        let notes = self.notes.clone();
        self.spool.read(
            number,
            Box::new(move |kept| drop(notes.send(Note::Repeated(number, Box::new(kept))))),
        );
    }

    /// An answer that is to be given again was read. While the disk fails it waits, and its acknowledgements with it:
    /// an error in its place would be a second answer.
    pub(super) fn repeated(
        &mut self,
        number: u64,
        kept: Result<Option<Kept>, Fault>,
        now: Instant,
    ) {
        let unread = match &kept {
            Ok(Some(kept)) => kept.header.state.is_answered() && kept.answer.is_none(),
            Ok(None) => false,
            Err(fault) => fault.code == FaultCode::Unavailable,
        };
        if unread {
            self.read_failed = true;
            self.unread.push(number);
            return;
        }
        let Some(Repeat {
            mut reply,
            mut acks,
        }) = self.repeats.remove(&number)
        else {
            return;
        };
        let messages = match kept {
            // Another attempt was begun meanwhile, whose answer comes.
            Ok(Some(kept)) if !kept.header.state.is_answered() => {
                return self.acks.append(&mut acks);
            }
            Ok(Some(kept)) => {
                reply.attempt = kept.header.attempt;
                reply.again(kept.answer.as_deref().unwrap_or_default(), now)
            }
            Ok(None) => Vec::new(),
            Err(fault) => {
                if let Some(header) = self.spool.get(number) {
                    self.end_unreadable(number, &header, &fault.message);
                }
                Vec::new()
            }
        };
        if messages.is_empty() {
            let fault = Fault::new(
                FaultCode::Unavailable,
                "the answer was given and cannot be read any more",
            );
            let message = reply.fault(&fault.retry_after(RETRY_AFTER), None);
            let mut letter = Letter::passing(message);
            letter.acks.append(&mut acks);
            self.outbox.put(letter);
        }
        let last = messages.len();
        for (index, message) in (1..).zip(messages) {
            let mut letter = reply.last(message, number);
            letter.sent = true;
            if index == last {
                letter.acks.append(&mut acks);
            }
            self.outbox.put(letter);
        }
    }
}
