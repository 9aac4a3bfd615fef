//! Responses that clients may read again and go on from, in memory.
//!
//! Invariant: no more than [`RESPONSES_MAX`] responses of [`RESPONSES_BYTES_MAX`] together are kept, the oldest of the
//! client that keeps most going first; a client sees its own only. They end with the daemon.

use std::collections::{HashMap, VecDeque};

use serde_json::Map;

use crate::request::Message;

/// Most responses kept.
pub(super) const RESPONSES_MAX: usize = 256;
/// Most bytes kept.
pub(super) const RESPONSES_BYTES_MAX: usize = 8 << 20;
/// What an entry takes beside its texts.
const ENTRY_BYTES: usize = 1024;

#[derive(Debug)]
struct Entry {
    client: String,
    /// As JSON: as a tree it would take several times the memory.
    object: Box<str>,
    /// All that was said up to and with the answer, without instructions.
    conversation: Box<[Said]>,
    bytes: usize,
}

/// A message.
#[derive(Debug)]
struct Said {
    role: Box<str>,
    content: Box<str>,
    /// What else it has, as JSON; empty where that is nothing.
    extra: Box<str>,
}

impl Said {
    fn new(message: Message) -> Said {
        let extra = match message.extra.is_empty() {
            true => String::new(),
            false => serde_json::Value::Object(message.extra).to_string(),
        };
        Said {
            role: message.role.into(),
            content: message.content.into(),
            extra: extra.into(),
        }
    }

    fn message(&self) -> Message {
        // It is our own writing, so it is read.
        let extra = serde_json::from_str(&self.extra).unwrap_or_else(|_| Map::new());
        Message {
            role: self.role.to_string(),
            content: self.content.to_string(),
            extra,
        }
    }

    fn bytes(&self) -> usize {
        size_of::<Said>() + self.role.len() + self.content.len() + self.extra.len()
    }
}

/// The responses kept.
#[derive(Debug, Default)]
pub(in super::super) struct Store {
    entries: HashMap<String, Entry>,
    /// Ids, the oldest first. Deleted ones are passed over.
    order: VecDeque<String>,
    bytes: usize,
}

impl Store {
    /// Keeps a response, an object of JSON; what would not fit even alone is not kept.
    pub(super) fn keep(
        &mut self,
        id: &str,
        client: &str,
        object: String,
        conversation: Vec<Message>,
    ) {
        let conversation: Box<[Said]> = conversation.into_iter().map(Said::new).collect();
        let said: usize = conversation.iter().map(Said::bytes).sum();
        let bytes = ENTRY_BYTES + said + object.len();
        if bytes > RESPONSES_BYTES_MAX {
            return;
        }
        while self.entries.len() >= RESPONSES_MAX || self.bytes + bytes > RESPONSES_BYTES_MAX {
            let Some(gone) = self
                .next_to_go(client, bytes)
                .and_then(|place| self.order.remove(place))
            else {
                break;
            };
            self.forget(&gone);
        }
        // Ids are never used twice, so none is replaced.
        self.bytes += bytes;
        self.order.push_back(id.to_owned());
        let entry = Entry {
            client: client.to_owned(),
            object: object.into(),
            conversation,
            bytes,
        };
        self.entries.insert(id.to_owned(), entry);
    }

    /// The oldest of the client that keeps most, with `bytes` that `client` is about to keep: who keeps many responses
    /// loses its own ones for it.
    fn next_to_go(&self, client: &str, bytes: usize) -> Option<usize> {
        let mut kept = HashMap::from([(client, bytes)]);
        for entry in self.entries.values() {
            *kept.entry(&entry.client).or_default() += entry.bytes;
        }
        let kept_by_owner = |id: &String| {
            let entry = self.entries.get(id)?;
            kept.get(entry.client.as_str())
        };
        let places = self.order.iter().enumerate();
        // Of equals, the last is taken: the oldest.
        places
            .rev()
            .max_by_key(|(_, id)| kept_by_owner(id))
            .map(|(place, _)| place)
    }

    fn of(&self, id: &str, client: &str) -> Option<&Entry> {
        self.entries.get(id).filter(|entry| entry.client == client)
    }

    /// A response as it was answered.
    pub(super) fn object(&self, id: &str, client: &str) -> Option<String> {
        Some(self.of(id, client)?.object.to_string())
    }

    /// What was said up to and with a response.
    pub(super) fn conversation(&self, id: &str, client: &str) -> Option<Vec<Message>> {
        let said = &self.of(id, client)?.conversation;
        Some(said.iter().map(Said::message).collect())
    }

    /// Deletes a response. Says whether there was one.
    pub(super) fn delete(&mut self, id: &str, client: &str) -> bool {
        let there = self.of(id, client).is_some();
        if there {
            self.forget(id);
            self.order.retain(|kept| kept != id);
        }
        there
    }

    fn forget(&mut self, id: &str) {
        if let Some(entry) = self.entries.remove(id) {
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn none() -> String {
        "{}".to_owned()
    }

    fn said(bytes: usize) -> Vec<Message> {
        vec![Message::new("user", "x".repeat(bytes))]
    }

    #[test]
    fn a_client_sees_its_own_only() {
        let mut store = Store::default();
        let mut all = said(3);
        let mut calls = Message::new("assistant", "");
        let made = json!([{"id": "c", "function": {"name": "f", "arguments": "{\"a\": 1.0}"}}]);
        calls.extra.insert("tool_calls".to_owned(), made);
        all.push(calls);
        store.keep("a", "uid-1", "{\"id\":\"a\"}".to_owned(), all.clone());
        assert_eq!(
            store.object("a", "uid-1").as_deref(),
            Some("{\"id\":\"a\"}")
        );
        assert_eq!(store.conversation("a", "uid-1"), Some(all));
        assert_eq!(store.object("a", "uid-2"), None);
        assert!(!store.delete("a", "uid-2"));
        assert!(store.delete("a", "uid-1"));
        assert!(!store.delete("a", "uid-1"));
        assert_eq!((store.bytes, store.order.len()), (0, 0));
    }

    #[test]
    fn who_keeps_most_makes_room() {
        let mut store = Store::default();
        store.keep("few", "uid-2", none(), said(1));
        for index in 0..RESPONSES_MAX + 5 {
            store.keep(&index.to_string(), "uid-1", none(), said(1));
        }
        store.keep("more", "uid-2", none(), said(1));
        assert!(store.object("few", "uid-2").is_some() && store.object("more", "uid-2").is_some());
        assert!(store.object("6", "uid-1").is_none() && store.object("7", "uid-1").is_some());
        assert_eq!(store.entries.len(), RESPONSES_MAX);
        assert_eq!(store.order.len(), RESPONSES_MAX);
    }

    #[test]
    fn number_and_bytes_are_bounded_and_the_oldest_goes_first() {
        let mut store = Store::default();
        for index in 0..RESPONSES_MAX + 5 {
            store.keep(&index.to_string(), "c", none(), said(1));
        }
        assert_eq!(store.entries.len(), RESPONSES_MAX);
        assert!(store.object("4", "c").is_none() && store.object("5", "c").is_some());
        for index in 0..20 {
            store.keep(&format!("big-{index}"), "c", none(), said(1 << 20));
            assert!(store.bytes <= RESPONSES_BYTES_MAX);
        }
        assert!(store.object("big-19", "c").is_some());
        assert!(store.object("big-5", "c").is_none());
        store.keep("huge", "c", none(), said(RESPONSES_BYTES_MAX));
        assert!(store.object("huge", "c").is_none());
        assert!(store.object("big-19", "c").is_some(), "nothing gave way");
    }
}
