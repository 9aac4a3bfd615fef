//! The thread that computes: starts what waits, makes one pass after the other, delivers what comes out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use andon_engine::ForwardError;
use andon_engine::generate::{
    self, Event, FinishReason, Forward, GenerationId, GenerationRequest, Generator, Reading,
    StartError, StepError,
};
use andon_engine::tokenizer::Tokenizer;

use super::board::{Board, Job, Phase, Prepared, Queued};
use super::calibrate::Calibrating;
use super::job::{Done, Finish, JobEvent, Timings, TokenLogprob, TopLogprob, Usage};
use super::load::PREFILL_CHUNK_TOKENS;
use super::{PLACES_FOR_ALARMS, Shared};
use crate::fault::{Fault, FaultCode};
use crate::request::Priority;

/// A job the engine works on.
#[derive(Debug)]
struct Running {
    job: Arc<Job>,
    started: Instant,
    deadline_ms: Option<u64>,
    task: Option<Arc<str>>,
    alarm: bool,
    /// Why it was cancelled, once it is.
    fault: Option<Fault>,
    /// Its generations, one for each answer, and how those ended that did.
    choices: Vec<(GenerationId, Option<Finish>)>,
    /// What the answers that ended took.
    usage: Usage,
    timings: Timings,
}

impl Running {
    /// Answers that are not over.
    fn open(&self) -> usize {
        self.choices
            .iter()
            .filter(|(_, finish)| finish.is_none())
            .count()
    }
}

/// What the engine works on: jobs by their first generation, and the job of each generation with its place there.
#[derive(Debug, Default)]
struct Jobs {
    running: HashMap<GenerationId, Running>,
    owners: HashMap<GenerationId, (GenerationId, u32)>,
}

impl Jobs {
    fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    fn insert(&mut self, running: Running) {
        let Some(&(first, _)) = running.choices.first() else {
            return;
        };
        for (place, &(id, _)) in (0..).zip(&running.choices) {
            self.owners.insert(id, (first, place));
        }
        self.running.insert(first, running);
    }

    /// The job of a generation, and which of its answers that is.
    fn of(&mut self, id: GenerationId) -> Option<(&mut Running, u32)> {
        let &(first, place) = self.owners.get(&id)?;
        Some((self.running.get_mut(&first)?, place))
    }

    /// Takes a job out, all of whose answers are over.
    fn remove(&mut self, id: GenerationId) -> Option<Running> {
        let (first, _) = self.owners.get(&id).copied()?;
        let running = self.running.remove(&first)?;
        for (id, _) in &running.choices {
            self.owners.remove(id);
        }
        Some(running)
    }
}

/// Serves until the daemon stops and the last job has ended.
pub(super) fn run<F: Forward>(shared: &Shared, mut generator: Generator<F>, tokenizer: &Tokenizer) {
    let mut running = Jobs::default();
    let mut speed = SpeedMeter::default();
    let mut calibration = Calibrating::default();
    shared.measuring.store(true, Ordering::Relaxed);
    while start_next(shared, &mut generator, &mut running, &mut calibration) {
        cancel_some(shared, &mut generator, &mut running);
        let began = Instant::now();
        let mut decoded = 0;
        // What an alarm interrupts is begun again after its prompt has been read. Each interrupts one pass at most,
        // also where it finds no place, and many do not keep a prompt from being read.
        let reading = Reading {
            tokens_max: PREFILL_CHUNK_TOKENS,
            order: None,
        };
        let result = generator.step_reading(
            reading,
            &mut |id, event| deliver(shared, &mut running, tokenizer, id, event, &mut decoded),
            &|| shared.alarm_ready.load(Ordering::Relaxed),
        );
        if let Err(error) = result {
            tracing::error!(%error, "a pass failed; what was running has been told");
            if let StepError(ForwardError::ModelChanged { .. }) = error {
                shared.breaks(error.to_string());
            }
        }
        shared.progress();
        shared.look_after_pack();
        let took = began.elapsed();
        speed.stepped(shared, decoded, took);
        if let Some(model) = shared.model.get().filter(|_| decoded > 0) {
            shared.telemetry.decode_pass(model.bytes_per_token(), took);
        }
        shared.telemetry.guesses(generator.guess_counts());
        if let Some(cost) = generator.draft_cost() {
            shared.telemetry.draft_cost(cost);
        }
        shared.telemetry.constrained(generator.constraint_counts());
    }
}

/// Waits until there is something to do and starts what may start. False when all is over.
fn start_next<F: Forward>(
    shared: &Shared,
    generator: &mut Generator<F>,
    running: &mut Jobs,
    calibration: &mut Calibrating,
) -> bool {
    let mut board = shared.board();
    loop {
        shared.alarm_ready.store(false, Ordering::Relaxed);
        let now_ms = shared.now_ms();
        let over = match board.phase {
            Phase::Stopping(_) | Phase::Failed => board.clear(),
            Phase::Loading | Phase::Serving => board.sweep(now_ms),
        };
        if !over.is_empty() {
            let phase = board.phase;
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
            if !start(shared, &mut board, generator, running, queued) {
                break;
            }
        }
        board.running = running.running.len();
        shared.telemetry.load(board.waiting(), board.running);
        if !running.is_empty() {
            return true;
        }
        shared.idle();
        if matches!(board.phase, Phase::Stopping(_) | Phase::Failed) && board.renders_nothing() {
            return false;
        }
        if board.renders_nothing() && board.waiting() == 0 && !calibration.is_over() {
            drop(board);
            calibration.step(shared, generator);
            shared
                .measuring
                .store(!calibration.is_over(), Ordering::Relaxed);
            board = shared.board();
            continue;
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
    running: &Jobs,
    now_ms: u64,
) -> Option<Queued<Prepared>> {
    let index = Board::next_of(&board.ready, now_ms)?;
    let next = board.ready.get(index)?;
    let alarm = next.order.priority == Priority::Alarm.into();
    let needed = usize::try_from(next.payload.choices.get()).unwrap_or(usize::MAX);
    let parallel_max = shared.config.engine.parallel_max;
    let taken = |alarms: bool| -> usize {
        let counted = running
            .running
            .values()
            .filter(|running| alarms || !running.alarm);
        counted.map(Running::open).sum()
    };
    let fits = |taken: usize, places: usize| taken.saturating_add(needed) <= places;
    let places = parallel_max.saturating_add(PLACES_FOR_ALARMS);
    if !fits(taken(true), places) || (!alarm && !fits(taken(false), parallel_max)) {
        return None;
    }
    board.ready.remove(index)
}

/// Starts a job. False when nothing more may be started now.
fn start<F: Forward>(
    shared: &Shared,
    board: &mut Board,
    generator: &mut Generator<F>,
    running: &mut Jobs,
    queued: Queued<Prepared>,
) -> bool {
    let Prepared {
        request, choices, ..
    } = &queued.payload;
    let alarm = queued.order.priority == Priority::Alarm.into();
    let request = GenerationRequest {
        urgent: alarm,
        ..request.clone()
    };
    match generator.start_group(request, *choices) {
        Ok(ids) => {
            queued.job.mailbox.post(JobEvent::Started);
            running.insert(Running {
                job: queued.job,
                started: Instant::now(),
                deadline_ms: queued.order.deadline_ms,
                task: queued.payload.task,
                alarm,
                fault: None,
                choices: ids.map(|id| (id, None)).collect(),
                usage: Usage::default(),
                timings: Timings::default(),
            });
            true
        }
        // It goes back and nothing overtakes it: what it needs comes free when others end.
        Err(StartError::Busy { .. } | StartError::KvFull { .. }) if !running.is_empty() => {
            board.ready.push_front(queued);
            false
        }
        Err(error) => {
            board.open.remove(&queued.job.key);
            shared.end(&queued.job, JobEvent::Failed(fault_of(&error)));
            true
        }
    }
}

fn fault_of(error: &StartError) -> Fault {
    let code = match error {
        StartError::PromptTooLong { .. } => FaultCode::ContextFull,
        StartError::Busy { .. } => FaultCode::Busy,
        StartError::KvFull { .. } | StartError::UnknownToken { .. } => FaultCode::Internal,
        _ => FaultCode::InvalidRequest,
    };
    Fault::new(code, error.to_string())
}

pub(super) fn cancelled() -> Fault {
    Fault::new(FaultCode::Cancelled, "the client ended the request")
}

pub(super) fn expired(when: &str) -> Fault {
    Fault::new(
        FaultCode::DeadlineExceeded,
        format!("the deadline passed {when}"),
    )
}

/// Cancels what its client gave up, what is late, and, once the grace is over, everything.
fn cancel_some<F: Forward>(shared: &Shared, generator: &mut Generator<F>, running: &mut Jobs) {
    let now_ms = shared.now_ms();
    let grace_over =
        matches!(shared.board().phase, Phase::Stopping(until) if Instant::now() >= until);
    for running in running.running.values_mut() {
        if running.fault.is_some() {
            continue;
        }
        let fault = if running.job.mailbox.cancelled() {
            cancelled()
        } else if running
            .deadline_ms
            .is_some_and(|deadline_ms| deadline_ms <= now_ms)
        {
            expired("before the answer was complete")
        } else if grace_over {
            Shared::stopping()
        } else {
            continue;
        };
        running.fault = Some(fault);
    }
    // Also what failed while delivering, when nothing could be cancelled: a reader too slow for its answer, or one of
    // several answers.
    for running in running.running.values() {
        if running.fault.is_some() {
            for &(id, _) in &running.choices {
                generator.cancel(id);
            }
        }
    }
}

fn deliver(
    shared: &Shared,
    running: &mut Jobs,
    tokenizer: &Tokenizer,
    id: GenerationId,
    event: Event<'_>,
    decoded: &mut usize,
) {
    match event {
        Event::PromptDone {
            prompt_tokens,
            cached_tokens,
        } => shared.telemetry.prompt_read(prompt_tokens, cached_tokens),
        Event::Text { text, ids, tokens } => {
            *decoded += ids.len();
            let Some((running, choice)) = running.of(id) else {
                return;
            };
            let tokens = tokens
                .iter()
                .map(|token| logprob(tokenizer, token))
                .collect();
            if running.fault.is_none()
                && let Err(fault) = running.job.mailbox.post_chunk(choice, text, tokens)
            {
                running.fault = Some(fault);
            }
        }
        Event::Finished {
            reason,
            usage,
            timings,
        } => {
            let Some((owner, choice)) = running.of(id) else {
                return;
            };
            ended(owner, choice, reason, usage, timings);
            if owner.open() == 0
                && let Some(running) = running.remove(id)
            {
                conclude(shared, running);
            }
        }
    }
}

/// Notes that one answer of a job is over, and tells the client if it has several.
fn ended(
    running: &mut Running,
    choice: u32,
    reason: FinishReason,
    usage: generate::Usage,
    timings: generate::Timings,
) {
    let waited = running
        .started
        .saturating_duration_since(running.job.submitted);
    let waited_us = microseconds(waited);
    let first = running.usage.prompt_tokens == 0;
    // The prompt was read once. Answers are computed side by side: the longest is what the client waits for.
    running.usage.prompt_tokens = usage.prompt_tokens;
    running.usage.cached_tokens = usage.cached_tokens;
    running.usage.completion_tokens += usage.completion_tokens;
    running.usage.guessed_tokens += usage.guessed_tokens;
    running.usage.accepted_tokens += usage.accepted_tokens;
    let all = &mut running.timings;
    all.queue_us = waited_us.saturating_add(timings.queue_ns / 1000);
    all.prefill_us = timings.prefill_ns / 1000;
    all.decode_us = all.decode_us.max(timings.decode_ns / 1000);
    let first_token_us = waited_us.saturating_add(timings.first_token_ns / 1000);
    if first || first_token_us < all.first_token_us {
        all.first_token_us = first_token_us;
    }
    let finish = match reason {
        FinishReason::Stop => Finish::Stop,
        FinishReason::Length => Finish::Length,
        FinishReason::Cancelled => Finish::Cancelled,
        FinishReason::Failed(message) => {
            running
                .fault
                .get_or_insert(Fault::new(FaultCode::Internal, message));
            Finish::Cancelled
        }
    };
    if running.choices.len() > 1 && running.fault.is_none() {
        let event = JobEvent::ChoiceDone { choice, finish };
        running.job.mailbox.post(event);
    }
    if let Some((_, ended)) = usize::try_from(choice)
        .ok()
        .and_then(|choice| running.choices.get_mut(choice))
    {
        *ended = Some(finish);
    }
}

/// Ends a job all of whose answers are over.
fn conclude(shared: &Shared, running: Running) {
    let done = |finish| Done {
        finish,
        usage: running.usage,
        timings: running.timings,
    };
    let finish = running.choices.first().and_then(|&(_, finish)| finish);
    let event = match (running.fault, finish) {
        (Some(fault), _)
            if fault.code == FaultCode::Cancelled && running.usage.completion_tokens > 0 =>
        {
            JobEvent::Done(done(Finish::Cancelled))
        }
        (Some(fault), _) => JobEvent::Failed(fault),
        (None, Some(finish @ (Finish::Stop | Finish::Length))) => JobEvent::Done(done(finish)),
        (None, Some(Finish::Cancelled) | None) => JobEvent::Failed(cancelled()),
    };
    if let JobEvent::Done(done) = &event {
        shared.board().took(running.started.elapsed());
        shared.telemetry.answered(done);
        if let Some(task) = &running.task {
            shared.telemetry.answered_task(task, &done.usage);
        }
    }
    shared.finish(&running.job, event);
}

fn logprob(tokenizer: &Tokenizer, token: &andon_engine::generate::TokenLogprob) -> TokenLogprob {
    TokenLogprob {
        bytes: tokenizer.token_bytes(token.id).to_vec(),
        logprob: token.logprob,
        top: token
            .top
            .iter()
            .map(|top| TopLogprob {
                bytes: tokenizer.token_bytes(top.id).to_vec(),
                logprob: top.logprob,
            })
            .collect(),
    }
}

pub(super) fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Tokens per second over the last stretch of work.
#[derive(Debug, Default)]
struct SpeedMeter {
    tokens: usize,
    busy: Duration,
}

impl SpeedMeter {
    /// Long enough to be steady, short enough to be recent.
    const STRETCH: Duration = Duration::from_millis(500);

    fn stepped(&mut self, shared: &Shared, decoded: usize, took: Duration) {
        if decoded == 0 {
            return;
        }
        self.tokens += decoded;
        self.busy += took;
        if self.busy >= Self::STRETCH {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a stretch has far fewer than 2^24 tokens"
            )]
            let speed = self.tokens as f32 / self.busy.as_secs_f32();
            shared.telemetry.decode_speed(speed);
            *self = SpeedMeter::default();
        }
    }
}
