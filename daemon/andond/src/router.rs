//! Where a request is answered: here, or by an upstream server.
//!
//! Front ends hand requests to the [`Router`]. It hands on to the workers what is to be answered here, at no further cost; what
//! may leave and is to be answered upstream, or might be, has a task of its own ([`drive`]) that writes to the stream which the
//! front end reads. What is decided of a request is [`andon_policy::route`]'s affair, and what is known of it is gathered in
//! [`judge`].
//!
//! Invariants: nothing of a request leaves the gateway without a [`egress::Permit`]; a request that is taken ends with exactly one
//! of `Done` and `Failed`, and its answer is by one of those who could give one: what another had said of it before is taken back
//! where the client can be told, and is a failure where not.

mod begin;
pub mod cache;
mod calls;
mod drive;
pub mod egress;
mod judge;
pub mod ledger;
mod line;
mod open;
pub mod redact;
mod sent;
mod terms;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::route::{Decision, Policy, Reason};
use andon_policy::router::Estimate;
use tokio::sync::{Semaphore, broadcast, watch};

use self::cache::AnswerCache;
use self::judge::{Judge, Known};
use self::ledger::Ledger;
use self::line::Line;
use self::open::{Key, Open};
use crate::access::{Access, Caller};
use crate::audit::Audit;
use crate::config::{Config, Current};
use crate::fault::{Fault, FaultCode};
use crate::request::{Egress, Input, Origin, Part, Request};
use crate::telemetry::Telemetry;
use crate::upstream::Upstreams;
use crate::worker::{Asked, JobStream, UNREAD_BYTES_MAX};
use crate::workers::Workers;

/// Words about requests that went upstream which wait for whoever listens.
const ESCALATIONS_WAITING_MAX: usize = 64;

/// The way to whoever answers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Router {
    inner: Arc<Inner>,
}

/// A request was passed upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Escalated {
    /// Who asked.
    pub client: String,
    /// The client's name for it.
    pub id: String,
    /// Its task, if it names one.
    pub task: Option<String>,
    /// Why.
    pub why: &'static str,
}

/// What there is of a routing decision, for whoever asks why.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// What would be done.
    pub decision: Decision,
    /// Who is to answer.
    pub policy: Policy,
    /// Whether upstream can be had.
    pub up: bool,
    /// Whether decisions are only noted.
    pub shadow: bool,
    /// What is expected of the local answer; `None` if it was not estimated.
    pub estimate: Option<Estimate>,
    /// The model whose answers that is of, by its name in the weights, or `any`.
    pub judged_as: String,
    /// Below this probability that the local answer is as good as upstream's it would go up.
    pub threshold: f32,
    /// What moved the estimate most, and by how much.
    pub parts: Vec<(String, f32)>,
}

#[derive(Debug)]
struct Inner {
    config: Current,
    access: Arc<Access>,
    workers: Workers,
    upstreams: Upstreams,
    telemetry: Arc<Telemetry>,
    audit: Audit,
    ledger: Ledger,
    judge: Judge,
    line: Arc<Line>,
    redactors: sent::Redactors,
    cache: AnswerCache<sent::Kept>,
    /// What has a task of its own.
    open: Arc<Open>,
    /// Places for questions that are with upstreams.
    places: Arc<Semaphore>,
    escalations: broadcast::Sender<Escalated>,
    /// When what is under way has to be over, once the daemon stops.
    stopping: watch::Sender<Option<Instant>>,
}

/// What is wrong with the weights that a configuration names, or with the model in them: the key, what it is, and what to do.
pub fn problem(config: &Config) -> Option<(&'static str, String, &'static str)> {
    judge::estimator(config).err()
}

/// What a router is made of.
#[derive(Debug)]
pub struct Parts {
    /// The way to the configuration in force.
    pub current: Current,
    /// Who may ask for what.
    pub access: Arc<Access>,
    /// Who answers here.
    pub workers: Workers,
    /// Who answers elsewhere.
    pub upstreams: Upstreams,
    /// What is counted.
    pub telemetry: Arc<Telemetry>,
    /// Where answers are recorded.
    pub audit: Audit,
    /// Where it is written what they cost.
    pub ledger: Ledger,
}

impl Router {
    /// One for these.
    ///
    /// # Errors
    /// What is wrong with the weights that the configuration names.
    pub fn new(parts: Parts) -> Result<Router, String> {
        let config = parts.current.get();
        let (escalations, _) = broadcast::channel(ESCALATIONS_WAITING_MAX);
        let (stopping, _) = watch::channel(None);
        let limits = &config.router;
        Ok(Router {
            inner: Arc::new(Inner {
                judge: Judge::new(&config)?,
                line: Arc::new(Line::new(limits.waiting_max, limits.waiting_bytes_max)),
                redactors: sent::Redactors::default(),
                cache: AnswerCache::new(&config.upstream_cache),
                open: Arc::new(Open::new()),
                places: Arc::new(Semaphore::new(limits.requests_max)),
                escalations,
                stopping,
                config: parts.current,
                access: parts.access,
                workers: parts.workers,
                upstreams: parts.upstreams,
                telemetry: parts.telemetry,
                audit: parts.audit,
                ledger: parts.ledger,
            }),
        })
    }

    /// Hands a request over, if its caller may ask it. Never blocks. Has to be called where tokio runs, and from one thread at a
    /// time: that no two requests of one name are under way is seen to at two places, here and at the workers.
    ///
    /// It may compute for a tenth of a second where rules say what must not leave: for so long at most that is looked for.
    ///
    /// # Errors
    /// As [`Workers::submit`]; and what insists on an upstream is refused where that cannot be had and it may not wait.
    pub fn submit(&self, request: Request, caller: &Caller) -> Result<JobStream, Fault> {
        let inner = &self.inner;
        if inner.open.has(&Key::of(&request)) {
            let asked = Asked::of(&request);
            return Err(inner.refused(&asked, duplicate()));
        }
        let config = inner.config.get();
        if inner.upstreams.is_empty() && !config.router.shadow && !inner.insists(&request, &config)
        {
            return inner.workers.submit(request, caller);
        }
        let mut request = request;
        let Some(known) = inner.consider(&mut request, caller, &config) else {
            return inner.workers.submit(request, caller);
        };
        let decision = inner.judge.decide(&known.facts, &config);
        inner.told(&request, &known, decision, config.router.shadow);
        if config.router.shadow {
            return inner.workers.submit(request, caller);
        }
        match decision {
            Decision::Local(_) => inner.workers.submit(request, caller),
            Decision::Cloud(_)
            | Decision::Cascade
            | Decision::Wait(_)
            // An answer to it may be kept, which costs nothing and takes no link and no time.
            | Decision::Fallback(
                Reason::Link | Reason::Busy | Reason::Budget | Reason::Deadline,
            )
            | Decision::Refuse(
                Reason::Link | Reason::Busy | Reason::Budget | Reason::Deadline,
            ) => {
                inner.begin(request, caller, known, decision, &config)
            }
            Decision::Fallback(_) => inner.fall_back(request, caller),
            Decision::Refuse(reason) => {
                let asked = Asked::of(&request);
                Err(inner.refused(&asked, refusal(reason)))
            }
        }
    }

    /// Whether a request may wait until upstream can be had: it may leave, and it, its task or the configuration says so.
    #[must_use]
    pub fn waits(&self, request: &Request) -> bool {
        let inner = &self.inner;
        let config = inner.config.get();
        let task = inner.workers.resolve(request).and_then(Result::ok);
        let by_task = task.as_ref().and_then(|task| task.egress);
        let policy = request
            .policy
            .or(task.as_ref().and_then(|task| task.policy));
        let waits = request.waits.or(task.and_then(|task| task.waits));
        request.travels(by_task) == Egress::Any
            && policy.unwrap_or(config.router.policy) != Policy::Local
            && waits.unwrap_or(config.router.wait)
    }

    /// Ends a client's request by its id; its stream ends with [`FaultCode::Cancelled`]. Says whether there was one.
    pub fn cancel(&self, origin: Origin, client: &str, id: &str) -> bool {
        match self.inner.open.feed(&Key::new(origin, client, id)) {
            Some(feed) => {
                feed.cancel();
                true
            }
            None => self.inner.workers.cancel(origin, client, id),
        }
    }

    /// Most bytes of what is asked and answered upstream, of what waits for that, of the search for what must not leave, and of
    /// answers that are kept.
    #[must_use]
    pub fn memory_bytes_max(config: &Config) -> u64 {
        let each = config.limits.body_bytes_max + UNREAD_BYTES_MAX + drive::HOLD_BYTES_MAX;
        let open = config.router.requests_max.saturating_mul(each);
        let waiting = config.router.waiting_bytes_max;
        let cache = AnswerCache::<sent::Kept>::memory_bytes_max(&config.upstream_cache);
        let redaction = redact::memory_bytes_max(&config.redact, config.limits.body_bytes_max);
        let all = open.saturating_add(waiting).saturating_add(redaction);
        (all as u64).saturating_add(cache)
    }

    /// Tells the metrics what was spent.
    pub fn report(&self) {
        self.inner.ledger.report();
    }

    /// Takes nothing new, leaves what waits to the next start, and gives what is under way this long to finish.
    pub fn stop(&self, grace: Duration) {
        let until = Instant::now().checked_add(grace);
        self.inner
            .stopping
            .send_replace(Some(until.unwrap_or_else(Instant::now)));
    }

    /// Requests that go upstream from now on.
    pub fn escalations(&self) -> broadcast::Receiver<Escalated> {
        self.inner.escalations.subscribe()
    }

    /// Those who answer elsewhere.
    pub fn upstreams(&self) -> &Upstreams {
        &self.inner.upstreams
    }

    /// How many requests wait until upstream can be had.
    pub fn waiting(&self) -> usize {
        self.inner.line.len()
    }

    /// What would be done with a request of this caller, and why. Nothing is done.
    ///
    /// # Errors
    /// If the caller may not ask it, or its task does not take it.
    pub fn explain(&self, mut request: Request, caller: &Caller) -> Result<Explained, Fault> {
        let inner = &self.inner;
        let config = inner.config.get();
        request.check(&config.limits)?;
        request.rights = inner.workers.permit(&request, caller)?;
        let known = inner.known(&request, &config)?;
        Ok(Explained {
            decision: inner.judge.decide(&known.facts, &config),
            policy: known.facts.policy,
            up: inner.upstreams.link().borrow().up,
            shadow: config.router.shadow,
            parts: (known.question.as_ref())
                .map(|question| (inner.judge).parts(&request, question, &inner.workers, &config))
                .unwrap_or_default(),
            estimate: known.estimate,
            judged_as: (inner.judge)
                .estimator(&request, &inner.workers)
                .model()
                .to_owned(),
            threshold: inner.judge.threshold(),
        })
    }
}

impl Inner {
    /// Whether a request, or its task, says that nobody here is to answer it.
    fn insists(&self, request: &Request, config: &Config) -> bool {
        let by_task = || match &request.input {
            Input::Task { name, .. } => config.task.get(name)?.policy,
            _ => None,
        };
        request.policy.or_else(by_task) == Some(Policy::Cloud)
    }

    /// How far the task of a request, as it is now, lets it travel.
    fn egress_by_task(&self, request: &Request) -> Option<Egress> {
        match &request.input {
            Input::Task { name, .. } => self.workers.egress_of(name),
            _ => None,
        }
    }

    /// What is known of a request that might leave, with the rights of its caller in it. `None` of all others: they are the
    /// workers' affair, and so are those with which something is wrong, who say what.
    fn consider(
        &self,
        request: &mut Request,
        caller: &Caller,
        config: &Arc<Config>,
    ) -> Option<Known> {
        let by_task = self.egress_by_task(request);
        if request.travels(by_task) != Egress::Any || self.audit.refuses().is_some() {
            return None;
        }
        request.check(&config.limits).ok()?;
        let rights = self.access.rights(caller).ok()?;
        let model = request.model_by(config);
        rights
            .check(request, &model, request.class_by_task(config))
            .ok()?;
        request.rights = rights;
        self.known(request, config).ok()
    }

    fn known(&self, request: &Request, config: &Arc<Config>) -> Result<Known, Fault> {
        let task = self.workers.resolve(request).transpose()?;
        let mut known = (self.judge).known(request, task.as_ref(), &self.workers, config);
        self.at_this_moment(&mut known, request, config);
        Ok(known)
    }

    /// Counts and logs what was decided of a request.
    fn told(&self, request: &Request, known: &Known, decision: Decision, shadow: bool) {
        self.telemetry.decided(decision, shadow);
        self.judge.note(&known.facts);
        let (decision, reason) = (decision.as_str(), decision.reason().as_str());
        let (request_id, client) = (request.id.as_str(), request.client.as_str());
        let will_do = known.estimate.map(|estimate| estimate.will_do);
        let as_good = known.estimate.map(|estimate| estimate.as_good());
        if shadow {
            tracing::info!(
                request_id,
                client,
                decision,
                reason,
                will_do,
                as_good,
                "would be routed"
            );
        } else {
            tracing::debug!(
                request_id, client, decision, reason, will_do, as_good, "routed"
            );
        }
    }

    /// Counts a request that is not taken.
    fn refused(&self, asked: &Asked, fault: Fault) -> Fault {
        asked.comes(&self.telemetry);
        asked.refused(&self.telemetry, &fault);
        fault
    }

    /// Has a request answered here in place of upstream.
    fn fall_back(&self, request: Request, caller: &Caller) -> Result<JobStream, Fault> {
        let asked = Asked::of(&request);
        let fallback = Request {
            part: Part::Fallback,
            ..request
        };
        let stream = self.workers.submit(fallback, caller);
        let stream = stream.map_err(|fault| self.refused(&asked, fault))?;
        asked.comes(&self.telemetry);
        asked.taken(&self.telemetry);
        Ok(stream)
    }
}

fn duplicate() -> Fault {
    Fault {
        param: Some("id"),
        ..Fault::new(
            FaultCode::DuplicateId,
            "a request of this client and id is in flight",
        )
    }
}

fn stopping() -> Fault {
    Fault::new(FaultCode::Unavailable, "the daemon is stopping")
}

/// Whoever keeps the request is to come again.
fn no_place() -> Fault {
    let message = "as many requests wait for upstream as may";
    Fault::new(FaultCode::ModelUnavailable, message).retry_after(Duration::from_secs(10))
}

/// What a client is told whose request has no answer for this reason.
fn refusal(reason: Reason) -> Fault {
    let what = match reason {
        Reason::NoUpstream => "no upstream is configured, and the policy of this request is cloud",
        Reason::Budget => {
            "what may be spent upstream is spent, and the policy of this request is cloud"
        }
        Reason::Busy => {
            "upstream has as many questions as it may, and the policy of this request is cloud"
        }
        Reason::Link => "upstream cannot be had now, and the policy of this request is cloud",
        Reason::Policy
        | Reason::Egress
        | Reason::Kind
        | Reason::Easy
        | Reason::Hard
        | Reason::Deadline => {
            "upstream cannot answer this, and the policy of this request is cloud"
        }
    };
    let fault = Fault::new(FaultCode::UpstreamUnavailable, what);
    match reason {
        Reason::Link | Reason::Busy => fault.retry_after(Duration::from_secs(10)),
        _ => fault,
    }
}

impl fmt::Display for Escalated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}: {}", self.client, self.id, self.why)
    }
}
