//! Looks whether upstreams are there again: when the wait of one that failed is over, and when the ways of the network change.
//!
//! Invariant: one that is asked without failing is not looked at, nobody is looked at more often than its breaker says, or twice at
//! once; and however long a look takes, a change of the ways is heard of.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::answer::FaultKind;
use super::client::Refusal;
use super::member::{Member, Probing};
use super::routes::Routes;
use super::{Inner, Upstreams};

/// How often it is looked again whether there is a way to where there was none.
const WAY: Duration = Duration::from_secs(5);
/// With nothing due it is looked after so long whether something is.
const IDLE: Duration = Duration::from_secs(3600);

impl Upstreams {
    /// Looks after the upstreams until the daemon stops. `proc` is where the system shows its processes.
    pub async fn watch(self, proc: PathBuf, stopping: CancellationToken) {
        let inner = &self.inner;
        let mut routes = None;
        // What is looked at takes its time; changes are heard of meanwhile.
        let mut probes = JoinSet::new();
        loop {
            // Without upstreams nobody has to know of routes.
            if !self.is_empty() && routes.is_none() {
                routes = Some(Routes::watch(&proc));
            }
            let changed = async {
                match &mut routes {
                    Some(routes) => routes.changed().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                () = inner.news.notified() => {}
                () = sleep(next(inner)) => {}
                Some(_) = probes.join_next() => {}
                () = changed => {
                    // What was found out by the former ways does not count.
                    probes.shutdown().await;
                    let now_ms = inner.now_ms();
                    for member in inner.members().iter() {
                        member.network_changed(now_ms);
                    }
                    tracing::info!("the ways of the network have changed; upstreams are looked for anew");
                }
            }
            look(inner, &mut probes);
        }
    }
}

/// How long nothing changes of itself.
fn next(inner: &Arc<Inner>) -> Duration {
    let now_ms = inner.now_ms();
    let members = inner.members();
    let due = members.iter().filter_map(|member| {
        if member.lacks_way() {
            return Some(WAY);
        }
        let at = member.next_ms(now_ms)?;
        Some(Duration::from_millis(at.saturating_sub(now_ms)))
    });
    due.min().unwrap_or(IDLE)
}

/// Begins to look at those for which it is time.
fn look(inner: &Arc<Inner>, probes: &mut JoinSet<()>) {
    let now_ms = inner.now_ms();
    for member in inner.members().iter() {
        if member.lacks_way() {
            member.look_for_way();
        }
        if let Some(probing) = member.is_due(now_ms) {
            probes.spawn(probe(Arc::clone(inner), probing));
        }
    }
    inner.publish();
}

async fn probe(inner: Arc<Inner>, probing: Probing) {
    let member: &Arc<Member> = probing.member();
    let config = &member.config;
    let patience = config
        .connect_timeout_ms
        .saturating_add(config.first_token_timeout_ms);
    let asking = async {
        let (client, key) = member.client().await?;
        client.probe(key.as_ref()).await
    };
    let outcome = timeout(Duration::from_millis(patience), asking).await;
    let outcome =
        outcome.unwrap_or_else(|_| Err(Refusal::new(FaultKind::Slow, "it does not answer")));
    if let Err(refusal) = &outcome {
        tracing::debug!(
            upstream = &*member.name,
            error = refusal.what,
            "an upstream is not there"
        );
    }
    probing.ended(&outcome, inner.now_ms(), inner.noise());
    inner.publish();
}
