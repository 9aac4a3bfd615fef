//! Looks at the machine now and then, and has batch work give way.

use std::sync::Arc;
use std::time::Instant;

use andon_policy::memory::Reading;
use andon_policy::throttle::{Governor, Strain};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::{Readings, Sensors};
use crate::config::hardware::HardwareConfig;
use crate::frontend::Context;

/// Watches until the daemon stops.
pub async fn watch(context: Context) {
    let config = &context.config.hardware;
    let Some(every) = config.interval() else {
        return;
    };
    let start = Instant::now();
    let mut governor = Governor::new(config.watts_max.map(milliwatts));
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sensors = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = context.stopping.cancelled() => return,
        }
        let config = Arc::clone(&context.config);
        // Some sensors hang on slow buses, and nobody else may wait for them.
        let sampled = spawn_blocking(move || {
            let mut sensors = sensors.unwrap_or_else(|| find(&config.hardware));
            let readings = sensors.sample(Instant::now());
            (sensors, readings)
        });
        let Ok((kept, readings)) = sampled.await else {
            return;
        };
        sensors = Some(kept);
        context.telemetry.hardware(&readings);
        let now_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let shortage = context.budget.read(left(&readings), now_ms);
        if let Some(shortage) = shortage {
            tracing::warn!(
                gives_way = shortage.as_str(),
                left_bytes = readings.memory.left_bytes(),
                "memory is short by another measure than before"
            );
        }
        if context.budget.is_short() {
            context.workers.shed();
        }
        let changed = governor.read(&strain(&readings), now_ms);
        let (throttle, cause) = governor.state();
        if changed {
            tracing::warn!(
                throttle = throttle.as_str(),
                cause = cause.map(andon_policy::throttle::Cause::as_str),
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

fn find(config: &HardwareConfig) -> Sensors {
    Sensors::find(&config.sys_dir, &config.proc_dir)
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
