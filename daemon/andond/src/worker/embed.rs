//! The thread that computes, where the model makes embeddings: one layer of the most urgent request after the other.
//!
//! A request's inputs go through the model in encodings as large as the engine takes, a long input in one of its own.
//! Between any two layers another request may come first (an alarm does), or one may end; what waits meanwhile keeps
//! its encoding. So nothing waits longer than a layer of one encoding takes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_engine::backend::cpu::encode::Encoding;
use andon_engine::embed::{EmbedError, Embedder, shortened};
use andon_policy::scheduler::{Decision, Ticket};
use andon_policy::speed::Step;
use andon_policy::throttle::Restraint;
use andon_wire::Priority;

use super::Shared;
use super::admit::saturated;
use super::board::{Board, Job, Phase, Stage, Waiting};
use super::job::{Done, Finish, JobEvent, Timings, Usage, Vectors};
use super::machine::Seat;
use super::run::microseconds;
use super::schedule::{Turn, cancelled, expired};
use crate::fault::{Fault, FaultCode};

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
    let mut running = BTreeMap::new();
    let mut seat = shared.machine.seat();
    while let Some(ticket) = next(shared, &mut running, &mut seat) {
        let Some(current) = running.get_mut(&ticket) else {
            continue;
        };
        shared.progress();
        let began = Instant::now();
        let result = current.step(shared, &mut embedder);
        let took = began.elapsed();
        current.busy += took;
        let step = Step {
            took_us: microseconds(took),
            ..Step::default()
        };
        {
            // The others have waited meanwhile.
            let mut board = shared.board();
            board.scheduler.took_part(ticket);
            board.scheduler.stepped(shared.now_ms(), &step);
        }
        shared.progress();
        shared.look_after_pack();
        if let Ok(false) = result {
            continue;
        }
        let Some(current) = running.remove(&ticket) else {
            continue;
        };
        let in_time = {
            let (mut board, now_ms) = (shared.board(), shared.now_ms());
            let tokens = saturated(current.request.tokens());
            board.scheduler.prompt_read(now_ms, ticket, tokens);
            board.scheduler.finished(now_ms, ticket)
        };
        match result {
            Ok(_) if in_time => finish(shared, current, embedder.dimensions()),
            Ok(_) => shared.fail(&current.job, expired("before all vectors were computed")),
            Err(error) => {
                crate::event!(PassFailed, %error, "an encoding failed");
                shared.pass_failed();
                let fault = Fault::new(FaultCode::Internal, error.to_string());
                shared.fail(&current.job, fault);
                if let EmbedError::ModelChanged { .. } = error {
                    shared.breaks(error.to_string());
                }
            }
        }
    }
}

impl Running {
    fn new(job: Arc<Job>, request: EmbeddingRequest) -> Running {
        Running {
            job,
            request,
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
    let usage = Usage {
        prompt_tokens: running.request.tokens(),
        ..Usage::default()
    };
    let timings = Timings {
        queue_us: microseconds(waited),
        prefill_us,
        decode_us: 0,
        first_token_us: microseconds(running.job.submitted.elapsed()),
    };
    let done = Done::new(Finish::Stop, usage, timings);
    shared.telemetry.answered(&done);
    running.job.mailbox.post(JobEvent::Vectors(Vectors {
        dimensions: running.request.dimensions.unwrap_or(dimensions),
        values: running.values,
    }));
    shared.finish(&running.job, JobEvent::Done(done));
}

/// Waits until there is something to compute, with everything done that the scheduler says, and gives what goes first.
/// `None` when all is over.
fn next(
    shared: &Shared,
    running: &mut BTreeMap<Ticket, Running>,
    seat: &mut Seat,
) -> Option<Ticket> {
    let mut turn = Turn::default();
    loop {
        let mut board = shared.board();
        let now_ms = shared.now_ms();
        let mut over = end_some(shared, &mut board, running, now_ms);
        turn.gather(shared, &mut board, now_ms);
        for decision in &turn.decisions {
            // Parked ones keep their encoding, and need nothing done.
            if let Decision::Stop(ticket) = decision
                && let Some(running) = running.remove(ticket)
            {
                board.scheduler.finished(now_ms, *ticket);
                over.push((running.job, expired("before all vectors were computed")));
            }
        }
        for (ticket, Waiting { job, stage, .. }) in turn.starts.drain(..) {
            if let Stage::Embedding(request) = stage {
                job.mailbox.post(JobEvent::Started);
                running.insert(ticket, Running::new(job, request));
            } else {
                board.scheduler.finished(now_ms, ticket);
                let why = "the model makes embeddings, which the request is not for";
                over.push((job, Fault::new(FaultCode::Internal, why)));
            }
        }
        shared.tell_load(&board);
        if !over.is_empty() || !turn.is_empty() {
            drop(board);
            turn.tell(shared);
            for (job, fault) in over {
                shared.fail(&job, fault);
            }
            continue;
        }
        if let Some(ticket) = board.scheduler.first(now_ms) {
            let priority = running
                .get(&ticket)
                .map_or(Priority::Batch, |running| running.job.priority);
            if seat.take(priority) {
                return Some(ticket);
            }
            shared.follow();
            drop(board);
            seat.wait();
            continue;
        }
        let rests = running.is_empty() || board.scheduler.restraint() != Restraint::default();
        if rests {
            shared.idle();
        }
        if running.is_empty() && board.is_over() {
            shared.leave(&mut board);
            return None;
        }
        seat.release();
        let wait = board.wake_after(now_ms);
        drop(shared.wait(board, wait));
        if rests {
            // Whatever comes next is to come to its end.
            shared.progress();
        }
    }
}

/// Ends what its client gave up, and, once the grace is over or the model broken, everything.
fn end_some(
    shared: &Shared,
    board: &mut Board,
    running: &mut BTreeMap<Ticket, Running>,
    now_ms: u64,
) -> Vec<(Arc<Job>, Fault)> {
    let closed = match board.phase {
        Phase::Stopping(until) => Instant::now() >= until,
        Phase::Failed => true,
        Phase::Loading | Phase::Serving | Phase::Draining => false,
    };
    let mut over = Vec::new();
    running.retain(|&ticket, running| {
        let fault = if running.job.mailbox.cancelled() {
            cancelled()
        } else if closed {
            shared.closed()
        } else {
            return true;
        };
        board.scheduler.cancelled(now_ms, ticket);
        board.scheduler.finished(now_ms, ticket);
        over.push((Arc::clone(&running.job), fault));
        false
    });
    over
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
