//! The thread that computes: starts what waits, makes one pass after the other, delivers what comes out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use andon_engine::ForwardError;
use andon_engine::generate::{
    self, Event, FinishReason, Forward, GenerationId, GenerationRequest, Generator, Reading,
    StartError, StepError,
};
use andon_engine::tokenizer::Tokenizer;
use andon_policy::scheduler::{Decision, Scheduler, Ticket};
use andon_policy::speed::Step;
use andon_policy::stuck::Progress;
use andon_policy::throttle::Restraint;
use andon_wire::Priority;

use super::Shared;
use super::admit::saturated;
use super::board::{Board, Job, Phase, Prepared, Stage, Waiting};
use super::calibrate::Calibrating;
use super::job::{Done, Finish, JobEvent, Timings, TokenLogprob, TopLogprob, Usage};
use super::machine::Seat;
use super::pages::Keeping;
use super::schedule::{Turn, cancelled, expired};
use crate::fault::{Fault, FaultCode};
use crate::telemetry::Told;

/// How long measuring the machine waits for a moment in which nobody computes.
const MEASURE_LATER: Duration = Duration::from_millis(50);

/// How often a job gives its room to alarms, and then not any more: it is to come to its end.
const ASIDES_MAX: u32 = 3;

/// A job the engine works on.
#[derive(Debug)]
struct Running {
    job: Arc<Job>,
    started: Instant,
    task: Option<Arc<str>>,
    /// Why it is given up, once it is; and whether the engine and the scheduler know.
    fault: Option<Fault>,
    given_up: bool,
    /// Its generations, one for each answer, and how those ended that did.
    choices: Vec<(GenerationId, Option<Finish>)>,
    /// Tokens of its prompt that were computed, and of its answers, that the scheduler is yet to be told of.
    read: Option<u32>,
    decoded: u32,
    /// Whether its prompt is read, so that it is in every pass.
    answers: bool,
    /// Its pages were given to an alarm, and it is not where it was; how often they were; and whether its prompt was read.
    aside: bool,
    asides: u32,
    was_read: bool,
    /// Whether passes bring it anything.
    progress: Progress,
    /// What the answers that ended took.
    usage: Usage,
    timings: Timings,
}

impl Running {
    /// Its answers that are not over.
    fn open(&self) -> impl Iterator<Item = GenerationId> + '_ {
        let open = |&(id, finish): &(_, Option<Finish>)| finish.is_none().then_some(id);
        self.choices.iter().filter_map(open)
    }

    /// Tells the scheduler what was computed.
    fn note(&mut self, scheduler: &mut Scheduler, now_ms: u64) {
        if let Some(computed) = self.read.take() {
            scheduler.prompt_read(now_ms, self.job.ticket, computed);
        }
        let decoded = std::mem::take(&mut self.decoded);
        if decoded > 0 {
            scheduler.decoded(now_ms, self.job.ticket, decoded);
        }
    }
}

impl Running {
    /// What its answers have made, in tokens; `None` if it is parked.
    fn made<F: Forward>(&self, generator: &Generator<F>) -> Option<usize> {
        let made = self.open().filter_map(|id| generator.progress(id));
        made.reduce(usize::saturating_add)
    }

    /// Gives it up if passes that were for it have brought it nothing for longer than they may. It is ended before the next
    /// one.
    fn look_after(&mut self, shared: &Shared, made: usize, took_us: u64, stuck_us: u64) {
        if !self.progress.passed(made as u64, took_us, stuck_us) || self.fault.is_some() {
            return;
        }
        let idle_ms = self.progress.idle_us() / 1000;
        tracing::error!(
            origin = self.job.origin.name(),
            client = self.job.key.client,
            id = self.job.key.id,
            idle_ms,
            tokens = made,
            "a request is stuck: passes bring it nothing; it is ended"
        );
        shared.telemetry.stuck.inc();
        self.fault = Some(Fault::new(
            FaultCode::Internal,
            format!("the request got stuck: it made no progress in {idle_ms} ms of passes"),
        ));
    }
}

/// What the engine works on: jobs, and the job of each generation with its place there.
#[derive(Debug, Default)]
struct Jobs {
    running: BTreeMap<Ticket, Running>,
    owners: HashMap<GenerationId, (Ticket, u32)>,
}

impl Jobs {
    fn insert(&mut self, running: Running) {
        let ticket = running.job.ticket;
        for (place, &(id, _)) in (0..).zip(&running.choices) {
            self.owners.insert(id, (ticket, place));
        }
        self.running.insert(ticket, running);
    }

    /// How urgent the most urgent of them is.
    fn urgency(&self) -> Priority {
        let jobs = self.running.values();
        let first =
            jobs.map(|running| running.job.priority)
                .min_by_key(|priority| match priority {
                    Priority::Alarm => 0,
                    Priority::Interactive => 1,
                    Priority::Batch => 2,
                });
        first.unwrap_or(Priority::Batch)
    }

    /// Whether others than this one have room that they may give back.
    fn others_have_pages(&self, ticket: Ticket) -> bool {
        let mut running = self.running.iter();
        running.any(|(&other, running)| other != ticket && !running.aside)
    }

    /// The job of a generation, and which of its answers that is.
    fn of(&mut self, id: GenerationId) -> Option<(&mut Running, u32)> {
        let &(ticket, place) = self.owners.get(&id)?;
        Some((self.running.get_mut(&ticket)?, place))
    }

    /// Takes a job out, all of whose answers are over.
    fn remove(&mut self, id: GenerationId) -> Option<Running> {
        let (ticket, _) = self.owners.get(&id).copied()?;
        let running = self.running.remove(&ticket)?;
        for (id, _) in &running.choices {
            self.owners.remove(id);
        }
        Some(running)
    }

    /// Notes who is to be ended: whose client is gone, who was found at fault while delivering (a reader too slow for its
    /// answer), and, once the grace is over, everyone. Says whether there is someone new.
    fn give_up(&mut self, board: &mut Board, now_ms: u64) -> bool {
        let grace_over = matches!(board.phase, Phase::Stopping(until) if Instant::now() >= until);
        let mut any = false;
        for running in self
            .running
            .values_mut()
            .filter(|running| !running.given_up)
        {
            if running.fault.is_none() {
                running.fault = if running.job.mailbox.cancelled() {
                    Some(cancelled())
                } else {
                    grace_over.then(Shared::stopping)
                };
            }
            if running.fault.is_some() {
                board.scheduler.cancelled(now_ms, running.job.ticket);
                running.given_up = true;
                any = true;
            }
        }
        any
    }
}

/// Serves until the daemon stops and the last job has ended.
pub(super) fn run<F: Forward>(
    shared: &Shared,
    mut generator: Generator<F>,
    tokenizer: &Tokenizer,
    mut keeping: Option<Keeping>,
) {
    let mut jobs = Jobs::default();
    let mut speed = SpeedMeter::default();
    let mut calibration = Calibrating::default();
    let mut readers = Vec::new();
    let mut seat = shared.machine.seat();
    let mut told = Told::default();
    shared.measuring.store(true, Ordering::Relaxed);
    while let Some(tokens_max) = next_pass(
        shared,
        &mut generator,
        &mut jobs,
        tokenizer,
        &mut calibration,
        keeping.as_mut(),
        (&mut readers, &mut seat),
    ) {
        // From now on it is to be seen if a pass hangs, also the first after a rest.
        shared.progress();
        let alarms = seat.alarms();
        let began = Instant::now();
        let mut decoded = 0;
        let reading = Reading {
            tokens_max,
            order: Some(&readers),
        };
        // What an alarm interrupts is begun again after its prompt has been read. Each interrupts one pass at most,
        // also where it finds no place, and many do not keep a prompt from being read.
        let result = generator.step_reading(
            reading,
            &mut |id, event| deliver(shared, &mut jobs, tokenizer, id, event, &mut decoded),
            &|| shared.alarm_ready.load(Ordering::Relaxed) || seat.alarms() != alarms,
        );
        if let Err(error) = result {
            tracing::error!(%error, "a pass failed; what was running has been told");
            shared.pass_failed();
            if let StepError(ForwardError::ModelChanged { .. }) = error {
                shared.breaks(error.to_string());
            }
        }
        let took = began.elapsed();
        shared.stepped(&mut jobs, &generator, readers.first(), decoded, took);
        shared.progress();
        shared.look_after_pack();
        speed.stepped(shared, decoded, took);
        if let Some(model) = shared.model.get().filter(|_| decoded > 0) {
            shared.telemetry.decode_pass(model.bytes_per_token(), took);
        }
        shared
            .telemetry
            .guesses(&mut told, generator.guess_counts());
        if let Some(cost) = generator.draft_cost() {
            shared.telemetry.draft_cost(cost);
        }
        shared
            .telemetry
            .constrained(&mut told, generator.constraint_counts());
        if let Some(keeping) = &mut keeping {
            keeping.stepped(&mut generator);
            keeping.tell(shared);
        }
    }
    // What a model computes that has broken is worth nothing.
    if let Some(keeping) = keeping
        && shared.board().phase != Phase::Failed
    {
        keeping.finish(&mut generator);
    }
}

impl Shared {
    /// Tells the scheduler what a pass came to, which was to read the prompt of `first` before others.
    fn stepped<F: Forward>(
        &self,
        jobs: &mut Jobs,
        generator: &Generator<F>,
        first: Option<&GenerationId>,
        decoded: usize,
        took: Duration,
    ) {
        let last = generator.last_pass();
        let mut board = self.board();
        let now_ms = self.now_ms();
        let (took_us, stuck_us) = (microseconds(took), board.scheduler.stuck_us());
        let first = first
            .and_then(|id| jobs.owners.get(id))
            .map(|owner| owner.0);
        for (&ticket, running) in &mut jobs.running {
            running.note(&mut board.scheduler, now_ms);
            if running.aside && !running.open().any(|id| generator.is_aside(id)) {
                running.aside = false;
                running.answers |= std::mem::take(&mut running.was_read);
                board.scheduler.read_again(ticket);
            }
            let Some(made) = running.made(generator) else {
                continue;
            };
            let moved = running.progress.made() != made as u64;
            if moved {
                board.scheduler.took_part(ticket);
            }
            // Whose prompt the pass did not come to waits, and has not got stuck.
            if moved || running.answers || first == Some(ticket) {
                running.look_after(self, made, took_us, stuck_us);
            }
        }
        if last.answering > 0 || last.prompt_tokens > 0 {
            let step = Step {
                took_us,
                answers: saturated(last.answering),
                answer_tokens: saturated(decoded),
                prompt_tokens: saturated(last.prompt_tokens),
            };
            board.scheduler.stepped(now_ms, &step);
        }
    }
}

/// Waits until there is something to compute, with everything done that the scheduler says. Gives the tokens of prompts
/// that the next pass may read, and leaves in `readers` whose; `None` when all is over.
fn next_pass<F: Forward>(
    shared: &Shared,
    generator: &mut Generator<F>,
    jobs: &mut Jobs,
    tokenizer: &Tokenizer,
    calibration: &mut Calibrating,
    mut keeping: Option<&mut Keeping>,
    (readers, seat): (&mut Vec<GenerationId>, &mut Seat),
) -> Option<usize> {
    let mut turn = Turn::default();
    let mut reading = Vec::new();
    loop {
        let mut board = shared.board();
        shared.alarm_ready.store(false, Ordering::Relaxed);
        let now_ms = shared.now_ms();
        let given_up = jobs.give_up(&mut board, now_ms);
        turn.gather(shared, &mut board, now_ms);
        shared.tell_load(&board);
        if given_up || !turn.is_empty() {
            drop(board);
            turn.tell(shared);
            apply(shared, generator, jobs, tokenizer, &mut turn);
            continue;
        }
        // Memory is short again and again for a while; an alarm is computed first.
        if jobs.urgency() != Priority::Alarm
            && shared.sheds.swap(false, Ordering::Relaxed)
            && let Some(executor) = generator.executor_mut()
        {
            drop(board);
            shared.progress();
            executor.shed();
            continue;
        }
        if board.scheduler.computes() {
            let urgency = jobs.urgency();
            if !seat.take(urgency) {
                shared.follow();
                drop(board);
                seat.wait();
                continue;
            }
            let mut tokens = board.scheduler.pass(now_ms, &mut reading);
            // Those of another model wait no longer for a prompt than its own answers would, and an alarm no longer for a
            // pass that it cannot end.
            let goes_through = generator.goes_through() && urgency != Priority::Alarm;
            if goes_through || seat.is_wanted(urgency) {
                tokens = board.scheduler.speeds().chunk_tokens(1, tokens).min(tokens);
            }
            readers.clear();
            for running in reading.iter().filter_map(|ticket| jobs.running.get(ticket)) {
                readers.extend(running.open());
            }
            return Some(usize::try_from(tokens).unwrap_or(usize::MAX));
        }
        seat.release();
        // Who is to give way waits for something else than a pass.
        let rests = jobs.running.is_empty() || board.scheduler.restraint() != Restraint::default();
        if rests {
            shared.idle();
        }
        if jobs.running.is_empty() {
            if board.is_over() {
                shared.leave(&mut board);
                return None;
            }
            let asked = !board.renders_nothing() || !board.waiting.is_empty();
            if let Some(keeping) = &mut keeping
                && !asked
                && keeping.has_more_to_read()
            {
                drop(board);
                shared.progress();
                keeping.read(generator);
                continue;
            }
            if !asked && !calibration.is_over() {
                if !seat.take_idle() {
                    // Another model computes, which is no time to measure anything.
                    drop(shared.wait(board, Some(MEASURE_LATER)));
                    continue;
                }
                drop(board);
                shared.progress();
                calibration.step(shared, generator);
                shared
                    .measuring
                    .store(!calibration.is_over(), Ordering::Relaxed);
                continue;
            }
            if let Some(keeping) = &mut keeping {
                keeping.tell(shared);
                if !asked && keeping.may_copy() {
                    drop(board);
                    shared.progress();
                    keeping.copy(generator);
                    continue;
                }
            }
        }
        let wait = board.wake_after(now_ms);
        drop(shared.wait(board, wait));
        if rests {
            // Whatever comes next is to come to its end.
            shared.progress();
        }
    }
}

/// Does what the scheduler says. Those that are given up go first: their places and their room are given away with it.
fn apply<F: Forward>(
    shared: &Shared,
    generator: &mut Generator<F>,
    jobs: &mut Jobs,
    tokenizer: &Tokenizer,
    turn: &mut Turn,
) {
    for decision in &turn.decisions {
        if let Decision::Stop(ticket) = decision
            && let Some(running) = jobs.running.get_mut(ticket)
        {
            let late = || expired("before the answer was complete");
            running.fault.get_or_insert_with(late);
            running.given_up = true;
        }
    }
    for running in jobs.running.values().filter(|running| running.given_up) {
        running.open().for_each(|id| {
            generator.cancel(id);
        });
    }
    generator.end_cancelled(&mut |id, event| deliver(shared, jobs, tokenizer, id, event, &mut 0));
    for decision in &turn.decisions {
        let (ticket, parks) = match decision {
            Decision::Park(ticket) => (ticket, true),
            Decision::Resume(ticket) => (ticket, false),
            _ => continue,
        };
        let (mut lost, mut no_room) = (false, false);
        let open = jobs.running.get(ticket).into_iter().flat_map(Running::open);
        for id in open {
            let done = if parks {
                generator.park(id)
            } else {
                generator.resume(id)
            };
            no_room |= !done && !parks && generator.is_aside(id);
            lost |= !done;
        }
        if no_room && jobs.others_have_pages(*ticket) {
            shared.board().scheduler.no_room(*ticket);
        } else if lost && let Some(running) = jobs.running.get_mut(ticket) {
            // It would be in no pass any more while the scheduler has it in all: rather an error than silence.
            tracing::error!(parks, "the engine and the scheduler count different places");
            let fault = Fault::new(FaultCode::Internal, "there is no place for the request");
            running.fault.get_or_insert(fault);
        }
        if parks {
            shared.telemetry.parked.inc();
        }
    }
    let mut room = true;
    for (ticket, waiting) in turn.starts.drain(..) {
        let back = if room || waiting.job.priority == Priority::Alarm {
            start(shared, generator, jobs, waiting)
        } else {
            Some(waiting)
        };
        // It goes back, and nobody goes before it but alarms: what it needs comes free when others end.
        if let Some(waiting) = back {
            room = false;
            let mut board = shared.board();
            board.scheduler.no_room(ticket);
            board.waiting.insert(ticket, waiting);
        }
    }
}

/// Starts a job. Gives it back if there is no room for it now.
fn start<F: Forward>(
    shared: &Shared,
    generator: &mut Generator<F>,
    jobs: &mut Jobs,
    waiting: Waiting,
) -> Option<Waiting> {
    let Stage::Ready(prepared) = &waiting.stage else {
        // No other stage is started by this thread.
        return Some(waiting);
    };
    let Prepared {
        request, choices, ..
    } = &**prepared;
    let urgent = waiting.job.priority == Priority::Alarm;
    let request = || GenerationRequest {
        urgent,
        ..request.clone()
    };
    let mut started = generator.start_group(request(), *choices);
    while let Err(StartError::KvFull {
        tokens_needed,
        tokens_free,
    }) = started
        && urgent
        && make_room(shared, generator, jobs, tokens_needed - tokens_free)
    {
        started = generator.start_group(request(), *choices);
    }
    match started {
        Ok(ids) => {
            waiting.job.mailbox.post(JobEvent::Started);
            jobs.insert(Running {
                started: Instant::now(),
                task: prepared.task.clone(),
                job: waiting.job,
                fault: None,
                given_up: false,
                choices: ids.map(|id| (id, None)).collect(),
                read: None,
                decoded: 0,
                answers: false,
                aside: false,
                asides: 0,
                was_read: false,
                progress: Progress::default(),
                usage: Usage::default(),
                timings: Timings::default(),
            });
            None
        }
        Err(StartError::Busy { .. } | StartError::KvFull { .. })
            if jobs.others_have_pages(waiting.job.ticket) =>
        {
            Some(waiting)
        }
        Err(error) => {
            let mut board = shared.board();
            board
                .scheduler
                .finished(shared.now_ms(), waiting.job.ticket);
            drop(board);
            shared.fail(&waiting.job, fault_of(&error));
            None
        }
    }
}

/// For an alarm that lacks so many tokens of room: sets another job aside, batch work first and then what was begun last. False
/// if there is none, or all of them together have too little.
fn make_room<F: Forward>(
    shared: &Shared,
    generator: &mut Generator<F>,
    jobs: &mut Jobs,
    tokens: usize,
) -> bool {
    let may = |running: &&mut Running| {
        running.job.priority != Priority::Alarm
            && running.choices.len() == 1
            && running.asides < ASIDES_MAX
            && !running.given_up
    };
    let mut most = 0usize;
    let mut first = None;
    for running in jobs.running.values_mut().filter(may) {
        let Some(id) = running.open().next() else {
            continue;
        };
        let has = generator.kv_tokens_of(id);
        most = most.saturating_add(has);
        let order = (running.job.priority == Priority::Batch, running.started);
        if has > 0 && first.as_ref().is_none_or(|(best, _, _)| order > *best) {
            first = Some((order, id, running));
        }
    }
    let Some((_, id, running)) = first.filter(|_| most >= tokens) else {
        return false;
    };
    if !generator.set_aside(id) {
        return false;
    }
    running.aside = true;
    running.asides += 1;
    running.was_read |= std::mem::take(&mut running.answers);
    let mut board = shared.board();
    let now_ms = shared.now_ms();
    running.note(&mut board.scheduler, now_ms);
    board.scheduler.set_aside(running.job.ticket);
    drop(board);
    tracing::info!(
        client = running.job.key.client,
        id = running.job.key.id,
        "a request gives its room to an alarm; what it had is computed again"
    );
    true
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

fn deliver(
    shared: &Shared,
    jobs: &mut Jobs,
    tokenizer: &Tokenizer,
    id: GenerationId,
    event: Event<'_>,
    decoded: &mut usize,
) {
    match event {
        Event::PromptDone {
            prompt_tokens,
            cached_tokens,
        } => {
            shared.telemetry.prompt_read(prompt_tokens, cached_tokens);
            if let Some((running, _)) = jobs.of(id) {
                running.answers = true;
                running.read = Some(saturated(prompt_tokens.saturating_sub(cached_tokens)));
            }
        }
        Event::Text { text, ids, tokens } => {
            *decoded += ids.len();
            let Some((running, choice)) = jobs.of(id) else {
                return;
            };
            running.decoded = running.decoded.saturating_add(saturated(ids.len()));
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
            let Some((owner, choice)) = jobs.of(id) else {
                return;
            };
            ended(owner, choice, reason, usage, timings);
            if owner.open().next().is_some() {
                shared.board().scheduler.choice_ended(owner.job.ticket);
            } else if let Some(running) = jobs.remove(id) {
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
fn conclude(shared: &Shared, mut running: Running) {
    let mut board = shared.board();
    let now_ms = shared.now_ms();
    running.note(&mut board.scheduler, now_ms);
    let in_time = board.scheduler.finished(now_ms, running.job.ticket);
    drop(board);
    if !in_time {
        let late = || expired("before the answer was complete");
        running.fault.get_or_insert_with(late);
    }
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
