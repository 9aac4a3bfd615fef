//! The two limits that inference runs into, measured with care: what memory delivers and what the arithmetic does.
//!
//! For tools, which have a second and a gigabyte to spare. What the daemon measures is [`super::Calibrator`].

use andon_kernels::Table;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Bytes that each thread reads: beyond the caches of the machines served.
const BUFFER_BYTES: usize = 256 << 20;

/// Passes, of which the best counts: others may use the machine meanwhile.
const PASSES: usize = 5;

/// Rounds of [`Table::multiply_adds`] in a pass: tens of milliseconds.
const ROUNDS: usize = 2_000_000;

/// Multiply-adds of a pass at most, so that scalar kernels do not take seconds.
const PASS_SECONDS_MAX: f64 = 0.05;

/// What a number of threads reach together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Streaming read, in bytes per second.
    pub read_bytes_per_s: f64,
    /// 8-bit multiply-adds per second of the instruction set in use.
    pub multiply_adds_per_s: f64,
}

impl Limits {
    /// Measures both; takes about a second.
    #[must_use]
    pub fn measure(table: &Table, threads: usize) -> Limits {
        Limits {
            read_bytes_per_s: read_bytes_per_s(table, threads),
            multiply_adds_per_s: multiply_adds_per_s(table, threads),
        }
    }

    /// The better of two measurements in each: a busy moment must not make a share look good.
    #[must_use]
    pub fn max(self, other: Limits) -> Limits {
        Limits {
            read_bytes_per_s: self.read_bytes_per_s.max(other.read_bytes_per_s),
            multiply_adds_per_s: self.multiply_adds_per_s.max(other.multiply_adds_per_s),
        }
    }
}

/// Bytes per second that `threads` threads read together from buffers of their own.
#[must_use]
pub fn read_bytes_per_s(table: &Table, threads: usize) -> f64 {
    // Written once, so that every page is memory of its own.
    let buffer = || -> Vec<u8> { (0..BUFFER_BYTES).map(|index| (index >> 6) as u8).collect() };
    let read = |buffer: &mut Vec<u8>| {
        black_box(table.sum_words(black_box(buffer)));
    };
    let best = best_pass(threads, &buffer, &read);
    (threads * BUFFER_BYTES) as f64 / best.as_secs_f64()
}

/// 8-bit multiply-adds per second that `threads` threads do together.
#[must_use]
pub fn multiply_adds_per_s(table: &Table, threads: usize) -> f64 {
    let start = Instant::now();
    let few = 1 + ROUNDS / 1000;
    let mut each = table.multiply_adds(few) / few as u64;
    let seconds = start.elapsed().as_secs_f64() / few as f64;
    let rounds = ROUNDS.min((PASS_SECONDS_MAX / seconds.max(1e-9)) as usize);
    each = each.max(1) * rounds as u64;
    let work = |(): &mut ()| {
        black_box(table.multiply_adds(black_box(rounds)));
    };
    let best = best_pass(threads, &|| (), &work);
    threads as f64 * each as f64 / best.as_secs_f64()
}

/// The shortest time in which every thread did `work`, each on what `prepare` made for it.
fn best_pass<T>(
    threads: usize,
    prepare: &(impl Fn() -> T + Sync),
    work: &(impl Fn(&mut T) + Sync),
) -> Duration {
    let barrier = Barrier::new(threads);
    let spans: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut own = prepare();
                    let pass = |_| {
                        barrier.wait();
                        let start = Instant::now();
                        work(&mut own);
                        (start, Instant::now())
                    };
                    (0..PASSES).map(pass).collect()
                })
            })
            .collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().ok())
            .collect()
    });
    let length = |pass: usize| {
        let start = spans.iter().map(|spans| spans[pass].0).min()?;
        let end = spans.iter().map(|spans| spans[pass].1).max()?;
        Some(end - start)
    };
    let best = (0..PASSES).filter_map(length).min();
    // Without threads there is nothing to time; a clock that stood still must not divide by zero.
    best.unwrap_or(Duration::MAX).max(Duration::from_nanos(1))
}
