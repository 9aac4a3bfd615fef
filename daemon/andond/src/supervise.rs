//! The daemon's life: bind, load, say ready, serve, stop.
//!
//! Sockets are bound before the model is loaded, so a second daemon or a bad path is found at once, and the requests of clients
//! that come early wait for it.

mod idle;
mod starting;

use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Rules};
use crate::audit::{Audit, AuditError};
use crate::config::{Config, Current, Problems, http::parse_mode, speculation::DraftPlace};
use crate::confine::Confined;
use crate::frontend::{self, Context};
use crate::hardware;
use crate::memory::{Budget, Held, Part, Reservation};
use crate::registry::{Packs, Registry};
use crate::reload::{self, Parts, Reload};
use crate::router::ledger::Ledger;
use crate::router::{self, Router};
use crate::socket::{Passed, Socket, SocketError};
use crate::spool::{Spool, SpoolError};
use crate::task::Tasks;
use crate::telemetry::{self, Telemetry};
use crate::upstream::Upstreams;
use crate::worker::{TEXT_BYTES_MAX, UNREAD_BYTES_MAX, WorkerState};
use crate::workers::Workers;

/// After the grace, what front ends have to write the last words.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is left of the runtime's threads then has this long.
const RUNTIME_ENDS: Duration = Duration::from_secs(1);

/// How often the watchdog is fed within the time after which it bites.
const FEEDS: u32 = 3;

/// Why the daemon ended badly, and whose affair it is.
#[derive(Debug)]
pub enum Failure {
    /// The configuration or the model file: starting again will not help.
    Operator(String),
    /// The machine, or the daemon itself.
    Runtime(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Operator(message) | Failure::Runtime(message) => f.write_str(message),
        }
    }
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Failure {
        match error {
            SocketError::UnknownGroup(_)
            | SocketError::NotASocket(_)
            | SocketError::NotPassed(_)
            | SocketError::NotListening(_)
            | SocketError::Foreign(_) => Failure::Operator(error.to_string()),
            SocketError::InUse(_) | SocketError::Io(..) => Failure::Runtime(error.to_string()),
        }
    }
}

impl From<SpoolError> for Failure {
    fn from(error: SpoolError) -> Failure {
        if error.needs_a_person() {
            Failure::Operator(error.to_string())
        } else {
            Failure::Runtime(error.to_string())
        }
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Failure {
        if error.needs_a_person() {
            Failure::Operator(error.to_string())
        } else {
            Failure::Runtime(error.to_string())
        }
    }
}

fn runtime(what: &'static str) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| Failure::Runtime(format!("{what}: {error}"))
}

/// What is listened on, bound and not yet served.
struct Bound {
    http: Option<Socket>,
    loopback: Option<StdTcpListener>,
    metrics: Option<StdTcpListener>,
    wire: Option<Socket>,
}

fn bind_tcp(address: SocketAddr) -> Result<StdTcpListener, Failure> {
    let failed = |error| Failure::Runtime(format!("cannot listen on {address}: {error}"));
    let listener = StdTcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

fn bind(config: &Config, mut passed: Passed) -> Result<Bound, Failure> {
    let (http, wire) = (&config.http, &config.wire);
    // The configuration's check lets no other mode through.
    let mode = |mode: &str| parse_mode(mode).unwrap_or(0o600);
    let loopback = http.listen.filter(|_| http.enabled).map(bind_tcp);
    let metrics = config.metrics.listen.map(bind_tcp);
    let mut socket = |enabled: bool,
                      path,
                      bits: &str,
                      group: &Option<String>|
     -> Result<Option<Socket>, Failure> {
        if !enabled {
            return Ok(None);
        }
        Ok(Some(passed.obtain(path, mode(bits), group.as_deref())?))
    };
    let bound = Bound {
        http: socket(
            http.enabled,
            &http.socket,
            &http.socket_mode,
            &http.socket_group,
        )?,
        loopback: loopback.transpose()?,
        metrics: metrics.transpose()?,
        wire: socket(
            wire.enabled,
            &wire.socket,
            &wire.socket_mode,
            &wire.socket_group,
        )?,
    };
    passed.finish()?;
    Ok(bound)
}

/// Runs the daemon until it is told to stop, and says how that ended. It listens on the sockets that were passed, and on others
/// of its own; what it gave up before, for good, is with them. Where that failed, only this is said. The configuration came
/// from the file at `path`, which is read again when that is asked for.
///
/// # Errors
/// [`Failure`], after everything that was started has been stopped.
pub fn run(
    config: Config,
    path: &Path,
    began: Result<(Passed, Confined), Failure>,
) -> Result<(), Failure> {
    let outcome = began.and_then(|(passed, confined)| serve_all(config, path, passed, confined));
    match &outcome {
        Ok(()) => crate::event!(Stopped, "stopped"),
        Err(failure) => crate::event!(Failed, %failure, "andond cannot go on"),
    }
    outcome
}

fn serve_all(
    config: Config,
    path: &Path,
    passed: Passed,
    confined: Confined,
) -> Result<(), Failure> {
    let operator = |problems: Problems| Failure::Operator(problems.to_string());
    Tasks::new(&config.task).map_err(operator)?;
    crate::worker::check_backend(&config)
        .map_err(|why| Failure::Operator(format!("engine.backend: {why}")))?;
    let access = Arc::new(Access::new(Rules::resolve(&config).map_err(operator)?));
    let bound = bind(&config, passed)?;
    let config = Arc::new(config);
    let telemetry = Arc::new(Telemetry::new());
    telemetry.confined(&confined);
    let budget = Budget::of(&config);
    // To the end.
    let _promised = promise(&config, &budget)?;
    budget.refresh();
    let audit = Audit::open(&config, Arc::clone(&telemetry))?;
    let spool = Spool::open(&config.spool, Arc::clone(&telemetry))?;
    let packs = Packs::new(&config.cache);
    let draft = match config.speculation.draft_place() {
        Some(DraftPlace::Kept(name)) => Some(name.to_owned()),
        Some(DraftPlace::Path(_)) | None => None,
    };
    let registry = Registry::new(config.models.clone(), draft, Some(packs));
    // After the sockets: nobody else can be adding models for this daemon now.
    registry.start();
    let current = Current::new(config);
    let workers = Workers::start(
        current.clone(),
        Arc::clone(&access),
        Arc::clone(&registry),
        Arc::clone(&telemetry),
        audit.clone(),
        Arc::clone(&budget),
    )
    .map_err(runtime("cannot start a worker"))?;
    let ledger = Ledger::open(current.clone(), Arc::clone(&telemetry));
    let upstreams = Upstreams::new(&current.get(), Arc::clone(&telemetry));
    let router = Router::new(router::Parts {
        current: current.clone(),
        access: Arc::clone(&access),
        workers: workers.clone(),
        upstreams: upstreams.clone(),
        telemetry: Arc::clone(&telemetry),
        audit: audit.clone(),
        ledger: ledger.clone(),
    })
    .map_err(Failure::Operator)?;
    let confined = Arc::new(confined);
    let parts = Parts {
        current: current.clone(),
        workers: workers.clone(),
        registry: Arc::clone(&registry),
        spool: spool.clone(),
        upstreams,
        telemetry: Arc::clone(&telemetry),
        access: Arc::clone(&access),
        confined: Arc::clone(&confined),
    };
    let reload = Reload::new(path.to_path_buf(), parts);
    let context = Context {
        current,
        reload: Arc::new(reload),
        access,
        registry,
        router,
        workers,
        budget,
        spool: spool.clone(),
        confined,
        telemetry,
        stopping: CancellationToken::new(),
    };
    // One thread: front ends move a few bytes a token, and the cores belong to the engine.
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(runtime("cannot start the runtime"))?;
    let outcome = tokio.block_on(serve(context, bound));
    // The last words of the front ends are in it by now.
    spool.close();
    ledger.close();
    audit.close();
    // A sensor that hangs is not waited for.
    tokio.shutdown_timeout(RUNTIME_ENDS);
    outcome
}

/// Has promised what does not depend on the model: what was asked and is not answered, the spool's cache and book,
/// and audit records that wait.
fn promise(config: &Config, budget: &Arc<Budget>) -> Result<[Reservation; 3], Failure> {
    let open = config
        .limits
        .queue_max
        .saturating_add(config.engine.parallel_max);
    let each = config
        .limits
        .body_bytes_max
        .saturating_add(UNREAD_BYTES_MAX)
        .saturating_add(if config.log.text {
            2 * TEXT_BYTES_MAX
        } else {
            0
        });
    let above = if config.upstream.is_empty() {
        0
    } else {
        Router::memory_bytes_max(config)
    };
    let requests = (open.saturating_mul(each) as u64).saturating_add(above);
    let promised = |part, bytes| {
        let promised = budget.require(part, Held::Private, bytes);
        promised.map_err(|refusal| {
            Failure::Operator(format!(
                "{refusal}; give andond more ([memory] budget-bytes), or take fewer requests ([limits] queue-max)"
            ))
        })
    };
    Ok([
        promised(Part::Requests, requests)?,
        promised(Part::Spool, Spool::memory_bytes_max(&config.spool))?,
        promised(Part::Audit, Audit::memory_bytes_max(config))?,
    ])
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn serve(context: Context, bound: Bound) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(runtime("cannot watch for signals"))?;
    let hangups = reload::hangups().map_err(runtime("cannot watch for signals"))?;
    let idle_after = idle::after(&context, &bound);
    let mut frontends = JoinSet::new();
    // Kept to the end: dropping them unlinks the sockets.
    let mut places = Vec::new();
    if let Some(socket) = bound.http {
        let (listener, place) = socket.into_listener().map_err(runtime("cannot listen"))?;
        places.push(place);
        let loopback = bound
            .loopback
            .map(TcpListener::from_std)
            .transpose()
            .map_err(runtime("cannot listen"))?;
        frontends.spawn(frontend::http::run(context.clone(), listener, loopback));
    }
    if let Some(socket) = bound.wire {
        let (listener, place) = socket.into_listener().map_err(runtime("cannot listen"))?;
        places.push(place);
        frontends.spawn(frontend::wire::run(context.clone(), listener));
    }
    if let Some(listener) = bound.metrics {
        let listener = TcpListener::from_std(listener).map_err(runtime("cannot listen"))?;
        frontends.spawn(frontend::metrics::run(context.clone(), listener));
    }
    frontends.spawn(frontend::mqtt::run(context.clone()));
    frontends.spawn(hardware::watch(context.clone()));
    frontends.spawn(reload::on_hangups(context.clone(), hangups));
    let proc = context.config().hardware.proc_dir.clone();
    let upstreams = context.router.upstreams().clone();
    let watching = upstreams.watch(proc, context.stopping.clone());
    frontends.spawn(watching);
    frontends.spawn(feed(context.clone()));
    frontends.spawn(starting::extend(context.clone()));
    frontends.spawn(telemetry::journal::report(context.stopping.clone()));

    let outcome = watch(&context, &mut signals, idle_after).await;
    stop(&context, &mut signals, &mut frontends).await;
    drop(places);
    outcome
}

/// Serves until there is a reason to stop, which also is that nothing has been asked for so long as `idle_after`.
async fn watch(
    context: &Context,
    signals: &mut Signals,
    idle_after: Option<Duration>,
) -> Result<(), Failure> {
    let mut states = context.workers.states();
    let idle = idle::over(context, idle_after);
    tokio::pin!(idle);
    loop {
        let state = states.borrow_and_update().clone();
        match state {
            WorkerState::Ready => {
                let name = context.config().model.name();
                context.reload.announced();
                crate::event!(
                    Ready,
                    model = name,
                    after_ms = u64::try_from(context.telemetry.started.elapsed().as_millis())
                        .unwrap_or(u64::MAX),
                    "ready"
                );
                notify(&[
                    NotifyState::Ready,
                    NotifyState::Status(&format!("serving {name}")),
                ]);
            }
            WorkerState::Failed(message) => {
                return Err(if context.workers.operator_at_fault() {
                    Failure::Operator(message)
                } else {
                    Failure::Runtime(message)
                });
            }
            // Going on lets clients and monitoring read why; a new start may find the same file.
            WorkerState::Broken(why) => {
                notify(&[NotifyState::Status(&format!("not serving: {why}"))]);
            }
            // The unit is up, so that a model can be added; who asks for an answer is told that there is none.
            WorkerState::Waiting(why) => {
                crate::event!(Waiting, "{why}");
                context.reload.announced();
                notify(&[NotifyState::Ready, NotifyState::Status(&why)]);
            }
            WorkerState::Loading => notify(&[NotifyState::Status("loading the model")]),
            WorkerState::Stopping => {}
        }
        tokio::select! {
            name = signals.next() => {
                crate::event!(Stopping, signal = name, "stopping");
                return Ok(());
            }
            () = &mut idle => {
                crate::event!(Stopping, "nothing is asked; stopping until somebody connects");
                return Ok(());
            }
            // The sender lives as long as the context.
            _ = states.changed() => {}
        }
    }
}

/// Feeds the service manager's watchdog while what is answered makes progress: fed by a clock, it would be told that a clock
/// runs.
async fn feed(context: Context) {
    let Some(within) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = interval(within / FEEDS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = context.stopping.cancelled() => return,
        }
        match context.workers.stalled() {
            None => notify(&[NotifyState::Watchdog]),
            Some(since) => crate::event!(
                WatchdogStall,
                seconds = since.as_secs(),
                "what is being answered makes no progress"
            ),
        }
    }
}

/// Takes nothing new, lets what runs finish within its grace, and waits for the front ends' last words.
async fn stop(context: &Context, signals: &mut Signals, frontends: &mut JoinSet<()>) {
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("finishing what is open"),
    ]);
    let grace = context.config().gateway.shutdown_grace();
    context.router.stop(grace);
    context.workers.stop(grace);
    context.stopping.cancel();
    let orderly = async {
        context.workers.ended().await;
        while frontends.join_next().await.is_some() {}
    };
    tokio::select! {
        outcome = tokio::time::timeout(grace + FAREWELL, orderly) => {
            if outcome.is_err() {
                crate::event!(StopIncomplete, "some clients did not take their last words");
            }
        }
        name = signals.next() => crate::event!(StopIncomplete, signal = name, "stopping at once"),
    }
    frontends.abort_all();
}

/// Tells systemd, if it started the daemon.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
