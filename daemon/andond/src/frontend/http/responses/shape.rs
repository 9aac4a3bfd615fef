//! The Responses API's objects and events.

use serde_json::{Map, Value, json};

use super::super::calls::Call;
use super::super::shape::{timings, whence};
use crate::fault::Fault;
use crate::request::Message;
use crate::worker::{Done, Finish};

/// Makes the objects of one response.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) id: String,
    pub(super) item_id: String,
    pub(super) created_s: u64,
    pub(super) model: String,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    /// What the body said, repeated.
    pub(super) said: Map<String, Value>,
}

/// What was answered.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) calls: Vec<Call>,
}

impl Answer {
    /// As a message of the conversation.
    pub(super) fn message(&self) -> Message {
        let mut message = Message::new("assistant", self.text.clone());
        // Those that were cut off have been made to nobody.
        let complete = self.calls.iter().filter(|call| call.complete);
        let calls: Vec<Value> = complete.map(Call::object).collect();
        if !calls.is_empty() {
            let calls = Value::Array(calls);
            message.extra.insert("tool_calls".to_owned(), calls);
        }
        message
    }
}

/// A call as an item of a response's output.
pub(super) fn call_item(call: &Call, status: &str) -> Value {
    json!({
        "id": call_item_id(call),
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    })
}

/// The id of the item of a call.
pub(super) fn call_item_id(call: &Call) -> String {
    call.id.replacen("call_", "fc_", 1)
}

/// How far a response is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage<'a> {
    /// It is being computed.
    Begun,
    /// It is over.
    Over {
        /// The answer.
        answer: &'a Answer,
        /// What it took.
        done: &'a Done,
    },
    /// It will not be completed.
    Failed {
        /// What there is of the answer.
        answer: &'a Answer,
        /// Why.
        fault: &'a Fault,
    },
}

/// The status of a response or an item that ended so.
fn status(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "completed",
        Finish::Length => "incomplete",
        Finish::Cancelled => "cancelled",
    }
}

/// The event that ends a stream.
pub(super) fn last_event(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "response.completed",
        Finish::Length | Finish::Cancelled => "response.incomplete",
    }
}

/// The one part of an answer.
pub(super) fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

impl Reply {
    /// The response's object.
    pub(super) fn object(&self, stage: Stage<'_>) -> Value {
        let (status_now, output, error, details, usage_now) = match stage {
            Stage::Begun => (
                "in_progress",
                json!([]),
                Value::Null,
                Value::Null,
                Value::Null,
            ),
            Stage::Over { answer, done } => (
                status(done.finish),
                self.items(answer, done.finish),
                Value::Null,
                match done.finish {
                    Finish::Length => json!({"reason": "max_output_tokens"}),
                    Finish::Stop | Finish::Cancelled => Value::Null,
                },
                usage(done),
            ),
            Stage::Failed { answer, fault } => (
                "failed",
                self.items(answer, Finish::Length),
                json!({"code": "server_error", "message": fault.message}),
                Value::Null,
                Value::Null,
            ),
        };
        let mut object = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created_s,
            "status": status_now,
            "error": error,
            "incomplete_details": details,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": true,
            "reasoning": {"effort": null, "summary": null},
            "temperature": self.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": self.top_p,
            "truncation": "disabled",
            "usage": usage_now,
        });
        if let Value::Object(object) = &mut object {
            object.extend(self.said.clone());
            if let Stage::Over { done, .. } = stage {
                object.insert("timings".to_owned(), timings(done));
                object.insert("andon".to_owned(), whence(done));
                if let Some(model) = &done.model {
                    object.insert("model".to_owned(), (**model).into());
                }
            }
        }
        object
    }

    /// The answer as items of the response's output.
    fn items(&self, answer: &Answer, finish: Finish) -> Value {
        let mut items = Vec::with_capacity(answer.calls.len() + 1);
        if answer.calls.is_empty() {
            items.push(self.item(&answer.text, Some(finish)));
        } else if !answer.text.is_empty() {
            items.push(self.item(&answer.text, Some(Finish::Stop)));
        }
        items.extend(answer.calls.iter().map(|call| {
            let status = if call.complete {
                "completed"
            } else {
                "incomplete"
            };
            call_item(call, status)
        }));
        Value::Array(items)
    }

    /// The text of the answer as an item of the response's output.
    pub(super) fn item(&self, text: &str, finish: Option<Finish>) -> Value {
        let (status, content) = match finish {
            None => ("in_progress", json!([])),
            Some(Finish::Stop) => ("completed", json!([part(text)])),
            Some(Finish::Length | Finish::Cancelled) => ("incomplete", json!([part(text)])),
        };
        json!({
            "id": self.item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        })
    }
}

fn usage(done: &Done) -> Value {
    let usage = &done.usage;
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            // As chat completions have them.
            "accepted_prediction_tokens": usage.accepted_tokens,
            "rejected_prediction_tokens": usage.guessed_tokens.saturating_sub(usage.accepted_tokens),
        },
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
    })
}
