//! When a daemon that was started by a socket may end until somebody asks again.
//!
//! Invariant: it ends only if the service manager listens on every socket that it serves, so that nobody is refused
//! meanwhile, and only if nothing is connected, computed, or still to be answered.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Bound;
use crate::frontend::Context;
use crate::request::Origin;
use crate::socket::Socket;
use crate::spool::record::State;
use crate::telemetry::metrics::OriginLabels;

/// Looks within the time that must have passed.
const LOOKS: u32 = 8;

/// For how long nothing may happen until the daemon ends; `None` if it never does.
pub(super) fn after(context: &Context, bound: &Bound) -> Option<Duration> {
    let after = context.config.gateway.idle_exit()?;
    let mut sockets = [&bound.http, &bound.wire].into_iter().flatten();
    if bound.loopback.is_none() && sockets.all(Socket::is_passed) {
        return Some(after);
    }
    tracing::warn!(
        "[gateway] idle-exit-s has no effect: the service manager does not listen on every socket"
    );
    None
}

/// Waits until nothing has happened for this long; for ever if it is none.
pub(super) async fn over(context: &Context, after: Option<Duration>) {
    let Some(after) = after else {
        return std::future::pending().await;
    };
    let mut looks = interval(after / LOOKS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut since = Instant::now();
    while since.elapsed() < after {
        looks.tick().await;
        if is_busy(context) {
            since = Instant::now();
        }
    }
}

fn is_busy(context: &Context) -> bool {
    let connected = |origin: Origin| {
        let labels = OriginLabels {
            origin: origin.name(),
        };
        context.telemetry.connections.get_or_create(&labels).get() > 0
    };
    let status = context.workers.status();
    let (kept, _) = context.spool.holds();
    let open = State::ALL.iter().zip(kept);
    connected(Origin::Http) || connected(Origin::Wire) || status.running + status.waiting > 0 || {
        open
    }
    .any(|(state, count)| *state != State::Delivered && count > 0)
}
