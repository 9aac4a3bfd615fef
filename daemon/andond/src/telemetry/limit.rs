//! Keeps events of one kind from flooding the log, and others out of it.
//!
//! A kind is a place in the code. Each has a bucket of its own: what comes faster than `[log] events-per-second-max` over a while
//! is left out and counted, and [`Limit::report`] says how much. Bounded: there are as many buckets as places in the code that
//! log, at most [`KINDS_MAX`].

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Most kinds that are told apart; events of any other are not limited.
const KINDS_MAX: usize = 4096;
/// So many seconds' worth may come at once.
const BURST_S: u32 = 10;
/// Most characters of an event that is left out which are kept to say what it was.
const TEXT_CHARS_MAX: usize = 80;

/// A layer that leaves out what is too much. Clones share the buckets.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    /// Events of a kind in a second; 0 is any number.
    per_second: u32,
    buckets: Arc<Mutex<HashMap<Identifier, Bucket>>>,
}

/// What is left for a kind.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
    suppressed: u64,
    /// What the first that was left out says.
    text: String,
    metadata: &'static Metadata<'static>,
}

/// What was left out of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suppressed {
    pub(super) count: u64,
    pub(super) text: String,
    pub(super) module: &'static str,
    pub(super) line: Option<u32>,
}

impl Limit {
    pub(super) fn new(per_second: u32) -> Limit {
        Limit {
            per_second,
            buckets: Arc::default(),
        }
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<Identifier, Bucket>> {
        // Every critical section leaves the buckets whole.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an event may be logged; `text` is asked what it says if it is the first that may not.
    fn takes(
        &self,
        metadata: &'static Metadata<'static>,
        now: Instant,
        text: impl FnOnce() -> String,
    ) -> bool {
        // What this module says is said rarely, and never left out.
        if self.per_second == 0 || metadata.target() == module_path!() {
            return true;
        }
        let most = f64::from(self.per_second.saturating_mul(BURST_S));
        let mut buckets = self.buckets();
        let kind = metadata.callsite();
        if buckets.len() >= KINDS_MAX && !buckets.contains_key(&kind) {
            return true;
        }
        let bucket = buckets.entry(kind).or_insert_with(|| Bucket {
            left: most,
            at: now,
            suppressed: 0,
            text: String::new(),
            metadata,
        });
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + since * f64::from(self.per_second)).min(most);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return true;
        }
        if bucket.suppressed == 0 {
            bucket.text = text();
        }
        bucket.suppressed += 1;
        false
    }

    /// Takes out what was left out since this was last asked.
    pub(super) fn take(&self) -> Vec<Suppressed> {
        let mut buckets = self.buckets();
        let full = buckets.values_mut().filter(|bucket| bucket.suppressed > 0);
        full.map(|bucket| Suppressed {
            count: std::mem::take(&mut bucket.suppressed),
            text: std::mem::take(&mut bucket.text),
            module: bucket.metadata.target(),
            line: bucket.metadata.line(),
        })
        .collect()
    }

    /// Says what was left out since this was last called.
    pub(super) fn report(&self) {
        for left_out in self.take() {
            crate::event!(
                Suppressed,
                count = left_out.count,
                of = left_out.text,
                module = left_out.module,
                line = left_out.line,
                "events were not logged: too many of a kind came at once"
            );
        }
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.takes(event.metadata(), Instant::now(), || {
            let mut said = Said::default();
            event.record(&mut said);
            said.0
        })
    }
}

/// What an event says, without its fields.
#[derive(Default)]
struct Said(String);

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let text = format!("{value:?}");
            self.0 = text.chars().take(TEXT_CHARS_MAX).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use tracing::Subscriber;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::{Context, SubscriberExt as _};

    use super::{BURST_S, Limit};

    /// Counts what comes through.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Heard {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            let mut said = super::Said::default();
            event.record(&mut said);
            self.0.lock().expect("sound").push(said.0);
        }
    }

    #[test]
    fn a_flood_of_one_kind_is_cut_and_told_and_others_are_heard() {
        let (limit, heard) = (Limit::new(2), Heard::default());
        let subscriber = tracing_subscriber::registry()
            .with(limit.clone())
            .with(heard.clone());
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..1000 {
                tracing::info!(number, "a request is refused");
            }
            tracing::info!("another kind");
            limit.report();
            // Once.
            limit.report();
        });
        let heard = heard.0.lock().expect("sound");
        let of = |text: &str| heard.iter().filter(|said| said.contains(text)).count();
        // While the loop runs a few more fall due.
        let most = 2 * BURST_S as usize;
        let refused = of("a request is refused");
        assert!((most..most + 20).contains(&refused), "{refused}");
        assert_eq!(of("another kind"), 1);
        assert_eq!(of("events were not logged"), 1);
    }

    #[test]
    fn what_was_left_out_is_counted_and_a_pause_lets_more_through() {
        let limit = Limit::new(1);
        let seen = Heard::default();
        let subscriber = tracing_subscriber::registry().with(seen);
        // Any place in the code will do.
        let metadata = tracing::subscriber::with_default(subscriber, || {
            tracing::info_span!("a place").metadata().expect("it is on")
        });
        let start = Instant::now();
        let takes = |at_s: u64| {
            limit.takes(metadata, start + Duration::from_secs(at_s), || {
                "the first".to_owned()
            })
        };
        let taken = (0..25).filter(|_| takes(0)).count();
        assert_eq!(taken, BURST_S as usize);
        let left_out = limit.take();
        assert_eq!((left_out.len(), left_out[0].count), (1, 15));
        assert_eq!(left_out[0].text, "the first");
        assert!(limit.take().is_empty());
        assert_eq!((0..25).filter(|_| takes(3)).count(), 3);
        // Clocks that step back change nothing.
        assert!(!takes(0));
        assert!((0..1000).all(|_| Limit::new(0).takes(metadata, start, String::new)));
    }
}
