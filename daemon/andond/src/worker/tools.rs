//! Conversations with tools: their prompt, and what an answer that may call some is held to.

use andon_engine::Model;
use andon_engine::grammar::{Calls, Constraint, Tool};
use andon_engine::tokenizer::{ChatInput, ChatMessage};
use serde_json::{Map, Value};

use crate::fault::{Fault, FaultCode};
use crate::request::{AnswerFormat, Calling, Input, Message, Request, ToolChoice, tool_name};

/// Whether the answer to a request may call tools.
pub(super) fn may_call(request: &Request) -> bool {
    let is_chat = matches!(request.input, Input::Messages(_));
    is_chat && request.tool_choice.calling != Calling::Never
}

/// What an answer that may call tools is held to.
///
/// # Errors
/// If the model makes no text of conversations.
pub(super) fn constraint(
    model: &Model,
    tools: &[Value],
    choice: &ToolChoice,
) -> Result<Option<AnswerFormat>, Fault> {
    if choice.calling == Calling::Never {
        return Ok(None);
    }
    let style = model
        .tool_style()
        .ok_or_else(|| Fault::new(FaultCode::Unsupported, NO_TEXT))?;
    let named = |tool: &Value| {
        Some(Tool {
            name: tool_name(tool)?.to_owned(),
            parameters: tool.get("function")?.get("parameters").cloned(),
        })
    };
    let mut all: Vec<Tool> = tools.iter().filter_map(named).collect();
    if let Some(only) = &choice.only {
        all.retain(|tool| only.contains(&tool.name));
    }
    Ok(Some(AnswerFormat {
        constraint: Constraint::Calls(Calls {
            format: style.format().clone(),
            tools: all,
            required: choice.calling == Calling::Must,
            several: !choice.single,
        }),
        param: "tools",
    }))
}

const NO_TEXT: &str = "the model makes no text of conversations";

/// The prompt of a conversation as the model's chat template writes it. `calls` says that the answer may call tools: where
/// the template does not tell of them, what the system says then does.
pub(super) fn render(
    model: &Model,
    messages: Vec<Message>,
    tools: &[Value],
    calls: bool,
    variables: &Map<String, Value>,
) -> Result<String, Fault> {
    let template = model
        .chat_template()
        .ok_or_else(|| Fault::new(FaultCode::Unsupported, NO_TEXT))?;
    let with_tools = !tools.is_empty()
        || messages
            .iter()
            .any(|message| message.role == "tool" || !message.extra.is_empty());
    let messages: Vec<ChatMessage> = messages.into_iter().map(seen).collect();
    let documents = variables.get("documents").and_then(Value::as_array);
    let input = ChatInput {
        messages: &messages,
        add_generation_prompt: true,
        tools,
        documents: documents.map_or(&[], Vec::as_slice),
        variables: Some(variables),
    };
    let rendered = match model.tool_style().filter(|_| with_tools) {
        Some(style) => style.render(template, &input, calls),
        None => template.render(&input),
    };
    rendered
        .map_err(|error| Fault::invalid("messages", format!("the model's chat template: {error}")))
}

fn seen(message: Message) -> ChatMessage {
    ChatMessage {
        content: message.content.into(),
        role: message.role,
        extra: message.extra,
    }
}
