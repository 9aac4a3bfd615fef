//! Requests with a task of their own: which they are, and how many and how often one client may have some.
//!
//! Workers hold their clients to the same bounds, each for itself.
//!
//! Invariant: a request is in from when it is taken until its end is told, and its end is told, whatever ends its task; of a client
//! no more are in than `[limits] client-requests-max`, alarms aside, and no more come in a minute than it may send.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use andon_policy::admission::{Reason, Refusal};
use andon_policy::client::{ClientId, Clients, Rates};

use super::{duplicate, no_place, stopping};
use crate::config::Config;
use crate::fault::Fault;
use crate::request::{Origin, Priority, Request};
use crate::worker::{Feed, JobEvent, SHARE_FOR_ALARMS, fault_of, rates};

/// When a client may ask again that has as much open as it may.
const AGAIN_MS: u64 = 1_000;

/// Whose a request is and its name: clients of the broker are others than those of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) whose: (bool, String),
    id: String,
}

impl Key {
    pub(super) fn new(origin: Origin, client: &str, id: &str) -> Key {
        Key {
            whose: (origin == Origin::Mqtt, client.to_owned()),
            id: id.to_owned(),
        }
    }

    pub(super) fn of(request: &Request) -> Key {
        Key::new(request.origin, &request.client, &request.id)
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Open {
    state: Mutex<State>,
    seeds: RandomState,
    epoch: Instant,
}

#[derive(Debug)]
struct State {
    feeds: HashMap<Key, Feed>,
    clients: Clients,
}

/// One that is in, until this is dropped.
#[derive(Debug)]
#[must_use = "dropped, it says that the daemon stops"]
pub(super) struct Entry {
    open: Arc<Open>,
    key: Key,
    client: ClientId,
    feed: Feed,
    end: Option<JobEvent>,
}

impl Open {
    pub(super) fn new() -> Open {
        Open {
            state: Mutex::new(State {
                feeds: HashMap::new(),
                clients: Clients::new(Rates::default()),
            }),
            seeds: RandomState::new(),
            epoch: Instant::now(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether a request of this key is in.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.state().feeds.contains_key(key)
    }

    /// What the request of a key writes to.
    pub(super) fn feed(&self, key: &Key) -> Option<Feed> {
        self.state().feeds.get(key).cloned()
    }

    /// Takes a request in, whose rights are settled.
    ///
    /// # Errors
    /// Its client has one of this id, has as many as it may, or asks too often. Where the request `waits`, whoever keeps it is to
    /// come again once others have ended.
    pub(super) fn enter(
        self: &Arc<Open>,
        request: &Request,
        waits: bool,
        config: &Config,
    ) -> Result<Entry, Fault> {
        let key = Key::of(request);
        let usual = Priority::Interactive.min(request.rights.priority_max);
        let priority = request.priority.or_else(|| request.class_by_task(config));
        let priority = priority.unwrap_or(usual);
        let limits = &config.limits;
        let beyond = match priority {
            Priority::Alarm => limits.queue_max / SHARE_FOR_ALARMS,
            Priority::Interactive | Priority::Batch => 0,
        };
        let most = limits.client_requests_max.saturating_add(beyond);
        // Nobody can choose a name that is taken for another's: the hash is keyed.
        let client = ClientId(self.seeds.hash_one(&key.whose));
        let (own, now_ms) = (request.rights.rates, self.now_ms());
        let mut state = self.state();
        if state.feeds.contains_key(&key) {
            return Err(duplicate());
        }
        let clients = &mut state.clients;
        clients.set_rates(rates(limits));
        if usize::try_from(clients.open(client)).is_ok_and(|open| open >= most) {
            let full = || fault_of(&Refusal::until(Reason::ClientFull, AGAIN_MS));
            return Err(if waits { no_place() } else { full() });
        }
        if let Some(throttled) = clients.throttled(client, own, priority.into(), now_ms) {
            let refusal = Refusal::until(throttled.reason, throttled.wait_ms);
            return Err(fault_of(&refusal));
        }
        clients.opened(client, own, priority.into(), now_ms);
        let feed = Feed::new();
        state.feeds.insert(key.clone(), feed.clone());
        Ok(Entry {
            open: Arc::clone(self),
            key,
            client,
            feed,
            end: None,
        })
    }
}

impl Entry {
    /// What it writes to.
    pub(super) fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Whose it is.
    pub(super) fn whose(&self) -> &(bool, String) {
        &self.key.whose
    }

    /// So many tokens of prompt and answer were had for it elsewhere.
    pub(super) fn had(&self, tokens: usize) {
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        let now_ms = self.open.now_ms();
        let mut state = self.open.state();
        state.clients.computed(self.client, tokens, 0, now_ms);
    }

    /// Has it end so.
    pub(super) fn end(mut self, event: JobEvent) {
        self.end = Some(event);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let now_ms = self.open.now_ms();
        let mut state = self.open.state();
        // The id is free before its end is heard of.
        state.feeds.remove(&self.key);
        state.clients.closed(self.client, now_ms);
        drop(state);
        // A task that ends without a word has been ended with the daemon.
        let end = self.end.take();
        let end = end.unwrap_or_else(|| JobEvent::Failed(stopping()));
        self.feed.post(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultCode;
    use crate::request::Input;

    fn config(text: &str) -> Config {
        let text = format!("[model]\npath = \"/nowhere/m.gguf\"\n{text}");
        Config::parse(&text).expect("a configuration")
    }

    fn request(client: &str, id: usize) -> Request {
        let input = Input::Prompt("x".to_owned());
        Request::new(id.to_string(), client, Origin::Mqtt, input)
    }

    #[test]
    fn a_client_has_as_many_as_it_may_and_alarms_a_few_more() {
        let config = config("[limits]\nclient-requests-max = 2\nqueue-max = 16\n");
        let open = Arc::new(Open::new());
        let enter = |request: &Request| open.enter(request, false, &config);
        let first = enter(&request("plc", 1)).expect("a place");
        let twice = enter(&request("plc", 1)).expect_err("it is in");
        assert_eq!(twice.code, FaultCode::DuplicateId);
        let _second = enter(&request("plc", 2)).expect("a place");
        let full = enter(&request("plc", 3)).expect_err("two are in");
        assert_eq!(full.code, FaultCode::Busy, "{}", full.message);
        assert!(full.retry_after.is_some());
        let later = open.enter(&request("plc", 3), true, &config);
        let later = later.expect_err("it may come again");
        assert_eq!(later.code, FaultCode::ModelUnavailable, "{}", later.message);
        let _other = enter(&request("other", 1)).expect("others have places of their own");
        let mut alarm = request("plc", 3);
        alarm.priority = Some(Priority::Alarm);
        let _alarm = enter(&alarm).expect("alarms have a few more");
        let mut stream = first.feed().stream();
        first.end(JobEvent::Failed(duplicate()));
        assert_eq!(stream.try_next(), Some(JobEvent::Failed(duplicate())));
        assert!(!open.has(&Key::of(&request("plc", 1))));
    }

    #[test]
    fn a_client_asks_no_oftener_and_for_no_more_than_it_may() {
        let limits = "client-requests-per-minute = 2\nclient-tokens-per-minute = 100\n";
        let config = config(&format!("[limits]\n{limits}"));
        let open = Arc::new(Open::new());
        let enter = |client, id| open.enter(&request(client, id), false, &config);
        for id in 0..2 {
            let stopped = enter("plc", id).expect("two in a minute");
            drop(stopped);
        }
        let often = enter("plc", 2).expect_err("three are too many");
        assert_eq!(often.code, FaultCode::Busy, "{}", often.message);
        assert!(often.retry_after.is_some());
        let much = enter("other", 0).expect("the first");
        much.had(200);
        drop(much);
        let fault = enter("other", 1).expect_err("it owes tokens");
        assert!(fault.message.contains("tokens"), "{}", fault.message);
    }

    #[test]
    fn whatever_ends_a_task_its_reader_hears_of_it() {
        let open = Arc::new(Open::new());
        let entry = open
            .enter(&request("plc", 1), false, &config(""))
            .expect("a place");
        let mut stream = entry.feed().stream();
        drop(entry);
        assert_eq!(stream.try_next(), Some(JobEvent::Failed(stopping())));
    }
}
