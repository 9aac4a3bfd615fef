//! A request in owned form, as every front end hands it to the worker.
//!
//! A `Request` says what the client said and nothing more: `None` means "not said", so that a task's
//! and then the daemon's defaults can fill the gap in one place. [`Request::check`] holds the bounds
//! every front end shares; it must pass before a request is submitted, and the worker calls it again.

use std::sync::Arc;
use std::time::Instant;

use andon_engine::grammar::Constraint;
use andon_policy::route::{Policy, Route};
use andon_wire::limits;

use crate::access::Rights;
use crate::config::Config;
use crate::config::limits::LimitsConfig;
use crate::fault::{Fault, FaultCode};

/// Longest request id, in bytes.
pub const ID_BYTES_MAX: usize = limits::ID_BYTES_MAX;
/// Longest client, role and task name, in bytes.
pub const NAME_BYTES_MAX: usize = limits::NAME_BYTES_MAX;
/// Longest client name, in bytes.
pub const CLIENT_BYTES_MAX: usize = NAME_BYTES_MAX;
/// Longest model name, in bytes.
pub const MODEL_NAME_BYTES_MAX: usize = limits::MODEL_NAME_BYTES_MAX;
/// Most alternatives reported for a token.
pub const LOGPROBS_MAX: u8 = 20;
/// Most answers to one question.
pub const CHOICES_MAX: u32 = 16;
/// Most tokens with a bias of their own.
pub const LOGIT_BIAS_COUNT_MAX: usize = andon_engine::sample::LOGIT_BIAS_COUNT_MAX;
/// Most variables for a chat template.
pub const TEMPLATE_VARIABLES_MAX: usize = 32;
/// Most tools that a prompt may tell of, and most calls of them in one message.
pub const TOOLS_MAX: usize = andon_engine::grammar::limits::TOOLS_MAX;
/// Most values, the inner ones counted, in the tools, the schema and the variables of a request and the calls of its
/// messages: what waits keeps them as a tree, whose nodes are many times larger than their text can be.
pub const VALUES_MAX: usize = 8192;
/// Most other files beside a gap.
pub const GAP_FILES_MAX: usize = 64;
/// Longest stop string, in bytes.
pub const STOP_BYTES_MAX: usize = limits::STOP_BYTES_MAX;

/// Most inputs of one request for embeddings, as with OpenAI.
pub const EMBEDDING_INPUTS_MAX: usize = 2048;
/// Most tokens of one request for embeddings, as with OpenAI: a few minutes of a small model.
pub const EMBEDDING_TOKENS_MAX: usize = 300_000;

/// The front end a request came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// HTTP over the Unix socket (or the loopback listener).
    Http,
    /// The compact socket.
    Wire,
    /// MQTT.
    Mqtt,
    /// The daemon itself (the self-test at start).
    Internal,
}

impl Origin {
    /// The name used in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Origin::Http => "http",
            Origin::Wire => "wire",
            Origin::Mqtt => "mqtt",
            Origin::Internal => "internal",
        }
    }
}

/// Priority class; declared from least to most urgent, so that `Ord` agrees.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// May wait.
    Batch,
    /// A person or a program is waiting. The default.
    Interactive,
    /// A machine is standing still.
    Alarm,
}

impl Priority {
    /// The word for it in requests and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Priority::Batch => "batch",
            Priority::Interactive => "interactive",
            Priority::Alarm => "alarm",
        }
    }
}

impl From<Priority> for andon_wire::Priority {
    fn from(priority: Priority) -> andon_wire::Priority {
        match priority {
            Priority::Batch => andon_wire::Priority::Batch,
            Priority::Interactive => andon_wire::Priority::Interactive,
            Priority::Alarm => andon_wire::Priority::Alarm,
        }
    }
}

/// How far a request may travel; declared from near to far, so that `Ord` agrees.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Egress {
    /// Never leaves the gateway.
    Local,
    /// May be answered upstream.
    Any,
}

/// What a worker's answer to a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// It is the answer.
    #[default]
    Answer,
    /// It is the answer, in place of one from upstream. That there is such a request was told before.
    Fallback,
    /// It may be set aside for another's; what becomes of it is told elsewhere.
    Draft,
}

impl Part {
    /// Where an answer of this part was made.
    pub fn route(self) -> Route {
        match self {
            Part::Answer | Part::Draft => Route::Local,
            Part::Fallback => Route::LocalFallback,
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what the model's template knows.
    pub role: String,
    /// The text; of one with tool calls, there may be none.
    pub content: String,
    /// What else a template looks at: `tool_calls`, `tool_call_id`, `name`.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A message with nothing but a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
            extra: serde_json::Map::new(),
        }
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        let extra = self.extra.iter();
        let extra = extra.map(|(name, value)| name.len() + value.to_string().len());
        extra.fold(self.role.len() + self.content.len(), usize::saturating_add)
    }
}

/// What a vector is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingInput {
    /// A text.
    Text(String),
    /// Tokens, taken as they are.
    Tokens(Vec<u32>),
}

/// A gap that is to be filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// What stands before it.
    pub before: String,
    /// What stands behind it.
    pub after: String,
    /// Other files that may help: name and text.
    pub files: Vec<(String, String)>,
    /// What the client calls the text before and the text behind.
    pub names: [&'static str; 2],
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Vectors, one of each input.
    Embeddings {
        /// The inputs.
        inputs: Vec<EmbeddingInput>,
        /// Elements of a vector that are wanted; `None` is all.
        dimensions: Option<usize>,
    },
    /// A conversation, rendered by the model's chat template.
    Messages(Vec<Message>),
    /// Text that is continued as it stands.
    Prompt(String),
    /// Tokens that are continued as they stand.
    Tokens(Vec<u32>),
    /// What fills a gap.
    Gap(Gap),
    /// A configured task and its input fields.
    Task {
        /// The `<name>` of `[task.<name>]`.
        name: String,
        /// The fields its instructions refer to.
        input: serde_json::Value,
    },
}

/// Sampling as the client asked for it; `None` leaves a value to the task or the default.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Probability mass kept, 0 to 1.
    pub top_p: Option<f32>,
    /// Tokens kept, 0 is all.
    pub top_k: Option<u32>,
    /// Least probability relative to the most probable token, 0 to 1.
    pub min_p: Option<f32>,
    /// Probability mass of the tokens of the most expected surprise that are kept, 0 to 1.
    pub typical_p: Option<f32>,
    /// Multiplicative penalty of tokens seen lately, 1 is none.
    pub repeat_penalty: Option<f32>,
    /// How many of the last tokens `repeat_penalty` looks at.
    pub repeat_last_n: Option<u32>,
    /// Additive penalty of tokens present in the answer.
    pub presence_penalty: Option<f32>,
    /// Additive penalty for each occurrence in the answer.
    pub frequency_penalty: Option<f32>,
    /// Makes draws repeatable.
    pub seed: Option<u64>,
}

/// Whether an answer may call tools.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Calling {
    /// It calls none.
    #[default]
    Never,
    /// It may.
    Maybe,
    /// It calls one at least, and says nothing else.
    Must,
}

/// Which tools an answer may call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ToolChoice {
    /// Whether it may call any.
    pub calling: Calling,
    /// The names of those that it may call; `None` is all that the prompt tells of.
    pub only: Option<Vec<String>>,
    /// Whether it calls one at most.
    pub single: bool,
}

impl ToolChoice {
    /// Checks that the tools which may be called are among those that the prompt tells of.
    ///
    /// # Errors
    /// The name of one that is not, or that there are none though one is to be called.
    pub fn check(&self, tools: &[serde_json::Value]) -> Result<(), Fault> {
        let is_there = |name: &String| tools.iter().any(|tool| tool_name(tool) == Some(name));
        if let Some(name) = self.only.iter().flatten().find(|name| !is_there(name)) {
            let name: String = name.chars().take(64).collect();
            let message = format!("there is no tool {name:?}");
            return Err(Fault::invalid("tool_choice", message));
        }
        if self.calling == Calling::Must && tools.is_empty() {
            let message = "there are no tools to call";
            return Err(Fault::invalid("tool_choice", message));
        }
        Ok(())
    }
}

/// The name of a tool.
pub fn tool_name(tool: &serde_json::Value) -> Option<&str> {
    tool.get("function")?.get("name")?.as_str()
}

/// Checks how many tools there are.
///
/// # Errors
/// If they are too many.
pub fn check_tool_count(count: usize) -> Result<(), Fault> {
    if count > TOOLS_MAX {
        let message = format!("{count} tools, at most {TOOLS_MAX} are taken");
        return Err(Fault::invalid("tools", message));
    }
    Ok(())
}

/// What an answer is held to.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerFormat {
    /// What its text must be.
    pub constraint: Constraint,
    /// The field that says so.
    pub param: &'static str,
}

/// A request, complete and owned.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The client's name for the request; unique among the client's requests in flight.
    pub id: String,
    /// Who asks, as the front end knows it (for MQTT the topic's `<client>`; for the
    /// Unix sockets the calling user, `uid-1000`).
    pub client: String,
    /// The way in.
    pub origin: Origin,
    /// The model asked for; `None` is the one that is served.
    pub model: Option<String>,
    /// The question.
    pub input: Input,
    /// Sampling asked for.
    pub sampling: Sampling,
    /// The seed if neither the request nor its task says one, so that another attempt draws the same; `None` is one that
    /// nobody knows before.
    pub seed_unsaid: Option<u64>,
    /// What is added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Answers to give, each drawn for itself; at least 1.
    pub choices: u32,
    /// Tools that the prompt tells of, each as OpenAI describes it.
    pub tools: Vec<serde_json::Value>,
    /// Which of them the answer may call.
    pub tool_choice: ToolChoice,
    /// Variables for the model's chat template.
    pub template_variables: serde_json::Map<String, serde_json::Value>,
    /// The shape of the answer; `None` is the task's, else any text.
    pub format: Option<AnswerFormat>,
    /// What the client takes the answer to be, to guess from; the answer is the same with any or none.
    pub prediction: Option<String>,
    /// Goes on where the model would end its answer.
    pub ignore_end: bool,
    /// Most tokens of the answer; `None` is the task's or the daemon's default.
    pub tokens_max: Option<usize>,
    /// Texts that end the answer, not part of it.
    pub stop: Vec<String>,
    /// Report log-probabilities with this many alternatives a token.
    pub logprobs: Option<u8>,
    /// Priority class; `None` is the task's, else interactive.
    pub priority: Option<Priority>,
    /// The answer is worthless after this instant.
    pub deadline: Option<Instant>,
    /// How far it may travel; `None` is the task's, else local, and no task's `local` is widened.
    pub egress: Option<Egress>,
    /// Who is to answer; `None` is as its task, its caller's rule or the daemon says.
    pub policy: Option<Policy>,
    /// Whether it may wait until upstream can be had; `None` is as its task says, else not.
    pub waits: Option<bool>,
    /// What the worker's answer is for.
    pub part: Part,
    /// Which attempt at an answer it is, from 1: more than that where it was kept and begun before.
    pub attempt: u16,
    /// Whether the client wants chunks. The worker sends them either way; front ends may gather.
    pub stream: bool,
    /// What its caller may ask for: every right until it is handed over, which settles that.
    pub rights: Arc<Rights>,
}

impl Request {
    /// A request with nothing but an input said.
    pub fn new(
        id: impl Into<String>,
        client: impl Into<String>,
        origin: Origin,
        input: Input,
    ) -> Request {
        Request {
            id: id.into(),
            client: client.into(),
            origin,
            model: None,
            input,
            sampling: Sampling::default(),
            seed_unsaid: None,
            logit_bias: Vec::new(),
            choices: 1,
            tools: Vec::new(),
            tool_choice: ToolChoice::default(),
            template_variables: serde_json::Map::new(),
            format: None,
            prediction: None,
            ignore_end: false,
            tokens_max: None,
            stop: Vec::new(),
            logprobs: None,
            priority: None,
            deadline: None,
            egress: None,
            policy: None,
            waits: None,
            part: Part::Answer,
            attempt: 1,
            stream: false,
            rights: Arc::default(),
        }
    }

    /// How far it may travel: as it or its task says, the narrower of the two where both do, and nowhere where neither does;
    /// and never further than its caller may have it go.
    pub fn travels(&self, by_task: Option<Egress>) -> Egress {
        let said = self.egress.into_iter().chain(by_task).min();
        said.unwrap_or(Egress::Local).min(self.rights.egress)
    }

    /// Bytes of everything in it that can be long.
    pub fn bytes(&self) -> usize {
        let json = |value: &serde_json::Value| value.to_string().len();
        let input = match &self.input {
            Input::Messages(messages) => messages
                .iter()
                .map(Message::bytes)
                .fold(0, usize::saturating_add),
            Input::Prompt(prompt) => prompt.len(),
            Input::Tokens(tokens) => size_of_val(&**tokens),
            Input::Gap(gap) => gap
                .files
                .iter()
                .map(|(name, text)| name.len().saturating_add(text.len()))
                .fold(gap.before.len() + gap.after.len(), usize::saturating_add),
            Input::Task { input, .. } => json(input),
            Input::Embeddings { inputs, .. } => inputs
                .iter()
                .map(|input| match input {
                    EmbeddingInput::Text(text) => text.len(),
                    EmbeddingInput::Tokens(tokens) => size_of_val(&**tokens),
                })
                .fold(0, usize::saturating_add),
        };
        let format = self
            .format
            .as_ref()
            .map_or(0, |format| match &format.constraint {
                Constraint::JsonSchema(schema) => json(schema),
                Constraint::Regex(text) | Constraint::Lark(text) | Constraint::Gbnf(text) => {
                    text.len()
                }
                // Those are of its tools.
                Constraint::JsonObject | Constraint::Calls(_) => 0,
            });
        let variables = self.template_variables.iter();
        let variables = variables.map(|(name, value)| name.len().saturating_add(json(value)));
        [
            input,
            format,
            self.prediction.as_ref().map_or(0, String::len),
            size_of_val(&*self.logit_bias),
        ]
        .into_iter()
        .chain(self.tools.iter().map(json))
        .chain(self.stop.iter().map(String::len))
        .chain(variables)
        .fold(0, usize::saturating_add)
    }

    /// Checks every bound the front ends share.
    ///
    /// # Errors
    /// The first bound that is broken, with the field's OpenAI name where it has one.
    pub fn check(&self, limits: &LimitsConfig) -> Result<(), Fault> {
        check_name("id", &self.id, ID_BYTES_MAX)?;
        check_name("client", &self.client, CLIENT_BYTES_MAX)?;
        match &self.input {
            Input::Messages(messages) => check_messages(messages, limits)?,
            Input::Prompt(prompt) => {
                if prompt.is_empty() {
                    return Err(Fault::invalid("prompt", "the prompt is empty"));
                }
                check_text("prompt", prompt.len(), limits)?;
            }
            Input::Tokens(tokens) => {
                if tokens.is_empty() {
                    return Err(Fault::invalid("prompt", "the prompt is empty"));
                }
                check_text("prompt", tokens.len(), limits)?;
            }
            Input::Gap(gap) => check_gap(gap, limits)?,
            Input::Task { name, .. } => check_name("task", name, NAME_BYTES_MAX)?,
            Input::Embeddings { inputs, dimensions } => {
                check_inputs(inputs, limits)?;
                if *dimensions == Some(0) {
                    return Err(Fault::invalid("dimensions", "must be at least 1"));
                }
            }
        }
        if !(1..=CHOICES_MAX).contains(&self.choices) {
            return Err(Fault::invalid(
                "n",
                format!("must be between 1 and {CHOICES_MAX}"),
            ));
        }
        if self.logit_bias.len() > LOGIT_BIAS_COUNT_MAX {
            let message = format!("at most {LOGIT_BIAS_COUNT_MAX} tokens may have a bias");
            return Err(Fault::invalid("logit_bias", message));
        }
        check_tool_count(self.tools.len())?;
        self.tool_choice.check(&self.tools)?;
        let tools = self.tools.iter().map(|tool| tool.to_string().len());
        check_text("tools", tools.fold(0, usize::saturating_add), limits)?;
        let prediction = self.prediction.as_ref();
        check_text("prediction", prediction.map_or(0, String::len), limits)?;
        if self.template_variables.len() > TEMPLATE_VARIABLES_MAX {
            let message = format!("at most {TEMPLATE_VARIABLES_MAX} variables are taken");
            return Err(Fault::invalid("chat_template_kwargs", message));
        }
        self.check_values()?;
        if self.stop.len() > limits.stop_max {
            let message = format!(
                "{} stop strings, at most {} are taken",
                self.stop.len(),
                limits.stop_max
            );
            return Err(Fault::invalid("stop", message));
        }
        for stop in &self.stop {
            if stop.is_empty() || stop.len() > STOP_BYTES_MAX {
                let message = format!("a stop string is 1 to {STOP_BYTES_MAX} bytes long");
                return Err(Fault::invalid("stop", message));
            }
        }
        if self.logprobs.is_some_and(|count| count > LOGPROBS_MAX) {
            let message = format!("at most {LOGPROBS_MAX} alternatives a token are reported");
            return Err(Fault::invalid("top_logprobs", message));
        }
        if self.tokens_max == Some(0) {
            return Err(Fault::invalid("max_tokens", "must be at least 1"));
        }
        self.sampling.check()
    }
}

impl Request {
    /// The name of the model that a configuration sends this to: its own word, else its task's, else that of all.
    pub fn model_by(&self, config: &Config) -> String {
        let by_task = || match &self.input {
            Input::Task { name, .. } => config.task.get(name)?.model.clone(),
            _ => None,
        };
        let named = self.model.clone().or_else(by_task);
        named.unwrap_or_else(|| config.model.name())
    }

    /// The class that this has by its task, if the task is one of the configuration. Of those that come with a model the
    /// worker knows.
    pub fn class_by_task(&self, config: &Config) -> Option<Priority> {
        match &self.input {
            Input::Task { name, .. } => config.task.get(name)?.priority,
            _ => None,
        }
    }

    fn check_values(&self) -> Result<(), Fault> {
        let mut left = VALUES_MAX;
        let messages = match &self.input {
            Input::Messages(messages) => messages.as_slice(),
            _ => &[],
        };
        let extras = messages.iter().flat_map(|message| message.extra.values());
        let extras = extras.map(|value| ("messages", value));
        let tools = self.tools.iter().map(|value| ("tools", value));
        let variables = self.template_variables.values();
        let variables = variables.map(|value| ("chat_template_kwargs", value));
        let schema = self.format.iter().filter_map(|format| {
            let Constraint::JsonSchema(schema) = &format.constraint else {
                return None;
            };
            Some((format.param, schema))
        });
        for (param, value) in extras.chain(tools).chain(variables).chain(schema) {
            if !counts(value, &mut left) {
                let message = format!(
                    "tools, their calls, schemas and template variables have more than {VALUES_MAX} values"
                );
                return Err(Fault::invalid(param, message));
            }
        }
        Ok(())
    }
}

/// Counts a value and those in it down from `left`; false if there are more. Readers of JSON bound the depth.
fn counts(value: &serde_json::Value, left: &mut usize) -> bool {
    let Some(fewer) = left.checked_sub(1) else {
        return false;
    };
    *left = fewer;
    match value {
        serde_json::Value::Array(values) => values.iter().all(|value| counts(value, left)),
        serde_json::Value::Object(values) => values.values().all(|value| counts(value, left)),
        _ => true,
    }
}

impl Sampling {
    fn check(&self) -> Result<(), Fault> {
        let within = |param, value: Option<f32>, low: f32, high: f32| match value {
            Some(value) if !(low..=high).contains(&value) => Err(Fault::invalid(
                param,
                format!("must be between {low} and {high}"),
            )),
            _ => Ok(()),
        };
        within("temperature", self.temperature, 0.0, 2.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("typical_p", self.typical_p, 0.0, 1.0)?;
        within("repeat_penalty", self.repeat_penalty, 0.01, 10.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
    }
}

fn check_messages(messages: &[Message], limits: &LimitsConfig) -> Result<(), Fault> {
    if messages.is_empty() {
        return Err(Fault::invalid("messages", "there is no message"));
    }
    if messages.len() > limits.messages_max {
        let message = format!(
            "{} messages, at most {} are taken",
            messages.len(),
            limits.messages_max
        );
        return Err(Fault::invalid("messages", message));
    }
    let mut bytes = 0usize;
    for message in messages {
        if message.role.is_empty() || message.role.len() > NAME_BYTES_MAX {
            return Err(Fault::invalid(
                "messages",
                format!("a role is 1 to {NAME_BYTES_MAX} bytes long"),
            ));
        }
        bytes = bytes.saturating_add(message.bytes());
    }
    check_text("messages", bytes, limits)
}

fn check_gap(gap: &Gap, limits: &LimitsConfig) -> Result<(), Fault> {
    if gap.files.len() > GAP_FILES_MAX {
        let message = format!(
            "{} files, at most {GAP_FILES_MAX} are taken",
            gap.files.len()
        );
        return Err(Fault::invalid("input_extra", message));
    }
    let files = gap.files.iter().map(|(name, text)| name.len() + text.len());
    let bytes = files.fold(gap.before.len() + gap.after.len(), usize::saturating_add);
    check_text(gap.names[0], bytes, limits)
}

fn check_inputs(inputs: &[EmbeddingInput], limits: &LimitsConfig) -> Result<(), Fault> {
    if inputs.is_empty() {
        return Err(Fault::invalid("input", "there is no input"));
    }
    if inputs.len() > EMBEDDING_INPUTS_MAX {
        let message = format!(
            "{} inputs, at most {EMBEDDING_INPUTS_MAX} are taken",
            inputs.len()
        );
        return Err(Fault::invalid("input", message));
    }
    let (mut bytes, mut tokens) = (0usize, 0usize);
    for (index, input) in inputs.iter().enumerate() {
        let empty = match input {
            EmbeddingInput::Text(text) => {
                bytes = bytes.saturating_add(text.len());
                text.is_empty()
            }
            EmbeddingInput::Tokens(ids) => {
                tokens = tokens.saturating_add(ids.len());
                ids.is_empty()
            }
        };
        if empty {
            return Err(Fault::invalid("input", format!("input {index} is empty")));
        }
    }
    check_text("input", bytes, limits)?;
    check_embedding_tokens(tokens)
}

/// Holds the tokens of a request for embeddings to their bound.
///
/// # Errors
/// If there are more.
pub fn check_embedding_tokens(tokens: usize) -> Result<(), Fault> {
    if tokens > EMBEDDING_TOKENS_MAX {
        let message =
            format!("{tokens} tokens in all inputs, at most {EMBEDDING_TOKENS_MAX} are taken");
        return Err(Fault {
            param: Some("input"),
            ..Fault::new(FaultCode::TooLarge, message)
        });
    }
    Ok(())
}

fn check_text(param: &'static str, bytes: usize, limits: &LimitsConfig) -> Result<(), Fault> {
    if bytes > limits.body_bytes_max {
        let message = format!(
            "{bytes} bytes of text, at most {} are taken",
            limits.body_bytes_max
        );
        return Err(Fault {
            param: Some(param),
            ..Fault::new(FaultCode::TooLarge, message)
        });
    }
    Ok(())
}

fn check_name(param: &'static str, name: &str, bytes_max: usize) -> Result<(), Fault> {
    if name.is_empty() || name.len() > bytes_max {
        return Err(Fault::invalid(
            param,
            format!("must be 1 to {bytes_max} bytes long"),
        ));
    }
    if name.chars().any(char::is_control) {
        return Err(Fault::invalid(param, "holds a control character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(input: Input) -> Request {
        Request::new("1", "uid-0", Origin::Internal, input)
    }

    fn prompt() -> Request {
        request(Input::Prompt("hello".to_owned()))
    }

    fn param(request: &Request) -> &'static str {
        let fault = request
            .check(&LimitsConfig::default())
            .expect_err("a broken bound");
        fault.param.expect("a field is named")
    }

    #[test]
    fn whatever_is_long_in_a_request_is_counted() {
        let text = || "x".repeat(1000);
        let task = |input| Input::Task {
            name: "explain".to_owned(),
            input,
        };
        let schema = Constraint::JsonSchema(serde_json::json!({"title": text()}));
        let mut all = vec![
            request(Input::Messages(vec![Message::new("user", text())])),
            request(Input::Prompt(text())),
            request(Input::Tokens(vec![0; 250])),
            request(task(serde_json::json!({"unused": text()}))),
        ];
        let changes: [fn(&mut Request, String); 4] = [
            |request, text| request.prediction = Some(text),
            |request, text| request.stop = vec![text],
            |request, text| request.tools = vec![serde_json::json!({ "description": text })],
            |request, text| {
                let variable = ("x".to_owned(), text.into());
                request.template_variables.extend([variable]);
            },
        ];
        for change in changes {
            let mut changed = request(Input::Prompt(String::new()));
            change(&mut changed, text());
            all.push(changed);
        }
        all.push(Request {
            format: Some(AnswerFormat {
                constraint: schema,
                param: "schema",
            }),
            ..request(Input::Prompt(String::new()))
        });
        for request in all {
            let bytes = request.bytes();
            assert!((1000..1100).contains(&bytes), "{bytes}: {request:?}");
        }
    }

    #[test]
    fn a_plain_request_keeps_every_bound() {
        assert_eq!(prompt().check(&LimitsConfig::default()), Ok(()));
    }

    #[test]
    fn every_bound_is_held_and_its_field_named() {
        let limits = LimitsConfig::default();
        let message = |content: &str| Message::new("user", content.to_owned());
        assert_eq!(param(&request(Input::Messages(Vec::new()))), "messages");
        let many = vec![message("x"); limits.messages_max + 1];
        assert_eq!(param(&request(Input::Messages(many))), "messages");
        let long = vec![message(&"x".repeat(limits.body_bytes_max)), message("x")];
        assert_eq!(param(&request(Input::Messages(long))), "messages");
        assert_eq!(param(&request(Input::Prompt(String::new()))), "prompt");
        let mut calls = message("x");
        let many = serde_json::json!(vec![0; VALUES_MAX]);
        calls.extra.insert("tool_calls".to_owned(), many);
        assert_eq!(param(&request(Input::Messages(vec![calls]))), "messages");
        let mut shaped = request(Input::Prompt("x".to_owned()));
        shaped.format = Some(AnswerFormat {
            constraint: Constraint::JsonSchema(
                serde_json::json!({ "examples": vec![0; VALUES_MAX] }),
            ),
            param: "response_format",
        });
        assert_eq!(param(&shaped), "response_format");
        let gap = |files: usize, bytes: usize| {
            request(Input::Gap(Gap {
                before: "x".repeat(bytes),
                after: "x".to_owned(),
                files: vec![(String::new(), String::new()); files],
                names: ["prompt", "suffix"],
            }))
        };
        assert_eq!(gap(GAP_FILES_MAX, 1).check(&limits), Ok(()));
        assert_eq!(param(&gap(GAP_FILES_MAX + 1, 1)), "input_extra");
        assert_eq!(param(&gap(0, limits.body_bytes_max)), "prompt");
        let embeddings = |inputs: Vec<EmbeddingInput>, dimensions| {
            request(Input::Embeddings { inputs, dimensions })
        };
        let text = |text: &str| EmbeddingInput::Text(text.to_owned());
        let one = vec![text("x")];
        assert_eq!(embeddings(one.clone(), Some(1)).check(&limits), Ok(()));
        assert_eq!(param(&embeddings(one, Some(0))), "dimensions");
        for inputs in [
            vec![],
            vec![text("")],
            vec![EmbeddingInput::Tokens(vec![])],
            vec![text("x"); EMBEDDING_INPUTS_MAX + 1],
            vec![text(&"x".repeat(limits.body_bytes_max)), text("x")],
            vec![EmbeddingInput::Tokens(vec![1; EMBEDDING_TOKENS_MAX + 1])],
        ] {
            assert_eq!(param(&embeddings(inputs, None)), "input");
        }
        type Break = fn(&mut Request);
        let breaks: [(&str, Break); 22] = [
            ("tools", |r| {
                r.tools = vec![serde_json::json!({}); TOOLS_MAX + 1];
            }),
            ("tools", |r| {
                r.tools = vec![serde_json::json!(vec![0; VALUES_MAX])];
            }),
            ("tool_choice", |r| r.tool_choice.calling = Calling::Must),
            ("tool_choice", |r| {
                r.tools = vec![serde_json::json!({"function": {"name": "f"}})];
                r.tool_choice.only = Some(vec!["f".to_owned(), "g".to_owned()]);
            }),
            ("prediction", |r| {
                let bytes = LimitsConfig::default().body_bytes_max + 1;
                r.prediction = Some("x".repeat(bytes));
            }),
            ("chat_template_kwargs", |r| {
                let many = serde_json::json!(vec![0; VALUES_MAX]);
                r.template_variables.insert("x".to_owned(), many);
            }),
            ("id", |r| r.id = "x".repeat(ID_BYTES_MAX + 1)),
            ("id", |r| r.id = "a\nb".to_owned()),
            ("client", |r| r.client = String::new()),
            ("stop", |r| r.stop = vec!["x".to_owned(); 65]),
            ("stop", |r| r.stop = vec![String::new()]),
            ("stop", |r| r.stop = vec!["x".repeat(STOP_BYTES_MAX + 1)]),
            ("top_logprobs", |r| r.logprobs = Some(LOGPROBS_MAX + 1)),
            ("max_tokens", |r| r.tokens_max = Some(0)),
            ("temperature", |r| r.sampling.temperature = Some(f32::NAN)),
            ("top_p", |r| r.sampling.top_p = Some(1.5)),
            ("min_p", |r| r.sampling.min_p = Some(-0.1)),
            ("typical_p", |r| r.sampling.typical_p = Some(1.1)),
            ("n", |r| r.choices = 0),
            ("n", |r| r.choices = CHOICES_MAX + 1),
            ("logit_bias", |r| {
                r.logit_bias = vec![(0, 0.0); LOGIT_BIAS_COUNT_MAX + 1];
            }),
            ("presence_penalty", |r| {
                r.sampling.presence_penalty = Some(f32::INFINITY);
            }),
        ];
        for (field, breaks) in breaks {
            let mut request = prompt();
            breaks(&mut request);
            assert_eq!(param(&request), field);
        }
    }
}
