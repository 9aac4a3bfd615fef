//! What is not as it should be although the daemon goes on: a bounded list of words, the same in the status topic, in
//! `andonctl status` and in metrics.

use andon_wire::{Degraded, HealthStatus, MemoryStatus, MqttLink};

use crate::frontend::Context;
use crate::memory::Shortage;
use crate::worker::{Status, WorkerState};
use andon_policy::throttle::Throttle;

/// What the daemon does without, by what its worker says of itself, the worst first.
#[must_use]
pub fn degraded(context: &Context, status: &Status) -> Vec<Degraded> {
    let is_so = |mode: &Degraded| match mode {
        Degraded::NotServing => {
            matches!(
                status.state,
                WorkerState::Failed(_) | WorkerState::Broken(_)
            )
        }
        Degraded::Stalled => context.workers.stalled().is_some(),
        Degraded::Throttled => status.throttle.0 != Throttle::None,
        Degraded::MemoryShort => context.budget.facts().shortage != Shortage::None,
        Degraded::SpoolFailing => context.spool.failing().is_some(),
        Degraded::SpoolFull => context.spool.is_full(),
        Degraded::CacheFailing => context.workers.cannot_keep_pages(),
        Degraded::PackUnused => {
            status.state == WorkerState::Ready && context.workers.lacks_its_pack()
        }
        Degraded::DraftUnused => {
            let draft = status.draft.as_ref();
            draft.is_some_and(|draft| draft.state.is_err())
        }
        Degraded::BackendLost => context.workers.lost_a_device(),
        Degraded::BrokerLost => context.telemetry.mqtt_link() == MqttLink::Connecting,
    };
    Degraded::ALL.into_iter().filter(is_so).collect()
}

/// The same, and the budget of memory.
#[must_use]
pub fn health(context: &Context) -> HealthStatus {
    let facts = context.budget.facts();
    let promised = facts.parts.iter().map(|(_, bytes)| bytes);
    HealthStatus {
        degraded: degraded(context, &context.workers.status())
            .into_iter()
            .collect(),
        memory: MemoryStatus {
            budget_bytes: facts.bytes_max,
            promised_bytes: promised.sum(),
            left_bytes: facts.left,
        },
    }
}
