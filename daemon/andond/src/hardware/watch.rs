//! Looks at the machine now and then, and has batch work give way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::memory::Reading;
use andon_policy::throttle::{Cause, Governor, Strain, Throttle};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Readings, Sensors, memory};
use crate::config::Config;
use crate::config::hardware::HardwareConfig;
use crate::frontend::Context;
use crate::memory::Shortage;

/// Watches until the daemon stops.
pub async fn watch(context: Context) {
    let mut reloaded = context.current.watch();
    let start = Instant::now();
    let mut sensors = Watched::default();
    loop {
        let config = Arc::clone(&reloaded.borrow_and_update());
        let changed = async {
            let wanted = |config: &Config| (config.hardware.sample_ms, config.hardware.watts_max);
            let now = wanted(&config);
            // The sender lives as long as the context.
            drop(reloaded.wait_for(|other| wanted(other) != now).await);
        };
        tokio::select! {
            () = context.stopping.cancelled() => return,
            () = changed => {}
            () = watch_by(&context, &config, &mut sensors, start) => return,
        }
    }
}

/// Watches by one configuration, until nothing more can be read.
async fn watch_by(context: &Context, config: &Arc<Config>, sensors: &mut Watched, start: Instant) {
    let (config, whole) = (&config.hardware, config);
    let Some(every) = config.interval() else {
        return std::future::pending().await;
    };
    let mut governor = Governor::new(config.watts_max.map(milliwatts));
    // Of what made work give way by the configuration before, this one knows nothing: it is found out anew.
    context.workers.throttle(Throttle::default(), None);
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let Ok(memory) = spawn_blocking({
        let config = Arc::clone(whole);
        move || memory::Files::find(&config.hardware.sys_dir, &config.hardware.proc_dir)
    })
    .await
    else {
        return;
    };
    let memory = Arc::new(memory);
    loop {
        ticks.tick().await;
        let files = Arc::clone(&memory);
        let Ok(memory) = spawn_blocking(move || files.sample()).await else {
            return;
        };
        let readings = Readings {
            memory,
            ..sensors.sample(config).await
        };
        context.telemetry.hardware(&readings);
        let now_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let shortage = context.budget.read(left(&readings), now_ms);
        if let Some(shortage) = shortage {
            let left_bytes = readings.memory.left_bytes();
            if shortage == Shortage::None {
                crate::event!(MemoryEased, left_bytes, "memory is not short any more");
            } else {
                crate::event!(
                    MemoryShort,
                    gives_way = shortage.as_str(),
                    left_bytes,
                    "memory is short by another measure than before"
                );
            }
        }
        if context.budget.is_short() {
            context.workers.shed();
        }
        let changed = governor.read(&strain(&readings), now_ms);
        let (throttle, cause) = governor.state();
        if changed && throttle == Throttle::None {
            crate::event!(ThrottleEased, "batch work gives way no more");
        } else if changed {
            crate::event!(
                Throttled,
                throttle = throttle.as_str(),
                cause = cause.map(Cause::as_str),
                margin_mc = readings.margin_mc(),
                watts = readings.watts,
                "batch work gives way by another measure than before"
            );
        }
        if changed || shortage.is_some() {
            context.workers.throttle(throttle, cause);
            context
                .telemetry
                .throttle(context.workers.status().throttle.0);
        }
    }
}

/// How long is waited for sensors. What they say later is not asked for: it would be of a time that is over.
const PATIENCE: Duration = Duration::from_millis(500);

/// Sensors, of which some may hang; nobody else waits for those.
#[derive(Default)]
struct Watched {
    sensors: Option<Sensors>,
    /// They are being read.
    reading: Option<JoinHandle<(Sensors, Readings)>>,
}

impl Watched {
    /// What they say; nothing while one hangs.
    async fn sample(&mut self, config: &HardwareConfig) -> Readings {
        let late = self.reading.is_some();
        let reading = self.reading.get_or_insert_with(|| {
            let (sensors, dir) = (self.sensors.take(), config.sys_dir.clone());
            spawn_blocking(move || {
                let mut sensors = sensors.unwrap_or_else(|| Sensors::find(&dir));
                let readings = sensors.sample(Instant::now());
                (sensors, readings)
            })
        });
        // One that has hung before is not waited for again.
        let patience = if late { Duration::ZERO } else { PATIENCE };
        match timeout(patience, reading).await {
            Ok(read) => {
                self.reading = None;
                let (sensors, readings) = read.ok().unzip();
                self.sensors = sensors;
                readings.filter(|_| !late).unwrap_or_default()
            }
            Err(_) => {
                if !late {
                    crate::event!(
                        SensorHangs,
                        "a sensor hangs: temperatures and power are not known"
                    );
                }
                Readings::default()
            }
        }
    }
}

fn left(readings: &Readings) -> Reading {
    Reading {
        left_bytes: readings.memory.left_bytes(),
        resident_bytes: readings.memory.resident_bytes.unwrap_or(0),
        stall_permille: stall_permille(readings),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share is within 0 and 1"
)]
fn stall_permille(readings: &Readings) -> Option<u16> {
    let stall = readings.memory.stall?;
    Some((stall.some * 1000.0) as u16)
}

fn strain(readings: &Readings) -> Strain {
    Strain {
        margin_mc: readings.margin_mc(),
        power_mw: readings.watts.map(milliwatts),
        stall_permille: stall_permille(readings),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the conversion saturates, which is what is wanted"
)]
fn milliwatts(watts: f64) -> u32 {
    (watts * 1000.0) as u32
}
