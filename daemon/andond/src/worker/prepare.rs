//! The threads that make tokens of requests, so that neither a long prompt nor a template holds up
//! decoding or the front ends. Requests whose answers are to have a shape have one of their own: to make the first ready
//! takes a second where a vocabulary is large, and a shape may take longer to compile than others want to wait. So have
//! alarms, which wait for nobody's shape and nobody's long text, and whose shapes others do not push out.

use std::num::NonZero;

use andon_engine::Model;
use andon_engine::generate::GenerationRequest;
use andon_engine::grammar::Constraint;
use andon_engine::kv::PAGE;
use andon_engine::sample::{LogitBias, SamplingOptions};
use andon_engine::speculate::{Corpus, Sources};
use andon_engine::tokenizer::{self, Special};

use andon_policy::scheduler::Size;
use andon_wire::Priority;
use andon_wire::manifest::Digest;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::admit::{fault_of, saturated};
use super::board::{Board, Job, Phase, Prepared, Stage};
use super::corpora::Corpora;
use super::embed::EmbeddingRequest;
use super::grammars::Grammars;
use super::job::JobEvent;
use super::tools::{self, render};
use crate::config::model::ModelConfig;
use crate::fault::{Fault, FaultCode};
use crate::request::{
    Calling, EmbeddingInput, Gap, Input, Request, Sampling, check_embedding_tokens,
};
use crate::task::{Resolved, Tasks};

/// Which requests a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Those whose answers have no shape.
    Plain,
    /// The others.
    Shaped,
    /// Alarms, with or without.
    Alarm,
}

impl Lane {
    pub(super) const ALL: [Lane; 3] = [Lane::Plain, Lane::Shaped, Lane::Alarm];
    pub(super) const COUNT: usize = Lane::ALL.len();

    /// The thread's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Lane::Plain => "prepare",
            Lane::Shaped => "prepare-shaped",
            Lane::Alarm => "prepare-alarm",
        }
    }

    fn of(priority: Priority, request: &Request, tasks: &Tasks) -> Lane {
        if priority == Priority::Alarm {
            return Lane::Alarm;
        }
        let shaped = match &request.input {
            Input::Task { name, .. } => tasks.has_format(name),
            _ => false,
        };
        if shaped || request.format.is_some() || !request.tools.is_empty() {
            Lane::Shaped
        } else {
            Lane::Plain
        }
    }
}

/// Renders the requests of a lane until the daemon stops.
pub(super) fn run(
    shared: &Shared,
    lane: Lane,
    model: &Model,
    corpora: &Corpora,
    context_tokens_max: usize,
) {
    let mut grammars = Grammars::default();
    let terms = shared.in_force.get();
    if lane == Lane::Shaped && terms.all_tasks().is_some_and(Tasks::have_formats) {
        // Sure to be needed, and a second of work for a large vocabulary. The board is held for moments only.
        shared.board().readying = true;
        Grammars::ready(shared, model);
        shared.board().readying = false;
        shared.changed.notify_all();
    }
    loop {
        let Some((job, request)) = next(shared, lane, &mut grammars) else {
            return;
        };
        let request = Arc::unwrap_or_clone(request);
        // One that was handed over before the model was known.
        if let Err(fault) = shared.check_kind(&request.input) {
            put(shared, lane, &job, Err(fault), None);
            continue;
        }
        if let Input::Embeddings { inputs, dimensions } = request.input {
            let prepared = embeddings(model, context_tokens_max, inputs, dimensions);
            if let Ok(prepared) = &prepared {
                job.account.prepared_inputs(prepared, shared.audit.mac());
            }
            let size = prepared.as_ref().ok().map(|prepared| Size {
                prompt_tokens: saturated(prepared.tokens()),
                tokens_max: 0,
            });
            let accepted = size.map(|size| JobEvent::Accepted {
                prompt_tokens: size.prompt_tokens as usize,
                calls: None,
            });
            let ready = prepared.map(Stage::Embedding);
            put(shared, lane, &job, ready, size.zip(accepted));
            continue;
        }
        let calls = tools::may_call(&request);
        let prepared = prepare(
            shared,
            model,
            corpora,
            context_tokens_max,
            &job,
            &mut grammars,
            request,
        );
        if let Ok(prepared) = &prepared
            && shared.audit.is_on()
        {
            job.account.prepared(prepared, shared.audit.mac());
        }
        let size = prepared.as_ref().ok().map(|prepared| Size {
            prompt_tokens: saturated(prepared.request.prompt.len()),
            tokens_max: saturated(prepared.request.tokens_max.unwrap_or(usize::MAX)),
        });
        let accepted = size.map(|size| JobEvent::Accepted {
            prompt_tokens: size.prompt_tokens as usize,
            calls: calls
                .then(|| model.tool_style())
                .flatten()
                .map(|style| style.format().clone()),
        });
        let ready = prepared.map(|prepared| Stage::Ready(Box::new(prepared)));
        put(shared, lane, &job, ready, size.zip(accepted));
    }
}

/// Puts a job where the engine's thread takes it, or fails it.
fn put(
    shared: &Shared,
    lane: Lane,
    job: &Arc<Job>,
    ready: Result<Stage, Fault>,
    accepted: Option<(Size, JobEvent)>,
) {
    let mut board = shared.board();
    board.rendering[lane as usize] = false;
    let offered = (ready.is_ok()).then_some(()).and(accepted.as_ref());
    let offered = offered.map(|(size, _)| size.prompt_tokens as usize);
    let fault = match (ready, accepted, board.phase) {
        (Err(fault), ..) => Some(fault),
        (Ok(stage), Some((size, accepted)), Phase::Loading | Phase::Serving | Phase::Draining) => {
            offer(shared, &mut board, job, stage, size, accepted).err()
        }
        // It is among those that wait, and goes their way.
        (Ok(_), ..) => None,
    };
    if let Some(fault) = fault
        // Who is not there any more has been told.
        && board.waiting.remove(&job.ticket).is_some()
    {
        board.scheduler.forget(shared.now_ms(), job.ticket);
        drop(board);
        shared.fail(job, fault);
    } else {
        drop(board);
        if let Some(prompt_tokens) = offered {
            job.account.accepted(prompt_tokens);
        }
    }
    // Also after a failure: a worker that stops waits for this thread to have nothing in hand.
    shared.changed.notify_all();
}

/// Tells the scheduler that a job is ready, if it is still wanted.
fn offer(
    shared: &Shared,
    board: &mut Board,
    job: &Job,
    stage: Stage,
    size: Size,
    accepted: JobEvent,
) -> Result<(), Fault> {
    let Some(waiting) = board.waiting.get_mut(&job.ticket) else {
        return Ok(());
    };
    let now_ms = shared.now_ms();
    board
        .scheduler
        .prepared(now_ms, job.ticket, size)
        .map_err(|refusal| fault_of(&refusal))?;
    waiting.stage = stage;
    job.mailbox.post(accepted);
    if job.priority == Priority::Alarm {
        // Under the board's lock, like the look at it.
        shared.alarm_ready.store(true, Ordering::Relaxed);
        shared.machine.alarm();
    }
    Ok(())
}

/// The tokens of inputs, each held to the context: nothing is ever cut.
fn embeddings(
    model: &Model,
    context_tokens_max: usize,
    inputs: Vec<EmbeddingInput>,
    dimensions: Option<usize>,
) -> Result<EmbeddingRequest, Fault> {
    let vocabulary = model.info().vocabulary_count;
    let mut tokens = 0usize;
    let mut all = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        let ids = match input {
            EmbeddingInput::Text(text) => model.tokenizer().encode_prompt(&text, Special::Plain),
            EmbeddingInput::Tokens(ids) => ids,
        };
        if ids.is_empty() {
            let message = format!("input {index} has no tokens");
            return Err(Fault::invalid("input", message));
        }
        if ids.len() > context_tokens_max {
            let message = format!(
                "input {index} has {} tokens, at most {context_tokens_max} are taken",
                ids.len()
            );
            return Err(Fault {
                param: Some("input"),
                ..Fault::new(FaultCode::ContextFull, message)
            });
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            let message =
                format!("input {index}: token {id} is not in the vocabulary of {vocabulary}");
            return Err(Fault::invalid("input", message));
        }
        tokens = tokens.saturating_add(ids.len());
        check_embedding_tokens(tokens)?;
        all.push(ids);
    }
    Ok(EmbeddingRequest {
        inputs: all,
        dimensions,
    })
}

fn next(shared: &Shared, lane: Lane, grammars: &mut Grammars) -> Option<(Arc<Job>, Arc<Request>)> {
    let mut board = shared.board();
    loop {
        if matches!(board.phase, Phase::Stopping(_) | Phase::Failed) {
            return None;
        }
        let mine = |job: &Job, request: &Request| {
            Lane::of(job.priority, request, job.terms.tasks()) == lane
        };
        if let Some(next) = board.take_submitted(shared.now_ms(), mine) {
            board.rendering[lane as usize] = true;
            return Some(next);
        }
        // Whoever says that memory has become short wakes this thread.
        if shared.budget.is_short() {
            grammars.shed();
        }
        board = shared.wait(board, None);
    }
}

fn prepare(
    shared: &Shared,
    model: &Model,
    corpora: &Corpora,
    context_tokens_max: usize,
    job: &Job,
    grammars: &mut Grammars,
    request: Request,
) -> Result<Prepared, Fault> {
    let terms = &*job.terms;
    let limits = &terms.config.limits;
    let field = match &request.input {
        Input::Prompt(_) | Input::Tokens(_) => "prompt",
        Input::Gap(gap) => gap.names[0],
        Input::Messages(_) => "messages",
        Input::Task { .. } | Input::Embeddings { .. } => "input",
    };
    let task_name: Option<Arc<str>> = match &request.input {
        Input::Task { name, .. } => Some(name.as_str().into()),
        _ => None,
    };
    let (prompt, task) = match request.input {
        Input::Prompt(prompt) => (
            model.tokenizer().encode_prompt(&prompt, Special::Parse),
            None,
        ),
        Input::Tokens(tokens) => {
            let count = model.info().vocabulary_count;
            let known = |id: u32| (id as usize) < count;
            if let Some(id) = tokens.iter().find(|&&id| !known(id)) {
                let message = format!("token {id} is not in the vocabulary of {count}");
                return Err(Fault::invalid("prompt", message));
            }
            (tokens, None)
        }
        Input::Messages(messages) => {
            let variables = &request.template_variables;
            let calls = request.tool_choice.calling != Calling::Never;
            let text = render(model, messages, &request.tools, calls, variables)?;
            // A template writes the beginning-of-text token itself where the model wants one.
            (model.tokenizer().encode(&text, Special::Parse), None)
        }
        Input::Gap(gap) => (around(model, &gap)?, None),
        // These go another way, see `run`.
        Input::Embeddings { .. } => {
            let message = "the model generates text; it makes no embeddings";
            return Err(Fault::new(FaultCode::Unsupported, message));
        }
        Input::Task { name, input } => {
            let mut task: Resolved = terms.tasks().resolve(&name, &input)?;
            let messages = std::mem::take(&mut task.messages);
            let text = render(model, messages, &[], false, &request.template_variables)?;
            (model.tokenizer().encode(&text, Special::Parse), Some(task))
        }
    };
    let task = task.unwrap_or_default();
    let prompt_tokens_max = limits.prompt_tokens_max.unwrap_or(usize::MAX);
    // One place is left for an answer.
    let most = prompt_tokens_max.min(context_tokens_max.saturating_sub(1));
    if prompt.len() > most {
        let message = format!(
            "the prompt has {} tokens, at most {most} are taken",
            prompt.len()
        );
        return Err(Fault {
            param: Some(field),
            ..Fault::new(FaultCode::ContextFull, message)
        });
    }
    if prompt.is_empty() {
        return Err(Fault::invalid(field, "the prompt has no tokens"));
    }
    let room = context_tokens_max.saturating_sub(prompt.len());
    let wanted = request
        .tokens_max
        .or(task.tokens_max)
        .unwrap_or(limits.tokens_max_default);
    let tokens_max = wanted
        .min(limits.tokens_max.unwrap_or(usize::MAX))
        .min(room);
    let choices = NonZero::new(request.choices).unwrap_or(NonZero::<u32>::MIN);
    check_room(shared, prompt.len(), tokens_max, choices)?;
    let lookup = terms.config.speculation.lookup;
    let sources = corpora.sources(&job.key, task_name.as_deref(), lookup);
    let sources = match request.prediction {
        Some(text) if corpora.enabled() => predicted(model, sources.own, &text, &prompt, room),
        _ => sources,
    };
    let by_model = &terms.config.model;
    let sampling = sampling(
        shared,
        by_model,
        &request.sampling,
        request.seed_unsaid,
        &task,
    );
    let bias = bias(model, request.logit_bias)?;
    let calls = tools::constraint(model, &request.tools, &request.tool_choice)?;
    let format = match (request.format.or(task.format), calls) {
        (Some(format), Some(_)) => {
            let message =
                "an answer that may call tools has no format of its own; say tool_choice none";
            return Err(Fault::invalid(format.param, message));
        }
        (format, calls) => calls.or(format),
    };
    if let Some(format) = format.as_ref().filter(|_| shared.audit.is_on()) {
        let shape = shape_text(&format.constraint, &request.tools);
        let digest = Sha256::digest(shape.as_bytes());
        job.account.shaped(Digest(digest.into()).to_string());
    }
    let constraint = format.map(|format| grammars.get(shared, model, format, tokens_max));
    let mut stop = request.stop;
    stop.extend(task.stop);
    Ok(Prepared {
        request: GenerationRequest {
            prompt,
            tokens_max: Some(tokens_max),
            sampling,
            bias,
            stop,
            logprobs: request.logprobs,
            ignore_end: request.ignore_end,
            constraint: constraint.transpose()?,
            one_by_one: false,
            // Whoever starts it knows its priority.
            urgent: false,
            sources,
        },
        choices,
        task: task_name,
    })
}

/// A shape as whoever asked for it wrote it: its schema or its tools as JSON without white space, an expression, or a grammar.
fn shape_text(constraint: &Constraint, tools: &[serde_json::Value]) -> String {
    match constraint {
        Constraint::JsonSchema(schema) => schema.to_string(),
        Constraint::JsonObject => "json_object".to_owned(),
        Constraint::Regex(text) | Constraint::Lark(text) | Constraint::Gbnf(text) => text.clone(),
        Constraint::Calls(_) => serde_json::Value::from(tools).to_string(),
    }
}

/// What the client takes its answer to be as a source of guesses, and if `own` the text itself. No more of it is looked
/// at than an answer has `room` for.
fn predicted(model: &Model, own: bool, prediction: &str, prompt: &[u32], room: usize) -> Sources {
    let mut tokens = model.tokenizer().encode(prediction, Special::Plain);
    tokens.truncate(room);
    let corpus = Corpus::new(Corpus::TOKENS_MAX);
    corpus.add(prompt, &tokens);
    Sources {
        own,
        corpus: Some(Arc::new(corpus)),
        ..Sources::default()
    }
}

/// The prompt to fill a gap.
fn around(model: &Model, gap: &Gap) -> Result<Vec<u32>, Fault> {
    let files: Vec<(&str, &str)> = gap
        .files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let gap_tokens = model.tokenizer().encode_gap(&tokenizer::Gap {
        files: &files,
        before: &gap.before,
        after: &gap.after,
    });
    gap_tokens.ok_or_else(|| Fault {
        param: Some(gap.names[1]),
        ..Fault::new(
            FaultCode::Unsupported,
            "the model fills no gaps: its vocabulary lacks the tokens for what stands before and behind one",
        )
    })
}

/// Refuses more answers than the KV cache could ever hold at once: they would wait for room that never comes.
fn check_room(
    shared: &Shared,
    prompt_tokens: usize,
    tokens_max: usize,
    choices: NonZero<u32>,
) -> Result<(), Fault> {
    let pages = prompt_tokens.saturating_add(tokens_max).div_ceil(PAGE);
    let others = usize::try_from(choices.get() - 1).unwrap_or(usize::MAX);
    let own = pages.saturating_sub(prompt_tokens / PAGE);
    let needed = pages.saturating_add(own.saturating_mul(others));
    let there = shared.config.model.kv_tokens_max.div_ceil(PAGE);
    if needed > there {
        let message = format!(
            "{choices} answers of {tokens_max} tokens need a KV cache of {} tokens; it has {}",
            needed.saturating_mul(PAGE),
            there.saturating_mul(PAGE)
        );
        return Err(Fault {
            param: Some("n"),
            ..Fault::new(FaultCode::ContextFull, message)
        });
    }
    Ok(())
}

fn bias(model: &Model, values: Vec<(u32, f32)>) -> Result<LogitBias, Fault> {
    let count = model.info().vocabulary_count;
    if let Some((id, _)) = values.iter().find(|&&(id, _)| id as usize >= count) {
        let message = format!("token {id} is not in the vocabulary of {count}");
        return Err(Fault::invalid("logit_bias", message));
    }
    LogitBias::new(values).map_err(|error| Fault::invalid("logit_bias", error.to_string()))
}

/// The request's word, else the task's, else the configuration's.
fn sampling(
    shared: &Shared,
    model: &ModelConfig,
    asked: &Sampling,
    seed_unsaid: Option<u64>,
    task: &Resolved,
) -> SamplingOptions {
    let by_task = &task.sampling;
    let plain = SamplingOptions::default();
    SamplingOptions {
        temperature: asked
            .temperature
            .or(by_task.temperature)
            .unwrap_or(model.temperature),
        top_k: asked.top_k.or(by_task.top_k).unwrap_or(model.top_k),
        top_p: asked.top_p.or(by_task.top_p).unwrap_or(model.top_p),
        min_p: asked.min_p.or(by_task.min_p).unwrap_or(model.min_p),
        typical_p: asked
            .typical_p
            .or(by_task.typical_p)
            .unwrap_or(plain.typical_p),
        repeat_penalty: asked
            .repeat_penalty
            .or(by_task.repeat_penalty)
            .unwrap_or(model.repeat_penalty),
        repeat_last_n: asked
            .repeat_last_n
            .or(by_task.repeat_last_n)
            .unwrap_or(plain.repeat_last_n),
        presence_penalty: asked
            .presence_penalty
            .or(by_task.presence_penalty)
            .unwrap_or(plain.presence_penalty),
        frequency_penalty: asked
            .frequency_penalty
            .or(by_task.frequency_penalty)
            .unwrap_or(plain.frequency_penalty),
        seed: asked
            .seed
            .or(by_task.seed)
            .or(seed_unsaid)
            .unwrap_or_else(|| shared.fresh_seed()),
        choice: 0,
    }
}
