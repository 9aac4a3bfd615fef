//! What comes out of passes, on its way to clients.

use andon_engine::generate::{self, Event, FinishReason, GenerationId};
use andon_engine::tokenizer::Tokenizer;

use super::super::Shared;
use super::super::admit::saturated;
use super::super::job::{Done, Finish, JobEvent, TokenLogprob, TopLogprob};
use super::super::schedule::{cancelled, expired};
use super::jobs::{Jobs, Running};
use super::microseconds;
use crate::fault::{Fault, FaultCode};

pub(super) fn deliver(
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
            running.job.account.said(choice, text);
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
        route: running.job.account.route(),
        ..Done::new(finish, running.usage, running.timings)
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
        if running.job.account.is_draft() {
            shared.telemetry.computed(done);
        } else {
            shared.telemetry.answered(done);
        }
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
