//! One upstream: what speaks to it, what became of what it was asked, and how much it has to do.
//!
//! Invariant: every question that the breaker lets through comes back to it with its outcome, whatever becomes of whoever asked.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use andon_policy::balance::Candidate;
use andon_policy::breaker::{Breaker, Settings, State, Ticket};
use andon_policy::budget::Price;
use andon_policy::latency::{Expected, Latency};
use hyper::header::HeaderValue;
use tokio::task::spawn_blocking;

use super::answer::FaultKind;
use super::client::{self, Client, Refusal};
use super::{Inner, Standing};
use crate::config::upstream::UpstreamConfig;

/// One upstream.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) config: UpstreamConfig,
    pub(super) name: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) price: Price,
    about: Mutex<About>,
    /// Whom the last connection was made to.
    peer: Arc<Mutex<Option<SocketAddr>>>,
    /// Whether the machine knows a way there.
    has_way: AtomicBool,
}

#[derive(Debug)]
struct About {
    breaker: Breaker,
    latency: Latency,
    open: u32,
    client: Option<Arc<Client>>,
    /// What was last said in the journal to be wrong with it for a person to see to.
    complained: Option<FaultKind>,
    /// Whether it was said that it is left alone.
    is_lost: bool,
}

impl Member {
    pub(super) fn new(config: &UpstreamConfig) -> Member {
        let settings = Settings {
            failures_max: config.failures_max,
            open_ms: config.open_ms,
            open_ms_max: config.open_max_ms,
        };
        Member {
            name: Arc::from(config.name.as_str()),
            model: Arc::from(config.model.as_str()),
            price: config.price(),
            config: config.clone(),
            about: Mutex::new(About {
                breaker: Breaker::new(settings),
                latency: Latency::default(),
                open: 0,
                client: None,
                complained: None,
                is_lost: false,
            }),
            peer: Arc::default(),
            has_way: AtomicBool::new(true),
        }
    }

    fn about(&self) -> MutexGuard<'_, About> {
        // Each change below leaves it whole.
        self.about.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn standing(&self, now_ms: u64) -> Standing {
        let state = self.about().breaker.state(now_ms);
        Standing {
            name: Arc::clone(&self.name),
            state: if self.has_way() { state } else { State::Open },
        }
    }

    /// Whether it may be asked, whatever it has to do.
    pub(super) fn lets(&self, now_ms: u64) -> bool {
        self.has_way() && self.about().breaker.lets(now_ms)
    }

    /// Whether it has as much to do as it may.
    pub(super) fn is_full(&self) -> bool {
        self.about().open >= self.config.requests_max
    }

    /// What counts when one is chosen.
    pub(super) fn candidate(&self, now_ms: u64, avoided: bool) -> Candidate {
        Candidate {
            priority: self.config.priority,
            weight: self.config.weight,
            may: !avoided && self.lets(now_ms) && !self.is_full(),
        }
    }

    pub(super) fn expected(&self, tokens: u32) -> Option<Expected> {
        self.about().latency.expected(tokens)
    }

    pub(super) fn limited_until_ms(&self, now_ms: u64) -> Option<u64> {
        self.about().breaker.limited_until_ms(now_ms)
    }

    /// When something changes of itself: the end of a wait or of the server's own word.
    pub(super) fn next_ms(&self, now_ms: u64) -> Option<u64> {
        let about = self.about();
        let until = [
            about.breaker.due_ms(),
            about.breaker.limited_until_ms(now_ms),
        ];
        until.into_iter().flatten().min()
    }

    /// Whether it is time to look whether it is there.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        self.has_way()
            && self
                .about()
                .breaker
                .due_ms()
                .is_some_and(|due| now_ms >= due)
    }

    fn has_way(&self) -> bool {
        self.has_way.load(Ordering::Relaxed)
    }

    /// What speaks to it and the key that it is shown, as the files are now.
    pub(super) async fn client(
        self: &Arc<Self>,
    ) -> Result<(Arc<Client>, Option<HeaderValue>), Refusal> {
        let member = Arc::clone(self);
        let made = spawn_blocking(move || {
            let key = client::key(&member.config).map_err(|what| ("api-key-file", what))?;
            let known = member.about().client.clone();
            let client = match known {
                Some(client) => client,
                None => {
                    let client = Client::new(&member.config, Arc::clone(&member.peer))?;
                    let client = Arc::new(client);
                    Arc::clone(member.about().client.insert(client))
                }
            };
            Ok::<_, (&'static str, String)>((client, key))
        });
        let unusable = |(key, what): (&'static str, String)| {
            let kind = if key == "api-key-file" {
                FaultKind::Denied
            } else {
                FaultKind::Untrusted
            };
            Refusal::new(kind, format!("{key}: {what}"))
        };
        match made.await {
            Ok(made) => made.map_err(unusable),
            Err(_) => Err(Refusal::new(FaultKind::Unavailable, "the daemon stops")),
        }
    }

    /// What was made of files that may have changed, and connections that may lead nowhere, are not used any more.
    pub(super) fn forget_connections(&self) {
        self.about().client = None;
    }

    /// The ways of the network have changed.
    pub(super) fn network_changed(&self, now_ms: u64) {
        self.forget_connections();
        self.look_for_way();
        self.about().breaker.network_changed(now_ms);
    }

    /// Looks whether the machine knows a way to where it was last connected to; says whether that is news. No packet is sent: a
    /// datagram socket is only told whom it would be for.
    pub(super) fn look_for_way(&self) -> bool {
        let peer = *self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        let has_way = peer.is_none_or(|peer| {
            let any: SocketAddr = match peer {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            // Where no socket can be made nothing is known.
            UdpSocket::bind(any).is_err()
                || UdpSocket::bind(any).is_ok_and(|socket| socket.connect(peer).is_ok())
        });
        self.has_way.swap(has_way, Ordering::Relaxed) != has_way
    }

    /// Whether somebody has to look again whether there is a way.
    pub(super) fn lacks_way(&self) -> bool {
        !self.has_way()
    }

    /// Somebody has looked whether it is there.
    pub(super) fn probed(&self, outcome: &Result<(), Refusal>, now_ms: u64, noise: u32) {
        self.about().breaker.probed(outcome.is_ok(), now_ms, noise);
    }

    /// Says once in the journal what a person has to see to.
    fn complain(&self, about: &mut About, refusal: &Refusal) {
        let is_for_a_person = matches!(
            refusal.kind,
            FaultKind::Denied | FaultKind::Untrusted | FaultKind::Redirected
        );
        if is_for_a_person && about.complained != Some(refusal.kind) {
            about.complained = Some(refusal.kind);
            crate::event!(
                UpstreamRefused,
                upstream = &*self.name,
                error = refusal.what,
                "an upstream cannot be asked until somebody sees to it"
            );
        }
    }
}

/// A question that an upstream has. Dropping it says that nothing came of it.
#[derive(Debug)]
pub(super) struct Turn {
    member: Arc<Member>,
    inner: Arc<Inner>,
    ticket: Option<Ticket>,
}

impl Turn {
    /// Takes a place with an upstream, if its breaker lets one through.
    pub(super) fn take(member: &Arc<Member>, inner: &Arc<Inner>) -> Option<Turn> {
        let mut about = member.about();
        let ticket = about.breaker.ask(inner.now_ms())?;
        about.open += 1;
        drop(about);
        inner.publish();
        Some(Turn {
            member: Arc::clone(member),
            inner: Arc::clone(inner),
            ticket: Some(ticket),
        })
    }

    /// The answer has begun, after so long.
    pub(super) fn began(&mut self, after: Duration) {
        let mut about = self.member.about();
        if let Some(ticket) = &mut self.ticket {
            about.breaker.began(ticket);
        }
        about.latency.began(millis(after));
        drop(about);
        self.inner.publish();
    }

    /// It is complete, with so many tokens and so long after its beginning.
    pub(super) fn succeeded(mut self, tokens: u32, rest: Duration) {
        let mut about = self.member.about();
        if let Some(ticket) = self.ticket.take() {
            about.breaker.succeeded(ticket);
        }
        about.latency.ended(tokens, millis(rest));
        about.complained = None;
        if std::mem::take(&mut about.is_lost) {
            crate::event!(
                UpstreamBack,
                upstream = &*self.member.name,
                "an upstream answers again"
            );
        }
    }

    /// It will not come, and why.
    pub(super) fn failed(mut self, refusal: &Refusal) {
        let now_ms = self.inner.now_ms();
        let mut about = self.member.about();
        self.member.complain(&mut about, refusal);
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        match refusal.kind {
            FaultKind::Busy => {
                let after = refusal.retry_after.unwrap_or(super::BUSY_PAUSE);
                about.breaker.limited(ticket, now_ms, millis(after));
            }
            // It is there and works; the question or the answer is at fault.
            FaultKind::Rejected
            | FaultKind::Misshapen
            | FaultKind::Withheld
            | FaultKind::Deadline
            | FaultKind::Unavailable => about.breaker.gave_up(ticket),
            FaultKind::Unreachable
            | FaultKind::Untrusted
            | FaultKind::Slow
            | FaultKind::Broken
            | FaultKind::Garbled
            | FaultKind::Endless
            | FaultKind::Redirected
            | FaultKind::Denied
            | FaultKind::Failed => {
                about.breaker.failed(ticket, now_ms, self.inner.noise());
                let opened = about.breaker.state(now_ms) == State::Open;
                if opened && !std::mem::replace(&mut about.is_lost, true) {
                    crate::event!(
                        UpstreamLost,
                        upstream = &*self.member.name,
                        kind = refusal.kind.name(),
                        error = refusal.what,
                        "an upstream failed too often and is left alone for a while"
                    );
                }
                if matches!(refusal.kind, FaultKind::Untrusted | FaultKind::Unreachable) {
                    about.client = None;
                }
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut about = self.member.about();
        if let Some(ticket) = self.ticket.take() {
            about.breaker.gave_up(ticket);
        }
        about.open = about.open.saturating_sub(1);
        drop(about);
        self.inner.publish();
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
