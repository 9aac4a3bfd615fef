//! Timings of what passes are made of, on the weights of a model: for [`crate::calibrate`].
//!
//! Nothing here changes a result. Each method takes a few milliseconds: it works on so much of the weights as does not
//! fit the caches, and reads nothing that passes would not read.

use super::Cpu;
use super::buffers::Levels;
use super::matmul::{Product, multiply};
use crate::model::Model;
use crate::pack::Pack;
use crate::weights::{Matrix, Place};
use andon_kernels::Format;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes of weights that are read: twice the largest cache of the machines served.
const SPAN_BYTES: usize = 64 << 20;

/// Spans that are worked on in turn: more than caches hold, few enough that the first round brings all of them in.
const SPANS: usize = 3;

/// Bytes that a thread reads at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Pieces of arithmetic that threads share, and rounds of each: about a millisecond in all.
const ARITHMETIC_PIECES: usize = 64;
const ARITHMETIC_ROUNDS: usize = 2000;

/// Longest wait for a worker to wake, and how long workers are left alone so that they sleep.
const WAKE_MAX: Duration = Duration::from_millis(5);
const SLEEP: Duration = Duration::from_millis(1);

/// How long small weights are worked on again and again: one interruption must not make them look slow.
const REPEAT: Duration = Duration::from_millis(1);

/// The shortest time that `work` takes, tried again while all tries together are short.
fn best(mut work: impl FnMut()) -> Duration {
    let began = Instant::now();
    let mut best = Duration::MAX;
    loop {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed());
        if began.elapsed() >= REPEAT {
            return best;
        }
    }
}

/// A backend and the weights that its times are taken on.
pub(crate) struct Probe<'a> {
    pub(crate) cpu: &'a mut Cpu,
    pub(crate) model: &'a Model,
    /// The model's pack, which is what passes read where there is one.
    pub(crate) pack: Option<Arc<Pack>>,
}

impl<'a> Probe<'a> {
    /// The format that most bytes are in.
    fn format(&self) -> Option<Format> {
        let bytes = |format: Format| -> usize {
            let matrices = self.model.matrices().iter();
            let own = matrices.filter(|matrix| matrix.format == format);
            own.map(|matrix| matrix.range.len()).sum()
        };
        Format::ALL.into_iter().max_by_key(|&format| bytes(format))
    }

    /// Matrices of that format, no more than the span takes; those that come around at `turn`.
    fn span(&self, turn: usize) -> Vec<&'a Matrix> {
        let format = self.format();
        let matrices = self.model.matrices().iter();
        let own: Vec<_> = matrices
            .filter(|matrix| Some(matrix.format) == format)
            .collect();
        let total: usize = own.iter().map(|matrix| matrix.range.len()).sum();
        let start = (turn % SPANS * SPAN_BYTES).checked_rem(total).unwrap_or(0);
        let (mut before, mut bytes) = (0, 0);
        let first = own.iter().position(|matrix| {
            before += matrix.range.len();
            before > start
        });
        let (early, late) = own.split_at(first.unwrap_or(0));
        let around = late.iter().chain(early).copied();
        around
            .take_while(|matrix| {
                let room = bytes < SPAN_BYTES;
                bytes += matrix.range.len();
                room
            })
            .collect()
    }

    /// What the weights are, for the key of what was measured.
    pub(crate) fn weights_name(&self) -> String {
        let format = self.format().map_or("none", Format::name);
        let elements = self.span(0).first().map_or(0, |matrix| matrix.row_elements);
        let layout = if self.pack.is_some() { "packed" } else { "raw" };
        format!("{layout} {format} of {elements}")
    }

    /// Reads weights on all threads: how many bytes, and how long it took.
    pub(crate) fn read(&mut self) -> (usize, Duration) {
        let mut left = SPAN_BYTES;
        let mut pieces = Vec::new();
        for matrix in self.span(0) {
            let weights = self.model.weights(self.pack.as_deref());
            let [place] = weights.places([matrix], &mut self.cpu.pool.pool);
            let (Place::Raw(bytes) | Place::Packed(bytes)) = place;
            let bytes = &bytes[..bytes.len().min(left)];
            left -= bytes.len();
            pieces.extend(bytes.chunks(PIECE_BYTES));
        }
        let table = &self.cpu.table;
        let took = best(|| {
            let next = AtomicUsize::new(0);
            self.cpu.pool.run(&|_| {
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    black_box(table.sum_words(piece));
                }
            });
        });
        (SPAN_BYTES - left, took)
    }

    /// Multiplies on all threads: how many multiply-adds, and how long it took.
    pub(crate) fn multiply_adds(&mut self) -> (u64, Duration) {
        let (table, next) = (&self.cpu.table, AtomicUsize::new(0));
        let start = Instant::now();
        self.cpu.pool.run(&|_| {
            while next.fetch_add(1, Ordering::Relaxed) < ARITHMETIC_PIECES {
                black_box(table.multiply_adds(black_box(ARITHMETIC_ROUNDS)));
            }
        });
        let took = start.elapsed();
        // Rounds have the same number of them always.
        let each = table.multiply_adds(1) * ARITHMETIC_ROUNDS as u64;
        (each * ARITHMETIC_PIECES as u64, took)
    }

    /// How long products of the span of `turn` with so many columns take, and how many bytes of weights it has. The next
    /// turn has other weights where there are any, so that none are in a cache that would not be during passes.
    pub(crate) fn products(&mut self, count: usize, turn: usize) -> (usize, Duration) {
        let span = self.span(turn);
        let widest = span
            .iter()
            .map(|matrix| matrix.row_elements)
            .max()
            .unwrap_or(0);
        let longest = span
            .iter()
            .map(|matrix| matrix.row_count)
            .max()
            .unwrap_or(0);
        let (levels, values) = (Levels::new(count, widest), vec![0.0; count * widest]);
        let mut output = vec![0.0; count * longest];
        let weights = self.model.weights(self.pack.as_deref());
        let Cpu { table, pool, .. } = &mut *self.cpu;
        let took = best(|| {
            for matrix in &span {
                let columns = levels.columns(&values, matrix.row_elements, count);
                let product = Product {
                    matrix,
                    output: &mut output,
                };
                multiply(table, pool, weights, columns, [product]);
            }
        });
        let bytes = span.iter().map(|matrix| matrix.range.len()).sum();
        (bytes, took)
    }

    /// How long it takes until all workers that sleep have begun a phase; `None` without workers, or if one did not come.
    pub(crate) fn wake(&mut self) -> Option<Duration> {
        let workers = self.cpu.pool.threads() - 1;
        if workers == 0 {
            return None;
        }
        std::thread::sleep(SLEEP);
        let here = AtomicUsize::new(0);
        let start = Instant::now();
        self.cpu.pool.run(&|thread| {
            if thread > 0 {
                here.fetch_add(1, Ordering::Relaxed);
                return;
            }
            while here.load(Ordering::Relaxed) < workers && start.elapsed() < WAKE_MAX {
                std::hint::spin_loop();
            }
        });
        let took = start.elapsed();
        (here.load(Ordering::Relaxed) == workers).then_some(took)
    }
}
