//! Counters and their Prometheus text.
//!
//! Labels come from closed sets of the daemon's own words and from the configuration, never from a client: their number is
//! bounded.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use andon_engine::calibrate::Calibration;
use andon_engine::generate::ConstraintCounts;
use andon_engine::kv::disk::StoreCounts;
use andon_engine::speculate::GuessCount;
use andon_policy::throttle::Throttle;
use andon_wire::{Degraded, MqttLink, RequestCounters, Speed, TokenCounters};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::audit::AuditMetrics;
use super::config::ConfigMetrics;
use super::hardware::Hardware;
use super::ledger::LedgerMetrics;
use super::models::ModelMetrics;
use super::sandbox::SandboxMetrics;
use super::spool::SpoolMetrics;
use crate::config::TASKS_MAX;
use crate::confine::Confined;
use crate::fault::FaultCode;
use crate::hardware::Readings;
use crate::memory::BudgetFacts;
use crate::request::Origin;
use crate::worker::{Done, Finish, Usage};

/// The way in and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// [`Origin::name`].
    pub origin: &'static str,
    /// A finish reason or [`FaultCode::name`].
    pub outcome: &'static str,
}

/// The way in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OriginLabels {
    /// [`Origin::name`].
    pub origin: &'static str,
}

/// How many columns a product has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ColumnLabels {
    /// From 1 to 8.
    pub columns: u32,
}

/// What memory is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MemoryLabels {
    /// One of the daemon's own words.
    pub part: &'static str,
}

/// Guesses of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GuessLabels {
    /// [`andon_engine::speculate::Source::name`].
    pub source: &'static str,
    /// [`GuessCount::agreement`].
    pub agreement: u32,
}

/// A configured task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TaskLabels {
    /// Its name.
    pub task: String,
}

/// Tokens guessed, by where the guesses came from and by task.
#[derive(Debug, Default)]
struct Guesses {
    passes: Family<GuessLabels, Counter>,
    guessed: Family<GuessLabels, Counter>,
    accepted: Family<GuessLabels, Counter>,
    task_completion: Family<TaskLabels, Counter>,
    task_guessed: Family<TaskLabels, Counter>,
    task_accepted: Family<TaskLabels, Counter>,
    /// Whether a draft model guesses, and what one of its passes costs.
    draft: Gauge,
    draft_cost: Measure,
    /// The tasks that have figures of their own, at most [`TASKS_MAX`].
    tasks: Mutex<HashSet<String>>,
}

/// What became of a constraint that came with a request or its task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConstraintLabels {
    /// `compiled`, `known` or `refused`.
    pub outcome: &'static str,
}

/// What holding answers to a shape takes.
#[derive(Debug, Default)]
struct Constraints {
    outcomes: Family<ConstraintLabels, Counter>,
    choices: Counter,
    masks: Counter,
    masking: Counter<f64, AtomicU64>,
    vocabulary: Gauge,
}

impl Constraints {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "constraints",
            "Shapes asked for, by what became of them: compiled, known from before, or refused",
            self.outcomes.clone(),
        );
        registry.register(
            "constrained_choices",
            "Tokens chosen among those that an answer's shape allows",
            self.choices.clone(),
        );
        registry.register(
            "constraint_masks",
            "Masks of all tokens that an answer's shape allows; most choices need none",
            self.masks.clone(),
        );
        registry.register_with_unit(
            "constraint_masking",
            "Time to compute those masks, mostly beside passes",
            Unit::Seconds,
            self.masking.clone(),
        );
        registry.register_with_unit(
            "constraint_vocabulary",
            "Memory of the vocabulary as masks need it, made for the first answer with a shape",
            Unit::Bytes,
            self.vocabulary.clone(),
        );
    }
}

/// How the system gives out huge pages.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PageLabels {
    /// [`andon_engine::calibrate::HugePages::name`].
    pub mode: &'static str,
}

/// A gauge of a number that is not whole.
type Measure = Gauge<f64, AtomicU64>;

/// What is kept of prompts on the disk.
#[derive(Debug, Default)]
struct Kept {
    pages: Gauge,
    bytes: Gauge,
    restored: Counter,
    written: Counter,
    damaged: Counter,
}

impl Kept {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "kv_kept_pages",
            "Pages of keys and values on the disk, of whatever model",
            self.pages.clone(),
        );
        registry.register_with_unit(
            "kv_kept",
            "What these take",
            Unit::Bytes,
            self.bytes.clone(),
        );
        for (name, help, counter) in [
            (
                "kv_restored_pages",
                "Pages of keys and values that were read from the disk",
                &self.restored,
            ),
            (
                "kv_written_pages",
                "Pages of keys and values that were written to the disk",
                &self.written,
            ),
            (
                "kv_damaged_pages",
                "Pages of keys and values on the disk that were of no use and removed",
                &self.damaged,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}

/// What was measured of the machine; nothing until it was.
#[derive(Debug, Default)]
struct Machine {
    read: Measure,
    multiply_adds: Measure,
    column_cost: Family<ColumnLabels, Measure>,
    wake: Measure,
    spin: Measure,
    huge_pages: Family<PageLabels, Gauge>,
    /// Once there are figures, they say so: zeros would look like some.
    measured: Gauge,
}

/// The sums that the status reports; the families below have them by label.
#[derive(Debug, Default)]
struct Totals {
    accepted: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    /// Bits of an f32, in tokens per second.
    prefill_speed: AtomicU32,
    decode_speed: AtomicU32,
}

/// What the daemon counts. Cheap to update from any thread.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    totals: Totals,
    mqtt_link: Mutex<MqttLink>,
    /// When the daemon started.
    pub started: Instant,
    /// Requests submitted, refused ones included.
    pub requests: Family<OriginLabels, Counter>,
    /// Requests by how they ended.
    pub outcomes: Family<OutcomeLabels, Counter>,
    /// Tokens of prompts computed or taken from the cache.
    pub prompt_tokens: Counter,
    /// Those of them that the prefix cache had.
    pub cached_tokens: Counter,
    /// Prompts of which the prefix cache had a part.
    pub prefix_hits: Counter,
    /// Tokens of answers.
    pub completion_tokens: Counter,
    /// How many of the loaded models have their weights read from a pack.
    pub packed: Gauge,
    /// How many of the loaded models were compared with their manifests, or have the kernel vouch for them.
    pub weights_compared: Gauge,
    /// Of how many of them something was found to differ.
    pub weights_differ: Gauge,
    /// Most bytes that each part of the served model takes.
    memory: Family<MemoryLabels, Gauge>,
    /// Requests waiting.
    pub waiting: Gauge,
    /// Requests being answered.
    pub running: Gauge,
    /// How often one of them stood aside for another.
    pub parked: Counter,
    /// Requests that were ended since passes brought them nothing.
    pub stuck: Counter,
    /// From submission to the first token, in seconds.
    pub first_token_seconds: Histogram,
    /// Open connections.
    pub(super) connections: Family<OriginLabels, Gauge>,
    /// Connections that were opened.
    pub(super) visits: Family<OriginLabels, Counter>,
    /// Input that no request could be made of.
    pub malformed: Family<OriginLabels, Counter>,
    /// Whether the broker is connected.
    pub mqtt_connected: Gauge,
    /// Connections to the broker made since the start.
    pub mqtt_connects: Counter,
    machine: Machine,
    guesses: Guesses,
    constraints: Constraints,
    pub(super) spool: SpoolMetrics,
    pub(super) routing: super::router::Figures,
    pub(super) upstream: super::upstream::UpstreamMetrics,
    pub(super) audit: AuditMetrics,
    pub(super) ledger: LedgerMetrics,
    pub(super) config: ConfigMetrics,
    pub(super) models: ModelMetrics,
    kept: Kept,
    hardware: Hardware,
    sandbox: SandboxMetrics,
    /// What share of the machine's streaming read each pass that decoded tokens reached.
    decode_bandwidth: Histogram,
}

impl Machine {
    fn register(&self, registry: &mut Registry) {
        let per_second = |what: &str| Unit::Other(format!("{what}_per_second"));
        registry.register(
            "calibrated",
            "Whether the machine was measured; the figures of it are zero until then",
            self.measured.clone(),
        );
        registry.register_with_unit(
            "memory_read",
            "Streaming read of the weights with all threads",
            per_second("bytes"),
            self.read.clone(),
        );
        registry.register_with_unit(
            "int8",
            "8-bit multiply-adds with all threads",
            per_second("multiply_adds"),
            self.multiply_adds.clone(),
        );
        registry.register_with_unit(
            "column_cost",
            "Time of a product with so many columns, by that with one",
            Unit::Ratios,
            self.column_cost.clone(),
        );
        registry.register_with_unit(
            "wake",
            "Time until a sleeping compute thread works",
            Unit::Seconds,
            self.wake.clone(),
        );
        registry.register_with_unit(
            "spin",
            "How long compute threads wait awake before they sleep",
            Unit::Seconds,
            self.spin.clone(),
        );
        registry.register(
            "huge_pages",
            "How the system gives out huge pages, which has the value 1",
            self.huge_pages.clone(),
        );
    }
}

impl Guesses {
    fn register(&self, registry: &mut Registry) {
        registry.register("draft", "Whether a draft model guesses", self.draft.clone());
        registry.register_with_unit(
            "draft_cost",
            "Time of a pass of the draft model, by that of the model over one token",
            Unit::Ratios,
            self.draft_cost.clone(),
        );
        for (name, help, family) in [
            (
                "guess_passes",
                "Passes that had guesses, once for each answer that had, by source and least agreement in tokens",
                &self.passes,
            ),
            (
                "guessed_tokens",
                "Tokens guessed, by source and least agreement in tokens",
                &self.guessed,
            ),
            (
                "accepted_tokens",
                "Tokens guessed that were right, by source and least agreement in tokens",
                &self.accepted,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        for (name, help, family) in [
            (
                "task_completion_tokens",
                "Tokens of answers to each task",
                &self.task_completion,
            ),
            (
                "task_guessed_tokens",
                "Tokens guessed for answers to each task",
                &self.task_guessed,
            ),
            (
                "task_accepted_tokens",
                "Tokens guessed for answers to each task that were right",
                &self.task_accepted,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
    }
}

/// What one of several that count has told already.
#[derive(Debug, Default)]
pub struct Told {
    guesses: HashMap<GuessLabels, [u64; 3]>,
    constrained: ConstraintCounts,
}

impl Default for Telemetry {
    fn default() -> Self {
        Telemetry::new()
    }
}

impl Telemetry {
    /// All at zero.
    pub fn new() -> Telemetry {
        // 5 ms to 40 s in powers of two: the promise (50 ms) lies between two edges near it.
        let edges = (0..14).map(|power| 0.005 * f64::from(1u32 << power));
        let mut telemetry = Telemetry {
            registry: Registry::with_prefix("andon"),
            totals: Totals::default(),
            mqtt_link: Mutex::new(MqttLink::Off),
            started: Instant::now(),
            requests: Family::default(),
            outcomes: Family::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            prefix_hits: Counter::default(),
            completion_tokens: Counter::default(),
            packed: Gauge::default(),
            weights_compared: Gauge::default(),
            weights_differ: Gauge::default(),
            memory: Family::default(),
            waiting: Gauge::default(),
            running: Gauge::default(),
            parked: Counter::default(),
            stuck: Counter::default(),
            first_token_seconds: Histogram::new(edges),
            connections: Family::default(),
            visits: Family::default(),
            malformed: Family::default(),
            mqtt_connected: Gauge::default(),
            mqtt_connects: Counter::default(),
            machine: Machine::default(),
            guesses: Guesses::default(),
            constraints: Constraints::default(),
            routing: super::router::Figures::default(),
            upstream: super::upstream::UpstreamMetrics::default(),
            spool: SpoolMetrics::default(),
            audit: AuditMetrics::default(),
            ledger: LedgerMetrics::default(),
            config: ConfigMetrics::default(),
            models: ModelMetrics::default(),
            kept: Kept::default(),
            hardware: Hardware::default(),
            sandbox: SandboxMetrics::default(),
            decode_bandwidth: Histogram::new((1..=10).map(|tenth| f64::from(tenth) / 10.0)),
        };
        let registry = &mut telemetry.registry;
        telemetry.machine.register(registry);
        telemetry.guesses.register(registry);
        telemetry.constraints.register(registry);
        telemetry.routing.register(registry);
        telemetry.upstream.register(registry);
        telemetry.spool.register(registry);
        telemetry.audit.register(registry);
        telemetry.ledger.register(registry);
        telemetry.config.register(registry);
        telemetry.models.register(registry);
        telemetry.kept.register(registry);
        telemetry.hardware.register(registry);
        telemetry.sandbox.register(registry);
        registry.register_with_unit(
            "decode_bandwidth",
            "Share of the machine's streaming read that passes with decoded tokens reached, by the weights they read",
            Unit::Ratios,
            telemetry.decode_bandwidth.clone(),
        );
        registry.register("requests", "Requests submitted", telemetry.requests.clone());
        registry.register(
            "outcomes",
            "Requests by how they ended",
            telemetry.outcomes.clone(),
        );
        registry.register(
            "prompt_tokens",
            "Tokens of prompts",
            telemetry.prompt_tokens.clone(),
        );
        registry.register(
            "cached_tokens",
            "Tokens of prompts that the prefix cache had",
            telemetry.cached_tokens.clone(),
        );
        registry.register(
            "prefix_hits",
            "Prompts of which the prefix cache had a part",
            telemetry.prefix_hits.clone(),
        );
        registry.register(
            "completion_tokens",
            "Tokens of answers",
            telemetry.completion_tokens.clone(),
        );
        registry.register(
            "packed",
            "How many of the loaded models have their weights read from a pack",
            telemetry.packed.clone(),
        );
        registry.register(
            "weights_compared",
            "How many of the loaded models were compared with their manifests since they were loaded, or have the kernel vouch for them",
            telemetry.weights_compared.clone(),
        );
        registry.register(
            "weights_differ",
            "How many of the loaded models were found to differ from their manifests, or from their packed weights",
            telemetry.weights_differ.clone(),
        );
        registry.register_with_unit(
            "memory_max",
            "Most memory that each part of what is served takes",
            Unit::Bytes,
            telemetry.memory.clone(),
        );
        registry.register("waiting", "Requests waiting", telemetry.waiting.clone());
        registry.register(
            "running",
            "Requests being answered",
            telemetry.running.clone(),
        );
        registry.register(
            "parked",
            "How often a request being answered stood aside for another",
            telemetry.parked.clone(),
        );
        registry.register(
            "stuck",
            "Requests that were ended since passes brought them nothing",
            telemetry.stuck.clone(),
        );
        registry.register_with_unit(
            "first_token",
            "From submission to the first token",
            Unit::Seconds,
            telemetry.first_token_seconds.clone(),
        );
        registry.register(
            "connections",
            "Open connections",
            telemetry.connections.clone(),
        );
        registry.register(
            "connections_opened",
            "Connections that were opened",
            telemetry.visits.clone(),
        );
        registry.register(
            "malformed",
            "Input that no request could be made of",
            telemetry.malformed.clone(),
        );
        registry.register(
            "mqtt_connected",
            "Whether the broker is connected",
            telemetry.mqtt_connected.clone(),
        );
        registry.register(
            "mqtt_connects",
            "Connections to the broker made",
            telemetry.mqtt_connects.clone(),
        );
        telemetry
    }

    /// Changes the most memory that a part of what is served takes.
    pub fn memory(&self, part: &'static str, more: i64) {
        let gauge = self.memory.get_or_create(&MemoryLabels { part });
        gauge.inc_by(more);
    }

    /// Counts a submission.
    pub fn request(&self, origin: Origin) {
        self.requests
            .get_or_create(&OriginLabels {
                origin: origin.name(),
            })
            .inc();
    }

    /// Counts a request turned away.
    pub fn refused(&self, origin: Origin, code: FaultCode) {
        self.totals.refused.fetch_add(1, Ordering::Relaxed);
        self.outcome(origin, code.name());
    }

    /// Counts a request taken in.
    pub fn accepted(&self) {
        self.totals.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an accepted request that was not answered.
    pub fn failed(&self, origin: Origin, code: FaultCode) {
        let total = match code {
            FaultCode::Cancelled => &self.totals.cancelled,
            _ => &self.totals.failed,
        };
        total.fetch_add(1, Ordering::Relaxed);
        self.outcome(origin, code.name());
    }

    /// Counts an answer, and what it took.
    pub fn answered(&self, done: &Done) {
        self.told(done);
        self.computed(done);
    }

    /// Counts an answer, whoever made it.
    pub fn told(&self, done: &Done) {
        let total = match done.finish {
            Finish::Stop | Finish::Length => &self.totals.answered,
            Finish::Cancelled => &self.totals.cancelled,
        };
        total.fetch_add(1, Ordering::Relaxed);
        self.routed(done.route);
    }

    /// Counts what was computed here for an answer, or for one that may be set aside.
    pub fn computed(&self, done: &Done) {
        self.completion_tokens
            .inc_by(done.usage.completion_tokens as u64);
        #[expect(
            clippy::cast_precision_loss,
            reason = "microseconds of an answer are far below 2^52"
        )]
        self.first_token_seconds
            .observe(done.timings.first_token_us as f64 / 1e6);
        let computed = done
            .usage
            .prompt_tokens
            .saturating_sub(done.usage.cached_tokens);
        if done.timings.prefill_us > 0 && computed > 0 {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a speed is told to a few digits"
            )]
            let speed = computed as f32 * 1e6 / done.timings.prefill_us as f32;
            self.totals
                .prefill_speed
                .store(speed.to_bits(), Ordering::Relaxed);
        }
    }

    /// Counts what an answer to a task took.
    pub fn answered_task(&self, task: &str, usage: &Usage) {
        let guesses = &self.guesses;
        {
            let mut tasks = guesses.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            if !tasks.contains(task) {
                if tasks.len() >= TASKS_MAX {
                    return;
                }
                tasks.insert(task.to_owned());
            }
        }
        let labels = TaskLabels {
            task: task.to_owned(),
        };
        for (family, tokens) in [
            (&guesses.task_completion, usage.completion_tokens),
            (&guesses.task_guessed, usage.guessed_tokens),
            (&guesses.task_accepted, usage.accepted_tokens),
        ] {
            family.get_or_create(&labels).inc_by(tokens as u64);
        }
    }

    /// Sets whether a draft model guesses.
    pub fn draft(&self, guesses: bool) {
        self.guesses.draft.set(i64::from(guesses));
    }

    /// Sets what a pass of the draft model costs, relative to one of the model over one token.
    pub fn draft_cost(&self, cost: f32) {
        self.guesses.draft_cost.set(f64::from(cost));
    }

    /// Sets what was guessed so far. Only one thread may.
    pub fn guesses(&self, told: &mut Told, counts: impl Iterator<Item = GuessCount>) {
        for count in counts.filter(|count| count.passes > 0) {
            let labels = GuessLabels {
                source: count.source.name(),
                agreement: u32::try_from(count.agreement).unwrap_or(u32::MAX),
            };
            let now = [count.passes, count.guessed, count.accepted];
            let before = told.guesses.entry(labels.clone()).or_default();
            let before = std::mem::replace(before, now);
            let guesses = &self.guesses;
            let families = [&guesses.passes, &guesses.guessed, &guesses.accepted];
            for ((family, now), before) in families.into_iter().zip(now).zip(before) {
                let more = now.saturating_sub(before);
                family.get_or_create(&labels).inc_by(more);
            }
        }
    }

    /// Counts a shape that was asked for, by what became of it.
    pub fn constraint(&self, outcome: &'static str) {
        let labels = ConstraintLabels { outcome };
        self.constraints.outcomes.get_or_create(&labels).inc();
    }

    /// Notes the memory of the vocabulary as masks need it.
    pub fn constraint_vocabulary(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.constraints.vocabulary.set(bytes);
    }

    /// Sets what constraints took so far. Only one thread may.
    pub fn constrained(&self, told: &mut Told, counts: ConstraintCounts) {
        let before = std::mem::replace(&mut told.constrained, counts);
        let constraints = &self.constraints;
        for (counter, now, before) in [
            (&constraints.choices, counts.choices, before.choices),
            (&constraints.masks, counts.masks, before.masks),
        ] {
            counter.inc_by(now.saturating_sub(before));
        }
        let more = counts.masking.saturating_sub(before.masking);
        constraints.masking.inc_by(more.as_secs_f64());
    }

    /// Sets what is kept of prompts. Only one thread may.
    pub fn pages(&self, counts: &StoreCounts) {
        let kept = &self.kept;
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        kept.pages.set(signed(counts.pages as u64));
        kept.bytes.set(signed(counts.bytes));
        for (counter, now) in [
            (&kept.restored, counts.restored),
            (&kept.written, counts.written),
            (&kept.damaged, counts.damaged),
        ] {
            counter.inc_by(now.saturating_sub(counter.get()));
        }
    }

    /// Counts a prompt that was read, and how much of it was in the prefix cache.
    pub fn prompt_read(&self, tokens: usize, cached: usize) {
        self.prompt_tokens.inc_by(tokens as u64);
        self.cached_tokens.inc_by(cached as u64);
        self.prefix_hits.inc_by(u64::from(cached > 0));
    }

    /// Changes the load: so many more requests wait and run.
    pub fn load(&self, waiting: i64, running: i64) {
        self.waiting.inc_by(waiting);
        self.running.inc_by(running);
    }

    /// Sets the recent speed of decoding, in tokens per second over all requests.
    pub fn decode_speed(&self, tokens_per_s: f32) {
        self.totals
            .decode_speed
            .store(tokens_per_s.to_bits(), Ordering::Relaxed);
    }

    /// Notes what was measured of the machine.
    pub fn calibrated(&self, calibration: &Calibration) {
        let machine = &self.machine;
        machine.read.set(calibration.read_bytes_per_s);
        machine.multiply_adds.set(calibration.multiply_adds_per_s);
        for (columns, &cost) in (1..).zip(&calibration.column_cost) {
            let measure = machine.column_cost.get_or_create(&ColumnLabels { columns });
            measure.set(f64::from(cost));
        }
        machine.wake.set(f64::from(calibration.wake_s));
        machine.spin.set(f64::from(calibration.spin_s));
        let mode = calibration.huge_pages.name();
        machine
            .huge_pages
            .get_or_create(&PageLabels { mode })
            .set(1);
        machine.measured.set(1);
    }

    /// Notes what was read of the machine.
    pub fn hardware(&self, readings: &Readings) {
        self.hardware.read(readings, self.completion_tokens.get());
    }

    /// Notes what the daemon does without.
    pub fn degraded(&self, degraded: &[Degraded]) {
        self.hardware.degraded(degraded);
    }

    /// Notes what the daemon gave up when it started.
    pub fn confined(&self, confined: &Confined) {
        self.sandbox.confined(confined);
    }

    /// Notes what memory is promised.
    pub fn budget(&self, facts: &BudgetFacts) {
        self.hardware.budget(facts);
    }

    /// Notes how far batch work gives way.
    pub fn throttle(&self, throttle: Throttle) {
        self.hardware.throttle(throttle);
    }

    /// Counts a pass that decoded tokens, by the bytes of weights that it read.
    pub fn decode_pass(&self, bytes: usize, took: Duration) {
        let limit = self.machine.read.get();
        if limit > 0.0 && took > Duration::ZERO {
            #[expect(
                clippy::cast_precision_loss,
                reason = "weights are far fewer than 2^52 bytes"
            )]
            let reached = bytes as f64 / took.as_secs_f64();
            self.decode_bandwidth.observe(reached / limit);
        }
    }

    /// What was counted, as the compact socket's status and the status topic report it.
    pub fn totals(&self) -> (RequestCounters, TokenCounters, Speed) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let speed = |bits: &AtomicU32| f32::from_bits(bits.load(Ordering::Relaxed));
        let totals = &self.totals;
        (
            RequestCounters {
                accepted: get(&totals.accepted),
                answered: get(&totals.answered),
                refused: get(&totals.refused),
                failed: get(&totals.failed),
                cancelled: get(&totals.cancelled),
            },
            TokenCounters {
                prompt: self.prompt_tokens.get(),
                completion: self.completion_tokens.get(),
            },
            Speed {
                prefill_tokens_per_s: speed(&totals.prefill_speed),
                decode_tokens_per_s: speed(&totals.decode_speed),
            },
        )
    }

    /// Notes the state of the link to the broker.
    pub fn set_mqtt_link(&self, link: MqttLink) {
        let connected = matches!(link, MqttLink::Connected311 | MqttLink::Connected5);
        self.mqtt_connected.set(i64::from(connected));
        *self
            .mqtt_link
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// The state of the link to the broker.
    pub fn mqtt_link(&self) -> MqttLink {
        *self
            .mqtt_link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an ending.
    pub fn outcome(&self, origin: Origin, outcome: &'static str) {
        let labels = OutcomeLabels {
            origin: origin.name(),
            outcome,
        };
        self.outcomes.get_or_create(&labels).inc();
    }

    /// Counts input that no request could be made of.
    pub fn malformed(&self, origin: Origin) {
        self.malformed
            .get_or_create(&OriginLabels {
                origin: origin.name(),
            })
            .inc();
    }

    /// Everything as Prometheus text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing into a String does not fail; a broken metric must not take the endpoint down.
            Err(_) => String::new(),
        }
    }
}
