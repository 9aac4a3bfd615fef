//! A request: what is asked, of which model, how to sample, how urgent.
//!
//! Long texts are borrowed from the caller or from the frame they came in. Counts and names are
//! bounded by their types; [`Ask::check`] holds the bounds that need more than one type.

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::limits;
use crate::name::{ModelName, RequestId, TaskName};

/// Who said a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions that the whole conversation stands under.
    System,
    /// The person or program that asks.
    User,
    /// The model, in an earlier turn.
    Assistant,
    /// The outcome of a tool that the model called.
    Tool,
}

impl Role {
    /// The word for this role in JSON and in chat templates.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message<'a> {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: &'a str,
}

/// What a request asks.
// The messages lie inside the value because there is no heap to put them on.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input<'a> {
    /// A conversation, rendered by the model's chat template.
    #[serde(borrow)]
    Messages(Vec<Message<'a>, { limits::MESSAGES_MAX }>),
    /// A text to continue, given to the model as it is.
    Prompt(&'a str),
    /// A task of the configuration and its input.
    Task {
        /// Name of the task.
        name: TaskName,
        /// The task's input, a JSON object as text.
        input_json: &'a str,
    },
}

/// How urgent a request is. A later variant never delays an earlier one; see `andon-policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Something is wrong on the floor; goes before everything else.
    Alarm,
    /// Somebody waits for the answer.
    Interactive,
    /// Nobody waits.
    Batch,
}

impl Priority {
    /// Every priority, most urgent first.
    pub const ALL: [Self; 3] = [Self::Alarm, Self::Interactive, Self::Batch];

    /// The word for this priority in JSON, MQTT properties and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alarm => "alarm",
            Self::Interactive => "interactive",
            Self::Batch => "batch",
        }
    }

    /// The priority that `word` names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.as_str() == word)
    }
}

/// Where a request's text may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Never leaves the gateway.
    Local,
    /// May be passed upstream.
    Any,
}

impl Egress {
    /// The word for this choice in JSON, MQTT properties and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Any => "any",
        }
    }

    /// The choice that `word` names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Local, Self::Any]
            .into_iter()
            .find(|e| e.as_str() == word)
    }
}

/// How the next token is drawn. What is `None` is as the task or the configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// 0 takes the likeliest token; at most [`limits::TEMPERATURE_MAX`].
    pub temperature: Option<f32>,
    /// Keep the likeliest tokens that reach this share of probability together; above 0, at most 1.
    pub top_p: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keep tokens at least this fraction as likely as the likeliest; 0 to 1.
    pub min_p: Option<f32>,
    /// Divides the score of tokens seen lately; 1 does nothing.
    pub repeat_penalty: Option<f32>,
    /// How many of the last tokens the penalties look at.
    pub repeat_last_n: Option<u32>,
    /// Subtracted once from the score of a token seen lately; −2 to 2.
    pub presence_penalty: Option<f32>,
    /// Subtracted for every time a token was seen lately; −2 to 2.
    pub frequency_penalty: Option<f32>,
    /// The draws follow from this and the position alone.
    pub seed: Option<u64>,
}

/// A request for an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask<'a> {
    /// Id under which the answer comes back, and by which the request can be cancelled.
    pub id: RequestId,
    /// What is asked.
    #[serde(borrow)]
    pub input: Input<'a>,
    /// The model; `None` takes the task's or the default one.
    pub model: Option<ModelName>,
    /// How to draw tokens.
    pub sampling: Sampling,
    /// Most tokens in the answer; `None` leaves it to the task, else to the context's end.
    pub tokens_max: Option<u32>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<&'a str, { limits::STOP_MAX }>,
    /// How urgent it is; `None` is as the task says, else interactive.
    pub priority: Option<Priority>,
    /// The answer is worthless this many milliseconds after the request arrived.
    pub deadline_ms: Option<u32>,
    /// Where the text may go; `None` is as the task or the configuration says.
    pub egress: Option<Egress>,
    /// Whether the answer is wanted as it is made, else in as few chunks as it fits.
    pub stream: bool,
}

/// What is wrong with a request, whichever front end it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The conversation has no message, or the prompt no text.
    #[error("the request asks nothing: give messages, a prompt or a task's input")]
    Empty,
    /// The text of the request is too long.
    #[error(
        "the input has {bytes} bytes where at most {} are allowed",
        limits::INPUT_BYTES_MAX
    )]
    InputTooLong {
        /// Bytes of all texts together.
        bytes: usize,
    },
    /// A request has too many messages.
    #[error("{count} messages where at most {} are allowed", limits::MESSAGES_MAX)]
    TooManyMessages {
        /// Messages found.
        count: usize,
    },
    /// A request has too many stop strings.
    #[error("{count} stop strings where at most {} are allowed", limits::STOP_MAX)]
    TooManyStops {
        /// Stop strings found.
        count: usize,
    },
    /// A stop string is empty or too long.
    #[error(
        "stop string {index} has {bytes} bytes where 1 to {} are allowed",
        limits::STOP_BYTES_MAX
    )]
    Stop {
        /// Which one, from 0.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// `tokens_max` is out of range.
    #[error("tokens_max must be from 1 to {}", limits::TOKENS_MAX)]
    TokensMax,
    /// `deadline_ms` is out of range.
    #[error("deadline_ms must be from 1 to {}", limits::DEADLINE_MS_MAX)]
    Deadline,
    /// No dimensions are asked for.
    #[error("a vector of no dimensions is asked for")]
    Dimensions,
    /// A sampling option is out of range or not a number.
    #[error("{0} is out of range")]
    Sampling(&'static str),
}

impl AskError {
    /// Whether the request is refused for its size rather than its content.
    #[must_use]
    pub const fn is_size(&self) -> bool {
        matches!(
            self,
            Self::InputTooLong { .. } | Self::TooManyMessages { .. }
        )
    }
}

impl Sampling {
    /// Checks every option that is given against its range.
    ///
    /// # Errors
    /// [`AskError::Sampling`] with the name of the first option out of range.
    pub fn check(&self) -> Result<(), AskError> {
        fn within(value: Option<f32>, low: f32, high: f32) -> bool {
            // A NaN is in no range.
            value.is_none_or(|v| (low..=high).contains(&v))
        }
        let penalty = -limits::PENALTY_MAX..=limits::PENALTY_MAX;
        let checks = [
            (
                "temperature",
                within(self.temperature, 0.0, limits::TEMPERATURE_MAX),
            ),
            ("top_p", self.top_p.is_none_or(|p| p > 0.0 && p <= 1.0)),
            ("top_k", self.top_k.is_none_or(|k| k <= limits::TOP_K_MAX)),
            ("min_p", within(self.min_p, 0.0, 1.0)),
            (
                "repeat_penalty",
                self.repeat_penalty
                    .is_none_or(|p| p > 0.0 && p <= limits::REPEAT_PENALTY_MAX),
            ),
            (
                "repeat_last_n",
                self.repeat_last_n
                    .is_none_or(|n| n <= limits::REPEAT_LAST_N_MAX),
            ),
            (
                "presence_penalty",
                self.presence_penalty.is_none_or(|p| penalty.contains(&p)),
            ),
            (
                "frequency_penalty",
                self.frequency_penalty.is_none_or(|p| penalty.contains(&p)),
            ),
        ];
        match checks.iter().find(|(_, fine)| !fine) {
            Some((name, _)) => Err(AskError::Sampling(name)),
            None => Ok(()),
        }
    }
}

/// Checks stop strings: how many, and that none is empty or too long. Front ends that do not hold
/// an [`Ask`] use this one directly.
///
/// # Errors
/// [`AskError::TooManyStops`] or [`AskError::Stop`].
pub fn check_stops<S: AsRef<str>>(stops: &[S]) -> Result<(), AskError> {
    if stops.len() > limits::STOP_MAX {
        return Err(AskError::TooManyStops { count: stops.len() });
    }
    for (index, stop) in stops.iter().enumerate() {
        let bytes = stop.as_ref().len();
        if bytes == 0 || bytes > limits::STOP_BYTES_MAX {
            return Err(AskError::Stop { index, bytes });
        }
    }
    Ok(())
}

/// Checks the bytes of text that a request carries.
///
/// # Errors
/// [`AskError::InputTooLong`].
pub fn check_input_bytes(bytes: usize) -> Result<(), AskError> {
    if bytes > limits::INPUT_BYTES_MAX {
        return Err(AskError::InputTooLong { bytes });
    }
    Ok(())
}

/// Checks a wish for at most so many tokens.
///
/// # Errors
/// [`AskError::TokensMax`].
pub fn check_tokens_max(tokens_max: Option<u32>) -> Result<(), AskError> {
    match tokens_max {
        Some(tokens) if tokens == 0 || tokens > limits::TOKENS_MAX => Err(AskError::TokensMax),
        _ => Ok(()),
    }
}

/// Checks a deadline.
///
/// # Errors
/// [`AskError::Deadline`].
pub fn check_deadline_ms(deadline_ms: Option<u32>) -> Result<(), AskError> {
    match deadline_ms {
        Some(ms) if ms == 0 || ms > limits::DEADLINE_MS_MAX => Err(AskError::Deadline),
        _ => Ok(()),
    }
}

impl<'a> Ask<'a> {
    /// A request with nothing but an id and an input; it streams.
    #[must_use]
    pub fn new(id: RequestId, input: Input<'a>) -> Self {
        Self {
            id,
            input,
            model: None,
            sampling: Sampling::default(),
            tokens_max: None,
            stop: Vec::new(),
            priority: None,
            deadline_ms: None,
            egress: None,
            stream: true,
        }
    }

    /// Checks the limits that the types alone do not keep.
    ///
    /// # Errors
    /// The first [`AskError`] found.
    pub fn check(&self) -> Result<(), AskError> {
        let bytes = match &self.input {
            Input::Messages(messages) if messages.is_empty() => return Err(AskError::Empty),
            Input::Messages(messages) => messages
                .iter()
                .fold(0usize, |sum, m| sum.saturating_add(m.content.len())),
            Input::Prompt("") => return Err(AskError::Empty),
            Input::Prompt(text) => text.len(),
            Input::Task { input_json, .. } => input_json.len(),
        };
        check_input_bytes(bytes)?;
        check_stops(&self.stop)?;
        check_tokens_max(self.tokens_max)?;
        check_deadline_ms(self.deadline_ms)?;
        self.sampling.check()
    }
}

#[cfg(test)]
mod tests {
    use super::{Ask, AskError, Egress, Input, Message, Priority, Role};
    use crate::limits;
    use crate::name::RequestId;

    fn ask(input: Input<'_>) -> Ask<'_> {
        Ask::new(RequestId::new("1").unwrap(), input)
    }

    #[test]
    fn a_plain_request_is_fine() {
        ask(Input::Prompt("hello")).check().unwrap();
        let mut messages = heapless::Vec::new();
        messages
            .push(Message {
                role: Role::User,
                content: "",
            })
            .unwrap();
        ask(Input::Messages(messages)).check().unwrap();
    }

    #[test]
    fn a_request_that_asks_nothing_is_refused() {
        assert_eq!(ask(Input::Prompt("")).check(), Err(AskError::Empty));
        let none = Input::Messages(heapless::Vec::new());
        assert_eq!(ask(none).check(), Err(AskError::Empty));
    }

    #[test]
    fn every_bound_is_held() {
        static LONG: [u8; limits::INPUT_BYTES_MAX + 1] = [b'a'; limits::INPUT_BYTES_MAX + 1];
        let long = core::str::from_utf8(&LONG).unwrap();
        let bytes = limits::INPUT_BYTES_MAX + 1;
        assert_eq!(
            ask(Input::Prompt(long)).check(),
            Err(AskError::InputTooLong { bytes })
        );
        ask(Input::Prompt(&long[1..])).check().unwrap();

        let mut one = ask(Input::Prompt("x"));
        one.stop.push("").unwrap();
        assert_eq!(one.check(), Err(AskError::Stop { index: 0, bytes: 0 }));

        let mut one = ask(Input::Prompt("x"));
        one.tokens_max = Some(0);
        assert_eq!(one.check(), Err(AskError::TokensMax));
        one.tokens_max = Some(limits::TOKENS_MAX);
        one.check().unwrap();
        one.deadline_ms = Some(limits::DEADLINE_MS_MAX + 1);
        assert_eq!(one.check(), Err(AskError::Deadline));
    }

    #[test]
    fn sampling_ranges_leave_out_what_is_no_number() {
        let mut one = ask(Input::Prompt("x"));
        for bad in [f32::NAN, f32::INFINITY, -0.1, 2.1] {
            one.sampling.temperature = Some(bad);
            assert_eq!(one.check(), Err(AskError::Sampling("temperature")));
        }
        one.sampling.temperature = Some(0.0);
        one.check().unwrap();
        for bad in [f32::NAN, 0.0, 1.1] {
            one.sampling.top_p = Some(bad);
            assert_eq!(one.check(), Err(AskError::Sampling("top_p")));
        }
        one.sampling.top_p = Some(1.0);
        one.sampling.repeat_penalty = Some(0.0);
        assert_eq!(one.check(), Err(AskError::Sampling("repeat_penalty")));
    }

    #[test]
    fn words_name_what_they_came_from() {
        for priority in Priority::ALL {
            assert_eq!(Priority::from_word(priority.as_str()), Some(priority));
        }
        assert_eq!(Egress::from_word("any"), Some(Egress::Any));
        assert_eq!(Egress::from_word("Any"), None);
    }
}
