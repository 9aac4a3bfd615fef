//! Which requests are known: the running ones, and the answers given lately.
//!
//! Invariant: a request is the same as another if client and id are, and is then never decoded twice.
//! An id that comes back with other contents is not answered with the old answer: that would be a wrong
//! answer, so it is told apart by a fingerprint of what was asked. Bounded in count, bytes and age;
//! running requests are never forgotten (their number has its own bound).

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Who asked what, by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The client.
    pub(super) client: String,
    /// The client's id.
    pub(super) id: String,
}

/// The bounds of what is remembered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Most answers.
    pub(super) count_max: usize,
    /// Most bytes of their payloads.
    pub(super) bytes_max: usize,
    /// How long an answer is kept.
    pub(super) age_max: Duration,
}

/// What is known of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing.
    New,
    /// It is being answered.
    Running,
    /// It was answered with these payloads.
    Answered(Vec<Bytes>),
    /// The id was used for something else.
    Other,
}

#[derive(Debug)]
struct Answered {
    fingerprint: u64,
    payloads: Vec<Bytes>,
    bytes: usize,
    /// Tells this answer from a later one of the same key in the order of age.
    generation: u64,
}

/// The memory.
#[derive(Debug)]
pub(super) struct Recent {
    bounds: Bounds,
    hasher: RandomState,
    running: HashMap<Key, u64>,
    answered: HashMap<Key, Answered>,
    ages: VecDeque<(Instant, u64, Key)>,
    bytes: usize,
    generation: u64,
}

impl Recent {
    /// Remembers nothing yet.
    pub(super) fn new(bounds: Bounds) -> Recent {
        Recent {
            bounds,
            hasher: RandomState::new(),
            running: HashMap::new(),
            answered: HashMap::new(),
            ages: VecDeque::new(),
            bytes: 0,
            generation: 0,
        }
    }

    /// A number that tells contents apart; good within this process only.
    pub(super) fn fingerprint(&self, task: Option<&str>, payload: &[u8]) -> u64 {
        self.hasher.hash_one((task, payload))
    }

    /// What is known of a request.
    pub(super) fn find(&mut self, key: &Key, fingerprint: u64, now: Instant) -> Known {
        self.forget(now);
        if let Some(running) = self.running.get(key) {
            return if *running == fingerprint {
                Known::Running
            } else {
                Known::Other
            };
        }
        match self.answered.get(key) {
            Some(answered) if answered.fingerprint == fingerprint => {
                Known::Answered(answered.payloads.clone())
            }
            Some(_) => Known::Other,
            None => Known::New,
        }
    }

    /// Whether a request is running.
    pub(super) fn is_running(&self, key: &Key) -> bool {
        self.running.contains_key(key)
    }

    /// The request runs.
    pub(super) fn started(&mut self, key: Key, fingerprint: u64) {
        self.running.insert(key, fingerprint);
    }

    /// The request ended in a way that a repetition need not know of.
    pub(super) fn dropped(&mut self, key: &Key) {
        self.running.remove(key);
    }

    /// The request ended with an answer that a repetition gets again.
    pub(super) fn answered(&mut self, key: Key, payloads: Vec<Bytes>, now: Instant) {
        let Some(fingerprint) = self.running.remove(&key) else {
            return;
        };
        let bytes: usize = payloads.iter().map(Bytes::len).sum();
        if self.bounds.count_max == 0
            || bytes > self.bounds.bytes_max
            || self.bounds.age_max.is_zero()
        {
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        let answered = Answered {
            fingerprint,
            payloads,
            bytes,
            generation: self.generation,
        };
        self.ages.push_back((now, self.generation, key.clone()));
        self.bytes = self.bytes.saturating_add(bytes);
        if let Some(old) = self.answered.insert(key, answered) {
            self.bytes = self.bytes.saturating_sub(old.bytes);
        }
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, _, _)) = self.ages.front() {
            let old = now.saturating_duration_since(*at) >= self.bounds.age_max;
            if !old
                && self.ages.len() <= self.bounds.count_max
                && self.bytes <= self.bounds.bytes_max
            {
                return;
            }
            let Some((_, generation, key)) = self.ages.pop_front() else {
                return;
            };
            let current = self
                .answered
                .get(&key)
                .is_some_and(|answered| answered.generation == generation);
            if current && let Some(answered) = self.answered.remove(&key) {
                self.bytes = self.bytes.saturating_sub(answered.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recent(count_max: usize, bytes_max: usize) -> Recent {
        Recent::new(Bounds {
            count_max,
            bytes_max,
            age_max: Duration::from_secs(60),
        })
    }

    fn key(id: &str) -> Key {
        Key {
            client: "plc".to_owned(),
            id: id.to_owned(),
        }
    }

    fn answer(recent: &mut Recent, id: &str, text: &'static str, now: Instant) {
        recent.started(key(id), 7);
        recent.answered(key(id), vec![Bytes::from_static(text.as_bytes())], now);
    }

    #[test]
    fn a_repetition_is_known_and_other_contents_are_told_apart() {
        let now = Instant::now();
        let mut recent = recent(4, 100);
        assert_eq!(recent.find(&key("1"), 7, now), Known::New);
        recent.started(key("1"), 7);
        assert_eq!(recent.find(&key("1"), 7, now), Known::Running);
        assert_eq!(recent.find(&key("1"), 8, now), Known::Other);
        recent.answered(key("1"), vec![Bytes::from_static(b"yes")], now);
        assert_eq!(
            recent.find(&key("1"), 7, now),
            Known::Answered(vec![Bytes::from_static(b"yes")])
        );
        assert_eq!(recent.find(&key("1"), 8, now), Known::Other);
        assert!(!recent.is_running(&key("1")));
    }

    #[test]
    fn the_oldest_answers_go_first_whatever_bound_is_met() {
        let now = Instant::now();
        let mut recent = recent(2, 10);
        answer(&mut recent, "1", "aaa", now);
        answer(&mut recent, "2", "bbb", now);
        answer(&mut recent, "3", "ccc", now);
        assert_eq!(recent.find(&key("1"), 7, now), Known::New);
        answer(&mut recent, "4", "dddddddd", now);
        assert_eq!(recent.find(&key("3"), 7, now), Known::New);
        assert!(matches!(recent.find(&key("4"), 7, now), Known::Answered(_)));
        let later = now + Duration::from_secs(60);
        assert_eq!(recent.find(&key("4"), 7, later), Known::New);
        assert_eq!(recent.bytes, 0);
        assert!(recent.answered.is_empty() && recent.ages.is_empty());
    }

    #[test]
    fn an_answer_larger_than_the_memory_is_not_kept() {
        let now = Instant::now();
        let mut recent = recent(4, 3);
        answer(&mut recent, "1", "aaaa", now);
        assert_eq!(recent.find(&key("1"), 7, now), Known::New);
    }

    #[test]
    fn an_id_used_again_keeps_its_last_answer() {
        let now = Instant::now();
        let mut recent = recent(2, 100);
        answer(&mut recent, "1", "old", now);
        answer(&mut recent, "1", "new", now);
        answer(&mut recent, "2", "two", now);
        assert_eq!(
            recent.find(&key("1"), 7, now),
            Known::Answered(vec![Bytes::from_static(b"new")])
        );
        assert_eq!(recent.bytes, 6);
    }

    #[test]
    fn fingerprints_see_task_and_payload() {
        let recent = recent(1, 1);
        let one = recent.fingerprint(None, b"x");
        assert_eq!(one, recent.fingerprint(None, b"x"));
        assert_ne!(one, recent.fingerprint(Some("t"), b"x"));
        assert_ne!(one, recent.fingerprint(None, b"y"));
    }
}
