//! Looks at the machine now and then, and has batch work give way.

use std::sync::Arc;
use std::time::Instant;

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
        if governor.read(&strain(&readings), now_ms) {
            let (throttle, cause) = governor.state();
            tracing::warn!(
                throttle = throttle.as_str(),
                cause = cause.map(andon_policy::throttle::Cause::as_str),
                margin_mc = readings.margin_mc(),
                watts = readings.watts,
                "batch work gives way by another measure than before"
            );
            context.telemetry.throttle(throttle);
            context.worker.throttle(throttle, cause);
        }
    }
}

fn find(config: &HardwareConfig) -> Sensors {
    Sensors::find(&config.sys_dir, &config.proc_dir)
}

fn strain(readings: &Readings) -> Strain {
    Strain {
        margin_mc: readings.margin_mc(),
        power_mw: readings.watts.map(milliwatts),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share is within 0 and 1"
        )]
        stall_permille: readings
            .memory
            .stall
            .map(|stall| (stall.some * 1000.0) as u16),
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
