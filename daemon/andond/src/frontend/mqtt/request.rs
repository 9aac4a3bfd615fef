//! From a message to a request: what was asked, by whom, and where the answer goes.
//!
//! Every field is checked here or by [`Request::check`]; what is wrong is told with the field's name. A value
//! said in the payload holds over the same value said in a property, because bridges rewrite properties
//! and never payloads; of two deadlines the earlier one holds.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use andon_engine::grammar::{Constraint, Unique, parse_json};
use andon_policy::route::Policy;
use andon_wire::limits::{DEADLINE_MS_MAX, MODEL_NAME_BYTES_MAX};
use andon_wire::topic::{self, Topics};
use andon_wire::{ClientFrame, ClientName, RequestId, TaskName};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::message::{Incoming, Properties};
use super::reply::{Format, ReplyTo};
use crate::config::limits::LimitsConfig;
use crate::fault::{Fault, FaultCode};
use crate::request::{AnswerFormat, Egress, Input, Message, Origin, Priority, Request, Sampling};

/// Most User Properties that are looked at.
const USER_PROPERTIES_MAX: usize = 64;
/// Longest Correlation Data that becomes an id, in bytes: hex doubles it.
const CORRELATION_ID_BYTES_MAX: usize = RequestId::BYTES_MAX / 2;

/// A request that was turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Why.
    pub(super) fault: Fault,
    /// The field at fault, as MQTT clients write it.
    pub(super) field: Option<String>,
}

impl Refusal {
    fn new(field: &str, message: impl Into<String>) -> Refusal {
        Refusal {
            fault: Fault::new(FaultCode::InvalidRequest, message),
            field: Some(field.to_owned()),
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        let field = match (fault.param, fault.code) {
            (Some("max_tokens"), _) => Some("tokens_max"),
            (None, FaultCode::UnknownTask) => Some("task"),
            (None, FaultCode::UnknownModel) => Some("model"),
            (param, _) => param,
        };
        let field = field.map(str::to_owned);
        Refusal { fault, field }
    }
}

/// Where an id comes from; only one the client chose names the request for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdSource {
    /// The payload.
    Payload,
    /// The Correlation Data.
    Correlation,
    /// Made here.
    Made,
}

/// What the topic and the configuration say before the payload is read.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// Topics of the gateway, or of the fleet for a request that came by its topics.
    pub(super) topics: &'a Topics,
    /// Topics of the gateway.
    pub(super) own: &'a Topics,
    /// Who asks.
    pub(super) client: ClientName,
    /// The request's id, where that is settled: it was asked before this process.
    pub(super) id: Option<RequestId>,
    /// The task in the topic.
    pub(super) task: Option<TaskName>,
    /// Response topics that are allowed, with `<base>` and `<client>`.
    pub(super) allowed: &'a [String],
    /// The bounds every front end shares.
    pub(super) limits: &'a LimitsConfig,
    /// Largest payload.
    pub(super) payload_bytes_max: usize,
}

/// A request that may be submitted.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The request.
    pub(super) request: Request,
    /// Where its id comes from.
    pub(super) id_source: IdSource,
}

/// Makes ids for requests that have none.
#[derive(Debug, Default)]
pub(super) struct Ids {
    hasher: RandomState,
    count: u64,
}

impl Ids {
    /// An id that was not made before.
    pub(super) fn make(&mut self) -> RequestId {
        self.count = self.count.wrapping_add(1);
        let text = format!(
            "{:016x}{:04x}",
            self.hasher.hash_one(self.count),
            self.count & 0xffff
        );
        RequestId::new(&text).unwrap_or_else(|_| unreachable!("20 hex digits are an id"))
    }
}

/// Reads a message. The reply address comes back whatever is wrong with the request, since even a refusal
/// wants an address.
pub(super) fn read(
    message: &Incoming,
    place: &Place<'_>,
    ids: &mut Ids,
    now: Instant,
) -> (ReplyTo, Result<Parsed, Refusal>) {
    let (format, format_error) = match format(&message.properties) {
        Ok(format) => (format, None),
        Err(refusal) => (Format::Json, Some(refusal)),
    };
    let mut id = None;
    let outcome = match format_error {
        Some(refusal) => Err(refusal),
        None if message.payload.len() > place.payload_bytes_max => Err(Refusal {
            fault: Fault::new(
                FaultCode::TooLarge,
                format!(
                    "the payload has {} bytes, at most {} are taken",
                    message.payload.len(),
                    place.payload_bytes_max
                ),
            ),
            field: None,
        }),
        None => match format {
            Format::Json => json(&message.payload, place, &mut id),
            Format::Text => text(&message.payload, place),
            Format::Postcard => postcard(&message.payload, place, &mut id),
        },
    };
    let (id, id_source) = match place.id.clone().or(id) {
        Some(id) => (id, IdSource::Payload),
        None => match correlation_id(&message.properties) {
            Some(id) => (id, IdSource::Correlation),
            None => (ids.make(), IdSource::Made),
        },
    };
    let mut reply = ReplyTo {
        topic: response_topic(&message.properties, place, &id),
        correlation: message.properties.correlation.clone(),
        format,
        with_properties: message.properties != Properties::default(),
        client: place.client.as_str().to_owned(),
        task: place.task.as_ref().map(|task| task.as_str().to_owned()),
        id,
        stream: false,
        attempt: 1,
        deadline: None,
    };
    let outcome = outcome
        .and_then(|said| said.with_properties(&message.properties))
        .and_then(|said| said.into_request(place, &reply.id, now))
        .map(|request| Parsed { request, id_source });
    if let Ok(parsed) = &outcome {
        reply.stream = parsed.request.stream;
        reply.deadline = parsed.request.deadline;
    }
    (reply, outcome)
}

/// The id a cancel names: a JSON object, a JSON string or number, or the bare text.
pub(super) fn cancel_id(payload: &[u8]) -> Option<RequestId> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Cancel {
        id: Id,
    }
    let text = std::str::from_utf8(payload).ok()?.trim();
    if let Ok(Cancel { id }) = serde_json::from_str(text) {
        return RequestId::new(&id.into_text()).ok();
    }
    if let Ok(Value::String(id)) = serde_json::from_str(text) {
        return RequestId::new(&id).ok();
    }
    RequestId::new(text).ok()
}

fn format(properties: &Properties) -> Result<Format, Refusal> {
    let Some(content_type) = &properties.content_type else {
        return Ok(Format::Json);
    };
    let bare = content_type.split(';').next().unwrap_or_default().trim();
    for format in [Format::Json, Format::Postcard, Format::Text] {
        if bare.eq_ignore_ascii_case(format.content_type()) {
            return Ok(format);
        }
    }
    Err(Refusal::new(
        "content-type",
        "the content type is none of application/json, application/postcard and text/plain",
    ))
}

fn correlation_id(properties: &Properties) -> Option<RequestId> {
    let data = properties.correlation.as_ref()?;
    if data.is_empty() || data.len() > CORRELATION_ID_BYTES_MAX {
        return None;
    }
    let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
    RequestId::new(&hex).ok()
}

/// The Response Topic if it is allowed, else the client's own.
fn response_topic(properties: &Properties, place: &Place<'_>, id: &RequestId) -> String {
    if let Some(wanted) = &properties.response_topic {
        if is_allowed(wanted, place) {
            return wanted.clone();
        }
        tracing::info!(
            client = place.client.as_str(),
            "the Response Topic of a request is not in mqtt.response-topics; it is answered on the default topic"
        );
    }
    place.topics.response(&place.client, id).as_str().to_owned()
}

fn is_allowed(wanted: &str, place: &Place<'_>) -> bool {
    if topic::check_response(wanted).is_err() {
        return false;
    }
    let base = place.topics.base();
    // An answer must never come back as a request, or pass for a gateway's own word.
    let is_ours = |topics: &Topics| {
        let rest = wanted
            .strip_prefix(topics.base())
            .and_then(|rest| rest.strip_prefix('/'));
        rest.is_some_and(|rest| !rest.starts_with("response/")) || topics.parse(wanted).is_ok()
    };
    if is_ours(place.topics) || is_ours(place.own) {
        return false;
    }
    place.allowed.iter().any(|filter| {
        let filter = filter
            .replace("<base>", base)
            .replace("<client>", place.client.as_str());
        topic::matches(&filter, wanted)
    })
}

/// A JSON id: many controllers count.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(u64),
}

impl Id {
    fn into_text(self) -> String {
        match self {
            Id::Text(text) => text,
            Id::Number(number) => number.to_string(),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonMessage {
    role: String,
    content: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRequest {
    id: Option<Id>,
    messages: Option<Vec<JsonMessage>>,
    prompt: Option<String>,
    input: Option<Unique>,
    schema: Option<Unique>,
    regex: Option<String>,
    model: Option<String>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<u64>,
    tokens_max: Option<u32>,
    stop: Option<Stop>,
    priority: Option<Priority>,
    deadline_ms: Option<u32>,
    egress: Option<Egress>,
    policy: Option<Policy>,
    wait: Option<bool>,
    stream: Option<bool>,
}

/// What a request says, whichever way it was written.
struct Said {
    input: Input,
    model: Option<String>,
    sampling: Sampling,
    tokens_max: Option<u32>,
    stop: Vec<String>,
    format: Option<AnswerFormat>,
    priority: Option<Priority>,
    deadline_ms: Option<u64>,
    egress: Option<Egress>,
    policy: Option<Policy>,
    waits: Option<bool>,
    stream: Option<bool>,
}

impl Said {
    fn only(input: Input) -> Said {
        Said {
            input,
            model: None,
            sampling: Sampling::default(),
            tokens_max: None,
            stop: Vec::new(),
            format: None,
            priority: None,
            deadline_ms: None,
            egress: None,
            policy: None,
            waits: None,
            stream: None,
        }
    }

    fn with_properties(mut self, properties: &Properties) -> Result<Said, Refusal> {
        if let Some(expiry_s) = properties.expiry_s {
            let expiry_ms = u64::from(expiry_s) * 1000;
            self.deadline_ms = Some(
                self.deadline_ms
                    .map_or(expiry_ms, |deadline| deadline.min(expiry_ms)),
            );
        }
        for (key, value) in properties.user.iter().take(USER_PROPERTIES_MAX) {
            match key.as_str() {
                "priority" => {
                    let said = word(value).ok_or_else(|| {
                        Refusal::new(
                            "priority",
                            "the priority is none of alarm, interactive and batch",
                        )
                    })?;
                    self.priority = self.priority.or(Some(said));
                }
                "egress" => {
                    let said = word(value)
                        .ok_or_else(|| Refusal::new("egress", "egress is neither local nor any"))?;
                    self.egress = self.egress.or(Some(said));
                }
                "policy" => {
                    let said = word(value).ok_or_else(|| {
                        let message = "the policy is none of local, auto and cloud";
                        Refusal::new("policy", message)
                    })?;
                    self.policy = self.policy.or(Some(said));
                }
                "wait" => {
                    let said = truth("wait", value)?;
                    self.waits = self.waits.or(Some(said));
                }
                "stream" => {
                    let said = truth("stream", value)?;
                    self.stream = self.stream.or(Some(said));
                }
                "model" => self.model = self.model.or_else(|| Some(value.clone())),
                // Bridges and tracing add properties of their own.
                _ => {}
            }
        }
        Ok(self)
    }

    fn into_request(
        self,
        place: &Place<'_>,
        id: &RequestId,
        now: Instant,
    ) -> Result<Request, Refusal> {
        if let Some(model) = &self.model
            && (model.is_empty()
                || model.len() > MODEL_NAME_BYTES_MAX
                || model.contains(char::is_control))
        {
            let message = format!(
                "a model's name is 1 to {MODEL_NAME_BYTES_MAX} bytes without control characters"
            );
            return Err(Refusal::new("model", message));
        }
        let deadline = match self.deadline_ms {
            None => None,
            Some(ms) => now.checked_add(Duration::from_millis(ms)),
        };
        let mut request =
            Request::new(id.as_str(), place.client.as_str(), Origin::Mqtt, self.input);
        request.model = self.model;
        request.sampling = self.sampling;
        request.tokens_max = self
            .tokens_max
            .map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX));
        request.stop = self.stop;
        request.format = self.format;
        request.priority = self.priority;
        request.deadline = deadline;
        request.egress = self.egress;
        request.policy = self.policy;
        request.waits = self.waits;
        request.stream = self.stream.unwrap_or(false);
        request.check(place.limits)?;
        Ok(request)
    }
}

/// A property that is true or false.
fn truth(field: &'static str, value: &str) -> Result<bool, Refusal> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Refusal::new(
            field,
            format!("{field} is neither true nor false"),
        )),
    }
}

/// A word of a closed set, as serde knows it.
fn word<T: serde::de::DeserializeOwned>(word: &str) -> Option<T> {
    let deserializer = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(word);
    T::deserialize(deserializer).ok()
}

fn json(payload: &Bytes, place: &Place<'_>, id: &mut Option<RequestId>) -> Result<Said, Refusal> {
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let parsed: Result<JsonRequest, _> = serde_path_to_error::deserialize(&mut deserializer);
    let parsed = parsed.map_err(|error| {
        // The refusal should reach whoever waits for this id.
        *id = salvaged_id(payload);
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data => Refusal {
                fault: Fault::new(FaultCode::InvalidRequest, shortened(&inner.to_string())),
                field: unknown_field(&inner.to_string())
                    .or_else(|| (path != ".").then(|| path.clone())),
            },
            _ => Refusal {
                fault: Fault::new(
                    FaultCode::InvalidRequest,
                    format!("the payload is not JSON: {}", shortened(&inner.to_string())),
                ),
                field: None,
            },
        }
    })?;
    if let Err(error) = deserializer.end() {
        *id = parsed
            .id
            .and_then(|id| RequestId::new(&id.into_text()).ok());
        let message = format!("the payload goes on after the request: {error}");
        return Err(Refusal {
            fault: Fault::new(FaultCode::InvalidRequest, message),
            field: None,
        });
    }
    if let Some(said) = parsed.id {
        let text = said.into_text();
        *id = Some(
            RequestId::new(&text)
                .map_err(|error| Refusal::new("id", format!("the id is unusable: {error}")))?,
        );
    }
    let input = match (parsed.messages, parsed.prompt, parsed.input) {
        (Some(messages), None, None) => Input::Messages(
            messages
                .into_iter()
                .map(|message| Message::new(message.role, message.content))
                .collect(),
        ),
        (None, Some(prompt), None) => Input::Prompt(prompt),
        (None, None, Some(Unique(input))) => match &place.task {
            Some(task) => Input::Task {
                name: task.as_str().to_owned(),
                input,
            },
            None => {
                return Err(Refusal::new(
                    "input",
                    "input belongs to a task: publish to <base>/request/<client>/<task>",
                ));
            }
        },
        (None, None, None) => {
            let field = if place.task.is_some() {
                "input"
            } else {
                "messages"
            };
            return Err(Refusal::new(
                field,
                format!("the request asks nothing: {field} is missing"),
            ));
        }
        _ => {
            return Err(Refusal::new(
                "messages",
                "messages, prompt and input exclude each other",
            ));
        }
    };
    if place.task.is_some() && !matches!(input, Input::Task { .. }) {
        return Err(Refusal::new(
            "input",
            "a task is asked by its input, not by messages or a prompt",
        ));
    }
    let format = match (parsed.schema, parsed.regex) {
        (None, None) => None,
        (Some(Unique(schema)), None) => Some(AnswerFormat {
            constraint: Constraint::JsonSchema(schema),
            param: "schema",
        }),
        (None, Some(regex)) => Some(AnswerFormat {
            constraint: Constraint::Regex(regex),
            param: "regex",
        }),
        (Some(_), Some(_)) => {
            return Err(Refusal::new("regex", "schema and regex exclude each other"));
        }
    };
    if let Some(deadline) = parsed.deadline_ms
        && !(1..=DEADLINE_MS_MAX).contains(&deadline)
    {
        return Err(Refusal::new(
            "deadline_ms",
            format!("the deadline must be 1 to {DEADLINE_MS_MAX} ms"),
        ));
    }
    Ok(Said {
        model: parsed.model,
        sampling: Sampling {
            temperature: parsed.temperature,
            top_p: parsed.top_p,
            top_k: parsed.top_k,
            min_p: parsed.min_p,
            typical_p: None,
            repeat_penalty: parsed.repeat_penalty,
            repeat_last_n: None,
            presence_penalty: parsed.presence_penalty,
            frequency_penalty: parsed.frequency_penalty,
            seed: parsed.seed,
        },
        tokens_max: parsed.tokens_max,
        stop: match parsed.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Many(stops)) => stops,
        },
        format,
        priority: parsed.priority,
        deadline_ms: parsed.deadline_ms.map(u64::from),
        egress: parsed.egress,
        policy: parsed.policy,
        waits: parsed.wait,
        stream: parsed.stream,
        ..Said::only(input)
    })
}

fn text(payload: &Bytes, place: &Place<'_>) -> Result<Said, Refusal> {
    if place.task.is_some() {
        return Err(Refusal::new(
            "content-type",
            "a task takes its input as application/json",
        ));
    }
    let text = std::str::from_utf8(payload).map_err(|error| {
        Refusal::new(
            "payload",
            format!("the text is not UTF-8 (byte {})", error.valid_up_to()),
        )
    })?;
    if text.trim().is_empty() {
        return Err(Refusal::new("payload", "the text is empty"));
    }
    Ok(Said::only(Input::Messages(vec![Message::new(
        "user",
        text.to_owned(),
    )])))
}

fn postcard(
    payload: &Bytes,
    place: &Place<'_>,
    id: &mut Option<RequestId>,
) -> Result<Said, Refusal> {
    let malformed = |what: Cow<'_, str>| Refusal {
        fault: Fault::new(FaultCode::InvalidRequest, what),
        field: None,
    };
    let frame =
        ClientFrame::decode(payload).map_err(|error| malformed(error.to_string().into()))?;
    let ClientFrame::Ask(ask) = frame else {
        return Err(malformed("the frame is not a request".into()));
    };
    *id = Some(ask.id.clone());
    ask.check()
        .map_err(|error| malformed(error.to_string().into()))?;
    let input = match ask.input {
        andon_wire::Input::Messages(messages) => Input::Messages(
            messages
                .iter()
                .map(|message| {
                    Message::new(message.role.as_str().to_owned(), message.content.to_owned())
                })
                .collect(),
        ),
        andon_wire::Input::Prompt(prompt) => Input::Prompt(prompt.to_owned()),
        andon_wire::Input::Task { name, input_json } => {
            let input = parse_json(input_json.as_bytes()).map_err(|error| {
                Refusal::new(
                    "input",
                    format!("the input is not JSON: {}", shortened(&error.to_string())),
                )
            })?;
            Input::Task {
                name: name.as_str().to_owned(),
                input,
            }
        }
    };
    let asked = match &input {
        Input::Task { name, .. } => Some(name.as_str()),
        _ => None,
    };
    if let Some(task) = &place.task
        && asked != Some(task.as_str())
    {
        return Err(Refusal::new(
            "task",
            "the topic names another task than the request",
        ));
    }
    Ok(Said {
        model: ask.model.map(|model| model.as_str().to_owned()),
        sampling: Sampling {
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
        },
        tokens_max: ask.tokens_max,
        stop: ask.stop.iter().map(|&stop| stop.to_owned()).collect(),
        priority: ask.priority.map(|priority| match priority {
            andon_wire::Priority::Alarm => Priority::Alarm,
            andon_wire::Priority::Interactive => Priority::Interactive,
            andon_wire::Priority::Batch => Priority::Batch,
        }),
        deadline_ms: ask.deadline_ms.map(u64::from),
        egress: ask.egress.map(|egress| match egress {
            andon_wire::Egress::Local => Egress::Local,
            andon_wire::Egress::Any => Egress::Any,
        }),
        // A field that a frame cannot leave out is no word against a property.
        stream: ask.stream.then_some(true),
        ..Said::only(input)
    })
}

/// The id of a payload that is JSON, but not a request.
fn salvaged_id(payload: &[u8]) -> Option<RequestId> {
    #[derive(Deserialize)]
    struct OnlyId {
        id: Id,
    }
    let only: OnlyId = serde_json::from_slice(payload).ok()?;
    RequestId::new(&only.id.into_text()).ok()
}

/// The name in serde's sentence about a field that it does not know.
fn unknown_field(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    rest.split_once('`').map(|(name, _)| shortened(name))
}

/// A message that may quote what was sent, cut to a length that is fit to send back.
fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 300;
    text.chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
