//! Conversations with tools, as the model's template can render them.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::ID_CHARACTERS;
use super::detect::{Told, ToolStyle};
use crate::tokenizer::{ChatInput, ChatMessage, ChatTemplate, TemplateError};

const CALLS: &str = "tool_calls";
const CALL_ID: &str = "tool_call_id";
const TOOL: &str = "tool";

impl ToolStyle {
    /// The prompt of a conversation that may have tools and calls in it. `calls` says that the answer may have some.
    ///
    /// # Errors
    /// [`TemplateError`] as [`ChatTemplate::render`].
    pub fn render(
        &self,
        template: &ChatTemplate,
        input: &ChatInput<'_>,
        calls: bool,
    ) -> Result<String, TemplateError> {
        // Calls in a format of ours are told of, and repeated, in that format.
        let ours = calls && !self.native && !input.tools.is_empty();
        let mut messages = named(input.messages);
        if self.writes && !ours {
            messages.iter_mut().for_each(|message| self.fit(message));
        } else {
            messages = self.as_text(messages);
        }
        let told = self.told != Told::System && !ours;
        if told && self.told == Told::Message && !input.tools.is_empty() {
            self.put(&mut messages, input.tools);
        }
        let described = calls && !told && !input.tools.is_empty();
        let tools = if told { input.tools } else { &[] };
        let variables = self.variables(input.variables, tools);
        let rendered = |messages: &[ChatMessage]| {
            template.render(&ChatInput {
                messages,
                tools,
                variables: variables.as_ref(),
                ..*input
            })
        };
        if described {
            let text = self.description(input.tools);
            self.describe(&mut messages, text);
        }
        match rendered(&messages) {
            // Some take only ids of nine characters. Which id a call has says nothing to a model.
            Err(TemplateError::Refused { .. }) if short_ids(&mut messages) => rendered(&messages),
            prompt => prompt,
        }
    }

    /// Brings a message with calls into the form that the template takes.
    fn fit(&self, message: &mut ChatMessage) {
        let Some(Value::Array(calls)) = message.extra.get_mut(CALLS) else {
            return;
        };
        let is_empty = message.content.is_null() || message.content.as_str() == Some("");
        if is_empty {
            message.content = match self.null_content {
                true => Value::Null,
                false => Value::String(String::new()),
            };
        }
        for call in calls {
            let Some(arguments) = call.pointer_mut("/function/arguments") else {
                continue;
            };
            if !self.text_arguments
                && let Some(text) = arguments.as_str()
                && let Ok(object) = serde_json::from_str::<Map<String, Value>>(text)
            {
                *arguments = Value::Object(object);
            }
        }
    }

    /// The messages with calls and results as text.
    fn as_text(&self, messages: Vec<ChatMessage>) -> Vec<ChatMessage> {
        let mut out: Vec<ChatMessage> = Vec::with_capacity(messages.len());
        let mut answers = false;
        for mut message in messages {
            let is_result = message.role == TOOL;
            if let Some(calls) = message.extra.remove(CALLS) {
                let written = self.written(&calls);
                let text = text_of(&message.content);
                let between = if text.is_empty() { "" } else { "\n" };
                message.content = format!("{text}{between}{written}").into();
            } else if is_result && !self.results {
                let result = text_of(&message.content);
                let text = format!("<tool_response>\n{result}\n</tool_response>");
                // Results of calls that were made together come together: templates want turns to alternate.
                if answers
                    && let Some(last) = out.last_mut()
                    && let Value::String(before) = &mut last.content
                {
                    let _ = write!(before, "\n{text}");
                    continue;
                }
                message = ChatMessage::new("user", text);
            }
            answers = is_result;
            out.push(message);
        }
        out
    }

    fn written(&self, calls: &Value) -> String {
        let calls = calls.as_array().map_or(&[][..], Vec::as_slice);
        let calls = calls.iter().filter_map(|call| {
            let function = call.get("function")?;
            let name = function.get("name")?.as_str()?;
            let arguments = match function.get("arguments") {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => "{}".to_owned(),
            };
            Some((name, arguments))
        });
        self.format.write(calls)
    }

    /// What the system says of tools where the template says nothing.
    fn description(&self, tools: &[Value]) -> String {
        let mut text = "You can call these functions, one to a line:\n".to_owned();
        for tool in tools {
            let function = tool.get("function").unwrap_or(tool);
            let _ = writeln!(text, "{function}");
        }
        let arguments = "{\"parameter\": \"value\"}".to_owned();
        let example = self.format.write([("function", arguments)].into_iter());
        let _ = write!(
            text,
            "\nA call is written like this, with the function's name and its arguments:\n{example}\n\
             Results of calls are given to you. Call a function where it helps, and answer in words where none does."
        );
        text
    }

    /// Puts tools where [`Told::Message`] has them: the functions, as the text of a list.
    pub(super) fn put(&self, messages: &mut Vec<ChatMessage>, tools: &[Value]) {
        let functions = tools.iter().filter_map(|tool| tool.get("function"));
        let list: Value = functions.cloned().collect();
        if messages.first().is_none_or(|first| first.role != "system") {
            messages.insert(0, ChatMessage::new("system", ""));
        }
        if let Some(system) = messages.first_mut() {
            let list = Value::String(list.to_string());
            system.extra.insert("tools".to_owned(), list);
        }
    }

    /// Lets the system say `text`, or the user where there is no system.
    fn describe(&self, messages: &mut Vec<ChatMessage>, text: String) {
        let role = if self.has_system { "system" } else { "user" };
        match messages.first_mut() {
            Some(first) if first.role == role => {
                let said = text_of(&first.content);
                first.content = match self.has_system {
                    true => format!("{said}\n\n{text}"),
                    false => format!("{text}\n\n{said}"),
                }
                .into();
            }
            _ => messages.insert(0, ChatMessage::new(role, text)),
        }
    }
}

/// The text of a content.
fn text_of(content: &Value) -> &str {
    content.as_str().unwrap_or_default()
}

/// The messages, with results that say which tool they are of: some templates ask for it.
fn named(messages: &[ChatMessage]) -> Vec<ChatMessage> {
    let mut names: Vec<(String, Value)> = Vec::new();
    let mut out = messages.to_vec();
    for message in &mut out {
        if let Some(Value::Array(calls)) = message.extra.get(CALLS) {
            names.extend(calls.iter().filter_map(|call| {
                let id = call.get("id")?.as_str()?.to_owned();
                Some((id, call.pointer("/function/name")?.clone()))
            }));
        }
        if message.role == TOOL && !message.extra.contains_key("name") {
            let id = message.extra.get(CALL_ID).and_then(Value::as_str);
            let known = names
                .iter()
                .rev()
                .find(|(known, _)| Some(known.as_str()) == id);
            if let Some((_, name)) = known {
                message.extra.insert("name".to_owned(), name.clone());
            }
        }
    }
    out
}

/// Makes ids of nine letters and digits; false if all are.
fn short_ids(messages: &mut [ChatMessage]) -> bool {
    let mut ids: Vec<String> = Vec::new();
    let mut changed = false;
    let mut shorten = |value: &mut Value| {
        let Value::String(id) = value else {
            return;
        };
        if id.len() == ID_CHARACTERS && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return;
        }
        let place = ids.iter().position(|known| known == id).unwrap_or_else(|| {
            ids.push(id.clone());
            ids.len() - 1
        });
        *id = format!("call{place:05}");
        changed = true;
    };
    for message in messages {
        if let Some(Value::Array(calls)) = message.extra.get_mut(CALLS) {
            for call in calls {
                if let Some(id) = call.get_mut("id") {
                    shorten(id);
                }
            }
        }
        if let Some(id) = message.extra.get_mut(CALL_ID) {
            shorten(id);
        }
    }
    changed
}
