//! The thread that computes, where the model makes embeddings: one layer of the most urgent request after the other.
//!
//! A request's inputs go through the model in encodings as large as the engine takes, a long input in one of its own.
//! Between any two layers another request may come first (an alarm does), or one may end; what waits meanwhile keeps
//! its encoding. So nothing waits longer than a layer of one encoding takes.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_engine::backend::cpu::encode::Encoding;
use andon_engine::embed::{EmbedError, Embedder, shortened};
use andon_policy::queue::{self, Waiting};

use super::board::{Board, Job, Phase, Queued};
use super::job::{Done, Finish, JobEvent, Timings, Usage, Vectors};
use super::run::{cancelled, expired, microseconds};
use super::{PLACES_FOR_ALARMS, Shared};
use crate::fault::{Fault, FaultCode};
use crate::request::Priority;

/// What the engine is to make vectors of.
#[derive(Debug)]
pub(super) struct EmbeddingRequest {
    /// Tokens of each input.
    pub(super) inputs: Vec<Vec<u32>>,
    /// Elements of a vector that are wanted, if not all.
    pub(super) dimensions: Option<usize>,
}

impl EmbeddingRequest {
    /// Tokens of all inputs.
    pub(super) fn tokens(&self) -> usize {
        self.inputs.iter().map(Vec::len).sum()
    }
}

/// A job the engine works on.
struct Running {
    job: Arc<Job>,
    order: Waiting,
    request: EmbeddingRequest,
    started: Instant,
    /// Time spent on it.
    busy: Duration,
    /// Vectors of the inputs that are done, one after the other.
    values: Vec<f32>,
    /// The inputs that are being encoded.
    batch: Range<usize>,
    encoding: Option<Encoding>,
}

/// Serves until the daemon stops and the last job has ended.
pub(super) fn run(shared: &Shared, mut embedder: Embedder) {
    let mut running: Vec<Running> = Vec::new();
    while start_next(shared, &mut running) {
        end_some(shared, &mut running);
        let now_ms = shared.now_ms();
        let Some(index) = queue::next(running.iter().map(|running| &running.order), now_ms) else {
            continue;
        };
        let began = Instant::now();
        let current = &mut running[index];
        let result = current.step(shared, &mut embedder);
        current.busy += began.elapsed();
        shared.progress();
        shared.look_after_pack();
        match result {
            Ok(false) => {}
            Ok(true) => finish(shared, running.swap_remove(index), embedder.dimensions()),
            Err(error) => {
                tracing::error!(%error, "an encoding failed");
                let code = FaultCode::Internal;
                let job = running.swap_remove(index).job;
                shared.fail(&job, Fault::new(code, error.to_string()));
                if let EmbedError::ModelChanged { .. } = error {
                    shared.breaks(error.to_string());
                }
            }
        }
    }
}

impl Running {
    fn new(queued: Queued<EmbeddingRequest>) -> Running {
        Running {
            job: queued.job,
            order: queued.order,
            request: queued.payload,
            started: Instant::now(),
            busy: Duration::ZERO,
            values: Vec::new(),
            batch: 0..0,
            encoding: None,
        }
    }

    /// Computes a layer. True when all vectors are there.
    fn step(&mut self, shared: &Shared, embedder: &mut Embedder) -> Result<bool, EmbedError> {
        let inputs = &self.request.inputs;
        let encoding = match &mut self.encoding {
            Some(encoding) => encoding,
            none => {
                let start = self.batch.end;
                self.batch = start..start + fitting(&inputs[start..], embedder.tokens_max());
                let batch: Vec<&[u32]> = inputs[self.batch.clone()]
                    .iter()
                    .map(Vec::as_slice)
                    .collect();
                none.insert(embedder.start(&batch)?)
            }
        };
        if !embedder.step(encoding) {
            return Ok(false);
        }
        for index in 0..self.batch.len() {
            let vector = embedder.vector(encoding, index)?;
            let vector = match self.request.dimensions {
                None => vector,
                Some(dimensions) => {
                    let input = self.batch.start + index;
                    shortened(&vector, dimensions).ok_or(EmbedError::NotFinite { input })?
                }
            };
            self.values.extend_from_slice(&vector);
        }
        let tokens = inputs[self.batch.clone()].iter().map(Vec::len).sum();
        shared.telemetry.prompt_read(tokens, 0);
        self.encoding = None;
        Ok(self.batch.end == inputs.len())
    }
}

/// How many of the first inputs fit into an encoding of `tokens_max` tokens: at least one.
fn fitting(inputs: &[Vec<u32>], tokens_max: usize) -> usize {
    let mut taken = 0usize;
    let fits = |input: &&Vec<u32>| {
        taken = taken.saturating_add(Embedder::tokens_taken(input.len()));
        taken <= tokens_max
    };
    inputs.iter().take_while(fits).count().max(1)
}

fn finish(shared: &Shared, running: Running, dimensions: usize) {
    let waited = running
        .started
        .saturating_duration_since(running.job.submitted);
    let prefill_us = microseconds(running.busy);
    let done = Done {
        finish: Finish::Stop,
        usage: Usage {
            prompt_tokens: running.request.tokens(),
            ..Usage::default()
        },
        timings: Timings {
            queue_us: microseconds(waited),
            prefill_us,
            decode_us: 0,
            first_token_us: microseconds(running.job.submitted.elapsed()),
        },
    };
    shared.board().took(running.started.elapsed());
    shared.telemetry.answered(&done);
    running.job.mailbox.post(JobEvent::Vectors(Vectors {
        dimensions: running.request.dimensions.unwrap_or(dimensions),
        values: running.values,
    }));
    shared.finish(&running.job, JobEvent::Done(done));
}

/// Waits until there is something to do and starts what may start. False when all is over.
fn start_next(shared: &Shared, running: &mut Vec<Running>) -> bool {
    let mut board = shared.board();
    loop {
        let now_ms = shared.now_ms();
        let phase = board.phase;
        let over = match phase {
            Phase::Stopping(_) | Phase::Failed => board.clear(),
            Phase::Loading | Phase::Serving => board.sweep(now_ms),
        };
        if !over.is_empty() {
            drop(board);
            for job in over {
                let fault = match phase {
                    Phase::Stopping(_) | Phase::Failed => shared.closed(),
                    Phase::Loading | Phase::Serving if job.mailbox.cancelled() => cancelled(),
                    Phase::Loading | Phase::Serving => expired("before its turn came"),
                };
                shared.fail(&job, fault);
            }
            board = shared.board();
            continue;
        }
        while let Some(queued) = startable(shared, &mut board, running, now_ms) {
            queued.job.mailbox.post(JobEvent::Started);
            running.push(Running::new(queued));
        }
        board.running = running.len();
        shared.telemetry.load(board.waiting(), board.running);
        if !running.is_empty() {
            return true;
        }
        shared.idle();
        if matches!(board.phase, Phase::Stopping(_) | Phase::Failed) && board.renders_nothing() {
            return false;
        }
        let wait = board
            .next_deadline_ms()
            .map(|deadline_ms| Duration::from_millis(deadline_ms.saturating_sub(now_ms).max(1)));
        board = shared.wait(board, wait);
    }
}

/// Takes the job that goes next out of the queue if there is a place for it.
fn startable(
    shared: &Shared,
    board: &mut Board,
    running: &[Running],
    now_ms: u64,
) -> Option<Queued<EmbeddingRequest>> {
    let is_alarm = |order: &Waiting| order.priority == Priority::Alarm.into();
    let index = Board::next_of(&board.embeddings, now_ms)?;
    let alarm = is_alarm(&board.embeddings.get(index)?.order);
    let parallel_max = shared.config.engine.parallel_max;
    let others = running.iter().filter(|running| !is_alarm(&running.order));
    let places = parallel_max.saturating_add(PLACES_FOR_ALARMS);
    if running.len() >= places || (!alarm && others.count() >= parallel_max) {
        return None;
    }
    board.embeddings.remove(index)
}

/// Ends what its client gave up, what is late, and, once the grace is over or the model broken, everything.
fn end_some(shared: &Shared, running: &mut Vec<Running>) {
    let now_ms = shared.now_ms();
    let closed = match shared.board().phase {
        Phase::Stopping(until) => Instant::now() >= until,
        Phase::Failed => true,
        Phase::Loading | Phase::Serving => false,
    };
    running.retain(|running| {
        let fault = if running.job.mailbox.cancelled() {
            cancelled()
        } else if running.order.expired(now_ms) {
            expired("before all vectors were computed")
        } else if closed {
            shared.closed()
        } else {
            return true;
        };
        shared.fail(&running.job, fault);
        false
    });
}

#[cfg(test)]
mod tests {
    use super::fitting;

    #[test]
    fn encodings_are_as_large_as_the_engine_takes() {
        let inputs: Vec<Vec<u32>> = [3, 17, 16, 1].map(|count| vec![0; count]).to_vec();
        // 16, 32, 16 and 16 tokens are taken.
        assert_eq!(fitting(&inputs, 1024), 4);
        assert_eq!(fitting(&inputs, 64), 3);
        assert_eq!(fitting(&inputs, 63), 2);
        assert_eq!(fitting(&inputs, 16), 1);
        // One that is too long by itself was refused before; it is not left out here.
        assert_eq!(fitting(&inputs[1..], 16), 1);
    }
}
