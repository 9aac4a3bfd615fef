//! What front ends do with the spool: none of it waits for the disk.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::book::Filter;
use super::error::SpoolError;
use super::record::{CRASHES_MAX, Door, Due, Header, Key, State};
use super::store::{self, Change};
use super::writer::{Kept, Then, unkept};
use super::{New, Order, Spool};
use crate::config::spool::{Durable, SpoolConfig};
use crate::fault::{Fault, FaultCode};
use crate::request::Priority;

/// What is known of a request in memory, in bytes: names of at most 300 bytes, numbers and their place in two maps.
const BOOK_BYTES: u64 = 512;

/// When a client may ask again that found the spool full.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Bytes of requests and answers that may wait in memory for the disk before new requests are refused.
const WAITING_BYTES_MAX: u64 = 4 << 20;

impl Spool {
    /// Most bytes of memory that it takes: the store's cache, what is known of each request, and what waits for the disk, on its
    /// way into the store twice. Without a file, all that is kept.
    pub fn memory_bytes_max(config: &SpoolConfig) -> u64 {
        let book = (config.requests_max as u64).saturating_mul(BOOK_BYTES);
        let book = book.saturating_add(2 * WAITING_BYTES_MAX);
        match config.durable {
            Durable::On => book.saturating_add(store::CACHE_BYTES as u64),
            Durable::Off => book.saturating_add(config.bytes_max),
        }
    }

    /// Whether what is kept survives the daemon.
    pub fn is_durable(&self) -> bool {
        self.inner.durable
    }

    /// Why nothing can be kept now, if that has been so for a while.
    pub fn failing(&self) -> Option<Fault> {
        let (failing, busy) = {
            let queue = self.inner.queue();
            (queue.failing, queue.busy)
        };
        let since = failing.into_iter().chain(busy).min()?;
        (since.elapsed() >= self.inner.patience()).then(|| {
            unkept(&SpoolError::Storage(
                "the disk fails, or takes very long; see the journal".to_owned(),
            ))
        })
    }

    /// Whether it holds as much as it may but for alarms, all of it unanswered or undelivered.
    pub fn is_full(&self) -> bool {
        let book = self.inner.book();
        book.room_for(1, Priority::Interactive).is_none()
    }

    /// The record of a name.
    pub fn find(&self, key: &Key) -> Option<(u64, Header)> {
        let book = self.inner.book();
        let (number, header) = book.find(key)?;
        Some((number, header.clone()))
    }

    /// The record of a number.
    pub fn get(&self, number: u64) -> Option<Header> {
        self.inner.book().get(number).cloned()
    }

    /// Every record that a filter takes, in the order of arrival.
    pub fn list(&self, filter: &Filter) -> Vec<(u64, Header)> {
        let book = self.inner.book();
        let taken = book
            .iter()
            .filter(|(number, header)| filter.takes(*number, header));
        taken
            .map(|(number, header)| (number, header.clone()))
            .collect()
    }

    /// How many records are in each state, and what they take.
    pub fn holds(&self) -> ([usize; State::ALL.len()], u64) {
        let book = self.inner.book();
        (book.counts(), book.bytes())
    }

    /// When the answer of a record is worthless.
    pub fn deadline(&self, header: &Header) -> Option<Instant> {
        Instant::now().checked_add(self.left(header)?)
    }

    /// What is left until the deadline of a record.
    pub fn left(&self, header: &Header) -> Option<Duration> {
        let due = header.due?;
        Some(Duration::from_millis(due.left_ms(&self.inner.clock.now())))
    }

    /// How long ago a record came and, if it is answered, was answered, as far as that is known.
    pub fn ages(&self, header: &Header) -> (Duration, Option<Duration>) {
        let now = self.inner.clock.now();
        let age = |since| Duration::from_millis(now.since(since));
        (age(&header.arrived), header.answered.as_ref().map(age))
    }

    /// Takes a request; `then` is called when it is safe, or if it cannot be kept and is forgotten. Says its number.
    ///
    /// # Errors
    /// The spool is full, has failed for a while, does not keep up, or has a record of that name.
    pub fn accept(&self, new: New, then: Then<()>) -> Result<u64, Fault> {
        if let Some(fault) = self.failing() {
            return Err(fault);
        }
        let now = self.inner.clock.now();
        let header = Header {
            key: new.key,
            task: new.task,
            priority: new.priority,
            fingerprint: new.fingerprint,
            state: State::Accepted,
            attempt: 1,
            seed: new.seed,
            arrived: now,
            due: new.left.map(|left| Due::new(left, now)),
            answered: None,
            delivered: None,
            fault: None,
            request_bytes: new.request.len() as u64,
            answer_bytes: 0,
            crashes: 0,
        };
        let mut book = self.inner.book();
        if book.find(&header.key).is_some() {
            return Err(Fault::new(
                FaultCode::DuplicateId,
                "a request of this name is kept already",
            ));
        }
        let waiting = self.inner.queue().bytes();
        if waiting > 0 && waiting.saturating_add(header.request_bytes) > WAITING_BYTES_MAX {
            let fault = Fault::new(FaultCode::Busy, "the disk does not keep up with what comes");
            return Err(fault.retry_after(RETRY_AFTER));
        }
        let Some(gone) = book.room_for(header.bytes(), header.priority) else {
            let fault = Fault::new(
                FaultCode::Busy,
                "the spool is full of requests without answers, or answers without readers",
            );
            return Err(fault.retry_after(RETRY_AFTER));
        };
        for number in &gone {
            book.remove(*number);
        }
        let number = book.put(header.clone());
        // The order on the disk is that of the book.
        for number in gone {
            self.inner
                .push(Change::Drop(number), State::Delivered, None, None);
        }
        let put = Change::Put {
            number,
            header: Box::new(header),
            request: Some(new.request),
            answer: None,
        };
        self.inner
            .push(put, State::Accepted, Some(then), Some(number));
        drop(book);
        Ok(number)
    }

    /// Begins another attempt at a request of which `attempt` was the last, by a client or an operator who asks for one; `then` is
    /// called when that is safe. Returns what the record now says; `None` if it is gone, or another attempt was begun.
    pub fn again(
        &self,
        number: u64,
        attempt: u16,
        left: Option<Duration>,
        then: Then<()>,
    ) -> Option<Header> {
        let now = self.inner.clock.now();
        let mut book = self.inner.book();
        let header = book.change(number, |header| {
            if header.attempt != attempt {
                return false;
            }
            header.state = State::Accepted;
            header.attempt = header.attempt.saturating_add(1);
            header.arrived = now;
            header.due = left.map(|left| Due::new(left, now));
            header.answered = None;
            header.delivered = None;
            header.fault = None;
            header.answer_bytes = 0;
            // Whoever asks for it gets one.
            header.crashes = header.crashes.min(CRASHES_MAX - 1);
            true
        })?;
        let put = Change::Put {
            number,
            header: Box::new(header.clone()),
            request: None,
            answer: None,
        };
        self.inner
            .push(Change::Unanswer(number), State::Accepted, None, None);
        self.inner.push(put, State::Accepted, Some(then), None);
        drop(book);
        Some(header)
    }

    /// Begins another attempt at a request without an answer, of which something may have been heard, because its model has gone
    /// or come: as old as it is, and with what is left of its deadline.
    pub fn anew(&self, number: u64) {
        self.unanswered(number, |header| {
            header.state = State::Accepted;
            header.attempt = header.attempt.saturating_add(1);
            true
        });
    }

    fn unanswered(&self, number: u64, change: impl FnOnce(&mut Header) -> bool) {
        let mut book = self.inner.book();
        let header = book.change(number, |header| {
            !header.state.is_answered() && change(header)
        });
        if let Some(header) = header {
            let put = Change::Put {
                number,
                header: Box::new(header),
                request: None,
                answer: None,
            };
            self.inner.push(put, State::Accepted, None, None);
        }
    }

    /// Notes that an answer is being made.
    pub fn running(&self, number: u64) {
        self.note(number, State::Running);
    }

    /// Notes that the answer was taken by whom it is for.
    pub fn delivered(&self, number: u64) {
        self.note(number, State::Delivered);
    }

    fn note(&self, number: u64, state: State) {
        let now = self.inner.clock.now();
        let mut book = self.inner.book();
        let header = book.change(number, |header| {
            let forward = header.state < state
                && (state != State::Delivered || header.state == State::Answered);
            header.state = header.state.max(state);
            header.delivered = (header.state == State::Delivered).then_some(now);
            forward
        });
        if let Some(header) = header {
            // If the daemon has ended over it before, that it runs should be on the disk before it can do so again.
            let soon = state == State::Running && header.attempt > 1;
            let then = soon.then(|| Box::new(drop) as Then<()>);
            let put = Change::Put {
                number,
                header: Box::new(header),
                request: None,
                answer: None,
            };
            self.inner.push(put, state, then, None);
        }
    }

    /// Keeps an answer; `then` is called when it is safe, or if that takes longer than the patience. False if there is
    /// nothing to answer: the record was dropped, or has an answer.
    pub fn answer(&self, number: u64, answer: Bytes, fault: Option<&str>, then: Then<()>) -> bool {
        self.give(number, answer, fault, then, |state| !state.is_answered())
    }

    /// Keeps why there is no answer, in place of one that nobody has read, or that nobody can read any more. False if the
    /// record was dropped.
    pub fn fail(&self, number: u64, answer: Bytes, fault: FaultCode, then: Then<()>) -> bool {
        self.give(number, answer, Some(fault.name()), then, |_| true)
    }

    fn give(
        &self,
        number: u64,
        answer: Bytes,
        fault: Option<&str>,
        then: Then<()>,
        takes: impl FnOnce(State) -> bool,
    ) -> bool {
        let now = self.inner.clock.now();
        let mut book = self.inner.book();
        let header = book.change(number, |header| {
            if !takes(header.state) {
                return false;
            }
            header.state = State::Answered;
            header.answered = Some(now);
            header.delivered = None;
            header.fault = fault.map(str::to_owned);
            header.answer_bytes = answer.len() as u64;
            true
        });
        let Some(header) = header else {
            return false;
        };
        let put = Change::Put {
            number,
            header: Box::new(header),
            request: None,
            answer: Some(answer),
        };
        self.inner.push(put, State::Answered, Some(then), None);
        true
    }

    /// Fetches a record whole.
    pub fn read(&self, number: u64, then: Then<Option<Kept>>) {
        self.inner
            .ask(then, |queue, then| queue.reads.push((number, then)));
    }

    /// Whether a request may be computed now: of those over which the daemon may have ended, one is at a time, so that the one
    /// that ends it does not take the blame to others.
    pub fn may_run(&self, number: u64) -> bool {
        let book = self.inner.book();
        if book.get(number).is_none_or(|header| header.crashes == 0) {
            return true;
        }
        let mut suspect = (self.inner.suspect.lock()).unwrap_or_else(PoisonError::into_inner);
        let open = |number| {
            let header = book.get(number);
            header.is_some_and(|header| !header.state.is_answered())
        };
        let free = suspect.is_none_or(|of| of == number || !open(of));
        if free {
            *suspect = Some(number);
        }
        free
    }

    /// A request is not computed now, and is to be tried again in a moment: meanwhile others may be.
    pub fn leave(&self, number: u64) {
        let mut suspect = (self.inner.suspect.lock()).unwrap_or_else(PoisonError::into_inner);
        suspect.take_if(|of| *of == number);
    }

    /// A request is not computed any more, and left for later, whenever that is: no end of the daemon until then is its doing.
    pub fn rest(&self, number: u64) {
        self.leave(number);
        self.unanswered(number, |header| {
            let runs = header.state == State::Running;
            header.state = State::Accepted;
            runs
        });
    }

    /// Drops a record, which its front end has turned away after all, or nobody wants any more.
    pub fn forget(&self, number: u64) {
        let mut book = self.inner.book();
        if book.remove(number).is_some() {
            self.inner
                .push(Change::Drop(number), State::Delivered, None, None);
        }
    }

    /// Drops the records that a filter takes, whatever their state, and tells their front ends. Says how many.
    pub fn drop_all(&self, filter: &Filter) -> usize {
        let taken = self.list(filter);
        for (number, header) in &taken {
            self.forget(*number);
            self.inner
                .order(&Order::Dropped(*number, header.key.clone()));
        }
        taken.len()
    }

    /// Writes the file anew, so that nothing of what was dropped is left in it.
    pub fn rewrite(&self, then: Then<()>) {
        self.inner
            .ask(then, |queue, then| queue.rewrites.push(then));
    }

    /// Has a record answered, or its answer delivered, once more. False if there is none.
    pub fn retry(&self, number: u64) -> bool {
        let there = self.get(number).is_some();
        if there {
            self.inner.order(&Order::Again(number));
        }
        there
    }

    /// What operators want of the records of a front end, from now on.
    pub fn orders(&self, door: Door) -> mpsc::UnboundedReceiver<Order> {
        let (sender, orders) = mpsc::unbounded_channel();
        let mut senders = (self.inner.orders.lock()).unwrap_or_else(PoisonError::into_inner);
        senders.push((door, sender));
        orders
    }
}
