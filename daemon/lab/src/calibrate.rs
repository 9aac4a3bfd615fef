//! What the daemon measures of the machine on a model, in idle moments: here all at once.

use andon_engine::Executor;
use andon_engine::calibrate::{Calibration, Calibrator, Progress};
use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use std::time::{Duration, Instant};

use crate::bench::round;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    run: crate::Run,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let model = arguments.run.load()?;
    let mut executor = arguments.run.executor(&model, 1)?;
    let start = Instant::now();
    let (calibration, longest) =
        calibrate(&mut executor).context("the machine could not be measured")?;
    let ms = |time: Duration| round(time.as_secs_f64() * 1e3, 2);
    let costs = calibration.column_cost.map(|cost| round(cost.into(), 3));
    let report = json!({
        "bandwidth_gb_s": round(calibration.read_bytes_per_s / 1e9, 2),
        "int8_gmac_s": round(calibration.multiply_adds_per_s / 1e9, 1),
        "column_cost": costs,
        "wake_us": round(f64::from(calibration.wake_s) * 1e6, 1),
        "spin_us": round(f64::from(calibration.spin_s) * 1e6, 1),
        "huge_pages": calibration.huge_pages.name(),
        "took_ms": ms(start.elapsed()),
        "longest_step_ms": ms(longest),
    });
    if arguments.json {
        println!("{report}");
    } else {
        for (name, value) in report.as_object().into_iter().flatten() {
            println!("{name:<16} {value}");
        }
    }
    Ok(())
}

/// What the machine does on the executor's weights, and the longest step of finding out; `None` if it cannot be measured.
pub(crate) fn calibrate(executor: &mut Executor) -> Option<(Calibration, Duration)> {
    let mut calibrator = Calibrator::default();
    let mut longest = Duration::ZERO;
    loop {
        let began = Instant::now();
        match calibrator.step(executor) {
            Progress::More => longest = longest.max(began.elapsed()),
            Progress::Done(calibration) => return Some((calibration, longest)),
            Progress::Failed => return None,
        }
    }
}
