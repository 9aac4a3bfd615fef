//! The thread that computes: starts what waits, makes one pass after the other, delivers what comes out.

mod apply;
mod deliver;
mod jobs;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use andon_engine::ForwardError;
use andon_engine::backend::{Backend, DeviceError};
use andon_engine::generate::{Forward, GenerationId, Generator, Reading, StepError};
use andon_engine::tokenizer::Tokenizer;
use andon_policy::speed::Step;
use andon_policy::throttle::Restraint;
use andon_wire::Priority;

use self::apply::apply;
use self::deliver::deliver;
use self::jobs::Jobs;
use super::Shared;
use super::admit::saturated;
use super::board::Phase;
use super::calibrate::Calibrating;
use super::machine::Seat;
use super::pages::Keeping;
use super::schedule::Turn;
use crate::telemetry::Told;

/// How long measuring the machine waits for a moment in which nobody computes.
const MEASURE_LATER: Duration = Duration::from_millis(50);

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
    // It may have been lost while the model was tried.
    if let Some(why) = fallen_back(&mut generator) {
        shared.falls_back(why, &mut jobs);
    }
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
            crate::event!(PassFailed, %error, "a pass failed; what was running has been told");
            shared.pass_failed();
            let StepError(why) = error;
            let lost =
                matches!(why, ForwardError::Device(_)) && fallen_back(&mut generator).is_none();
            if lost || matches!(why, ForwardError::ModelChanged { .. }) {
                shared.breaks(why.to_string());
            }
        }
        if let Some(why) = fallen_back(&mut generator) {
            shared.falls_back(why, &mut jobs);
        }
        // What is taken from the disk says nothing of how fast passes are.
        let restoring = generator.last_pass().restoring;
        let took = began.elapsed().saturating_sub(restoring);
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

/// Why the processor computes although a device was to.
fn fallen_back<F: Forward>(generator: &mut Generator<F>) -> Option<DeviceError> {
    generator.executor_mut()?.lost()
}

impl Shared {
    /// Tells, once, that the processor goes on for a device that failed, and that all that runs reads its text again.
    fn falls_back(&self, why: DeviceError, jobs: &mut Jobs) {
        let mut is_new = false;
        let facts = self.facts_now();
        self.lost.get_or_init(|| {
            is_new = true;
            why.to_string()
        });
        if is_new {
            let mut board = self.board();
            let now_ms = self.now_ms();
            for (&ticket, running) in &mut jobs.running {
                running.reads_again = true;
                running.was_read |= std::mem::take(&mut running.answers);
                running.note(&mut board.scheduler, now_ms);
                board.scheduler.lost(ticket);
            }
            drop(board);
            crate::event!(
                BackendLost,
                %why,
                "the device that computed failed; the processor goes on until andond is started again"
            );
            if let Some(facts) = facts {
                self.telemetry.backend(facts.computes.backend, -1);
                self.telemetry.backend(Backend::Cpu, 1);
            }
            self.telemetry.backend_lost();
            self.around.tell();
        }
    }

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
            if running.reads_again && !running.open().any(|id| generator.is_aside(id)) {
                running.reads_again = false;
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
        if jobs.urgency() != Priority::Alarm && shared.moving.is_ready() {
            drop(board);
            shared.progress();
            shared.changes_over(generator);
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
