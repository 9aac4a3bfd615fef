//! Measuring the machine while there is nothing to do.
//!
//! READY does not wait for it. A step takes a few milliseconds, and between two of them the worker looks for requests. What
//! came out is kept in `[cache] dir`, so that the next start has it at once.

use andon_engine::backend::Backend;
use andon_engine::calibrate::{Calibration, Calibrator, Progress, store};
use andon_engine::generate::{Forward, Generator};
use andon_engine::speculate::PassCosts;

use super::Shared;

/// How far the measurement is.
#[derive(Debug, Default)]
pub(super) enum Calibrating {
    /// It is to be seen whether there is one.
    #[default]
    Unknown,
    /// It is under way.
    Measuring(Box<Calibrator>, store::Key),
    /// The draft model's passes are timed, so many times more.
    Drafts(usize),
    /// There is nothing more to do.
    Over,
}

/// How often a draft model's passes are timed.
const DRAFTS: usize = 6;

impl Calibrating {
    /// Whether there is nothing more to do.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Calibrating::Over)
    }

    /// Does a little more.
    pub(super) fn step<F: Forward>(&mut self, shared: &Shared, generator: &mut Generator<F>) {
        let Some(executor) = generator.executor_mut() else {
            *self = Calibrating::Over;
            return;
        };
        let folder = &shared.config.cache.dir;
        let mut found = None;
        match self {
            // A device computes since it was begun.
            Calibrating::Measuring(..) if executor.backend() != Backend::Cpu => {
                *self = Calibrating::Drafts(DRAFTS);
                return;
            }
            Calibrating::Unknown => {
                let Some(key) = store::Key::of(executor) else {
                    // Of a device's passes nothing is known before they are made.
                    *self = Calibrating::Drafts(DRAFTS);
                    return;
                };
                found = store::read(folder, &key);
                *self = Calibrating::Measuring(Box::default(), key);
            }
            Calibrating::Measuring(calibrator, key) => match calibrator.step(executor) {
                Progress::More => return,
                Progress::Done(calibration) => {
                    // Without a place to keep it, it is measured again at the next start.
                    if let Err(error) = store::write(folder, key, &calibration) {
                        tracing::debug!(%error, "the calibration is not kept");
                    }
                    found = Some(calibration);
                }
                Progress::Failed => {
                    tracing::warn!("the machine could not be measured");
                    *self = Calibrating::Drafts(DRAFTS);
                }
            },
            Calibrating::Drafts(left) => {
                let more = *left > 0 && generator.time_drafter();
                *self = if more {
                    Calibrating::Drafts(*left - 1)
                } else {
                    Calibrating::Over
                };
                if let Some(cost) = generator.draft_cost() {
                    shared.telemetry.draft_cost(cost);
                }
                return;
            }
            Calibrating::Over => return,
        }
        if let Some(calibration) = found {
            executor.adapt(&calibration);
            generator.set_costs(PassCosts::of_calibration(&calibration));
            note(shared, &calibration);
            *self = Calibrating::Drafts(DRAFTS);
        }
    }
}

fn note(shared: &Shared, calibration: &Calibration) {
    let [.., eight] = calibration.column_cost;
    tracing::info!(
        read_mb_per_s = calibration.read_bytes_per_s / 1e6,
        int8_gmac_per_s = calibration.multiply_adds_per_s / 1e9,
        cost_of_8_columns = eight,
        spin_us = calibration.spin_s * 1e6,
        huge_pages = calibration.huge_pages.name(),
        "machine measured"
    );
    shared.telemetry.calibrated(calibration);
}
