//! MQTT: the floor's way in. `README.md` beside this file is the reference of topics, payloads and
//! properties.
//!
//! `desk` knows what messages mean and asks the spool to keep them, `outbox` what waits for the broker, `reconnect` when to try it
//! again; none of them knows a socket. `link` is one connection, in MQTT 5 or 3.1.1. What is left for this
//! file is to bring events to them, one at a time, from one loop.
//!
//! Invariant: nothing in the loop waits for the broker, the worker or a client, so a slow one of them
//! holds up none of the others.

mod credentials;
mod desk;
mod link;
mod message;
mod outbox;
mod reconnect;
mod renew;
mod reply;
mod request;
mod status;
mod tls;

use std::collections::VecDeque;
use std::future::pending;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::throttle::{self, Throttle};
use andon_wire::MqttLink;
use andon_wire::topic::{self, Topics};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use self::credentials::Keyring;
use self::desk::{Desk, Note, Prepared, Verdict};
use self::link::{Cause, Greeting, Link, LinkEvent, LinkOptions};
use self::message::{AckToken, Incoming, Version};
use self::outbox::Gate;
use self::reconnect::{Attempt, End, Reconnect};
use self::renew::{FILES_EVERY, Probe, probed};
use self::status::Board;
use super::Context;
use crate::access::Caller;
use crate::config::Config;
use crate::config::limits::LimitsConfig;
use crate::config::mqtt::{MqttConfig, Protocol};
use crate::credential::Unusable;
use crate::fault::{Fault, FaultCode};
use crate::health;
use crate::request::{Origin, Request};
use crate::spool::killed;
use crate::spool::record::{Door, Key};
use crate::spool::{Kept, Order};
use crate::worker::{JobEvent, JobStream, WorkerState};

/// Events of the worker that may wait for the loop.
const JOB_EVENTS_WAITING_MAX: usize = 256;
/// Longest wait for the broker to confirm the last messages of a daemon that stops.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// When the worker is asked again that had no place for a request of the spool.
const BACKLOG_PAUSE: Duration = Duration::from_millis(100);

/// The same where a model is not there which one of them is for: first and longest. Each try is noted on the disk.
const MODEL_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// When the spool is asked again that could not read something.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// Longest reason for the end of a connection in the log, in characters.
const WHY_CHARS_MAX: usize = 300;

/// Serves until the daemon stops.
pub async fn run(context: Context) {
    if !context.config().mqtt.enabled {
        return;
    }
    context.telemetry.set_mqtt_link(MqttLink::Connecting);
    match Frontend::new(context) {
        Ok(mut frontend) => frontend.run().await,
        // The configuration's check lets none of these through.
        Err(error) => crate::event!(MqttNotServed, %error, "MQTT is not served"),
    }
}

/// A connection that is open or being opened.
struct Connection {
    link: Link,
    /// What the broker grants, once it has greeted.
    greeting: Option<Greeting>,
    since: Instant,
    /// Whether requests come in, so that the world may be told.
    subscribed: bool,
    /// Whether we have said goodbye: nothing more is given to it.
    leaving: bool,
    /// A silent link is given up at this time.
    silent_at: Instant,
}

struct Frontend {
    config: Arc<Config>,
    context: Context,
    desk: Desk,
    board: Board,
    series: Reconnect,
    connection: Option<Connection>,
    keyring: Keyring,
    probe: Option<Probe>,
    /// The next attempt, when there is no connection.
    attempt: Attempt,
    attempt_at: Instant,
    /// Messages that came before the model was ready which they are for, and when.
    held: VecDeque<(Incoming, Instant)>,
    /// Acknowledgements that the link had no room for.
    unacknowledged: VecDeque<AckToken>,
    events: mpsc::Sender<(Key, JobEvent)>,
    arrivals: mpsc::Receiver<(Key, JobEvent)>,
    /// The spool's word; so many as there are requests and answers, which are bounded.
    notes: mpsc::UnboundedReceiver<Note>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Whether the configured model has been there.
    has_served: bool,
    /// Not before this is the spool asked for more.
    backlog_at: Instant,
    /// How long that was put off last for want of a model.
    model_pause: Duration,
    stopping: bool,
    /// How far batch work gave way when that was last told.
    throttle: (Throttle, Option<throttle::Cause>),
    chance: RandomState,
    chances: u64,
}

/// Whether there is no model yet that could answer.
fn is_starting(state: &WorkerState) -> bool {
    matches!(state, WorkerState::Loading | WorkerState::Waiting(_))
}

impl Frontend {
    fn new(context: Context) -> Result<Frontend, andon_wire::topic::TopicError> {
        let config = context.config();
        let mqtt = &config.mqtt;
        let series = Reconnect::new(mqtt.protocol, Duration::from_secs(mqtt.reconnect_max_s));
        let (events, arrivals) = mpsc::channel(JOB_EVENTS_WAITING_MAX);
        let (noted, notes) = mpsc::unbounded_channel();
        let spool = context.spool.clone();
        let orders = spool.orders(Door::Mqtt);
        Ok(Frontend {
            desk: Desk::new(
                config.clone(),
                Arc::clone(&context.access),
                context.telemetry.clone(),
                spool,
                noted,
            )?,
            board: Board::new(Duration::from_millis(mqtt.status_interval_ms)),
            attempt: series.first(),
            attempt_at: Instant::now(),
            series,
            connection: None,
            keyring: Keyring::default(),
            probe: None,
            held: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            events,
            arrivals,
            notes,
            orders,
            has_served: false,
            backlog_at: Instant::now(),
            model_pause: Duration::ZERO,
            stopping: false,
            throttle: <(Throttle, Option<throttle::Cause>)>::default(),
            chance: RandomState::new(),
            chances: 0,
            config,
            context,
        })
    }

    async fn run(&mut self) {
        let mut states = self.context.workers.states();
        let mut swaps = self.context.workers.swaps();
        let mut escalations = self.context.router.escalations();
        self.desk.set_model(&self.config.model.name());
        let stopping = self.context.stopping.clone();
        let mut worker_lives = true;
        let mut reloads = self.context.current.watch();
        let mut ticks = self.ticks();
        let mut files = interval(FILES_EVERY);
        files.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !(self.stopping && self.desk.unanswered() == 0) {
            let attempt_at = self.connection.is_none().then_some(self.attempt_at);
            let silent_at = self
                .connection
                .as_ref()
                .map(|connection| connection.silent_at);
            let backlog_at = (self.desk.has_backlog() && self.backlog_at > Instant::now())
                .then_some(self.backlog_at);
            tokio::select! {
                event = next_event(self.connection.as_mut()) => self.link_event(event),
                () = at(attempt_at) => self.connect(),
                () = at(silent_at) => self.ended(Cause::Broken, "the broker is silent"),
                Some((key, event)) = self.arrivals.recv() => self.desk.event(&key, event, Instant::now()),
                Some(note) = self.notes.recv() => self.note(note),
                Some(order) = self.orders.recv() => self.order(order),
                // What was missed is in the status all the same.
                Ok(swapped) = swaps.recv() => self.desk.swapped(&swapped),
                Ok(escalated) = escalations.recv() => self.desk.escalated(&escalated),
                () = at(backlog_at) => {}
                changed = states.changed(), if worker_lives => {
                    worker_lives = changed.is_ok();
                    // The model may be there that was waited for.
                    self.model_pause = Duration::ZERO;
                    self.backlog_at = Instant::now();
                }
                _ = ticks.tick() => {}
                _ = files.tick() => self.look_at_files(false),
                outcome = probed(self.probe.as_mut()) => self.probed(outcome),
                // The sender lives as long as the context.
                Ok(()) = reloads.changed() => {
                    let config = Arc::clone(&reloads.borrow_and_update());
                    self.reloaded(&config);
                    ticks = self.ticks();
                }
                () = stopping.cancelled(), if !self.stopping => {
                    tracing::info!(unanswered = self.desk.unanswered(), "MQTT takes no more requests");
                    self.stopping = true;
                }
            }
            self.settle();
        }
        self.farewell().await;
    }

    /// Whether the daemon stops, even if the loop has not come to hear of it: the worker refuses by then,
    /// and a request acknowledged and refused now would not wait at the broker for the next start.
    fn is_stopping(&self) -> bool {
        self.stopping || self.context.stopping.is_cancelled()
    }

    /// Does what has become possible since the last event.
    fn settle(&mut self) {
        let status = self.context.workers.status();
        if !is_starting(&status.state) && !self.is_stopping() {
            // Each once: some may have to wait on.
            for _ in 0..self.held.len() {
                if let Some((message, at)) = self.held.pop_front() {
                    self.receive(&message, at);
                }
            }
        }
        if self.desk.take_has_left() {
            self.backlog_at = Instant::now() + BACKLOG_PAUSE;
        }
        self.has_served |= status.state == WorkerState::Ready;
        if !self.is_stopping() && self.backlog_at <= Instant::now() {
            // Once the daemon has started, requests wait for their models one by one.
            let serving = self.has_served || status.state != WorkerState::Loading;
            self.desk.fetch(serving, Instant::now());
        }
        self.unacknowledged.extend(self.desk.take_acks());
        if status.throttle != self.throttle {
            self.throttle = status.throttle;
            let (throttle, cause) = status.throttle;
            self.desk.throttled(throttle, cause);
        }
        if let Some(connection) = &self.connection
            && connection.subscribed
            && self.board.is_due(Instant::now())
        {
            let mut value = status::online(
                &status,
                &self.context.workers.list(),
                &self.context.workers.tasks(),
                connection.link.version(),
                self.desk.unanswered(),
                &health::degraded(&self.context, &status),
            );
            status::upstream(&mut value, &self.context.router);
            if self.board.show(&value, Instant::now()) {
                self.desk
                    .outbox
                    .put_status(status::message(self.desk.topics(), &value));
            }
        }
        self.flush();
    }

    /// Gives the link what it has room for.
    fn flush(&mut self) {
        let Some(connection) = self.connection.as_ref().filter(|one| !one.leaving) else {
            return;
        };
        while let Some(token) = self.unacknowledged.front() {
            if !connection.link.acknowledge(*token) {
                break;
            }
            self.unacknowledged.pop_front();
            killed("acknowledging");
        }
        if let Some(greeting) = connection.greeting
            && connection.subscribed
        {
            let gate = Gate {
                version: connection.link.version(),
                packet_bytes_max: greeting.packet_bytes_max,
                window: greeting.window,
            };
            let link = &connection.link;
            self.desk
                .outbox
                .pump(gate, Instant::now(), |message| link.publish(message));
            self.desk.keep_late();
            self.unacknowledged.extend(self.desk.outbox.take_released());
        }
        let dropped = self.desk.outbox.take_dropped();
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "chunks, refusals or events were dropped: the broker does not keep up"
            );
        }
    }

    fn connect(&mut self) {
        let now = Instant::now();
        match self.options() {
            Ok(options) => {
                let Attempt { version, clean, .. } = self.attempt;
                tracing::debug!(
                    host = options.host,
                    port = options.port,
                    version = version.name(),
                    "connecting to the broker"
                );
                if clean {
                    crate::event!(
                        BrokerSessionDropped,
                        "the broker's session is thrown away, with all requests in it: it holds a message too large to read"
                    );
                }
                let patience = options.connect_timeout.saturating_mul(2);
                self.connection = Some(Connection {
                    link: Link::open(&options, version, clean),
                    greeting: None,
                    since: now,
                    subscribed: false,
                    leaving: false,
                    silent_at: now + patience,
                });
            }
            Err(error) => {
                crate::event!(BrokerRefused, %error, "the broker cannot be connected to");
                self.retry(End::Refused);
            }
        }
    }

    /// Reads what may have changed since the last attempt: passwords and certificates are replaced while
    /// the daemon runs.
    fn options(&mut self) -> Result<LinkOptions, Unusable> {
        let mqtt = &self.config.mqtt;
        let credentials = self.keyring.take(mqtt)?;
        Ok(LinkOptions {
            host: mqtt.host.clone(),
            port: mqtt.port(),
            transport: credentials.transport(),
            client_id: mqtt.client_id(&self.config.gateway),
            credentials: credentials.login,
            keep_alive: Duration::from_secs(u64::from(mqtt.keep_alive_s)),
            session_expiry_s: mqtt.session_expiry_s,
            connect_timeout: Duration::from_secs(mqtt.connect_timeout_s),
            packet_bytes_max: mqtt.packet_bytes_max,
            unacknowledged_max: mqtt.unacknowledged_max,
            will: status::offline(self.desk.topics(), "lost"),
        })
    }

    fn link_event(&mut self, event: LinkEvent) {
        let now = Instant::now();
        let Some(connection) = &mut self.connection else {
            return;
        };
        if connection.greeting.is_some() && !connection.leaving {
            // A probe goes out after a silence of the keep-alive, and its failure is seen after another.
            connection.silent_at =
                now + Duration::from_secs(3 * u64::from(self.config.mqtt.keep_alive_s) + 10);
        }
        match event {
            LinkEvent::Greeted(greeting) => {
                connection.greeting = Some(greeting);
                connection.since = now;
                connection.silent_at =
                    now + Duration::from_secs(self.config.mqtt.connect_timeout_s.saturating_mul(2));
                self.series.connected();
                self.keyring.taken();
                crate::event!(
                    BrokerConnected,
                    host = self.config.mqtt.host,
                    version = connection.link.version().name(),
                    session_present = greeting.session_present,
                    packet_bytes_max = greeting.packet_bytes_max,
                    window = greeting.window,
                    "connected to the broker"
                );
                self.context
                    .telemetry
                    .set_mqtt_link(match connection.link.version() {
                        Version::V5 => MqttLink::Connected5,
                        Version::V311 => MqttLink::Connected311,
                    });
                self.context.telemetry.mqtt_connects.inc();
                // Also when there is a session: it may come from another configuration.
                if !connection.link.subscribe(&self.desk.filters()) {
                    self.ended(Cause::Broken, "the subscriptions could not be sent");
                }
            }
            LinkEvent::Subscribed(outcomes) => self.subscribed(&outcomes),
            LinkEvent::Message(message) => {
                // It may be for one of those that are held.
                let cancels = self.desk.is_cancel(&message) && !self.held.is_empty();
                if self.is_stopping() && message.ack.is_some() {
                    // Without an acknowledgement the broker keeps it for the next start.
                    tracing::info!(
                        topic = message.topic,
                        "a message is left with the broker: the daemon stops"
                    );
                } else if cancels && self.has_room() {
                    self.held.push_back((message, now));
                } else {
                    self.receive(&message, now);
                }
            }
            LinkEvent::Sent(packet_id) => {
                killed("publishing");
                self.desk.outbox.sent(packet_id);
            }
            LinkEvent::Confirmed(packet_id, refused) => {
                killed("confirmed");
                self.desk.confirmed(packet_id, refused.as_deref());
            }
            LinkEvent::Alive => {}
            LinkEvent::Closed(cause, why) => self.ended(cause, &why),
        }
    }

    fn subscribed(&mut self, outcomes: &[Option<String>]) {
        let filters = self.desk.filters();
        for (filter, outcome) in filters.iter().zip(outcomes) {
            if let Some(why) = outcome {
                crate::event!(
                    BrokerRefused,
                    filter,
                    why,
                    "the broker refused a subscription"
                );
            }
        }
        // Without its own topics a gateway would look alive and answer nothing.
        if outcomes.len() != filters.len() || outcomes.iter().take(2).any(Option::is_some) {
            self.ended(
                Cause::Refused,
                "the broker refused the gateway's own topics",
            );
            return;
        }
        if let Some(connection) = &mut self.connection {
            connection.subscribed = true;
        }
    }

    /// Validate, accept, acknowledge; answers come later. The message came at `since`, which its deadline counts from.
    fn receive(&mut self, message: &Incoming, since: Instant) {
        // Before it is refused for want of a model: that may be there a moment later, and then nothing would seem to be amiss.
        let starting = is_starting(&self.context.workers.status().state);
        let verdict = match self.desk.receive(message, since) {
            Verdict::Submit(prepared) => match self.submit(*prepared, since) {
                Ok(verdict) => verdict,
                Err(prepared_and_fault) => {
                    let (prepared, fault) = *prepared_and_fault;
                    if starting && self.is_to_be_held(&fault) {
                        return self.held.push_back((message.clone(), since));
                    }
                    if self.is_to_wait(&prepared.request, &fault) {
                        self.desk.accept_for_later(prepared, fault)
                    } else {
                        self.desk.refused(&prepared, fault)
                    }
                }
            },
            Verdict::Cancel(key) => {
                self.cancel(&key);
                Verdict::Done
            }
            verdict => verdict,
        };
        if matches!(verdict, Verdict::Done) {
            self.unacknowledged.extend(message.ack);
        }
    }

    /// Hands a request to the worker, which begins while the spool makes it safe: what comes of it is not heard of
    /// before it is.
    fn submit(
        &mut self,
        mut prepared: Prepared,
        since: Instant,
    ) -> Result<Verdict, Box<(Prepared, Fault)>> {
        let workers = &self.context.workers;
        prepared.request.deadline = workers.deadline(&prepared.request, since);
        prepared.request.attempt = self.desk.attempt(&prepared);
        let caller = Caller::Client(prepared.request.client.as_str().into());
        match self
            .context
            .router
            .submit(prepared.request.clone(), &caller)
        {
            Ok(stream) => {
                let key = prepared.key.clone();
                if self.desk.accept(prepared) {
                    tokio::spawn(forward(key, stream, self.events.clone()));
                }
                Ok(Verdict::Later)
            }
            Err(fault) => Err(Box::new((prepared, fault))),
        }
    }

    /// Whether a request that came while the configured model was not there yet waits here until it is.
    fn is_to_be_held(&self, fault: &Fault) -> bool {
        fault.code == FaultCode::ModelUnavailable && self.has_room() && !self.is_stopping()
    }

    /// Whether a request that nobody can answer now waits in the spool until somebody can.
    fn is_to_wait(&self, request: &Request, fault: &Fault) -> bool {
        fault.code == FaultCode::ModelUnavailable && self.context.router.waits(request)
    }

    fn has_room(&self) -> bool {
        self.held.len() < usize::from(self.config.mqtt.unacknowledged_max)
    }

    fn cancel(&self, key: &Key) {
        let router = &self.context.router;
        router.cancel(Origin::Mqtt, &key.client, &key.id);
    }

    fn note(&mut self, note: Note) {
        let abandoned = match &note {
            // What cannot be kept is not computed either.
            Note::Accepted(key, serial, Err(_)) if self.desk.is_current(key, *serial) => {
                Some(key.clone())
            }
            _ => None,
        };
        if let Some(prepared) = self.desk.note(note, Instant::now()) {
            if self.is_stopping() {
                // It stays in the spool.
                return;
            }
            let now = Instant::now();
            let mut pause = BACKLOG_PAUSE;
            match self.submit(*prepared, now) {
                Ok(_) => self.model_pause = Duration::ZERO,
                Err(refused) => {
                    let (prepared, fault) = *refused;
                    if fault.code == FaultCode::ModelUnavailable {
                        // Several are tried at once.
                        if self.backlog_at <= now {
                            let longer = self.model_pause.saturating_mul(2);
                            self.model_pause = longer.clamp(MODEL_PAUSE.0, MODEL_PAUSE.1);
                        }
                        pause = self.model_pause;
                    }
                    self.desk.refused(&prepared, fault);
                }
            }
            if self.desk.has_backlog() {
                self.backlog_at = self.backlog_at.max(now + pause);
            }
        }
        if self.desk.take_read_failed() {
            self.backlog_at = Instant::now() + READ_PAUSE;
        }
        if let Some(key) = abandoned {
            self.cancel(&key);
        }
    }

    fn order(&mut self, order: Order) {
        if let Some(key) = self.desk.order(order) {
            self.cancel(&key);
        }
    }

    fn ended(&mut self, cause: Cause, why: &str) {
        let Some(connection) = &self.connection else {
            return;
        };
        if connection.leaving {
            return self.left();
        }
        let end = match cause {
            Cause::Unreachable => End::Unreachable,
            Cause::NoGreeting => End::NoGreeting,
            Cause::VersionRefused => End::VersionRefused,
            Cause::PacketTooLarge => End::PacketTooLarge,
            Cause::Refused => End::Refused,
            Cause::Broken if connection.greeting.is_none() => End::NoGreeting,
            Cause::Broken => End::Lost(connection.since.elapsed()),
        };
        let version = connection.link.version();
        // An old broker says nothing of who we are.
        let of_the_version = version == Version::V5
            && self.config.mqtt.protocol == Protocol::Auto
            && matches!(end, End::VersionRefused | End::NoGreeting);
        if !of_the_version {
            self.keyring.ended(connection.greeting.is_some());
        }
        // The reason may quote what the broker sent.
        let why: String = why.chars().take(WHY_CHARS_MAX).collect();
        crate::event!(
            BrokerLost,
            host = self.config.mqtt.host,
            version = version.name(),
            why,
            "the broker is not connected"
        );
        self.disconnected();
        self.retry(end);
    }

    /// Nothing of a connection is left.
    fn disconnected(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        drop(connection);
        self.context.telemetry.set_mqtt_link(MqttLink::Connecting);
        self.desk.disconnected();
        self.board.forget();
        // The broker sends what was not acknowledged again, and its old packet ids mean nothing any more.
        self.unacknowledged.clear();
        self.held.retain(|(message, _)| message.ack.is_none());
    }

    fn retry(&mut self, end: End) {
        self.chances = self.chances.wrapping_add(1);
        let chance = self.chance.hash_one(self.chances) as f64 / u64::MAX as f64;
        self.attempt = self.series.after(end, chance);
        self.attempt_at = Instant::now() + self.attempt.pause;
    }

    /// Sends what is left, says goodbye.
    async fn farewell(&mut self) {
        let offline = status::offline(self.desk.topics(), "stopped");
        self.desk.outbox.put_status(offline);
        let until_quiet = async {
            while self.connection.is_some()
                && !(self.desk.outbox.is_empty() && self.unacknowledged.is_empty())
            {
                self.flush();
                let event = next_event(self.connection.as_mut()).await;
                self.link_event(event);
                self.unacknowledged.extend(self.desk.take_acks());
            }
            if let Some(connection) = &mut self.connection
                && connection.link.disconnect()
            {
                while !matches!(connection.link.event().await, LinkEvent::Closed(..)) {}
            }
        };
        if timeout(FAREWELL_MAX, until_quiet).await.is_err() {
            crate::event!(
                StopIncomplete,
                "the broker did not confirm everything before the daemon stopped"
            );
        }
        let undelivered = self.desk.outbox.answers();
        if undelivered > 0 {
            crate::event!(
                StopIncomplete,
                undelivered,
                "answers could not be delivered; the spool keeps them, if it is durable"
            );
        }
        self.context.telemetry.set_mqtt_link(MqttLink::Off);
    }
}

/// Carries a job's events to the loop.
async fn forward(key: Key, mut stream: JobStream, events: mpsc::Sender<(Key, JobEvent)>) {
    while let Some(event) = stream.next().await {
        if events.send((key.clone(), event)).await.is_err() {
            return;
        }
    }
}

async fn next_event(connection: Option<&mut Connection>) -> LinkEvent {
    match connection {
        Some(connection) => connection.link.event().await,
        None => pending().await,
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant.into()).await,
        None => pending().await,
    }
}

/// Whether the files that the configuration names are of use.
///
/// # Errors
/// The first that is not.
pub(crate) fn check(config: &MqttConfig) -> Result<(), Unusable> {
    renew::check(config)
}

/// What a record of this front end says, for an operator.
pub(crate) fn describe(kept: &Kept) -> serde_json::Value {
    desk::describe(kept)
}

/// A message as a broker hands it over, of which only what carries meaning is known.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// The topic.
    pub topic: String,
    /// Content Type.
    pub content_type: Option<String>,
    /// Response Topic.
    pub response_topic: Option<String>,
    /// Correlation Data.
    pub correlation: Option<Vec<u8>>,
    /// Message Expiry Interval, seconds.
    pub expiry_s: Option<u32>,
    /// User Properties.
    pub user: Vec<(String, String)>,
    /// The payload.
    pub payload: Vec<u8>,
}

/// What a message asks of a gateway with the usual configuration; `None` if its topic is none of the gateway's. What
/// clients may send, without a broker, for tests that send anything.
///
/// # Errors
/// Why the request is turned away.
#[must_use]
pub fn request_of(published: Published) -> Option<Result<Request, Fault>> {
    let config = MqttConfig::default();
    let topics = Topics::with_base("andon/test").ok()?;
    let properties = message::Properties {
        response_topic: published.response_topic,
        correlation: published.correlation.map(Bytes::from),
        content_type: published.content_type,
        expiry_s: published.expiry_s,
        user: published.user,
    };
    let incoming = message::Incoming {
        topic: published.topic,
        payload: Bytes::from(published.payload),
        retain: false,
        repeated: false,
        properties,
        ack: None,
    };
    match topics.parse(&incoming.topic).ok()? {
        topic::Incoming::Cancel { .. } => {
            // Names a request at most.
            let _ = request::cancel_id(&incoming.payload);
            None
        }
        topic::Incoming::Request { client, task, .. } => {
            let place = request::Place {
                topics: &topics,
                own: &topics,
                client,
                id: None,
                task,
                allowed: &config.response_topics,
                limits: &LimitsConfig::default(),
                payload_bytes_max: usize::try_from(config.packet_bytes_max).unwrap_or(usize::MAX),
            };
            let mut ids = request::Ids::default();
            let (_, outcome) = request::read(&incoming, &place, &mut ids, Instant::now());
            Some(
                outcome
                    .map(|parsed| parsed.request)
                    .map_err(|refusal| refusal.fault),
            )
        }
    }
}
