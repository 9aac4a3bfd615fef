//! How fast this machine reads memory: the limit that decoding runs into.

use std::sync::Barrier;
use std::time::Instant;

use andon_kernels::Table;

/// Bytes that each thread reads: beyond the caches of the machines served.
const BUFFER_BYTES: usize = 256 << 20;

/// Passes, of which the best counts: others may use the memory meanwhile.
const PASSES: usize = 5;

/// Bytes per second, in units of 10^9, that `threads` threads read together from buffers of their own.
pub(crate) fn read_gb_s(table: &Table, threads: usize) -> f64 {
    let barrier = Barrier::new(threads);
    let spans: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    // Written once, so that every page is memory of its own.
                    let words: Vec<u64> = (0..BUFFER_BYTES as u64 / 8).collect();
                    let pass = |_| {
                        barrier.wait();
                        let start = Instant::now();
                        std::hint::black_box(table.sum_words(std::hint::black_box(&words)));
                        (start, Instant::now())
                    };
                    (0..PASSES).map(pass).collect()
                })
            })
            .collect();
        readers
            .into_iter()
            .filter_map(|reader| reader.join().ok())
            .collect()
    });
    let seconds = |pass: usize| {
        let start = spans.iter().map(|spans| spans[pass].0).min()?;
        let end = spans.iter().map(|spans| spans[pass].1).max()?;
        Some((end - start).as_secs_f64())
    };
    let best = (0..PASSES)
        .filter_map(seconds)
        .fold(f64::INFINITY, f64::min);
    (threads * BUFFER_BYTES) as f64 / best / 1e9
}
