//! Metrics of the machine. What it does not have is not among them.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use andon_policy::throttle::Throttle;
use andon_wire::Degraded;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::hardware::Readings;
use crate::memory::BudgetFacts;

type Measure = Gauge<f64, AtomicU64>;

/// No label: a family without members is not shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoLabels {}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ZoneLabels {
    zone: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RailLabels {
    rail: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabels {
    part: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Hardware {
    temperature: Family<ZoneLabels, Measure>,
    temperature_limit: Family<ZoneLabels, Measure>,
    rail: Family<RailLabels, Measure>,
    power: Family<NoLabels, Measure>,
    energy: Family<NoLabels, Counter<f64, AtomicU64>>,
    token_energy: Family<NoLabels, Measure>,
    gpu_load: Family<NoLabels, Measure>,
    gpu_clock: Family<NoLabels, Measure>,
    memory_left: Family<NoLabels, Gauge>,
    memory_stall: Family<KindLabels, Measure>,
    throttle: Gauge,
    promised: Family<PartLabels, Gauge>,
    budget: Family<NoLabels, Gauge>,
    promisable: Family<NoLabels, Gauge>,
    shortage: Gauge,
    degraded: Family<ModeLabels, Gauge>,
    /// Tokens and joules when energy per token was last said.
    last: Mutex<Option<(u64, f64)>>,
}

impl Hardware {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "temperature",
            "Temperature of each thermal zone",
            Unit::Celsius,
            self.temperature.clone(),
        );
        registry.register_with_unit(
            "temperature_limit",
            "Where the system slows its processors down, or a little before it stops",
            Unit::Celsius,
            self.temperature_limit.clone(),
        );
        registry.register_with_unit(
            "rail_power",
            "Power of each rail of the board",
            Unit::Other("watts".to_owned()),
            self.rail.clone(),
        );
        registry.register_with_unit(
            "power",
            "Power of the machine",
            Unit::Other("watts".to_owned()),
            self.power.clone(),
        );
        registry.register_with_unit(
            "energy",
            "Energy that the machine took",
            Unit::Joules,
            self.energy.clone(),
        );
        registry.register_with_unit(
            "token_energy",
            "Energy that the machine took for each token of answers, of late",
            Unit::Joules,
            self.token_energy.clone(),
        );
        registry.register_with_unit(
            "gpu_load",
            "Share of the time that the graphics processor works",
            Unit::Ratios,
            self.gpu_load.clone(),
        );
        registry.register_with_unit(
            "gpu_clock",
            "Clock of the graphics processor",
            Unit::Other("hertz".to_owned()),
            self.gpu_clock.clone(),
        );
        registry.register_with_unit(
            "memory_left",
            "What the machine and the daemon's control group could still give if no page of any file were needed",
            Unit::Bytes,
            self.memory_left.clone(),
        );
        registry.register_with_unit(
            "memory_stall",
            "Share of the last ten seconds in which some task, or all, waited for memory",
            Unit::Ratios,
            self.memory_stall.clone(),
        );
        registry.register_with_unit(
            "memory_promised",
            "Memory that is promised to each part of the daemon, taken or not",
            Unit::Bytes,
            self.promised.clone(),
        );
        registry.register_with_unit(
            "memory_budget",
            "Most memory that is promised in all",
            Unit::Bytes,
            self.budget.clone(),
        );
        registry.register_with_unit(
            "memory_promisable",
            "Memory that could be promised now, by the budget and by what the system has left",
            Unit::Bytes,
            self.promisable.clone(),
        );
        registry.register(
            "memory_shortage",
            "Who gives way to a lack of memory: 0 nobody, 1 caches, 2 idle models, 3 batch work, 4 all but alarms",
            self.shortage.clone(),
        );
        registry.register(
            "degraded",
            "Whether the daemon does without something, or does less",
            self.degraded.clone(),
        );
        registry.register(
            "throttle",
            "How far batch work gives way to heat, power or a lack of memory: 0 not, 1 half, 2 it waits",
            self.throttle.clone(),
        );
    }

    /// Notes what was read, when so many tokens of answers had been made.
    pub(super) fn read(&self, readings: &Readings, tokens: u64) {
        for zone in &readings.zones {
            let labels = ZoneLabels {
                zone: zone.name.clone(),
            };
            let celsius = |mc: i32| f64::from(mc) / 1000.0;
            self.temperature
                .get_or_create(&labels)
                .set(celsius(zone.temperature_mc));
            if let Some(limit) = zone.limit_mc {
                self.temperature_limit
                    .get_or_create(&labels)
                    .set(celsius(limit));
            }
        }
        for rail in &readings.rails {
            let labels = RailLabels {
                rail: rail.name.clone(),
            };
            self.rail.get_or_create(&labels).set(rail.watts);
        }
        let set = |family: &Family<NoLabels, Measure>, value: Option<f64>| {
            if let Some(value) = value {
                family.get_or_create(&NoLabels {}).set(value);
            }
        };
        set(&self.power, readings.watts);
        set(&self.gpu_load, readings.gpu.map(|gpu| gpu.load));
        #[expect(clippy::cast_precision_loss, reason = "clocks are far below 2^52 Hz")]
        let clock = readings
            .gpu
            .and_then(|gpu| gpu.clock_hz)
            .map(|hz| hz as f64);
        set(&self.gpu_clock, clock);
        if let Some(joules) = readings.joules {
            let energy = self.energy.get_or_create(&NoLabels {});
            energy.inc_by((joules - energy.get()).max(0.0));
            let per_token = self.per_token(tokens, joules);
            set(&self.token_energy, per_token);
        }
        if let Some(bytes) = readings.memory.left_bytes() {
            let left = self.memory_left.get_or_create(&NoLabels {});
            left.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        if let Some(stall) = readings.memory.stall {
            for (kind, share) in [("some", stall.some), ("full", stall.full)] {
                self.memory_stall
                    .get_or_create(&KindLabels { kind })
                    .set(share);
            }
        }
    }

    /// Energy per token since it was last said, once enough tokens were made to say it again.
    fn per_token(&self, tokens: u64, joules: f64) -> Option<f64> {
        /// Of few tokens the idle time around them would be most of it.
        const TOKENS_MIN: u64 = 16;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens_before, joules_before) = *last.get_or_insert((tokens, joules));
        let made = tokens.saturating_sub(tokens_before);
        if made == 0 {
            // Idle time is nobody's.
            *last = Some((tokens, joules));
        }
        if made < TOKENS_MIN {
            return None;
        }
        *last = Some((tokens, joules));
        #[expect(clippy::cast_precision_loss, reason = "a sample has few tokens")]
        let per_token = (joules - joules_before) / made as f64;
        Some(per_token)
    }

    /// Notes what memory is promised.
    pub(super) fn budget(&self, facts: &BudgetFacts) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        for (part, bytes) in facts.parts {
            let part = part.as_str();
            let promised = self.promised.get_or_create(&PartLabels { part });
            promised.set(gauge(bytes));
        }
        for (family, bytes) in [
            (&self.budget, facts.bytes_max),
            (&self.promisable, facts.left),
        ] {
            if let Some(bytes) = bytes {
                family.get_or_create(&NoLabels {}).set(gauge(bytes));
            }
        }
        self.shortage.set(facts.shortage as i64);
    }

    /// Notes what the daemon does without.
    pub(super) fn degraded(&self, degraded: &[Degraded]) {
        for mode in Degraded::ALL {
            let labels = ModeLabels {
                mode: mode.as_str(),
            };
            let gauge = self.degraded.get_or_create(&labels);
            gauge.set(i64::from(degraded.contains(&mode)));
        }
    }

    /// Notes how far batch work gives way.
    pub(super) fn throttle(&self, throttle: Throttle) {
        self.throttle.set(match throttle {
            Throttle::None => 0,
            Throttle::Slow => 1,
            Throttle::Hold => 2,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::Hardware;
    use crate::hardware::{Rail, Readings};
    use prometheus_client::registry::Registry;

    fn text(hardware: &Hardware) -> String {
        let mut registry = Registry::default();
        hardware.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string");
        text
    }

    #[test]
    fn what_the_machine_does_not_have_is_not_shown() {
        let hardware = Hardware::default();
        hardware.read(&Readings::default(), 0);
        let lines = text(&hardware);
        let values: Vec<&str> = lines
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        assert_eq!(values, ["memory_shortage 0", "throttle 0"]);
    }

    #[test]
    fn energy_goes_to_the_tokens_made_meanwhile() {
        let hardware = Hardware::default();
        let read = |joules: f64, tokens: u64| {
            let readings = Readings {
                joules: Some(joules),
                rails: vec![Rail {
                    name: "VDD_IN".to_owned(),
                    watts: 7.0,
                }],
                ..Readings::default()
            };
            hardware.read(&readings, tokens);
        };
        read(0.0, 0);
        read(50.0, 0);
        assert!(!text(&hardware).contains("\ntoken_energy_joules{} "));
        read(90.0, 20);
        let lines = text(&hardware);
        assert!(lines.contains("\ntoken_energy_joules{} 2.0\n"), "{lines}");
        assert!(lines.contains("\nenergy_joules_total{} 90.0\n"), "{lines}");
        assert!(
            lines.contains("rail_power_watts{rail=\"VDD_IN\"} 7.0\n"),
            "{lines}"
        );
    }
}
