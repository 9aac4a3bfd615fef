//! Telling the service manager that a start takes long and goes on, so that it waits no longer than it has to for one that hangs.
//!
//! What counts is what the load has done: steps (a file opened, memory promised, a token of the self-test, a piece of weights
//! compared or read ahead) and bytes that the disk gave, since the first pass over a model's weights is one step that may read for
//! minutes. That time passes counts for nothing.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use super::notify;
use crate::frontend::Context;
use crate::worker::WorkerState;

/// How often it is looked at how far the load is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// For how long the service manager is to wait from then on. As long as `TimeoutStartSec=` of the unit, which is what the first
/// look has to come within.
const GRANTED: Duration = Duration::from_secs(60);

/// Less than this from the disk is not the load's.
const READ_BYTES_MIN: u64 = 1 << 20;

/// What the system counts blocks in that it reads for a process, whatever the disk's are.
const BLOCK_BYTES: u64 = 512;

/// How far a load is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    steps: u64,
    read_bytes: u64,
}

impl Progress {
    fn now(context: &Context) -> Progress {
        let blocks = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.block_reads());
        Progress {
            steps: context.workers.load_steps(),
            read_bytes: u64::try_from(blocks)
                .unwrap_or(0)
                .saturating_mul(BLOCK_BYTES),
        }
    }

    /// Whether the load has come further since.
    fn is_beyond(self, before: Progress) -> bool {
        self.steps != before.steps
            || self.read_bytes >= before.read_bytes.saturating_add(READ_BYTES_MIN)
    }
}

/// Has the service manager wait for the model while that comes further.
pub(super) async fn extend(context: Context) {
    let mut states = context.workers.states();
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Progress::default();
    loop {
        tokio::select! {
            biased;
            // READY has been told, or an end.
            _ = states.wait_for(|state| *state != WorkerState::Loading) => return,
            () = context.stopping.cancelled() => return,
            _ = looks.tick() => {}
        }
        let now = Progress::now(&context);
        if now.is_beyond(told) {
            told = now;
            let micros = u32::try_from(GRANTED.as_micros()).unwrap_or(u32::MAX);
            notify(&[NotifyState::ExtendTimeoutUsec(micros)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{GRANTED, Progress, READ_BYTES_MIN};

    #[test]
    fn a_load_comes_further_by_steps_and_by_bytes_and_not_by_time() {
        let before = Progress {
            steps: 3,
            read_bytes: 5 << 20,
        };
        assert!(!before.is_beyond(before));
        let after = |steps, read_bytes| Progress { steps, read_bytes };
        assert!(after(4, 5 << 20).is_beyond(before));
        assert!(after(3, (5 << 20) + READ_BYTES_MIN).is_beyond(before));
        assert!(!after(3, (5 << 20) + READ_BYTES_MIN - 1).is_beyond(before));
    }

    #[test]
    fn the_unit_waits_as_long_as_each_look_asks_for() {
        let unit = include_str!("../../../../systemd/andond.service");
        let line = format!("\nTimeoutStartSec={}\n", GRANTED.as_secs());
        assert!(unit.contains(&line), "no {line:?}");
    }
}
