//! Answers of upstream servers, kept for those who ask the same again.
//!
//! A question is known by a [`Key`]: a digest of everything that determines its answer, as it is sent, and of who may have it. Only
//! what may leave has one, so that what stays here has no answer of upstream by this way either.
//! Secrets are not in it, since they are not in what is sent; an answer is kept as it came, with placeholders, and each who gets
//! it has its own secrets put back. Answers are in memory only: what a client asked is on the disk nowhere but in the spool.
//!
//! Invariant: there are never more answers, nor more bytes of them, than configured, and none is handed out after its time.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::config::upstream_cache::UpstreamCacheConfig;

/// What an answer takes beside itself: its key twice, and its places in two maps.
const ENTRY_BYTES: usize = 256;

/// Who may have an answer that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope<'a> {
    /// The client who asked. It is of no account where all share the answers.
    pub client: &'a str,
    /// What answers: the upstream servers that the question may go to, and their models.
    pub upstream: &'a str,
}

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

struct Kept<T> {
    answer: Arc<T>,
    bytes: usize,
    until: Instant,
    used: u64,
}

struct State<T> {
    answers: HashMap<Key, Kept<T>>,
    /// By when they were last used, the longest ago first.
    order: BTreeMap<u64, Key>,
    bytes: usize,
    uses: u64,
}

/// Keeps answers. See the module.
pub struct AnswerCache<T> {
    config: UpstreamCacheConfig,
    state: Mutex<State<T>>,
}

impl<T> std::fmt::Debug for AnswerCache<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        write!(
            f,
            "{} answers of {} bytes",
            state.answers.len(),
            state.bytes
        )
    }
}

/// Has what is written be digested.
struct Digesting<'a>(&'a mut Sha256);

impl io::Write for Digesting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<T> AnswerCache<T> {
    /// One without answers.
    #[must_use]
    pub fn new(config: &UpstreamCacheConfig) -> AnswerCache<T> {
        AnswerCache {
            config: config.clone(),
            state: Mutex::new(State {
                answers: HashMap::new(),
                order: BTreeMap::new(),
                bytes: 0,
                uses: 0,
            }),
        }
    }

    /// Most bytes that it takes.
    #[must_use]
    pub fn memory_bytes_max(config: &UpstreamCacheConfig) -> u64 {
        if config.enabled {
            config.bytes_max as u64
        } else {
            0
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        // Every critical section leaves the maps whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of a question, which is everything that determines the answer, as it is sent; `None` if nothing is kept, or the
    /// question does not let itself be written as JSON.
    #[must_use]
    pub fn key(&self, scope: Scope<'_>, question: &impl Serialize) -> Option<Key> {
        if !self.config.enabled {
            return None;
        }
        let client = if self.config.per_client {
            scope.client
        } else {
            ""
        };
        let mut digest = Sha256::new();
        for part in [client, scope.upstream] {
            let part = part.as_bytes();
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        serde_json::to_writer(Digesting(&mut digest), question).ok()?;
        Some(Key(digest.finalize().into()))
    }

    /// The answer to a question, if it is kept.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Arc<T>> {
        let mut state = self.state();
        if state.answers.get(key)?.until <= now {
            state.remove(key);
            return None;
        }
        state.uses += 1;
        let uses = state.uses;
        let kept = state.answers.get_mut(key)?;
        let before = std::mem::replace(&mut kept.used, uses);
        let answer = Arc::clone(&kept.answer);
        state.order.remove(&before);
        state.order.insert(uses, *key);
        Some(answer)
    }

    /// Keeps a whole answer, of which there are so many bytes. One that takes more than an eighth of the room is not kept.
    pub fn put(&self, key: Key, answer: Arc<T>, bytes: usize, now: Instant) {
        let bytes = bytes.saturating_add(ENTRY_BYTES);
        if !self.config.enabled || bytes > self.config.bytes_max / 8 {
            return;
        }
        let mut state = self.state();
        state.remove(&key);
        while state.answers.len() >= self.config.entries_max
            || state.bytes + bytes > self.config.bytes_max
        {
            let Some((_, oldest)) = state.order.first_key_value() else {
                return;
            };
            let oldest = *oldest;
            state.remove(&oldest);
        }
        state.uses += 1;
        let used = state.uses;
        state.order.insert(used, key);
        state.bytes += bytes;
        let kept = Kept {
            answer,
            bytes,
            until: now + Duration::from_secs(self.config.expire_s),
            used,
        };
        state.answers.insert(key, kept);
    }

    /// How many answers there are, and their bytes.
    #[cfg(test)]
    fn size(&self) -> (usize, usize) {
        let state = self.state();
        (state.answers.len(), state.bytes)
    }
}

impl<T> State<T> {
    fn remove(&mut self, key: &Key) {
        if let Some(kept) = self.answers.remove(key) {
            self.order.remove(&kept.used);
            self.bytes -= kept.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cache(entries_max: usize, bytes_max: usize) -> AnswerCache<String> {
        AnswerCache::new(&UpstreamCacheConfig {
            enabled: true,
            entries_max,
            bytes_max,
            expire_s: 60,
            per_client: true,
        })
    }

    const SCOPE: Scope<'static> = Scope {
        client: "plc-7",
        upstream: "big",
    };

    fn key(cache: &AnswerCache<String>, question: &str) -> Key {
        cache.key(SCOPE, &question).expect("enabled")
    }

    fn put(cache: &AnswerCache<String>, question: &str, now: Instant) {
        let answer = Arc::new(question.to_owned());
        cache.put(key(cache, question), answer, question.len(), now);
    }

    #[test]
    fn the_same_question_has_the_same_answer_until_it_expires() {
        let (cache, now) = (cache(8, 1 << 20), Instant::now());
        put(&cache, "why?", now);
        let asked = key(&cache, "why?");
        let later = now + Duration::from_secs(59);
        assert_eq!(*cache.get(&asked, later).expect("kept"), "why?");
        assert_eq!(cache.get(&key(&cache, "why"), later), None);
        assert_eq!(cache.get(&asked, now + Duration::from_secs(60)), None);
        assert_eq!(cache.size(), (0, 0));
    }

    #[test]
    fn whatever_determines_an_answer_makes_another_question() {
        let cache = cache(8, 1 << 20);
        let question = json!({"messages": ["a"], "temperature": 0.5, "seed": 1});
        let keys = [
            cache.key(SCOPE, &question),
            cache.key(SCOPE, &json!({"messages": ["a"], "temperature": 0.5})),
            cache.key(
                SCOPE,
                &json!({"messages": ["b"], "temperature": 0.5, "seed": 1}),
            ),
            cache.key(
                Scope {
                    client: "plc-8",
                    ..SCOPE
                },
                &question,
            ),
            cache.key(
                Scope {
                    client: "plc-",
                    upstream: "7big",
                },
                &question,
            ),
            cache.key(
                Scope {
                    upstream: "small",
                    ..SCOPE
                },
                &question,
            ),
        ];
        let different: std::collections::BTreeSet<_> = keys.iter().flatten().collect();
        assert_eq!(different.len(), keys.len());
        assert_eq!(cache.key(SCOPE, &question.clone()), keys[0]);
        let shared: AnswerCache<String> = AnswerCache::new(&UpstreamCacheConfig {
            per_client: false,
            ..cache.config.clone()
        });
        let other = Scope {
            client: "plc-8",
            ..SCOPE
        };
        assert_eq!(shared.key(SCOPE, &question), shared.key(other, &question));
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let (cache, now) = (cache(3, 1 << 20), Instant::now());
        for question in ["a", "b", "c"] {
            put(&cache, question, now);
        }
        assert!(cache.get(&key(&cache, "a"), now).is_some());
        put(&cache, "d", now);
        let is_kept = |question| cache.get(&key(&cache, question), now).is_some();
        assert!(is_kept("a") && !is_kept("b") && is_kept("c") && is_kept("d"));
    }

    #[test]
    fn bytes_are_bounded_and_nothing_is_kept_where_that_is_off() {
        let (small, now) = (cache(1000, 8 * 1024), Instant::now());
        for number in 0..100 {
            put(&small, &format!("{number:0100}"), now);
            assert!(small.size().1 <= 8 * 1024);
        }
        let (count, bytes) = small.size();
        assert_eq!((count, bytes), (8192 / 356, 8192 / 356 * 356));
        put(&small, &"x".repeat(1024), now);
        assert_eq!(small.size(), (count, bytes), "too large for it");
        let off: AnswerCache<String> = AnswerCache::new(&UpstreamCacheConfig::default());
        assert_eq!(off.key(SCOPE, &"a"), None);
        off.put(key(&small, "a"), Arc::default(), 1, now);
        assert_eq!(off.size(), (0, 0));
    }
}
