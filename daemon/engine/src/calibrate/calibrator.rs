//! The measurement, step by step.

use super::{COLUMNS_MAX, Calibration, HugePages};
use crate::Executor;
use std::time::Duration;

/// Steps that read the weights; the first brings their pages in and does not count.
const READS: usize = 4;

/// Steps of multiply-adds.
const ARITHMETIC: usize = 3;

/// Steps for each number of columns: the first, which does not count, and one on each of three spans of weights.
const PRODUCTS: usize = 4;

/// Steps that wake sleeping workers.
const WAKES: usize = 5;

/// Bounds of waiting awake. Less than the first would sleep between the phases of one pass, more than the second takes
/// too much from others that want the processor.
const SPIN_MIN: Duration = Duration::from_micros(20);
const SPIN_MAX: Duration = Duration::from_micros(100);

/// Where a measurement is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// There are more steps.
    More,
    /// It is over.
    Done(Calibration),
    /// It is over, and the figures make no sense: the machine was too busy, or its clock stood still.
    Failed,
}

/// Measures in steps of a few milliseconds; the best of several counts, since others may use the machine meanwhile.
#[derive(Debug)]
pub struct Calibrator {
    step: usize,
    read_bytes_per_s: f64,
    multiply_adds_per_s: f64,
    /// Seconds a byte of weights.
    products: [f64; COLUMNS_MAX],
    wake: Duration,
}

impl Default for Calibrator {
    fn default() -> Calibrator {
        Calibrator {
            step: 0,
            read_bytes_per_s: 0.0,
            multiply_adds_per_s: 0.0,
            products: [f64::INFINITY; COLUMNS_MAX],
            wake: Duration::MAX,
        }
    }
}

impl Calibrator {
    /// Takes the next step.
    pub fn step(&mut self, executor: &mut Executor) -> Progress {
        const AFTER_READS: usize = READS;
        const AFTER_ARITHMETIC: usize = AFTER_READS + ARITHMETIC;
        const AFTER_PRODUCTS: usize = AFTER_ARITHMETIC + PRODUCTS * COLUMNS_MAX;
        const AFTER_WAKES: usize = AFTER_PRODUCTS + WAKES;
        let step = self.step;
        self.step += 1;
        let Some(mut probe) = executor.probe() else {
            return Progress::Failed;
        };
        let per_second = |amount: f64, took: Duration| amount / took.as_secs_f64().max(1e-9);
        if step < AFTER_READS {
            let (bytes, took) = probe.read();
            if step > 0 {
                let rate = per_second(bytes as f64, took);
                self.read_bytes_per_s = self.read_bytes_per_s.max(rate);
            }
        } else if step < AFTER_ARITHMETIC {
            let (count, took) = probe.multiply_adds();
            let rate = per_second(count as f64, took);
            self.multiply_adds_per_s = self.multiply_adds_per_s.max(rate);
        } else if step < AFTER_PRODUCTS {
            // All numbers of columns in turn, so that a busy moment does not fall on one of them alone.
            let at = step - AFTER_ARITHMETIC;
            let (round, index) = (at / COLUMNS_MAX, at % COLUMNS_MAX);
            let (bytes, took) = probe.products(index + 1, at);
            if round > 0 && bytes > 0 {
                let each = took.as_secs_f64() / bytes as f64;
                self.products[index] = self.products[index].min(each);
            }
        } else if step < AFTER_WAKES {
            if let Some(took) = probe.wake() {
                self.wake = self.wake.min(took);
            }
        } else {
            return self.result();
        }
        Progress::More
    }

    fn result(&self) -> Progress {
        let one = self.products[0];
        // A pool of one thread has nobody to wake.
        let wake = if self.wake == Duration::MAX {
            Duration::ZERO
        } else {
            self.wake
        };
        let calibration = Calibration {
            read_bytes_per_s: self.read_bytes_per_s,
            multiply_adds_per_s: self.multiply_adds_per_s,
            column_cost: self.products.map(|each| (each / one) as f32),
            wake_s: wake.as_secs_f32(),
            // Going to sleep costs about as much as being woken.
            spin_s: (2 * wake).clamp(SPIN_MIN, SPIN_MAX).as_secs_f32(),
            huge_pages: HugePages::detect(),
        };
        if calibration.is_plausible() {
            Progress::Done(calibration)
        } else {
            Progress::Failed
        }
    }
}
