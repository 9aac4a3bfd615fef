//! What a prompt is made of, and how large it may be.

use std::io;

use serde::Serialize;
use serde_json::{Map, Value};

use super::TemplateError;

/// Bytes of the whole input, as JSON.
const BYTES_MAX: u64 = 1 << 24;
/// Levels of lists and objects, one in the other. Readers of JSON take as many.
const DEPTH_MAX: usize = 128;

/// One message of a conversation, as templates see it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else a template knows.
    pub role: String,
    /// What is said: a text, a list of parts, or null where there are only tool calls.
    pub content: Value,
    /// Further fields a template may look at: `name`, `tool_calls`, `tool_call_id`, …
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ChatMessage {
    /// A message with nothing but a role and a content.
    pub fn new(role: impl Into<String>, content: impl Into<Value>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            extra: Map::new(),
        }
    }
}

/// A conversation and what belongs to it.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatInput<'a> {
    /// What has been said.
    pub messages: &'a [ChatMessage],
    /// Whether the prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Functions that the model may call, each as OpenAI's API describes it: `{"type": "function", "function": …}`.
    pub tools: &'a [Value],
    /// Texts to answer from, for the few templates that take them: objects with `title` and `text`.
    pub documents: &'a [Value],
    /// Further variables by name: `enable_thinking`, `reasoning_effort`, … They replace `bos_token` and `eos_token`, but
    /// none of the other fields here.
    pub variables: Option<&'a Map<String, Value>>,
}

impl ChatInput<'_> {
    /// Bytes of all of it.
    ///
    /// # Errors
    /// [`TemplateError`] if it is too long or nested too deeply.
    pub(super) fn count_bytes(&self) -> Result<u64, TemplateError> {
        let messages = self
            .messages
            .iter()
            .flat_map(|message| message.extra.values().chain([&message.content]));
        let variables = self.variables.into_iter().flat_map(Map::values);
        let mut values = messages
            .chain(self.tools)
            .chain(self.documents)
            .chain(variables);
        if !values.all(|value| is_within(value, DEPTH_MAX)) {
            return Err(TemplateError::InputTooDeep { max: DEPTH_MAX });
        }
        let bytes = count_bytes(self.messages)
            .saturating_add(count_bytes(self.tools))
            .saturating_add(count_bytes(self.documents))
            .saturating_add(self.variables.map_or(0, count_bytes));
        if bytes > BYTES_MAX {
            return Err(TemplateError::InputTooLong {
                bytes,
                max: BYTES_MAX,
            });
        }
        Ok(bytes)
    }
}

fn is_within(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|item| is_within(item, levels - 1)),
        Value::Object(map) => levels > 0 && map.values().all(|item| is_within(item, levels - 1)),
        _ => true,
    }
}

/// Bytes that a value takes as JSON: what it takes to read it.
fn count_bytes<T: Serialize + ?Sized>(value: &T) -> u64 {
    struct Count(u64);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len() as u64);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What cannot be written as JSON has no bytes here and fails where the template uses it.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}
