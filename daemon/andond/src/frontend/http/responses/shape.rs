//! The Responses API's objects and events.

use serde_json::{Map, Value, json};

use super::super::shape::timings;
use crate::fault::Fault;
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

/// How far a response is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage<'a> {
    /// It is being computed.
    Begun,
    /// It is over.
    Over {
        /// The answer.
        text: &'a str,
        /// What it took.
        done: &'a Done,
    },
    /// It will not be completed.
    Failed {
        /// What there is of the answer.
        text: &'a str,
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
            Stage::Over { text, done } => (
                status(done.finish),
                json!([self.item(text, Some(done.finish))]),
                Value::Null,
                match done.finish {
                    Finish::Length => json!({"reason": "max_output_tokens"}),
                    Finish::Stop | Finish::Cancelled => Value::Null,
                },
                usage(done),
            ),
            Stage::Failed { text, fault } => (
                "failed",
                json!([self.item(text, Some(Finish::Length))]),
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
            }
        }
        object
    }

    /// The answer as an item of the response's output.
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
