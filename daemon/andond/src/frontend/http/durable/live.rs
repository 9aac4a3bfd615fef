//! Replies that are being made, for whoever reads them.
//!
//! Invariant: a reply is over when the task that makes it is, however that ends, so that nobody waits for what nobody makes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

use crate::fault::Fault;
use crate::frontend::http::Service;
use crate::request::Priority;

/// Requests of the spool that are in memory at once to be answered, alarms and others.
const FETCHED_MAX: usize = 8;

/// A reply that is being made, for whoever reads.
#[derive(Debug, Default)]
pub(super) struct Live {
    said: Mutex<Said>,
    more: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) head: Option<(StatusCode, HeaderValue)>,
    pub(super) pieces: Vec<Bytes>,
    pub(super) over: bool,
    /// Whether the pieces are all there is to say.
    pub(super) whole: bool,
    pub(super) computing: Option<AbortHandle>,
    /// Whether the request is kept, once that is known.
    pub(super) safe: Option<Result<(), Fault>>,
    /// Whether somebody was told that the request is kept, and relies on it.
    promised: bool,
    /// Whether it is refused after all, and not kept.
    refused: bool,
    /// How many wait for the head, and so hear of a refusal.
    pub(super) hearers: usize,
}

impl Live {
    pub(super) fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn say(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.lock());
        self.more.notify_waiters();
    }

    /// Notes that somebody is told that the request is kept; false if it is not.
    pub(super) fn promise(&self) -> bool {
        let mut said = self.lock();
        said.promised |= !said.refused;
        !said.refused
    }

    /// Has it end with a refusal for want of a place, if that may be: somebody hears it, and nobody was told otherwise before.
    pub(super) fn refuse(&self) -> bool {
        let mut said = self.lock();
        said.refused |= said.hearers > 0 && !said.promised;
        said.refused
    }

    /// Waits until `look` finds something.
    pub(super) async fn until<T>(&self, mut look: impl FnMut(&Said) -> Option<T>) -> T {
        loop {
            // Registered before the look, so that nothing said in between is missed.
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if let Some(found) = look(&self.lock()) {
                return found;
            }
            more.await;
        }
    }
}

/// Somebody who waits for the head of a reply.
pub(super) struct Hearer(Arc<Live>);

impl Hearer {
    pub(super) fn new(live: &Arc<Live>) -> Hearer {
        live.lock().hearers += 1;
        Hearer(Arc::clone(live))
    }
}

impl Drop for Hearer {
    fn drop(&mut self) {
        let mut said = self.0.lock();
        said.hearers = said.hearers.saturating_sub(1);
    }
}

/// The replies that are being made, by number.
#[derive(Debug)]
pub(in crate::frontend::http) struct Desk {
    lives: Mutex<HashMap<u64, Arc<Live>>>,
    /// Places of those whose requests are fetched from the spool: they bound what of them is in memory. Alarms have their own,
    /// so that they do not wait for the end of what is less urgent.
    places: Semaphore,
    alarms: Semaphore,
    /// Of those over which the daemon may have ended, one is at a time: the others wait in line, without a place.
    pub(super) suspects: tokio::sync::Mutex<()>,
}

impl Default for Desk {
    fn default() -> Desk {
        Desk {
            lives: Mutex::default(),
            places: Semaphore::new(FETCHED_MAX),
            alarms: Semaphore::new(FETCHED_MAX),
            suspects: tokio::sync::Mutex::default(),
        }
    }
}

impl Desk {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Live>>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a request of the spool has its place from its being fetched to its answer.
    pub(super) fn window(&self, priority: Priority) -> &Semaphore {
        match priority {
            Priority::Alarm => &self.alarms,
            Priority::Interactive | Priority::Batch => &self.places,
        }
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<Live>> {
        self.lock().get(&number).cloned()
    }

    pub(super) fn end(&self, number: u64) {
        let live = self.lock().remove(&number);
        if let Some(live) = live {
            live.say(|said| {
                said.over = true;
                if let Some(computing) = said.computing.take() {
                    computing.abort();
                }
            });
        }
    }

    /// Ends this reply, but none that was begun since under the same number.
    pub(super) fn end_of(&self, number: u64, live: &Arc<Live>) {
        let mut lives = self.lock();
        if lives.get(&number).is_some_and(|of| Arc::ptr_eq(of, live)) {
            lives.remove(&number);
        }
        drop(lives);
        live.say(|said| said.over = true);
    }
}

/// Ends a reply with the task that makes it, however that ends: nobody waits for what nobody makes.
pub(super) struct Ended {
    pub(super) service: Weak<Service>,
    pub(super) number: u64,
    pub(super) live: Arc<Live>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(service) = self.service.upgrade() {
            let current = service.durable.get(self.number);
            if current.is_none_or(|of| Arc::ptr_eq(&of, &self.live)) {
                // Whatever it has left undone, others may be tried; before another begins under its number.
                service.context.spool.rest(self.number);
            }
            service.durable.end_of(self.number, &self.live);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_hears_it_and_was_promised_nothing_is_refused() {
        let live = Arc::new(Live::default());
        assert!(!live.refuse(), "nobody hears it");
        let hearer = Hearer::new(&live);
        assert!(live.promise());
        assert!(!live.refuse(), "202 was said");
        drop(hearer);
        let live = Arc::new(Live::default());
        drop(Hearer::new(&live));
        assert!(!live.refuse(), "it went away");
        let _hearer = Hearer::new(&live);
        assert!(live.refuse());
        assert!(!live.promise(), "it was refused a moment ago");
    }

    #[test]
    fn a_reply_whose_task_ends_is_over_but_not_the_next_of_its_number() {
        let desk = Desk::default();
        let (first, second) = (Arc::new(Live::default()), Arc::new(Live::default()));
        desk.lock().insert(1, Arc::clone(&second));
        desk.end_of(1, &first);
        assert!(first.lock().over && !second.lock().over);
        assert!(desk.get(1).is_some());
        desk.end_of(1, &second);
        assert!(second.lock().over && desk.get(1).is_none());
    }
}
