//! Looks whether upstreams are there again: when the wait of one that failed is over, and when the ways of the network change.
//!
//! Invariant: one that is asked without failing is not looked at, and nobody is looked at more often than its breaker says.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::answer::FaultKind;
use super::client::Refusal;
use super::member::Member;
use super::routes::Routes;
use super::{Inner, Upstreams};

/// How often it is looked again whether there is a way to where there was none.
const WAY: Duration = Duration::from_secs(5);
/// With nothing due it is looked after so long whether something is.
const IDLE: Duration = Duration::from_secs(3600);

impl Upstreams {
    /// Looks after the upstreams until the daemon stops. `proc` is where the system shows its processes.
    pub async fn watch(self, proc: std::path::PathBuf, stopping: CancellationToken) {
        let mut routes = None;
        loop {
            let inner = &self.inner;
            // Without upstreams nobody has to know of routes.
            if !self.is_empty() && routes.is_none() {
                routes = Some(Routes::watch(&proc));
            }
            let pause = next(inner);
            let changed = async {
                match &mut routes {
                    Some(routes) => routes.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                () = inner.news.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = changed => {
                    let now_ms = inner.now_ms();
                    for member in inner.members().iter() {
                        member.network_changed(now_ms);
                    }
                    tracing::info!("the ways of the network have changed; upstreams are looked for anew");
                    inner.publish();
                }
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = look(inner) => {}
            }
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

/// Looks at those for which it is time, all at once.
async fn look(inner: &Arc<Inner>) {
    let members = inner.members();
    for member in members.iter().filter(|member| member.lacks_way()) {
        member.look_for_way();
    }
    let now_ms = inner.now_ms();
    let due = members.iter().filter(|member| member.is_due(now_ms));
    join_all(due.map(|member| probe(inner, member))).await;
    inner.publish();
}

async fn probe(inner: &Arc<Inner>, member: &Arc<Member>) {
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
    member.probed(&outcome, inner.now_ms(), inner.noise());
}
