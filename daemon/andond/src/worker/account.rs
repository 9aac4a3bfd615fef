//! What is known of one request, and told when it ends.
//!
//! Fields have the same names in every event of a request's life (`request_id`, `client`, `task`, `model`, …), which the
//! journal has in capitals. The urgency of a request is `request_priority`: `PRIORITY` is the journal's own. What was asked and
//! answered is taken down only where the configuration says so (`[log] text`), and no more of each than
//! [`TEXT_BYTES_MAX`].

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use andon_policy::route::Route;
use andon_wire::manifest;
use sha2::{Digest as _, Sha256};
use tracing::info;

use super::admit::saturated;
use super::board::Prepared;
use super::embed::EmbeddingRequest;
use super::job::{Done, JobEvent};
use super::run::microseconds;
use crate::audit::{Audit, Digest, Mac, Record, Sampler};
use crate::event;
use crate::fault::{Fault, FaultCode};
use crate::request::{EmbeddingInput, Input, Origin, Part, Priority, Request};
use crate::telemetry::Telemetry;

/// Most bytes of a prompt, and of an answer, that are logged.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;

/// How the record says that an answer was made which may be set aside for another's.
const DRAFT: &str = "draft";

/// Most files of a model whose digests are recorded each for itself: a record has a bound.
const WEIGHTS_MAX: usize = 8;

/// Who asks, and for what.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    origin: Origin,
    client: String,
    id: String,
    task: Option<String>,
    priority: Option<Priority>,
    attempt: u16,
    choices: u32,
    part: Part,
}

impl Asked {
    pub(crate) fn of(request: &Request) -> Asked {
        Asked {
            origin: request.origin,
            client: request.client.clone(),
            id: request.id.clone(),
            task: match &request.input {
                Input::Task { name, .. } => Some(name.clone()),
                _ => None,
            },
            priority: request.priority,
            attempt: request.attempt,
            choices: request.choices,
            part: request.part,
        }
    }

    /// The user behind a Unix socket, by whom front ends name such clients.
    fn uid(&self) -> Option<u32> {
        let local = matches!(self.origin, Origin::Http | Origin::Wire);
        let uid = self.client.strip_prefix("uid-").filter(|_| local)?;
        uid.parse().ok()
    }

    /// Counts a request that comes, unless it is a part of one that came before.
    pub(crate) fn comes(&self, telemetry: &Telemetry) {
        if self.part == Part::Answer {
            telemetry.request(self.origin);
        }
    }

    /// Counts one that is taken in, unless that was done before.
    pub(crate) fn taken(&self, telemetry: &Telemetry) {
        if self.part == Part::Answer {
            telemetry.accepted();
        }
    }

    /// Counts a request that is not taken. Over MQTT it is kept, and the front end says what becomes of it.
    pub(crate) fn refused(&self, telemetry: &Telemetry, fault: &Fault) {
        if self.part != Part::Answer {
            return;
        }
        telemetry.refused(self.origin, fault.code);
        if self.origin == Origin::Mqtt {
            return;
        }
        info!(
            request_id = self.id,
            client = self.client,
            origin = self.origin.name(),
            task = self.task,
            request_priority = self.priority.map(Priority::name),
            fault = fault.code.name(),
            field = fault.param,
            "a request is refused"
        );
    }
}

/// What is known of a request that was taken.
#[derive(Debug)]
pub(crate) struct Account {
    asked: Asked,
    model: String,
    submitted: Instant,
    route: Route,
    notes: Mutex<Notes>,
}

/// What becomes known on the way.
#[derive(Debug, Default)]
struct Notes {
    prompt_tokens: Option<usize>,
    text: Option<Text>,
    schema_sha256: Option<String>,
    drawn: Option<Drawn>,
    prompt: Option<Digest>,
    /// One for each answer.
    answers: Vec<Digest>,
}

/// How answers are drawn.
#[derive(Debug, Clone, Copy)]
struct Drawn {
    seed: u64,
    sampler: Sampler,
    tokens_max: Option<usize>,
}

/// What was said, as far as it is logged.
#[derive(Debug)]
struct Text {
    prompt: String,
    answer: String,
}

impl Account {
    /// Of a request for a model, with what it asks if that is to be logged.
    pub(crate) fn new(
        request: &Request,
        priority: Option<Priority>,
        model: String,
        submitted: Instant,
        with_text: bool,
    ) -> Account {
        let mut asked = Asked::of(request);
        asked.priority = priority.or(asked.priority);
        let text = with_text.then(|| Text {
            prompt: text_of(&request.input),
            answer: String::new(),
        });
        Account {
            route: request.part.route(),
            asked,
            model,
            submitted,
            notes: Mutex::new(Notes {
                text,
                ..Notes::default()
            }),
        }
    }

    /// Of a request that is to be answered upstream; how its answer is drawn is not known here.
    pub(crate) fn upstream(request: &Request, with_text: bool, mac: Option<&Mac>) -> Account {
        let submitted = Instant::now();
        let model = request.model.clone().unwrap_or_default();
        let account = Account::new(request, None, model, submitted, with_text);
        account.notes().answers = mac.map(Mac::begin).into_iter().collect();
        Account {
            route: Route::Cloud,
            ..account
        }
    }

    /// When it was asked.
    pub(crate) fn submitted(&self) -> Instant {
        self.submitted
    }

    /// What was said of its answer is void, and it begins again.
    pub(crate) fn restarted(&self, mac: Option<&Mac>) {
        let mut notes = self.notes();
        notes.answers = mac.map(Mac::begin).into_iter().collect();
        if let Some(text) = &mut notes.text {
            text.answer.clear();
        }
    }

    /// Its answer is made there after all.
    pub(crate) fn goes(&mut self, route: Route) {
        self.route = route;
    }

    /// Where its answer is made.
    pub(crate) fn route(&self) -> Route {
        self.route
    }

    /// Whether it may be set aside for another.
    pub(super) fn is_draft(&self) -> bool {
        self.asked.part == Part::Draft
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Every critical section leaves the notes whole.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is rendered and in the queue.
    pub(super) fn accepted(&self, prompt_tokens: usize) {
        self.notes().prompt_tokens = Some(prompt_tokens);
        let asked = &self.asked;
        tracing::debug!(
            request_id = asked.id,
            client = asked.client,
            origin = asked.origin.name(),
            task = asked.task,
            model = self.model,
            route = self.route().as_str(),
            request_priority = asked.priority.map(Priority::name),
            prompt_tokens,
            "accepted"
        );
    }

    /// What its answers are held to, by its digest.
    pub(super) fn shaped(&self, schema_sha256: String) {
        self.notes().schema_sha256 = Some(schema_sha256);
    }

    /// What the engine is to do for it.
    pub(super) fn prepared(&self, prepared: &Prepared, mac: Option<&Mac>) {
        let request = &prepared.request;
        let prompt = mac.map(|mac| {
            let mut digest = mac.begin();
            add_tokens(&mut digest, &request.prompt);
            digest
        });
        let count = prepared.choices.get() as usize;
        let answers = mac.map_or_else(Vec::new, |mac| vec![mac.begin(); count]);
        let mut notes = self.notes();
        notes.drawn = Some(Drawn {
            seed: request.sampling.seed,
            sampler: (&request.sampling).into(),
            tokens_max: request.tokens_max,
        });
        (notes.prompt, notes.answers) = (prompt, answers);
    }

    /// The same of a request for embeddings: each input with its length before it.
    pub(super) fn prepared_inputs(&self, prepared: &EmbeddingRequest, mac: Option<&Mac>) {
        self.notes().prompt = mac.map(|mac| {
            let mut digest = mac.begin();
            for input in &prepared.inputs {
                digest.add(&saturated(input.len()).to_le_bytes());
                add_tokens(&mut digest, input);
            }
            digest
        });
    }

    /// A piece of one of its answers.
    pub(crate) fn said(&self, choice: u32, piece: &str) {
        let mut notes = self.notes();
        let answer = usize::try_from(choice).ok();
        if let Some(digest) = answer.and_then(|answer| notes.answers.get_mut(answer)) {
            digest.add(piece.as_bytes());
        }
        if let Some(text) = &mut notes.text {
            let room = TEXT_BYTES_MAX.saturating_sub(text.answer.len());
            text.answer
                .push_str(&piece[..piece.floor_char_boundary(room)]);
        }
    }

    /// It is over: counts that, logs and records it. The digests are those of the model's files of weights.
    pub(crate) fn ended(
        &self,
        telemetry: &Telemetry,
        audit: &Audit,
        weights_sha256: &[String],
        event: &JobEvent,
    ) {
        match event {
            // Whoever asked for it tells how the request ends.
            JobEvent::Done(done) if self.is_draft() => {
                self.record(audit, weights_sha256, DRAFT, Some(done));
            }
            JobEvent::Failed(fault) if self.is_draft() => {
                tracing::debug!(
                    request_id = self.asked.id,
                    client = self.asked.client,
                    fault = fault.code.name(),
                    "a draft was not made"
                );
            }
            JobEvent::Done(done) => {
                telemetry.outcome(self.asked.origin, done.finish.name());
                self.answered(done);
                self.record(audit, weights_sha256, done.finish.name(), Some(done));
            }
            JobEvent::Failed(fault) => {
                telemetry.failed(self.asked.origin, fault.code);
                self.failed(fault);
                self.record(audit, weights_sha256, fault.code.name(), None);
            }
            JobEvent::Accepted { .. }
            | JobEvent::Started
            | JobEvent::Chunk(_)
            | JobEvent::Restarted
            | JobEvent::ChoiceDone { .. }
            | JobEvent::Vectors(_) => {}
        }
    }

    fn record(&self, audit: &Audit, weights_sha256: &[String], outcome: &str, done: Option<&Done>) {
        if !audit.is_on() {
            return;
        }
        let (asked, notes) = (&self.asked, self.notes());
        let (usage, timings) = (done.map(|done| done.usage), done.map(|done| done.timings));
        // What was said of an answer that failed is none.
        let answers: &[Digest] = done.map_or(&[], |_| &notes.answers);
        audit.put(&Record {
            request_id: &asked.id,
            client: &asked.client,
            uid: asked.uid(),
            origin: asked.origin.name(),
            task: asked.task.as_deref(),
            priority: asked.priority.map(Priority::name),
            attempt: asked.attempt,
            model: (done.and_then(|done| done.model.as_deref())).unwrap_or(&self.model),
            weights_sha256,
            route: done.map_or(self.route, |done| done.route).as_str(),
            seed: notes.drawn.map(|drawn| drawn.seed),
            sampler: notes.drawn.map(|drawn| drawn.sampler),
            tokens_max: notes.drawn.and_then(|drawn| drawn.tokens_max),
            choices: asked.choices,
            schema_sha256: notes.schema_sha256.as_deref(),
            prompt_tokens: usage
                .map(|usage| usage.prompt_tokens)
                .or(notes.prompt_tokens),
            cached_tokens: usage.map(|usage| usage.cached_tokens),
            completion_tokens: usage.map(|usage| usage.completion_tokens),
            queue_us: timings.map(|timings| timings.queue_us),
            first_token_us: timings.map(|timings| timings.first_token_us),
            total_us: microseconds(self.submitted.elapsed()),
            outcome,
            prompt_hmac: notes.prompt.as_ref().map(Digest::hex),
            answer_hmac: answers.iter().map(Digest::hex).collect(),
        });
    }

    fn answered(&self, done: &Done) {
        let (asked, notes) = (&self.asked, self.notes());
        let text = notes.text.as_ref();
        let (usage, timings) = (&done.usage, &done.timings);
        info!(
            request_id = asked.id,
            client = asked.client,
            origin = asked.origin.name(),
            task = asked.task,
            model = done.model.as_deref().unwrap_or(&self.model),
            route = done.route.as_str(),
            late = done.late.then_some(true),
            request_priority = asked.priority.map(Priority::name),
            finish = done.finish.name(),
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            completion_tokens = usage.completion_tokens,
            tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens),
            queue_us = timings.queue_us,
            first_token_us = timings.first_token_us,
            duration_us = microseconds(self.submitted.elapsed()),
            prompt = text.map(|text| text.prompt.as_str()),
            answer = text.map(|text| text.answer.as_str()),
            "answered"
        );
    }

    fn failed(&self, fault: &Fault) {
        let (asked, notes) = (&self.asked, self.notes());
        let text = notes.text.as_ref();
        macro_rules! tell {
            ($log:ident!($($first:tt)*)) => {
                $log!(
                    $($first)*
                    request_id = asked.id,
                    client = asked.client,
                    origin = asked.origin.name(),
                    task = asked.task,
                    model = self.model,
                    route = self.route().as_str(),
                    request_priority = asked.priority.map(Priority::name),
                    fault = fault.code.name(),
                    why = fault.message,
                    field = fault.param,
                    prompt_tokens = notes.prompt_tokens,
                    duration_us = microseconds(self.submitted.elapsed()),
                    prompt = text.map(|text| text.prompt.as_str()),
                    answer = text.map(|text| text.answer.as_str()),
                    "not answered"
                )
            };
        }
        if fault.code == FaultCode::Internal {
            tell!(event!(RequestFailed,));
        } else {
            tell!(info!());
        }
    }
}

/// Digests of a model's files of weights as they are recorded: of more than [`WEIGHTS_MAX`], the one of their lines.
pub(super) fn weights(digests: &[manifest::Digest]) -> Vec<String> {
    let all: Vec<String> = digests.iter().map(ToString::to_string).collect();
    if all.len() <= WEIGHTS_MAX {
        return all;
    }
    let mut digest = Sha256::new();
    for one in all {
        digest.update(one.as_bytes());
        digest.update(b"\n");
    }
    vec![manifest::Digest(digest.finalize().into()).to_string()]
}

fn add_tokens(digest: &mut Digest, tokens: &[u32]) {
    for token in tokens {
        digest.add(&token.to_le_bytes());
    }
}

/// What a request asks, for a reader of the journal.
fn text_of(input: &Input) -> String {
    let mut text = String::new();
    let mut add = |piece: &str| {
        let room = TEXT_BYTES_MAX.saturating_sub(text.len());
        text.push_str(&piece[..piece.floor_char_boundary(room)]);
    };
    match input {
        Input::Messages(messages) => {
            for message in messages {
                for piece in [&message.role, ": ", &message.content, "\n"] {
                    add(piece);
                }
            }
        }
        Input::Prompt(prompt) => add(prompt),
        Input::Tokens(tokens) => tokens.iter().for_each(|id| add(&format!("{id} "))),
        Input::Gap(gap) => {
            for piece in [&gap.before, "\u{2026}", &gap.after] {
                add(piece);
            }
        }
        Input::Task { input, .. } => add(&input.to_string()),
        Input::Embeddings { inputs, .. } => {
            for input in inputs {
                match input {
                    EmbeddingInput::Text(text) => add(text),
                    EmbeddingInput::Tokens(ids) => ids.iter().for_each(|id| add(&format!("{id} "))),
                }
                add("\n");
            }
        }
    }
    text
}
