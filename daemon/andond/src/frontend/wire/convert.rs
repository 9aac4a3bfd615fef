//! Between the words of `andon-wire` and the daemon's own.

use std::time::{Duration, Instant};

use andon_wire::limits::ROUTE_PARTS_MAX;
use andon_wire::{
    Ask, AskError, Done as WireDone, DraftStatus, Embed, ErrorCode, Finish as WireFinish,
    Input as WireInput, ModelEntry, ModelName, ModelStatus, MqttStatus, QueueStatus, Readiness,
    RequestId, RouteExplained, RoutePart, SandboxLayer, SandboxStatus, ServiceStatus, SpoolStatus,
    Status as WireStatus, shorten,
};

use crate::confine::Layer;
use crate::fault::{Fault, FaultCode};
use crate::frontend::Context;
use crate::request::{Egress, EmbeddingInput, Input, Message, Origin, Priority, Request, Sampling};
use crate::router::Explained;
use crate::worker::{Done, DraftFacts, Finish, ModelFacts, WorkerState};
use crate::workers::{Named, Residence};

/// Name and version as the protocol shows them.
pub(super) const SOFTWARE: &str = concat!("andond ", env!("CARGO_PKG_VERSION"));

/// Most bytes of a part of a question that moved an estimate.
const PART_BYTES_MAX: usize = 64;

/// A request in owned form.
pub(super) fn request(ask: &Ask<'_>, client: &str) -> Result<Request, Fault> {
    ask.check().map_err(ask_fault)?;
    let input = match &ask.input {
        WireInput::Messages(messages) => Input::Messages(
            messages
                .iter()
                .map(|message| {
                    Message::new(message.role.as_str().to_owned(), message.content.to_owned())
                })
                .collect(),
        ),
        WireInput::Prompt(prompt) => Input::Prompt((*prompt).to_owned()),
        WireInput::Task { name, input_json } => Input::Task {
            name: name.as_str().to_owned(),
            input: serde_json::from_str(input_json).map_err(|error| {
                Fault::invalid("input_json", format!("is not valid JSON: {error}"))
            })?,
        },
    };
    let mut request = Request::new(ask.id.as_str(), client, Origin::Wire, input);
    request.model = ask.model.as_ref().map(|name| name.as_str().to_owned());
    request.sampling = Sampling {
        temperature: ask.sampling.temperature,
        top_p: ask.sampling.top_p,
        top_k: ask.sampling.top_k,
        min_p: ask.sampling.min_p,
        typical_p: None,
        repeat_penalty: ask.sampling.repeat_penalty,
        repeat_last_n: ask.sampling.repeat_last_n,
        presence_penalty: ask.sampling.presence_penalty,
        frequency_penalty: ask.sampling.frequency_penalty,
        seed: ask.sampling.seed,
    };
    request.tokens_max = ask.tokens_max.map(|tokens| tokens as usize);
    request.stop = ask.stop.iter().map(|&stop| stop.to_owned()).collect();
    request.priority = ask.priority.map(priority);
    request.deadline = ask
        .deadline_ms
        .and_then(|ms| Instant::now().checked_add(Duration::from_millis(u64::from(ms))));
    request.egress = ask.egress.map(|egress| match egress {
        andon_wire::Egress::Local => Egress::Local,
        andon_wire::Egress::Any => Egress::Any,
    });
    request.stream = ask.stream;
    Ok(request)
}

/// A request for a vector in owned form.
pub(super) fn embed(embed: &Embed<'_>, client: &str) -> Result<Request, Fault> {
    embed.check().map_err(ask_fault)?;
    let input = Input::Embeddings {
        inputs: vec![EmbeddingInput::Text(embed.text.to_owned())],
        dimensions: embed.dimensions.map(|dimensions| dimensions as usize),
    };
    let mut request = Request::new(embed.id.as_str(), client, Origin::Wire, input);
    request.model = embed.model.as_ref().map(|name| name.as_str().to_owned());
    request.priority = embed.priority.map(priority);
    request.deadline = embed
        .deadline_ms
        .and_then(|ms| Instant::now().checked_add(Duration::from_millis(u64::from(ms))));
    Ok(request)
}

fn priority(priority: andon_wire::Priority) -> Priority {
    match priority {
        andon_wire::Priority::Alarm => Priority::Alarm,
        andon_wire::Priority::Interactive => Priority::Interactive,
        andon_wire::Priority::Batch => Priority::Batch,
    }
}

fn ask_fault(error: AskError) -> Fault {
    let code = if error.is_size() {
        FaultCode::TooLarge
    } else {
        FaultCode::InvalidRequest
    };
    Fault::new(code, error.to_string())
}

/// The protocol's code for a fault.
pub(super) fn code(code: FaultCode) -> ErrorCode {
    match code {
        FaultCode::InvalidRequest => ErrorCode::InvalidRequest,
        FaultCode::TooLarge => ErrorCode::TooLarge,
        FaultCode::UnknownModel => ErrorCode::UnknownModel,
        FaultCode::UnknownTask => ErrorCode::UnknownTask,
        FaultCode::Unsupported => ErrorCode::Unsupported,
        FaultCode::ContextFull => ErrorCode::ContextFull,
        // A reader that comes too late is told what it can do about it: try again and read.
        FaultCode::Denied => ErrorCode::Denied,
        FaultCode::Busy | FaultCode::SlowReader => ErrorCode::Busy,
        FaultCode::DuplicateId => ErrorCode::DuplicateId,
        FaultCode::DeadlineExceeded => ErrorCode::DeadlineExceeded,
        FaultCode::Cancelled => ErrorCode::Cancelled,
        FaultCode::Unavailable | FaultCode::ModelUnavailable | FaultCode::UpstreamUnavailable => {
            ErrorCode::Unavailable
        }
        FaultCode::Internal => ErrorCode::Internal,
    }
}

/// The end of an answer.
pub(super) fn done(id: RequestId, model: ModelName, chunks: u32, done: &Done) -> WireDone {
    WireDone {
        id,
        attempt: 1,
        chunks,
        finish: match done.finish {
            Finish::Stop => WireFinish::Stop,
            Finish::Length => WireFinish::Length,
            Finish::Cancelled => WireFinish::Cancelled,
        },
        model,
        usage: andon_wire::Usage {
            prompt_tokens: saturated(done.usage.prompt_tokens),
            cached_tokens: saturated(done.usage.cached_tokens),
            completion_tokens: saturated(done.usage.completion_tokens),
        },
        timings: andon_wire::Timings {
            queue_us: done.timings.queue_us,
            prefill_us: done.timings.prefill_us,
            decode_us: done.timings.decode_us,
            first_token_us: done.timings.first_token_us,
        },
        origin: done.origin(),
    }
}

/// Where a request would be answered.
pub(super) fn explained(id: RequestId, explained: &Explained) -> RouteExplained<'_> {
    let parts = explained.parts.iter().map(|(what, moved)| RoutePart {
        what: shorten(what, PART_BYTES_MAX),
        moved: *moved,
    });
    RouteExplained {
        id,
        decision: explained.decision.as_str(),
        reason: explained.decision.reason().as_str(),
        policy: explained.policy.as_str(),
        up: explained.up,
        shadow: explained.shadow,
        will_do: explained.estimate.map(|estimate| estimate.will_do),
        as_good: explained.estimate.map(|estimate| estimate.as_good()),
        judged_as: &explained.judged_as,
        threshold: explained.threshold,
        parts: parts.take(ROUTE_PARTS_MAX).collect(),
    }
}

/// What a status frame borrows from.
#[derive(Debug)]
pub(super) struct StatusTexts {
    gateway: String,
    broker: String,
    model: Option<std::sync::Arc<ModelFacts>>,
    status: crate::worker::Status,
}

impl StatusTexts {
    pub(super) fn gather(context: &Context) -> StatusTexts {
        let status = context.workers.status();
        let config = context.config();
        let mqtt = &config.mqtt;
        StatusTexts {
            gateway: config.gateway.name(),
            broker: if mqtt.enabled {
                format!("{}:{}", mqtt.host, mqtt.port())
            } else {
                String::new()
            },
            model: status.model.clone(),
            status,
        }
    }

    pub(super) fn status(&self, context: &Context) -> WireStatus<'_> {
        let (requests, tokens, speed) = context.telemetry.totals();
        WireStatus {
            software: SOFTWARE,
            gateway: &self.gateway,
            uptime_s: context.telemetry.started.elapsed().as_secs(),
            readiness: match self.status.state {
                WorkerState::Loading | WorkerState::Waiting(_) => Readiness::Starting,
                WorkerState::Ready => Readiness::Ready,
                WorkerState::Stopping => Readiness::Draining,
                WorkerState::Failed(_) | WorkerState::Broken(_) => Readiness::Failed,
            },
            model: self.model.as_deref().and_then(|facts| {
                Some(ModelStatus {
                    name: ModelName::new(&facts.name).ok()?,
                    architecture: &facts.architecture,
                    file_bytes: facts.file_bytes,
                    context_tokens_max: saturated(facts.context_tokens_max),
                    isa: &facts.isa,
                    threads: u16::try_from(facts.threads).unwrap_or(u16::MAX),
                })
            }),
            requests,
            tokens,
            queue: QueueStatus {
                waiting: saturated(self.status.waiting),
                waiting_max: saturated(context.config().limits.queue_max),
                active: saturated(self.status.running),
                active_max: saturated(context.config().engine.parallel_max),
            },
            speed,
            mqtt: MqttStatus {
                link: context.telemetry.mqtt_link(),
                broker: andon_wire::shorten(
                    &self.broker,
                    andon_wire::limits::FAULT_MESSAGE_BYTES_MAX,
                ),
                reconnects: u32::try_from(context.telemetry.mqtt_connects.get().saturating_sub(1))
                    .unwrap_or(u32::MAX),
            },
        }
    }
}

/// The sandbox and the spool.
pub(super) fn service(context: &Context) -> ServiceStatus<'_> {
    let layer = |layer| match layer {
        &Layer::Off => SandboxLayer::Off,
        &Layer::On(level) => SandboxLayer::On { level },
        Layer::Missing(why) => SandboxLayer::Missing {
            why: andon_wire::shorten(why, andon_wire::limits::FAULT_MESSAGE_BYTES_MAX),
        },
    };
    let (counts, bytes) = context.spool.holds();
    let [accepted, running, answered, delivered] = counts.map(saturated);
    ServiceStatus {
        sandbox: SandboxStatus {
            landlock: layer(&context.confined.landlock),
            seccomp: layer(&context.confined.seccomp),
        },
        spool: SpoolStatus {
            durable: context.spool.is_durable(),
            accepted,
            running,
            answered,
            delivered,
            bytes,
        },
    }
}

/// The draft that the configuration names.
pub(super) fn draft(facts: &DraftFacts) -> DraftStatus<'_> {
    let cut = |text| andon_wire::shorten(text, andon_wire::limits::FAULT_MESSAGE_BYTES_MAX);
    let name = cut(&facts.name);
    match &facts.state {
        Ok(used) => DraftStatus {
            name,
            used: true,
            bytes: used.bytes,
            reason: "",
            translated: used.translated,
        },
        Err(why) => DraftStatus {
            name,
            used: false,
            bytes: 0,
            reason: cut(why),
            translated: false,
        },
    }
}

/// A model that requests may name. What one is like is known once it is loaded.
pub(super) fn model_entry(model: &Named) -> Option<ModelEntry<'_>> {
    let facts = model.facts.as_deref();
    Some(ModelEntry {
        name: ModelName::new(&model.name).ok()?,
        architecture: facts.map_or("", |facts| &facts.architecture),
        context_tokens_max: facts.map_or(0, |facts| saturated(facts.context_tokens_max)),
        file_bytes: facts.map_or(0, |facts| facts.file_bytes),
        loaded: model.state == Residence::Loaded,
        default: model.default,
    })
}

pub(super) fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
