//! What is done between two passes because the scheduler says so.

use std::time::Instant;

use andon_engine::generate::{Forward, GenerationRequest, Generator, StartError};
use andon_engine::tokenizer::Tokenizer;
use andon_policy::scheduler::Decision;
use andon_policy::stuck::Progress;
use andon_wire::Priority;

use super::super::Shared;
use super::super::board::{Job, Prepared, Stage, Waiting};
use super::super::job::{JobEvent, Timings, Usage};
use super::super::schedule::{Turn, expired};
use super::deliver::deliver;
use super::jobs::{Jobs, Running};
use crate::fault::{Fault, FaultCode};

/// How often a job gives its room to alarms, and then not any more: it is to come to its end.
const ASIDES_MAX: u32 = 3;

/// Does what the scheduler says. Those that are given up go first: their places and their room are given away with it.
pub(super) fn apply<F: Forward>(
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
        if no_room && jobs.others_have_pages(generator, *ticket) {
            shared.board().scheduler.no_room(*ticket);
        } else if lost && let Some(running) = jobs.running.get_mut(ticket) {
            // It would be in no pass any more while the scheduler has it in all: rather an error than silence.
            crate::event!(
                Internal,
                parks,
                "the engine and the scheduler count different places"
            );
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
        let why = "the model generates text, which the request is not for";
        refuse(shared, &waiting.job, Fault::new(FaultCode::Internal, why));
        return None;
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
                reads_again: false,
                asides: 0,
                was_read: false,
                progress: Progress::default(),
                usage: Usage::default(),
                timings: Timings::default(),
            });
            None
        }
        Err(StartError::Busy { .. } | StartError::KvFull { .. })
            if jobs.others_have_pages(generator, waiting.job.ticket) =>
        {
            Some(waiting)
        }
        Err(error) => {
            refuse(shared, &waiting.job, fault_of(&error));
            None
        }
    }
}

/// Ends a job that was to be started.
fn refuse(shared: &Shared, job: &Job, fault: Fault) {
    let mut board = shared.board();
    board.scheduler.finished(shared.now_ms(), job.ticket);
    drop(board);
    shared.fail(job, fault);
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
    running.reads_again = true;
    running.asides += 1;
    running.was_read |= std::mem::take(&mut running.answers);
    let mut board = shared.board();
    let now_ms = shared.now_ms();
    running.note(&mut board.scheduler, now_ms);
    board.scheduler.set_aside(running.job.ticket);
    drop(board);
    tracing::info!(
        client = running.job.key.client,
        request_id = running.job.key.id,
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
