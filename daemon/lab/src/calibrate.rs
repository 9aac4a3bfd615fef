//! What the daemon measures of the machine on a model, in idle moments: here all at once.

use andon_engine::calibrate::{Calibrator, Progress};
use anyhow::{Result, bail};
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
    let mut calibrator = Calibrator::default();
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    let calibration = loop {
        let began = Instant::now();
        match calibrator.step(&mut executor) {
            Progress::More => longest = longest.max(began.elapsed()),
            Progress::Done(calibration) => break calibration,
            Progress::Failed => bail!("the machine could not be measured"),
        }
    };
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
