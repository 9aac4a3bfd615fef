//! Servers elsewhere that answer in this one's place, each speaking OpenAI's chat completions.
//!
//! Whether a request goes there at all is [`crate::router`]'s to decide. Here it is decided which of them is asked, how long it
//! may take, whether another is asked when it fails, and what of its answer is believed.
//!
//! Invariant: a question is asked with a [`Permit`] only; its answer ends with exactly one [`Piece::Done`] or [`UpstreamFault`],
//! by the deadline; nothing that an upstream sends grows a buffer without a named bound; and no key is in a log or an error.

mod answer;
mod body;
mod check;
mod client;
mod connect;
mod cost;
mod drive;
mod files;
mod instance;
mod member;
mod question;
pub mod reply;
mod routes;
mod watch;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use andon_policy::balance;
pub use andon_policy::breaker::State;
use andon_policy::budget::Price;
use tokio::sync::{Notify, mpsc, watch as channel};

pub use crate::router::egress::Permit;
pub use answer::{Answered, Answering, FaultKind, Piece, Spent, ToolCall, UpstreamFault};
pub use question::{Question, Shape, Unsuited};

use crate::config::upstream::UpstreamConfig;
use crate::config::{Config, Problems};
use crate::telemetry::Telemetry;
use member::Member;

/// Pieces of an answer that wait for whoever reads it; then the upstream waits.
const PIECES_MAX: usize = 16;
/// How long a server is left alone that is busy and does not say for how long.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// How one upstream is, as the status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Whether it may be asked.
    pub state: State,
}

/// What is known of the way to the upstreams.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Whether some upstream is taken to be there, be it that it has as much to do as it may just now.
    pub up: bool,
    /// All of them, in the order of the configuration.
    pub upstreams: Arc<[Standing]>,
}

/// How long an answer is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Until its first token; about three of four answers are faster.
    pub first: Duration,
    /// Until its end.
    pub whole: Duration,
}

/// All upstreams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    members: RwLock<Arc<[Arc<Member>]>>,
    link: channel::Sender<Link>,
    /// Wakes what looks whether they are there.
    news: Notify,
    telemetry: Arc<Telemetry>,
    started: Instant,
    dice: AtomicU64,
}

impl Upstreams {
    /// Those of the configuration.
    #[must_use]
    pub fn new(config: &Config, telemetry: Arc<Telemetry>) -> Upstreams {
        let upstreams = Upstreams {
            inner: Arc::new(Inner {
                members: RwLock::new(Arc::from(Vec::new())),
                link: channel::Sender::new(Link::default()),
                news: Notify::new(),
                telemetry,
                started: Instant::now(),
                dice: AtomicU64::new(RandomState::new().hash_one(0)),
            }),
        };
        upstreams.reloaded(config);
        upstreams
    }

    /// Goes by another configuration from now on. What is being asked goes on as it began, and an upstream of which nothing has
    /// changed keeps what is known of it.
    pub fn reloaded(&self, config: &Config) {
        let known = self.inner.members();
        let member = |config: &UpstreamConfig| {
            let same = known.iter().find(|member| member.config == *config);
            match same {
                Some(member) => {
                    // The files that it names may hold something else by now.
                    member.forget_connections();
                    Arc::clone(member)
                }
                None => Arc::new(Member::new(config)),
            }
        };
        let members: Vec<_> = config.upstream.iter().map(member).collect();
        *self
            .inner
            .members
            .write()
            .unwrap_or_else(PoisonError::into_inner) = members.into();
        self.inner.publish();
        self.inner.news.notify_one();
    }

    /// Whether none is configured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.members().is_empty()
    }

    /// How many are configured.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inner.members().len()
    }

    /// What answers, as far as answers depend on it: name, address and model of each.
    #[must_use]
    pub fn identity(&self) -> String {
        let members = self.inner.members();
        let each = members.iter().map(|member| {
            let config = &member.config;
            format!("{:?} {:?} {:?}", config.name, config.url, config.model)
        });
        each.collect::<Vec<_>>().join("\n")
    }

    /// What is known of the way to them, and every change of it.
    #[must_use]
    pub fn link(&self) -> channel::Receiver<Link> {
        self.inner.link.subscribe()
    }

    /// How long an answer of so many tokens is expected to take with the upstream that would be asked now, if there is one and
    /// it has answered before.
    #[must_use]
    pub fn expected(&self, tokens: u32) -> Option<Expected> {
        let (members, now_ms) = (self.inner.members(), self.inner.now_ms());
        let candidates: Vec<_> = members
            .iter()
            .map(|member| member.candidate(now_ms, false))
            .collect();
        let member = members.get(balance::choose(&candidates, 0)?)?;
        let expected = member.expected(tokens)?;
        Some(Expected {
            first: Duration::from_millis(expected.first_ms),
            whole: Duration::from_millis(expected.whole_ms),
        })
    }

    /// What tokens cost at most, whoever answers.
    #[must_use]
    pub fn dearest(&self) -> Price {
        let members = self.inner.members();
        members
            .iter()
            .fold(Price::default(), |dearest, member| Price {
                prompt_micros_per_million: dearest
                    .prompt_micros_per_million
                    .max(member.price.prompt_micros_per_million),
                answer_micros_per_million: dearest
                    .answer_micros_per_million
                    .max(member.price.answer_micros_per_million),
            })
    }

    /// Tokens that servers add to a prompt of their own at most, as far as answers have shown that.
    #[must_use]
    pub fn added(&self) -> u64 {
        let members = self.inner.members();
        let added = members.iter().map(|member| member.added());
        added.max().unwrap_or_default()
    }

    /// Asks one of the upstreams, and others where it fails before it has said anything. Has to be called where tokio runs.
    #[must_use]
    pub fn ask(&self, permit: Permit, question: Question, deadline: Option<Instant>) -> Answering {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let inner = Arc::clone(&self.inner);
        tokio::spawn(drive::question(inner, permit, question, deadline, sender));
        Answering::new(receiver)
    }
}

impl Inner {
    fn members(&self) -> Arc<[Arc<Member>]> {
        Arc::clone(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Milliseconds since the start, on a clock that does not run backwards.
    fn now_ms(&self) -> u64 {
        member::millis(self.started.elapsed())
    }

    /// Any number: a step of SplitMix64, which nobody has to find hard to guess.
    fn noise(&self) -> u32 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut bits = self
            .dice
            .fetch_add(STEP, Ordering::Relaxed)
            .wrapping_add(STEP);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from(bits >> 32).unwrap_or_default()
    }

    /// Tells whoever listens how the upstreams are, if that is news.
    fn publish(&self) {
        let (members, now_ms) = (self.members(), self.now_ms());
        let upstreams: Arc<[Standing]> = members
            .iter()
            .map(|member| member.standing(now_ms))
            .collect();
        let link = Link {
            // Not one whose wait is over: nobody has seen yet whether it is there.
            up: upstreams
                .iter()
                .any(|one| matches!(one.state, State::Closed | State::HalfOpen)),
            upstreams,
        };
        let changed = self.link.send_if_modified(|known| {
            let differs = *known != link;
            if differs {
                self.telemetry.upstreams(&link);
                *known = link;
            }
            differs
        });
        if changed {
            self.news.notify_one();
        }
    }
}

/// Adds what is wrong with the files that upstreams' sections name.
pub(crate) fn check_files(config: &Config, problems: &mut Problems) {
    for (number, upstream) in (1..).zip(&config.upstream) {
        if let Err(unusable) = files::check(upstream) {
            problems.add(
                format!("upstream[{number}].{}", unusable.key),
                unusable.what,
                "give a file that the daemon's user can read and that holds what it should",
            );
        }
    }
}
