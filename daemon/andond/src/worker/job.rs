//! One request on its way: what the worker says about it and where the front end reads that.
//!
//! The mailbox between them never blocks the worker and never grows past [`UNREAD_BYTES_MAX`]: text that
//! is not read in time is merged into the last unread chunk, and a reader that falls further behind
//! loses its job ([`FaultCode::SlowReader`]).

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use andon_engine::calls::CallFormat;
use andon_policy::route::Route;
use tokio::sync::Notify;

use super::Shared;
use crate::fault::{Fault, FaultCode};

/// Most bytes of chunks a front end may leave unread: minutes of text at a few hundred tokens a second.
pub const UNREAD_BYTES_MAX: usize = 256 * 1024;
/// Most unread chunks kept apart; more are merged.
pub const UNREAD_CHUNKS_MAX: usize = 64;

/// A token the engine chose, with its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token's bytes; not always whole UTF-8 characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens at this place, best first.
    pub top: Vec<TopLogprob>,
}

/// An alternative to a chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct TopLogprob {
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// A piece of the answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chunk {
    /// Counts chunks of this answer from 0, without gaps as the reader sees them.
    pub sequence: u32,
    /// Which of the answers it is a piece of, from 0.
    pub choice: u32,
    /// Whole UTF-8 characters; may be empty when only `logprobs` has something.
    pub text: String,
    /// The tokens behind it, if asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// The token limit or the end of the context did.
    Length,
    /// The client did; the chunks hold what was made until then. With nothing made, the job fails with
    /// [`FaultCode::Cancelled`] instead.
    Cancelled,
}

impl Finish {
    /// OpenAI's name, used everywhere.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => "cancelled",
        }
    }
}

/// Tokens spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were not computed again.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
    /// Tokens that were guessed and tried.
    pub guessed_tokens: usize,
    /// Those of them that were right: so many of the answer's took no pass of their own.
    pub accepted_tokens: usize,
}

/// Time spent, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From submission to the start of the computation.
    pub queue_us: u64,
    /// On the prompt.
    pub prefill_us: u64,
    /// On the answer.
    pub decode_us: u64,
    /// From submission to the first token.
    pub first_token_us: u64,
}

/// Vectors of a request's inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// Elements of each.
    pub dimensions: usize,
    /// The vectors, one after the other in the order of the inputs.
    pub values: Vec<f32>,
}

/// An answer's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens spent.
    pub usage: Usage,
    /// Time spent.
    pub timings: Timings,
    /// Where it was made.
    pub route: Route,
    /// Whether it waited for upstream to be there.
    pub late: bool,
    /// The model that made it, as its upstream calls it; `None` if it was made here.
    pub model: Option<Arc<str>>,
}

impl Done {
    /// The end of an answer that was made here.
    pub const fn new(finish: Finish, usage: Usage, timings: Timings) -> Done {
        Done {
            finish,
            usage,
            timings,
            route: Route::Local,
            late: false,
            model: None,
        }
    }

    /// Where the answer was made, as the compact protocol has it.
    pub fn origin(&self) -> andon_wire::Origin {
        match (self.route, self.late) {
            (Route::Local, _) => andon_wire::Origin::Local,
            (Route::Cloud, false) => andon_wire::Origin::Cloud,
            (Route::Cloud, true) => andon_wire::Origin::CloudLate,
            (Route::LocalFallback, false) => andon_wire::Origin::LocalFallback,
            (Route::LocalFallback, true) => andon_wire::Origin::LocalFallbackLate,
        }
    }
}

/// What becomes of a job, in this order: `Accepted`, `Started`, any number of `Chunk`s (and `ChoiceDone`s, if it has
/// several answers; and `Restarted`s), then exactly one of `Done` and `Failed`. `Failed` may come at any point.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEvent {
    /// Valid, rendered and in the queue.
    Accepted {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// How the answers write calls of tools, if they may have some.
        calls: Option<CallFormat>,
    },
    /// The engine works on it.
    Started,
    /// A piece of the answer.
    Chunk(Chunk),
    /// The pieces so far are void, and the answer begins again: who made them cannot go on. It does not happen to an answer that is
    /// streamed over HTTP, where nothing could say so.
    Restarted,
    /// One of several answers is complete; with one answer only `Done` says so.
    ChoiceDone {
        /// Which, from 0.
        choice: u32,
        /// Why it ended.
        finish: Finish,
    },
    /// What a request for embeddings gets in place of chunks, all at once before its `Done`. Its size is bounded by the
    /// number of inputs that a request may have.
    Vectors(Vectors),
    /// The answer is complete.
    Done(Done),
    /// It will not be completed.
    Failed(Fault),
}

impl JobEvent {
    /// Whether nothing follows.
    pub fn is_terminal(&self) -> bool {
        matches!(self, JobEvent::Done(_) | JobEvent::Failed(_))
    }
}

#[derive(Debug, Default)]
struct Letters {
    unread: VecDeque<JobEvent>,
    unread_bytes: usize,
    chunk_count: usize,
    next_sequence: u32,
    /// Whether it was said that the request is accepted, and whether it was read that the answer may have calls.
    accepted_sent: bool,
    calls_read: bool,
    terminal_sent: bool,
}

/// The place between the worker and one front end.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    letters: Mutex<Letters>,
    arrived: Notify,
    reader_gone: AtomicBool,
    cancelled: AtomicBool,
    /// Tells whoever writes that it should look whether the job is wanted.
    unwanted: Notify,
    /// Who is to look when the reader goes.
    worker: Mutex<Weak<Shared>>,
}

impl Mailbox {
    /// From now on this worker has the job.
    pub(super) fn goes_to(&self, worker: &Arc<Shared>) {
        *self.worker.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(worker);
    }

    /// For a job that waits to go to another worker: takes back what this one said of it that was not read. False if its reader
    /// knows already how this one's model calls functions.
    pub(super) fn take_back(&self) -> bool {
        let mut letters = self.lock();
        if letters.calls_read {
            return false;
        }
        let is_accepted = |event: &JobEvent| matches!(event, JobEvent::Accepted { .. });
        if let Some(at) = letters.unread.iter().position(is_accepted) {
            letters.unread.remove(at);
            letters.accepted_sent = false;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        // Every update below leaves the letters whole, so a poisoned lock still holds good ones.
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an event other than a chunk. Nothing is taken after a terminal one.
    pub(super) fn post(&self, event: JobEvent) {
        let mut letters = self.lock();
        if letters.terminal_sent {
            return;
        }
        if let JobEvent::Accepted { .. } = event {
            // Of a job that went from worker to worker, one word is enough.
            if std::mem::replace(&mut letters.accepted_sent, true) {
                return;
            }
        }
        letters.terminal_sent = event.is_terminal();
        letters.unread.push_back(event);
        drop(letters);
        self.arrived.notify_one();
    }

    /// Puts a piece of the answer.
    ///
    /// # Errors
    /// [`FaultCode::SlowReader`] if the reader has left too much unread; nothing was put.
    pub(super) fn post_chunk(
        &self,
        choice: u32,
        text: &str,
        logprobs: Vec<TokenLogprob>,
    ) -> Result<(), Fault> {
        if text.is_empty() && logprobs.is_empty() {
            return Ok(());
        }
        let bytes = text.len() + logprobs.iter().map(logprob_bytes).sum::<usize>();
        let mut letters = self.lock();
        if letters.terminal_sent {
            return Ok(());
        }
        if letters.unread_bytes + bytes > UNREAD_BYTES_MAX {
            return Err(Fault::new(
                FaultCode::SlowReader,
                "the answer was not read as fast as it was written",
            ));
        }
        letters.unread_bytes += bytes;
        let last = |event: &&mut JobEvent| matches!(event, JobEvent::Chunk(chunk) if chunk.choice == choice);
        // What stands before a new beginning is thrown away by whoever reads it.
        let of_this_attempt = |event: &&mut JobEvent| !matches!(event, JobEvent::Restarted);
        let is_full = letters.chunk_count >= UNREAD_CHUNKS_MAX;
        let mut unread = letters.unread.iter_mut().rev().take_while(of_this_attempt);
        if is_full && let Some(JobEvent::Chunk(last)) = unread.find(last) {
            last.text.push_str(text);
            last.logprobs.extend(logprobs);
        } else {
            let chunk = Chunk {
                sequence: letters.next_sequence,
                choice,
                text: text.to_owned(),
                logprobs,
            };
            letters.next_sequence = letters.next_sequence.wrapping_add(1);
            letters.chunk_count += 1;
            letters.unread.push_back(JobEvent::Chunk(chunk));
        }
        drop(letters);
        self.arrived.notify_one();
        Ok(())
    }

    /// Whether the job should be ended: the client said so, or nobody reads.
    pub(super) fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.reader_gone.load(Ordering::Relaxed)
    }

    /// Asks for the job to be ended.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.unwanted.notify_one();
    }

    fn take(&self) -> Option<JobEvent> {
        let mut letters = self.lock();
        let event = letters.unread.pop_front()?;
        if let JobEvent::Chunk(chunk) = &event {
            let bytes = chunk.text.len() + chunk.logprobs.iter().map(logprob_bytes).sum::<usize>();
            letters.unread_bytes = letters.unread_bytes.saturating_sub(bytes);
            letters.chunk_count = letters.chunk_count.saturating_sub(1);
        }
        letters.calls_read |= matches!(event, JobEvent::Accepted { calls: Some(_), .. });
        Some(event)
    }
}

fn logprob_bytes(token: &TokenLogprob) -> usize {
    let top: usize = token
        .top
        .iter()
        .map(|top| size_of::<TopLogprob>() + top.bytes.len())
        .sum();
    size_of::<TokenLogprob>() + token.bytes.len() + top
}

/// A submitted request's events. Dropping it cancels the job.
pub struct JobStream {
    mailbox: Arc<Mailbox>,
    ended: bool,
    on_start: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl fmt::Debug for JobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobStream")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl JobStream {
    pub(super) fn new(mailbox: Arc<Mailbox>) -> JobStream {
        JobStream {
            mailbox,
            ended: false,
            on_start: None,
        }
    }

    /// Has this done when the reader comes to [`JobEvent::Started`].
    pub fn on_start(&mut self, then: impl FnOnce() + Send + Sync + 'static) {
        self.on_start = Some(Box::new(then));
    }

    fn look(&mut self) -> Option<JobEvent> {
        let event = self.mailbox.take()?;
        self.ended = event.is_terminal();
        if matches!(event, JobEvent::Started)
            && let Some(then) = self.on_start.take()
        {
            then();
        }
        Some(event)
    }

    /// The next event; `None` after the terminal one. Cancel safe.
    pub async fn next(&mut self) -> Option<JobEvent> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(event) = self.look() {
                return Some(event);
            }
            self.mailbox.arrived.notified().await;
        }
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<JobEvent> {
        self.look()
    }
}

/// What is written for a [`JobStream`] by somebody who is no worker. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Feed {
    mailbox: Arc<Mailbox>,
}

impl Feed {
    /// A place to write to.
    pub fn new() -> Feed {
        Feed::default()
    }

    /// What is read of it; to be asked for once.
    pub fn stream(&self) -> JobStream {
        JobStream::new(Arc::clone(&self.mailbox))
    }

    /// Puts an event other than a chunk. Nothing is taken after a terminal one.
    pub fn post(&self, event: JobEvent) {
        self.mailbox.post(event);
    }

    /// Puts a piece of the answer.
    ///
    /// # Errors
    /// [`FaultCode::SlowReader`] if the reader has left too much unread; nothing was put.
    pub fn post_chunk(
        &self,
        choice: u32,
        text: &str,
        logprobs: Vec<TokenLogprob>,
    ) -> Result<(), Fault> {
        self.mailbox.post_chunk(choice, text, logprobs)
    }

    /// Asks for the job to be ended.
    pub fn cancel(&self) {
        self.mailbox.cancel();
    }

    /// Whether the job should be ended: the client said so, or nobody reads.
    pub fn is_unwanted(&self) -> bool {
        self.mailbox.cancelled()
    }

    /// Waits until that is so; for one task at a time. Cancel safe.
    pub async fn unwanted(&self) {
        while !self.is_unwanted() {
            self.mailbox.unwanted.notified().await;
        }
    }
}

impl Drop for JobStream {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.mailbox.reader_gone.store(true, Ordering::Relaxed);
        self.mailbox.unwanted.notify_one();
        let worker = self.mailbox.worker.lock();
        let worker = worker.unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(worker) = worker {
            worker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(mailbox: &Arc<Mailbox>) -> JobStream {
        JobStream::new(Arc::clone(mailbox))
    }

    fn failed() -> JobEvent {
        JobEvent::Failed(Fault::new(FaultCode::Internal, "x"))
    }

    #[test]
    fn what_is_not_read_in_time_is_merged_and_nothing_is_lost() {
        let mailbox = Arc::new(Mailbox::default());
        let mut stream = stream(&mailbox);
        for _ in 0..UNREAD_CHUNKS_MAX * 3 {
            mailbox
                .post_chunk(0, "ab", Vec::new())
                .expect("there is room");
        }
        let mut text = String::new();
        let mut count = 0;
        while let Some(JobEvent::Chunk(chunk)) = stream.try_next() {
            assert_eq!(chunk.sequence as usize, count);
            count += 1;
            text.push_str(&chunk.text);
        }
        assert_eq!(count, UNREAD_CHUNKS_MAX);
        assert_eq!(text, "ab".repeat(UNREAD_CHUNKS_MAX * 3));
    }

    #[test]
    fn answers_are_merged_each_with_itself() {
        let mailbox = Arc::new(Mailbox::default());
        let mut stream = stream(&mailbox);
        for turn in 0..UNREAD_CHUNKS_MAX as u32 * 3 {
            let choice = turn % 3;
            mailbox
                .post_chunk(choice, &choice.to_string(), Vec::new())
                .expect("there is room");
        }
        let mut texts = [const { String::new() }; 3];
        while let Some(JobEvent::Chunk(chunk)) = stream.try_next() {
            texts[chunk.choice as usize].push_str(&chunk.text);
        }
        assert_eq!(
            texts,
            ["0", "1", "2"].map(|text| text.repeat(UNREAD_CHUNKS_MAX))
        );
    }

    #[test]
    fn a_reader_too_far_behind_is_a_fault_until_it_has_read() {
        let mailbox = Arc::new(Mailbox::default());
        let mut stream = stream(&mailbox);
        let half = "x".repeat(UNREAD_BYTES_MAX / 2);
        mailbox
            .post_chunk(0, &half, Vec::new())
            .expect("there is room");
        mailbox
            .post_chunk(0, &half, Vec::new())
            .expect("there is room");
        let fault = mailbox
            .post_chunk(0, "x", Vec::new())
            .expect_err("it is full");
        assert_eq!(fault.code, FaultCode::SlowReader);
        assert!(stream.try_next().is_some());
        mailbox
            .post_chunk(0, "x", Vec::new())
            .expect("there is room again");
    }

    #[tokio::test]
    async fn exactly_one_terminal_event_comes_and_nothing_after_it() {
        let mailbox = Arc::new(Mailbox::default());
        let mut stream = stream(&mailbox);
        mailbox.post(JobEvent::Started);
        mailbox.post(failed());
        mailbox.post(failed());
        mailbox.post_chunk(0, "late", Vec::new()).expect("ignored");
        assert_eq!(stream.next().await, Some(JobEvent::Started));
        assert_eq!(stream.next().await, Some(failed()));
        assert_eq!(stream.next().await, None);
        assert_eq!(stream.try_next(), None);
    }

    #[test]
    fn it_is_said_once_that_a_request_is_accepted_by_whoever_has_it_last() {
        let accepted = |prompt_tokens| JobEvent::Accepted {
            prompt_tokens,
            calls: None,
        };
        let mailbox = Arc::new(Mailbox::default());
        let mut stream = stream(&mailbox);
        mailbox.post(accepted(1));
        assert!(mailbox.take_back());
        // It may take a while until the next has something to say.
        assert_eq!(stream.try_next(), None);
        mailbox.post(accepted(2));
        assert_eq!(stream.try_next(), Some(accepted(2)));
        assert!(mailbox.take_back());
        mailbox.post(accepted(3));
        assert_eq!(stream.try_next(), None);
    }

    #[test]
    fn dropping_the_stream_cancels_unless_the_end_was_read() {
        let mailbox = Arc::new(Mailbox::default());
        drop(stream(&mailbox));
        assert!(mailbox.cancelled());

        let mailbox = Arc::new(Mailbox::default());
        let mut read = stream(&mailbox);
        mailbox.post(failed());
        assert_eq!(read.try_next(), Some(failed()));
        drop(read);
        assert!(!mailbox.cancelled());
    }
}
