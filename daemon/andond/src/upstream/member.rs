//! One upstream: what speaks to it, what became of what it was asked, and how much it has to do.
//!
//! Invariant: every question that the breaker lets through comes back to it with its outcome, whatever becomes of whoever asked.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use andon_policy::balance::Candidate;
use andon_policy::breaker::{Breaker, Settings, State, Ticket};
use andon_policy::budget::Price;
use andon_policy::latency::{Expected, Latency};
use hyper::header::HeaderValue;
use tokio::task::spawn_blocking;

use super::answer::FaultKind;
use super::client::{Client, Refusal};
use super::files::{self, Stamps};
use super::{Inner, Standing};
use crate::config::upstream::{self, UpstreamConfig};
use crate::credential::Unusable;

/// A question whose deadline passes in silence counts as a failure when the silence is so many times as long as answers mostly
/// take to begin,
const SILENCE_TIMES: u64 = 4;
/// and at least so long, in milliseconds.
const SILENCE_MS_MIN: u64 = 250;

/// One upstream.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) config: UpstreamConfig,
    pub(super) name: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) price: Price,
    /// Most tokens by which a prompt was longer than its question can be.
    added: AtomicU64,
    about: Mutex<About>,
    /// Whom connections are made to, where that is no name: a name may lead elsewhere by the next time.
    peer: Option<SocketAddr>,
    /// Whether the machine knows a way there.
    has_way: AtomicBool,
}

#[derive(Debug)]
struct About {
    breaker: Breaker,
    latency: Latency,
    open: u32,
    /// What speaks to it, and how the files were that it was made of.
    client: Option<(Arc<Client>, Stamps)>,
    /// How long it was silent towards those whose deadlines passed, as a share of its patience; 1 is a failure.
    silence: f64,
    /// Whether somebody looks whether it is there.
    is_probed: bool,
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
            added: AtomicU64::new(0),
            config: config.clone(),
            about: Mutex::new(About {
                breaker: Breaker::new(settings),
                latency: Latency::default(),
                open: 0,
                client: None,
                silence: 0.0,
                is_probed: false,
                complained: None,
                is_lost: false,
            }),
            peer: (config.peer())
                .and_then(|uri| Some((upstream::ip(&uri)?, upstream::port(&uri)).into())),
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

    /// Tokens that it adds to a prompt of its own, as far as its answers have shown that: the most of all.
    pub(super) fn added(&self) -> u64 {
        self.added.load(Ordering::Relaxed)
    }

    /// It has added so many to one.
    pub(super) fn adds(&self, tokens: u64) {
        self.added.fetch_max(tokens, Ordering::Relaxed);
    }

    pub(super) fn limited_until_ms(&self, now_ms: u64) -> Option<u64> {
        self.about().breaker.limited_until_ms(now_ms)
    }

    /// When something changes of itself: the end of a wait or of the server's own word.
    pub(super) fn next_ms(&self, now_ms: u64) -> Option<u64> {
        let about = self.about();
        let until = [
            about.breaker.due_ms().filter(|_| !about.is_probed),
            about.breaker.limited_until_ms(now_ms),
        ];
        until.into_iter().flatten().min()
    }

    /// Whether it is time to look whether it is there; then nobody else is told so until that has ended.
    pub(super) fn is_due(self: &Arc<Self>, now_ms: u64) -> Option<Probing> {
        if !self.has_way() {
            return None;
        }
        let mut about = self.about();
        let due = about.breaker.due_ms()?;
        if now_ms < due || about.is_probed {
            return None;
        }
        about.is_probed = true;
        drop(about);
        Some(Probing(Arc::clone(self)))
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
            let key = files::key(&member.config)?;
            let stamps = Stamps::of(&member.config);
            let known = member.about().client.clone();
            if let Some((client, of)) = &known
                && *of == stamps
            {
                return Ok((Arc::clone(client), key));
            }
            match (Client::new(&member.config), known) {
                (Ok(client), _) => {
                    let client = Arc::new(client);
                    member.about().client = Some((Arc::clone(&client), stamps));
                    Ok((client, key))
                }
                // They may be half replaced. What was in order goes on, and they are looked at again.
                (Err(unusable), Some((client, _))) => {
                    let name = &*member.name;
                    tracing::warn!(upstream = name, %unusable, "the new files of an upstream are not used; the former ones are");
                    Ok((client, key))
                }
                (Err(unusable), None) => Err(unusable),
            }
        });
        let unusable = |unusable: Unusable| {
            let kind = match unusable.key {
                files::CA => FaultKind::Untrusted,
                _ => FaultKind::Denied,
            };
            Refusal::new(kind, unusable.to_string())
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

    /// Looks whether the machine knows a way there. No packet is sent: a datagram socket is only told whom it would be for.
    pub(super) fn look_for_way(&self) {
        let has_way = self.peer.is_none_or(has_way);
        self.has_way.store(has_way, Ordering::Relaxed);
    }

    /// Whether somebody has to look again whether there is a way.
    pub(super) fn lacks_way(&self) -> bool {
        !self.has_way()
    }

    /// It has failed with a question.
    fn failed(
        &self,
        about: &mut About,
        inner: &Inner,
        ticket: Ticket,
        (kind, what): (FaultKind, &str),
    ) {
        let now_ms = inner.now_ms();
        about.silence = 0.0;
        about.breaker.failed(ticket, now_ms, inner.noise());
        let opened = about.breaker.state(now_ms) == State::Open;
        if opened && !std::mem::replace(&mut about.is_lost, true) {
            crate::event!(
                UpstreamLost,
                upstream = &*self.name,
                kind = kind.name(),
                error = what,
                "an upstream failed too often and is left alone for a while"
            );
        }
        // Others go on by the connections that there are, one of HTTP/2 among them, which may lead nowhere.
        if !matches!(
            kind,
            FaultKind::Redirected | FaultKind::Denied | FaultKind::Failed
        ) {
            about.client = None;
        }
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

/// Whether the machine knows a way to an address. Where that cannot be found out, there may be one.
fn has_way(peer: SocketAddr) -> bool {
    let any = match peer.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let Ok(socket) = UdpSocket::bind((any, 0)) else {
        return true;
    };
    !socket.connect(peer).is_err_and(|error| {
        matches!(
            error.kind(),
            ErrorKind::NetworkUnreachable
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkDown
                | ErrorKind::AddrNotAvailable
        )
    })
}

/// Looks whether an upstream is there. Where it is dropped, nothing was found out.
#[derive(Debug)]
pub(super) struct Probing(Arc<Member>);

impl Probing {
    pub(super) fn member(&self) -> &Arc<Member> {
        &self.0
    }

    pub(super) fn ended(self, outcome: &Result<(), Refusal>, now_ms: u64, noise: u32) {
        let mut about = self.0.about();
        about.breaker.probed(outcome.is_ok(), now_ms, noise);
        if outcome.is_err() {
            about.client = None;
        }
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.0.about().is_probed = false;
    }
}

/// A question that an upstream has, however often it is asked. Dropping it says that nothing came of it, but for what was
/// [noted](Turn::noted) and for its silence.
#[derive(Debug)]
pub(super) struct Turn {
    member: Arc<Member>,
    inner: Arc<Inner>,
    ticket: Option<Ticket>,
    noted: Option<Refusal>,
    /// Since when a word of it is waited for; unset while nobody listens.
    silent_since: Option<Instant>,
    has_begun: bool,
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
            noted: None,
            silent_since: None,
            has_begun: false,
        })
    }

    /// Since when a word of it is waited for; `None` while nobody listens.
    pub(super) fn listens(&mut self, since: Option<Instant>) {
        self.silent_since = since;
    }

    /// The answer has begun, after so long.
    pub(super) fn began(&mut self, after: Duration) {
        self.has_begun = true;
        let mut about = self.member.about();
        if let Some(ticket) = &mut self.ticket {
            about.breaker.began(ticket);
        }
        about.latency.began(millis(after));
        drop(about);
        self.inner.publish();
    }

    /// It is complete, with so many tokens and so long after its beginning.
    pub(super) fn succeeded(&mut self, tokens: u32, rest: Duration) {
        let mut about = self.member.about();
        if let Some(ticket) = self.ticket.take() {
            about.breaker.succeeded(ticket);
        }
        about.latency.ended(tokens, millis(rest));
        about.silence = 0.0;
        about.complained = None;
        if std::mem::take(&mut about.is_lost) {
            crate::event!(
                UpstreamBack,
                upstream = &*self.member.name,
                "an upstream answers again"
            );
        }
    }

    /// It has failed once, and is asked again. That is no failure unless it is the last word.
    pub(super) fn noted(&mut self, refusal: &Refusal) {
        self.noted = Some(refusal.clone());
        self.silent_since = None;
    }

    /// It will not come, and why.
    pub(super) fn failed(mut self, refusal: &Refusal) {
        self.end(refusal);
    }

    fn end(&mut self, refusal: &Refusal) {
        let mut about = self.member.about();
        self.member.complain(&mut about, refusal);
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        match refusal.kind {
            FaultKind::Busy => {
                let now_ms = self.inner.now_ms();
                let after = refusal.retry_after.unwrap_or(super::BUSY_PAUSE);
                about.breaker.limited(ticket, now_ms, millis(after));
            }
            // It is there and works; the question or the answer is at fault.
            FaultKind::Rejected
            | FaultKind::Misshapen
            | FaultKind::Withheld
            | FaultKind::Unavailable => about.breaker.gave_up(ticket),
            FaultKind::Deadline => self.left(&mut about, ticket),
            FaultKind::Unreachable
            | FaultKind::Untrusted
            | FaultKind::Slow
            | FaultKind::Broken
            | FaultKind::Garbled
            | FaultKind::Endless
            | FaultKind::Redirected
            | FaultKind::Denied
            | FaultKind::Failed => {
                let fault = (refusal.kind, refusal.what.as_str());
                self.member.failed(&mut about, &self.inner, ticket, fault);
            }
        }
    }

    /// Nobody waits for it any more: a deadline has passed, or another was faster. Of a server that hangs nobody would learn
    /// otherwise whom none asks with as much patience as the configuration has: silences count by their share of that, or each
    /// for itself where answers mostly begin much sooner.
    fn left(&self, about: &mut About, ticket: Ticket) {
        let config = &self.member.config;
        let patience_ms = if self.has_begun {
            config.token_timeout_ms
        } else {
            config.first_token_timeout_ms
        };
        let silent_ms = self.silent_since.map_or(0, |since| millis(since.elapsed()));
        about.silence += silent_ms as f64 / patience_ms.max(1) as f64;
        let usual = about.latency.expected(1).filter(|_| !self.has_begun);
        let is_unusual = usual.is_some_and(|usual| {
            silent_ms >= SILENCE_MS_MIN.max(usual.first_ms.saturating_mul(SILENCE_TIMES))
        });
        let is_on_trial = ticket.is_trial() && silent_ms >= SILENCE_MS_MIN;
        if about.silence >= 1.0 || is_unusual || is_on_trial {
            let fault = (FaultKind::Slow, "it is silent until nobody waits any more");
            self.member.failed(about, &self.inner, ticket, fault);
        } else {
            about.breaker.gave_up(ticket);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.ticket.is_some()
            && let Some(refusal) = self.noted.take()
        {
            self.end(&refusal);
        }
        let mut about = self.member.about();
        if let Some(ticket) = self.ticket.take() {
            self.left(&mut about, ticket);
        }
        about.open = about.open.saturating_sub(1);
        drop(about);
        self.inner.publish();
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
