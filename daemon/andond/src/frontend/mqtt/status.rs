//! The retained status: what the gateway says of itself, and what the broker says when it is gone.
//!
//! A status is published when it has changed, and not more often than the configuration allows.

use std::time::{Duration, Instant};

use andon_wire::Degraded;
use andon_wire::topic::Topics;
use serde_json::{Value, json};

use super::message::{Outgoing, Properties, Version};
use crate::router::Router;
use crate::worker::{Status, WorkerState};
use crate::workers::{Named, Residence};

/// Most models that are told of beside the configured one.
const MODELS_MAX: usize = 32;

/// What the last will says, and a farewell too.
pub(super) fn offline(topics: &Topics, reason: &str) -> Outgoing {
    let value = json!({
        "state": "offline",
        "reason": reason,
        "version": env!("CARGO_PKG_VERSION"),
        "ready": false,
    });
    message(topics, &value)
}

/// What is said while the link is up.
pub(super) fn online(
    status: &Status,
    models: &[Named],
    tasks: &[String],
    version: Version,
    unanswered: usize,
    degraded: &[Degraded],
) -> Value {
    let (phase, why) = match &status.state {
        WorkerState::Loading => ("loading", None),
        WorkerState::Waiting(why) => ("loading", Some(why.as_str())),
        WorkerState::Ready => ("ready", None),
        WorkerState::Stopping => ("stopping", None),
        WorkerState::Failed(why) | WorkerState::Broken(why) => ("failed", Some(why.as_str())),
    };
    let mut value = json!({
        "state": "online",
        "version": env!("CARGO_PKG_VERSION"),
        "protocol": version.name(),
        "ready": status.state == WorkerState::Ready,
        "phase": phase,
        "tasks": tasks,
        "degraded": degraded,
        "load": {
            "waiting": status.waiting,
            "running": status.running,
            "mqtt_unanswered": unanswered,
        },
    });
    if let Some(why) = why {
        value["reason"] = why.into();
    }
    if let Some(model) = &status.model {
        value["model"] = json!({
            "name": model.name,
            "architecture": model.architecture,
            "context_tokens_max": model.context_tokens_max,
        });
    }
    let others = models.iter().filter(|model| {
        model.state != Residence::Kept && (!model.default || model.model.is_some())
    });
    let others: Vec<Value> = others.take(MODELS_MAX).map(named).collect();
    if !others.is_empty() {
        value["models"] = others.into();
    }
    if let (throttle, Some(cause)) = status.throttle {
        value["throttled"] = json!({ "batch": throttle.as_str(), "cause": cause.as_str() });
    }
    if let Some(draft) = &status.draft {
        value["draft"] = match &draft.state {
            Ok(used) => json!({
                "name": draft.name,
                "used": true,
                "bytes": used.bytes,
                "translated": used.translated,
            }),
            Err(why) => json!({ "name": draft.name, "used": false, "reason": why }),
        };
    }
    value
}

/// Adds what is known of those who answer elsewhere, if there are any.
pub(super) fn upstream(value: &mut Value, router: &Router) {
    if router.upstreams().is_empty() {
        return;
    }
    let link = router.upstreams().link().borrow().clone();
    let upstreams = link.upstreams.iter();
    let upstreams: Value = upstreams
        .map(|one| json!({ "name": &*one.name, "state": one.state.as_str() }))
        .collect();
    value["upstream"] = json!({
        "up": link.up,
        "waiting": router.waiting(),
        "servers": upstreams,
    });
}

/// A model that is loaded beside the configured one, or answers in its place.
fn named(model: &Named) -> Value {
    let mut value = json!({ "name": model.name, "state": model.state.name() });
    if let Some(answers) = &model.model {
        value["answered_by"] = answers.as_str().into();
    }
    if model.probation {
        value["probation"] = true.into();
    }
    value
}

/// The retained message with a status.
pub(super) fn message(topics: &Topics, value: &Value) -> Outgoing {
    Outgoing {
        topic: topics.status().as_str().to_owned(),
        payload: value.to_string().into(),
        retain: true,
        confirmed: true,
        // None: listeners of any version, behind any broker.
        properties: Properties::default(),
    }
}

/// Decides when a status goes out.
#[derive(Debug)]
pub(super) struct Board {
    interval: Duration,
    shown: Option<(Instant, Value)>,
}

impl Board {
    /// Nothing was shown yet.
    pub(super) fn new(interval: Duration) -> Board {
        Board {
            interval,
            shown: None,
        }
    }

    /// Changes go out at most so often from now on.
    pub(super) fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// The broker may show something else, such as the last will.
    pub(super) fn forget(&mut self) {
        self.shown = None;
    }

    /// Whether a change may go out now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.shown
            .as_ref()
            .is_none_or(|(at, _)| now.saturating_duration_since(*at) >= self.interval)
    }

    /// Whether `value` should go out now.
    pub(super) fn show(&mut self, value: &Value, now: Instant) -> bool {
        let known = self.shown.as_ref().is_some_and(|(_, shown)| shown == value);
        if known || !self.is_due(now) {
            return false;
        }
        self.shown = Some((now, value.clone()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_shown_but_not_too_often() {
        let now = Instant::now();
        let mut board = Board::new(Duration::from_secs(1));
        assert!(board.show(&json!(1), now));
        assert!(!board.show(&json!(1), now + Duration::from_secs(9)));
        assert!(board.show(&json!(2), now + Duration::from_secs(9)));
        assert!(!board.show(&json!(3), now + Duration::from_millis(9500)));
        assert!(board.show(&json!(3), now + Duration::from_secs(10)));
        board.forget();
        assert!(board.show(&json!(3), now + Duration::from_secs(10)));
    }
}
