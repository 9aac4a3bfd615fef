//! What an upstream is asked: the fields of OpenAI's chat completions that every server of that kind knows.
//!
//! Invariant: what an upstream cannot be held to makes a request unsuited; nothing is left out in silence that changes what an
//! answer has to be.

use std::fmt;
use std::sync::Arc;

use andon_engine::grammar::Constraint;
use serde_json::Value;

use crate::request::{AnswerFormat, Calling, Input, Message, Request, Sampling, ToolChoice};
use crate::task::Resolved;

/// A question in owned form. Its fields may be changed until it is asked, as redaction does with the messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The conversation.
    pub messages: Vec<Message>,
    /// Tools, each as OpenAI describes it.
    pub tools: Vec<Value>,
    /// Which of them the answer may call.
    pub tool_choice: ToolChoice,
    /// The shape of the answer: [`Shape`] of the request or its task.
    pub shape: Option<Shape>,
    /// Sampling that was asked for. What OpenAI's API has no field for stays behind.
    pub sampling: Sampling,
    /// Most tokens of the answer.
    pub tokens_max: Option<usize>,
    /// Texts that end the answer, not part of it.
    pub stop: Vec<String>,
    /// Upstreams that are not to be asked, by name: those that failed with it before.
    pub avoid: Vec<Arc<str>>,
    /// Whether nobody else is asked, nor the same again, once an attempt has failed that may have cost something.
    pub spends_once: bool,
}

/// The shapes of answers that upstreams know.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// JSON that a schema describes.
    Schema(Value),
    /// Any JSON object.
    Object,
}

/// Why a request cannot be sent to an upstream, whatever the policy: by its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsuited(pub &'static str);

impl fmt::Display for Unsuited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an upstream cannot be asked for {}", self.0)
    }
}

impl std::error::Error for Unsuited {}

/// Tokens that stand around a message at most.
const MESSAGE_TOKENS_MAX: usize = 16;
/// Tokens of an answer, as a guess for one that has no limit.
const ANSWER_TOKENS: usize = 256;

impl Question {
    /// Tokens that its prompt has at most, what servers add to it of their own not counted.
    pub(crate) fn prompt_tokens_max(&self) -> u64 {
        let around = self.messages.len().saturating_mul(MESSAGE_TOKENS_MAX);
        // No token is less than a byte.
        let tokens = self.bytes().saturating_add(around);
        u64::try_from(tokens).unwrap_or(u64::MAX)
    }

    /// Bytes of what it says.
    pub(crate) fn bytes(&self) -> usize {
        let messages = self.messages.iter().map(Message::bytes);
        let tools = self.tools.iter().map(|tool| tool.to_string().len());
        let shape = match &self.shape {
            Some(Shape::Schema(schema)) => schema.to_string().len(),
            Some(Shape::Object) | None => 0,
        };
        messages.chain(tools).fold(shape, usize::saturating_add)
    }

    /// Tokens that its answer has at most.
    pub(crate) fn answer_tokens_max(&self) -> u64 {
        let tokens = self.tokens_max.unwrap_or(ANSWER_TOKENS);
        u64::try_from(tokens).unwrap_or(u64::MAX)
    }

    /// A question with nothing but a conversation.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Question {
        Question {
            messages,
            tools: Vec::new(),
            tool_choice: ToolChoice::default(),
            shape: None,
            sampling: Sampling::default(),
            tokens_max: None,
            stop: Vec::new(),
            avoid: Vec::new(),
            spends_once: false,
        }
    }

    /// What a request asks, `task` being what its task makes of it where it names one. What neither says is as `tokens_max` has
    /// it, and the upstream's own sampling.
    ///
    /// # Errors
    /// The field that no upstream can be held to.
    pub fn of(
        request: &Request,
        task: Option<&Resolved>,
        tokens_max: usize,
    ) -> Result<Question, Unsuited> {
        let messages = match (&request.input, task) {
            (Input::Messages(messages), _) => messages.clone(),
            (Input::Task { .. }, Some(task)) => task.messages.clone(),
            _ => return Err(Unsuited("what is no conversation")),
        };
        for (is_so, field) in [
            (request.choices != 1, "n"),
            (request.logprobs.is_some(), "logprobs"),
            (!request.logit_bias.is_empty(), "logit_bias"),
            (request.ignore_end, "ignore_eos"),
            (
                !request.template_variables.is_empty(),
                "chat_template_kwargs",
            ),
        ] {
            if is_so {
                return Err(Unsuited(field));
            }
        }
        let of_task = |f: fn(&Resolved) -> Option<&AnswerFormat>| task.and_then(f);
        let format = request.format.as_ref();
        let format = format.or_else(|| of_task(|task| task.format.as_ref()));
        let shape = format.map(Shape::of).transpose()?;
        let (asked, by_task) = (
            &request.sampling,
            task.map(|task| task.sampling).unwrap_or_default(),
        );
        let mut stop = request.stop.clone();
        stop.extend(task.iter().flat_map(|task| task.stop.iter().cloned()));
        let never = request.tool_choice.calling == Calling::Never;
        Ok(Question {
            messages,
            // Without them an assistant's earlier calls would refer to nothing.
            tools: request.tools.clone(),
            tool_choice: request.tool_choice.clone(),
            shape: shape.filter(|_| never),
            sampling: Sampling {
                temperature: asked.temperature.or(by_task.temperature),
                top_p: asked.top_p.or(by_task.top_p),
                presence_penalty: asked.presence_penalty.or(by_task.presence_penalty),
                frequency_penalty: asked.frequency_penalty.or(by_task.frequency_penalty),
                seed: asked.seed.or(by_task.seed),
                ..Sampling::default()
            },
            tokens_max: Some(
                request
                    .tokens_max
                    .or_else(|| task.and_then(|task| task.tokens_max))
                    .unwrap_or(tokens_max),
            ),
            stop,
            avoid: Vec::new(),
            spends_once: false,
        })
    }
}

impl Shape {
    fn of(format: &AnswerFormat) -> Result<Shape, Unsuited> {
        match &format.constraint {
            Constraint::JsonSchema(schema) => Ok(Shape::Schema(schema.clone())),
            Constraint::JsonObject => Ok(Shape::Object),
            Constraint::Regex(_) | Constraint::Lark(_) | Constraint::Gbnf(_) => {
                Err(Unsuited("an answer with a grammar"))
            }
            Constraint::Calls(_) => Err(Unsuited("tools")),
        }
    }
}
