//! When a daemon that is started by its sockets ends until somebody comes again.
//!
//! Invariant: it ends only if the service manager listens on every socket that it serves, so that nobody is refused
//! meanwhile, and only if nobody is connected and nothing is computed. Who comes after that is not accepted any more, but
//! waits in the socket for the next start.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Bound;
use crate::frontend::Context;
use crate::socket::Socket;
use crate::spool::book::Filter;
use crate::spool::record::{Door, State};
use crate::worker::WorkerState;

/// Looks within the time that must have passed, and the longest between two.
const LOOKS: u32 = 8;
const LOOK_MAX: Duration = Duration::from_secs(10);

/// For how long nothing may happen until the daemon ends; `None` if it never does.
pub(super) fn after(context: &Context, bound: &Bound) -> Option<Duration> {
    let after = context.config().gateway.idle_exit()?;
    let mut sockets = [&bound.http, &bound.wire].into_iter().flatten();
    // The configuration's check lets no other way in through.
    if bound.loopback.is_none() && bound.metrics.is_none() && sockets.all(Socket::is_passed) {
        return Some(after);
    }
    tracing::warn!(
        "[gateway] idle-exit-s has no effect: the service manager does not listen on every socket, and would not start the \
         daemon for who comes"
    );
    None
}

/// Waits until nothing has happened for this long, for ever if it is none; from then on no front end takes anybody on.
pub(super) async fn over(context: &Context, after: Option<Duration>) {
    let Some(after) = after else {
        return std::future::pending().await;
    };
    let mut looks = interval((after / LOOKS).min(LOOK_MAX));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut since = Instant::now();
    let mut visits = 0;
    loop {
        looks.tick().await;
        let now = context.telemetry.visits();
        if now != visits || is_busy(context) {
            visits = now;
            since = Instant::now();
        } else if since.elapsed() >= after {
            // Front ends run on this thread, and accept nobody once this is so: nobody has come since it was looked.
            context.stopping.cancel();
            return;
        }
    }
}

/// Whether somebody is connected, or something is computed or is to be.
fn is_busy(context: &Context) -> bool {
    let status = context.workers.status();
    status.state == WorkerState::Loading
        || status.running + status.waiting > 0
        || context.telemetry.connected() > 0
        || has_unanswered(context)
}

/// Whether the spool has a request over HTTP that has no answer; one that has is kept for whoever comes for it.
fn has_unanswered(context: &Context) -> bool {
    let open = |state: State| matches!(state, State::Accepted | State::Running);
    let (counts, _) = context.spool.holds();
    let mut states = State::ALL.into_iter().zip(counts);
    states.any(|(state, count)| open(state) && count > 0) && {
        let all = context.spool.list(&Filter::default());
        let mut headers = all.iter().map(|(_, header)| header);
        headers.any(|header| header.key.door == Door::Http && open(header.state))
    }
}
